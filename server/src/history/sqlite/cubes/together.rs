//! Sums of several hours of a file together, and of what was open when one of them began: made once the file is complete, from those
//! of its hours, and held against its sessions.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use super::{
    By, Facts, Span, What,
    adding::HELD,
    encoding::{each, each_total, encode},
};
use crate::history::sqlite::{
    coding,
    sealed::{Damaged, GoesOn, SealError},
    sums::{Counts, beginning},
};

/// Most hours of a file of which it is told what was open when each began: that is read once for each before it.
const OPEN_HOURS: usize = 48;
/// Bytes of that, about, at most: what is open all day is told of each hour.
const OPEN_BYTES: usize = 8 * 1024 * 1024;
/// Hours of a run: about as many as there are runs in a day, so that any part of it is a few of both.
const RUN_HOURS: usize = 5;

/// Stores the sums of all hours together of those that are stored, which are all of the file, those of its runs of hours, and those
/// of what was open when one began, unless they are too many.
pub(in crate::history::sqlite) fn store_together(connection: &Connection, goes_on: &GoesOn) -> Result<(), SealError> {
    for by in [By::Services, By::Owners] {
        let is_told = format!("SELECT {} FROM cubes", by.column());
        if !connection.query_row(&is_told, [], |row| row.get(0)).optional()?.unwrap_or(false) {
            continue;
        }
        let Some((whole, runs)) = together(connection, by, goes_on)? else { continue };
        let row = params![by.number(), whole.encoded()];
        connection.execute("INSERT INTO cube_totals (kind, totals) VALUES (?1, ?2)", row)?;
        for ((first, last), totals) in runs {
            let row = params![by.number(), first, last, totals];
            connection
                .execute("INSERT INTO cube_runs (kind, first_hour, last_hour, totals) VALUES (?1, ?2, ?3, ?4)", row)?;
        }
        store_open(connection, by, goes_on)?;
    }
    Ok(())
}

/// Stores the sums of what was open when each hour began, unless they are too many.
fn store_open(connection: &Connection, by: By, goes_on: &GoesOn) -> Result<(), SealError> {
    let mut hours = connection.prepare("SELECT closed_hour FROM cube_hours WHERE kind = ?1 ORDER BY closed_hour")?;
    let hours = hours.query_map([by.number()], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
    if hours.len() > OPEN_HOURS {
        return Ok(());
    }
    let mut later = connection.prepare(
        "SELECT closed_hour, totals, earlier FROM cube_hours
         WHERE kind = ?1 AND closed_hour >= ?2 AND min_opened_at_us <= ?3",
    )?;
    let mut bytes = 0;
    for hour in hours {
        let begins = Span::beginning(hour);
        let mut open = Together::new();
        let mut rows = later.query([by.number(), hour, beginning(hour)])?;
        while let Some(row) = rows.next()? {
            if !goes_on() {
                return Err(SealError::Unwanted);
            }
            let blob =
                |column| row.get_ref(column)?.as_blob().map_err(|error| coding::wrong("totals", error.to_string()));
            each(row.get(0)?, (blob(1)?, blob(2)?), |what, span, counts| {
                if span.opened <= begins {
                    open.add(what, counts);
                }
                Ok::<_, Damaged>(())
            })?;
        }
        if !open.are_told || bytes > OPEN_BYTES {
            break;
        }
        if !open.sums.is_empty() {
            let totals = open.encoded();
            bytes += totals.len();
            let row = params![by.number(), hour, totals];
            connection.execute("INSERT INTO cube_open (kind, hour, totals) VALUES (?1, ?2, ?3)", row)?;
        }
    }
    Ok(())
}

/// The sums of hours together.
#[derive(Debug)]
struct Together {
    sums: BTreeMap<What, Counts>,
    /// Whether they are not too many, and not more than can be counted.
    are_told: bool,
}

impl Together {
    fn new() -> Together {
        Together { sums: BTreeMap::new(), are_told: true }
    }

    fn add(&mut self, what: What, counts: Counts) {
        if !self.are_told {
            return;
        }
        let sum = self.sums.entry(what).or_default();
        match sum.plus(counts) {
            Some(more) => *sum = more,
            None => self.are_told = false,
        }
        self.are_told &= self.sums.len() <= HELD;
    }

    fn encoded(&self) -> Vec<u8> {
        encode(self.sums.iter().map(|(what, counts)| (*what, *counts)))
    }
}

/// Runs of hours, each by the first and the last of them, with their sums as bytes.
type Runs = Vec<((i64, i64), Vec<u8>)>;

/// The sums of all hours together, and of their runs where there is more than one; none when they cannot be told.
fn together(connection: &Connection, by: By, goes_on: &GoesOn) -> Result<Option<(Together, Runs)>, SealError> {
    let mut hours =
        connection.prepare("SELECT id, closed_hour FROM cube_hours WHERE kind = ?1 ORDER BY closed_hour")?;
    let hours: Vec<(i64, i64)> =
        hours.query_map([by.number()], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
    let mut totals = connection.prepare("SELECT totals FROM cube_hours WHERE id = ?1")?;
    let (mut whole, mut runs) = (Together::new(), Runs::new());
    for run in hours.chunks(RUN_HOURS) {
        let mut sums = Together::new();
        for (number, _) in run {
            if !goes_on() {
                return Err(SealError::Unwanted);
            }
            let mut rows = totals.query([number])?;
            let row = rows.next()?.ok_or(Damaged("an hour is missing"))?;
            let bytes = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("totals", error.to_string()))?;
            each_total(bytes, |what, counts| {
                sums.add(what, counts);
                Ok::<_, Damaged>(())
            })?;
        }
        sums.sums.iter().for_each(|(what, counts)| whole.add(*what, *counts));
        if !(sums.are_told && whole.are_told) {
            return Ok(None);
        }
        if let ([(_, first), ..], [.., (_, last)]) = (run, run) {
            runs.push(((*first, *last), sums.encoded()));
        }
    }
    if runs.len() == 1 {
        runs.clear();
    }
    Ok(Some((whole, runs)))
}

/// What the sums of a file have to tell, by its sessions.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Expected {
    sessions: u64,
    /// When the hours began of which it is told what was open then, us.
    hours: Vec<i64>,
    /// By how many more sessions were open then than at the one before.
    changes: Vec<i64>,
}

