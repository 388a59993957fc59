//! Sums of several files that are added up and taken off each other, in the order of the addresses.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use rusqlite::{Connection, Params};

use super::{Choice, Scope, Sum, encoding::Stretched};
use crate::history::{
    HistoryError,
    sqlite::{
        coding::{self, Numeric},
        cubes::Balance,
        sealed::Damaged,
        sums::Counts,
    },
};

/// The sums of one scope of a file or of one segment, stretch by stretch.
pub(in crate::history::sqlite) struct Stretches<'c> {
    file: &'c Connection,
    is_taken_off: bool,
    /// The numbers of those that were not read yet, the last one first.
    numbers: Vec<i64>,
    /// The one that is read.
    stretch: Stretched,
}

impl<'c> Stretches<'c> {
    /// All that a choice names.
    pub(in crate::history::sqlite) fn chosen(
        sealed: &'c Connection,
        Choice { added, taken_off }: &Choice,
    ) -> Result<Vec<Stretches<'c>>, rusqlite::Error> {
        let both = [(added, false), (taken_off, true)];
        let all = both.into_iter().flat_map(|(scopes, off)| scopes.iter().map(move |scope| (*scope, off)));
        all.map(|(scope, is_taken_off)| Stretches::of(sealed, scope, is_taken_off)).collect()
    }

    pub(super) fn of(
        sealed: &'c Connection,
        scope: Scope,
        is_taken_off: bool,
    ) -> Result<Stretches<'c>, rusqlite::Error> {
        let sql = "SELECT id FROM peer_sums WHERE scope = ?1 AND hour = ?2 ORDER BY id DESC";
        Stretches::selected(sealed, (sql, scope.stored()), is_taken_off)
    }

    /// Those of the rows of a segment, which begin with this one.
    pub(in crate::history::sqlite) fn of_rows(
        day: &'c Connection,
        first_id: i64,
    ) -> Result<Stretches<'c>, rusqlite::Error> {
        let sql = "SELECT id FROM peer_sums WHERE first_id = ?1 ORDER BY id DESC";
        Stretches::selected(day, (sql, [first_id]), false)
    }

    fn selected(
        file: &'c Connection,
        (sql, values): (&str, impl Params),
        is_taken_off: bool,
    ) -> Result<Stretches<'c>, rusqlite::Error> {
        let mut statement = file.prepare_cached(sql)?;
        let numbers = statement.query_map(values, |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Stretches { file, is_taken_off, numbers, stretch: Stretched::default() })
    }

    /// How many stretches there are that were not read yet.
    pub(super) const fn count(&self) -> i64 {
        self.numbers.len() as i64
    }

    /// The next sum.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(Numeric, Counts)>, HistoryError> {
        loop {
            if let Some(sum) = self.stretch.next()? {
                return Ok(Some(sum));
            }
            if !self.read_stretch()? {
                return Ok(None);
            }
        }
    }

    /// Reads the next stretch; whether there is one.
    fn read_stretch(&mut self) -> Result<bool, HistoryError> {
        let Some(number) = self.numbers.pop() else { return Ok(false) };
        let mut statement = self.file.prepare_cached("SELECT sums FROM peer_sums WHERE id = ?1")?;
        let mut rows = statement.query([number])?;
        let row = rows.next()?.ok_or(Damaged("a stretch of sums is missing"))?;
        let bytes = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("sums", error.to_string()))?;
        self.stretch.begin(bytes)?;
        Ok(true)
    }
}

/// The sums of several files together.
#[derive(Default)]
pub(in crate::history::sqlite) struct Merged<'c> {
    cursors: Vec<Cursor<'c>>,
    /// The next address of each, and its place.
    next: BinaryHeap<Reverse<(Numeric, usize)>>,
}

/// Sums that are merged.
struct Cursor<'c> {
    stretches: Stretches<'c>,
    /// What is counted with its next address.
    counts: Counts,
}

impl<'c> Merged<'c> {
    /// Adds sums of a file.
    pub(in crate::history::sqlite) fn extend(&mut self, more: Vec<Stretches<'c>>) -> Result<(), HistoryError> {
        for mut stretches in more {
            if let Some((peer, counts)) = stretches.next()? {
                self.next.push(Reverse((peer, self.cursors.len())));
                self.cursors.push(Cursor { stretches, counts });
            }
        }
        Ok(())
    }

