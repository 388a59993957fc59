//! Which blocks of a sealed file are those of a host.

use rusqlite::Connection;

use super::Head;
use crate::history::sqlite::coding;

/// The blocks of each host, in the order of their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Extents(Vec<Extent>);

/// Blocks that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    first: i64,
    last: i64,
    host_id: i64,
    codec: i64,
}

impl Extents {
    /// Those of a sealed file; none when an earlier version sealed it.
    pub(in crate::history::sqlite) fn of(sealed: &Connection) -> Result<Option<Extents>, rusqlite::Error> {
        if !sealed.table_exists(None, "extents")? {
            return Ok(None);
        }
        let mut statement =
            sealed.prepare("SELECT first_block, last_block, host_id, codec FROM extents ORDER BY first_block")?;
        let extent = |row: &rusqlite::Row<'_>| {
            Ok(Extent { first: row.get(0)?, last: row.get(1)?, host_id: row.get(2)?, codec: row.get(3)? })
        };
        let all = statement.query_map([], extent)?.collect::<Result<Vec<_>, _>>()?;
        if all.windows(2).any(|two| two[0].last >= two[1].first) {
            return Err(coding::wrong("last_block", "blocks are those of two hosts"));
        }
        Ok(Some(Extents(all)))
    }

    /// What must be known of a block to read it; nothing when there is no such block.
    pub(in crate::history::sqlite) fn head(&self, id: i64) -> Option<Head> {
        let before = self.0.partition_point(|extent| extent.first <= id).checked_sub(1)?;
        let Extent { last, host_id, codec, .. } = *self.0.get(before)?;
        (id <= last).then_some(Head { id, host_id, codec })
    }

    /// The first and the last block of a host; nothing when it has none.
    pub(in crate::history::sqlite) fn of_host(&self, host_id: i64) -> Option<(i64, i64)> {
        self.0.iter().find(|extent| extent.host_id == host_id).map(|extent| (extent.first, extent.last))
    }
}

/// Stores those of the blocks of a file, which come host by host.
pub(super) fn store(sealed: &Connection) -> Result<(), rusqlite::Error> {
    sealed
        .execute(
            "INSERT INTO extents (first_block, last_block, host_id, codec)
             SELECT min(id), max(id), host_id, max(codec) FROM blocks GROUP BY host_id",
            [],
        )
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(blocks: &str) -> Connection {
        let sealed = Connection::open_in_memory().unwrap();
        sealed.execute_batch(include_str!("../../../../../migrations/sqlite/sealed/V1__begin.sql")).unwrap();
        assert_eq!(Extents::of(&sealed).unwrap(), None, "none of an earlier version");
        let extents = include_str!("../../../../../migrations/sqlite/sealed/V5__totals_extents.sql");
        sealed.execute_batch(extents).unwrap();
        sealed.execute_batch(blocks).unwrap();
        store(&sealed).unwrap();
        sealed
    }

    #[test]
    fn whose_a_block_is_is_known_and_what_is_none_is_nobodys() {
        let sealed = sealed(
            "INSERT INTO blocks VALUES (1, 7, 0, 0, 0, 0, 3), (2, 7, 0, 0, 0, 0, 3), (3, 5, 0, 0, 0, 0, 3), (9, 6, 0, 0, 0, 0, 3)",
        );
        let extents = Extents::of(&sealed).unwrap().unwrap();
        let hosts: Vec<Option<i64>> = (0..11).map(|id| extents.head(id).map(|head| head.host_id)).collect();
        assert_eq!(hosts, [None, Some(7), Some(7), Some(5), None, None, None, None, None, Some(6), None]);
        assert_eq!([7, 5, 6, 8].map(|host| extents.of_host(host)), [Some((1, 2)), Some((3, 3)), Some((9, 9)), None]);
        assert_eq!(extents.head(3), Some(Head { id: 3, host_id: 5, codec: 3 }));
    }

    #[test]
    fn blocks_that_do_not_come_host_by_host_are_refused() {
        let sealed =
            sealed("INSERT INTO blocks VALUES (1, 7, 0, 0, 0, 0, 3), (2, 5, 0, 0, 0, 0, 3), (3, 7, 0, 0, 0, 0, 3)");
        assert!(Extents::of(&sealed).unwrap_err().to_string().contains("two hosts"));
    }
}
