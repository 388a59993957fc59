//! What the server keeps: the history of every socket, and who may speak to it.
//!
//! [`History`] and [`Registry`] are the operations of the domain. SQLite stands behind them; nothing outside
//! [`sqlite`] knows that. Another engine implements the same two traits and passes the same conformance tests.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use fleetsock_proto::{
    answer::{AnswerMeta, Gap, GapReason},
    audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    backup::BackupProgress,
    batch::Batch,
    change::ChangeRecord,
    digest::Difference,
    host::{Host, HostFacts, HostId, HostSelector, HostState, Warning},
    listener::Listener,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    root::Behind,
    session::Session,
    stream::{AgentCost, BatchNumber, GapReport},
    summary::Sum,
    tcp::TcpCounts,
    time::Timestamp,
    token::{Conditions, NewToken, Operator, OperatorCertificate, RevokedOperator, Token, TokenPurpose},
};
use tokio::sync::mpsc;

use self::{adoption::Shown, proof::Wish};
use crate::metrics::HistoryMeters;

pub mod adoption;
pub mod cursor;
pub mod matching;
pub mod pairing;
pub mod proof;
pub mod sqlite;
pub mod summing;

/// Where the rows of an answer go, in chunks. A reader that does not take them ends the question.
pub type Rows<T> = mpsc::Sender<Vec<T>>;

/// Rows per chunk of an answer, at most.
pub const CHUNK_ROWS: usize = 256;

/// Bounds on every question.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most rows of an answer, whatever the question says.
    pub rows: u32,
    /// Longest time that a question may take, its reader's slowness included.
    pub time: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds { rows: 1_000_000, time: Duration::from_secs(30) }
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

    /// Stores a gap that the agent told of, and moves the cursor over the numbers that will never come.
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

    /// Gaps, newest first.
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

/// A certificate's serial number, big-endian, as DER has it.
pub type Serial = Vec<u8>;

