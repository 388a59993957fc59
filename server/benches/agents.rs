//! A load generator: many simulated agents over real mutual TLS against a real `fleetsock-server` process.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench agents -- --agents 1000 --seconds 60
//! ```
//!
//! Each agent enrols, sends a snapshot, and then a batch of changes at every interval; every batch is timed until its
//! acknowledgement, which the server gives after an fsync: those that were sent while all agents were there and their
//! snapshots acknowledged, and by themselves those of a storm of snapshots. `--restart` stops the server half-way and starts
//! it again. Agents come from `--addresses` addresses, 127.0.0.1 and on, each always from the same.
//! The table at the end is for capacity planning: rows per second, acknowledgement times, CPU and memory of the server, and
//! whether its memory grows while the load stays the same.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for measuring, run by hand"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    client::{AgentClient, Dialling, OperatorClient, ServerMessages, Target, Wire, enroll_by},
    host::{BootId, HostFacts, Tier},
    identity::{Identity, Key},
    join::{JoinString, ServerAddress},
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::{AgentMessage, BatchNumber, Hello, PROTOCOL_VERSION, ServerMessage},
    time::Timestamp,
    tls,
    token::{NewToken, TokenPurpose},
};
use tokio::{
    net::TcpSocket,
    sync::{Mutex, Semaphore, mpsc},
    task::JoinSet,
};

/// Load of simulated agents against a real server.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Simulated agents.
    #[arg(long, default_value_t = 100)]
    agents: u32,
    /// How long they report, seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Open sockets of each agent in its first snapshot.
    #[arg(long, default_value_t = 200)]
    sockets: u32,
    /// Changed sockets of each agent in every batch.
    #[arg(long, default_value_t = 50)]
    rows: u32,
    /// Time between two batches of an agent, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    every: u64,
    /// Loopback addresses that the agents come from.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=250))]
    addresses: u32,
    /// Stop the server half-way and start it again.
    #[arg(long)]
    restart: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Where an agent comes from.
    fn source(&self, agent: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + agent % self.addresses)
    }
}

tokio::task_local! {
    /// Where the agent comes from whose task this is.
    static SOURCE: Ipv4Addr;
}

/// Lays a wire by TCP from the address of the agent.
fn dial_from_source(address: ServerAddress) -> Dialling {
    Box::pin(async move {
        let server: SocketAddr = address.as_str().parse().map_err(io::Error::other)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((SOURCE.get(), 0).into())?;
        let tcp = socket.connect(server).await?;
        tcp.set_nodelay(true)?;
        Ok(Box::new(tcp) as Box<dyn Wire>)
    })
}

/// The server under load, a process of its own.
struct Server {
    state: PathBuf,
    child: Child,
}

impl Server {
    fn init(state: &Path) -> SocketAddr {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let made = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
            .args(["init", "--listen", &listen.to_string(), "--state"])
            .arg(state)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        // Far more agents than hosts behind one address, and all of them at once.
        let settings = state.join("server.toml");
        let text = std::fs::read_to_string(&settings).unwrap()
            + "connections = 100000\nconnections_per_address = 100000\nnewcomers = 1000\nhandshakes_per_address = 256\n\
               enrolments_per_s = 100000\nenrolments_per_address_per_min = 6000000\n";
        std::fs::write(&settings, text).unwrap();
        listen
    }

    async fn start(state: &Path) -> Server {
        let child = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
            .args(["serve", "--state"])
            .arg(state)
            .env("FLEETSOCK_LOG", "warn")
            .spawn()
            .unwrap();
        let socket = state.join("admin.sock");
        while OperatorClient::connect(Target::Local(socket.clone())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Server { state: state.to_owned(), child }
    }

    fn stop(&mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.child.wait().unwrap();
    }

    /// CPU seconds and resident MiB.
    fn cost(&self) -> (f64, f64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: f64 = rss.trim().trim_end_matches(" kB").trim().parse().unwrap();
        (ticks / 100.0, kib / 1024.0)
    }

    async fn token(&self, uses: u32) -> JoinString {
        let mut admin = OperatorClient::connect(Target::Local(self.state.join("admin.sock"))).await.unwrap();
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses, purpose, note: String::new() };
        admin.create_token(token).await.unwrap().1.parse().unwrap()
    }
}

/// Rows of each part of a snapshot: about what an agent puts into a batch.
const PART_ROWS: usize = 50;

