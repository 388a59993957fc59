//! The answer to an order for a backup: how far it is, and last what was made.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleetsock_proto::{
    backup::{BackupMade, BackupProgress, BackupStep},
    wire,
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{
    answering::{Answering, Messages},
    status,
};
use crate::{
    backup::{BackupError, Backups, Wanted},
    history::{AuditEntry, Heard, Hearer, HistoryError},
    live::LiveAnswer,
};

/// Messages that wait for a slow reader; progress beyond them is not told.
const MESSAGES_AHEAD: usize = 16;
/// Between two messages about the same file.
const PROGRESS: Duration = Duration::from_millis(100);

type Message = Result<wire::BackupResponse, Status>;

/// Makes a backup while its answer is read. `live` ends with the operator's certificate.
pub(super) fn make(
    backups: Arc<Backups>,
    answering: &Answering,
    live: Option<LiveAnswer>,
    wanted: Wanted,
) -> Messages<wire::BackupResponse> {
    let (out, messages) = mpsc::channel(MESSAGES_AHEAD);
    let hearer = hearer(out.clone(), live);
    let registry = Arc::clone(&answering.registry);
    answering.tasks.spawn(async move {
        let order = wanted.clone();
        let made = tokio::task::spawn_blocking(move || backups.make(&order, &hearer)).await;
        let made = made.unwrap_or_else(|error| Err(HistoryError::Engine(error.to_string()).into()));
        let (action, detail) = match &made {
            Ok(made) => ("backup made", made.folder.clone()),
            Err(error) => ("backup failed", format!("{}: {error}", wanted.name)),
        };
        tracing::info!(detail, "{action}");
        let entry = AuditEntry { by: wanted.by, action, detail, rows: None };
        if let Err(error) = registry.record(vec![entry]).await {
            tracing::error!(%error, "the outcome of a backup was not recorded");
        }
        // Whoever left does not hear the outcome; it is in the audit log.
        drop(out.send(outcome(made)).await);
    });
    Box::pin(ReceiverStream::new(messages))
}

/// Tells of progress now and then, and whether anybody hears it.
fn hearer(out: mpsc::Sender<Message>, live: Option<LiveAnswer>) -> Hearer {
    let last = Mutex::new((String::new(), Instant::now()));
    let revoked = live.as_ref().map(LiveAnswer::end_token);
    Arc::new(move |progress: BackupProgress| {
        let _live = &live;
        if out.is_closed() || revoked.as_ref().is_some_and(|end| end.is_cancelled()) {
            return Heard::ByNobody;
        }
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if last.0 != progress.doing || now.duration_since(last.1) >= PROGRESS {
            *last = (progress.doing.clone(), now);
            // A reader who is slow misses a step, not the outcome.
            drop(out.try_send(Ok(BackupStep::Progress(progress).into())));
        }
        Heard::BySomebody
    })
}

fn outcome(made: Result<BackupMade, BackupError>) -> Message {
    match made {
        Ok(made) => Ok(BackupStep::Made(made).into()),
        Err(BackupError::History(error)) => Err(status::of(error)),
        Err(error @ BackupError::Exists(_)) => Err(Status::already_exists(error.to_string())),
        Err(error @ BackupError::Busy) => Err(Status::resource_exhausted(error.to_string())),
        Err(error @ (BackupError::File(_) | BackupError::Io { .. })) => Err(Status::internal(error.to_string())),
    }
}
