//! What the server keeps: the history of every socket, and who may speak to it.
//!
//! [`History`] and [`Registry`] are the operations of the domain. SQLite stands behind them; nothing outside
//! [`sqlite`] knows that. Another engine implements the same two traits and passes the same conformance tests.

use std::{path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use fleetsock_proto::{
    answer::{AnswerMeta, Gap, GapReason},
    backup::BackupProgress,
    batch::Batch,
    change::ChangeRecord,
    digest::Difference,
    host::{Host, HostFacts, HostId, HostSelector, HostState},
    listener::Listener,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    session::Session,
    stream::{AgentCost, BatchNumber, GapReport},
    summary::Sum,
    tcp::TcpCounts,
    time::Timestamp,
};
use tokio::sync::mpsc;

use self::proof::Wish;
pub use self::{
    registry::{
        AUDIT_ROWS_LIMIT, Actor, AuditEntry, Claim, Issue, IssuedCertificate, Labels, OperatorRenewal, REDEEM_AGAIN,
        Registry, Serial, Standing, Subject, labels_of,
    },
    skew::{SKEW_TOLERANCE_US, Skew},
};
use crate::metrics::HistoryMeters;

pub mod adoption;
pub mod cursor;
mod hashing;
pub mod matching;
pub mod pairing;
pub mod proof;
mod registry;
mod skew;
pub mod sqlite;
pub mod summing;

/// Where the rows of an answer go, in chunks. A reader that does not take them ends the question.
pub type Rows<T> = mpsc::Sender<Vec<T>>;

/// Rows per chunk of an answer, at most.
pub const CHUNK_ROWS: usize = 128;

/// Bounds on every question.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most rows of an answer, whatever the question says.
    pub rows: u32,
    /// Longest time that a question may take, its reader's slowness included.
    pub time: Duration,
    /// Bytes that the groups of a summary may take while it is made.
    pub group_bytes: usize,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { rows: 1_000_000, time: Duration::from_secs(30), group_bytes: summing::BYTES_LIMIT }
    }
}

/// What came of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    /// It is committed and durable, now or since an earlier delivery.
    Committed,
    /// It is committed and durable, and its digest shows that what is open here is not what the agent has.
    Differs {
        /// What is not equal.
        difference: Difference,
        /// Whether a snapshot is to be asked for.
        wish: Wish,
    },
    /// Batches before it are missing; this is the one that is expected. Nothing was stored.
    Hole {
        /// The number that must come next.
        expected: BatchNumber,
    },
}

/// Observations of the fleet, and questions about them.
#[async_trait]
pub trait History: Send + Sync + 'static {
    /// Stores a batch whole, with its number, or not at all; returns when it is durable.
    ///
    /// A number that is already stored is [`Applied::Committed`] without effect. A first batch of a higher epoch must
    /// be the beginning of a snapshot with seq 1; the time since the last walk that was told of becomes a gap
    /// ([`BETWEEN_EPOCHS`]). What a snapshot does not name closes as lost. A digest is held against the open rows as they are
    /// after the batch; when they are not those of the agent, the time since they last were is a gap
    /// ([`GapReason::TableDiffered`]).
    async fn apply(&self, host: HostId, batch: Batch) -> Result<Applied, HistoryError>;

    /// Stores a gap that the agent told of, and moves the cursor over the numbers that will never come. When these begin a
    /// numbering, the time before it since the last walk that was told of is a gap too ([`BETWEEN_EPOCHS`]).
    async fn record_gap(&self, host: HostId, gap: GapReport) -> Result<(), HistoryError>;

    /// The last batch stored for a host; zeros for a new one.
    async fn last_batch(&self, host: HostId) -> Result<BatchNumber, HistoryError>;

    /// A host began a stream: what it says of itself, and the offset of its clock.
    async fn record_hello(&self, host: HostId, hello: Contact) -> Result<(), HistoryError>;

    /// A host said something; kept in memory at once and on disk within seconds.
    fn record_presence(&self, host: HostId, presence: Presence);

    /// The hosts, by name.
    async fn list_hosts(&self, hosts: HostSelector, now: Timestamp) -> Result<(Vec<Host>, AnswerMeta), HistoryError>;

    /// Listeners by host name, protocol, port, address.
    async fn list_ports(
        &self,
        question: PortQuestion,
        now: Timestamp,
        rows: Rows<Listener>,
    ) -> Result<AnswerMeta, HistoryError>;

    /// Sessions, newest first: open ones by opening time, then closed ones by closing time.
    async fn list_sessions(
        &self,
        question: SessionQuestion,
        now: Timestamp,
        rows: Rows<Session>,
    ) -> Result<AnswerMeta, HistoryError>;

    /// What opened, closed or changed hands, newest first.
    async fn list_changes(
        &self,
        question: ChangeQuestion,
        now: Timestamp,
        rows: Rows<ChangeRecord>,
    ) -> Result<AnswerMeta, HistoryError>;

    /// Listeners, sessions and bytes in sum; the groups with most sessions first, or the latest hours.
    async fn summarize(
        &self,
        question: SummaryQuestion,
        now: Timestamp,
        rows: Rows<Sum>,
    ) -> Result<AnswerMeta, HistoryError>;

    /// Gaps: those that go on, what was lost, the newest first, what is not kept any more, and what was before a host was observed.
    async fn list_gaps(
        &self,
        question: CoverageQuestion,
        now: Timestamp,
    ) -> Result<(Vec<Gap>, AnswerMeta), HistoryError>;

    /// What it counts.
    fn meters(&self) -> &HistoryMeters;

    /// How it is now, in numbers.
    async fn vitals(&self, now: Timestamp) -> Result<Vitals, HistoryError>;

    /// Returns when the writer has done what waited for it: it works.
    async fn probe(&self) -> Result<(), HistoryError>;

    /// Copies what is kept, as it is at one moment, into an empty folder of ours, and checks the copy. The order is in the
    /// audit log of that moment. Ends with [`HistoryError::Abandoned`] when nobody hears any more how far it is.
    async fn copy(&self, order: CopyOrder, hearer: Hearer) -> Result<Vec<CopiedFile>, HistoryError>;
}