/// What all agents measured together.
#[derive(Default)]
struct Measured {
    rows: AtomicU64,
    reconnects: AtomicU64,
    /// Of batches that were sent while all agents were caught up, and of the others.
    steady: Mutex<Vec<Duration>>,
    storm: Mutex<Vec<Duration>>,
    /// Agents that are connected and whose snapshot was acknowledged.
    caught_up: AtomicU64,
}

impl Measured {
    /// Waits until all agents are caught up; how long that took, if it was in time.
    async fn all_caught_up(&self, agents: u32, until: Instant) -> Option<Duration> {
        let begun = Instant::now();
        while self.caught_up.load(Relaxed) < u64::from(agents) {
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(begun.elapsed())
    }
}

fn facts(number: u32) -> HostFacts {
    HostFacts {
        name: format!("sim{number:05}"),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.1.0".to_owned(),
        arch: "x86_64".to_owned(),
        boot_id: boot(number),
        addresses: vec![address(number)],
        ephemeral_ports: None,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        tier: Tier::T1,
        tier_reason: "simulated".to_owned(),
        netns: 4_026_531_840,
    }
}

fn boot(number: u32) -> BootId {
    let mut bytes = [7; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    BootId::from_array(bytes)
}

fn address(number: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 + number))
}

/// A socket like those of a busy host: one listener in five, sessions of a few processes.
fn socket(agent: u32, cookie: u64, now: Timestamp) -> Socket {
    let process = ["nginx", "postgres", "sshd", "node", "java", "chronyd"][(cookie % 6) as usize];
    let owner = Owner {
        pid: 1000 + (cookie % 6) as u32,
        started_at: Some(Timestamp::from_micros(1_790_000_000_000_000)),
        process: process.to_owned(),
        exe: format!("/usr/sbin/{process}"),
        uid: 100 + (cookie % 6) as u32,
        user: process.to_owned(),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
    };
    let listener = cookie.is_multiple_of(5);
    let peer = SocketAddr::new(address((agent * 31 + cookie as u32) % 10_000), 40_000 + (cookie % 20_000) as u16);
    Socket {
        key: SocketKey { netns: 4_026_531_840, cookie },
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        state: if listener { SocketState::Listen } else { SocketState::Established },
        local: SocketAddr::new(address(agent), if listener { (cookie % 30_000) as u16 + 1 } else { 443 }),
        path: None,
        role: if listener { Role::Listener } else { Role::Session { direction: Direction::In, peer } },
        opened_at: now,
        opened_known: Known::Event,
        owner_known: OwnerKnown::Exact,
        owners: vec![Arc::new(owner)],
        bytes_sent: 12_345,
        bytes_received: 678,
    }
}

/// One simulated agent.
struct Agent {
    number: u32,
    identity: Identity,
    last: BatchNumber,
    cookie: u64,
    arguments: Arguments,
    measured: Arc<Measured>,
}

impl Agent {
    fn snapshot(&mut self) -> Vec<Batch> {
        let now = Timestamp::now();
        self.cookie = self.cookie.max(u64::from(self.arguments.sockets));
        let open: Vec<u64> = (self.cookie - u64::from(self.arguments.sockets)..self.cookie).collect();
        let parts: Vec<&[u64]> = open.chunks(PART_ROWS).collect();
        let kind = |part: usize| match (part, parts.len()) {
            (_, 1) => BatchKind::SnapshotWhole,
            (0, _) => BatchKind::SnapshotBegin,
            (part, parts) if part + 1 == parts => BatchKind::SnapshotEnd,
            _ => BatchKind::SnapshotPart,
        };
        let present = |cookie: &u64| Change { op: Op::Present, socket: socket(self.number, *cookie, now) };
        let packed: Vec<(BatchKind, Vec<Change>)> =
            parts.iter().enumerate().map(|(number, part)| (kind(number), part.iter().map(present).collect())).collect();
        packed.into_iter().map(|(kind, changes)| self.batch(kind, now, changes)).collect()
    }

    fn changes(&mut self) -> Batch {
        let now = Timestamp::now();
        let mut changes = Vec::new();
        for _ in 0..self.arguments.rows / 2 {
            let oldest = self.cookie - u64::from(self.arguments.sockets);
            let closed = Op::Closed { at: now, known: Known::Event };
            changes.push(Change { op: closed, socket: socket(self.number, oldest, now) });
            changes.push(Change { op: Op::Opened, socket: socket(self.number, self.cookie, now) });
            self.cookie += 1;
        }
        self.batch(BatchKind::Changes, now, changes)
    }

