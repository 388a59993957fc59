//! Which rows of a zone lasted for ten minutes or longer, and about when they opened and closed.
//!
//! Of a thousand rows nearly always one opened hours before it closed, so that the earliest opening of a zone leaves hardly any
//! out. But what was open at a moment and closed more than ten minutes later is one of these rows, which are few: of a zone of
//! later closings they are looked at, and no others.

use super::sealed::{Damaged, Reading, Writing};

/// How long they lasted at least.
pub(super) const LONG_US: i64 = 600_000_000;
const US_PER_S: i64 = 1_000_000;

/// The long rows of a zone while it grows.
#[derive(Debug, Default)]
pub(super) struct Long {
    writing: Writing,
    /// The last of them, and when it closed, s.
    last: (i64, i64),
}

impl Long {
    /// Goes on behind those that were written.
    pub(super) fn read(bytes: &[u8]) -> Result<Long, Damaged> {
        let mut long = Long::default();
        each(bytes, |row, (_, closed_at_us)| long.last = (row, closed_at_us / US_PER_S))?;
        long.writing.append(bytes);
        Ok(long)
    }

    /// Adds a row, counted from the first one of its zone, if it is long.
    pub(super) fn add(&mut self, row: i64, (opened_at_us, closed_at_us): (i64, i64)) {
        if closed_at_us.saturating_sub(opened_at_us) < LONG_US {
            return;
        }
        let opened_at_s = opened_at_us.div_euclid(US_PER_S);
        let closed_at_s = closed_at_us.div_euclid(US_PER_S) + i64::from(closed_at_us.rem_euclid(US_PER_S) > 0);
        self.writing.unsigned((row - self.last.0).cast_unsigned());
        self.writing.signed(closed_at_s - self.last.1);
        self.writing.unsigned((closed_at_s - opened_at_s).cast_unsigned());
        self.last = (row, closed_at_s);
    }

    /// As it is stored.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writing.bytes()
    }
}

/// Shows the long rows of a zone: counted from its first one, opened not before and closed not after these times, us, by less
/// than a second.
pub(super) fn each(bytes: &[u8], mut show: impl FnMut(i64, (i64, i64))) -> Result<(), Damaged> {
    let (mut reading, mut row, mut closed_at_s) = (Reading::new(bytes), 0_i64, 0_i64);
    while reading.end().is_err() {
        let step: i64 = reading.narrow()?;
        row = row.checked_add(step).ok_or(Damaged("a row has too large a number"))?;
        closed_at_s = closed_at_s.wrapping_add(reading.signed()?);
        let opened_at_s = closed_at_s.wrapping_sub(reading.narrow()?);
        show(row, (opened_at_s.saturating_mul(US_PER_S), closed_at_s.saturating_mul(US_PER_S)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn all_rows_that_are_long_are_shown_and_no_others(
            rows in vec((0_i64..1_700_000_000_000_000, 0_i64..3_000_000_000), 0..60), cut in 0_usize..60
        ) {
            let mut long = Long::default();
            let times = |(opened, lasted): (i64, i64)| (opened, opened + lasted);
            for (row, one) in (0..).zip(&rows) {
                if row == cut {
                    long = Long::read(long.bytes()).unwrap();
                }
                long.add(i64::try_from(row).unwrap(), times(*one));
            }
            let mut shown = Vec::new();
            each(long.bytes(), |row, times| shown.push((row, times))).unwrap();
            let expected: Vec<(i64, (i64, i64))> =
                (0..).zip(&rows).filter(|(_, (_, lasted))| *lasted >= LONG_US).map(|(row, one)| (row, times(*one))).collect();
            prop_assert_eq!(shown.len(), expected.len());
            for ((row, (opened, closed)), (expected, (opened_at, closed_at))) in shown.into_iter().zip(expected) {
                prop_assert_eq!(row, expected);
                prop_assert!((0..US_PER_S).contains(&(opened_at - opened)), "{opened_at}, {opened}");
                prop_assert!((0..US_PER_S).contains(&(closed - closed_at)), "{closed_at}, {closed}");
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>) {
            prop_assert_eq!(each(&bytes, |_, _| {}).is_ok(), Long::read(&bytes).is_ok());
        }
    }
}
