//! The sessions of a file in which each has a row, host by host, those of each in the order of their closing.
//!
//! They were stored almost in that order, and each run says between which times its sessions closed. So the rows of a host
//! are read once, run after run, and shown as soon as no later run has an earlier one. Of what comes in so different an order
//! that too much would have to be held, times and places alone are sorted, so many at once, and the rows read one by one.

use std::{collections::BinaryHeap, iter::zip};

use rusqlite::{Connection, Rows, Statement, params};

use super::{GoesOn, SealError, layout::MOST_SESSIONS};
use crate::history::sqlite::stored::{self, OVER_COLUMNS, StoredSession};

/// How much is held of one host at a time.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Runs, 32 bytes each.
    runs: usize,
    /// Sessions, 208 bytes each and what they have of more owners; a run more where they do not come in order.
    sessions: usize,
    /// Sessions from which on it is looked which can be shown.
    looked_at: usize,
    /// Times and places of rows, 16 bytes each.
    places: usize,
}

/// 7 MB in all, whatever hosts told in whatever order; of a usual one as much as of a block.
const BOUNDS: Bounds = Bounds { runs: 64 * 1024, sessions: 16 * 1024, looked_at: MOST_SESSIONS, places: 64 * 1024 };

/// Rows between two looks whether sealing is still wanted, where rows are only looked at.
const LOOKED_AT: usize = 64 * 1024;

/// Shows every session of a file.
pub(in crate::history::sqlite) fn each_row(
    source: &Connection,
    goes_on: &GoesOn,
    mut show: impl FnMut(StoredSession) -> Result<(), SealError>,
) -> Result<(), SealError> {
    each_row_within(BOUNDS, source, goes_on, &mut show)
}

/// Takes a session.
type Show<'a> = &'a mut dyn FnMut(StoredSession) -> Result<(), SealError>;

fn each_row_within(bounds: Bounds, source: &Connection, goes_on: &GoesOn, show: Show<'_>) -> Result<(), SealError> {
    let mut statement =
        source.prepare("SELECT host_id, first_id, last_id, min_closed_at_us FROM runs ORDER BY host_id, first_id")?;
    let mut found = statement.query([])?;
    let mut reading = Reading::new(bounds, source)?;
    let mut runs = Vec::new();
    let mut next = next_run(&mut found)?;
    while let Some((host_id, first)) = next {
        runs.clear();
        runs.push(first);
        let mut is_crowded = false;
        next = next_run(&mut found)?;
        while let Some((_, run)) = next.filter(|(other, _)| *other == host_id) {
            is_crowded |= runs.len() == bounds.runs;
            if !is_crowded {
                runs.push(run);
            }
            next = next_run(&mut found)?;
        }
        if is_crowded {
            reading.by_places(host_id, EARLIEST, goes_on, show)?;
        } else {
            reading.by_runs(host_id, &runs, goes_on, show)?;
        }
    }
    Ok(())
}

/// Rows of a host that follow each other, and when the first of their sessions closed.
#[derive(Debug, Clone, Copy)]
struct Run {
    first_id: i64,
    last_id: i64,
    min_closed_at_us: i64,
}

fn next_run(found: &mut Rows<'_>) -> Result<Option<(i64, Run)>, rusqlite::Error> {
    let Some(row) = found.next()? else { return Ok(None) };
    let run = Run { first_id: row.get(1)?, last_id: row.get(2)?, min_closed_at_us: row.get(3)? };
    Ok(Some((row.get(0)?, run)))
}

/// Of each run, when the first session of a later one closed.
fn closings_of_later(runs: &[Run]) -> Vec<i64> {
    let mut earliest = i64::MAX;
    let mut later: Vec<i64> = Vec::with_capacity(runs.len());
    for run in runs.iter().rev() {
        later.push(earliest);
        earliest = earliest.min(run.min_closed_at_us);
    }
    later.reverse();
    later
}

/// When a session closed, and where its row is: they are shown in this order.
type Place = (i64, i64);

