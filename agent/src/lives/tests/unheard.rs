//! Ends that no record told.

use super::*;

fn ends(scene: &Scene) -> Vec<(Option<u64>, u64, SocketAddr)> {
    scene.ended.iter().map(|ended| (ended.cookie, ended.closed_ns, ended.life.local)).collect()
}

/// How many ends are told that no record told, and how many are not told.
fn missed(scene: &mut Scene) -> (usize, u64) {
    let told = scene.ended.iter().filter(|ended| ended.heard == Heard::Missed).count();
    (told, scene.lives.take_unheard())
}

/// Lets two walks look for whatever is sought.
fn look_twice(scene: &mut Scene) {
    for _ in 0..2 {
        let sought = scene.lives.sought(scene.at_ns);
        scene.lives.looked(&sought);
    }
}

#[test]
fn an_end_whose_record_did_not_come_is_noticed_when_walks_do_not_show_the_connection() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    scene.state(IN, BOB, Established, FinWait1);
    assert!(see(&scene, OUT));
    scene.lives.conclude(50, &mut scene.ended);
    assert_eq!((ends(&scene), scene.lives.has_missed()), (vec![], false), "no walk has looked for it");
    look_twice(&mut scene);
    assert!(scene.lives.has_missed());
    scene.lives.conclude(50, &mut scene.ended);
    assert_eq!(ends(&scene), [(None, 50, IN.1.parse().unwrap())]);
    assert_eq!((scene.ended[0].life.closer, scene.ended[0].life.closed_ns), (deed(2, 4), None));
    assert_eq!((missed(&mut scene), scene.lives.len()), ((1, 0), 2));
    scene.state((SERVER, IN.1, "10.0.0.9:1"), Actor::Kernel, Listen, SynReceived);
    assert_eq!((ends(&scene).len(), scene.lives.len()), (1, 2), "told once");
    assert_eq!(missed(&mut scene), (1, 0), "and counted once");
}

#[test]
fn of_two_connections_with_one_pair_none_is_taken_for_over_because_a_walk_showed_the_other() {
    const ELSEWHERE: (u64, &str, &str) = (0xe, OUT.1, OUT.2);
    let mut scene = Scene::new();
    for who in [OUT, ELSEWHERE] {
        scene.state((who.0, UNBOUND.1, UNBOUND.2), ALICE, None, SynSent);
        scene.state(who, Actor::Kernel, SynSent, Established);
    }
    assert!(see(&scene, OUT));
    look_twice(&mut scene);
    scene.lives.conclude(50, &mut scene.ended);
    assert_eq!((ends(&scene), scene.lives.len()), (vec![], 2));
}

#[test]
fn a_life_whose_address_is_used_again_before_its_end_was_told_ended_by_then() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state((SERVER, IN.1, "10.0.0.9:1"), Actor::Kernel, Listen, SynReceived);
    assert_eq!(ends(&scene), [(None, 2, IN.1.parse().unwrap())]);
    assert_eq!((missed(&mut scene), scene.lives.len(), scene.lives.by_pair.len()), ((1, 0), 1, 1));
}

#[test]
fn an_end_that_a_walk_will_tell_is_counted_here_and_told_there() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    assert!(see(&scene, IN));
    scene.state((SERVER, IN.1, "10.0.0.9:1"), Actor::Kernel, Listen, SynReceived);
    assert_eq!((ends(&scene), missed(&mut scene)), (vec![], (0, 1)));
}

#[test]
fn of_what_began_unheard_the_end_is_told() {
    let mut scene = Scene::new();
    scene.destroy(IN, BOB, 8);
    let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((ended.cookie, ended.life.purpose, ended.life.opened_ns), (Some(8), Purpose::Session(None), None));
    assert_eq!((ended.life.closer, ended.closed_ns), (deed(2, 1), 1));
}

