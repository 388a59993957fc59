//! Where in the bytes of a block its columns are, and how they are compressed.
//!
//! Each column is compressed by itself, so that a question takes apart only those that it looks at. Blocks of an earlier
//! form, in which all columns are compressed together, are read as well.

use std::{borrow::Cow, cell::RefCell, io, ops::Range};

use zstd::bulk::{Compressor, Decompressor};

use super::column::{Damaged, Reading, Writing};

/// Columns of a block.
pub(super) const COLUMNS: usize = 17;
/// Most sessions of a block. More compress a little better and are more to read for one.
pub(in crate::history::sqlite) const BLOCK_SESSIONS: usize = 2048;
/// Most bytes of a block that is not compressed: each session has texts of bounded length.
const BLOCK_BYTES: usize = 16 * 1024 * 1024;
/// Level of the compressor: more costs much and saves little.
const LEVEL: i32 = 3;

/// Each column compressed by itself, behind the lengths of all.
pub(in crate::history::sqlite) const CODEC: i64 = 2;
/// All columns compressed together, each behind its length.
const TOGETHER: i64 = 1;

thread_local! {
    // To make one costs as much as a column of a small block.
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

/// The bytes of a block, and where its columns are.
#[derive(Debug)]
pub(super) struct Layout {
    bytes: Vec<u8>,
    columns: [Place; COLUMNS],
}

/// Where a column is, and how many bytes it has when it is not compressed.
#[derive(Debug, Clone, Default)]
struct Place {
    at: Range<usize>,
    length: usize,
}

/// Puts blocks together, one after the other in the same room.
#[derive(Default)]
pub(super) struct Packing {
    compressor: Compressor<'static>,
    head: Writing,
    body: Vec<u8>,
    compressed: Vec<u8>,
    block: Vec<u8>,
}

impl Packing {
    /// Begins a block of so many sessions.
    pub(super) fn begin(&mut self, sessions: usize) -> io::Result<()> {
        self.compressor.set_compression_level(LEVEL)?;
        self.head.clear();
        self.body.clear();
        self.head.unsigned(sessions as u64);
        Ok(())
    }

    /// Adds the next column.
    pub(super) fn add(&mut self, column: &[u8]) -> io::Result<()> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(column.len()));
        self.compressor.compress_to_buffer(column, &mut self.compressed)?;
        // What would not become smaller is kept as it is.
        let stored = if self.compressed.len() < column.len() { &self.compressed } else { column };
        self.head.unsigned(column.len() as u64);
        self.head.unsigned(stored.len() as u64);
        self.body.extend_from_slice(stored);
        Ok(())
    }

    /// The bytes of the block.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.block.clear();
        self.block.extend_from_slice(self.head.bytes());
        self.block.extend_from_slice(&self.body);
        &self.block
    }
}

fn decompress(bytes: &[u8], length: usize) -> Result<Vec<u8>, Damaged> {
    match DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(bytes, length)) {
        Ok(decompressed) if decompressed.len() == length => Ok(decompressed),
        Ok(_) | Err(_) => Err(Damaged("it cannot be decompressed")),
    }
}

/// How many sessions are in these bytes of a block, and where their columns are.
pub(super) fn unpack(codec: i64, bytes: &[u8]) -> Result<(usize, Layout), Damaged> {
    match codec {
        CODEC => apart(bytes),
        TOGETHER => together(bytes),
        _ => Err(Damaged("its codec has no meaning")),
    }
}

fn apart(bytes: &[u8]) -> Result<(usize, Layout), Damaged> {
    let mut head = Reading::new(bytes);
    let sessions = count(&mut head)?;
    let mut lengths = [(0, 0); COLUMNS];
    let mut total: usize = 0;
    for (length, stored) in &mut lengths {
        (*length, *stored) = (head.narrow()?, head.narrow()?);
        total = total.saturating_add(*length);
    }
    if total > BLOCK_BYTES {
        return Err(Damaged("it has too many bytes"));
    }
    let body = head.rest();
    let mut at = 0_usize;
    let columns = lengths.map(|(length, stored)| {
        let begin = at;
        at = at.saturating_add(stored);
        Place { at: begin..at, length }
    });
    if at != body.len() {
        return Err(Damaged("its columns have other lengths"));
    }
    Ok((sessions, Layout { bytes: body.to_vec(), columns }))
}

