//! Sessions of files in which each has a row: of few hosts by runs of their rows, of many by zones of the table. With chosen
//! peers they are found by an index (`postings.rs`).

use std::collections::BinaryHeap;

use rusqlite::{params_from_iter, types::Value};

use super::{HELD, InFile, Next, Search, What};
use crate::history::{
    HistoryError,
    sqlite::stored::{self, StoredSession},
};

/// What was open within the window that is meant, whose bounds are the third value and the two after it.
const IN_WINDOW: &str = "closed_at_us > ?3 AND closed_at_us <= ?4 AND closed_at_us - duration_us <= ?5";

impl Search<'_> {
    /// Whether anything in a file with rows may have opened and closed before the window ends.
    pub(super) fn begins_in_time(&self, file: InFile) -> Result<bool, rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(false) };
        let [_, last, until] = self.meaning.window.bounds();
        let mut statement = connection
            .prepare_cached("SELECT 1 FROM chapters WHERE min_closed_at_us <= ?1 AND min_opened_at_us <= ?2")?;
        statement.exists([last, until])
    }

    /// Finds the zones of a file in which something may be meant behind a row, without reading them.
    pub(super) fn zones(&self, file: InFile, behind: i64, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT max(first_id, ?4 + 1), last_id, max_closed_at_us FROM zones
             WHERE first_id >= ifnull((SELECT max(first_id) FROM zones WHERE first_id <= ?4 + 1), 0) AND last_id > ?4
                 AND max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND ifnull(min_opened_at_us <= ?3, TRUE)",
        )?;
        let [after, last, until] = self.meaning.window.bounds();
        let mut rows = statement.query([after, last, until, behind])?;
        while let Some(row) = rows.next()? {
            let (first, id, latest) = (row.get(0)?, row.get(1)?, row.get(2)?);
            heap.push(Next { latest, file, id, what: What::Zone(first) });
        }
        Ok(())
    }

    /// Finds the chapters of runs in which something may be meant, without reading them.
    pub(super) fn chapters(&self, file: InFile, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT id, max_closed_at_us FROM chapters
             WHERE max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND min_opened_at_us <= ?3",
        )?;
        let mut rows = statement.query(self.meaning.window.bounds())?;
        while let Some(row) = rows.next()? {
            let what = What::Chapter(row.get("id")?);
            heap.push(Next { latest: row.get("max_closed_at_us")?, file, id: i64::MAX, what });
        }
        Ok(())
    }

    /// Finds the runs of a chapter in which something may be meant, without reading them.
    pub(super) fn runs(&self, file: InFile, chapter: i64, heap: &mut BinaryHeap<Next>) -> Result<(), HistoryError> {
        self.reader.go_on()?;
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT first_id, last_id, max_closed_at_us FROM runs
             WHERE chapter_id = ?1 AND host_id = ?2
                 AND max_closed_at_us > ?3 AND min_closed_at_us <= ?4 AND min_opened_at_us <= ?5",
        )?;
        for host in self.hosts.numbers() {
            let mut rows = statement.query(params_from_iter(self.bounds([chapter, host])))?;
            while let Some(row) = rows.next()? {
                let (first, id, latest) = (row.get(0)?, row.get(1)?, row.get(2)?);
                heap.push(Next { latest, file, id, what: What::Run(first) });
            }
        }
        Ok(())
    }

    /// The first five values of a question with [`IN_WINDOW`].
    fn bounds(&self, [first, second]: [i64; 2]) -> [Value; 5] {
        let [after, until, opened_until] = self.meaning.window.bounds();
        [first, second, after, until, opened_until].map(Value::from)
    }

    /// Finds what may be meant in a zone, without reading it.
    pub(super) fn read_zone(
        &mut self,
        file: InFile,
        (first, last): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT id, host_id, closed_at_us FROM sessions WHERE id BETWEEN ?1 AND ?2 AND {IN_WINDOW} AND {}",
            self.meaning.sql
        ))?;
        let bounds = self.bounds([first, last]);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.meaning.values)))?;
        while let Some(row) = rows.next()? {
            if self.hosts.contains(row.get("host_id")?) {
                heap.push(Next { latest: row.get("closed_at_us")?, file, id: row.get("id")?, what: What::Row });
            }
        }
        Ok(())
    }

    pub(super) fn read_row(&mut self, file: InFile, id: i64) -> Result<Option<StoredSession>, HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(None) };
        let mut statement =
            connection.prepare_cached(&format!("SELECT {} FROM sessions WHERE id = ?1", stored::OVER))?;
        let mut rows = statement.query([id])?;
        let one = rows.next()?.map(StoredSession::over).transpose()?;
        match one {
            Some(one) if self.is_meant(&one)? => Ok(Some(one)),
            Some(_) | None => Ok(None),
        }
    }

    /// Reads what is meant in runs of rows. Most of these are, so that they are read once and held, as long as they are not many.
    pub(super) fn read_runs(
        &mut self,
        file: InFile,
        runs: &[(i64, i64)],
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        self.each_row(file, runs, |search, id, one| {
            let Some((latest, _)) = one.closed else { return Ok(()) };
            let what = if search.held < HELD { What::Session(Box::new(one)) } else { What::Row };
            search.held += usize::from(matches!(what, What::Session(_)));
            heap.push(Next { latest, file, id, what });
            Ok(())
        })
    }

    /// Shows all rows that are meant of runs or zones, with their numbers, in no order.
    pub(super) fn each_row(
        &mut self,
        file: InFile,
        runs: &[(i64, i64)],
        mut show: impl FnMut(&mut Self, i64, StoredSession) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        self.reader.go_on()?;
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {}, id FROM sessions WHERE id BETWEEN ?1 AND ?2 AND {IN_WINDOW} AND {}",
            stored::OVER,
            self.meaning.sql
        ))?;
        for (first, last) in runs {
            let bounds = self.bounds([*first, *last]);
            let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.meaning.values)))?;
            while let Some(row) = rows.next()? {
                let one = StoredSession::over(row)?;
                if self.is_meant(&one)? {
                    show(self, row.get(stored::OVER_COLUMNS)?, one)?;
                }
            }
        }
        Ok(())
    }
}
