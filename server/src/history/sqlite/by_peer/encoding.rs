//! A stretch of sums as bytes: its family, then of each address by how much it is more than the one before, and what is counted.

use std::net::IpAddr;

use super::Sum;
use crate::history::sqlite::{
    ascending::Ascending,
    coding::Numeric,
    sealed::{Damaged, Reading, Writing},
    sums::Counts,
};

/// Sums of a stretch, about 10 bytes each. Of longer ones each cursor of a merge holds more.
pub(super) const STRETCH: usize = 1024;

/// A stretch that is being written.
#[derive(Debug, Default)]
pub(super) struct Stretch {
    writing: Writing,
    sums: usize,
    /// The addresses so far, if there are any.
    addresses: Option<Ascending>,
}

impl Stretch {
    /// Adds the sum of the next address; the bytes of those before it and the last of them, where it begins another stretch.
    pub(super) fn add(&mut self, (peer, counts): Sum) -> Option<(Vec<u8>, IpAddr)> {
        let peer = Numeric::from(peer);
        let is_of_another = self.addresses.is_some_and(|addresses| !addresses.has_family_of(peer));
        let full = if self.sums == STRETCH || is_of_another { std::mem::take(self).finish() } else { None };
        let Stretch { writing, sums, addresses } = self;
        addresses.get_or_insert_with(|| Ascending::begin(peer, writing)).write_next(peer, writing);
        let Counts { sessions, bytes_sent, bytes_received } = counts;
        [sessions, bytes_sent, bytes_received].into_iter().for_each(|count| writing.unsigned(count));
        *sums += 1;
        full
    }

    /// The bytes of what was added, if anything was, and the last address.
    pub(super) fn finish(self) -> Option<(Vec<u8>, IpAddr)> {
        self.addresses.map(|addresses| (self.writing.finish(), addresses.last().address()))
    }
}

/// A stretch that is read, sum by sum: as it is stored it takes a fifth of the memory, and of a merge all are in the cache.
#[derive(Debug, Default)]
pub(super) struct Stretched {
    bytes: Vec<u8>,
    /// How much of it was read.
    at: usize,
    addresses: Ascending,
}

impl Stretched {
    /// Begins with the bytes of another stretch.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> Result<(), Damaged> {
        let mut reading = Reading::new(bytes);
        self.addresses = Ascending::read(&mut reading)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(reading.rest());
        self.at = 0;
        Ok(())
    }

    /// The last address that was read.
    pub(super) const fn last(&self) -> Numeric {
        self.addresses.last()
    }

    /// The next sum; nothing at the end.
    #[inline]
    pub(super) fn next(&mut self) -> Result<Option<(Numeric, Counts)>, Damaged> {
        let mut reading = Reading::new(self.bytes.get(self.at..).unwrap_or_default());
        if reading.rest().is_empty() {
            return Ok(None);
        }
        let peer = self.addresses.read_next(&mut reading)?;
        let (sessions, bytes_sent, bytes_received) = (reading.unsigned()?, reading.unsigned()?, reading.unsigned()?);
        self.at = self.bytes.len() - reading.rest().len();
        Ok(Some((peer, Counts { sessions, bytes_sent, bytes_received })))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        net::{IpAddr, Ipv6Addr},
    };

    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn read(bytes: &[u8], into: &mut Vec<Sum>) -> Result<(), Damaged> {
        let mut stretch = Stretched::default();
        stretch.begin(bytes)?;
        while let Some((peer, counts)) = stretch.next()? {
            into.push((peer.address(), counts));
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn sums_are_read_as_they_were_written(
            sums in btree_map(any::<IpAddr>(), any::<(u64, u64, u64)>(), 0..60)
        ) {
            let sums: BTreeMap<IpAddr, Counts> = sums
                .into_iter()
                .map(|(peer, (sessions, bytes_sent, bytes_received))| (peer, Counts { sessions, bytes_sent, bytes_received }))
                .collect();
            let (mut stretch, mut stretches) = (Stretch::default(), Vec::new());
            for (peer, counts) in &sums {
                stretches.extend(stretch.add((*peer, *counts)));
            }
            stretches.extend(stretch.finish());
            let mut found = Vec::new();
            for (bytes, last) in &stretches {
                read(bytes, &mut found).unwrap();
                prop_assert_eq!(found.last().map(|(peer, _)| peer), Some(last));
            }
            prop_assert_eq!(found, sums.into_iter().collect::<Vec<_>>());
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>, family in prop_oneof![Just(4_u8), Just(6)]) {
            let _any = read(&bytes, &mut Vec::new());
            let mut found = Vec::new();
            let _some = read(&[&[family], &bytes[..]].concat(), &mut found);
            prop_assert!(found.len() <= bytes.len());
        }
    }

    #[test]
    fn a_stretch_is_of_one_family_and_of_bounded_length() {
        let peer = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        let mut stretch = Stretch::default();
        assert!((0..STRETCH).all(|number| stretch.add((peer(number), Counts::one(7, 9))).is_none()));
        let full = |stretch: &mut Stretch, peer: IpAddr| {
            let mut sums = Vec::new();
            read(&stretch.add((peer, Counts::one(7, 9))).unwrap().0, &mut sums).unwrap();
            sums.len()
        };
        assert_eq!(full(&mut stretch, peer(STRETCH)), STRETCH);
        assert_eq!(full(&mut stretch, Ipv6Addr::LOCALHOST.into()), 1, "another family");
    }
}
