//! What is noted of sessions that are over, beside their rows, while they are stored: in which zone and in which run each is, and who
//! its peer is.

use std::net::IpAddr;

use fleetsock_proto::socket::Direction;
use rusqlite::{Transaction, params};

use super::{indexing::Unindexed, runs::Runs, zones::Zones};
use crate::history::sqlite::{
    coding,
    cubes::{Facts, Service},
    sums::Counts,
};

/// A row of `sessions`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended {
    pub(super) id: i64,
    pub(super) host_id: i64,
    pub(super) closed_at_us: i64,
    pub(super) opened_at_us: i64,
    pub(super) peer: IpAddr,
    pub(super) service: Service,
    /// Of the primary owner; 0 for none.
    pub(super) program_id: i64,
    pub(super) counts: Counts,
}

impl Ended {
    /// Shows the rows after this one, in their order.
    pub(super) fn each_after(
        transaction: &Transaction<'_>,
        id: i64,
        mut show: impl FnMut(&Ended) -> Result<(), rusqlite::Error>,
    ) -> Result<(), rusqlite::Error> {
        let mut statement = transaction.prepare_cached(
            "SELECT id, host_id, closed_at_us, closed_at_us - duration_us, peer_address, direction, protocol, family,
                 iif(direction = ?2, local_port, peer_port), program_id, bytes_sent, bytes_received
             FROM sessions WHERE id > ?1 ORDER BY id",
        )?;
        let mut rows = statement.query(params![id, Direction::In.number()])?;
        while let Some(row) = rows.next()? {
            let [id, host_id, closed_at_us, opened_at_us] = [row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?];
            let peer = coding::address_of(row.get_ref(4)?)?;
            let (direction, protocol, family, port) = (row.get(5)?, row.get(6)?, row.get(7)?, row.get(8)?);
            let service = Service { direction, protocol, family, port };
            let counts = Counts::one(row.get(10)?, row.get(11)?);
            let program_id = row.get(9)?;
            show(&Ended { id, host_id, closed_at_us, opened_at_us, peer, service, program_id, counts })?;
        }
        Ok(())
    }

    /// What it is counted by.
    pub(super) const fn facts(&self) -> Facts {
        let Ended { host_id, closed_at_us, opened_at_us, service, program_id, counts, .. } = *self;
        Facts { host_id, opened_at_us, closed_at_us, service, program_id, counts }
    }
}

/// What is noted within a transaction.
pub(super) struct Noting<'w> {
    /// The number of the last row that is noted.
    last_id: i64,
    zones: Zones,
    runs: Runs,
    unindexed: &'w mut Unindexed,
}

impl Noting<'_> {
    /// Goes on after the last row that there is.
    pub(super) fn resume<'w>(
        transaction: &Transaction<'_>,
        unindexed: &'w mut Unindexed,
    ) -> Result<Noting<'w>, rusqlite::Error> {
        let mut statement = transaction.prepare_cached("SELECT coalesce(max(id), 0) AS id FROM sessions")?;
        let last_id = statement.query_row([], |row| row.get("id"))?;
        unindexed.resume(transaction, last_id)?;
        Ok(Noting { last_id, zones: Zones::default(), runs: Runs::default(), unindexed })
    }

    /// Notes the row that was added.
    pub(super) fn add(&mut self, transaction: &Transaction<'_>, ended: &Ended) -> Result<(), rusqlite::Error> {
        self.last_id = ended.id;
        self.zones.add(transaction, ended)?;
        self.runs.add(transaction, ended)?;
        self.unindexed.add(transaction, ended)
    }

    /// Notes the rows that were added without being known.
    pub(super) fn catch_up(&mut self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        Ended::each_after(transaction, self.last_id, |ended| self.add(transaction, ended))
    }

    /// Stores what was noted.
    pub(super) fn finish(&mut self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.zones.finish(transaction)?;
        self.runs.finish(transaction)
    }
}
