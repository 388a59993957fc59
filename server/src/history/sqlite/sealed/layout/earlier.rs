//! Blocks as they were written before, which are read still: columns of numbers of any length and of values before their
//! places, compressed (Zstandard) each by itself, or before that all together.

use std::{borrow::Cow, cell::RefCell, net::IpAddr, ops::Range};

use zstd::bulk::Decompressor;

use super::{COLUMNS, LOCAL, MOST_SESSIONS, OWNERS, PEER};
use crate::history::sqlite::{
    coding::{self, OwnerColumns},
    sealed::{
        block::Column,
        column::{self, Damaged, Reading},
        recurring::{ABSENT, Recurring},
    },
};

#[cfg(test)]
pub(in crate::history::sqlite::sealed) mod packing;

/// Each column compressed by itself, behind the lengths of all.
pub(in crate::history::sqlite::sealed) const APART: i64 = 2;
/// All columns compressed together, each behind its length.
pub(in crate::history::sqlite::sealed) const TOGETHER: i64 = 1;
/// Most bytes of a block that is not compressed: each session has texts of bounded length.
const BLOCK_BYTES: usize = 16 * 1024 * 1024;

thread_local! {
    // To make one costs as much as a column of a small block.
    static DECOMPRESSOR: RefCell<Decompressor<'static>> = RefCell::default();
}

/// A block of an earlier form.
#[derive(Debug)]
pub(in crate::history::sqlite::sealed) struct Earlier {
    sessions: usize,
    bytes: Vec<u8>,
    columns: [Place; COLUMNS],
}

/// Where a column is, and how many bytes it has when it is not compressed.
#[derive(Debug, Clone, Default)]
struct Place {
    at: Range<usize>,
    length: usize,
}

impl Earlier {
    /// The columns that are in these bytes.
    pub(in crate::history::sqlite::sealed) fn read(codec: i64, bytes: Vec<u8>) -> Result<Earlier, Damaged> {
        match codec {
            APART => apart(bytes),
            TOGETHER => together(&bytes),
            _ => Err(Damaged("its codec has no meaning")),
        }
    }

    pub(in crate::history::sqlite::sealed) const fn sessions(&self) -> usize {
        self.sessions
    }

    /// The numbers of a column; ports are those of either end.
    pub(in crate::history::sqlite::sealed) fn numbers(&self, column: Column) -> Result<Vec<i64>, Damaged> {
        let place = match column {
            Column::LocalPort => Column::ServicePort as usize,
            Column::PeerPort => Column::OtherPort as usize,
            column => column as usize,
        };
        let bytes = self.column(place)?;
        let mut reading = Reading::new(&bytes);
        let numbers = reading.numbers(self.sessions)?.into_iter();
        reading.end()?;
        let mut before = 0_i64;
        Ok(match column {
            Column::LocalPort | Column::PeerPort => numbers.map(u64::cast_signed).collect(),
            Column::ClosedAt | Column::Netns | Column::Cookie => numbers
                .map(|number| {
                    before = before.wrapping_add(column::signed(number));
                    before
                })
                .collect(),
            _ => numbers.map(column::signed).collect(),
        })
    }

    pub(in crate::history::sqlite::sealed) fn local(&self) -> Result<Recurring<IpAddr>, Damaged> {
        self.recurring(LOCAL, read_address)
    }

    pub(in crate::history::sqlite::sealed) fn peers(&self) -> Result<Recurring<IpAddr>, Damaged> {
        self.recurring(PEER, read_address)
    }

    pub(in crate::history::sqlite::sealed) fn owners(&self) -> Result<Recurring<OwnerColumns>, Damaged> {
        self.recurring(OWNERS, read_owners)
    }

