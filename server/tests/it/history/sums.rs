//! Sums: groups of listeners and sessions, their order, and what they cover.

use fleetsock_proto::{
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Socket,
    },
    question::{SessionQuestion, SessionTime, SummaryQuestion},
    socket::Direction::{In, Out},
    summary::{Dimension, Sum},
};

use fleetsock_server::history::Bounds;

use crate::{
    engine::{Engine, Rules, World},
    scene::{Described, at, closed, listener, opened, owner, present, session},
};

fn line(sum: &Sum) -> String {
    let service = sum.group.service.as_deref().unwrap_or("-");
    let host = sum.group.host.as_ref().map_or("-", |(name, _)| name);
    let bytes = (sum.bytes_sent, sum.bytes_received);
    format!("{host} {service}: {} listeners, {} sessions, {bytes:?}", sum.listeners, sum.sessions)
}

/// Two hosts with listeners, open sessions, and one that is over.
async fn scene<E: Engine>() -> World<E> {
    let world = World::<E>::new().await;
    let (mut web, mut db) = (world.host("web1").await, world.host("db1").await);
    let moved = |socket: Socket| Socket { bytes_sent: 10, bytes_received: 1, ..socket };
    let on_web = vec![
        present(listener(1, "0.0.0.0:443").held_by(&[owner("nginx", 7)])),
        present(moved(session(2, "10.0.0.1:443", In, "10.0.0.9:4000"))),
        present(moved(session(3, "10.0.0.1:443", In, "10.0.0.8:4000"))),
        present(moved(session(4, "10.0.0.1:5000", Out, "10.0.0.2:5432"))),
    ];
    world.tell(&mut web, SnapshotWhole, 1, on_web).await;
    let on_db =
        vec![present(listener(1, "0.0.0.0:5432")), present(moved(session(2, "10.0.0.2:5432", In, "10.0.0.1:5000")))];
    world.tell(&mut db, SnapshotWhole, 1, on_db).await;
    let over = moved(session(5, "10.0.0.1:443", In, "10.0.0.9:4001")).since(2);
    world.tell(&mut web, Changes, 5, vec![closed(over, 4), opened(listener(6, "0.0.0.0:80").since(5))]).await;
    world
}

async fn lines<E: Engine>(world: &World<E>, by: &[Dimension], sockets: SessionQuestion) -> Vec<String> {
    let question = SummaryQuestion { sockets, by: by.to_vec(), limit: None };
    world.sums(question, at(10)).await.unwrap().0.iter().map(line).collect()
}

pub(super) async fn groups_are_counted_now_then_and_within_a_window<E: Engine>() {
    let world = scene::<E>().await;
    let by = [Dimension::Host, Dimension::Service];
    let time = |time| SessionQuestion { time, ..SessionQuestion::default() };
    let now = [
        "web1 https: 1 listeners, 2 sessions, (20, 2)",
        "db1 postgresql: 1 listeners, 1 sessions, (10, 1)",
        "web1 postgresql: 0 listeners, 1 sessions, (10, 1)",
        "web1 http: 1 listeners, 0 sessions, (0, 0)",
    ];
    assert_eq!(lines(&world, &by, time(SessionTime::Now)).await, now);
    let then = lines(&world, &by, time(SessionTime::At(at(3)))).await;
    assert_eq!((then.len(), then[0].as_str()), (3, "web1 https: 1 listeners, 3 sessions, (30, 3)"));
    let within = time(SessionTime::Within { since: at(4), until: None });
    assert_eq!(lines(&world, &by, within).await[0], "web1 https: 1 listeners, 3 sessions, (30, 3)");
}

pub(super) async fn filters_choose_what_is_counted_and_peers_are_those_of_sessions<E: Engine>() {
    let world = scene::<E>().await;
    let mut hosts = SessionQuestion::default();
    hosts.filter.hosts.globs = vec!["web1".to_owned()];
    let by = [Dimension::Service];
    assert_eq!(
        lines(&world, &by, hosts.clone()).await,
        [
            "- https: 1 listeners, 2 sessions, (20, 2)",
            "- postgresql: 0 listeners, 1 sessions, (10, 1)",
            "- http: 1 listeners, 0 sessions, (0, 0)",
        ]
    );
    let out = SessionQuestion { directions: vec![Out], ..hosts };
    assert_eq!(lines(&world, &by, out).await, ["- postgresql: 0 listeners, 1 sessions, (10, 1)"]);
    let by_peer = lines(&world, &[Dimension::Peer], SessionQuestion::default()).await;
    assert_eq!(by_peer, ["- -: 0 listeners, 1 sessions, (10, 1)"; 4], "four peers, and no listener");
}

