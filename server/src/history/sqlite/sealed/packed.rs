//! Numbers in as few bits as they need, each of which is found without reading the others.
//!
//! What is written of a number is how far it is above the least of all (frame of reference), in as many bits as the largest
//! needs. Where few are much larger than most, numbers are written in up to four widths: each belongs to the narrowest that
//! it fits in, frames of 64 numbers tell the class of each of theirs in one or two words of a bit for each number, and where
//! the first of them begins. How many bits are before another one is then counted in these words.
//!
//! Nothing that is read is believed: what leads beyond the bytes is said to be damaged.

use std::ops::Range;

pub(super) use self::packing::pack;
use super::column::{Damaged, Reading};

mod packing;

/// Numbers of which a word has a bit each.
pub(super) const FRAME: usize = 64;
/// Most widths of a column, which two bits tell apart.
const CLASSES: usize = 4;
/// In place of a width: there are two of them, or four.
const TWO: u8 = 65;
const FOUR: u8 = 66;
/// Bytes that tell where a frame begins, and those of a word of bits.
const BEGIN: usize = 2;
const WORD: usize = 8;

/// There are more or fewer bytes than numbers.
const OTHER_LENGTH: Damaged = Damaged("its numbers have other lengths");
/// What was asked for is in no block of this size.
pub(super) const MISSING: Damaged = Damaged("there is no such session");

/// Numbers that are read in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Packed<'a> {
    count: usize,
    least: i64,
    /// Bits of a number of each class.
    widths: [usize; CLASSES],
    /// Bytes of what precedes the numbers for each frame; 0 where there is one class.
    head: usize,
    heads: &'a [u8],
    bits: &'a [u8],
}

/// Up to [`FRAME`] numbers.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Where the first of them is, bits.
    begin: usize,
    /// The lower and the higher bit of the class of each.
    classes: [u64; 2],
}

impl<'a> Packed<'a> {
    /// So many numbers, which are the next that is to be read.
    pub(super) fn read(reading: &mut Reading<'a>, count: usize) -> Result<Packed<'a>, Damaged> {
        let [tag] = reading.array()?;
        let (head, widths) = match tag {
            TWO => {
                let [first, second] = reading.array()?;
                (BEGIN + WORD, [first, second, 0, 0])
            }
            FOUR => (BEGIN + 2 * WORD, reading.array()?),
            width => (0, [width, 0, 0, 0]),
        };
        if widths.iter().any(|width| u32::from(*width) > u64::BITS) {
            return Err(Damaged("a number is too wide"));
        }
        let widths = widths.map(usize::from);
        let least = reading.signed()?;
        let (heads, bits) = if head == 0 {
            let bits = count.checked_mul(widths[0]).ok_or(OTHER_LENGTH)?;
            (&[][..], reading.take(bits.div_ceil(8))?)
        } else {
            let heads = count.div_ceil(FRAME).checked_mul(head).ok_or(OTHER_LENGTH)?;
            (reading.take(heads)?, reading.text()?)
        };
        Ok(Packed { count, least, widths, head, heads, bits })
    }

    /// None of them is less.
    pub(super) const fn least(&self) -> i64 {
        self.least
    }

    /// The number in a place.
    pub(super) fn get(&self, at: usize) -> Result<i64, Damaged> {
        if at >= self.count {
            return Err(MISSING);
        }
        let (begin, width) = match self.head {
            0 => (at * self.widths[0], self.widths[0]),
            _ => self.frame(at / FRAME)?.place(at % FRAME, &self.widths),
        };
        if begin + width > 8 * self.bits.len() {
            return Err(OTHER_LENGTH);
        }
        Ok(self.least.wrapping_add(bits_from(self.bits, begin, width).cast_signed()))
    }

    /// All of them.
    pub(super) fn all(&self) -> Result<Vec<i64>, Damaged> {
        let number = |begin, width| self.least.wrapping_add(bits_from(self.bits, begin, width).cast_signed());
        if self.head == 0 {
            let [width, ..] = self.widths;
            if width == 0 {
                return Ok(vec![self.least; self.count]);
            }
            return Ok((0..self.count).map(|at| number(at * width, width)).collect());
        }
        let mut all = Vec::with_capacity(self.count);
        for first in (0..self.count).step_by(FRAME) {
            let Frame { mut begin, classes: [mut low, mut high] } = self.frame(first / FRAME)?;
            all.extend((first..self.count.min(first + FRAME)).map(|_| {
                let (place, width) = (begin, self.widths[class(low, high)]);
                begin += width;
                (low, high) = (low >> 1, high >> 1);
                number(place, width)
            }));
            if begin > 8 * self.bits.len() {
                return Err(OTHER_LENGTH);
            }
        }
        Ok(all)
    }

    /// Which of a frame may be as large as this, a bit for each: those of classes that reach so far.
    pub(super) fn may_reach(&self, frame: usize, limit: i64) -> Result<u64, Damaged> {
        if limit <= self.least {
            return Ok(u64::MAX);
        }
        let above = length(limit.wrapping_sub(self.least).cast_unsigned());
        let reaches = |class: usize| if above <= self.widths[class] { u64::MAX } else { 0 };
        if self.head == 0 {
            return Ok(reaches(0));
        }
        let [low, high] = self.frame(frame)?.classes;
        let of = [!low & !high, low & !high, !low & high, low & high];
        Ok((0..CLASSES).map(|class| of[class] & reaches(class)).fold(0, |all, some| all | some))
    }

    fn frame(&self, frame: usize) -> Result<Frame, Damaged> {
        let place = Range { start: frame * self.head, end: (frame + 1) * self.head };
        let head = self.heads.get(place).ok_or(MISSING)?;
        let (begin, words) = head.split_first_chunk::<BEGIN>().ok_or(MISSING)?;
        let (words, _) = words.as_chunks::<WORD>();
        let word = |at: usize| words.get(at).map_or(0, |word| u64::from_le_bytes(*word));
        Ok(Frame { begin: usize::from(u16::from_le_bytes(*begin)) * 8, classes: [word(0), word(1)] })
    }
}

impl Frame {
    /// Where the bits of a number are, and how many.
    fn place(&self, at: usize, widths: &[usize; CLASSES]) -> (usize, usize) {
        let [low, high] = self.classes;
        let before = (1_u64 << at) - 1;
        let ones = |bits: u64| (bits & before).count_ones() as usize;
        let (lows, highs, both) = (ones(low), ones(high), ones(low & high));
        let counts = [at + both - lows - highs, lows - both, highs - both, both];
        let bits: usize = counts.iter().zip(widths).map(|(count, width)| count * width).sum();
        (self.begin + bits, widths[class(low >> at, high >> at)])
    }
}

/// The class of the number whose bits are the lowest of these.
const fn class(low: u64, high: u64) -> usize {
    ((low & 1) | (high & 1) << 1) as usize
}

/// So many bits from a place on, at most 64; zeros where there are none.
fn bits_from(bits: &[u8], begin: usize, width: usize) -> u64 {
    let (byte, shift) = (begin / 8, begin % 8);
    let rest = bits.get(byte..).unwrap_or_default();
    let low = match rest.first_chunk::<WORD>() {
        Some(word) => u64::from_le_bytes(*word),
        None => rest.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    };
    let high = match rest.get(WORD) {
        Some(byte) if shift + width > 64 => u64::from(*byte) << (64 - shift),
        _ => 0,
    };
    (low >> shift | high) & lowest(width)
}

/// The lowest so many bits.
const fn lowest(width: usize) -> u64 {
    if width >= 64 { u64::MAX } else { (1 << width) - 1 }
}

/// How many bits a number needs.
const fn length(number: u64) -> usize {
    (u64::BITS - number.leading_zeros()) as usize
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::column::Writing, *};

