//! What an agent may see decides what it reports, and it says so: as nobody, with two capabilities, with three, as root.
//!
//! The agents are real processes, started with the privileges of their tier. That takes root.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use fleetsock_agent::owners::Holdings;
use fleetsock_proto::{
    host::{HostFacts, Tier},
    session::Session,
    socket::{Direction, Known, OwnerKnown},
};
use tokio::sync::RwLock;

use crate::{
    connecting::Connecting,
    fleet::{Fleet, until},
    listeners::{has, skip},
    namespaces::{Named, makes_namespaces},
    tellers::BY_BUFFERS,
};

const NOBODY: &str = "65534";

/// Bits of the capabilities (include/uapi/linux/capability.h).
pub(crate) const DAC_READ_SEARCH: u64 = 1 << 2;
pub(crate) const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;

/// Connections that no walk sees.
const SHORT: usize = 50;

/// Taken by whoever must hear by perf, and alone by the test that makes all deaf who do.
pub(crate) static HEARING: RwLock<()> = RwLock::const_new(());

/// An agent with these capabilities, as nobody, or as root without any saying.
pub(crate) struct Agent {
    pub(crate) child: Child,
    folder: tempfile::TempDir,
}

impl Agent {
    pub(crate) async fn start(fleet: &Fleet, capabilities: Option<&[&str]>, settings: &str) -> Agent {
        Agent::start_with(fleet, capabilities, settings, &[]).await
    }

    /// The same with further arguments of `run`.
    pub(crate) async fn start_with(
        fleet: &Fleet,
        capabilities: Option<&[&str]>,
        settings: &str,
        arguments: &[&str],
    ) -> Agent {
        // Where nobody can get to.
        let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o711)).tempdir().unwrap();
        let state = folder.path().join("state");
        fs::rename(fleet.enrol("web1").await, &state).unwrap();
        fs::write(state.join("agent.toml"), format!("{settings}\n")).unwrap();
        let mut command = match capabilities {
            Some(capabilities) => {
                run("chown", &["-R", &format!("{NOBODY}:{NOBODY}"), &state.display().to_string()]);
                as_nobody(capabilities)
            }
            None => Command::new(binary(&folder)),
        };
        if capabilities.is_some() {
            command.arg(binary(&folder));
        }
        command.args(["run", "--name", "web1", "--state"]).arg(&state).args(arguments);
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = command.env_remove("NOTIFY_SOCKET").env("FLEETSOCK_LOG", "info").stderr(log).spawn().unwrap();
        Agent { child, folder }
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    /// The capabilities of its threads.
    pub(crate) fn capabilities(&self) -> BTreeSet<u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let sets = threads.flat_map(|thread| {
            let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
            let set =
                |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim).map(hexadecimal);
            ["CapPrm:", "CapEff:"].into_iter().filter_map(set).collect::<Vec<_>>()
        });
        sets.collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn hexadecimal(digits: &str) -> u64 {
    u64::from_str_radix(digits, 16).unwrap()
}

pub(crate) fn run(program: &str, arguments: &[&str]) {
    assert!(Command::new(program).args(arguments).status().unwrap().success(), "{program} {arguments:?}");
}

/// A copy that nobody can run, wherever the build is. Made by another process: a file that this one has open for writing
/// cannot be run as long as a child of another test has inherited it.
fn binary(folder: &tempfile::TempDir) -> PathBuf {
    let copy = folder.path().join("fleetsock-agent");
    if !copy.exists() {
        run("cp", &[env!("CARGO_BIN_EXE_fleetsock-agent"), &copy.display().to_string()]);
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    copy
}

fn as_nobody(capabilities: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]);
    let list: Vec<String> = capabilities.iter().map(|name| format!("+{name}")).collect();
    match list.is_empty() {
        true => command.args(["--inh-caps", "-all", "--bounding-set", "-all"]),
        false => command.args(["--inh-caps", &list.join(","), "--ambient-caps", &list.join(",")]),
    };
    command
}

pub(crate) fn makes_tiers() -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("giving up and handing out privileges takes root");
        return false;
    }
    has("setpriv") && has("python3")
}

/// Whether the kernel lets an agent with the privileges of T2 hear events; mounts what describes them.
pub(crate) fn has_events() -> bool {
    let tracefs = Path::new("/sys/kernel/tracing");
    if !tracefs.join("events").exists() {
        let mounted = Command::new("mount").args(["-t", "tracefs", "none"]).arg(tracefs).status();
        if !mounted.is_ok_and(|status| status.success()) {
            skip("tracefs cannot be mounted");
            return false;
        }
    }
    let has = ["sock/inet_sock_set_state", "tcp/tcp_destroy_sock"]
        .iter()
        .all(|name| tracefs.join("events").join(name).exists());
    if !has {
        skip("this kernel has no such tracepoints");
    }
    has
}

