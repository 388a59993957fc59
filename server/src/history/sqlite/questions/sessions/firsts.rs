//! New sessions: the first of their kind that opened within a window, where none of that kind was there since a baseline began.
//!
//! Sessions are of one kind when host, direction, peer, protocol and service are the same. What was open in the window is looked
//! at once, and held are only the kinds and where the first of each is. Then the newest comes first, and only as long as more are
//! wanted each is looked for among what closed between the baseline and the window: by the index of peers of each file, in the
//! host's own blocks or rows, the newest first. Most that are not new are found in the first of these.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
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

/// Between which times sessions opened that may be new, both included, and since when none like them was there.
pub(in crate::history::sqlite::questions) struct Span {
    pub(in crate::history::sqlite::questions) since: Timestamp,
    pub(in crate::history::sqlite::questions) until: Option<Timestamp>,
    pub(in crate::history::sqlite::questions) baseline: Timestamp,
}

/// Shows the sessions that are meant and new, those that opened last first, for as long as they are wanted.
pub(in crate::history::sqlite::questions) fn each_new(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (asked, span): (&SessionQuestion, &Span),
    mut show: impl FnMut(Session) -> Result<Wanted, HistoryError>,
) -> Result<(), HistoryError> {
    let Span { since, until, baseline } = *span;
    let within = SessionQuestion { time: SessionTime::Within { since, until }, ..asked.clone() };
    let mut window = Search::new(reader, selection, places, &within)?;
    let mut kinds = Kinds { since, all: HashMap::default(), at_once: Vec::new() };
    window.look(selection, &mut kinds)?;
    // Whatever opened before the window and closed later was open in it, and was seen.
    let time = SessionTime::Within { since: baseline, until: Some(since) };
    let before = SessionQuestion { time, closed_before: Some(since), ..asked.clone() };
    let mut before = Before::new(Search::new(reader, selection, places, &before)?)?;
    for First { kind, ats, .. } in kinds.firsts() {
        if before.has(&kind)? {
            continue;
        }
        for at in ats {
            // It is gone when its file was dropped meanwhile.
            let Some(one) = window.session_at(kind.host_id, at)? else { continue };
            if show(window.shown(&one)?)? == Wanted::NoMore {
                return Ok(());
            }
        }
    }
    Ok(())
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

/// The first session of a kind, and those that opened at the same moment.
struct First {
    kind: Kind,
    opened_at_us: i64,
    ats: Vec<At>,
}

/// What is held of a kind.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// One of it was there before the window.
    Before,
    /// When the first one opened, and where it is.
    First(i64, At),
}

/// The kinds of the sessions that were open in the window.
struct Kinds {
    since: Timestamp,
    all: HashMap<Kind, Seen, Seeded>,
    /// Those that opened at the moment of the first of their kind as it was known then.
    at_once: Vec<(Kind, i64, At)>,
}

impl Kinds {
    fn add(&mut self, kind: Kind, opened_at_us: i64, at: At) -> Result<(), HistoryError> {
        let is_before = opened_at_us < self.since.as_micros();
        let seen = if is_before { Seen::Before } else { Seen::First(opened_at_us, at) };
        match self.all.entry(kind) {
            Entry::Vacant(place) => drop(place.insert(seen)),
            Entry::Occupied(mut place) => match *place.get() {
                Seen::Before => {}
                Seen::First(first_at_us, _) if is_before || opened_at_us < first_at_us => {
                    place.insert(seen);
                }
                Seen::First(first_at_us, _) if opened_at_us == first_at_us => {
                    self.at_once.push((kind, opened_at_us, at))
                }
                Seen::First(..) => {}
            },
        }
        if self.all.len() + self.at_once.len() > KINDS_LIMIT {
            return Err(HistoryError::TooMuch(format!(
                "there were more than {KINDS_LIMIT} peers in the window; ask for fewer hosts or a shorter one"
            )));
        }
        Ok(())
    }

