//! What events add to walks: where an open socket comes from, and lives that ended, also those that no walk saw.

use std::{net::SocketAddr, sync::Arc};

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    owner::Owner,
    socket::{Direction, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
};
use foldhash::HashMap;

use super::{Open, Table};
use crate::{
    capture::Destroyed,
    lives::{Heard, Life, Purpose},
};

/// Most sockets that were closed by a walk and whose end is still expected. Beyond them an end may be told twice.
const EXPECTED_LIMIT: usize = 1_000_000;

/// A life that is over, as events tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// sk_cookie, or a stand-in when the kernel did not tell it; the network namespace is 0 when nobody was there to tell.
    pub key: SocketKey,
    /// What it was.
    pub life: Life,
    /// When it opened; absent when that was before the events began.
    pub opened_at: Option<Timestamp>,
    /// When it closed.
    pub closed_at: Timestamp,
    /// Whether that is when it closed, or when it was noticed that it had.
    pub closed_known: Known,
    /// Who opened it, then who closed it when that is another one.
    pub owners: Vec<Arc<Owner>>,
    /// How they are known.
    pub owner_known: OwnerKnown,
    /// Whether a record told of the end.
    pub heard: Heard,
}

impl Told {
    /// Whether this may be the end of something that is known by its cookie, which this end does not tell: it is older than
    /// the events, or the record of its beginning is missing too.
    fn is_known_by_its_pair(&self) -> bool {
        self.key.is_stand_in() && self.opened_at.is_none()
    }

    fn is_between(&self, netns: u64, local: SocketAddr, peer: SocketAddr) -> bool {
        (self.life.local, self.life.peer) == (local, peer) && (self.key.netns == 0 || self.key.netns == netns)
    }
}

/// Whose an open socket is of which a walk could not tell that, as events tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owned {
    /// The socket.
    pub key: SocketKey,
    /// Who opened it, then who closed it when that is another one.
    pub owners: Vec<Arc<Owner>>,
    /// How they are known.
    pub owner_known: OwnerKnown,
}

/// Where an open socket comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// When it opened; absent when that was before the events began.
    pub opened_at: Option<Timestamp>,
    /// Which end began it.
    pub direction: Option<Direction>,
    /// Its state by now; absent when that is not known better than by the walk.
    pub state: Option<SocketState>,
}

/// What is known beyond the rows of a walk, by the pair of a session.
pub trait Insight {
    /// Whether there are sessions that should have been seen and of which nobody said here that they were: [`Insight::origin`]
    /// is then asked for all that is open, also for what is known.
    fn doubts(&self) -> bool;
    /// Where the open socket with this key comes from; a walk has seen it.
    fn origin(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) -> Option<Origin>;
    /// The walk does not know whose it is: who knows better tells it to [`Table::own`] later.
    fn ask_owners(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr);
    /// When the socket closed that no walk sees any more.
    fn closed_at(&self, local: SocketAddr, peer: SocketAddr) -> Option<Timestamp>;
}

/// Nothing is known beyond the rows.
impl Insight for () {
    fn doubts(&self) -> bool {
        false
    }

    fn origin(&self, _key: SocketKey, _local: SocketAddr, _peer: SocketAddr) -> Option<Origin> {
        None
    }

    fn ask_owners(&self, _key: SocketKey, _local: SocketAddr, _peer: SocketAddr) {}

    fn closed_at(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<Timestamp> {
        None
    }
}

impl<I: Insight> Insight for Option<I> {
    fn doubts(&self) -> bool {
        self.as_ref().is_some_and(Insight::doubts)
    }

    fn origin(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) -> Option<Origin> {
        self.as_ref().and_then(|insight| insight.origin(key, local, peer))
    }

    fn ask_owners(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) {
        if let Some(insight) = self {
            insight.ask_owners(key, local, peer);
        }
    }

    fn closed_at(&self, local: SocketAddr, peer: SocketAddr) -> Option<Timestamp> {
        self.as_ref().and_then(|insight| insight.closed_at(local, peer))
    }
}

/// Ends that walks and events tell of alike, so that each is told once.
#[derive(Debug, Default)]
pub(super) struct Endings {
    /// Cookies whose end was told since the last walk began: it may still show them.
    told: HashMap<u64, Timestamp>,
    /// Cookies that a walk did not see any more and whose end was not told yet, with the number of the walk.
    expected: HashMap<u64, u64>,
    /// Sessions that the last walks did not see any more: their ends may be told without their cookies. Never more than were
    /// open.
    absent: Vec<Absent>,
}

/// A TCP session that a walk did not see any more.
#[derive(Debug)]
struct Absent {
    netns: u64,
    local: SocketAddr,
    peer: SocketAddr,
    walk: u64,
}

/// Walks after which an end is not expected any more: whoever holds a closed socket so long is told twice.
const EXPECTED_WALKS: u64 = 100_000;
/// Walks after which an end without a cookie is not expected any more: what a walk shows to be over is told by the next one.
const ABSENT_WALKS: u64 = 2;

impl Endings {
    /// Whether a row is of a socket that ended meanwhile.
    pub(super) fn has_ended(&self, key: SocketKey) -> bool {
        self.told.contains_key(&key.cookie)
    }

