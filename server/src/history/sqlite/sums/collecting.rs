//! The sums of the sessions of one host in one file: exact in total, and bounded in how much is told apart.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use fleetsock_proto::{
    port::PortClass,
    socket::{Direction, Protocol},
};

use crate::history::sqlite::stored::StoredSession;

/// Kinds of sessions that are told apart, of one host in one file: the largest; of the others only the class of the port.
pub(super) const KINDS_OF_HOST: usize = 256;
/// Peers that are told, of one host in one file.
pub(super) const PEERS_OF_HOST: usize = 64;
/// Sums that are held at once: what comes beyond them is not told apart.
const HELD: usize = 200_000;
/// In place of the name of a process that is not told.
pub(in crate::history::sqlite) const OTHERS: i64 = -1;
const HOUR_US: i64 = 3_600_000_000;

/// What sessions have in common besides their host and their times. The order is that of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) direction: i32,
    pub(super) protocol: i32,
    pub(super) family: i32,
    /// Of the service, or a class of ports, negated.
    pub(super) port: i32,
    pub(super) name_id: i64,
}

impl Kind {
    fn of(one: &StoredSession, name_id: i64) -> Kind {
        let StoredSession { direction, protocol, family, .. } = *one;
        let end = if direction == Direction::In.number() { one.local } else { one.peer };
        Kind { direction, protocol, family, port: end.port().into(), name_id }
    }

    /// The kind in which it is counted when it is not told apart.
    fn folded(self) -> Kind {
        let class = u16::try_from(self.port).ok().zip(Protocol::from_number(self.protocol));
        let port = class.map_or(self.port, |(port, protocol)| -PortClass::of(protocol, port).number());
        Kind { port, name_id: OTHERS, ..self }
    }
}

/// Hours since the epoch in which sessions opened and closed.
pub(super) type Hours = (i64, i64);

/// The hour of a moment.
pub(in crate::history::sqlite) const fn hour(at_us: i64) -> i64 {
    at_us.div_euclid(HOUR_US)
}

/// The beginning of an hour.
pub(in crate::history::sqlite) const fn beginning(hour: i64) -> i64 {
    hour.saturating_mul(HOUR_US)
}

/// The last microsecond of an hour, or of time.
pub(in crate::history::sqlite) const fn end(hour: i64) -> i64 {
    match beginning(hour.saturating_add(1)) {
        i64::MAX => i64::MAX,
        next => next.saturating_sub(1),
    }
}

/// How many, and how much.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Counts {
    pub(in crate::history::sqlite) sessions: u64,
    pub(in crate::history::sqlite) bytes_sent: u64,
    pub(in crate::history::sqlite) bytes_received: u64,
}

impl Counts {
    pub(in crate::history::sqlite) fn add(&mut self, other: Counts) {
        self.sessions = self.sessions.saturating_add(other.sessions);
        self.bytes_sent = self.bytes_sent.saturating_add(other.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(other.bytes_received);
    }

    /// Both together; none where that is more than can be counted.
    pub(in crate::history::sqlite) fn plus(self, other: Counts) -> Option<Counts> {
        Some(Counts {
            sessions: self.sessions.checked_add(other.sessions)?,
            bytes_sent: self.bytes_sent.checked_add(other.bytes_sent)?,
            bytes_received: self.bytes_received.checked_add(other.bytes_received)?,
        })
    }

    /// What is left without a part; none where that is no part of it.
    pub(in crate::history::sqlite) fn minus(self, part: Counts) -> Option<Counts> {
        Some(Counts {
            sessions: self.sessions.checked_sub(part.sessions)?,
            bytes_sent: self.bytes_sent.checked_sub(part.bytes_sent)?,
            bytes_received: self.bytes_received.checked_sub(part.bytes_received)?,
        })
    }

    pub(in crate::history::sqlite) fn of(one: &StoredSession) -> Counts {
        Counts::one(one.bytes_sent, one.bytes_received)
    }

    /// Of one session that sent and received so many bytes, as these are stored.
    pub(in crate::history::sqlite) const fn one(sent: i64, received: i64) -> Counts {
        Counts { sessions: 1, bytes_sent: sent.cast_unsigned(), bytes_received: received.cast_unsigned() }
    }
}

/// Sums on their way.
#[derive(Debug, Default)]
pub(super) struct Collecting {
    sums: HashMap<(Kind, Hours), Counts>,
    peers: HashMap<IpAddr, Counts>,
    other_peers: Counts,
}

/// The sums of a host.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Collected {
    pub(super) sums: BTreeMap<(Hours, Kind), Counts>,
    /// None is all other peers.
    pub(super) peers: BTreeMap<Option<IpAddr>, Counts>,
}

impl Collecting {
    /// Counts a session that is over, whose process has this name.
    pub(super) fn add(&mut self, one: &StoredSession, name_id: i64) {
        let counts = Counts::of(one);
        let (kind, hours) = (Kind::of(one, name_id), (hour(one.opened_at_us), hour(one.closed_at_us())));
        let is_known = self.sums.len() < HELD || self.sums.contains_key(&(kind, hours));
        let kind = if is_known { kind } else { kind.folded() };
        self.sums.entry((kind, hours)).or_default().add(counts);
        let peer = one.peer.ip();
        if self.peers.len() < HELD || self.peers.contains_key(&peer) {
            self.peers.entry(peer).or_default().add(counts);
        } else {
            self.other_peers.add(counts);
        }
    }

