//! Answers: their order, their limits, and what they say they cover.

use std::time::Duration;

use fleetsock_proto::{
    batch::{
        Batch,
        BatchKind::{Changes, SnapshotWhole},
        Change, NamespaceName, Op, Socket,
    },
    host::{HostSelector, HostState},
    owner::Owner,
    port::PortRange,
    question::{PortQuestion, SessionQuestion, SessionTime, SessionView},
    session::Session,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::AgentCost,
    tcp::TcpCounts,
    time::Timestamp,
};
use fleetsock_server::history::{Applied, Bounds, Contact, History, Labels, Presence};

use crate::{
    engine::{Engine, Rules, World},
    scene::{self, Described, at, closed, facts, listener, opened, present, session},
};

pub(super) async fn listeners_come_by_host_protocol_port_and_address<E: Engine>() {
    let world = World::<E>::new().await;
    let (mut web, mut db) = (world.host("web1").await, world.host("db1").await);
    let rows = || {
        vec![
            present(listener(1, "[::1]:80")),
            present(listener(2, "0.0.0.0:9").udp()),
            present(listener(3, "10.0.0.1:80")),
            present(listener(4, "9.0.0.1:80")),
            present(listener(5, "0.0.0.0:443")),
        ]
    };
    world.tell(&mut web, SnapshotWhole, 1, rows()).await;
    world.tell(&mut db, SnapshotWhole, 1, rows()).await;
    let expected: Vec<_> = ["db1", "web1"]
        .iter()
        .flat_map(|host| {
            ["tcp 9.0.0.1:80", "tcp 10.0.0.1:80", "tcp [::1]:80", "tcp 0.0.0.0:443", "udp 0.0.0.0:9"]
                .map(|socket| format!("{host} {socket} 0(event).."))
        })
        .collect();
    assert_eq!(world.listening().await, expected);
    assert_eq!(world.listening_at(Some(500)).await, expected);
}

pub(super) async fn listeners_of_a_moment_are_those_open_then<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 11, vec![present(listener(1, "0.0.0.0:1").since(10))]).await;
    let changes = vec![closed(listener(1, "0.0.0.0:1"), 20), opened(listener(2, "0.0.0.0:2").since(20))];
    world.tell(&mut agent, Changes, 21, changes).await;
    let (one, two) = ("web1 tcp 0.0.0.0:1 10(event)..20(event)", "web1 tcp 0.0.0.0:2 20(event)..");
    for (moment, expected) in [(9, &[][..]), (10, &[one]), (19, &[one]), (20, &[two]), (99, &[two])] {
        assert_eq!(world.listening_at(Some(moment)).await, expected, "at {moment}");
    }
    assert_eq!(world.listening().await, [two]);
}

pub(super) async fn an_answer_is_cut_at_its_limit_and_says_so<E: Engine>() {
    let bounds = Bounds { rows: 600, ..Bounds::default() };
    let world = World::<E>::with(Rules { bounds, ..Rules::default() }).await;
    let mut agent = world.host("web1").await;
    let rows = (1..=700).flat_map(|n| {
        [
            present(listener(2 * n, &format!("0.0.0.0:{n}"))),
            present(session(2 * n + 1, "10.0.0.1:443", Direction::In, &format!("10.0.0.9:{n}"))),
        ]
    });
    world.tell(&mut agent, SnapshotWhole, 1, rows.collect()).await;
    for (limit, rows, truncated) in
        [(None, 600, true), (Some(700), 600, true), (Some(256), 256, true), (Some(1), 1, true), (Some(0), 0, true)]
    {
        let (listeners, meta) = world.ports(PortQuestion { limit, ..PortQuestion::default() }, at(2)).await.unwrap();
        assert_eq!((listeners.len(), meta.truncated), (rows, truncated), "{limit:?}");
        let question = SessionQuestion { limit, ..SessionQuestion::default() };
        let (sessions, meta) = world.sessions(question, at(2)).await.unwrap();
        assert_eq!((sessions.len(), meta.truncated), (rows, truncated), "{limit:?}");
    }
    // Exactly as many rows as the limit are all there are.
    for (count, truncated) in [(100, false), (99, true), (101, false)] {
        let mut question = PortQuestion { limit: Some(count), ..PortQuestion::default() };
        question.filter.ports = vec!["1-100".parse().unwrap()];
        let (rows, meta) = world.ports(question, at(2)).await.unwrap();
        assert_eq!((rows.len(), meta.truncated), (count.min(100) as usize, truncated), "{count}");
    }
}

