//! The history beside others that watched the same traffic of real programs: `conntrack -E`, which sees packets, the logs of
//! the servers themselves, and in `hearers` `tcplife`, which hears of sockets. All must have the same rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use serde_json::Value;

use self::{
    programs::{Programs, Served},
    referees::{Conntrack, Flow, Watched},
    scope::{HOSTS, LAST, Scope},
};
use crate::{
    fleet::{Fleet, listening},
    network::until,
};

mod hearers;
mod programs;
mod referees;
mod scope;

/// How far the history's moments may be from those of conntrack, which takes the time when it reads of a packet, seconds.
const MOMENT_S: f64 = 0.5;

/// Rounds of traffic, of some 3 s each.
fn times() -> u32 {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { 10 } else { 1 }
}

/// A session of the history.
#[derive(Debug)]
struct Session {
    host: String,
    local: SocketAddr,
    peer: SocketAddr,
    direction: String,
    pid: u32,
    process: String,
    opened: f64,
    closed: f64,
    lasted_ms: f64,
    /// How many of its two moments events told.
    heard: usize,
}

/// Seconds since 1970.
fn moment(told: &Value) -> f64 {
    let moment: jiff::Timestamp = told.as_str().unwrap_or_else(|| panic!("{told} is no moment")).parse().unwrap();
    moment.as_microsecond() as f64 / 1e6
}

fn session(told: &Value) -> Session {
    let text = |field: &str| told[field].as_str().unwrap_or_default().to_owned();
    let end = |which: &str| {
        let address: IpAddr = text(&format!("{which}_address")).parse().unwrap();
        let port = u16::try_from(told[format!("{which}_port")].as_u64().unwrap()).unwrap();
        SocketAddr::new(address.to_canonical(), port)
    };
    Session {
        host: text("host"),
        local: end("local"),
        peer: end("peer"),
        direction: text("direction"),
        pid: told["pid"].as_u64().map_or(0, |pid| u32::try_from(pid).unwrap()),
        process: text("process"),
        opened: moment(&told["opened_at"]),
        closed: moment(&told["closed_at"]),
        lasted_ms: told["duration_ms"].as_f64().unwrap(),
        heard: ["opened_known", "closed_known"].into_iter().filter(|known| told[*known] == "event").count(),
    }
}

/// All of the traffic, when it is over and delivered.
fn history(fleet: &Fleet, scope: &Scope) -> Vec<Session> {
    let _last = HOSTS.map(|host| fleet.network.python(host, &listening(&[("tcp", LAST)])));
    let port = LAST.to_string();
    until("what came after the traffic is known", || {
        let told = fleet.items(&["ports", "--port", &port]).0;
        HOSTS.iter().all(|host| told.iter().any(|listener| listener["host"] == *host)).then_some(())
    });
    let sessions = until("all is over", || {
        let ask = |network: &String| fleet.items(&["sessions", "--since", "1h", "--peer", network]).0;
        let sessions: Vec<Value> = scope.networks().iter().flat_map(ask).collect();
        sessions.iter().all(|session| !session["closed_at"].is_null()).then_some(sessions)
    });
    let mut sessions: Vec<Session> = sessions.iter().map(session).collect();
    // Each agent looks into all namespaces, also into those of the other two.
    let is_its_own = |session: &Session| scope.host(session.local.ip()) == Some(session.host.as_str());
    sessions.retain(|session| is_its_own(session) && scope.has([session.local, session.peer]));
    // A pair is used again after a second.
    sessions.sort_by(|one, other| one.opened.total_cmp(&other.opened));
    sessions
}

