//! Who held listeners at a moment of the past: whoever held them before the first change of owners after it.

use std::collections::HashMap;

use fleetsock_proto::time::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::ports::StoredListener;
use crate::history::sqlite::coding::OwnerColumns;

/// A life of a listener on its host: namespace, cookie, opening.
pub(super) type Life = (i64, i64, i64);

fn life(row: &Row<'_>) -> Result<Life, rusqlite::Error> {
    Ok((row.get("netns")?, row.get("cookie")?, row.get("opened_at_us")?))
}

/// The owners at a moment of those listeners of a host that had others later.
pub(super) struct Holders(HashMap<Life, OwnerColumns>);

impl Holders {
    pub(super) fn at(main: &Connection, host: i64, at: Timestamp) -> Result<Holders, rusqlite::Error> {
        let mut statement =
            main.prepare_cached("SELECT * FROM owner_changes WHERE host_id = ?1 AND at_us > ?2 ORDER BY at_us, id")?;
        let mut rows = statement.query(params![host, at.as_micros()])?;
        let mut first = HashMap::new();
        while let Some(row) = rows.next()? {
            if let std::collections::hash_map::Entry::Vacant(entry) = first.entry(life(row)?) {
                entry.insert(OwnerColumns::read_before(row)?);
            }
        }
        Ok(Holders(first))
    }

    /// The owners then of the listener with this life, if it had others later.
    pub(super) fn of(&self, life: Life) -> Option<&OwnerColumns> {
        self.0.get(&life)
    }
}

/// The first owners of a listener that had others later.
pub(super) fn first(main: &Connection, listener: &StoredListener) -> Result<Option<OwnerColumns>, rusqlite::Error> {
    let (netns, cookie, opened_at_us) = listener.life;
    main.prepare_cached(
        "SELECT * FROM owner_changes WHERE host_id = ?1 AND netns = ?2 AND cookie = ?3 AND opened_at_us = ?4
             ORDER BY at_us, id LIMIT 1",
    )?
    .query_row(params![listener.host_id, netns, cookie, opened_at_us], OwnerColumns::read_before)
    .optional()
}
