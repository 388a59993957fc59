//! Every network namespace is found, named, walked, and let go.
//!
//! The namespaces are real; making them takes root.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    net::{TcpListener, TcpStream, UdpSocket},
    num::NonZeroU32,
    os::{
        fd::{AsFd, BorrowedFd},
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread::sleep,
    time::{Duration, Instant},
};

use fleetsock_agent::{
    capture::{
        Connections, Coverage, Extent, Occasion, SocketRow, States, SurveyReport, Surveyor, WalkReport, Walker,
        portless::{PortlessKind, Wanted, walk_portless},
    },
    namespaces::{EnterError, Findings, Namespaces, Pass},
};
use fleetsock_proto::socket::{Family, Protocol, SocketKey, SocketState};
use rustix::{
    fs::{fstat, stat},
    net::{self, AddressFamily, SocketType},
    thread::{CapabilitySet, LinkNameSpaceType, capabilities, move_into_link_name_space, set_capabilities},
};

use crate::listeners::{apart, has, skip};

/// How long the kernel or a program may take for what it does in the background.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        sleep(Duration::from_millis(5));
    }
}

/// Whether namespaces can be made here; says why not.
pub(crate) fn makes_namespaces() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("making a network namespace takes root");
        return false;
    }
    has("ip") && has("unshare")
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split_whitespace()).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// A namespace with a name, deleted at the end.
pub(crate) struct Named(pub(crate) String);

impl Named {
    pub(crate) fn new() -> Named {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("fst{}x{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        Named(name)
    }

    fn path(&self) -> PathBuf {
        ["/run/netns", &self.0].iter().collect()
    }

    pub(crate) fn netns(&self) -> u64 {
        stat(self.path()).unwrap().st_ino
    }

    /// Does something in there. What it leaves open keeps the namespace.
    pub(crate) fn within<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        apart(|| {
            let namespace = File::open(self.path()).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            run()
        })
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if self.path().exists() {
            ip(&format!("netns del {}", self.0));
        }
    }
}

/// A process, killed at the end.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[&str]) -> Running {
        Running(Command::new(program).args(arguments).stdin(Stdio::piped()).spawn().unwrap())
    }

    /// One that moved into a network namespace of its own.
    fn alone() -> Running {
        let running = Running::start("unshare", &["--net", "sleep", "1000"]);
        running.wait_until_it_sleeps();
        running
    }

    fn wait_until_it_sleeps(&self) {
        let comm = format!("/proc/{}/comm", self.0.id());
        wait_until("a process moves away and sleeps", || fs::read_to_string(&comm).is_ok_and(|comm| comm == "sleep\n"));
    }

    fn netns(&self) -> u64 {
        stat(format!("/proc/{}/ns/net", self.0.id())).unwrap().st_ino
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn found(pass: Pass) -> Namespaces {
    let mut namespaces = Namespaces::open().unwrap();
    namespaces.refresh(pass).unwrap();
    namespaces
}

fn drop_capabilities() {
    let mut privileges = capabilities(None).unwrap();
    privileges.effective = CapabilitySet::empty();
    privileges.permitted = CapabilitySet::empty();
    set_capabilities(None, privileges).unwrap();
}

#[test]
fn named_and_nameless_namespaces_are_found_and_those_that_end_vanish() {
    if !makes_namespaces() {
        return;
    }
    let (named, nameless) = (Named::new(), Running::alone());
    let mut namespaces = found(Pass::New);
    assert_eq!(namespaces.get(named.netns()).unwrap().name(), named.0);
    assert!(namespaces.get(nameless.netns()).is_some());
    assert!(namespaces.get(namespaces.own()).is_none());
    let later = Named::new();
    namespaces.refresh(Pass::New).unwrap();
    assert_eq!(namespaces.get(later.netns()).unwrap().name(), later.0);

    let gone = BTreeSet::from([named.netns(), nameless.netns(), later.netns()]);
    drop((named, nameless, later));
    let vanished: BTreeSet<u64> = namespaces.refresh(Pass::New).unwrap().vanished.iter().copied().collect();
    assert!(vanished.is_superset(&gone), "{vanished:?}, {gone:?}");
    assert!(namespaces.iter().all(|namespace| !gone.contains(&namespace.netns())));
}

/// A control group, removed at the end.
struct ControlGroup(PathBuf);

impl ControlGroup {
    /// Somewhere in the first hierarchy that can be written to.
    fn new(name: &str) -> Option<ControlGroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folders = mounts.lines().filter(|line| line.contains(" - cgroup"));
        folders.filter_map(|line| line.split(' ').nth(4)).find_map(|folder| {
            let group = PathBuf::from(folder).join(name);
            let made = fs::create_dir(&group).map(|()| ControlGroup(group)).ok()?;
            made.0.join("cgroup.procs").exists().then_some(made)
        })
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        wait_until("a control group is empty", || fs::remove_dir(&self.0).is_ok());
    }
}

