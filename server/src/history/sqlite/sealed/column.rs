//! Numbers and texts of one column, one after the other in as few bytes as is cheap.
//!
//! A number is written seven bits a byte, the lowest first (LEB128); a signed one with its sign in the lowest bit, so that
//! small ones of either sign are short. What is read is bounded by what is there: nothing is allocated on its word.

/// The bytes are no column that this program wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a column is damaged: {0}")]
pub(in crate::history::sqlite) struct Damaged(pub(in crate::history::sqlite) &'static str);

/// Bytes of the longest number.
const LONGEST: u32 = 10;
/// The highest bit of each of eight bytes: where it is not set a number ends.
const ENDS: u64 = 0x8080_8080_8080_8080;

/// A column that is being written.
#[derive(Debug, Default)]
pub(in crate::history::sqlite) struct Writing {
    bytes: Vec<u8>,
}

impl Writing {
    pub(in crate::history::sqlite) fn unsigned(&mut self, number: u64) {
        let bits = u64::BITS - (number | 1).leading_zeros();
        // Eight bytes at once, as they are read: how long a number is cannot be foretold.
        if bits <= 56 {
            let length = bits.div_ceil(7);
            let goes_on = ENDS & !(u64::MAX << (8 * (length - 1)));
            let end = self.bytes.len() + length as usize;
            self.bytes.extend_from_slice(&(spread(number) | goes_on).to_le_bytes());
            self.bytes.truncate(end);
        } else {
            self.stepwise(number);
        }
    }

    /// A number by its bytes, one after the other.
    fn stepwise(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.bytes.push(number.to_le_bytes()[0]);
    }

    pub(in crate::history::sqlite) fn signed(&mut self, number: i64) {
        self.unsigned(((number << 1) ^ (number >> 63)).cast_unsigned());
    }

    pub(super) fn text(&mut self, bytes: &[u8]) {
        self.unsigned(bytes.len() as u64);
        self.bytes.extend_from_slice(bytes);
    }

    /// Bytes whose number is known to whoever reads them.
    pub(in crate::history::sqlite) fn append(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(in crate::history::sqlite) fn finish(self) -> Vec<u8> {
        self.bytes
    }

    /// What was written.
    pub(in crate::history::sqlite) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Begins anew, in the room that there is.
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
    }

    /// Forgets what is beyond so many bytes.
    pub(super) fn truncate(&mut self, length: usize) {
        self.bytes.truncate(length);
    }

    /// How many bytes there are so far.
    pub(in crate::history::sqlite) const fn length(&self) -> usize {
        self.bytes.len()
    }
}

/// A column that is being read.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Reading<'a> {
    bytes: &'a [u8],
    before: i64,
}

impl<'a> Reading<'a> {
    pub(in crate::history::sqlite) fn new(bytes: &'a [u8]) -> Reading<'a> {
        Reading { bytes, before: 0 }
    }

    #[inline]
    pub(in crate::history::sqlite) fn unsigned(&mut self) -> Result<u64, Damaged> {
        // Eight bytes at once: where the end of a number is cannot be foretold, so that a step for each byte costs more.
        if let Some(eight) = self.bytes.first_chunk::<8>() {
            let eight = u64::from_le_bytes(*eight);
            let ends = !eight & ENDS;
            if ends != 0 {
                let length = (ends.trailing_zeros() / 8 + 1) as usize;
                self.bytes = self.bytes.get(length..).unwrap_or_default();
                return Ok(joined(eight & (ends ^ (ends - 1))));
            }
        }
        self.stepwise()
    }

    /// A number by its bytes, one after the other.
    fn stepwise(&mut self) -> Result<u64, Damaged> {
        let mut number = 0;
        for place in 0..LONGEST {
            let (byte, rest) = self.bytes.split_first().ok_or(Damaged("a number is missing"))?;
            self.bytes = rest;
            let part = u64::from(byte & 0x7f);
            if part << (7 * place) >> (7 * place) != part {
                return Err(Damaged("a number is too large"));
            }
            number |= part << (7 * place);
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Damaged("a number has no end"))
    }

    pub(in crate::history::sqlite) fn signed(&mut self) -> Result<i64, Damaged> {
        self.unsigned().map(signed)
    }

    /// A number that is written as its difference to the one before.
    pub(super) fn difference(&mut self) -> Result<i64, Damaged> {
        self.before = self.before.wrapping_add(self.signed()?);
        Ok(self.before)
    }

    /// So many numbers.
    pub(super) fn numbers(&mut self, count: usize) -> Result<Vec<u64>, Damaged> {
        let bytes = self.bytes;
        // As many bytes as numbers, so that each has one.
        if bytes.len() == count && bytes.iter().all(|byte| *byte < 0x80) {
            self.bytes = &[];
            return Ok(bytes.iter().map(|byte| u64::from(*byte)).collect());
        }
        (0..count).map(|_| self.unsigned()).collect()
    }

    /// A number of a narrower type.
    pub(in crate::history::sqlite) fn narrow<T: TryFrom<u64>>(&mut self) -> Result<T, Damaged> {
        T::try_from(self.unsigned()?).map_err(|_| Damaged("a number is too large"))
    }

    pub(super) fn text(&mut self) -> Result<&'a [u8], Damaged> {
        let length = self.narrow()?;
        self.take(length)
    }

