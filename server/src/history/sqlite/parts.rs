//! The files that hold sessions: one for a day, or for so many rows. The newest one is written to; an older one is complete,
//! is only read, gets its sealed form, and goes as a whole when it is older than what is kept.
//!
//! The order of steps decides what a crash leaves. A new file is complete before the catalogue in `main.db` names it: one
//! that is not named is left over, and removed at the next start. A file is dropped in the catalogue before it is removed:
//! what is marked so is removed at the next start. So is a file of rows whose sealed form the catalogue names, what is left
//! of a file whose sums it names, and what is unfinished.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleetsock_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::latest::Latest;

/// Sessions that are over in one file, about: then the next one begins.
const PART_ROWS: i64 = 5_000_000;
const DAY_US: i64 = 86_400_000_000;
/// What SQLite keeps beside a database.
pub(super) const COMPANIONS: [&str; 2] = [LOG, "-shm"];
/// The log of what is committed and not yet in the database.
pub(super) const LOG: &str = "-wal";
/// What a sealed form is called until it is whole, in place of its own ending.
pub(super) const UNFINISHED: &str = "unfinished";

/// A table that grows with time: its key, and what says how old a row is.
type Old = (&'static str, &'static str, &'static str);

/// Those of `main.db` that tell of what is kept itself.
const OLD: [Old; 5] = [
    ("listeners", "host_id, netns, cookie, opened_at_us", "closed_at_us"),
    ("owner_changes", "id", "at_us"),
    ("starts", "id", "at_us"),
    ("host_addresses", "address, host_id", "last_seen_us"),
    ("namespace_names", "host_id, netns, since_us", "until_us"),
];
/// What was not observed, which sums do not tell either: it goes with them.
const GAPS: Old = ("gaps", "id", "until_us");

const HOT: i64 = 0;
const COMPLETE: i64 = 1;
pub(super) const SEALED: i64 = 2;
pub(super) const DROPPING: i64 = 3;
pub(super) const SUMMED: i64 = 4;

/// When a file is complete, and how long it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// Sessions of one file, about.
    pub part_rows: i64,
    /// How long what is over is kept; absent for ever.
    pub kept: Option<Duration>,
    /// How long sums of sessions are kept that are not kept themselves; absent when none are made.
    pub sums: Option<Duration>,
}

impl Default for Keeping {
    fn default() -> Keeping {
        Keeping { part_rows: PART_ROWS, kept: None, sums: None }
    }
}

/// How sessions are written in a file that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Form {
    /// As they came, a row for each.
    Rows,
    /// In blocks of columns.
    Sealed,
}

/// A file that is complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Its number; they count upwards.
    pub(super) id: i64,
    /// Where it is.
    pub(super) path: PathBuf,
    /// The latest closing in it.
    pub(super) latest: i64,
    /// What is in it.
    pub(super) form: Form,
}

/// A file of sums, of one that is not kept any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Summed {
    /// The number of that one.
    pub(super) id: i64,
    /// Where it is.
    pub(super) path: PathBuf,
    /// When that one began.
    pub(super) started_at: Timestamp,
    /// The latest closing in it.
    pub(super) latest: i64,
}

/// The file that is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hot {
    /// Its number.
    pub(super) id: i64,
    /// Where it is.
    pub(super) path: PathBuf,
    /// When it began.
    pub(super) started_at: Timestamp,
}

impl Hot {
    /// The one after it, which begins at a moment.
    pub(super) fn next(&self, folder: &Path, started_at: Timestamp) -> Hot {
        Hot { id: self.id + 1, path: folder.join(file_of(self.id + 1)), started_at }
    }
}

/// All files, as questions see them.
#[derive(Debug, Clone)]
pub(super) struct Catalogue {
    /// The one that is written to.
    pub(super) hot: Hot,
    /// Its last rows.
    pub(super) latest: Latest,
    /// The others, the newest last.
    pub(super) complete: Vec<Part>,
    /// Those of which there are only sums, the newest last.
    pub(super) sums: Vec<Summed>,
    /// What was over before it is not kept.
    pub(super) horizon: Option<Timestamp>,
}

impl Catalogue {
    /// The number of the oldest file whose sessions are kept.
    pub(super) fn oldest(&self) -> i64 {
        self.complete.iter().map(|part| part.id).min().unwrap_or(self.hot.id)
    }

