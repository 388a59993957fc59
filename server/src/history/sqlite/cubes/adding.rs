//! Sums while rows are added, and how they are stored.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{Connection, params};

use super::{
    By, Facts, Hour, Span, What,
    encoding::{Encoding, Summed},
};
use crate::history::sqlite::{numbered::Numbered, sealed::Writing, sums::Counts};

/// Most sums that are held before they are written: an agent says when its sessions opened, so that they may be as many as these.
pub(super) const HELD: usize = 64 * 1024;
/// Most bytes of sums by service, and by host and program.
const SERVICES_BYTES: usize = 4 * 1024 * 1024;
const OWNERS_BYTES: usize = 16 * 1024 * 1024;
/// Most hours in which what is counted together closed.
const HOURS: usize = 512;

/// Sums of one kind, while rows are added.
#[derive(Debug)]
struct Cube {
    held: Numbered<(What, Span), Counts>,
    hours: BTreeMap<i64, Encoding>,
    /// Most bytes; none any more once they were too many.
    most: Option<usize>,
}

impl Cube {
    fn of_at_most(bytes: usize) -> Cube {
        Cube { held: Numbered::default(), hours: BTreeMap::new(), most: Some(bytes) }
    }

    fn add(&mut self, what: What, span: Span, counts: Counts) {
        if self.most.is_some() {
            self.held.entry((what, span)).or_default().add(counts);
            if self.held.len() >= HELD {
                self.write();
            }
        }
    }

    /// Writes what is held. When more of the same follows it is summed twice, which whoever reads adds up.
    fn write(&mut self) {
        let Some(most) = self.most else { return };
        let mut all: Vec<((i64, What, i64), Counts)> = self
            .held
            .drain()
            .map(|((what, Span { closed, opened }), counts)| ((closed, what, opened), counts))
            .collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        let mut told = true;
        for parts in all.chunk_by(|((closed, what, _), _), ((other, others, _), _)| (closed, what) == (other, others)) {
            let [((closed, what, _), _), ..] = parts else { continue };
            told &= self.hours.entry(*closed).or_default().add(*what, *closed, parts);
        }
        let bytes: usize = self.hours.values().map(Encoding::length).sum();
        if !told || bytes > most || self.hours.len() > HOURS {
            *self = Cube { most: None, ..Cube::of_at_most(0) };
        }
    }

    /// The sums, unless they are too many.
    fn finish(mut self) -> Option<Vec<Summed>> {
        self.write();
        self.most?;
        Some(self.hours.into_iter().filter_map(|(closed, encoding)| encoding.finish(closed)).collect())
    }
}

/// Both kinds of sums of rows, while these are added.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Cubes {
    services: Cube,
    owners: Cube,
    hosts: BTreeSet<i64>,
    /// Whose row came last.
    host: Option<i64>,
}

impl Default for Cubes {
    fn default() -> Cubes {
        let (services, owners) = (Cube::of_at_most(SERVICES_BYTES), Cube::of_at_most(OWNERS_BYTES));
        Cubes { services, owners, hosts: BTreeSet::new(), host: None }
    }
}

impl Cubes {
    pub(in crate::history::sqlite) fn add(&mut self, facts: &Facts) {
        let Facts { host_id, opened_at_us, closed_at_us, service, program_id, counts } = *facts;
        let span = Span::of(opened_at_us, closed_at_us);
        self.services.add(service.what(), span, counts);
        self.owners.add([host_id, program_id], span, counts);
        // Mostly it is the same as before.
        if self.host.replace(host_id) != Some(host_id) {
            self.hosts.insert(host_id);
        }
    }

    /// Where rows come host by host: what is held of those so far is written.
    pub(in crate::history::sqlite) fn end_host(&mut self) {
        self.owners.write();
    }

