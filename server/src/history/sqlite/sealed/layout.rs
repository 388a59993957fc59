//! Where in the bytes of a block its columns are.
//!
//! A block begins with how many sessions it has and with the lengths of its columns, which follow each other. Each is
//! written so that the value in any place is found by itself ([`numbers`](super::numbers), [`recurring`](super::recurring)),
//! and nothing of it is copied before that. Blocks of earlier forms are read by [`earlier`].

use std::ops::Range;

use super::{
    block::Column,
    column::{Damaged, Reading, Writing},
    numbers::Numbers,
    recurring::{Addresses, Owners},
};

pub(super) mod earlier;

/// Columns of numbers, which come first.
pub(super) const NUMBERS: usize = 14;
/// The columns of values that come again follow those of numbers.
pub(super) const LOCAL: usize = NUMBERS;
pub(super) const PEER: usize = LOCAL + 1;
pub(super) const OWNERS: usize = PEER + 1;
/// Columns of a block.
pub(super) const COLUMNS: usize = OWNERS + 1;
/// Sessions of a block. More share more of what comes again and are more to read for one.
pub(in crate::history::sqlite) const BLOCK_SESSIONS: usize = 512;
/// Most sessions of a block, of which earlier versions wrote larger ones.
pub(in crate::history::sqlite) const MOST_SESSIONS: usize = 2048;

/// Each column by itself, none of them compressed as a whole.
pub(in crate::history::sqlite) const CODEC: i64 = 3;

/// Whether the times of a block are as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// None closed before the session that precedes it, none before it opened, and none opened before 1970.
    Kept,
    /// Clocks were set.
    Unknown,
}

/// The bytes of a block, and where its columns are.
#[derive(Debug)]
pub(super) struct Layout {
    sessions: usize,
    order: Order,
    bytes: Vec<u8>,
    columns: [Range<usize>; COLUMNS],
}

impl Layout {
    /// The columns that are in these bytes.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Layout, Damaged> {
        let mut head = Reading::new(&bytes);
        let first = head.narrow::<usize>()?;
        let (sessions, order) = (first / 2, if first % 2 == 1 { Order::Kept } else { Order::Unknown });
        if sessions > MOST_SESSIONS {
            return Err(Damaged("it has too many sessions"));
        }
        let mut columns: [Range<usize>; COLUMNS] = std::array::from_fn(|_| 0..0);
        let mut end = 0_usize;
        for column in &mut columns {
            let begin = end;
            end = end.saturating_add(head.narrow()?);
            *column = begin..end;
        }
        let begin = bytes.len() - head.rest().len();
        if end != head.rest().len() {
            return Err(Damaged("its columns have other lengths"));
        }
        for column in &mut columns {
            *column = column.start + begin..column.end + begin;
        }
        Ok(Layout { sessions, order, bytes, columns })
    }

    pub(super) const fn sessions(&self) -> usize {
        self.sessions
    }

    pub(super) const fn order(&self) -> Order {
        self.order
    }

    /// A column of numbers.
    pub(super) fn numbers(&self, column: Column) -> Result<Numbers<'_>, Damaged> {
        Numbers::read(self.column(column as usize)?, self.sessions)
    }

    pub(super) fn local(&self) -> Result<Addresses<'_>, Damaged> {
        Addresses::read(self.column(LOCAL)?, self.sessions)
    }

    pub(super) fn peers(&self) -> Result<Addresses<'_>, Damaged> {
        Addresses::read(self.column(PEER)?, self.sessions)
    }

    pub(super) fn owners(&self) -> Result<Owners<'_>, Damaged> {
        Owners::read(self.column(OWNERS)?, self.sessions)
    }

    fn column(&self, number: usize) -> Result<&[u8], Damaged> {
        self.columns.get(number).and_then(|place| self.bytes.get(place.clone())).ok_or(Damaged("a column is missing"))
    }
}

/// Puts blocks together, one after the other in the same room.
#[derive(Default)]
pub(super) struct Packing {
    /// The columns so far.
    pub(super) columns: Writing,
    ends: Vec<usize>,
    block: Writing,
}

impl Packing {
    pub(super) fn begin(&mut self) {
        self.columns.clear();
        self.ends.clear();
    }

    /// What follows is the next column.
    pub(super) fn end_column(&mut self) {
        self.ends.push(self.columns.length());
    }

    /// The bytes of the block, which has so many sessions.
    pub(super) fn finish(&mut self, sessions: usize, order: Order) -> &[u8] {
        self.block.clear();
        self.block.unsigned(2 * sessions as u64 + u64::from(order == Order::Kept));
        let mut begin = 0;
        for end in &self.ends {
            self.block.unsigned((end - begin) as u64);
            begin = *end;
        }
        self.block.append(self.columns.bytes());
        self.block.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(numbers: &[u64]) -> Damaged {
        let mut writing = Writing::default();
        numbers.iter().for_each(|number| writing.unsigned(*number));
        Layout::read(writing.finish()).map(|layout| layout.sessions()).unwrap_err()
    }

    #[test]
    fn a_block_that_is_not_as_long_as_it_says_is_refused() {
        let head = |sessions: u64, length: u64| refused(&[&[2 * sessions][..], &[length; COLUMNS]].concat());
        assert_eq!(head(1 << 40, 0), Damaged("it has too many sessions"));
        assert_eq!(head(MOST_SESSIONS as u64 + 1, 0), Damaged("it has too many sessions"));
        assert_eq!(head(1, 1), Damaged("its columns have other lengths"));
        assert_eq!(head(1, u64::MAX / 2), Damaged("its columns have other lengths"));
        assert_eq!(refused(&[2, 0, 0]), Damaged("a number is missing"));
    }
}