    /// The sums that reach from the sessions that are kept backwards without a hole.
    pub(super) fn unbroken_sums(&self) -> &[Summed] {
        let is_here =
            |id: i64| self.complete.iter().any(|part| part.id == id) || self.sums.iter().any(|sums| sums.id == id);
        let first =
            (1..=self.hot.id).rev().find(|id| *id != self.hot.id && !is_here(*id)).map_or(1, |missing| missing + 1);
        self.sums.get(self.sums.partition_point(|sums| sums.id < first)..).unwrap_or_default()
    }
}

/// The catalogue that the writer changes and questions take a copy of.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mutex<Arc<Catalogue>>>);

impl Shared {
    pub(super) fn new(catalogue: Catalogue) -> Shared {
        Shared(Arc::new(Mutex::new(Arc::new(catalogue))))
    }

    /// As it is now.
    pub(super) fn get(&self) -> Arc<Catalogue> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes it for questions that begin from now on.
    pub(super) fn change(&self, change: impl FnOnce(&mut Catalogue)) {
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut shared));
    }
}

/// Whether a file that began then and has so many sessions is complete.
pub(super) fn is_complete(keeping: Keeping, started_at: Timestamp, sessions: i64, now: Timestamp) -> bool {
    let day = |at: Timestamp| at.as_micros().div_euclid(DAY_US);
    // An idle fleet needs no new file for each day; a clock that was set back begins none.
    sessions > 0 && (sessions >= keeping.part_rows || day(now) > day(started_at))
}

/// What is over before this moment goes.
pub(super) fn horizon(keeping: Keeping, now: Timestamp) -> Option<Timestamp> {
    keeping.kept.map(|kept| before(now, kept))
}

/// The sums of what was over before this moment go: those that are kept for no time at once.
pub(super) fn horizon_of_sums(keeping: Keeping, now: Timestamp) -> Timestamp {
    keeping.sums.map_or(Timestamp::MAX, |kept| before(now, kept))
}

fn before(now: Timestamp, kept: Duration) -> Timestamp {
    let kept = i64::try_from(kept.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(now.as_micros().saturating_sub(kept))
}

/// Reads the catalogue; the first file is entered into it here.
pub(super) fn load(main: &mut Connection, folder: &Path, now: Timestamp) -> Result<Catalogue, rusqlite::Error> {
    let transaction = main.transaction()?;
    let newest = "SELECT id, file, started_at_us FROM parts WHERE state = ?1 ORDER BY id DESC LIMIT 1";
    let hot = transaction
        .query_row(newest, [HOT], |row| {
            Ok(Hot {
                id: row.get("id")?,
                path: folder.join(row.get::<_, String>("file")?),
                started_at: Timestamp::from_micros(row.get("started_at_us")?),
            })
        })
        .optional()?;
    let hot = match hot {
        Some(hot) => hot,
        None => {
            let hot = Hot { id: 1, path: folder.join(file_of(1)), started_at: now };
            enter(&transaction, &hot)?;
            hot
        }
    };
    let complete = {
        let mut statement = transaction
            .prepare("SELECT id, file, state, max_closed_at_us FROM parts WHERE state IN (?1, ?2) ORDER BY id")?;
        let part = |row: &rusqlite::Row<'_>| {
            let path = folder.join(row.get::<_, String>("file")?);
            let form = if row.get::<_, i64>("state")? == SEALED { Form::Sealed } else { Form::Rows };
            Ok(Part { id: row.get("id")?, path, latest: row.get("max_closed_at_us")?, form })
        };
        statement.query_map([COMPLETE, SEALED], part)?.collect::<Result<_, _>>()?
    };
    let sums = load_sums(&transaction, folder)?;
    let horizon = stored_horizon(&transaction)?;
    transaction.commit()?;
    Ok(Catalogue { hot, latest: Latest::default(), complete, sums, horizon })
}

pub(super) fn load_sums(main: &Connection, folder: &Path) -> Result<Vec<Summed>, rusqlite::Error> {
    let all = "SELECT id, file, started_at_us, max_closed_at_us FROM parts WHERE state = ?1 ORDER BY id";
    let summed = |row: &rusqlite::Row<'_>| {
        Ok(Summed {
            id: row.get("id")?,
            path: folder.join(row.get::<_, String>("file")?),
            started_at: Timestamp::from_micros(row.get("started_at_us")?),
            latest: row.get("max_closed_at_us")?,
        })
    };
    main.prepare(all)?.query_map([SUMMED], summed)?.collect()
}

/// What was over before this moment is not kept any more.
pub(super) fn stored_horizon(main: &Connection) -> Result<Option<Timestamp>, rusqlite::Error> {
    let at = main.query_row("SELECT at_us FROM horizon", [], |row| row.get(0)).optional()?;
    Ok(at.map(Timestamp::from_micros))
}