    fn packed(numbers: &[i64]) -> Vec<u8> {
        let mut writing = Writing::default();
        pack(numbers, &mut writing);
        writing.finish()
    }

    /// Numbers of any length, many of them alike.
    fn numbers() -> impl Strategy<Value = Vec<i64>> {
        let few =
            (0_u32..64, any::<i64>(), 0_u32..64).prop_map(|(shift, number, other)| (number >> shift) << (other / 8));
        vec(prop_oneof![8 => 0_i64..9, 2 => 0_i64..5000, 1 => few], 0..300)
    }

    proptest! {
        #[test]
        fn each_number_is_found_without_the_others(numbers in numbers(), base: i64) {
            let numbers: Vec<i64> = numbers.into_iter().map(|number| number.wrapping_add(base)).collect();
            let bytes = [packed(&numbers), vec![7]].concat();
            let mut reading = Reading::new(&bytes);
            let packed = Packed::read(&mut reading, numbers.len()).unwrap();
            prop_assert_eq!(reading.rest(), &[7]);
            prop_assert_eq!(&packed.all().unwrap(), &numbers);
            for (at, number) in numbers.iter().enumerate() {
                prop_assert_eq!(packed.get(at), Ok(*number));
            }
            prop_assert_eq!(packed.get(numbers.len()), Err(MISSING));
        }

        #[test]
        fn whatever_is_as_large_is_said_to_reach_that_far(numbers in numbers(), limit in prop_oneof![0_i64..6000, any::<i64>()]) {
            let bytes = packed(&numbers);
            let packed = Packed::read(&mut Reading::new(&bytes), numbers.len()).unwrap();
            for (frame, some) in numbers.chunks(FRAME).enumerate() {
                let reaching = packed.may_reach(frame, limit).unwrap();
                for (at, number) in some.iter().enumerate() {
                    prop_assert!(*number < limit || reaching >> at & 1 == 1, "{number} in {frame}, {at}");
                }
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(mut bytes: Vec<u8>, tag in 0..FOUR + 2, count in 0..300_usize) {
            bytes.insert(0, tag);
            if let Ok(packed) = Packed::read(&mut Reading::new(&bytes), count) {
                drop(packed.all());
                drop((0..count).map(|at| packed.get(at)).collect::<Vec<_>>());
                drop((0..count).map(|at| packed.may_reach(at, 1000)).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn numbers_take_as_many_bits_as_they_need() {
        let length = |numbers: &[i64]| packed(numbers).len();
        // A width and the least of all.
        assert_eq!(length(&[]), 2);
        assert_eq!(length(&[i64::MIN; 2000]), 11);
        assert_eq!(length(&[0, 1].repeat(1000)), 2 + 250);
        assert_eq!(length(&[i64::MIN, i64::MAX]), 11 + 16);
        // One that is large does not make the others wide.
        let mut numbers: Vec<i64> = (0..2000).map(|at| 128 + at % 128).collect();
        (numbers[0], numbers[77]) = (0, 1 << 50);
        assert_eq!(length(&numbers), 4 + 2 + 32 * (BEGIN + WORD) + 2000 + 6);
        // Of lengths that are as likely as each other.
        let numbers: Vec<i64> = (0..2048).map(|at| 1 << (at % 32)).collect();
        assert_eq!(length(&numbers), 6 + 2 + 32 * (BEGIN + 2 * WORD) + 2048 * 19 / 8);
    }
}
