//! What the writer is asked to do.

use fleetsock_proto::{
    batch::Batch,
    host::HostId,
    stream::{BatchNumber, GapReport},
};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::roster::Roster;
use crate::history::{Applied, Contact, HistoryError};

/// Where the outcome goes, after it is durable.
pub(super) type Reply<T> = oneshot::Sender<Result<T, HistoryError>>;

/// One transaction of `main.db`, which replies itself.
pub(super) type Transaction = Box<dyn FnOnce(&mut Connection, &Roster) + Send>;

/// Something for the writer.
pub(super) enum Work {
    /// Observations of a host.
    Batch { host: HostId, batch: Box<Batch>, reply: Reply<Applied> },
    /// Observations that will never come.
    Gap { host: HostId, gap: GapReport, reply: Reply<()> },
    /// How far the history of a host goes.
    LastBatch { host: HostId, reply: Reply<BatchNumber> },
    /// A host began to speak.
    Hello { host: HostId, contact: Box<Contact>, reply: Reply<()> },
    /// There are signs of life to write.
    Presence,
    /// Anything about tokens, certificates and the like.
    Main(Transaction),
}

/// Tells the outcome to whoever waits for it.
pub(super) fn answer<T>(reply: Reply<T>, outcome: Result<T, HistoryError>) {
    if reply.send(outcome).is_err() {
        tracing::debug!("nobody waited for an outcome");
    }
}