    pub(in crate::history::sqlite) fn is_empty(&self) -> bool {
        self.next.is_empty()
    }

    /// The next address in ascending order, each once, and what is left of it.
    pub(in crate::history::sqlite) fn next(&mut self) -> Result<Option<Sum>, HistoryError> {
        while let Some(Reverse((peer, _))) = self.next.peek().copied() {
            let (mut first, mut balance) = (None, None);
            while let Some(mut least) = self.next.peek_mut() {
                let Reverse((other, place)) = *least;
                let Some(cursor) = self.cursors.get_mut(place).filter(|_| other == peer) else { break };
                let one = Signed { counts: cursor.counts, is_taken_off: cursor.stretches.is_taken_off };
                match first {
                    // Most are in one file alone.
                    None => first = Some(one),
                    Some(first) => balance.get_or_insert_with(|| Balance::from(first)).add(one.into()),
                }
                match cursor.stretches.next()? {
                    Some((next, _)) if next <= peer => return Err(Damaged("sums are in no order").into()),
                    Some((next, counts)) => {
                        cursor.counts = counts;
                        *least = Reverse((next, place));
                    }
                    None => drop(PeekMut::pop(least)),
                }
            }
            let counts = match (first, balance) {
                (_, Some(balance)) => balance.counts()?,
                (Some(first), None) => first.counts()?,
                (None, None) => return Ok(None),
            };
            if counts.sessions > 0 {
                return Ok(Some((peer.address(), counts)));
            }
        }
        Ok(None)
    }
}

/// Counts that are added or taken off.
#[derive(Debug, Clone, Copy)]
struct Signed {
    counts: Counts,
    is_taken_off: bool,
}

impl Signed {
    fn counts(self) -> Result<Counts, Damaged> {
        if self.is_taken_off { Balance::from(self).counts() } else { Ok(self.counts) }
    }
}

impl From<Signed> for Balance {
    fn from(Signed { counts, is_taken_off }: Signed) -> Balance {
        let balance = Balance::from(counts);
        if is_taken_off { balance.taken_off() } else { balance }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        net::IpAddr,
        sync::Arc,
    };

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::{
        by_peer::{Adding, Expected, Hour, One, encoding::Stretch, hours},
        cubes::{Meant, Span},
        schema::Kind,
        sealed::GoesOn,
        sums::hour,
    };

    const HOUR: i64 = 3_600_000_000;

    type Life = (u8, i64, i64);

    fn peer(number: u8) -> IpAddr {
        match number % 4 {
            0 => IpAddr::from([0x20, 1, 0, 0, 0, 0, 0, number, 0, 0, 0, 0, 0, 0, 0, number / 8]),
            _ => IpAddr::from([10, 0, number % 3, number]),
        }
    }

    fn one((number, opened, closed): Life) -> One {
        One { span: Span::of(opened, closed), bytes_sent: i64::from(number) << 40, bytes_received: 7 }
    }

    /// A file of these sessions.
    fn file(lives: &[Life]) -> Connection {
        let mut sealed = Connection::open_in_memory().unwrap();
        Kind::Sealed.runner().run(&mut sealed).unwrap();
        let mut lives = lives.to_vec();
        lives.sort_by_key(|life| peer(life.0));
        let mut adding = Adding::new(&sealed, lives.iter().map(|life| hour(life.2)).collect());
        lives.iter().for_each(|life| adding.add(peer(life.0), one(*life)).unwrap());
        adding.finish().unwrap();
        sealed
    }

    fn are_told(sealed: &Connection, lives: &[Life]) -> bool {
        let mut expected = Expected::of(sealed).unwrap();
        lives.iter().for_each(|life| expected.add(peer(life.0), one(*life)));
        expected.are_told(sealed, &(Arc::new(|| true) as GoesOn)).unwrap()
    }

    fn all(mut merged: Merged<'_>) -> Vec<Sum> {
        std::iter::from_fn(|| merged.next().unwrap()).collect()
    }

