//! A simulated agent: what it says of itself, its sockets, and its stream.

use std::{
    fmt::Display,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    client::{AgentClient, Dialling, ServerMessages, Wire},
    host::{BootId, HostFacts, Tier},
    identity::Identity,
    join::ServerAddress,
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::{AgentMessage, BatchNumber, Hello, PROTOCOL_VERSION, ServerMessage},
    time::Timestamp,
};
use tokio::{
    net::TcpSocket,
    sync::{Semaphore, mpsc},
};

use super::{Arguments, report::Measured};

/// Rows of each part of a snapshot: about what an agent puts into a batch.
const PART_ROWS: usize = 50;

/// Lost connections of each kind whose reason is printed; after a restart there are as many as agents.
const TOLD: u64 = 10;

tokio::task_local! {
    /// Where the agent comes from whose task this is.
    pub(super) static SOURCE: Ipv4Addr;
}

/// Lays a wire by TCP from the address of the agent.
pub(super) fn dial_from_source(address: ServerAddress) -> Dialling {
    Box::pin(async move {
        let server: SocketAddr = address.as_str().parse().map_err(io::Error::other)?;
        let socket = TcpSocket::new_v4()?;
        socket.bind((SOURCE.get(), 0).into())?;
        let tcp = socket.connect(server).await?;
        tcp.set_nodelay(true)?;
        Ok(Box::new(tcp) as Box<dyn Wire>)
    })
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

/// Why an agent has to connect again.
struct Gone {
    /// Whether its stream was open.
    is_connected: bool,
    reason: String,
}

/// It could not connect.
fn refused(reason: impl Display) -> Gone {
    Gone { is_connected: false, reason: format!("not connected: {reason}") }
}

/// Its stream broke off.
fn lost(reason: impl Display) -> Gone {
    Gone { is_connected: true, reason: format!("stream lost: {reason}") }
}

/// One simulated agent.
pub(super) struct Agent {
    pub(super) number: u32,
    pub(super) identity: Identity,
    pub(super) last: BatchNumber,
    pub(super) cookie: u64,
    pub(super) arguments: Arguments,
    pub(super) measured: Arc<Measured>,
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
            namespaces: Vec::new(),
        }
    }

    /// Reports until the time is over; comes back when the server went away.
    pub(super) async fn run(mut self, until: Instant, handshakes: Arc<Semaphore>) {
        while Instant::now() < until {
            let mut is_caught_up = false;
            let reported = self.report(until, &handshakes, &mut is_caught_up).await;
            self.measured.caught_up.fetch_sub(u64::from(is_caught_up), Relaxed);
            if let Err(why) = reported {
                let lost = if why.is_connected { &self.measured.lost } else { &self.measured.refused };
                if lost.fetch_add(1, Relaxed) < TOLD {
                    eprintln!("agent {}: {}", self.number, why.reason);
                }
                tokio::time::sleep(Duration::from_millis(200 + u64::from(self.number) % 800)).await;
            }
        }
    }

    async fn report(&mut self, until: Instant, handshakes: &Semaphore, is_caught_up: &mut bool) -> Result<(), Gone> {
        let permit = handshakes.acquire().await.map_err(refused)?;
        let mut client = AgentClient::connect_by(dial_from_source, &self.identity).await.map_err(refused)?;
        drop(permit);
        let (outgoing, receiver) = mpsc::channel(4);
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: Vec::new(),
            last: self.last,
            facts: facts(self.number),
            sent_at: Timestamp::now(),
        };
        outgoing.send(AgentMessage::Hello(hello)).await.map_err(refused)?;
        let mut incoming = client.session(receiver).await.map_err(refused)?;
        match incoming.next().await.map_err(refused)? {
            // Simulated agents have no spool: what was not acknowledged begins anew.
            Some(ServerMessage::Welcome(welcome)) => {
                self.last = BatchNumber { epoch: welcome.last.epoch + 1, seq: 0 };
            }
            other => return Err(refused(format!("{other:?} in place of a welcome"))),
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
                outgoing.send(AgentMessage::Batch(batch)).await.map_err(lost)?;
            }
            for (number, rows) in numbers {
                acknowledged(&mut incoming, number).await?;
                self.measured.rows.fetch_add(rows, Relaxed);
                acks.lock().await.push(sent.elapsed());
            }
            next += Duration::from_millis(if *is_caught_up { self.arguments.every } else { offset.max(1) });
            if !std::mem::replace(is_caught_up, true) {
                self.measured.caught_up.fetch_add(1, Relaxed);
            }
            tokio::time::sleep_until(next.min(until).into()).await;
        }
        Ok(())
    }
}

/// Waits until a batch is acknowledged.
async fn acknowledged(incoming: &mut ServerMessages, number: BatchNumber) -> Result<(), Gone> {
    loop {
        match incoming.next().await.map_err(lost)? {
            Some(ServerMessage::Ack(ack)) if ack == number => return Ok(()),
            Some(ServerMessage::Credit(_)) => {}
            Some(other) => return Err(lost(format!("{other:?}"))),
            None => return Err(lost("the server ended it")),
        }
    }
}
