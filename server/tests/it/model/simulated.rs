//! A host as its agent sees it: what is open, and what the agent tells when that changes.

use std::{collections::BTreeMap, net::SocketAddr};

use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    digest::Digest,
    socket::{
        Direction::{self, In, Out},
        Known, OwnerKnown, SocketState,
    },
    time::Timestamp,
};
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::scene::{Agent, Described, at, closed, end, listener, opened, owner, present, session, updated};

/// Something that happens on a host.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// A socket of this kind opens.
    Open(Kind),
    /// One opens and closes before anybody looks.
    Flash(Kind),
    /// One of the open ones closes, perhaps by a process that was not seen holding it.
    Close(Index, Option<u32>),
    /// Its owners change, perhaps to nobody.
    Own(Index, Vec<u32>),
    /// Its state and its counts of bytes change.
    Move(Index, u64),
    /// If it is unconnected, it connects, disconnects or connects elsewhere.
    Turn(Index, Told),
}

/// Kinds of sockets.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    TcpListener,
    UdpListener,
    TcpIn,
    TcpOut,
    UdpOut,
}

/// Whether the agent saw the end of the life before.
#[derive(Debug, Clone, Copy)]
pub(super) enum Told {
    Both,
    OnlyTheNext,
}

pub(super) fn any_event() -> impl Strategy<Value = Event> {
    let kind =
        || prop::sample::select(vec![Kind::TcpListener, Kind::UdpListener, Kind::TcpIn, Kind::TcpOut, Kind::UdpOut]);
    let which = any::<Index>;
    prop_oneof![
        4 => kind().prop_map(Event::Open),
        1 => kind().prop_map(Event::Flash),
        2 => (which(), prop::option::weighted(0.2, 1..6_u32)).prop_map(|(which, by)| Event::Close(which, by)),
        2 => (which(), vec(1..6_u32, 0..3)).prop_map(|(which, pids)| Event::Own(which, pids)),
        1 => (which(), 0..100_u64).prop_map(|(which, bytes)| Event::Move(which, bytes)),
        2 => (which(), prop::sample::select(vec![Told::Both, Told::OnlyTheNext]))
            .prop_map(|(which, told)| Event::Turn(which, told)),
    ]
}

/// By which addresses hosts connect to each other.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// Each has its own.
    Own,
    /// Two of them have the same.
    Shared,
    /// Each has it.
    Loopback,
}

pub(super) fn any_way() -> impl Strategy<Value = Way> {
    prop::sample::select(vec![Way::Own, Way::Own, Way::Shared, Way::Loopback])
}

impl Way {
    /// A socket of a host.
    pub(super) fn socket(self, host: usize, port: u16) -> SocketAddr {
        let last = u8::try_from(host).unwrap();
        let address = match self {
            Way::Own => [10, 1, 0, last],
            Way::Shared => [10, 2, 0, last / 2],
            Way::Loopback => [127, 0, 0, 1],
        };
        SocketAddr::from((address, port))
    }
}

/// A host and its agent.
#[derive(Debug)]
pub(super) struct Simulated {
    pub(super) agent: Agent,
    ahead: i64,
    open: BTreeMap<u64, Socket>,
    cookie: u64,
    /// Makes addresses and ports differ.
    made: u16,
}

impl Simulated {
    pub(super) fn new(agent: Agent, ahead: i64) -> Simulated {
        Simulated { agent, ahead, open: BTreeMap::new(), cookie: 0, made: 0 }
    }

    /// What the host's clock shows at that second.
    pub(super) fn clock(&self, second: i64) -> Timestamp {
        at(second + self.ahead)
    }

    pub(super) fn batch(&mut self, kind: BatchKind, second: i64, changes: Vec<Change>) -> Batch {
        let walk = self.clock(second);
        self.agent.batch(kind, walk, changes)
    }

    pub(super) fn digest(&self) -> Digest {
        self.open.values().collect()
    }

    pub(super) fn snapshot(&self) -> Vec<Change> {
        self.open.values().cloned().map(present).collect()
    }

    /// The agent starts anew and remembers nothing; after a reboot nothing is open, and cookies, addresses and ports are
    /// those of before.
    pub(super) fn restart(&mut self, reboot: bool, second: i64) {
        if reboot {
            self.agent.reboot();
            self.open.clear();
            (self.cookie, self.made) = (0, 0);
            self.happen(Event::Open(Kind::TcpListener), second);
        } else {
            self.agent.restart();
        }
        let now = self.clock(second);
        for socket in self.open.values_mut() {
            (socket.opened_at, socket.opened_known) = (now, Known::FirstSeen);
        }
    }

