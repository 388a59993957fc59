//! Where sessions are in a sealed file, and where those with an address are.

use std::net::IpAddr;

use rusqlite::{Connection, Row, params};

use super::{
    GoesOn, SealError,
    column::{Damaged, Reading},
    layout::MOST_SESSIONS,
};
use crate::history::{
    HistoryError,
    hashing::folded,
    sqlite::coding::{self, AddressBytes},
};

/// Sessions of a block, as places are numbered; a part of the schema.
pub(in crate::history::sqlite) const STRIDE: usize = 2048;
const _: () = assert!(MOST_SESSIONS <= STRIDE, "places of two blocks must differ");

/// Sessions between two looks whether it is still wanted.
const LOOK_EVERY: u64 = 64 * 1024;

/// Where a session is: in which block, and how many are before it there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Place {
    pub(in crate::history::sqlite) block: i64,
    pub(in crate::history::sqlite) at: usize,
}

impl Place {
    /// As it is stored.
    pub(in crate::history::sqlite) const fn number(self) -> i64 {
        self.block.wrapping_mul(STRIDE as i64).wrapping_add(self.at as i64)
    }

    /// The place of a number.
    pub(in crate::history::sqlite) const fn of(number: i64) -> Place {
        let at = number.rem_euclid(STRIDE as i64);
        Place { block: number.div_euclid(STRIDE as i64), at: at as usize }
    }
}

/// Whether a file tells where the sessions with each address are; those of earlier versions tell which hosts had some.
pub(in crate::history::sqlite) fn are_told(sealed: &Connection) -> Result<bool, rusqlite::Error> {
    sealed.table_exists(None, "peers")
}

/// Adds where sessions with addresses from one to another are; whether there are at most so many.
pub(in crate::history::sqlite) fn find(
    sealed: &Connection,
    (from, to): (IpAddr, IpAddr),
    most: usize,
    into: &mut Vec<i64>,
) -> Result<bool, HistoryError> {
    let sql = "SELECT first_place, places FROM peers WHERE peer_address BETWEEN ?1 AND ?2";
    let mut statement = sealed.prepare_cached(sql)?;
    let mut rows = statement.query([from, to].map(AddressBytes::of))?;
    while let Some(row) = rows.next()? {
        each_of(row, 0, |place| into.push(place))?;
        if into.len() > most {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Adds where sessions with an address are, from one place to another, in blocks that are meant; whether there are at most so many.
pub(in crate::history::sqlite) fn find_within(
    sealed: &Connection,
    peer: IpAddr,
    (first, last): (i64, i64),
    (is_meant, most): (impl Fn(i64) -> bool, u64),
    into: &mut Vec<i64>,
) -> Result<bool, HistoryError> {
    // The row that begins before the first place may reach beyond it.
    let mut statement = sealed.prepare_cached(
        "SELECT first_place, places FROM peers
         WHERE peer_address = ?1 AND first_place <= ?3 AND first_place >= ifnull(
             (SELECT max(first_place) FROM peers WHERE peer_address = ?1 AND first_place <= ?2), ?2)",
    )?;
    let mut rows = statement.query(params![AddressBytes::of(peer), first, last])?;
    while let Some(row) = rows.next()? {
        each_of(row, 0, |place| {
            let is_here = (first..=last).contains(&place) && is_meant(Place::of(place).block);
            into.extend(is_here.then_some(place));
        })?;
        if into.len() as u64 > most {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The places of a row: the first of them in a column, the others in the column after it.
fn each_of(row: &Row<'_>, column: usize, mut show: impl FnMut(i64)) -> Result<(), HistoryError> {
    let mut place: i64 = row.get(column)?;
    show(place);
    let others = row.get_ref(column + 1)?.as_blob().map_err(|error| coding::wrong("places", error.to_string()))?;
    let mut others = Reading::new(others);
    while others.end().is_err() {
        let step: i64 = others.narrow()?;
        place = place.checked_add(step).ok_or(Damaged("a place is too large"))?;
        show(place);
    }
    Ok(())
}

/// Sums up which sessions are where, in any order, so that two tellings can be held against each other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Telling {
    sessions: u64,
    hash: u64,
}

impl Telling {
    pub(super) fn add(&mut self, peer: IpAddr, place: i64) {
        self.sessions += 1;
        self.hash = self.hash.wrapping_add(folded((peer, place)));
    }

    /// What a file tells.
    pub(super) fn of(sealed: &Connection, goes_on: &GoesOn) -> Result<Telling, SealError> {
        let mut telling = Telling::default();
        let mut look_at = LOOK_EVERY;
        let mut statement = sealed.prepare("SELECT peer_address, first_place, places FROM peers")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let peer = coding::address_of(row.get_ref(0)?)?;
            each_of(row, 1, |place| telling.add(peer, place)).map_err(SealError::Unreadable)?;
            if telling.sessions >= look_at {
                look_at = telling.sessions + LOOK_EVERY;
                if !goes_on() {
                    return Err(SealError::Unwanted);
                }
            }
        }
        Ok(telling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_what_its_number_says() {
        for (block, at, number) in [(0, 0, 0), (1, 0, 2048), (1, 2047, 4095), (3, 5, 6149), (-1, 2047, -1)] {
            assert_eq!((Place { block, at }.number(), Place::of(number)), (number, Place { block, at }));
        }
    }

    #[test]
    fn whoever_tells_another_address_or_place_tells_something_else() {
        let telling = |all: &[(u8, i64)]| {
            let mut telling = Telling::default();
            all.iter().for_each(|(peer, place)| telling.add([10, 0, 0, *peer].into(), *place));
            telling
        };
        assert_eq!(telling(&[(1, 5), (2, 6)]), telling(&[(2, 6), (1, 5)]));
        for other in [&[(1, 5)][..], &[(1, 6), (2, 5)], &[(1, 5), (2, 7)], &[(1, 5), (2, 6), (2, 6)]] {
            assert_ne!(telling(&[(1, 5), (2, 6)]), telling(other), "{other:?}");
        }
    }

    #[test]
    fn places_that_make_no_sense_are_damaged() {
        let sealed = Connection::open_in_memory().unwrap();
        let find = |first: i64, places: &[u8]| {
            let row = "SELECT ?1, ?2";
            sealed.query_row(row, params![first, places], |row| {
                let mut found = Vec::new();
                Ok(each_of(row, 0, |place| found.push(place)).map(|()| found).map_err(drop))
            })
        };
        assert_eq!(find(7, &[]).unwrap(), Ok(vec![7]));
        assert_eq!(find(7, &[1, 0x80, 1]).unwrap(), Ok(vec![7, 8, 136]));
        for damaged in [&[0x80][..], &[0xff; 12], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]] {
            assert_eq!(find(7, damaged).unwrap(), Err(()), "{damaged:?}");
        }
    }
}