    /// A walk closed a socket.
    pub(super) fn expect(&mut self, socket: &Socket, walk: u64) {
        let Socket { key: SocketKey { netns, cookie }, local, .. } = *socket;
        if self.expected.len() < EXPECTED_LIMIT {
            self.expected.insert(cookie, walk);
        }
        if let (Protocol::Tcp, Role::Session { peer, .. }) = (socket.protocol, socket.role) {
            self.absent.push(Absent { netns, local, peer, walk });
        }
    }

    /// Whether an end is that of what a walk closed; that is not expected any more.
    fn was_expected(&mut self, told: &Told) -> bool {
        if !told.is_known_by_its_pair() {
            return self.expected.remove(&told.key.cookie).is_some();
        }
        let is_it = |absent: &Absent| told.is_between(absent.netns, absent.local, absent.peer);
        let found = self.absent.iter().position(is_it);
        found.map(|index| self.absent.swap_remove(index)).is_some()
    }

    /// A walk that began at `began` is applied: the next one cannot show what ended before.
    pub(super) fn walked(&mut self, began: Timestamp, walk: u64) {
        self.told.retain(|_, closed_at| *closed_at >= began);
        self.absent.retain(|absent| walk - absent.walk < ABSENT_WALKS);
        if walk.is_multiple_of(EXPECTED_WALKS / 4) {
            self.expected.retain(|_, closed| walk - *closed < EXPECTED_WALKS);
        }
    }
}

impl Table {
    /// Takes the end of a life, before the walk is applied after which it was told. A walk may have told it before.
    pub fn end(&mut self, told: Told) {
        self.endings.told.insert(told.key.cookie, told.closed_at);
        let open = if told.is_known_by_its_pair() { self.take_by_pair(&told) } else { self.take_by_cookie(told.key) };
        match open {
            Some(open) => self.ended.changes.push(close(open, told)),
            None if self.endings.was_expected(&told) => {}
            None => {
                let whole = self.whole(told);
                self.ended.unseen.push(whole);
            }
        }
    }

    /// The open socket with this cookie, whatever its namespace: cookies are given out once per boot (since Linux 5.10).
    fn take_by_cookie(&mut self, key: SocketKey) -> Option<Open> {
        let namespaces = self.namespaces.keys().copied().filter(|netns| *netns != key.netns);
        let key = [key.netns]
            .into_iter()
            .chain(namespaces)
            .map(|netns| SocketKey { netns, ..key })
            .find(|key| self.open.contains_key(key))?;
        self.take(key)
    }

    /// The open session that ended without its cookie. There are few such ends, so that all that is open is looked through.
    fn take_by_pair(&mut self, told: &Told) -> Option<Open> {
        let is_it = |Open { socket, .. }: &&Open| {
            let Role::Session { peer, .. } = socket.role else { return false };
            socket.protocol == Protocol::Tcp
                && socket.opened_at < told.closed_at
                && told.is_between(socket.key.netns, socket.local, peer)
        };
        let key = self.open.values().find(is_it)?.socket.key;
        // A walk that began before may still show it.
        self.endings.told.insert(key.cookie, told.closed_at);
        self.take(key)
    }

    /// Whether the socket with this cookie is open in one namespace.
    pub fn holds(&self, key: SocketKey) -> bool {
        self.open.contains_key(&key)
    }

    /// Takes the end of a socket that the kernel told of by its destruction, at a moment before the walk is applied. Like
    /// [`Table::end`] for what events do not tell; who had it and when it opened is known only if a walk saw it.
    pub fn depart(&mut self, gone: &Destroyed, at: Timestamp) {
        self.endings.told.insert(gone.key.cookie, at);
        if let Some(Open { socket, .. }) = self.take(gone.key) {
            let at = at.max(socket.opened_at);
            self.ended.changes.push(Change { op: Op::Closed { at, known: Known::Event }, socket });
        } else if self.endings.expected.remove(&gone.key.cookie).is_none()
            && let Some(peer) = gone.peer
        {
            let socket = self.passed_by(gone, peer, at);
            self.ended.unseen.push(Change { op: Op::Closed { at, known: Known::Event }, socket });
        }
    }

