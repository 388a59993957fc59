//! Where delivery goes on after the server said how far it is. Pure.

use fleetsock_proto::{stream::BatchNumber, time::Timestamp};

/// What the spool can say about the number that the server named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holdings {
    /// The last number that was given out.
    pub(super) given: BatchNumber,
    /// Whether the server acknowledged anything of this numbering.
    pub(super) numbering: Numbering,
    /// The first number after the server's that can still be sent or accounted for, and the walk before it.
    pub(super) next: Option<(BatchNumber, Timestamp)>,
    /// When the walk was that the server's number told of, if that is remembered.
    pub(super) mark: Option<Timestamp>,
    /// The same of the last number before `next`, which may have told of the same walk as that one.
    pub(super) last_mark: Option<Timestamp>,
    /// The last walk that was told of.
    pub(super) until: Timestamp,
}

/// What is known of a numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Numbering {
    /// The spool was lost, and with it the numbers that were used before: this one may be another one's twin.
    Guessed,
    /// Nobody else has seen a batch of it.
    Fresh,
    /// The server acknowledged batches of it.
    Shared,
}

/// How delivery goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    /// With what comes after the server's number.
    InOrder,
    /// The same, after telling that these numbers of the numbering are lost: the server forgot what it had acknowledged.
    After {
        /// First and last.
        missing: (u64, u64),
        /// The time that they told of.
        since: Timestamp,
        /// Its end.
        until: Timestamp,
    },
    /// The server is ahead of a numbering that it has not seen: what is held gets the next numbering.
    Renumber {
        /// The numbering.
        epoch: u64,
    },
    /// What is held does not fit to what the server has: a new numbering, from a snapshot on.
    Anew {
        /// The numbering.
        epoch: u64,
    },
}

/// Decides how delivery goes on when the server has everything up to `last` and nothing beyond.
pub(super) fn resume(last: BatchNumber, held: &Holdings) -> Resumption {
    let Holdings { given, numbering, next, mark, last_mark, until } = *held;
    let epoch = last.epoch.max(given.epoch) + 1;
    let twin = numbering == Numbering::Guessed && last.epoch >= given.epoch;
    if last > given || twin {
        return match numbering {
            Numbering::Guessed | Numbering::Fresh => Resumption::Renumber { epoch },
            Numbering::Shared => Resumption::Anew { epoch },
        };
    }
    let nothing_given = given.seq == 0;
    let (first, next_since) = match next {
        None if last == given || nothing_given => return Resumption::InOrder,
        // Everything was acknowledged once, and the server forgot.
        None => (BatchNumber { seq: given.seq + 1, ..given }, until),
        Some(next) => next,
    };
    let begins_epoch = first.epoch > last.epoch && first.seq == 1;
    let follows = first.epoch == last.epoch && first.seq <= last.seq + 1;
    match mark {
        _ if begins_epoch || follows => Resumption::InOrder,
        Some(since) if first.epoch == last.epoch => Resumption::After {
            missing: (last.seq + 1, first.seq - 1),
            since: since.min(next_since),
            until: next_since.max(last_mark.unwrap_or(next_since)),
        },
        _ => Resumption::Anew { epoch },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn number((epoch, seq): (u64, u64)) -> BatchNumber {
        BatchNumber { epoch, seq }
    }

    #[test]
    fn delivery_goes_on_where_the_server_is_or_says_why_not() {
        use Numbering::{Fresh, Guessed, Shared};
        use Resumption::{After, Anew, InOrder, Renumber};
        let after = |missing, since, until| After { missing, since: at(since), until: at(until) };
        for (case, last, given, numbering, next, mark, expected) in [
            ("a new host", (0, 0), (1, 3), Guessed, Some((1, 1)), None, InOrder),
            ("nothing was given out yet", (4, 9), (5, 0), Fresh, None, None, InOrder),
            ("all is delivered", (5, 9), (5, 9), Shared, None, Some(9), InOrder),
            ("an answer was lost", (5, 7), (5, 9), Shared, Some((5, 8)), None, InOrder),
            ("the run before left batches", (4, 7), (5, 2), Fresh, Some((4, 8)), None, InOrder),
            ("the run before left nothing", (4, 7), (5, 2), Fresh, Some((5, 1)), None, InOrder),
            ("a gap begins before what was delivered", (5, 7), (5, 20), Shared, Some((5, 3)), None, InOrder),
            ("an older backup", (5, 4), (5, 9), Shared, Some((5, 8)), Some(44), after((5, 7), 44, 60)),
            ("an older backup, all was delivered", (5, 4), (5, 9), Shared, None, Some(44), after((5, 9), 44, 99)),
            ("an older backup, long ago", (5, 4), (5, 9), Shared, Some((5, 8)), None, Anew { epoch: 6 }),
            ("a backup from before this run", (4, 7), (5, 9), Shared, Some((5, 8)), Some(44), Anew { epoch: 6 }),
            ("a backup from before this run, all delivered", (4, 7), (5, 9), Shared, None, Some(44), Anew { epoch: 6 }),
            ("an empty server", (0, 0), (5, 9), Shared, Some((5, 8)), None, Anew { epoch: 6 }),
            ("an empty server, nothing was delivered", (0, 0), (5, 9), Fresh, Some((5, 1)), None, InOrder),
            ("the spool was lost", (7, 3), (1, 5), Guessed, Some((1, 1)), None, Renumber { epoch: 8 }),
            (
                "the spool was lost, numbers coincide",
                (1, 3),
                (1, 5),
                Guessed,
                Some((1, 4)),
                None,
                Renumber { epoch: 2 },
            ),
            ("an older state folder", (7, 3), (5, 2), Fresh, None, None, Renumber { epoch: 8 }),
            ("an older state folder, in use", (5, 30), (5, 20), Shared, None, None, Anew { epoch: 6 }),
        ] {
            let held = Holdings {
                given: number(given),
                numbering,
                next: next.map(|next| (number(next), at(60))),
                mark: mark.map(at),
                last_mark: None,
                until: at(99),
            };
            assert_eq!(resume(number(last), &held), expected, "{case}");
        }
    }

    #[test]
    fn what_is_lost_of_a_walk_whose_rest_is_still_held_is_lost_until_its_end() {
        let held = |last_mark| Holdings {
            given: number((5, 9)),
            numbering: Numbering::Shared,
            next: Some((number((5, 8)), at(60))),
            mark: Some(at(44)),
            last_mark: Some(at(last_mark)),
            until: at(99),
        };
        for (last_mark, until) in [(60, 60), (62, 62), (58, 60)] {
            let expected = Resumption::After { missing: (5, 7), since: at(44), until: at(until) };
            assert_eq!(resume(number((5, 4)), &held(last_mark)), expected);
        }
    }
}