pub(super) async fn an_answer_counts_hosts_and_names_those_that_are_stale<E: Engine>() {
    let world = World::<E>::new().await;
    let (web, _db) = (world.host("web1").await, world.host("db1").await);
    world.enrol("silent", Labels::new()).await;
    let meta = async |now| world.ports(PortQuestion::default(), at(now)).await.unwrap().1;
    let after = world.rules.stale_after.as_secs() as i64;
    let fresh = meta(after).await;
    assert_eq!((fresh.hosts_total, fresh.hosts_stale_total, fresh.hosts_stale.len()), (3, 0, 0));
    assert_eq!(fresh.stale_after, Duration::from_secs(90));
    let stale = meta(after + 1).await;
    assert_eq!((stale.hosts_total, stale.hosts_stale_total), (3, 2));
    assert_eq!(stale.hosts_stale, ["db1", "web1"], "a host that never spoke is pending, not stale");
    world
        .store()
        .record_presence(web.host, Presence { at: at(50), observed_until: None, cost: None, tcp_counts: None });
    assert_eq!(meta(after + 1).await.hosts_stale, ["db1"]);
    let question = SessionQuestion { time: SessionTime::At(at(1)), ..SessionQuestion::default() };
    let (_, sessions) = world.sessions(question, at(after + 1)).await.unwrap();
    assert_eq!(sessions.hosts_stale, ["db1"], "staleness is about now, whatever moment was asked for");
    let mut question = PortQuestion::default();
    question.filter.hosts.globs = vec!["web*".to_owned()];
    let (_, some) = world.ports(question, at(1000)).await.unwrap();
    assert_eq!((some.hosts_total, some.hosts_stale_total), (1, 1));
}

