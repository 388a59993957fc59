//! Which of the sums of a file are read for a window: as few as tell it.

use super::{Hour, Meant};

/// Sums that are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) enum Stored {
    /// Those of all hours of the file together.
    Whole,
    /// Those of a run of hours together, by its number.
    Run(i64),
    /// Those of an hour, by its number.
    Hour(i64),
    /// Those of what was open when an hour began, by their number.
    Open(i64),
}

/// Consecutive hours of a file of which there also are sums together.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) struct Run {
    pub(in crate::history::sqlite) number: i64,
    /// The first hour and the last.
    pub(in crate::history::sqlite) hours: (i64, i64),
}

/// What is told of a file, and what is asked for.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) struct Told<'a> {
    /// Whether there are sums of all of its hours together.
    pub(in crate::history::sqlite) whole: bool,
    /// The runs of its hours, in their order.
    pub(in crate::history::sqlite) runs: &'a [Run],
    /// Where the window ends with the beginning of an hour: the number of the sums of what was open then, and the hour.
    pub(in crate::history::sqlite) open: Option<(i64, i64)>,
    /// Whether it matters when sessions opened.
    pub(in crate::history::sqlite) openings: bool,
}

/// What is read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Choice {
    /// The sums whose totals are added, and those that are taken off, each of which is part of one that is added.
    pub(in crate::history::sqlite) added: Vec<Stored>,
    pub(in crate::history::sqlite) taken_off: Vec<Stored>,
    /// The hours of which is read apart what opened when, by their numbers.
    pub(in crate::history::sqlite) apart: Vec<(i64, Hour)>,
}

impl Choice {
    /// What is read of these hours, each with its number and in their order, for a window: all of the file where there are sums of
    /// more than one together.
    pub(in crate::history::sqlite) fn of(hours: &[(i64, Hour)], window: [i64; 3], told: Told<'_>) -> Choice {
        let open = told.open.filter(|_| !told.openings);
        let judged = |hour: &Hour| match open {
            // Of what closed from then on is meant what was open then, which is told together.
            Some((_, first)) if hour.closed >= first => Meant::No,
            _ => hour.is_meant(window),
        };
        let with = |wanted: Meant| hours.iter().filter(move |(_, hour)| judged(hour) == wanted).copied();
        let unclear = || with(Meant::Unclear);
        if told.openings {
            return Choice { apart: with(Meant::Yes).chain(unclear()).collect(), ..Choice::default() };
        }
        let stretches = stretches(hours, told.runs, |hour| judged(hour) == Meant::Yes);
        let choice = |added: &[Stored]| {
            let open = open.map(|(number, _)| Stored::Open(number));
            Choice {
                added: added.iter().copied().chain(open).collect(),
                taken_off: Vec::new(),
                apart: unclear().collect(),
            }
        };
        let one_by_one = stretches.iter().fold(choice(&[]), Stretch::add_to);
        if told.whole {
            let off_the_whole = stretches.iter().fold(choice(&[Stored::Whole]), Stretch::take_off);
            if off_the_whole.totals() < one_by_one.totals() {
                return off_the_whole;
            }
        }
        one_by_one
    }

    /// How many totals are read.
    const fn totals(&self) -> usize {
        self.added.len() + self.taken_off.len()
    }

    /// Whether nothing is.
    pub(in crate::history::sqlite) const fn is_empty(&self) -> bool {
        self.totals() == 0 && self.apart.is_empty()
    }
}

/// Consecutive hours: those of a run, or all that are in none.
#[derive(Debug, Default)]
struct Stretch {
    run: Option<i64>,
    meant: Vec<Stored>,
    others: Vec<Stored>,
}

fn stretches(hours: &[(i64, Hour)], runs: &[Run], is_meant: impl Fn(&Hour) -> bool) -> Vec<Stretch> {
    let run_of = |hour: &Hour| {
        let found = runs.get(runs.partition_point(|run| run.hours.1 < hour.closed))?;
        (found.hours.0 <= hour.closed).then_some(found.number)
    };
    let mut stretches: Vec<Stretch> = Vec::new();
    for (number, hour) in hours {
        let run = run_of(hour);
        if stretches.last().is_none_or(|last| last.run != run) {
            stretches.push(Stretch { run, ..Stretch::default() });
        }
        let Some(Stretch { meant, others, .. }) = stretches.last_mut() else { continue };
        let among = if is_meant(hour) { meant } else { others };
        among.push(Stored::Hour(*number));
    }
    stretches
}

impl Stretch {
    /// Adds those that are meant.
    fn add_to(mut choice: Choice, Stretch { run, meant, others }: &Stretch) -> Choice {
        read_fewest(*run, (meant, others), (&mut choice.added, &mut choice.taken_off));
        choice
    }

    /// Takes those off that are not meant.
    fn take_off(mut choice: Choice, Stretch { run, meant, others }: &Stretch) -> Choice {
        read_fewest(*run, (others, meant), (&mut choice.taken_off, &mut choice.added));
        choice
    }
}

