//! Who may speak to the server: tokens, certificates, hosts, and the audit log, all in `main.db`.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use fleetsock_proto::{
    host::HostId,
    time::Timestamp,
    token::{NewToken, Operator, Role, Token, TokenPurpose},
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{
    SqliteHistory, coding,
    roster::{HostEntry, Roster},
    work::{Work, answer},
};
use crate::history::{
    Actor, Claim, HistoryError, Issue, IssuedCertificate, Labels, REDEEM_AGAIN, Registry, Serial, Standing, Subject,
    labels_of,
};

/// How long a question about a certificate may take.
const STANDING_TIME: Duration = Duration::from_secs(10);
/// How long a token that is over stays in the list.
const TOKENS_LISTED: Duration = Duration::from_secs(30 * 86_400);

/// Numbers of `host_certificates.state`.
const CURRENT: i64 = 1;
const PENDING: i64 = 2;
const RETIRED: i64 = 3;

/// What the roster learns when a transaction is durable.
enum News {
    Nothing,
    Enrolled(Box<HostEntry>),
    Revoked(HostId),
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
    }
    Ok(outcome)
}

/// Writes an order into the audit log.
fn audit(transaction: &Transaction<'_>, by: &Actor, action: &str, detail: &str) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("INSERT INTO audit (at_us, actor, address, action, detail) VALUES (?1, ?2, ?3, ?4, ?5)")?
        .execute(params![by.at.as_micros(), by.name, by.address, action, detail])
        .map(drop)
}

#[async_trait]
impl Registry for SqliteHistory {
    async fn create_token(
        &self,
        token_id: String,
        secret_hash: [u8; 32],
        token: NewToken,
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
            };
            insert_token(transaction, &created, &secret_hash)?;
            let detail = match &created.purpose {
                TokenPurpose::Hosts { .. } => format!("{} for {} hosts", created.token_id, created.uses_total),
                TokenPurpose::Operator(operator) => format!("{} for the operator {operator}", created.token_id),
            };
            audit(transaction, &by, "create token", &detail)?;
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
            let listed = i64::try_from(TOKENS_LISTED.as_micros()).unwrap_or(i64::MAX);
            let tokens = statement.query_map([listed], |row| {
                let labels = labels.remove(&row.get::<_, String>("token_id")?).unwrap_or_default();
                token(row, labels)
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
            Ok(audit(transaction, &by, "revoke token", &token_id)?)
        })
        .await
    }

    async fn redeem(&self, claim: Claim, issue: Issue) -> Result<IssuedCertificate, HistoryError> {
        self.transact_with_news(move |transaction| redeem(transaction, &claim, issue)).await
    }

    async fn add_operator(
        &self,
        operator: Operator,
        certificate: IssuedCertificate,
        by: Actor,
    ) -> Result<(), HistoryError> {
        self.transact(move |transaction| {
            insert_operator(transaction, &operator, &certificate, by.at)?;
            Ok(audit(transaction, &by, "issue operator", &operator.to_string())?)
        })
        .await
    }

    async fn add_host_certificate(
        &self,
        host: HostId,
        certificate: IssuedCertificate,
        at: Timestamp,
    ) -> Result<(), HistoryError> {
        let id = self.roster.get(host)?.id;
        self.transact(move |transaction| {
            // At most one is pending: one that was never used gives way.
            transaction.execute(
                "UPDATE host_certificates SET state = ?2 WHERE host_id = ?1 AND state = ?3",
                params![id, RETIRED, PENDING],
            )?;
            Ok(insert_host_certificate(transaction, id, &certificate, PENDING, at)?)
        })
        .await
    }

    async fn host_standing(&self, host: HostId, serial: Serial) -> Result<Standing, HistoryError> {
        let Ok(entry) = self.roster.get(host) else { return Ok(Standing::Unknown) };
        if entry.revoked {
            return Ok(Standing::Revoked);
        }
        let asked = serial.clone();
        let state = self
            .standings
            .ask(STANDING_TIME, move |reader| Ok(host_certificate_state(&reader.main, entry.id, &asked)?))
            .await?;
        match state {
            None => Ok(Standing::Unknown),
            Some(CURRENT) => Ok(Standing::Good),
            Some(PENDING) => self.transact(move |transaction| promote(transaction, entry.id, &serial)).await,
            Some(_) => Ok(Standing::Superseded),
        }
    }

    async fn operator_standing(&self, operator: Operator, serial: Serial) -> Result<Standing, HistoryError> {
        self.standings
            .ask(STANDING_TIME, move |reader| {
                let revoked = reader
                    .main
                    .prepare_cached(
                        "SELECT revoked_at_us FROM operator_certificates WHERE serial = ?1 AND name = ?2 AND role = ?3",
                    )?
                    .query_row(params![serial, operator.name(), operator.role().number()], |row| {
                        row.get::<_, Option<i64>>("revoked_at_us")
                    })
                    .optional()?;
                Ok(match revoked {
                    None => Standing::Unknown,
                    Some(Some(_)) => Standing::Revoked,
                    Some(None) => Standing::Good,
                })
            })
            .await
    }

    async fn revoke_host(&self, host: String, reason: String, by: Actor) -> Result<HostId, HistoryError> {
        self.transact_with_news(move |transaction| {
            let id = find_host(transaction, &host)?;
            transaction.execute(
                "UPDATE hosts SET revoked_at_us = coalesce(revoked_at_us, ?2), revoked_reason = ?3 WHERE host_id = ?1",
                params![id.as_bytes(), by.at.as_micros(), reason],
            )?;
            audit(transaction, &by, "revoke host", &format!("{host} ({id}): {reason}"))?;
            Ok((id, News::Revoked(id)))
        })
        .await
    }
}

