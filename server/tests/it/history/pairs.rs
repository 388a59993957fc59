//! The two ends of a connection whose hosts are both in the fleet.

use fleetsock_proto::{
    answer::OtherEnds,
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Socket,
    },
    question::{Pairing, SessionQuestion, SessionTime},
    session::Session,
    socket::{
        Direction::{self, In, Out},
        SocketKey,
    },
    time::Timestamp,
};

use crate::{
    engine::{Engine, World},
    scene::{Agent, Described, NETNS, at, closed, opened, owner, session},
};

const ALWAYS: SessionTime = SessionTime::Within { since: Timestamp::MIN, until: None };

/// A session, its host, and the process at the other end: `web1 10.0.0.1:40000 -> db1 postgres/7`.
fn line(row: &Session) -> String {
    let Session { host, local, other_end, peer_host, .. } = row;
    match other_end {
        None => format!("{host} {local} -> {peer_host}?"),
        Some(other) => {
            assert_eq!(peer_host, &other.host);
            let owner = other.owner.as_ref().map(|owner| format!(" {}/{}", owner.process, owner.pid));
            format!("{host} {local} -> {}{}", other.host, owner.unwrap_or_default())
        }
    }
}

async fn lines<E: Engine>(world: &World<E>, time: SessionTime) -> Vec<String> {
    let (rows, meta) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(1000)).await.unwrap();
    assert_eq!(meta.other_ends, Some(OtherEnds::LookedFor));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.sort();
    lines
}

/// A session of a process.
fn held(cookie: u64, local: &str, direction: Direction, peer: &str, process: &str) -> Socket {
    session(cookie, local, direction, peer).since(10).held_by(&[owner(process, 7)])
}

/// Hosts that have reported, by these names.
async fn fleet<E: Engine, const N: usize>(world: &World<E>, names: [&str; N]) -> [Agent; N] {
    let mut agents = Vec::new();
    for name in names {
        let mut agent = world.host(name).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    agents.try_into().unwrap()
}

pub(super) async fn the_process_at_the_other_end_is_found_from_either_end_while_it_is_open_and_after<E: Engine>() {
    let mut world = World::<E>::new().await;
    let [mut web, mut db] = fleet(&world, ["web1", "db1"]).await;
    let outs = [
        held(1, "10.0.0.1:40000", Out, "10.0.0.2:5432", "gunicorn"),
        held(2, "[2001:db8::1]:40000", Out, "[2001:db8::2]:5432", "gunicorn"),
        held(3, "127.0.0.1:40000", Out, "127.0.0.1:6379", "gunicorn"),
        held(4, "127.0.0.1:6379", In, "127.0.0.1:40000", "redis"),
    ];
    let ins = [
        held(1, "10.0.0.2:5432", In, "10.0.0.1:40000", "postgres"),
        held(2, "[2001:db8::2]:5432", In, "[2001:db8::1]:40000", "postgres"),
        // Nobody there is the client of this one, though web1 has such a socket.
        held(3, "127.0.0.1:6379", In, "127.0.0.1:40000", "redis"),
    ];
    world.tell(&mut web, Changes, 11, outs.iter().cloned().map(opened).collect()).await;
    world.tell(&mut db, Changes, 12, ins.iter().cloned().map(opened).collect()).await;
    let expected = [
        "db1 10.0.0.2:5432 -> web1 gunicorn/7",
        "db1 127.0.0.1:6379 -> ?",
        "db1 [2001:db8::2]:5432 -> web1 gunicorn/7",
        "web1 10.0.0.1:40000 -> db1 postgres/7",
        "web1 127.0.0.1:40000 -> web1 redis/7",
        "web1 127.0.0.1:6379 -> web1 gunicorn/7",
        "web1 [2001:db8::1]:40000 -> db1 postgres/7",
    ];
    assert_eq!(lines(&world, SessionTime::Now).await, expected);
    assert_eq!(lines(&world, SessionTime::At(at(12))).await, expected);

    world.tell(&mut web, Changes, 21, outs.into_iter().map(|one| closed(one, 20)).collect()).await;
    assert_eq!(lines(&world, ALWAYS).await, expected, "one end is over");
    world.tell(&mut db, Changes, 22, ins.into_iter().map(|one| closed(one, 20)).collect()).await;
    assert_eq!(lines(&world, ALWAYS).await, expected);
    world.restart().await;
    assert_eq!(lines(&world, ALWAYS).await, expected);
    let of_one =
        SessionQuestion { peers: vec!["10.0.0.0/8".parse().unwrap()], time: ALWAYS, ..SessionQuestion::default() };
    let (rows, _) = world.sessions(of_one, at(1000)).await.unwrap();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.other_end.is_some()), "{rows:?}");
}