#[test]
fn a_nameless_namespace_is_called_after_the_container_in_it() {
    if !makes_namespaces() {
        return;
    }
    let id =
        format!("{:064x}", 0xf1ee_7000_0000_0000_u64 + u64::from(std::process::id())).replace("00000000", "a1b2c3d4");
    let Some(group) = ControlGroup::new(&id) else { return skip("there are no control groups to put a process into") };
    let container = Running::alone();
    let pid = container.0.id().to_string();
    if fs::write(group.0.join("cgroup.procs"), &pid).is_err() {
        return skip("a control group takes no process");
    }
    assert_eq!(found(Pass::New).get(container.netns()).unwrap().name(), &id[..12]);
}

#[test]
fn a_process_that_moves_later_is_found_when_all_are_looked_at() {
    if !makes_namespaces() {
        return;
    }
    let mut mover = Running::start("sh", &["-c", "read line; exec unshare --net sleep 1000"]);
    let mut namespaces = found(Pass::New);
    namespaces.refresh(Pass::New).unwrap();
    drop(mover.0.stdin.take());
    mover.wait_until_it_sleeps();
    assert_ne!(mover.netns(), namespaces.own());
    namespaces.refresh(Pass::All).unwrap();
    assert!(namespaces.get(mover.netns()).is_some());
}

/// Sockets in a namespace.
struct Sockets {
    _listener: TcpListener,
    _udp: UdpSocket,
    _connection: Option<(TcpStream, TcpStream)>,
}

impl Sockets {
    fn open(connect: Coverage) -> Sockets {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connection = (connect == Coverage::Everything).then(|| {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        });
        Sockets { _listener: listener, _udp: UdpSocket::bind("[::1]:0").unwrap(), _connection: connection }
    }
}

fn survey(extent: Extent) -> (Vec<SocketRow>, SurveyReport) {
    let mut rows = Vec::new();
    let report = Surveyor::open().unwrap().survey(&found(Pass::New), extent, &mut rows);
    (rows, report)
}

fn of(rows: &[SocketRow], netns: u64) -> Vec<SocketRow> {
    let mut rows: Vec<SocketRow> = rows.iter().filter(|row| row.key.netns == netns).copied().collect();
    rows.sort_by_key(|row| row.key);
    rows
}

#[test]
fn a_survey_shows_of_each_namespace_what_a_walker_in_it_sees() {
    if !makes_namespaces() {
        return;
    }
    let (busy, idle, empty) = (Named::new(), Named::new(), Named::new());
    let _sockets =
        [busy.within(|| Sockets::open(Coverage::Everything)), idle.within(|| Sockets::open(Coverage::Listeners))];
    let before = stat("/proc/thread-self/ns/net").unwrap().st_ino;
    let everything = Extent { home: Coverage::Everything, foreign: Coverage::Everything, states: States::Followed };
    for (extent, sees_connections) in
        [(Extent::of(Occasion::Steady, Connections::FromEvents), false), (everything, true)]
    {
        let (rows, report) = survey(extent);
        assert!(report.stranded.is_none());
        for (namespace, sockets) in [(&busy, 4), (&idle, 2), (&empty, 0)] {
            let netns = namespace.netns();
            let mut walked = Vec::new();
            namespace.within(|| {
                let mut walker = Walker::open().unwrap();
                match extent.foreign {
                    Coverage::Everything => walker.walk(&mut walked).unwrap(),
                    Coverage::Listeners => walker.walk_listeners(&mut walked).unwrap(),
                };
            });
            let sockets = if sees_connections { sockets } else { sockets.min(2) };
            assert_eq!(of(&rows, netns), of(&walked, netns), "{extent:?}");
            assert_eq!(of(&rows, netns).len(), sockets, "{extent:?}");
            assert_eq!(report.walked[&netns].report, WalkReport::default());
            let shows = |protocol, state| report.would_show(netns, protocol, state);
            assert!(shows(Protocol::Tcp, SocketState::Listen) && shows(Protocol::Udp, SocketState::Unconnected));
            assert_eq!(shows(Protocol::Tcp, SocketState::Established), sees_connections);
        }
    }
    assert_eq!(stat("/proc/thread-self/ns/net").unwrap().st_ino, before);
}

