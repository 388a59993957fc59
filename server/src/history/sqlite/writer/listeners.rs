//! Lives of listeners, in `main.db`, with a cursor of their own that tells what is stored here already.

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    socket::Known,
    stream::BatchNumber,
    time::Timestamp,
};
use rusqlite::{OptionalExtension, Transaction, params};

use super::{
    Admitted,
    changes::{self, LifeKey},
    programs::ProgramIds,
};
use crate::history::sqlite::coding::{OwnerColumns, listen_address_bytes, signed, time, unsigned};

/// Whether a batch has anything to do here.
pub(super) fn concern(one: &Admitted) -> bool {
    one.step.ends_snapshot
        || one.step.rebooted
        || one.step.first
        || changes::begins(one)
        || one.step.gap.is_some()
        || one.batch.changes.iter().any(|change| change.socket.role == Role::Listener)
}

pub(super) fn store(
    transaction: &Transaction<'_>,
    one: &Admitted,
    programs: &ProgramIds,
) -> Result<(), rusqlite::Error> {
    if changes::begins(one) {
        changes::note_start(transaction, one)?;
    }
    if one.step.rebooted {
        // No snapshot has a negative number, so that none of those that are open was named by it.
        close_unnamed(transaction, one, -1)?;
    }
    for change in one.batch.changes.iter().filter(|change| change.socket.role == Role::Listener) {
        apply(transaction, one, change, programs)?;
    }
    if one.step.ends_snapshot {
        close_unnamed(transaction, one, one.step.after.snapshot)?;
    }
    Ok(())
}

/// Whether a batch was not stored here before: it was when the other half of it failed.
pub(super) fn is_next(transaction: &Transaction<'_>, one: &Admitted) -> Result<bool, rusqlite::Error> {
    let number = one.step.after.number;
    if cursor(transaction, one.host)?.is_some_and(|stored| number <= stored) {
        return Ok(false);
    }
    store_cursor(transaction, one.host, number)?;
    Ok(true)
}

/// Goes on to a number, because the batches until then will never come; how many they are after `before` that were not
/// skipped here before, when the other half of that failed.
pub(super) fn skip(
    transaction: &Transaction<'_>,
    host: i64,
    before: BatchNumber,
    number: BatchNumber,
) -> Result<u64, rusqlite::Error> {
    let stored = cursor(transaction, host)?;
    let before = before.max(stored.unwrap_or_default());
    if before >= number {
        return Ok(0);
    }
    store_cursor(transaction, host, number)?;
    Ok(number.seq - if before.epoch == number.epoch { before.seq } else { 0 })
}

fn cursor(transaction: &Transaction<'_>, host: i64) -> Result<Option<BatchNumber>, rusqlite::Error> {
    transaction
        .prepare_cached("SELECT epoch, seq FROM listener_cursors WHERE host_id = ?1")?
        .query_row([host], |row| Ok(BatchNumber { epoch: unsigned(row, "epoch")?, seq: unsigned(row, "seq")? }))
        .optional()
}

fn store_cursor(transaction: &Transaction<'_>, host: i64, number: BatchNumber) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("REPLACE INTO listener_cursors (host_id, epoch, seq) VALUES (?1, ?2, ?3)")?
        .execute(params![host, signed(number.epoch), signed(number.seq)])
        .map(drop)
}

/// The open row of a socket.
struct Open {
    opened_at: Timestamp,
    is_same: bool,
    owners: OwnerColumns,
}

fn apply(
    transaction: &Transaction<'_>,
    one: &Admitted,
    change: &Change,
    programs: &ProgramIds,
) -> Result<(), rusqlite::Error> {
    let socket = &change.socket;
    let owners = OwnerColumns::new(socket.owner_known, &socket.owners, |owner| Ok(programs.of(owner)))?;
    let closed = match change.op {
        Op::Closed { at, known } => Some((one.corrected(at), known)),
        Op::Opened | Op::Updated | Op::Present => None,
    };
    match find(transaction, one.host, socket)? {
        Some(open) if open.is_same => {
            let owners = owners.or(open.owners.clone());
            let life = LifeKey { socket: socket.key, opened_at: open.opened_at };
            changes::note_owners(transaction, one, life, change.op, (&open.owners, &owners))?;
            update(transaction, one, socket, open.opened_at, &owners, closed)
        }
        open => {
            if let Some(open) = open {
                // The identity of a socket is never used again, so this is another life of an unconnected one.
                lose(transaction, one, socket, open.opened_at)?;
            }
            insert(transaction, one, socket, &owners, closed)
        }
    }
}

