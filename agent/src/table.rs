//! Which sockets are open, and what changed between two walks. Pure: no I/O, no clock.
//!
//! A comparison has two steps, so that owners are looked for only when something unknown appeared:
//! [`Table::wanted`] names the inodes, [`Table::apply`] takes what a scan found and gives the changes.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use fleetsock_proto::{
    batch::{Change, Op, Role, SOCKET_OWNERS_LIMIT, Socket},
    owner::Owner,
    socket::{Direction, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
};

use self::{endings::Endings, listeners::Listeners};
use crate::{
    capture::SocketRow,
    owners::{OwnerScan, Wanted},
};

mod endings;
mod listeners;
#[cfg(test)]
mod tests;

pub use self::endings::{Insight, Origin, Told};

/// Most sockets that are kept; further ones are counted as lost.
pub const TABLE_SOCKETS_LIMIT: usize = 1_000_000;

/// Whose owners are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Search {
    /// Those of sockets that are new, or that a process accepted since the walk before.
    Unknown,
    /// Everybody's: owners come and go while a socket stays (fork, passing of descriptors, exit).
    Referee,
}

/// Whether a walk saw every socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completeness {
    /// It did: a socket that is not in it is closed.
    Whole,
    /// Something was lost on the way: what is not in it may be open.
    Partial,
}

/// A walk of the kernel's socket table.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    /// What it saw.
    pub rows: &'a [SocketRow],
    /// When it began: what opens from now on may not be in it.
    pub began: Timestamp,
    /// When it was done: what it saw had opened by then, what it did not see had closed.
    pub at: Timestamp,
    /// Whether it saw everything.
    pub completeness: Completeness,
}

/// What changed between two walks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Closed ones first, then updated, then opened ones; a key that changed its role closes before it opens.
    pub changes: Vec<Change>,
    /// Lives that began and ended without any walk that saw them: no snapshot names them either.
    pub unseen: Vec<Change>,
    /// Sockets beyond [`TABLE_SOCKETS_LIMIT`] that were not beyond it before.
    pub sockets_lost: u64,
    /// Owners beyond [`SOCKET_OWNERS_LIMIT`] of a socket.
    pub owners_lost: u64,
}

/// The open sockets of a host.
#[derive(Debug)]
pub struct Table {
    open: HashMap<SocketKey, Open>,
    listeners: Listeners,
    /// Network namespaces of open sockets, with how many each has.
    namespaces: HashMap<u64, usize>,
    endings: Endings,
    /// What ended since the last walk.
    ended: Comparison,
    limit: usize,
    /// Number of the walk that is being applied.
    walk: u64,
    /// When the last walk began that saw everything, and when the last one was done.
    whole_at: Option<Timestamp>,
    last_at: Option<Timestamp>,
    /// Sockets of the last walk that had no room.
    beyond: u64,
}

#[derive(Debug)]
struct Open {
    socket: Socket,
    inode: u64,
    /// The last walk that saw it.
    walk: u64,
}

impl Default for Table {
    fn default() -> Table {
        Table::with_limit(TABLE_SOCKETS_LIMIT)
    }
}

/// What a row is for; `None` when it is neither (a TCP socket that is bound and does not listen).
fn purpose(row: &SocketRow) -> Option<Purpose> {
    match (row.state, row.peer) {
        (SocketState::Listen, _) => Some(Purpose::Listener),
        (_, Some(peer)) => Some(Purpose::Session(peer)),
        (SocketState::Unconnected, None) if row.protocol == Protocol::Udp => Some(Purpose::Listener),
        (_, None) => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Listener,
    Session(std::net::SocketAddr),
}

/// A row of a socket that opened, and the owners that its key had in an earlier life.
struct Fresh<'a> {
    row: &'a SocketRow,
    purpose: Purpose,
    owners: (Vec<Arc<Owner>>, OwnerKnown),
}

/// Whether the row is still the life of a socket that `socket` began. A UDP socket that connects, disconnects or
/// connects elsewhere keeps its cookie and begins another life.
fn same_life(socket: &Socket, row: &SocketRow, purpose: Purpose) -> bool {
    let role = match socket.role {
        Role::Listener => Purpose::Listener,
        Role::Session { peer, .. } => Purpose::Session(peer),
    };
    role == purpose && socket.local == row.local && socket.protocol == row.protocol
}

impl Table {
    /// An empty table for at most `limit` sockets.
    pub fn with_limit(limit: usize) -> Table {
        Table {
            open: HashMap::new(),
            listeners: Listeners::default(),
            namespaces: HashMap::new(),
            endings: Endings::default(),
            ended: Comparison::default(),
            limit,
            walk: 0,
            whole_at: None,
            last_at: None,
            beyond: 0,
        }
    }

