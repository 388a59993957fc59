//! Pairs of an address and a host in the order of both, however many there are: so many at a time are sorted in memory and
//! written to a file without a name, which is read again in all of its stretches at once.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    net::IpAddr,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use crate::history::sqlite::coding::{self, AddressBytes};

/// Pairs that are sorted in memory, 56 bytes each (1.8 MB).
pub(super) const HELD: usize = 32 * 1024;
/// Bytes into which all stretches are read.
const READ_BYTES: usize = 1024 * 1024;
/// Bytes that are written at once.
const WRITE_BYTES: usize = 64 * 1024;

/// Bytes of an address with its family, and of a pair, in the file.
const ADDRESS_BYTES: usize = 17;
const PAIR_BYTES: usize = ADDRESS_BYTES + 4 * 8;

/// Sessions of a host with an address, and when the first and the last of them closed. In order, they are those of an
/// address after each other, as the table of them is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) peer: IpAddr,
    pub(super) host_id: i64,
    pub(super) sessions: i64,
    pub(super) min_closed_at_s: i64,
    pub(super) max_closed_at_s: i64,
}

impl Pair {
    /// Takes up more of the same.
    pub(super) fn add(&mut self, other: &Pair) {
        self.sessions += other.sessions;
        self.min_closed_at_s = self.min_closed_at_s.min(other.min_closed_at_s);
        self.max_closed_at_s = self.max_closed_at_s.max(other.max_closed_at_s);
    }

    fn is_same(&self, other: &Pair) -> bool {
        (self.peer, self.host_id) == (other.peer, other.host_id)
    }

    fn numbers(&self) -> [i64; 4] {
        [self.host_id, self.sessions, self.min_closed_at_s, self.max_closed_at_s]
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; PAIR_BYTES];
        let (address, numbers) = bytes.split_at_mut(ADDRESS_BYTES);
        let known = AddressBytes::of(self.peer);
        address.iter_mut().zip(known.as_slice()).for_each(|(into, byte)| *into = *byte);
        let (places, _) = numbers.as_chunks_mut::<8>();
        places.iter_mut().zip(self.numbers()).for_each(|(into, number)| *into = number.to_le_bytes());
        file.write_all(&bytes)
    }

    fn read(file: &mut impl Read) -> io::Result<Pair> {
        let mut bytes = [0; PAIR_BYTES];
        file.read_exact(&mut bytes)?;
        let (address, numbers) = bytes.split_at(ADDRESS_BYTES);
        let (peer, _) = coding::take_address(address).ok_or(io::ErrorKind::InvalidData)?;
        let mut numbers = numbers.as_chunks::<8>().0.iter().map(|number| i64::from_le_bytes(*number));
        let mut next = || numbers.next().unwrap_or_default();
        Ok(Pair { peer, host_id: next(), sessions: next(), min_closed_at_s: next(), max_closed_at_s: next() })
    }
}

/// Pairs that are to be sorted.
pub(super) struct Sorting {
    held: Vec<Pair>,
    file: BufWriter<File>,
    /// Pairs in each stretch of the file.
    stretches: Vec<usize>,
}

