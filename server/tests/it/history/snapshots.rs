//! Snapshots: what they name stays, what they do not name was lost while nobody looked.

use fleetsock_proto::{
    batch::{
        BatchKind::{Changes, SnapshotBegin, SnapshotEnd, SnapshotPart, SnapshotWhole},
        Change, Socket,
    },
    socket::{Direction::In, SocketKey},
};
use fleetsock_server::history::{History, Presence};

use crate::{
    engine::{Engine, World},
    scene::{Described, at, closed, listener, opened, present, session},
};

/// Listener and session of one number, open since that second.
fn pair(number: u64, since: i64) -> Vec<Change> {
    vec![
        present(listener(2 * number, &format!("0.0.0.0:{number}")).since(since)),
        present(session(2 * number + 1, &format!("10.0.0.1:{number}"), In, "10.0.0.9:4000").since(since)),
    ]
}

/// The lives of listeners and of sessions with this number, each without its opening.
async fn lives<E: Engine>(world: &World<E>, number: u64, then: i64) -> [String; 2] {
    let port = format!(":{number} ");
    let find = |rows: Vec<String>| {
        let mut found: Vec<_> = rows.into_iter().filter(|row| row.contains(&port)).collect();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).rsplit("..").next().unwrap().to_owned()
    };
    [find(world.listening_at(Some(then)).await), find(world.all_sessions().await)]
}

pub(super) async fn what_a_snapshot_does_not_name_was_lost_after_the_walk_before<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, [pair(1, 5), pair(2, 6)].concat()).await;
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    // Once within a numbering, once with a new one.
    world.tell(&mut agent, SnapshotWhole, 30, [pair(1, 5), pair(3, 30)].concat()).await;
    assert_eq!(lives(&world, 2, 7).await, ["20(lost)", "20(lost)"]);
    agent.restart();
    world.tell(&mut agent, SnapshotWhole, 50, pair(3, 50)).await;
    assert_eq!(lives(&world, 1, 7).await, ["30(lost)", "30(lost)"]);
    assert_eq!(lives(&world, 3, 50).await, ["", ""]);
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:3 30(event).."]);
}

pub(super) async fn a_sign_of_life_moves_the_last_observation<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, pair(1, 5)).await;
    let presence = |second| Presence { at: at(second), observed_until: Some(at(second)), cost: None, tcp_counts: None };
    world.store().record_presence(agent.host, presence(40));
    world
        .store()
        .record_presence(agent.host, Presence { at: at(41), observed_until: None, cost: None, tcp_counts: None });
    // It is on disk within seconds, and certainly after an orderly stop.
    world.restart().await;
    agent.restart();
    world.tell(&mut agent, SnapshotWhole, 60, Vec::new()).await;
    assert_eq!(lives(&world, 1, 7).await, ["40(lost)", "40(lost)"]);
    let gaps = world.gaps().await;
    assert_eq!(gaps.iter().map(|gap| (gap.since, gap.until)).collect::<Vec<_>>(), [(at(40), Some(at(60)))]);
}

pub(super) async fn nothing_is_lost_before_it_opened<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    // Events of after the walk came with the batch about it.
    world.tell(&mut agent, Changes, 11, pair(1, 15)).await;
    world.tell(&mut agent, SnapshotWhole, 20, Vec::new()).await;
    assert_eq!(world.all_sessions().await, ["web1 tcp 10.0.0.1:1 in 10.0.0.9:4000 15(event)..15(lost)"]);
    assert_eq!(world.listening_at(Some(15)).await, [""; 0]);
}

pub(super) async fn a_connection_that_an_agent_knows_by_no_cookie_goes_on_as_the_one_with_its_pair<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let known = |cookie| session(cookie, "10.0.0.1:80", In, "10.0.0.9:4000").since(5);
    let other = session(2, "10.0.0.1:80", In, "10.0.0.9:4001").since(6);
    world.tell(&mut agent, SnapshotWhole, 10, vec![present(known(1)), present(other.clone())]).await;
    agent.restart();
    let nameless = |it: Socket| {
        let key = SocketKey { cookie: SocketKey::STAND_IN | 7, ..it.key };
        Socket { key, ..it }.since(29)
    };
    world.tell(&mut agent, SnapshotWhole, 30, vec![present(nameless(known(1))), present(other.clone())]).await;
    world.tell(&mut agent, Changes, 31, vec![closed(nameless(known(1)), 29)]).await;
    assert_eq!(
        world.all_sessions().await,
        [
            "web1 tcp 10.0.0.1:80 in 10.0.0.9:4001 6(event)..",
            "web1 tcp 10.0.0.1:80 in 10.0.0.9:4000 5(event)..29(event)"
        ]
    );
    // One that the snapshot names by its cookie is another one with the same pair.
    agent.restart();
    world.tell(&mut agent, SnapshotWhole, 50, vec![present(other.clone()), present(nameless(other))]).await;
    assert_eq!(world.all_sessions().await.iter().filter(|row| row.ends_with("..")).count(), 2);
}