    /// So many bytes.
    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], Damaged> {
        let (bytes, rest) = self.bytes.split_at_checked(length).ok_or(Damaged("it is cut off"))?;
        self.bytes = rest;
        Ok(bytes)
    }

    /// Bytes of which there are always as many.
    pub(super) fn array<const LENGTH: usize>(&mut self) -> Result<[u8; LENGTH], Damaged> {
        let (bytes, rest) = self.bytes.split_first_chunk().ok_or(Damaged("it is cut off"))?;
        self.bytes = rest;
        Ok(*bytes)
    }

    /// What was not read.
    pub(in crate::history::sqlite) fn rest(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether everything was read.
    pub(in crate::history::sqlite) fn end(&self) -> Result<(), Damaged> {
        if self.bytes.is_empty() { Ok(()) } else { Err(Damaged("there is more than there are rows")) }
    }
}

/// The signed number whose sign is in the lowest bit.
pub(super) const fn signed(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// The lower seven bits of each of eight bytes, one after the other.
const fn joined(bytes: u64) -> u64 {
    let pairs = (bytes & 0x007f_007f_007f_007f) | ((bytes & 0x7f00_7f00_7f00_7f00) >> 1);
    let fours = (pairs & 0x0000_3fff_0000_3fff) | ((pairs & 0x3fff_0000_3fff_0000) >> 2);
    (fours & 0x0fff_ffff) | ((fours & 0x0fff_ffff_0000_0000) >> 4)
}

/// The lower 56 bits of a number, seven in each of eight bytes.
const fn spread(number: u64) -> u64 {
    let fours = (number & 0x0fff_ffff) | ((number << 4) & 0x0fff_ffff_0000_0000);
    let pairs = (fours & 0x0000_3fff_0000_3fff) | ((fours << 2) & 0x3fff_0000_3fff_0000);
    (pairs & 0x007f_007f_007f_007f) | ((pairs << 1) & 0x7f00_7f00_7f00_7f00)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            numbers: Vec<i64>, unsigned: Vec<u64>, texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20)
        ) {
            let mut writing = Writing::default();
            let mut before = 0;
            for number in &numbers {
                writing.signed(number.wrapping_sub(before));
                before = *number;
            }
            numbers.iter().for_each(|number| writing.signed(*number));
            unsigned.iter().for_each(|number| writing.unsigned(*number));
            texts.iter().for_each(|text| writing.text(text));
            let mut reading = Reading::new(writing.bytes());
            for number in &numbers {
                prop_assert_eq!(reading.difference(), Ok(*number));
            }
            for number in &numbers {
                prop_assert_eq!(reading.signed(), Ok(*number));
            }
            for number in &unsigned {
                prop_assert_eq!(reading.unsigned(), Ok(*number));
            }
            for text in &texts {
                prop_assert_eq!(reading.text(), Ok(text.as_slice()));
            }
            prop_assert_eq!(reading.end(), Ok(()));
        }

        #[test]
        fn many_numbers_are_written_and_read_as_each_by_its_bytes(
            numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0_u64..300, (0_u32..64).prop_map(|bits| 1 << bits)], 0..40),
            mut after: Vec<u8>
        ) {
            let mut writing = Writing::default();
            numbers.iter().for_each(|number| writing.unsigned(*number));
            let mut stepwise = Writing::default();
            numbers.iter().for_each(|number| stepwise.stepwise(*number));
            prop_assert_eq!(stepwise.bytes(), writing.bytes());
            let mut bytes = writing.bytes().to_vec();
            bytes.append(&mut after);
            prop_assert_eq!(Reading::new(&bytes).numbers(numbers.len()), Ok(numbers.clone()));
            let mut reading = Reading::new(&bytes);
            for number in &numbers {
                prop_assert_eq!(reading.stepwise(), Ok(*number));
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>) {
            let mut reading = Reading::new(&bytes);
            while reading.end().is_err() && reading.text().is_ok() {}
            let mut reading = Reading::new(&bytes);
            while reading.end().is_err() && reading.difference().is_ok() {}
        }
    }
}