    fn make(&mut self, kind: Kind, cookie: u64, second: i64) -> Socket {
        self.made += 1;
        let port = self.made;
        let local = format!("10.0.0.1:{port}");
        // Few ports, so that they are listened on again, here and there.
        let any = format!("{}:{}", ["127.0.0.1", "10.0.0.1", "0.0.0.0"][usize::from(port % 3)], 1 + port % 4);
        let socket = match kind {
            Kind::TcpListener => listener(cookie, &any),
            Kind::UdpListener => listener(cookie, &any).udp(),
            Kind::TcpIn => session(cookie, &local, In, "10.0.0.9:4000"),
            Kind::TcpOut => session(cookie, "[2001:db8::1]:4000", Out, &format!("[2001:db8::9]:{port}")),
            Kind::UdpOut => session(cookie, &local, Out, "10.0.0.9:53").udp(),
        };
        socket.since(second + self.ahead).known(Known::BetweenWalks)
    }

    fn pick(&self, which: Index) -> Option<Socket> {
        if self.open.is_empty() { None } else { self.open.values().nth(which.index(self.open.len())).cloned() }
    }

    /// What the agent tells of it.
    pub(super) fn happen(&mut self, event: Event, second: i64) -> Vec<Change> {
        let now = second + self.ahead;
        match event {
            Event::Open(kind) => {
                self.cookie += 1;
                let socket = self.make(kind, self.cookie, second);
                self.tell(opened, socket)
            }
            Event::Flash(kind) => {
                self.cookie += 1;
                let socket = self.make(kind, self.cookie, second).known(Known::Event);
                vec![closed(socket, now)]
            }
            Event::Close(which, by) => {
                let Some(socket) = self.pick(which) else { return Vec::new() };
                self.open.remove(&socket.key.cookie);
                let socket = match by {
                    Some(pid) => Socket { owner_known: OwnerKnown::Closer, ..socket.held_by(&[owner("closer", pid)]) },
                    None => socket,
                };
                vec![closed(socket, now)]
            }
            Event::Own(which, pids) => {
                let Some(socket) = self.pick(which) else { return Vec::new() };
                let owners: Vec<_> =
                    pids.into_iter().map(|pid| owner(["daemon", "helper"][pid as usize / 4], pid)).collect();
                self.tell(updated, socket.held_by(&owners))
            }
            Event::Move(which, bytes) => {
                let Some(socket) = self.pick(which) else { return Vec::new() };
                if socket.role == Role::Listener {
                    return Vec::new();
                }
                let state = if bytes % 2 == 0 { SocketState::Established } else { SocketState::CloseWait };
                let moved = Socket { state, bytes_sent: bytes, bytes_received: 100 - bytes, ..socket };
                self.tell(updated, moved)
            }
            Event::Turn(which, told) => self.turn(which, told, second),
        }
    }

    /// What the agent tells of one end of a connection.
    pub(super) fn connect(
        &mut self,
        (local, direction, peer): (SocketAddr, Direction, SocketAddr),
        short: bool,
        second: i64,
    ) -> Change {
        self.cookie += 1;
        let now = second + self.ahead;
        let socket = session(self.cookie, &local.to_string(), direction, &peer.to_string()).since(now);
        let socket = socket.held_by(&[owner("daemon", u32::from(local.port() % 5) + 1)]);
        if short {
            return closed(socket, now);
        }
        self.open.insert(socket.key.cookie, socket.clone());
        opened(socket)
    }

    fn tell(&mut self, change: fn(Socket) -> Change, socket: Socket) -> Vec<Change> {
        self.open.insert(socket.key.cookie, socket.clone());
        vec![change(socket)]
    }

    fn turn(&mut self, which: Index, told: Told, second: i64) -> Vec<Change> {
        let before = self.pick(which).filter(|socket| socket.state == SocketState::Unconnected || is_udp(socket));
        let Some(before) = before else { return Vec::new() };
        self.made += 1;
        let peer = end(&format!("10.0.1.1:{}", self.made));
        let (role, state) = match before.role {
            Role::Session { .. } if self.made.is_multiple_of(3) => (Role::Listener, SocketState::Unconnected),
            _ => (Role::Session { direction: Out, peer }, SocketState::Established),
        };
        let after = Socket { role, state, owner_known: OwnerKnown::Unknown, owners: Vec::new(), ..before.clone() };
        let mut changes = self.tell(opened, after.since(second + self.ahead));
        // A role that ends is always told: listeners and sessions are kept apart.
        let same_role = matches!((before.role, role), (Role::Session { .. }, Role::Session { .. }));
        if matches!(told, Told::Both) || !same_role {
            changes.insert(0, closed(before, second + self.ahead));
        }
        changes
    }
}

fn is_udp(socket: &Socket) -> bool {
    socket.protocol == fleetsock_proto::socket::Protocol::Udp
}

/// The moment of a closing.
pub(super) fn end_of(op: Op) -> Option<(Timestamp, Known)> {
    match op {
        Op::Closed { at, known } => Some((at, known)),
        Op::Opened | Op::Updated | Op::Present => None,
    }
}
