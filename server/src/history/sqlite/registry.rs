//! Who may speak to the server: tokens, certificates, hosts, and the audit log, all in `main.db`.

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
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use self::certificates::{CURRENT, PENDING};
use super::{
    SqliteHistory,
    roster::{HostEntry, Roster, store_hello},
    work::{Work, answer},
};
use crate::history::{
    Actor, AuditEntry, Claim, Contact, HistoryError, Issue, IssuedCertificate, Labels, OperatorRenewal, Registry,
    Serial, Standing, Subject, adoption::Shown,
};

mod audit;
mod certificates;
mod tokens;

/// How long a question about a certificate may take.
const STANDING_TIME: Duration = Duration::from_secs(10);
/// How long a token or a certificate of an operator that is over stays in the list.
const LISTED: Duration = Duration::from_secs(30 * 86_400);

/// What the roster learns when a transaction is durable.
enum News {
    Nothing,
    Enrolled(Box<HostEntry>),
    Revoked(HostId),
    Approved(HostId),
    Introduced(HostId, Box<Contact>),
    Warned(HostId, Warning),
}

impl SqliteHistory {
    /// Does something in one transaction of `main.db`, durable when this returns.
    async fn transact<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        self.transact_with_news(move |transaction| Ok((act(transaction)?, News::Nothing))).await
    }

    /// The same for something that changes which hosts there are.
    async fn transact_with_news<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Transaction<'_>) -> Result<(T, News), HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        self.order(|reply| {
            Work::Main(Box::new(move |main: &mut Connection, roster: &Roster| {
                answer(reply, transact(main, roster, act));
            }))
        })
        .await
    }
}

