//! Lives of sockets: what becomes of openings, closings and what is told between them.

use fleetsock_proto::{
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Change, Op, SOCKET_OWNERS_LIMIT, Socket,
    },
    question::{PortQuestion, SessionQuestion},
    socket::{
        Direction::{In, Out},
        Known, OwnerKnown, SocketState,
    },
};

use crate::{
    engine::{Engine, World},
    scene::{Agent, Described, at, closed, listener, opened, owner, present, session, updated},
};

/// A world with one host that said Hello and sent an empty snapshot.
async fn one_host<E: Engine>() -> (World<E>, Agent) {
    let world = World::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 0, Vec::new()).await;
    (world, agent)
}

fn https() -> Socket {
    session(1, "10.0.0.1:443", In, "10.0.0.9:4000").since(10)
}

pub(super) async fn a_session_that_opens_and_closes_is_one_interval<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let nginx = [owner("nginx", 7)];
    let life = https().held_by(&nginx).known(Known::BetweenWalks);
    world.tell(&mut agent, Changes, 12, vec![opened(life.clone())]).await;
    assert_eq!(world.all_sessions().await, ["web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(between-walks).. nginx/7"]);
    world.tell(&mut agent, Changes, 21, vec![closed(life, 20)]).await;
    assert_eq!(
        world.all_sessions().await,
        ["web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(between-walks)..20(event) nginx/7"]
    );
    let question =
        SessionQuestion { time: fleetsock_proto::question::SessionTime::At(at(15)), ..SessionQuestion::default() };
    let row = world.sessions(question, at(99)).await.unwrap().0.remove(0);
    assert_eq!(row.duration(at(99)).as_secs(), 10);
    assert_eq!(row.owners, [owner("nginx", 7).as_ref().clone()]);
}

pub(super) async fn what_closed_without_an_opening_has_the_interval_that_it_tells<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let changes = vec![closed(https(), 11), closed(listener(2, "0.0.0.0:80").since(10), 11)];
    world.tell(&mut agent, Changes, 12, changes).await;
    assert_eq!(world.all_sessions().await, ["web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event)..11(event)"]);
    assert_eq!(world.listening_at(Some(10)).await, ["web1 tcp 0.0.0.0:80 10(event)..11(event)"]);
    assert_eq!(world.listening().await, [""; 0]);
}

pub(super) async fn an_update_changes_the_open_row_and_begins_one_that_was_not_known<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    world.tell(&mut agent, Changes, 12, vec![opened(https()), opened(listener(2, "0.0.0.0:80").since(10))]).await;
    let nginx = [owner("nginx", 7)];
    let closing = Socket { state: SocketState::CloseWait, ..https().held_by(&nginx) };
    let other = session(3, "10.0.0.1:5000", Out, "10.0.0.9:53").since(11);
    let changes = vec![updated(closing), updated(listener(2, "0.0.0.0:80").since(12).held_by(&nginx)), updated(other)];
    world.tell(&mut agent, Changes, 13, changes).await;
    assert_eq!(
        world.all_sessions().await,
        [
            "web1 tcp 10.0.0.1:5000 out 10.0.0.9:53 11(event)..",
            "web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event).. nginx/7",
        ]
    );
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:80 10(event).. nginx/7"]);
    let states = SessionQuestion { states: vec![SocketState::CloseWait], ..SessionQuestion::default() };
    assert_eq!(world.sessions(states, at(20)).await.unwrap().0.len(), 1);
}

pub(super) async fn presence_keeps_the_first_opening<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let first = vec![opened(https()), opened(listener(2, "0.0.0.0:80").since(10))];
    world.tell(&mut agent, Changes, 12, first).await;
    agent.restart();
    let again = vec![
        present(https().since(50).known(Known::FirstSeen)),
        present(listener(2, "0.0.0.0:80").since(50).known(Known::FirstSeen)),
    ];
    world.tell(&mut agent, SnapshotWhole, 50, again).await;
    assert_eq!(world.all_sessions().await, ["web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event).."]);
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:80 10(event).."]);
    assert_eq!(world.listening_at(Some(30)).await.len(), 1);
}

