//! Sums while sessions are added in the order of their peers, and how they are stored.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use rusqlite::{Connection, params};

use super::{
    One, Scope,
    levels::{Levels, Stored},
};
use crate::history::sqlite::{
    coding::{self, AddressBytes},
    sums::{Counts, beginning},
};

/// Most hours in which the sessions of a file closed: of each a few stretches are held.
pub(super) const HOURS: usize = 256;
/// Bytes of sums of what was open when hours began, at most: what is open all day is told of each of them.
const OPEN_BYTES: usize = 32 * 1024 * 1024;

/// The sums of a file, while its sessions are added: all with one address, then all with the next.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Adding<'c> {
    sealed: &'c Connection,
    /// The hours in which sessions close, and until when those opened that did so far, us.
    hours: BTreeMap<i64, i64>,
    peer: Option<IpAddr>,
    /// What is counted with this peer.
    sums: BTreeMap<Scope, Counts>,
    stretches: BTreeMap<Scope, Levels>,
    /// Whether they are not too many, and not more than can be counted.
    are_told: bool,
    open_told: bool,
    open_bytes: usize,
    most_open_bytes: usize,
}

impl Adding<'_> {
    /// None yet, of sessions that close in these hours.
    pub(in crate::history::sqlite) fn new(sealed: &Connection, hours: BTreeSet<i64>) -> Adding<'_> {
        let are_told = hours.len() <= HOURS;
        Adding {
            sealed,
            hours: hours.into_iter().take(HOURS).map(|hour| (hour, i64::MIN)).collect(),
            peer: None,
            sums: BTreeMap::new(),
            stretches: BTreeMap::new(),
            are_told,
            open_told: are_told,
            open_bytes: 0,
            most_open_bytes: OPEN_BYTES,
        }
    }

    /// Adds a session with a peer.
    pub(in crate::history::sqlite) fn add(&mut self, peer: IpAddr, one: One) -> Result<(), rusqlite::Error> {
        if !self.are_told {
            return Ok(());
        }
        if self.peer != Some(peer) {
            self.end_peer()?;
            self.peer = Some(peer);
        }
        let closed = one.span.closed();
        let Some(last_opening) = self.hours.get_mut(&closed) else {
            self.are_told = false;
            return Ok(());
        };
        *last_opening = (*last_opening).max(one.span.opened_us().1);
        self.count(Scope::Closed(closed), one);
        if self.open_told && one.span.opened_us().0 <= beginning(closed) {
            let open = self.hours.range(..=closed).rev().map(|(hour, _)| *hour);
            let open: Vec<i64> = open.take_while(|hour| one.span.is_open_at(*hour)).collect();
            open.into_iter().for_each(|hour| self.count(Scope::Open(hour), one));
        }
        Ok(())
    }

    fn count(&mut self, scope: Scope, one: One) {
        let sum = self.sums.entry(scope).or_default();
        match sum.plus(one.counts()) {
            Some(more) => *sum = more,
            None => self.are_told = false,
        }
    }

    /// Writes what is counted with a peer.
    fn end_peer(&mut self) -> Result<(), rusqlite::Error> {
        let Some(peer) = self.peer.take() else { return Ok(()) };
        let mut all = Counts::default();
        for (scope, counts) in &self.sums {
            if matches!(scope, Scope::Closed(_)) {
                match all.plus(*counts) {
                    Some(more) => all = more,
                    None => self.are_told = false,
                }
            }
        }
        self.sums.insert(Scope::All, all);
        while let Some((scope, counts)) = self.sums.pop_first() {
            if matches!(scope, Scope::Open(_)) && !self.open_told {
                continue;
            }
            if let Some(full) = self.stretches.entry(scope).or_default().add((peer, counts)) {
                self.store(scope, &full)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, scope: Scope, Stored { level, last_peer, bytes }: &Stored) -> Result<(), rusqlite::Error> {
        if matches!(scope, Scope::Open(_)) {
            self.open_bytes += bytes.len();
            self.open_told &= self.open_bytes <= self.most_open_bytes;
        }
        let [kind, hour] = scope.stored();
        self.sealed
            .prepare_cached("INSERT INTO peer_sums (scope, hour, level, last_peer, sums) VALUES (?1, ?2, ?3, ?4, ?5)")?
            .execute(params![kind, hour, coding::signed(*level as u64), AddressBytes::of(*last_peer), bytes])?;
        Ok(())
    }

    /// Stores the rest, and what there is.
    pub(in crate::history::sqlite) fn finish(mut self) -> Result<(), rusqlite::Error> {
        self.end_peer()?;
        for (scope, levels) in std::mem::take(&mut self.stretches) {
            levels.finish().try_for_each(|stored| self.store(scope, &stored))?;
        }
        if !self.open_told {
            self.sealed.execute("DELETE FROM peer_sums WHERE scope = ?1", [Scope::Open(0).stored()[0]])?;
        }
        if !self.are_told {
            self.sealed.execute("DELETE FROM peer_sums", [])?;
            return Ok(());
        }
        let mut insert =
            self.sealed.prepare("INSERT INTO peer_hours (hour, max_opened_at_us, open) VALUES (?1, ?2, ?3)")?;
        for (hour, last_opening) in &self.hours {
            insert.execute(params![hour, last_opening, self.open_told])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::sqlite::{by_peer::hours, cubes::Span, schema::Kind};

    #[test]
    fn where_too_much_was_open_that_is_not_told_and_the_rest_is() {
        let stored = |most_open_bytes: usize| {
            let mut sealed = Connection::open_in_memory().unwrap();
            Kind::Sealed.runner().run(&mut sealed).unwrap();
            let mut adding = Adding { most_open_bytes, ..Adding::new(&sealed, BTreeSet::from([0, 1])) };
            let span = Span::of(0, 2 * beginning(1) - 1);
            (1..5).for_each(|n| {
                adding.add([10, 0, 0, n].into(), One { span, bytes_sent: 1, bytes_received: 1 }).unwrap()
            });
            adding.finish().unwrap();
            let open: Vec<bool> = hours(&sealed).unwrap().iter().map(|hour| hour.open).collect();
            let scopes = "SELECT group_concat(DISTINCT scope) FROM peer_sums";
            (open, sealed.query_row(scopes, [], |row| row.get::<_, String>(0)).unwrap())
        };
        assert_eq!(stored(OPEN_BYTES), (vec![true, true], "1,2,3".to_owned()));
        assert_eq!(stored(20), (vec![false, false], "1,2".to_owned()));
    }
}