    /// The sums: the largest kinds and peers by themselves.
    pub(super) fn finish(self) -> Collected {
        let mut by_kind: HashMap<Kind, Counts> = HashMap::new();
        for ((kind, _), counts) in &self.sums {
            by_kind.entry(*kind).or_default().add(*counts);
        }
        let largest: HashSet<Kind> =
            largest(by_kind.into_iter().collect(), KINDS_OF_HOST).map(|(kind, _)| kind).collect();
        let mut sums: BTreeMap<(Hours, Kind), Counts> = BTreeMap::new();
        for ((kind, hours), counts) in self.sums {
            let kind = if largest.contains(&kind) { kind } else { kind.folded() };
            sums.entry((hours, kind)).or_default().add(counts);
        }
        let mut others = self.other_peers;
        let mut ordered: Vec<(IpAddr, Counts)> = self.peers.into_iter().collect();
        order(&mut ordered);
        let rest = ordered.split_off(ordered.len().min(PEERS_OF_HOST));
        rest.into_iter().for_each(|(_, counts)| others.add(counts));
        let mut peers: BTreeMap<Option<IpAddr>, Counts> =
            ordered.into_iter().map(|(peer, counts)| (Some(peer), counts)).collect();
        if others.sessions > 0 {
            peers.insert(None, others);
        }
        Collected { sums, peers }
    }
}

/// The one with most sessions first.
fn order<K: Ord + Copy>(all: &mut [(K, Counts)]) {
    all.sort_unstable_by_key(|(key, counts)| (Reverse(counts.sessions), *key));
}

fn largest<K: Ord + Copy>(mut all: Vec<(K, Counts)>, limit: usize) -> impl Iterator<Item = (K, Counts)> {
    order(&mut all);
    all.into_iter().take(limit)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::history::sqlite::coding::OwnerColumns;

    fn session(port: u16, peer: u32) -> StoredSession {
        StoredSession {
            host_id: 1,
            netns: 1,
            cookie: 1,
            protocol: Protocol::Tcp.number(),
            family: 1,
            direction: Direction::In.number(),
            state: 1,
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            peer: SocketAddr::from((peer.to_be_bytes(), 5)),
            owners: OwnerColumns::default(),
            bytes_sent: 2,
            bytes_received: 3,
            opened_at_us: 0,
            opened_known: 1,
            closed: Some((HOUR_US, 1)),
        }
    }

    fn total<'a>(counts: impl Iterator<Item = &'a Counts>) -> Counts {
        counts.fold(Counts::default(), |mut total, counts| {
            total.add(*counts);
            total
        })
    }

    #[test]
    fn totals_are_exact_however_much_is_told_apart() {
        let mut collecting = Collecting::default();
        for port in 1..=3000_u16 {
            for again in 0..=u32::from(port % 3) {
                collecting.add(&session(port, u32::from(port) + again % 2), i64::from(port % 2));
            }
        }
        let Collected { sums, peers } = collecting.finish();
        let all = Counts { sessions: 6000, bytes_sent: 12_000, bytes_received: 18_000 };
        assert_eq!((total(sums.values()), total(peers.values())), (all, all));
        assert!(sums.keys().all(|(hours, _)| *hours == (0, 1)));
        let folded: Vec<Kind> = sums.keys().map(|(_, kind)| *kind).filter(|kind| kind.port < 0).collect();
        let classes: Vec<i32> = folded.iter().map(|kind| -kind.port).collect();
        let known = [PortClass::WellKnown, PortClass::Registered].map(PortClass::number);
        assert!(classes.len() == 2 && known.iter().all(|class| classes.contains(class)), "{folded:?}");
        assert!(folded.iter().all(|kind| kind.name_id == OTHERS));
        assert_eq!((sums.len(), peers.len()), (KINDS_OF_HOST + 2, PEERS_OF_HOST + 1));
        // Of each class those with three sessions come first.
        assert!(sums.values().take(3).all(|counts| counts.sessions >= 3));
    }

    #[test]
    fn few_are_told_as_they_are() {
        let mut collecting = Collecting::default();
        collecting.add(&session(443, 7), 4);
        collecting.add(&session(443, 7), 4);
        let Collected { sums, peers } = collecting.finish();
        let counts = Counts { sessions: 2, bytes_sent: 4, bytes_received: 6 };
        let (direction, protocol) = (Direction::In.number(), Protocol::Tcp.number());
        let kind = Kind { direction, protocol, family: 1, port: 443, name_id: 4 };
        assert_eq!(sums, BTreeMap::from([(((0, 1), kind), counts)]));
        assert_eq!(peers, BTreeMap::from([(Some(IpAddr::from([0, 0, 0, 7])), counts)]));
    }
}