    /// Those that opened in the window and are the first of their kind there, the last ones first.
    fn firsts(self) -> Vec<First> {
        let Kinds { all, at_once, .. } = self;
        let mut others: HashMap<Kind, Vec<At>, Seeded> = HashMap::default();
        for (kind, opened_at_us, at) in at_once {
            if matches!(all.get(&kind), Some(Seen::First(first_at_us, _)) if *first_at_us == opened_at_us) {
                others.entry(kind).or_default().push(at);
            }
        }
        let first = |(kind, seen)| match seen {
            Seen::First(opened_at_us, at) => {
                let mut ats = others.remove(&kind).unwrap_or_default();
                ats.push(at);
                Some(First { kind, opened_at_us, ats })
            }
            Seen::Before => None,
        };
        let mut firsts: Vec<First> = all.into_iter().filter_map(first).collect();
        firsts.sort_unstable_by_key(|first| Reverse(first.opened_at_us));
        firsts
    }
}

impl Look for Kinds {
    fn one(&mut self, _search: &mut Search<'_>, at: At, one: &StoredSession) -> Result<(), HistoryError> {
        self.add(Kind::of(one)?, one.opened_at_us, at)
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
        for at in meant {
            let (protocol, direction, port) = services.of_session(*at)?;
            let kind = Kind { host_id: block.host_id(), peer: *peers.of(*at)?, protocol, direction, port };
            let opened_at_us = closed.of(*at)?.wrapping_sub(lasted.of(*at)?);
            self.add(kind, opened_at_us, At::Place(file, Place { block: id, at: *at }.number()))?;
        }
        Ok(())
    }
}

/// What was there before the window.
struct Before<'a> {
    search: Search<'a>,
    /// The files with something of that, the newest first.
    files: Vec<InFile>,
}

impl<'a> Before<'a> {
    fn new(search: Search<'a>) -> Result<Before<'a>, HistoryError> {
        let mut files = Vec::new();
        for file in search.files().into_sorted_vec().into_iter().rev().map(|next| next.file) {
            if search.is_sealed(file) || search.begins_in_time(file)? {
                files.push(file);
            }
        }
        Ok(Before { search, files })
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
        let search = &mut self.search;
        let Some(block) = search.fetch(file, head)? else { return Ok(false) };
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
        let services = Services::of(&block, places.len())?;
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

impl Search<'_> {
    /// The session that was seen there; nothing when it is not kept any more.
    fn session_at(&mut self, host: i64, at: At) -> Result<Option<StoredSession>, HistoryError> {
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
                let Some(block) = self.find_block(file, block)? else { return Ok(None) };
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
        Kinds { since: Timestamp::from_micros(since_us), all: HashMap::default(), at_once: Vec::new() }
    }

    #[test]
    fn the_first_of_a_kind_is_told_with_those_of_its_moment_unless_one_opened_before_the_window() {
        let mut kinds = none(10);
        for (number, opened_at_us, row) in
            [(1, 30, 1), (1, 30, 2), (1, 20, 3), (1, 20, 4), (1, 25, 5), (2, 40, 6), (3, 50, 7), (3, 9, 8), (3, 9, 9)]
        {
            kinds.add(kind(number), opened_at_us, At::Row(None, row)).unwrap();
        }
        let firsts = kinds.firsts().into_iter().map(|first| (first.kind, first.opened_at_us, first.ats));
        let row = |row| At::Row(None, row);
        assert_eq!(firsts.collect::<Vec<_>>(), [(kind(2), 40, vec![row(6)]), (kind(1), 20, vec![row(4), row(3)])]);
    }

    #[test]
    fn more_kinds_or_sessions_of_one_moment_than_may_be_held_are_refused_with_words() {
        for is_one_kind in [false, true] {
            let mut kinds = none(0);
            let mut add = |number| kinds.add(kind(if is_one_kind { 7 } else { number }), 5, At::Row(None, 1));
            assert!((0..KINDS_LIMIT).all(|number| add(number).is_ok()));
            let refused = add(KINDS_LIMIT).unwrap_err().to_string();
            assert!(refused.contains("more than 500000 peers in the window; ask for fewer hosts"), "{refused}");
        }
    }
}
