//! kill -9 of the real agent and the real server, in turns and at random moments, on a host with a load of connections: what
//! was observed is stored once, and what was not is a gap.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::{
    fleet::Fleet,
    network::{Running, until},
};

/// Connections that are open from before the first kill until after the last.
const STAYING: usize = 16;
/// Connections that begin in a second, at most.
const PER_SECOND: usize = 60;
/// Around what was not observed, seconds: a connection that comes so near to it may be half in it.
const MARGIN_S: f64 = 0.25;

fn kills() -> usize {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { 300 } else { 12 }
}

/// Numbers that are the same for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    /// By `FLEETSOCK_SEED`, or another one in every run.
    fn any() -> Chance {
        let text = std::env::var("FLEETSOCK_SEED").ok();
        Chance(text.map_or_else(|| now().to_bits(), |text| text.parse().unwrap()))
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    /// Waits for some milliseconds, fewer than these.
    fn wait(&mut self, below_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(below_ms)));
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn seconds(moment: &Value) -> f64 {
    let moment: jiff::Timestamp = moment.as_str().unwrap_or_else(|| panic!("{moment} is no moment")).parse().unwrap();
    moment.as_microsecond() as f64 / 1e6
}

/// From when to when.
type Time = (f64, f64);

/// The connections of a host, and what their program wrote down of them.
struct Load {
    program: Running,
    log: PathBuf,
}

impl Load {
    fn start(fleet: &Fleet, seed: u64) -> Load {
        let log = fleet.home.path().join("connections.log");
        let [seed, staying, per_second] = [seed % 1_000_000, STAYING as u64, PER_SECOND as u64].map(|n| n.to_string());
        let arguments = ["-c", include_str!("kills.py"), log.to_str().unwrap(), &seed, &staying, &per_second];
        let load = Load { program: fleet.network.start("web1", "python3", &arguments), log };
        load.says("ready");
        load
    }

    fn says(&self, word: &str) {
        let told = || fs::read_to_string(&self.log).ok().filter(|text| text.lines().any(|line| line == word));
        until("the load goes on", told);
    }

    /// Everything but what stays is closed; the times of all that was there, by address.
    fn end(&self) -> BTreeMap<Ipv4Addr, Time> {
        self.program.signal("TERM");
        self.says("done");
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text.lines().filter(|line| line.contains(' '));
        let connection = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            let number: u32 = fields[0].parse().unwrap();
            let [_, b, c, d] = number.to_be_bytes();
            (Ipv4Addr::new(127, 1 + b, c, d), (fields[1].parse().unwrap(), fields[2].parse().unwrap()))
        };
        lines.map(connection).collect()
    }
}

/// The sessions of each connection, by its address.
fn sessions(fleet: &Fleet) -> BTreeMap<Ipv4Addr, Vec<Value>> {
    let mut by_address = BTreeMap::<Ipv4Addr, Vec<Value>>::new();
    for session in fleet.items(&["sessions", "--host", "web1", "--since", "6h", "--port", "4400"]).0 {
        let end = if session["direction"] == "in" { "peer_address" } else { "local_address" };
        let address: Ipv4Addr = session[end].as_str().unwrap().parse().unwrap();
        by_address.entry(address).or_default().push(session);
    }
    by_address
}

/// The directions of some sessions, in order.
fn directions(sessions: &[Value]) -> Vec<&str> {
    let mut directions: Vec<&str> = sessions.iter().map(|session| session["direction"].as_str().unwrap()).collect();
    directions.sort_unstable();
    directions
}

/// The staying connections as they are known: both ends of each, open, and since when.
fn staying(sessions: &BTreeMap<Ipv4Addr, Vec<Value>>) -> Option<BTreeMap<Ipv4Addr, Vec<String>>> {
    let address = |number: usize| Ipv4Addr::new(127, 200, 0, u8::try_from(number + 1).unwrap());
    let open = |number: usize| {
        let ends = sessions.get(&address(number))?;
        let are_open = ends.iter().all(|session| session["closed_at"].is_null());
        let mut since: Vec<String> =
            ends.iter().map(|end| format!("{} {}", end["direction"], end["opened_at"])).collect();
        since.sort_unstable();
        (are_open && directions(ends) == ["in", "out"]).then_some((address(number), since))
    };
    (0..STAYING).map(open).collect()
}

/// When the host was last heard.
fn heard(fleet: &Fleet) -> f64 {
    seconds(&fleet.items(&["hosts", "web1"]).0[0]["last_seen_at"])
}

/// Kills agent and server in turns; the times in which there was no agent.
fn kill_in_turns(fleet: &mut Fleet, chance: &mut Chance) -> Vec<Time> {
    let mut dead = Vec::new();
    for number in 0..kills() {
        chance.wait(2000);
        if number % 2 == 1 {
            fleet.kill_server();
            chance.wait(400);
            fleet.serve();
            continue;
        }
        fleet.kill_agent("web1");
        let killed = now();
        chance.wait(400);
        let began = now();
        dead.push((killed, began));
        fleet.report("web1");
        // Half of them are killed while they work, of the others some while they begin.
        if chance.below(2) == 0 {
            until("the agent is heard again", || (heard(fleet) > began).then_some(()));
        }
    }
    dead
}

/// What was not observed, or not all of it.
fn gaps(fleet: &Fleet) -> Vec<Time> {
    let (periods, _) = fleet.items(&["hosts", "web1", "--coverage", "--since", "6h"]);
    let unobserved = periods.iter().filter(|period| period["cover"] != "observed");
    unobserved.map(|period| (seconds(&period["since"]), seconds(&period["until"]))).collect()
}

