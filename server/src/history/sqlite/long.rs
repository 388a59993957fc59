//! Which rows of a zone lasted for a minute or longer, about when they opened and closed, and the ports of their services.
//!
//! Of a thousand rows nearly always one opened hours before it closed, so that the earliest opening of a zone leaves hardly any
//! out. But what was open at a moment and closed more than a minute later is one of these rows: of a zone of later closings they
//! are looked at here, and of the table only those are read whose times and port are meant.

use super::sealed::{Damaged, Reading, Writing};

/// How long they lasted at least.
pub(super) const LONG_US: i64 = 60_000_000;
const US_PER_S: i64 = 1_000_000;

/// What is told of a long row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LongRow {
    /// Counted from the first one of its zone.
    pub(super) row: i64,
    /// It opened then or less than a second later.
    pub(super) opened_at_us: i64,
    /// It closed then or less than a second earlier.
    pub(super) closed_at_us: i64,
    /// The service's port.
    pub(super) port: u16,
}

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
        each(bytes, |one| long.last = (one.row, one.closed_at_us / US_PER_S))?;
        long.writing.append(bytes);
        Ok(long)
    }

    /// Adds a row, counted from the first one of its zone, if it is long.
    pub(super) fn add(&mut self, row: i64, (opened_at_us, closed_at_us): (i64, i64), port: u16) {
        if closed_at_us.saturating_sub(opened_at_us) < LONG_US {
            return;
        }
        let opened_at_s = opened_at_us.div_euclid(US_PER_S);
        let closed_at_s = closed_at_us.div_euclid(US_PER_S) + i64::from(closed_at_us.rem_euclid(US_PER_S) > 0);
        self.writing.unsigned((row - self.last.0).cast_unsigned());
        self.writing.signed(closed_at_s - self.last.1);
        self.writing.unsigned((closed_at_s - opened_at_s).cast_unsigned());
        self.writing.unsigned(port.into());
        self.last = (row, closed_at_s);
    }

    /// As it is stored.
    pub(super) fn bytes(&self) -> &[u8] {
        self.writing.bytes()
    }
}

/// Shows the long rows of a zone.
pub(super) fn each(bytes: &[u8], mut show: impl FnMut(LongRow)) -> Result<(), Damaged> {
    let (mut reading, mut row, mut closed_at_s) = (Reading::new(bytes), 0_i64, 0_i64);
    while !reading.rest().is_empty() {
        let step: i64 = reading.narrow()?;
        row = row.checked_add(step).ok_or(Damaged("a row has too large a number"))?;
        closed_at_s = closed_at_s.wrapping_add(reading.signed()?);
        let opened_at_s = closed_at_s.wrapping_sub(reading.narrow()?);
        let [opened_at_us, closed_at_us] = [opened_at_s, closed_at_s].map(|at| at.saturating_mul(US_PER_S));
        show(LongRow { row, opened_at_us, closed_at_us, port: reading.narrow()? });
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
            rows in vec((0_i64..1_700_000_000_000_000, 0_i64..300_000_000, any::<u16>()), 0..60), cut in 0_usize..60
        ) {
            let mut long = Long::default();
            for (row, (opened, lasted, port)) in (0..).zip(&rows) {
                if usize::try_from(row).unwrap() == cut {
                    long = Long::read(long.bytes()).unwrap();
                }
                long.add(row, (*opened, opened + lasted), *port);
            }
            let mut shown = Vec::new();
            each(long.bytes(), |one| shown.push(one)).unwrap();
            let expected: Vec<_> = (0..).zip(&rows).filter(|(_, (_, lasted, _))| *lasted >= LONG_US).collect();
            prop_assert_eq!(shown.len(), expected.len());
            for (LongRow { row, opened_at_us, closed_at_us, port }, (number, (opened, lasted, service))) in
                shown.into_iter().zip(expected)
            {
                prop_assert_eq!((row, port), (number, *service));
                prop_assert!((0..US_PER_S).contains(&(opened - opened_at_us)), "{opened}, {opened_at_us}");
                prop_assert!((0..US_PER_S).contains(&(closed_at_us - opened - lasted)), "{closed_at_us}");
            }
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>) {
            prop_assert_eq!(each(&bytes, |_| {}).is_ok(), Long::read(&bytes).is_ok());
        }
    }
}
