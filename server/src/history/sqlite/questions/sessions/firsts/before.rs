//! Whether sessions of a kind were there before a window, and the sessions of those that were not.

use std::collections::{HashMap, hash_map::Entry};

use rusqlite::{Connection, OptionalExtension};

use super::{
    super::{
        InFile, MANY_ROWS, Search,
        blocks::{Services, Which},
        looking::At,
        rows::runs,
    },
    kinds::{First, Kind},
};
use crate::history::{
    HistoryError,
    hashing::Seeded,
    sqlite::{
        sealed::{Block, Head, places, places::Place},
        stored::{self, StoredSession},
    },
};

/// Rows that are read at once to find one of a kind.
const AT_ONCE: usize = 256;
/// Blocks that are held while they may be needed again, about 20 KiB each.
const HELD_BLOCKS: usize = 512;

/// What was there before the window.
pub(super) struct Before<'a> {
    search: Search<'a>,
    /// The files with something of that, the newest first.
    files: Vec<InFile>,
    blocks: Blocks,
}

impl<'a> Before<'a> {
    pub(super) fn new(search: Search<'a>) -> Result<Before<'a>, HistoryError> {
        let mut files = Vec::new();
        for file in search.files().into_sorted_vec().into_iter().rev().map(|next| next.file) {
            if search.is_sealed(file) || search.begins_in_time(file)? {
                files.push(file);
            }
        }
        Ok(Before { search, files, blocks: Blocks::default() })
    }

    /// Of which of these kinds nothing was there.
    pub(super) fn have_none(&mut self, some: &[First]) -> Result<Vec<bool>, HistoryError> {
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
pub(super) struct Blocks(HashMap<(InFile, i64), Block, Seeded>);

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
    pub(super) fn session_at(
        &mut self,
        host: i64,
        at: At,
        blocks: &mut Blocks,
    ) -> Result<Option<StoredSession>, HistoryError> {
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
