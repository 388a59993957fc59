//! What changes while an interval goes on, in `main.db`: the owners of a listener, and the starts of agents. They go with
//! whatever is too old to be kept (`parts.rs`).

use std::collections::BTreeSet;

use fleetsock_proto::{
    batch::Op,
    socket::{Known, SocketKey},
    time::Timestamp,
};
use rusqlite::{OptionalExtension, Transaction, params};

use super::Admitted;
use crate::history::sqlite::coding::{OwnerColumns, signed};

/// A life of a listener.
#[derive(Debug, Clone, Copy)]
pub(super) struct LifeKey {
    pub(super) socket: SocketKey,
    pub(super) opened_at: Timestamp,
}

/// Notes that a listener has other owners than before, if that is what a batch told of it.
///
/// A walk saw them first: the change lies between it and the one before. What only a snapshot tells happened while
/// nobody looked, after the last walk before it, or its report was lost.
pub(super) fn note_owners(
    transaction: &Transaction<'_>,
    one: &Admitted,
    life: LifeKey,
    op: Op,
    (before, after): (&OwnerColumns, &OwnerColumns),
) -> Result<(), rusqlite::Error> {
    let (at, known) = match op {
        Op::Closed { at, .. } => (one.corrected(at), Known::BetweenWalks),
        Op::Opened | Op::Updated => (one.step.after.observed_until, Known::BetweenWalks),
        Op::Present => (one.step.last_observed, Known::Lost),
    };
    if !changed_hands(transaction, before, after)? {
        return Ok(());
    }
    transaction
        .prepare_cached(
            "INSERT INTO owner_changes (host_id, netns, cookie, opened_at_us, at_us, known, before_known, before_pid,
                 before_started_at_us, before_program_id, before_more_owners, owner_known, pid, started_at_us,
                 program_id, more_owners)
             SELECT ?1, ?2, ?3, ?4, max(?5, ?4, coalesce(max(at_us), ?4)), ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15,
                 ?16
             FROM owner_changes WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3 AND opened_at_us = ?4",
        )?
        .execute(params![
            one.host,
            signed(life.socket.netns),
            signed(life.socket.cookie),
            life.opened_at.as_micros(),
            at.as_micros(),
            known.number(),
            before.known,
            before.pid,
            before.started_at_us,
            before.program_id,
            before.more,
            after.known,
            after.pid,
            after.started_at_us,
            after.program_id,
            after.more,
        ])
        .map(drop)
}

/// Whether others hold a socket than before: another process in the first place, or other programs. Processes that come
/// and go with the same program, as children do, change nothing; nor does it to learn who it is.
fn changed_hands(
    transaction: &Transaction<'_>,
    before: &OwnerColumns,
    after: &OwnerColumns,
) -> Result<bool, rusqlite::Error> {
    if before.is_empty() || after.is_empty() {
        return Ok(false);
    }
    if (before.pid, before.started_at_us) != (after.pid, after.started_at_us) {
        return Ok(true);
    }
    let (were, are) = (before.program_ids(), after.program_ids());
    Ok(were != are && kinds(transaction, &were)? != kinds(transaction, &are)?)
}

/// A program without its command line, which some change while they run: name, executable, user, container, unit.
/// None for a number that the dictionary does not have.
type Kind = Option<(String, String, u32, String, String)>;

fn kinds(transaction: &Transaction<'_>, programs: &BTreeSet<i64>) -> Result<BTreeSet<Kind>, rusqlite::Error> {
    let mut statement =
        transaction.prepare_cached("SELECT process, exe, uid, container, unit FROM programs WHERE id = ?1")?;
    let mut program = |id: &i64| {
        statement
            .query_row([id], |row| {
                Ok((row.get("process")?, row.get("exe")?, row.get("uid")?, row.get("container")?, row.get("unit")?))
            })
            .optional()
    };
    programs.iter().map(&mut program).collect()
}

/// Notes that a host's agent began to number anew.
pub(super) fn note_start(transaction: &Transaction<'_>, one: &Admitted) -> Result<(), rusqlite::Error> {
    let boot = one.batch.boot_id;
    transaction
        .prepare_cached("INSERT INTO starts (host_id, at_us, boot_id, rebooted) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![one.host, one.step.after.observed_until.as_micros(), boot.as_bytes(), one.step.rebooted])
        .map(drop)
}

/// Whether a batch tells of a start.
pub(super) fn begins(one: &Admitted) -> bool {
    one.step.after.number.seq == 1 || one.step.rebooted
}
