//! The next file of sessions, while it takes over what is open. That are rows of the whole fleet, and agents must not wait for
//! seconds while they are copied: they go over some at a time, between two pieces of the writer's work, and what changes
//! meanwhile goes over again. Nothing in the file counts before the catalogue names it (see `parts`).

use std::{collections::BTreeSet, io, path::Path, time::Duration};

use fleetsock_proto::time::Timestamp;
use rusqlite::{Connection, Transaction};

use super::{
    super::{
        in_use,
        latest::Latest,
        parts::{self, Form, Hot, Part},
        schema::Kind,
    },
    Database, OpenError, engine, open_for_writing,
};

/// How long nothing is tried after something failed.
const RETRY: Duration = Duration::from_secs(10);
/// Open sessions that go over at once, about: a few tens of milliseconds.
const STEP_ROWS: usize = 10_000;

/// The next file, until it has taken over everything.
pub(super) struct Turning {
    /// Where it is.
    next: Hot,
    /// The file, with the one before attached to it as `before`.
    day: Connection,
    /// The last host that went over, in the order of their numbers; `None` before the first.
    reached: Option<i64>,
    /// Whether all of them went over.
    is_through: bool,
    /// Of those that went over, the ones of which something changed since.
    changed: BTreeSet<i64>,
    /// The programs that its rows name.
    programs: BTreeSet<i64>,
    /// Rows of one step. They grow while it lasts, so that it ends however much changes.
    step: usize,
}

impl Turning {
    /// Begins to take over from the file before.
    fn begin(next: Hot, day: Connection, before: &Path) -> Result<Turning, rusqlite::Error> {
        day.execute("ATTACH DATABASE ?1 AS before", [before.to_string_lossy()])?;
        let (changed, programs) = (BTreeSet::new(), BTreeSet::new());
        Ok(Turning { next, day, reached: None, is_through: false, changed, programs, step: STEP_ROWS })
    }

    /// What is open of these hosts changed in the file before.
    fn note(&mut self, hosts: impl Iterator<Item = i64>) {
        let (reached, is_through) = (self.reached, self.is_through);
        self.changed.extend(hosts.filter(|host| is_through || reached.is_some_and(|reached| *host <= reached)));
    }

    /// Takes over some of what is open, and with the last of it how far the history of each host goes; whether that was all.
    /// Nothing may change in the file before from then on.
    fn step(&mut self) -> Result<bool, rusqlite::Error> {
        if self.is_through {
            self.step += self.step / 16;
        }
        let transaction = self.day.transaction()?;
        let mut rows = 0;
        while !self.is_through && rows < self.step {
            match next_host(&transaction, self.reached)? {
                Some(host) => {
                    rows += copy(&transaction, host, &mut self.programs)?;
                    self.reached = Some(host);
                }
                None => self.is_through = true,
            }
        }
        while self.is_through && rows < self.step {
            let Some(host) = self.changed.pop_first() else { break };
            // One of which nothing is open any more is work too.
            rows += 1 + copy(&transaction, host, &mut self.programs)?;
        }
        let is_all = self.is_through && self.changed.is_empty();
        if is_all {
            transaction.execute("INSERT INTO main.cursors SELECT * FROM before.cursors", [])?;
        }
        transaction.commit()?;
        Ok(is_all)
    }

    /// The file, for itself, and the programs that it names.
    fn finish(self) -> Result<(Hot, Connection, BTreeSet<i64>), rusqlite::Error> {
        self.day.execute_batch("DETACH DATABASE before")?;
        Ok((self.next, self.day, self.programs))
    }
}

