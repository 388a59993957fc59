//! What the history must have of one host, by the plainest means: a list of lives.

mod changes;

pub(crate) use changes::news;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use fleetsock_proto::{
    answer::GapReason,
    batch::{Batch, BatchKind, Op, Role, Socket},
    host::{BootId, HostId, HostState},
    listener::Listener,
    owner::Owner,
    question::SessionTime,
    session::Session,
    socket::{Known, OwnerKnown, SocketKey},
    time::Timestamp,
};

use super::simulated::end_of;

/// One life of a socket.
#[derive(Debug, Clone)]
struct Life {
    /// As it was told last, but for what is kept from earlier: the opening, owners, counts.
    socket: Socket,
    closed: Option<(Timestamp, Known)>,
    /// When a listener's owners changed: who held it before, and after.
    owner_changes: Vec<OwnerChange>,
}

#[derive(Debug, Clone)]
struct OwnerChange {
    at: Timestamp,
    known: Known,
    before: Holders,
    after: Holders,
}

/// Who holds a socket, and how that is known.
#[derive(Debug, Clone)]
struct Holders(OwnerKnown, Vec<Arc<Owner>>);

impl Holders {
    fn of(socket: &Socket) -> Holders {
        Holders(socket.owner_known, socket.owners.clone())
    }

    /// Whether another process comes first, or other programs are among them.
    fn are_others_than(&self, before: &Holders) -> bool {
        let programs = |holders: &Holders| -> BTreeSet<String> {
            holders.1.iter().map(|owner| format!("{} {} {}", owner.process, owner.exe, owner.unit)).collect()
        };
        match (self.1.first(), before.1.first()) {
            (Some(now), Some(then)) => {
                (now.pid, now.started_at) != (then.pid, then.started_at) || programs(self) != programs(before)
            }
            _ => false,
        }
    }
}

impl Life {
    /// The owners at a moment; the last ones for none.
    fn holders(&self, moment: Option<Timestamp>) -> Holders {
        let later = |change: &&OwnerChange| moment.is_some_and(|moment| change.at > moment);
        self.owner_changes.iter().find(later).map_or_else(|| Holders::of(&self.socket), |change| change.before.clone())
    }
}

/// A host.
#[derive(Debug)]
pub(crate) struct Expected {
    id: HostId,
    name: String,
    ahead: i64,
    lives: Vec<Life>,
    gaps: Vec<(Timestamp, Timestamp, GapReason)>,
    /// First walks of a numbering, and whether the boot was another one.
    starts: Vec<(Timestamp, BootId, bool)>,
    epoch: u64,
    boot: Option<BootId>,
    walked: Timestamp,
    /// What the snapshot on its way named so far, and the last walk before it began.
    naming: Option<(BTreeSet<(bool, SocketKey)>, Timestamp)>,
}

fn is_session(socket: &Socket) -> bool {
    socket.role != Role::Listener
}

/// Whether both are one life: nothing of what cannot change within one differs.
fn same_life(one: &Socket, other: &Socket) -> bool {
    let peer = |socket: &Socket| match socket.role {
        Role::Listener => None,
        Role::Session { peer, .. } => Some(peer),
    };
    (one.protocol, one.local, peer(one)) == (other.protocol, other.local, peer(other))
}

impl Expected {
    pub(crate) fn of(id: HostId, name: &str, ahead: i64) -> Expected {
        Expected {
            id,
            name: name.to_owned(),
            ahead,
            lives: Vec::new(),
            gaps: Vec::new(),
            starts: Vec::new(),
            epoch: 0,
            boot: None,
            walked: Timestamp::default(),
            naming: None,
        }
    }

    /// By the server's clock, if the difference is more than a message on its way explains.
    fn corrected(&self, at: Timestamp) -> Timestamp {
        if self.ahead.abs() < 2 { at } else { Timestamp::from_micros(at.as_micros() - self.ahead * 1_000_000) }
    }

    /// A walk that changed nothing.
    pub(crate) fn observed(&mut self, until: Timestamp) {
        self.walked = self.walked.max(self.corrected(until));
    }

    /// A batch of a numbering and of a time that will never come.
    pub(crate) fn lose(&mut self, epoch: u64, (since, until): (Timestamp, Timestamp)) {
        let (since, until) = (self.corrected(since), self.corrected(until));
        if epoch > self.epoch && self.boot.is_some() && self.walked < since {
            self.gaps.push((self.walked, since, GapReason::AgentDown));
        }
        self.epoch = self.epoch.max(epoch);
        self.gaps.push((since, until, GapReason::SpoolFull));
    }