/// Before all others.
const EARLIEST: Place = (i64::MIN, i64::MIN);

/// A session and where its row is.
type Held = (i64, StoredSession);

fn place((id, session): &Held) -> Place {
    (session.closed.map_or(i64::MIN, |(at, _)| at), *id)
}

/// Reads the rows of one host after those of another.
struct Reading<'a> {
    bounds: Bounds,
    of_run: Statement<'a>,
    places: Statement<'a>,
    of_place: Statement<'a>,
    held: Vec<Held>,
}

impl Reading<'_> {
    fn new(bounds: Bounds, source: &Connection) -> Result<Reading<'_>, rusqlite::Error> {
        let over = stored::OVER;
        Ok(Reading {
            bounds,
            of_run: source.prepare(&format!("SELECT {over}, id FROM sessions WHERE id BETWEEN ?1 AND ?2"))?,
            places: source.prepare(
                "SELECT sessions.closed_at_us, sessions.id FROM runs
                 CROSS JOIN sessions ON sessions.id BETWEEN runs.first_id AND runs.last_id
                 WHERE runs.host_id = ?1 AND runs.max_closed_at_us >= ?2",
            )?,
            of_place: source.prepare(&format!("SELECT {over} FROM sessions WHERE id = ?1"))?,
            held: Vec::new(),
        })
    }

    /// Shows the sessions of a host, whose runs these are.
    fn by_runs(&mut self, host_id: i64, runs: &[Run], goes_on: &GoesOn, show: Show<'_>) -> Result<(), SealError> {
        let mut look_at = self.bounds.looked_at;
        let mut last = EARLIEST;
        for (run, later) in zip(runs, closings_of_later(runs)) {
            self.read(*run)?;
            if self.held.len() < look_at && later < i64::MAX {
                continue;
            }
            last = self.show_until(later, show)?.unwrap_or(last);
            if !goes_on() {
                return Err(SealError::Unwanted);
            }
            if 2 * self.held.len() > self.bounds.sessions {
                self.held.clear();
                return self.by_places(host_id, last, goes_on, show);
            }
            // What stays is not looked at again and again.
            look_at = self.bounds.looked_at.max(2 * self.held.len());
        }
        Ok(())
    }

    fn read(&mut self, run: Run) -> Result<(), rusqlite::Error> {
        let mut rows = self.of_run.query(params![run.first_id, run.last_id])?;
        while let Some(row) = rows.next()? {
            self.held.push((row.get(OVER_COLUMNS)?, StoredSession::over(row)?));
        }
        Ok(())
    }

    /// Shows what closed until a moment, and holds the rest; the last that was shown.
    fn show_until(&mut self, until: i64, show: Show<'_>) -> Result<Option<Place>, SealError> {
        if !self.held.is_sorted_by_key(place) {
            self.held.sort_by_cached_key(place);
        }
        // Of the same moment the rows of later runs come later.
        let count = self.held.partition_point(|one| place(one).0 <= until);
        let last = count.checked_sub(1).and_then(|last| self.held.get(last)).map(place);
        self.held.drain(..count).try_for_each(|(_, session)| show(session))?;
        Ok(last)
    }

    /// Shows the sessions of a host that come after a place.
    fn by_places(&mut self, host_id: i64, mut after: Place, goes_on: &GoesOn, show: Show<'_>) -> Result<(), SealError> {
        loop {
            let mut first: BinaryHeap<Place> = BinaryHeap::new();
            let (mut rows, mut looked_at) = (self.places.query(params![host_id, after.0])?, 0_usize);
            while let Some(row) = rows.next()? {
                looked_at += 1;
                if looked_at.is_multiple_of(LOOKED_AT) && !goes_on() {
                    return Err(SealError::Unwanted);
                }
                let place: Place = (row.get(0)?, row.get(1)?);
                let is_one = first.len() < self.bounds.places || first.peek().is_some_and(|last| place < *last);
                if place > after && is_one {
                    first.push(place);
                }
                if first.len() > self.bounds.places {
                    first.pop();
                }
            }
            let first = first.into_sorted_vec();
            let Some(last) = first.last() else { return Ok(()) };
            after = *last;
            for (_, id) in first {
                show(self.of_place.query_row([id], StoredSession::over)?)?;
            }
            if !goes_on() {
                return Err(SealError::Unwanted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::schema::Kind;

    const FEW: Bounds = Bounds { runs: 12, sessions: 16, looked_at: 4, places: 5 };

    /// A file of these runs: of each the host, and when its sessions closed.
    fn file(runs: &[(i64, Vec<i64>)]) -> Connection {
        let mut file = Connection::open_in_memory().unwrap();
        Kind::Day.runner().run(&mut file).unwrap();
        let mut id = 0_i64;
        for (chapter, (host_id, closings)) in (1_i64..).zip(runs) {
            let first = id + 1;
            for at in closings {
                id += 1;
                file.execute(
                    "INSERT INTO sessions VALUES
                         (?1, ?2, ?3, 5, 1, 1, 1, ?1, 1, 1, 1, 1, x'0401020304', 1, x'0401020305', 2, 1, 0, 0, 0, NULL, 0, 0)",
                    params![id, host_id, at],
                )
                .unwrap();
            }
            if let (Some(min), Some(max)) = (closings.iter().min(), closings.iter().max()) {
                let run = params![chapter / 3, host_id, first, id, min, max, min - 5];
                file.execute("INSERT INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)", run).unwrap();
            }
        }
        file
    }

    /// Host, closing and number of each session, in order.
    fn shown(bounds: Bounds, file: &Connection) -> Vec<[i64; 3]> {
        let goes_on: GoesOn = Arc::new(|| true);
        let mut all = Vec::new();
        each_row_within(bounds, file, &goes_on, &mut |one| {
            all.push([one.host_id, one.closed.unwrap().0, one.cookie]);
            Ok(())
        })
        .unwrap();
        all
    }

    fn expected(file: &Connection) -> Vec<[i64; 3]> {
        let ordered = "SELECT host_id, closed_at_us, id FROM sessions ORDER BY host_id, closed_at_us, id";
        let mut statement = file.prepare(ordered).unwrap();
        let all = statement.query_map([], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?]));
        all.unwrap().map(Result::unwrap).collect()
    }

    proptest! {
        #[test]
        fn each_session_is_shown_once_in_the_order_of_its_host_and_closing(
            runs in vec((0_i64..3, vec(0_i64..40, 1..9)), 0..40)
        ) {
            let file = file(&runs);
            prop_assert_eq!(shown(FEW, &file), expected(&file));
            prop_assert_eq!(shown(BOUNDS, &file), expected(&file));
        }

        #[test]
        fn so_is_what_comes_almost_in_order_of_hosts_with_many_runs(
            late in vec((0_usize..60, 0_i64..300), 0..4), apart in 1_i64..9
        ) {
            let mut runs: Vec<(i64, Vec<i64>)> =
                (0..60).map(|turn| (turn % 7, (0..3).map(|n| turn * apart + n).collect())).collect();
            for (turn, at) in late {
                runs[turn].1.push(at);
            }
            let file = file(&runs);
            prop_assert_eq!(shown(FEW, &file), expected(&file));
            prop_assert_eq!(shown(Bounds { runs: 100, ..FEW }, &file), expected(&file));
        }
    }

    #[test]
    fn what_is_not_wanted_any_more_ends_with_the_next_look() {
        let runs: Vec<(i64, Vec<i64>)> = (0..10).map(|turn| (1, vec![turn; 4])).collect();
        let goes_on: GoesOn = Arc::new(|| false);
        for bounds in [FEW, Bounds { runs: 1, ..FEW }] {
            let mut count = 0;
            let outcome = each_row_within(bounds, &file(&runs), &goes_on, &mut |_| {
                count += 1;
                Ok(())
            });
            assert!(matches!(outcome, Err(SealError::Unwanted)), "{outcome:?}");
            assert!(count <= FEW.places, "{count}");
        }
    }
}
