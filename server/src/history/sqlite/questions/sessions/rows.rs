//! Sessions of files in which each has a row: of few hosts by runs of their rows, of many by zones of the table. With chosen
//! peers they are found by an index (`postings.rs`).

use std::collections::BinaryHeap;

use rusqlite::{params_from_iter, types::Value};

use super::{HELD, InFile, Next, Search, What};
use crate::history::{
    HistoryError,
    sqlite::{
        questions::outlet::Wanted,
        stored::{self, StoredSession},
    },
};

/// Of what closed so long after a window, that is meant which lasted for as long or longer. There is an index of those.
const LONG_US: i64 = 600_000_000;
/// The same, as the index has it.
const IS_LONG: &str = "duration_us >= 600000000";
/// Long rows that are read at once, about.
const LONG_ROWS: usize = 1024;

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

    /// The last closing that is looked for by zones: what is meant and closed later is long.
    fn last_of_zones(&self) -> i64 {
        let [_, last, until] = self.meaning.window.bounds();
        last.min(until.saturating_add(LONG_US))
    }

    /// Finds the zones of a file in which something may be meant behind a row, without reading them, and what is long.
    pub(super) fn zones(&self, file: InFile, behind: i64, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT max(first_id, ?4 + 1), last_id, max_closed_at_us FROM zones
             WHERE first_id >= ifnull((SELECT max(first_id) FROM zones WHERE first_id <= ?4 + 1), 0) AND last_id > ?4
                 AND max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND ifnull(min_opened_at_us <= ?3, TRUE)",
        )?;
        let ([after, last, until], last_of_zones) = (self.meaning.window.bounds(), self.last_of_zones());
        let mut rows = statement.query([after, last_of_zones, until, behind])?;
        while let Some(row) = rows.next()? {
            let (first, id, latest): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
            heap.push(Next { latest: latest.min(last_of_zones), file, id, what: What::Zone(first) });
        }
        if last_of_zones < last {
            heap.push(Next { latest: last, file, id: i64::MAX, what: What::Long(behind, last) });
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
        let [after, last, until] = self.meaning.window.bounds();
        [first, second, after, last, until].map(Value::from)
    }

    /// The same of what zones tell.
    fn bounds_of_zone(&self, [first, last]: [i64; 2]) -> [Value; 5] {
        let [after, _, until] = self.meaning.window.bounds();
        [first, last, after, self.last_of_zones(), until].map(Value::from)
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
        let bounds = self.bounds_of_zone([first, last]);
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
            heap.extend(search.turn(file, id, one));
            Ok(())
        })
    }

    /// The turn of a row that was read.
    fn turn(&mut self, file: InFile, id: i64, one: StoredSession) -> Option<Next> {
        let (latest, _) = one.closed?;
        let what = if self.held < HELD { What::Session(Box::new(one)) } else { What::Row };
        self.held += usize::from(matches!(what, What::Session(_)));
        Some(Next { latest, file, id, what })
    }

    /// Reads some of what is long and meant, and finds the rest of it.
    pub(super) fn read_long(
        &mut self,
        file: InFile,
        (behind, last): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let (mut read, mut earliest) = (0, last);
        let left = self.each_long(file, (behind, last), |search, id, one| {
            let closed = one.closed.map_or(earliest, |(at, _)| at);
            // What closed at one moment stays together.
            if read >= LONG_ROWS && closed < earliest {
                return Ok(Wanted::NoMore);
            }
            (read, earliest) = (read + 1, closed);
            heap.extend(search.turn(file, id, one));
            Ok(Wanted::More)
        })?;
        if left == Wanted::NoMore {
            let (latest, what) = (earliest - 1, What::Long(behind, earliest - 1));
            heap.push(Next { latest, file, id: i64::MAX, what });
        }
        Ok(())
    }

    /// Shows the rows behind one that are meant and long and closed until a moment, the latest first, for as long as they are
    /// wanted.
    pub(super) fn each_long(
        &mut self,
        file: InFile,
        (behind, last): (i64, i64),
        mut show: impl FnMut(&mut Self, i64, StoredSession) -> Result<Wanted, HistoryError>,
    ) -> Result<Wanted, HistoryError> {
        self.reader.go_on()?;
        let Some(connection) = self.file(file)? else { return Ok(Wanted::More) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {}, id FROM sessions INDEXED BY sessions_long
             WHERE {IS_LONG} AND id BETWEEN ?1 AND ?2 AND {IN_WINDOW} AND {} ORDER BY closed_at_us DESC",
            stored::OVER,
            self.meaning.sql
        ))?;
        let [after, _, until] = self.meaning.window.bounds();
        let bounds = [behind + 1, i64::MAX, after.max(self.last_of_zones()), last, until].map(Value::from);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.meaning.values)))?;
        while let Some(row) = rows.next()? {
            let one = StoredSession::over(row)?;
            if self.is_meant(&one)? && show(self, row.get(stored::OVER_COLUMNS)?, one)? == Wanted::NoMore {
                return Ok(Wanted::NoMore);
            }
        }
        Ok(Wanted::More)
    }

    /// Shows all rows of a zone that are meant, in no order.
    pub(super) fn each_of_zone(
        &mut self,
        file: InFile,
        (first, last): (i64, i64),
        mut show: impl FnMut(&mut Self, StoredSession) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let last_of_zones = self.last_of_zones();
        self.each_row(file, &[(first, last)], |search, _, one| match one.closed {
            Some((at, _)) if at > last_of_zones => Ok(()),
            _ => show(search, one),
        })
    }

    /// Shows all rows that are meant of runs, with their numbers, in no order.
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
