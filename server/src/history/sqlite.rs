//! The history in SQLite: one writer, readers that never wait for it, and a folder of files.
//!
//! `main.db` holds what is small: hosts, certificates, listeners, gaps. A `day-<id>.db` holds what there is much of:
//! sessions, open and closed. Each keeps a cursor of every host, in the transaction of the rows that it counts. A batch is
//! first applied to the one and then to the other; after a crash between the two it comes again, and the first leaves it.
//! A file that is complete becomes a `day-<id>.sealed`.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use fleetsock_proto::{
    answer::{AnswerMeta, Gap},
    batch::Batch,
    change::ChangeRecord,
    host::{Host, HostId, HostSelector},
    listener::Listener,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    session::Session,
    stream::{BatchNumber, GapReport},
    summary::Sum,
    time::Timestamp,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use self::{
    ballast::Ballast,
    database::{Database, Files},
    questions::{Readers, changes, coverage, ports, sessions, summary},
    roster::Roster,
    sealed::Sealer,
    work::{Reply, Work},
    writer::Writer,
};
use super::{
    Applied, Bounds, Contact, CopiedFile, CopyOrder, Hearer, History, HistoryError, Presence, Rows, Vitals,
    adoption::Lost,
};
use crate::metrics::HistoryMeters;

mod ascending;
mod ballast;
mod by_peer;
mod coding;
mod copy;
mod courtesy;
mod cubes;
mod database;
mod in_use;
mod kinds;
mod latest;
mod leaving;
mod long;
mod numbered;
mod parts;
mod postings;
mod questions;
mod registry;
mod restored;
mod roster;
mod schema;
mod sealed;
mod stored;
mod sums;
mod vitals;
mod work;
mod writer;

pub use self::{
    ballast::Reserve,
    copy::verify,
    database::{Locked, OpenError},
    parts::Keeping,
    restored::{Carried, Unsure, note_restore, unsure},
    sealed::Sealing,
};

/// Work that waits for the writer; when it is full, whoever brings more waits.
const QUEUE: usize = 256;
/// Questions answered at once, besides those about certificates.
const QUESTIONS: usize = 4;
/// Questions about certificates answered at once.
const STANDINGS: usize = 2;

/// How a history is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// The age at which a silent host counts as stale.
    pub stale_after: Duration,
    /// Bounds on every question.
    pub bounds: Bounds,
    /// How sessions are spread over files, and how long they are kept.
    pub keeping: Keeping,
    /// When files that are complete get their sealed form.
    pub sealing: Sealing,
    /// The time, for what is done once a day.
    pub clock: fn() -> Timestamp,
    /// Cancelled when the disk failed in a way that leaves unknown what is stored: the process must not go on.
    pub failure: CancellationToken,
    /// Room that is kept for the end; absent when nothing is.
    pub reserve: Option<Reserve>,
    /// What is counted.
    pub meters: HistoryMeters,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            stale_after: Duration::from_secs(90),
            bounds: Bounds::default(),
            keeping: Keeping::default(),
            sealing: Sealing::default(),
            clock: Timestamp::now,
            failure: CancellationToken::new(),
            reserve: None,
            meters: HistoryMeters::default(),
        }
    }
}

/// The history in SQLite. See the module.
pub struct SqliteHistory {
    roster: Arc<Roster>,
    questions: Readers,
    standings: Readers,
    options: Options,
    files: Files,
    /// What is not in this history because it was restored, if certificates are taken up from it.
    lost: Option<Lost>,
    sealer: Mutex<Option<Sealer>>,
    work: Mutex<Option<mpsc::Sender<Work>>>,
    writer: Mutex<Option<JoinHandle<Result<(), HistoryError>>>>,
}

impl std::fmt::Debug for SqliteHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteHistory").field("options", &self.options).finish_non_exhaustive()
    }
}

impl SqliteHistory {
    /// Opens the history in a folder, which is made if it is not there. Nobody else can open it meanwhile.
    pub fn open(folder: &Path, options: Options) -> Result<SqliteHistory, OpenError> {
        let mut ballast = Ballast::of(folder, options.reserve);
        let database = Database::open(folder, options.keeping, (options.clock)())?;
        let roster =
            Arc::new(Roster::load(&database.main, &database.day, options.stale_after).map_err(|e| database.failed(e))?);
        let lost = restored::lost(&database.main).map_err(|error| database.failed(error))?;
        let files = database.files();
        let (work, orders) = mpsc::channel(QUEUE);
        let writer = {
            ballast.put();
            Writer::new(database, Arc::clone(&roster), ballast, options.clone())
        };
        let thread = std::thread::Builder::new()
            .name("history-writer".to_owned())
            .spawn(move || writer.run(orders))
            .map_err(OpenError::Thread)?;
        let sealer = Sealer::start(files.clone(), work.downgrade(), &options).map_err(OpenError::Thread)?;
        Ok(SqliteHistory {
            roster,
            questions: Readers::new(files.clone(), QUESTIONS),
            standings: Readers::new(files.clone(), STANDINGS),
            files,
            lost,
            options,
            sealer: Mutex::new(Some(sealer)),
            work: Mutex::new(Some(work)),
            writer: Mutex::new(Some(thread)),
        })
    }

    /// Takes no more work, finishes what there is, and lets go of the files. An error says that the writer failed.
    pub async fn close(&self) -> Result<(), HistoryError> {
        let sealer = self.sealer.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(writer) = self.dismiss() else { return Ok(()) };
        let join_both = move || {
            // It may be waiting for the writer, which goes on for as long as it does.
            drop(sealer);
            join(writer)
        };
        tokio::task::spawn_blocking(join_both).await.map_err(|error| HistoryError::Engine(error.to_string()))?
    }

