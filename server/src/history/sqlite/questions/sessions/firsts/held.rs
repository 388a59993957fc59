//! Sessions that were seen, read where they are: those of a block together.

use std::collections::{HashMap, hash_map::Entry};

use rusqlite::OptionalExtension;

use super::super::{InFile, Search, looking::At};
use crate::history::{
    HistoryError,
    hashing::Seeded,
    sqlite::{
        sealed::{Block, places::Place},
        stored::{self, StoredSession},
    },
};

/// Blocks that are held while they may be needed again, about 20 KiB each.
const HELD_BLOCKS: usize = 512;

/// Blocks that were read, by their file and their number.
#[derive(Default)]
pub(super) struct Blocks(HashMap<(InFile, i64), Block, Seeded>);

impl Blocks {
    /// A block, which is read when it is not held; none when it is not kept any more.
    pub(super) fn get(
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
    /// The sessions of hosts that were seen in these places, each in its turn; nothing where one is not kept any more.
    pub(super) fn sessions_at(
        &mut self,
        some: &[(i64, At)],
        blocks: &mut Blocks,
    ) -> Result<Vec<Option<StoredSession>>, HistoryError> {
        let mut found: Vec<Option<StoredSession>> = some.iter().map(|_| None).collect();
        let mut in_blocks = Vec::new();
        for (turn, (host, at)) in some.iter().enumerate() {
            match *at {
                At::Open(netns, cookie) => found[turn] = self.open_session([*host, netns, cookie])?,
                At::Row(file, id) => found[turn] = self.read_row(file, id)?,
                At::Place(file, place) => {
                    let Place { block, at } = Place::of(place);
                    in_blocks.push(((file, block), at, turn));
                }
            }
        }
        in_blocks.sort_unstable();
        for of_block in in_blocks.chunk_by(|one, next| one.0 == next.0) {
            let Some(((file, block), ..)) = of_block.first().copied() else { continue };
            let place = (Some(file), block);
            let Some(block) = blocks.get(place, || self.find_block(Some(file), block))? else { continue };
            let places: Vec<usize> = of_block.iter().map(|(_, at, _)| *at).collect();
            for ((.., turn), one) in of_block.iter().zip(block.sessions(&places)?) {
                found[*turn] = Some(one);
            }
        }
        Ok(found)
    }

    fn open_session(&self, key: [i64; 3]) -> Result<Option<StoredSession>, rusqlite::Error> {
        let sql =
            format!("SELECT {} FROM open_sessions WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3", stored::OPEN);
        self.reader.day.prepare_cached(&sql)?.query_row(key, StoredSession::open).optional()
    }
}
