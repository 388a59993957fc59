//! Addresses of one family that follow each other, as bytes: the family, then of each by how much it is more than the one before.

use super::{
    coding::{Numeric, halves},
    sealed::{Damaged, Reading, Writing},
};

const V4: u64 = 4;
const V6: u64 = 6;

/// Addresses that are written or read, as far as they came.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Ascending {
    is_v6: bool,
    before: u128,
}

impl Ascending {
    /// Writes the family of an address, before the first of them.
    pub(super) fn begin(first: Numeric, into: &mut Writing) -> Ascending {
        into.unsigned(if first.is_v6() { V6 } else { V4 });
        Ascending { is_v6: first.is_v6(), before: 0 }
    }

    /// Reads the family.
    pub(super) fn read(from: &mut Reading<'_>) -> Result<Ascending, Damaged> {
        let is_v6 = match from.unsigned()? {
            V4 => false,
            V6 => true,
            _ => return Err(Damaged("a family has no meaning")),
        };
        Ok(Ascending { is_v6, before: 0 })
    }

    /// Whether an address is of the family.
    pub(super) const fn has_family_of(self, address: Numeric) -> bool {
        self.is_v6 == address.is_v6()
    }

    /// The last one.
    pub(super) const fn last(self) -> Numeric {
        Numeric::of(self.is_v6, self.before)
    }

    /// Writes the next one: two numbers of IPv6, one of IPv4.
    pub(super) fn write_next(&mut self, address: Numeric, into: &mut Writing) {
        let [high, low] = halves(address.bits().wrapping_sub(self.before));
        if self.is_v6 {
            into.unsigned(high);
        }
        into.unsigned(low);
        self.before = address.bits();
    }

    /// Reads the next one.
    #[inline]
    pub(super) fn read_next(&mut self, from: &mut Reading<'_>) -> Result<Numeric, Damaged> {
        let step = match self.is_v6 {
            true => u128::from(from.unsigned()?) << 64 | u128::from(from.unsigned()?),
            false => from.narrow::<u32>()?.into(),
        };
        let address = Numeric::of(self.is_v6, self.before.wrapping_add(step));
        self.before = address.bits();
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_bytes_are_those_that_files_have() {
        for (addresses, bytes) in [
            (["10.0.0.1", "10.0.0.3"], &[4, 0x81, 0x80, 0x80, 0x50, 2][..]),
            (["0:0:0:1::5", "0:0:0:1::7"], &[6, 1, 5, 0, 2]),
        ] {
            let addresses = addresses.map(|text| Numeric::from(text.parse::<IpAddr>().unwrap()));
            let mut writing = Writing::default();
            let mut written = Ascending::begin(addresses[0], &mut writing);
            addresses.iter().for_each(|address| written.write_next(*address, &mut writing));
            assert_eq!(writing.bytes(), bytes);
            let mut reading = Reading::new(bytes);
            let mut read = Ascending::read(&mut reading).unwrap();
            assert_eq!(addresses.map(|_| read.read_next(&mut reading)), addresses.map(Ok));
            assert_eq!(reading.end(), Ok(()));
        }
        assert!(Ascending::read(&mut Reading::new(&[5])).is_err(), "no family");
        let mut read = Ascending::read(&mut Reading::new(&[4])).unwrap();
        let beyond = [0xff, 0xff, 0xff, 0xff, 0x1f];
        assert!(read.read_next(&mut Reading::new(&beyond)).is_err(), "more than an address of IPv4 has");
    }
}