#[test]
fn a_namespace_is_freed_when_it_is_deleted_though_the_surveyor_goes_on() {
    if !makes_namespaces() {
        return;
    }
    let named = Named::new();
    let peer = format!("v{}", named.0);
    // Names of interfaces have at most 15 characters.
    let peer = &peer[peer.len().saturating_sub(15)..];
    ip(&format!("link add {peer} type veth peer name eth0 netns {}", named.0));
    let mut namespaces = found(Pass::New);
    let (mut surveyor, mut rows) = (Surveyor::open().unwrap(), Vec::new());
    let everything = Extent::of(Occasion::Referee, Connections::FromEvents);
    let report = surveyor.survey(&namespaces, everything, &mut rows);
    let netns = named.netns();
    assert!(report.walked.contains_key(&netns));

    drop(named);
    let is_there = || Command::new("ip").args(["link", "show", "dev", peer]).output().unwrap().status.success();
    wait_until("the peer of a deleted namespace's interface disappears", || !is_there());
    let report = surveyor.survey(&namespaces, everything, &mut rows);
    let gone = report.failed.iter().find(|(failed, _)| *failed == netns).map(|(_, error)| error.is_gone());
    assert_eq!(gone, Some(true), "{:?}", report.failed);
    assert!(namespaces.refresh(Pass::New).unwrap().vanished.contains(&netns));
}

#[test]
fn a_way_that_leads_elsewhere_by_now_is_not_taken() {
    if !makes_namespaces() {
        return;
    }
    let first = Named::new();
    let namespaces = found(Pass::New);
    let netns = first.netns();
    ip(&format!("netns del {}", first.0));
    ip(&format!("netns add {}", first.0));
    if first.netns() == netns {
        return skip("the kernel used the inode number again");
    }
    let entered = namespaces.visit(|visitor| visitor.enter(namespaces.get(netns).unwrap())).unwrap();
    assert_eq!(entered, Err(EnterError::Gone { netns }));
}

#[test]
fn without_the_privilege_to_enter_others_the_own_namespace_is_walked_and_the_others_are_told() {
    if !makes_namespaces() {
        return;
    }
    let named = Named::new();
    apart(|| {
        drop_capabilities();
        let _listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let namespaces = found(Pass::New);
        assert_eq!(namespaces.get(named.netns()).unwrap().name(), named.0);
        let unseen = namespaces.unseen().unwrap();
        assert!(unseen.starts_with("no CAP_SYS_ADMIN: sockets of ") && unseen.contains(" are not seen"), "{unseen}");

        let mut rows = Vec::new();
        let extent = Extent::of(Occasion::Referee, Connections::FromWalks);
        let report = Surveyor::open().unwrap().survey(&namespaces, extent, &mut rows);
        assert_eq!(report.walked.keys().copied().collect::<Vec<_>>(), [namespaces.own()]);
        assert!(report.failed.iter().any(|(netns, error)| *netns == named.netns() && error.is_denied()));
        assert!(!rows.is_empty() && rows.iter().all(|row| row.key.netns == namespaces.own()));
    });
}

#[test]
fn raw_and_packet_sockets_are_listed_without_privileges() {
    if !makes_namespaces() {
        return;
    }
    Named::new().within(|| {
        let open = |family, kind, protocol: Option<u16>| {
            let protocol = protocol.and_then(|number| NonZeroU32::new(number.into())).map(net::Protocol::from_raw);
            net::socket(family, kind, protocol).unwrap()
        };
        let icmp = open(AddressFamily::INET, SocketType::RAW, Some(1));
        let icmp6 = open(AddressFamily::INET6, SocketType::RAW, Some(58));
        let frames = open(AddressFamily::PACKET, SocketType::DGRAM, Some(0x0800_u16.to_be()));
        let abstract_name = format!("fleetsock-{}", std::process::id());
        let unix = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&abstract_name).unwrap()).unwrap();
        drop_capabilities();

        let mut rows = Vec::new();
        assert_eq!(walk_portless(Wanted::All, &mut rows), Ok(WalkReport::default()));
        let kind = |socket: BorrowedFd<'_>| {
            let inode = fstat(socket).unwrap().st_ino;
            rows.iter().find(|row| row.inode == inode).unwrap().kind.clone()
        };
        let raw = |family, protocol, local: &str| PortlessKind::Raw {
            family,
            protocol,
            local: local.parse().unwrap(),
            peer: None,
        };
        assert_eq!(kind(icmp.as_fd()), raw(Family::Ipv4, 1, "0.0.0.0"));
        assert_eq!(kind(icmp6.as_fd()), raw(Family::Ipv6, 58, "::"));
        assert_eq!(kind(frames.as_fd()), PortlessKind::Packet { ethertype: 0x0800, interface: None });
        assert_eq!(kind(unix.as_fd()), PortlessKind::Unix { kind: 1, name: format!("@{abstract_name}") });
        let keys: BTreeSet<SocketKey> = rows.iter().map(|row| row.key).collect();
        assert_eq!(keys.len(), rows.len());

        walk_portless(Wanted::Network, &mut rows).unwrap();
        assert_eq!(rows.len(), 3);
    });
}

#[test]
fn a_host_without_privileges_is_looked_at_without_failing() {
    let mut namespaces = Namespaces::open().unwrap();
    let findings: Findings = namespaces.refresh(Pass::All).unwrap().clone();
    assert_eq!((findings.overflow, findings.mounts_cut, findings.vanished.as_slice()), (0, 0, &[][..]));
}
