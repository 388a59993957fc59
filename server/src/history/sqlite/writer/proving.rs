//! Holds the digests of agents against the rows that are open.
//!
//! The rows are read within the transactions that store the batch, so that they are those as of its number: listeners in the
//! one of `main.db`, sessions in the one of the file of the day.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    digest::{Difference, Digest},
    socket::{Protocol, SocketKey},
};
use rusqlite::{Row, Transaction, params};

use super::Admitted;
use crate::history::{
    proof::{Proof, Wish},
    sqlite::coding::{address_of, listen_address, unsigned, word},
};

/// What is known of the tables of all hosts that told digests, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Proving {
    hosts: HashMap<i64, Proof>,
}

/// A digest that is held against rows.
#[derive(Debug, Default)]
pub(super) struct Check {
    found: Digest,
    took: Duration,
}

/// For each batch of a group whether its digest is held against the rows.
pub(super) type Checks = Vec<Option<Check>>;

/// What came of a check.
#[derive(Debug)]
pub(super) struct Finding {
    /// The place of the batch in its group.
    pub(super) place: usize,
    /// How the tables differ, if they do, and what is wanted then.
    pub(super) difference: Option<(Difference, Wish)>,
    pub(super) took: Duration,
}

impl Proving {
    /// Decides which digests of a group are looked at: of each host the last one.
    pub(super) fn begin(&mut self, admitted: &[Admitted], now: Instant) -> Checks {
        let mut looked_at = HashSet::new();
        let mut checks: Checks = admitted.iter().map(|_| None).collect();
        for (one, check) in admitted.iter().zip(&mut checks).rev() {
            let can_be = one.batch.digest.is_some() && !one.step.after.unfinished;
            if !can_be && !one.step.ends_snapshot {
                continue;
            }
            let proof = self.hosts.entry(one.host).or_default();
            let is_due = can_be && proof.is_due(one.step.ends_snapshot, now);
            if one.step.ends_snapshot {
                proof.named_everything();
            }
            if is_due && looked_at.insert(one.host) {
                *check = Some(Check::default());
            }
        }
        checks
    }

    /// Takes what was found for a group that is stored.
    pub(super) fn conclude(&mut self, admitted: &[Admitted], checks: Checks, now: Instant) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (place, (one, check)) in admitted.iter().zip(checks).enumerate() {
            let (Some(told), Some(Check { found, took })) = (&one.batch.digest, check) else { continue };
            let proof = self.hosts.entry(one.host).or_default();
            let difference =
                told.difference(&found).map(|difference| (difference, proof.different(now, found.items())));
            if difference.is_none() {
                proof.equal(now, found.items());
            }
            findings.push(Finding { place, difference, took });
        }
        findings
    }

    /// Batches of a host will never come.
    pub(super) fn lost_batches(&mut self, host: i64) {
        self.hosts.entry(host).or_default().lost_batches();
    }
}

impl Check {
    /// Reads the listeners that are open.
    pub(super) fn read_listeners(&mut self, transaction: &Transaction<'_>, host: i64) -> Result<(), rusqlite::Error> {
        let sql = "SELECT netns, cookie, protocol, address, port FROM listeners INDEXED BY listeners_open
             WHERE host_id = ?1 AND closed_at_us IS NULL";
        self.read(transaction, (sql, host), |row, found| {
            let (address, port) = (listen_address(row.get_ref("address")?)?, row.get("port")?);
            found.add_listener(key(row)?, word(row, "protocol", Protocol::from_number)?, &address, port);
            Ok(())
        })
    }

    /// Reads the sessions that are open.
    pub(super) fn read_sessions(&mut self, transaction: &Transaction<'_>, host: i64) -> Result<(), rusqlite::Error> {
        let sql = "SELECT netns, cookie, protocol, local_address, local_port, peer_address, peer_port
             FROM open_sessions WHERE host_id = ?1";
        self.read(transaction, (sql, host), |row, found| {
            let local = SocketAddr::new(address_of(row.get_ref("local_address")?)?, row.get("local_port")?);
            let peer = SocketAddr::new(address_of(row.get_ref("peer_address")?)?, row.get("peer_port")?);
            found.add_session(key(row)?, word(row, "protocol", Protocol::from_number)?, local, peer);
            Ok(())
        })
    }

    fn read(
        &mut self,
        transaction: &Transaction<'_>,
        (sql, host): (&str, i64),
        add: impl Fn(&Row<'_>, &mut Digest) -> Result<(), rusqlite::Error>,
    ) -> Result<(), rusqlite::Error> {
        let began = Instant::now();
        let mut statement = transaction.prepare_cached(sql)?;
        let mut rows = statement.query(params![host])?;
        while let Some(row) = rows.next()? {
            // Whoever wrote what cannot be read, no agent has it; and batches must go on to be stored.
            if add(row, &mut self.found).is_err() {
                self.found.add_unreadable();
            }
        }
        self.took += began.elapsed();
        Ok(())
    }
}

fn key(row: &Row<'_>) -> Result<SocketKey, rusqlite::Error> {
    Ok(SocketKey { netns: unsigned(row, "netns")?, cookie: unsigned(row, "cookie")? })
}
