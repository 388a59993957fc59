//! Lives of sessions, in the file of the day, with the cursor that counts them.

use std::net::SocketAddr;

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    socket::{Direction, Known, Protocol},
    time::Timestamp,
};
use rusqlite::{CachedStatement, OptionalExtension, Row, Transaction, params};

use super::{
    Admitted,
    indexing::Unindexed,
    noting::{Ended, Noting},
    programs::ProgramIds,
};
use crate::history::sqlite::{
    coding::{AddressBytes, OwnerColumns, signed, time, word},
    courtesy::Courtesy,
    cubes::Service,
    sums::Counts,
};

/// The table of sessions within a transaction. Its statements are prepared once: for every row again, looking them up
/// would cost as much as some of them do.
pub(super) struct Sessions<'a> {
    transaction: &'a Transaction<'a>,
    find: CachedStatement<'a>,
    begin: CachedStatement<'a>,
    forget: CachedStatement<'a>,
    end: CachedStatement<'a>,
    noting: Noting<'a>,
    courtesy: &'a mut Courtesy,
}

impl<'a> Sessions<'a> {
    pub(super) fn of(
        transaction: &'a Transaction<'a>,
        unindexed: &'a mut Unindexed,
        courtesy: &'a mut Courtesy,
    ) -> Result<Sessions<'a>, rusqlite::Error> {
        Ok(Sessions {
            transaction,
            find: transaction.prepare_cached(FIND)?,
            begin: transaction.prepare_cached(BEGIN)?,
            forget: transaction.prepare_cached(FORGET)?,
            end: transaction.prepare_cached(END)?,
            noting: Noting::resume(transaction, unindexed)?,
            courtesy,
        })
    }

    pub(super) fn store(&mut self, one: &Admitted, programs: &ProgramIds) -> Result<(), rusqlite::Error> {
        if one.step.rebooted {
            // No snapshot has a negative number, so that none of those that are open was named by it.
            self.close_unnamed(one, -1)?;
        }
        for change in &one.batch.changes {
            self.courtesy.let_pass();
            if let Role::Session { direction, peer } = change.socket.role {
                let socket = &change.socket;
                let owners = OwnerColumns::new(socket.owner_known, &socket.owners, |owner| Ok(programs.of(owner)))?;
                Life { one, socket, direction, peer, owners }.apply(self, change)?;
            }
        }
        if one.step.ends_snapshot {
            self.close_unnamed(one, one.step.after.snapshot)?;
        }
        Ok(())
    }

    /// Closes what is open and was not named by a snapshot: when, nobody saw.
    fn close_unnamed(&mut self, one: &Admitted, snapshot: i64) -> Result<(), rusqlite::Error> {
        let lost = (one.step.last_observed.as_micros(), Known::Lost.number());
        self.transaction.prepare_cached(LOSE_UNNAMED)?.execute(params![one.host, lost.0, lost.1, snapshot])?;
        self.noting.catch_up(self.transaction)?;
        self.transaction
            .prepare_cached("DELETE FROM open_sessions WHERE host_id = ?1 AND snapshot <> ?2")?
            .execute(params![one.host, snapshot])
            .map(drop)
    }

    /// Stores what is noted of the sessions that are over.
    pub(super) fn finish(mut self) -> Result<(), rusqlite::Error> {
        self.noting.finish(self.transaction)
    }
}

/// The open row of a socket.
struct Open {
    opened_at: Timestamp,
    opened_known: Known,
    owners: OwnerColumns,
    bytes_sent: i64,
    bytes_received: i64,
    is_same: bool,
}

/// A change of a session.
struct Life<'a> {
    one: &'a Admitted,
    socket: &'a Socket,
    direction: Direction,
    peer: SocketAddr,
    owners: OwnerColumns,
}

