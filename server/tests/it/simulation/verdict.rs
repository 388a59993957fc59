//! What is stored, held against what was observed.
//!
//! The model is [`Expected`], which the history's own model test uses as well: it gets every batch that went into a spool,
//! each once and in order. When the last walk was of which the server knew before an agent ended depends on which heartbeat
//! arrived; so that is what differs between two models, one that knows of batches only and one that knows of every walk. What
//! is stored must lie between them, and is the same in everything else.

use std::sync::Arc;

use fleetsock_proto::{
    host::HostId,
    listener::Listener,
    question::{CoverageQuestion, PortQuestion, SessionQuestion, SessionTime},
    session::Session,
    socket::Known,
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

/// Fails when what is stored of a host is not what was observed on it.
pub(super) async fn judge(store: &Arc<SqliteHistory>, host: HostId, place: &Place, now: Timestamp) {
    let (mut least, mut most) = (Expected::of(host, &place.name, 0), Expected::of(host, &place.name, 0));
    for deed in place.deeds.borrow().iter() {
        match deed {
            Deed::Kept(batch) => {
                least.apply(batch);
                most.apply(batch);
            }
            Deed::Walked(at) => most.observed(*at),
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
    let ended = gaps.iter().filter(|gap| gap.host == place.name).filter_map(|gap| gap.until.map(|until| (gap, until)));
    let stored = ended.map(|(gap, until)| (format!("{until:?} {}", gap.reason), Some(gap.since))).collect();
    let expected = |model: &Expected| {
        let row = |(since, until, reason): &(Timestamp, Timestamp, _)| (format!("{until:?} {reason}"), Some(*since));
        model.gap_ranges().iter().map(row).collect()
    };
    same(&format!("gaps of {}", place.name), stored, expected(&least), expected(&most));
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
