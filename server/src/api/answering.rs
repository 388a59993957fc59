//! The way of every answer to an operator: recorded in the audit log before its first row leaves, counted, and ended at
//! once when the operator is revoked.
//!
//! A short answer waits until it is whole and is one row of the log, with how many rows it had. A long one is two: one
//! before its first row leaves, and one when it is over, however it ended.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use fleetsock_proto::{answer::AnswerMeta, time::Timestamp};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::{sync::WaitForCancellationFutureOwned, task::TaskTracker};
use tonic::{Response, Status};

use super::{Clock, status, wording::cut};
use crate::{
    history::{Actor, AuditEntry, HistoryError, Registry, Rows, Standing},
    ledger::Ledger,
    live::{Answers, LiveAnswer},
    peer::{Caller, Peer},
};

/// Chunks that wait for a slow reader; the question itself then waits.
const CHUNKS_AHEAD: usize = 4;
/// Chunks with which an answer is a long one.
const LONG: usize = 8;

/// How long a reader who does not read may keep the last word from being sent.
const LAST_WORD: Duration = Duration::from_secs(1);

/// A stream of messages to an operator.
pub type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Makes a message of rows, or of what an answer covers.
pub(super) type Message<T, M> = fn(Vec<T>, Option<AnswerMeta>) -> M;

/// Gives answers.
#[derive(Clone)]
pub struct Answering {
    /// Where each question is recorded.
    pub ledger: Arc<Ledger>,
    /// The answers that are on their way.
    pub answers: Arc<Answers>,
    /// Knows who is revoked.
    pub registry: Arc<dyn Registry>,
    /// Where answers run, to be waited for when the server stops.
    pub tasks: TaskTracker,
    /// Longest time that an answer may take, its reader's slowness included.
    pub patience: Duration,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Answering")
    }
}

/// What was asked, for the audit log.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) action: &'static str,
    pub(super) detail: String,
}

impl Answering {
    /// The time.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Records a question whose answer is known, before that is given.
    pub(super) async fn record(
        &self,
        peer: &Peer,
        action: &'static str,
        detail: String,
        rows: usize,
    ) -> Result<(), Status> {
        let entry = AuditEntry { by: peer.actor((self.clock)()), action, detail, rows: Some(rows as u64) };
        self.ledger.record(entry).await.map_err(not_recorded)
    }

    /// Runs a question whose rows arrive while it runs.
    pub(super) async fn answer<T, M, F>(
        &self,
        peer: &Peer,
        asked: Asked,
        question: impl FnOnce(Rows<T>) -> F,
        message: Message<T, M>,
    ) -> Result<Response<Messages<M>>, Status>
    where
        T: Send + 'static,
        M: Send + 'static,
        F: Future<Output = Result<AnswerMeta, HistoryError>> + Send + 'static,
    {
        let live = self.begin(peer).await?;
        let (rows, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let (out, messages) = mpsc::channel(CHUNKS_AHEAD);
        let (by, ledger) = (peer.actor((self.clock)()), Arc::clone(&self.ledger));
        let patience = (self.patience, Instant::now() + self.patience);
        let answer = Answer { by, asked, ledger, patience, clock: self.clock, out, message, told: 0, begun: false };
        let revoked = live.as_ref().map(|live| Box::pin(live.end_token().cancelled_owned()));
        self.tasks.spawn(answer.run(question(rows), chunks, live));
        Ok(Response::new(Box::pin(UntilRevoked { messages: ReceiverStream::new(messages), revoked, over: false })))
    }

    /// From here on a revocation ends the answer; one that came before, since the policy looked, is seen here.
    pub(super) async fn begin(&self, peer: &Peer) -> Result<Option<LiveAnswer>, Status> {
        let Caller::Operator { operator, serial } = &peer.caller else { return Ok(None) };
        let live = self.answers.begin(operator.name());
        let standing = self.registry.operator_standing(operator.clone(), serial.clone()).await.map_err(status::of)?;
        if standing == Standing::Good { Ok(Some(live)) } else { Err(Status::unauthenticated("revoked")) }
    }
}

fn not_recorded(error: HistoryError) -> Status {
    tracing::error!(%error, "a question was not answered, because it could not be recorded");
    Status::unavailable("the question could not be written into the audit log, so it is not answered")
}

/// Messages that end at once when their reader is revoked, also those that wait for him to read on.
struct UntilRevoked<M> {
    messages: ReceiverStream<Result<M, Status>>,
    revoked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    over: bool,
}

impl<M> Stream for UntilRevoked<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(revoked) = &mut self.revoked
            && revoked.as_mut().poll(cx).is_ready()
        {
            self.over = true;
            return Poll::Ready(Some(Err(Status::unauthenticated("revoked"))));
        }
        Pin::new(&mut self.messages).poll_next(cx)
    }
}

/// One answer on its way.
struct Answer<T, M> {
    by: Actor,
    asked: Asked,
    ledger: Arc<Ledger>,
    /// How long it may take, and until when that is.
    patience: (Duration, Instant),
    clock: Clock,
    out: mpsc::Sender<Result<M, Status>>,
    message: Message<T, M>,
    /// Rows that left.
    told: u64,
    /// There is a row in the log already, and another will say how it ended.
    begun: bool,
}

