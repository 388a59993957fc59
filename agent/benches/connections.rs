//! What it costs to know every short connection, against `tcplife` of libbpf-tools: CPU of the whole system per loopback
//! connection of under a millisecond, and how many were known at both ends with the right process.
//!
//! `cargo bench -p fleetsock-agent --bench connections` (as root; `apt-get install libbpf-tools` for the comparison)
//!
//! One process accepts, another connects, 10,000 times a second, both on one processor: where the kernel moves them between
//! processors, what it costs to wake the other one is more than any collector costs, and differs from run to run. What is counted is the CPU of these two, of the collector
//! and of the kernel's own threads, from before the first connection until four seconds after the last; what there is
//! without any collector is subtracted. The agent is the real one, with its walks, its spool and a real server; the
//! server's own CPU is not counted. The contenders take turns; the table shows medians.
#![allow(clippy::unwrap_used, reason = "in a bench, unwrap is the assertion")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

#[path = "fleet/fleet.rs"]
mod fleet;

use std::{
    env,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    port::PortRange,
    question::{SessionQuestion, SessionTime, SocketFilter},
    socket::Direction,
    time::Timestamp,
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use rustix::{
    process::{Pid, Signal, geteuid, kill_process},
    thread::{CpuSet, sched_setaffinity},
};

use crate::fleet::{Fleet, be_the_server, cpu_of, first_line};

const CONNECTIONS: usize = 20_000;
const PER_SECOND: usize = 10_000;
const ROUNDS: usize = 7;
/// How long a collector may take to be done with what it heard.
const SETTLE: Duration = Duration::from_secs(4);
/// How long after that the server may take to have stored it.
const LATEST: Duration = Duration::from_secs(10);
const SEEN: usize = 2 * CONNECTIONS;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["accept"] => {
            stay();
            accept();
        }
        ["connect", port] => {
            stay();
            connect(port.parse().unwrap());
        }
        [fleet::SERVE, folder] => be_the_server(Path::new(folder)),
        _ if geteuid().is_root() => bench(),
        _ => eprintln!("skipped: tracepoints take root"),
    }
}

/// Stays on the first processor.
fn stay() {
    let mut first = CpuSet::new();
    first.set(0);
    sched_setaffinity(None, &first).unwrap();
}

fn accept() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    println!("{}", listener.local_addr().unwrap().port());
    let mut bytes = [0; 64];
    for _ in 0..CONNECTIONS {
        let mut connection = listener.accept().unwrap().0;
        while connection.read(&mut bytes).unwrap() > 0 {}
    }
}

fn connect(port: u16) {
    let begun = Instant::now();
    for number in 1..=CONNECTIONS {
        TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port))).unwrap().write_all(b"x").unwrap();
        let due = Duration::from_secs_f64(number as f64 / PER_SECOND as f64);
        let ahead = due.saturating_sub(begun.elapsed());
        if ahead > Duration::from_millis(2) {
            sleep(ahead);
        }
    }
}

/// A collector, while it runs.
enum Collector {
    Nothing,
    Agent(fleet::Agent),
    Tcplife(Child),
}

impl Collector {
    fn cpu(&self) -> Duration {
        match self {
            Collector::Nothing => Duration::ZERO,
            Collector::Agent(agent) => cpu_of(agent.pid()),
            Collector::Tcplife(child) => cpu_of(child.id()),
        }
    }
}

/// The load, once it is over.
struct Load {
    port: u16,
    client: u32,
    server: u32,
    took: Duration,
}

/// How many ends were told, and how many of them with the right process.
#[derive(Default)]
struct Captured {
    ends: usize,
    right: usize,
}

/// CPU of all processes that were waited for.
fn of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let us = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap());
    us(usage.user_time()) + us(usage.system_time())
}