    fn recurring<T>(
        &self,
        column: usize,
        read: impl Fn(&mut Reading<'_>) -> Result<T, Damaged>,
    ) -> Result<Recurring<T>, Damaged> {
        let bytes = self.column(column)?;
        let mut reading = Reading::new(&bytes);
        let count = reading.narrow::<usize>()?;
        if count > self.sessions {
            return Err(Damaged("there are more values than rows"));
        }
        let values: Vec<T> = (0..count).map(|_| read(&mut reading)).collect::<Result<_, _>>()?;
        let place = |place: u64| usize::try_from(place).ok().filter(|place| *place < count);
        let places: Option<Vec<usize>> = reading.numbers(self.sessions)?.into_iter().map(place).collect();
        reading.end()?;
        Ok(Recurring { values, places: places.ok_or(ABSENT)? })
    }

    fn column(&self, number: usize) -> Result<Cow<'_, [u8]>, Damaged> {
        let place = self.columns.get(number).ok_or(Damaged("a column is missing"))?;
        let stored = self.bytes.get(place.at.clone()).ok_or(Damaged("a column is cut off"))?;
        if stored.len() == place.length {
            return Ok(Cow::Borrowed(stored));
        }
        decompress(stored, place.length).map(Cow::Owned)
    }
}

fn apart(bytes: Vec<u8>) -> Result<Earlier, Damaged> {
    let mut head = Reading::new(&bytes);
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
    let mut at = bytes.len() - head.rest().len();
    let columns = lengths.map(|(length, stored)| {
        let begin = at;
        at = at.saturating_add(stored);
        Place { at: begin..at, length }
    });
    if at != bytes.len() {
        return Err(Damaged("its columns have other lengths"));
    }
    Ok(Earlier { sessions, bytes, columns })
}

fn together(bytes: &[u8]) -> Result<Earlier, Damaged> {
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
    Ok(Earlier { sessions, bytes, columns })
}

fn decompress(bytes: &[u8], length: usize) -> Result<Vec<u8>, Damaged> {
    match DECOMPRESSOR.with_borrow_mut(|decompressor| decompressor.decompress(bytes, length)) {
        Ok(decompressed) if decompressed.len() == length => Ok(decompressed),
        Ok(_) | Err(_) => Err(Damaged("it cannot be decompressed")),
    }
}

fn count(reading: &mut Reading<'_>) -> Result<usize, Damaged> {
    match reading.narrow::<usize>()? {
        count if count > MOST_SESSIONS => Err(Damaged("it has too many sessions")),
        count => Ok(count),
    }
}

fn read_address(column: &mut Reading<'_>) -> Result<IpAddr, Damaged> {
    match coding::take_address(column.text()?) {
        Some((address, [])) => Ok(address),
        _ => Err(Damaged("no address")),
    }
}

