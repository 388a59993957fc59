//! Sums that are added up and taken off each other.

use super::{What, encoding::Totals};
use crate::history::sqlite::{sealed::Damaged, sums::Counts};

/// Sums as they are stored, and whether they are taken off.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Part {
    pub(in crate::history::sqlite) totals: Vec<u8>,
    pub(in crate::history::sqlite) is_taken_off: bool,
}

/// What was added less what was taken off: below zero as long as the rest is still to come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Balance([i128; 3]);

impl Balance {
    pub(in crate::history::sqlite) fn add(&mut self, other: Balance) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(more);
        }
    }

    /// What is left; more than can be told is the most that can be.
    pub(in crate::history::sqlite) fn counts(self) -> Result<Counts, Damaged> {
        let told = |sum: i128| match u64::try_from(sum) {
            Ok(told) => Ok(told),
            Err(_) if sum > 0 => Ok(u64::MAX),
            Err(_) => Err(Damaged("a part is more than the whole")),
        };
        let [sessions, bytes_sent, bytes_received] = self.0;
        Ok(Counts { sessions: told(sessions)?, bytes_sent: told(bytes_sent)?, bytes_received: told(bytes_received)? })
    }

    /// How many sessions, so far.
    pub(in crate::history::sqlite) const fn sessions(self) -> i128 {
        let [sessions, ..] = self.0;
        sessions
    }

    pub(in crate::history::sqlite) fn taken_off(self) -> Balance {
        Balance(self.0.map(|sum| -sum))
    }
}

impl From<Counts> for Balance {
    fn from(Counts { sessions, bytes_sent, bytes_received }: Counts) -> Balance {
        Balance([sessions, bytes_sent, bytes_received].map(i128::from))
    }
}

/// Shows the balance of these sums. Each ascends, so that what all of them have in common is mostly shown once; where one begins
/// anew, because it was too much to be written at once, it is shown again.
pub(in crate::history::sqlite) fn merge<E: From<Damaged>>(
    parts: &[Part],
    mut show: impl FnMut(What, Balance) -> Result<(), E>,
) -> Result<(), E> {
    let cursors = parts.iter().map(Cursor::of).collect::<Result<Vec<_>, _>>()?;
    let mut cursors: Vec<Cursor<'_>> = cursors.into_iter().flatten().collect();
    while let Some(least) = cursors.iter().map(|cursor| cursor.what).min() {
        let (mut balance, mut damaged) = (Balance::default(), None);
        cursors.retain_mut(|cursor| {
            if cursor.what != least {
                return true;
            }
            balance.add(cursor.balance);
            cursor.advance().unwrap_or_else(|damage| {
                damaged = Some(damage);
                false
            })
        });
        if let Some(damaged) = damaged {
            return Err(damaged.into());
        }
        show(least, balance)?;
    }
    Ok(())
}

/// What is left of sums when all of them were added and taken off, which is not shown before.
#[derive(Debug, Default)]
pub(in crate::history::sqlite) struct Balances(Vec<(What, Balance)>);

impl Balances {
    pub(in crate::history::sqlite) fn add(&mut self, what: What, balance: Balance) {
        self.0.push((what, balance));
    }

    /// Each once.
    pub(in crate::history::sqlite) fn told(mut self) -> Result<Vec<(What, Counts)>, Damaged> {
        // They mostly are in order.
        self.0.sort_by_key(|(what, _)| *what);
        self.0.dedup_by(|(what, more), (before, sum)| {
            let is_same = what == before;
            if is_same {
                sum.add(*more);
            }
            is_same
        });
        self.0.into_iter().map(|(what, balance)| Ok((what, balance.counts()?))).collect()
    }
}

/// The next sum of a part.
struct Cursor<'a> {
    what: What,
    balance: Balance,
    rest: Totals<'a>,
    is_taken_off: bool,
}

