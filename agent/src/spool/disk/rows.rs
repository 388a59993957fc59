//! Rows of the spool's tables as what they mean.

use fleetsock_proto::{
    answer::GapReason,
    batch::BatchKind,
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};
use rusqlite::Row;

use crate::spool::stored::Head;

pub(super) fn signed(number: u64) -> i64 {
    // Numbers begin with 1 and grow by one.
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn number(row: &Row<'_>, column: &str) -> Result<u64, rusqlite::Error> {
    row.get::<_, i64>(column).map(|value| u64::try_from(value).unwrap_or(0))
}

pub(super) fn time(row: &Row<'_>, column: &str) -> Result<Timestamp, rusqlite::Error> {
    row.get(column).map(Timestamp::from_micros)
}

pub(super) fn word<T>(row: &Row<'_>, column: &str, from: impl Fn(i32) -> Option<T>) -> Result<T, rusqlite::Error> {
    let value: i32 = row.get(column)?;
    from(value).ok_or_else(|| rusqlite::Error::IntegralValueOutOfRange(0, value.into()))
}

pub(super) fn batch_number(row: &Row<'_>) -> Result<BatchNumber, rusqlite::Error> {
    Ok(BatchNumber { epoch: number(row, "epoch")?, seq: number(row, "seq")? })
}

pub(super) fn head(row: &Row<'_>) -> Result<Head, rusqlite::Error> {
    Ok(Head {
        number: batch_number(row)?,
        kind: word(row, "kind", BatchKind::from_number)?,
        changes: number(row, "changes")?,
        since: time(row, "since_us")?,
        until: time(row, "until_us")?,
        length: number(row, "length")?,
    })
}

pub(super) fn gap(row: &Row<'_>) -> Result<GapReport, rusqlite::Error> {
    let seqs = (number(row, "first_seq")?, number(row, "last_seq")?);
    Ok(GapReport {
        epoch: number(row, "epoch")?,
        seqs: Some(seqs).filter(|(first, _)| *first != 0),
        since: time(row, "since_us")?,
        until: time(row, "until_us")?,
        reason: word(row, "reason", GapReason::from_number)?,
    })
}