pub(super) async fn what_is_translated_on_the_way_or_stays_elsewhere_has_no_other_end<E: Engine>() {
    let world = World::<E>::new().await;
    let [mut web, mut db, mut gate] = fleet(&world, ["web1", "db1", "gate1"]).await;
    // The gate has 10.0.0.9 and sends what comes there on to the database.
    let there = [
        opened(held(1, "10.0.0.1:40000", Out, "10.0.0.9:5432", "gunicorn")),
        opened(held(2, "10.0.0.1:40001", Out, "192.0.2.7:443", "curl")),
    ];
    world.tell(&mut web, Changes, 11, there.into()).await;
    world.tell(&mut gate, Changes, 11, vec![opened(held(1, "10.0.0.9:22", In, "10.0.0.8:50000", "sshd"))]).await;
    world.tell(&mut db, Changes, 11, vec![opened(held(1, "10.0.0.2:5432", In, "10.0.0.1:40000", "postgres"))]).await;
    let expected =
        ["db1 10.0.0.2:5432 -> ?", "gate1 10.0.0.9:22 -> ?", "web1 10.0.0.1:40000 -> ?", "web1 10.0.0.1:40001 -> ?"];
    assert_eq!(lines(&world, SessionTime::Now).await, expected);

    // Another transport protocol with the same addresses and ports.
    let udp = held(2, "10.0.0.9:5432", In, "10.0.0.1:40000", "dns").udp();
    world.tell(&mut gate, Changes, 13, vec![opened(udp)]).await;
    assert!(lines(&world, SessionTime::Now).await.iter().all(|line| line.ends_with('?')));
}

pub(super) async fn an_end_that_could_be_that_of_several_hosts_is_none<E: Engine>() {
    let world = World::<E>::new().await;
    let [mut web, mut one, mut two] = fleet(&world, ["web1", "pod1", "pod2"]).await;
    let out = held(1, "10.0.0.1:40000", Out, "192.168.0.2:80", "curl");
    let inward = |cookie| held(cookie, "192.168.0.2:80", In, "10.0.0.1:40000", "nginx");
    let other = held(2, "192.168.0.2:80", In, "10.0.0.8:40000", "nginx");
    world.tell(&mut web, Changes, 11, vec![opened(out)]).await;
    world.tell(&mut one, Changes, 11, vec![opened(inward(1))]).await;
    world.tell(&mut two, Changes, 11, vec![opened(other)]).await;
    let found = lines(&world, SessionTime::Now).await;
    assert_eq!(found[2], "web1 10.0.0.1:40000 -> pod1 nginx/7", "both have the address, and one has the connection");

    world.tell(&mut two, Changes, 12, vec![opened(inward(3))]).await;
    let found = lines(&world, SessionTime::Now).await;
    assert_eq!(found.last().unwrap(), "web1 10.0.0.1:40000 -> ?");
    assert!(found.iter().all(|line| line.ends_with('?')), "{found:?}");

    // Two containers of one host.
    let inner = Socket { key: SocketKey { netns: NETNS + 1, cookie: 9 }, ..inward(9) };
    world.tell(&mut two, Changes, 13, vec![closed(inward(3), 13)]).await;
    world.tell(&mut one, Changes, 13, vec![opened(inner)]).await;
    assert!(lines(&world, SessionTime::Now).await.iter().all(|line| line.ends_with('?')));
}

