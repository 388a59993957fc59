//! What is stored, held against what was observed.
//!
//! The model is [`Expected`], which the history's own model test uses as well: it gets every batch that went into a spool,
//! each once and in order. When the last walk was of which the server knew before an agent ended depends on which heartbeat
//! arrived; so that is what differs between two models, one that knows of batches only and one that knows of every walk. What
//! is stored must lie between them, and is the same in everything else.
//!
//! A batch that is not stored was dropped by its spool for want of room, and the time that it told of is in a gap: in one that
//! spans nothing but what was dropped, and with the numbers of all of them ([`judge_losses`]). After a restore it can also be
//! one that the server forgot; then its time is in some gap.

use std::{collections::BTreeSet, sync::Arc};

use fleetsock_proto::{
    answer::{Cover, Gap, GapReason},
    host::HostId,
    listener::Listener,
    question::{CoverageQuestion, PortQuestion, SessionQuestion, SessionTime},
    session::Session,
    socket::Known,
    stream::BatchNumber,
    time::Timestamp,
};
use fleetsock_server::history::{History, sqlite::SqliteHistory};
use tokio::sync::mpsc;

use super::agent::{Deed, Place};
use crate::model::expected::Expected;

/// A row: what is told of it, and a moment that is only known within bounds.
type Row = (String, Option<Timestamp>);

async fn collect<T>(mut chunks: mpsc::Receiver<Vec<T>>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        all.extend(chunk);
    }
    all
}

/// A batch that a walk told of: its number and its time.
type Told = (BatchNumber, (Timestamp, Timestamp));

/// Whether a server knows what it stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    Whole,
    /// A backup took its place.
    Restored,
}

/// Fails when what is stored of a host, of which these batches came, is not what was observed on it.
pub(super) async fn judge(
    store: &Arc<SqliteHistory>,
    (host, place): (HostId, &Place),
    (came, memory): (&BTreeSet<BatchNumber>, Memory),
    now: Timestamp,
) {
    let (mut least, mut most) = (Expected::of(host, &place.name, 0), Expected::of(host, &place.name, 0));
    let mut told: Vec<Told> = Vec::new();
    for deed in place.deeds.borrow().iter() {
        let batch = match deed {
            Deed::Kept(batch) => {
                let number = BatchNumber { epoch: batch.epoch, seq: batch.seq };
                told.push((number, (batch.observed_since, batch.observed_until)));
                Some(batch).filter(|_| came.contains(&number))
            }
            Deed::Displaced(number, time) => {
                told.push((*number, *time));
                None
            }
            Deed::Walked(at) => {
                most.observed(*at);
                continue;
            }
        };
        let (number, time) = told[told.len() - 1];
        for model in [&mut least, &mut most] {
            match batch {
                Some(batch) => model.apply(batch),
                None => model.lose(number.epoch, time),
            }
        }
    }
    for time in [SessionTime::Now, SessionTime::Within { since: Timestamp::MIN, until: None }] {
        let (rows, chunks) = mpsc::channel(1);
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        let (meta, stored) = tokio::join!(store.list_sessions(question, now, rows), collect(chunks));
        meta.unwrap();
        let stored = stored.iter().filter(|row| row.host_id == host).map(session);
        let expected = |model: &Expected| model.sessions(time).iter().map(session).collect();
        same(&format!("sessions {time:?} of {}", place.name), stored.collect(), expected(&least), expected(&most));
    }
    let (rows, chunks) = mpsc::channel(1);
    let (meta, stored) = tokio::join!(store.list_ports(PortQuestion::default(), now, rows), collect(chunks));
    meta.unwrap();
    let stored = stored.iter().filter(|row| row.host_id == host).map(listener).collect();
    let expected = |model: &Expected| model.listeners(None).iter().map(listener).collect();
    same(&format!("open ports of {}", place.name), stored, expected(&least), expected(&most));

    let (gaps, _) = store.list_gaps(CoverageQuestion::default(), now).await.unwrap();
    let gaps: Vec<Gap> = gaps.into_iter().filter(|gap| gap.host == place.name).collect();
    if memory == Memory::Restored {
        return judge_forgotten(place, &told, came, &gaps);
    }
    let is_lossy = told.iter().any(|(number, _)| !came.contains(number));
    judge_losses(place, &told, came, &gaps);
    // A server that was killed does not know any more that something is missing, and finds it by the next digest.
    let is_meant = |reason| reason != GapReason::SpoolFull && !(is_lossy && reason == GapReason::TableDiffered);
    let ended = gaps.iter().filter(|gap| is_meant(gap.reason)).filter_map(|gap| gap.until.map(|until| (gap, until)));
    let stored = ended.map(|(gap, until)| (format!("{until:?} {}", gap.reason), Some(gap.since))).collect();
    let expected = |model: &Expected| {
        let row = |(since, until, reason): &(Timestamp, Timestamp, _)| (format!("{until:?} {reason}"), Some(*since));
        model.gap_ranges().iter().filter(|(_, _, reason)| is_meant(*reason)).map(row).collect()
    };
    same(&format!("gaps of {}", place.name), stored, expected(&least), expected(&most));
}

