//! The thread that walks: reads the kernel's table, finds owners, and puts what changed into the spool.

use std::{sync::Arc, time::Instant};

use fleetsock_proto::{host::BootId, time::Timestamp};

use self::{orders::Orders, round::Round, schedule::Schedule};
use crate::{
    capture::Surveyor, chronicle::Chronicle, departures::Departures, ledger::Ledger, namespaces::Namespaces,
    outbox::Outbox, owners::Processes, remarks::Remarks, restraint::Restraint, table::Table,
};

mod continuity;
pub mod names;
mod occasion;
pub mod orders;
mod round;
pub mod schedule;
pub mod telling;
mod unseen;
mod whose;

/// Reads the time.
pub type Clock = fn() -> Timestamp;

/// What an observer needs.
#[derive(Debug)]
pub struct Observer {
    /// Reads sockets.
    pub surveyor: Surveyor,
    /// The other network namespaces; absent when their sockets are not to be told.
    pub namespaces: Option<Namespaces>,
    /// Finds owners.
    pub processes: Processes,
    /// What events tell, where they can be had.
    pub chronicle: Option<Arc<Chronicle>>,
    /// What the kernel tells of closed sockets, where it does.
    pub departures: Option<Arc<Departures>>,
    /// What went over connections, where that is told.
    pub ledger: Option<Ledger>,
    /// What is open.
    pub table: Table,
    /// The boot.
    pub boot_id: BootId,
    /// Where changes go.
    pub outbox: Arc<Outbox>,
    /// Where it says what it does not see.
    pub remarks: Arc<Remarks>,
    /// The time.
    pub clock: Clock,
    /// How often to walk and to look for all owners.
    pub schedule: Schedule,
    /// What walks may cost.
    pub restraint: Restraint,
}

impl Observer {
    /// Walks until it is told to stop; calls `first` after the first walk.
    pub fn run(self, orders: &Orders, first: impl FnOnce()) {
        let mut round = Round::new(self);
        let mut first = Some(first);
        loop {
            let schedule = round.schedule();
            let told = orders.wait(schedule.due_in(Instant::now()));
            if let Some(interval) = told.interval {
                schedule.set_interval(interval);
            }
            if told.snapshot {
                schedule.want_snapshot();
            }
            let due = told.begin || told.stop || schedule.due_in(Instant::now()).is_zero();
            if due
                && round.observe(told.stop.into())
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