impl Expected {
    /// Of the sums that there are in a file: nothing yet.
    pub(in crate::history::sqlite) fn of(connection: &Connection) -> Result<Expected, SealError> {
        let mut hours = connection.prepare("SELECT DISTINCT hour FROM cube_open ORDER BY hour")?;
        let hours: Vec<i64> = hours.query_map([], |row| row.get(0).map(beginning))?.collect::<Result<_, _>>()?;
        Ok(Expected { sessions: 0, changes: vec![0; hours.len() + 1], hours })
    }

    pub(in crate::history::sqlite) fn add(&mut self, facts: &Facts) {
        self.sessions += 1;
        let opened = self.hours.partition_point(|begins| *begins < facts.opened_at_us);
        let closed = self.hours.partition_point(|begins| *begins <= facts.closed_at_us);
        for (at, by) in [(opened, 1), (closed, -1)] {
            if let Some(change) = self.changes.get_mut(at).filter(|_| opened < closed) {
                *change += by;
            }
        }
    }

    /// Whether the sums of a file tell of so many sessions: those of the hours of each kind, of hours together as many as of each,
    /// and of what was open as many as were.
    pub(in crate::history::sqlite) fn are_told(&self, connection: &Connection) -> Result<bool, SealError> {
        let (mut by_hour, mut by_kind) = (BTreeMap::<(i64, i64), u64>::new(), BTreeMap::<i64, u64>::new());
        let mut statement = connection.prepare("SELECT kind, closed_hour, totals, earlier FROM cube_hours")?;
        let mut hours = statement.query([])?;
        while let Some(row) = hours.next()? {
            let (kind, hour): (i64, i64) = (row.get(0)?, row.get(1)?);
            let (totals, earlier): (Vec<u8>, Vec<u8>) = (row.get(2)?, row.get(3)?);
            let (of_hour, of_kind) = (by_hour.entry((kind, hour)).or_default(), by_kind.entry(kind).or_default());
            each(hour, (&totals, &earlier), |_, _, counts| {
                *of_hour += counts.sessions;
                *of_kind += counts.sessions;
                Ok::<_, Damaged>(())
            })?;
        }
        let mut statement = connection.prepare(
            "SELECT kind, ?1, ?2, totals FROM cube_totals UNION ALL SELECT kind, first_hour, last_hour, totals FROM cube_runs",
        )?;
        let mut together = statement.query([i64::MIN, i64::MAX])?;
        while let Some(row) = together.next()? {
            let [kind, first, last]: [i64; 3] = [row.get(0)?, row.get(1)?, row.get(2)?];
            let expected: u64 = by_hour.range((kind, first)..=(kind, last)).map(|(_, sessions)| sessions).sum();
            if sessions(&row.get::<_, Vec<u8>>(3)?)? != expected {
                return Ok(false);
            }
        }
        let mut statement = connection.prepare("SELECT hour, totals FROM cube_open")?;
        let mut open = statement.query([])?;
        while let Some(row) = open.next()? {
            let begins = beginning(row.get(0)?);
            let at = self.hours.partition_point(|other| *other <= begins);
            let expected: i64 = self.changes.iter().take(at).sum();
            if sessions(&row.get::<_, Vec<u8>>(1)?)?.cast_signed() != expected {
                return Ok(false);
            }
        }
        Ok(by_kind.into_values().all(|total| total == self.sessions))
    }
}