impl Database {
    /// Begins the next file when this one is complete. It takes over what is open by and by ([`Database::turn`]), and until
    /// then this one is written to.
    pub(in super::super) fn begin_to_turn(&mut self, now: Timestamp) -> Result<(), OpenError> {
        let before = &self.files.catalogue().hot;
        let is_resting = self.given_up_at.is_some_and(|at| at <= now && now.since(at) < RETRY);
        if self.turning.is_some()
            || is_resting
            || !parts::is_complete(self.keeping, before.started_at, self.extent()?.0, now)
        {
            return Ok(());
        }
        let next = before.next(&self.files.folder, now);
        let failed = |problem: io::Error| OpenError::Engine { path: next.path.clone(), problem: problem.to_string() };
        parts::remove(&self.files.folder, &parts::file_of(next.id)).map_err(failed)?;
        let (day, path) = (open_for_writing(&next.path, Kind::Day.runner())?, next.path.clone());
        self.turning = Some(Turning::begin(next, day, &before.path).map_err(|error| engine(&path, &error))?);
        Ok(())
    }

    /// Whether the next file has something to take over.
    pub(in super::super) fn is_turning(&self) -> bool {
        self.turning.is_some()
    }

    /// What is open of these hosts changed.
    pub(in super::super) fn note_changed(&mut self, hosts: impl Iterator<Item = i64>) {
        if let Some(turning) = &mut self.turning {
            turning.note(hosts);
        }
    }

