//! What the agent sees of a host's sockets and their owners is what `ss` sees.
//!
//! The sockets are real and random; `listeners.py` holds them. As root it does so in a network namespace of its own, so
//! that nothing else on the machine disturbs the comparison, and with processes of another user among them. Without
//! root other users' processes could not be looked into, so that only those of the test are compared.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Debug,
    fs::File,
    io::{BufRead, BufReader, Read},
    net::{IpAddr, Ipv6Addr},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    thread,
};

use fleetsock_agent::{
    capture::{SocketRow, WalkReport, Walker},
    facts::{Hearing, facts},
    owners::{Processes, Wanted},
};
use fleetsock_proto::{
    address::normalise,
    host::Tier,
    socket::{Family, Protocol, SocketState},
};
use rustix::thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space, set_capabilities};

/// Random sets that are compared in a run.
const ROUNDS: u64 = 6;

type End = (IpAddr, u16);

/// A socket, as both must tell it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    protocol: String,
    family: String,
    local: End,
    peer: Option<End>,
    pids: BTreeSet<u32>,
}

/// The processes that hold a random set of sockets.
struct Holders {
    child: Child,
    pids: BTreeSet<u32>,
    alone: bool,
}

impl Holders {
    fn start(seed: u64) -> Holders {
        let alone = rustix::process::geteuid().is_root();
        let mut command = Command::new(if alone { "unshare" } else { "python3" });
        if alone {
            command.args(["--net", "python3"]);
        }
        command.args(["-c", include_str!("listeners.py"), &seed.to_string(), if alone { "alone" } else { "among" }]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let pids: BTreeSet<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        assert!(pids.contains(&child.id()), "seed {seed}: the holders did not start: {line:?}");
        Holders { child, pids, alone }
    }

    /// Makes the calling thread look at their network namespace.
    fn enter(&self) {
        if self.alone {
            let namespace = File::open(format!("/proc/{}/ns/net", self.child.id())).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
    }

    /// What is comparable: everything in a namespace of its own, else what the holders have.
    fn sorted(&self, mut sockets: Vec<Seen>) -> Vec<Seen> {
        sockets.retain(|socket| self.alone || !socket.pids.is_disjoint(&self.pids));
        sockets.sort();
        sockets
    }
}

impl Drop for Holders {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// What `ss` tells, with these options besides `-H -n -p`.
fn oracle(options: &str) -> Vec<Seen> {
    let output = Command::new("ss").args(["-H", "-n", "-p", options]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().lines().map(parse).collect()
}

/// `tcp LISTEN 0 128 [::1]:80 [::]:* users:(("x",pid=7,fd=3),("x",pid=8,fd=3))`
fn parse(line: &str) -> Seen {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, family) = end(fields[4]);
    let pids = line.split("pid=").skip(1).map(|rest| rest.split(',').next().unwrap().parse().unwrap()).collect();
    Seen {
        protocol: fields[0].to_owned(),
        family: family.to_owned(),
        local: local.unwrap(),
        peer: end(fields[5]).0,
        pids,
    }
}

/// `*:80` is dual-stack, `[::ffff:127.0.0.1]:80` mapped, `127.0.0.53%lo:53` bound to an interface; `*` is no port.
fn end(text: &str) -> (Option<End>, &'static str) {
    let (address, port) = text.rsplit_once(':').unwrap();
    let bare = address.trim_matches(['[', ']']).split('%').next().unwrap();
    let (address, family) = match address {
        "*" => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), "dual"),
        _ if address.starts_with('[') => (normalise(bare.parse().unwrap()), "ipv6"),
        _ => (bare.parse().unwrap(), "ipv4"),
    };
    (port.parse().ok().map(|port| (address, port)), family)
}

/// What the agent tells.
fn ours(rows: &[SocketRow], owners: &HashMap<u64, BTreeSet<u32>>) -> Vec<Seen> {
    let seen = |row: &SocketRow| Seen {
        protocol: row.protocol.to_string(),
        family: row.family.to_string(),
        local: (row.local.ip(), row.local.port()),
        peer: row.peer.map(|peer| (peer.ip(), peer.port())),
        pids: owners.get(&row.inode).cloned().unwrap_or_default(),
    };
    rows.iter().map(seen).collect()
}

fn walk() -> (Vec<SocketRow>, HashMap<u64, BTreeSet<u32>>) {
    let mut rows = Vec::new();
    assert_eq!(Walker::open().unwrap().walk(&mut rows), Ok(WalkReport::default()));
    let wanted: Wanted = rows.iter().map(|row| row.inode).filter(|inode| *inode != 0).collect();
    let scan = Processes::open().unwrap().scan(&wanted);
    let pids = scan.owners.iter().map(|(inode, owners)| (*inode, owners.iter().map(|owner| owner.pid).collect()));
    (rows, pids.collect())
}

fn assert_same<T: Debug + Ord>(what: &str, seed: u64, ours: &[T], theirs: &[T]) {
    let only =
        |these: &[T], those: &[T]| format!("{:#?}", these.iter().filter(|x| !those.contains(x)).collect::<Vec<_>>());
    assert!(
        ours == theirs,
        "{what} of seed {seed} differ (FLEETSOCK_TEST_SEED={seed} repeats it): {} of ours, {} of ss; only ours: {}, only ss: {}",
        ours.len(),
        theirs.len(),
        only(ours, theirs),
        only(theirs, ours)
    );
}

/// Compares one random set; how many listeners it has.
fn compare(seed: u64) -> usize {
    let holders = Holders::start(seed);
    holders.enter();
    let (rows, owners) = walk();
    let waits = |row: &SocketRow| matches!(row.state, SocketState::Listen | SocketState::Unconnected);
    let (listeners, sessions): (Vec<SocketRow>, Vec<SocketRow>) = rows.into_iter().partition(waits);
    let listeners = holders.sorted(ours(&listeners, &owners));
    assert_same("listeners", seed, &listeners, &holders.sorted(oracle("-tul")));
    assert_same("sessions", seed, &holders.sorted(ours(&sessions, &owners)), &holders.sorted(oracle("-tu")));
    listeners.len()
}

/// Runs in a thread of its own: it may change its network namespace.
pub(crate) fn apart<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if found.is_err() {
        skip(&format!("there is no {program}"));
    }
    found.is_ok()
}

