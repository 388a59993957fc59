//! The thread that walks: reads the kernel's table, finds owners, and puts what changed into the spool.

use std::{sync::Arc, time::Instant};

use fleetsock_proto::{host::BootId, time::Timestamp};

use self::{orders::Orders, schedule::Schedule};
use crate::{
    capture::{SocketRow, WalkReport, Walker},
    chronicle::{Chronicle, Look},
    config::Reach,
    losses::Loss,
    outbox::Outbox,
    owners::{OwnerScan, Processes, Wanted},
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
        let wanted = self.table.wanted(&self.rows, search);
        let scan = match wanted.is_empty() {
            true => OwnerScan::default(),
            false => self.observer.processes.scan(&wanted),
        };
        self.count(report, search, &scan);
        let completeness = if report == WalkReport::default() { Completeness::Whole } else { Completeness::Partial };
        let at = (self.observer.clock)();
        let since = self.table.observed_since().unwrap_or(began).min(at);
        let walk = Walk { rows: &[], began, at, completeness };
        let comparison = self.compare(walk, &wanted, &scan);
        self.keep(Window { boot_id: self.observer.boot_id, since, until: at }, comparison, now);
        self.observer.outbox.observed(at);
        true
    }

    fn count(&mut self, report: WalkReport, search: Search, scan: &OwnerScan) {
        let losses = self.observer.outbox.losses();
        // The same sockets are above the limit at every walk: only what is more than before is new.
        losses.add(Loss::Walk, report.overflow.saturating_sub(self.report.overflow));
        losses.add(Loss::Walk, report.unreadable.saturating_sub(self.report.unreadable));
        losses.add(Loss::Walk, report.interrupted);
        self.report = report;
        if search == Search::Unknown {
            // The referee sees the same owners again and again.
            losses.add(Loss::Detail, scan.owners_cut);
        }
    }

    /// What changed, by the walk and by the events before it.
    fn compare(&mut self, walk: Walk<'_>, wanted: &Wanted, scan: &OwnerScan) -> Comparison {
        let walk = Walk { rows: &self.rows, ..walk };
        let chronicle = self.observer.chronicle.clone();
        if chronicle.as_ref().is_some_and(|chronicle| !chronicle.catch_up()) {
            tracing::debug!("events are behind the walk");
        }
        // One look for all: what ended after it is still open for this walk.
        let mut look = chronicle.as_deref().map(Chronicle::look);
        let (told, lost) = look.as_mut().map(Look::take).unwrap_or_default();
        let (reach, home) = (self.observer.reach, self.observer.walker.netns());
        for told in told.into_iter().filter(|told| reach == Reach::Host || told.key.netns == home) {
            self.table.end(told);
        }
        let comparison = self.table.apply(walk, wanted, scan, &look);
        let losses = self.observer.outbox.losses();
        losses.add(Loss::Events, lost.records);
        losses.add(Loss::Lives, lost.lives);
        losses.add(Loss::Table, comparison.sockets_lost);
        losses.add(Loss::Detail, comparison.owners_lost);
        comparison
    }

    /// Puts what changed into the spool, and a snapshot when one is due.
    fn keep(&mut self, window: Window, comparison: Comparison, now: Instant) {
        let changes = pack(Content::Changes, window, comparison.changes);
        let unseen = pack(Content::Changes, window, comparison.unseen);
        let appended = !changes.drafts.is_empty() || !unseen.drafts.is_empty();
        self.observer.outbox.losses().add(Loss::Detail, changes.details_lost + unseen.details_lost);
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
        // After the snapshot, which does not contain them.
        if let Err(error) = self.observer.outbox.with(|spool| spool.append(Content::Changes, unseen.drafts)) {
            tracing::error!(%error, "short connections were not taken");
        }
        if appended || snapshot {
            self.observer.outbox.notify();
        }
    }
}