/// Both ends of all of its short connections, when they are known to be over.
async fn over(fleet: &Fleet, load: &mut Connecting) -> Vec<Session> {
    load.connect(SHORT);
    until("all short connections are known", async || {
        let mut sessions = fleet.sessions(load.port).await;
        sessions.retain(|session| session.closed.is_some());
        (sessions.len() >= 2 * SHORT).then_some(sessions)
    })
    .await
}

struct Seen {
    facts: HostFacts,
    fleet: Fleet,
    agent: Agent,
    load: Connecting,
    listener_known: OwnerKnown,
}

/// What an agent of a tier says of itself, and of a listener of root.
async fn see(capabilities: Option<&[&str]>, settings: &str) -> Seen {
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet, capabilities, settings).await;
    let facts = fleet.facts().await;
    let load = Connecting::start();
    let row = until("a listener of root is seen", async || fleet.listener(load.port).await).await;
    if row.owner_known == OwnerKnown::Exact {
        assert_eq!((row.owners[0].pid, row.owners[0].user.as_str()), (load.pid(), "root"));
    }
    let listener_known = row.owner_known;
    Seen { facts, fleet, agent, load, listener_known }
}

/// Whether this kernel refuses events to whoever lacks CAP_PERFMON.
pub(crate) fn refuses_events() -> bool {
    let paranoid = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    paranoid.trim().parse::<i32>().is_ok_and(|paranoid| paranoid >= 0)
}

/// Without events the ends of connections are known, and what went over them.
fn check_ends(sessions: &[Session]) {
    assert_eq!(sessions.len(), 2 * SHORT);
    for session in sessions {
        let (_, closed_known) = session.closed.unwrap();
        assert_eq!((session.opened_known, closed_known), (Known::BetweenWalks, Known::Event), "{session:?}");
    }
    for direction in [Direction::In, Direction::Out] {
        assert_eq!(sessions.iter().filter(|session| session.direction == direction).count(), SHORT);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sees_all_sockets_and_their_ends_and_no_owners_but_its_own() {
    if !makes_tiers() {
        return;
    }
    let Seen { facts, fleet, agent, mut load, listener_known } = see(Some(&[]), "walk_ms = 200").await;
    assert_eq!((facts.tier, listener_known), (Tier::T0, OwnerKnown::Denied), "{}", agent.log());
    for reason in [
        "no CAP_SYS_PTRACE and no CAP_DAC_READ_SEARCH: owners of sockets of users other than uid 65534 are not seen",
        "no events: of connections that live between two walks only the end is seen",
    ] {
        assert!(facts.tier_reason.contains(reason), "{}", facts.tier_reason);
    }
    assert_eq!(agent.capabilities(), BTreeSet::from([0]));
    let sessions = over(&fleet, &mut load).await;
    check_ends(&sessions);
    assert!(sessions.iter().all(|session| session.owner_known == OwnerKnown::Unknown), "{:?}", sessions[0]);
    let pid = agent.child.id();
    until("its own connection to the server", async || {
        let (rows, _) = fleet.local().await.list_sessions(Default::default()).await.unwrap().collect().await.unwrap();
        rows.into_iter().find(|row| row.owner_known == OwnerKnown::Exact && row.owners[0].pid == pid)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_capabilities_show_all_owners_and_the_ends_of_short_connections() {
    if !makes_tiers() || !refuses_events() {
        return;
    }
    let capabilities = ["sys_ptrace", "dac_read_search"];
    let Seen { facts, fleet, agent, mut load, listener_known } = see(Some(&capabilities), "walk_ms = 200").await;
    assert_eq!((facts.tier, listener_known), (Tier::T1, OwnerKnown::Exact), "{}", agent.log());
    assert!(facts.tier_reason.contains("no events: of connections"), "{}", facts.tier_reason);
    assert!(!facts.tier_reason.contains("owners of"), "{}", facts.tier_reason);
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH]));
    let sessions = over(&fleet, &mut load).await;
    check_ends(&sessions);
    for session in &sessions {
        // Nobody saw who connected; who accepted is whoever listened.
        let expected = if session.direction == Direction::In { OwnerKnown::Listener } else { OwnerKnown::Unknown };
        assert!([expected, OwnerKnown::Exact].contains(&session.owner_known), "{session:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_capabilities_show_every_connection_with_its_process() {
    if !makes_tiers() || !has_events() || !makes_namespaces() {
        return;
    }
    let _hears = HEARING.read().await;
    let _other = Named::new();
    let capabilities = ["sys_ptrace", "dac_read_search", "perfmon"];
    let Seen { facts, fleet, agent, mut load, listener_known } = see(Some(&capabilities), "walk_ms = 200").await;
    assert_eq!((facts.tier, listener_known), (Tier::T2, OwnerKnown::Exact), "{} {}", facts.tier_reason, agent.log());
    assert!(facts.tier_reason.starts_with("no CAP_SYS_ADMIN: sockets of "), "{}", facts.tier_reason);
    assert!(!facts.tier_reason.contains("no events"), "{}", facts.tier_reason);
    assert!(facts.tier_reason.contains("connections are heard by perf, and not at all while"), "{}", facts.tier_reason);
    let by_proc = "owners are read from /proc, which takes several times the CPU (no CAP_BPF)";
    assert!(facts.tier_reason.contains(by_proc) && agent.log().contains(by_proc), "{}", facts.tier_reason);
    // The third was needed to begin to listen.
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH]));
    check_lives(&over(&fleet, &mut load).await, load.pid());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_capability_has_the_kernel_tell_who_holds_sockets_and_is_given_up_as_well() {
    if !makes_tiers() || !has_events() {
        return;
    }
    if let Err(error) = Holdings::open() {
        return skip(&format!("the kernel does not tell who holds sockets: {error}"));
    }
    let _hears = HEARING.read().await;
    let capabilities = ["sys_ptrace", "dac_read_search", "perfmon", "bpf"];
    let Seen { facts, agent, listener_known, .. } = see(Some(&capabilities), "walk_ms = 200").await;
    assert_eq!((facts.tier, listener_known), (Tier::T2, OwnerKnown::Exact), "{} {}", facts.tier_reason, agent.log());
    assert!(agent.log().contains("the kernel tells who holds sockets"), "{}", agent.log());
    // Linux before 5.19 tells only whoever keeps the fourth.
    let refused = agent.log().contains("the kernel does not tell who holds sockets");
    assert_eq!(facts.tier_reason.contains("/proc"), refused, "{}", facts.tier_reason);
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH]));
}