    /// Takes no more work; the writer, unless that was done before.
    fn dismiss(&self) -> Option<JoinHandle<Result<(), HistoryError>>> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn sender(&self) -> Result<mpsc::Sender<Work>, HistoryError> {
        let work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        work.as_ref().cloned().ok_or(HistoryError::Closed)
    }

    /// Hands work to the writer and waits until it is durable.
    async fn order<T>(&self, work: impl FnOnce(Reply<T>) -> Work) -> Result<T, HistoryError> {
        let (reply, answer) = oneshot::channel();
        self.sender()?.send(work(reply)).await.map_err(|_| HistoryError::Closed)?;
        answer.await.map_err(|_| HistoryError::Closed)?
    }
}

fn join(writer: JoinHandle<Result<(), HistoryError>>) -> Result<(), HistoryError> {
    writer.join().unwrap_or_else(|_| Err(HistoryError::Engine("the writer panicked".to_owned())))
}

impl Drop for SqliteHistory {
    fn drop(&mut self) {
        self.sealer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Err(error)) = self.dismiss().map(join) {
            tracing::error!(%error, "the history did not close in order");
        }
    }
}

#[async_trait]
impl History for SqliteHistory {
    async fn apply(&self, host: HostId, batch: Batch) -> Result<Applied, HistoryError> {
        self.order(|reply| Work::Batch { host, batch: Box::new(batch), reply }).await
    }

    async fn record_gap(&self, host: HostId, gap: GapReport) -> Result<(), HistoryError> {
        self.order(|reply| Work::Gap { host, gap, reply }).await
    }

    async fn last_batch(&self, host: HostId) -> Result<BatchNumber, HistoryError> {
        self.order(|reply| Work::LastBatch { host, reply }).await
    }

    async fn record_hello(&self, host: HostId, hello: Contact) -> Result<(), HistoryError> {
        self.order(|reply| Work::Hello { host, contact: Box::new(hello), reply }).await
    }

    fn record_presence(&self, host: HostId, presence: Presence) {
        if !self.roster.note_presence(host, presence) {
            return;
        }
        // A full queue is no loss: the writer also looks for signs of life after every group of batches.
        let sent = self.sender().map(|work| work.try_send(Work::Presence));
        if !matches!(sent, Ok(Ok(()))) {
            tracing::debug!("signs of life will be written later");
        }
    }

    async fn list_hosts(&self, hosts: HostSelector, now: Timestamp) -> Result<(Vec<Host>, AnswerMeta), HistoryError> {
        let selection = self.roster.select(&hosts, now)?;
        let bounds = self.options.bounds;
        let entries = self.roster.entries(&selection);
        self.questions
            .ask(bounds.time, move |reader| Ok((coverage::list_hosts(reader, &entries)?, selection.meta(now))))
            .await
    }

    async fn list_ports(
        &self,
        question: PortQuestion,
        now: Timestamp,
        rows: Rows<Listener>,
    ) -> Result<AnswerMeta, HistoryError> {
        let selection = self.roster.select(&question.filter.hosts, now)?;
        let bounds = self.options.bounds;
        self.questions
            .stream(bounds, question.limit, rows, move |reader, outlet| {
                ports::list(reader, &selection, &question, now, outlet)
            })
            .await
    }

    async fn list_sessions(
        &self,
        question: SessionQuestion,
        now: Timestamp,
        rows: Rows<Session>,
    ) -> Result<AnswerMeta, HistoryError> {
        let selection = self.roster.select(&question.filter.hosts, now)?;
        let places = self.roster.places();
        let bounds = self.options.bounds;
        self.questions
            .stream(bounds, question.limit, rows, move |reader, outlet| {
                sessions::list(reader, &selection, &places, &question, now, outlet)
            })
            .await
    }

    async fn list_changes(
        &self,
        question: ChangeQuestion,
        now: Timestamp,
        rows: Rows<ChangeRecord>,
    ) -> Result<AnswerMeta, HistoryError> {
        let selection = self.roster.select(&question.filter.hosts, now)?;
        let places = self.roster.places();
        let bounds = self.options.bounds;
        self.questions
            .stream(bounds, question.limit, rows, move |reader, outlet| {
                changes::list(reader, &selection, &places, &question, now, outlet)
            })
            .await
    }

    async fn summarize(
        &self,
        question: SummaryQuestion,
        now: Timestamp,
        rows: Rows<Sum>,
    ) -> Result<AnswerMeta, HistoryError> {
        let selection = self.roster.select(&question.sockets.filter.hosts, now)?;
        let places = self.roster.places();
        let bounds = self.options.bounds;
        self.questions
            .stream(bounds, question.limit, rows, move |reader, outlet| {
                summary::summarize(reader, &selection, &places, (&question, bounds.group_bytes), now, outlet)
            })
            .await
    }

    async fn list_gaps(
        &self,
        question: CoverageQuestion,
        now: Timestamp,
    ) -> Result<(Vec<Gap>, AnswerMeta), HistoryError> {
        let selection = self.roster.select(&question.hosts, now)?;
        let bounds = self.options.bounds;
        self.questions
            .ask(bounds.time, move |reader| coverage::list_gaps(reader, &selection, &question, now, bounds))
            .await
    }

    fn meters(&self) -> &HistoryMeters {
        &self.options.meters
    }

    async fn vitals(&self, now: Timestamp) -> Result<Vitals, HistoryError> {
        self.read_vitals(now).await
    }

    async fn probe(&self) -> Result<(), HistoryError> {
        self.order(|reply| Work::Main(Box::new(move |_, _| work::answer(reply, Ok(()))))).await
    }

    async fn copy(&self, order: CopyOrder, hearer: Hearer) -> Result<Vec<CopiedFile>, HistoryError> {
        self.copy_files(order, hearer).await
    }
}