fn together(bytes: &[u8]) -> Result<(usize, Layout), Damaged> {
    let mut reading = Reading::new(bytes);
    let length = reading.narrow::<usize>()?;
    if length > BLOCK_BYTES {
        return Err(Damaged("it has too many bytes"));
    }
    let bytes = decompress(reading.rest(), length)?;
    let mut reading = Reading::new(&bytes);
    let sessions = count(&mut reading)?;
    let mut columns: [Place; COLUMNS] = Default::default();
    for column in &mut columns {
        let length = reading.text()?.len();
        let end = bytes.len() - reading.rest().len();
        *column = Place { at: end - length..end, length };
    }
    reading.end()?;
    Ok((sessions, Layout { bytes, columns }))
}

fn count(reading: &mut Reading<'_>) -> Result<usize, Damaged> {
    match reading.narrow::<usize>()? {
        count if count > BLOCK_SESSIONS => Err(Damaged("it has too many sessions")),
        count => Ok(count),
    }
}

impl Layout {
    /// The bytes of a column.
    pub(super) fn column(&self, number: usize) -> Result<Cow<'_, [u8]>, Damaged> {
        let place = self.columns.get(number).ok_or(Damaged("a column is missing"))?;
        let stored = self.bytes.get(place.at.clone()).ok_or(Damaged("a column is cut off"))?;
        if stored.len() == place.length {
            return Ok(Cow::Borrowed(stored));
        }
        decompress(stored, place.length).map(Cow::Owned)
    }
}

/// A block of the earlier form.
#[cfg(test)]
pub(super) fn pack_together(sessions: usize, columns: &[Vec<u8>; COLUMNS]) -> Vec<u8> {
    let mut block = Writing::default();
    block.unsigned(sessions as u64);
    columns.iter().for_each(|column| block.text(column));
    squeeze(block.bytes())
}

/// Compressed, after the number of bytes before.
#[cfg(test)]
pub(super) fn squeeze(bytes: &[u8]) -> Vec<u8> {
    let mut length = Writing::default();
    length.unsigned(bytes.len() as u64);
    [length.bytes(), &compress(bytes)].concat()
}

#[cfg(test)]
fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, LEVEL).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(codec: i64, bytes: &[u8]) -> Damaged {
        unpack(codec, bytes).map(|(sessions, _)| sessions).unwrap_err()
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        let mut writing = Writing::default();
        numbers.iter().for_each(|number| writing.unsigned(*number));
        writing.bytes().to_vec()
    }

    #[test]
    fn a_block_that_would_be_too_large_is_refused() {
        let bomb = squeeze(&vec![0; BLOCK_BYTES + 1]);
        assert!(bomb.len() < 10_000);
        assert_eq!(refused(TOGETHER, &bomb), Damaged("it has too many bytes"));
        let liar = [numbers(&[10]), bomb[3..].to_vec()].concat();
        assert_eq!(refused(TOGETHER, &liar), Damaged("it cannot be decompressed"));
        assert_eq!(refused(TOGETHER, &squeeze(&numbers(&[1 << 40]))), Damaged("it has too many sessions"));

        assert_eq!(refused(CODEC, &numbers(&[1 << 40])), Damaged("it has too many sessions"));
        let head = |column: [u64; 2]| numbers(&[&[1][..], &[column; COLUMNS].concat()].concat());
        assert_eq!(refused(CODEC, &head([1 << 20, 0])), Damaged("it has too many bytes"));
        assert_eq!(refused(CODEC, &head([u64::MAX / 2, 0])), Damaged("it has too many bytes"));
        assert_eq!(refused(CODEC, &head([1, 1])), Damaged("its columns have other lengths"));
        assert_eq!(refused(CODEC, &head([1, u64::MAX / 2])), Damaged("its columns have other lengths"));
        assert_eq!(refused(3, &head([0, 0])), Damaged("its codec has no meaning"));
    }

    #[test]
    fn a_column_is_as_long_as_it_says_or_it_is_damaged() {
        let compressed = compress(&[7; 1000]);
        for (length, expected) in [(1000, Ok(1000)), (999, Err(())), (1001, Err(()))] {
            let mut head = vec![1, length, compressed.len() as u64];
            head.extend([0; 2 * (COLUMNS - 1)]);
            let (_, layout) = unpack(CODEC, &[numbers(&head), compressed.clone()].concat()).unwrap();
            assert_eq!(layout.column(0).map(|column| column.len()).map_err(drop), expected);
            assert_eq!(layout.column(1), Ok(Cow::Borrowed(&[][..])));
        }
    }
}
