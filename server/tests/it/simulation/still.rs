//! The real history, for which the time of the simulation stands still while it works.
//!
//! Simulated time moves on as soon as nobody has anything to do, and does not know of the thread that writes. It does wait
//! for tokio's own threads (`spawn_blocking` inhibits the clock), so that every order is waited for on one of them. What the
//! real disk takes then is no time; what a simulated one takes is up to the dice, so that a kill also falls between an order
//! and its effect, and between that and the answer.
//!
//! A batch that was brought is stored even when its stream ends meanwhile, and then perhaps only after the next stream of the
//! host asked how far the history goes. In a server with several threads that happens when one is stopped between its look
//! whether the stream goes on and its order; here it is the only way in which a batch comes again that is stored already,
//! because whoever connects anew is told what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use fleetsock_proto::{
    answer::{AnswerMeta, Gap},
    audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    batch::Batch,
    change::ChangeRecord,
    host::{Host, HostId, HostSelector, Warning},
    listener::Listener,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SummaryQuestion},
    root::Behind,
    session::Session,
    stream::{BatchNumber, GapReport},
    summary::Sum,
    time::Timestamp,
    token::{Conditions, NewToken, Operator, OperatorCertificate, RevokedOperator, Token},
};
use fleetsock_server::{
    history::{
        Actor, Applied, AuditEntry, Claim, Contact, CopiedFile, CopyOrder, Hearer, History, HistoryError, Issue,
        IssuedCertificate, OperatorRenewal, Presence, Registry, Rows, Serial, Standing, Subject, Vitals,
        adoption::Shown, sqlite::SqliteHistory,
    },
    metrics::HistoryMeters,
};
use tokio::runtime::Handle;

use super::chance::dice;

/// See the module.
pub(super) struct Still {
    pub(super) store: Arc<SqliteHistory>,
    pub(super) record: Arc<Record>,
}

/// Batches of hosts.
pub(super) type Batches = BTreeMap<HostId, BTreeSet<BatchNumber>>;

/// What became durable, by whatever server of a play.
#[derive(Debug, Default)]
pub(super) struct Record {
    stored: Mutex<Batches>,
    again: AtomicU64,
}

impl Record {
    /// A batch came and counts as stored, when this one was the last.
    fn note(&self, host: HostId, number: BatchNumber, last: BatchNumber) {
        let mut stored = self.stored.lock().unwrap();
        let of_host = stored.entry(host).or_default();
        // One that was told of as lost counts too, and is not there.
        let is_new = if number > last { of_host.insert(number) } else { !of_host.contains(&number) };
        self.again.fetch_add(u64::from(!is_new), Relaxed);
    }

    /// The batches of a host.
    pub(super) fn stored(&self, host: HostId) -> BTreeSet<BatchNumber> {
        self.stored.lock().unwrap().get(&host).cloned().unwrap_or_default()
    }

    /// All batches.
    pub(super) fn all(&self) -> Batches {
        self.stored.lock().unwrap().clone()
    }

    /// Nothing but these is stored any more.
    pub(super) fn go_back_to(&self, batches: Batches) {
        *self.stored.lock().unwrap() = batches;
    }

    /// How often a batch came that was stored already.
    pub(super) fn again(&self) -> u64 {
        self.again.load(Relaxed)
    }
}

/// The longest that a slow disk takes before it begins, and again before it says that it is done; and one that stands still.
const SLOW_MS: u64 = 800;
const STANDSTILL_MS: u64 = 5_000;

/// Most of the time the disk is quick.
async fn wait_for_disk() {
    let dice = dice();
    let longest = match dice % 40 {
        0 => STANDSTILL_MS,
        1..8 => SLOW_MS,
        _ => return,
    };
    tokio::time::sleep(Duration::from_millis((dice >> 32) % longest)).await;
}

async fn still<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    wait_for_disk().await;
    let here = Handle::current();
    let done = tokio::task::spawn_blocking(move || here.block_on(work)).await.unwrap();
    wait_for_disk().await;
    done
}

