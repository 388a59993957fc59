//! Sessions of files in which each has a row: by host, by the index of hosts; of many hosts by zones of the table.

use std::collections::BinaryHeap;

use rusqlite::{params_from_iter, types::Value};

use super::{InFile, Next, Search, What};
use crate::history::{
    HistoryError,
    sqlite::{
        peers::PeerFilter,
        stored::{self, StoredSession},
    },
};

/// Rows of one page of a host.
const PAGE_ROWS: i64 = 256;

/// What was open within the window that is meant, whose bounds are the third value and the two after it.
const IN_WINDOW: &str = "closed_at_us > ?3 AND closed_at_us <= ?4 AND closed_at_us - duration_us <= ?5";

/// Which rows of a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Of {
    Host(i64),
    /// The numbers of the first and the last of a zone.
    Zone(i64, i64),
}

impl Search<'_> {
    /// Finds the zones of a file in which something may be meant, without reading them.
    pub(super) fn zones(&self, file: InFile, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT first_id, last_id, max_closed_at_us, peers FROM zones
             WHERE max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND ifnull(min_opened_at_us <= ?3, TRUE)",
        )?;
        let mut rows = statement.query(self.meaning.window.bounds())?;
        while let Some(row) = rows.next()? {
            // Zones of an earlier version do not say.
            if self.meaning.asks_for_peers()
                && let Some(peers) = row.get_ref("peers")?.as_blob().ok().and_then(PeerFilter::of)
                && !self.meaning.question.peers.iter().any(|prefix| peers.may_hold(prefix))
            {
                continue;
            }
            let what = What::Zone { file, first: row.get("first_id")?, last: row.get("last_id")? };
            heap.push(Next { latest: row.get("max_closed_at_us")?, what });
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
            if self.hosts.contains_key(&row.get("host_id")?) {
                heap.push(Next { latest: row.get("closed_at_us")?, what: What::Row { file, id: row.get("id")? } });
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

    /// Reads the next page of a host, and notes the one after it.
    pub(super) fn read_host(
        &mut self,
        file: InFile,
        host: i64,
        (latest, before_id): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {}, id FROM sessions
             WHERE host_id = ?1 AND closed_at_us > ?2 AND (closed_at_us, id) < (?3, ?4)
                 AND closed_at_us - duration_us <= ?5 AND {}
             ORDER BY closed_at_us DESC, id DESC LIMIT {PAGE_ROWS}",
            stored::OVER,
            self.meaning.sql
        ))?;
        let [after, _, opened_until] = self.meaning.window.bounds();
        let bounds = [host, after, latest, before_id, opened_until].map(Value::from);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.meaning.values)))?;
        let (mut read, mut last) = (0, (0, 0));
        while let Some(row) = rows.next()? {
            read += 1;
            last = (row.get("closed_at_us")?, row.get("id")?);
            let one = StoredSession::over(row)?;
            if self.is_meant(&one)? {
                heap.push(Next { latest: last.0, what: What::Session(Box::new(self.shown(&one)?)) });
            }
        }
        if read == PAGE_ROWS {
            heap.push(Next { latest: last.0, what: What::Host { file, host, before_id: last.1 } });
        }
        Ok(())
    }

    /// Shows all rows that are meant of a host or a zone, in no order.
    pub(super) fn each_row(
        &mut self,
        file: InFile,
        of: Of,
        mut show: impl FnMut(&mut Self, &StoredSession) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let (rows, [first, last]) = match of {
            Of::Host(host) => ("host_id = ?1 AND ?1 = ?2", [host; 2]),
            Of::Zone(first, last) => ("id BETWEEN ?1 AND ?2", [first, last]),
        };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {} FROM sessions WHERE {rows} AND {IN_WINDOW} AND {}",
            stored::OVER,
            self.meaning.sql
        ))?;
        let bounds = self.bounds([first, last]);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.meaning.values)))?;
        while let Some(row) = rows.next()? {
            let one = StoredSession::over(row)?;
            if self.is_meant(&one)? {
                show(self, &one)?;
            }
        }
        Ok(())
    }
}
