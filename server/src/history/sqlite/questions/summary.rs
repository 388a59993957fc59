//! Listeners, sessions and bytes in sum: what is meant is looked at once, and only the groups are held.

use std::net::IpAddr;

use fleetsock_proto::{
    answer::{AnswerMeta, SumsKept},
    question::{SessionTime, SummaryQuestion},
    summary::Sum,
    time::Timestamp,
};

use super::{
    Reader, coverage,
    outlet::{Outlet, Wanted},
    ports, sessions, summed,
};
use crate::history::{
    HistoryError,
    sqlite::{
        by_peer,
        roster::{Places, Selection},
    },
    summing::{self, ORDERED_LIMIT, Part, Sums},
};

pub(in crate::history::sqlite) fn summarize(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    (question, group_bytes): (&SummaryQuestion, usize),
    now: Timestamp,
    outlet: &mut Outlet<Sum>,
) -> Result<AnswerMeta, HistoryError> {
    let time = question.sockets.time;
    let (as_of, since, until) = match time {
        SessionTime::Now => (now, None, None),
        SessionTime::At(at) => (at, None, None),
        SessionTime::Within { since, until } => (now, Some(since), until),
    };
    // One view of the names: for each that is looked up by itself the system is asked for a lock.
    let _names = reader.main.unchecked_transaction()?;
    // One view of the file, so that a session that closes meanwhile is not counted twice.
    let _view = reader.day.unchecked_transaction()?;
    let counting = Counting { reader, selection, places, question, group_bytes };
    // One more tells that there were more.
    let most = outlet.left().saturating_add(1);
    let sums = match counting.part(Part::whole(), most) {
        Ok((counted, kept)) => {
            push_all(counted.first(most, &counting.host_with()), outlet)?;
            kept
        }
        Err(HistoryError::TooMuch(_)) if most <= ORDERED_LIMIT => {
            let (first, kept) = counting.in_parts(most)?;
            push_all(first.into_iter(), outlet)?;
            kept
        }
        Err(error) => return Err(error),
    };
    let meta = AnswerMeta { since, until, sums, ..selection.meta(as_of) };
    coverage::with_gaps(reader, selection, meta, (since.unwrap_or(as_of), until.unwrap_or(as_of)))
}

/// What is counted.
struct Counting<'a> {
    reader: &'a Reader,
    selection: &'a Selection,
    places: &'a Places,
    question: &'a SummaryQuestion,
    group_bytes: usize,
}

impl Counting<'_> {
    /// Counts the groups of one part, as many as may be among the first, and tells what is in them of which only sums are kept.
    fn part(&self, part: Part, most: usize) -> Result<(Sums, Option<SumsKept>), HistoryError> {
        let Counting { reader, selection, places, question, group_bytes } = *self;
        let time = question.sockets.time;
        let since = match time {
            SessionTime::Within { since, .. } => since,
            SessionTime::Now | SessionTime::At(_) => Timestamp::MIN,
        };
        let mut counted = Sums::new(&question.by, since, (part, group_bytes));
        let by_peer = sessions::count(reader, selection, places, question, &mut counted)?;
        let kept = summed::count(reader, selection, question, &mut counted)?;
        if question.counts_listeners() {
            ports::count(reader, selection, &question.sockets.filter, time, &mut counted)?;
        }
        if !by_peer.is_empty() {
            let held = counted.held_by_peer();
            let mut rest = by_peer::beside(&by_peer, most, &held, &|| reader.go_on())?;
            let mut looked_at = 0_usize;
            counted.end_by_peer(most, || {
                looked_at += 1;
                if looked_at.is_multiple_of(LOOK_EVERY) {
                    reader.go_on()?;
                }
                let sum = rest.next()?;
                Ok(sum.map(|(peer, counts)| (peer, [counts.sessions, counts.bytes_sent, counts.bytes_received])))
            })?;
        }
        Ok((counted, kept))
    }

    fn host_with(&self) -> impl Fn(IpAddr) -> String {
        |address| self.places.get(&address).cloned().flatten().unwrap_or_default()
    }

    /// The first groups where all of them are more than fit into memory: one part is counted after the other.
    fn in_parts(&self, most: usize) -> Result<(Vec<Sum>, Option<SumsKept>), HistoryError> {
        let mut refused = None;
        for of in PARTS {
            match self.in_parts_of(of, most) {
                Err(error @ HistoryError::TooMuch(_)) => refused = Some(error),
                counted => return counted,
            }
        }
        Err(refused.unwrap_or(HistoryError::Closed))
    }

    fn in_parts_of(&self, of: u64, most: usize) -> Result<(Vec<Sum>, Option<SumsKept>), HistoryError> {
        let (mut first, mut kept) = (Vec::new(), None);
        for part in Part::each(of) {
            let (counted, sums) = self.part(part, most)?;
            first.extend(counted.first(most, &self.host_with()));
            summing::put_into_order(&self.question.by, &mut first);
            first.truncate(most);
            kept = sums;
        }
        Ok((first, kept))
    }
}

/// Peers between two looks at the clock, about a tenth of a millisecond.
const LOOK_EVERY: usize = 1024;

/// Into how many parts groups are split that are too many to be held at once.
const PARTS: [u64; 2] = [4, 16];

fn push_all(sums: impl Iterator<Item = Sum>, outlet: &mut Outlet<Sum>) -> Result<(), HistoryError> {
    for sum in sums {
        if outlet.push(sum)? == Wanted::NoMore {
            break;
        }
    }
    Ok(())
}