#[test]
fn a_connection_that_was_reset_is_told_though_its_process_holds_the_socket_and_once() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    scene.state(IN, Actor::Kernel, Established, None);
    scene.lives.tell_closed(2, &mut scene.ended);
    assert_eq!(ends(&scene), [], "it was reset a moment ago, and whoever closes it says who had it");
    scene.lives.tell_closed(3, &mut scene.ended);
    scene.lives.tell_closed(9, &mut scene.ended);
    scene.destroy(IN, BOB, 8);
    assert_eq!(ends(&scene), [(None, 3, IN.1.parse().unwrap())]);
    assert!(scene.lives.is_empty() && missed(&mut scene) == (0, 0));
}

#[test]
fn an_end_that_a_walk_was_told_is_not_told_again_and_the_next_life_of_the_socket_is() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert!(see(&scene, OUT));
    scene.state(OUT, Actor::Kernel, Established, None);
    assert_eq!(scene.lives.closed_ns(OUT.1.parse().unwrap(), OUT.2.parse().unwrap()), Some(3));
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state((CLIENT, "10.0.0.1:40001", OUT.2), Actor::Kernel, SynSent, None);
    scene.destroy((CLIENT, "10.0.0.1:40001", OUT.2), ALICE, 7);
    assert_eq!(ends(&scene), [(Some(7), 5, "10.0.0.1:40001".parse().unwrap())]);
}

#[test]
fn what_a_walk_saw_before_records_were_lost_is_told_once_when_a_walk_misses_it_between_its_close_and_its_destruction() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert!(see(&scene, OUT));
    scene.lives.forget();
    scene.state(OUT, ALICE, Established, FinWait1);
    scene.state(OUT, Actor::Kernel, FinWait1, None);
    let (local, peer) = (OUT.1.parse().unwrap(), OUT.2.parse().unwrap());
    assert_eq!([scene.lives.closed_ns(local, peer), scene.lives.closed_ns(local, peer)], [Some(4), None]);
    scene.destroy(OUT, Actor::Kernel, 7);
    scene.lives.tell_closed(9, &mut scene.ended);
    assert_eq!((ends(&scene), scene.lives.is_empty()), (vec![], true));
}

#[test]
fn that_a_walk_missed_something_is_doubted_until_it_is_seen() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert!(!scene.lives.doubts(), "no walk looked");
    look_twice(&mut scene);
    assert!(scene.lives.doubts());
    assert!(see(&scene, OUT), "it was known, and the walk had been ahead of its records");
    scene.lives.conclude(9, &mut scene.ended);
    assert!(!scene.lives.doubts());
    assert_eq!((ends(&scene), missed(&mut scene)), (vec![], (0, 0)));
}

#[test]
fn a_connection_at_the_address_of_one_that_was_looked_for_in_vain_is_not_taken_for_it() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    let looked_for = scene.lives.sought(scene.at_ns);
    scene.lives.looked(&looked_for);
    scene.state(IN, BOB, SynReceived, None);
    scene.destroy(IN, BOB, 8);
    scene.state((SERVER, IN.1, "10.0.0.9:1"), Actor::Kernel, Listen, SynReceived);
    scene.lives.looked(&looked_for);
    scene.lives.conclude(50, &mut scene.ended);
    assert_eq!((scene.ended.len(), scene.lives.len()), (1, 1), "the walk began before it was open");
    let looks: Vec<u8> = scene.lives.sought(scene.at_ns).iter().map(|sought| sought.looks).collect();
    assert_eq!(looks, [0]);
}

#[test]
fn of_a_connection_that_was_looked_for_in_vain_and_ended_nothing_is_concluded_about_the_next_one() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    look_twice(&mut scene);
    scene.state(IN, BOB, SynReceived, None);
    scene.destroy(IN, BOB, 8);
    scene.state((SERVER, IN.1, "10.0.0.9:1"), Actor::Kernel, Listen, SynReceived);
    scene.lives.conclude(50, &mut scene.ended);
    assert_eq!((scene.ended.len(), scene.lives.len()), (1, 1));
}

