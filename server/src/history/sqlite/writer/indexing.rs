//! What is told once for many rows: which of them have an address (`postings.rs`), and their sums (`cubes.rs`, `by_peer.rs`).

use rusqlite::{Connection, Transaction, params};

use super::noting::Ended;
use crate::history::sqlite::{
    by_peer, coding,
    cubes::Cubes,
    latest::{Fresh, Latest},
    postings::{self, Pages, Peers},
};

/// How large segments are.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Rows of a small one. The peers of as many are kept in memory.
    rows: i64,
    /// So many small ones become a large one.
    merged: usize,
}

const SIZES: Sizes = Sizes { rows: 32 * 1024, merged: 16 };

/// The peers and the sums of the last rows, which are in no segment yet: some MiB at most.
#[derive(Debug)]
pub(super) struct Unindexed {
    sizes: Sizes,
    /// The first of these rows, and the one after the last of them; none is known before it is looked for.
    rows: Option<(i64, i64)>,
    peers: Peers,
    cubes: Cubes,
    by_peer: by_peer::Segment,
    /// Those of which nobody was told yet.
    fresh: Fresh,
}

impl Default for Unindexed {
    fn default() -> Unindexed {
        Unindexed {
            sizes: SIZES,
            rows: None,
            peers: Peers::default(),
            cubes: Cubes::default(),
            by_peer: by_peer::Segment::default(),
            fresh: Fresh::default(),
        }
    }
}

impl Unindexed {
    /// Goes on after this row, which is the last one. What is held may be of another file, or of rows that were rolled back:
    /// then the last row is another one.
    pub(super) fn resume(&mut self, transaction: &Transaction<'_>, last_id: i64) -> Result<(), rusqlite::Error> {
        if self.rows.is_some_and(|(_, next)| next == last_id + 1) {
            return Ok(());
        }
        let covered = covered(transaction)?;
        *self = Unindexed { rows: Some((covered + 1, covered + 1)), sizes: self.sizes, ..Unindexed::default() };
        // More than one segment is only missing in a file that an earlier version began.
        Ended::each_after(transaction, covered, |ended| self.add(transaction, ended))
    }

    /// Adds a row, which is the last one. When enough rows came before it, they become a segment.
    pub(super) fn add(&mut self, transaction: &Transaction<'_>, ended: &Ended) -> Result<(), rusqlite::Error> {
        let id = ended.id;
        // When something fails from here on, nothing that is held counts as known: it is read from the rows again.
        let (mut first, _) = self.rows.take().unwrap_or((id, id));
        if id - first >= self.sizes.rows {
            self.store(transaction, (first, id - 1))?;
            self.merge(transaction)?;
            first = id;
        }
        self.peers.add(ended.peer, offset(id - first)?);
        if self.fresh.peers.is_empty() {
            self.fresh.first = id;
        }
        self.fresh.peers.push(ended.peer);
        self.cubes.add(&ended.facts());
        self.by_peer.add(ended.opened_at_us, ended.closed_at_us, ended.counts);
        self.rows = Some((first, id + 1));
        Ok(())
    }

    /// Makes a segment of all rows, although they are not enough for one: nothing is written to their file any more.
    pub(super) fn complete(&mut self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        match self.rows.take() {
            Some((first, next)) if first < next => self.store(transaction, (first, next - 1)),
            _ => Ok(()),
        }
    }

    /// What is known of the last rows is committed.
    pub(super) fn tell(&mut self, latest: &Latest) {
        let fresh = std::mem::take(&mut self.fresh);
        if let Some((first, _)) = self.rows.filter(|_| !fresh.peers.is_empty()) {
            latest.tell(first, fresh);
        }
    }

    /// Makes a segment of what is held.
    fn store(&mut self, transaction: &Transaction<'_>, rows: (i64, i64)) -> Result<(), rusqlite::Error> {
        let Unindexed { peers, cubes, by_peer, .. } =
            std::mem::replace(self, Unindexed { sizes: self.sizes, ..Unindexed::default() });
        let mut sums = by_peer.by_peer();
        store(transaction, rows, peers.pages(|peer, row| sums.add(peer, row)))?;
        sums.store(transaction, rows.0)?;
        cubes.store(transaction, rows)
    }