fn insert_token(transaction: &Transaction<'_>, token: &Token, secret_hash: &[u8; 32]) -> Result<(), rusqlite::Error> {
    let operator = match &token.purpose {
        TokenPurpose::Operator(operator) => Some(operator),
        TokenPurpose::Hosts { .. } => None,
    };
    transaction.execute(
        "INSERT INTO tokens (token_id, secret_hash, created_at_us, expires_at_us, uses_left, uses_total,
             operator_name, operator_role, note) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
        params![
            token.token_id,
            secret_hash,
            token.created_at.as_micros(),
            token.expires_at.as_micros(),
            token.uses_left,
            token.uses_total,
            operator.map(Operator::name),
            operator.map(|operator| operator.role().number()),
            token.note,
        ],
    )?;
    for (key, value) in labels_of(&token.purpose) {
        transaction.execute(
            "INSERT INTO token_labels (token_id, key, value) VALUES (?1, ?2, ?3)",
            params![token.token_id, key, value],
        )?;
    }
    Ok(())
}

fn token(row: &Row<'_>, labels: Labels) -> Result<Token, rusqlite::Error> {
    let operator: Option<String> = row.get("operator_name")?;
    let purpose = match operator {
        None => TokenPurpose::Hosts { labels },
        Some(name) => {
            let role = coding::word(row, "operator_role", Role::from_number)?;
            TokenPurpose::Operator(Operator::new(&name, role).map_err(|_| rusqlite::Error::InvalidQuery)?)
        }
    };
    Ok(Token {
        token_id: row.get("token_id")?,
        created_at: coding::time(row, "created_at_us")?,
        expires_at: coding::time(row, "expires_at_us")?,
        uses_left: row.get("uses_left")?,
        uses_total: row.get("uses_total")?,
        purpose,
        note: row.get("note")?,
        revoked: row.get::<_, Option<i64>>("revoked_at_us")?.is_some(),
    })
}

