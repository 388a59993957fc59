//! Words for telling what agents saw: sockets, changes, batches, and how answers read.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    host::{BootId, HostFacts, HostId, Tier},
    listener::Listener,
    owner::Owner,
    session::Session,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::BatchNumber,
    time::Timestamp,
};

/// The network namespace of all sockets here.
pub(crate) const NETNS: u64 = 4_026_531_840;

/// So many seconds after the scene begins.
pub(crate) fn at(seconds: i64) -> Timestamp {
    Timestamp::from_micros(crate::now().as_micros() + seconds * 1_000_000)
}

/// A process, known by name and pid.
pub(crate) fn owner(process: &str, pid: u32) -> Arc<Owner> {
    Arc::new(Owner {
        pid,
        started_at: Some(at(-1000 - i64::from(pid))),
        process: process.to_owned(),
        exe: format!("/usr/sbin/{process}"),
        uid: 100,
        user: format!("_{process}"),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
    })
}

/// An address and port.
pub(crate) fn end(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn socket(cookie: u64, local: SocketAddr, role: Role, state: SocketState) -> Socket {
    Socket {
        key: SocketKey { netns: NETNS, cookie },
        protocol: Protocol::Tcp,
        family: if local.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
        state,
        local,
        path: None,
        role,
        opened_at: at(0),
        opened_known: Known::Event,
        owner_known: OwnerKnown::None,
        owners: Vec::new(),
        bytes_sent: 0,
        bytes_received: 0,
    }
}

/// A TCP listener that nobody holds, open since the scene began.
pub(crate) fn listener(cookie: u64, local: &str) -> Socket {
    socket(cookie, end(local), Role::Listener, SocketState::Listen)
}

/// A UNIX listener that nobody holds, open since the scene began.
pub(crate) fn unix(cookie: u64, path: &str) -> Socket {
    let listener = socket(cookie, end("127.0.0.1:1"), Role::Listener, SocketState::Listen);
    Socket { protocol: Protocol::Unix, family: Family::Unix, path: Some(path.into()), ..listener }
}

/// A TCP session that nobody holds, open since the scene began.
pub(crate) fn session(cookie: u64, local: &str, direction: Direction, peer: &str) -> Socket {
    socket(cookie, end(local), Role::Session { direction, peer: end(peer) }, SocketState::Established)
}

/// What else there is to say about a socket.
pub(crate) trait Described: Sized {
    /// When it opened; the kernel said so.
    fn since(self, seconds: i64) -> Self;
    /// How the opening is known.
    fn known(self, known: Known) -> Self;
    /// Who holds it.
    fn held_by(self, owners: &[Arc<Owner>]) -> Self;
    /// It is a UDP socket.
    fn udp(self) -> Self;
}

impl Described for Socket {
    fn since(self, seconds: i64) -> Socket {
        Socket { opened_at: at(seconds), ..self }
    }

    fn known(self, known: Known) -> Socket {
        Socket { opened_known: known, ..self }
    }

    fn held_by(self, owners: &[Arc<Owner>]) -> Socket {
        let owner_known = if owners.is_empty() { OwnerKnown::Unknown } else { OwnerKnown::Exact };
        Socket { owners: owners.to_vec(), owner_known, ..self }
    }

    fn udp(self) -> Socket {
        let state = if self.role == Role::Listener { SocketState::Unconnected } else { SocketState::Established };
        Socket { protocol: Protocol::Udp, state, ..self }
    }
}

pub(crate) fn opened(socket: Socket) -> Change {
    Change { op: Op::Opened, socket }
}

pub(crate) fn updated(socket: Socket) -> Change {
    Change { op: Op::Updated, socket }
}

pub(crate) fn present(socket: Socket) -> Change {
    Change { op: Op::Present, socket }
}

/// The kernel said when it closed.
pub(crate) fn closed(socket: Socket, seconds: i64) -> Change {
    Change { op: Op::Closed { at: at(seconds), known: Known::Event }, socket }
}

/// An agent's numbering.
#[derive(Debug, Clone)]
pub(crate) struct Agent {
    pub(crate) host: HostId,
    pub(crate) boot: u8,
    pub(crate) last: BatchNumber,
    walked: Timestamp,
}

impl Agent {
    /// An agent that starts for the first time.
    pub(crate) fn of(host: HostId) -> Agent {
        Agent { host, boot: 1, last: BatchNumber { epoch: 1, seq: 0 }, walked: at(0) }
    }

    /// It starts again and numbers anew.
    pub(crate) fn restart(&mut self) {
        self.last = BatchNumber { epoch: self.last.epoch + 1, seq: 0 };
    }

    /// Its host starts again, and it with it.
    pub(crate) fn reboot(&mut self) {
        self.boot += 1;
        self.restart();
    }

    /// Its next batch, about a walk made then.
    pub(crate) fn batch(&mut self, kind: BatchKind, walk: Timestamp, changes: Vec<Change>) -> Batch {
        self.last.seq += 1;
        let observed_since = std::mem::replace(&mut self.walked, walk);
        Batch {
            epoch: self.last.epoch,
            seq: self.last.seq,
            kind,
            boot_id: BootId::from_array([self.boot; 16]),
            observed_since,
            observed_until: walk,
            changes,
            digest: None,
            namespaces: Vec::new(),
        }
    }

    /// Its next batch, with another number.
    pub(crate) fn numbered(&self, epoch: u64, seq: u64, kind: BatchKind, changes: Vec<Change>) -> Batch {
        Batch { epoch, seq, ..self.clone().batch(kind, self.walked, changes) }
    }
}

/// What a host says of itself.
pub(crate) fn facts(name: &str, addresses: &[IpAddr]) -> HostFacts {
    HostFacts {
        name: name.to_owned(),
        os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
        kernel: "6.1.0".to_owned(),
        arch: "x86_64".to_owned(),
        boot_id: BootId::from_array([1; 16]),
        addresses: addresses.to_vec(),
        ephemeral_ports: None,
        agent_version: "0.1.0".to_owned(),
        tier: Tier::T1,
        tier_reason: String::new(),
        netns: NETNS,
    }
}

/// Seconds since the scene began, and how they are known.
fn moment(at: Timestamp, known: Known) -> String {
    let us = at.as_micros() - crate::now().as_micros();
    if us % 1_000_000 == 0 { format!("{}({known})", us / 1_000_000) } else { format!("{us}us({known})") }
}

fn life(opened_at: Timestamp, opened_known: Known, closed: Option<(Timestamp, Known)>) -> String {
    let closed = closed.map(|(at, known)| moment(at, known)).unwrap_or_default();
    format!("{}..{closed}", moment(opened_at, opened_known))
}

fn holders(owners: &[Owner]) -> String {
    owners.iter().fold(String::new(), |mut text, owner| {
        write!(text, " {}/{}", owner.process, owner.pid).unwrap();
        text
    })
}

/// A listener in one line: `web1 tcp 0.0.0.0:22 10(event)..20(lost) sshd/7`.
pub(crate) fn listener_line(row: &Listener) -> String {
    let Listener { host, protocol, address, port, .. } = row;
    let local = address.with_port(*port);
    let life = life(row.opened_at, row.opened_known, row.closed);
    format!("{host} {protocol} {local} {life}{}", holders(&row.owners))
}

/// A session in one line: `web1 tcp 10.0.0.1:443 in 10.0.0.9:4000 10(event)..20(lost) nginx/7`.
pub(crate) fn session_line(row: &Session) -> String {
    let Session { host, protocol, local, direction, peer, .. } = row;
    let life = life(row.opened_at, row.opened_known, row.closed);
    format!("{host} {protocol} {local} {direction} {peer} {life}{}", holders(&row.owners))
}
