//! Whether the server can do its work, in words; and what is measured of it, for a scrape.

use std::{fs, sync::Arc, time::Duration};

use fleetsock_proto::time::Timestamp;
use prometheus_client::{encoding::text, registry::Registry as Metrics};
use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::{
    acceptor::Connections,
    api::Clock,
    authority::Authority,
    history::{History, HistoryError, Vitals},
    live::Live,
    metrics::{
        self, Meters,
        sampled::{self, Process, Sample},
    },
};

pub mod port;

/// How long the history may take to answer that it is there.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why the server does not do its work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unready {
    /// It was told to stop.
    Stopping,
    /// The writer of the history does not answer.
    Silent(Duration),
    /// The history failed.
    Failed(String),
    /// The disk takes nothing: questions are answered, nothing is stored, agents keep what they have.
    DiskFull,
    /// The certificate that callers are shown is over.
    Expired(Timestamp),
}

impl std::fmt::Display for Unready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Unready::Stopping => f.write_str("stopping: the server was told to stop"),
            Unready::Silent(patience) => {
                write!(f, "history: the writer did not answer within {} s", patience.as_secs())
            }
            Unready::Failed(why) => write!(f, "history: {why}"),
            Unready::DiskFull => f.write_str(
                "disk: no room: nothing is stored and agents keep what they observe; questions are answered",
            ),
            Unready::Expired(_) => f.write_str("certificate: the server's own is over: nobody can connect"),
        }
    }
}

/// What is known when it is asked whether the server is ready.
#[derive(Debug)]
struct Facts {
    is_stopping: bool,
    /// What came of asking the writer; absent when it did not answer.
    answered: Option<Result<(), HistoryError>>,
    is_full: bool,
    certificate_ends: Timestamp,
    now: Timestamp,
}

/// Every reason not to be ready; none when it is.
fn judge(facts: &Facts) -> Vec<Unready> {
    let mut reasons = Vec::new();
    if facts.is_stopping {
        reasons.push(Unready::Stopping);
    }
    match &facts.answered {
        None => reasons.push(Unready::Silent(PATIENCE)),
        Some(Err(HistoryError::Full)) if !facts.is_full => reasons.push(Unready::DiskFull),
        Some(Ok(()) | Err(HistoryError::Full)) => {}
        Some(Err(error)) => reasons.push(Unready::Failed(error.to_string())),
    }
    if facts.is_full {
        reasons.push(Unready::DiskFull);
    }
    if facts.certificate_ends <= facts.now {
        reasons.push(Unready::Expired(facts.certificate_ends));
    }
    reasons
}

/// Knows how the server is.
pub struct Health {
    authority: Arc<Authority>,
    history: Arc<dyn History>,
    live: Arc<Live>,
    connections: Connections,
    metrics: Metrics,
    stop: CancellationToken,
    clock: Clock,
    started_at: Timestamp,
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Health")
    }
}

/// What the health of a server is read from.
pub(crate) struct Sources {
    pub(crate) authority: Arc<Authority>,
    pub(crate) history: Arc<dyn History>,
    pub(crate) live: Arc<Live>,
    pub(crate) connections: Connections,
    pub(crate) stop: CancellationToken,
    pub(crate) clock: Clock,
}

impl Health {
    /// Of a server that has these meters.
    pub(crate) fn new(sources: Sources, meters: &Meters) -> Health {
        let Sources { authority, history, live, connections, stop, clock } = sources;
        let metrics = metrics::registry(meters, history.meters());
        Health { authority, history, live, connections, metrics, stop, clock, started_at: clock() }
    }

    /// Why the server does not do its work; nothing when it does.
    pub async fn unready(&self) -> Vec<Unready> {
        let answered = timeout(PATIENCE, self.history.probe()).await.ok();
        judge(&Facts {
            is_stopping: self.stop.is_cancelled(),
            answered,
            is_full: self.history.meters().is_full(),
            certificate_ends: self.authority.server_leaf().expires_at,
            now: (self.clock)(),
        })
    }

    /// Returns when the server is told to stop.
    pub async fn stopping(&self) {
        self.stop.cancelled().await;
    }

    /// What is measured, as OpenMetrics text.
    pub async fn exposition(&self) -> Result<String, HistoryError> {
        let vitals: Vitals = self.history.vitals((self.clock)()).await?;
        let sample = Sample {
            vitals,
            agents_connected: self.live.speaking(),
            connections: self.connections.count(),
            certificates: self.authority.ends(),
            unready: self.unready().await.len(),
            process: Process {
                cpu_seconds: Duration::try_from(clock_gettime(ClockId::ProcessCPUTime))
                    .unwrap_or_default()
                    .as_secs_f64(),
                resident_bytes: resident_bytes(),
                started_at: self.started_at,
            },
        };
        let mut text = String::with_capacity(16 * 1024);
        let encoded = text::encode_registry(&mut text, &self.metrics)
            .and_then(|()| sampled::encode(&sample, &mut text))
            .and_then(|()| text::encode_eof(&mut text));
        encoded.map_err(|error| HistoryError::Engine(error.to_string()))?;
        Ok(text)
    }
}

/// Resident memory, from the second field of /proc/self/statm (proc_pid_statm(5)); none where that may not be read.
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(page_size()).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_not_to_be_ready_is_told() {
        let (now, later) = (Timestamp::from_micros(10), Timestamp::from_micros(11));
        let ready =
            || Facts { is_stopping: false, answered: Some(Ok(())), is_full: false, certificate_ends: later, now };
        assert_eq!(judge(&ready()), []);
        for (facts, expected) in [
            (Facts { is_stopping: true, ..ready() }, vec![Unready::Stopping]),
            (Facts { answered: None, ..ready() }, vec![Unready::Silent(PATIENCE)]),
            (
                Facts { answered: Some(Err(HistoryError::Closed)), ..ready() },
                vec![Unready::Failed("the history is closed".to_owned())],
            ),
            (Facts { is_full: true, ..ready() }, vec![Unready::DiskFull]),
            (Facts { answered: Some(Err(HistoryError::Full)), is_full: true, ..ready() }, vec![Unready::DiskFull]),
            (
                Facts { is_stopping: true, certificate_ends: now, ..ready() },
                vec![Unready::Stopping, Unready::Expired(now)],
            ),
        ] {
            assert_eq!(judge(&facts), expected, "{facts:?}");
        }
    }
}