fn find(transaction: &Transaction<'_>, host: i64, socket: &Socket) -> Result<Option<Open>, rusqlite::Error> {
    transaction
        .prepare_cached(
            "SELECT opened_at_us, protocol, address, port, owner_known, pid, started_at_us, program_id, more_owners
             FROM listeners WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3 AND closed_at_us IS NULL",
        )?
        .query_row(params![host, signed(socket.key.netns), signed(socket.key.cookie)], |row| {
            let is_same = row.get::<_, i32>("protocol")? == socket.protocol.number()
                && row.get::<_, Vec<u8>>("address")? == listen_address_bytes(&socket.listen_address())
                && row.get::<_, u16>("port")? == socket.local.port();
            Ok(Open { opened_at: time(row, "opened_at_us")?, is_same, owners: OwnerColumns::read(row)? })
        })
        .optional()
}

/// Stores a life. One that was stored with the same beginning is the same one, and goes on as it is told now.
fn insert(
    transaction: &Transaction<'_>,
    one: &Admitted,
    socket: &Socket,
    owners: &OwnerColumns,
    closed: Option<(Timestamp, Known)>,
) -> Result<(), rusqlite::Error> {
    let opened_at = one.corrected(socket.opened_at);
    transaction
        .prepare_cached(
            "REPLACE INTO listeners (host_id, netns, cookie, opened_at_us, opened_known, closed_at_us, closed_known,
                 protocol, family, state, address, port, owner_known, pid, started_at_us, program_id, more_owners,
                 snapshot)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
        )?
        .execute(params![
            one.host,
            signed(socket.key.netns),
            signed(socket.key.cookie),
            opened_at.as_micros(),
            socket.opened_known.number(),
            closed.map(|(at, _)| at.max(opened_at).as_micros()),
            closed.map(|(_, known)| known.number()),
            socket.protocol.number(),
            socket.family.number(),
            socket.state.number(),
            listen_address_bytes(&socket.listen_address()),
            socket.local.port(),
            owners.known,
            owners.pid,
            owners.started_at_us,
            owners.program_id,
            owners.more,
            one.step.after.snapshot,
        ])
        .map(drop)
}

fn update(
    transaction: &Transaction<'_>,
    one: &Admitted,
    socket: &Socket,
    opened_at: Timestamp,
    owners: &OwnerColumns,
    closed: Option<(Timestamp, Known)>,
) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "UPDATE listeners SET state = ?5, family = ?6, owner_known = ?7, pid = ?8, started_at_us = ?9,
                 program_id = ?10, more_owners = ?11, snapshot = ?12, closed_at_us = ?13, closed_known = ?14
             WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3 AND opened_at_us = ?4",
        )?
        .execute(params![
            one.host,
            signed(socket.key.netns),
            signed(socket.key.cookie),
            opened_at.as_micros(),
            socket.state.number(),
            socket.family.number(),
            owners.known,
            owners.pid,
            owners.started_at_us,
            owners.program_id,
            owners.more,
            one.step.after.snapshot,
            closed.map(|(at, _)| at.max(opened_at).as_micros()),
            closed.map(|(_, known)| known.number()),
        ])
        .map(drop)
}

/// Closes the open row of a socket whose end nobody saw.
fn lose(
    transaction: &Transaction<'_>,
    one: &Admitted,
    socket: &Socket,
    opened_at: Timestamp,
) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "UPDATE listeners SET closed_at_us = max(opened_at_us, ?5), closed_known = ?6
             WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3 AND opened_at_us = ?4",
        )?
        .execute(params![
            one.host,
            signed(socket.key.netns),
            signed(socket.key.cookie),
            opened_at.as_micros(),
            one.step.last_observed.as_micros(),
            Known::Lost.number(),
        ])
        .map(drop)
}

/// Closes what is open and was not named by a snapshot: when, nobody saw.
fn close_unnamed(transaction: &Transaction<'_>, one: &Admitted, snapshot: i64) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "UPDATE listeners INDEXED BY listeners_open SET closed_at_us = max(opened_at_us, ?3), closed_known = ?4
             WHERE host_id = ?1 AND closed_at_us IS NULL AND snapshot <> ?2",
        )?
        .execute(params![one.host, snapshot, one.step.last_observed.as_micros(), Known::Lost.number()])
        .map(drop)
}
