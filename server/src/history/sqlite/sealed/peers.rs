//! Where the sessions with each address are, of which kinds they are, and what is counted of them: gathered block by block while the
//! sessions are written, and sorted in the end, so that the sessions are read once.

use std::{collections::BTreeSet, io, iter::zip, net::IpAddr, path::Path};

use rusqlite::Connection;

use super::{
    GoesOn, SealError,
    column::Writing,
    filter::Filter,
    places::Place,
    sorting::{Met, Sorting},
};
use crate::history::sqlite::{
    by_peer::{Adding, One},
    coding::AddressBytes,
    kinds::{self, Service},
    leaving::give_back,
    parts::UNFINISHED,
    stored::StoredSession,
};

/// Most bytes of the places of a row: with these it is in the page itself, which has room for 1,002 bytes of one
/// ("Database File Format", 1.6). What lies elsewhere is read for each row that a search for another passes.
const PLACES_BYTES: usize = 900;
/// Most bytes of a place.
const PLACE_BYTES: usize = 10;
/// Rows that are inserted by one statement, which then knows where the table ends.
const INSERTED_AT_ONCE: usize = 64;
/// Statements between two looks whether it is still wanted.
const LOOK_EVERY: usize = 64;
const COLUMNS: usize = 3;

/// The peers of a file that is being sealed.
pub(super) struct Peers {
    sorting: Sorting,
    sessions: u64,
    /// The hours in which sessions closed.
    hours: BTreeSet<i64>,
    /// The first block of each host.
    hosts: Vec<(i64, i64)>,
    /// Whether each service has a number.
    services: bool,
}

impl Peers {
    /// None yet. What is sorted lies beside the file.
    pub(super) fn new(unfinished: &Path) -> io::Result<Peers> {
        // A crash before the name is gone leaves what is removed at the next start.
        let path = unfinished.with_extension(format!("peers.{UNFINISHED}"));
        let sorting = Sorting::new(&path)?;
        Ok(Peers { sorting, sessions: 0, hours: BTreeSet::new(), hosts: Vec::new(), services: true })
    }

    /// Adds the sessions of a block, whose peers these are: each once, and the place of each session's.
    pub(super) fn add(
        &mut self,
        block: i64,
        (peers, of_sessions): (&[IpAddr], &[usize]),
        sessions: &[StoredSession],
    ) -> io::Result<()> {
        let places = (0..).map(|at| Place { block, at }.number());
        self.sessions += sessions.len() as u64;
        if let Some(first) = sessions.first()
            && self.hosts.last().is_none_or(|(_, host)| *host != first.host_id)
        {
            self.hosts.push((block, first.host_id));
        }
        let mut last = None;
        for ((peer, place), session) in zip(zip(of_sessions, places), sessions) {
            let one = One::of(session);
            // Mostly it is the same as before.
            if last.replace(one.span.closed()) != Some(one.span.closed()) {
                self.hours.insert(one.span.closed());
            }
            let service = Service::of(session);
            self.services &= service.is_some();
            self.sorting.add(Met::new(peers[*peer], place, service.unwrap_or_default(), one))?;
        }
        Ok(())
    }

    /// Writes all of them, sorted, the filter, the kinds, and what is counted; what is told of the kinds, if they are told.
    pub(super) fn write(self, sealed: &Connection, goes_on: &GoesOn) -> Result<Option<kinds::Telling>, SealError> {
        let mut rows = Rows::default();
        let origin = self.hours.first().copied().unwrap_or_default();
        let mut kinds = (self.services && self.sessions > 0).then(|| kinds::Adding::new(sealed, origin, self.sessions));
        let mut hosts = Hosts::of(self.hosts);
        let mut sums = Adding::new(sealed, self.hours);
        let mut statements = 0_usize;
        // How many addresses they have is known in the end.
        let (mut filter, mut addresses, mut last) = (Filter::with_room_for(self.sessions), 0, None);
        let sorted = self.sorting.finish(|met| {
            if last.replace(met.peer()) != Some(met.peer()) {
                filter.add(&met.peer());
                addresses += 1;
            }
            if rows.are_enough_before(&met) {
                rows.insert(sealed)?;
                statements += 1;
                if statements.is_multiple_of(LOOK_EVERY) && !goes_on() {
                    return Err(SealError::Unwanted);
                }
            }
            rows.add(&met);
            sums.add(met.peer(), met.one())?;
            if let Some(kinds) = &mut kinds {
                kinds.add(
                    (met.peer(), hosts.of_block(Place::of(met.place()).block)),
                    met.service(),
                    met.one().span.closed(),
                )?;
            }
            Ok(())
        })?;
        rows.insert(sealed)?;
        sums.finish()?;
        let kinds = kinds.map(kinds::Adding::finish).transpose()?;
        filter.fold(addresses);
        filter.store(sealed)?;
        give_back(&sorted, || goes_on())?;
        Ok(kinds)
    }
}