/// Rows with the same key, in order, side by side; and those that only one has.
fn side_by_side<'a, K: Ord, A, B>(
    ours: &'a [A],
    theirs: &'a [B],
    key: impl Fn(&A) -> K,
    other: impl Fn(&B) -> Vec<K>,
) -> (Vec<(&'a A, &'a B)>, Vec<&'a A>, Vec<&'a B>) {
    let mut by_key: BTreeMap<K, (Vec<&A>, Vec<&B>)> = BTreeMap::new();
    ours.iter().for_each(|row| by_key.entry(key(row)).or_default().0.push(row));
    for row in theirs {
        other(row).into_iter().for_each(|key| by_key.entry(key).or_default().1.push(row));
    }
    let (mut both, mut only_ours, mut only_theirs) = (Vec::new(), Vec::new(), Vec::new());
    for (ours, theirs) in by_key.into_values() {
        let common = ours.len().min(theirs.len());
        only_ours.extend(&ours[common..]);
        only_theirs.extend(&theirs[common..]);
        both.extend(ours.into_iter().zip(theirs));
    }
    (both, only_ours, only_theirs)
}

/// What is not the same, of which each is printed.
#[derive(Default)]
struct Differences(Vec<String>);

impl Differences {
    fn add(&mut self, what: &str, rows: impl std::fmt::Debug) {
        self.0.push(format!("{what}: {rows:?}"));
    }

    fn rows<A: std::fmt::Debug, B: std::fmt::Debug>(&mut self, referee: &str, ours: &[&A], theirs: &[&B]) {
        ours.iter().for_each(|row| self.add(&format!("{referee} has it not"), row));
        theirs.iter().for_each(|row| self.add(&format!("only {referee} has it"), row));
    }
}

/// Each connection of conntrack is a session at that host, or two where both ends are; and the other way round. What nobody
/// accepted, as the packets show, is one of the host that tried.
fn beside_conntrack(sessions: &[Session], watched: Watched, scope: &Scope, differences: &mut Differences) {
    let Watched { host, flows, missed } = watched;
    let sessions: Vec<&Session> = sessions.iter().filter(|session| session.host == host).collect();
    let ends = |flow: &Flow| {
        let out = (flow.host, "out", flow.client, flow.server);
        let inward = (flow.host, "in", flow.server, flow.client);
        let is_here = |end: SocketAddr| scope.host(end.ip()) == Some(flow.host);
        let out = is_here(flow.client).then_some(out);
        let inward = (is_here(flow.server) && flow.is_established).then_some(inward);
        out.into_iter().chain(inward).collect()
    };
    let key = |row: &&Session| {
        let direction = if row.direction == "out" { "out" } else { "in" };
        (host, direction, row.local, row.peer)
    };
    let (both, ours, theirs) = side_by_side(&sessions, &flows, key, ends);
    differences.rows("conntrack", if missed { &[] } else { &ours }, &theirs);
    let mut furthest_s = [0f64; 2];
    for (session, flow) in &both {
        // The answer to what is refused ends all that there is to follow of it, without a word.
        let never = if flow.is_established && !missed { f64::INFINITY } else { 0.0 };
        let over = flow.over.map_or(never, |over| (session.closed - over).abs());
        let apart = [(session.opened - flow.began).abs(), over];
        furthest_s = [0, 1].map(|at| furthest_s[at].max(apart[at]));
        if apart.iter().any(|apart| *apart > MOMENT_S) {
            differences.add("other moments", (session, flow));
        }
    }
    let [opened, closed] = furthest_s.map(|apart| apart * 1e3);
    say(&format!(
        "conntrack on {host}: {} connections, {} of {} sessions equal; opened at most {opened:.0} ms apart, closed {closed:.0} ms{}",
        flows.len(),
        both.len(),
        sessions.len(),
        if missed { "; it missed some itself" } else { "" },
    ));
}

/// Tells the figures of a run.
#[expect(clippy::print_stderr, reason = "whoever looks at a run wants them")]
fn say(what: &str) {
    eprintln!("{what}");
}

/// A referee, or why there is none here.
fn referee<T>(name: &str, started: Result<T, String>) -> Option<T> {
    started.inspect_err(|reason| say(&format!("skipped: {name} does not run here: {reason}"))).ok()
}

