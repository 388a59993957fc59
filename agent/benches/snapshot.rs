//! What a snapshot with owners costs, against `ss -tanup`, `netstat -tanup` and `lsof -i -n -P`: CPU
//! (user and system), not time.
//!
//! `cargo bench -p fleetsock-agent --bench snapshot`
//!
//! The sockets are loopback connections and listeners of one process; as root in a network namespace of their own, so
//! that there are no others. The contenders take turns within one run; the table shows medians and, because CPU times
//! of different machines do not compare, their ratios. The first snapshot is a process of its own, as `ss` is: starting
//! it counts. Criterion measures elapsed time only, so this is a plain program.
#![allow(clippy::unwrap_used, reason = "in a bench, unwrap is the assertion")]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

use std::{
    env,
    fs::File,
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleetsock_agent::{
    capture::{SocketRow, Walker},
    owners::{Holdings, OwnerScan, Processes, Wanted},
};
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::{TimeVal, TimeValLike},
};
use rustix::{
    process::{Resource, Rlimit, geteuid, getrlimit, setrlimit},
    thread::{LinkNameSpaceType, move_into_link_name_space},
    time::{ClockId, clock_gettime},
};

/// Sockets of one process: within the usual limit to open files.
const OF_ONE: usize = 10_000;
/// Numbers of sockets and how often each contender takes its turn.
const SIZES: [(usize, usize); 3] = [(1_000, 15), (10_000, 9), (100_000, 3)];

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["hold", sockets] => hold(sockets.parse().unwrap()),
        ["snapshot"] => println!("{}", Snapshot::open(Owners::OfKernel).take().0),
        ["snapshot", "proc"] => println!("{}", Snapshot::open(Owners::OfProc).take().0),
        ["walk", turns] => walk_for_a_profiler(turns.parse().unwrap(), Walker::open().unwrap()),
        ["walk", turns, "program"] => walk_for_a_profiler(turns.parse().unwrap(), Walker::open().unwrap().asking()),
        _ => bench(),
    }
}

/// Walks the sockets of this network namespace again and again.
fn walk_for_a_profiler(turns: u32, walker: Walker) {
    let mut steady = Snapshot { walker, ..Snapshot::open(Owners::OfProc) };
    println!("{}", (0..turns).map(|_| steady.walk()).last().unwrap_or_default());
}

/// Opens sockets, says so, and keeps them until standard input ends: a tenth listeners, a tenth of those UDP, the others
/// both ends of connections.
fn hold(sockets: usize) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let listeners = sockets / 10;
    let udp: Vec<_> = (0..listeners / 10).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let tcp: Vec<_> = (udp.len()..listeners).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let ends: Vec<_> = (0..(sockets - listeners) / 2)
        .map(|number| {
            let listener = &tcp[number % tcp.len()];
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (client, listener.accept().unwrap().0)
        })
        .collect();
    println!("{}", udp.len() + tcp.len() + ends.len() * 2);
    io::copy(&mut io::stdin(), &mut io::sink()).unwrap();
}

/// Who tells the owners.
#[derive(Clone, Copy)]
enum Owners {
    /// The kernel, where it does.
    OfKernel,
    /// The links in /proc.
    OfProc,
}

/// The agent's part.
struct Snapshot {
    walker: Walker,
    processes: Processes,
    rows: Vec<SocketRow>,
}

impl Snapshot {
    fn open(owners: Owners) -> Snapshot {
        let processes = Processes::open().unwrap();
        let processes = match owners {
            Owners::OfKernel => processes.asking(Holdings::open()),
            Owners::OfProc => processes,
        };
        Snapshot { walker: Walker::open().unwrap(), processes, rows: Vec::new() }
    }

    fn walk(&mut self) -> usize {
        self.walker.walk(&mut self.rows).unwrap();
        self.rows.len()
    }

    /// A walk and all owners: how many sockets have one.
    fn take(&mut self) -> (usize, OwnerScan) {
        self.walk();
        let wanted: Wanted = self.rows.iter().map(|row| row.inode).filter(|inode| *inode != 0).collect();
        let scan = self.processes.scan(&wanted);
        (self.rows.iter().filter(|row| scan.owners.contains_key(&row.inode)).count(), scan)
    }
}

/// Those who are compared.
struct Contender {
    name: &'static str,
    /// Runs it: CPU and number of sockets that it told. Nothing when it is not installed.
    run: Box<dyn FnMut() -> Option<(Duration, usize)>>,
}