/// CPU of the kernel's own threads, the children of kthreadd (2), among them those that work interrupts off.
fn of_the_kernel() -> Duration {
    let cpu = |path: PathBuf| {
        let stat = fs::read_to_string(path.join("stat")).ok()?;
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
        let ns = fs::read_to_string(path.join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()?;
        (parent == "2").then_some(Duration::from_nanos(ns))
    };
    fs::read_dir("/proc").unwrap().filter_map(|entry| cpu(entry.unwrap().path())).sum()
}

fn load() -> Load {
    let own = env::current_exe().unwrap();
    let mut server = Command::new(&own).arg("accept").stdout(Stdio::piped()).spawn().unwrap();
    let port = first_line(&mut server);
    let begun = Instant::now();
    let mut client = Command::new(&own).args(["connect", &port]).spawn().unwrap();
    assert!(client.wait().unwrap().success() && server.wait().unwrap().success());
    Load { port: port.parse().unwrap(), client: client.id(), server: server.id(), took: begun.elapsed() }
}

/// Runs the load under a collector that is there already: CPU per connection, us, of all and of the collector alone.
fn measure(collector: &Collector) -> (Load, f64, f64) {
    let (own, others) = (collector.cpu(), of_children() + of_the_kernel());
    let load = load();
    sleep(SETTLE);
    let own = collector.cpu() - own;
    let all = own + (of_children() + of_the_kernel()).saturating_sub(others);
    let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / CONNECTIONS as f64;
    (load, each(all), each(own))
}

fn of_agent(fleet: &Fleet, load: &Load) -> Captured {
    let filter = SocketFilter { ports: vec![PortRange::new(load.port, load.port).unwrap()], ..SocketFilter::default() };
    let time = SessionTime::Within { since: Timestamp::MIN, until: None };
    let question = SessionQuestion { filter, time, ..SessionQuestion::default() };
    let ask = || {
        let question = question.clone();
        fleet.ask(async |mut server| server.list_sessions(question).await.unwrap().collect().await.unwrap().0)
    };
    // The server may be behind; what is missing after that is missing.
    let begun = Instant::now();
    let mut sessions = ask();
    while sessions.len() < SEEN && begun.elapsed() < LATEST {
        sleep(Duration::from_millis(500));
        sessions = ask();
    }
    let right = sessions.iter().filter(|session| {
        let pid = if session.direction == Direction::Out { load.client } else { load.server };
        session.closed.is_some() && session.owners.first().is_some_and(|owner| owner.pid == pid)
    });
    Captured { ends: sessions.len(), right: right.count() }
}

/// `PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS`.
fn of_tcplife(text: &str, load: &Load) -> Captured {
    let mut captured = Captured::default();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [pid, _, _, local, _, remote, ..] = fields[..] else { continue };
        let port = load.port.to_string();
        let expected = if remote == port { load.client } else { load.server };
        if local == port || remote == port {
            captured.ends += 1;
            captured.right += usize::from(pid == expected.to_string());
        }
    }
    captured
}

fn tcplife(output: &Path) -> Option<Child> {
    let child = Command::new("tcplife").stdout(File::create(output).unwrap()).stderr(Stdio::null()).spawn().ok()?;
    // It says nothing when it is ready.
    sleep(Duration::from_secs(2));
    Some(child)
}

#[derive(Default)]
struct Column {
    all: Vec<f64>,
    own: Vec<f64>,
    captured: Captured,
    runs: usize,
}

impl Column {
    fn add(&mut self, all: f64, own: f64, captured: &Captured) {
        self.all.push(all);
        self.own.push(own);
        self.captured.ends += captured.ends;
        self.captured.right += captured.right;
        self.runs += 1;
    }
}

fn bench() {
    let fleet = Fleet::start();
    let output = tempfile::NamedTempFile::new().unwrap();
    let [mut nothing, mut agent, mut peer] = [(); 3].map(|()| Column::default());
    for round in 1..=ROUNDS {
        let (load, all, own) = measure(&Collector::Nothing);
        nothing.add(all, own, &Captured::default());
        let per_second = CONNECTIONS as f64 / load.took.as_secs_f64();

        let collector = Collector::Agent(fleet.agent());
        let (load, all, own) = measure(&collector);
        let captured = of_agent(&fleet, &load);
        eprintln!("round {round} of {ROUNDS}: {} of {SEEN} ends told, {:.1} us", captured.ends, all);
        agent.add(all, own, &captured);
        drop(collector);

        if let Some(child) = tcplife(output.path()) {
            let pid = Pid::from_child(&child);
            let mut collector = Collector::Tcplife(child);
            let (load, all, own) = measure(&collector);
            kill_process(pid, Signal::INT).unwrap();
            if let Collector::Tcplife(child) = &mut collector {
                child.wait().unwrap();
            }
            peer.add(all, own, &of_tcplife(&fs::read_to_string(output.path()).unwrap(), &load));
        }
        eprintln!("round {round} of {ROUNDS}: {per_second:.0} connections per second");
    }
    if fleet.log().contains("records are lost") {
        eprintln!("{}", fleet.log());
    }
    if peer.runs == 0 {
        eprintln!("tcplife is not installed: apt-get install libbpf-tools");
    }
    table(&mut nothing, &mut agent, &mut peer);
}

fn table(nothing: &mut Column, agent: &mut Column, peer: &mut Column) {
    let base = median(&mut nothing.all);
    let peer_added = if peer.runs == 0 { f64::NAN } else { median(&mut peer.all) - base };
    println!(
        "| us of CPU per connection, median of {ROUNDS} | all | added | of it in its process | of tcplife | ends told | right process |"
    );
    println!("|---|---|---|---|---|---|---|");
    println!("| nothing | {base:.1} | - | - | - | - | - |");
    for (name, column) in [("fleetsock-agent", agent), ("tcplife", peer)] {
        if column.runs == 0 {
            println!("| {name} | not installed | | | | | |");
            continue;
        }
        let (all, own) = (median(&mut column.all), median(&mut column.own));
        let percent = |part: usize| 100.0 * part as f64 / (SEEN * column.runs) as f64;
        println!(
            "| {name} | {all:.1} | {:.1} | {own:.1} | {:.2} | {:.3} % | {:.3} % |",
            all - base,
            (all - base) / peer_added,
            percent(column.captured.ends),
            percent(column.captured.right),
        );
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