impl Sorting {
    /// Sorts with the help of a file that has this name for a moment only.
    pub(super) fn new(path: &Path) -> io::Result<Sorting> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        fs::remove_file(path)?;
        let file = BufWriter::with_capacity(WRITE_BYTES, file);
        Ok(Sorting { held: Vec::with_capacity(HELD), file, stretches: Vec::new() })
    }

    /// Takes a pair; the same may come several times.
    pub(super) fn add(&mut self, pair: Pair) -> io::Result<()> {
        if self.held.len() >= HELD {
            self.write_out()?;
        }
        self.held.push(pair);
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.held.sort_unstable();
        self.held.dedup_by(|next, before| {
            let is_same = next.is_same(before);
            if is_same {
                before.add(next);
            }
            is_same
        });
        self.held.iter().try_for_each(|pair| pair.write(&mut self.file))?;
        self.stretches.push(self.held.len());
        self.held.clear();
        Ok(())
    }

    /// Shows each pair once, in order.
    pub(super) fn finish<E: From<io::Error>>(mut self, mut show: impl FnMut(Pair) -> Result<(), E>) -> Result<(), E> {
        self.write_out()?;
        let Sorting { held, file, stretches } = self;
        drop(held);
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let buffer = READ_BYTES / stretches.len();
        let (mut at, mut next) = (0, BinaryHeap::new());
        let mut reading = Vec::with_capacity(stretches.len());
        for pairs in stretches {
            let mut stretch = Stretch::new(&file, at, pairs, buffer);
            at += (pairs * PAIR_BYTES) as u64;
            if let Some(pair) = stretch.next()? {
                next.push(Reverse((pair, reading.len())));
            }
            reading.push(stretch);
        }
        let mut last: Option<Pair> = None;
        while let Some(mut first) = next.peek_mut() {
            let Reverse((pair, place)) = *first;
            match reading[place].next()? {
                Some(after) => *first = Reverse((after, place)),
                None => drop(PeekMut::pop(first)),
            }
            match &mut last {
                Some(last) if last.is_same(&pair) => last.add(&pair),
                last => last.replace(pair).map_or(Ok(()), &mut show)?,
            }
        }
        last.map_or(Ok(()), show)
    }
}

/// A stretch of the file, whose pairs are in order.
struct Stretch<'a> {
    reader: BufReader<Part<'a>>,
    left: usize,
}

impl Stretch<'_> {
    fn new(file: &File, at: u64, pairs: usize, buffer: usize) -> Stretch<'_> {
        let part = Part { file, at, left: pairs * PAIR_BYTES };
        Stretch { reader: BufReader::with_capacity(buffer, part), left: pairs }
    }

    fn next(&mut self) -> io::Result<Option<Pair>> {
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Pair::read(&mut self.reader).map(Some)
            }
            None => Ok(None),
        }
    }
}

/// Bytes of a file from a place on.
struct Part<'a> {
    file: &'a File,
    at: u64,
    left: usize,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let wanted = into.len().min(self.left);
        let read = self.file.read_at(&mut into[..wanted], self.at)?;
        self.at += read as u64;
        self.left -= read;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn pair(peer: IpAddr, host_id: i64, at: i64) -> Pair {
        Pair { peer, host_id, sessions: 1, min_closed_at_s: at, max_closed_at_s: at }
    }

    fn sorted(pairs: impl Iterator<Item = Pair>) -> Vec<Pair> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorting = Sorting::new(&folder.path().join("pairs")).unwrap();
        pairs.for_each(|pair| sorting.add(pair).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        let mut all = Vec::new();
        sorting
            .finish(|pair| {
                all.push(pair);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        all
    }

    #[test]
    fn pairs_are_in_order_and_each_is_once_however_many_there_are() {
        assert_eq!(sorted(std::iter::empty()), []);
        for count in [1, HELD, HELD + 1, 5 * HELD + 7] {
            let of = |number: usize| {
                let random = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let bits = (random >> 20) as u32 % 60_000;
                let peer = match random >> 60 {
                    0..3 => IpAddr::from((u128::from(bits) << 70).to_be_bytes()),
                    _ => IpAddr::from(bits.to_be_bytes()),
                };
                pair(peer, (random >> 50) as i64 % 3 - 1, number as i64 % 977)
            };
            let mut expected: BTreeMap<(Vec<u8>, i64), Pair> = BTreeMap::new();
            for pair in (0..count).map(of) {
                let key = (coding::address_bytes(pair.peer), pair.host_id);
                expected.entry(key).and_modify(|known| known.add(&pair)).or_insert(pair);
            }
            let found = sorted((0..count).map(of));
            assert!(found.iter().eq(expected.values()), "{count}");
            assert_eq!(found.iter().map(|pair| pair.sessions).sum::<i64>(), count as i64);
        }
    }
}
