//! What the observer and the uplink share: the spool, how far was observed, and what was lost.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicI64, AtomicU64, Ordering},
};

use fleetsock_proto::{tcp::TcpCounts, time::Timestamp};
use tokio::{sync::Notify, task::JoinError};

use crate::{
    losses::{Loss, Losses},
    spool::Spool,
};

/// The observer puts in, the uplink takes out.
#[derive(Debug)]
pub struct Outbox {
    spool: Mutex<Spool>,
    /// When the last walk was done; 0 before the first.
    observed_until_us: AtomicI64,
    losses: Losses,
    /// TCP sockets that are not followed.
    tcp_counts: Mutex<Option<TcpCounts>>,
    appended: Notify,
    leaps: AtomicU64,
}

impl Outbox {
    /// Shares a spool.
    pub fn new(spool: Spool) -> Outbox {
        Outbox {
            spool: Mutex::new(spool),
            observed_until_us: AtomicI64::new(0),
            losses: Losses::default(),
            tcp_counts: Mutex::default(),
            appended: Notify::new(),
            leaps: AtomicU64::new(0),
        }
    }

    fn spool(&self) -> MutexGuard<'_, Spool> {
        // A thread that panicked left the file as the last transaction left it.
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with the spool on this thread, which may wait for the disk.
    pub fn with<T>(&self, work: impl FnOnce(&mut Spool) -> T) -> T {
        let mut spool = self.spool();
        let lost = spool.lost();
        let done = work(&mut spool);
        self.losses.add(Loss::Spool, spool.lost() - lost);
        done
    }

    /// Does something with the spool on a thread that may wait for the disk.
    pub async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Spool) -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        let outbox = Arc::clone(self);
        tokio::task::spawn_blocking(move || outbox.with(work)).await
    }

    /// A walk is done, and what it found is in the spool.
    pub fn observed(&self, until: Timestamp) {
        self.observed_until_us.store(until.as_micros(), Ordering::Release);
    }

    /// When the last walk was done; what it found was in the spool before this was known.
    pub fn observed_until(&self) -> Option<Timestamp> {
        Some(self.observed_until_us.load(Ordering::Acquire)).filter(|us| *us != 0).map(Timestamp::from_micros)
    }

    /// The host's clock was set, or may have been while the host slept.
    pub fn clock_leapt(&self) {
        self.leaps.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the host's clock was set since the start: the server measures anew how far it is off.
    pub fn clock_leaps(&self) -> u64 {
        self.leaps.load(Ordering::Relaxed)
    }

    fn counts(&self) -> MutexGuard<'_, Option<TcpCounts>> {
        // Numbers are whole whoever panicked.
        self.tcp_counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// TCP sockets that are not followed were counted.
    pub fn counted(&self, counts: TcpCounts) {
        *self.counts() = Some(counts);
    }

    /// Their numbers, once they were counted.
    pub fn tcp_counts(&self) -> Option<TcpCounts> {
        *self.counts()
    }

    /// Says that something was appended.
    pub fn notify(&self) {
        self.appended.notify_one();
    }

    /// Returns when something was appended since the last time.
    pub async fn appended(&self) {
        self.appended.notified().await;
    }

    /// What was lost.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }
}
