//! A stretch of kinds as bytes: the hour from which hours are counted and the family, then of each kind by how much its address is more
//! than the one before, the host (by how much it is more, where the address is the same), the service, and the hours.

use super::{Hours, Kind, LAST_PROTOCOL, OUT, PROTOCOL, Service, Told};
use crate::history::sqlite::{
    ascending::Ascending,
    sealed::{Damaged, Reading, Writing},
};

/// Bytes of a stretch, at most: with these it is in the page of its table itself, which has room for 1,002 bytes of a row
/// ("Database File Format", 1.6).
const STRETCH_BYTES: usize = 900;
/// Bytes of a kind, at most: of its address two numbers, of its host, of its service, of its protocol and of its hours two.
const KIND_BYTES: usize = 20 + 10 + 3 + 3 + 20;

/// What almost all are.
const TCP: u32 = 6;

/// A stretch that is being written.
#[derive(Debug)]
pub(super) struct Stretch {
    writing: Writing,
    /// The hour from which hours are counted.
    origin: i64,
    addresses: Ascending,
    first: Kind,
    last: Kind,
}

impl Stretch {
    /// One that begins with a kind. No hour of it is before the origin.
    pub(super) fn begun((kind, hours): Told, origin: i64) -> Stretch {
        let mut writing = Writing::default();
        writing.signed(origin);
        let addresses = Ascending::begin(kind.peer, &mut writing);
        let mut stretch = Stretch { writing, origin, addresses, first: kind, last: kind };
        stretch.write(None, (kind, hours));
        stretch
    }

    /// Whether it has room for the next kind.
    pub(super) fn has_room_for(&self, kind: Kind) -> bool {
        self.addresses.has_family_of(kind.peer) && self.writing.length() + KIND_BYTES <= STRETCH_BYTES
    }

    /// Adds the next kind.
    pub(super) fn add(&mut self, (kind, hours): Told) {
        let before = std::mem::replace(&mut self.last, kind);
        self.write(Some(before).filter(|before| before.peer == kind.peer), (kind, hours));
    }

    /// Writes a kind, after one with the same address where there is one.
    fn write(&mut self, before: Option<Kind>, (kind, Hours { first, last }): Told) {
        self.addresses.write_next(kind.peer, &mut self.writing);
        let host = before.map_or(0, |before| before.host_id);
        self.writing.unsigned(kind.host_id.wrapping_sub(host).cast_unsigned());
        let Service(service) = kind.service;
        let (protocol, out, port) = (service / PROTOCOL, service & OUT != 0, service % OUT);
        self.writing.unsigned(u64::from(port) << 2 | u64::from(out) << 1 | u64::from(protocol != TCP));
        if protocol != TCP {
            self.writing.unsigned(protocol.into());
        }
        let from = first.wrapping_sub(self.origin).cast_unsigned();
        self.writing.unsigned(from << 1 | u64::from(first != last));
        if first != last {
            self.writing.unsigned(last.wrapping_sub(first).cast_unsigned());
        }
    }

    /// The first kind, and the bytes of all.
    pub(super) fn finish(self) -> (Kind, Vec<u8>) {
        (self.first, self.writing.finish())
    }
}

/// A stretch that is read, kind by kind.
#[derive(Debug, Default)]
pub(super) struct Stretched {
    bytes: Vec<u8>,
    /// How much of it was read.
    at: usize,
    origin: i64,
    addresses: Ascending,
    before: Option<Kind>,
}

impl Stretched {
    /// Begins with the bytes of another stretch.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> Result<(), Damaged> {
        let mut reading = Reading::new(bytes);
        self.origin = reading.signed()?;
        self.addresses = Ascending::read(&mut reading)?;
        self.bytes.clear();
        self.bytes.extend_from_slice(reading.rest());
        self.at = 0;
        self.before = None;
        Ok(())
    }

    /// The next kind, which comes after the one before; nothing at the end.
    pub(super) fn next(&mut self) -> Result<Option<Told>, Damaged> {
        self.first_from(None).map(|(_, next)| next)
    }

    /// The first kind from this one on, of those that were not read yet, and the last one before it; nothing at the end.
    #[inline]
    pub(super) fn first_from(&mut self, from: Option<&Kind>) -> Result<(Option<Kind>, Option<Told>), Damaged> {
        let mut reading = Reading::new(self.bytes.get(self.at..).unwrap_or_default());
        // Beside each other as long as it reads on.
        let (mut addresses, mut before, mut found) = (self.addresses, self.before, None);
        while found.is_none() && !reading.rest().is_empty() {
            let told = read(&mut reading, &mut addresses, self.origin, before)?;
            match from {
                Some(from) if told.0 < *from => before = Some(told.0),
                Some(_) | None => found = Some(told),
            }
        }
        self.at = self.bytes.len() - reading.rest().len();
        (self.addresses, self.before) = (addresses, found.map(|(kind, _)| kind).or(before));
        Ok((before, found))
    }
}