fn read_owners(column: &mut Reading<'_>) -> Result<OwnerColumns, Damaged> {
    Ok(OwnerColumns {
        known: i32::try_from(column.signed()?).map_err(|_| Damaged("a word has too large a number"))?,
        pid: column.narrow()?,
        started_at_us: column.difference()?,
        program_id: column.signed()?,
        more: Some(column.text()?.to_vec()).filter(|more| !more.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::{packing::*, *};
    use crate::history::sqlite::{sealed::block::Block, stored::StoredSession};

    /// A block of each codec, as it was written before there was the next one.
    const WRITTEN: [(i64, &str); 2] = [
        (
            APART,
            "0411110f0f0404040408080505040404040404040409090b0b101004041d1d2323353282c9f396e0a2b00682897a8289\
            7a82897a80897a8092f401809bee0280a4e8030202020204040404808080801e000000d20f0202020202020202040202\
            0202040202020202bb03bb03c3b802bb03c1b802c2b802b82ac4b8028080800180808002808080038080800401030507\
            0205040a000001110620010db800000000000000000000000100010000030504cb007109110620010db8000000000000\
            0000000200050504cb00710a0001000228b52ffd20354d010024020302bc05f8a2a3dcd8a2b006060002bc0500061407\
            0290bf05a8f30a060000010200010013c004",
        ),
        (
            TOGETHER,
            "f40128b52ffd20f4850500224a242b704bd301f0fe8fb9fe4b3980011af8b6a9613be2010bd2ed5c555555ac76fc2fc1\
            744260a42dd972cb2453f5b56ca9203242c189006b522e635294a1e1107d24654470af4bd64a422f56a2417bbd36802b\
            60cdb5cb4a0f2489b7d67ffceffff73fc0ade2a0b94db849447072a3c0092785c1c8b604ff0f59b6bd90e3e1ee68f879\
            2cdc81ce38d0c3a46883a1b2789a150b00e372ecbcdca0fa5fdc82cc163a0195009e076e5a82b38d83fb02",
        ),
    ];

    fn session(
        number: i64,
        local: &str,
        peer: &str,
        direction: i32,
        (pid, more): (u32, Option<Vec<u8>>),
    ) -> StoredSession {
        StoredSession {
            host_id: 7,
            netns: 4_026_531_840,
            cookie: 1000 + number,
            protocol: 1,
            family: 1 + i32::from(local.starts_with('[')),
            direction,
            state: 1,
            local: local.parse().unwrap(),
            peer: peer.parse().unwrap(),
            owners: OwnerColumns {
                known: 1,
                pid,
                started_at_us: 1_794_999_000_000_000 + i64::from(pid),
                program_id: 3,
                more,
            },
            bytes_sent: number << 20,
            bytes_received: -number,
            opened_at_us: 1_795_000_000_000_000 + number,
            opened_known: 2,
            closed: Some((1_795_000_000_000_000 + number * 1_000_001, 1)),
        }
    }

    #[test]
    fn blocks_that_earlier_versions_wrote_are_read() {
        let sessions = vec![
            session(1, "10.0.0.1:443", "203.0.113.9:40001", 1, (700, None)),
            session(2, "[2001:db8::1]:443", "[2001:db8::2:5]:40002", 1, (700, Some(vec![7; 20]))),
            session(3, "10.0.0.1:40003", "203.0.113.9:5432", 2, (90_000, None)),
            session(4, "10.0.0.1:443", "203.0.113.10:40004", 1, (700, None)),
        ];
        for (codec, hex) in WRITTEN {
            let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
            let bytes = (0..hex.len()).step_by(2).map(byte).collect();
            assert_eq!(Block::read(7, codec, bytes).unwrap().all().as_ref(), Ok(&sessions), "{codec}");
        }
    }

    fn refused(codec: i64, bytes: Vec<u8>) -> Damaged {
        Earlier::read(codec, bytes).map(|block| block.sessions()).unwrap_err()
    }

    #[test]
    fn a_block_that_would_be_too_large_is_refused() {
        let bomb = squeeze(&vec![0; BLOCK_BYTES + 1]);
        assert!(bomb.len() < 10_000);
        assert_eq!(refused(TOGETHER, bomb.clone()), Damaged("it has too many bytes"));
        let liar = [numbers(&[10]), bomb[3..].to_vec()].concat();
        assert_eq!(refused(TOGETHER, liar), Damaged("it cannot be decompressed"));
        assert_eq!(refused(TOGETHER, squeeze(&numbers(&[1 << 40]))), Damaged("it has too many sessions"));

        assert_eq!(refused(APART, numbers(&[1 << 40])), Damaged("it has too many sessions"));
        let head = |column: [u64; 2]| numbers(&[&[1][..], &[column; COLUMNS].concat()].concat());
        assert_eq!(refused(APART, head([1 << 20, 0])), Damaged("it has too many bytes"));
        assert_eq!(refused(APART, head([u64::MAX / 2, 0])), Damaged("it has too many bytes"));
        assert_eq!(refused(APART, head([1, 1])), Damaged("its columns have other lengths"));
        assert_eq!(refused(APART, head([1, u64::MAX / 2])), Damaged("its columns have other lengths"));
        assert_eq!(refused(4, head([0, 0])), Damaged("its codec has no meaning"));
    }

    #[test]
    fn a_column_is_as_long_as_it_says_or_it_is_damaged() {
        let compressed = compress(&[7; 1000]);
        for (length, expected) in [(1000, Ok(1000)), (999, Err(())), (1001, Err(()))] {
            let mut head = vec![1, length, compressed.len() as u64];
            head.extend([0; 2 * (COLUMNS - 1)]);
            let block = Earlier::read(APART, [numbers(&head), compressed.clone()].concat()).unwrap();
            assert_eq!(block.column(0).map(|column| column.len()).map_err(drop), expected);
            assert_eq!(block.column(1), Ok(Cow::Borrowed(&[][..])));
        }
    }
}
