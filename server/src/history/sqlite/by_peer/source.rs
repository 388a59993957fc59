//! Where sums are stored: those of a scope of a sealed file, or of a segment of rows; as stretches in the order of their addresses.

use std::net::IpAddr;

use rusqlite::{Connection, ToSql};

use super::{
    Choice, Scope,
    encoding::Stretched,
    levels::{self, HIGHEST},
};
use crate::history::{
    HistoryError,
    sqlite::{
        coding::{self, AddressBytes, Numeric},
        cubes::Balance,
        sealed::Damaged,
        sums::Counts,
    },
};

/// Sums that belong together: of each level an address is in one stretch at most, and in one level.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) struct Source<'c> {
    file: &'c Connection,
    of: Of,
    pub(super) is_taken_off: bool,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Scope([i64; 2]),
    /// Of the rows of a segment, which begin with this one.
    Rows(i64),
}

impl<'c> Source<'c> {
    /// All that a choice names.
    pub(in crate::history::sqlite) fn chosen(
        sealed: &'c Connection,
        Choice { added, taken_off }: Choice,
    ) -> impl Iterator<Item = Source<'c>> {
        let added = added.into_iter().map(move |scope| Source::of(sealed, scope));
        added.chain(taken_off.into_iter().map(move |scope| Source::of(sealed, scope).taken_off()))
    }

    /// The same, which is taken off what others count.
    pub(super) const fn taken_off(self) -> Source<'c> {
        Source { is_taken_off: true, ..self }
    }

    pub(super) const fn of(sealed: &'c Connection, scope: Scope) -> Source<'c> {
        Source { file: sealed, of: Of::Scope(scope.stored()), is_taken_off: false }
    }

    /// Those of the rows of a segment, which begin with this one.
    pub(in crate::history::sqlite) const fn of_rows(day: &'c Connection, first_id: i64) -> Source<'c> {
        Source { file: day, of: Of::Rows(first_id), is_taken_off: false }
    }

    /// What it counts, as it is added to what others count.
    pub(super) fn signed(self, counts: Counts) -> Balance {
        let balance = Balance::from(counts);
        if self.is_taken_off { balance.taken_off() } else { balance }
    }

    /// How many sessions are counted with an address that is in none of the levels from this one on, at most.
    pub(super) fn most_below(self, level: usize) -> Result<u64, HistoryError> {
        for below in (0..level).rev() {
            if self.select("1", below, "LIMIT 1", &[], |_| Ok(()))?.is_some() {
                return Ok(levels::most(below));
            }
        }
        Ok(0)
    }

    /// The stretches of a level.
    pub(super) fn stretches(self, level: usize) -> Result<Stretches<'c>, HistoryError> {
        let mut numbers = Vec::new();
        self.each("id", level, "ORDER BY last_peer DESC, id DESC", &[], |row| {
            numbers.push(row.get(0)?);
            Ok(())
        })?;
        Ok(Stretches { file: self.file, level, numbers, stretch: Stretched::default(), last_peer: None })
    }

    /// Shows what is counted in a level with each of these addresses, which ascend, for those that are there.
    pub(super) fn look_up<T>(
        self,
        level: usize,
        wanted: impl Iterator<Item = T>,
        peer_of: impl Fn(&T) -> Numeric,
        mut show: impl FnMut(T, Counts),
    ) -> Result<(), HistoryError> {
        let (mut stretch, mut last, mut next) = (Stretched::default(), None, None);
        for one in wanted {
            let peer = peer_of(&one);
            if last.is_none_or(|last| last < peer) {
                let from: [&dyn ToSql; 1] = [&AddressBytes::of(peer.address())];
                let found = self.select(
                    "last_peer, sums",
                    level,
                    "AND last_peer >= ? ORDER BY last_peer LIMIT 1",
                    &from,
                    |row| {
                        stretch.begin(blob(row.get_ref(1)?)?)?;
                        Ok(Numeric::from(coding::address_of(row.get_ref(0)?)?))
                    },
                )?;
                let Some(found) = found else { return Ok(()) };
                last = Some(found);
                next = stretch.next()?;
            }
            while next.is_some_and(|(address, _)| address < peer) {
                next = stretch.next()?;
            }
            if let Some((_, counts)) = next.filter(|(address, _)| *address == peer) {
                show(one, counts);
            }
        }
        Ok(())
    }

    /// The first row of a level.
    fn select<T>(
        self,
        columns: &str,
        level: usize,
        rest: &str,
        values: &[&dyn ToSql],
        read: impl FnOnce(&rusqlite::Row<'_>) -> Result<T, HistoryError>,
    ) -> Result<Option<T>, HistoryError> {
        let (mut read, mut found) = (Some(read), None);
        self.each(columns, level, rest, values, |row| {
            if let Some(read) = read.take() {
                found = Some(read(row)?);
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Shows the rows of a level.
    fn each(
        self,
        columns: &str,
        level: usize,
        rest: &str,
        values: &[&dyn ToSql],
        mut show: impl FnMut(&rusqlite::Row<'_>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let level = coding::signed(level as u64);
        let (is_of, of): (_, &[&dyn ToSql]) = match &self.of {
            Of::Scope([scope, hour]) => ("scope = ? AND hour = ?", &[scope, hour]),
            Of::Rows(first_id) => ("first_id = ?", &[first_id]),
        };
        let sql = format!("SELECT {columns} FROM peer_sums WHERE {is_of} AND level = ? {rest}");
        let mut statement = self.file.prepare_cached(&sql)?;
        let values: Vec<&dyn ToSql> = [of, &[&level], values].concat();
        let mut rows = statement.query(values.as_slice())?;
        while let Some(row) = rows.next()? {
            show(row)?;
        }
        Ok(())
    }
}

fn blob(value: rusqlite::types::ValueRef<'_>) -> Result<&[u8], rusqlite::Error> {
    value.as_blob().map_err(|error| coding::wrong("sums", error.to_string()))
}

/// The sums of one level, stretch by stretch.
pub(super) struct Stretches<'c> {
    file: &'c Connection,
    level: usize,
    /// The numbers of those that were not read yet, the last one first.
    numbers: Vec<i64>,
    /// The one that is read.
    stretch: Stretched,
    /// The address with which it ends, where that is told.
    last_peer: Option<IpAddr>,
}

impl Stretches<'_> {
    pub(super) const fn level(&self) -> usize {
        self.level
    }

    /// How many there are that were not read yet.
    pub(super) const fn count(&self) -> usize {
        self.numbers.len()
    }

    /// The next sum.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(Numeric, Counts)>, HistoryError> {
        loop {
            if let Some(sum) = self.stretch.next()? {
                return Ok(Some(sum));
            }
            if !self.read_stretch()? {
                return Ok(None);
            }
        }
    }

    /// Reads the next stretch; whether there is one.
    fn read_stretch(&mut self) -> Result<bool, HistoryError> {
        if self.last_peer.take().is_some_and(|told| self.stretch.last() != Numeric::from(told)) {
            return Err(Damaged("a stretch of sums ends with another address than is told").into());
        }
        let Some(number) = self.numbers.pop() else { return Ok(false) };
        let mut statement = self.file.prepare_cached("SELECT last_peer, sums FROM peer_sums WHERE id = ?1")?;
        let mut rows = statement.query([number])?;
        let row = rows.next()?.ok_or(Damaged("a stretch of sums is missing"))?;
        self.stretch.begin(blob(row.get_ref(1)?)?)?;
        let last_peer = row.get_ref(0)?;
        // In the highest level there are those of an earlier version.
        if self.level != HIGHEST || last_peer.as_blob() != Ok(&[]) {
            self.last_peer = Some(coding::address_of(last_peer)?);
        }
        Ok(true)
    }
}
