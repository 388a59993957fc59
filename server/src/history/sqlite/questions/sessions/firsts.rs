//! New sessions: the first of their kind that opened within a window, where none of that kind was there since a baseline began.
//!
//! Sessions are of one kind when host, direction, peer, protocol and service are the same. What was open in the window is looked
//! at once, and held are only the kinds and where the first of each is. Then the newest comes first, and only as long as more are
//! wanted each is looked for among what closed between the baseline and the window: by the index of peers of each file, in the
//! host's own blocks or rows, the newest first. Most that are not new are found in the first of these. Where many are wanted, more
//! and more are looked for together, host by host, so that a block is read for several.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, hash_map::Entry},
    iter::zip,
    net::IpAddr,
};

use fleetsock_proto::{
    question::{SessionQuestion, SessionTime},
    session::Session,
    socket::{Direction, Protocol},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension};

use super::{
    InFile, MANY_ROWS, Search,
    blocks::{Services, Which},
    looking::{At, Look},
    meaning::Traits,
    rows::runs,
};
use crate::history::{
    HistoryError,
    hashing::Seeded,
    sqlite::{
        numbered::Numbered,
        questions::{Reader, outlet::Wanted},
        roster::{Places, Selection},
        sealed::{Block, Column, Head, places, places::Place},
        stored::{self, StoredSession},
    },
};

/// Kinds of sessions that are told apart in a window, about 130 bytes each.
const KINDS_LIMIT: usize = 500_000;
/// Rows that are read at once to find one of a kind.
const AT_ONCE: usize = 256;
/// Kinds that are looked for together: at first as few as a page may need, then twice as many each time.
const FIRST_TOGETHER: usize = 128;
const MOST_TOGETHER: usize = 32 * 1024;
/// Where so many or fewer are wanted, the window is looked at in parts, of which the last is so much shorter than it.
const FEW: usize = 10_000;
const PARTS: i64 = 64;
/// Blocks that are held while they may be needed again, about 20 KiB each.
const HELD_BLOCKS: usize = 512;

/// Between which times sessions opened that may be new, both included, and since when none like them was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite::questions) struct Span {
    pub(in crate::history::sqlite::questions) since: Timestamp,
    pub(in crate::history::sqlite::questions) until: Option<Timestamp>,
    pub(in crate::history::sqlite::questions) baseline: Timestamp,
}

impl Span {
    /// The same in parts, the last one first, of which each is twice as long as the one after it: whatever is new in it was not there
    /// before it, neither in an earlier part nor before all of them. As they are few, all of them are hardly more to look at.
    fn in_parts(self, now: Timestamp) -> impl Iterator<Item = Span> {
        let Span { since, until, baseline } = self;
        let (begin, end) = (since.as_micros(), until.unwrap_or(now).as_micros());
        let shortest = (end.saturating_sub(begin) / PARTS).max(1);
        let begin_of = move |lengths: i64| begin.max(end.saturating_sub(shortest.saturating_mul(lengths)));
        let mut next = Some((until, 1));
        std::iter::from_fn(move || {
            let (until, lengths) = next.take()?;
            let part = begin_of(lengths);
            if part > begin {
                next = Some((Some(Timestamp::from_micros(part - 1)), 2 * lengths + 1));
            }
            Some(Span { since: Timestamp::from_micros(part), until, baseline })
        })
    }
}

/// Shows the sessions that are meant and new, those that opened last first, for as long as they are wanted: about so many.
pub(in crate::history::sqlite::questions) fn each_new(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (asked, span, wanted): (&SessionQuestion, &Span, usize),
    now: Timestamp,
    mut show: impl FnMut(Session) -> Result<Wanted, HistoryError>,
) -> Result<(), HistoryError> {
    if wanted > FEW {
        return each_within(reader, selection, places, (asked, *span), &mut show).map(drop);
    }
    for part in span.in_parts(now) {
        if each_within(reader, selection, places, (asked, part), &mut show)? == Wanted::NoMore {
            break;
        }
    }
    Ok(())
}

