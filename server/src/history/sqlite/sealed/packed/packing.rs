//! How numbers are packed: in those widths in which they take the fewest bytes.

use super::{BEGIN, CLASSES, FOUR, FRAME, TWO, WORD, length};
use crate::history::sqlite::sealed::{column::Writing, layout::MOST_SESSIONS};

/// Below this width nothing is gained by telling classes apart.
const NARROW: usize = 3;
/// Lengths that a number may have, bits.
const LENGTHS: usize = 65;

/// Writes numbers, of which there are as many as sessions in a block at most.
pub(in crate::history::sqlite::sealed) fn pack(numbers: &[i64], into: &mut Writing) {
    let least = numbers.iter().min().copied().unwrap_or_default();
    let above = |number: &i64| number.wrapping_sub(least).cast_unsigned();
    let mut lengths = [0_usize; LENGTHS];
    numbers.iter().for_each(|number| lengths[length(above(number))] += 1);
    let widths = Widths::of(&lengths);
    let mut bits = Bits::default();
    into.append(&match *widths.0.as_slice() {
        [first, second] => vec![TWO, first, second],
        [first, second, third, fourth] => vec![FOUR, first, second, third, fourth],
        _ => widths.0.clone(),
    });
    into.signed(least);
    if let [width] = *widths.0 {
        numbers.iter().for_each(|number| bits.push(above(number), width.into()));
        return into.append(bits.end());
    }
    let classes: [usize; LENGTHS] = std::array::from_fn(|length| widths.class(length));
    for frame in numbers.chunks(FRAME) {
        let begin = bits.end().len();
        let mut words = [0_u64; 2];
        for (at, number) in frame.iter().map(above).enumerate() {
            let class = classes[length(number)];
            words[0] |= (class as u64 & 1) << at;
            words[1] |= (class as u64 >> 1) << at;
            bits.push(number, widths.0[class].into());
        }
        // A block has at most 2,048 numbers of 8 bytes.
        into.append(&u16::try_from(begin).unwrap_or(u16::MAX).to_le_bytes());
        words.iter().take(widths.0.len() / 2).for_each(|word| into.append(&word.to_le_bytes()));
    }
    into.text(bits.end());
}

/// One, two or four widths, each wider than the one before or as wide.
struct Widths(Vec<u8>);

impl Widths {
    /// Those with which numbers take the fewest bytes, of which there are so many of each length.
    fn of(lengths: &[usize; LENGTHS]) -> Widths {
        let count: usize = lengths.iter().sum();
        let longest = lengths.iter().rposition(|of| *of > 0).unwrap_or_default();
        let one = Widths(vec![narrow(longest)]);
        if longest <= NARROW || count > MOST_SESSIONS {
            return one;
        }
        let least = Least::of(lengths, longest);
        let frames = count.div_ceil(FRAME);
        let head = |words: usize| 8 * frames * (BEGIN + words * WORD);
        let choices = [(least.bits(1), 1), (least.bits(2) + head(1), 2), (least.bits(4) + head(2), 4)];
        match choices.iter().min() {
            Some((_, classes)) if *classes > 1 => least.widths(*classes),
            _ => one,
        }
    }

    /// The class of a number of this length.
    fn class(&self, length: usize) -> usize {
        self.0.iter().position(|width| usize::from(*width) >= length).unwrap_or_default()
    }
}

/// How few bits numbers take in one to four widths.
struct Least {
    longest: usize,
    /// Of each number of widths and each width that is the widest: how many bits those take that fit, and the width before.
    of: [[(usize, usize); LENGTHS]; CLASSES],
}

impl Least {
    fn of(lengths: &[usize; LENGTHS], longest: usize) -> Least {
        let mut fit = 0;
        let fitting: [usize; LENGTHS] = std::array::from_fn(|width| {
            fit += lengths[width];
            fit
        });
        let mut of = [[(0, 0); LENGTHS]; CLASSES];
        of[0] = std::array::from_fn(|width| (fitting[width] * width, 0));
        for classes in 1..CLASSES {
            let before = of[classes - 1];
            for width in 0..=longest {
                let least = |last: usize| (before[last].0 + (fitting[width] - fitting[last]) * width, last);
                of[classes][width] = (0..=width).map(least).min().unwrap_or_default();
            }
        }
        Least { longest, of }
    }

    fn bits(&self, classes: usize) -> usize {
        self.of[classes - 1][self.longest].0
    }

    fn widths(&self, classes: usize) -> Widths {
        let mut widths = vec![0; classes];
        let mut width = self.longest;
        for (place, into) in widths.iter_mut().enumerate().rev() {
            *into = narrow(width);
            width = self.of[place][width].1;
        }
        Widths(widths)
    }
}

/// A width as it is written: none is more than 64.
fn narrow(width: usize) -> u8 {
    u8::try_from(width).unwrap_or(u8::MAX)
}

/// Bits, one number after the other.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    /// Those of the lowest bits that are in no byte yet.
    last: u64,
    filled: usize,
}

impl Bits {
    fn push(&mut self, number: u64, width: usize) {
        self.last |= number << self.filled;
        let filled = self.filled + width;
        if filled >= 64 {
            self.bytes.extend_from_slice(&self.last.to_le_bytes());
            self.last = number.checked_shr(64 - u32::try_from(self.filled).unwrap_or(64)).unwrap_or(0);
            self.filled = filled - 64;
        } else {
            self.filled = filled;
        }
    }

    /// What was written; what follows begins with a byte.
    fn end(&mut self) -> &[u8] {
        let word = self.last.to_le_bytes();
        self.bytes.extend_from_slice(&word[..self.filled.div_ceil(8)]);
        (self.last, self.filled) = (0, 0);
        &self.bytes
    }
}
