//! Runs of the table of sessions: which rows are a host's.
//!
//! A batch brings sessions of one host, whose rows follow each other, so that one entry tells of all of them where an index
//! would have one for each, at as many places of the file as there are hosts. Nor is the table of runs written at so many
//! places: it is sorted by host only within a chapter, which fills a few pages, so that a host is looked for in each chapter.

use rusqlite::{OptionalExtension, Transaction, params};

use super::noting::Ended;

/// Rows of a run: more make a search read what it does not need.
const RUN_ROWS: i64 = 1024;
/// Runs of a chapter, a dozen pages: fewer make the chapters many in which a host is looked for, more make the pages many that
/// a transaction writes to.
const CHAPTER_RUNS: i64 = 1024;

/// Between which times sessions closed, and when the first of them opened.
#[derive(Debug, Clone, Copy)]
struct Times {
    min_closed_at_us: i64,
    max_closed_at_us: i64,
    min_opened_at_us: i64,
}

impl Times {
    const NONE: Times = Times { min_closed_at_us: i64::MAX, max_closed_at_us: i64::MIN, min_opened_at_us: i64::MAX };

    const fn of(ended: &Ended) -> Times {
        let Ended { closed_at_us, opened_at_us, .. } = *ended;
        Times { min_closed_at_us: closed_at_us, max_closed_at_us: closed_at_us, min_opened_at_us: opened_at_us }
    }

    fn and(self, other: Times) -> Times {
        Times {
            min_closed_at_us: self.min_closed_at_us.min(other.min_closed_at_us),
            max_closed_at_us: self.max_closed_at_us.max(other.max_closed_at_us),
            min_opened_at_us: self.min_opened_at_us.min(other.min_opened_at_us),
        }
    }

    fn read(row: &rusqlite::Row<'_>) -> Result<Times, rusqlite::Error> {
        Ok(Times {
            min_closed_at_us: row.get("min_closed_at_us")?,
            max_closed_at_us: row.get("max_closed_at_us")?,
            min_opened_at_us: row.get("min_opened_at_us")?,
        })
    }
}

/// Rows of a host that follow each other.
#[derive(Debug)]
struct Run {
    host_id: i64,
    first_id: i64,
    last_id: i64,
    times: Times,
}

impl Run {
    const fn of(ended: &Ended) -> Run {
        let Ended { id, host_id, .. } = *ended;
        Run { host_id, first_id: id, last_id: id, times: Times::of(ended) }
    }

    const fn goes_on_with(&self, ended: &Ended) -> bool {
        ended.host_id == self.host_id && ended.id == self.last_id + 1 && self.last_id - self.first_id + 1 < RUN_ROWS
    }
}

/// Runs that are sorted by host.
#[derive(Debug)]
struct Chapter {
    id: i64,
    runs: i64,
    times: Times,
}

impl Chapter {
    const fn new(id: i64) -> Chapter {
        Chapter { id, runs: 0, times: Times::NONE }
    }

    /// The last one; a new one before there is any.
    fn last(transaction: &Transaction<'_>) -> Result<Chapter, rusqlite::Error> {
        let last = transaction
            .prepare_cached("SELECT * FROM chapters ORDER BY id DESC LIMIT 1")?
            .query_row([], |row| Ok(Chapter { id: row.get("id")?, runs: row.get("runs")?, times: Times::read(row)? }))
            .optional()?;
        Ok(last.unwrap_or(Chapter::new(1)))
    }

    /// The run that the row before this one ended, when that is of the same host.
    fn run_before(&self, transaction: &Transaction<'_>, ended: &Ended) -> Result<Option<Run>, rusqlite::Error> {
        transaction
            .prepare_cached("SELECT * FROM runs WHERE chapter_id = ?1 AND host_id = ?2 ORDER BY first_id DESC LIMIT 1")?
            .query_row([self.id, ended.host_id], |row| {
                Ok(Run {
                    host_id: ended.host_id,
                    first_id: row.get("first_id")?,
                    last_id: row.get("last_id")?,
                    times: Times::read(row)?,
                })
            })
            .optional()
            .map(|run| run.filter(|run| run.goes_on_with(ended)))
    }

    fn store_run(&mut self, transaction: &Transaction<'_>, run: &Run) -> Result<(), rusqlite::Error> {
        self.times = self.times.and(run.times);
        let Run { host_id, first_id, last_id, times } = run;
        let Times { min_closed_at_us, max_closed_at_us, min_opened_at_us } = times;
        transaction
            .prepare_cached(
                "REPLACE INTO runs (chapter_id, host_id, first_id, last_id, min_closed_at_us, max_closed_at_us,
                     min_opened_at_us)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?
            .execute(params![self.id, host_id, first_id, last_id, min_closed_at_us, max_closed_at_us, min_opened_at_us])
            .map(drop)
    }

    fn store(&self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let Times { min_closed_at_us, max_closed_at_us, min_opened_at_us } = self.times;
        transaction
            .prepare_cached(
                "REPLACE INTO chapters (id, runs, min_closed_at_us, max_closed_at_us, min_opened_at_us)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![self.id, self.runs, min_closed_at_us, max_closed_at_us, min_opened_at_us])
            .map(drop)
    }
}

/// What is noted within a transaction: the run of the last row, and the chapter that it is in; none before the first row.
#[derive(Debug, Default)]
pub(super) struct Runs(Option<(Chapter, Run)>);

impl Runs {
    /// Notes a row, which is the last one.
    pub(super) fn add(&mut self, transaction: &Transaction<'_>, ended: &Ended) -> Result<(), rusqlite::Error> {
        let (chapter, before) = match self.0.take() {
            Some((chapter, run)) if run.goes_on_with(ended) => (chapter, Some(run)),
            Some((mut chapter, run)) => {
                chapter.store_run(transaction, &run)?;
                (chapter, None)
            }
            None => {
                let chapter = Chapter::last(transaction)?;
                let run = chapter.run_before(transaction, ended)?;
                (chapter, run)
            }
        };
        self.0 = Some(match before {
            Some(run) => (chapter, Run { last_id: ended.id, times: run.times.and(Times::of(ended)), ..run }),
            None => (one_more(transaction, chapter)?, Run::of(ended)),
        });
        Ok(())
    }

    /// Stores what was noted.
    pub(super) fn finish(&mut self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let Some((mut chapter, run)) = self.0.take() else { return Ok(()) };
        chapter.store_run(transaction, &run)?;
        chapter.store(transaction)
    }
}

/// The chapter that the next run is in.
fn one_more(transaction: &Transaction<'_>, chapter: Chapter) -> Result<Chapter, rusqlite::Error> {
    if chapter.runs < CHAPTER_RUNS {
        return Ok(Chapter { runs: chapter.runs + 1, ..chapter });
    }
    chapter.store(transaction)?;
    Ok(Chapter { runs: 1, ..Chapter::new(chapter.id + 1) })
}
