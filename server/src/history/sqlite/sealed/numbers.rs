//! A column of numbers: packed as they are, or in one of two other ways where that is shorter. In each the number in any
//! place is found by itself.

use std::iter::zip;

use super::{
    column::{Damaged, Reading, Writing},
    packed::{MISSING, Packed, pack},
    recurring::Dictionary,
};

/// Numbers of which only the first is written as it is.
const STRIDE: usize = 64;

/// How numbers are written.
const PLAIN: u8 = 0;
const RISING: u8 = 1;
const RECURRING: u8 = 2;

/// What the numbers of a column are like, so that not every way is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Nature {
    /// No two need to have anything in common.
    Any,
    /// Most are larger than the one before.
    Rising,
    /// There are few different ones.
    Recurring,
}

/// A column that is read in place.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) enum Numbers<'a> {
    Plain(Packed<'a>),
    /// Every so many numbers one, and of each how far it is beside the straight line between two of these.
    Rising {
        count: usize,
        firsts: Packed<'a>,
        beside: Packed<'a>,
    },
    /// The different ones, and of each number its place among these.
    Recurring {
        values: Packed<'a>,
        places: Packed<'a>,
    },
}

impl<'a> Numbers<'a> {
    /// The column that these bytes are, of so many numbers.
    pub(super) fn read(bytes: &'a [u8], count: usize) -> Result<Numbers<'a>, Damaged> {
        let mut reading = Reading::new(bytes);
        let [way] = reading.array()?;
        let numbers = match way {
            PLAIN => Numbers::Plain(Packed::read(&mut reading, count)?),
            RISING => {
                let firsts = Packed::read(&mut reading, count.div_ceil(STRIDE) + 1)?;
                Numbers::Rising { count, firsts, beside: Packed::read(&mut reading, count)? }
            }
            RECURRING => {
                let different = reading.narrow::<usize>()?;
                if different > count {
                    return Err(Damaged("there are more values than rows"));
                }
                let values = Packed::read(&mut reading, different)?;
                Numbers::Recurring { values, places: Packed::read(&mut reading, count)? }
            }
            _ => return Err(Damaged("its way of writing numbers has no meaning")),
        };
        reading.end()?;
        Ok(numbers)
    }

    /// The number in a place.
    pub(super) fn get(&self, at: usize) -> Result<i64, Damaged> {
        match self {
            Numbers::Plain(packed) => packed.get(at),
            Numbers::Rising { firsts, beside, .. } => {
                let beside = beside.get(at)?;
                let (first, next) = (firsts.get(at / STRIDE)?, firsts.get(at / STRIDE + 1)?);
                Ok(between(first, next, at % STRIDE).wrapping_add(beside))
            }
            Numbers::Recurring { values, places } => values.get(place(places.get(at)?)?),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Result<Vec<i64>, Damaged> {
        match self {
            Numbers::Plain(packed) => packed.all(),
            Numbers::Rising { count, firsts, beside } => {
                let (firsts, mut all) = (firsts.all()?, beside.all()?);
                if firsts.len() <= count.div_ceil(STRIDE) {
                    return Err(MISSING);
                }
                for (numbers, ends) in zip(all.chunks_mut(STRIDE), firsts.windows(2)) {
                    let line = |at| between(ends[0], ends[1], at);
                    numbers.iter_mut().enumerate().for_each(|(at, number)| *number = number.wrapping_add(line(at)));
                }
                Ok(all)
            }
            Numbers::Recurring { values, places } => {
                let (values, mut all) = (values.all()?, places.all()?);
                for number in &mut all {
                    *number = *values.get(place(*number)?).ok_or(MISSING)?;
                }
                Ok(all)
            }
        }
    }

    /// None of them is less.
    pub(super) const fn least(&self) -> i64 {
        match self {
            Numbers::Plain(packed) => packed.least(),
            Numbers::Rising { .. } | Numbers::Recurring { .. } => i64::MIN,
        }
    }

    /// Which of a frame may be as large as this, a bit for each.
    pub(super) fn may_reach(&self, frame: usize, limit: i64) -> Result<u64, Damaged> {
        match self {
            Numbers::Plain(packed) => packed.may_reach(frame, limit),
            Numbers::Rising { .. } | Numbers::Recurring { .. } => Ok(u64::MAX),
        }
    }
}

/// A place in a table.
pub(super) fn place(number: i64) -> Result<usize, Damaged> {
    usize::try_from(number).map_err(|_| Damaged("a place leads nowhere"))
}

/// What is so many of [`STRIDE`] steps from one number to another.
const fn between(first: i64, next: i64, steps: usize) -> i64 {
    first.wrapping_add(next.wrapping_sub(first).wrapping_mul(steps as i64) / STRIDE as i64)
}

/// Writes columns of numbers, one after the other in the same room.
#[derive(Default)]
pub(super) struct NumberWriter {
    other: Writing,
    beside: Vec<i64>,
    different: Dictionary<i64>,
}

impl NumberWriter {
    /// Adds a column to what is there.
    pub(super) fn write(&mut self, numbers: &[i64], nature: Nature, into: &mut Writing) {
        let begin = into.length();
        into.append(&[PLAIN]);
        pack(numbers, into);
        self.other.clear();
        match nature {
            Nature::Any => return,
            Nature::Rising => self.rising(numbers),
            Nature::Recurring => self.recurring(numbers),
        }
        if self.other.length() < into.length() - begin {
            into.truncate(begin);
            into.append(self.other.bytes());
        }
    }

    fn rising(&mut self, numbers: &[i64]) {
        let firsts: Vec<i64> = numbers.iter().step_by(STRIDE).copied().chain(beyond(numbers)).collect();
        self.beside.clear();
        for (numbers, ends) in zip(numbers.chunks(STRIDE), firsts.windows(2)) {
            let beside = |(at, number): (usize, &i64)| number.wrapping_sub(between(ends[0], ends[1], at));
            self.beside.extend(numbers.iter().enumerate().map(beside));
        }
        self.other.append(&[RISING]);
        pack(&firsts, &mut self.other);
        pack(&self.beside, &mut self.other);
    }

    fn recurring(&mut self, numbers: &[i64]) {
        self.different.fill(numbers.iter());
        self.other.append(&[RECURRING]);
        self.other.unsigned(self.different.values.len() as u64);
        pack(&self.different.values, &mut self.other);
        pack_places(&self.different.places, &mut self.other);
    }
}

/// Writes places in a table.
pub(super) fn pack_places(places: &[usize], into: &mut Writing) {
    pack(&places.iter().map(|place| *place as i64).collect::<Vec<_>>(), into);
}

/// Where the line through the last stride leads: to the number after it, if there were one.
fn beyond(numbers: &[i64]) -> Option<i64> {
    let last = numbers.chunks(STRIDE).next_back()?;
    let ([first, ..], [.., end]) = (last, last) else { return None };
    Some(match last.len() {
        1 => *first,
        length => first.wrapping_add(end.wrapping_sub(*first).wrapping_mul(STRIDE as i64) / (length as i64 - 1)),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    const NATURES: [Nature; 3] = [Nature::Any, Nature::Rising, Nature::Recurring];

    fn written(numbers: &[i64], nature: Nature) -> Vec<u8> {
        let (mut writing, mut into) = (NumberWriter::default(), Writing::default());
        into.append(&[9]);
        writing.write(numbers, nature, &mut into);
        into.bytes()[1..].to_vec()
    }

    /// Numbers that rise, that recur, and any.
    fn numbers() -> impl Strategy<Value = Vec<i64>> {
        let rising = (any::<i64>(), vec(0_i64..100_000, 0..300)).prop_map(|(mut last, steps)| {
            let next = |step: i64| {
                last = last.wrapping_add(step);
                last
            };
            steps.into_iter().map(next).collect()
        });
        let recurring = (any::<i64>(), any::<i64>(), vec(any::<bool>(), 0..300)).prop_map(|(first, second, which)| {
            which.into_iter().map(|is_first| if is_first { first } else { second }).collect()
        });
        prop_oneof![rising, recurring, vec(any::<i64>(), 0..150)]
    }

    proptest! {
        #[test]
        fn each_number_is_read_as_it_was_written(numbers in numbers()) {
            for nature in NATURES {
                let bytes = written(&numbers, nature);
                let read = Numbers::read(&bytes, numbers.len()).unwrap();
                prop_assert_eq!(&read.all().unwrap(), &numbers);
                for (at, number) in numbers.iter().enumerate() {
                    prop_assert_eq!(read.get(at), Ok(*number));
                    prop_assert!(read.least() <= *number);
                }
                prop_assert!(read.get(numbers.len()).is_err());
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(
            bytes: Vec<u8>, way in 0_u8..4, numbers in numbers(), at: prop::sample::Index, to: u8
        ) {
            let mut spoilt: Vec<Vec<u8>> = NATURES.map(|nature| written(&numbers, nature)).to_vec();
            spoilt.iter_mut().for_each(|bytes| {
                let place = at.index(bytes.len());
                bytes[place] = to;
            });
            spoilt.push([vec![way], bytes].concat());
            for bytes in spoilt {
                if let Ok(read) = Numbers::read(&bytes, numbers.len()) {
                    drop(read.all());
                    drop((0..numbers.len() + 1).map(|at| read.get(at)).collect::<Vec<_>>());
                    drop((0..9).map(|frame| read.may_reach(frame, 1000)).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn the_shortest_way_is_taken() {
        let way = |numbers: &[i64], nature| written(numbers, nature)[0];
        let rising: Vec<i64> = (0..2000).map(|at| 1_700_000_000_000_000 + at * 1_000_003 + at % 7).collect();
        assert_eq!(way(&rising, Nature::Rising), RISING);
        assert!(written(&rising, Nature::Rising).len() < 1200);
        let few: Vec<i64> = (0..2000).map(|at| 4_000_000_000 - at % 2 * 123_456_789).collect();
        assert_eq!(way(&few, Nature::Recurring), RECURRING);
        assert!(written(&few, Nature::Recurring).len() < 280);
        for nature in NATURES {
            assert_eq!(way(&[5; 2000], nature), PLAIN);
            assert_eq!(way(&[], nature), PLAIN);
            assert_eq!(way(&[3, 1, 2], nature), PLAIN);
        }
    }
}