impl Life<'_> {
    fn apply(self, table: &mut Sessions<'_>, change: &Change) -> Result<(), rusqlite::Error> {
        match change.op {
            Op::Closed { at, known } => {
                let open = match self.find(table)? {
                    Some(open) if open.is_same => {
                        table.forget.execute(params![self.one.host, self.netns(), self.cookie()])?;
                        Some(open)
                    }
                    Some(_) => {
                        self.lose(table)?;
                        None
                    }
                    None => None,
                };
                let at = self.one.corrected(at);
                self.end(table, open, at, known)
            }
            Op::Present if self.may_have_another_key() => {
                self.adopt(table)?;
                self.open(table)
            }
            Op::Opened | Op::Updated | Op::Present => self.open(table),
        }
    }

    /// Stores that it is open, whether that was known or not.
    fn open(self, table: &mut Sessions<'_>) -> Result<(), rusqlite::Error> {
        // Nearly always it was not known before; looking would double the work.
        if self.begin(table)? {
            return Ok(());
        }
        match self.find(table)? {
            Some(open) if open.is_same => Life { owners: self.owners.or(open.owners), ..self }.update(table),
            _ => {
                self.lose(table)?;
                self.begin(table).map(drop)
            }
        }
    }

    /// Whether an agent that was there before may have told of it by its cookie, which this one did not learn.
    fn may_have_another_key(&self) -> bool {
        self.socket.protocol == Protocol::Tcp && self.socket.key.is_stand_in()
    }

    /// Gives the open session with this pair this key, unless the snapshot that is told named it by its own.
    fn adopt(&self, table: &Sessions<'_>) -> Result<(), rusqlite::Error> {
        let Life { one, socket, peer, .. } = self;
        table
            .transaction
            .prepare_cached(ADOPT)?
            .execute(params![
                one.host,
                self.netns(),
                self.cookie(),
                socket.protocol.number(),
                AddressBytes::of(socket.local.ip()),
                socket.local.port(),
                AddressBytes::of(peer.ip()),
                peer.port(),
                one.step.after.snapshot,
            ])
            .map(drop)
    }

    fn find(&self, table: &mut Sessions<'_>) -> Result<Option<Open>, rusqlite::Error> {
        table
            .find
            .query_row([self.one.host, self.netns(), self.cookie()], |row| {
                Ok(Open {
                    opened_at: time(row, "opened_at_us")?,
                    opened_known: word(row, "opened_known", Known::from_number)?,
                    owners: OwnerColumns::read(row)?,
                    bytes_sent: row.get("bytes_sent")?,
                    bytes_received: row.get("bytes_received")?,
                    is_same: self.is_of(row)?,
                })
            })
            .optional()
    }

    /// Whether an open row has these sockets.
    fn is_of(&self, row: &Row<'_>) -> Result<bool, rusqlite::Error> {
        let Life { socket, peer, .. } = self;
        let is_at = |address: &str, port: &str, end: &SocketAddr| {
            let same = row.get_ref(address)?.as_blob_or_null()? == Some(AddressBytes::of(end.ip()).as_slice());
            Ok::<_, rusqlite::Error>(same && row.get::<_, u16>(port)? == end.port())
        };
        Ok(row.get::<_, i32>("protocol")? == socket.protocol.number()
            && is_at("local_address", "local_port", &socket.local)?
            && is_at("peer_address", "peer_port", peer)?)
    }

    const fn netns(&self) -> i64 {
        signed(self.socket.key.netns)
    }

    const fn cookie(&self) -> i64 {
        signed(self.socket.key.cookie)
    }

    /// Stores an open session; whether there was none of this identity.
    fn begin(&self, table: &mut Sessions<'_>) -> Result<bool, rusqlite::Error> {
        let Life { one, socket, direction, peer, owners } = self;
        table
            .begin
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
                AddressBytes::of(socket.local.ip()),
                socket.local.port(),
                AddressBytes::of(peer.ip()),
                peer.port(),
                owners.known,
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

    fn update(&self, table: &Sessions<'_>) -> Result<(), rusqlite::Error> {
        let Life { one, socket, owners, .. } = self;
        table
            .transaction
            .prepare_cached(UPDATE)?
            .execute(params![
                one.host,
                self.netns(),
                self.cookie(),
                socket.state.number(),
                owners.known,
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

    /// Closes the open row of another life of the same socket. The identity of a socket is never used again, so that
    /// this can only be an unconnected one that connected elsewhere; when, nobody saw.
    fn lose(&self, table: &mut Sessions<'_>) -> Result<(), rusqlite::Error> {
        let (at, known) = (self.one.step.last_observed.as_micros(), Known::Lost.number());
        let key = (self.one.host, self.netns(), self.cookie());
        table.transaction.prepare_cached(LOSE_ONE)?.execute(params![key.0, at, known, key.1, key.2])?;
        table.noting.catch_up(table.transaction)?;
        table.forget.execute(key).map(drop)
    }

    /// Stores a session that is over. What was known while it was open is kept.
    fn end(
        self,
        table: &mut Sessions<'_>,
        open: Option<Open>,
        at: Timestamp,
        known: Known,
    ) -> Result<(), rusqlite::Error> {
        let Life { one, socket, direction, peer, mut owners } = self;
        let (mut opened_at, mut opened_known) = (one.corrected(socket.opened_at), socket.opened_known);
        let (mut sent, mut received) = (signed(socket.bytes_sent), signed(socket.bytes_received));
        if let Some(open) = open {
            // An event told later is better than what a walk knew.
            if open.opened_known == Known::Event || opened_known != Known::Event {
                (opened_at, opened_known) = (open.opened_at, open.opened_known);
            }
            (sent, received) = (sent.max(open.bytes_sent), received.max(open.bytes_received));
            owners = owners.or(open.owners);
        }
        let (closed_at_us, opened_at_us) = (at.max(opened_at).as_micros(), opened_at.as_micros());
        let id = table.end.insert(params![
            one.host,
            closed_at_us,
            closed_at_us - opened_at_us,
            opened_known.number(),
            known.number(),
            signed(socket.key.netns),
            signed(socket.key.cookie),
            socket.protocol.number(),
            socket.family.number(),
            direction.number(),
            socket.state.number(),
            AddressBytes::of(socket.local.ip()),
            socket.local.port(),
            AddressBytes::of(peer.ip()),
            peer.port(),
            owners.known,
            owners.pid,
            owners.started_at_us,
            owners.program_id,
            owners.more,
            sent,
            received,
        ])?;
        let service = Service {
            direction: direction.number(),
            protocol: socket.protocol.number(),
            family: socket.family.number(),
            port: if direction == Direction::In { socket.local.port() } else { peer.port() },
        };
        let (host_id, program_id, counts) = (one.host, owners.program_id, Counts::one(sent, received));
        let peer = peer.ip();
        table.noting.add(
            table.transaction,
            &Ended { id, host_id, closed_at_us, opened_at_us, peer, service, program_id, counts },
        )
    }
}

const FIND: &str = "SELECT opened_at_us, opened_known, owner_known, pid, started_at_us, program_id, more_owners,
        bytes_sent, bytes_received, protocol, local_address, local_port, peer_address, peer_port
    FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3";

/// A stand-in's network namespace is 0 where nobody was left to tell it.
const ADOPT: &str = "UPDATE OR IGNORE open_sessions SET netns = ?2, cookie = ?3
    WHERE host_id = ?1 AND protocol = ?4 AND local_address = ?5 AND local_port = ?6 AND peer_address = ?7
        AND peer_port = ?8 AND snapshot <> ?9 AND (?2 = 0 OR netns = ?2)";

const BEGIN: &str = "INSERT INTO open_sessions (host_id, netns, cookie, opened_at_us, opened_known, protocol, family,
        direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid, started_at_us,
        program_id, more_owners, bytes_sent, bytes_received, snapshot)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21)
    ON CONFLICT DO NOTHING";

const UPDATE: &str = "UPDATE open_sessions SET state = ?4, owner_known = ?5, pid = ?6, started_at_us = ?7,
        program_id = ?8, more_owners = ?9, bytes_sent = max(bytes_sent, ?10), bytes_received = max(bytes_received, ?11),
        snapshot = ?12
    WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3";

const FORGET: &str = "DELETE FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3";

const END: &str = "INSERT INTO sessions (host_id, closed_at_us, duration_us, opened_known, closed_known, netns, cookie,
        protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid,
        started_at_us, program_id, more_owners, bytes_sent, bytes_received)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";

/// A statement that stores open sessions as over, with the condition that says which.
macro_rules! lose {
    ($which:literal) => {
        concat!(
            "INSERT INTO sessions (host_id, closed_at_us, duration_us, opened_known, closed_known, netns, cookie,
                 protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known,
                 pid, started_at_us, program_id, more_owners, bytes_sent, bytes_received)
             SELECT host_id, max(opened_at_us, ?2), max(opened_at_us, ?2) - opened_at_us, opened_known, ?3, netns, cookie,
                 protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known,
                 pid, started_at_us, program_id, more_owners, bytes_sent, bytes_received
             FROM open_sessions WHERE host_id = ?1 AND ",
            $which
        )
    };
}

const LOSE_ONE: &str = lose!("netns = ?4 AND cookie = ?5");
const LOSE_UNNAMED: &str = lose!("snapshot <> ?4");
