//! Sums by peer: how many sessions there were with each address, and their bytes, so that who talks most is answered without reading
//! the sessions.
//!
//! They are too many to be held at once, so that everything is done in the order of the addresses: sums are made while peers are
//! sorted for their index ([`Adding`], [`Segment`]), stored in short stretches, and merged when they are asked for ([`Merged`]), across
//! all files at once. In a sealed file they are told of all sessions, of those that closed within each hour, and of those that were
//! open when an hour began; a window is a few of these ([`Choice`]), and of the sessions near its ends the rows. In one that is
//! written to still they are told of each segment of its rows, for windows in which all of these are ([`Summed`]).
//!
//! Those of a scope or a segment ([`Source`]) are stored apart by how many sessions they count (`levels`): of the few peers that
//! have most only the larger ones are merged, and what a smaller one may add to these is looked up ([`beside`]).

use std::net::IpAddr;

use rusqlite::Connection;

pub(super) use self::{
    adding::Adding,
    checking::Expected,
    choosing::{Choice, Hour},
    merging::Merged,
    segments::{Segment, Summed},
    source::Source,
    topmost::beside,
};
use super::{
    cubes::Span,
    sealed::{Damaged, Reading, Writing},
    stored::StoredSession,
    sums::Counts,
};

mod adding;
mod checking;
mod choosing;
mod encoding;
mod levels;
mod merging;
mod segments;
mod source;
mod topmost;

/// Which sessions of a file sums are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scope {
    All,
    /// Those that closed within an hour.
    Closed(i64),
    /// Those that were open when an hour began.
    Open(i64),
}

impl Scope {
    /// As it is stored: the number of its kind, and the hour.
    const fn stored(self) -> [i64; 2] {
        match self {
            Scope::All => [1, 0],
            Scope::Closed(hour) => [2, hour],
            Scope::Open(hour) => [3, hour],
        }
    }
}

/// What of a session is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct One {
    pub(super) span: Span,
    pub(super) bytes_sent: i64,
    pub(super) bytes_received: i64,
}

impl One {
    /// Of a session that is over.
    pub(super) fn of(one: &StoredSession) -> One {
        let span = Span::of(one.opened_at_us, one.closed_at_us());
        One { span, bytes_sent: one.bytes_sent, bytes_received: one.bytes_received }
    }

    const fn counts(self) -> Counts {
        Counts::one(self.bytes_sent, self.bytes_received)
    }

    /// At most 40 bytes, of which [`One::read`] makes the same.
    pub(super) fn write(self, into: &mut Writing) {
        self.span.write(into);
        [self.bytes_sent, self.bytes_received].into_iter().for_each(|bytes| into.unsigned(bytes.cast_unsigned()));
    }

    pub(super) fn read(from: &mut Reading<'_>) -> Result<One, Damaged> {
        let span = Span::read(from)?;
        let (bytes_sent, bytes_received) = (from.unsigned()?.cast_signed(), from.unsigned()?.cast_signed());
        Ok(One { span, bytes_sent, bytes_received })
    }
}

/// What was counted with an address.
type Sum = (IpAddr, Counts);

/// Whether a file may have sums by peer: those that earlier versions sealed have none, or none that are apart by their size.
pub(super) fn may_be_told(sealed: &Connection) -> Result<bool, rusqlite::Error> {
    sealed.column_exists(None, "peer_sums", "level")
}

/// The hours of which there are sums, in their order; none where there are no sums.
pub(super) fn hours(sealed: &Connection) -> Result<Vec<Hour>, rusqlite::Error> {
    sealed
        .prepare_cached("SELECT hour, max_opened_at_us, open FROM peer_hours ORDER BY hour")?
        .query_map([], |row| Ok(Hour { hour: row.get(0)?, max_opened_at_us: row.get(1)?, open: row.get(2)? }))?
        .collect()
}
