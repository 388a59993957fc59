//! Certificates in `main.db`: which of them are good, and what ends them.

use fleetsock_proto::{
    host::{HostId, Warning},
    root::{Behind, NAMES_LIMIT},
    time::Timestamp,
    token::{Operator, OperatorCertificate, RevokedOperator, Role},
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::audit;
use crate::history::{
    Actor, HistoryError, IssuedCertificate, OperatorRenewal, Serial, Standing,
    adoption::{Adoption, Holder, Lost, Shown, decide},
    sqlite::{coding, roster::HostEntry},
};

/// Numbers of `host_certificates.state`.
pub(super) const CURRENT: i64 = 1;
pub(super) const PENDING: i64 = 2;
pub(super) const RETIRED: i64 = 3;

pub(super) fn insert_operator(
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

pub(super) fn insert_host_certificate(
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

pub(super) fn host_certificate_state(
    main: &Connection,
    host: i64,
    serial: &[u8],
) -> Result<Option<i64>, rusqlite::Error> {
    main.prepare_cached("SELECT state FROM host_certificates WHERE serial = ?1 AND host_id = ?2")?
        .query_row(params![serial, host], |row| row.get("state"))
        .optional()
}

/// The first use of a pending certificate: it becomes current, and the one before is retired.
pub(super) fn promote(transaction: &Transaction<'_>, host: i64, serial: &[u8]) -> Result<Standing, HistoryError> {
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

/// Writes down a host's next certificate. At most one is pending: one that was never used gives way.
pub(super) fn insert_next(
    transaction: &Transaction<'_>,
    host: i64,
    issued: &IssuedCertificate,
    at: Timestamp,
) -> Result<(), rusqlite::Error> {
    transaction.execute(
        "UPDATE host_certificates SET state = ?2 WHERE host_id = ?1 AND state = ?3",
        params![host, RETIRED, PENDING],
    )?;
    insert_host_certificate(transaction, host, issued, PENDING, at)
}

/// The next certificate of a host whose last one is over.
pub(super) fn renew_expired(
    transaction: &Transaction<'_>,
    entry: &HostEntry,
    over: &Serial,
    issued: &IssuedCertificate,
    by: &Actor,
) -> Result<Standing, HistoryError> {
    if is_revoked(transaction, entry.host_id)? {
        return Ok(Standing::Revoked);
    }
    match host_certificate_state(transaction, entry.id, over)? {
        Some(CURRENT | PENDING) => {
            insert_next(transaction, entry.id, issued, by.at)?;
            audit::order(transaction, by, "renew expired", &issued.spiffe_id)?;
            Ok(Standing::Good)
        }
        Some(_) => Ok(Standing::Superseded),
        None => Ok(Standing::Unknown),
    }
}

/// Takes up a certificate of a host that the lost part of the history made, if it can be one and is the newest.
pub(super) fn adopt_host(
    transaction: &Transaction<'_>,
    entry: &HostEntry,
    lost: Lost,
    shown: &Shown,
    by: &Actor,
) -> Result<(Standing, Option<Warning>), HistoryError> {
    // Another connection was faster.
    if let Some(state) = host_certificate_state(transaction, entry.id, &shown.serial)? {
        return Ok((if state == RETIRED { Standing::Superseded } else { Standing::Good }, None));
    }
    let holder = match (is_revoked(transaction, entry.host_id)?, newest_of_host(transaction, entry.id)?) {
        (true, _) => Holder::Revoked,
        (false, None) => Holder::Unknown,
        (false, Some((issued_at, _))) => Holder::Known(issued_at),
    };
    let standing = match decide(lost, shown, holder) {
        Adoption::TakeUp => Standing::Good,
        Adoption::Superseded => return Ok((Standing::Superseded, None)),
        Adoption::Revoked => return Ok((Standing::Revoked, None)),
        Adoption::Unknown => return Ok((Standing::Unknown, None)),
    };
    let again = newest_of_host(transaction, entry.id)?.is_some_and(|(_, adopted)| adopted);
    transaction.execute(
        "UPDATE host_certificates SET state = ?2 WHERE host_id = ?1 AND state <> ?2",
        params![entry.id, RETIRED],
    )?;
    transaction.execute(
        "INSERT INTO host_certificates (serial, host_id, state, issued_at_us, expires_at_us, adopted_at_us)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            shown.serial,
            entry.id,
            CURRENT,
            shown.made_at.as_micros(),
            shown.expires_at.as_micros(),
            by.at.as_micros()
        ],
    )?;
    let text = adopted_text(&by.address, again);
    transaction.execute(
        "UPDATE hosts SET warning = ?2, warned_at_us = ?3 WHERE id = ?1",
        params![entry.id, text, by.at.as_micros()],
    )?;
    let detail = format!("{} ({}), serial {}", entry.name, entry.host_id, hexadecimal(&shown.serial));
    audit::order(transaction, by, if again { "adopt another certificate" } else { "adopt certificate" }, &detail)?;
    Ok((standing, Some(Warning { text, at: by.at })))
}

/// What a person is told of a host whose certificate was taken up.
fn adopted_text(from: &str, again: bool) -> String {
    if again {
        format!(
            "after the restore a second certificate of it was taken up, from {from}: either it was renewed more than once \
             since the backup and one of them was copied, or its state folder was; if in doubt revoke it and enrol it anew"
        )
    } else {
        format!(
            "its certificate was made after the backup that was restored, and was taken up from {from}; if it was revoked \
             since the backup, revoke it again, otherwise: fleetctl hosts approve"
        )
    }
}

/// When the newest certificate of a host was made, and whether it was taken up.
fn newest_of_host(main: &Connection, host: i64) -> Result<Option<(Timestamp, bool)>, rusqlite::Error> {
    main.prepare_cached(
        "SELECT issued_at_us, adopted_at_us IS NOT NULL AS adopted FROM host_certificates WHERE host_id = ?1
         ORDER BY issued_at_us DESC LIMIT 1",
    )?
    .query_row([host], |row| Ok((coding::time(row, "issued_at_us")?, row.get("adopted")?)))
    .optional()
}

/// The same for an operator, who may have one on each of several machines: only those that the history made count as
/// newer. One whose newest certificate is revoked stays revoked.
pub(super) fn adopt_operator(
    transaction: &Transaction<'_>,
    operator: &Operator,
    lost: Lost,
    shown: &Shown,
    by: &Actor,
) -> Result<Standing, HistoryError> {
    let newest = transaction
        .query_row(
            "SELECT issued_at_us, revoked_at_us FROM operator_certificates
             WHERE name = ?1 AND role = ?2 AND adopted_at_us IS NULL ORDER BY issued_at_us DESC LIMIT 1",
            params![operator.name(), operator.role().number()],
            |row| Ok((coding::time(row, "issued_at_us")?, coding::time_or_null(row, "revoked_at_us")?)),
        )
        .optional()?;
    let revoked_since = "SELECT EXISTS (SELECT 1 FROM operator_certificates
                             WHERE name = ?1 AND revoked_at_us > ?2) AS revoked";
    let revoked_since: bool =
        transaction.query_row(revoked_since, params![operator.name(), lost.restored_at.as_micros()], |row| {
            row.get("revoked")
        })?;
    let holder = match newest {
        _ if revoked_since => Holder::Revoked,
        None => Holder::Unknown,
        Some((_, Some(_))) => Holder::Revoked,
        Some((issued_at, None)) => Holder::Known(issued_at),
    };
    match decide(lost, shown, holder) {
        Adoption::TakeUp => {}
        Adoption::Superseded => return Ok(Standing::Superseded),
        Adoption::Revoked => return Ok(Standing::Revoked),
        Adoption::Unknown => return Ok(Standing::Unknown),
    }
    transaction.execute(
        "INSERT INTO operator_certificates (serial, name, role, issued_at_us, expires_at_us, adopted_at_us)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (serial) DO NOTHING",
        params![
            shown.serial,
            operator.name(),
            operator.role().number(),
            shown.made_at.as_micros(),
            shown.expires_at.as_micros(),
            by.at.as_micros()
        ],
    )?;
    audit::order(transaction, by, "adopt certificate", &format!("{operator}, serial {}", hexadecimal(&shown.serial)))?;
    Ok(Standing::Good)
}

fn hexadecimal(serial: &[u8]) -> String {
    serial.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_revoked(transaction: &Transaction<'_>, host: HostId) -> Result<bool, rusqlite::Error> {
    let revoked = "SELECT revoked_at_us IS NOT NULL AS revoked FROM hosts WHERE host_id = ?1";
    transaction.query_row(revoked, [host.as_bytes()], |row| row.get("revoked"))
}

/// Whose certificate in use was made before a moment; see [`crate::history::Registry::made_before`].
pub(super) fn made_before(
    main: &Connection,
    at: Timestamp,
    over: Timestamp,
    now: Timestamp,
) -> Result<Behind, rusqlite::Error> {
    let hosts = "FROM host_certificates AS c JOIN hosts AS h ON h.id = c.host_id
         WHERE h.revoked_at_us IS NULL AND c.state = ?3 AND c.issued_at_us < ?1 AND c.expires_at_us > ?2";
    // An operator who has a newer one knows how to get it; the older one may be that of a machine that is gone.
    let operators = "FROM (SELECT name FROM operator_certificates
         WHERE revoked_at_us IS NULL AND expires_at_us > ?2
         GROUP BY name HAVING max(issued_at_us) < ?1) WHERE ?3 > 0";
    let counted = |from: &str, ended: Timestamp| -> Result<(u64, Vec<String>), rusqlite::Error> {
        let asked = params![at.as_micros(), ended.as_micros(), CURRENT];
        let sql = format!("SELECT count(*) AS number {from}");
        let count = main.query_row(&sql, asked, |row| coding::unsigned(row, "number"))?;
        let mut statement = main.prepare(&format!("SELECT name {from} ORDER BY name LIMIT {NAMES_LIMIT}"))?;
        let names = statement.query_map(asked, |row| row.get("name"))?.collect::<Result<_, _>>()?;
        Ok((count, names))
    };
    let (hosts, host_names) = counted(hosts, over)?;
    let (operators, operator_names) = counted(operators, now)?;
    Ok(Behind { hosts, operators, host_names, operator_names })
}

/// What a certificate of an operator is worth.
pub(super) fn operator_standing(
    main: &Connection,
    operator: &Operator,
    serial: &Serial,
) -> Result<Standing, rusqlite::Error> {
    let revoked = main
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
}

/// The next certificate of an operator; see [`crate::history::Registry::renew_operator`].
pub(super) fn renew_operator(
    transaction: &Transaction<'_>,
    renewal: &OperatorRenewal,
    by: &Actor,
) -> Result<(), HistoryError> {
    let OperatorRenewal { operator, shown, made_before, certificate } = renewal;
    if operator_standing(transaction, operator, shown)? != Standing::Good {
        return Err(HistoryError::Revoked);
    }
    let made_at = "SELECT issued_at_us FROM operator_certificates WHERE serial = ?1";
    let made_at: i64 = transaction.query_row(made_at, [shown], |row| row.get("issued_at_us"))?;
    if made_at >= made_before.as_micros() {
        return Err(HistoryError::Invalid("this certificate need not be renewed".to_owned()));
    }
    insert_operator(transaction, operator, certificate, by.at)?;
    Ok(audit::order(transaction, by, "renew operator", &operator.to_string())?)
}

/// The certificates of operators that end after a moment, by name, the newest first.
pub(super) fn operators(main: &Connection, after: Timestamp) -> Result<Vec<OperatorCertificate>, rusqlite::Error> {
    main.prepare_cached(
        "SELECT * FROM operator_certificates WHERE expires_at_us > ?1 ORDER BY name, issued_at_us DESC, serial",
    )?
    .query_map([after.as_micros()], |row| {
        let role = coding::word(row, "role", Role::from_number)?;
        let name: String = row.get("name")?;
        Ok(OperatorCertificate {
            operator: Operator::new(&name, role).map_err(|_| rusqlite::Error::InvalidQuery)?,
            serial: row.get("serial")?,
            issued_at: coding::time(row, "issued_at_us")?,
            expires_at: coding::time(row, "expires_at_us")?,
            revoked_at: coding::time_or_null(row, "revoked_at_us")?,
        })
    })?
    .collect()
}

/// Ends everything that an operator could come in with.
pub(super) fn revoke_operator(
    transaction: &Transaction<'_>,
    name: &str,
    reason: &str,
    by: &Actor,
) -> Result<RevokedOperator, HistoryError> {
    let at = by.at.as_micros();
    let certificates = transaction.execute(
        "UPDATE operator_certificates SET revoked_at_us = ?2
         WHERE name = ?1 AND revoked_at_us IS NULL AND expires_at_us > ?2",
        params![name, at],
    )?;
    // Also those that he made for others: by one of them he could come back under another name.
    let made = [Role::Viewer, Role::Admin].map(|role| format!("operator/{role}/{name}"));
    let tokens = transaction.execute(
        "UPDATE tokens SET revoked_at_us = ?2
         WHERE (operator_name = ?1 OR created_by IN (?3, ?4)) AND revoked_at_us IS NULL AND expires_at_us > ?2
             AND uses_left > 0",
        params![name, at, made[0], made[1]],
    )?;
    let known = "SELECT EXISTS (SELECT 1 FROM operator_certificates WHERE name = ?1)
                     OR EXISTS (SELECT 1 FROM tokens WHERE operator_name = ?1) AS known";
    if !transaction.query_row(known, [name], |row| row.get::<_, bool>("known"))? {
        return Err(HistoryError::NotFound(format!("no operator is called `{name}`")));
    }
    audit::order(transaction, by, "revoke operator", &format!("{name}: {reason}"))?;
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    Ok(RevokedOperator { certificates: count(certificates), tokens: count(tokens) })
}