macro_rules! still {
    ($trait:ident { $($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)* } $($rest:tt)*) => {
        #[async_trait]
        impl $trait for Still {
            $(async fn $name(&self, $($arg: $type),*) -> Result<$out, HistoryError> {
                let store = Arc::clone(&self.store);
                still(async move { store.$name($($arg),*).await }).await
            })*
            $($rest)*
        }
    };
}

still! {
    History {
        record_gap(host: HostId, gap: GapReport) -> ();
        last_batch(host: HostId) -> BatchNumber;
        record_hello(host: HostId, hello: Contact) -> ();
        list_hosts(hosts: HostSelector, now: Timestamp) -> (Vec<Host>, AnswerMeta);
        list_ports(question: PortQuestion, now: Timestamp, rows: Rows<Listener>) -> AnswerMeta;
        list_sessions(question: SessionQuestion, now: Timestamp, rows: Rows<Session>) -> AnswerMeta;
        list_changes(question: ChangeQuestion, now: Timestamp, rows: Rows<ChangeRecord>) -> AnswerMeta;
        summarize(question: SummaryQuestion, now: Timestamp, rows: Rows<Sum>) -> AnswerMeta;
        list_gaps(question: CoverageQuestion, now: Timestamp) -> (Vec<Gap>, AnswerMeta);
        vitals(now: Timestamp) -> Vitals;
        probe() -> ();
        copy(order: CopyOrder, hearer: Hearer) -> Vec<CopiedFile>;
    }

    async fn apply(&self, host: HostId, batch: Batch) -> Result<Applied, HistoryError> {
        let (store, record) = (Arc::clone(&self.store), Arc::clone(&self.record));
        let number = BatchNumber { epoch: batch.epoch, seq: batch.seq };
        let storing = still(async move {
            let last = store.last_batch(host).await?;
            let applied = store.apply(host, batch).await;
            if matches!(applied, Ok(Applied::Committed | Applied::Differs { .. })) {
                record.note(host, number, last);
            }
            applied
        });
        // Whoever brought it may be gone before it is stored.
        tokio::spawn(storing).await.unwrap()
    }

    fn record_presence(&self, host: HostId, presence: Presence) {
        self.store.record_presence(host, presence);
    }

    fn meters(&self) -> &HistoryMeters {
        self.store.meters()
    }
}

still! {
    Registry {
        create_token_under(id: String, hash: [u8; 32], token: NewToken, under: Conditions, by: Actor) -> Token;
        list_tokens() -> Vec<Token>;
        revoke_token(token_id: String, by: Actor) -> ();
        redeem(claim: Claim, issue: Issue) -> IssuedCertificate;
        add_operator(operator: Operator, certificate: IssuedCertificate, by: Actor) -> ();
        add_host_certificate(host: HostId, certificate: IssuedCertificate, at: Timestamp) -> ();
        host_standing(host: HostId, serial: Serial) -> Standing;
        operator_standing(operator: Operator, serial: Serial) -> Standing;
        adopt(holder: Subject, shown: Shown, by: Actor) -> Standing;
        renew_expired(host: HostId, over: Serial, certificate: IssuedCertificate, by: Actor) -> Standing;
        revoke_host(host: String, reason: String, by: Actor) -> HostId;
        approve_host(host: String, by: Actor) -> HostId;
        introduce(host: HostId, contact: Contact) -> ();
        warn_host(host: HostId, warning: Warning) -> ();
        list_operators() -> Vec<OperatorCertificate>;
        made_before(at: Timestamp, over: Timestamp, now: Timestamp) -> Behind;
        renew_operator(renewal: OperatorRenewal, by: Actor) -> ();
        revoke_operator(name: String, reason: String, by: Actor) -> RevokedOperator;
        record(entries: Vec<AuditEntry>) -> ();
        list_audit(question: AuditQuestion, now: Timestamp) -> (Vec<AuditRow>, AnswerMeta);
        verify_audit(mark: Option<AuditMark>) -> AuditVerdict;
    }
}