/// Whose blocks are, looked for mostly in ascending order.
struct Hosts {
    /// The first block of each.
    all: Vec<(i64, i64)>,
    /// Where the last one was found.
    at: usize,
}

impl Hosts {
    const fn of(all: Vec<(i64, i64)>) -> Hosts {
        Hosts { all, at: 0 }
    }

    fn of_block(&mut self, block: i64) -> i64 {
        let begins = |at: usize| self.all.get(at).is_some_and(|(first, _)| *first <= block);
        if !begins(self.at) || begins(self.at + 1) {
            self.at = self.all.partition_point(|(first, _)| *first <= block).saturating_sub(1);
        }
        self.all.get(self.at).map_or(0, |(_, host)| *host)
    }
}

/// Rows that are not inserted yet.
#[derive(Default)]
struct Rows {
    rows: Vec<Row>,
    bytes: Writing,
}

struct Row {
    peer: IpAddr,
    first: i64,
    /// The last place so far.
    last: i64,
    /// Where its bytes begin.
    at: usize,
}

impl Rows {
    fn are_enough_before(&self, met: &Met) -> bool {
        self.rows.len() >= INSERTED_AT_ONCE && !self.is_of_last(met)
    }

    /// Whether the last row has the same address, and room for its place.
    fn is_of_last(&self, met: &Met) -> bool {
        let has_room = |last: &Row| self.bytes.length() - last.at + PLACE_BYTES <= PLACES_BYTES;
        self.rows.last().is_some_and(|last| last.peer == met.peer() && has_room(last))
    }

    fn add(&mut self, met: &Met) {
        let (peer, place, is_of_last) = (met.peer(), met.place(), self.is_of_last(met));
        match self.rows.last_mut() {
            Some(last) if is_of_last => {
                self.bytes.unsigned((place - last.last).cast_unsigned());
                last.last = place;
            }
            _ => self.rows.push(Row { peer, first: place, last: place, at: self.bytes.length() }),
        }
    }

    /// Inserts them, and begins anew.
    fn insert(&mut self, sealed: &Connection) -> Result<(), rusqlite::Error> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let values = vec!["(?, ?, ?)"; self.rows.len()].join(", ");
        let sql = format!("INSERT INTO peers (peer_address, first_place, places) VALUES {values}");
        let mut insert = sealed.prepare_cached(&sql)?;
        let ends = self.rows.iter().skip(1).map(|row| row.at).chain([self.bytes.length()]);
        for ((column, row), end) in (1_usize..).step_by(COLUMNS).zip(&self.rows).zip(ends) {
            insert.raw_bind_parameter(column, AddressBytes::of(row.peer))?;
            insert.raw_bind_parameter(column + 1, row.first)?;
            insert.raw_bind_parameter(column + 2, self.bytes.bytes().get(row.at..end))?;
        }
        insert.raw_execute()?;
        self.rows.clear();
        self.bytes.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::history::sqlite::{
        coding::OwnerColumns,
        sealed::{layout::MOST_SESSIONS, places},
        sums::beginning,
    };

    fn made(sealed: &Connection) {
        for migration in [
            include_str!("../../../../../migrations/sqlite/sealed/V1__begin.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V3__peers.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V7__peer_filter.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V8__peer_sums.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V9__kinds.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V10__peer_levels.sql"),
            include_str!("../../../../../migrations/sqlite/sealed/V11__kind_filter.sql"),
        ] {
            sealed.execute_batch(migration).unwrap();
        }
    }

