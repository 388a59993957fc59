//! Which of the sums of a file are read for a window: as few as tell it.

use super::{Hour, Meant};

/// What is told of a file, and what is asked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) struct Told {
    /// Whether there are sums of all of its hours together.
    pub(in crate::history::sqlite) whole: bool,
    /// Whether it matters when sessions opened.
    pub(in crate::history::sqlite) openings: bool,
}

/// The sums that are read, by the numbers of their hours.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Choice {
    /// Whether those of all hours together are: then the next ones are taken off them.
    pub(in crate::history::sqlite) whole: bool,
    /// Those of which no more is read than the total.
    pub(in crate::history::sqlite) totals: Vec<i64>,
    /// Those that are read apart for the hours of opening.
    pub(in crate::history::sqlite) apart: Vec<(i64, Hour)>,
}

impl Choice {
    /// What is read of these hours, each with its number, for a window.
    pub(in crate::history::sqlite) fn of(hours: &[(i64, Hour)], window: [i64; 3], told: Told) -> Choice {
        let with = |wanted: Meant| hours.iter().filter(move |(_, hour)| hour.is_meant(window) == wanted);
        let numbers = |hours: &[&(i64, Hour)]| hours.iter().map(|(number, _)| *number).collect();
        let meant: Vec<_> = with(Meant::Yes).collect();
        let unclear = with(Meant::Unclear);
        if told.openings {
            return Choice { apart: meant.into_iter().chain(unclear).copied().collect(), ..Choice::default() };
        }
        let apart: Vec<_> = unclear.copied().collect();
        let others: Vec<_> = hours.iter().filter(|(_, hour)| hour.is_meant(window) != Meant::Yes).collect();
        if told.whole && 1 + others.len() < meant.len() {
            Choice { whole: true, totals: numbers(&others), apart }
        } else {
            Choice { whole: false, totals: numbers(&meant), apart }
        }
    }

    /// Whether nothing is.
    pub(in crate::history::sqlite) const fn is_empty(&self) -> bool {
        !self.whole && self.totals.is_empty() && self.apart.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::btree_map, prelude::*};

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn hour(closed: i64, earlier: i64) -> (i64, Hour) {
        (closed + 100, Hour { closed, opened_us: ((closed - earlier) * HOUR + 1, (closed + 1) * HOUR - 1) })
    }

    #[test]
    fn of_most_of_a_file_the_rest_is_taken_off_the_whole() {
        let hours: Vec<_> = (0..24).map(|closed| hour(closed, 2)).collect();
        let from = |begin: i64, end: i64| [begin * HOUR - 1, i64::MAX, end * HOUR];
        let of = |window, whole| Choice::of(&hours, window, Told { whole, openings: false });
        let late = of(from(1, 24), true);
        assert_eq!((late.whole, late.totals.as_slice(), late.apart.len()), (true, &[100][..], 0));
        assert_eq!(of(from(1, 24), false).totals.len(), 23);
        // Of 10 and 11 o'clock some opened before: these are taken off as well, and told apart.
        let early = of(from(0, 10), true);
        assert_eq!((early.whole, early.totals.len(), early.apart.len()), (false, 10, 2));
        assert!(of(from(30, 40), true).is_empty());
        assert_eq!(of(from(-9, 40), true), Choice { whole: true, ..Choice::default() });
    }

    proptest! {
        #[test]
        fn what_is_read_tells_each_hour_once(
            earlier in btree_map(-9_i64..9, 0_i64..4, 0..15), begin in -9_i64..9, length in 0_i64..15, at in 0_i64..2,
            whole: bool, openings: bool
        ) {
            let hours: Vec<_> = earlier.into_iter().map(|(closed, earlier)| hour(closed, earlier)).collect();
            let window = [begin * HOUR - at, i64::MAX, (begin + length) * HOUR];
            let choice = Choice::of(&hours, window, Told { whole, openings });
            let mut told = BTreeMap::<i64, i64>::new();
            if choice.whole {
                hours.iter().for_each(|(number, _)| *told.entry(*number).or_default() += 1);
            }
            let step = if choice.whole { -1 } else { 1 };
            choice.totals.iter().for_each(|number| *told.entry(*number).or_default() += step);
            for (number, found) in &hours {
                let apart = choice.apart.contains(&(*number, *found));
                let total = told.get(number).copied().unwrap_or_default();
                let expected = match found.is_meant(window) {
                    Meant::Yes if openings => (0, true),
                    Meant::Yes => (1, false),
                    Meant::No => (0, false),
                    Meant::Unclear => (0, true),
                };
                prop_assert_eq!((total, apart), expected);
            }
            prop_assert!(choice.totals.len() + usize::from(choice.whole) <= hours.len().max(1));
        }
    }
}