pub(super) async fn a_udp_listener_becomes_a_session_and_a_listener_again<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let listener = |since| listener(1, "0.0.0.0:53").udp().since(since);
    let session = |since| session(1, "0.0.0.0:53", In, "10.0.0.9:4000").udp().since(since);
    world.tell(&mut agent, Changes, 11, vec![opened(listener(10))]).await;
    world.tell(&mut agent, Changes, 21, vec![closed(listener(10), 20), opened(session(20))]).await;
    assert_eq!((world.listening().await, world.all_sessions().await.len()), (Vec::new(), 1));
    world.tell(&mut agent, Changes, 31, vec![closed(session(20), 30), opened(listener(30))]).await;
    assert_eq!(world.listening().await, ["web1 udp 0.0.0.0:53 30(event).."]);
    assert_eq!(world.listening_at(Some(19)).await, ["web1 udp 0.0.0.0:53 10(event)..20(event)"]);
    assert_eq!(world.listening_at(Some(20)).await, [""; 0]);
    assert_eq!(world.all_sessions().await, ["web1 udp 0.0.0.0:53 in 10.0.0.9:4000 20(event)..30(event)"]);
    // To and fro between two walks.
    let flickers = vec![closed(listener(30), 40), opened(session(40)), closed(session(40), 41), opened(listener(41))];
    world.tell(&mut agent, Changes, 42, flickers).await;
    assert_eq!(world.listening().await, ["web1 udp 0.0.0.0:53 41(event).."]);
    assert_eq!(world.all_sessions().await.len(), 2);
}

pub(super) async fn a_socket_that_connects_elsewhere_begins_another_life<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let to = |peer: &str, since| session(1, "10.0.0.1:5000", Out, peer).udp().since(since);
    let bound = |local: &str, since| listener(2, local).udp().since(since);
    world.tell(&mut agent, Changes, 12, vec![opened(to("10.0.0.9:53", 10)), opened(bound("0.0.0.0:53", 10))]).await;
    world.tell(&mut agent, Changes, 22, vec![opened(to("10.0.0.8:53", 20)), opened(bound("0.0.0.0:54", 20))]).await;
    assert_eq!(
        world.all_sessions().await,
        [
            "web1 udp 10.0.0.1:5000 out 10.0.0.8:53 20(event)..",
            "web1 udp 10.0.0.1:5000 out 10.0.0.9:53 10(event)..12(lost)",
        ]
    );
    assert_eq!(world.listening().await, ["web1 udp 0.0.0.0:54 20(event).."]);
    assert_eq!(world.listening_at(Some(11)).await, ["web1 udp 0.0.0.0:53 10(event)..12(lost)"]);
}

pub(super) async fn the_end_of_another_life_does_not_hide_the_open_one<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let to = |peer: &str, since| session(1, "10.0.0.1:5000", Out, peer).udp().since(since);
    let bound = |local: &str, since| listener(2, local).udp().since(since);
    world.tell(&mut agent, Changes, 12, vec![opened(to("10.0.0.9:53", 10)), opened(bound("0.0.0.0:53", 10))]).await;
    let ends = vec![closed(to("10.0.0.8:53", 20), 21), closed(bound("0.0.0.0:54", 20), 21)];
    world.tell(&mut agent, Changes, 22, ends).await;
    assert_eq!(
        world.all_sessions().await,
        [
            "web1 udp 10.0.0.1:5000 out 10.0.0.8:53 20(event)..21(event)",
            "web1 udp 10.0.0.1:5000 out 10.0.0.9:53 10(event)..12(lost)",
        ]
    );
    assert_eq!(world.listening().await, [""; 0]);
    assert_eq!(world.listening_at(Some(11)).await, ["web1 udp 0.0.0.0:53 10(event)..12(lost)"]);
    assert_eq!(world.listening_at(Some(20)).await, ["web1 udp 0.0.0.0:54 20(event)..21(event)"]);
}

