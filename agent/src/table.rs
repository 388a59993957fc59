//! Which sockets are open, and what changed between two walks. Pure: no I/O, no clock.
//!
//! A comparison has two steps, so that owners are looked for only when something unknown appeared:
//! [`Table::wanted`] names the inodes, [`Table::apply`] takes what a scan found and gives the changes.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use fleetsock_proto::{
    batch::{Change, Op, Role, SOCKET_OWNERS_LIMIT, Socket},
    owner::Owner,
    socket::{Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
};
use foldhash::{HashMap, HashSet};

use self::{endings::Endings, listeners::Listeners, opening::Fresh};
use crate::{
    capture::{Coverage, SocketRow, SurveyReport, WalkReport},
    owners::{OwnerScan, Wanted},
};

mod endings;
mod listeners;
mod opening;
#[cfg(test)]
mod tests;

pub use self::endings::{Insight, Origin, Owned, Told};

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

/// A walk of the kernel's socket tables.
#[derive(Debug, Clone, Copy)]
pub struct Walk<'a> {
    /// What it saw.
    pub rows: &'a [SocketRow],
    /// When it began: what opens from now on may not be in it.
    pub began: Timestamp,
    /// When it was done: what it saw had opened by then, what it did not see had closed.
    pub at: Timestamp,
    /// What was looked at: elsewhere, what is not among the rows may be open.
    pub survey: &'a SurveyReport,
    /// Network namespaces that nothing leads to any more. Their sockets are open only as long as processes of other
    /// namespaces hold them, so that they are among those whose owners are looked for.
    pub vanished: &'a BTreeSet<u64>,
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

impl Comparison {
    /// TCP connections that began between two walks without anything that told so.
    pub fn began_unheard(&self) -> u64 {
        let began = |change: &&Change| match change.op {
            Op::Opened => true,
            Op::Closed { .. } | Op::Updated | Op::Present => false,
        };
        let unheard = |change: &&Change| {
            let Change { socket: Socket { role, protocol, opened_known, .. }, .. } = change;
            let is_connection = *protocol == Protocol::Tcp && matches!(role, Role::Session { .. });
            is_connection && *opened_known == Known::BetweenWalks
        };
        let found = self.changes.iter().filter(began).filter(unheard).count();
        u64::try_from(found + self.unseen.iter().filter(unheard).count()).unwrap_or(u64::MAX)
    }
}

/// The open sockets of a host.
#[derive(Debug)]
pub struct Table {
    open: HashMap<SocketKey, Open>,
    /// Those that every walk looks at: all but TCP connections.
    always: HashSet<SocketKey>,
    listeners: Listeners,
    /// Listeners that ended since the last walk. They still explain sessions that were accepted before.
    departed: Vec<Socket>,
    /// Network namespaces of open sockets, with how many each has.
    namespaces: HashMap<u64, usize>,
    /// How much of each namespace walks have seen whole: what is new there opened after that.
    shown: HashMap<u64, Coverage>,
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
        (SocketState::Unconnected, None) if row.protocol != Protocol::Tcp => Some(Purpose::Listener),
        (_, None) => None,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Listener,
    Session(SocketAddr),
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
            open: HashMap::default(),
            always: HashSet::default(),
            listeners: Listeners::default(),
            departed: Vec::new(),
            namespaces: HashMap::default(),
            shown: HashMap::default(),
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

    /// How many sockets of the last walk had no room.
    pub fn beyond(&self) -> u64 {
        self.beyond
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

    /// Every open socket.
    pub fn open(&self) -> impl Iterator<Item = &Socket> {
        self.open.values().map(|open| &open.socket)
    }

    /// The same as rows of a snapshot.
    pub fn snapshot(&self) -> impl Iterator<Item = Change> + '_ {
        self.open().map(|socket| Change { op: Op::Present, socket: socket.clone() })
    }

