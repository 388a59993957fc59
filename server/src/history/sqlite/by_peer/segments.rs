//! Sums by peer of some rows of a file that is written to still, or that waits to be sealed.

use std::net::IpAddr;

use rusqlite::{Connection, params};

use super::levels::{Levels, Stored};
use crate::history::sqlite::{
    coding::{self, AddressBytes},
    sums::Counts,
};

/// The rows of a segment while they are added in their own order, each with the number that it has in the segment.
#[derive(Debug, Default)]
pub(in crate::history::sqlite) struct Segment {
    /// What of each is counted.
    rows: Vec<Counts>,
    /// Between which moments they closed, and until when they opened, us.
    span: Option<[i64; 3]>,
}

impl Segment {
    /// Adds the next row.
    pub(in crate::history::sqlite) fn add(&mut self, opened_at_us: i64, closed_at_us: i64, counts: Counts) {
        let [first, last, opened] = self.span.unwrap_or([closed_at_us, closed_at_us, opened_at_us]);
        self.span = Some([first.min(closed_at_us), last.max(closed_at_us), opened.max(opened_at_us)]);
        self.rows.push(counts);
    }

    /// The sums, to which the peers of the rows are added in the order of their addresses.
    pub(in crate::history::sqlite) fn by_peer(self) -> Sums {
        Sums { segment: self, stretches: Vec::new(), levels: Levels::default(), last: None, are_told: true }
    }
}

/// The sums of a segment.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Sums {
    segment: Segment,
    /// Those that are full, and those that are not.
    stretches: Vec<Stored>,
    levels: Levels,
    /// The last peer, and what is counted with it so far.
    last: Option<(IpAddr, Counts)>,
    /// Whether they can be counted.
    are_told: bool,
}

impl Sums {
    /// Adds a row with this peer, by its number.
    pub(in crate::history::sqlite) fn add(&mut self, peer: IpAddr, row: u32) {
        let Some(counts) = usize::try_from(row).ok().and_then(|row| self.segment.rows.get(row)).copied() else {
            self.are_told = false;
            return;
        };
        match &mut self.last {
            Some((last, sum)) if *last == peer => match sum.plus(counts) {
                Some(more) => *sum = more,
                None => self.are_told = false,
            },
            _ => {
                self.end_peer();
                self.last = Some((peer, counts));
            }
        }
    }

    fn end_peer(&mut self) {
        let Some((peer, counts)) = self.last.take() else { return };
        self.stretches.extend(self.levels.add((peer, counts)));
    }

    /// Stores them, of the rows that begin with this one.
    pub(in crate::history::sqlite) fn store(mut self, day: &Connection, first_id: i64) -> Result<(), rusqlite::Error> {
        self.end_peer();
        let Sums { segment, mut stretches, levels, are_told, .. } = self;
        stretches.extend(levels.finish());
        let Some([first, last, opened]) = segment.span.filter(|_| are_told) else { return Ok(()) };
        day.prepare_cached(
            "INSERT INTO peer_spans (first_id, min_closed_at_us, max_closed_at_us, max_opened_at_us) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![first_id, first, last, opened])?;
        let mut insert =
            day.prepare_cached("INSERT INTO peer_sums (first_id, level, last_peer, sums) VALUES (?1, ?2, ?3, ?4)")?;
        stretches.iter().try_for_each(|Stored { level, last_peer, bytes }| {
            let row = params![first_id, coding::signed(*level as u64), AddressBytes::of(*last_peer), bytes];
            insert.execute(row).map(drop)
        })
    }
}

/// Rows that have sums by peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Summed {
    /// The first row and the last.
    pub(in crate::history::sqlite) rows: (i64, i64),
    /// Whose they are ([`each_host`](crate::history::sqlite::cubes::each_host)).
    pub(in crate::history::sqlite) hosts: Vec<u8>,
    /// Between which moments they closed, and until when they opened, us.
    span: [i64; 3],
}

impl Summed {
    /// Those of a file, in the order of their rows: files that an earlier version completed have none.
    pub(in crate::history::sqlite) fn all(day: &Connection) -> Result<Vec<Summed>, rusqlite::Error> {
        if !day.table_exists(None, "peer_spans")? {
            return Ok(Vec::new());
        }
        day.prepare_cached(
            "SELECT cubes.first_id, cubes.last_id, cubes.hosts, min_closed_at_us, max_closed_at_us, max_opened_at_us
             FROM peer_spans JOIN cubes USING (first_id) ORDER BY cubes.first_id",
        )?
        .query_map([], |row| {
            let span = [row.get(3)?, row.get(4)?, row.get(5)?];
            Ok(Summed { rows: (row.get(0)?, row.get(1)?), hosts: row.get(2)?, span })
        })?
        .collect()
    }

