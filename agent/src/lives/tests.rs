//! Scenes that the kernel plays, event by event.

use fleetsock_proto::socket::Family;

use super::*;
use crate::events::Actor;
use SocketState::{CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynReceived, SynSent};

mod unheard;

const CLIENT: u64 = 0xc;
const SERVER: u64 = 0x5;

fn event(socket: u64, local: &str, peer: &str, by: Actor) -> SocketEvent {
    SocketEvent { socket, family: Family::Ipv4, local: local.parse().unwrap(), peer: peer.parse().unwrap(), by }
}

struct Scene {
    lives: Lives,
    ended: Vec<Ended>,
    at_ns: u64,
}

impl Scene {
    fn new() -> Scene {
        Scene { lives: Lives::default(), ended: Vec::new(), at_ns: 0 }
    }

    fn state(
        &mut self,
        who: (u64, &str, &str),
        by: Actor,
        old: impl Into<Option<SocketState>>,
        new: impl Into<Option<SocketState>>,
    ) {
        self.at_ns += 1;
        let event = event(who.0, who.1, who.2, by);
        let what = What::State { event, old: old.into(), new: new.into() };
        self.lives.handle(&Record { at_ns: self.at_ns, what }, &mut self.ended);
    }

    fn destroy(&mut self, who: (u64, &str, &str), by: Actor, cookie: u64) {
        self.at_ns += 1;
        let what = What::Destroyed { event: event(who.0, who.1, who.2, by), cookie };
        self.lives.handle(&Record { at_ns: self.at_ns, what }, &mut self.ended);
    }
}

const UNBOUND: (u64, &str, &str) = (CLIENT, "10.0.0.1:0", "10.0.0.2:80");
const OUT: (u64, &str, &str) = (CLIENT, "10.0.0.1:40000", "10.0.0.2:80");
const IN: (u64, &str, &str) = (SERVER, "10.0.0.2:80", "10.0.0.1:40000");
const ALICE: Actor = Actor::Process(1);
const BOB: Actor = Actor::Process(2);

fn deed(pid: u32, at_ns: u64) -> Option<Deed> {
    Some(Deed { pid, at_ns })
}

#[test]
fn both_ends_of_a_connection_have_their_direction_their_process_and_their_times() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert_eq!(scene.lives.find(OUT.1.parse().unwrap(), OUT.2.parse().unwrap()).unwrap().life.opener, deed(1, 1));
    scene.state(OUT, ALICE, Established, FinWait1);
    scene.state(IN, Actor::Kernel, Established, CloseWait);
    scene.state(OUT, Actor::Kernel, FinWait1, FinWait2);
    scene.state(OUT, Actor::Kernel, FinWait2, None);
    scene.destroy(OUT, Actor::Kernel, 7);
    scene.state(IN, BOB, CloseWait, LastAck);
    scene.state(IN, Actor::Kernel, LastAck, None);
    scene.destroy(IN, Actor::Kernel, 8);
    let [out, inward] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((out.cookie, out.life.purpose), (Some(7), Purpose::Session(Some(Direction::Out))));
    assert_eq!(
        (out.life.opener, out.life.closer, out.life.opened_ns, out.closed_ns),
        (deed(1, 1), deed(1, 5), Some(1), 8)
    );
    assert_eq!((out.life.local, out.life.state), (OUT.1.parse().unwrap(), FinWait2));
    assert_eq!((inward.cookie, inward.life.purpose), (Some(8), Purpose::Session(Some(Direction::In))));
    assert_eq!((inward.life.opener, inward.life.closer, inward.life.opened_ns), (None, deed(2, 10), Some(2)));
    assert!(scene.lives.is_empty() && scene.lives.by_pair.is_empty() && scene.lives.closed_by_pair.is_empty());
}

#[test]
fn a_child_of_a_listener_is_known_by_its_second_state_when_the_first_is_not_told() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    scene.state(IN, BOB, Established, None);
    scene.destroy(IN, BOB, 8);
    let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((ended.life.purpose, ended.life.opened_ns), (Purpose::Session(Some(Direction::In)), Some(1)));
    assert_eq!((ended.life.state, ended.life.closer), (Established, deed(2, 2)));
}

