//! Who may speak to the server: hosts and operators, their certificates and tokens, and the log of what they did.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use fleetsock_proto::{
    answer::AnswerMeta,
    audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    host::{HostId, Warning},
    root::Behind,
    time::Timestamp,
    token::{Conditions, NewToken, Operator, OperatorCertificate, RevokedOperator, Token, TokenPurpose},
};

use super::{Contact, HistoryError, adoption::Shown};

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
    /// that the lost part of the history made: then it is taken up, and told of ([`adoption`](super::adoption)).
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

/// Labels of a host.
pub type Labels = BTreeMap<String, String>;

/// The labels that a token gives to hosts.
pub fn labels_of(purpose: &TokenPurpose) -> Labels {
    match purpose {
        TokenPurpose::Hosts { labels } => labels.clone(),
        TokenPurpose::Operator(_) => Labels::new(),
    }
}
