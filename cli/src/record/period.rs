//! A stretch of time of a host and how well it was observed, as `hosts --coverage` shows it.

use fleetsock_proto::{
    answer::{Cover, GapReason},
    host::HostId,
    time::Timestamp,
};

use super::{Cell, Column, Field, Record, Shown, Side, Times, View, column, moment};
use crate::{clock, console::Tone};

/// A stretch of time of a host, all of it observed equally well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Period {
    /// Name of the host.
    pub host: String,
    /// Id of the host.
    pub host_id: HostId,
    /// Where it begins.
    pub since: Timestamp,
    /// Where it ends.
    pub until: Timestamp,
    /// How well it was observed.
    pub cover: Cover,
    /// Why not well; absent when it was.
    pub reason: Option<GapReason>,
    /// Batches known to be missing; 0 when their number is not known.
    pub batches_lost: u64,
}

const FIELDS: &[Field<Period>] = &[
    Field { name: "host", value: |row, _| super::text(&row.host) },
    Field { name: "host_id", value: |row, _| row.host_id.to_string().into() },
    Field { name: "since", value: |row, _| moment(row.since) },
    Field { name: "until", value: |row, _| moment(row.until) },
    Field { name: "cover", value: |row, _| row.cover.as_str().into() },
    Field {
        name: "reason",
        value: |row, _| row.reason.map_or(serde_json::Value::Null, |reason| reason.as_str().into()),
    },
    Field {
        name: "duration_ms",
        value: |row, _| u64::try_from(row.until.since(row.since).as_millis()).unwrap_or(u64::MAX).into(),
    },
    Field { name: "batches_lost", value: |row, _| row.batches_lost.into() },
];

/// On the clock: a timeline is not read in ages.
fn time(at: Timestamp, view: &View) -> Cell {
    Cell::new(&if view.times == Times::Absolute { view.clock.absolute(at) } else { view.clock.short(at) })
}

fn cover(row: &Period, _: &View) -> Cell {
    Cell::new(row.cover.as_str()).tone(tone(row.cover))
}

/// What colour says of a cover, besides its word.
pub fn tone(cover: Cover) -> Tone {
    match cover {
        Cover::Observed => Tone::Good,
        Cover::Lossy => Tone::Warning,
        Cover::NotObserved => Tone::Bad,
        Cover::Expired => Tone::Faint,
    }
}

const COLUMNS: &[Column<Period>] = &[
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |row, _| Cell::new(&row.host)),
    column("since", "SINCE", &["since"], Shown::Always, Side::Left, |row, view| time(row.since, view)),
    column("until", "UNTIL", &["until"], Shown::Always, Side::Left, |row, view| time(row.until, view)),
    column("cover", "COVER", &["cover"], Shown::Always, Side::Left, cover),
    column("length", "LENGTH", &["duration_ms"], Shown::Always, Side::Right, |row, _| {
        Cell::new(&clock::lapse(row.until.since(row.since)))
    }),
    column("reason", "REASON", &["reason"], Shown::Always, Side::Left, |row, _| {
        Cell::new(row.reason.map_or("", GapReason::as_str))
    }),
    column("batches", "BATCHES-LOST", &["batches_lost"], Shown::Wide, Side::Right, |row, _| {
        Cell::new(&row.batches_lost.to_string())
    }),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |row, _| Cell::new(&row.host_id.to_string())),
];

impl Record for Period {
    const NOUN: &'static str = "period";

    fn fields() -> &'static [Field<Period>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Period>] {
        COLUMNS
    }

    fn name(&self) -> String {
        format!("{} {} {}", self.host, clock::rfc3339(self.since), self.cover.as_str())
    }
}