fn each_within(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (asked, span): (&SessionQuestion, Span),
    show: &mut dyn FnMut(Session) -> Result<Wanted, HistoryError>,
) -> Result<Wanted, HistoryError> {
    let Span { since, until, baseline } = span;
    let within = SessionQuestion { time: SessionTime::Within { since, until }, ..asked.clone() };
    let mut window = Search::new(reader, selection, places, &within)?;
    let mut kinds = Kinds::opened_since(since);
    window.look(selection, &mut kinds)?;
    // Whatever opened before the window and closed later was open in it, and was seen.
    let time = SessionTime::Within { since: baseline, until: Some(since) };
    let before = SessionQuestion { time, closed_before: Some(since), ..asked.clone() };
    let mut before = Before::new(Search::new(reader, selection, places, &before)?)?;
    let (mut firsts, others) = kinds.firsts();
    let (mut blocks, mut together) = (Blocks::default(), FIRST_TOGETHER);
    loop {
        let some: Vec<First> = (0..together).map_while(|_| firsts.pop()).collect();
        if some.is_empty() {
            return Ok(Wanted::More);
        }
        for (First { kind, at, .. }, is_new) in zip(&some, before.have_none(&some)?) {
            if !is_new {
                continue;
            }
            let at_once = others.get(kind).into_iter().flatten();
            for at in at_once.chain([at]) {
                // It is gone when its file was dropped meanwhile.
                let Some(one) = window.session_at(kind.host_id, *at, &mut blocks)? else { continue };
                if show(window.shown(&one)?)? == Wanted::NoMore {
                    return Ok(Wanted::NoMore);
                }
            }
        }
        together = (2 * together).min(MOST_TOGETHER);
    }
}

/// What sessions have in common that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    host_id: i64,
    peer: IpAddr,
    protocol: Protocol,
    direction: Direction,
    /// The service's port.
    port: u16,
}

impl Kind {
    fn of(one: &StoredSession) -> Result<Kind, rusqlite::Error> {
        let Traits { protocol, direction, port, .. } = Traits::of(one)?;
        Ok(Kind { host_id: one.host_id, peer: one.peer.ip(), protocol, direction, port })
    }
}

/// The first session of a kind. The one that opened last is the largest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct First {
    kind: Kind,
    opened_at_us: i64,
    at: At,
}

