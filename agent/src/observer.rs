//! The thread that walks: reads the kernel's table, finds owners, and puts what changed into the spool.

use std::{sync::Arc, time::Instant};

use fleetsock_proto::{batch::Change, host::BootId, time::Timestamp};

use self::{orders::Orders, schedule::Schedule};
use crate::{
    capture::{SocketRow, WalkReport, Walker},
    chronicle::Chronicle,
    config::Reach,
    losses::Loss,
    outbox::Outbox,
    owners::{OwnerScan, Processes},
    packing::{Content, Window, pack},
    table::{Comparison, Completeness, Search, Table, Walk},
};

pub mod orders;
pub mod schedule;

/// Reads the time.
pub type Clock = fn() -> Timestamp;

/// What an observer needs.
#[derive(Debug)]
pub struct Observer {
    /// Reads sockets.
    pub walker: Walker,
    /// Finds owners.
    pub processes: Processes,
    /// What events tell, where they can be had.
    pub chronicle: Option<Arc<Chronicle>>,
    /// Whose sockets are told.
    pub reach: Reach,
    /// The boot.
    pub boot_id: BootId,
    /// Where changes go.
    pub outbox: Arc<Outbox>,
    /// The time.
    pub clock: Clock,
    /// How often to walk and to look for all owners.
    pub schedule: Schedule,
}

impl Observer {
    /// Walks until it is told to stop; calls `first` after the first walk.
    pub fn run(self, orders: &Orders, first: impl FnOnce()) {
        let mut round = Round {
            observer: self,
            table: Table::default(),
            rows: Vec::new(),
            report: WalkReport::default(),
            failing: false,
        };
        let mut first = Some(first);
        loop {
            let schedule = &mut round.observer.schedule;
            let told = orders.wait(schedule.due_in(Instant::now()));
            if let Some(interval) = told.interval {
                schedule.set_interval(interval);
            }
            if told.snapshot {
                schedule.want_snapshot();
            }
            let due = told.begin || told.stop || schedule.due_in(Instant::now()).is_zero();
            if due
                && round.observe()
                && let Some(first) = first.take()
            {
                first();
            }
            if told.stop {
                return;
            }
        }
    }
}

/// The state between two walks.
struct Round {
    observer: Observer,
    table: Table,
    rows: Vec<SocketRow>,
    /// What the last walk could not tell.
    report: WalkReport,
    failing: bool,
}

impl Round {
    /// Walks once; tells whether that worked.
    fn observe(&mut self) -> bool {
        let (began, now) = ((self.observer.clock)(), Instant::now());
        let search = self.observer.schedule.begin_walk(now);
        let report = match self.observer.walker.walk(&mut self.rows) {
            Ok(report) => report,
            Err(error) => {
                // Nothing is closed because it was not seen now; the next walk tells of the longer time.
                if !self.failing {
                    tracing::error!(%error, "cannot walk the socket table");
                }
                self.failing = true;
                return false;
            }
        };
        if self.failing {
            tracing::info!("the socket table can be walked again");
            self.failing = false;
        }
        let ended = self.take_ended();
        let at = (self.observer.clock)();
        let since = self.table.observed_since().unwrap_or(began).min(at);
        let mut comparison = self.compare(began, at, search, report);
        // What ended comes first, as it did.
        comparison.changes.splice(0..0, ended);
        self.keep(Window { boot_id: self.observer.boot_id, since, until: at }, comparison, now);
        self.observer.outbox.observed(at);
        true
    }

    /// Lives that ended since the walk before, as events tell of them. Afterwards nothing is unknown that happened before
    /// the walk was done.
    fn take_ended(&mut self) -> Vec<Change> {
        let Some(chronicle) = &self.observer.chronicle else { return Vec::new() };
        if !chronicle.catch_up() {
            tracing::debug!("events are behind the walk");
        }
        let (told, lost) = chronicle.take();
        let losses = self.observer.outbox.losses();
        losses.add(Loss::Events, lost.records);
        losses.add(Loss::Lives, lost.lives);
        let (reach, home) = (self.observer.reach, self.observer.walker.netns());
        let told = told.into_iter().filter(|told| reach == Reach::Host || told.key.netns == home);
        told.filter_map(|told| self.table.end(told)).collect()
    }

    fn compare(&mut self, began: Timestamp, at: Timestamp, search: Search, report: WalkReport) -> Comparison {
        let losses = self.observer.outbox.losses();
        // The same sockets are above the limit at every walk: only what is more than before is new.
        losses.add(Loss::Walk, report.overflow.saturating_sub(self.report.overflow));
        losses.add(Loss::Walk, report.unreadable.saturating_sub(self.report.unreadable));
        losses.add(Loss::Walk, report.interrupted);
        self.report = report;
        let wanted = self.table.wanted(&self.rows, search);
        let scan = match wanted.is_empty() {
            true => OwnerScan::default(),
            false => self.observer.processes.scan(&wanted),
        };
        let completeness = if report == WalkReport::default() { Completeness::Whole } else { Completeness::Partial };
        let walk = Walk { rows: &self.rows, began, at, completeness };
        let comparison = match &self.observer.chronicle {
            Some(chronicle) => self.table.apply(walk, &wanted, &scan, &chronicle.origins()),
            None => self.table.apply(walk, &wanted, &scan, &()),
        };
        let losses = self.observer.outbox.losses();
        losses.add(Loss::Table, comparison.sockets_lost);
        if search == Search::Unknown {
            // The referee sees the same owners again and again.
            losses.add(Loss::Detail, scan.owners_cut + comparison.owners_lost);
        }
        comparison
    }

    /// Puts what changed into the spool, and a snapshot when one is due.
    fn keep(&mut self, window: Window, comparison: Comparison, now: Instant) {
        let changes = pack(Content::Changes, window, comparison.changes);
        let appended = !changes.drafts.is_empty();
        self.observer.outbox.losses().add(Loss::Detail, changes.details_lost);
        let begins = self.observer.outbox.with(|spool| {
            // Before the snapshot of a numbering nothing else can be told; the snapshot contains it.
            spool.append(Content::Changes, changes.drafts).is_err() || spool.wants_snapshot()
        });
        let snapshot = begins || self.observer.schedule.snapshot_due(now);
        if snapshot {
            let snapshot = pack(Content::Snapshot, window, self.table.snapshot());
            let appended = self.observer.outbox.with(|spool| spool.append(Content::Snapshot, snapshot.drafts));
            if let Err(error) = appended {
                tracing::error!(%error, "a snapshot was not taken for one");
            }
            self.observer.schedule.wrote_snapshot(now);
        }
        if appended || snapshot {
            self.observer.outbox.notify();
        }
    }
}