    /// Step one: the inodes whose owners are to be looked for before the walk is applied.
    pub fn wanted(&self, rows: &[SocketRow], search: Search) -> Wanted {
        let unknown = |row: &&SocketRow| {
            row.inode != 0
                && (search == Search::Referee || self.open.get(&row.key).is_none_or(|open| open.inode != row.inode))
        };
        rows.iter().filter(unknown).map(|row| row.inode).collect()
    }

    /// The inodes of the open sockets in some namespaces.
    pub fn inodes_in(&self, namespaces: &BTreeSet<u64>) -> impl Iterator<Item = u64> {
        let there = self.open.values().filter(|open| namespaces.contains(&open.socket.key.netns));
        there.map(|open| open.inode).filter(|inode| *inode != 0)
    }

    /// Whether sockets of a namespace are open.
    pub fn has_namespace(&self, netns: u64) -> bool {
        self.namespaces.contains_key(&netns)
    }

    /// The namespaces in which a session with this end of ours can have been accepted.
    pub fn accepting(&self, local: SocketAddr) -> impl Iterator<Item = u64> {
        self.namespaces.keys().copied().filter(move |netns| self.listeners.accept(*netns, Protocol::Tcp, local))
    }

    /// Step two: takes a walk, what was wanted of it, what was found, and what is known beyond it.
    pub fn apply(&mut self, walk: Walk<'_>, wanted: &Wanted, scan: &OwnerScan, insight: &impl Insight) -> Comparison {
        self.walk += 1;
        let search = Found { wanted, scan };
        let mut comparison = std::mem::take(&mut self.ended);
        let (fresh, mut updated) = self.compare(&walk, &search, insight, &mut comparison);
        for (key, known) in self.gone(&walk, &search) {
            let Some(change) = self.close(key, (walk.at, known), insight) else { continue };
            if !matches!(change.op, Op::Closed { known: Known::Event, .. }) {
                self.endings.expect(&change.socket, self.walk);
            }
            comparison.changes.push(change);
        }
        comparison.changes.append(&mut updated);
        self.open_all(&walk, &fresh, &search, insight, &mut comparison);
        drop(fresh);
        self.turn_first_seen(&mut comparison.unseen);
        for socket in self.departed.drain(..) {
            self.listeners.remove(&socket);
        }
        self.endings.walked(walk.began, self.walk);
        self.last_at = Some(walk.at);
        if walk.survey.is_whole() {
            self.whole_at = Some(walk.began);
        }
        for (netns, walked) in &walk.survey.walked {
            if walked.report == WalkReport::default() {
                let shown = self.shown.entry(*netns).or_insert(walked.coverage);
                *shown = walked.coverage.max(*shown);
            }
        }
        self.shown.retain(|netns, _| !walk.vanished.contains(netns));
        comparison
    }

