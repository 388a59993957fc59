//! Sums of several sources that are added up and taken off each other, in the order of the addresses.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
};

use super::{Source, Sum, levels::LEVELS, source::Stretches};
use crate::history::{
    HistoryError,
    sqlite::{coding::Numeric, cubes::Balance, sealed::Damaged, sums::Counts},
};

/// The sums of several sources together, from a level on.
pub(in crate::history::sqlite) struct Merged<'c> {
    cursors: Vec<Cursor<'c>>,
    /// The next address of each, and its place.
    next: BinaryHeap<Reverse<(Numeric, usize)>>,
    stretches: usize,
}

/// Sums that are merged.
struct Cursor<'c> {
    /// From which of the sources they are.
    number: usize,
    source: Source<'c>,
    stretches: Stretches<'c>,
    /// What is counted with its next address.
    counts: Counts,
}

/// What one source counts with an address.
#[derive(Clone, Copy)]
pub(super) struct Part<'c> {
    /// Which of the sources.
    pub(super) number: usize,
    pub(super) source: Source<'c>,
    pub(super) level: usize,
    pub(super) counts: Counts,
}

impl<'c> Merged<'c> {
    pub(in crate::history::sqlite) fn of(sources: &[Source<'c>], level: usize) -> Result<Merged<'c>, HistoryError> {
        let mut merged = Merged { cursors: Vec::new(), next: BinaryHeap::new(), stretches: 0 };
        for (number, source) in sources.iter().enumerate() {
            for level in level..LEVELS {
                let mut stretches = source.stretches(level)?;
                merged.stretches += stretches.count();
                if let Some((peer, counts)) = stretches.next()? {
                    merged.next.push(Reverse((peer, merged.cursors.len())));
                    merged.cursors.push(Cursor { number, source: *source, stretches, counts });
                }
            }
        }
        Ok(merged)
    }

    /// How many stretches there are.
    pub(super) const fn stretches(&self) -> usize {
        self.stretches
    }

    /// The next address in ascending order, each once, and what is left of it.
    pub(in crate::history::sqlite) fn next(&mut self) -> Result<Option<Sum>, HistoryError> {
        loop {
            let (mut first, mut balance) = (None, None);
            let peer = self.next_parts(|part| match first {
                // Most are in one file alone.
                None => first = Some(part),
                Some(first) => balance.get_or_insert_with(|| first.balance()).add(part.balance()),
            })?;
            let counts = match (first, balance) {
                (_, Some(balance)) => balance.counts()?,
                (Some(first), None) if first.source.is_taken_off => first.balance().counts()?,
                (Some(first), None) => first.counts,
                (None, None) => Counts::default(),
            };
            match peer {
                Some(_) if counts.sessions == 0 => {}
                peer => return Ok(peer.map(|peer| (peer.address(), counts))),
            }
        }
    }

    /// The next address in ascending order, each once, of which is shown what every source counts that has it.
    #[inline]
    pub(super) fn next_parts(&mut self, mut show: impl FnMut(Part<'c>)) -> Result<Option<Numeric>, HistoryError> {
        let Some(Reverse((peer, _))) = self.next.peek().copied() else { return Ok(None) };
        while let Some(mut least) = self.next.peek_mut() {
            let Reverse((other, place)) = *least;
            let Some(cursor) = self.cursors.get_mut(place).filter(|_| other == peer) else { break };
            let Cursor { number, source, ref mut stretches, counts } = *cursor;
            show(Part { number, source, level: stretches.level(), counts });
            match stretches.next()? {
                Some((next, _)) if next <= peer => return Err(Damaged("sums are in no order").into()),
                Some((next, counts)) => {
                    cursor.counts = counts;
                    *least = Reverse((next, place));
                }
                None => drop(PeekMut::pop(least)),
            }
        }
        Ok(Some(peer))
    }
}

impl Part<'_> {
    pub(super) fn balance(self) -> Balance {
        self.source.signed(self.counts)
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
    use rusqlite::{Connection, params};

    use super::*;
    use crate::history::sqlite::{
        by_peer::{Adding, Choice, Expected, Hour, One, Scope, hours, levels::Levels},
        coding::AddressBytes,
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
        expected.are_told(sealed, &(Arc::new(|| true) as GoesOn)).unwrap_or(false)
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
            let (mut sources, mut expected) = (Vec::new(), BTreeMap::<IpAddr, Counts>::new());
            let lives: Vec<Vec<Life>> = files
                .into_iter()
                .map(|file| file.into_iter().map(|(n, opened, lasted)| (n, opened * HOUR, opened * HOUR + lasted)).collect())
                .collect();
            let sealed: Vec<Connection> = lives.iter().map(|lives| file(lives)).collect();
            for (sealed, lives) in sealed.iter().zip(&lives) {
                prop_assert!(are_told(sealed, lives));
                prop_assert!(!are_told(sealed, &lives[1..]));
                let Some(choice) = Choice::of(&hours(sealed).unwrap(), window) else { continue };
                sources.extend(Source::chosen(sealed, choice));
                let meant = lives.iter().filter(|life| Span::of(life.1, life.2).is_meant(window) == Meant::Yes);
                meant.for_each(|life| expected.entry(peer(life.0)).or_default().add(one(*life).counts()));
            }
            prop_assert_eq!(all(Merged::of(&sources, 0).unwrap()), expected.into_iter().collect::<Vec<_>>());
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
        for (level, last, peers, problem) in [
            (0, peer(3), &[3, 3][..], "in no order"),
            (2, peer(9), &[3], "another address than is told"),
            (0, peer(4), &[3], "another address than is told"),
        ] {
            let sealed = file(&lives);
            sealed.execute("DELETE FROM peer_sums", []).unwrap();
            let mut levels = Levels::default();
            assert!(peers.iter().all(|number| levels.add((peer(*number), Counts::one(1, 1))).is_none()));
            let bytes: Vec<Vec<u8>> = levels.finish().map(|stretch| stretch.bytes).collect();
            let row = params![level, AddressBytes::of(last), bytes.concat()];
            let sql = "INSERT INTO peer_sums (scope, hour, level, last_peer, sums) VALUES (1, 0, ?1, ?2, ?3)";
            sealed.execute(sql, row).unwrap();
            let of_all = [Source::of(&sealed, Scope::All)];
            let damaged = Merged::of(&of_all, 0).and_then(|mut merged| merged.next().and_then(|_| merged.next()));
            let damaged = damaged.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(damaged.contains(problem), "{damaged:?}");
        }
        // Each as it has to be, but in a level of others, or in two of them.
        for change in [
            "UPDATE peer_sums SET level = 1 WHERE scope = 1 AND level = 0",
            "INSERT INTO peer_sums (scope, hour, level, last_peer, sums)
             SELECT scope, hour, 1, last_peer, sums FROM peer_sums WHERE scope = 1",
        ] {
            let sealed = file(&lives);
            assert!(sealed.execute(change, []).unwrap() > 0);
            assert!(!are_told(&sealed, &lives), "{change}");
        }
    }
}