#[test]
fn whoever_was_reset_is_known_by_the_destruction_and_keeps_the_pair_that_the_reset_erased() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    scene.state(IN, Actor::Kernel, Established, None);
    let (local, peer) = (IN.1.parse().unwrap(), IN.2.parse().unwrap());
    assert_eq!(scene.lives.closed_ns(local, peer), None, "no walk saw it: its end is told");
    assert_eq!(
        scene.lives.find(local, peer).unwrap().life.opened_ns,
        Some(1),
        "a walk may have seen it a moment before"
    );
    scene.destroy((SERVER, "10.0.0.2:0", "0.0.0.0:0"), BOB, 8);
    assert!(scene.lives.find(local, peer).is_none() && scene.lives.closed_ns(local, peer).is_none());
    let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((ended.life.peer, ended.life.closer), (IN.2.parse().unwrap(), deed(2, 4)));
    assert_eq!(ended.closed_ns, 3, "when it was reset, not when somebody noticed");
}

#[test]
fn an_attempt_that_was_refused_is_a_session_that_got_no_further_and_the_next_one_another() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, None);
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    scene.state(OUT, ALICE, Established, None);
    scene.destroy(OUT, ALICE, 7);
    let [first, second] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((first.life.state, first.closed_ns), (SynSent, 2));
    assert_eq!((second.life.state, second.life.opened_ns, second.closed_ns), (Established, Some(3), 5));
}

#[test]
fn what_began_before_the_events_has_no_beginning_and_no_guess() {
    let mut scene = Scene::new();
    scene.state(IN, BOB, Established, FinWait1);
    scene.state(IN, Actor::Kernel, FinWait1, None);
    scene.destroy(IN, Actor::Kernel, 8);
    let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!((ended.life.purpose, ended.life.opened_ns), (Purpose::Session(None), None));
    assert_eq!(ended.life.closer, deed(2, 1));
}

#[test]
fn a_socket_that_was_never_connected_leaves_nothing() {
    let mut scene = Scene::new();
    scene.destroy((CLIENT, "0.0.0.0:0", "0.0.0.0:0"), ALICE, 7);
    assert!(scene.ended.is_empty() && scene.lives.is_empty());
}

#[test]
fn a_socket_at_the_address_of_one_whose_end_was_lost_is_another_one() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(UNBOUND_AT_SERVER, ALICE, None, SynSent);
    scene.state((SERVER, OUT.1, OUT.2), Actor::Kernel, SynSent, None);
    scene.destroy((SERVER, OUT.1, OUT.2), ALICE, 9);
    let [_, ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
    assert_eq!(ended.life.purpose, Purpose::Session(Some(Direction::Out)));
    assert!(scene.lives.by_pair.is_empty(), "{:?}", scene.lives.by_pair);
}

const UNBOUND_AT_SERVER: (u64, &str, &str) = (SERVER, "10.0.0.1:0", "10.0.0.2:80");

/// The key that walks know the client by.
const KEY: SocketKey = SocketKey { netns: 1, cookie: 7 };

fn see(scene: &Scene, who: (u64, &str, &str)) -> bool {
    scene.lives.recognise(KEY, who.1.parse().unwrap(), who.2.parse().unwrap()).is_some()
}

fn sought(scene: &mut Scene) -> Vec<u64> {
    scene.lives.sought(scene.at_ns).iter().map(|sought| sought.socket).collect()
}

#[test]
fn a_connection_that_stays_is_sought_until_a_walk_saw_it() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert_eq!(scene.lives.sought(0), [], "it may be over in a moment");
    let at = scene.at_ns;
    let ends = [OUT.1, OUT.2].map(|end| end.parse().unwrap());
    assert_eq!(scene.lives.sought(at), [Sought { socket: CLIENT, since_ns: 1, ..Sought::new(ends, Some(1), None) }]);
    assert!(see(&scene, OUT));
    assert!(sought(&mut scene).is_empty());
    scene.state(OUT, ALICE, Established, None);
    scene.destroy(OUT, ALICE, 7);
    assert_eq!(scene.ended[0].walked, Some(KEY));
}