    /// A session that no walk saw, and that ended with a message. It opened after the last walk and not after its end.
    fn passed_by(&self, gone: &Destroyed, peer: SocketAddr, at: Timestamp) -> Socket {
        let Destroyed { key, protocol, family, local, .. } = *gone;
        let direction = if self.listeners.accept(key.netns, protocol, local) { Direction::In } else { Direction::Out };
        let state = SocketState::Established;
        let mut socket = Socket {
            key,
            protocol,
            family,
            state,
            local,
            path: None,
            role: Role::Session { direction, peer },
            opened_at: at,
            opened_known: self.opened_known(key.netns, protocol, state),
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        };
        self.ask_listener(&mut socket);
        socket
    }

    /// Takes the owners that events told of, before the walk is applied that may close the sockets.
    pub fn own(&mut self, owned: Vec<Owned>) {
        for Owned { key, owners, owner_known } in owned {
            if let Some(Open { socket, .. }) = self.open.get_mut(&key)
                && lacks_owners(socket)
                && !owners.is_empty()
            {
                (socket.owners, socket.owner_known) = (owners, owner_known);
                self.ended.changes.push(Change { op: Op::Updated, socket: socket.clone() });
            }
        }
    }

    /// Takes the states that events told of, after the walk was applied that is older than they are.
    pub fn restate(&mut self, states: Vec<(SocketKey, SocketState)>) -> Vec<Change> {
        let mut updated = Vec::new();
        for (key, state) in states {
            if let Some(Open { socket, .. }) = self.open.get_mut(&key)
                && socket.state != later(state, socket.state)
            {
                socket.state = state;
                updated.push(Change { op: Op::Updated, socket: socket.clone() });
            }
        }
        updated
    }

    /// A life that no walk saw.
    fn whole(&self, told: Told) -> Change {
        let Told { key, life, opened_at, closed_at, closed_known, owners, owner_known, heard: _ } = told;
        let role = match life.purpose {
            Purpose::Listener => Role::Listener,
            Purpose::Session(direction) => {
                let accepted = || self.listeners.accept(key.netns, Protocol::Tcp, life.local);
                let direction = direction.unwrap_or_else(|| if accepted() { Direction::In } else { Direction::Out });
                Role::Session { direction, peer: life.peer }
            }
        };
        let (opened_at, opened_known) = match opened_at {
            Some(at) => (at.min(closed_at), Known::Event),
            None => (closed_at, self.opened_known(key.netns, Protocol::Tcp, life.state)),
        };
        let mut socket = Socket {
            key,
            protocol: Protocol::Tcp,
            family: life.family,
            state: life.state,
            local: life.local,
            path: None,
            role,
            opened_at,
            opened_known,
            owner_known,
            owners,
            bytes_sent: 0,
            bytes_received: 0,
        };
        self.ask_listener(&mut socket);
        Change { op: Op::Closed { at: closed_at, known: closed_known }, socket }
    }
}

impl Table {
    /// Looks again which end began the sessions that were there before anything was seen, and ended since: now the listeners
    /// are known.
    pub(super) fn turn_first_seen(&self, unseen: &mut [Change]) {
        for Change { socket, .. } in unseen {
            let (known, key, protocol, local) = (socket.opened_known, socket.key, socket.protocol, socket.local);
            if let Role::Session { direction, .. } = &mut socket.role
                && known == Known::FirstSeen
                && self.listeners.accept(key.netns, protocol, local)
            {
                *direction = Direction::In;
                self.ask_listener(socket);
            }
        }
    }
}

/// The state by now of a socket that events left in one and that a walk saw in another one: events are as good as a walk,
/// and it may be older, but they do not tell of FIN_WAIT2.
pub(super) fn later(told: SocketState, seen: SocketState) -> SocketState {
    match (told, seen) {
        (SocketState::FinWait1, SocketState::FinWait2) => seen,
        _ => told,
    }
}

/// Whether nobody is known to have it, or only by guess.
pub(super) fn lacks_owners(socket: &Socket) -> bool {
    socket.owners.is_empty() || socket.owner_known == OwnerKnown::Listener
}

/// What a walk saw of a life, and how it ended.
fn close(open: Open, told: Told) -> Change {
    let mut socket = open.socket;
    socket.state = told.life.state;
    if lacks_owners(&socket) && !told.owners.is_empty() {
        (socket.owners, socket.owner_known) = (told.owners, told.owner_known);
    }
    if let Some(opened_at) = told.opened_at {
        (socket.opened_at, socket.opened_known) = (opened_at, Known::Event);
    }
    // A clock that was set back does not make a socket close before it opened.
    let at = told.closed_at.max(socket.opened_at);
    Change { op: Op::Closed { at, known: told.closed_known }, socket }
}