    /// The last moment at which what was not named since is known to have been open.
    fn last_known(&self) -> Timestamp {
        self.naming.as_ref().map_or(self.walked, |(_, before)| *before)
    }

    pub(crate) fn apply(&mut self, batch: &Batch) {
        let walk = self.corrected(batch.observed_until);
        let last_known = self.last_known();
        if batch.epoch > self.epoch && self.boot.is_some() && self.walked < walk {
            self.gaps.push((self.walked, walk, GapReason::AgentDown));
        }
        let rebooted = self.boot.is_some_and(|boot| boot != batch.boot_id);
        if batch.seq == 1 {
            self.starts.push((walk, batch.boot_id, rebooted));
        }
        if rebooted {
            self.lose_where(last_known, |_| true);
        }
        match batch.kind {
            BatchKind::SnapshotBegin => self.naming = Some((BTreeSet::new(), last_known)),
            BatchKind::SnapshotWhole => self.naming = Some((BTreeSet::new(), last_known)),
            BatchKind::SnapshotPart | BatchKind::SnapshotEnd | BatchKind::Changes => {}
        }
        for change in &batch.changes {
            let mut socket = change.socket.clone();
            socket.opened_at = self.corrected(socket.opened_at);
            let closed = end_of(change.op).map(|(at, known)| (self.corrected(at), known));
            if let Some((named, _)) = &mut self.naming {
                named.insert((is_session(&socket), socket.key));
            }
            let seen = match change.op {
                Op::Closed { at, .. } => (self.corrected(at), Known::BetweenWalks),
                Op::Present => (last_known, Known::Lost),
                Op::Opened | Op::Updated => (walk, Known::BetweenWalks),
            };
            self.live(socket, closed, last_known, seen);
        }
        if matches!(batch.kind, BatchKind::SnapshotWhole | BatchKind::SnapshotEnd)
            && let Some((named, _)) = self.naming.take()
        {
            self.lose_where(last_known, |socket| !named.contains(&(is_session(socket), socket.key)));
        }
        (self.epoch, self.boot, self.walked) = (batch.epoch, Some(batch.boot_id), walk);
    }

    /// `seen` is when owners that are told of were seen.
    fn live(
        &mut self,
        told: Socket,
        closed: Option<(Timestamp, Known)>,
        last_known: Timestamp,
        (seen_at, known): (Timestamp, Known),
    ) {
        let (key, session) = (told.key, is_session(&told));
        let same_key =
            |life: &&mut Life| life.closed.is_none() && life.socket.key == key && is_session(&life.socket) == session;
        match self.lives.iter_mut().find(same_key) {
            Some(life) if same_life(&life.socket, &told) => {
                let before = life.socket.clone();
                let before_holders = Holders::of(&before);
                let (owners, owner_known) = if told.owners.is_empty() && !before.owners.is_empty() {
                    (before.owners, before.owner_known)
                } else {
                    (told.owners.clone(), told.owner_known)
                };
                life.socket = Socket {
                    opened_at: before.opened_at,
                    opened_known: before.opened_known,
                    owners,
                    owner_known,
                    bytes_sent: told.bytes_sent.max(before.bytes_sent),
                    bytes_received: told.bytes_received.max(before.bytes_received),
                    ..told
                };
                life.closed = closed.map(|(at, known)| (at.max(life.socket.opened_at), known));
                let (before, after) = (before_holders, Holders::of(&life.socket));
                if !session && after.are_others_than(&before) {
                    let earliest = life.owner_changes.last().map_or(life.socket.opened_at, |change| change.at);
                    life.owner_changes.push(OwnerChange { at: seen_at.max(earliest), known, before, after });
                }
            }
            other => {
                if let Some(life) = other {
                    life.closed = Some((last_known.max(life.socket.opened_at), Known::Lost));
                }
                let closed = closed.map(|(at, known)| (at.max(told.opened_at), known));
                // A listener's life with the same beginning is the same one.
                let same = |life: &Life| {
                    !session
                        && !is_session(&life.socket)
                        && life.socket.key == key
                        && life.socket.opened_at == told.opened_at
                };
                let owner_changes = match self.lives.iter().position(same) {
                    Some(index) => self.lives.remove(index).owner_changes,
                    None => Vec::new(),
                };
                self.lives.push(Life { socket: told, closed, owner_changes });
            }
        }
    }