#[test]
fn what_two_walks_did_not_show_is_left_to_the_referee_and_what_was_not_looked_for_is_not() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    let at = scene.at_ns;
    let [_, inward] = scene.lives.sought(at)[..] else { panic!("two are sought") };
    scene.lives.looked(&[inward]);
    let looks: Vec<(u64, u8)> = scene.lives.sought(at).iter().map(|sought| (sought.socket, sought.looks)).collect();
    assert_eq!(looks, [(CLIENT, 0), (SERVER, 1)]);
    scene.lives.looked(&[inward]);
    assert_eq!(sought(&mut scene), [CLIENT]);
}

#[test]
fn what_is_over_is_not_sought() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, None);
    assert!(sought(&mut scene).is_empty(), "refused, and its process may try again with the same socket");
    scene.destroy(OUT, ALICE, 7);
    assert!(sought(&mut scene).is_empty());
}

#[test]
fn what_was_reset_while_its_process_holds_it_is_sought_until_a_walk_missed_it() {
    let mut scene = Scene::new();
    scene.state(IN, Actor::Kernel, Listen, SynReceived);
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    assert!(see(&scene, IN) && sought(&mut scene).is_empty());
    scene.state(IN, Actor::Kernel, Established, None);
    let at = scene.at_ns;
    assert_eq!(scene.lives.sought(at)[0].walked, Some(KEY));
    assert_eq!(scene.lives.closed_ns(IN.1.parse().unwrap(), IN.2.parse().unwrap()), Some(at));
    assert!(sought(&mut scene).is_empty());
}

#[test]
fn a_state_is_told_once_to_whoever_saw_the_socket_and_only_while_it_is_open() {
    let mut scene = Scene::new();
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    assert_eq!(scene.lives.take_states(), [], "no walk saw it");
    assert!(see(&scene, OUT));
    scene.state(OUT, Actor::Kernel, Established, CloseWait);
    assert_eq!(scene.lives.take_states(), [(KEY, CloseWait)]);
    scene.state(OUT, ALICE, CloseWait, LastAck);
    scene.state(OUT, Actor::Kernel, LastAck, None);
    assert_eq!(scene.lives.take_states(), []);
}

#[test]
fn whose_a_socket_is_that_a_walk_could_not_tell_is_told_when_it_is_asked_and_when_it_is_closed() {
    let (mut scene, key) = (Scene::new(), SocketKey { netns: 1, cookie: 7 });
    let see = |scene: &Scene, (_, local, peer): (u64, &str, &str)| {
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        scene.lives.recognise(key, local, peer).unwrap();
        scene.lives.ask(key, local, peer);
    };
    scene.state(UNBOUND, ALICE, None, SynSent);
    scene.state(OUT, Actor::Kernel, SynSent, Established);
    see(&scene, OUT);
    assert_eq!(scene.lives.take_asked(), [Asked { key, opener: deed(1, 1), closer: None }]);
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    see(&scene, IN);
    assert_eq!(scene.lives.take_asked(), [], "nobody accepted it yet");
    scene.state(IN, BOB, Established, FinWait1);
    assert_eq!(scene.lives.take_asked(), [Asked { key, opener: None, closer: deed(2, 4) }]);
}

#[test]
fn connections_that_are_gone_without_a_word_of_their_states_are_silence_until_the_next_word() {
    let mut scene = Scene::new();
    // A listener is none, and what was followed needs no other word.
    scene.state(IN, Actor::Kernel, SynReceived, Established);
    scene.destroy((SERVER, "10.0.0.2:80", "0.0.0.0:0"), BOB, 8);
    for cookie in 9..11 {
        scene.destroy(OUT, Actor::Kernel, cookie);
    }
    assert!(!scene.lives.take_silence(), "two may have begun to end before the events did");
    scene.destroy(OUT, Actor::Kernel, 11);
    assert_eq!(scene.ended.len(), 4, "their ends are told all the same");
    assert!(scene.lives.has_been_silent() && scene.lives.take_silence());
    scene.state(UNBOUND, ALICE, None, SynSent);
    assert!(scene.lives.take_silence(), "until then it was");
    assert!(!scene.lives.has_been_silent() && !scene.lives.take_silence());
}