pub(super) async fn hosts_show_what_they_said_and_what_is_open<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut labels = Labels::new();
    labels.insert("site".to_owned(), "a".to_owned());
    let (web, silent) = (world.host("web1").await, world.enrol("silent", labels.clone()).await);
    let mut web = web;
    let mut said = facts("renamed", &["10.0.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()]);
    said.ephemeral_ports = Some(PortRange::new(32768, 60999).unwrap());
    let contact = Contact { facts: said.clone(), at: at(5), clock_offset_us: -1_500_000 };
    world.store().record_hello(web.host, contact).await.unwrap();
    let open = vec![
        present(listener(1, "0.0.0.0:22")),
        present(listener(2, "0.0.0.0:80")),
        present(session(3, "10.0.0.1:22", Direction::In, "10.0.0.9:4000")),
    ];
    world.tell(&mut web, SnapshotWhole, 6, open).await;
    world.tell(&mut web, Changes, 7, vec![closed(listener(2, "0.0.0.0:80"), 7)]).await;
    let cost = AgentCost { cpu: Duration::ZERO, rss_bytes: 9_000_000, cpu_millipercent: 250, losses: 3 };
    let tcp_counts = Some(TcpCounts { time_wait: 30_000, syn_received: 2, bound: Some(1) });
    let presence = Presence { at: at(8), observed_until: None, cost: Some(cost), tcp_counts };
    world.store().record_presence(web.host, presence);
    // A later sign of life that tells nothing of them takes nothing back.
    world.store().record_presence(web.host, Presence { cost: None, tcp_counts: None, ..presence });
    for _ in 0..2 {
        let (hosts, meta) = world.store().list_hosts(HostSelector::default(), at(20)).await.unwrap();
        assert_eq!((hosts.len(), meta.hosts_total, meta.as_of), (2, 2, at(20)));
        let (one, two) = (&hosts[0], &hosts[1]);
        assert_eq!((one.name.as_str(), one.state, one.host_id), ("renamed", HostState::Online, web.host));
        assert_eq!((one.facts.as_ref(), one.last_seen_at, one.enrolled_at), (Some(&said), Some(at(8)), Some(at(1))));
        assert_eq!((one.listeners, one.sessions_open, one.clock_offset_us), (1, 1, -1_500_000));
        assert_eq!((one.agent_rss_bytes, one.agent_cpu_millipercent, one.losses), (9_000_000, 250, 3));
        assert_eq!((one.tcp_counts, two.tcp_counts), (tcp_counts, None));
        assert_eq!((two.name.as_str(), two.state, two.host_id), ("silent", HostState::Pending, silent));
        assert_eq!((two.facts.as_ref(), two.last_seen_at, &two.labels), (None, None, &labels));
        world.restart().await;
    }
}

/// Every value of a vocabulary, and the ends of every number, come back as they went.
pub(super) async fn rows_survive_every_value_of_every_column<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let last = |index: usize| index;
    let pick = |index: usize| -> Socket {
        fn nth<T: Copy>(all: &[T], index: usize) -> T {
            all[index % all.len()]
        }
        let owner = Owner {
            pid: [0, 1, u32::MAX][index % 3],
            started_at: [None, Some(at(-7)), Some(Timestamp::from_micros(1))][index % 3],
            process: ["", "naïve ✓", "a\u{0}b\n'\"%_"][index % 3].to_owned(),
            exe: "x".repeat(index * 300),
            uid: [0, 65_534, u32::MAX][index % 3],
            user: String::new(),
            container: "0123456789ab".to_owned(),
            unit: "a@b.service".to_owned(),
            command_line: "a --of b".to_owned(),
        };
        let v6 = index % 2 == 1;
        let (local, peer) = if v6 { ("[fe80::1]:0", "[::1]:65535") } else { ("255.255.255.255:65535", "0.0.0.0:0") };
        let base = session(1, local, nth(Direction::ALL, last(index)), peer);
        Socket {
            key: SocketKey { netns: [0, u64::MAX, 1 << 63][index % 3], cookie: u64::MAX - index as u64 },
            protocol: nth(Protocol::ALL, index),
            family: nth(Family::ALL, index),
            state: nth(SocketState::ALL, index),
            opened_known: nth(Known::ALL, index),
            owner_known: nth(OwnerKnown::ALL, index),
            owners: vec![owner.into()],
            bytes_sent: (i64::MAX - index as i64).cast_unsigned(),
            bytes_received: index as u64,
            ..base
        }
    };
    let sockets: Vec<Socket> = (0..12).map(pick).collect();
    let twin = |socket: &Socket| Socket { role: fleetsock_proto::batch::Role::Listener, ..socket.clone() };
    let rows = sockets.iter().flat_map(|socket| [present(socket.clone()), present(twin(socket))]).collect();
    world.tell(&mut agent, SnapshotWhole, 1, rows).await;
    let ends = sockets.iter().enumerate().map(|(index, socket)| {
        let known = Known::ALL[index % Known::ALL.len()];
        Change { op: Op::Closed { at: at(2), known }, socket: socket.clone() }
    });
    let open = world.sessions(SessionQuestion::default(), at(3)).await.unwrap().0;
    world.tell(&mut agent, Changes, 2, ends.collect()).await;
    world.restart().await;
    let time = SessionTime::At(at(1));
    let over = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(3)).await.unwrap().0;
    let view = SessionView::Basic;
    let basic = world.sessions(SessionQuestion { time, view, ..SessionQuestion::default() }, at(3)).await.unwrap().0;
    let to_basic = |owner: &Owner| {
        let Owner { pid, ref process, uid, .. } = *owner;
        Owner { pid, process: process.clone(), uid, ..Owner::default() }
    };
    let expected = over.iter().map(|one| Session { owners: one.owners.iter().map(to_basic).collect(), ..one.clone() });
    assert_eq!(basic, expected.collect::<Vec<_>>());
    let ports = world.ports(PortQuestion::default(), at(3)).await.unwrap().0;
    assert_eq!((open.len(), over.len(), ports.len()), (12, 12, 12));
    for (index, socket) in sockets.iter().enumerate() {
        let is_it =
            |netns, protocol, state| (netns, protocol, state) == (socket.key.netns, socket.protocol, socket.state);
        for row in [&open, &over].map(|rows| rows.iter().find(|r| is_it(r.netns, r.protocol, r.state)).unwrap()) {
            assert_eq!(
                (row.family, row.opened_known, row.owner_known),
                (socket.family, socket.opened_known, socket.owner_known)
            );
            assert_eq!((row.bytes_sent, row.bytes_received), (socket.bytes_sent, socket.bytes_received));
            assert_eq!((row.local, row.owners.as_slice()), (socket.local, &[socket.owners[0].as_ref().clone()][..]));
            let role = fleetsock_proto::batch::Role::Session { direction: row.direction, peer: row.peer };
            assert_eq!(role, socket.role);
            if let Some((_, known)) = row.closed {
                assert_eq!(known, Known::ALL[index % Known::ALL.len()]);
            }
        }
        let port = ports.iter().find(|row| row.netns == socket.key.netns && row.protocol == socket.protocol).unwrap();
        assert!(sockets.iter().any(|socket| port.owners == [socket.owners[0].as_ref().clone()]));
    }
}

