//! Which hosts had sessions with which addresses: gathered block by block while the sessions are written, so that what is
//! sorted in the end are pairs, of which there are far fewer, and the sessions are read once.

use std::{io, iter::zip, net::IpAddr, path::Path};

use rusqlite::Connection;

use super::{
    GoesOn, SealError,
    sorting::{Pair, Sorting},
};
use crate::history::sqlite::{coding::AddressBytes, parts::UNFINISHED, stored::StoredSession};

/// Pairs that are inserted by one statement, which then knows where the table ends.
const INSERTED_AT_ONCE: usize = 64;
/// Statements between two looks whether it is still wanted.
const LOOK_EVERY: usize = 64;
const COLUMNS: usize = 5;
const US_PER_S: i64 = 1_000_000;

/// The pairs of a file that is being sealed.
pub(super) struct Pairs {
    met: Vec<Pair>,
    sorting: Sorting,
}

impl Pairs {
    /// None yet. What is sorted lies beside the file.
    pub(super) fn new(unfinished: &Path) -> io::Result<Pairs> {
        // A crash before the name is gone leaves what is removed at the next start.
        let path = unfinished.with_extension(format!("pairs.{UNFINISHED}"));
        Ok(Pairs { met: Vec::new(), sorting: Sorting::new(&path)? })
    }

    /// Adds sessions that are over, of one host, whose peers these are: each once, and the place of each session's.
    pub(super) fn add(&mut self, block: &[StoredSession], (peers, places): (&[IpAddr], &[usize])) -> io::Result<()> {
        let Some(first) = block.first() else { return Ok(()) };
        let none = |peer: &IpAddr| Pair {
            peer: *peer,
            host_id: first.host_id,
            sessions: 0,
            min_closed_at_s: i64::MAX,
            max_closed_at_s: i64::MIN,
        };
        self.met.clear();
        self.met.extend(peers.iter().map(none));
        for (one, place) in zip(block, places) {
            let (at, _) = one.closed.unwrap_or_default();
            let at = at / US_PER_S;
            let met = &mut self.met[*place];
            met.sessions += 1;
            met.min_closed_at_s = met.min_closed_at_s.min(at);
            met.max_closed_at_s = met.max_closed_at_s.max(at);
        }
        self.met.iter().try_for_each(|pair| self.sorting.add(*pair))
    }

    /// Writes all pairs, sorted.
    pub(super) fn write(self, sealed: &Connection, goes_on: &GoesOn) -> Result<(), SealError> {
        let mut ready = self.met;
        ready.clear();
        let mut statements = 0_usize;
        self.sorting.finish(|pair| {
            ready.push(pair);
            if ready.len() < INSERTED_AT_ONCE {
                return Ok(());
            }
            insert(sealed, &ready)?;
            ready.clear();
            statements += 1;
            if statements.is_multiple_of(LOOK_EVERY) && !goes_on() { Err(SealError::Unwanted) } else { Ok(()) }
        })?;
        Ok(insert(sealed, &ready)?)
    }
}

fn insert(sealed: &Connection, pairs: &[Pair]) -> Result<(), rusqlite::Error> {
    if pairs.is_empty() {
        return Ok(());
    }
    let values = vec!["(?, ?, ?, ?, ?)"; pairs.len()].join(", ");
    let sql = "INSERT INTO pairs (peer_address, host_id, sessions, min_closed_at_s, max_closed_at_s) VALUES";
    let mut insert = sealed.prepare_cached(&format!("{sql} {values}"))?;
    for (first, pair) in (1_usize..).step_by(COLUMNS).zip(pairs) {
        let Pair { peer, host_id, sessions, min_closed_at_s, max_closed_at_s } = *pair;
        insert.raw_bind_parameter(first, AddressBytes::of(peer))?;
        for (column, number) in (first + 1..).zip([host_id, sessions, min_closed_at_s, max_closed_at_s]) {
            insert.raw_bind_parameter(column, number)?;
        }
    }
    insert.raw_execute().map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::history::sqlite::{coding, coding::OwnerColumns, sealed::encoder::Encoder};

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
        const MANY: u32 = 100_000;
        let folder = tempfile::tempdir().unwrap();
        let sealed = Connection::open_in_memory().unwrap();
        sealed.execute_batch(include_str!("../../../../../migrations/sqlite/sealed/V1__begin.sql")).unwrap();
        let mut pairs = Pairs::new(&folder.path().join("day-1.unfinished")).unwrap();
        let mut encoder = Encoder::default();
        let mut add = |block: &[StoredSession]| {
            encoder.encode(block);
            pairs.add(block, encoder.peers()).unwrap();
        };
        for turn in 0..2_i64 {
            let all: Vec<_> = (0..MANY).map(|peer| session(7, peer, turn * 1_000_000 + i64::from(peer))).collect();
            all.chunks(2000).for_each(&mut add);
        }
        add(&[session(8, 5, 9_999_999), session(8, 5, 9_000_000)]);
        let goes_on: GoesOn = Arc::new(|| true);
        pairs.write(&sealed, &goes_on).unwrap();
        let count: u32 = sealed.query_row("SELECT count(*) FROM pairs", [], |row| row.get(0)).unwrap();
        assert_eq!(count, MANY + 1);
        let sql = "SELECT host_id, sessions, min_closed_at_s, max_closed_at_s FROM pairs
                   WHERE peer_address = ?1 ORDER BY host_id";
        let address = coding::address_bytes(IpAddr::from([0, 0, 0, 5]));
        let mut statement = sealed.prepare(sql).unwrap();
        let found = statement.query_map([address], |row| Ok([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]));
        let found: Vec<[i64; 4]> = found.unwrap().map(Result::unwrap).collect();
        assert_eq!(found, [[7, 2, 0, 1], [8, 2, 9, 9]]);
    }
}