impl Ord for First {
    fn cmp(&self, other: &First) -> Ordering {
        let key = |first: &First| {
            let Kind { host_id, peer, port, .. } = first.kind;
            (first.opened_at_us, host_id, peer, port)
        };
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for First {
    fn partial_cmp(&self, other: &First) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is held of a kind.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// One of it was there before the window.
    Before,
    /// When the first one opened, and where it is.
    First(i64, At),
}

/// The kinds of a host's sessions.
type OfHost = HashMap<Kind, Seen, Seeded>;

/// Other sessions that opened at the moment of the first of their kind.
type Others = HashMap<Kind, Vec<At>, Seeded>;

/// The kinds of the sessions that were open in the window.
struct Kinds {
    since: Timestamp,
    /// Apart for each host: those of a block are few, and near each other in memory.
    hosts: Numbered<i64, OfHost>,
    count: usize,
    seeded: Seeded,
    /// Those that opened at the moment of the first of their kind as it was known then.
    at_once: Vec<(Kind, i64, At)>,
}

impl Kinds {
    fn opened_since(since: Timestamp) -> Kinds {
        Kinds { since, hosts: Numbered::default(), count: 0, seeded: Seeded::default(), at_once: Vec::new() }
    }

    /// Adds sessions of a host.
    fn add(
        &mut self,
        host: i64,
        sessions: impl Iterator<Item = Result<(Kind, i64, At), HistoryError>>,
    ) -> Result<(), HistoryError> {
        let Kinds { since, hosts, count, seeded, at_once } = self;
        let of_host = hosts.entry(host).or_insert_with(|| HashMap::with_hasher(seeded.clone()));
        for one in sessions {
            let (kind, opened_at_us, at) = one?;
            let is_before = opened_at_us < since.as_micros();
            let seen = if is_before { Seen::Before } else { Seen::First(opened_at_us, at) };
            match of_host.entry(kind) {
                Entry::Vacant(place) => {
                    place.insert(seen);
                    *count += 1;
                }
                Entry::Occupied(mut place) => match *place.get() {
                    Seen::Before => {}
                    Seen::First(first_at_us, _) if is_before || opened_at_us < first_at_us => {
                        place.insert(seen);
                    }
                    Seen::First(first_at_us, _) if opened_at_us == first_at_us => {
                        at_once.push((kind, opened_at_us, at));
                    }
                    Seen::First(..) => {}
                },
            }
            if *count + at_once.len() > KINDS_LIMIT {
                return Err(HistoryError::TooMuch(format!(
                    "there were more than {KINDS_LIMIT} peers in the window; ask for fewer hosts or a shorter one"
                )));
            }
        }
        Ok(())
    }

    /// Those that opened in the window and are the first of their kind there, and others that opened at the same moments.
    fn firsts(self) -> (BinaryHeap<First>, Others) {
        let Kinds { hosts, count, at_once, .. } = self;
        let mut others = Others::default();
        for (kind, opened_at_us, at) in at_once {
            let first = hosts.get(&kind.host_id).and_then(|of_host| of_host.get(&kind));
            if matches!(first, Some(Seen::First(first_at_us, _)) if *first_at_us == opened_at_us) {
                others.entry(kind).or_default().push(at);
            }
        }
        let mut firsts = Vec::with_capacity(count);
        for (kind, seen) in hosts.into_values().flatten() {
            if let Seen::First(opened_at_us, at) = seen {
                firsts.push(First { kind, opened_at_us, at });
            }
        }
        (firsts.into(), others)
    }
}

impl Look<'_> for Kinds {
    fn one(&mut self, _search: &mut Search<'_>, at: At, one: &StoredSession) -> Result<(), HistoryError> {
        let one = (Kind::of(one)?, one.opened_at_us, at);
        self.add(one.0.host_id, std::iter::once(Ok(one)))
    }

    fn block(
        &mut self,
        _search: &mut Search<'_>,
        (file, id): (usize, i64),
        block: &Block,
        meant: &[usize],
    ) -> Result<(), HistoryError> {
        if meant.is_empty() {
            return Ok(());
        }
        let (services, peers) = (Services::of(block, meant.len())?, block.peers()?);
        let [closed, lasted] = [Column::ClosedAt, Column::Lasted].map(|column| block.values(column, meant.len()));
        let (closed, lasted) = (closed?, lasted?);
        let host_id = block.host_id();
        let one = |at: &usize| {
            let (protocol, direction, port) = services.of_session(*at)?;
            let kind = Kind { host_id, peer: *peers.of(*at)?, protocol, direction, port };
            let opened_at_us = closed.of(*at)?.wrapping_sub(lasted.of(*at)?);
            Ok((kind, opened_at_us, At::Place(file, Place { block: id, at: *at }.number())))
        };
        self.add(host_id, meant.iter().map(one))
    }
}

/// What was there before the window.
struct Before<'a> {
    search: Search<'a>,
    /// The files with something of that, the newest first.
    files: Vec<InFile>,
    blocks: Blocks,
}