    /// How many sockets are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// When the last walk began that saw everything: what the next one finds changed, changed after that.
    pub fn observed_since(&self) -> Option<Timestamp> {
        self.whole_at
    }

    /// When the last walk was done.
    pub fn observed_until(&self) -> Option<Timestamp> {
        self.last_at
    }

    /// Every open socket, as rows of a snapshot.
    pub fn snapshot(&self) -> impl Iterator<Item = Change> + '_ {
        self.open.values().map(|open| Change { op: Op::Present, socket: open.socket.clone() })
    }

    /// Step one: the inodes whose owners are to be looked for before the walk is applied.
    pub fn wanted(&self, rows: &[SocketRow], search: Search) -> Wanted {
        let unknown = |row: &&SocketRow| {
            row.inode != 0
                && (search == Search::Referee || self.open.get(&row.key).is_none_or(|open| open.inode != row.inode))
        };
        rows.iter().filter(unknown).map(|row| row.inode).collect()
    }

    /// Step two: takes a walk, what was wanted of it, what was found, and what is known beyond it.
    pub fn apply(&mut self, walk: Walk<'_>, wanted: &Wanted, scan: &OwnerScan, insight: &impl Insight) -> Comparison {
        self.walk += 1;
        let search = Found { wanted, scan };
        let mut comparison = std::mem::take(&mut self.ended);
        let mut updated = Vec::new();
        // Listeners that close now still explain sessions that were accepted before.
        let mut closed_listeners = Vec::new();
        let mut fresh = Vec::new();
        // A dump can show a socket twice when it moves between the kernel's lists; the first row counts.
        let mut fresh_keys = HashSet::new();
        let mut seen = 0;
        for row in walk.rows {
            let Some(purpose) = purpose(row) else { continue };
            if self.endings.has_ended(row.key) {
                continue;
            }
            match self.open.get_mut(&row.key) {
                Some(open) if open.walk == self.walk => {}
                Some(open) if same_life(&open.socket, row, purpose) => {
                    open.walk = self.walk;
                    seen += 1;
                    if open.update(row, &search, &mut comparison.owners_lost) {
                        updated.push(Change { op: Op::Updated, socket: open.socket.clone() });
                    }
                }
                Some(open) => {
                    // The same descriptor goes on with another peer: whoever held it holds it.
                    let owners = (open.socket.owners.clone(), open.socket.owner_known);
                    self.close(row.key, walk.at, &(), &mut comparison.changes, &mut closed_listeners);
                    fresh_keys.insert(row.key);
                    fresh.push(Fresh { row, purpose, owners });
                }
                None if !fresh_keys.insert(row.key) => {}
                None => fresh.push(Fresh { row, purpose, owners: (Vec::new(), OwnerKnown::None) }),
            }
        }
        if walk.completeness == Completeness::Whole && seen < self.open.len() {
            let unseen = |open: &&Open| open.walk != self.walk;
            let gone: Vec<SocketKey> = self.open.values().filter(unseen).map(|open| open.socket.key).collect();
            for key in gone {
                self.endings.expect(key, self.walk);
                self.close(key, walk.at, insight, &mut comparison.changes, &mut closed_listeners);
            }
        }
        comparison.changes.append(&mut updated);
        self.open_all(walk.at, fresh, &search, insight, &mut comparison);
        for socket in &closed_listeners {
            self.listeners.remove(socket);
        }
        self.endings.walked(walk.began, self.walk);
        self.last_at = Some(walk.at);
        if walk.completeness == Completeness::Whole {
            self.whole_at = Some(walk.began);
        }
        comparison
    }

    fn close(
        &mut self,
        key: SocketKey,
        at: Timestamp,
        insight: &impl Insight,
        changes: &mut Vec<Change>,
        closed_listeners: &mut Vec<Socket>,
    ) {
        let Some(Open { socket, .. }) = self.open.remove(&key) else { return };
        self.forget_namespace(key.netns);
        let told = match socket.role {
            Role::Listener => {
                closed_listeners.push(socket.clone());
                None
            }
            Role::Session { peer, .. } => insight.closed_at(socket.local, peer),
        };
        let (at, known) = told.map_or((at, Known::BetweenWalks), |at| (at, Known::Event));
        // A clock that was set back does not make a socket close before it opened.
        changes.push(Change { op: Op::Closed { at: at.max(socket.opened_at), known }, socket });
    }

    fn forget_namespace(&mut self, netns: u64) {
        if let Some(sockets) = self.namespaces.get_mut(&netns) {
            *sockets -= 1;
            if *sockets == 0 {
                self.namespaces.remove(&netns);
            }
        }
    }

    /// Opens what is new: listeners first, because the direction of a session follows from them.
    fn open_all(
        &mut self,
        at: Timestamp,
        fresh: Vec<Fresh<'_>>,
        search: &Found<'_>,
        insight: &impl Insight,
        comparison: &mut Comparison,
    ) {
        let known = self.opened_known();
        let mut beyond: u64 = 0;
        let (listeners, sessions): (Vec<_>, Vec<_>) =
            fresh.into_iter().partition(|fresh| fresh.purpose == Purpose::Listener);
        for Fresh { row, purpose, owners: kept } in listeners.into_iter().chain(sessions) {
            let (role, origin) = match purpose {
                Purpose::Listener => (Role::Listener, None),
                Purpose::Session(peer) => {
                    let origin = insight.origin(row.local, peer);
                    let told = origin.and_then(|origin| origin.direction);
                    (Role::Session { direction: told.unwrap_or_else(|| self.direction(row)), peer }, origin)
                }
            };
            let opened = origin.and_then(|origin| origin.opened_at);
            let (opened_at, opened_known) = opened.map_or((at, known), |opened| (opened.min(at), Known::Event));
            if self.open.len() >= self.limit {
                beyond += 1;
                continue;
            }
            let (owners, owner_known) = search
                .owners(row)
                .map_or(kept, |(owners, known)| (within_limit(owners, &mut comparison.owners_lost).to_vec(), known));
            let socket = Socket {
                key: row.key,
                protocol: row.protocol,
                family: row.family,
                state: row.state,
                local: row.local,
                role,
                opened_at,
                opened_known,
                owner_known,
                owners,
                bytes_sent: 0,
                bytes_received: 0,
            };
            if role == Role::Listener {
                self.listeners.add(&socket);
            }
            comparison.changes.push(Change { op: Op::Opened, socket: socket.clone() });
            *self.namespaces.entry(row.key.netns).or_default() += 1;
            self.open.insert(row.key, Open { socket, inode: row.inode, walk: self.walk });
        }
        comparison.sockets_lost += beyond.saturating_sub(self.beyond);
        self.beyond = beyond;
    }

    /// What this walk finds new opened after the one before, if that one saw everything and had room for it.
    fn opened_known(&self) -> Known {
        if self.whole_at.is_some() && self.beyond == 0 { Known::BetweenWalks } else { Known::FirstSeen }
    }

    fn direction(&self, row: &SocketRow) -> Direction {
        let accepted =
            row.state != SocketState::SynSent && self.listeners.accept(row.key.netns, row.protocol, row.local);
        if accepted { Direction::In } else { Direction::Out }
    }
}