/// How a history is, in numbers that name nobody.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vitals {
    /// How many hosts are in each state.
    pub hosts: Vec<(HostState, u64)>,
    /// What the agents said of themselves.
    pub agents: AgentSums,
    /// Work that waits for the writer, and how much may.
    pub queue: (usize, usize),
    /// How many files there are of each kind, and their bytes.
    pub files: Vec<(&'static str, u64, u64)>,
    /// Bytes that are free, and all of them, of the file system.
    pub disk: Option<(u64, u64)>,
    /// When the oldest file of sessions began.
    pub oldest: Option<Timestamp>,
    /// When the one began that is written to.
    pub newest: Option<Timestamp>,
}

/// What agents say of themselves, in sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentSums {
    /// Records that they know they lost.
    pub losses: u64,
    /// Memory, bytes.
    pub rss_bytes: u64,
    /// CPU, thousandths of a percent of one core.
    pub cpu_millipercent: u64,
    /// Hosts whose clock is corrected.
    pub clocks_off: u64,
}

/// What is to be copied where.
#[derive(Debug, Clone)]
pub struct CopyOrder {
    /// An empty folder.
    pub folder: PathBuf,
    /// Who ordered it.
    pub by: Actor,
    /// What the audit log says about it.
    pub detail: String,
}

/// Whether somebody still wants what is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Go on.
    BySomebody,
    /// Everyone left.
    ByNobody,
}

/// Hears how far a copy is. Called often, and must return at once.
pub type Hearer = Arc<dyn Fn(BackupProgress) -> Heard + Send + Sync>;

/// A file of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopiedFile {
    /// Its name in the folder.
    pub name: String,
    /// The number of its schema.
    pub schema: i32,
}

/// What a host said when it began a stream.
#[derive(Debug, Clone)]
pub struct Contact {
    /// What it says of itself.
    pub facts: HostFacts,
    /// When it said so, by the server's clock.
    pub at: Timestamp,
    /// The agent's clock less the server's, microseconds.
    pub clock_offset_us: i64,
}

/// A sign of life.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// By the server's clock.
    pub at: Timestamp,
    /// The last walk, by the agent's clock, when it said so.
    pub observed_until: Option<Timestamp>,
    /// What the agent costs, when it said so.
    pub cost: Option<AgentCost>,
    /// TCP sockets that are neither listeners nor sessions, when it said so.
    pub tcp_counts: Option<TcpCounts>,
}

/// Why the history did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HistoryError {
    /// The question or order is wrong; the text says how, for the person who asked.
    #[error("{0}")]
    Invalid(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A token that is unknown, wrong, expired, used up or revoked.
    #[error("the token is not valid")]
    TokenRefused,
    /// The host was revoked.
    #[error("revoked")]
    Revoked,
    /// The host waits for approval.
    #[error("`{0}` waits for approval; nothing of it is stored before")]
    Waits(String),
    /// The question took longer than it may.
    #[error("the question took longer than {} s; ask for fewer hosts, a shorter time or fewer rows", .0.as_secs())]
    TooSlow(Duration),
    /// The question needs more memory than it may.
    #[error("{0}")]
    TooMuch(String),
    /// Whoever asked went away.
    #[error("the answer is not wanted any more")]
    Abandoned,
    /// No room: nothing was stored, questions are still answered.
    #[error("the disk of the history is full; nothing was stored")]
    Full,
    /// The history is shutting down.
    #[error("the history is closed")]
    Closed,
    /// The engine failed.
    #[error("{0}")]
    Engine(String),
}

/// Why the time between two numberings of a host was not observed: each begins with a start of the agent.
pub const BETWEEN_EPOCHS: GapReason = GapReason::AgentDown;
