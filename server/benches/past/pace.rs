//! Batches as fast as they are stored, or so many rows a second.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{batch::Batch, host::HostId};
use fleetsock_server::history::{Applied, History, sqlite::SqliteHistory};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    AT_ONCE,
    fleet::{Report, Reports},
    load::batch,
};

/// Rows a second of a fleet that is observed.
pub(crate) const RATE: f64 = 20_000.0;

/// The next batches of about so many sessions, for as many tasks as report at once.
pub(crate) fn make_ready(reports: &mut Reports, hosts: &[HostId], sessions: u64) -> Vec<Vec<(HostId, Batch)>> {
    let mut ready: Vec<Vec<(HostId, Batch)>> = vec![Vec::new(); AT_ONCE];
    let mut made = 0;
    while made < sessions {
        let Some(Report { host, seq, sessions: some }) = reports.next() else { break };
        made += some.len() as u64;
        ready[host % AT_ONCE].push((hosts[host], batch(seq, some)));
    }
    ready.retain(|batches| !batches.is_empty());
    ready
}

/// Stores batches that are ready; how long that took.
pub(crate) async fn store(history: &Arc<SqliteHistory>, ready: Vec<Vec<(HostId, Batch)>>) -> Duration {
    let begun = Instant::now();
    let mut reporting = JoinSet::new();
    for batches in ready {
        let history = Arc::clone(history);
        reporting.spawn(async move {
            for (host, batch) in batches {
                assert_eq!(history.apply(host, batch).await.unwrap(), Applied::Committed);
            }
        });
    }
    reporting.join_all().await;
    begun.elapsed()
}

/// A batch that was acknowledged.
pub(crate) struct Acknowledged {
    /// When it was due, and milliseconds from then on until it was.
    pub(crate) due: Instant,
    pub(crate) ms: f64,
    pub(crate) rows: u64,
}

/// Reports at a steady rate for as long as it is wanted.
pub(crate) async fn steadily(
    history: &Arc<SqliteHistory>,
    hosts: &[HostId],
    reports: &mut Reports,
    wanted: impl Fn(Duration) -> bool,
) -> Vec<Acknowledged> {
    let mut tasks = JoinSet::new();
    let ways: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (way, mut due) = mpsc::unbounded_channel::<(HostId, Batch, Instant)>();
            let history = Arc::clone(history);
            tasks.spawn(async move {
                let mut all = Vec::new();
                while let Some((host, batch, due)) = due.recv().await {
                    let rows = batch.changes.len() as u64;
                    assert_eq!(history.apply(host, batch).await.unwrap(), Applied::Committed);
                    all.push(Acknowledged { due, ms: due.elapsed().as_secs_f64() * 1000.0, rows });
                }
                all
            });
            way
        })
        .collect();
    let (begun, mut rows) = (Instant::now(), 0);
    while wanted(begun.elapsed()) {
        let Some(Report { host, seq, sessions }) = reports.next() else { break };
        rows += sessions.len();
        let batch = batch(seq, sessions);
        let at = begun + Duration::from_secs_f64(rows as f64 / RATE);
        tokio::time::sleep_until(at.into()).await;
        // The timer is some part of a millisecond late, which is not the history's.
        ways[host % AT_ONCE].send((hosts[host], batch, at.max(Instant::now()))).unwrap();
    }
    drop(ways);
    tasks.join_all().await.into_iter().flatten().collect()
}
