//! Writes questions into the audit log: many in one transaction, and none lost in silence.
//!
//! Whoever records waits until the row is durable, so an answer that was given is in the log. Rows that come while one
//! transaction is being written share the next. On a full disk questions are still answered: their rows then wait here,
//! up to a limit, and each is in the server's log meanwhile.

use std::sync::Arc;

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::history::{AuditEntry, HistoryError, Registry};

/// Entries that wait for the writer; whoever brings more waits.
const QUEUE: usize = 1024;
/// Entries of one transaction.
const GROUP: usize = 256;
/// Entries that may wait for room on the disk; with so many waiting no question is answered.
const BACKLOG: usize = 10_000;

type Reply = oneshot::Sender<Result<(), HistoryError>>;

/// Where questions are recorded.
#[derive(Debug)]
pub struct Ledger {
    entries: mpsc::Sender<(AuditEntry, Reply)>,
}

/// The ledger's writer, to be closed when nobody records any more.
#[derive(Debug)]
pub struct Keeper {
    closing: CancellationToken,
    writer: JoinHandle<()>,
}

impl Ledger {
    /// Begins to write into the audit log of a registry.
    pub fn open(registry: Arc<dyn Registry>) -> (Arc<Ledger>, Keeper) {
        let (entries, queue) = mpsc::channel(QUEUE);
        let closing = CancellationToken::new();
        let writer = Writer { registry, queue, backlog: Vec::new() };
        let writer = tokio::spawn(writer.run(closing.clone()));
        (Arc::new(Ledger { entries }), Keeper { closing, writer })
    }

    /// Writes a row down; returns when it is durable, or when the disk is full and the row waits for room.
    pub async fn record(&self, entry: AuditEntry) -> Result<(), HistoryError> {
        let (reply, outcome) = oneshot::channel();
        self.entries.send((entry, reply)).await.map_err(|_| HistoryError::Closed)?;
        outcome.await.map_err(|_| HistoryError::Closed)?
    }
}

impl Keeper {
    /// Writes what is there and ends.
    pub async fn close(self) {
        self.closing.cancel();
        if let Err(error) = self.writer.await {
            tracing::error!(%error, "the writer of the audit log did not end in order");
        }
    }
}

struct Writer {
    registry: Arc<dyn Registry>,
    queue: mpsc::Receiver<(AuditEntry, Reply)>,
    /// What found no room.
    backlog: Vec<AuditEntry>,
}

impl Writer {
    async fn run(mut self, closing: CancellationToken) {
        loop {
            let mut group = Vec::new();
            tokio::select! {
                () = closing.cancelled(), if !self.queue.is_closed() => {
                    self.queue.close();
                    continue;
                }
                received = self.queue.recv_many(&mut group, GROUP) => {
                    if received == 0 {
                        break;
                    }
                }
            }
            self.write(group).await;
        }
        if !self.backlog.is_empty() && self.registry.record(self.backlog.clone()).await.is_err() {
            tracing::error!(
                entries = self.backlog.len(),
                "rows of the audit log are only in this log: the disk is full"
            );
        }
    }

    async fn write(&mut self, group: Vec<(AuditEntry, Reply)>) {
        let (entries, replies): (Vec<AuditEntry>, Vec<Reply>) = group.into_iter().unzip();
        // In the order in which they came.
        let mut all = std::mem::take(&mut self.backlog);
        all.extend(entries.iter().cloned());
        let outcome = match self.registry.record(all.clone()).await {
            Err(HistoryError::Full) if all.len() <= BACKLOG => {
                for AuditEntry { by, action, detail, rows } in &entries {
                    let (actor, address) = (&by.name, &by.address);
                    tracing::warn!(actor, address, action, detail, rows, "no room for the audit log; kept in memory");
                }
                self.backlog = all;
                Ok(())
            }
            Err(error) => {
                all.truncate(all.len() - entries.len());
                self.backlog = all;
                tracing::error!(%error, entries = entries.len(), "questions could not be recorded and are not answered");
                Err(error)
            }
            Ok(()) => Ok(()),
        };
        for reply in replies {
            // Whoever asked may be gone; the row is there all the same.
            drop(reply.send(outcome.clone()));
        }
    }
}