impl Cursor<'_> {
    /// None when there are no sums.
    fn of(part: &Part) -> Result<Option<Cursor<'_>>, Damaged> {
        let (what, balance, rest) = (What::default(), Balance::default(), Totals::of(&part.totals));
        let mut cursor = Cursor { what, balance, rest, is_taken_off: part.is_taken_off };
        Ok(cursor.advance()?.then_some(cursor))
    }

    /// Goes on to the next sum; whether there is one.
    fn advance(&mut self) -> Result<bool, Damaged> {
        let Some((what, counts, _)) = self.rest.next()? else { return Ok(false) };
        let balance = Balance::from(counts);
        (self.what, self.balance) = (what, if self.is_taken_off { balance.taken_off() } else { balance });
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::cubes::encoding::{each_total, encode};

    fn counts((sessions, sent, received): (u32, u64, u64)) -> Counts {
        Counts { sessions: sessions.into(), bytes_sent: sent, bytes_received: received }
    }

    /// Sums, which begin anew in the middle or not.
    fn sums() -> impl Strategy<Value = Vec<(What, Counts)>> {
        let some = || vec(((-2_i64..3, 0_i64..4), any::<(u32, u64, u64)>()), 0..9);
        (some(), some()).prop_map(|(mut first, mut second)| {
            [&mut first, &mut second].iter_mut().for_each(|sums| sums.sort_by_key(|(what, _)| *what));
            first.into_iter().chain(second).map(|((one, other), sum)| ([one, other], counts(sum))).collect()
        })
    }

    proptest! {
        #[test]
        fn the_balance_is_what_was_added_less_what_was_taken_off(all in vec((sums(), any::<bool>()), 0..6)) {
            let mut expected = BTreeMap::<What, Balance>::new();
            for (what, sum, off) in all.iter().flat_map(|(sums, off)| sums.iter().map(move |(what, sum)| (what, sum, off))) {
                let balance = Balance::from(*sum);
                expected.entry(*what).or_default().add(if *off { balance.taken_off() } else { balance });
            }
            let parts: Vec<Part> =
                all.iter().map(|(sums, off)| Part { totals: encode(sums.iter().copied()), is_taken_off: *off }).collect();
            let mut found = BTreeMap::<What, Balance>::new();
            let mut balances = Balances::default();
            merge(&parts, |what, balance| {
                found.entry(what).or_default().add(balance);
                balances.add(what, balance);
                Ok::<_, Damaged>(())
            })
            .unwrap();
            prop_assert_eq!(&found, &expected);
            let told = |(what, balance): (What, Balance)| Ok((what, balance.counts()?));
            prop_assert_eq!(balances.told(), expected.into_iter().map(told).collect());
        }

        #[test]
        fn of_what_ascends_each_is_shown_once_in_order(one in sums(), other in sums()) {
            let ascending = |mut sums: Vec<(What, Counts)>| {
                sums.sort_by_key(|(what, _)| *what);
                sums.dedup_by_key(|(what, _)| *what);
                Part { totals: encode(sums.into_iter()), is_taken_off: false }
            };
            let mut shown = Vec::new();
            merge(&[ascending(one), ascending(other)], |what, _| {
                shown.push(what);
                Ok::<_, Damaged>(())
            })
            .unwrap();
            prop_assert!(shown.is_sorted_by(|one, next| one < next), "{shown:?}");
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(totals: Vec<u8>, is_taken_off: bool) {
            let each = each_total(&totals, |_, _| Ok::<_, Damaged>(()));
            let mut shown = Vec::new();
            let merged = merge(&[Part { totals, is_taken_off }], |_, balance| {
                shown.push(balance);
                Ok::<_, Damaged>(())
            });
            prop_assert_eq!(merged, each);
            prop_assert!(shown.iter().all(|balance| balance.counts().is_ok() || is_taken_off));
        }
    }

    #[test]
    fn less_than_nothing_is_damage_and_more_than_can_be_told_is_the_most() {
        let most = Balance::from(counts((1, u64::MAX, 7)));
        assert_eq!(most.taken_off().counts(), Err(Damaged("a part is more than the whole")));
        let mut twice = most;
        twice.add(most);
        assert_eq!(twice.counts(), Ok(counts((2, u64::MAX, 14))));
        twice.add(most.taken_off());
        assert_eq!(twice.counts(), Ok(counts((1, u64::MAX, 7))), "nothing was cut on the way");
    }
}