pub(super) async fn a_snapshot_in_parts_ends_with_its_last_even_across_a_restart<E: Engine>() {
    for restarts in [0, 1] {
        let mut world = World::<E>::new().await;
        let mut agent = world.host("web1").await;
        world.tell(&mut agent, SnapshotWhole, 10, [pair(1, 5), pair(2, 6), pair(3, 7), pair(4, 8)].concat()).await;
        agent.restart();
        world.tell(&mut agent, SnapshotBegin, 30, pair(1, 30)).await;
        assert_eq!(world.listening().await.len(), 4, "nothing is over before the last part");
        for _ in 0..restarts {
            world.restart().await;
        }
        world.tell(&mut agent, SnapshotPart, 30, pair(2, 30)).await;
        for _ in 0..restarts {
            world.restart().await;
        }
        assert_eq!(world.listening().await.len(), 4);
        world.tell(&mut agent, SnapshotEnd, 30, pair(5, 30)).await;
        let open: Vec<_> = world.listening().await;
        assert_eq!(
            open,
            ["web1 tcp 0.0.0.0:1 5(event)..", "web1 tcp 0.0.0.0:2 6(event)..", "web1 tcp 0.0.0.0:5 30(event)..",]
        );
        // They were last known before the snapshot began, not when its first part was walked.
        for number in [3, 4] {
            assert_eq!(lives(&world, number, 9).await, ["10(lost)", "10(lost)"]);
        }
        assert_eq!(world.gaps().await.len(), 1);
    }
}

pub(super) async fn an_unfinished_snapshot_closes_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, [pair(1, 5), pair(2, 6), pair(3, 7)].concat()).await;
    agent.restart();
    world.tell(&mut agent, SnapshotBegin, 30, pair(1, 30)).await;
    // The agent dies, and begins anew.
    agent.restart();
    world.tell(&mut agent, SnapshotBegin, 50, pair(2, 50)).await;
    assert_eq!(world.listening().await.len(), 3);
    world.tell(&mut agent, SnapshotEnd, 50, Vec::new()).await;
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:2 6(event).."]);
    assert_eq!(lives(&world, 3, 8).await, ["10(lost)", "10(lost)"]);
    world.tell(&mut agent, Changes, 60, Vec::new()).await;
    world.tell(&mut agent, SnapshotWhole, 70, Vec::new()).await;
    assert_eq!(lives(&world, 2, 8).await, ["60(lost)", "60(lost)"]);
}

pub(super) async fn a_last_part_without_its_first_closes_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, [pair(1, 5), pair(2, 6)].concat()).await;
    world.tell(&mut agent, SnapshotEnd, 20, pair(1, 5)).await;
    assert_eq!(world.listening().await.len(), 2);
    // What opens while a snapshot is on its way needs no part to name it.
    world.tell(&mut agent, SnapshotBegin, 30, pair(1, 5)).await;
    let change = |change: Change| Change { op: opened(listener(1, "0.0.0.0:1")).op, ..change };
    world.tell(&mut agent, Changes, 31, pair(3, 31).into_iter().map(change).collect()).await;
    world.tell(&mut agent, SnapshotEnd, 30, Vec::new()).await;
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:1 5(event)..", "web1 tcp 0.0.0.0:3 31(event).."]);
}

pub(super) async fn a_reboot_ends_everything_even_when_cookies_repeat<E: Engine>() {
    for parts in [1, 2] {
        let world = World::<E>::new().await;
        let mut agent = world.host("web1").await;
        let mut other = world.host("web2").await;
        world.tell(&mut agent, SnapshotWhole, 10, [pair(1, 5), pair(2, 6)].concat()).await;
        world.tell(&mut other, SnapshotWhole, 10, pair(7, 5)).await;
        agent.reboot();
        // Cookies, addresses and ports are those of before.
        if parts == 1 {
            world.tell(&mut agent, SnapshotWhole, 100, pair(1, 90)).await;
        } else {
            world.tell(&mut agent, SnapshotBegin, 100, pair(1, 90)).await;
            world.tell(&mut agent, SnapshotEnd, 100, Vec::new()).await;
        }
        assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:1 90(event)..", "web2 tcp 0.0.0.0:7 5(event).."]);
        assert_eq!(
            world.listening_at(Some(9)).await,
            [
                "web1 tcp 0.0.0.0:1 5(event)..10(lost)",
                "web1 tcp 0.0.0.0:2 6(event)..10(lost)",
                "web2 tcp 0.0.0.0:7 5(event)..",
            ]
        );
        let sessions = world.all_sessions().await;
        assert_eq!(sessions.len(), 4, "{sessions:?}");
        assert_eq!(sessions.iter().filter(|row| row.ends_with("..10(lost)")).count(), 2);
        // A reboot is no reason to take anything twice.
        world.tell(&mut agent, Changes, 101, vec![closed(listener(2, "0.0.0.0:1").since(90), 101)]).await;
        assert_eq!(world.listening().await, ["web2 tcp 0.0.0.0:7 5(event).."]);
    }
}