    fn lose_where(&mut self, at: Timestamp, which: impl Fn(&Socket) -> bool) {
        for life in self.lives.iter_mut().filter(|life| life.closed.is_none() && which(&life.socket)) {
            life.closed = Some((at.max(life.socket.opened_at), Known::Lost));
        }
    }

    /// The listeners that were open then, or are now.
    pub(crate) fn listeners(&self, moment: Option<Timestamp>) -> Vec<Listener> {
        let meant = |life: &&Life| {
            !is_session(&life.socket)
                && match moment {
                    None => life.closed.is_none(),
                    Some(at) => life.socket.opened_at <= at && life.closed.is_none_or(|(end, _)| end > at),
                }
        };
        self.lives.iter().filter(meant).map(|life| self.listener(life, life.holders(moment))).collect()
    }

    /// The listeners that sums of a time count.
    pub(crate) fn listeners_of(&self, time: SessionTime) -> Vec<Listener> {
        match time {
            SessionTime::Now => self.listeners(None),
            SessionTime::At(at) => self.listeners(Some(at)),
            SessionTime::Within { since, until } => {
                let meant = |life: &&Life| {
                    !is_session(&life.socket)
                        && until.is_none_or(|until| life.socket.opened_at <= until)
                        && life.closed.is_none_or(|(end, _)| end >= since)
                };
                self.lives.iter().filter(meant).map(|life| self.listener(life, life.holders(None))).collect()
            }
        }
    }

    fn listener(&self, life: &Life, Holders(owner_known, owners): Holders) -> Listener {
        Listener {
            host_id: self.id,
            host: self.name.clone(),
            host_state: HostState::Online,
            protocol: life.socket.protocol,
            family: life.socket.family,
            address: life.socket.listen_address(),
            port: life.socket.local.port(),
            netns: life.socket.key.netns,
            netns_name: String::new(),
            owner_known,
            owners: owners.iter().map(|owner| owner.as_ref().clone()).collect(),
            opened_at: life.socket.opened_at,
            opened_known: life.socket.opened_known,
            closed: life.closed,
        }
    }

    /// Addresses of its sockets that others can reach.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let all = self.lives.iter().map(|life| life.socket.local.ip());
        all.filter(|address| !address.is_loopback() && !address.is_unspecified())
    }

    /// The sessions of a time.
    pub(crate) fn sessions(&self, time: SessionTime) -> Vec<Session> {
        let meant = |life: &Life| match time {
            SessionTime::Now => life.closed.is_none(),
            SessionTime::At(at) => life.socket.opened_at <= at && life.closed.is_none_or(|(end, _)| end > at),
            SessionTime::Within { since, until } => {
                until.is_none_or(|until| life.socket.opened_at <= until)
                    && life.closed.is_none_or(|(end, _)| end >= since)
            }
        };
        self.lives.iter().filter(|life| meant(life)).filter_map(|life| self.session(life)).collect()
    }

    fn session(&self, life: &Life) -> Option<Session> {
        let Role::Session { direction, peer } = life.socket.role else { return None };
        Some(Session {
            host_id: self.id,
            host: self.name.clone(),
            host_state: HostState::Online,
            protocol: life.socket.protocol,
            family: life.socket.family,
            direction,
            local: life.socket.local,
            peer,
            peer_host: String::new(),
            state: life.socket.state,
            netns: life.socket.key.netns,
            netns_name: String::new(),
            owner_known: life.socket.owner_known,
            owners: life.socket.owners.iter().map(|owner| owner.as_ref().clone()).collect(),
            opened_at: life.socket.opened_at,
            opened_known: life.socket.opened_known,
            closed: life.closed,
            bytes_sent: life.socket.bytes_sent,
            bytes_received: life.socket.bytes_received,
            other_end: None,
        })
    }

    /// What was not observed: since, until, why.
    pub(crate) fn gap_ranges(&self) -> &[(Timestamp, Timestamp, GapReason)] {
        &self.gaps
    }

    pub(crate) fn gaps(&self) -> Vec<String> {
        let line = |(since, until, reason): &(Timestamp, Timestamp, GapReason)| {
            format!("{} {since:?} {:?} {reason}", self.name, Some(*until))
        };
        self.gaps.iter().map(line).collect()
    }
}