/// The next kind, and what is told of it.
#[inline]
fn read(
    reading: &mut Reading<'_>,
    addresses: &mut Ascending,
    origin: i64,
    before: Option<Kind>,
) -> Result<Told, Damaged> {
    let peer = addresses.read_next(reading)?;
    let host = before.filter(|before| before.peer == peer).map_or(0, |before| before.host_id);
    let host_id = host.wrapping_add(reading.unsigned()?.cast_signed());
    let word = reading.unsigned()?;
    let port = u16::try_from(word >> 2).map_err(|_| Damaged("a port is too large"))?;
    let protocol = if word & 1 == 0 { TCP } else { reading.narrow()? };
    if protocol > LAST_PROTOCOL {
        return Err(Damaged("a protocol is too large"));
    }
    let out = if word & 2 == 0 { 0 } else { OUT };
    let service = Service(protocol * PROTOCOL + out + u32::from(port));
    let word = reading.unsigned()?;
    let first = origin.wrapping_add((word >> 1).cast_signed());
    let last = if word & 1 == 0 { first } else { first.wrapping_add(reading.unsigned()?.cast_signed()) };
    let kind = Kind { peer, host_id, service };
    if before.is_some_and(|before| before >= kind) || first > last {
        return Err(Damaged("kinds are in no order"));
    }
    Ok((kind, Hours { first, last }))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr};

    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    fn read(bytes: &[u8], into: &mut Vec<Told>) -> Result<(), Damaged> {
        let mut stretch = Stretched::default();
        stretch.begin(bytes)?;
        while let Some(told) = stretch.next()? {
            into.push(told);
        }
        Ok(())
    }

    const ORIGIN: i64 = -5;

    fn kinds() -> impl Strategy<Value = BTreeMap<Kind, Hours>> {
        let peer = prop_oneof![any::<IpAddr>(), (0_u8..3).prop_map(|n| IpAddr::from([10, 0, 0, n]))];
        let service = prop_oneof![any::<u32>(), (0_u32..3).prop_map(|n| TCP * PROTOCOL + 443 + n)].prop_map(Service);
        let kind = (peer, prop_oneof![any::<i64>(), 0_i64..3], service);
        let kind = kind.prop_map(|(peer, host_id, service)| Kind { peer: peer.into(), host_id, service });
        let hours = (0_i64..1 << 40, prop_oneof![Just(0), 0_i64..1 << 40]);
        let hours =
            hours.prop_map(|(from, for_so_many)| Hours { first: ORIGIN + from, last: ORIGIN + from + for_so_many });
        btree_map(kind, hours, 1..90)
    }

    proptest! {
        #[test]
        fn kinds_are_read_as_they_were_written(kinds in kinds()) {
            let mut kinds = kinds.into_iter();
            let first = kinds.next().unwrap();
            let mut stretches = vec![Stretch::begun(first, ORIGIN)];
            let mut all = vec![first];
            for one in kinds {
                match stretches.last_mut() {
                    Some(last) if last.has_room_for(one.0) => last.add(one),
                    _ => stretches.push(Stretch::begun(one, ORIGIN)),
                }
                all.push(one);
            }
            let mut found = Vec::new();
            for stretch in stretches {
                let (begins, (first, bytes)) = (found.len(), stretch.finish());
                prop_assert!(bytes.len() <= STRETCH_BYTES, "{}", bytes.len());
                read(&bytes, &mut found).unwrap();
                prop_assert_eq!(found[begins].0, first);
            }
            prop_assert_eq!(found, all);
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>, family in prop_oneof![Just(4_u8), Just(6)]) {
            let _any = read(&bytes, &mut Vec::new());
            let mut found = Vec::new();
            let _some = read(&[&[0, family], &bytes[..]].concat(), &mut found);
            prop_assert!(found.len() <= bytes.len());
        }
    }
}
