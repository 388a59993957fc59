//! Whether sessions of a kind were there before a window.

use std::{
    collections::{HashMap, hash_map::Entry},
    iter::zip,
};

use rusqlite::Connection;

use super::{
    super::{
        InFile, MANY_ROWS, Search,
        blocks::{Services, Which},
        rows::runs,
    },
    kinds::First,
};
use crate::history::{
    HistoryError,
    hashing::Seeded,
    sqlite::{
        coding::Numeric,
        kinds::{Kind, Looking},
        sealed::{Block, Filter, Head, places, places::Place},
    },
};

/// Rows that are read at once to find one of a kind.
const AT_ONCE: usize = 256;
/// Bytes of a file's filter that are read in about the time in which one kind is looked for without it.
const FILTER_BYTES: usize = 4096;
/// Kinds that are looked for between two looks whether to go on.
const LOOK_EVERY: usize = 256;

/// What was there before the window.
pub(super) struct Before<'a> {
    search: Search<'a>,
    /// The files with something of that which tell their kinds, and the others, of either the newest first.
    telling: Vec<InFile>,
    others: Vec<InFile>,
    blocks: Blocks,
}

/// A kind that is looked for, and which of those it is.
type Sought = (Kind, usize);

impl<'a> Before<'a> {
    pub(super) fn new(search: Search<'a>) -> Result<Before<'a>, HistoryError> {
        let (mut telling, mut others) = (Vec::new(), Vec::new());
        let kinds_tell = !search.meaning.tells_kinds_apart();
        for file in search.files().into_sorted_vec().into_iter().rev().map(|next| next.file) {
            search.reader.go_on()?;
            if kinds_tell && search.sealed(file)?.is_some_and(|(_, outline)| outline.kinds) {
                telling.push(file);
            } else if search.is_sealed(file) || search.begins_in_time(file)? {
                others.push(file);
            }
        }
        Ok(Before { search, telling, others, blocks: Blocks::default() })
    }

    /// Of which of these kinds nothing was there.
    pub(super) fn have_none(&mut self, some: &[First]) -> Result<Vec<bool>, HistoryError> {
        let mut none = vec![true; some.len()];
        // Which of them were in none of the files so far, in the order in which files tell them.
        let mut left: Vec<Sought> = zip(some.iter().map(|first| first.kind), 0..).collect();
        left.sort_unstable();
        let mut unclear: Vec<(InFile, Vec<Sought>)> = Vec::new();
        for file in &self.telling {
            unclear.push((*file, self.by_kinds(*file, &left, &mut none)?));
            left.retain(|(_, at)| none[*at]);
        }
        for (file, some) in unclear {
            // Another file may have told by now.
            self.by_sessions(file, some, &mut none)?;
        }
        for at in 0..self.others.len() {
            self.by_sessions(self.others[at], left.clone(), &mut none)?;
            left.retain(|(_, at)| none[*at]);
        }
        Ok(none)
    }

    /// Notes of which of these kinds that were not found yet a session is in a file.
    fn by_sessions(&mut self, file: InFile, mut some: Vec<Sought>, none: &mut [bool]) -> Result<(), HistoryError> {
        some.retain(|(_, at)| none[*at]);
        // What is near each other is read together.
        some.sort_unstable_by_key(|(kind, _)| (kind.host_id, kind.peer));
        for (kind, at) in some {
            self.search.reader.go_on()?;
            let is_there =
                if self.search.is_sealed(file) { self.in_blocks(file, &kind)? } else { self.in_rows(file, &kind)? };
            none[at] = !is_there;
        }
        Ok(())
    }

    /// Notes of which kinds a file tells that one was there; of which it leaves that open.
    fn by_kinds(&self, file: InFile, left: &[Sought], none: &mut [bool]) -> Result<Vec<Sought>, HistoryError> {
        let Some((sealed, outline)) = self.search.sealed(file)? else { return Ok(Vec::new()) };
        let [after, last, _] = self.search.meaning.window.bounds();
        // To look for a few takes less than to read a long filter.
        let filter = match Filter::<Kind>::bytes_of(sealed)? {
            Some(bytes) if bytes <= left.len().saturating_mul(FILTER_BYTES) => Some(Filter::<Kind>::of_file(sealed)?),
            Some(_) | None => None,
        };
        let (mut kinds, mut unclear) = (Looking::of(sealed), Vec::new());
        for (turn, (kind, at)) in left.iter().enumerate() {
            if turn.is_multiple_of(LOOK_EVERY) {
                self.search.reader.go_on()?;
            }
            let may_be_there = match &filter {
                Some(filter) => filter.may_have(kind),
                None => outline.may_have_peer(kind),
            };
            if !may_be_there {
                continue;
            }
            match kinds.find(kind)?.map(|hours| hours.are_within((after, last))) {
                Some(Some(true)) => none[*at] = false,
                Some(None) => unclear.push((*kind, *at)),
                Some(Some(false)) | None => {}
            }
        }
        Ok(unclear)
    }

    fn in_blocks(&mut self, file: InFile, kind: &Kind) -> Result<bool, HistoryError> {
        let Some((sealed, outline)) = self.search.sealed(file)? else { return Ok(false) };
        if !outline.may_have_peer(kind) {
            return Ok(false);
        }
        let (true, Some(extents)) = (outline.places, &outline.extents) else {
            return self.in_blocks_of_host(file, sealed, kind);
        };
        let Some((first, last)) = extents.of_host(kind.host_id) else { return Ok(false) };
        let ends = (Place { block: first, at: 0 }.number(), Place { block: last + 1, at: 0 }.number() - 1);
        let mut found = Vec::new();
        places::find_within(sealed, kind.peer.address(), ends, (|_| true, u64::MAX), &mut found)?;
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
                (0..block.len())
                    .filter(|at| peers.of(*at).is_ok_and(|peer| Numeric::from(*peer) == kind.peer))
                    .collect()
            }
        };
        block.keep_within(search.meaning.window.bounds(), &mut places)?;
        if places.is_empty() {
            return Ok(false);
        }
        let services = Services::of(block, places.len())?;
        let asks_for_more = search.meaning.tells_kinds_apart();
        for at in places.into_iter().rev() {
            if services.service_of(at)? != kind.service {
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
            match self.search.rows_with(file, connection, &[(kind.peer.address(), kind.peer.address())], MANY_ROWS)? {
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

/// Blocks that are held while they may be needed again, about 20 KiB each.
const HELD_BLOCKS: usize = 512;

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
