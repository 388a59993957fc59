//! A session as it is stored, in whichever kind of file.

use std::net::{IpAddr, SocketAddr};

use rusqlite::Row;

use super::coding::{self, OwnerColumns};

/// The columns that open sessions and those that are over have in common, in the order of [`StoredSession::read`].
macro_rules! common {
    () => {
        "host_id, netns, cookie, opened_known, protocol, family, direction, state, local_address, local_port, \
         peer_address, peer_port, owner_known, pid, started_at_us, program_id, more_owners, bytes_sent, bytes_received"
    };
}

/// What is selected of `open_sessions` for [`StoredSession::open`].
pub(super) const OPEN: &str = concat!(common!(), ", opened_at_us");
/// What is selected of `sessions` for [`StoredSession::over`].
pub(super) const OVER: &str = concat!(common!(), ", closed_at_us, duration_us, closed_known");
/// How many columns they have in common.
const COMMON: usize = 19;
/// How many columns [`OVER`] is.
pub(super) const OVER_COLUMNS: usize = COMMON + 3;

/// A session. Words are numbers still, because most rows that are read are not meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StoredSession {
    pub(super) host_id: i64,
    pub(super) netns: i64,
    pub(super) cookie: i64,
    pub(super) protocol: i32,
    pub(super) family: i32,
    pub(super) direction: i32,
    pub(super) state: i32,
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) owners: OwnerColumns,
    pub(super) bytes_sent: i64,
    pub(super) bytes_received: i64,
    pub(super) opened_at_us: i64,
    pub(super) opened_known: i32,
    /// When it closed, and how that is known.
    pub(super) closed: Option<(i64, i32)>,
}

impl StoredSession {
    /// Reads a row of [`OPEN`].
    pub(super) fn open(row: &Row<'_>) -> Result<StoredSession, rusqlite::Error> {
        StoredSession::read(row, row.get(COMMON)?, None)
    }

    /// Reads a row of [`OVER`].
    pub(super) fn over(row: &Row<'_>) -> Result<StoredSession, rusqlite::Error> {
        let [closed_at_us, duration_us]: [i64; 2] = [row.get(COMMON)?, row.get(COMMON + 1)?];
        StoredSession::read(row, closed_at_us - duration_us, Some((closed_at_us, row.get(COMMON + 2)?)))
    }

    /// When it closed, us; of one that is open, when it opened.
    pub(super) fn closed_at_us(&self) -> i64 {
        self.closed.map_or(self.opened_at_us, |(at, _)| at)
    }

    // By number, because looking a column up by its name costs more than reading it.
    fn read(row: &Row<'_>, opened_at_us: i64, closed: Option<(i64, i32)>) -> Result<StoredSession, rusqlite::Error> {
        Ok(StoredSession {
            host_id: row.get(0)?,
            netns: row.get(1)?,
            cookie: row.get(2)?,
            opened_known: row.get(3)?,
            protocol: row.get(4)?,
            family: row.get(5)?,
            direction: row.get(6)?,
            state: row.get(7)?,
            local: SocketAddr::new(address(row, 8)?, row.get(9)?),
            peer: SocketAddr::new(address(row, 10)?, row.get(11)?),
            owners: OwnerColumns {
                known: row.get(12)?,
                pid: row.get(13)?,
                started_at_us: row.get(14)?,
                program_id: row.get(15)?,
                more: row.get(16)?,
            },
            bytes_sent: row.get(17)?,
            bytes_received: row.get(18)?,
            opened_at_us,
            closed,
        })
    }
}

fn address(row: &Row<'_>, column: usize) -> Result<IpAddr, rusqlite::Error> {
    coding::address_of(row.get_ref(column)?)
}
