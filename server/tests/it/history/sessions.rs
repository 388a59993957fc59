//! Questions about sessions: now, as of a moment, within a window, of few hosts and of many.

use fleetsock_proto::{
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Change, Socket,
    },
    host::HostSelector,
    question::{Pairing, SessionQuestion, SessionTime, SocketFilter},
    session::Session,
    socket::Direction::{In, Out},
};
use fleetsock_server::history::{Contact, History};
use ipnet::IpNet;

use crate::{
    engine::{Engine, World},
    scene::{Agent, Described, at, closed, facts, opened, present, session, session_line},
};

fn life(cookie: u64, since: i64) -> Socket {
    session(cookie, "10.0.0.1:443", In, &format!("10.0.0.9:{cookie}")).since(since)
}

/// A host with sessions 1 (10..20), 2 (20..30), 3 (15..) and 4 (25..).
async fn four<E: Engine>() -> World<E> {
    let world = World::new().await;
    let mut agent = world.host("web1").await;
    let open = vec![present(life(1, 10)), present(life(2, 20)), present(life(3, 15)), present(life(4, 25))];
    world.tell(&mut agent, SnapshotWhole, 26, open).await;
    world.tell(&mut agent, Changes, 31, vec![closed(life(1, 10), 20), closed(life(2, 20), 30)]).await;
    world
}

/// The cookies, which are also the ports of the peers.
async fn cookies<E: Engine>(world: &World<E>, time: SessionTime) -> Vec<u16> {
    let question = SessionQuestion { time, ..SessionQuestion::default() };
    world.sessions(question, at(100)).await.unwrap().0.iter().map(|row| row.peer.port()).collect()
}

pub(super) async fn a_moment_shows_what_was_open_then<E: Engine>() {
    let world = four::<E>().await;
    assert_eq!(cookies(&world, SessionTime::Now).await, [4, 3]);
    for (moment, expected) in [
        (9, &[][..]),
        (10, &[1]),
        (15, &[3, 1]),
        (19, &[3, 1]),
        // One closed and another opened in that moment: the end does not belong to a life.
        (20, &[3, 2]),
        (25, &[4, 3, 2]),
        (29, &[4, 3, 2]),
        (30, &[4, 3]),
        (1000, &[4, 3]),
    ] {
        assert_eq!(cookies(&world, SessionTime::At(at(moment))).await, expected, "at {moment}");
    }
}

pub(super) async fn a_window_shows_what_was_open_in_it<E: Engine>() {
    let world = four::<E>().await;
    for (since, until, expected) in [
        (0, Some(9), &[][..]),
        (0, Some(10), &[1]),
        (10, Some(10), &[1]),
        (16, Some(18), &[3, 1]),
        // What closed in the first moment of the window was open in it.
        (20, Some(20), &[3, 2, 1]),
        (21, Some(24), &[3, 2]),
        (21, Some(25), &[4, 3, 2]),
        (30, None, &[4, 3, 2]),
        (31, None, &[4, 3]),
        (0, None, &[4, 3, 2, 1]),
    ] {
        let window = SessionTime::Within { since: at(since), until: until.map(at) };
        assert_eq!(cookies(&world, window).await, expected, "{since}..{until:?}");
    }
}