/// Uses a token once. Whatever is wrong with it, the answer is the same.
fn redeem(
    transaction: &Transaction<'_>,
    claim: &Claim,
    issue: Issue,
) -> Result<(IssuedCertificate, News), HistoryError> {
    let found = transaction
        .query_row(
            "SELECT * FROM tokens WHERE token_id = ?1 AND secret_hash = ?2",
            params![claim.token_id, claim.secret_hash],
            |row| token(row, Labels::new()),
        )
        .optional()?
        .ok_or(HistoryError::TokenRefused)?;
    if found.revoked || found.expires_at <= claim.at {
        return Err(HistoryError::TokenRefused);
    }
    if let Some(again) = earlier_use(transaction, claim)? {
        return Ok((again, News::Nothing));
    }
    let used = transaction.execute(
        "UPDATE tokens SET uses_left = uses_left - 1 WHERE token_id = ?1 AND uses_left > 0",
        [&claim.token_id],
    )?;
    if used == 0 {
        return Err(HistoryError::TokenRefused);
    }
    let by = Actor { name: format!("token/{}", claim.token_id), address: claim.address.clone(), at: claim.at };
    let (issued, news) = match found.purpose {
        TokenPurpose::Hosts { .. } => enrol_host(transaction, claim, issue)?,
        TokenPurpose::Operator(operator) => {
            let issued = issue(&Subject::Operator(operator.clone())).map_err(HistoryError::Engine)?;
            insert_operator(transaction, &operator, &issued, claim.at)?;
            (issued, News::Nothing)
        }
    };
    remember_use(transaction, claim, &issued)?;
    audit(transaction, &by, "enrol", &issued.spiffe_id)?;
    Ok((issued, news))
}

fn enrol_host(
    transaction: &Transaction<'_>,
    claim: &Claim,
    issue: Issue,
) -> Result<(IssuedCertificate, News), HistoryError> {
    let host = HostId::random();
    let issued = issue(&Subject::Host(host)).map_err(HistoryError::Engine)?;
    // An agent that does not tell its name is shown by its id until it speaks.
    let name = if claim.host_name.is_empty() { host.to_string() } else { claim.host_name.clone() };
    transaction.execute(
        "INSERT INTO hosts (host_id, name, enrolled_at_us) VALUES (?1, ?2, ?3)",
        params![host.as_bytes(), name, claim.at.as_micros()],
    )?;
    let id = transaction.last_insert_rowid();
    transaction.execute(
        "INSERT INTO host_labels (host_id, key, value) SELECT ?1, key, value FROM token_labels WHERE token_id = ?2",
        params![id, claim.token_id],
    )?;
    insert_host_certificate(transaction, id, &issued, CURRENT, claim.at)?;
    let mut labels = Labels::new();
    let mut statement = transaction.prepare_cached("SELECT key, value FROM host_labels WHERE host_id = ?1")?;
    let mut rows = statement.query([id])?;
    while let Some(row) = rows.next()? {
        labels.insert(row.get("key")?, row.get("value")?);
    }
    Ok((issued, News::Enrolled(Box::new(HostEntry::pending(id, host, name, labels, claim.at)))))
}

/// What the same key got from the same token a short while ago.
fn earlier_use(transaction: &Transaction<'_>, claim: &Claim) -> Result<Option<IssuedCertificate>, rusqlite::Error> {
    transaction
        .query_row(
            "SELECT serial, leaf_der, issuer_der, expires_at_us, spiffe_id FROM token_uses
             WHERE token_id = ?1 AND key_hash = ?2 AND used_at_us > ?3",
            params![claim.token_id, claim.key_hash, claim.at.minus(REDEEM_AGAIN).as_micros()],
            |row| {
                Ok(IssuedCertificate {
                    serial: row.get("serial")?,
                    chain_der: vec![row.get("leaf_der")?, row.get("issuer_der")?],
                    expires_at: coding::time(row, "expires_at_us")?,
                    spiffe_id: row.get("spiffe_id")?,
                })
            },
        )
        .optional()
}