/// A snapshot that missed a listener is put right by the next one.
pub(super) async fn a_life_that_is_told_again_with_its_opening_is_open_again<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let (http, nginx) = (listener(2, "0.0.0.0:80").since(10), [owner("nginx", 7)]);
    world.tell(&mut agent, Changes, 12, vec![opened(http.clone())]).await;
    world.tell(&mut agent, SnapshotWhole, 20, Vec::new()).await;
    assert_eq!(world.listening().await, [""; 0]);
    world.tell(&mut agent, SnapshotWhole, 30, vec![present(http.clone().held_by(&nginx))]).await;
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:80 10(event).. nginx/7"]);
    world.tell(&mut agent, Changes, 41, vec![closed(http, 40)]).await;
    assert_eq!(world.listening_at(Some(35)).await, ["web1 tcp 0.0.0.0:80 10(event)..40(event) nginx/7"]);
}

pub(super) async fn owners_keep_their_order<E: Engine>() {
    let (mut world, mut agent) = one_host::<E>().await;
    let three = [owner("nginx", 9), owner("nginx", 3), owner("php", 5)];
    let most: Vec<_> = (1..=SOCKET_OWNERS_LIMIT as u32).rev().map(|pid| owner("apache2", pid)).collect();
    let mut nameless = owner("", 4).as_ref().clone();
    nameless.started_at = None;
    let changes = vec![
        opened(listener(1, "0.0.0.0:80").held_by(&three)),
        opened(listener(2, "0.0.0.0:81").held_by(&most)),
        opened(https().held_by(&three)),
        closed(session(4, "10.0.0.1:443", In, "10.0.0.9:4001").held_by(&[nameless.clone().into()]), 5),
    ];
    world.tell(&mut agent, Changes, 12, changes).await;
    world.restart().await;
    let ports = world.ports(PortQuestion::default(), at(20)).await.unwrap().0;
    assert!(ports[0].owners.iter().eq(three.iter().map(AsRef::as_ref)));
    assert!(ports[1].owners.iter().eq(most.iter().map(AsRef::as_ref)));
    assert_eq!(
        world.all_sessions().await,
        [
            "web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event).. nginx/9 nginx/3 php/5",
            "web1 tcp 10.0.0.1:443 in 10.0.0.9:4001 0(event)..5(event) /4",
        ]
    );
    // The primary one goes, the others move up.
    let changes = vec![updated(listener(1, "0.0.0.0:80").held_by(&three[1..])), updated(https().held_by(&three[1..]))];
    world.tell(&mut agent, Changes, 13, changes).await;
    assert!(world.listening().await[0].ends_with(" nginx/3 php/5"));
    assert!(world.all_sessions().await[0].ends_with(".. nginx/3 php/5"));
}

pub(super) async fn an_owner_is_kept_when_nobody_is_seen_later<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let nginx = [owner("nginx", 7)];
    let (http, idle) = (|| listener(1, "0.0.0.0:80"), || listener(2, "0.0.0.0:81"));
    let unseen = |socket: Socket, owner_known| Socket { owner_known, ..socket };
    let begin = vec![
        opened(http().held_by(&nginx)),
        opened(unseen(idle(), OwnerKnown::Denied)),
        opened(https().held_by(&nginx)),
    ];
    world.tell(&mut agent, Changes, 12, begin).await;
    let later = vec![
        updated(unseen(http(), OwnerKnown::Unknown)),
        updated(unseen(idle(), OwnerKnown::None)),
        updated(unseen(https(), OwnerKnown::None)),
    ];
    world.tell(&mut agent, Changes, 13, later).await;
    let known = |ports: Vec<fleetsock_proto::listener::Listener>| -> Vec<_> {
        ports.into_iter().map(|row| (row.owner_known, row.owners.len())).collect()
    };
    let ports = world.ports(PortQuestion::default(), at(20)).await.unwrap().0;
    assert_eq!(known(ports), [(OwnerKnown::Exact, 1), (OwnerKnown::None, 0)]);
    let end = vec![
        closed(unseen(http(), OwnerKnown::Unknown), 14),
        // Only who closed it was seen.
        closed(unseen(idle().held_by(&nginx), OwnerKnown::Closer), 14),
        closed(unseen(https(), OwnerKnown::Unknown), 14),
    ];
    world.tell(&mut agent, Changes, 14, end).await;
    let question = PortQuestion { at: Some(at(13)), ..PortQuestion::default() };
    let ports = world.ports(question, at(20)).await.unwrap().0;
    assert_eq!(known(ports), [(OwnerKnown::Exact, 1), (OwnerKnown::Closer, 1)]);
    assert_eq!(world.all_sessions().await, ["web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event)..14(event) nginx/7"]);
}