/// How many sessions totals tell of.
fn sessions(totals: &[u8]) -> Result<u64, Damaged> {
    let mut all = 0;
    each_total(totals, |_, counts| {
        all += counts.sessions;
        Ok::<_, Damaged>(())
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::{
        cubes::{Cubes, Service},
        schema::Kind,
    };

    const HOUR: i64 = 3_600_000_000;

    fn facts((host_id, opened, lasted): (i64, i64, i64)) -> Facts {
        let service = Service { direction: 1, protocol: 6, family: 1, port: 443 };
        let (opened_at_us, closed_at_us) = (opened * HOUR / 2, (opened + lasted) * HOUR / 2);
        Facts { host_id, opened_at_us, closed_at_us, service, program_id: host_id % 2, counts: Counts::one(1, 2) }
    }

    /// A file with the sums of sessions.
    fn file(sessions: &[Facts]) -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        Kind::Sealed.runner().run(&mut connection).unwrap();
        let mut cubes = Cubes::default();
        sessions.iter().for_each(|facts| cubes.add(facts));
        cubes.store(&connection, (1, i64::try_from(sessions.len()).unwrap())).unwrap();
        let goes_on: GoesOn = Arc::new(|| true);
        store_together(&connection, &goes_on).unwrap();
        connection
    }

    fn are_told(connection: &Connection, sessions: &[Facts]) -> bool {
        let mut expected = Expected::of(connection).unwrap();
        sessions.iter().for_each(|facts| expected.add(facts));
        expected.are_told(connection).unwrap()
    }

    proptest! {
        #[test]
        fn sums_together_are_those_of_the_sessions(
            sessions in vec((1_i64..4, -20_i64..20, 0_i64..9), 1..80), other in (1_i64..4, -20_i64..20, 3_i64..9)
        ) {
            let sessions: Vec<Facts> = sessions.into_iter().map(facts).collect();
            let connection = file(&sessions);
            prop_assert!(are_told(&connection, &sessions));
            prop_assert!(!are_told(&connection, &sessions[1..]));
            // As many sessions, of which others were open.
            let another = [&[facts(other)], &sessions[1..]].concat();
            let open = |all: &[Facts], hour: i64| {
                all.iter().filter(|one| (one.opened_at_us..=one.closed_at_us).contains(&(hour * HOUR))).count()
            };
            let mut told = connection.prepare("SELECT hour FROM cube_open").unwrap();
            let told: Vec<i64> = told.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
            let hours = sessions.iter().map(|one| one.closed_at_us.div_euclid(HOUR));
            let expected: BTreeSet<i64> = hours.filter(|hour| open(&sessions, *hour) > 0).collect();
            prop_assert_eq!(told.iter().copied().collect::<BTreeSet<i64>>(), expected);
            let are_same = told.iter().all(|hour| open(&sessions, *hour) == open(&another, *hour));
            prop_assert_eq!(are_told(&connection, &another), are_same, "{:?}", told);
        }
    }

    #[test]
    fn a_part_that_tells_of_another_number_is_found() {
        // One that closed in the first hour, two in the next, and so on.
        let closed = (1..13_i64).flat_map(|hour| (0..hour).map(move |_| facts((1, 2 * hour - 1, 2))));
        let sessions: Vec<Facts> = closed.collect();
        for table in ["cube_runs", "cube_open"] {
            let connection = file(&sessions);
            assert!(are_told(&connection, &sessions));
            let sql = format!("UPDATE {table} SET totals = (SELECT totals FROM {table} WHERE id = 1) WHERE id = 2");
            assert_eq!(connection.execute(&sql, []).unwrap(), 1);
            assert!(!are_told(&connection, &sessions), "{table}");
        }
    }
}
