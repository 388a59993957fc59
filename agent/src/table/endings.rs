//! What events add to walks: where an open socket comes from, and lives that ended, also those that no walk saw.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    owner::Owner,
    socket::{Direction, Known, OwnerKnown, Protocol, SocketKey},
    time::Timestamp,
};

use super::{Open, Table};
use crate::lives::{Life, Purpose};

/// Most sockets that were closed by a walk and whose end is still expected. Beyond them an end may be told twice.
const EXPECTED_LIMIT: usize = 1_000_000;

/// A life that is over, as events tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// sk_cookie; the network namespace is 0 when nobody was there to tell.
    pub key: SocketKey,
    /// What it was.
    pub life: Life,
    /// When it opened; absent when that was before the events began.
    pub opened_at: Option<Timestamp>,
    /// When it closed.
    pub closed_at: Timestamp,
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
}

/// What is known beyond the rows of a walk, by the pair of a session.
pub trait Insight {
    /// Where the open socket comes from.
    fn origin(&self, local: SocketAddr, peer: SocketAddr) -> Option<Origin>;
    /// When the socket closed that no walk sees any more.
    fn closed_at(&self, local: SocketAddr, peer: SocketAddr) -> Option<Timestamp>;
}

/// Nothing is known beyond the rows.
impl Insight for () {
    fn origin(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<Origin> {
        None
    }

    fn closed_at(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<Timestamp> {
        None
    }
}

impl<I: Insight> Insight for Option<I> {
    fn origin(&self, local: SocketAddr, peer: SocketAddr) -> Option<Origin> {
        self.as_ref().and_then(|insight| insight.origin(local, peer))
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
}

/// Walks after which an end is not expected any more: whoever holds a closed socket so long is told twice.
const EXPECTED_WALKS: u64 = 100_000;

impl Endings {
    /// Whether a row is of a socket that ended meanwhile.
    pub(super) fn has_ended(&self, key: SocketKey) -> bool {
        self.told.contains_key(&key.cookie)
    }

    /// A walk closed a socket.
    pub(super) fn expect(&mut self, key: SocketKey, walk: u64) {
        if self.expected.len() < EXPECTED_LIMIT {
            self.expected.insert(key.cookie, walk);
        }
    }

    /// A walk that began at `began` is applied: the next one cannot show what ended before.
    pub(super) fn walked(&mut self, began: Timestamp, walk: u64) {
        self.told.retain(|_, closed_at| *closed_at >= began);
        if walk.is_multiple_of(EXPECTED_WALKS / 4) {
            self.expected.retain(|_, closed| walk - *closed < EXPECTED_WALKS);
        }
    }
}

impl Table {
    /// Takes the end of a life, before the walk is applied after which it was told. A walk may have told it before.
    pub fn end(&mut self, told: Told) {
        self.endings.told.insert(told.key.cookie, told.closed_at);
        match self.take_by_cookie(told.key) {
            Some(open) => self.ended.changes.push(close(open, told)),
            None if self.endings.expected.remove(&told.key.cookie).is_some() => {}
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
        let open = self.open.remove(&key)?;
        self.forget_namespace(key.netns);
        if open.socket.role == Role::Listener {
            self.listeners.remove(&open.socket);
        }
        Some(open)
    }

    /// A life that no walk saw.
    fn whole(&self, told: Told) -> Change {
        let Told { key, life, opened_at, closed_at, owners, owner_known } = told;
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
            None => (closed_at, Known::FirstSeen),
        };
        let socket = Socket {
            key,
            protocol: Protocol::Tcp,
            family: life.family,
            state: life.state,
            local: life.local,
            role,
            opened_at,
            opened_known,
            owner_known,
            owners,
            bytes_sent: 0,
            bytes_received: 0,
        };
        Change { op: Op::Closed { at: closed_at, known: Known::Event }, socket }
    }
}

/// What a walk saw of a life, and how it ended.
fn close(open: Open, told: Told) -> Change {
    let mut socket = open.socket;
    if socket.owners.is_empty() && !told.owners.is_empty() {
        (socket.owners, socket.owner_known) = (told.owners, told.owner_known);
    }
    if let Some(opened_at) = told.opened_at {
        (socket.opened_at, socket.opened_known) = (opened_at, Known::Event);
    }
    // A clock that was set back does not make a socket close before it opened.
    let at = told.closed_at.max(socket.opened_at);
    Change { op: Op::Closed { at, known: Known::Event }, socket }
}
