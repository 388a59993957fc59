//! A life of a socket, as far as events told of it.

use std::net::{IpAddr, SocketAddr};

use fleetsock_proto::socket::{Direction, Family, SocketKey, SocketState};

use crate::events::{Actor, SocketEvent};

/// What a life was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It waited for connections.
    Listener,
    /// It was a connection, or an attempt at one; the direction is not known when it began before the events did.
    Session(Option<Direction>),
}

/// Who did something to a socket, and when: later the number may be that of another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deed {
    /// The process.
    pub pid: u32,
    /// When (nanoseconds, the clock of the events).
    pub at_ns: u64,
}

impl Deed {
    /// Of a process; what the kernel does on its own is nobody's, and a thread whose process is not known is not guessed at.
    pub(super) const fn of(actor: Actor, at_ns: u64) -> Option<Deed> {
        match actor {
            Actor::Process(pid) => Some(Deed { pid, at_ns }),
            Actor::Thread(_) | Actor::Kernel => None,
        }
    }
}

/// A life, or what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Family of the socket.
    pub family: Family,
    /// The host's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// What it was for.
    pub purpose: Purpose,
    /// The last state before it was closed.
    pub state: SocketState,
    /// When it opened (nanoseconds, the clock of the events); absent when that was before the events began.
    pub opened_ns: Option<u64>,
    /// The process that connected.
    pub opener: Option<Deed>,
    /// The process that closed.
    pub closer: Option<Deed>,
    /// When it closed.
    pub closed_ns: Option<u64>,
}

/// Whether a record told of an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It did.
    Told,
    /// The end was noticed, and is a loss wherever its life counts.
    Missed,
}

/// A life that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// sk_cookie; absent when the record that names it did not come.
    pub cookie: Option<u64>,
    /// The whole of it.
    pub life: Life,
    /// When it closed; or, if no record told so, when it was noticed that it had.
    pub closed_ns: u64,
    /// What a walk that saw it knows it by.
    pub walked: Option<SocketKey>,
    /// Whether a record told of the end.
    pub heard: Heard,
}

impl Ended {
    /// The end of a life that no walk saw, at `at_ns` unless it was closed before.
    pub(super) fn told(cookie: Option<u64>, life: Life, at_ns: u64) -> Ended {
        Ended { cookie, life, closed_ns: life.closed_ns.unwrap_or(at_ns), walked: None, heard: Heard::Told }
    }
}

/// An open socket of which a walk does not know whose it is, and events know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// What the walk knows it by.
    pub key: SocketKey,
    /// The process that connected.
    pub opener: Option<Deed>,
    /// The process that closed.
    pub closer: Option<Deed>,
}

/// A socket pair in a form that is quick to hash and compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    local: u128,
    peer: u128,
    ports: u32,
}

impl Pair {
    pub(super) fn new(local: SocketAddr, peer: SocketAddr) -> Pair {
        // Addresses are normalised, so that none is both an IPv4 one and its mapped form.
        let number = |end: SocketAddr| match end.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => address.to_bits(),
        };
        let ports = u32::from(local.port()) << 16 | u32::from(peer.port());
        Pair { local: number(local), peer: number(peer), ports }
    }

    pub(super) fn of(event: &SocketEvent) -> Pair {
        Pair::new(event.local, event.peer)
    }
}

impl Life {
    pub(super) fn pair(&self) -> Pair {
        Pair::new(self.local, self.peer)
    }

    /// Whether a process closed it: when the peer did so too it is over, which no record tells by itself as long as a process
    /// holds the socket.
    pub(super) fn is_ending(&self) -> bool {
        use SocketState::{Closing, FinWait1, FinWait2, LastAck};
        matches!(self.state, FinWait1 | FinWait2 | Closing | LastAck)
    }

    /// Whose it is, if that is known.
    pub(super) fn asked(&self, key: SocketKey) -> Option<Asked> {
        let Life { opener, closer, .. } = *self;
        opener.or(closer).map(|_| Asked { key, opener, closer })
    }

    pub(super) fn new(event: &SocketEvent, purpose: Purpose, state: SocketState) -> Life {
        Life {
            family: event.family,
            local: event.local,
            peer: event.peer,
            purpose,
            state,
            opened_ns: None,
            opener: None,
            closer: None,
            closed_ns: None,
        }
    }
}