pub(super) async fn sessions_come_newest_first_open_ones_before_closed_ones<E: Engine>() {
    const ROWS: i64 = 700;
    let world = World::<E>::new().await;
    let (mut web, mut db) = (world.host("web1").await, world.host("db1").await);
    for agent in [&mut web, &mut db] {
        world.tell(agent, SnapshotWhole, 0, Vec::new()).await;
        // More than one page, told in no order, many at the same moment.
        let closes = (0..ROWS).map(|n| (n * 37) % ROWS);
        let changes = closes.map(|n| closed(life(n as u64 + 1, n / 9 - 5), n / 7)).collect();
        world.tell(agent, Changes, 1000, changes).await;
        let opens = (0..ROWS).map(|n| opened(life(1000 + n as u64, (n * 37) % ROWS))).collect();
        world.tell(agent, Changes, 1000, opens).await;
    }
    let time = SessionTime::Within { since: at(-100), until: None };
    let (rows, _) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(2000)).await.unwrap();
    assert_eq!(rows.len(), 4 * ROWS as usize);
    // Open ones are those whose second number is the opening.
    let order = |row: &Session| (row.closed.is_none(), row.closed.map_or(row.opened_at, |(at, _)| at));
    assert!(rows.is_sorted_by_key(|row| std::cmp::Reverse(order(row))));
    let limited = SessionQuestion { time, limit: Some(1500), ..SessionQuestion::default() };
    let (first, meta) = world.sessions(limited, at(2000)).await.unwrap();
    assert!(meta.truncated);
    assert!(first.iter().map(order).eq(rows[..1500].iter().map(order)), "a limit keeps the newest");
}

/// Few hosts may be answered in another way than many: by the hosts' own index instead of by time.
pub(super) async fn many_hosts_and_few_hosts_give_the_same_rows<E: Engine>() {
    const HOSTS: u64 = 70;
    let world = World::<E>::new().await;
    let mut agents = Vec::new();
    for number in 0..HOSTS {
        agents.push(world.host(&format!("host{number:02}")).await);
    }
    // Batches of all hosts mixed, so that their rows lie mixed.
    for round in 0..6_u64 {
        for (number, agent) in agents.iter_mut().enumerate() {
            let kind = if round == 0 { SnapshotWhole } else { Changes };
            let change = |n: u64| -> Change {
                let seed = (round * 40 + n).wrapping_mul(number as u64 + 7) % 97;
                let peer = format!("203.0.113.{}:443", seed % 32);
                let socket = session(1 + round * 40 + n, "10.0.0.1:443", In, &peer).since(seed as i64);
                if n.is_multiple_of(7) { opened(socket) } else { closed(socket, seed as i64 + 1 + (n % 13) as i64) }
            };
            let batch = agent.batch(kind, at(200), (0..24).map(change).collect());
            world.store().apply(agent.host, batch).await.unwrap();
        }
    }
    let ever = SessionTime::Within { since: at(0), until: None };
    let closed = async |closed_before, globs: &[&str]| -> Vec<_> {
        let hosts = HostSelector { globs: globs.iter().map(|&glob| glob.into()).collect(), ..Default::default() };
        let filter = SocketFilter { hosts, ..SocketFilter::default() };
        let question = SessionQuestion { filter, time: ever, closed_before, ..SessionQuestion::default() };
        world.sessions(question, at(300)).await.unwrap().0.iter().map(|row| row.closed.map(|(at, _)| at)).collect()
    };
    for globs in [&[][..], &["host[0-2]?"]] {
        let all = closed(None, globs).await;
        for before in [at(0), at(31), at(40), at(60), at(1000)] {
            let pages = closed(Some(before), globs).await;
            assert!(pages.is_sorted_by(|one, other| one >= other), "newest first");
            let expected = all.iter().filter(|closed| closed.is_some_and(|closed| closed < before)).count();
            assert_eq!(pages.len(), expected, "{before:?}");
            assert!(pages.iter().all(|closed| closed.is_some_and(|closed| closed < before)), "{before:?}");
        }
    }
    let window = SessionTime::Within { since: at(30), until: Some(at(50)) };
    for (time, peers) in [
        (SessionTime::Now, None),
        (SessionTime::At(at(40)), None),
        (window, None),
        (window, Some("203.0.113.9/32")),
        (window, Some("203.0.113.0/28")),
        (window, Some("203.0.0.0/16")),
        (SessionTime::Within { since: at(90), until: None }, None),
    ] {
        let peers: Vec<IpNet> = peers.into_iter().map(|prefix| prefix.parse().unwrap()).collect();
        let ask = async |globs: &[&str]| {
            let hosts = HostSelector { globs: globs.iter().map(|&glob| glob.into()).collect(), ..Default::default() };
            let filter = SocketFilter { hosts, ..SocketFilter::default() };
            let question = SessionQuestion { filter, time, peers: peers.clone(), ..SessionQuestion::default() };
            let (rows, _) = world.sessions(question, at(300)).await.unwrap();
            let mut lines: Vec<_> = rows.iter().map(session_line).collect();
            lines.sort();
            lines
        };
        let all = ask(&[]).await;
        assert!(!all.is_empty());
        let mut halves = ask(&["host[0-2]?"]).await;
        halves.extend(ask(&["host[3-6]?"]).await);
        halves.sort();
        assert_eq!(all, halves, "{time:?}");
        let mut each = Vec::new();
        for number in 0..HOSTS {
            each.extend(ask(&[&format!("host{number:02}")]).await);
        }
        each.sort();
        assert_eq!(all, each, "{time:?}");
    }
}