fn transact<T>(
    main: &mut Connection,
    roster: &Roster,
    act: impl FnOnce(&Transaction<'_>) -> Result<(T, News), HistoryError>,
) -> Result<T, HistoryError> {
    let transaction = main.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let (outcome, news) = act(&transaction)?;
    transaction.commit()?;
    match news {
        News::Nothing => {}
        News::Enrolled(entry) => roster.add(*entry),
        News::Revoked(host) => roster.revoke(host),
        News::Approved(host) => roster.approve(host),
        News::Introduced(host, contact) => roster.note_hello(host, *contact),
        News::Warned(host, warning) => roster.warn(host, warning),
    }
    Ok(outcome)
}

/// Writes an order into the audit log whose effect is not in `main.db`.
pub(super) fn note_order(
    main: &mut Connection,
    by: &Actor,
    action: &'static str,
    detail: &str,
) -> Result<(), HistoryError> {
    let transaction = main.transaction_with_behavior(TransactionBehavior::Immediate)?;
    audit::order(&transaction, by, action, detail)?;
    Ok(transaction.commit()?)
}

/// The same within a transaction.
pub(super) fn note_order_in(
    transaction: &Transaction<'_>,
    by: &Actor,
    action: &'static str,
    detail: &str,
) -> Result<(), rusqlite::Error> {
    audit::order(transaction, by, action, detail)
}

/// The one host that a name or an id means. An id means its host, whatever others call themselves.
fn find_host(transaction: &Transaction<'_>, host: &str) -> Result<HostId, HistoryError> {
    let find = |sql: &str, what: &dyn rusqlite::ToSql| -> Result<Vec<[u8; 16]>, rusqlite::Error> {
        transaction.prepare(sql)?.query_map([what], |row| row.get("host_id"))?.collect()
    };
    if let Ok(id) = host.parse::<HostId>()
        && !find("SELECT host_id FROM hosts WHERE host_id = ?1", id.as_bytes())?.is_empty()
    {
        return Ok(id);
    }
    match find("SELECT host_id FROM hosts WHERE name = ?1 LIMIT 2", &host)?.as_slice() {
        [] => Err(HistoryError::NotFound(format!("no host is called `{host}`"))),
        [one] => Ok(HostId::from_array(*one)),
        _ => Err(HistoryError::Invalid(format!("several hosts are called `{host}`; name one by its id"))),
    }
}

#[async_trait]
impl Registry for SqliteHistory {
    async fn create_token_under(
        &self,
        token_id: String,
        secret_hash: [u8; 32],
        token: NewToken,
        conditions: Conditions,
        by: Actor,
    ) -> Result<Token, HistoryError> {
        self.transact(move |transaction| {
            let created = Token {
                token_id,
                created_at: by.at,
                expires_at: by.at.plus(Duration::from_secs(token.lifetime_s)),
                uses_left: token.uses,
                uses_total: token.uses,
                purpose: token.purpose,
                note: token.note,
                revoked: false,
                conditions,
            };
            tokens::insert_token(transaction, &created, &secret_hash, &by)?;
            let detail = match &created.purpose {
                TokenPurpose::Hosts { .. } => format!("{} for {} hosts", created.token_id, created.uses_total),
                TokenPurpose::Operator(operator) => format!("{} for the operator {operator}", created.token_id),
            };
            audit::order(transaction, &by, "create token", &detail)?;
            Ok(created)
        })
        .await
    }

    async fn list_tokens(&self) -> Result<Vec<Token>, HistoryError> {
        self.transact(|transaction| {
            let mut labels: BTreeMap<String, Labels> = BTreeMap::new();
            let mut statement = transaction.prepare("SELECT token_id, key, value FROM token_labels")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                labels.entry(row.get("token_id")?).or_default().insert(row.get("key")?, row.get("value")?);
            }
            let mut statement = transaction.prepare(
                "SELECT * FROM tokens WHERE expires_at_us >= (SELECT max(created_at_us) FROM tokens) - ?1
                 ORDER BY created_at_us DESC, token_id",
            )?;
            let listed = i64::try_from(LISTED.as_micros()).unwrap_or(i64::MAX);
            let tokens = statement.query_map([listed], |row| {
                let labels = labels.remove(&row.get::<_, String>("token_id")?).unwrap_or_default();
                tokens::token(row, labels)
            })?;
            Ok(tokens.collect::<Result<_, _>>()?)
        })
        .await
    }

    async fn revoke_token(&self, token_id: String, by: Actor) -> Result<(), HistoryError> {
        self.transact(move |transaction| {
            let revoked = transaction.execute(
                "UPDATE tokens SET revoked_at_us = coalesce(revoked_at_us, ?2) WHERE token_id = ?1",
                params![token_id, by.at.as_micros()],
            )?;
            if revoked == 0 {
                return Err(HistoryError::NotFound(format!("there is no token `{token_id}`")));
            }
            Ok(audit::order(transaction, &by, "revoke token", &token_id)?)
        })
        .await
    }

    async fn redeem(&self, claim: Claim, issue: Issue) -> Result<IssuedCertificate, HistoryError> {
        self.transact_with_news(move |transaction| tokens::redeem(transaction, &claim, issue)).await
    }

    async fn add_operator(
        &self,
        operator: Operator,
        certificate: IssuedCertificate,
        by: Actor,
    ) -> Result<(), HistoryError> {
        self.transact(move |transaction| {
            certificates::insert_operator(transaction, &operator, &certificate, by.at)?;
            Ok(audit::order(transaction, &by, "issue operator", &operator.to_string())?)
        })
        .await
    }

    async fn add_host_certificate(
        &self,
        host: HostId,
        certificate: IssuedCertificate,
        at: Timestamp,
    ) -> Result<(), HistoryError> {
        let id = self.roster.find(host)?.id;
        self.transact(move |transaction| Ok(certificates::insert_next(transaction, id, &certificate, at)?)).await
    }

    async fn host_standing(&self, host: HostId, serial: Serial) -> Result<Standing, HistoryError> {
        let Ok(entry) = self.roster.find(host) else { return Ok(Standing::Unknown) };
        if entry.revoked {
            return Ok(Standing::Revoked);
        }
        let (id, asked) = (entry.id, serial.clone());
        let state = self
            .standings
            .ask(STANDING_TIME, move |reader| Ok(certificates::host_certificate_state(&reader.main, id, &asked)?))
            .await?;
        let standing = match state {
            None => Standing::Unknown,
            Some(CURRENT) => Standing::Good,
            Some(PENDING) => self.transact(move |transaction| certificates::promote(transaction, id, &serial)).await?,
            Some(_) => Standing::Superseded,
        };
        Ok(if standing == Standing::Good && entry.waits { Standing::Waits } else { standing })
    }

    async fn operator_standing(&self, operator: Operator, serial: Serial) -> Result<Standing, HistoryError> {
        self.standings
            .ask(STANDING_TIME, move |reader| Ok(certificates::operator_standing(&reader.main, &operator, &serial)?))
            .await
    }

    async fn adopt(&self, holder: Subject, shown: Shown, by: Actor) -> Result<Standing, HistoryError> {
        let Some(lost) = self.lost else { return Ok(Standing::Unknown) };
        match holder {
            Subject::Host(host) => {
                let Ok(entry) = self.roster.find(host) else { return Ok(Standing::Unknown) };
                self.transact_with_news(move |transaction| {
                    let (standing, warning) = certificates::adopt_host(transaction, &entry, lost, &shown, &by)?;
                    Ok((standing, warning.map_or(News::Nothing, |warning| News::Warned(host, warning))))
                })
                .await
            }
            Subject::Operator(operator) => {
                self.transact(move |transaction| {
                    certificates::adopt_operator(transaction, &operator, lost, &shown, &by)
                })
                .await
            }
        }
    }

    async fn renew_expired(
        &self,
        host: HostId,
        over: Serial,
        certificate: IssuedCertificate,
        by: Actor,
    ) -> Result<Standing, HistoryError> {
        let Ok(entry) = self.roster.find(host) else { return Ok(Standing::Unknown) };
        self.transact(move |transaction| certificates::renew_expired(transaction, &entry, &over, &certificate, &by))
            .await
    }

    async fn revoke_host(&self, host: String, reason: String, by: Actor) -> Result<HostId, HistoryError> {
        self.transact_with_news(move |transaction| {
            let id = find_host(transaction, &host)?;
            transaction.execute(
                "UPDATE hosts SET revoked_at_us = coalesce(revoked_at_us, ?2), revoked_reason = ?3 WHERE host_id = ?1",
                params![id.as_bytes(), by.at.as_micros(), reason],
            )?;
            audit::order(transaction, &by, "revoke host", &format!("{host} ({id}): {reason}"))?;
            Ok((id, News::Revoked(id)))
        })
        .await
    }

    async fn approve_host(&self, host: String, by: Actor) -> Result<HostId, HistoryError> {
        self.transact_with_news(move |transaction| {
            let id = find_host(transaction, &host)?;
            let approved = transaction.execute(
                "UPDATE hosts SET waits = 0, warning = NULL, warned_at_us = NULL
                 WHERE host_id = ?1 AND revoked_at_us IS NULL",
                [id.as_bytes()],
            )?;
            if approved == 0 {
                return Err(HistoryError::Invalid(format!("`{host}` is revoked; it must enrol anew with a new token")));
            }
            audit::order(transaction, &by, "approve host", &format!("{host} ({id})"))?;
            Ok((id, News::Approved(id)))
        })
        .await
    }

    async fn introduce(&self, host: HostId, contact: Contact) -> Result<(), HistoryError> {
        let id = self.roster.find(host)?.id;
        self.transact_with_news(move |transaction| {
            store_hello(transaction, id, &contact)?;
            Ok(((), News::Introduced(host, Box::new(contact))))
        })
        .await
    }

    async fn warn_host(&self, host: HostId, warning: Warning) -> Result<(), HistoryError> {
        self.transact_with_news(move |transaction| {
            transaction.execute(
                "UPDATE hosts SET warning = ?2, warned_at_us = ?3 WHERE host_id = ?1",
                params![host.as_bytes(), warning.text, warning.at.as_micros()],
            )?;
            Ok(((), News::Warned(host, warning)))
        })
        .await
    }

    async fn list_operators(&self) -> Result<Vec<OperatorCertificate>, HistoryError> {
        // By the clock of the newest certificate: a list needs no clock of its own.
        self.transact(|transaction| {
            let newest = "SELECT coalesce(max(issued_at_us), 0) AS newest FROM operator_certificates";
            let newest = transaction.query_row(newest, [], |row| super::coding::time(row, "newest"))?;
            Ok(certificates::operators(transaction, newest.minus(LISTED))?)
        })
        .await
    }

    async fn revoke_operator(&self, name: String, reason: String, by: Actor) -> Result<RevokedOperator, HistoryError> {
        self.transact(move |transaction| certificates::revoke_operator(transaction, &name, &reason, &by)).await
    }

    async fn made_before(&self, at: Timestamp, over: Timestamp, now: Timestamp) -> Result<Behind, HistoryError> {
        self.transact(move |transaction| Ok(certificates::made_before(transaction, at, over, now)?)).await
    }

    async fn renew_operator(&self, renewal: OperatorRenewal, by: Actor) -> Result<(), HistoryError> {
        self.transact(move |transaction| certificates::renew_operator(transaction, &renewal, &by)).await
    }

    async fn record(&self, entries: Vec<AuditEntry>) -> Result<(), HistoryError> {
        self.transact(move |transaction| {
            for entry in &entries {
                audit::append(transaction, entry)?;
            }
            Ok(())
        })
        .await
    }

    async fn list_audit(
        &self,
        question: AuditQuestion,
        now: Timestamp,
    ) -> Result<(Vec<AuditRow>, AnswerMeta), HistoryError> {
        let time = self.options.bounds.time;
        self.questions.ask(time, move |reader| audit::list(reader, &question, now)).await
    }

    async fn verify_audit(&self, mark: Option<AuditMark>) -> Result<AuditVerdict, HistoryError> {
        self.questions.ask(self.options.bounds.time, move |reader| audit::verify(reader, mark)).await
    }
}
