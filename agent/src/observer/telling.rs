//! Puts what a walk found into the spool: what changed, a snapshot when one is due, and now and then a digest of what is open
//! after it.

use std::time::Instant;

use super::schedule::Schedule;
use crate::{
    ledger::{Ends, Ledger},
    losses::Loss,
    outbox::Outbox,
    packing::{Content, Window, pack},
    table::{Comparison, Table},
};

/// Whether a walk is followed by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is.
    Next,
    /// The observer ends with it.
    Last,
}

impl From<bool> for Turn {
    fn from(stop: bool) -> Turn {
        if stop { Turn::Last } else { Turn::Next }
    }
}

/// Tells the changes of a walk.
#[derive(Debug)]
pub struct Teller<'a> {
    /// Where they go.
    pub outbox: &'a Outbox,
    /// When a snapshot or a digest is due.
    pub schedule: &'a mut Schedule,
    /// What went over connections, where that is told.
    pub ledger: Option<&'a mut Ledger>,
    /// What is open after the walk.
    pub table: &'a Table,
}

/// Tells the changes of a walk that was made now.
pub fn keep(teller: Teller<'_>, window: Window, comparison: Comparison, now: Instant, turn: Turn) {
    let Teller { outbox, schedule, mut ledger, table } = teller;
    let mut ends = Ends { changes: comparison.changes, unseen: comparison.unseen };
    // What a snapshot does not name is closed for the server, so that its end must be told before.
    let flushes = turn == Turn::Last || schedule.snapshot_due(now) || outbox.with(|spool| spool.wants_snapshot());
    if let Some(ledger) = &mut ledger {
        ends = ledger.settle(ends);
        if flushes {
            ends.extend(ledger.flush());
        }
    }
    let mut changes = pack(Content::Changes, window, ends.changes);
    outbox.losses().add(Loss::Detail, changes.details_lost);
    // A snapshot has a digest of its own.
    if !flushes && schedule.digest_due(now) {
        let held = ledger.iter().flat_map(|ledger| ledger.unsettled());
        changes.prove(window, &table.open().chain(held).collect());
        schedule.wrote_digest(now);
    }
    let mut appended = !changes.drafts.is_empty();
    let begins = outbox.with(|spool| {
        // Before the snapshot of a numbering nothing else can be told; the snapshot contains it.
        spool.append(Content::Changes, changes.drafts).is_err() || spool.wants_snapshot()
    });
    let snapshot = begins || schedule.snapshot_due(now);
    if snapshot {
        let mut snapshot = pack(Content::Snapshot, window, table.snapshot());
        snapshot.prove(window, &table.open().collect());
        let appended = outbox.with(|spool| spool.append(Content::Snapshot, snapshot.drafts));
        if let Err(error) = appended {
            tracing::error!(%error, "a snapshot was not taken for one");
        }
        schedule.wrote_snapshot(now);
        schedule.wrote_digest(now);
        // The numbering may have begun a moment ago: then these are as late as all other changes of this walk.
        ends.unseen.extend(ledger.as_mut().map(|ledger| ledger.flush().unseen).unwrap_or_default());
    }
    // After the snapshot, which does not contain them.
    let unseen = pack(Content::Changes, window, ends.unseen);
    appended |= !unseen.drafts.is_empty();
    outbox.losses().add(Loss::Detail, unseen.details_lost);
    if let Err(error) = outbox.with(|spool| spool.append(Content::Changes, unseen.drafts)) {
        tracing::error!(%error, "short connections were not taken");
    }
    if appended || snapshot {
        outbox.notify();
    }
}
