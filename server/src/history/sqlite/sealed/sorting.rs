//! Sessions in the order of their peers' addresses, however many there are: so many at a time are sorted in memory and
//! written to a file without a name, which is read again in all of its stretches at once.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, binary_heap::PeekMut},
    fs::{self, File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    net::IpAddr,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
};

use super::{Damaged, Reading, Writing};
use crate::history::sqlite::{by_peer::One, coding::halves, kinds::Service};

/// Sessions that are sorted in memory, 64 bytes each (4 MiB).
pub(super) const HELD: usize = 64 * 1024;
/// Bytes into which all stretches are read.
const READ_BYTES: usize = 1024 * 1024;
/// Bytes that are written at once.
const WRITE_BYTES: usize = 64 * 1024;

const V4: u8 = 4;
const V6: u8 = 6;
const V4_BYTES: usize = 4;
const V6_BYTES: usize = 16;

/// That there was a session with an address, in which place it is, of which service, and what of it is counted. In order, those of an
/// address follow each other, as the table of them is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Met {
    family: u8,
    /// The address, in numbers that are quick to compare.
    high: u64,
    low: u64,
    place: i64,
    service: Service,
    one: One,
}

impl Ord for Met {
    fn cmp(&self, other: &Met) -> Ordering {
        let key = |met: &Met| (met.family, met.high, met.low, met.place);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Met {
    fn partial_cmp(&self, other: &Met) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Met {
    pub(super) fn new(peer: IpAddr, place: i64, service: Service, one: One) -> Met {
        match peer {
            IpAddr::V4(peer) => Met { family: V4, high: 0, low: peer.to_bits().into(), place, service, one },
            IpAddr::V6(peer) => {
                let [high, low] = halves(peer.to_bits());
                Met { family: V6, high, low, place, service, one }
            }
        }
    }

    pub(super) fn peer(&self) -> IpAddr {
        match self.family {
            V4 => (self.low as u32).to_be_bytes().into(),
            _ => (u128::from(self.high) << 64 | u128::from(self.low)).to_be_bytes().into(),
        }
    }

    pub(super) const fn place(&self) -> i64 {
        self.place
    }

    pub(super) const fn service(&self) -> Service {
        self.service
    }

    pub(super) const fn one(&self) -> One {
        self.one
    }

    fn write(&self, file: &mut impl Write, room: &mut Writing) -> io::Result<()> {
        room.clear();
        match self.family {
            V4 => room.append(&(self.low as u32).to_be_bytes()),
            _ => [self.high, self.low].into_iter().for_each(|half| room.append(&half.to_be_bytes())),
        }
        room.unsigned(self.place.cast_unsigned());
        room.unsigned(self.service.number().into());
        self.one.write(room);
        // Each number has at most ten bytes.
        file.write_all(&[self.family, room.length() as u8])?;
        file.write_all(room.bytes())
    }

    /// The next one; none at the end.
    fn read(file: &mut impl Read) -> io::Result<Option<Met>> {
        let mut head = [0; 2];
        if file.read(&mut head[..1])? == 0 {
            return Ok(None);
        }
        file.read_exact(&mut head[1..])?;
        let [family, length] = head;
        let mut bytes = [0; u8::MAX as usize];
        let bytes = &mut bytes[..length.into()];
        file.read_exact(bytes)?;
        let mut reading = Reading::new(bytes);
        let mut read = || -> Result<Met, Damaged> {
            let peer = match family {
                V4 => IpAddr::from(array::<V4_BYTES>(&mut reading)?),
                V6 => IpAddr::from(array::<V6_BYTES>(&mut reading)?),
                _ => return Err(Damaged("a family has no meaning")),
            };
            let place = reading.unsigned()?.cast_signed();
            let service = Service::numbered(reading.narrow()?);
            Ok(Met::new(peer, place, service, One::read(&mut reading)?))
        };
        let met = read().map_err(|damaged| io::Error::new(io::ErrorKind::InvalidData, damaged))?;
        Ok(Some(met))
    }
}

fn array<const BYTES: usize>(reading: &mut Reading<'_>) -> Result<[u8; BYTES], Damaged> {
    reading.take(BYTES)?.try_into().map_err(|_| Damaged("an address is cut off"))
}

/// Sessions that are to be sorted.
pub(super) struct Sorting {
    held: Vec<Met>,
    file: BufWriter<File>,
    /// Where each stretch of the file ends.
    ends: Vec<u64>,
}

impl Sorting {
    /// Sorts with the help of a file that has this name for a moment only.
    pub(super) fn new(path: &Path) -> io::Result<Sorting> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        fs::remove_file(path)?;
        let file = BufWriter::with_capacity(WRITE_BYTES, file);
        Ok(Sorting { held: Vec::with_capacity(HELD), file, ends: Vec::new() })
    }

    pub(super) fn add(&mut self, met: Met) -> io::Result<()> {
        if self.held.len() >= HELD {
            self.write_out()?;
        }
        self.held.push(met);
        Ok(())
    }

    fn write_out(&mut self) -> io::Result<()> {
        self.held.sort_unstable();
        let mut room = Writing::default();
        self.held.iter().try_for_each(|met| met.write(&mut self.file, &mut room))?;
        self.held.clear();
        self.file.flush()?;
        self.ends.push(self.file.get_ref().metadata()?.len());
        Ok(())
    }

    /// Shows all of them in order, and gives the file that is not needed any more.
    pub(super) fn finish<E: From<io::Error>>(mut self, mut show: impl FnMut(Met) -> Result<(), E>) -> Result<File, E> {
        self.write_out()?;
        let Sorting { held, file, ends } = self;
        drop(held);
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        let buffer = READ_BYTES / ends.len();
        let (mut at, mut next) = (0, BinaryHeap::new());
        let mut stretches = Vec::with_capacity(ends.len());
        for end in ends {
            let mut stretch = BufReader::with_capacity(buffer, Part { file: &file, at, end });
            at = end;
            if let Some(met) = Met::read(&mut stretch)? {
                next.push(Reverse((met, stretches.len())));
            }
            stretches.push(stretch);
        }
        while let Some(mut first) = next.peek_mut() {
            let Reverse((met, place)) = *first;
            match Met::read(&mut stretches[place])? {
                Some(after) => *first = Reverse((after, place)),
                None => drop(PeekMut::pop(first)),
            }
            show(met)?;
        }
        drop(stretches);
        Ok(file)
    }
}

/// Bytes of a file from one place to another.
struct Part<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let wanted = into.len().min(left);
        let read = self.file.read_at(&mut into[..wanted], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::sqlite::{coding, cubes::Span};

    fn one(number: i64) -> One {
        let span = Span::of(number << 40, (number + 1) << 40);
        One { span, bytes_sent: -number, bytes_received: number << 9 }
    }

    fn sorted(all: impl Iterator<Item = Met>) -> Vec<Met> {
        let folder = tempfile::tempdir().unwrap();
        let mut sorting = Sorting::new(&folder.path().join("peers")).unwrap();
        all.for_each(|met| sorting.add(met).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the file has no name");
        let mut shown = Vec::new();
        sorting
            .finish(|met| {
                shown.push(met);
                Ok::<_, io::Error>(())
            })
            .unwrap();
        shown
    }

    #[test]
    fn sessions_are_in_the_order_of_the_addresses_as_they_are_stored_however_many_there_are() {
        assert_eq!(sorted(std::iter::empty()), []);
        for count in [1, HELD, HELD + 1, 3 * HELD + 7] {
            let of = |number: usize| {
                let random = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                let bits = (random >> 20) as u32 % 60_000;
                let peer = match random >> 60 {
                    0..3 => IpAddr::from((u128::from(bits) << 70 | u128::from(random)).to_be_bytes()),
                    _ => IpAddr::from((bits << 13).to_be_bytes()),
                };
                Met::new(peer, number as i64, Service::numbered(number as u32 % 7), one(number as i64))
            };
            let key = |met: &Met| (coding::address_bytes(met.peer()), met.place());
            let mut expected: Vec<_> = (0..count).map(of).collect();
            expected.sort_by_key(key);
            let found = sorted((0..count).map(of));
            assert!(found == expected, "{count}");
        }
    }

    #[test]
    fn an_address_is_what_it_was() {
        for address in ["0.0.0.0", "255.1.2.3", "::", "::ffff:1.2.3.4", "2001:db8:8000::8000:0:1"] {
            let address: IpAddr = address.parse().unwrap();
            let met = Met::new(address, -7, Service::numbered(u32::MAX), one(9));
            let mut bytes = Vec::new();
            met.write(&mut bytes, &mut Writing::default()).unwrap();
            let read = Met::read(&mut bytes.as_slice()).unwrap();
            assert_eq!((met.peer(), read), (address, Some(met)));
            assert!(Met::read(&mut &bytes[..bytes.len() - 1]).is_err(), "it is cut off");
        }
    }
}
