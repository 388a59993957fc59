//! Zones of the table of sessions: which rows opened and closed when, and which of them lasted long.

use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::noting::Ended;
use crate::history::sqlite::{coding, long::Long};

/// Rows of a zone: fewer make the table of zones long, more make a search read what it does not need.
const ZONE_ROWS: i64 = 1024;

/// A run of rows.
struct Zone {
    first_id: i64,
    last_id: i64,
    min_closed_at_us: i64,
    max_closed_at_us: i64,
    /// None when it is not known of all rows.
    min_opened_at_us: Option<i64>,
    /// None when it is not known of all rows.
    long: Option<Long>,
}

impl Zone {
    fn beginning(id: i64) -> Zone {
        let (min_closed_at_us, max_closed_at_us) = (i64::MAX, i64::MIN);
        let (min_opened_at_us, long) = (Some(i64::MAX), Some(Long::default()));
        Zone { first_id: id, last_id: id, min_closed_at_us, max_closed_at_us, min_opened_at_us, long }
    }

    fn read(row: &Row<'_>) -> Result<Zone, rusqlite::Error> {
        let long: Option<Vec<u8>> = row.get("rows")?;
        let long = long.map(|bytes| Long::read(&bytes)).transpose();
        Ok(Zone {
            first_id: row.get("first_id")?,
            last_id: row.get("last_id")?,
            min_closed_at_us: row.get("min_closed_at_us")?,
            max_closed_at_us: row.get("max_closed_at_us")?,
            min_opened_at_us: row.get("min_opened_at_us")?,
            long: long.map_err(|damaged| coding::wrong("rows", damaged.to_string()))?,
        })
    }

    const fn is_full(&self) -> bool {
        self.last_id - self.first_id + 1 >= ZONE_ROWS
    }

    fn store(&self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        let Zone { first_id, last_id, min_closed_at_us, max_closed_at_us, min_opened_at_us, long } = self;
        transaction
            .prepare_cached(
                "REPLACE INTO zones (first_id, last_id, min_closed_at_us, max_closed_at_us, min_opened_at_us)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .execute(params![first_id, last_id, min_closed_at_us, max_closed_at_us, min_opened_at_us])?;
        if let Some(long) = long {
            transaction
                .prepare_cached("REPLACE INTO zone_long (first_id, rows) VALUES (?1, ?2)")?
                .execute(params![first_id, long.bytes()])?;
        }
        Ok(())
    }
}

/// What is noted within a transaction: the zone of the last row; none before the first one.
#[derive(Default)]
pub(super) struct Zones(Option<Zone>);

impl Zones {
    /// Notes a row, which is the last one.
    pub(super) fn add(&mut self, transaction: &Transaction<'_>, ended: &Ended) -> Result<(), rusqlite::Error> {
        let Ended { id, closed_at_us, opened_at_us, service, .. } = *ended;
        let into = match self.0.take() {
            Some(zone) if zone.is_full() => {
                zone.store(transaction)?;
                Zone::beginning(id)
            }
            Some(zone) => zone,
            None => last(transaction)?.filter(|zone| !zone.is_full()).unwrap_or_else(|| Zone::beginning(id)),
        };
        let into = self.0.insert(into);
        into.last_id = id;
        into.min_closed_at_us = into.min_closed_at_us.min(closed_at_us);
        into.max_closed_at_us = into.max_closed_at_us.max(closed_at_us);
        into.min_opened_at_us = into.min_opened_at_us.map(|earliest| earliest.min(opened_at_us));
        if let Some(long) = &mut into.long {
            long.add(id - into.first_id, (opened_at_us, closed_at_us), service.port);
        }
        Ok(())
    }

    /// Stores what was noted.
    pub(super) fn finish(&mut self, transaction: &Transaction<'_>) -> Result<(), rusqlite::Error> {
        self.0.take().map_or(Ok(()), |zone| zone.store(transaction))
    }
}

fn last(transaction: &Transaction<'_>) -> Result<Option<Zone>, rusqlite::Error> {
    transaction
        .prepare_cached("SELECT * FROM zones LEFT JOIN zone_long USING (first_id) ORDER BY first_id DESC LIMIT 1")?
        .query_row([], Zone::read)
        .optional()
}
