//! How far the history of each host goes, in the file of the day.

use fleetsock_proto::{host::BootId, stream::BatchNumber};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use crate::history::{cursor::Cursor, sqlite::coding};

pub(super) fn load_cursor(day: &Connection, host: i64) -> Result<Option<Cursor>, rusqlite::Error> {
    day.prepare_cached("SELECT * FROM cursors WHERE host_id = ?1")?
        .query_row([host], |row| {
            Ok(Cursor {
                number: BatchNumber { epoch: coding::unsigned(row, "epoch")?, seq: coding::unsigned(row, "seq")? },
                boot_id: Some(BootId::from_array(row.get("boot_id")?)).filter(|boot| boot.as_bytes() != &[0; 16]),
                observed_until: coding::time(row, "observed_until_us")?,
                snapshot: row.get("snapshot")?,
                unfinished: row.get("snapshot_unfinished")?,
                observed_before: coding::time(row, "observed_before_us")?,
            })
        })
        .optional()
}

pub(super) fn store_cursor(transaction: &Transaction<'_>, host: i64, cursor: &Cursor) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "REPLACE INTO cursors (host_id, epoch, seq, boot_id, observed_until_us, snapshot, snapshot_unfinished,
                 observed_before_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            host,
            coding::signed(cursor.number.epoch),
            coding::signed(cursor.number.seq),
            cursor.boot_id.map_or([0; 16], |boot| *boot.as_bytes()),
            cursor.observed_until.as_micros(),
            cursor.snapshot,
            cursor.unfinished,
            cursor.observed_before.as_micros(),
        ])
        .map(drop)
}