    proptest! {
        #[test]
        fn sums_of_files_together_are_those_of_the_sessions_that_hours_tell_to_be_meant(
            files in vec(vec((any::<u8>(), 0..9_i64, prop_oneof![0..3_i64, 0..5 * HOUR]), 1..60), 1..4),
            since in -1_i64..20, length in 0_i64..20, by in 0..2_i64
        ) {
            let window = [since * HOUR / 2 - 1, i64::MAX, (since + length) * HOUR / 2 + by];
            let (mut merged, mut expected) = (Merged::default(), BTreeMap::<IpAddr, Counts>::new());
            let lives: Vec<Vec<Life>> = files
                .into_iter()
                .map(|file| file.into_iter().map(|(n, opened, lasted)| (n, opened * HOUR, opened * HOUR + lasted)).collect())
                .collect();
            let sealed: Vec<Connection> = lives.iter().map(|lives| file(lives)).collect();
            for (sealed, lives) in sealed.iter().zip(&lives) {
                prop_assert!(are_told(sealed, lives));
                prop_assert!(!are_told(sealed, &lives[1..]));
                let Some(choice) = Choice::of(&hours(sealed).unwrap(), window) else { continue };
                merged.extend(Stretches::chosen(sealed, &choice).unwrap()).unwrap();
                let meant = lives.iter().filter(|life| Span::of(life.1, life.2).is_meant(window) == Meant::Yes);
                meant.for_each(|life| expected.entry(peer(life.0)).or_default().add(one(*life).counts()));
            }
            prop_assert_eq!(all(merged), expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_would_be_too_much_is_not_told() {
        let huge = One { span: Span::of(1, 1), bytes_sent: -1, bytes_received: 0 };
        let mut sealed = Connection::open_in_memory().unwrap();
        Kind::Sealed.runner().run(&mut sealed).unwrap();
        let rows = |table: &str| {
            sealed.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
        };
        let fill = |hours: i64, ones: &[One]| {
            let mut adding = Adding::new(&sealed, (0..hours).collect::<BTreeSet<i64>>());
            ones.iter().for_each(|one| adding.add(peer(1), *one).unwrap());
            adding.finish().unwrap();
        };
        fill(1, &[huge, huge]);
        assert_eq!((rows("peer_sums"), rows("peer_hours")), (0, 0), "more than can be counted");
        fill(513, &[one((1, 0, 1))]);
        assert_eq!((rows("peer_sums"), rows("peer_hours")), (0, 0), "too many hours");
        fill(1, &[huge]);
        assert_eq!((rows("peer_sums"), rows("peer_hours")), (2, 1));
    }

    #[test]
    fn sums_that_tell_something_else_are_found() {
        let lives = [(1, 0, 1), (1, 0, HOUR), (2, HOUR, HOUR), (4, 5, 3 * HOUR)];
        let sealed = file(&lives);
        assert!(are_told(&sealed, &lives));
        let told: Vec<Hour> = hours(&sealed).unwrap();
        assert_eq!(
            told.iter().map(|hour| (hour.hour, hour.open)).collect::<Vec<_>>(),
            [(0, true), (1, true), (3, true)]
        );
        for other in [(3, 0, 1), (1, 0, 2 * HOUR), (1, HOUR - 5, HOUR), (1, HOUR, HOUR)] {
            let others = [&[other], &lives[1..]].concat();
            assert!(!are_told(&sealed, &others), "{other:?}");
        }
        for change in [
            "DELETE FROM peer_sums WHERE id = 1",
            "UPDATE peer_sums SET hour = 3 WHERE scope = 2",
            "UPDATE peer_sums SET sums = (SELECT sums FROM peer_sums WHERE scope = 1) WHERE scope = 3",
        ] {
            let sealed = file(&lives);
            sealed.execute(change, []).unwrap();
            assert!(!are_told(&sealed, &lives), "{change}");
        }
        let stretch = |peers: &[u8]| {
            let (mut stretch, mut bytes) = (Stretch::default(), Vec::new());
            let sum = |number: &u8| (IpAddr::from([10, 0, 0, *number]), Counts::one(1, 1));
            peers.iter().for_each(|number| bytes.extend(stretch.add(sum(number))));
            bytes.extend(stretch.finish());
            bytes.concat()
        };
        sealed.execute("UPDATE peer_sums SET sums = ?1 WHERE scope = 1", [stretch(&[3, 3])]).unwrap();
        let mut merged = Merged::default();
        let damaged = merged
            .extend(vec![Stretches::of(&sealed, Scope::All, false).unwrap()])
            .and_then(|()| merged.next().map(drop));
        assert!(damaged.unwrap_err().to_string().contains("in no order"));
    }
}