#[allow(clippy::print_stderr, reason = "a test that did nothing says so")]
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
}

fn seeds() -> Vec<u64> {
    if let Ok(seed) = std::env::var("FLEETSOCK_TEST_SEED") {
        return vec![seed.parse().unwrap()];
    }
    let mut bytes = [0; 4];
    File::open("/dev/urandom").unwrap().read_exact(&mut bytes).unwrap();
    let first = u64::from(u32::from_ne_bytes(bytes));
    (first..first + ROUNDS).collect()
}

#[test]
fn listeners_sessions_and_their_owners_are_those_of_ss() {
    if !has("ss") || !has("python3") {
        return;
    }
    let listeners: usize = seeds().into_iter().map(|seed| apart(move || compare(seed))).sum();
    assert!(listeners > 0, "the holders hold nothing");
}

#[test]
fn an_agent_without_privileges_sees_all_sockets_and_says_that_owners_were_denied() {
    if !rustix::process::geteuid().is_root() || !has("python3") {
        return skip("giving up root's privileges takes root");
    }
    apart(|| {
        let holders = Holders::start(2);
        holders.enter();
        let mut privileges = capabilities(None).unwrap();
        privileges.effective = CapabilitySet::empty();
        set_capabilities(None, privileges).unwrap();

        let mut rows = Vec::new();
        let netns = Walker::open().map(|mut walker| walker.walk(&mut rows).map(|_| walker.netns())).unwrap().unwrap();
        let wanted: Wanted = rows.iter().map(|row| row.inode).collect();
        let scan = Processes::open().unwrap().scan(&wanted);
        assert!(!rows.is_empty() && scan.owners.is_empty(), "{scan:?}");
        assert!(scan.denied >= holders.pids.len() as u64, "{} of {:?}", scan.denied, holders.pids);
        let facts = facts("0", netns, &Hearing::Nothing("nobody listens".to_owned()), Vec::new());
        assert_eq!(facts.tier, Tier::T0);
        assert!(facts.tier_reason.contains("no CAP_SYS_PTRACE"), "{}", facts.tier_reason);
    });
}