    fn batch(&mut self, kind: BatchKind, now: Timestamp, changes: Vec<Change>) -> Batch {
        self.last.seq += 1;
        Batch {
            epoch: self.last.epoch,
            seq: self.last.seq,
            kind,
            boot_id: boot(self.number),
            observed_since: now,
            observed_until: now,
            changes,
            digest: None,
        }
    }

    /// Reports until the time is over; comes back when the server went away.
    async fn run(mut self, until: Instant, handshakes: Arc<Semaphore>) {
        while Instant::now() < until {
            let mut is_caught_up = false;
            let reported = self.report(until, &handshakes, &mut is_caught_up).await;
            self.measured.caught_up.fetch_sub(u64::from(is_caught_up), Relaxed);
            if reported.is_none() {
                self.measured.reconnects.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(200 + u64::from(self.number) % 800)).await;
            }
        }
    }

    async fn report(&mut self, until: Instant, handshakes: &Semaphore, is_caught_up: &mut bool) -> Option<()> {
        let permit = handshakes.acquire().await.ok()?;
        let mut client = AgentClient::connect_by(dial_from_source, &self.identity).await.ok()?;
        drop(permit);
        let (outgoing, receiver) = mpsc::channel(4);
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: Vec::new(),
            last: self.last,
            facts: facts(self.number),
            sent_at: Timestamp::now(),
        };
        outgoing.send(AgentMessage::Hello(hello)).await.ok()?;
        let mut incoming = client.session(receiver).await.ok()?;
        match incoming.next().await.ok()?? {
            // Simulated agents have no spool: what was not acknowledged begins anew.
            ServerMessage::Welcome(welcome) => self.last = BatchNumber { epoch: welcome.last.epoch + 1, seq: 0 },
            _ => return None,
        }
        // Spread over the interval, as real ones are.
        let offset = u64::from(self.number) * self.arguments.every / u64::from(self.arguments.agents);
        let mut next = Instant::now();
        while Instant::now() < until {
            let batches = if *is_caught_up { vec![self.changes()] } else { self.snapshot() };
            let steady = self.measured.caught_up.load(Relaxed) == u64::from(self.arguments.agents);
            let acks = if steady { &self.measured.steady } else { &self.measured.storm };
            let sent = Instant::now();
            let numbers: Vec<(BatchNumber, u64)> = batches
                .iter()
                .map(|batch| (BatchNumber { epoch: batch.epoch, seq: batch.seq }, batch.changes.len() as u64))
                .collect();
            for batch in batches {
                outgoing.send(AgentMessage::Batch(batch)).await.ok()?;
            }
            for (number, rows) in numbers {
                acknowledged(&mut incoming, number, self.number).await?;
                self.measured.rows.fetch_add(rows, Relaxed);
                acks.lock().await.push(sent.elapsed());
            }
            next += Duration::from_millis(if *is_caught_up { self.arguments.every } else { offset.max(1) });
            if !std::mem::replace(is_caught_up, true) {
                self.measured.caught_up.fetch_add(1, Relaxed);
            }
            tokio::time::sleep_until(next.min(until).into()).await;
        }
        Some(())
    }
}

/// Waits until a batch is acknowledged; `None` when the server went away.
async fn acknowledged(incoming: &mut ServerMessages, number: BatchNumber, agent: u32) -> Option<()> {
    loop {
        match incoming.next().await.ok()?? {
            ServerMessage::Ack(ack) if ack == number => return Some(()),
            ServerMessage::Credit(_) => {}
            // The server is stopped and started again.
            ServerMessage::Bye(_) => return None,
            other => {
                eprintln!("agent {agent}: {other:?}");
                return None;
            }
        }
    }
}

async fn enrolled(server: &Server, arguments: &Arguments, measured: &Arc<Measured>) -> Vec<Agent> {
    let join = Arc::new(server.token(arguments.agents).await);
    let at_once = Arc::new(Semaphore::new(64));
    let mut enrolling = JoinSet::new();
    for number in 0..arguments.agents {
        let (join, at_once) = (Arc::clone(&join), Arc::clone(&at_once));
        let (arguments, measured) = (arguments.clone(), Arc::clone(measured));
        enrolling.spawn(async move {
            let _permit = at_once.acquire().await.unwrap();
            let (name, key) = (format!("sim{number:05}"), Key::generate().unwrap());
            let enrolling = enroll_by(dial_from_source, &join, &name, key);
            let identity = SOURCE.scope(arguments.source(number), enrolling).await.unwrap();
            Agent { number, identity, last: BatchNumber::default(), cookie: 0, arguments, measured }
        });
    }
    enrolling.join_all().await
}

