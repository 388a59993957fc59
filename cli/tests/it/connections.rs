//! No connection is missed: thousands that live for less than a millisecond, counted in fleetctl's answer.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    fleet::Fleet,
    network::{Network, until},
};

/// In `fork` each connection is served by a process of its own. In `exec` a program makes five connections, and in `exec-one`
/// a single one.
const MODES: [&str; 10] = [
    "client-first",
    "server-first",
    "client-reset",
    "server-reset",
    "fork",
    "exec",
    "exec-one",
    "ipv6",
    "mapped",
    "hold",
];

/// Where the first mode listens, below what `ip_local_port_range` begins with.
const FIRST_PORT: u16 = 4500;

/// A program without a library, at a fixed place and in one piece, so that little is to be mapped and nothing to be linked.
const BARE: [&str; 6] = ["-Os", "-nostdlib", "-no-pie", "-fno-pie", "-fno-stack-protector", "-Wl,-z,noseparate-code"];

/// Connections of each mode: enough to fill rings, few enough for every day. FLEETSOCK_LONG=1 makes 40,000.
fn count() -> usize {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { 40_000 } else { 500 }
}

/// The modes that are made: all, or those that FLEETSOCK_MODES names (`fork,exec`).
fn modes() -> Vec<&'static str> {
    let Some(wanted) = std::env::var_os("FLEETSOCK_MODES") else { return MODES.to_vec() };
    let wanted = wanted.into_string().unwrap();
    let known = |name: &str| MODES.into_iter().find(|mode| *mode == name).unwrap_or_else(|| panic!("no mode `{name}`"));
    wanted.split(',').map(known).collect()
}

/// What makes the connections: the program that is told how many, and the one that is forked and executed for them.
struct Load {
    program: PathBuf,
    bare: PathBuf,
}

impl Load {
    /// Builds it, with the C compiler that SQLite is built with.
    fn build(folder: &Path) -> Load {
        let build = |name: &str, options: &[&str]| {
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/it/{name}.c"));
            let program = folder.join(name);
            let built = Command::new("cc").arg("-static").args(options).arg("-o").args([&program, &source]).status();
            assert!(built.unwrap().success(), "cc builds {name}");
            program
        };
        Load { program: build("connections", &["-O2"]), bare: build("bare", &BARE) }
    }

