//! What must hold whenever a history is started again, and when nothing is left to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    host::HostId,
    question::{SessionQuestion, SessionTime, SummaryQuestion},
    session::Session,
    summary::Dimension,
    time::Timestamp,
};
use rusqlite::{Connection, OpenFlags};

use super::{
    PATIENCE, Place,
    steps::{COMPLETE, DROPPING, Step, names, parsed, states_in},
    worker::{self, Way, clock, kept_since, sent_of},
};
use crate::{engine::World, scene::at};

/// What was sent, in sum: by hour of opening and process the number of sessions and their bytes.
pub(super) struct Sent {
    pub(super) host: HostId,
    pub(super) batches: u64,
    sums: BTreeMap<(Timestamp, String), [u64; 3]>,
}

impl Sent {
    pub(super) fn nothing(host: HostId) -> Sent {
        Sent { host, batches: 0, sums: BTreeMap::new() }
    }

    pub(super) fn count_up_to(&mut self, batches: u64) {
        for seq in self.batches + 1..=batches {
            for session in sent_of(self.host, seq, seq).into_values() {
                let hour = session.opened_at.as_micros().div_euclid(3_600_000_000) * 3_600_000_000;
                let process = session.owners.first().map(|owner| owner.process.clone()).unwrap_or_default();
                let sums = self.sums.entry((Timestamp::from_micros(hour), process)).or_default();
                let one = [1, session.bytes_sent, session.bytes_received];
                std::iter::zip(sums, one).for_each(|(sum, one)| *sum += one);
            }
        }
        self.batches = batches;
    }
}

pub(super) fn check_files(history: &Path) {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
    let main = Connection::open_with_flags(history.join("main.db"), flags).unwrap();
    let mut statement = main.prepare("SELECT file FROM parts ORDER BY id").unwrap();
    let parts = statement.query_map([], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
    for name in parts.chain(["main.db".to_owned()]) {
        let file = Connection::open_with_flags(history.join(&name), flags).unwrap();
        let word: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(word, "ok", "{name}");
    }
}

/// Holds all that is told against what was sent in so many batches.
pub(super) async fn compare(world: &World<Place>, sent: &Sent) {
    match world.engine.way {
        Way::Sums => {
            compare_sessions(world, sent).await;
            compare_sums(world, sent).await;
        }
        Way::Dropping => compare_kept(world, sent).await,
    }
}

async fn told(world: &World<Place>, since: Timestamp) -> BTreeMap<Timestamp, Session> {
    let question = SessionQuestion { time: SessionTime::Within { since, until: None }, ..SessionQuestion::default() };
    let (rows, _) = world.sessions(question, clock()).await.unwrap();
    let mut told = BTreeMap::new();
    for row in rows {
        assert!(told.insert(row.opened_at, row.clone()).is_none(), "it is there twice: {row:?}");
    }
    assert!(!told.is_empty());
    told
}

/// Each session that is told is one that was sent, as it was sent.
async fn compare_sessions(world: &World<Place>, sent: &Sent) {
    let mut batches = BTreeMap::new();
    for row in told(world, at(-1_000_000)).await.into_values() {
        let seq = worker::number_of(&row);
        let batch = batches.entry(seq).or_insert_with(|| sent_of(sent.host, seq, sent.batches));
        let expected = batch.get(&row.opened_at).unwrap_or_else(|| panic!("nobody sent {row:?}"));
        // Whether the host is heard now is no part of a session.
        let expected = Session { host_state: row.host_state, ..expected.clone() };
        assert_eq!(row, expected, "what was sent is on the right");
    }
}

/// All that is kept is told, once and as it was sent.
async fn compare_kept(world: &World<Place>, sent: &Sent) {
    let since = kept_since(sent.batches);
    let is_kept = |session: &Session| session.closed.is_none_or(|(at, _)| at >= since);
    let mut expected: BTreeMap<Timestamp, Session> = BTreeMap::new();
    for seq in sent.batches.saturating_sub(Way::KEPT_BATCHES + 1).max(1)..=sent.batches {
        expected.extend(sent_of(sent.host, seq, sent.batches).into_iter().filter(|(_, session)| is_kept(session)));
    }
    let told = told(world, since).await;
    let openings = |all: &BTreeMap<Timestamp, Session>| all.keys().copied().collect::<BTreeSet<_>>();
    assert_eq!(openings(&told), openings(&expected), "what is told, and what was sent");
    for (opened_at, row) in told {
        let expected = Session { host_state: row.host_state, ..expected[&opened_at].clone() };
        assert_eq!(row, expected, "what was sent is on the right");
    }
}

async fn compare_sums(world: &World<Place>, sent: &Sent) {
    let time = SessionTime::Within { since: at(-1_000_000), until: None };
    let question = SessionQuestion { time, ..SessionQuestion::default() };
    let by = vec![Dimension::Hour, Dimension::Process];
    let (sums, _) = world.sums(SummaryQuestion { sockets: question, by, limit: None }, clock()).await.unwrap();
    let counted: BTreeMap<(Timestamp, String), [u64; 3]> = sums
        .into_iter()
        .map(|sum| {
            let group = (sum.group.hour.unwrap(), sum.group.process.unwrap());
            (group, [sum.sessions, sum.bytes_sent, sum.bytes_received])
        })
        .collect();
    let groups: BTreeSet<&(Timestamp, String)> = counted.keys().chain(sent.sums.keys()).collect();
    for group in groups {
        assert_eq!(counted.get(group), sent.sums.get(group), "{group:?}: what is there, and what was sent");
    }
}

/// Waits until nothing is left to do with files that are complete.
pub(super) fn settled(history: &Path) {
    let begun = Instant::now();
    let main = Connection::open_with_flags(history.join("main.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    loop {
        let (states, names) = (states_in(&main), names(history));
        let step = |name: &String| parsed(name).and_then(|(id, ending)| Step::of(ending, states.get(&id).copied()));
        let is_left = |name: &&String| step(name).is_some() || name.ends_with("unfinished");
        let left: Vec<&String> = names.iter().filter(is_left).collect();
        if left.is_empty() && states.values().all(|state| ![COMPLETE, DROPPING].contains(state)) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{left:?} {states:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
