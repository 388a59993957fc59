//! What it costs to know the sockets of 50 network namespaces beside a host with 20,000 sockets: CPU (user and system), not
//! time.
//!
//! `cargo bench -p fleetsock-agent --bench namespaces` (as root: it makes the namespaces)
//!
//! Each namespace has listeners and, in every other one, connections. The contenders take turns within one run; the table
//! shows medians and, because CPU times of different machines do not compare, their ratios to dumping every namespace in
//! full with sockets that are kept open, which is what there would be without a surveyor.
#![allow(clippy::unwrap_used, reason = "in a bench, unwrap is the assertion")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleetsock_agent::{
    capture::{Connections, Extent, Occasion, SocketRow, Surveyor, Walker},
    namespaces::{Namespaces, Pass},
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use rustix::{
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const NAMESPACES: usize = 50;
/// Listeners and connections (a connection is two sockets) of each of the host's processes, which are some because there
/// is a limit to open files, and of each namespace.
const HOST: (usize, usize) = (50, 2_475);
const HOST_PROCESSES: usize = 4;
const IDLE: (usize, usize) = (5, 0);
const BUSY: (usize, usize) = (5, 5);
const TURNS: usize = 15;

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["hold", listeners, connections] => hold(listeners.parse().unwrap(), connections.parse().unwrap()),
        _ if geteuid().is_root() => bench(),
        _ => eprintln!("skipped: making network namespaces takes root"),
    }
}

/// Opens sockets, says so, and keeps them until standard input ends.
fn hold(listeners: usize, connections: usize) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let _udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let tcp: Vec<_> = (1..listeners).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let _ends: Vec<_> = (0..connections)
        .map(|number| {
            let listener = &tcp[number % tcp.len()];
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        })
        .collect();
    println!("ready");
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

/// A process that holds sockets in a network namespace of its own, until it is dropped.
struct Holder(Child);

impl Holder {
    fn start(sockets: (usize, usize)) -> Holder {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
        Holder::spawn(command, sockets)
    }

    /// In the same namespace.
    fn beside(&self, sockets: (usize, usize)) -> Holder {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.0.id()));
        Holder::spawn(command, sockets)
    }

    fn spawn(mut command: Command, (listeners, connections): (usize, usize)) -> Holder {
        command.arg(env::current_exe().unwrap()).args(["hold", &listeners.to_string(), &connections.to_string()]);
        Holder(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    fn wait_until_ready(&mut self) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "ready", "the sockets could not be opened");
    }

    fn enter(&self) {
        let namespace = File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Those who are compared: what each costs, and how many rows it tells.
struct Contender {
    name: &'static str,
    run: Box<dyn FnMut() -> usize>,
}

/// A walker in each namespace, kept open.
fn walkers(namespaces: &Namespaces) -> Vec<Walker> {
    let mut walkers = vec![Walker::open().unwrap()];
    let foreign = namespaces.visit(|visitor| {
        let open = |namespace| visitor.enter(namespace).map(|()| Walker::open().unwrap());
        namespaces.iter().filter_map(|namespace| open(namespace).ok()).collect::<Vec<_>>()
    });
    walkers.extend(foreign.unwrap());
    walkers
}

fn contenders() -> Vec<Contender> {
    let find = |pass| {
        let mut namespaces = Namespaces::open().unwrap();
        namespaces.refresh(pass).unwrap();
        namespaces.refresh(pass).unwrap();
        namespaces
    };
    let mut walkers = walkers(&find(Pass::New));
    let dump = move || {
        let mut rows = Vec::new();
        let told = walkers.iter_mut().map(|walker| walker.walk(&mut rows).map(|_| rows.len()).unwrap());
        told.sum()
    };
    let survey = |occasion| {
        let (namespaces, mut surveyor, mut rows) = (find(Pass::New), Surveyor::open().unwrap(), Vec::new());
        let extent = Extent::of(occasion, Connections::FromEvents);
        move || {
            surveyor.survey(&namespaces, extent, &mut rows);
            rows.len()
        }
    };
    let (mut home, mut rows): (Walker, Vec<SocketRow>) = (Walker::open().unwrap(), Vec::new());
    let mut listeners = Walker::open().unwrap();
    let mut listening = Vec::new();
    let [new, all] = [Pass::New, Pass::All].map(|pass| {
        let mut namespaces = find(pass);
        move || {
            namespaces.refresh(pass).unwrap();
            namespaces.iter().len()
        }
    });
    vec![
        Contender { name: "dump of every namespace", run: Box::new(dump) },
        Contender { name: "survey by the referee", run: Box::new(survey(Occasion::Referee)) },
        Contender { name: "survey when connections opened", run: Box::new(survey(Occasion::Opened)) },
        Contender { name: "steady survey", run: Box::new(survey(Occasion::Steady)) },
        Contender {
            name: "walk of the host's namespace alone",
            run: Box::new(move || home.walk(&mut rows).map(|_| rows.len()).unwrap()),
        },
        Contender {
            name: "its listeners alone",
            run: Box::new(move || listeners.walk_listeners(&mut listening).map(|_| listening.len()).unwrap()),
        },
        Contender { name: "finding namespaces, new processes", run: Box::new(new) },
        Contender { name: "finding namespaces, all processes", run: Box::new(all) },
    ]
}

/// CPU of this process, all threads.
fn used() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let us = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap());
    us(usage.user_time()) + us(usage.system_time())
}

fn bench() {
    let mut host = Holder::start(HOST);
    host.wait_until_ready();
    let mut others: Vec<Holder> = (1..HOST_PROCESSES).map(|_| host.beside(HOST)).collect();
    others.extend((0..NAMESPACES).map(|number| Holder::start(if number % 2 == 0 { IDLE } else { BUSY })));
    others.iter_mut().for_each(Holder::wait_until_ready);
    host.enter();
    let mut contenders = contenders();
    let mut cpu = vec![Vec::new(); contenders.len()];
    let mut told = vec![0; contenders.len()];
    for _ in 0..TURNS {
        for (number, contender) in contenders.iter_mut().enumerate() {
            let before = used();
            told[number] = (contender.run)();
            cpu[number].push(used() - before);
        }
    }
    let medians: Vec<f64> = cpu.iter_mut().map(|used| median(used)).collect();
    println!("| CPU, median of {TURNS} | told | ms | of the dump |\n|---|---|---|---|");
    for ((contender, told), ms) in contenders.iter().zip(told).zip(&medians) {
        println!("| {} | {told} | {ms:.2} | {:.4} |", contender.name, ms / medians[0]);
    }
}

/// Milliseconds.
fn median(used: &mut [Duration]) -> f64 {
    used.sort();
    used[used.len() / 2].as_secs_f64() * 1000.0
}