#[test]
fn a_walker_stays_in_the_namespace_where_it_was_opened() {
    if !rustix::process::geteuid().is_root() || !has("python3") {
        return skip("entering a network namespace takes root");
    }
    let mut here = Walker::open().unwrap();
    apart(move || {
        let holders = Holders::start(1);
        let before = here.netns();
        holders.enter();
        let mut there = Walker::open().unwrap();
        let (mut rows_here, mut rows_there) = (Vec::new(), Vec::new());
        here.walk(&mut rows_here).unwrap();
        there.walk(&mut rows_there).unwrap();
        assert_ne!(there.netns(), before);
        assert!(rows_here.iter().all(|row| row.key.netns == before));
        assert!(rows_there.iter().all(|row| row.key.netns == there.netns()));
        let cookies = |rows: &[SocketRow]| rows.iter().map(|row| row.key.cookie).collect::<BTreeSet<_>>();
        assert!(!rows_there.is_empty() && cookies(&rows_here).is_disjoint(&cookies(&rows_there)));
    });
}

#[test]
fn a_socket_keeps_its_key_from_walk_to_walk_and_tells_its_family() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let udp = std::net::UdpSocket::bind("[::1]:0").unwrap();
    let mut walker = Walker::open().unwrap();
    let mut find = || {
        let mut rows = Vec::new();
        walker.walk(&mut rows).unwrap();
        let row = |local, protocol| *rows.iter().find(|row| (row.local, row.protocol) == (local, protocol)).unwrap();
        [
            row(listener.local_addr().unwrap(), Protocol::Tcp),
            row(client.local_addr().unwrap(), Protocol::Tcp),
            row(udp.local_addr().unwrap(), Protocol::Udp),
        ]
    };
    let first = find();
    assert_eq!(first, find());
    assert!(first.iter().all(|row| row.key.cookie != 0 && row.inode != 0));
    assert_eq!(first.map(|row| row.family), [Family::Ipv4, Family::Ipv4, Family::Ipv6]);
    assert_eq!(first.map(|row| row.uid), [rustix::process::getuid().as_raw(); 3]);
    assert_eq!(first.map(|row| row.state), [SocketState::Listen, SocketState::Established, SocketState::Unconnected]);
    assert_eq!(first[1].peer, Some(listener.local_addr().unwrap()));
}

#[test]
fn multipath_tcp_is_seen_as_the_tcp_connections_that_it_is_made_of() {
    use rustix::net::{
        AddressFamily, SocketAddrV4, SocketType, accept, bind, connect, getsockname, ipproto, listen, socket,
    };
    let Ok(listener) = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)) else {
        return skip("the kernel has no multipath TCP");
    };
    bind(&listener, &SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
    listen(&listener, 1).unwrap();
    let server = SocketAddrV4::try_from(getsockname(&listener).unwrap()).unwrap();
    let client = socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::MPTCP)).unwrap();
    connect(&client, &server).unwrap();
    let accepted = accept(&listener).unwrap();
    let (rows, owners) = walk();
    let seen = |row: &&SocketRow| [row.local.port(), row.peer.map_or(0, |peer| peer.port())].contains(&server.port());
    let states: Vec<_> = rows.iter().filter(seen).map(|row| (row.protocol, row.state)).collect();
    let count = |state| states.iter().filter(|seen| **seen == (Protocol::Tcp, state)).count();
    assert_eq!((count(SocketState::Listen), count(SocketState::Established), states.len()), (1, 2, 3), "{states:?}");
    let mine = |row: &SocketRow| owners[&row.inode].contains(&std::process::id());
    assert!(rows.iter().filter(seen).all(mine), "{rows:?}");
    drop(accepted);
}
