//! Which hosts had sessions with which addresses: gathered while the sessions are written host by host, so that what is
//! sorted in the end are pairs, of which there are far fewer, and the sessions are read once.

use std::{collections::HashMap, net::IpAddr};

use rusqlite::{Connection, params};

use crate::history::sqlite::{coding, stored::StoredSession};

/// Addresses of a host that are held, about 100 bytes each: of one with more, an address can be noted several times, and is
/// put together when all are sorted.
const HELD: usize = 100_000;
const US_PER_S: i64 = 1_000_000;

/// The pairs of a file that is being sealed.
pub(super) struct Pairs<'a> {
    sealed: &'a Connection,
    host: Option<i64>,
    met: HashMap<IpAddr, Met>,
}

/// Sessions with one address, and when the first and the last of them closed.
struct Met {
    sessions: i64,
    min_closed_at_us: i64,
    max_closed_at_us: i64,
}

impl Pairs<'_> {
    pub(super) fn new(sealed: &Connection) -> Result<Pairs<'_>, rusqlite::Error> {
        sealed.execute_batch(
            "CREATE TEMP TABLE met (peer_address BLOB NOT NULL, host_id INTEGER NOT NULL, sessions INTEGER NOT NULL,
                 min_closed_at_s INTEGER NOT NULL, max_closed_at_s INTEGER NOT NULL) STRICT",
        )?;
        Ok(Pairs { sealed, host: None, met: HashMap::new() })
    }

    /// Adds sessions that are over, of one host.
    pub(super) fn add(&mut self, block: &[StoredSession]) -> Result<(), rusqlite::Error> {
        let Some(first) = block.first() else { return Ok(()) };
        if self.host != Some(first.host_id) || self.met.len() >= HELD {
            self.note()?;
            self.host = Some(first.host_id);
        }
        for one in block {
            let (at, _) = one.closed.unwrap_or_default();
            let new = Met { sessions: 0, min_closed_at_us: at, max_closed_at_us: at };
            let met = self.met.entry(one.peer.ip()).or_insert(new);
            met.sessions += 1;
            met.min_closed_at_us = met.min_closed_at_us.min(at);
            met.max_closed_at_us = met.max_closed_at_us.max(at);
        }
        Ok(())
    }

    /// Notes what is held, in no order.
    fn note(&mut self) -> Result<(), rusqlite::Error> {
        let mut insert = self.sealed.prepare_cached("INSERT INTO temp.met VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (peer, Met { sessions, min_closed_at_us, max_closed_at_us }) in self.met.drain() {
            let (first, last) = (min_closed_at_us / US_PER_S, max_closed_at_us / US_PER_S);
            insert.execute(params![coding::address_bytes(peer), self.host, sessions, first, last])?;
        }
        Ok(())
    }

    /// Writes all pairs, sorted.
    pub(super) fn write(mut self) -> Result<(), rusqlite::Error> {
        self.note()?;
        self.sealed.execute_batch(
            "INSERT INTO main.pairs (peer_address, host_id, sessions, min_closed_at_s, max_closed_at_s)
             SELECT peer_address, host_id, sum(sessions), min(min_closed_at_s), max(max_closed_at_s)
             FROM temp.met GROUP BY peer_address, host_id ORDER BY peer_address, host_id",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::sqlite::coding::OwnerColumns;

    fn session(host_id: i64, peer: u32, closed_at_us: i64) -> StoredSession {
        StoredSession {
            host_id,
            netns: 1,
            cookie: 1,
            protocol: 1,
            family: 1,
            direction: 1,
            state: 1,
            local: ([10, 0, 0, 1], 443).into(),
            peer: (peer.to_be_bytes(), 4000).into(),
            owners: OwnerColumns::default(),
            bytes_sent: 0,
            bytes_received: 0,
            opened_at_us: closed_at_us - 1,
            opened_known: 1,
            closed: Some((closed_at_us, 1)),
        }
    }

    #[test]
    fn a_pair_is_written_once_however_many_addresses_a_host_met() {
        let sealed = Connection::open_in_memory().unwrap();
        sealed.execute_batch(include_str!("../../../../../migrations/sqlite/sealed/V1__begin.sql")).unwrap();
        let mut pairs = Pairs::new(&sealed).unwrap();
        let many = u32::try_from(HELD).unwrap();
        for turn in 0..2_i64 {
            let block: Vec<_> = (0..many).map(|peer| session(7, peer, turn * 1_000_000 + i64::from(peer))).collect();
            pairs.add(&block).unwrap();
        }
        pairs.add(&[session(8, 5, 9_999_999), session(8, 5, 9_000_000)]).unwrap();
        pairs.write().unwrap();
        let count: u32 = sealed.query_row("SELECT count(*) FROM pairs", [], |row| row.get(0)).unwrap();
        assert_eq!(count, many + 1);
        let sql = "SELECT host_id, sessions, min_closed_at_s, max_closed_at_s FROM pairs
                   WHERE peer_address = ?1 ORDER BY host_id";
        let address = coding::address_bytes(IpAddr::from([0, 0, 0, 5]));
        let mut statement = sealed.prepare(sql).unwrap();
        let found = statement.query_map([address], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]));
        let found: Vec<[i64; 4]> = found.unwrap().map(Result::unwrap).collect();
        assert_eq!(found, [[7, 2, 0, 1], [8, 2, 9, 9]]);
    }
}