pub(super) async fn listeners_of_many_hosts_are_those_of_each<E: Engine>() {
    const HOSTS: i64 = 70;
    let world = World::<E>::new().await;
    for host in 0..HOSTS {
        let mut agent = world.host(&format!("web{host}")).await;
        let ports = [80, 443, 5432];
        let row = |(number, port): (i64, &u16)| listener(number.unsigned_abs() + 1, &format!("0.0.0.0:{port}"));
        let all: Vec<Socket> = (0..).zip(&ports[..1 + (host % 3) as usize]).map(row).collect();
        world.tell(&mut agent, SnapshotWhole, 1, all.iter().cloned().map(present).collect()).await;
        // Of each host the last one is closed sooner or later.
        let last = all.into_iter().last().unwrap();
        world.tell(&mut agent, Changes, 30, vec![closed(last, 2 + host % 20)]).await;
    }
    let within = |since, until| SessionTime::Within { since: at(since), until: Some(at(until)) };
    for time in [within(0, 1), within(5, 9), within(5, 90), within(25, 30), SessionTime::Now, SessionTime::At(at(7))] {
        let mut sockets = SessionQuestion { time, ..SessionQuestion::default() };
        let by = [Dimension::Host, Dimension::Service];
        let mut together = lines(&world, &by, sockets.clone()).await;
        let mut apart = Vec::new();
        for host in 0..HOSTS {
            sockets.filter.hosts.globs = vec![format!("web{host}")];
            apart.extend(lines(&world, &by, sockets.clone()).await);
        }
        together.sort_unstable();
        apart.sort_unstable();
        assert!(together.len() >= 60, "{time:?}: {together:?}");
        assert_eq!(together, apart, "{time:?}");
    }
}

pub(super) async fn the_largest_groups_come_first_and_an_answer_that_was_cut_says_so<E: Engine>() {
    let world = scene::<E>().await;
    for (limit, rows, truncated) in [(1, 1, true), (3, 3, false)] {
        let by = vec![Dimension::Service];
        let question = SummaryQuestion { by, limit: Some(limit), ..SummaryQuestion::default() };
        let (sums, meta) = world.sums(question, at(10)).await.unwrap();
        assert_eq!((sums.len(), meta.truncated, meta.hosts_total), (rows, truncated, 2));
        assert_eq!(sums[0].group.service.as_deref(), Some("https"), "{sums:?}");
    }
}

pub(super) async fn the_first_of_more_groups_than_may_be_held_are_told_when_these_are_asked_for<E: Engine>() {
    // Some fifty groups at once: of two hundred it takes parts, in files of which some are sealed and some are not.
    let tell = async |group_bytes| {
        let bounds = Bounds { group_bytes, ..Bounds::default() };
        let world = World::<E>::with(Rules { bounds, ..Rules::default() }).await;
        let mut agent = world.host("web1").await;
        world.tell(&mut agent, SnapshotWhole, 1, vec![]).await;
        for turn in 0..10_i64 {
            let one = |number: u64| {
                let (peer, second) = (format!("10.9.{}.{}:4000", turn % 3, number * 7 % 200), 10 + turn);
                let one = session(1000 * (turn.unsigned_abs() + 1) + number, "10.0.0.1:443", In, &peer).since(second);
                closed(one.held_by(&[owner(["nginx", "node"][number as usize % 2], 7)]), second + 1)
            };
            let changes = (0..20 + 4 * turn.unsigned_abs()).map(one).collect();
            world.tell(&mut agent, Changes, 30 + turn, changes).await;
        }
        world
    };
    let (few, all) = (tell(8 * 1024).await, tell(1 << 20).await);
    let question = |by: &[Dimension], limit| {
        let sockets =
            SessionQuestion { time: SessionTime::Within { since: at(0), until: None }, ..SessionQuestion::default() };
        SummaryQuestion { sockets, by: by.to_vec(), limit }
    };
    for by in [&[Dimension::Peer][..], &[Dimension::Process, Dimension::Peer], &[Dimension::Peer, Dimension::Service]] {
        let (whole, _) = all.sums(question(by, None), at(100)).await.unwrap();
        assert!(whole.len() > 100, "{}", whole.len());
        for limit in [1, 10, 70] {
            let (first, meta) = few.sums(question(by, Some(limit)), at(100)).await.unwrap();
            assert_eq!((first.as_slice(), meta.truncated), (&whole[..limit as usize], true), "{by:?}");
        }
        let refused = few.sums(question(by, None), at(100)).await.unwrap_err().to_string();
        assert!(refused.contains("ask for the first few of them (--limit)"), "{refused}");
    }
}
