//! What the agent costs a host on which nothing happens: CPU and resident memory, with 200 sockets and with 100,000.
//!
//! `cargo bench -p fleetsock-agent --bench idle`
//!
//! The real agent with its default settings and a real server, for a minute each, after it has told of everything. The
//! bounds it is held against: 0.3 % of a core and 20 MiB with 200 sockets, 96 MiB with 100,000. FLEETSOCK_IDLE_S is
//! another number of seconds.
#![allow(clippy::unwrap_used, reason = "in a bench, unwrap is the assertion")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

#[path = "fleet/fleet.rs"]
mod fleet;

use std::{
    env, fs,
    io::{copy, sink, stdin},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};

use crate::fleet::{Fleet, be_the_server, cpu_of, first_line, until};

const SIZES: [u64; 2] = [200, 100_000];
/// Sockets of one process: within the usual limit to open files.
const OF_ONE: u64 = 15_000;
/// How long until nothing that began with the sockets goes on.
const SETTLE: Duration = Duration::from_secs(10);

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["hold", sockets] => hold(sockets.parse().unwrap()),
        [fleet::SERVE, folder] => be_the_server(Path::new(folder)),
        _ => bench(),
    }
}

/// Both ends of connections, until standard input ends.
fn hold(sockets: u64) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let connection = |_| (TcpStream::connect(address).unwrap(), listener.accept().unwrap().0);
    let _ends: Vec<_> = (0..sockets / 2).map(connection).collect();
    println!("ready");
    copy(&mut stdin(), &mut sink()).unwrap();
}

struct Holder(Child);

impl Holder {
    fn start(sockets: u64) -> Holder {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["hold", &sockets.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = Holder(command.spawn().unwrap());
        assert_eq!(first_line(&mut holder.0), "ready", "the sockets could not be opened");
        holder
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// A number of /proc/PID/status.
fn status(folder: &Path, name: &str) -> u64 {
    let text = fs::read_to_string(folder.join("status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.trim_start_matches(':').split_whitespace().next().unwrap_or("0").parse().unwrap()
}

/// How often threads went to sleep by themselves, which is how often they were woken.
fn wakes(pid: u32) -> u64 {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.map(|thread| status(&thread.unwrap().path(), "voluntary_ctxt_switches")).sum()
}

fn bench() {
    if !geteuid().is_root() {
        eprintln!("not root: the agent hears no events and costs less");
    }
    let length = env::var("FLEETSOCK_IDLE_S").map_or(60, |seconds| seconds.parse().unwrap());
    println!("| sockets | CPU, % of a core | wakes per second | MiB resident | at most | of it anonymous |");
    println!("|---|---|---|---|---|---|");
    for sockets in SIZES {
        let holders: Vec<Holder> =
            (0..sockets.div_ceil(OF_ONE)).map(|number| Holder::start(OF_ONE.min(sockets - number * OF_ONE))).collect();
        // The server's answers to this bench are connections too, so it asks no more while it measures.
        let fleet = Fleet::start();
        let agent = fleet.agent();
        until("the sockets are known", || fleet.host().filter(|host| host.sessions_open >= sockets));
        sleep(SETTLE);
        let (cpu, woken, begun) = (cpu_of(agent.pid()), wakes(agent.pid()), Instant::now());
        sleep(Duration::from_secs(length));
        let (cpu, woken) = (cpu_of(agent.pid()) - cpu, wakes(agent.pid()).saturating_sub(woken));
        let took = begun.elapsed().as_secs_f64();
        let process = format!("/proc/{}", agent.pid());
        let mib = |name| status(Path::new(&process), name) as f64 / 1024.0;
        println!(
            "| {sockets} | {:.2} | {:.1} | {:.1} | {:.1} | {:.1} |",
            100.0 * cpu.as_secs_f64() / took,
            woken as f64 / took,
            mib("VmRSS"),
            mib("VmHWM"),
            mib("RssAnon"),
        );
        if fleet.log().contains("\"WARN\"") {
            eprintln!("{}", fleet.log());
        }
        drop((agent, holders));
    }
}