/// Name of a file.
pub(super) fn file_of(id: i64) -> String {
    format!("day-{id}.db")
}

/// Name of its sealed form.
pub(super) fn sealed_of(id: i64) -> String {
    format!("day-{id}.sealed")
}

/// Name of its sums.
pub(super) fn sums_of(id: i64) -> String {
    format!("day-{id}.sums")
}

/// Names the sums of a file in its place, which is not kept any more because it was over before `horizon`; whether they are
/// named now, by this attempt or one before ([`exchange`]).
pub(super) fn exchange_for_sums(main: &mut Connection, id: i64, horizon: Timestamp) -> Result<bool, rusqlite::Error> {
    let transaction = main.transaction()?;
    let changed = transaction.execute(
        "UPDATE parts SET state = ?2, file = ?3 WHERE id = ?1 AND state IN (?4, ?5)",
        params![id, SUMMED, sums_of(id), COMPLETE, SEALED],
    )?;
    if changed == 1 {
        move_horizon(&transaction, horizon)?;
    }
    let named = is_in(&transaction, id, SUMMED)?;
    transaction.commit()?;
    Ok(named)
}

fn move_horizon(main: &Connection, to: Timestamp) -> Result<(), rusqlite::Error> {
    let sql = "INSERT INTO horizon (id, at_us) VALUES (1, ?1) ON CONFLICT DO UPDATE SET at_us = max(at_us, ?1)";
    main.execute(sql, [to.as_micros()]).map(drop)
}

/// Names the sealed form of a file in its place; whether that is named now. It is also when an attempt before lasted whose
/// commit was said to have failed.
pub(super) fn exchange(main: &Connection, id: i64) -> Result<bool, rusqlite::Error> {
    main.execute(
        "UPDATE parts SET state = ?2, file = ?3 WHERE id = ?1 AND state = ?4",
        params![id, SEALED, sealed_of(id), COMPLETE],
    )?;
    is_in(main, id, SEALED)
}

fn is_in(main: &Connection, id: i64, state: i64) -> Result<bool, rusqlite::Error> {
    main.prepare("SELECT 1 FROM parts WHERE id = ?1 AND state = ?2")?.exists(params![id, state])
}

fn enter(main: &Connection, hot: &Hot) -> Result<(), rusqlite::Error> {
    let row = params![hot.id, file_of(hot.id), HOT, hot.started_at.as_micros()];
    main.execute("INSERT INTO parts (id, file, state, started_at_us) VALUES (?1, ?2, ?3, ?4)", row).map(drop)
}

/// Names the new file as the one that is written to, in one transaction with the end of the one before.
pub(super) fn turn_over(
    main: &Transaction<'_>,
    before: &Hot,
    (sessions, latest): (i64, i64),
    next: &Hot,
) -> Result<(), rusqlite::Error> {
    main.execute(
        "UPDATE parts SET state = ?2, sessions = ?3, max_closed_at_us = ?4 WHERE id = ?1",
        params![before.id, COMPLETE, sessions, latest],
    )?;
    enter(main, next)
}

/// Marks files as dropped, those of sessions and those of sums, and deletes what is over in `main.db` since before `horizon`,
/// and gaps that were over before that of the sums as well: at most `limit` rows of each table, since a writer must not be
/// kept for long.
pub(super) fn drop_before(
    main: &mut Connection,
    (gone, sums_gone): (&[i64], &[i64]),
    (horizon, horizon_of_sums): (Timestamp, Timestamp),
    limit: u32,
) -> Result<(), rusqlite::Error> {
    let transaction = main.transaction()?;
    for id in gone.iter().chain(sums_gone) {
        transaction.execute("UPDATE parts SET state = ?2 WHERE id = ?1", params![id, DROPPING])?;
    }
    let mut deleted = 0;
    let delete = |(table, key, time): Old, horizon: Timestamp| {
        let sql =
            format!("DELETE FROM {table} WHERE ({key}) IN (SELECT {key} FROM {table} WHERE {time} < ?1 LIMIT ?2)");
        transaction.execute(&sql, params![horizon.as_micros(), limit])
    };
    for old in OLD {
        deleted += delete(old, horizon)?;
    }
    deleted += delete(GAPS, horizon.min(horizon_of_sums))?;
    if !gone.is_empty() || deleted > 0 {
        move_horizon(&transaction, horizon)?;
    }
    transaction.commit()
}

