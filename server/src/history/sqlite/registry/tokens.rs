//! Tokens in `main.db`, and what comes of using one.

use std::net::IpAddr;

use fleetsock_proto::{
    host::HostId,
    token::{Approval, Conditions, Operator, Role, Token, TokenPurpose},
};
use ipnet::IpNet;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{
    News, audit,
    certificates::{CURRENT, insert_host_certificate, insert_operator},
};
use crate::history::{
    Actor, Claim, HistoryError, Issue, IssuedCertificate, Labels, REDEEM_AGAIN, Subject, labels_of,
    sqlite::{coding, roster::HostEntry},
};

pub(super) fn insert_token(
    transaction: &Transaction<'_>,
    token: &Token,
    secret_hash: &[u8; 32],
    by: &Actor,
) -> Result<(), rusqlite::Error> {
    let operator = match &token.purpose {
        TokenPurpose::Operator(operator) => Some(operator),
        TokenPurpose::Hosts { .. } => None,
    };
    transaction.execute(
        "INSERT INTO tokens (token_id, secret_hash, created_at_us, expires_at_us, uses_left, uses_total,
             operator_name, operator_role, note, from_prefix, approval, created_by)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
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
            token.conditions.from.map(|prefix| prefix.to_string()),
            token.conditions.approval == Approval::Needed,
            by.name,
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

pub(super) fn token(row: &Row<'_>, labels: Labels) -> Result<Token, rusqlite::Error> {
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
        conditions: conditions(row)?,
    })
}

fn conditions(row: &Row<'_>) -> Result<Conditions, rusqlite::Error> {
    let from = row.get::<_, Option<String>>("from_prefix")?;
    let from = from.map(|text| text.parse().map_err(|_| rusqlite::Error::InvalidQuery)).transpose()?;
    let approval = if row.get("approval")? { Approval::Needed } else { Approval::NotNeeded };
    Ok(Conditions { from, approval })
}

/// Whether an attempt comes from where a token may be used.
fn comes_from(claim: &Claim, prefix: IpNet) -> bool {
    claim.address.parse::<IpAddr>().is_ok_and(|address| prefix.contains(&address.to_canonical()))
}

/// Uses a token once. Whatever is wrong with it, the answer is the same.
pub(super) fn redeem(
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
    let elsewhere = found.conditions.from.is_some_and(|prefix| !comes_from(claim, prefix));
    if found.revoked || found.expires_at <= claim.at || elsewhere {
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
        TokenPurpose::Hosts { .. } => enrol_host(transaction, claim, found.conditions.approval, issue)?,
        TokenPurpose::Operator(operator) => {
            let issued = issue(&Subject::Operator(operator.clone())).map_err(HistoryError::Engine)?;
            insert_operator(transaction, &operator, &issued, claim.at)?;
            (issued, News::Nothing)
        }
    };
    remember_use(transaction, claim, &issued)?;
    audit::order(transaction, &by, "enrol", format!("{} {}", issued.spiffe_id, claim.host_name).trim_end())?;
    Ok((issued, news))
}

fn enrol_host(
    transaction: &Transaction<'_>,
    claim: &Claim,
    approval: Approval,
    issue: Issue,
) -> Result<(IssuedCertificate, News), HistoryError> {
    let host = HostId::random();
    let issued = issue(&Subject::Host(host)).map_err(HistoryError::Engine)?;
    // An agent that does not tell its name is shown by its id until it speaks.
    let name = if claim.host_name.is_empty() { host.to_string() } else { claim.host_name.clone() };
    transaction.execute(
        "INSERT INTO hosts (host_id, name, enrolled_at_us, waits) VALUES (?1, ?2, ?3, ?4)",
        params![host.as_bytes(), name, claim.at.as_micros(), approval == Approval::Needed],
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
    Ok((issued, News::Enrolled(Box::new(HostEntry::pending(id, host, name, labels, (claim.at, approval))))))
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
