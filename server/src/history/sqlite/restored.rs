//! What a restore writes into the history that it puts in place: that it happened, and what the history that was there knows
//! of who may speak.
//!
//! Revocations, spent tokens and certificates of the time since the backup are carried over when the history that was there
//! can be read and is the same one, gone on: its audit log has the last row of the backup's, with the same hash. Then nothing
//! has to be guessed, and nothing is taken up later ([`crate::history::adoption`]).
//!
//! What refuses is carried over from every history of the state folder that can be read, also from one that is no
//! continuation of the backup: a restore must not give access back that was taken away.

use std::path::{Path, PathBuf};

use fleetsock_proto::{
    host::HostId,
    time::Timestamp,
    token::{Operator, Role},
};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    coding,
    database::{OpenError, engine, main_file, open_for_reading, open_main_for_writing},
    registry,
};
use crate::history::{Actor, adoption::Lost};

/// What was carried over from the history that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// All that it knows of who may speak: so many hosts that were revoked since the backup, and certificates of operators.
    Over {
        /// Hosts.
        hosts_revoked: usize,
        /// Certificates of operators.
        operators_revoked: usize,
    },
    /// Only what refuses, from histories that are not the backup's, gone on: so many hosts and certificates of operators that
    /// were revoked, and what is left of tokens.
    Refusals {
        /// Hosts.
        hosts_revoked: usize,
        /// Certificates of operators.
        operators_revoked: usize,
    },
    /// Nothing: there was no history, or none that can be read.
    Nothing,
}

/// Writes into the history in `waiting` that it was restored, after carrying over what the one in `before` knows, and what
/// refuses in those that were set `aside` by earlier restores.
pub fn note_restore(
    waiting: &Path,
    before: Option<&Path>,
    aside: &[PathBuf],
    lost: Lost,
) -> Result<Carried, OpenError> {
    let path = main_file(waiting).1;
    let mut main = open_main_for_writing(&path)?;
    let failed = |error: rusqlite::Error| engine(&path, &error);
    let mut carried = Carried::Nothing;
    let in_use = before.into_iter().map(|before| (before, Place::InUse));
    for (old, place) in in_use.chain(aside.iter().map(|old| (old.as_path(), Place::Aside))) {
        let old = main_file(old).1;
        if !old.exists() {
            continue;
        }
        match carry_over(&mut main, &old, place) {
            Ok(more) => carried = carried.and(more),
            Err(error) => tracing::warn!(file = %old.display(), %error, "a history that was there cannot be read"),
        }
    }
    let transaction = main.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    note(&transaction, lost, carried).map_err(failed)?;
    transaction.commit().map_err(failed)?;
    Ok(carried)
}

/// Where a history is that was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is the one that the backup replaces.
    InUse,
    /// An earlier restore replaced it.
    Aside,
}

impl Carried {
    /// This and more from an older history.
    fn and(self, more: Carried) -> Carried {
        let counts = |carried| match carried {
            Carried::Over { hosts_revoked, operators_revoked } => (hosts_revoked, operators_revoked),
            Carried::Refusals { hosts_revoked, operators_revoked } => (hosts_revoked, operators_revoked),
            Carried::Nothing => (0, 0),
        };
        let ((hosts, operators), (more_hosts, more_operators)) = (counts(self), counts(more));
        let (hosts_revoked, operators_revoked) = (hosts + more_hosts, operators + more_operators);
        match (self, more) {
            (Carried::Nothing, Carried::Nothing) => Carried::Nothing,
            (Carried::Over { .. }, _) | (_, Carried::Over { .. }) => Carried::Over { hosts_revoked, operators_revoked },
            _ => Carried::Refusals { hosts_revoked, operators_revoked },
        }
    }
}

