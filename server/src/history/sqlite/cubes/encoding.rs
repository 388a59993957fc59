//! Sums as bytes.

use super::{Hour, Span, What};
use crate::history::sqlite::{
    sealed::{Damaged, Reading, Writing},
    sums::Counts,
};

/// Sums of one hour of closing, as they are written: each number as its difference to the one before, then what is counted.
#[derive(Debug, Default)]
pub(super) struct Encoding {
    /// Of each two numbers how many sessions there were, and by how many of the rows of `earlier` these are told more of.
    totals: Writing,
    /// Those that opened at another time than [`Span::within`] the hour.
    earlier: Writing,
    before: What,
    opened_us: Option<(i64, i64)>,
}

impl Encoding {
    /// Adds what has two numbers in common, by when it opened; whether all of it can be counted.
    pub(super) fn add(&mut self, what: What, closed: i64, parts: &[((i64, What, i64), Counts)]) -> bool {
        let usual = Span::within(closed).opened;
        let (mut total, mut told, mut earlier) = (Counts::default(), true, 0_u64);
        for ((.., opened), counts) in parts {
            let (first, last) = Span { closed, opened: *opened }.opened_us();
            let (least, most) = self.opened_us.unwrap_or((first, last));
            self.opened_us = Some((least.min(first), most.max(last)));
            match total.plus(*counts) {
                Some(sum) => total = sum,
                None => told = false,
            }
            if *opened != usual {
                earlier += 1;
                self.earlier.signed(usual.wrapping_sub(*opened));
                write_counts(&mut self.earlier, *counts);
            }
        }
        write_sum(&mut self.totals, &mut self.before, (what, total, earlier));
        told
    }

    pub(super) const fn length(&self) -> usize {
        self.totals.length() + self.earlier.length()
    }

    /// The sums of the hour, if there are any.
    pub(super) fn finish(self, closed: i64) -> Option<Summed> {
        let hour = Hour { closed, opened_us: self.opened_us? };
        Some(Summed { hour, totals: self.totals.finish(), earlier: self.earlier.finish() })
    }
}

/// The sums of one hour of closing.
#[derive(Debug)]
pub(super) struct Summed {
    pub(super) hour: Hour,
    pub(super) totals: Vec<u8>,
    pub(super) earlier: Vec<u8>,
}

/// Sums of which nothing more is told, as bytes.
pub(super) fn encode(sums: impl Iterator<Item = (What, Counts)>) -> Vec<u8> {
    let (mut writing, mut before) = (Writing::default(), What::default());
    sums.for_each(|(what, counts)| write_sum(&mut writing, &mut before, (what, counts, 0)));
    writing.finish()
}

fn write_sum(writing: &mut Writing, before: &mut What, (what, counts, earlier): (What, Counts, u64)) {
    for (number, before) in what.into_iter().zip(before) {
        writing.signed(number.wrapping_sub(*before));
        *before = number;
    }
    write_counts(writing, counts);
    writing.unsigned(earlier);
}

fn write_counts(writing: &mut Writing, counts: Counts) {
    let Counts { sessions, bytes_sent, bytes_received } = counts;
    [sessions, bytes_sent, bytes_received].into_iter().for_each(|count| writing.unsigned(count));
}

fn read_counts(reading: &mut Reading<'_>) -> Result<Counts, Damaged> {
    Ok(Counts { sessions: reading.unsigned()?, bytes_sent: reading.unsigned()?, bytes_received: reading.unsigned()? })
}

/// The sums in some bytes, one after the other.
pub(super) struct Totals<'a> {
    reading: Reading<'a>,
    before: What,
}

impl Totals<'_> {
    pub(super) fn of(totals: &[u8]) -> Totals<'_> {
        Totals { reading: Reading::new(totals), before: What::default() }
    }

    /// The next one, and of how many of what opened earlier it is.
    pub(super) fn next(&mut self) -> Result<Option<(What, Counts, u64)>, Damaged> {
        if self.reading.rest().is_empty() {
            return Ok(None);
        }
        for number in &mut self.before {
            *number = number.wrapping_add(self.reading.signed()?);
        }
        let counts = read_counts(&mut self.reading)?;
        Ok(Some((self.before, counts, self.reading.unsigned()?)))
    }
}

/// Shows what was counted of an hour, whenever it opened.
pub(in crate::history::sqlite) fn each_total<E: From<Damaged>>(
    totals: &[u8],
    mut show: impl FnMut(What, Counts) -> Result<(), E>,
) -> Result<(), E> {
    let mut totals = Totals::of(totals);
    while let Some((what, counts, _)) = totals.next()? {
        show(what, counts)?;
    }
    Ok(())
}

/// Shows what was counted of an hour, apart for the hours in which it opened.
pub(in crate::history::sqlite) fn each<E: From<Damaged>>(
    closed: i64,
    (totals, earlier): (&[u8], &[u8]),
    mut show: impl FnMut(What, Span, Counts) -> Result<(), E>,
) -> Result<(), E> {
    let (mut earlier, usual) = (Reading::new(earlier), Span::within(closed));
    let mut totals = Totals::of(totals);
    while let Some((what, mut rest, parts)) = totals.next()? {
        for _ in 0..parts {
            let opened = usual.opened.wrapping_sub(earlier.signed()?);
            let counts = read_counts(&mut earlier)?;
            rest = rest.minus(counts).ok_or(Damaged("a part is more than the whole"))?;
            show(what, Span { closed, opened }, counts)?;
        }
        if rest != Counts::default() {
            show(what, usual, rest)?;
        }
    }
    earlier.end().map_err(E::from)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::sqlite::cubes::{Meant, Service};

    proptest! {
        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(closed: i64, totals: Vec<u8>, earlier: Vec<u8>) {
            let mut told = Vec::new();
            let read = each(closed, (&totals, &earlier), |what, span, _| {
                told.push((what, span));
                Ok::<_, Damaged>(())
            });
            for (what, span) in &told {
                // Nothing closes after the end of time.
                prop_assert!(span.is_meant([i64::MAX, i64::MAX, i64::MAX]) == Meant::No);
                prop_assert!(Service::of(*what).is_ok_and(|service| service.what() == *what) || Service::of(*what).is_err());
            }
            prop_assert!(read.is_err() || earlier.is_empty() || !told.is_empty());
        }
    }
}
