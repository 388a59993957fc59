//! New sessions: the first of their kind that opened within a window, where none of that kind was there since a baseline began.
//!
//! Sessions are of one kind when host, direction, peer, protocol and service are the same. What was open in the window is looked
//! at once, and held are only the kinds and where the first of each is. Then the newest comes first, and only as long as more are
//! wanted each is looked for among what closed between the baseline and the window: in all sealed files that tell their kinds, one pass
//! of each for as many as may be wanted, and what these leave open by the indexes of peers, in the host's own blocks or rows.

use std::iter::zip;

use fleetsock_proto::{
    question::{SessionQuestion, SessionTime},
    session::Session,
    time::Timestamp,
};

use self::{
    before::Before,
    kinds::{First, Kinds},
};
use super::{Search, looking::At};
use crate::history::{
    HistoryError,
    sqlite::{
        questions::{Reader, outlet::Wanted},
        roster::{Places, Selection},
    },
};

mod before;
mod kinds;
mod seen;

/// Kinds that are looked for together, in one pass of each file: at first as many as are wanted, then twice as many each time.
const FEWEST_TOGETHER: usize = 128;
const MOST_TOGETHER: usize = 128 * 1024;
/// Sessions that are read together, about 300 bytes each: those of a block at once.
const READ_TOGETHER: usize = 32 * 1024;
/// Where so many or fewer are wanted, the window is looked at in parts, of which the last is so much shorter than it.
const FEW: usize = 10_000;
const PARTS: i64 = 64;

/// Between which times sessions opened that may be new, both included, and since when none like them was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite::questions) struct Span {
    pub(in crate::history::sqlite::questions) since: Timestamp,
    pub(in crate::history::sqlite::questions) until: Option<Timestamp>,
    pub(in crate::history::sqlite::questions) baseline: Timestamp,
}

impl Span {
    /// The same in parts, the last one first, of which each is twice as long as the one after it: whatever is new in it was not there
    /// before it, neither in an earlier part nor before all of them. As they are few, all of them are hardly more to look at.
    fn in_parts(self, now: Timestamp) -> impl Iterator<Item = Span> {
        let Span { since, until, baseline } = self;
        let (begin, end) = (since.as_micros(), until.unwrap_or(now).as_micros());
        let shortest = (end.saturating_sub(begin) / PARTS).max(1);
        let begin_of = move |lengths: i64| begin.max(end.saturating_sub(shortest.saturating_mul(lengths)));
        let mut next = Some((until, 1));
        std::iter::from_fn(move || {
            let (until, lengths) = next.take()?;
            let part = begin_of(lengths);
            if part > begin {
                next = Some((Some(Timestamp::from_micros(part - 1)), 2 * lengths + 1));
            }
            Some(Span { since: Timestamp::from_micros(part), until, baseline })
        })
    }
}

/// Shows the sessions that are meant and new, those that opened last first, for as long as they are wanted: about so many.
pub(in crate::history::sqlite::questions) fn each_new(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (asked, span, wanted): (&SessionQuestion, &Span, usize),
    now: Timestamp,
    mut show: impl FnMut(Session) -> Result<Wanted, HistoryError>,
) -> Result<(), HistoryError> {
    if wanted > FEW {
        return each_within(reader, selection, places, (asked, *span, wanted), &mut show).map(drop);
    }
    for part in span.in_parts(now) {
        if each_within(reader, selection, places, (asked, part, wanted), &mut show)? == Wanted::NoMore {
            break;
        }
    }
    Ok(())
}

fn each_within(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (asked, span, wanted): (&SessionQuestion, Span, usize),
    show: &mut dyn FnMut(Session) -> Result<Wanted, HistoryError>,
) -> Result<Wanted, HistoryError> {
    let Span { since, until, baseline } = span;
    let within = SessionQuestion { time: SessionTime::Within { since, until }, ..asked.clone() };
    let mut window = Search::new(reader, selection, places, &within)?;
    let mut kinds = Kinds::opened_since(since);
    window.look(selection, &mut kinds)?;
    let (mut firsts, others) = kinds.firsts();
    if firsts.is_empty() {
        return Ok(Wanted::More);
    }
    // Whatever opened before the window and closed later was open in it, and was seen.
    let time = SessionTime::Within { since: baseline, until: Some(since) };
    let before = SessionQuestion { time, closed_before: Some(since), ..asked.clone() };
    let mut before = Before::new(Search::new(reader, selection, places, &before)?)?;
    // One more says that there are more; it is known when the one after it comes.
    let enough = wanted.saturating_add(2);
    let mut together = enough.clamp(FEWEST_TOGETHER, MOST_TOGETHER);
    while !firsts.is_empty() {
        let some = newest(&mut firsts, together);
        let is_new = before.have_none(&some)?;
        let new = zip(&some, is_new).filter_map(|(first, is_new)| is_new.then_some(first));
        let new: Vec<(i64, At)> = new
            .flat_map(|First { kind, at, .. }| {
                let at_once = others.get(kind).into_iter().flatten();
                at_once.chain([at]).map(|at| (kind.host_id, *at))
            })
            .collect();
        // Not more than may be wanted, of which each would be in a block of its own.
        for some in new.chunks(enough.min(READ_TOGETHER)) {
            // One is gone when its file was dropped meanwhile.
            for one in window.sessions_at(some)?.into_iter().flatten() {
                if show(window.shown(&one)?)? == Wanted::NoMore {
                    return Ok(Wanted::NoMore);
                }
            }
        }
        together = (2 * together).min(MOST_TOGETHER);
    }
    Ok(Wanted::More)
}

/// Takes out so many that opened last, the last one first.
fn newest(firsts: &mut Vec<First>, count: usize) -> Vec<First> {
    let rest = firsts.len().saturating_sub(count);
    // They are not sorted as long as few are wanted of many.
    if rest > 0 {
        firsts.select_nth_unstable(rest);
    }
    let mut newest = firsts.split_off(rest);
    newest.sort_unstable_by(|one, other| other.cmp(one));
    newest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_span_follow_each_other_from_its_end_to_its_beginning() {
        let at = Timestamp::from_micros;
        for (since, until, now) in
            [(1000, Some(7000), 9000), (1000, None, 7000), (5, Some(5), 5), (5, Some(3), 9), (5, None, 2)]
        {
            let span = Span { since: at(since), until: until.map(at), baseline: at(-77) };
            let parts: Vec<Span> = span.in_parts(at(now)).collect();
            assert_eq!((parts[0].until, parts[parts.len() - 1].since), (span.until, span.since));
            assert!(parts.iter().all(|part| part.baseline == at(-77)));
            for two in parts.windows(2) {
                assert_eq!(two[1].until, Some(at(two[0].since.as_micros() - 1)));
            }
            assert!(parts.len() <= 7, "{}", parts.len());
        }
        let parts: Vec<Span> =
            Span { since: at(0), until: Some(at(6400)), baseline: at(-77) }.in_parts(at(1)).collect();
        assert_eq!(
            parts.iter().map(|part| part.since.as_micros()).collect::<Vec<_>>(),
            [6300, 6100, 5700, 4900, 3300, 100, 0]
        );
    }
}
