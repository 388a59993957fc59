//! What changes while an interval goes on, in `main.db`: the owners of a listener, and the starts of agents.

use fleetsock_proto::{
    batch::Op,
    socket::{Known, SocketKey},
    time::Timestamp,
};
use rusqlite::{Transaction, params};

use super::Admitted;
use crate::history::sqlite::coding::{OwnerColumns, signed};

/// How long changes of owners and starts of agents are kept after the last walk of their host, microseconds: 400 days,
/// as long as what is kept of sessions when these are gone.
const KEPT_US: i64 = 400 * 86_400 * 1_000_000;
/// Rows that are forgotten for each one that is stored, at most. More than one, so that what is too old gets less.
const FORGOTTEN_AT_ONCE: i64 = 8;

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
    if !after.are_others_than(before) {
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
        ])?;
    forget(
        transaction,
        one,
        "DELETE FROM owner_changes WHERE id IN
             (SELECT id FROM owner_changes WHERE host_id = ?1 AND at_us < ?2 ORDER BY at_us LIMIT ?3)",
    )
}

/// Notes that a host's agent began to number anew.
pub(super) fn note_start(transaction: &Transaction<'_>, one: &Admitted) -> Result<(), rusqlite::Error> {
    let boot = one.batch.boot_id;
    transaction
        .prepare_cached("INSERT INTO starts (host_id, at_us, boot_id, rebooted) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![one.host, one.step.after.observed_until.as_micros(), boot.as_bytes(), one.step.rebooted])?;
    forget(
        transaction,
        one,
        "DELETE FROM starts WHERE id IN
             (SELECT id FROM starts WHERE host_id = ?1 AND at_us < ?2 ORDER BY at_us LIMIT ?3)",
    )
}

/// Whether a batch tells of a start.
pub(super) fn begins(one: &Admitted) -> bool {
    one.step.after.number.seq == 1 || one.step.rebooted
}

fn forget(transaction: &Transaction<'_>, one: &Admitted, sql: &str) -> Result<(), rusqlite::Error> {
    let oldest = one.step.after.observed_until.as_micros().saturating_sub(KEPT_US);
    transaction.prepare_cached(sql)?.execute(params![one.host, oldest, FORGOTTEN_AT_ONCE]).map(drop)
}