    /// Holds each row against what is open: what is new, and what was updated.
    fn compare<'a>(
        &mut self,
        walk: &Walk<'a>,
        search: &Found<'_>,
        insight: &impl Insight,
        comparison: &mut Comparison,
    ) -> (Vec<Fresh<'a>>, Vec<Change>) {
        let (mut fresh, mut updated) = (Vec::new(), Vec::new());
        // A dump can show a socket twice when it moves between the kernel's lists; the first row counts.
        let mut fresh_keys = HashSet::default();
        // A walk can be ahead of the records, on a host that has no time for them: what it saw was not followed then.
        let doubts = insight.doubts();
        for row in walk.rows {
            let Some(purpose) = purpose(row) else { continue };
            if self.endings.has_ended(row.key) {
                continue;
            }
            match self.open.get_mut(&row.key) {
                Some(open) if open.walk == self.walk => {}
                Some(open) if same_life(&open.socket, row, purpose) => {
                    open.walk = self.walk;
                    let state = open.socket.state;
                    let is_updated = open.update(row, search, &mut comparison.owners_lost);
                    match purpose {
                        Purpose::Listener if is_updated => self.listeners.update(&open.socket),
                        // From now on events can tell its state.
                        Purpose::Session(peer) if doubts || state != row.state => {
                            insight.origin(row.key, row.local, peer);
                        }
                        Purpose::Listener | Purpose::Session(_) => {}
                    }
                    if is_updated {
                        updated.push(Change { op: Op::Updated, socket: open.socket.clone() });
                    }
                }
                Some(open) => {
                    // The same descriptor goes on with another peer: whoever held it holds it.
                    let owners = (open.socket.owners.clone(), open.socket.owner_known);
                    comparison.changes.extend(self.close(row.key, (walk.at, Known::BetweenWalks), &()));
                    fresh_keys.insert(row.key);
                    fresh.push(Fresh { row, owners: Some(Box::new(owners)) });
                }
                None if !fresh_keys.insert(row.key) => {}
                None => fresh.push(Fresh { row, owners: None }),
            }
        }
        (fresh, updated)
    }

    /// What this walk should have shown and did not, and what that means.
    fn gone(&self, walk: &Walk<'_>, search: &Found<'_>) -> Vec<(SocketKey, Known)> {
        let unseen = |open: &&Open| open.walk != self.walk;
        let gone = |open: &Open| Some((open.socket.key, open.absence(walk, search)?));
        if walk.survey.has_connections() || !walk.vanished.is_empty() {
            return self.open.values().filter(unseen).filter_map(gone).collect();
        }
        let open = self.always.iter().filter_map(|key| self.open.get(key));
        open.filter(unseen).filter_map(gone).collect()
    }

    /// Removes an open socket.
    fn take(&mut self, key: SocketKey) -> Option<Open> {
        let open = self.open.remove(&key)?;
        self.always.remove(&key);
        self.forget_namespace(key.netns);
        if open.socket.role == Role::Listener {
            self.departed.push(open.socket.clone());
        }
        Some(open)
    }

    /// Closes what is open, at this moment or at one that is known better; gives what there is to tell of that.
    fn close(&mut self, key: SocketKey, (at, known): (Timestamp, Known), insight: &impl Insight) -> Option<Change> {
        let Open { socket, .. } = self.take(key)?;
        let told = match socket.role {
            Role::Listener => None,
            Role::Session { peer, .. } => insight.closed_at(socket.local, peer),
        };
        let (at, known) = told.map_or((at, known), |at| (at, Known::Event));
        // A clock that was set back does not make a socket close before it opened.
        Some(Change { op: Op::Closed { at: at.max(socket.opened_at), known }, socket })
    }

    fn forget_namespace(&mut self, netns: u64) {
        if let Some(sockets) = self.namespaces.get_mut(&netns) {
            *sockets -= 1;
            if *sockets == 0 {
                self.namespaces.remove(&netns);
            }
        }
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
        Some(match self.scan.owners.get(&row.inode).map(|holders| &**holders) {
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
    /// What it means that a walk did not show it: how it is known to be closed, or nothing.
    fn absence(&self, walk: &Walk<'_>, search: &Found<'_>) -> Option<Known> {
        let Socket { key, protocol, state, .. } = self.socket;
        if walk.survey.would_show(key.netns, protocol, state) {
            return Some(Known::BetweenWalks);
        }
        if !walk.vanished.contains(&key.netns) || search.scan.owners.contains_key(&self.inode) {
            return None;
        }
        Some(if search.scan.denied == 0 { Known::BetweenWalks } else { Known::Lost })
    }

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
            // Nobody was found again: the listener is as good an answer as before.
            let is_as_before = known == OwnerKnown::Unknown && socket.owner_known == OwnerKnown::Listener;
            if !is_as_before && (socket.owner_known != known || socket.owners != owners) {
                (socket.owners, socket.owner_known) = (owners.to_vec(), known);
                changed = true;
            }
        }
        self.inode = row.inode;
        changed
    }
}
