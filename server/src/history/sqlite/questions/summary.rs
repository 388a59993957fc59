//! Listeners, sessions and bytes in sum: what is meant is looked at once, and only the groups are held.

use fleetsock_proto::{
    answer::AnswerMeta,
    listener::Listener,
    question::{SessionTime, SummaryQuestion},
    summary::Sum,
    time::Timestamp,
};

use super::{
    Reader, coverage,
    outlet::{Outlet, Sink, Wanted},
    ports, sessions, summed,
};
use crate::history::{
    HistoryError,
    sqlite::roster::{Places, Selection},
    summing::Sums,
};

pub(in crate::history::sqlite) fn summarize(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    question: &SummaryQuestion,
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
    let mut counting = Counting(Sums::new(&question.by, since.unwrap_or(Timestamp::MIN)));
    {
        // One view of the file, so that a session that closes meanwhile is not counted twice.
        let _view = reader.day.unchecked_transaction()?;
        sessions::count(reader, selection, places, question, &mut counting.0)?;
    }
    let sums = summed::count(reader, selection, places, question, &mut counting.0)?;
    if question.counts_listeners() {
        ports::visit_unordered(reader, selection, &question.sockets.filter, time, &mut counting)?;
    }
    for sum in counting.0.ordered() {
        if outlet.push(sum)? == Wanted::NoMore {
            break;
        }
    }
    let meta = AnswerMeta { since, until, sums, ..selection.meta(as_of) };
    coverage::with_gaps(reader, selection, meta, (since.unwrap_or(as_of), until.unwrap_or(as_of)))
}

/// Counts the listeners that it is shown.
struct Counting(Sums);

impl Sink<Listener> for Counting {
    fn push(&mut self, listener: Listener) -> Result<Wanted, HistoryError> {
        self.0.add_listener(&listener).map(|()| Wanted::More)
    }
}