/// Removes files that are marked as dropped, and gives those that lost their names. Whoever still reads one goes on.
pub(super) fn remove_dropped(main: &Connection, folder: &Path) -> Result<Vec<File>, rusqlite::Error> {
    let dropped: Vec<i64> = main
        .prepare("SELECT id FROM parts WHERE state = ?1")?
        .query_map([DROPPING], |row| row.get("id"))?
        .collect::<Result<_, _>>()?;
    let mut nameless = Vec::new();
    for id in dropped {
        match take_names(folder, &[file_of(id), sealed_of(id), sums_of(id)]) {
            Ok(files) => {
                nameless.extend(files);
                main.execute("DELETE FROM parts WHERE id = ?1", [id])?;
            }
            Err(error) => tracing::warn!(%error, id, "a file of the history that is not kept cannot be removed"),
        }
    }
    Ok(nameless)
}

/// Removes a file of sessions in both of its forms.
pub(super) fn remove_all(folder: &Path, id: i64) -> io::Result<()> {
    take_names(folder, &[file_of(id), sealed_of(id)]).map(drop)
}

/// Removes what was being made of files when the server was killed: of those that are kept it is made anew, and of the others
/// nobody would ever remove it.
pub(super) fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_unfinished = entry.path().extension().is_some_and(|ending| ending == UNFINISHED);
        if is_unfinished && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file that is left over, if there is one: nobody named it, so nothing in it counts.
pub(super) fn remove(folder: &Path, file: &str) -> io::Result<()> {
    take_names(folder, &[file.to_owned()]).map(drop)
}

/// Removes the names of files, with what SQLite keeps beside them, and gives the files: each has its room for as long as it
/// is kept.
pub(super) fn take_names(folder: &Path, files: &[String]) -> io::Result<Vec<File>> {
    let mut nameless = Vec::new();
    // The log too: where somebody read a file when it was complete, it was not folded into it. Never "-shm", which readers map.
    for name in files.iter().flat_map(|file| [file.clone(), format!("{file}{LOG}")]) {
        match File::options().write(true).open(folder.join(&name)) {
            Ok(file) => nameless.push(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::debug!(%error, name, "the room of a file is given back at once"),
        }
    }
    let suffixes = || [""].into_iter().chain(COMPANIONS);
    for name in files.iter().flat_map(|file| suffixes().map(move |suffix| format!("{file}{suffix}"))) {
        match fs::remove_file(folder.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    // The removal itself must last.
    File::open(folder)?.sync_all()?;
    Ok(nameless)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::sqlite::schema::Kind;

    fn at(day: i64, us: i64) -> Timestamp {
        Timestamp::from_micros(day * DAY_US + us)
    }

    #[test]
    fn a_file_is_complete_at_midnight_or_when_it_is_full_and_never_without_sessions() {
        let keeping = Keeping { part_rows: 100, ..Keeping::default() };
        for (sessions, now, expected) in [
            (1, at(7, DAY_US - 1), false),
            (1, at(8, 0), true),
            (0, at(8, 0), false),
            (99, at(7, 5), false),
            (100, at(7, 5), true),
            (1, at(6, 0), false),
        ] {
            assert_eq!(is_complete(keeping, at(7, 3), sessions, now), expected, "{sessions} {now:?}");
        }
    }

    #[test]
    fn what_is_kept_for_ever_has_no_horizon() {
        assert_eq!(horizon(Keeping::default(), at(7, 0)), None);
        let keeping = Keeping { kept: Some(Duration::from_secs(86_400)), ..Keeping::default() };
        assert_eq!(horizon(keeping, at(7, 0)), Some(at(6, 0)));
    }

    #[test]
    fn what_an_attempt_before_named_is_named_and_what_was_dropped_is_not() {
        let mut main = Connection::open_in_memory().unwrap();
        Kind::Main.runner().run(&mut main).unwrap();
        for (id, state) in [(1, COMPLETE), (2, SEALED), (3, SUMMED), (4, DROPPING), (5, HOT)] {
            let row = params![id, file_of(id), state];
            main.execute("INSERT INTO parts (id, file, state, started_at_us) VALUES (?1, ?2, ?3, 0)", row).unwrap();
        }
        let sealed: Vec<bool> = (1..7).map(|id| exchange(&main, id).unwrap()).collect();
        assert_eq!(sealed, [true, true, false, false, false, false]);
        let summed: Vec<bool> = (1..7).map(|id| exchange_for_sums(&mut main, id, at(3, 0)).unwrap()).collect();
        assert_eq!(summed, [true, true, true, false, false, false]);
        assert_eq!(stored_horizon(&main).unwrap(), Some(at(3, 0)));
    }
}