/// What was looked for, and what was found.
struct Found<'a> {
    wanted: &'a Wanted,
    scan: &'a OwnerScan,
}

impl<'a> Found<'a> {
    /// The owners of a row's socket now; `None` when nobody looked for them.
    fn owners(&self, row: &SocketRow) -> Option<(&'a [Arc<Owner>], OwnerKnown)> {
        if row.inode == 0 || !self.wanted.contains(&row.inode) {
            return None;
        }
        Some(match self.scan.owners.get(&row.inode).map(Vec::as_slice) {
            Some(owners @ [_, ..]) => (owners, OwnerKnown::Exact),
            _ if self.scan.denied > 0 => (&[], OwnerKnown::Denied),
            _ => (&[], OwnerKnown::Unknown),
        })
    }
}

fn within_limit<'a>(owners: &'a [Arc<Owner>], lost: &mut u64) -> &'a [Arc<Owner>] {
    match owners.split_at_checked(SOCKET_OWNERS_LIMIT) {
        Some((kept, cut)) => {
            *lost += u64::try_from(cut.len()).unwrap_or(u64::MAX);
            kept
        }
        None => owners,
    }
}

impl Open {
    /// Takes what can change within a life, and tells whether it did. A socket that lost its inode (closed by its
    /// process, not yet by the protocol) keeps the owners that it had.
    fn update(&mut self, row: &SocketRow, search: &Found<'_>, owners_lost: &mut u64) -> bool {
        let mut changed = false;
        let socket = &mut self.socket;
        if (socket.state, socket.family) != (row.state, row.family) {
            (socket.state, socket.family) = (row.state, row.family);
            changed = true;
        }
        if let Some((owners, known)) = search.owners(row) {
            let owners = within_limit(owners, owners_lost);
            if socket.owner_known != known || socket.owners != owners {
                (socket.owners, socket.owner_known) = (owners.to_vec(), known);
                changed = true;
            }
        }
        self.inode = row.inode;
        changed
    }
}
