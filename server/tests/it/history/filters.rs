//! Filters: each selects what it says, alone and together with others.

use fleetsock_proto::{
    address::Scope,
    batch::{BatchKind::SnapshotWhole, Change, Socket},
    host::HostSelector,
    owner::Owner,
    port::PortClass,
    question::{PortQuestion, SessionQuestion, SocketFilter},
    socket::{
        Direction::{In, Out},
        Family, Protocol, SocketState,
    },
};
use fleetsock_server::history::{HistoryError, Labels};

use crate::{
    engine::{Engine, World},
    scene::{Described, at, listener, owner, present, session},
};

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

fn by(change: impl FnOnce(&mut SocketFilter)) -> SocketFilter {
    let mut filter = SocketFilter::default();
    change(&mut filter);
    filter
}

fn with_user(user: &str, uid: u32) -> std::sync::Arc<Owner> {
    Owner { user: user.to_owned(), uid, ..owner("worker", 9).as_ref().clone() }.into()
}

/// Filters that listeners and sessions share, and the ports that each selects from 22, 53, 80, 443, 8080, 50000:
/// all TCP but 53; 443 is IPv6, 80 is dual-stack (a session: IPv6).
fn shared_filters() -> Vec<(SocketFilter, &'static [u16])> {
    let range = |text: &str| text.parse().unwrap();
    vec![
        (by(|_| {}), &[22, 53, 80, 443, 8080, 50000]),
        (by(|f| f.classes = vec![PortClass::WellKnown]), &[22, 53, 80, 443]),
        (by(|f| f.classes = vec![PortClass::Registered, PortClass::Dynamic]), &[8080, 50000]),
        (by(|f| f.ports = vec![range("22"), range("400-9000")]), &[22, 443, 8080]),
        (by(|f| (f.classes, f.ports) = (vec![PortClass::WellKnown], vec![range("53-8080")])), &[53, 80, 443]),
        (by(|f| f.protocols = vec![Protocol::Udp]), &[53]),
        (by(|f| f.protocols = vec![Protocol::Tcp, Protocol::Udp]), &[22, 53, 80, 443, 8080, 50000]),
        (by(|f| f.services = texts(&["HTTPS", "ssh"])), &[22, 443]),
        (by(|f| f.services = texts(&["dns"])), &[53]),
        (by(|f| (f.services, f.protocols) = (texts(&["dns"]), vec![Protocol::Tcp])), &[]),
        (by(|f| f.processes = texts(&["nginx"])), &[80, 443]),
        (by(|f| f.processes = texts(&["ngin?", "ss*"])), &[22, 80, 443]),
        (by(|f| f.processes = texts(&["[m-o]*"])), &[53, 80, 443]),
        // The second owner counts as well.
        (by(|f| f.processes = texts(&["worker"])), &[80]),
        (by(|f| f.users = texts(&["www-data"])), &[80]),
        (by(|f| f.users = texts(&["33"])), &[80]),
        (by(|f| f.users = texts(&["100"])), &[22, 53, 80, 443]),
        (by(|f| (f.processes, f.users) = (texts(&["nginx"]), texts(&["www-data"]))), &[]),
        (by(|f| f.users = texts(&["nobody"])), &[]),
        (by(|f| f.families = vec![Family::Ipv4, Family::Ipv6]), &[22, 53, 80, 443, 8080, 50000]),
        (
            by(|f| {
                (f.classes, f.processes, f.users) = (vec![PortClass::WellKnown], texts(&["n*"]), texts(&["_nginx"]))
            }),
            &[80, 443],
        ),
    ]
}

fn owned(port: u16, socket: Socket) -> Socket {
    match port {
        22 => socket.held_by(&[owner("sshd", 1)]),
        53 => socket.udp().held_by(&[owner("named", 2)]),
        80 => socket.held_by(&[owner("nginx", 3), with_user("www-data", 33)]),
        443 => socket.held_by(&[owner("nginx", 3)]),
        _ => socket,
    }
}

fn listeners() -> Vec<Change> {
    let addresses =
        ["0.0.0.0:22", "127.0.0.1:53", "[::]:80", "[2001:db8::1]:443", "10.0.0.1:8080", "169.254.1.1:50000"];
    let change = |(cookie, text): (u64, &&str)| {
        let socket = listener(cookie, text);
        let socket = owned(socket.local.port(), socket);
        present(if *text == "[::]:80" { Socket { family: Family::Dual, ..socket } } else { socket })
    };
    (1..).zip(&addresses).map(change).collect()
}

