//! The kinds of sessions that were open in a window, and where the first of each is.

use std::{
    cmp::Ordering,
    collections::{HashMap, hash_map::Entry},
};

use fleetsock_proto::time::Timestamp;

use super::super::{
    Search,
    blocks::Services,
    looking::{At, Look},
};
use crate::history::{
    HistoryError,
    hashing::Seeded,
    sqlite::{
        kinds::Kind,
        numbered::Numbered,
        sealed::{Block, Column, places::Place},
        stored::StoredSession,
    },
};

/// Kinds of sessions that are told apart in a window, about 110 bytes each.
const KINDS_LIMIT: usize = 500_000;

/// The first session of a kind. The one that opened last is the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct First {
    pub(super) kind: Kind,
    pub(super) opened_at_us: i64,
    pub(super) at: At,
}

impl Ord for First {
    fn cmp(&self, other: &First) -> Ordering {
        let key = |first: &First| {
            let Kind { host_id, peer, service } = first.kind;
            (first.opened_at_us, host_id, peer, service)
        };
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for First {
    fn partial_cmp(&self, other: &First) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is held of a kind.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// One of it was there before the window.
    Before,
    /// When the first one opened, and where it is.
    First(i64, At),
}

/// The kinds of a host's sessions.
type OfHost = HashMap<Kind, Seen, Seeded>;

/// Other sessions that opened at the moment of the first of their kind.
pub(super) type Others = HashMap<Kind, Vec<At>, Seeded>;

/// The kinds of the sessions that were open in the window.
pub(super) struct Kinds {
    since: Timestamp,
    /// Apart for each host: those of a block are few, and near each other in memory.
    hosts: Numbered<i64, OfHost>,
    count: usize,
    seeded: Seeded,
    /// Those that opened at the moment of the first of their kind as it was known then.
    at_once: Vec<(Kind, i64, At)>,
}

impl Kinds {
    pub(super) fn opened_since(since: Timestamp) -> Kinds {
        Kinds { since, hosts: Numbered::default(), count: 0, seeded: Seeded::default(), at_once: Vec::new() }
    }

    /// Adds sessions of a host.
    fn add(
        &mut self,
        host: i64,
        sessions: impl Iterator<Item = Result<(Kind, i64, At), HistoryError>>,
    ) -> Result<(), HistoryError> {
        let Kinds { since, hosts, count, seeded, at_once } = self;
        let of_host = hosts.entry(host).or_insert_with(|| HashMap::with_hasher(seeded.clone()));
        for one in sessions {
            let (kind, opened_at_us, at) = one?;
            let is_before = opened_at_us < since.as_micros();
            let seen = if is_before { Seen::Before } else { Seen::First(opened_at_us, at) };
            match of_host.entry(kind) {
                Entry::Vacant(place) => {
                    place.insert(seen);
                    *count += 1;
                }
                Entry::Occupied(mut place) => match *place.get() {
                    Seen::Before => {}
                    Seen::First(first_at_us, _) if is_before || opened_at_us < first_at_us => {
                        place.insert(seen);
                    }
                    Seen::First(first_at_us, _) if opened_at_us == first_at_us => {
                        at_once.push((kind, opened_at_us, at));
                    }
                    Seen::First(..) => {}
                },
            }
            if *count + at_once.len() > KINDS_LIMIT {
                return Err(HistoryError::TooMuch(format!(
                    "there were more than {KINDS_LIMIT} peers in the window; ask for fewer hosts or a shorter one"
                )));
            }
        }
        Ok(())
    }

    /// Those that opened in the window and are the first of their kind there, in no order, and others that opened at the same moments.
    pub(super) fn firsts(self) -> (Vec<First>, Others) {
        let Kinds { hosts, count, at_once, .. } = self;
        let mut others = Others::default();
        for (kind, opened_at_us, at) in at_once {
            let first = hosts.get(&kind.host_id).and_then(|of_host| of_host.get(&kind));
            if matches!(first, Some(Seen::First(first_at_us, _)) if *first_at_us == opened_at_us) {
                others.entry(kind).or_default().push(at);
            }
        }
        let mut firsts = Vec::with_capacity(count);
        for (kind, seen) in hosts.into_values().flatten() {
            if let Seen::First(opened_at_us, at) = seen {
                firsts.push(First { kind, opened_at_us, at });
            }
        }
        (firsts, others)
    }
}

impl Look<'_> for Kinds {
    fn one(&mut self, _search: &mut Search<'_>, at: At, one: &StoredSession) -> Result<(), HistoryError> {
        let one = (Kind::of(one)?, one.opened_at_us, at);
        self.add(one.0.host_id, std::iter::once(Ok(one)))
    }

    fn block(
        &mut self,
        _search: &mut Search<'_>,
        (file, id): (usize, i64),
        block: &Block,
        meant: &[usize],
    ) -> Result<(), HistoryError> {
        if meant.is_empty() {
            return Ok(());
        }
        let (services, peers) = (Services::of(block, meant.len())?, block.peers()?);
        let [closed, lasted] = [Column::ClosedAt, Column::Lasted].map(|column| block.values(column, meant.len()));
        let (closed, lasted) = (closed?, lasted?);
        let host_id = block.host_id();
        let one = |at: &usize| {
            let kind = Kind { peer: (*peers.of(*at)?).into(), host_id, service: services.service_of(*at)? };
            let opened_at_us = closed.of(*at)?.wrapping_sub(lasted.of(*at)?);
            Ok((kind, opened_at_us, At::Place(file, Place { block: id, at: *at }.number())))
        };
        self.add(host_id, meant.iter().map(one))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::history::sqlite::kinds::Service;

    fn kind(number: usize) -> Kind {
        let peer = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        Kind { peer: peer.into(), host_id: 1, service: Service::numbered(443) }
    }

    fn none(since_us: i64) -> Kinds {
        Kinds::opened_since(Timestamp::from_micros(since_us))
    }

    #[test]
    fn the_first_of_a_kind_is_told_with_those_of_its_moment_unless_one_opened_before_the_window() {
        let mut kinds = none(10);
        for (number, opened_at_us, row) in
            [(1, 30, 1), (1, 30, 2), (1, 20, 3), (1, 20, 4), (1, 25, 5), (2, 40, 6), (3, 50, 7), (3, 9, 8), (3, 9, 9)]
        {
            kinds.add(1, [Ok((kind(number), opened_at_us, At::Row(None, row)))].into_iter()).unwrap();
        }
        let row = |row| At::Row(None, row);
        let first = |number, opened_at_us, of| First { kind: kind(number), opened_at_us, at: row(of) };
        let (mut firsts, others) = kinds.firsts();
        firsts.sort();
        assert_eq!(firsts, [first(1, 20, 3), first(2, 40, 6)]);
        assert_eq!(others, Others::from_iter([(kind(1), vec![row(4)])]));
    }

    #[test]
    fn more_kinds_or_sessions_of_one_moment_than_may_be_held_are_refused_with_words() {
        for is_one_kind in [false, true] {
            let mut kinds = none(0);
            let mut add = |number| {
                let one = (kind(if is_one_kind { 7 } else { number }), 5, At::Row(None, 1));
                kinds.add(1, [Ok(one)].into_iter())
            };
            assert!((0..KINDS_LIMIT).all(|number| add(number).is_ok()));
            let refused = add(KINDS_LIMIT).unwrap_err().to_string();
            assert!(refused.contains("more than 500000 peers in the window; ask for fewer hosts"), "{refused}");
        }
    }
}