fn remember_use(
    transaction: &Transaction<'_>,
    claim: &Claim,
    issued: &IssuedCertificate,
) -> Result<(), rusqlite::Error> {
    let der = |index: usize| issued.chain_der.get(index).map(Vec::as_slice).unwrap_or_default();
    // Answers that will not be given again take no room.
    let over = claim.at.minus(REDEEM_AGAIN).as_micros();
    transaction.execute("DELETE FROM token_uses WHERE used_at_us <= ?1", [over])?;
    transaction
        .execute(
            "INSERT INTO token_uses (token_id, key_hash, used_at_us, serial, leaf_der, issuer_der, spiffe_id,
                 expires_at_us) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                claim.token_id,
                claim.key_hash,
                claim.at.as_micros(),
                issued.serial,
                der(0),
                der(1),
                issued.spiffe_id,
                issued.expires_at.as_micros(),
            ],
        )
        .map(drop)
}

fn insert_operator(
    transaction: &Transaction<'_>,
    operator: &Operator,
    issued: &IssuedCertificate,
    at: Timestamp,
) -> Result<(), rusqlite::Error> {
    transaction
        .execute(
            "INSERT INTO operator_certificates (serial, name, role, issued_at_us, expires_at_us)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                issued.serial,
                operator.name(),
                operator.role().number(),
                at.as_micros(),
                issued.expires_at.as_micros()
            ],
        )
        .map(drop)
}

fn insert_host_certificate(
    transaction: &Transaction<'_>,
    host: i64,
    issued: &IssuedCertificate,
    state: i64,
    at: Timestamp,
) -> Result<(), rusqlite::Error> {
    transaction
        .execute(
            "INSERT INTO host_certificates (serial, host_id, state, issued_at_us, expires_at_us)
             VALUES (?1, ?2, ?3, ?4, ?5)",
            params![issued.serial, host, state, at.as_micros(), issued.expires_at.as_micros()],
        )
        .map(drop)
}

fn host_certificate_state(main: &Connection, host: i64, serial: &[u8]) -> Result<Option<i64>, rusqlite::Error> {
    main.prepare_cached("SELECT state FROM host_certificates WHERE serial = ?1 AND host_id = ?2")?
        .query_row(params![serial, host], |row| row.get("state"))
        .optional()
}

/// The first use of a pending certificate: it becomes current, and the one before is retired.
fn promote(transaction: &Transaction<'_>, host: i64, serial: &[u8]) -> Result<Standing, HistoryError> {
    match host_certificate_state(transaction, host, serial)? {
        Some(PENDING) => {
            transaction.execute(
                "UPDATE host_certificates SET state = iif(serial = ?2, ?3, ?4) WHERE host_id = ?1 AND state <> ?4",
                params![host, serial, CURRENT, RETIRED],
            )?;
            Ok(Standing::Good)
        }
        // Another connection was faster.
        Some(CURRENT) => Ok(Standing::Good),
        Some(_) => Ok(Standing::Superseded),
        None => Ok(Standing::Unknown),
    }
}

/// The one host that a name or an id means.
fn find_host(transaction: &Transaction<'_>, host: &str) -> Result<HostId, HistoryError> {
    let id = host.parse::<HostId>().map_or_else(|_| Vec::new(), |id| id.as_bytes().to_vec());
    let mut statement = transaction.prepare("SELECT host_id FROM hosts WHERE name = ?1 OR host_id = ?2 LIMIT 2")?;
    let found: Vec<[u8; 16]> =
        statement.query_map(params![host, id], |row| row.get("host_id"))?.collect::<Result<_, _>>()?;
    match found.as_slice() {
        [] => Err(HistoryError::NotFound(format!("no host is called `{host}`"))),
        [one] => Ok(HostId::from_array(*one)),
        _ => Err(HistoryError::Invalid(format!("several hosts are called `{host}`; name one by its id"))),
    }
}