pub(super) async fn every_filter_of_listeners_selects_what_it_says<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, listeners()).await;
    let only = |question: PortQuestion| (question.clone(), PortQuestion { at: Some(at(5)), ..question });
    let scopes = |scopes: &[Scope]| PortQuestion { scopes: scopes.to_vec(), ..PortQuestion::default() };
    let family = |family| PortQuestion { filter: by(|f| f.families = vec![family]), ..PortQuestion::default() };
    let mut cases: Vec<(PortQuestion, &[u16])> = vec![
        (scopes(&[Scope::Any]), &[22, 80]),
        (scopes(&[Scope::Loopback, Scope::Link]), &[53, 50000]),
        (scopes(&[Scope::Private]), &[8080]),
        (scopes(&[Scope::Public]), &[443]),
        (family(Family::Ipv4), &[22, 53, 80, 8080, 50000]),
        (family(Family::Ipv6), &[80, 443]),
        (family(Family::Dual), &[80]),
    ];
    for (filter, expected) in shared_filters() {
        cases.push((PortQuestion { filter, ..PortQuestion::default() }, expected));
    }
    for (question, expected) in cases {
        let (now, past) = only(question);
        for question in [now, past] {
            let (rows, _) = world.ports(question.clone(), at(10)).await.unwrap();
            let mut ports: Vec<_> = rows.iter().map(|row| row.port).collect();
            ports.sort_unstable();
            assert_eq!(ports, expected, "{question:?}");
        }
    }
}

/// Sessions whose service ports are those of [`shared_filters`]: even places in, odd places out.
fn sessions() -> Vec<Change> {
    let ends = [
        ("10.0.0.1:22", In, "198.51.100.7:40000"),
        ("10.0.0.1:40001", Out, "192.0.2.53:53"),
        ("[2001:db8::1]:80", In, "[2001:db8:1::7]:40002"),
        ("[2001:db8::1]:40003", Out, "[2001:db8:2::7]:443"),
        ("10.0.0.1:8080", In, "198.51.100.9:443"),
        ("10.0.0.1:22", Out, "203.0.113.4:50000"),
    ];
    let change = |(cookie, (local, direction, peer)): (u64, _)| {
        let socket = session(cookie, local, direction, peer);
        let port =
            if direction == In { socket.local.port() } else { peer.parse::<std::net::SocketAddr>().unwrap().port() };
        let state = if port == 8080 { SocketState::CloseWait } else { socket.state };
        present(owned(port, Socket { state, ..socket }))
    };
    (1..).zip(ends).map(change).collect()
}

pub(super) async fn every_filter_of_sessions_selects_what_it_says<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, sessions()).await;
    let peers = |prefixes: &[&str]| SessionQuestion {
        peers: prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        ..SessionQuestion::default()
    };
    let mut cases: Vec<(SessionQuestion, &[u16])> = vec![
        (SessionQuestion { directions: vec![In], ..SessionQuestion::default() }, &[22, 80, 8080]),
        (SessionQuestion { directions: vec![Out], ..SessionQuestion::default() }, &[53, 443, 50000]),
        (SessionQuestion { directions: vec![In, Out], ..peers(&["198.51.100.0/24"]) }, &[22, 8080]),
        (SessionQuestion { states: vec![SocketState::CloseWait], ..SessionQuestion::default() }, &[8080]),
        (
            SessionQuestion {
                states: vec![SocketState::CloseWait, SocketState::Established],
                ..SessionQuestion::default()
            },
            &[22, 53, 80, 443, 8080, 50000],
        ),
        (peers(&["198.51.100.9/32"]), &[8080]),
        (peers(&["198.51.100.8/29", "192.0.2.0/25"]), &[53, 8080]),
        (peers(&["2001:db8:1::/48"]), &[80]),
        (peers(&["2001:db8::/32"]), &[80, 443]),
        (peers(&["::/0"]), &[80, 443]),
        (peers(&["0.0.0.0/0"]), &[22, 53, 8080, 50000]),
        (peers(&["10.0.0.0/8"]), &[]),
        (SessionQuestion { filter: by(|f| f.families = vec![Family::Ipv6]), ..SessionQuestion::default() }, &[80, 443]),
        (
            SessionQuestion { filter: by(|f| f.families = vec![Family::Ipv4]), ..SessionQuestion::default() },
            &[22, 53, 8080, 50000],
        ),
    ];
    for (filter, expected) in shared_filters() {
        cases.push((SessionQuestion { filter, ..SessionQuestion::default() }, expected));
    }
    // Open, and again when all are over: as of then, and within a window.
    let all = async |cases: &[(SessionQuestion, &[u16])], time| {
        for (question, expected) in cases {
            let question = SessionQuestion { time, ..question.clone() };
            let (rows, _) = world.sessions(question.clone(), at(10)).await.unwrap();
            let mut ports: Vec<_> = rows.iter().map(fleetsock_proto::session::Session::service_port).collect();
            ports.sort_unstable();
            assert_eq!(&ports, expected, "{question:?}");
        }
    };
    use fleetsock_proto::question::SessionTime::{At, Now, Within};
    all(&cases, Now).await;
    world.tell(&mut agent, SnapshotWhole, 20, Vec::new()).await;
    all(&cases, At(at(0))).await;
    all(&cases, Within { since: at(0), until: None }).await;
}