    /// Makes the connections of a mode on a host, and tells of them.
    fn run(&self, network: &Network, mode: &str, port: &str, count: usize) -> Value {
        let mut command = network.command("web1", &self.program);
        let ran = command.args([mode, port, &count.to_string(), "10000"]).arg(&self.bare).output().unwrap();
        assert!(ran.status.success(), "{mode}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap()
    }
}

fn pids(run: &Value, side: &str) -> BTreeSet<u64> {
    run[side].as_array().unwrap().iter().map(|pid| pid.as_u64().unwrap()).collect()
}

/// Sessions with the pair and the namespace of another one.
fn told_twice(sessions: &[Value]) -> Vec<&Value> {
    let pair = |session: &Value| ["netns", "local_port", "peer_port"].map(|field| session[field].as_u64());
    let mut by_pair: HashMap<_, Vec<&Value>> = HashMap::new();
    for session in sessions {
        by_pair.entry(pair(session)).or_default().push(session);
    }
    by_pair.into_values().filter(|alike| alike.len() > 1).flatten().take(6).collect()
}

/// Sessions at both ends of which one end is told less often than the other, some of them, in short.
fn alone(sessions: &[Value]) -> Vec<String> {
    let ports = |session: &Value, fields: [&str; 2]| fields.map(|field| session[field].as_u64());
    let mut ends: HashMap<_, usize> = HashMap::new();
    for session in sessions {
        *ends.entry(ports(session, ["local_port", "peer_port"])).or_default() += 1;
    }
    let told = |pair| ends.get(&pair).copied().unwrap_or(0);
    let is_alone = |session: &&Value| {
        told(ports(session, ["peer_port", "local_port"])) != told(ports(session, ["local_port", "peer_port"]))
    };
    let fields = [
        "direction",
        "local_port",
        "peer_port",
        "netns",
        "pid",
        "opened_at",
        "opened_known",
        "closed_at",
        "closed_known",
    ];
    let short = |session: &Value| fields.map(|field| session[field].to_string()).join(" ");
    sessions.iter().filter(is_alone).map(short).take(24).collect()
}

#[test]
fn every_short_connection_is_known_at_both_ends_with_its_process_and_direction() {
    // Of all namespaces: that of a process which is gone at once is not always known.
    let Some(fleet) = Fleet::start_with(&["server", "web1"], "namespaces = \"all\"") else { return };
    let (hosts, _) = fleet.items(&["hosts"]);
    if hosts[0]["tier"] != "T2" {
        eprintln!("skipped: the agent does not hear events here: {}", hosts[0]["tier_reason"]);
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let load = Load::build(folder.path());
    let count = count();
    // Ports that the kernel gives to nobody, neither to who listens in another mode nor to who connects.
    for (mode, port) in modes().into_iter().zip(FIRST_PORT..) {
        let port = port.to_string();
        let run = load.run(&fleet.network, mode, &port, count);
        eprintln!("{mode}: {count} connections, {} per second", run["per_second"]);

        // The agent looks into all namespaces, also into those of other tests.
        let of_this_test = |session: &Value| [&Value::from(0), &hosts[0]["netns"]].contains(&&session["netns"]);
        let ask = || {
            let mut sessions = fleet.items(&["sessions", "--since", "1h", "--port", &port]).0;
            sessions.retain(of_this_test);
            sessions
        };
        let mut before = (0, 0);
        let sessions = until("all sessions are known", || {
            let sessions = ask();
            let over = sessions.iter().filter(|session| !session["closed_at"].is_null()).count();
            if before != (sessions.len(), over) {
                before = (sessions.len(), over);
                let losses = &fleet.items(&["hosts"]).0[0]["losses"];
                let (known, all) = (sessions.len(), 2 * count);
                eprintln!("{mode}: {known} sessions known of {all}, {over} of them over, {losses} losses");
                if known < all && all - known < 10 {
                    eprintln!("{mode}: without their other ends: {:#?}", alone(&sessions));
                }
            }
            (over >= 2 * count).then_some(sessions)
        });
        let twice = told_twice(&sessions);
        assert_eq!(sessions.len(), 2 * count, "{mode}: {twice:#?}");
        let mut ends: HashMap<&str, u64> = HashMap::new();
        let mut unheard = 0;
        let (clients, servers) = (pids(&run, "clients"), pids(&run, "servers"));
        for session in &sessions {
            let direction = session["direction"].as_str().unwrap();
            *ends.entry(direction).or_default() += 1;
            let (right, known) = if direction == "out" { (&clients, "exact") } else { (&servers, "closer") };
            let pid = session["pid"].as_u64().unwrap_or(0);
            assert!(
                right.contains(&pid),
                "{mode}: {session} has not the process that made it; {}; {}",
                fleet.items(&["hosts"]).0[0],
                fleet.log("web1")
            );
            // A walk can have come by while it was open, and then knows its holder.
            assert!([known, "exact"].contains(&session["owner_known"].as_str().unwrap()), "{mode}: {session}");
            let times = [&session["opened_known"], &session["closed_known"]];
            unheard += times.into_iter().filter(|known| *known != "event").count();
        }
        assert_eq!((ends["in"], ends["out"]), (count as u64, count as u64), "{mode}");
        if unheard > 0 {
            // Some kernels leave records out: what walks found out instead is counted as lost.
            let counted = || fleet.items(&["hosts"]).0[0]["losses"].as_u64().filter(|losses| *losses > 0);
            let losses = until("what was not heard is counted as lost", counted);
            eprintln!("{mode}: {unheard} moments known by walks only, {losses} losses so far");
        }
    }
}

#[test]
fn a_pair_that_is_used_again_and_again_is_as_many_sessions_as_there_were() {
    let Some(fleet) = Fleet::start_with(&["server", "web1"], "namespaces = \"all\"") else { return };
    if fleet.items(&["hosts"]).0[0]["tier"] != "T2" {
        eprintln!("skipped: the agent does not hear events here");
        return;
    }
    // Reset by the client, so that the port is free at once.
    let text = "
import socket, struct
l = socket.socket(); l.bind(('127.0.0.1', 4000)); l.listen(64)
for _ in range(2000):
    c = socket.socket(); c.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    c.bind(('127.0.0.1', 4001)); c.connect(('127.0.0.1', 4000))
    s, _ = l.accept()
    c.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0)); c.close(); s.close()
";
    let ran = fleet.network.command("web1", "python3").args(["-c", text]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let sessions = until("all are known", || {
        let sessions = fleet.items(&["sessions", "--since", "1h", "--port", "4000"]).0;
        (sessions.len() >= 4000).then_some(sessions)
    });
    assert_eq!(sessions.len(), 4000);
    assert!(sessions.iter().all(|session| session["process"] == "python3" && !session["closed_at"].is_null()));
}
