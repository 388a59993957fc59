//! Sessions of files in which each has a row: of few hosts by runs of their rows, of many by zones of the table and
//! their long rows (`long.rs`). With chosen peers they are found by an index (`postings.rs`).

use std::collections::BinaryHeap;

use rusqlite::{Connection, params_from_iter, types::Value};

use super::{HELD, InFile, Next, Search, What};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        long::{self, LONG_US},
        stored::{self, StoredSession},
    },
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

    /// The last closing that is looked for by zones: what is meant and closed later is long.
    fn last_of_zones(&self) -> i64 {
        let [_, last, until] = self.meaning.window.bounds();
        last.min(until.saturating_add(LONG_US))
    }

    /// Finds the zones of a file in which something may be meant behind a row, without reading them.
    pub(super) fn zones(&self, file: InFile, behind: i64, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT first_id, last_id, min_closed_at_us, max_closed_at_us,
                 max_closed_at_us > ?5 AND EXISTS (SELECT 1 FROM zone_long WHERE first_id = zones.first_id)
             FROM zones
             WHERE first_id >= ifnull((SELECT max(first_id) FROM zones WHERE first_id <= ?4 + 1), 0) AND last_id > ?4
                 AND max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND ifnull(min_opened_at_us <= ?3, TRUE)",
        )?;
        let ([after, last, until], last_of_zones) = (self.meaning.window.bounds(), self.last_of_zones());
        let mut rows = statement.query([after, last, until, behind, last_of_zones])?;
        while let Some(row) = rows.next()? {
            let [zone, id, earliest, latest]: [i64; 4] = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
            let (first, is_told) = (zone.max(behind + 1), row.get(4)?);
            let latest = latest.min(last);
            if is_told && last_of_zones < last {
                heap.push(Next { latest, file, id, what: What::Long(zone, first) });
            }
            let last = if is_told { last_of_zones } else { last };
            if earliest <= last {
                heap.push(Next { latest: latest.min(last), file, id, what: What::Zone(first, last) });
            }
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
            let mut rows = statement.query(params_from_iter(bounds([chapter, host], self.meaning.window.bounds())))?;
            while let Some(row) = rows.next()? {
                let (first, id, latest) = (row.get(0)?, row.get(1)?, row.get(2)?);
                heap.push(Next { latest, file, id, what: What::Run(first) });
            }
        }
        Ok(())
    }

    /// The runs of a host behind a row in which something may be meant, in the order of their rows.
    pub(super) fn runs_of_host(
        &self,
        connection: &Connection,
        host: i64,
        behind: i64,
    ) -> Result<Vec<(i64, i64)>, rusqlite::Error> {
        let mut statement = connection.prepare_cached(
            "SELECT r.first_id, r.last_id FROM chapters c CROSS JOIN runs r ON r.chapter_id = c.id AND r.host_id = ?2
             WHERE r.last_id > ?1 AND r.max_closed_at_us > ?3 AND r.min_closed_at_us <= ?4 AND r.min_opened_at_us <= ?5
             ORDER BY r.first_id",
        )?;
        let bounds = bounds([behind, host], self.meaning.window.bounds());
        statement.query_map(params_from_iter(bounds), |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    /// Finds what may be meant in a zone and closed until a moment, without reading it.
    pub(super) fn read_zone(
        &mut self,
        file: InFile,
        (first, last): (i64, i64),
        closed_until: i64,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT id, host_id, closed_at_us FROM sessions WHERE id BETWEEN ?1 AND ?2 AND {IN_WINDOW} AND {}",
            self.meaning.sql
        ))?;
        let [after, _, until] = self.meaning.window.bounds();
        let bounds = bounds([first, last], [after, closed_until, until]);
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
        let window = self.meaning.window.bounds();
        self.each_row(file, runs, window, |search, id, one| search.take_turn((file, id), one, heap))
    }

    /// The same of the long rows of a zone that closed later than what is looked for by zones, from a row on.
    pub(super) fn read_long(
        &mut self,
        file: InFile,
        (zone, first): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        self.each_long(file, (zone, first), |search, id, one| search.take_turn((file, id), one, heap))
    }

    /// Has a row that was read wait for its turn.
    fn take_turn(
        &mut self,
        (file, id): (InFile, i64),
        one: StoredSession,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let Some((latest, _)) = one.closed else { return Ok(()) };
        let what = if self.held < HELD { What::Session(Box::new(one)) } else { What::Row };
        self.held += usize::from(matches!(what, What::Session(_)));
        heap.push(Next { latest, file, id, what });
        Ok(())
    }

    /// Shows the long rows of a zone that are meant and closed later than what is looked for by zones, from a row on.
    pub(super) fn each_long(
        &mut self,
        file: InFile,
        (zone, first): (i64, i64),
        show: impl FnMut(&mut Self, i64, StoredSession) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let [after, last, until] = self.meaning.window.bounds();
        let (after, ports) = (after.max(self.last_of_zones()), self.meaning.ports.clone());
        let mut found = Vec::new();
        let mut statement = connection.prepare_cached("SELECT rows FROM zone_long WHERE first_id = ?1")?;
        let mut rows = statement.query([zone])?;
        while let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("rows", error.to_string()))?;
            long::each(bytes, |one| {
                let id = zone.saturating_add(one.row);
                let may_be_meant = id >= first && one.closed_at_us > after && one.opened_at_us <= until;
                found.extend((may_be_meant && ports.contains(&one.port)).then_some(id));
            })?;
        }
        self.each_row(file, &runs(&found), [after, last, until], show)
    }

    /// Shows all rows that are meant of runs and in a window, with their numbers, in no order.
    pub(super) fn each_row(
        &mut self,
        file: InFile,
        runs: &[(i64, i64)],
        window: [i64; 3],
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
            let bounds = bounds([*first, *last], window);
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

/// The first five values of a question with [`IN_WINDOW`].
fn bounds([first, second]: [i64; 2], [after, last, until]: [i64; 3]) -> [Value; 5] {
    [first, second, after, last, until].map(Value::from)
}

/// Rows as runs of those that follow each other.
pub(super) fn runs(rows: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for row in rows {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == *row => *last = *row,
            _ => runs.push((*row, *row)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_follow_each_other_are_one_run() {
        assert_eq!(runs(&[1, 2, 3, 7, 9, 10]), [(1, 3), (7, 7), (9, 10)]);
        assert_eq!(runs(&[]), []);
    }
}