/// What is known of the connections that began and ended while all was observed.
#[derive(Debug, Default)]
struct Observed {
    connections: usize,
    /// Their ends whose closing no event told: kernels leave records out, and a walk or the next agent tells it instead.
    unheard: usize,
    /// What is not known of them as it was.
    wrong: Vec<String>,
}

/// A session in short.
fn short(session: &Value) -> String {
    let fields = ["direction", "state", "netns", "pid", "opened_at", "opened_known", "closed_at", "closed_known"];
    fields.map(|field| session[field].to_string()).join(" ")
}

/// Every connection that was there while all was observed is known at both ends, once, and over; no other is known twice.
fn check_connections(
    connections: &BTreeMap<Ipv4Addr, Time>,
    sessions: &BTreeMap<Ipv4Addr, Vec<Value>>,
    gaps: &[Time],
) -> Observed {
    let mut observed = Observed::default();
    for (address, (began, ended)) in connections {
        let known = sessions.get(address).map_or(&[][..], Vec::as_slice);
        let directions = directions(known);
        let mut wrong = |what: &str| {
            let known: Vec<String> = known.iter().map(short).collect();
            observed.wrong.push(format!("{address} from {began} to {ended} {what}: {known:#?}"));
        };
        if directions.windows(2).any(|pair| pair[0] == pair[1]) {
            wrong("is known twice");
        }
        if known.iter().any(|session| session["closed_at"].is_null()) {
            wrong("is over");
        }
        if gaps.iter().any(|(since, until)| since - MARGIN_S < *ended && *began < until + MARGIN_S) {
            continue;
        }
        if directions != ["in", "out"] {
            wrong("is not known at both ends");
        }
        observed.connections += 1;
        for session in known {
            for moment in ["opened", "closed"].map(|what| (what, format!("{what}_at"), format!("{what}_known"))) {
                let (what, at, how) = moment;
                if session[how] == "event" {
                    let at = seconds(&session[at]);
                    assert!((began - MARGIN_S..ended + MARGIN_S).contains(&at), "{began} to {ended}: {session}");
                } else {
                    observed.unheard += usize::from(what == "closed");
                }
            }
        }
    }
    observed
}

/// What is wrong in the files of the server and of the agent.
fn wrong_in_files(fleet: &Fleet) -> String {
    let history = Path::new(&fleet.folder("server")).join("history").display().to_string();
    let spool = Path::new(&fleet.folder("web1")).join("spool.db").display().to_string();
    let arguments = ["-c", include_str!("kills_check.py"), &history, &spool];
    let checked = fleet.network.command("server", "python3").args(arguments).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    String::from_utf8(checked.stdout).unwrap()
}

#[test]
fn after_kills_of_agent_and_server_in_turns_what_was_observed_is_stored_once_and_the_rest_is_a_gap() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    let tier = fleet.items(&["hosts", "web1"]).0[0].clone();
    if tier["tier"] != "T2" {
        eprintln!("skipped: the agent does not hear events here: {}", tier["tier_reason"]);
        return;
    }
    let mut chance = Chance::any();
    eprintln!("FLEETSOCK_SEED={}", chance.0);
    let load = Load::start(&fleet, chance.0);
    let stay = until("what stays is known", || staying(&sessions(&fleet)));
    let dead = kill_in_turns(&mut fleet, &mut chance);
    let connections = load.end();
    // What is seen after it is delivered after it.
    let last = fleet.network.python("web1", &crate::fleet::listening(&[("tcp", 4500)]));
    until("all is delivered", || (!fleet.items(&["ports", "--port", "4500"]).0.is_empty()).then_some(()));

    let (known, gaps) = (sessions(&fleet), gaps(&fleet));
    assert_eq!(staying(&known), Some(stay), "what stayed is open since when it was");
    for (killed, began) in &dead {
        let is_told = gaps.iter().any(|(since, until)| since <= killed && began <= until);
        assert!(is_told, "there was no agent from {killed} to {began}, and these are the gaps: {gaps:?}");
    }
    let Observed { connections: observed, unheard, wrong } = check_connections(&connections, &known, &gaps);
    assert!(wrong.is_empty(), "{wrong:#?}\nwithout an agent: {dead:?}\ngaps: {gaps:?}\n{}", fleet.log("web1"));
    let unobserved: f64 = dead.iter().map(|(killed, began)| began - killed).sum();
    let in_gaps: f64 = gaps.iter().filter(|(since, _)| *since > dead[0].0 - 60.0).map(|(a, b)| b - a).sum();
    eprintln!(
        "{} kills: {observed} of {} connections began and ended while all was observed, {unheard} of their ends were not heard; \
         {unobserved:.1} s without an agent, {in_gaps:.1} s of gaps",
        kills(),
        connections.len()
    );
    assert!(observed > connections.len() / 20, "hardly anything was observed");
    assert!(unheard * 20 < observed, "hardly anything was heard");
    let extra: Vec<_> = known.keys().filter(|address| address.octets()[1] != 200).collect();
    assert!(extra.iter().all(|address| connections.contains_key(address)), "unknown to the load: {extra:?}");

    drop(last);
    fleet.stop_agent("web1");
    fleet.stop_server();
    assert_eq!(wrong_in_files(&fleet), "");
}