#[test]
fn a_socket_with_another_pair_at_the_address_of_one_that_did_not_end_is_another_one() {
    const NEXT: (u64, &str, &str) = (SERVER, "10.0.0.2:80", "10.0.0.9:5000");
    for heard in [0, 1, 2] {
        let mut scene = Scene::new();
        scene.state(IN, Actor::Kernel, Listen, SynReceived);
        if heard > 1 {
            scene.state(NEXT, BOB, Established, FinWait1);
        }
        if heard > 0 {
            scene.state(NEXT, Actor::Kernel, FinWait1, None);
        }
        scene.destroy(NEXT, BOB, 9);
        let [before, after] = scene.ended.as_slice() else { panic!("{heard}: {:?}", scene.ended) };
        assert_eq!((before.cookie, before.life.peer), (None, IN.2.parse().unwrap()), "{heard}");
        assert_eq!((after.cookie, after.life.peer, after.life.opened_ns), (Some(9), NEXT.2.parse().unwrap(), None));
        assert!(scene.lives.is_empty() && scene.lives.by_pair.is_empty() && scene.lives.closed_by_pair.is_empty());
        assert_eq!(missed(&mut scene), (1, 0));
    }
}

#[test]
fn a_connection_that_was_accepted_at_the_address_of_one_that_did_not_end_is_known_to_be_accepted() {
    const NEXT: (u64, &str, &str) = (CLIENT, IN.1, IN.2);
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    scene.state(NEXT, Actor::Kernel, SynReceived, Established);
    scene.destroy(NEXT, BOB, 9);
    let [before, after] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((before.cookie, before.life.opener, before.closed_ns), (None, deed(1, 1), 3));
    assert_eq!((after.life.purpose, after.life.opened_ns), (Purpose::Session(Some(Direction::In)), Some(3)));
}

#[test]
fn what_both_ends_closed_while_its_process_holds_it_is_over_when_walks_do_not_show_it_and_told_once() {
    for seen in [true, false] {
        let mut scene = Scene::new();
        scene.state(IN, Actor::Kernel, SynReceived, Established);
        assert!(!seen || see(&scene, IN));
        scene.state(IN, Actor::Kernel, Established, CloseWait);
        // shutdown(2); what the kernel does then is not written.
        scene.state(IN, BOB, CloseWait, LastAck);
        assert_eq!(sought(&mut scene), [SERVER], "a walk tells whether it is gone");
        look_twice(&mut scene);
        scene.lives.conclude(50, &mut scene.ended);
        let told = (!seen).then(|| (None, 50, IN.1.parse().unwrap()));
        assert_eq!((ends(&scene), scene.lives.has_missed()), (told.into_iter().collect(), false), "seen: {seen}");
        assert_eq!(missed(&mut scene), (usize::from(!seen), 0));
        scene.destroy(IN, BOB, KEY.cookie);
        let walked: Vec<_> = scene.ended.iter().map(|ended| ended.walked).collect();
        assert_eq!(walked, [seen.then_some(KEY)], "the table knows what a walk saw, and that it is gone");
    }
}

#[test]
fn thousands_of_ends_whose_records_did_not_come_are_noticed_by_two_walks() {
    let mut scene = Scene::new();
    let ports = 1..=u16::try_from(sought::SOUGHT_LIMIT).unwrap();
    for port in ports.clone() {
        let peer = format!("10.0.0.1:{port}");
        scene.state((port.into(), IN.1, &peer), Actor::Kernel, Listen, SynReceived);
    }
    look_twice(&mut scene);
    scene.lives.conclude(scene.at_ns, &mut scene.ended);
    assert_eq!((scene.ended.len(), scene.lives.len()), (ports.len(), 0));
}

