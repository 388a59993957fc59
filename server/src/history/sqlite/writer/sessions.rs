//! Lives of sessions, in the file of the day, with the cursor that counts them.

use std::net::SocketAddr;

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    socket::{Direction, Known},
    time::Timestamp,
};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::{Admitted, programs::ProgramIds};
use crate::history::sqlite::coding::{OwnerColumns, address_bytes, signed, time, word};

/// Rows of a zone, about: fewer make the table of zones long, more make a search read what it does not need.
const ZONE_ROWS: i64 = 1024;

pub(super) fn store(
    transaction: &Transaction<'_>,
    one: &Admitted,
    programs: &ProgramIds,
) -> Result<(), rusqlite::Error> {
    if one.step.rebooted {
        // No snapshot has a negative number, so that none of those that are open was named by it.
        close_unnamed(transaction, one, -1)?;
    }
    for change in &one.batch.changes {
        if let Role::Session { direction, peer } = change.socket.role {
            let owners = OwnerColumns::new(&change.socket.owners, |owner| Ok(programs.of(owner)))?;
            Life { transaction, one, socket: &change.socket, direction, peer, owners }.apply(change)?;
        }
    }
    if one.step.ends_snapshot {
        close_unnamed(transaction, one, one.step.after.snapshot)?;
    }
    Ok(())
}

/// The number of the last session that is over.
pub(super) fn last_id(transaction: &Transaction<'_>) -> Result<i64, rusqlite::Error> {
    transaction.prepare_cached("SELECT coalesce(max(id), 0) AS id FROM sessions")?.query_row([], |row| row.get("id"))
}

/// Notes between which times the sessions after `before` closed.
pub(super) fn note_zone(transaction: &Transaction<'_>, before: i64) -> Result<(), rusqlite::Error> {
    let range: (Option<i64>, Option<i64>, Option<i64>) = transaction
        .prepare_cached("SELECT max(id), min(closed_at_us), max(closed_at_us) FROM sessions WHERE id > ?1")?
        .query_row([before], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let (Some(last), Some(earliest), Some(latest)) = range else { return Ok(()) };
    let extended = transaction
        .prepare_cached(
            "UPDATE zones SET last_id = ?2, min_closed_at_us = min(min_closed_at_us, ?3),
                 max_closed_at_us = max(max_closed_at_us, ?4)
             WHERE first_id = (SELECT max(first_id) FROM zones) AND last_id - first_id < ?1",
        )?
        .execute(params![ZONE_ROWS, last, earliest, latest])?;
    if extended == 0 {
        transaction
            .prepare_cached(
                "INSERT INTO zones (first_id, last_id, min_closed_at_us, max_closed_at_us) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![before + 1, last, earliest, latest])?;
    }
    Ok(())
}

/// The open row of a socket.
struct Open {
    opened_at: Timestamp,
    opened_known: Known,
    owner_known: i32,
    owners: OwnerColumns,
    is_same: bool,
}

/// A change of a session.
struct Life<'a> {
    transaction: &'a Transaction<'a>,
    one: &'a Admitted,
    socket: &'a Socket,
    direction: Direction,
    peer: SocketAddr,
    owners: OwnerColumns,
}

impl Life<'_> {
    fn apply(mut self, change: &Change) -> Result<(), rusqlite::Error> {
        match change.op {
            Op::Closed { at, known } => {
                let (open, at) = (self.take()?, self.one.corrected(at));
                self.close(open, at, known)
            }
            // Nearly always it was not known before; looking would double the work.
            Op::Opened | Op::Updated | Op::Present if self.insert()? => Ok(()),
            Op::Opened | Op::Updated | Op::Present => match self.find()? {
                Some(open) if open.is_same => {
                    // Whoever held it is not forgotten because nobody can be seen holding it now.
                    let mut owner_known = self.socket.owner_known.number();
                    if self.owners.is_empty() && !open.owners.is_empty() {
                        (owner_known, self.owners) = (open.owner_known, open.owners);
                    }
                    self.update(owner_known)
                }
                _ => {
                    // The identity of a socket is never used again, so this is another life of an unconnected one.
                    close_one(&self)?;
                    self.insert().map(drop)
                }
            },
        }
    }

    fn find(&self) -> Result<Option<Open>, rusqlite::Error> {
        self.transaction
            .prepare_cached("SELECT * FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3")?
            .query_row(params![self.one.host, self.netns(), self.cookie()], |row| self.open(row))
            .optional()
    }

    fn take(&self) -> Result<Option<Open>, rusqlite::Error> {
        self.transaction
            .prepare_cached(
                "DELETE FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3
                 RETURNING opened_at_us, opened_known, protocol, local_address, local_port, peer_address, peer_port,
                     owner_known, pid, started_at_us, program_id, more_owners",
            )?
            .query_row(params![self.one.host, self.netns(), self.cookie()], |row| self.open(row))
            .optional()
    }

    fn open(&self, row: &Row<'_>) -> Result<Open, rusqlite::Error> {
        let end = |address: &str, port: &str, end: SocketAddr| -> Result<bool, rusqlite::Error> {
            Ok(row.get_ref(address)?.as_blob()? == address_bytes(end.ip()) && row.get::<_, u16>(port)? == end.port())
        };
        Ok(Open {
            opened_at: time(row, "opened_at_us")?,
            opened_known: word(row, "opened_known", Known::from_number)?,
            owner_known: row.get("owner_known")?,
            owners: OwnerColumns::read(row)?,
            is_same: row.get::<_, i32>("protocol")? == self.socket.protocol.number()
                && end("local_address", "local_port", self.socket.local)?
                && end("peer_address", "peer_port", self.peer)?,
        })
    }

    const fn netns(&self) -> i64 {
        signed(self.socket.key.netns)
    }

    const fn cookie(&self) -> i64 {
        signed(self.socket.key.cookie)
    }

    /// Stores an open session; whether there was none of this identity.
    fn insert(&self) -> Result<bool, rusqlite::Error> {
        let Life { one, socket, direction, peer, owners, .. } = self;
        self.transaction
            .prepare_cached(
                "INSERT INTO open_sessions (host_id, netns, cookie, opened_at_us, opened_known, protocol, family,
                     direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid,
                     started_at_us, program_id, more_owners, bytes_sent, bytes_received, snapshot)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)
                 ON CONFLICT DO NOTHING",
            )?
            .execute(params![
                one.host,
                self.netns(),
                self.cookie(),
                one.corrected(socket.opened_at).as_micros(),
                socket.opened_known.number(),
                socket.protocol.number(),
                socket.family.number(),
                direction.number(),
                socket.state.number(),
                address_bytes(socket.local.ip()),
                socket.local.port(),
                address_bytes(peer.ip()),
                peer.port(),
                socket.owner_known.number(),
                owners.pid,
                owners.started_at_us,
                owners.program_id,
                owners.more,
                signed(socket.bytes_sent),
                signed(socket.bytes_received),
                one.step.after.snapshot,
            ])
            .map(|rows| rows == 1)
    }

    fn update(&self, owner_known: i32) -> Result<(), rusqlite::Error> {
        let Life { one, socket, owners, .. } = self;
        self.transaction
            .prepare_cached(
                "UPDATE open_sessions SET state = ?4, owner_known = ?5, pid = ?6, started_at_us = ?7, program_id = ?8,
                     more_owners = ?9, bytes_sent = max(bytes_sent, ?10), bytes_received = max(bytes_received, ?11),
                     snapshot = ?12
                 WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3",
            )?
            .execute(params![
                one.host,
                self.netns(),
                self.cookie(),
                socket.state.number(),
                owner_known,
                owners.pid,
                owners.started_at_us,
                owners.program_id,
                owners.more,
                signed(socket.bytes_sent),
                signed(socket.bytes_received),
                one.step.after.snapshot,
            ])
            .map(drop)
    }

    /// Stores a session that is over. What was known when it opened is kept.
    fn close(mut self, open: Option<Open>, at: Timestamp, known: Known) -> Result<(), rusqlite::Error> {
        let mut owner_known = self.socket.owner_known.number();
        let (mut opened_at, mut opened_known) = (self.one.corrected(self.socket.opened_at), self.socket.opened_known);
        if let Some(open) = open.filter(|open| open.is_same) {
            (opened_at, opened_known) = (open.opened_at, open.opened_known);
            if self.owners.is_empty() && !open.owners.is_empty() {
                (owner_known, self.owners) = (open.owner_known, open.owners);
            }
        }
        let Life { one, socket, direction, peer, owners, .. } = &self;
        self.transaction
            .prepare_cached(
                "INSERT INTO sessions (host_id, closed_at_us, duration_us, opened_known, closed_known, netns, cookie,
                     protocol, family, direction, state, local_address, local_port, peer_address, peer_port,
                     owner_known, pid, started_at_us, program_id, more_owners, bytes_sent, bytes_received)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
                     ?22)",
            )?
            .execute(params![
                one.host,
                at.max(opened_at).as_micros(),
                at.max(opened_at).as_micros() - opened_at.as_micros(),
                opened_known.number(),
                known.number(),
                self.netns(),
                self.cookie(),
                socket.protocol.number(),
                socket.family.number(),
                direction.number(),
                socket.state.number(),
                address_bytes(socket.local.ip()),
                socket.local.port(),
                address_bytes(peer.ip()),
                peer.port(),
                owner_known,
                owners.pid,
                owners.started_at_us,
                owners.program_id,
                owners.more,
                signed(socket.bytes_sent),
                signed(socket.bytes_received),
            ])
            .map(drop)
    }
}

