//! Ranges that were not observed, in `main.db`.

use fleetsock_proto::{
    answer::{Cover, GapReason},
    time::Timestamp,
};
use rusqlite::{Transaction, params};

use crate::history::sqlite::coding;

/// Batches that are lost in a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// As many more than the range had, if it was told before: one walk can have several batches.
    More(u64),
    /// As many, if the range was not told before.
    Once(u64),
}

impl Lost {
    pub(super) const fn batches(self) -> u64 {
        match self {
            Lost::More(batches) | Lost::Once(batches) => batches,
        }
    }
}

/// Stores one. What has no batches and touches a gap for the same reason continues it: a kernel that loses something at
/// every walk makes one gap, not one for each second.
pub(super) fn store_range(
    transaction: &Transaction<'_>,
    host: i64,
    (since, until): (Timestamp, Timestamp),
    reason: i32,
    lost: Lost,
) -> Result<(), rusqlite::Error> {
    let is_lossy = GapReason::from_number(reason).is_some_and(|reason| reason.cover() == Cover::Lossy);
    if is_lossy && lost.batches() == 0 {
        let continued = transaction
            .prepare_cached(
                "UPDATE OR REPLACE gaps SET since_us = min(since_us, ?2), until_us = max(until_us, ?3) WHERE id =
                     (SELECT id FROM gaps WHERE host_id = ?1 AND since_us <= ?3 AND until_us >= ?2 AND reason = ?4
                          AND batches_lost = 0 LIMIT 1)",
            )?
            .execute(params![host, since.as_micros(), until.as_micros(), reason])?;
        if continued > 0 {
            return Ok(());
        }
    }
    transaction
        .prepare_cached(
            "INSERT INTO gaps (host_id, since_us, until_us, reason, batches_lost) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET batches_lost = batches_lost + excluded.batches_lost WHERE ?6",
        )?
        .execute(params![
            host,
            since.as_micros(),
            until.as_micros(),
            reason,
            coding::signed(lost.batches()),
            matches!(lost, Lost::More(_)),
        ])
        .map(drop)
}