pub(super) async fn hosts_are_chosen_by_name_pattern_id_and_label<E: Engine>() {
    let mut world = World::<E>::new().await;
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let web1 = world.enrol("web1", labels(&[("role", "web"), ("site", "a")])).await;
    world.enrol("web2", labels(&[("role", "web"), ("site", "b")])).await;
    world.enrol("db1", labels(&[("role", "db"), ("site", "a")])).await;
    world.enrol("db1", Labels::new()).await;
    let id = web1.to_string();
    // Patterns, labels, and the names of the hosts that they choose.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a [&'a str]);
    let cases: [Case<'_>; 10] = [
        (&[], &[], &["db1", "db1", "web1", "web2"]),
        (&["web1"], &[], &["web1"]),
        (&["db1"], &[], &["db1", "db1"]),
        (&["web*"], &[], &["web1", "web2"]),
        (&["*[12]", "nothing*"], &[], &["db1", "db1", "web1", "web2"]),
        (&["?b1", "web2"], &[], &["db1", "db1", "web2"]),
        (&[&id], &[], &["web1"]),
        (&[], &[("role", "web")], &["web1", "web2"]),
        (&["web*"], &[("role", "web"), ("site", "b")], &["web2"]),
        (&["mail*"], &[("role", "none")], &[]),
    ];
    // Labels and names are still known after a restart.
    for _ in 0..2 {
        for (globs, wanted, expected) in cases {
            let hosts = HostSelector { globs: texts(globs), labels: labels(wanted) };
            assert_eq!(world.host_names(hosts.clone()).await.unwrap(), expected, "{hosts:?}");
        }
        world.restart().await;
    }
}

pub(super) async fn a_wrong_question_is_refused_with_a_hint<E: Engine>() {
    let world = World::<E>::new().await;
    for name in ["web1", "web2", "database"] {
        world.host(name).await;
    }
    let hosts = |glob: &str| by(|f| f.hosts.globs = texts(&[glob]));
    for (filter, is_missing, words) in [
        (hosts("web3"), true, &["no host is called `web3`", "did you mean `web1` or `web2`?"][..]),
        (hosts("zzzzzzzz"), true, &["no host is called `zzzzzzzz`"]),
        (hosts("[web"), false, &["`[web` is no pattern"]),
        (by(|f| f.services = texts(&["htpps"])), false, &["`htpps`", "did you mean", "`https`"]),
        (by(|f| f.services = texts(&["no such service"])), false, &["`no such service`", "ask for the port instead"]),
        (by(|f| f.processes = texts(&["ngin["])), false, &["`ngin[` is no pattern"]),
    ] {
        let ports = PortQuestion { filter: filter.clone(), ..PortQuestion::default() };
        let sessions = SessionQuestion { filter, ..SessionQuestion::default() };
        let errors = [world.ports(ports, at(1)).await.unwrap_err(), world.sessions(sessions, at(1)).await.unwrap_err()];
        for error in errors {
            assert_eq!(matches!(error, HistoryError::NotFound(_)), is_missing, "{error:?}");
            assert_eq!(matches!(error, HistoryError::Invalid(_)), !is_missing, "{error:?}");
            for word in words {
                assert!(error.to_string().contains(word), "{error} lacks {word}");
            }
        }
    }
    // A pattern that no host matches is an empty answer.
    let (rows, meta) =
        world.ports(PortQuestion { filter: hosts("mail*"), ..PortQuestion::default() }, at(1)).await.unwrap();
    assert_eq!((rows.len(), meta.hosts_total), (0, 0));
}