/// Who may speak to the server.
#[async_trait]
pub trait Registry: Send + Sync + 'static {
    /// Makes a token. The secret's hash is kept, the secret is not.
    async fn create_token(
        &self,
        token_id: String,
        secret_hash: [u8; 32],
        token: NewToken,
        by: Actor,
    ) -> Result<Token, HistoryError> {
        self.create_token_under(token_id, secret_hash, token, Conditions::default(), by).await
    }

    /// The same for a token that admits only under conditions.
    async fn create_token_under(
        &self,
        token_id: String,
        secret_hash: [u8; 32],
        token: NewToken,
        conditions: Conditions,
        by: Actor,
    ) -> Result<Token, HistoryError>;

    /// Every token that was not expired for longer than 30 days, newest first.
    async fn list_tokens(&self) -> Result<Vec<Token>, HistoryError>;

    /// Ends a token early.
    async fn revoke_token(&self, token_id: String, by: Actor) -> Result<(), HistoryError>;

    /// Uses a token once: checks it, lets `issue` make the certificate, and stores both in one transaction.
    ///
    /// The same token with the same key within [`REDEEM_AGAIN`] gets the first answer again, at no cost. Whatever is
    /// wrong with the token, the error is [`HistoryError::TokenRefused`].
    async fn redeem(&self, claim: Claim, issue: Issue) -> Result<IssuedCertificate, HistoryError>;

    /// Writes down an operator's certificate.
    async fn add_operator(
        &self,
        operator: Operator,
        certificate: IssuedCertificate,
        by: Actor,
    ) -> Result<(), HistoryError>;

    /// Writes down a host's next certificate; its first use retires the one before.
    async fn add_host_certificate(
        &self,
        host: HostId,
        certificate: IssuedCertificate,
        at: Timestamp,
    ) -> Result<(), HistoryError>;

    /// What a certificate of a host is worth; the first use of a pending one makes it current.
    async fn host_standing(&self, host: HostId, serial: Serial) -> Result<Standing, HistoryError>;

    /// What a certificate of an operator is worth.
    async fn operator_standing(&self, operator: Operator, serial: Serial) -> Result<Standing, HistoryError>;

    /// A certificate was shown that the history does not know, as [`Standing::Unknown`] said. After a restore it may be one
    /// that the lost part of the history made: then it is taken up, and told of ([`adoption`]).
    async fn adopt(&self, holder: Subject, shown: Shown, by: Actor) -> Result<Standing, HistoryError>;

    /// Writes down a host's next certificate in place of one that is over, which had this serial number. Refused with
    /// what that one is worth unless it was good.
    async fn renew_expired(
        &self,
        host: HostId,
        over: Serial,
        certificate: IssuedCertificate,
        by: Actor,
    ) -> Result<Standing, HistoryError>;

    /// Refuses a host from now on: nothing of it is stored after this. Named by id or by a name that only one host has.
    async fn revoke_host(&self, host: String, reason: String, by: Actor) -> Result<HostId, HistoryError>;

    /// A person looked at a host: it may speak if it waited for that, and has no warning any more.
    async fn approve_host(&self, host: String, by: Actor) -> Result<HostId, HistoryError>;

    /// What a host that waits for approval says of itself, so that a person can judge it.
    async fn introduce(&self, host: HostId, contact: Contact) -> Result<(), HistoryError>;

    /// A person should look at a host.
    async fn warn_host(&self, host: HostId, warning: Warning) -> Result<(), HistoryError>;

    /// The certificates of operators that are not over for longer than 30 days, by name.
    async fn list_operators(&self) -> Result<Vec<OperatorCertificate>, HistoryError>;

    /// Whose certificate in use was made before a moment, of those who could still come back with it: hosts whose
    /// certificate was not over by `over`, operators whose certificate is not over by `now` and who have no newer one.
    async fn made_before(&self, at: Timestamp, over: Timestamp, now: Timestamp) -> Result<Behind, HistoryError>;

    /// Writes down an operator's certificate in place of the one that he showed, which is good and was made before a
    /// moment; otherwise nothing is written.
    async fn renew_operator(&self, renewal: OperatorRenewal, by: Actor) -> Result<(), HistoryError>;

    /// Refuses every certificate and every unused token of an operator from now on.
    async fn revoke_operator(&self, name: String, reason: String, by: Actor) -> Result<RevokedOperator, HistoryError>;

    /// Writes entries into the audit log, in this order, all or none; durable when this returns.
    async fn record(&self, entries: Vec<AuditEntry>) -> Result<(), HistoryError>;

    /// Rows of the audit log, newest first.
    async fn list_audit(
        &self,
        question: AuditQuestion,
        now: Timestamp,
    ) -> Result<(Vec<AuditRow>, AnswerMeta), HistoryError>;

    /// Whether each row of the audit log follows from the one before, and the row of `mark` is the one it was.
    async fn verify_audit(&self, mark: Option<AuditMark>) -> Result<AuditVerdict, HistoryError>;
}

/// A certificate for an operator in place of the one that he showed.
#[derive(Debug, Clone)]
pub struct OperatorRenewal {
    /// Who.
    pub operator: Operator,
    /// Serial number of the certificate that he showed.
    pub shown: Serial,
    /// That one must have been made before this.
    pub made_before: Timestamp,
    /// The next one.
    pub certificate: IssuedCertificate,
}

/// Most rows of one answer about the audit log, whatever the question says.
pub const AUDIT_ROWS_LIMIT: u32 = 100_000;

/// Something for the audit log. Orders are written by what carries them out, in the transaction of their effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// Who, from where, when.
    pub by: Actor,
    /// What, in a few words.
    pub action: &'static str,
    /// The rest of it.
    pub detail: String,
    /// Rows that were answered; absent for orders, and for an answer that is still running.
    pub rows: Option<u64>,
}

/// How long a used token still answers the same key with the same certificate.
pub const REDEEM_AGAIN: Duration = Duration::from_secs(600);

/// Who did something, for the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// `operator/admin/alice`, `local` for the Unix socket, `token/<id>` for an enrolment.
    pub name: String,
    /// Where from; empty for the Unix socket.
    pub address: String,
    /// When.
    pub at: Timestamp,
}