/// Reads the hours of a stretch that are wanted, or its run and the rest back off it, whichever is fewer.
fn read_fewest(
    run: Option<i64>,
    (wanted, rest): (&[Stored], &[Stored]),
    (read, read_back): (&mut Vec<Stored>, &mut Vec<Stored>),
) {
    match run {
        Some(run) if 1 + rest.len() < wanted.len() => {
            read.push(Stored::Run(run));
            read_back.extend(rest);
        }
        _ => read.extend(wanted),
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

    /// The hours in runs of so many.
    fn in_runs(hours: &[(i64, Hour)], of: usize) -> Vec<Run> {
        let ends = |run: &[(i64, Hour)]| (run[0].1.closed, run[run.len() - 1].1.closed);
        (1..).zip(hours.chunks(of)).map(|(number, run)| Run { number, hours: ends(run) }).collect()
    }

    fn from(begin: i64, end: i64) -> [i64; 3] {
        [begin * HOUR - 1, i64::MAX, end * HOUR]
    }

    #[test]
    fn of_most_of_a_file_the_rest_is_taken_off_the_whole() {
        let hours: Vec<_> = (0..24).map(|closed| hour(closed, 2)).collect();
        let of = |window, whole| Choice::of(&hours, window, Told { whole, runs: &[], open: None, openings: false });
        let whole = |less: &[i64]| Choice {
            added: vec![Stored::Whole],
            taken_off: less.iter().copied().map(Stored::Hour).collect(),
            apart: vec![],
        };
        assert_eq!(of(from(1, 24), true), whole(&[100]));
        assert_eq!(of(from(1, 24), false).added.len(), 23);
        // Of 10 and 11 o'clock some opened before: these are taken off as well, and told apart.
        let early = of(from(0, 10), true);
        assert_eq!((early.added.len(), early.taken_off.len(), early.apart.len()), (10, 0, 2));
        assert!(!early.added.contains(&Stored::Whole));
        assert!(of(from(30, 40), true).is_empty());
        assert_eq!(of(from(-9, 40), true), whole(&[]));
    }

    #[test]
    fn of_half_a_file_few_runs_are_read() {
        let hours: Vec<_> = (0..25).map(|closed| hour(closed, 0)).collect();
        let runs = in_runs(&hours, 5);
        let of = |begin, end| {
            let told = Told { whole: true, runs: &runs, open: None, openings: false };
            let choice = Choice::of(&hours, from(begin, end), told);
            (choice.added, choice.taken_off)
        };
        use Stored::{Hour, Run, Whole};
        assert_eq!(of(0, 10), (vec![Run(1), Run(2)], vec![]));
        assert_eq!(of(0, 9), (vec![Run(1), Run(2)], vec![Hour(109)]));
        assert_eq!(of(9, 20), (vec![Hour(109), Run(3), Run(4)], vec![]));
        assert_eq!(of(6, 25), (vec![Whole], vec![Run(1), Hour(105)]));
        assert_eq!(of(4, 25), (vec![Whole, Hour(104)], vec![Run(1)]));
        let all = (0..26).flat_map(|begin| (begin..26).map(move |end| (begin, end)));
        let reads = all.map(|(begin, end)| of(begin, end)).map(|(added, taken_off)| added.len() + taken_off.len());
        assert_eq!(reads.max(), Some(7));

        let hours: Vec<_> = (0..30).map(|closed| hour(closed, 2)).collect();
        let runs = in_runs(&hours, 5);
        let all = (0..30).flat_map(|begin| (begin + 1..30).map(move |end| (begin, end)));
        let choices = all.map(|(begin, end)| {
            let told = Told { whole: true, runs: &runs, open: Some((7, end)), openings: false };
            Choice::of(&hours, from(begin, end), told)
        });
        let choices: Vec<Choice> = choices.collect();
        assert!(choices.iter().all(|choice| choice.apart.is_empty()), "nobody asks what opened when");
        assert_eq!(choices.iter().map(Choice::totals).max(), Some(8));
    }

    proptest! {
        #[test]
        fn what_is_read_tells_each_hour_once(
            earlier in btree_map(-9_i64..9, 0_i64..4, 0..15), begin in -9_i64..9, length in 0_i64..15, at in 0_i64..2,
            in_run in 0_usize..6, whole: bool, openings: bool, is_open: bool
        ) {
            let hours: Vec<_> = earlier.into_iter().map(|(closed, earlier)| hour(closed, earlier)).collect();
            let runs = if in_run == 0 { Vec::new() } else { in_runs(&hours, in_run) };
            let window = [begin * HOUR - at, i64::MAX, (begin + length) * HOUR];
            let open = is_open.then_some((7, begin + length));
            let choice = Choice::of(&hours, window, Told { whole, runs: &runs, open, openings });
            let open = open.filter(|_| !openings);
            let hours_of = |stored: &Stored| -> Vec<i64> {
                let run = |(first, last): (i64, i64)| {
                    let within = hours.iter().filter(move |(_, hour)| (first..=last).contains(&hour.closed));
                    within.map(|(number, _)| *number).collect()
                };
                match stored {
                    Stored::Whole => run((i64::MIN, i64::MAX)),
                    Stored::Run(number) => run(runs.iter().find(|run| run.number == *number).unwrap().hours),
                    Stored::Hour(number) => vec![*number],
                    Stored::Open(_) => vec![],
                }
            };
            let mut told = BTreeMap::<i64, i64>::new();
            for (all, step) in [(&choice.added, 1), (&choice.taken_off, -1)] {
                all.iter().flat_map(hours_of).for_each(|number| *told.entry(number).or_default() += step);
            }
            for (number, found) in &hours {
                let apart = choice.apart.contains(&(*number, *found));
                let total = told.get(number).copied().unwrap_or_default();
                let expected = match found.is_meant(window) {
                    _ if open.is_some_and(|(_, first)| found.closed >= first) => (0, false),
                    Meant::Yes if openings => (0, true),
                    Meant::Yes => (1, false),
                    Meant::No => (0, false),
                    Meant::Unclear => (0, true),
                };
                prop_assert_eq!((total, apart), expected);
            }
            prop_assert_eq!(choice.added.iter().filter(|of| **of == Stored::Open(7)).count(), usize::from(open.is_some()));
            prop_assert!(choice.totals() <= hours.len().max(1) + 1);
        }
    }
}
