//! The tables that changes are read from, in pages, newest first.

use fleetsock_proto::time::Timestamp;
use rusqlite::{Row, types::Value};

use super::super::ports;

/// Rows of one page, at most, and at least where each of them is looked for.
const PAGE_ROWS: usize = 256;
const FEW_ROWS: usize = 16;

/// What a page is read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Openings of listeners.
    Opened,
    /// Their closings.
    Closed,
    /// Changes of their owners.
    Owners,
    /// Starts of agents.
    Starts,
}

/// A page that was not read yet: what follows a place in a source.
#[derive(Debug, Clone)]
pub(super) struct Page {
    pub(super) source: Source,
    /// The host, or the whole fleet.
    host: Option<i64>,
    /// The place: the values of the source's keys in the row before, the time first.
    after: Vec<i64>,
    /// Where only what is new is meant.
    new: Option<New>,
    rows: usize,
}

/// What is new: since when nothing like it was there, and how many of that are wanted, on which ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct New {
    pub(super) baseline: Timestamp,
    pub(super) ports: (u16, u16),
    pub(super) wanted: usize,
}

/// Openings, with whether the owners changed since: who held it first is told by the first change.
const OPENED: &str = concat!(
    "SELECT ",
    ports::columns!(),
    ", EXISTS (SELECT 1 FROM owner_changes c WHERE c.host_id = listeners.host_id AND c.netns = listeners.netns
         AND c.cookie = listeners.cookie AND c.opened_at_us = listeners.opened_at_us) AS changed
     FROM listeners"
);

/// What is new of listeners: nothing like it was there since the baseline began. Listeners are alike when host, protocol, address and
/// port are the same. New sessions are found among sessions (`sessions/firsts.rs`).
const IS_NEW: &str = "port BETWEEN ? AND ? AND NOT EXISTS (SELECT 1 FROM listeners b INDEXED BY listeners_by_port
    WHERE b.host_id = listeners.host_id AND b.port = listeners.port AND b.opened_at_us < listeners.opened_at_us
        AND (b.closed_at_us IS NULL OR b.closed_at_us >= ?) AND b.protocol = listeners.protocol AND b.address = listeners.address)";

/// The listeners of the changes, with the columns of [`StoredListener`](super::super::ports::StoredListener) first, found by their key: CROSS JOIN keeps the planner from beginning with them.
const OWNERS: &str = "SELECT l.host_id, l.netns, l.cookie, l.opened_at_us, l.opened_known, l.closed_at_us,
        l.closed_known, l.protocol, l.family, l.address, l.port, c.owner_known, c.pid, c.started_at_us, c.program_id, c.more_owners,
        c.id, c.at_us, c.known, c.before_known, c.before_pid, c.before_started_at_us, c.before_program_id, c.before_more_owners
    FROM owner_changes c CROSS JOIN listeners l ON l.host_id = c.host_id AND l.netns = c.netns AND l.cookie = c.cookie
        AND l.opened_at_us = c.opened_at_us";
const STARTS: &str = "SELECT id, host_id, at_us, boot_id, rebooted FROM starts c";

impl Source {
    /// Which of the columns is that of the host.
    pub(super) const fn host_place(self) -> usize {
        match self {
            Source::Opened | Source::Closed | Source::Owners => 0,
            Source::Starts => 1,
        }
    }

    /// What is selected, the keys that order it (the time first), the host's column.
    const fn parts(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            Source::Opened => (OPENED, &["opened_at_us", "host_id", "netns", "cookie"], "host_id"),
            Source::Closed => {
                (ports::SELECT, &["closed_at_us", "host_id", "netns", "cookie", "opened_at_us"], "host_id")
            }
            Source::Owners => (OWNERS, &["c.at_us", "c.id"], "c.host_id"),
            Source::Starts => (STARTS, &["c.at_us", "c.id"], "c.host_id"),
        }
    }
}

impl Page {
    /// The newest page up to a moment, of openings only of what is new where only that is meant.
    pub(super) fn newest(source: Source, host: Option<i64>, until: i64, new: Option<New>) -> Page {
        let (_, keys, _) = source.parts();
        let mut after = vec![i64::MAX; keys.len()];
        after[0] = until;
        let new = new.filter(|_| source == Source::Opened);
        let rows = new.map_or(PAGE_ROWS, |new| new.wanted.clamp(FEW_ROWS, PAGE_ROWS));
        Page { source, host, after, new, rows }
    }

    /// How many rows it has when another one may follow it.
    pub(super) const fn rows(&self) -> usize {
        self.rows
    }

    /// The page that follows the one whose last row this was.
    pub(super) fn following(&self, last: &Row<'_>) -> Result<Page, rusqlite::Error> {
        let (_, keys, _) = self.source.parts();
        let bare = |key: &&'static str| key.trim_start_matches("c.");
        let after = keys.iter().map(|key| last.get(bare(key))).collect::<Result<_, _>>()?;
        Ok(Page { after, ..self.clone() })
    }

    /// The latest moment that a row of it can have.
    pub(super) fn latest(&self) -> i64 {
        self.after[0]
    }

    /// Selects its rows that are not older than `since`, with the values of the parameters.
    pub(super) fn sql(&self, since: i64) -> (String, Vec<Value>) {
        let (select, keys, host_column) = self.source.parts();
        let time = keys[0];
        let places = vec!["?"; keys.len()].join(", ");
        let host = if self.host.is_some() { format!("{host_column} = ? AND ") } else { String::new() };
        let is_new = self.new.map_or(String::new(), |_| format!(" AND {IS_NEW}"));
        let order: Vec<String> = keys.iter().map(|key| format!("{key} DESC")).collect();
        let sql = format!(
            "{select} WHERE {host}{time} IS NOT NULL AND {time} >= ? AND ({}) < ({places}){is_new}
             ORDER BY {} LIMIT {}",
            keys.join(", "),
            order.join(", "),
            self.rows,
        );
        let values = self.host.into_iter().chain([since]).chain(self.after.iter().copied());
        let new = self.new.map(|New { baseline, ports: (first, last), .. }| {
            [i64::from(first), i64::from(last), baseline.as_micros()]
        });
        (sql, values.chain(new.into_iter().flatten()).map(Value::from).collect())
    }
}