/// How an answer ended.
enum Ended {
    Whole(AnswerMeta),
    Failed(HistoryError),
    /// Nobody reads it any more.
    Unread,
    Revoked,
    /// It could not be recorded.
    Unrecorded(Status),
}

impl<T, M> Answer<T, M> {
    async fn run(
        mut self,
        question: impl Future<Output = Result<AnswerMeta, HistoryError>>,
        chunks: mpsc::Receiver<Vec<T>>,
        live: Option<LiveAnswer>,
    ) {
        let revoked = async {
            match &live {
                Some(live) => live.ended().await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            biased;
            () = revoked => Ended::Revoked,
            ended = self.deliver(question, chunks) => ended,
        };
        // [`UntilRevoked`] may have hung up before this was told.
        let ended = match ended {
            Ended::Unread if live.as_ref().is_some_and(LiveAnswer::has_ended) => Ended::Revoked,
            ended => ended,
        };
        let last = match self.record_end(&ended).await {
            Ok(()) => self.last_word(ended),
            Err(error) => Some(Err(not_recorded(error))),
        };
        if let Some(last) = last
            && !matches!(timeout(LAST_WORD, self.out.send(last)).await, Ok(Ok(())))
        {
            tracing::debug!("an answer was not waited for");
        }
    }

    /// Sends the rows, after the log has the question.
    async fn deliver(
        &mut self,
        question: impl Future<Output = Result<AnswerMeta, HistoryError>>,
        mut chunks: mpsc::Receiver<Vec<T>>,
    ) -> Ended {
        tokio::pin!(question);
        let (mut held, mut outcome) = (Vec::new(), None);
        while held.len() < LONG && outcome.is_none() {
            tokio::select! {
                biased;
                () = self.out.closed() => return Ended::Unread,
                Some(chunk) = chunks.recv() => held.push(chunk),
                result = &mut question => outcome = Some(result),
            }
        }
        // What was sent before the end is still on its way.
        while outcome.is_some()
            && let Some(chunk) = chunks.recv().await
        {
            held.push(chunk);
        }
        let (action, rows) = match &outcome {
            Some(_) => (self.asked.action, Some(held.iter().map(|chunk| chunk.len() as u64).sum())),
            None => (self.asked.action, None),
        };
        let whole_or_begun = !matches!(outcome, Some(Err(_)));
        if whole_or_begun {
            let entry = AuditEntry { by: self.by.clone(), action, detail: self.asked.detail.clone(), rows };
            if let Err(error) = self.ledger.record(entry).await {
                return Ended::Unrecorded(not_recorded(error));
            }
            self.begun = outcome.is_none();
        }
        for chunk in held {
            if let Err(ended) = self.send(chunk).await {
                return ended;
            }
        }
        let result = match outcome {
            Some(result) => Ok(result),
            None => self.forward(question, chunks).await,
        };
        match result {
            Ok(result) => result.map_or_else(Ended::Failed, Ended::Whole),
            Err(ended) => ended,
        }
    }

    /// Sends the rows of a long answer on as they come; what the question gave at its end.
    async fn forward(
        &mut self,
        mut question: Pin<&mut impl Future<Output = Result<AnswerMeta, HistoryError>>>,
        mut chunks: mpsc::Receiver<Vec<T>>,
    ) -> Result<Result<AnswerMeta, HistoryError>, Ended> {
        let result = loop {
            tokio::select! {
                biased;
                Some(chunk) = chunks.recv() => self.send(chunk).await?,
                result = &mut question => break result,
            }
        };
        while let Some(chunk) = chunks.recv().await {
            self.send(chunk).await?;
        }
        Ok(result)
    }

    async fn send(&mut self, chunk: Vec<T>) -> Result<(), Ended> {
        let (patience, until) = self.patience;
        let rows = chunk.len() as u64;
        match timeout_at(until, self.out.send(Ok((self.message)(chunk, None)))).await {
            Ok(Ok(())) => {
                self.told += rows;
                Ok(())
            }
            Ok(Err(_)) => Err(Ended::Unread),
            Err(_) => Err(Ended::Failed(HistoryError::TooSlow(patience))),
        }
    }

    /// Writes down how it ended, unless the log has that already.
    async fn record_end(&self, ended: &Ended) -> Result<(), HistoryError> {
        let end = match ended {
            Ended::Whole(_) | Ended::Unrecorded(_) if !self.begun => return Ok(()),
            Ended::Whole(_) => "end of a long answer".to_owned(),
            Ended::Unrecorded(_) => "not recorded".to_owned(),
            Ended::Failed(error) => format!("failed: {error}"),
            Ended::Unread => "given up by the asker".to_owned(),
            Ended::Revoked => "ended: the operator was revoked".to_owned(),
        };
        let detail = cut(format!("{} ({end})", self.asked.detail).trim_start().to_owned());
        let by = Actor { at: (self.clock)(), ..self.by.clone() };
        self.ledger.record(AuditEntry { by, action: self.asked.action, detail, rows: Some(self.told) }).await
    }

    fn last_word(&self, ended: Ended) -> Option<Result<M, Status>> {
        match ended {
            Ended::Whole(meta) => Some(Ok((self.message)(Vec::new(), Some(meta)))),
            Ended::Failed(error) => Some(Err(status::of(error))),
            Ended::Unrecorded(status) => Some(Err(status)),
            // A revoked operator hears of it from [`UntilRevoked`].
            Ended::Unread | Ended::Revoked => None,
        }
    }
}