pub(super) async fn sockets_that_are_used_again_have_the_other_end_of_their_own_life<E: Engine>() {
    let world = World::<E>::new().await;
    let [mut web, mut db] = fleet(&world, ["web1", "db1"]).await;
    for round in 0..12_u32 {
        let (begun, cookie) = (100 + i64::from(round) * 20, u64::from(round) + 1);
        let life = |local, direction, peer, process| {
            session(cookie, local, direction, peer).since(begun).held_by(&[owner(process, round + 1)])
        };
        let out = life("10.0.0.1:40000", Out, "10.0.0.2:5432", "client");
        let inward = life("10.0.0.2:5432", In, "10.0.0.1:40000", "server");
        world.tell(&mut web, Changes, begun + 17, vec![closed(out, begun + 16)]).await;
        // Of one the other end was not observed.
        if round != 5 {
            world.tell(&mut db, Changes, begun + 17, vec![closed(inward, begun + 17)]).await;
        }
    }
    let found = lines(&world, ALWAYS).await;
    let expected = |host: &str, local: &str, other: &str| {
        (1..=12)
            .map(
                move |pid| {
                    if pid == 6 { format!("{host} {local} -> ?") } else { format!("{host} {local} -> {other}/{pid}") }
                },
            )
            .collect::<Vec<String>>()
    };
    let mut all = expected("web1", "10.0.0.1:40000", "db1 server");
    all.extend(expected("db1", "10.0.0.2:5432", "web1 client").into_iter().filter(|line| !line.ends_with('?')));
    all.sort();
    assert_eq!(found, all);
}

pub(super) async fn many_sessions_are_looked_through_when_that_is_wanted_and_an_answer_says_whether_they_were<
    E: Engine,
>() {
    const MANY: u16 = 1_100;
    let world = World::<E>::new().await;
    let [mut web, mut db] = fleet(&world, ["web1", "db1"]).await;
    let ends = |cookie: u16| {
        let client = format!("10.0.0.1:{}", 20_000 + cookie);
        let out = held(cookie.into(), &client, Out, "10.0.0.2:5432", "gunicorn");
        (out, held(cookie.into(), "10.0.0.2:5432", In, &client, "postgres"))
    };
    let (outs, ins): (Vec<_>, Vec<_>) = (1..=MANY).map(ends).map(|(out, inward)| (opened(out), opened(inward))).unzip();
    world.tell(&mut web, Changes, 11, outs).await;
    world.tell(&mut db, Changes, 11, ins).await;
    let ask = async |pairing, limit| {
        let question = SessionQuestion { pairing, limit, ..SessionQuestion::default() };
        let (rows, meta) = world.sessions(question, at(1000)).await.unwrap();
        let found = rows.iter().filter(|row| row.other_end.is_some()).count();
        (rows.len(), found, meta.other_ends.unwrap(), meta.truncated)
    };
    let all = usize::from(MANY) * 2;
    assert_eq!(ask(Pairing::OfFew, None).await, (all, 0, OtherEnds::NotLookedFor, false));
    assert_eq!(ask(Pairing::Always, None).await, (all, all, OtherEnds::LookedFor, false));
    assert_eq!(ask(Pairing::OfFew, Some(1_000)).await, (1_000, 1_000, OtherEnds::LookedFor, true));
    assert_eq!(ask(Pairing::OfFew, Some(1_001)).await, (1_001, 0, OtherEnds::NotLookedFor, true));
    assert_eq!(ask(Pairing::Never, Some(5)).await, (5, 0, OtherEnds::NotLookedFor, true));
    assert_eq!(ask(Pairing::Always, Some(1_500)).await, (1_500, 1_500, OtherEnds::LookedFor, true));
}