    /// Makes a large segment of small ones, when they are enough.
    fn merge(&self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let small: Vec<Segment> = transaction
            .prepare_cached("SELECT * FROM segments WHERE last_id - first_id + 1 = ?1 ORDER BY first_id")?
            .query_map([self.sizes.rows], Segment::read)?
            .collect::<Result<_, _>>()?;
        let (Some(first), Some(last)) = (small.first(), small.last()) else { return Ok(()) };
        if small.len() < self.sizes.merged {
            return Ok(());
        }
        let mut all = Peers::default();
        let mut pages = transaction.prepare_cached("SELECT bytes FROM postings WHERE id BETWEEN ?1 AND ?2")?;
        for one in &small {
            let later = offset(one.first_id - first.first_id)?;
            let mut rows = pages.query(params![one.first_page, one.last_page])?;
            while let Some(row) = rows.next()? {
                let page = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("bytes", error.to_string()))?;
                all.add_page(page, later).map_err(|damaged| coding::wrong("bytes", damaged.to_string()))?;
            }
        }
        for one in &small {
            transaction
                .prepare_cached("DELETE FROM postings WHERE id BETWEEN ?1 AND ?2")?
                .execute(params![one.first_page, one.last_page])?;
            transaction.prepare_cached("DELETE FROM segments WHERE first_id = ?1")?.execute([one.first_id])?;
        }
        store(transaction, (first.first_id, last.last_id), all.pages(|_, _| {}))
    }
}

/// A segment, and where its pages are.
struct Segment {
    first_id: i64,
    last_id: i64,
    first_page: i64,
    last_page: i64,
}

impl Segment {
    fn read(row: &rusqlite::Row<'_>) -> Result<Segment, rusqlite::Error> {
        let firsts = row.get_ref("firsts")?.as_blob().map_err(|error| coding::wrong("firsts", error.to_string()))?;
        let (pages, first_page): (_, i64) = (number(postings::count(firsts)), row.get("first_page")?);
        let (first_id, last_id) = (row.get("first_id")?, row.get("last_id")?);
        Ok(Segment { first_id, last_id, first_page, last_page: first_page + pages - 1 })
    }
}

/// The last row that is in a segment; 0 when none is.
fn covered(connection: &Connection) -> Result<i64, rusqlite::Error> {
    let mut statement = connection.prepare_cached("SELECT coalesce(max(last_id), 0) FROM segments")?;
    statement.query_row([], |row| row.get(0))
}

fn store(
    transaction: &Transaction<'_>,
    (first_id, last_id): (i64, i64),
    Pages { pages, firsts }: Pages,
) -> Result<(), rusqlite::Error> {
    let mut next = transaction.prepare_cached("SELECT coalesce(max(id), 0) + 1 FROM postings")?;
    let first_page: i64 = next.query_row([], |row| row.get(0))?;
    let mut insert = transaction.prepare_cached("INSERT INTO postings (id, bytes) VALUES (?1, ?2)")?;
    for (id, bytes) in (first_page..).zip(&pages) {
        insert.execute(params![id, bytes])?;
    }
    transaction
        .prepare_cached("INSERT INTO segments (first_id, last_id, first_page, firsts) VALUES (?1, ?2, ?3, ?4)")?
        .execute(params![first_id, last_id, first_page, firsts])
        .map(drop)
}

fn offset(rows: i64) -> Result<u32, rusqlite::Error> {
    u32::try_from(rows).map_err(|_| coding::wrong("id", format!("{rows} rows are in one segment")))
}