/// Fails when the time of something that is not stored is neither in gaps nor before everything that is. A walk of which a part
/// is stored counts as observed: how far the history goes is known by walks.
fn judge_forgotten(place: &Place, told: &[Told], came: &BTreeSet<BatchNumber>, gaps: &[Gap]) {
    let unobserved = gaps.iter().filter(|gap| gap.reason.cover() == Cover::NotObserved);
    let mut times: Vec<_> = unobserved.filter_map(|gap| Some((gap.since, gap.until?))).collect();
    let first = told.iter().find(|(number, _)| came.contains(number));
    times.extend(first.map(|(_, (_, until))| (Timestamp::MIN, *until)));
    times.sort_unstable();
    let mut stored_until = Timestamp::MIN;
    for (number, (since, until)) in told {
        if came.contains(number) {
            stored_until = *until;
            continue;
        }
        let since = stored_until.max(*since);
        let is_told = times.iter().any(|(begin, end)| (*begin..=*end).contains(&since));
        let covered = times.iter().fold(since, |covered, (begin, end)| match *begin <= covered {
            true => covered.max(*end),
            false => covered,
        });
        let name = &place.name;
        assert!(
            is_told && covered >= *until,
            "{name}: {number:?} from {since:?} to {until:?} is not stored and not in {times:?}"
        );
    }
}

/// Fails when something did not come that was not dropped, or is in no gap; or a gap spans what was not dropped.
fn judge_losses(place: &Place, told: &[Told], came: &BTreeSet<BatchNumber>, gaps: &[Gap]) {
    let name = &place.name;
    let dropped = place.dropped.borrow();
    let lost: Vec<&Told> = told.iter().filter(|(number, _)| !came.contains(number)).collect();
    let full = gaps.iter().filter(|gap| gap.reason == GapReason::SpoolFull);
    let gaps: Vec<_> = full.map(|gap| (gap.since, gap.until.unwrap(), gap.batches_lost)).collect();
    for (number, (since, until)) in &lost {
        assert!(dropped.contains(number), "{name}: {number:?} did not come and was not dropped");
        let is_told = gaps.iter().any(|(begin, end, _)| begin <= since && until <= end);
        assert!(is_told, "{name}: {number:?} from {since:?} to {until:?} was dropped and is in none of {gaps:?}");
    }
    // Times of neighbours with nothing delivered between them.
    let mut runs: Vec<(BatchNumber, Timestamp, Timestamp)> = Vec::new();
    for (number, (since, until)) in told.iter().filter(|(number, _)| dropped.contains(number)) {
        match runs.last_mut() {
            Some((last, _, end)) if (last.epoch, last.seq + 1) == (number.epoch, number.seq) => {
                (*last, *end) = (*number, *until);
            }
            _ => runs.push((*number, *since, *until)),
        }
    }
    for (since, until, _) in &gaps {
        let is_dropped = runs.iter().any(|(_, begin, end)| begin <= since && until <= end);
        assert!(is_dropped, "{name}: the gap from {since:?} to {until:?} is in none of {runs:?}");
    }
    // What came although it was dropped, because its acknowledgement was late, may be counted or not.
    let counted: u64 = gaps.iter().map(|(_, _, batches)| batches).sum();
    let bounds = lost.len() as u64..=dropped.len() as u64;
    assert!(bounds.contains(&counted), "{name}: {counted} batches are counted as lost of {bounds:?}");
}

/// The end of a life that nobody saw end is bounded; everything else is exact.
fn life(opened: (Timestamp, Known), closed: Option<(Timestamp, Known)>) -> (String, Option<Timestamp>) {
    let opened = format!("{:?} {}", opened.0, opened.1);
    match closed {
        Some((at, Known::Lost)) => (format!("{opened}..lost"), Some(at)),
        closed => (format!("{opened}..{closed:?}"), None),
    }
}

fn session(row: &Session) -> Row {
    let (life, lost_at) = life((row.opened_at, row.opened_known), row.closed);
    let owners: Vec<u32> = row.owners.iter().map(|owner| owner.pid).collect();
    let Session { protocol, local, direction, peer, state, .. } = row;
    (format!("{protocol} {local} {direction} {peer} {state} {life} {owners:?}"), lost_at)
}

fn listener(row: &Listener) -> Row {
    let (life, lost_at) = life((row.opened_at, row.opened_known), row.closed);
    let owners: Vec<u32> = row.owners.iter().map(|owner| owner.pid).collect();
    let Listener { protocol, address, port, .. } = row;
    (format!("{protocol} {address:?} {port} {life} {owners:?}"), lost_at)
}

fn same(what: &str, mut stored: Vec<Row>, mut least: Vec<Row>, mut most: Vec<Row>) {
    for rows in [&mut stored, &mut least, &mut most] {
        rows.sort();
    }
    let texts = |rows: &[Row]| rows.iter().map(|(text, _)| text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&least), texts(&most), "{what}: the models differ in more than bounds");
    let (found, expected) = (texts(&stored), texts(&least));
    if found != expected {
        let missing: Vec<_> = minus(&expected, &found);
        let unexplained: Vec<_> = minus(&found, &expected);
        panic!("{what}: missing {missing:#?}, unexplained {unexplained:#?}");
    }
    for ((stored, least), most) in stored.iter().zip(&least).zip(&most) {
        assert!(
            least.1 <= stored.1 && stored.1 <= most.1,
            "{what}: {stored:?} is not within {:?} and {:?}",
            least.1,
            most.1
        );
    }
}

/// What the first has more often than the second; both are sorted.
fn minus(all: &[String], others: &[String]) -> Vec<String> {
    let mut others = others.to_vec();
    let is_missing = |text: &&String| match others.iter().position(|other| other == *text) {
        Some(place) => {
            others.remove(place);
            false
        }
        None => true,
    };
    all.iter().filter(is_missing).cloned().collect()
}
