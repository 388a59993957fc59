//! Which of the sums of a file are read for a window: as few as tell it.

use super::Scope;
use crate::history::sqlite::sums::{beginning, hour};

/// An hour in which sessions closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Hour {
    pub(in crate::history::sqlite) hour: i64,
    /// Until when those sessions opened, us.
    pub(in crate::history::sqlite) max_opened_at_us: i64,
    /// Whether it is told what was open when the hour began.
    pub(in crate::history::sqlite) open: bool,
}

/// What is read, of sessions of which hours tell that they are meant.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Choice {
    pub(in crate::history::sqlite) added: Vec<Scope>,
    /// Each a part of what is added.
    pub(in crate::history::sqlite) taken_off: Vec<Scope>,
}

impl Choice {
    /// What is read of a file, whose sessions all closed in these hours, in their order: those of the window ([`Span::is_meant`]) whose
    /// hours say so. None where sums do not tell them.
    ///
    /// [`Span::is_meant`]: crate::history::sqlite::cubes::Span::is_meant
    pub(in crate::history::sqlite) fn of(hours: &[Hour], [after, last, until]: [i64; 3]) -> Option<Choice> {
        // Of what has to have closed by some moment, too.
        if last < i64::MAX || hours.is_empty() {
            return None;
        }
        let since = after.saturating_add(1);
        let first = if beginning(hour(since)) == since { hour(since) } else { hour(since).saturating_add(1) };
        let end = hour(until);
        if first > end {
            return None;
        }
        let (earlier, later) = hours.split_at(hours.partition_point(|one| one.hour < end));
        let (others, meant) = earlier.split_at(earlier.partition_point(|one| one.hour < first));
        // Clocks were set.
        if meant.iter().any(|one| one.max_opened_at_us > until) {
            return None;
        }
        let open = match later {
            [] => None,
            // In a window to the last moment of an hour all of that hour are meant, of which it is not told what opened in it.
            _ if beginning(end.saturating_add(1)) == until.saturating_add(1) => return None,
            [next, ..] if next.hour == end && next.open => Some(Scope::Open(end)),
            _ => return None,
        };
        let closed = |hours: &[Hour]| hours.iter().map(|one| Scope::Closed(one.hour)).collect::<Vec<_>>();
        let rest = others.len() + later.len();
        let (mut added, taken_off) = if 1 + rest < meant.len() {
            (vec![Scope::All], closed(&[others, later].concat()))
        } else {
            (closed(meant), Vec::new())
        };
        added.extend(open);
        Some(Choice { added, taken_off })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::cubes::{Meant, Span};

    const HOUR: i64 = 3_600_000_000;

    fn has(scope: Scope, (opened_at_us, closed_at_us): (i64, i64)) -> bool {
        match scope {
            Scope::All => true,
            Scope::Closed(closed) => hour(closed_at_us) == closed,
            Scope::Open(open) => (opened_at_us..=closed_at_us).contains(&beginning(open)),
        }
    }

    fn moment() -> impl Strategy<Value = i64> {
        prop_oneof![(0_i64..8, -2_i64..3).prop_map(|(hour, by)| hour * HOUR + by), 0..8 * HOUR, Just(i64::MAX)]
    }

    proptest! {
        #[test]
        fn what_is_read_tells_each_session_once_that_hours_tell_to_be_meant(
            sessions in vec((0..8 * HOUR, prop_oneof![-HOUR..HOUR, 0..4 * HOUR], 0_i64..4), 1..30),
            window in [moment(), moment()], untold in 0_i64..16
        ) {
            let lives: Vec<(i64, i64)> = sessions
                .into_iter()
                .map(|(opened, lasted, align)| (if align == 0 { opened / HOUR * HOUR } else { opened }, lasted))
                .map(|(opened, lasted)| (opened, opened.saturating_add(lasted)))
                .collect();
            let mut hours = BTreeMap::<i64, Hour>::new();
            for (opened, closed) in &lives {
                let at = hour(*closed);
                let known = hours.entry(at).or_insert(Hour { hour: at, max_opened_at_us: i64::MIN, open: at != untold });
                known.max_opened_at_us = known.max_opened_at_us.max(Span::of(*opened, *closed).opened_us().1);
            }
            let hours: Vec<Hour> = hours.into_values().collect();
            let window = [window[0], i64::MAX, window[1]];
            if let Some(Choice { added, taken_off }) = Choice::of(&hours, window) {
                for life in lives {
                    let times = |scopes: &[Scope]| scopes.iter().filter(|scope| has(**scope, life)).count();
                    let expected = match Span::of(life.0, life.1).is_meant(window) {
                        Meant::Yes => 1,
                        Meant::No | Meant::Unclear => 0,
                    };
                    prop_assert_eq!(times(&added), times(&taken_off) + expected, "{:?}", life);
                }
            }
        }
    }

    fn day() -> Vec<Hour> {
        (0..24).map(|hour| Hour { hour, max_opened_at_us: (hour + 1) * HOUR - 1, open: true }).collect()
    }

    fn of(since: i64, until: i64) -> Option<Choice> {
        Choice::of(&day(), [since - 1, i64::MAX, until])
    }

    #[test]
    fn of_most_of_a_file_the_rest_is_taken_off_the_whole() {
        assert_eq!(
            of(HOUR, i64::MAX),
            Some(Choice { added: vec![Scope::All], taken_off: vec![Scope::Closed(0)] }),
            "to its end"
        );
        let few = of(HOUR + 1, 4 * HOUR + 7).unwrap();
        assert_eq!(few.added, [Scope::Closed(2), Scope::Closed(3), Scope::Open(4)]);
        assert_eq!(of(-HOUR, HOUR).unwrap().added, [Scope::Closed(0), Scope::Open(1)]);
        assert_eq!(of(-HOUR, 0).unwrap().added, [Scope::Open(0)]);
        assert_eq!(of(30 * HOUR, 40 * HOUR), Some(Choice::default()));
    }

    #[test]
    fn what_sums_do_not_tell_is_left_to_the_rows() {
        assert_eq!(of(HOUR + 1, 2 * HOUR - 5), None, "within an hour");
        assert_eq!(of(0, -HOUR), None);
        assert_eq!(of(0, 5 * HOUR - 1), None, "to the last moment of an hour");
        assert_eq!(Choice::of(&day(), [0, 5 * HOUR, 9 * HOUR]), None, "of what closed before something");
        let mut day = day();
        day[3].open = false;
        assert_eq!(Choice::of(&day, [-1, i64::MAX, 3 * HOUR]), None, "more was open than is told");
        assert!(Choice::of(&day, [-1, i64::MAX, 4 * HOUR]).is_some());
        day.remove(5);
        assert_eq!(Choice::of(&day, [-1, i64::MAX, 5 * HOUR + 3]), None, "nothing closed in that hour");
        day[2].max_opened_at_us = 9 * HOUR;
        assert_eq!(Choice::of(&day, [-1, i64::MAX, 4 * HOUR]), None, "one opened after it closed");
        assert_eq!(Choice::of(&[], [-1, i64::MAX, 4 * HOUR]), None);
    }
}