fn number(pages: usize) -> i64 {
    i64::try_from(pages).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use fleetsock_proto::socket::Direction;
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::{
        cubes::{self, By, Service},
        schema::Kind,
        sealed::Damaged,
        sums::Counts,
    };

    const SMALL: Sizes = Sizes { rows: 8, merged: 3 };

    fn day() -> Connection {
        let mut connection = Connection::open_in_memory().unwrap();
        Kind::Day.runner().run(&mut connection).unwrap();
        connection
    }

    fn row(id: i64, number: u8) -> Ended {
        let (at, n) = (i64::from(number) * 900_000_000, i64::from(number));
        Ended {
            id,
            host_id: n % 3 + 1,
            closed_at_us: at + n * 1_000_000_000,
            opened_at_us: at,
            peer: peer(number),
            service: Service {
                direction: 1 + i32::from(number % 2),
                protocol: 6,
                family: 1,
                port: 443 + u16::from(number % 4),
            },
            program_id: n % 2,
            counts: Counts::one(n, 1),
        }
    }

    fn insert(transaction: &Transaction<'_>, ended: &Ended) {
        let Ended { id, host_id, closed_at_us, opened_at_us, peer, service, program_id, counts } = *ended;
        let Service { direction, protocol, family, port } = service;
        let ports = if direction == Direction::In.number() { (port, 9) } else { (9, port) };
        transaction
            .execute(
                "INSERT INTO sessions VALUES
                     (?1, ?2, ?3, ?4, 1, 1, 1, 1, ?5, ?6, ?7, 1, x'0400000000', ?8, ?9, ?10, 1, 1, 1, ?11, NULL, ?12, 1)",
                params![
                    id,
                    host_id,
                    closed_at_us,
                    closed_at_us - opened_at_us,
                    protocol,
                    family,
                    direction,
                    ports.0,
                    coding::address_bytes(peer),
                    ports.1,
                    program_id,
                    counts.bytes_sent.cast_signed()
                ],
            )
            .unwrap();
    }

    /// The sums of rows by host and program, and their number by service.
    fn summed(day: &Connection) -> (BTreeMap<cubes::What, Counts>, u64) {
        let (mut all, mut sessions) = (BTreeMap::<_, Counts>::new(), 0);
        let mut statement = day.prepare("SELECT kind, totals FROM cube_hours").unwrap();
        let read = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
        for (kind, totals) in statement.query_map([], read).unwrap().map(Result::unwrap) {
            cubes::merge(&[cubes::Part { totals, is_taken_off: false }], |what, balance| {
                let counts = balance.counts()?;
                if kind == By::Owners.number() {
                    all.entry(what).or_default().add(counts);
                } else {
                    sessions += counts.sessions;
                }
                Ok::<_, Damaged>(())
            })
            .unwrap();
        }
        (all, sessions)
    }

    fn peer(number: u8) -> IpAddr {
        if number.is_multiple_of(3) { IpAddr::from([number; 16]) } else { IpAddr::from([10, 0, 0, number]) }
    }

    /// The rows with each peer, by the index.
    fn indexed(day: &Connection) -> Vec<(IpAddr, i64)> {
        let mut all = Vec::new();
        let mut segments = day.prepare("SELECT * FROM segments").unwrap();
        for segment in segments.query_map([], Segment::read).unwrap().map(Result::unwrap) {
            let mut pages = day.prepare("SELECT bytes FROM postings WHERE id BETWEEN ?1 AND ?2").unwrap();
            let read = |row: &rusqlite::Row<'_>| row.get::<_, Vec<u8>>(0);
            let pages: Vec<_> =
                pages.query_map([segment.first_page, segment.last_page], read).unwrap().map(Result::unwrap).collect();
            for number in 0..8 {
                for page in &pages {
                    let found = |row: u32| all.push((peer(number), segment.first_id + i64::from(row)));
                    postings::find(page, (peer(number), peer(number)), found).unwrap();
                }
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn a_segment_that_could_not_be_stored_is_stored_whole_by_the_next_attempt() {
        let mut day = day();
        let mut unindexed = Unindexed { sizes: SMALL, ..Unindexed::default() };
        let number = |id: i64| u8::try_from(id % 8).unwrap();
        let mut add = |day: &mut Connection, ids: std::ops::RangeInclusive<i64>| {
            let transaction = day.transaction().unwrap();
            unindexed.resume(&transaction, ids.start() - 1).unwrap();
            for id in ids {
                insert(&transaction, &row(id, number(id)));
                unindexed.add(&transaction, &row(id, number(id)))?;
            }
            transaction.commit()
        };
        add(&mut day, 1..=8).unwrap();
        for table in ["segments", "cubes"] {
            let trigger =
                format!("CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END");
            day.execute_batch(&trigger).unwrap();
            add(&mut day, 9..=9).unwrap_err();
            day.execute_batch("DROP TRIGGER full").unwrap();
        }
        add(&mut day, 9..=9).unwrap();
        let mut expected: Vec<_> = (1..=8).map(|id| (peer(number(id)), id)).collect();
        expected.sort_unstable();
        assert_eq!(indexed(&day), expected);
        assert_eq!(summed(&day).1, 8);
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum End {
        Commit,
        RollBack,
        /// The server is started anew.
        Restart,
        /// The file is complete, and is gone on with because the next one cannot be begun.
        Complete,
    }

    /// The rows behind the index with each peer, as questions are told of them.
    fn told(latest: &Latest, day: &Connection) -> (Vec<(IpAddr, i64)>, i64) {
        let (mut all, mut last) = (Vec::new(), 0);
        let covered = covered(day).unwrap();
        for number in 0..8 {
            let peer = peer(number);
            last = latest.find(covered, &[(peer, peer)], |row| all.push((peer, row)));
        }
        all.sort_unstable();
        (all, last)
    }

    proptest! {
        #[test]
        fn whatever_is_rolled_back_and_started_anew_all_rows_but_the_last_are_in_segments(
            groups in vec((
                vec(0_u8..8, 0..30),
                prop_oneof![4 => Just(End::Commit), 2 => Just(End::RollBack), 2 => Just(End::Restart), 1 => Just(End::Complete)],
            ), 1..20)
        ) {
            let mut day = day();
            let begin = || Unindexed { sizes: SMALL, ..Unindexed::default() };
            let (mut unindexed, mut latest, mut expected) = (begin(), Latest::default(), Vec::new());
            let was_complete = groups.iter().any(|(_, end)| *end == End::Complete);
            for (peers, end) in groups {
                let transaction = day.transaction().unwrap();
                let last = i64::try_from(expected.len()).unwrap();
                unindexed.resume(&transaction, last).unwrap();
                for (id, number) in (last + 1..).zip(&peers) {
                    insert(&transaction, &row(id, *number));
                    unindexed.add(&transaction, &row(id, *number)).unwrap();
                }
                if end == End::RollBack {
                    transaction.rollback().unwrap();
                } else {
                    transaction.commit().unwrap();
                    unindexed.tell(&latest);
                    expected.extend((last + 1..).zip(&peers).map(|(id, number)| (peer(*number), id, *number)));
                }
                let last = i64::try_from(expected.len()).unwrap();
                if end == End::Restart {
                    (unindexed, latest) = (begin(), Latest::default());
                }
                if matches!(end, End::Restart | End::Complete) {
                    let transaction = day.transaction().unwrap();
                    unindexed.resume(&transaction, last).unwrap();
                    if end == End::Complete {
                        unindexed.complete(&transaction).unwrap();
                    }
                    transaction.commit().unwrap();
                    unindexed.tell(&latest);
                }
                let covered = covered(&day).unwrap();
                prop_assert!(end != End::Complete || covered == last);
                let mut behind: Vec<_> =
                    expected.iter().filter(|(_, id, _)| *id > covered).map(|(peer, id, _)| (*peer, *id)).collect();
                behind.sort_unstable();
                prop_assert_eq!(told(&latest, &day), (behind, last));
            }
            let last = i64::try_from(expected.len()).unwrap();
            let covered = covered(&day).unwrap();
            prop_assert!(covered <= last && last - covered <= SMALL.rows, "{covered} of {last}");
            prop_assert!(covered % SMALL.rows == 0 || was_complete, "{covered} of {last}");
            expected.retain(|(_, id, _)| *id <= covered);
            let (mut sums, sessions) = (BTreeMap::<_, Counts>::new(), expected.len() as u64);
            for (_, id, number) in &expected {
                let Ended { host_id, program_id, counts, .. } = row(*id, *number);
                sums.entry([host_id, program_id]).or_default().add(counts);
            }
            prop_assert_eq!(summed(&day), (sums, sessions));
            let mut expected: Vec<_> = expected.into_iter().map(|(peer, id, _)| (peer, id)).collect();
            expected.sort_unstable();
            prop_assert_eq!(indexed(&day), expected);
            let small: i64 = day.query_row("SELECT count(*) FROM segments WHERE last_id - first_id = 7", [], |row| row.get(0)).unwrap();
            prop_assert!(small < 3 || was_complete);
        }
    }
}