/// An attempt to use a token.
#[derive(Debug, Clone)]
pub struct Claim {
    /// Public id of the token.
    pub token_id: String,
    /// SHA-256 of the secret that was shown.
    pub secret_hash: [u8; 32],
    /// SHA-256 of the public key that the certificate is for.
    pub key_hash: [u8; 32],
    /// What the host calls itself.
    pub host_name: String,
    /// Where the attempt came from.
    pub address: String,
    /// When.
    pub at: Timestamp,
}

/// Makes a certificate for a subject. Runs inside the transaction: it must be quick and must not call back.
pub type Issue = Box<dyn FnOnce(&Subject) -> Result<IssuedCertificate, String> + Send>;

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A host's agent.
    Host(HostId),
    /// An operator.
    Operator(Operator),
}

/// A certificate that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedCertificate {
    /// Serial number of the leaf.
    pub serial: Serial,
    /// Leaf first, then the issuing CA, DER.
    pub chain_der: Vec<Vec<u8>>,
    /// End of the leaf's validity.
    pub expires_at: Timestamp,
    /// Its URI SAN.
    pub spiffe_id: String,
}

/// What a certificate is worth now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Its holder may speak.
    Good,
    /// Its holder was revoked.
    Revoked,
    /// Its holder waits for approval: it may say who it is, and nothing else of it is stored.
    Waits,
    /// Another certificate took its place.
    Superseded,
    /// Nobody here made it, or its holder was removed.
    Unknown,
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

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// The labels that a token gives to hosts.
pub fn labels_of(purpose: &TokenPurpose) -> Labels {
    match purpose {
        TokenPurpose::Hosts { labels } => labels.clone(),
        TokenPurpose::Operator(_) => Labels::new(),
    }
}

/// Why the time between two numberings of a host was not observed: each begins with a start of the agent.
pub const BETWEEN_EPOCHS: GapReason = GapReason::AgentDown;

/// How far a host's clock is from the server's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skew {
    /// The host's clock less the server's, microseconds.
    pub offset_us: i64,
}

/// Offsets below this many microseconds are not corrected: clocks that are kept by NTP agree better than one message
/// on its way can measure, and a correction that changes with each connection would only blur the order of a host.
pub const SKEW_TOLERANCE_US: i64 = 2_000_000;

impl Skew {
    /// The least offset that explains a message: the host's clock showed `sent_at` at some moment of the time `within` that
    /// ended at `heard_at` of the server's. How long it was on its way, and how long it waited to be read, is not known, and
    /// must not be taken for an offset: it would move everything that the host tells.
    pub fn least(sent_at: Timestamp, heard_at: Timestamp, within: Duration) -> Skew {
        let least = sent_at.as_micros().saturating_sub(heard_at.as_micros());
        let most = least.saturating_add(i64::try_from(within.as_micros()).unwrap_or(i64::MAX));
        Skew { offset_us: if least > 0 { least } else { most.min(0) } }
    }

    /// A moment of the host's clock, by the server's clock.
    pub fn corrected(self, at: Timestamp) -> Timestamp {
        if self.offset_us.abs() < SKEW_TOLERANCE_US {
            at
        } else {
            Timestamp::from_micros(at.as_micros().saturating_sub(self.offset_us))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_long_on_its_way_makes_no_offset_of_the_clock() {
        const YEAR: i64 = 365 * 86_400;
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        for (what, sent_at, within_s, expected_s) in [
            ("both clocks are right", 100, 0, 0),
            ("it was on its way as long as the connection is there", 93, 7, 0),
            ("a part of that", 97, 7, 0),
            ("a clock that is ahead", 105, 0, 5),
            ("and a slow message", 105, 7, 5),
            ("a clock that is behind by more than any delay explains", 90, 7, -3),
            ("a year ahead", 100 + YEAR, 1, YEAR),
            ("a year behind", 100 - YEAR, 1, 1 - YEAR),
        ] {
            let Skew { offset_us } = Skew::least(at(sent_at), at(100), Duration::from_secs(within_s));
            assert_eq!(offset_us, expected_s * 1_000_000, "{what}");
        }
    }
}