    /// Whether all of them closed after the first moment, not after the second, and opened not after the third.
    pub(in crate::history::sqlite) const fn are_meant(&self, [after, last, until]: [i64; 3]) -> bool {
        let [first_closing, last_closing, last_opening] = self.span;
        after < first_closing && last_closing <= last && last_opening <= until
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::{
        by_peer::{Merged, Source},
        schema::Kind,
    };

    fn day() -> Connection {
        let mut day = Connection::open_in_memory().unwrap();
        Kind::Day.runner().run(&mut day).unwrap();
        day
    }

    fn store(day: &Connection, first_id: i64, rows: &[(IpAddr, i64, i64, Counts)]) {
        let mut segment = Segment::default();
        rows.iter().for_each(|(_, opened, closed, counts)| segment.add(*opened, *closed, *counts));
        let mut sums = segment.by_peer();
        let mut sorted: Vec<(IpAddr, u32)> = rows.iter().zip(0..).map(|((peer, ..), row)| (*peer, row)).collect();
        sorted.sort();
        sorted.into_iter().for_each(|(peer, row)| sums.add(peer, row));
        sums.store(day, first_id).unwrap();
        let last_id = first_id + i64::try_from(rows.len()).unwrap() - 1;
        day.execute("INSERT INTO cubes VALUES (?1, ?2, x'01', 1, 1)", [first_id, last_id]).unwrap();
    }

    proptest! {
        #[test]
        fn sums_of_segments_together_are_those_of_their_rows(
            segments in vec(vec((0_u8..40, any::<u32>(), any::<u32>()), 1..60), 0..5)
        ) {
            let day = day();
            let (mut first_id, mut expected) = (1, BTreeMap::<IpAddr, Counts>::new());
            for rows in &segments {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|(number, sent, received)| {
                        let peer = match number % 3 {
                            0 => IpAddr::from([*number; 16]),
                            _ => IpAddr::from([10, 0, 0, *number]),
                        };
                        (peer, 5, 9, Counts::one((*sent).into(), (*received).into()))
                    })
                    .collect();
                store(&day, first_id, &rows);
                first_id += i64::try_from(rows.len()).unwrap();
                rows.iter().for_each(|(peer, _, _, counts)| expected.entry(*peer).or_default().add(*counts));
            }
            let all = Summed::all(&day).unwrap();
            prop_assert_eq!(all.len(), segments.len());
            let sources: Vec<_> = all.iter().map(|summed| Source::of_rows(&day, summed.rows.0)).collect();
            let mut merged = Merged::of(&sources, 0).unwrap();
            let found: Vec<_> = std::iter::from_fn(|| merged.next().unwrap()).collect();
            prop_assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_are_meant_together_when_all_of_them_are() {
        let day = day();
        let one = Counts::one(1, 1);
        let peer = IpAddr::from([10, 0, 0, 1]);
        store(&day, 1, &[(peer, 3, 10, one), (peer, 4, 7, one)]);
        let all = Summed::all(&day).unwrap();
        assert_eq!((all[0].rows, all[0].hosts.as_slice()), ((1, 2), &[1_u8][..]));
        for (window, are_meant) in [
            ([6, 10, 4], true),
            ([6, i64::MAX, i64::MAX], true),
            ([7, 10, 4], false),
            ([6, 9, 4], false),
            ([6, 10, 3], false),
        ] {
            assert_eq!(all[0].are_meant(window), are_meant, "{window:?}");
        }
    }

    #[test]
    fn what_is_more_than_can_be_counted_is_not_told() {
        let day = day();
        let peer = IpAddr::from([10, 0, 0, 1]);
        store(&day, 1, &[(peer, 3, 10, Counts::one(-1, 1)), (peer, 4, 7, Counts::one(5, 1))]);
        assert_eq!(Summed::all(&day).unwrap(), []);
        let stored: i64 = day.query_row("SELECT count(*) FROM peer_sums", [], |row| row.get(0)).unwrap();
        assert_eq!(stored, 0);
    }
}