async fn load(arguments: Arguments) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("server");
    Server::init(&state);
    let mut server = Server::start(&state).await;
    let empty = server.cost().1;
    let measured = Arc::new(Measured::default());

    let begun = Instant::now();
    let agents = enrolled(&server, &arguments, &measured).await;
    let enrolment = f64::from(arguments.agents) / begun.elapsed().as_secs_f64();
    println!("enrolled {} agents, {enrolment:.0} per second", arguments.agents);

    let (cpu_before, begun) = (server.cost().0, Instant::now());
    let until = begun + Duration::from_secs(arguments.seconds);
    let handshakes = Arc::new(Semaphore::new(128));
    let mut running = JoinSet::new();
    for agent in agents {
        let source = arguments.source(agent.number);
        running.spawn(SOURCE.scope(source, agent.run(until, Arc::clone(&handshakes))));
    }
    let caught_up = measured.all_caught_up(arguments.agents, until).await;
    let mut rss_before = server.cost().1;
    let mut cpu = 0.0;
    let mut back = None;
    if arguments.restart {
        tokio::time::sleep_until((begun + Duration::from_secs(arguments.seconds / 2)).into()).await;
        cpu += server.cost().0 - cpu_before;
        server.stop();
        server = Server::start(&state).await;
        back = Some(measured.all_caught_up(arguments.agents, until).await);
        rss_before = server.cost().1;
    }
    let end = until - Duration::from_millis(500);
    let third = end.saturating_duration_since(Instant::now()) / 3;
    tokio::time::sleep(third).await;
    let rss_third = server.cost().1;
    tokio::time::sleep_until(end.into()).await;
    let (cpu_after, rss) = server.cost();
    cpu += if arguments.restart { cpu_after } else { cpu_after - cpu_before };
    running.join_all().await;
    let elapsed = begun.elapsed().as_secs_f64();
    report(&arguments, &measured, Figures { elapsed, cpu, empty, rss_before, rss_third, rss, caught_up, back }).await;
    server.stop();
}

struct Figures {
    elapsed: f64,
    cpu: f64,
    /// Memory without agents, when all were caught up (the steady phase begins), after a third of that phase, and at its
    /// end; MiB.
    empty: f64,
    rss_before: f64,
    rss_third: f64,
    rss: f64,
    caught_up: Option<Duration>,
    /// After a restart; `None` within when they did not all come back in time.
    back: Option<Option<Duration>>,
}

async fn report(arguments: &Arguments, measured: &Measured, figures: Figures) {
    let rows = measured.rows.load(Relaxed);
    let per_agent = (figures.rss - figures.empty) * 1024.0 / f64::from(arguments.agents);
    println!(
        "\n| {} agents from {} addresses, {} rows every {} ms, {:.0} s | |",
        arguments.agents, arguments.addresses, arguments.rows, arguments.every, figures.elapsed
    );
    println!("|---|---|");
    println!("| acknowledged rows | {rows}, {:.0}/s |", rows as f64 / figures.elapsed);
    for (what, acks) in [("steady", &measured.steady), ("while snapshots come", &measured.storm)] {
        let mut acks = acks.lock().await;
        acks.sort();
        let last = acks.len().saturating_sub(1) as f64;
        let at = |part: f64| acks.get((last * part) as usize).map_or(f64::NAN, |ack| ack.as_secs_f64() * 1000.0);
        println!(
            "| acknowledgement p50 / p90 / p99 / max, {what} ({}) | {:.1} / {:.1} / {:.1} / {:.1} ms |",
            acks.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
    let within =
        |time: Option<Duration>| time.map_or("not in time".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    println!("| CPU of the server | {:.1} s, {:.1} us per row |", figures.cpu, figures.cpu * 1e6 / rows as f64);
    println!(
        "| resident memory of the server | {:.0} MiB ({:.0} without agents, {:.0} when all were caught up), {per_agent:.0} KiB per agent |",
        figures.rss, figures.empty, figures.rss_before
    );
    println!(
        "| growth of that over the steady phase | {:+.1} MiB from its first third ({:.1}) to its end ({:.1}) |",
        figures.rss - figures.rss_third,
        figures.rss_third,
        figures.rss
    );
    println!("| connections lost | {} |", measured.reconnects.load(Relaxed));
    println!("| all connected and their snapshots acknowledged | {} |", within(figures.caught_up));
    if let Some(back) = figures.back {
        println!("| the same after a restart | {} |", within(back));
    }
}

fn main() {
    tls::install_provider();
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(load(arguments));
}