#[test]
fn an_end_whose_record_did_not_come_is_noticed_though_the_pair_was_used_again() {
    const AGAIN: (u64, &str, &str) = (0x6, IN.1, IN.2);
    // What a walk saw of the pair, by the cookie of the second one: nothing, that one, or the first.
    for seen in [None, Some(KEY.cookie), Some(KEY.cookie + 1)] {
        let mut scene = Scene::new();
        scene.state(IN, Actor::Kernel, Listen, SynReceived);
        look_twice(&mut scene);
        scene.state(AGAIN, Actor::Kernel, Listen, SynReceived);
        scene.lives.conclude(scene.at_ns, &mut scene.ended);
        assert_eq!(scene.ended, [], "it may be in another namespace");
        assert!(seen.is_none() || see(&scene, AGAIN));
        scene.state(AGAIN, BOB, SynReceived, None);
        scene.destroy(AGAIN, BOB, seen.unwrap_or(8));
        assert_eq!(scene.ended.len(), 1);
        look_twice(&mut scene);
        scene.lives.conclude(50, &mut scene.ended);
        let first_was_seen = seen.is_some_and(|cookie| cookie != KEY.cookie);
        let noticed = (!first_was_seen).then(|| (None, 50, IN.1.parse().unwrap()));
        assert_eq!(ends(&scene).get(1).copied(), noticed, "{seen:?}");
        assert_eq!(scene.ended[0].walked, seen.filter(|_| !first_was_seen).map(|_| KEY), "{seen:?}");
        let followed: Vec<_> = scene.lives.sockets.values().map(|followed| followed.walked.get()).collect();
        assert_eq!(followed, if first_was_seen { vec![Some(KEY)] } else { Vec::new() }, "walks tell when it is gone");
    }
}

#[test]
fn an_end_that_only_the_kernels_word_tells_is_told_with_its_cookie_once_and_is_of_the_earliest_with_the_pair() {
    const AGAIN: (u64, &str, &str) = (0x6, IN.1, IN.2);
    let mut scene = Scene::new();
    let ends_of = |(_, local, peer): (u64, &str, &str)| [local.parse().unwrap(), peer.parse().unwrap()];
    let depart = |scene: &mut Scene, at_ns| scene.lives.depart(at_ns, 5, ends_of(IN), &mut scene.ended);
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    assert!(!depart(&mut scene, 0), "it began later");
    scene.state(AGAIN, Actor::Kernel, Listen, SynReceived);
    assert!(depart(&mut scene, 9));
    assert_eq!(ends(&scene), [(Some(5), 9, IN.1.parse().unwrap())]);
    assert_eq!(scene.lives.sockets.keys().copied().collect::<Vec<_>>(), [AGAIN.0]);
    assert!(see(&scene, AGAIN));
    assert!(!depart(&mut scene, 9), "what a walk saw, a walk will see gone");
    scene.destroy(AGAIN, BOB, KEY.cookie);
    assert!(!depart(&mut scene, 9) && scene.ended.len() == 2);
    assert!(scene.lives.is_empty() && scene.lives.by_pair.is_empty());
}

#[test]
fn a_reset_connection_is_told_though_its_pair_was_used_again_before_its_process_let_go() {
    const AGAIN: (u64, &str, &str) = (0x6, IN.1, IN.2);
    let mut scene = Scene::new();
    for life in [IN, AGAIN] {
        scene.state(life, Actor::Kernel, SynReceived, Established);
        scene.state(life, Actor::Kernel, Established, None);
    }
    scene.lives.tell_closed(scene.at_ns, &mut scene.ended);
    let closed: Vec<u64> = scene.ended.iter().map(|ended| ended.closed_ns).collect();
    assert_eq!(closed.iter().sum::<u64>(), 2 + 4, "{closed:?}");
    for life in [IN, AGAIN] {
        scene.destroy(life, BOB, 9);
    }
    assert_eq!(scene.ended.len(), 2);
    assert!(scene.lives.is_empty() && scene.lives.by_pair.is_empty() && scene.lives.closed_by_pair.is_empty());
}