/// Each session is of the process that made it: of a client that ran, or, where the server keeps a log, of the process that
/// it names. PostgreSQL accepts in one process and serves in a child: a walk can come by before that is there. Of one in a thousand
/// nobody may be known: the agents of this kernel look at descriptors all the time, and when a server closes one just then, the kernel
/// has the agent close it.
fn beside_processes(
    sessions: &[Session],
    clients: &BTreeMap<u32, &'static str>,
    served: &Served,
    differences: &mut Differences,
) {
    let mut silent: BTreeSet<u32> = clients.keys().copied().collect();
    let (mut by_log, mut by_postmaster, mut nobodys) = (0, 0, 0);
    for session in sessions {
        let mut log = None;
        let is_right = if session.direction == "out" {
            silent.remove(&session.pid);
            clients.get(&session.pid) == Some(&session.process.as_str())
        } else {
            let port = session.local.port();
            log = served.during(session.peer, port, (session.opened, session.closed));
            by_log += usize::from(log.is_some());
            let server = [(22, "sshd"), (5432, "postgres")].into_iter().find(|(known, _)| *known == port);
            let is_postmaster = session.pid == served.postmaster;
            by_postmaster += usize::from(is_postmaster);
            let is_named = is_postmaster || log.is_none_or(|pid| session.pid == pid);
            let is_nobodys = session.process.is_empty();
            nobodys += usize::from(is_nobodys);
            is_nobodys || session.process == server.map_or("nginx", |(_, name)| name) && is_named
        };
        if !is_right {
            differences.add("another process", (session, log));
        }
    }
    for pid in silent {
        differences.add("a client without a session", (pid, clients[&pid]));
    }
    say(&format!(
        "{} clients; {by_log} sessions whose process a server's log names, {by_postmaster} seen while their postmaster had them, \
         {nobodys} that nobody is known to have closed",
        clients.len()
    ));
    if nobodys * 1000 > sessions.len() {
        differences.add("too many of nobody", nobodys);
    }
    if by_postmaster * 20 > by_log {
        differences.add("too many of the postmaster", by_postmaster);
    }
}

/// The fleet, when its agents hear events.
fn fleet() -> Option<Fleet> {
    if let Some(missing) = programs::missing() {
        say(&format!("skipped: not installed: {missing}"));
        return None;
    }
    // Of all namespaces: that of a process which is gone at once is not always known.
    let fleet = Fleet::start_with(&["server", "web1", "db1", "client1"], "namespaces = \"all\"")?;
    let deaf = fleet.items(&["hosts"]).0.into_iter().find(|host| host["tier"] != "T2");
    if let Some(host) = &deaf {
        say(&format!("skipped: the agent does not hear events here: {}", host["tier_reason"]));
    }
    deaf.is_none().then_some(fleet)
}

#[test]
fn the_history_of_real_traffic_equals_row_by_row_what_conntrack_saw_and_who_made_it() {
    let Some(fleet) = fleet() else { return };
    let scope = Scope::new(&fleet);
    let programs = Programs::start(&fleet, &scope);
    let folder = tempfile::tempdir().unwrap();
    let watch = |host| Conntrack::start(&fleet, &scope, folder.path(), host);
    let conntrack = referee("conntrack", HOSTS.into_iter().map(watch).collect::<Result<Vec<_>, _>>());
    let clients = programs.work(times());
    let watched: Vec<Watched> = conntrack.into_iter().flatten().map(|host| host.end(&scope)).collect();

    let sessions = history(&fleet, &scope);
    let mut differences = Differences::default();
    beside_processes(&sessions, &clients, &programs.served(), &mut differences);
    for watched in watched {
        beside_conntrack(&sessions, watched, &scope, &mut differences);
    }
    let moments = 2 * sessions.len();
    let unheard = moments - sessions.iter().map(|session| session.heard).sum::<usize>();
    say(&format!("{unheard} of {moments} moments known by walks only"));
    for host in fleet.items(&["hosts"]).0 {
        let name = host["host"].as_str().unwrap();
        let log = fleet.log(name);
        let lost: Vec<&str> = log.lines().filter(|line| line.contains("records are lost")).collect();
        say(&format!("{name}: {} losses {}", host["losses"], lost.join("; ")));
    }
    let differences = differences.0;
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    assert!(sessions.len() > 1000, "there was hardly any traffic");
}