pub(super) async fn a_peer_that_is_a_host_of_the_fleet_is_named<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let address = |text: &str| vec![text.parse().unwrap()];
    let says = async |agent: &Agent, name, addresses: Vec<_>| {
        let contact = Contact { facts: facts(name, &addresses), at: at(0), clock_offset_us: 0 };
        world.store().record_hello(agent.host, contact).await.unwrap();
    };
    let (db, one, two) = (world.host("db1").await, world.host("twin1").await, world.host("twin2").await);
    says(&db, "db1", [address("10.0.0.2"), address("2001:db8::2")].concat()).await;
    for twin in [(&one, "twin1"), (&two, "twin2")] {
        says(twin.0, twin.1, address("10.0.0.3")).await;
    }
    let peers = ["10.0.0.2:5432", "10.0.0.3:5432", "10.0.0.4:5432", "[2001:db8::2]:5432"];
    let changes = (1..).zip(peers).map(|(cookie, peer)| {
        let local = if peer.starts_with('[') { "[2001:db8::1]:5000" } else { "10.0.0.1:5000" };
        present(session(cookie, local, Out, peer).since(10 - cookie as i64))
    });
    world.tell(&mut agent, SnapshotWhole, 20, changes.collect()).await;
    let (rows, _) = world.sessions(SessionQuestion::default(), at(100)).await.unwrap();
    let named: Vec<_> = rows.iter().map(|row| row.peer_host.as_str()).collect();
    assert_eq!(named, ["db1", "", "", "db1"], "the address of two hosts names none");
}

pub(super) async fn a_peer_of_the_past_is_named_after_the_host_that_had_its_address_then<E: Engine>() {
    const DAY: i64 = 86_400;
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let (before, after) = (world.host("db1").await, world.host("db2").await);
    let says = async |agent: &Agent, name, address: &str, second| {
        let contact = Contact { facts: facts(name, &[address.parse().unwrap()]), at: at(second), clock_offset_us: 0 };
        world.store().record_hello(agent.host, contact).await.unwrap();
    };
    says(&before, "db1", "10.0.0.2", 0).await;
    says(&before, "db1", "10.0.0.22", 30 * DAY).await;
    says(&after, "db2", "10.0.0.2", 30 * DAY).await;
    let changes = (1..).zip([10, 15 * DAY, 30 * DAY]).map(|(cookie, second)| {
        closed(session(cookie, "10.0.0.1:5000", Out, "10.0.0.2:5432").since(second), second + 1)
    });
    world.tell(&mut agent, SnapshotWhole, 31 * DAY, changes.collect()).await;
    let open = present(session(9, "10.0.0.1:5001", Out, "10.0.0.2:5432").since(1));
    world.tell(&mut agent, Changes, 31 * DAY + 1, vec![open]).await;
    let time = SessionTime::Within { since: at(0), until: None };
    let question = SessionQuestion { time, pairing: Pairing::Never, ..SessionQuestion::default() };
    let (rows, _) = world.sessions(question, at(32 * DAY)).await.unwrap();
    let named: Vec<_> = rows.iter().map(|row| row.peer_host.as_str()).collect();
    assert_eq!(named, ["db2", "db2", "", "db1"], "who has it now, who had it, and nobody that is known");
}
