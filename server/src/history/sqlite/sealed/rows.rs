//! The sessions of a file in which each has a row, host by host, those of each in the order of their closing.

use rusqlite::{Connection, params};

use super::{GoesOn, SealError};
use crate::history::sqlite::stored::{self, StoredSession};

/// Shows every session of a file. Of one host at a time 16 bytes of each session are held: 80 MB if all of a usual file were
/// of one.
pub(in crate::history::sqlite) fn each_row(
    source: &Connection,
    goes_on: &GoesOn,
    mut show: impl FnMut(StoredSession) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let mut closings = source.prepare("SELECT closed_at_us, id FROM sessions WHERE id BETWEEN ?1 AND ?2")?;
    let mut rows = source.prepare(&format!("SELECT {} FROM sessions WHERE id = ?1", stored::OVER))?;
    let mut show_host = |host: &mut Vec<(i64, i64)>| {
        host.sort_unstable();
        for (_, id) in host.drain(..) {
            show(rows.query_row([id], StoredSession::over)?)?;
        }
        Ok::<_, SealError>(())
    };
    let mut statement = source.prepare("SELECT host_id, first_id, last_id FROM runs ORDER BY host_id")?;
    let mut runs = statement.query([])?;
    let (mut of, mut host): (Option<i64>, Vec<(i64, i64)>) = (None, Vec::new());
    while let Some(run) = runs.next()? {
        if !goes_on() {
            return Err(SealError::Unwanted);
        }
        let [host_id, first, last]: [i64; 3] = [run.get(0)?, run.get(1)?, run.get(2)?];
        if of.replace(host_id) != Some(host_id) {
            show_host(&mut host)?;
        }
        let mut found = closings.query(params![first, last])?;
        while let Some(row) = found.next()? {
            host.push((row.get(0)?, row.get(1)?));
        }
    }
    show_host(&mut host)
}