    /// The next file takes over some of what is open. When that was the last of it, `end` may write to the file before once more, and
    /// from then on the next one is written to. An error leaves everything as it was.
    pub(in super::super) fn turn(
        &mut self,
        now: Timestamp,
        end: impl FnOnce(&Transaction<'_>) -> Result<(), rusqlite::Error>,
    ) -> Result<(), OpenError> {
        let Some(mut turning) = self.turning.take() else { return Ok(()) };
        let error = match turning.step() {
            Ok(false) => {
                self.turning = Some(turning);
                return Ok(());
            }
            Ok(true) => {
                let ended = self.day.transaction().and_then(|transaction| {
                    end(&transaction)?;
                    transaction.commit()
                });
                match ended {
                    Ok(()) => {
                        let turned = self.turn_over(turning, now);
                        // The catalogue may name the next file although that seemed to fail, so that it stays.
                        self.given_up_at = turned.is_err().then_some(now).or(self.given_up_at);
                        return turned;
                    }
                    Err(error) => engine(&self.files.catalogue().hot.path, &error),
                }
            }
            Err(error) => engine(&turning.next.path, &error),
        };
        let next = turning.next.id;
        drop(turning);
        self.give_up(next, now);
        Err(error)
    }

    /// Removes what there is of the next file, whose room may be what is missing.
    fn give_up(&mut self, next: i64, now: Timestamp) {
        self.given_up_at = Some(now);
        if let Err(error) = parts::remove(&self.files.folder, &parts::file_of(next)) {
            tracing::warn!(%error, "what there is of the next file of sessions stays until the next attempt");
        }
    }

    /// From now on the next file is written to, which has taken over everything.
    fn turn_over(&mut self, turning: Turning, now: Timestamp) -> Result<(), OpenError> {
        let (sessions, latest) = self.extent()?;
        let path = turning.next.path.clone();
        let (next, day, programs) = turning.finish().map_err(|error| engine(&path, &error))?;
        let next = Hot { started_at: now, ..next };
        let before = &self.files.catalogue().hot;
        let transaction = self.main.transaction().map_err(|error| engine(&path, &error))?;
        let turned = parts::turn_over(&transaction, before, (sessions, latest), &next)
            .and_then(|()| in_use::note(&transaction, &programs, next.id))
            .and_then(|()| transaction.commit());
        turned.map_err(|error| self.failed(error))?;
        tracing::info!(file = %next.path.display(), sessions, "the next file of sessions begins");
        let complete = std::mem::replace(&mut self.day, day);
        self.files.leaving.add_connection(&before.path, complete);
        self.files.catalogue.change(|catalogue| {
            let (id, path) = (catalogue.hot.id, catalogue.hot.path.clone());
            let complete = Part { id, path, latest, form: Form::Rows };
            catalogue.complete.push(complete);
            (catalogue.hot, catalogue.latest) = (next, Latest::default());
        });
        Ok(())
    }

    /// How many sessions the file has that is written to, and the latest closing in it.
    fn extent(&self) -> Result<(i64, i64), OpenError> {
        let number = |sql: &str| {
            let found = self.day.query_row(sql, [], |row| row.get(0));
            found.map_err(|error| engine(&self.files.catalogue().hot.path, &error))
        };
        let sessions = number("SELECT coalesce(max(id), 0) FROM sessions")?;
        Ok((sessions, number("SELECT coalesce(max(max_closed_at_us), 0) FROM zones")?))
    }
}

/// The next host of which something is open.
fn next_host(day: &Connection, after: Option<i64>) -> Result<Option<i64>, rusqlite::Error> {
    day.prepare_cached("SELECT min(host_id) FROM before.open_sessions WHERE host_id > ?1")?
        .query_row([after.unwrap_or(i64::MIN)], |row| row.get(0))
}

/// Copies what is open of a host, in place of what was copied before; how many rows that were. Adds the programs that they name.
fn copy(day: &Connection, host: i64, programs: &mut BTreeSet<i64>) -> Result<usize, rusqlite::Error> {
    day.prepare_cached("DELETE FROM main.open_sessions WHERE host_id = ?1")?.execute([host])?;
    let copied = day
        .prepare_cached("INSERT INTO main.open_sessions SELECT * FROM before.open_sessions WHERE host_id = ?1")?
        .execute([host])?;
    in_use::each_named(day, (in_use::NAMING, "main.open_sessions WHERE host_id = ?1"), [host], |program| {
        programs.insert(program);
    })?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Makes so many sessions of a host be open, the first of which has this number.
    fn set(file: &Connection, host: i64, (first, count): (i64, i64)) {
        file.execute("DELETE FROM open_sessions WHERE host_id = ?1", [host]).unwrap();
        for cookie in first..first + count {
            let sql = "INSERT INTO open_sessions VALUES (?1, 0, ?2, 0, 0, 6, 4, 0, 1, x'0a000001', 1, x'0a000002', 2, 0, 0, 0, \
                       0, NULL, 0, 0, 0)";
            file.execute(sql, [host, cookie]).unwrap();
        }
        let cursor = "INSERT INTO cursors VALUES (?1, 1, ?2, x'00', 0, 0, 0, 0)
                      ON CONFLICT DO UPDATE SET seq = excluded.seq";
        file.execute(cursor, [host, first]).unwrap();
    }

    fn all(file: &Connection) -> Vec<(i64, i64, i64)> {
        let sql = "SELECT host_id, cookie, -1 FROM open_sessions UNION ALL SELECT host_id, 0, seq FROM cursors ORDER BY 1, 2, 3";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
        file.prepare(sql).unwrap().query_map([], row).unwrap().map(Result::unwrap).collect()
    }

    fn host_and_sessions() -> impl Strategy<Value = (i64, (i64, i64))> {
        (1..30_i64, (0..1000_i64, 0..12_i64))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn everything_goes_over_whatever_changes_meanwhile(
            begun in prop::collection::vec(host_and_sessions(), 0..40),
            changes in prop::collection::vec(prop::collection::vec(host_and_sessions(), 0..4), 0..12),
            step in 1..60_usize,
        ) {
            let folder = tempfile::tempdir().unwrap();
            let before_path = folder.path().join("day-1.db");
            let before = open_for_writing(&before_path, Kind::Day.runner()).unwrap();
            before.pragma_update(None, "synchronous", "OFF").unwrap();
            begun.into_iter().for_each(|(host, sessions)| set(&before, host, sessions));
            let next = Hot { id: 2, path: folder.path().join("day-2.db"), started_at: Timestamp::from_micros(0) };
            let day = open_for_writing(&next.path, Kind::Day.runner()).unwrap();
            let mut turning = Turning { step, ..Turning::begin(next, day, &before_path).unwrap() };
            let (mut changes, mut steps) = (changes.into_iter(), 0);
            while !turning.step().unwrap() {
                for (host, sessions) in changes.next().unwrap_or_default() {
                    set(&before, host, sessions);
                    turning.note([host].into_iter());
                }
                steps += 1;
                prop_assert!(steps < 2_000, "it does not end");
            }
            let (_, day, _) = turning.finish().unwrap();
            prop_assert_eq!(all(&day), all(&before));
        }
    }
}
