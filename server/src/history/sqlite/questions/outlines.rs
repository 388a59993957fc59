//! What is known of sealed files before anything is looked for in them. They do not change, so that all readers share it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rusqlite::Connection;

use crate::history::sqlite::{
    by_peer, cubes,
    kinds::{self, Kind},
    sealed::{Extents, Filter, places},
};

/// Bytes of filters that are remembered. The files beyond are searched for an address.
const FILTER_BYTES: usize = 64 * 1024 * 1024;

/// What is known of a sealed file.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Outline {
    /// The earliest opening of its sessions, us.
    pub(in crate::history::sqlite) opened_at_us: i64,
    /// Their earliest closing, us.
    pub(in crate::history::sqlite) closed_at_us: i64,
    /// Whether it tells where the sessions with each address are: those of earlier versions tell which hosts had some.
    pub(in crate::history::sqlite) places: bool,
    /// Whether it has sums.
    pub(in crate::history::sqlite) sums: bool,
    /// Whether it has those of all hours together.
    pub(in crate::history::sqlite) totals: bool,
    /// Whether it has those of runs of hours, and of what was open when one began.
    pub(in crate::history::sqlite) runs: bool,
    /// Whether it may have sums by peer.
    pub(in crate::history::sqlite) peer_sums: bool,
    /// Whether it tells its kinds.
    pub(in crate::history::sqlite) kinds: bool,
    /// Whose its blocks are, if it tells that.
    pub(in crate::history::sqlite) extents: Option<Extents>,
    /// Which addresses it has no session with, if it tells that and there is room to remember it.
    filter: Option<Filter<IpAddr>>,
}

impl Outline {
    /// That of a file, of whose filter so many bytes may be remembered.
    fn of(sealed: &Connection, room: usize) -> Result<Outline, rusqlite::Error> {
        let (places, sums) = (places::are_told(sealed)?, cubes::are_told(sealed)?);
        let (totals, runs) = (cubes::have_totals(sealed)?, cubes::have_runs(sealed)?);
        let peer_sums = sums && by_peer::may_be_told(sealed)?;
        // Earlier versions noted no beginning either.
        let beginning = if sums {
            "SELECT min(min_opened_at_us), min(min_closed_at_us) FROM beginnings"
        } else {
            "SELECT min(min_opened_at_us), min(min_closed_at_us) FROM blocks"
        };
        let (kinds, extents) = (kinds::are_told(sealed)?, Extents::of(sealed)?);
        let filter = match Filter::<IpAddr>::bytes_of(sealed)? {
            Some(bytes) if bytes <= room => Some(Filter::of_file(sealed)?),
            Some(_) | None => None,
        };
        sealed.query_row(beginning, [], |row| {
            // Of no sessions all are later than anything.
            let earliest = |column| Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.unwrap_or(i64::MAX));
            let (opened_at_us, closed_at_us) = (earliest(0)?, earliest(1)?);
            Ok(Outline { opened_at_us, closed_at_us, places, sums, totals, runs, peer_sums, kinds, extents, filter })
        })
    }

    /// Whether there may be sessions with the peer of a kind.
    pub(in crate::history::sqlite) fn may_have_peer(&self, kind: &Kind) -> bool {
        self.filter.as_ref().is_none_or(|filter| filter.may_have(&kind.peer.address()))
    }

    /// Whether there may be sessions with addresses from one to another.
    pub(in crate::history::sqlite) fn may_have(&self, (from, to): (IpAddr, IpAddr)) -> bool {
        self.filter.as_ref().filter(|_| from == to).is_none_or(|filter| filter.may_have(&from))
    }
}

/// The outlines that readers have, by the numbers of the files.
#[derive(Debug, Default)]
pub(super) struct Outlines(Mutex<HashMap<i64, Weak<Outline>>>);

impl Outlines {
    /// That of a file: the one that another reader has, if any does.
    pub(super) fn get(&self, file: i64, sealed: &Connection) -> Result<Arc<Outline>, rusqlite::Error> {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known().get(&file).and_then(Weak::upgrade) {
            return Ok(shared);
        }
        let others: Vec<_> = known().values().filter_map(Weak::upgrade).collect();
        let remembered: usize = others.iter().filter_map(|outline| outline.filter.as_ref()).map(Filter::bytes).sum();
        // Two readers may make it at once.
        let made = Arc::new(Outline::of(sealed, FILTER_BYTES.saturating_sub(remembered))?);
        let mut known = known();
        known.retain(|_, outline| outline.strong_count() > 0);
        known.insert(file, Arc::downgrade(&made));
        Ok(made)
    }
}
