//! Sessions that were seen, read where they are: those of a block together.

use rusqlite::OptionalExtension;

use super::super::{Search, looking::At};
use crate::history::{
    HistoryError,
    sqlite::{
        sealed::places::Place,
        stored::{self, StoredSession},
    },
};

impl Search<'_> {
    /// The sessions of hosts that were seen in these places, each in its turn; nothing where one is not kept any more.
    pub(super) fn sessions_at(&mut self, some: &[(i64, At)]) -> Result<Vec<Option<StoredSession>>, HistoryError> {
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
            let Some(block) = self.find_block(Some(file), block)? else { continue };
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