fn check_lives(sessions: &[Session], pid: u32) {
    assert_eq!(sessions.len(), 2 * SHORT);
    for session in sessions {
        assert_eq!((session.opened_known, session.closed.unwrap().1), (Known::Event, Known::Event));
        assert!([OwnerKnown::Exact, OwnerKnown::Closer].contains(&session.owner_known), "{session:?}");
        assert_eq!(session.owners[0].pid, pid, "{session:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_keeps_what_it_needs_and_sees_other_namespaces() {
    if !makes_tiers() || !has_events() || !makes_namespaces() {
        return;
    }
    let other = Named::new();
    let Seen { facts, fleet, agent, mut load, listener_known } = see(None, "walk_ms = 200").await;
    assert_eq!((facts.tier, listener_known), (Tier::T2, OwnerKnown::Exact), "{} {}", facts.tier_reason, agent.log());
    // Not more than: a process may be out of reach even for root.
    let by_perf = if agent.log().contains(BY_BUFFERS) { "by perf" } else { "no events" };
    for reason in ["CAP_", "no events", "are not seen;", by_perf] {
        assert!(!facts.tier_reason.contains(reason), "{}", facts.tier_reason);
    }
    assert_eq!(Holdings::open().is_err(), facts.tier_reason.contains("owners are read from /proc"));
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH | SYS_ADMIN]));
    check_lives(&over(&fleet, &mut load).await, load.pid());
    let there = other.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let port = there.local_addr().unwrap().port();
    let row = until("a listener elsewhere is seen", async || fleet.listener(port).await).await;
    assert_eq!((row.netns, row.owners[0].pid), (other.netns(), std::process::id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn root_that_is_to_stay_in_its_namespace_keeps_less_and_tells_of_no_other() {
    if !makes_tiers() || !makes_namespaces() {
        return;
    }
    let other = Named::new();
    let there = other.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let Seen { fleet, agent, .. } = see(None, "walk_ms = 200\nnamespaces = \"own\"").await;
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH]));
    assert!(fleet.listener(there.local_addr().unwrap().port()).await.is_none());
}