fn note(transaction: &Transaction<'_>, lost: Lost, carried: Carried) -> Result<(), rusqlite::Error> {
    let Lost { taken_at, restored_at } = lost;
    transaction.execute(
        "INSERT INTO restores (taken_at_us, restored_at_us, adopts) VALUES (?1, ?2, ?3)",
        params![taken_at.as_micros(), restored_at.as_micros(), !matches!(carried, Carried::Over { .. })],
    )?;
    let by = Actor { name: "local".to_owned(), address: String::new(), at: restored_at };
    let detail = match carried {
        Carried::Over { hosts_revoked, operators_revoked } => format!(
            "a backup; from the history before it: certificates, tokens, {hosts_revoked} revoked hosts, \
             {operators_revoked} revoked certificates of operators"
        ),
        Carried::Refusals { hosts_revoked, operators_revoked } => format!(
            "a backup; from histories that do not follow it: spent tokens, {hosts_revoked} revoked hosts, \
             {operators_revoked} revoked certificates of operators; certificates made since then are taken up when they \
             are shown"
        ),
        Carried::Nothing => "a backup; certificates made since then are taken up when they are shown".to_owned(),
    };
    registry::note_order_in(transaction, &by, "restore", &detail)
}

/// Whether `old` is the history of the backup, gone on.
fn goes_on(main: &Connection, old: &Connection) -> Result<bool, rusqlite::Error> {
    let head = "SELECT last, hash FROM audit_head";
    let (last, hash): (i64, Vec<u8>) = main.query_row(head, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let found: Option<Vec<u8>> =
        old.query_row("SELECT hash FROM audit WHERE id = ?1", [last], |row| row.get(0)).optional()?;
    Ok(found == Some(hash))
}

fn carry_over(main: &mut Connection, old: &Path, place: Place) -> Result<Carried, rusqlite::Error> {
    let reader = open_for_reading(old)?;
    let goes_on = place == Place::InUse && goes_on(main, &reader)?;
    let transaction = main.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let hosts_revoked = revoked_hosts(&transaction, &reader)?;
    if goes_on {
        host_certificates(&transaction, &reader)?;
    }
    let operators_revoked = operators(&transaction, &reader, if goes_on { ALL } else { REVOKED })?;
    tokens(&transaction, &reader)?;
    transaction.commit()?;
    Ok(match goes_on {
        true => Carried::Over { hosts_revoked, operators_revoked },
        false => Carried::Refusals { hosts_revoked, operators_revoked },
    })
}

fn revoked_hosts(transaction: &Transaction<'_>, old: &Connection) -> Result<usize, rusqlite::Error> {
    let mut revoked =
        old.prepare("SELECT host_id, revoked_at_us, revoked_reason FROM hosts WHERE revoked_at_us IS NOT NULL")?;
    let mut update = transaction.prepare(
        "UPDATE hosts SET revoked_at_us = ?2, revoked_reason = ?3 WHERE host_id = ?1 AND revoked_at_us IS NULL",
    )?;
    let (mut rows, mut count) = (revoked.query([])?, 0);
    while let Some(row) = rows.next()? {
        let (host, at, why): (Vec<u8>, i64, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        count += update.execute(params![host, at, why])?;
    }
    Ok(count)
}

/// The certificates of the hosts that the backup knows, as they were at the end.
fn host_certificates(transaction: &Transaction<'_>, old: &Connection) -> Result<(), rusqlite::Error> {
    let mut all = old.prepare(
        "SELECT c.serial, h.host_id, c.state, c.issued_at_us, c.expires_at_us
         FROM host_certificates c JOIN hosts h ON h.id = c.host_id",
    )?;
    let mut put = transaction.prepare(
        "INSERT INTO host_certificates (serial, host_id, state, issued_at_us, expires_at_us)
         SELECT ?1, id, ?3, ?4, ?5 FROM hosts WHERE host_id = ?2
         ON CONFLICT (serial) DO UPDATE SET state = excluded.state",
    )?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        let (serial, host): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let (state, issued, expires): (i64, i64, i64) = (row.get(2)?, row.get(3)?, row.get(4)?);
        put.execute(params![serial, host, state, issued, expires])?;
    }
    Ok(())
}

/// Which certificates of operators are carried over.
const ALL: &str = "SELECT serial, name, role, issued_at_us, expires_at_us, revoked_at_us FROM operator_certificates";
const REVOKED: &str = "SELECT serial, name, role, issued_at_us, expires_at_us, revoked_at_us FROM operator_certificates
    WHERE revoked_at_us IS NOT NULL";

/// The certificates of the operators that the backup knows; how many were revoked since.
fn operators(transaction: &Transaction<'_>, old: &Connection, which: &str) -> Result<usize, rusqlite::Error> {
    let mut all = old.prepare(which)?;
    let mut put = transaction.prepare(
        "INSERT INTO operator_certificates (serial, name, role, issued_at_us, expires_at_us, revoked_at_us)
         SELECT ?1, ?2, ?3, ?4, ?5, ?6
         WHERE EXISTS (SELECT 1 FROM operator_certificates WHERE name = ?2 AND role = ?3)
         ON CONFLICT (serial) DO NOTHING",
    )?;
    let mut revoke = transaction
        .prepare("UPDATE operator_certificates SET revoked_at_us = ?2 WHERE serial = ?1 AND revoked_at_us IS NULL")?;
    let (mut rows, mut count) = (all.query([])?, 0);
    while let Some(row) = rows.next()? {
        let (serial, name, role): (Vec<u8>, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
        let (issued, expires, revoked): (i64, i64, Option<i64>) = (row.get(3)?, row.get(4)?, row.get(5)?);
        put.execute(params![serial, name, role, issued, expires, revoked])?;
        if let Some(at) = revoked {
            count += revoke.execute(params![serial, at])?;
        }
    }
    Ok(count)
}

/// What was spent or revoked since the backup must not be good again.
fn tokens(transaction: &Transaction<'_>, old: &Connection) -> Result<(), rusqlite::Error> {
    let mut all = old.prepare("SELECT token_id, uses_left, revoked_at_us FROM tokens")?;
    let mut update = transaction.prepare(
        "UPDATE tokens SET uses_left = min(uses_left, ?2), revoked_at_us = coalesce(revoked_at_us, ?3)
         WHERE token_id = ?1",
    )?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        let (token, left, revoked): (String, i64, Option<i64>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        update.execute(params![token, left, revoked])?;
    }
    Ok(())
}

/// Who may speak by what a history knows: what was revoked after it was backed up is among them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unsure {
    /// Names of operators, with their roles.
    pub operators: Vec<Operator>,
    /// Names and ids of hosts.
    pub hosts: Vec<(String, HostId)>,
    /// Ids of tokens that can be used.
    pub tokens: Vec<String>,
}

/// Who may speak at that moment, by the history in a folder.
pub fn unsure(history: &Path, now: Timestamp) -> Result<Unsure, OpenError> {
    let path = main_file(history).1;
    let found = open_for_reading(&path).and_then(|main| read_unsure(&main, now));
    found.map_err(|error| engine(&path, &error))
}

fn read_unsure(main: &Connection, now: Timestamp) -> Result<Unsure, rusqlite::Error> {
    let mut unsure = Unsure::default();
    let mut operators = main.prepare(
        "SELECT DISTINCT name, role FROM operator_certificates WHERE revoked_at_us IS NULL AND expires_at_us > ?1
         ORDER BY name, role",
    )?;
    let mut rows = operators.query([now.as_micros()])?;
    while let Some(row) = rows.next()? {
        let role = coding::word(row, "role", Role::from_number)?;
        let operator = Operator::new(&row.get::<_, String>("name")?, role);
        unsure.operators.push(operator.map_err(|error| coding::wrong("name", error.to_string()))?);
    }
    let mut hosts =
        main.prepare("SELECT name, host_id FROM hosts WHERE revoked_at_us IS NULL ORDER BY name, host_id")?;
    let mut rows = hosts.query([])?;
    while let Some(row) = rows.next()? {
        unsure.hosts.push((row.get("name")?, HostId::from_array(row.get("host_id")?)));
    }
    let mut tokens = main.prepare(
        "SELECT token_id FROM tokens WHERE revoked_at_us IS NULL AND uses_left > 0 AND expires_at_us > ?1 ORDER BY token_id",
    )?;
    let mut rows = tokens.query([now.as_micros()])?;
    while let Some(row) = rows.next()? {
        unsure.tokens.push(row.get("token_id")?);
    }
    Ok(unsure)
}

/// The part of the history that is lost and from which certificates are taken up, if any.
pub(super) fn lost(main: &Connection) -> Result<Option<Lost>, rusqlite::Error> {
    let latest = "SELECT taken_at_us, restored_at_us, adopts FROM restores ORDER BY id DESC LIMIT 1";
    let found: Option<(i64, i64, bool)> =
        main.query_row(latest, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    let moment = Timestamp::from_micros;
    Ok(found
        .filter(|(_, _, adopts)| *adopts)
        .map(|(taken, restored, _)| Lost { taken_at: moment(taken), restored_at: moment(restored) }))
}