/// 0 means that the count is not known, which does not undo what was known.
pub(super) async fn bytes_are_never_fewer_than_they_were<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let moved = |sent, received| Socket { bytes_sent: sent, bytes_received: received, ..https() };
    let bytes = async |world: &World<E>| {
        let time = fleetsock_proto::question::SessionTime::At(at(11));
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        let row = world.sessions(question, at(99)).await.unwrap().0.remove(0);
        (row.bytes_sent, row.bytes_received)
    };
    world.tell(&mut agent, Changes, 12, vec![opened(moved(5, 0))]).await;
    world.tell(&mut agent, Changes, 13, vec![updated(moved(0, 7))]).await;
    assert_eq!(bytes(&world).await, (5, 7));
    world.tell(&mut agent, Changes, 14, vec![updated(moved(9, 8))]).await;
    assert_eq!(bytes(&world).await, (9, 8));
    world.tell(&mut agent, Changes, 15, vec![closed(moved(0, u64::MAX >> 1), 15)]).await;
    assert_eq!(bytes(&world).await, (9, u64::MAX >> 1));
}

pub(super) async fn a_close_before_the_opening_ends_where_it_began<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let http = || listener(2, "0.0.0.0:80").since(10);
    world.tell(&mut agent, Changes, 12, vec![opened(https()), opened(http())]).await;
    let early = vec![
        closed(https(), 5),
        closed(http(), 5),
        closed(session(3, "10.0.0.1:443", In, "10.0.0.9:4001").since(10), 5),
    ];
    world.tell(&mut agent, Changes, 13, early).await;
    let mut rows = world.all_sessions().await;
    rows.sort();
    assert_eq!(
        rows,
        [
            "web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event)..10(event)",
            "web1 tcp 10.0.0.1:443 in 10.0.0.9:4001 10(event)..10(event)",
        ]
    );
    assert_eq!(world.listening_at(Some(10)).await, [""; 0], "it was open for no time");
}

pub(super) async fn a_clock_that_is_a_year_off_is_corrected_and_one_of_a_second_is_not<E: Engine>() {
    const YEAR: i64 = 365 * 86_400;
    for (offset, shown) in [(YEAR, 0), (-YEAR, 0), (1, 1), (-1, -1)] {
        let world = World::<E>::new().await;
        let mut agent = world.host("web1").await;
        // The host's clock is off: so is all that it says.
        let wrong = |second: i64| second + offset;
        world.hello(agent.host, "web1", at(5), offset * 1_000_000).await;
        let changes = vec![
            present(listener(1, "0.0.0.0:80").since(wrong(1))),
            present(https().since(wrong(10))),
            Change { op: Op::Present, socket: session(2, "10.0.0.1:443", In, "10.0.0.9:4001").since(wrong(11)) },
        ];
        world.tell(&mut agent, SnapshotWhole, wrong(20), changes).await;
        world.tell(&mut agent, Changes, wrong(31), vec![closed(https().since(wrong(10)), wrong(30))]).await;
        agent.restart();
        world.tell(&mut agent, SnapshotWhole, wrong(40), Vec::new()).await;
        let s = |second: i64| second + shown;
        assert_eq!(
            world.all_sessions().await,
            [
                format!("web1 tcp 10.0.0.1:443 in 10.0.0.9:4001 {}(event)..{}(lost)", s(11), s(31)),
                format!("web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 {}(event)..{}(event)", s(10), s(30)),
            ]
        );
        let expected = format!("web1 tcp 0.0.0.0:80 {}(event)..{}(lost)", s(1), s(31));
        assert_eq!(world.listening_at(Some(s(30))).await, [expected]);
        let gaps = world.gaps().await;
        assert_eq!((gaps[0].since, gaps[0].until), (at(s(31)), Some(at(s(40)))), "{offset}");
    }
}