const MOVE_LOST: &str = "INSERT INTO sessions (host_id, closed_at_us, duration_us, opened_known, closed_known, netns,
        cookie, protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid,
        started_at_us, program_id, more_owners, bytes_sent, bytes_received)
    SELECT host_id, max(opened_at_us, ?2), max(opened_at_us, ?2) - opened_at_us, opened_known, ?3, netns,
        cookie, protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid,
        started_at_us, program_id, more_owners, bytes_sent, bytes_received
    FROM open_sessions WHERE host_id = ?1";

/// Closes the open row of a socket whose end nobody saw.
fn close_one(life: &Life<'_>) -> Result<(), rusqlite::Error> {
    let Life { transaction, one, .. } = life;
    let lost = (one.step.last_observed.as_micros(), Known::Lost.number());
    transaction.prepare_cached(&format!("{MOVE_LOST} AND netns = ?4 AND cookie = ?5"))?.execute(params![
        one.host,
        lost.0,
        lost.1,
        life.netns(),
        life.cookie()
    ])?;
    transaction
        .prepare_cached("DELETE FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3")?
        .execute(params![one.host, life.netns(), life.cookie()])
        .map(drop)
}

/// Closes what is open and was not named by a snapshot: when, nobody saw.
fn close_unnamed(transaction: &Transaction<'_>, one: &Admitted, snapshot: i64) -> Result<(), rusqlite::Error> {
    let lost = (one.step.last_observed.as_micros(), Known::Lost.number());
    transaction
        .prepare_cached(&format!("{MOVE_LOST} AND snapshot <> ?4"))?
        .execute(params![one.host, lost.0, lost.1, snapshot])?;
    transaction
        .prepare_cached("DELETE FROM open_sessions WHERE host_id = ?1 AND snapshot <> ?2")?
        .execute(params![one.host, snapshot])
        .map(drop)
}
