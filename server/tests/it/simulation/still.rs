//! The real history, for which the time of the simulation stands still while it works.
//!
//! Simulated time moves on as soon as nobody has anything to do, and does not know of the thread that writes. It does wait
//! for tokio's own threads (`spawn_blocking` inhibits the clock), so that every order is waited for on one of them. What the
//! real disk takes then is no time; what a simulated one takes is up to the dice, so that a kill also falls between an order
//! and its effect, and between that and the answer.

use std::{future::Future, sync::Arc, time::Duration};

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
pub(super) struct Still(pub(super) Arc<SqliteHistory>);

/// The longest that a slow disk takes before it begins, and again before it says that it is done.
const SLOW_MS: u64 = 800;

/// Most of the time the disk is quick.
async fn wait_for_disk() {
    let dice = dice();
    if dice.is_multiple_of(5) {
        tokio::time::sleep(Duration::from_millis((dice >> 32) % SLOW_MS)).await;
    }
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
                let store = Arc::clone(&self.0);
                still(async move { store.$name($($arg),*).await }).await
            })*
            $($rest)*
        }
    };
}

still! {
    History {
        apply(host: HostId, batch: Batch) -> Applied;
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

    fn record_presence(&self, host: HostId, presence: Presence) {
        self.0.record_presence(host, presence);
    }

    fn meters(&self) -> &HistoryMeters {
        self.0.meters()
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
