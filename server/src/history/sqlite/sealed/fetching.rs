//! Blocks of a sealed file, fetched one after the other.

use rusqlite::{Connection, ErrorCode, MAIN_DB, OptionalExtension, blob::Blob};

use super::Block;
use crate::history::{HistoryError, sqlite::coding};

/// What must be known of a block to read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Head {
    /// Its number.
    pub(in crate::history::sqlite) id: i64,
    /// Whose sessions they are.
    pub(in crate::history::sqlite) host_id: i64,
    /// How its columns are to be read.
    pub(in crate::history::sqlite) codec: i64,
}

/// Fetches blocks. What SQLite needs to find one is made once for all of them, which is as much work as to read one.
pub(in crate::history::sqlite) struct Fetching<'c> {
    sealed: &'c Connection,
    contents: Option<Blob<'c>>,
}

impl<'c> Fetching<'c> {
    pub(in crate::history::sqlite) const fn of(sealed: &'c Connection) -> Fetching<'c> {
        Fetching { sealed, contents: None }
    }

    /// A block of which only the number is known.
    pub(in crate::history::sqlite) fn find(&mut self, id: i64) -> Result<Block, HistoryError> {
        let head = self
            .sealed
            .prepare_cached("SELECT host_id, codec FROM blocks WHERE id = ?1")?
            .query_row([id], |row| Ok(Head { id, host_id: row.get(0)?, codec: row.get(1)? }))
            .optional()?;
        self.read(head.ok_or_else(|| missing(id))?)
    }

    /// A block.
    pub(in crate::history::sqlite) fn read(
        &mut self,
        Head { id, host_id, codec }: Head,
    ) -> Result<Block, HistoryError> {
        // As a column of a row its bytes would be copied twice.
        let contents = match self.contents.take() {
            Some(mut contents) => contents.reopen(id).map(|()| contents),
            None => self.sealed.blob_open(MAIN_DB, "contents", "columns", id, true),
        };
        let contents = contents.map_err(|error| match error.sqlite_error_code() {
            // There is no such row.
            Some(ErrorCode::Unknown) => missing(id),
            _ => error,
        })?;
        let mut bytes = vec![0; contents.len()];
        contents.read_at_exact(&mut bytes, 0)?;
        self.contents = Some(contents);
        Ok(Block::read(host_id, codec, bytes)?)
    }
}

fn missing(id: i64) -> rusqlite::Error {
    coding::wrong("columns", format!("block {id} is missing"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_not_there_is_missing_and_the_next_one_is_read() {
        let sealed = Connection::open_in_memory().unwrap();
        for migration in [
            include_str!("../../../../../migrations/sqlite/sealed/V1__begin.sql"),
            "INSERT INTO blocks VALUES (1, 7, 0, 0, 0, 0, 3), (2, 7, 0, 0, 0, 0, 3), (3, 7, 0, 0, 0, 0, 3);
             INSERT INTO contents SELECT id, zeroblob(18) FROM blocks WHERE id <> 2;",
        ] {
            sealed.execute_batch(migration).unwrap();
        }
        let mut fetching = Fetching::of(&sealed);
        for (id, found) in [(1, true), (2, false), (3, true), (4, false), (1, true)] {
            let block = fetching.find(id).map(|block| (block.host_id(), block.len()));
            match block {
                Ok(block) => assert!(found && block == (7, 0), "{id}"),
                Err(error) => assert!(!found && error.to_string().contains("is missing"), "{id}: {error}"),
            }
        }
    }
}
