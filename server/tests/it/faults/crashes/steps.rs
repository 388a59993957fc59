//! The steps in which a kill can come, by what they leave: files, and what the catalogue says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use rusqlite::Connection;

use super::worker::{BATCHES_OF_A_FILE, HISTORY, Way, acknowledged};

/// States of files in the catalogue.
pub(super) const COMPLETE: i64 = 1;
const SEALED: i64 = 2;
pub(super) const DROPPING: i64 = 3;
const SUMMED: i64 = 4;

/// After the sign of a step, how much later it is killed, by turns.
const LATER_US: [u64; 7] = [0, 1_000, 500, 4_000, 2_000, 9_000, 14_000];

/// What a kill in a step leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// A batch that is stored and was not acknowledged.
    Unacknowledged,
    /// The next file of sessions, which the catalogue does not name.
    NextFile,
    /// A sealed form that is not whole.
    HalfSealed,
    /// One that is whole and not named.
    Sealed,
    /// The file of rows whose sealed form is named.
    RowsLeft,
    /// Sums that are not whole.
    HalfSummed,
    /// Sums that are whole and not named.
    Summed,
    /// The sealed form whose sums are named.
    SealedLeft,
    /// A file that is dropped in the catalogue, and there.
    Dropped,
    /// One that is gone, and in the catalogue still.
    Removed,
}

/// The steps where sums are kept, and where files are dropped without.
pub(super) const fn steps(way: Way) -> &'static [Step] {
    match way {
        Way::Sums => &[
            Step::NextFile,
            Step::HalfSealed,
            Step::Sealed,
            Step::RowsLeft,
            Step::HalfSummed,
            Step::Summed,
            Step::SealedLeft,
            Step::Unacknowledged,
        ],
        Way::Dropping => &[
            Step::Unacknowledged,
            Step::Dropped,
            Step::Removed,
            Step::NextFile,
            Step::HalfSealed,
            Step::Sealed,
            Step::RowsLeft,
        ],
    }
}

impl Step {
    /// Whether it shows that it has begun or is about to, by what was seen before the process was started, the last time and
    /// now.
    pub(super) fn shows(self, [before, last, now]: [&Seen; 3]) -> bool {
        let mut new = now.names.difference(&before.names).filter_map(|name| parsed(name));
        let is_sealed = |id: i64| now.names.contains(&format!("day-{id}.sealed"));
        let works = now.acknowledged > before.acknowledged;
        match self {
            Step::Unacknowledged => works && now.log_bytes > last.log_bytes,
            Step::NextFile => new.any(|(_, ending)| ending == "db"),
            Step::HalfSealed => new.any(|(id, ending)| ending == "unfinished" && !is_sealed(id)),
            Step::Sealed | Step::RowsLeft => new.any(|(_, ending)| ending == "sealed"),
            Step::HalfSummed => new.any(|(id, ending)| ending == "unfinished" && is_sealed(id)),
            Step::Summed | Step::SealedLeft => new.any(|(_, ending)| ending == "sums"),
            // What is not kept any more after a batch is dropped when that is acknowledged.
            Step::Dropped => {
                let beyond = (now.acknowledged + 1).checked_sub(Way::KEPT_BATCHES).filter(|beyond| *beyond > 1);
                now.main_log_bytes > last.main_log_bytes && beyond.is_some_and(|beyond| beyond % BATCHES_OF_A_FILE <= 1)
            }
            Step::Removed => {
                let is_there = |id: i64| now.names.iter().filter_map(|name| parsed(name)).any(|(other, _)| other == id);
                last.names.iter().filter_map(|name| parsed(name)).any(|(id, _)| !is_there(id))
            }
        }
    }

    /// How much later it is best killed, by turns.
    pub(super) fn later(self, turn: usize) -> Duration {
        match self {
            // A commit takes no longer than that.
            Step::Unacknowledged | Step::Dropped | Step::Removed => Duration::ZERO,
            _ => Duration::from_micros(LATER_US[turn % LATER_US.len()]),
        }
    }

    /// The step in which a file like this one is there, where its number has this state in the catalogue.
    pub(super) fn of(ending: &str, state: Option<i64>) -> Option<Step> {
        match (ending, state) {
            ("db", None) => Some(Step::NextFile),
            ("unfinished", Some(COMPLETE)) => Some(Step::HalfSealed),
            ("sealed", Some(COMPLETE)) => Some(Step::Sealed),
            ("db", Some(SEALED)) => Some(Step::RowsLeft),
            ("unfinished", Some(SEALED)) => Some(Step::HalfSummed),
            ("sums", Some(COMPLETE | SEALED)) => Some(Step::Summed),
            ("sealed", Some(SUMMED)) => Some(Step::SealedLeft),
            ("db" | "sealed", Some(DROPPING)) => Some(Step::Dropped),
            _ => None,
        }
    }

    /// Whether it is about a file that was there before.
    const fn leaves_what_was_there(self) -> bool {
        matches!(self, Step::RowsLeft | Step::SealedLeft | Step::Dropped)
    }
}

/// What can be seen of a process that works.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) names: BTreeSet<String>,
    acknowledged: u64,
    /// Bytes of the logs of the file that is written to, and of the catalogue.
    log_bytes: u64,
    main_log_bytes: u64,
}

impl Seen {
    pub(super) fn now(folder: &Path) -> Seen {
        let history = folder.join(HISTORY);
        let names = names(&history);
        let newest = names.iter().filter_map(|name| parsed(name)).map(|(id, _)| id).max().unwrap_or_default();
        let bytes = |name: &str| fs::metadata(history.join(name)).map_or(0, |log| log.len());
        let log_bytes = bytes(&format!("day-{newest}.db-wal"));
        Seen { names, acknowledged: acknowledged(folder), log_bytes, main_log_bytes: bytes("main.db-wal") }
    }
}

/// Number and ending of a file of sessions.
pub(super) fn parsed(name: &str) -> Option<(i64, &str)> {
    let (id, ending) = name.strip_prefix("day-")?.split_once('.')?;
    Some((id.parse().ok()?, ending))
}

pub(super) fn names(history: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(history).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The states of the files that a catalogue names. It is read from a copy, so that nothing is touched before the restart.
fn states(history: &Path) -> BTreeMap<i64, i64> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["main.db", "main.db-wal"].into_iter().filter(|name| history.join(name).exists()) {
        fs::copy(history.join(name), copy.path().join(name)).unwrap();
    }
    states_in(&Connection::open(copy.path().join("main.db")).unwrap())
}

pub(super) fn states_in(main: &Connection) -> BTreeMap<i64, i64> {
    let mut statement = main.prepare("SELECT id, state FROM parts").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

/// The steps of which something is left that was not there before.
pub(super) fn left(history: &Path, before: &BTreeSet<String>) -> BTreeSet<Step> {
    let (states, names) = (states(history), names(history));
    let of = |name: &String| {
        let (id, ending) = parsed(name)?;
        let step = Step::of(ending, states.get(&id).copied())?;
        (step.leaves_what_was_there() || !before.contains(name)).then_some(step)
    };
    let is_there = |id: i64| names.iter().filter_map(|name| parsed(name)).any(|(other, _)| other == id);
    let removed = states.iter().filter(|(id, state)| **state == DROPPING && !is_there(**id)).map(|_| Step::Removed);
    names.iter().filter_map(of).chain(removed).collect()
}