pub(super) async fn a_namespace_is_called_what_it_was_called_then<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut web = world.host("web1").await;
    let elsewhere = |socket: Socket| Socket { key: SocketKey { netns: 9, ..socket.key }, ..socket };
    let session =
        |cookie, second| elsewhere(session(cookie, "10.0.0.1:443", Direction::In, "10.0.0.9:4000")).since(second);
    let own = scene::session(1, "10.0.0.1:80", Direction::In, "10.0.0.9:4000");
    // The number is given again, to one that nobody found, and to another one.
    let told = [
        (1, SnapshotWhole, Some("blue"), vec![present(own), present(elsewhere(listener(7, "0.0.0.0:443")))]),
        (10, Changes, None, vec![closed(session(2, 2), 8)]),
        (20, Changes, Some(""), vec![]),
        (24, Changes, None, vec![closed(session(3, 22), 23)]),
        (30, Changes, Some("red"), vec![opened(session(4, 25)), closed(session(5, 24), 29)]),
    ];
    for (walk, kind, name, changes) in told {
        let named = |name: &str| NamespaceName { netns: 9, name: name.to_owned() };
        let batch = Batch { namespaces: name.map(named).into_iter().collect(), ..web.batch(kind, at(walk), changes) };
        assert_eq!(world.store().apply(web.host, batch).await.unwrap(), Applied::Committed);
    }
    for _ in 0..2 {
        let time = SessionTime::Within { since: at(0), until: None };
        let all = SessionQuestion { time, ..SessionQuestion::default() };
        let (sessions, _) = world.sessions(all, at(40)).await.unwrap();
        let names: Vec<&str> = sessions.iter().map(|session| session.netns_name.as_str()).collect();
        assert_eq!(names, ["red", "", "red", "net:[9]", "blue"]);
        let (listeners, _) = world.ports(PortQuestion::default(), at(40)).await.unwrap();
        assert_eq!(listeners[0].netns_name, "red", "it is still there");
        world.restart().await;
    }
}