impl<'a> Before<'a> {
    fn new(search: Search<'a>) -> Result<Before<'a>, HistoryError> {
        let mut files = Vec::new();
        for file in search.files().into_sorted_vec().into_iter().rev().map(|next| next.file) {
            if search.is_sealed(file) || search.begins_in_time(file)? {
                files.push(file);
            }
        }
        Ok(Before { search, files, blocks: Blocks::default() })
    }

    /// Of which of these kinds nothing was there.
    fn have_none(&mut self, some: &[First]) -> Result<Vec<bool>, HistoryError> {
        let mut by_host: Vec<usize> = (0..some.len()).collect();
        by_host.sort_unstable_by_key(|at| (some[*at].kind.host_id, some[*at].kind.peer));
        let mut none = vec![true; some.len()];
        for at in by_host {
            none[at] = !self.has(&some[at].kind)?;
        }
        Ok(none)
    }

    /// Whether a session of a kind was there.
    fn has(&mut self, kind: &Kind) -> Result<bool, HistoryError> {
        self.search.reader.go_on()?;
        for at in 0..self.files.len() {
            let file = self.files[at];
            let is_there =
                if self.search.is_sealed(file) { self.in_blocks(file, kind)? } else { self.in_rows(file, kind)? };
            if is_there {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn in_blocks(&mut self, file: InFile, kind: &Kind) -> Result<bool, HistoryError> {
        let Some((sealed, outline)) = self.search.sealed(file)? else { return Ok(false) };
        if !outline.may_have((kind.peer, kind.peer)) {
            return Ok(false);
        }
        let (true, Some(extents)) = (outline.places, &outline.extents) else {
            return self.in_blocks_of_host(file, sealed, kind);
        };
        let Some((first, last)) = extents.of_host(kind.host_id) else { return Ok(false) };
        let ends = (Place { block: first, at: 0 }.number(), Place { block: last + 1, at: 0 }.number() - 1);
        let mut found = Vec::new();
        places::find_within(sealed, kind.peer, ends, (|_| true, u64::MAX), &mut found)?;
        for here in found.chunk_by(|one, next| Place::of(*one).block == Place::of(*next).block).rev() {
            let Some(head) = here.first().and_then(|place| extents.head(Place::of(*place).block)) else { continue };
            let places = here.iter().map(|place| Place::of(*place).at).collect();
            if self.in_block(file, head, kind, Some(places))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The same of a file of an earlier version, which does not tell where the sessions with each address are.
    fn in_blocks_of_host(&mut self, file: InFile, sealed: &Connection, kind: &Kind) -> Result<bool, HistoryError> {
        let mut heads = Vec::new();
        self.search.each_block(sealed, [Which::OfHost(kind.host_id)], |found| heads.push(found.head))?;
        for head in heads.into_iter().rev() {
            if self.in_block(file, head, kind, None)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether one of a kind is in a block, in some places or anywhere.
    fn in_block(
        &mut self,
        file: InFile,
        head: Head,
        kind: &Kind,
        places: Option<Vec<usize>>,
    ) -> Result<bool, HistoryError> {
        let Before { search, blocks, .. } = self;
        let Some(block) = blocks.get((file, head.id), || search.fetch(file, head))? else { return Ok(false) };
        let mut places = match places {
            Some(places) => places,
            None => {
                let peers = block.peers()?;
                (0..block.len()).filter(|at| peers.of(*at).is_ok_and(|peer| *peer == kind.peer)).collect()
            }
        };
        block.keep_within(search.meaning.window.bounds(), &mut places)?;
        if places.is_empty() {
            return Ok(false);
        }
        let services = Services::of(block, places.len())?;
        let asks_for_more = search.meaning.asks_for_traits() || search.meaning.asks_for_owners();
        for at in places.into_iter().rev() {
            if services.of_session(at)? != (kind.protocol, kind.direction, kind.port) {
                continue;
            }
            if !asks_for_more {
                return Ok(true);
            }
            for one in block.sessions(&[at])? {
                if search.is_meant(&one)? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn in_rows(&mut self, file: InFile, kind: &Kind) -> Result<bool, HistoryError> {
        let Some(connection) = self.search.file(file)? else { return Ok(false) };
        let (rows, covered, last) =
            match self.search.rows_with(file, connection, &[(kind.peer, kind.peer)], MANY_ROWS)? {
                Some(found) => found,
                // So many that the rows of the host are fewer.
                None => (Vec::new(), 0, i64::MAX),
            };
        if covered < last {
            let runs = self.search.runs_of_host(connection, kind.host_id, covered)?;
            for run in runs.iter().rev() {
                if self.in_some(file, &[*run], kind)? {
                    return Ok(true);
                }
            }
        }
        for some in rows.rchunks(AT_ONCE) {
            if self.in_some(file, &runs(some), kind)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether one of a kind is in runs of rows.
    fn in_some(&mut self, file: InFile, runs: &[(i64, i64)], kind: &Kind) -> Result<bool, HistoryError> {
        let (window, mut found) = (self.search.meaning.window.bounds(), false);
        self.search.each_row(file, runs, window, |_, _, one| {
            found = found || Kind::of(&one)? == *kind;
            Ok(())
        })?;
        Ok(found)
    }
}

/// Blocks that were read, by their file and their number.
#[derive(Default)]
struct Blocks(HashMap<(InFile, i64), Block, Seeded>);

impl Blocks {
    /// A block, which is read when it is not held; none when it is not kept any more.
    fn get(
        &mut self,
        place: (InFile, i64),
        read: impl FnOnce() -> Result<Option<Block>, HistoryError>,
    ) -> Result<Option<&Block>, HistoryError> {
        if self.0.len() >= HELD_BLOCKS && !self.0.contains_key(&place) {
            self.0.clear();
        }
        Ok(match self.0.entry(place) {
            Entry::Occupied(held) => Some(held.into_mut()),
            Entry::Vacant(free) => read()?.map(|block| &*free.insert(block)),
        })
    }
}

impl Search<'_> {
    /// The session that was seen there; nothing when it is not kept any more.
    fn session_at(&mut self, host: i64, at: At, blocks: &mut Blocks) -> Result<Option<StoredSession>, HistoryError> {
        match at {
            At::Open(netns, cookie) => {
                let mut statement = self.reader.day.prepare_cached(&format!(
                    "SELECT {} FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3",
                    stored::OPEN
                ))?;
                let key = [host, netns, cookie];
                Ok(statement.query_row(key, StoredSession::open).optional()?)
            }
            At::Row(file, id) => self.read_row(file, id),
            At::Place(file, place) => {
                let (file, Place { block, at }) = (Some(file), Place::of(place));
                let found = blocks.get((file, block), || self.find_block(file, block))?;
                let Some(block) = found else { return Ok(None) };
                Ok(block.sessions(&[at])?.pop())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(number: usize) -> Kind {
        let peer = IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        Kind { host_id: 1, peer, protocol: Protocol::Tcp, direction: Direction::In, port: 443 }
    }

    fn none(since_us: i64) -> Kinds {
        Kinds::opened_since(Timestamp::from_micros(since_us))
    }

    #[test]
    fn the_first_of_a_kind_is_told_with_those_of_its_moment_unless_one_opened_before_the_window() {
        let mut kinds = none(10);
        for (number, opened_at_us, row) in
            [(1, 30, 1), (1, 30, 2), (1, 20, 3), (1, 20, 4), (1, 25, 5), (2, 40, 6), (3, 50, 7), (3, 9, 8), (3, 9, 9)]
        {
            kinds.add(1, [Ok((kind(number), opened_at_us, At::Row(None, row)))].into_iter()).unwrap();
        }
        let row = |row| At::Row(None, row);
        let first = |number, opened_at_us, of| First { kind: kind(number), opened_at_us, at: row(of) };
        let (firsts, others) = kinds.firsts();
        assert_eq!(firsts.into_sorted_vec(), [first(1, 20, 3), first(2, 40, 6)]);
        assert_eq!(others, Others::from_iter([(kind(1), vec![row(4)])]));
    }

    #[test]
    fn parts_of_a_span_follow_each_other_from_its_end_to_its_beginning() {
        let at = Timestamp::from_micros;
        for (since, until, now) in
            [(1000, Some(7000), 9000), (1000, None, 7000), (5, Some(5), 5), (5, Some(3), 9), (5, None, 2)]
        {
            let span = Span { since: at(since), until: until.map(at), baseline: at(-77) };
            let parts: Vec<Span> = span.in_parts(at(now)).collect();
            assert_eq!((parts[0].until, parts[parts.len() - 1].since), (span.until, span.since));
            assert!(parts.iter().all(|part| part.baseline == at(-77)));
            for two in parts.windows(2) {
                assert_eq!(two[1].until, Some(at(two[0].since.as_micros() - 1)));
            }
            assert!(parts.len() <= 7, "{}", parts.len());
        }
        let parts: Vec<Span> =
            Span { since: at(0), until: Some(at(6400)), baseline: at(-77) }.in_parts(at(1)).collect();
        assert_eq!(
            parts.iter().map(|part| part.since.as_micros()).collect::<Vec<_>>(),
            [6300, 6100, 5700, 4900, 3300, 100, 0]
        );
    }

    #[test]
    fn more_kinds_or_sessions_of_one_moment_than_may_be_held_are_refused_with_words() {
        for is_one_kind in [false, true] {
            let mut kinds = none(0);
            let mut add = |number| {
                let one = (kind(if is_one_kind { 7 } else { number }), 5, At::Row(None, 1));
                kinds.add(1, [Ok(one)].into_iter())
            };
            assert!((0..KINDS_LIMIT).all(|number| add(number).is_ok()));
            let refused = add(KINDS_LIMIT).unwrap_err().to_string();
            assert!(refused.contains("more than 500000 peers in the window; ask for fewer hosts"), "{refused}");
        }
    }
}