fn contenders() -> Vec<Contender> {
    let own = env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let also_own = own.clone();
    let [mut agent, mut reader] = [Owners::OfKernel, Owners::OfProc].map(Snapshot::open);
    let mut steady = Snapshot::open(Owners::OfProc);
    agent.take();
    reader.take();
    steady.walk();
    let mut told = Snapshot::open(Owners::OfProc);
    told.walker = told.walker.asking();
    told.walk();
    vec![
        Contender {
            name: "first snapshot with owners",
            run: Box::new(move || of_child(&own, &["snapshot"], Tells::Count)),
        },
        Contender {
            name: "the same, owners from /proc",
            run: Box::new(move || of_child(&also_own, &["snapshot", "proc"], Tells::Count)),
        },
        Contender {
            name: "snapshot with owners, agent running",
            run: Box::new(move || Some(of_thread(|| agent.take().0))),
        },
        Contender { name: "the same, owners from /proc", run: Box::new(move || Some(of_thread(|| reader.take().0))) },
        Contender { name: "steady walk, nothing unknown", run: Box::new(move || Some(of_thread(|| told.walk()))) },
        Contender { name: "the same, all dumped", run: Box::new(move || Some(of_thread(|| steady.walk()))) },
        Contender { name: "`ss -tanup`", run: Box::new(|| of_child("ss", &["-H", "-tanup"], Tells::Lines)) },
        Contender {
            name: "`netstat -tanup`",
            run: Box::new(|| of_child("netstat", &["--numeric", "-tanup"], Tells::Lines)),
        },
        Contender { name: "`lsof -i -n -P`", run: Box::new(|| of_child("lsof", &["-i", "-n", "-P"], Tells::Lines)) },
    ]
}

/// CPU of this thread: the usage of a running thread is known to the tick only, its clock to the nanosecond.
fn of_thread(run: impl FnOnce() -> usize) -> (Duration, usize) {
    let now = || {
        let time = clock_gettime(ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
    };
    let before = now();
    let sockets = run();
    (now() - before, sockets)
}

/// CPU of all processes that were waited for.
fn of_children() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let us = |time: TimeVal| Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap());
    us(usage.user_time()) + us(usage.system_time())
}

/// What the output of a command is.
enum Tells {
    Count,
    Lines,
}

fn of_child(program: &str, arguments: &[&str], tells: Tells) -> Option<(Duration, usize)> {
    let before = of_children();
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    let used = of_children() - before;
    let text = String::from_utf8(output.stdout).unwrap();
    let sockets = match tells {
        Tells::Count => text.trim().parse().unwrap(),
        Tells::Lines => text
            .lines()
            .filter(|line| !["COMMAND", "Active", "Proto"].iter().any(|head| line.starts_with(head)))
            .count(),
    };
    Some((used, sockets))
}

/// The processes with the sockets; the calling thread moves into their network namespace.
fn holders(sockets: usize) -> Vec<Child> {
    let own = env::current_exe().unwrap();
    let mut holders = Vec::new();
    while holders.len() * OF_ONE < sockets {
        let mut command = if geteuid().is_root() && holders.is_empty() {
            let mut command = Command::new("unshare");
            command.args(["--net", "sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]).arg(&own);
            command
        } else {
            Command::new(&own)
        };
        let number = OF_ONE.min(sockets - holders.len() * OF_ONE);
        command.args(["hold", &number.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line.trim(), number.to_string(), "the sockets could not be opened");
        if geteuid().is_root() && holders.is_empty() {
            let namespace = File::open(format!("/proc/{}/ns/net", child.id())).unwrap();
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
        holders.push(child);
    }
    holders
}

fn bench() {
    if let Err(error) = Holdings::open() {
        println!("The kernel does not tell owners here, so that /proc is read: {error}.\n");
    }
    if let Some(remark) = Walker::open().unwrap().asking().asking_from(0).remark() {
        println!("The kernel does not tell connections to a program here: {remark}.\n");
    }
    println!(
        "| CPU, median | sockets | told | ms | of `ss` | of `netstat` | of `lsof` |\n|---|---|---|---|---|---|---|"
    );
    for (sockets, turns) in SIZES {
        let holders = holders(sockets);
        let mut contenders = contenders();
        let mut used = vec![Vec::new(); contenders.len()];
        let mut told = vec![0; contenders.len()];
        for _ in 0..turns {
            for (number, contender) in contenders.iter_mut().enumerate() {
                if let Some((cpu, sockets)) = (contender.run)() {
                    used[number].push(cpu);
                    told[number] = sockets;
                }
            }
        }
        let medians: Vec<Option<f64>> = used.iter_mut().map(|used| median(used)).collect();
        let against = |mine: Option<f64>, other: Option<f64>| match mine.zip(other) {
            Some((mine, other)) => format!("{:.3}", mine / other),
            None => "-".to_owned(),
        };
        let [.., ss, netstat, lsof] = medians[..] else { unreachable!("there are nine contenders") };
        for ((contender, told), mine) in contenders.iter().zip(told).zip(&medians) {
            let ms = mine.map_or("not installed".to_owned(), |ms| format!("{ms:.2}"));
            let [ss, netstat, lsof] = [ss, netstat, lsof].map(|other| against(*mine, other));
            println!("| {} | {sockets} | {told} | {ms} | {ss} | {netstat} | {lsof} |", contender.name);
        }
        io::stdout().flush().unwrap();
        for mut holder in holders {
            drop(holder.stdin.take());
            holder.wait().unwrap();
        }
    }
}

/// Milliseconds.
fn median(used: &mut [Duration]) -> Option<f64> {
    used.sort();
    used.get(used.len() / 2).map(|cpu| cpu.as_secs_f64() * 1000.0)
}