    /// One of an hour.
    fn life(hour: i64) -> StoredSession {
        StoredSession {
            host_id: 1,
            netns: 1,
            cookie: 1,
            protocol: 1,
            family: 1,
            direction: 1,
            state: 1,
            local: "10.0.0.1:1".parse().unwrap(),
            peer: "10.0.0.2:2".parse().unwrap(),
            owners: OwnerColumns::default(),
            bytes_sent: 2,
            bytes_received: 3,
            opened_at_us: beginning(hour) + 1,
            opened_known: 1,
            closed: Some((beginning(hour) + 2, 1)),
        }
    }

    #[test]
    fn every_session_of_an_address_is_found_in_its_place_however_many_there_are() {
        const BLOCKS: i64 = 40;
        let folder = tempfile::tempdir().unwrap();
        let sealed = Connection::open_in_memory().unwrap();
        made(&sealed);
        let mut peers = Peers::new(&folder.path().join("day-1.unfinished")).unwrap();
        let busy = IpAddr::from([192, 0, 2, 9]);
        let rare = |block: i64| IpAddr::from((block as u128 + (0x2001_0db8 << 96)).to_be_bytes());
        for block in 1..=BLOCKS {
            let known = [rare(block), busy, rare(7)];
            let of_sessions: Vec<usize> = (0..MOST_SESSIONS).map(|at| if at == 11 { 0 } else { 1 + at % 2 }).collect();
            // Only their times and bytes matter.
            let sessions: Vec<StoredSession> = (0..MOST_SESSIONS).map(|_| life(block)).collect();
            peers.add(block, (&known, &of_sessions), &sessions).unwrap();
        }
        let goes_on: GoesOn = Arc::new(|| true);
        peers.write(&sealed, &goes_on).unwrap();
        let find = |from: IpAddr, to: IpAddr, most: usize| {
            let mut found = Vec::new();
            places::find(&sealed, (from, to), most, &mut found).unwrap().then_some(found)
        };
        let each = |is_meant: fn(i64, usize) -> bool| -> Vec<i64> {
            let all = (1..=BLOCKS).flat_map(|block| (0..MOST_SESSIONS).map(move |at| (block, at)));
            all.filter(|(block, at)| is_meant(*block, *at)).map(|(block, at)| Place { block, at }.number()).collect()
        };
        let most = 2048 * 40;
        assert!(find(busy, busy, most) == Some(each(|_, at| at % 2 == 0)));
        assert!(find(rare(7), rare(7), most) == Some(each(|block, at| at % 2 == 1 && (at != 11 || block == 7))));
        assert_eq!(find(rare(8), rare(9), 2), Some(each(|block, at| at == 11 && (8..10).contains(&block))));
        assert_eq!(find(rare(8), rare(10), 2), None, "they are too many");
        assert_eq!(find(rare(BLOCKS + 1), rare(BLOCKS + 9), 1), Some(vec![]));
        let within = |first: i64, last: i64| {
            let (first, last) = (Place { block: first, at: 0 }, Place { block: last, at: MOST_SESSIONS - 1 });
            let mut found = Vec::new();
            let mut all = |most| {
                places::find_within(&sealed, busy, (first.number(), last.number()), (|_| true, most), &mut found)
            };
            assert!(all(u64::MAX).unwrap());
            found
        };
        assert!(within(9, 9) == each(|block, at| at % 2 == 0 && block == 9));
        assert!(within(1, 3) == each(|block, at| at % 2 == 0 && block <= 3));
        assert_eq!(within(BLOCKS + 1, BLOCKS + 1), []);
        let longest: i64 = sealed.query_row("SELECT max(length(places)) FROM peers", [], |row| row.get(0)).unwrap();
        let filter = Filter::<IpAddr>::of_file(&sealed).unwrap();
        assert!((1..=BLOCKS).chain([7]).all(|block| filter.may_have(&rare(block))) && filter.may_have(&busy));
        assert_eq!(Filter::<IpAddr>::bytes_of(&sealed), Ok(Some(64)), "as small as it may be of 41 addresses");
        let sums = |scope: i64| {
            let sql = "SELECT count(*), count(DISTINCT hour) FROM peer_sums WHERE scope = ?1";
            sealed.query_row(sql, [scope], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?))).unwrap()
        };
        let stretches = [(3, 1), (3 * BLOCKS - 1, BLOCKS)];
        assert_eq!([sums(1), sums(2)], stretches, "one of each family for many sessions, and of the rare one for few");
        assert!((PLACES_BYTES - PLACE_BYTES..=PLACES_BYTES).contains(&usize::try_from(longest).unwrap()), "{longest}");
    }
}
