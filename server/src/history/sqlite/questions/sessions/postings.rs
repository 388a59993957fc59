//! Rows with chosen peers in a file in which each session has a row: by the index of peers as far as it reaches, behind that
//! by what the writer knows (`latest.rs`), and else by zones.

use std::collections::BinaryHeap;

use ipnet::IpNet;
use rusqlite::{Connection, OptionalExtension, params, types::ValueRef};

use super::{AT_ONCE, InFile, Next, Search, What, rows::runs};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        postings::{self, Addresses},
    },
};

/// The rows with an address that is meant, and the last row that the index knows.
type Found = (Vec<i64>, i64);

impl Search<'_> {
    /// Finds the rows with peers that are meant when they are at most so many; whether they are.
    pub(super) fn postings(
        &mut self,
        file: InFile,
        most: usize,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<bool, HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(true) };
        // Networks may overlap.
        let peers = IpNet::aggregate(&self.meaning.question.peers);
        let meant: Vec<Addresses> = peers.iter().map(|prefix| (prefix.network(), prefix.broadcast())).collect();
        let Some((rows, covered, last)) = self.rows_with(file, connection, &meant, most)? else { return Ok(false) };
        if self.are_read_at_once(rows.len()) && (rows.len() <= AT_ONCE || self.means_all_rows_of(connection)?) {
            self.read_runs(file, &runs(&rows), heap)?;
        } else {
            self.by_zones(connection, file, &rows, heap)?;
        }
        if covered < last {
            self.zones(file, covered, heap)?;
        }
        Ok(true)
    }

    /// The rows with addresses that are meant, ascending, as far as they are known, and up to which row that is of all rows;
    /// nothing when there are more than so many.
    pub(super) fn rows_with(
        &self,
        file: InFile,
        connection: &Connection,
        meant: &[Addresses],
        most: usize,
    ) -> Result<Option<(Vec<i64>, i64, i64)>, HistoryError> {
        let Some((mut rows, mut covered)) = look_up(connection, meant, most)? else { return Ok(None) };
        let last = last_row(connection)?;
        if file.is_none() && covered < last {
            // What was stored since this question began is not asked for.
            let add = |row| rows.extend((row <= last).then_some(row));
            covered = self.reader.catalogue.latest.find(covered, meant, add);
        }
        if rows.len() > most {
            return Ok(None);
        }
        rows.sort_unstable();
        Ok(Some((rows, covered, last)))
    }

    /// Whether the window that is meant has all rows of a file in it.
    fn means_all_rows_of(&self, connection: &Connection) -> Result<bool, rusqlite::Error> {
        let [after, last, until] = self.meaning.window.bounds();
        let mut statement = connection
            .prepare_cached("SELECT min(min_closed_at_us) > ?1, max(max_closed_at_us) <= ?2 FROM chapters")?;
        let bounds = params![after, last.min(until)];
        statement.query_row(bounds, |row| Ok(row.get::<_, Option<bool>>(0)? == Some(true) && row.get(1)?))
    }

    /// Sorts rows by their zones, which tell their times.
    fn by_zones(
        &self,
        connection: &Connection,
        file: InFile,
        mut rows: &[i64],
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let mut zone = connection.prepare_cached(
            "SELECT last_id, max_closed_at_us,
                 max_closed_at_us > ?2 AND min_closed_at_us <= ?3 AND ifnull(min_opened_at_us <= ?4, TRUE)
             FROM zones WHERE first_id <= ?1 ORDER BY first_id DESC LIMIT 1",
        )?;
        let [after, last, until] = self.meaning.window.bounds();
        while let Some(first) = rows.first() {
            let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?, row.get(2)?));
            let found: Option<(i64, i64, bool)> =
                zone.query_row(params![first, after, last, until], read).optional()?;
            let (id, latest, is_meant) = found.ok_or_else(|| coding::wrong("zones", "there is none with a row"))?;
            let (here, later) = rows.split_at(rows.partition_point(|row| *row <= id).max(1));
            if is_meant {
                heap.push(Next { latest, file, id, what: What::Rows(runs(here)) });
            }
            rows = later;
        }
        Ok(())
    }
}

/// Looks addresses up in the index of a file; nothing when more rows are found than that.
fn look_up(connection: &Connection, meant: &[Addresses], most: usize) -> Result<Option<Found>, HistoryError> {
    let (mut rows, mut covered) = (Vec::new(), 0);
    let mut statement = connection.prepare_cached("SELECT first_id, last_id, first_page, firsts FROM segments")?;
    let mut page = connection.prepare_cached("SELECT bytes FROM postings WHERE id = ?1")?;
    let mut segments = statement.query([])?;
    while let Some(segment) = segments.next()? {
        let [first_id, last_id, first_page]: [i64; 3] = [segment.get(0)?, segment.get(1)?, segment.get(2)?];
        covered = covered.max(last_id);
        let firsts = blob("firsts", segment.get_ref(3)?)?;
        for addresses in meant {
            let pages = postings::among(firsts, *addresses);
            for id in (first_page..).take(pages.end).skip(pages.start) {
                let mut found = page.query([id])?;
                let bytes = found.next()?.ok_or_else(|| coding::wrong("postings", format!("page {id} is missing")))?;
                postings::find(blob("bytes", bytes.get_ref(0)?)?, *addresses, |row| {
                    rows.push(first_id + i64::from(row))
                })?;
                if rows.len() > most {
                    return Ok(None);
                }
            }
        }
    }
    Ok(Some((rows, covered)))
}

/// The last row, as this question sees the file.
fn last_row(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT coalesce(max(id), 0) FROM sessions")?;
    statement.query_row([], |row| row.get(0))
}

fn blob<'v>(column: &'static str, value: ValueRef<'v>) -> Result<&'v [u8], rusqlite::Error> {
    value.as_blob().map_err(|error| coding::wrong(column, error.to_string()))
}