    /// Stores the sums of the rows from one to another, which are those that were added.
    pub(in crate::history::sqlite) fn store(
        self,
        connection: &Connection,
        (first_id, last_id): (i64, i64),
    ) -> Result<(), rusqlite::Error> {
        let mut hosts = Writing::default();
        let mut before = 0;
        for host in &self.hosts {
            hosts.unsigned(host.wrapping_sub(before).cast_unsigned());
            before = *host;
        }
        let kinds = [(By::Services, self.services.finish()), (By::Owners, self.owners.finish())];
        let [services, owners] = kinds.each_ref().map(|(_, sums)| sums.is_some());
        connection
            .prepare_cached(
                "INSERT INTO cubes (first_id, last_id, hosts, services, owners) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![first_id, last_id, hosts.finish(), services, owners])?;
        let mut insert = connection.prepare_cached(
            "INSERT INTO cube_hours (first_id, kind, closed_hour, min_opened_at_us, max_opened_at_us, totals, earlier)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?;
        for (by, sums) in kinds {
            for Summed { hour: Hour { closed, opened_us: (first, last) }, totals, earlier } in
                sums.into_iter().flatten()
            {
                insert.execute(params![first_id, by.number(), closed, first, last, totals, earlier])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::{
        cubes::{
            Balances, Part, each,
            encoding::{each_total, encode},
            merge,
        },
        sealed::Damaged,
    };

    const HOUR: i64 = 3_600_000_000;

    proptest! {
        #[test]
        fn sums_are_read_as_they_were_written(
            rows in vec(((-9_i64..9, any::<i64>()), 0..9_i64, -2..9_i64, any::<(u32, u32)>()), 0..60), parts in 1_usize..4
        ) {
            let (mut cube, mut expected) = (Cube::of_at_most(usize::MAX), HashMap::<_, Counts>::new());
            for part in rows.chunks(rows.len().div_ceil(parts).max(1)) {
                for ((first, second), opened, lasted, (sent, received)) in part {
                    let span = Span::of(opened * HOUR / 2, (opened + lasted) * HOUR / 2);
                    let counts = Counts { sessions: 1, bytes_sent: (*sent).into(), bytes_received: (*received).into() };
                    cube.add([*first, *second], span, counts);
                    expected.entry(([*first, *second], span)).or_default().add(counts);
                }
                cube.write();
                prop_assert!(cube.held.is_empty());
            }
            let (mut found, mut totals) = (HashMap::<_, Counts>::new(), HashMap::<_, Counts>::new());
            let mut whole = BTreeMap::<_, Counts>::new();
            expected.iter().for_each(|((what, _), counts)| whole.entry(*what).or_default().add(*counts));
            let whole: Vec<_> = whole.into_iter().collect();
            let mut all_but = vec![Part { totals: encode(whole.iter().copied()), is_taken_off: false }];
            for Summed { hour, totals: all, earlier } in cube.finish().unwrap() {
                all_but.push(Part { totals: all.clone(), is_taken_off: true });
                let mut opened = (i64::MAX, i64::MIN);
                each(hour.closed, (&all, &earlier), |what, span, counts| {
                    found.entry((what, span)).or_default().add(counts);
                    opened = (opened.0.min(span.opened_us().0), opened.1.max(span.opened_us().1));
                    Ok::<_, Damaged>(())
                }).unwrap();
                prop_assert_eq!(opened, hour.opened_us);
                each_total(&all, |what, counts| {
                    totals.entry((what, hour.closed)).or_default().add(counts);
                    Ok::<_, Damaged>(())
                }).unwrap();
            }
            let mut left = Balances::default();
            merge(&all_but, |what, balance| {
                left.add(what, balance);
                Ok::<_, Damaged>(())
            }).unwrap();
            let left = left.told().unwrap();
            prop_assert!(left.iter().all(|(_, counts)| *counts == Counts::default()), "{left:?}");
            let mut summed = HashMap::<_, Counts>::new();
            expected.iter().for_each(|((what, span), counts)| summed.entry((*what, span.closed)).or_default().add(*counts));
            prop_assert_eq!(found, expected);
            prop_assert_eq!(totals, summed);
        }
    }

    #[test]
    fn what_would_be_too_much_is_not_told() {
        let one = Counts { sessions: 1, bytes_sent: 5, bytes_received: 5 };
        let huge = Counts { bytes_sent: u64::MAX, ..one };
        let cube = |bytes: usize, all: &[(i64, Counts)]| {
            let mut cube = Cube::of_at_most(bytes);
            all.iter().for_each(|(hour, counts)| cube.add([1, *hour], Span::of(hour * HOUR, hour * HOUR + 1), *counts));
            cube.finish().map(|hours| hours.len())
        };
        assert_eq!(cube(100, &[(1, one), (2, one)]), Some(2));
        assert_eq!(cube(10, &[(1, one), (2, one)]), None, "too many bytes");
        let hours: Vec<_> = (0..=HOURS as i64).map(|hour| (hour, one)).collect();
        assert_eq!(cube(usize::MAX, &hours[1..]), Some(HOURS));
        assert_eq!(cube(usize::MAX, &hours), None, "too many hours");
        // Both are told by themselves, and not together.
        let mut cube = Cube::of_at_most(100);
        for opened in [HOUR, HOUR + 1] {
            cube.add([1, 1], Span::of(opened, HOUR + 2), huge);
        }
        assert!(cube.finish().is_none(), "more than can be counted");
    }
}
