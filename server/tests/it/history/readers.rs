//! Readers: slow ones, those that leave, and many at once.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use fleetsock_proto::{
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Change,
    },
    change::ChangeSubject,
    question::{ChangeQuestion, PortQuestion, SessionQuestion, SessionTime},
    socket::Direction::In,
};
use fleetsock_server::history::{Applied, Bounds, History, HistoryError};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    engine::{Engine, Rules, World},
    scene::{Described, at, closed, listener, opened, present, session},
};

/// A world whose questions may take a short while, with more rows than a reader is sent ahead.
async fn hasty<E: Engine>(time: Duration) -> World<E> {
    let world = World::with(Rules { bounds: Bounds { time, ..Bounds::default() }, ..Rules::default() }).await;
    let mut agent = world.host("web1").await;
    let rows = (1..=2000).flat_map(|n| {
        [
            present(listener(2 * n, &format!("0.0.0.0:{n}"))),
            present(session(2 * n + 1, "10.0.0.1:443", In, &format!("10.0.0.9:{n}"))),
        ]
    });
    let rows: Vec<Change> = rows.collect();
    world.tell(&mut agent, SnapshotWhole, 1, rows).await;
    world
}

pub(super) async fn a_reader_that_goes_away_ends_the_question<E: Engine>() {
    let world = hasty::<E>(Duration::from_secs(60)).await;
    let (rows, mut chunks) = mpsc::channel(1);
    let leave = async {
        chunks.recv().await.unwrap();
        drop(chunks);
    };
    let (ports, ()) = tokio::join!(world.store().list_ports(PortQuestion::default(), at(2), rows), leave);
    assert!(matches!(ports, Err(HistoryError::Abandoned)), "{ports:?}");
    let (rows, chunks) = mpsc::channel(1);
    drop(chunks);
    let sessions = world.store().list_sessions(SessionQuestion::default(), at(2), rows).await;
    assert!(matches!(sessions, Err(HistoryError::Abandoned)), "{sessions:?}");
    assert_eq!(world.listening().await.len(), 2000, "the next one is served as always");
}

pub(super) async fn a_reader_that_never_reads_is_too_slow<E: Engine>() {
    let world = hasty::<E>(Duration::from_millis(500)).await;
    let (rows, _chunks) = mpsc::channel(1);
    let ports = world.store().list_ports(PortQuestion::default(), at(2), rows).await;
    assert!(matches!(ports, Err(HistoryError::TooSlow(_))), "{ports:?}");
    let (rows, _chunks) = mpsc::channel(1);
    let sessions = world.store().list_sessions(SessionQuestion::default(), at(2), rows).await;
    assert!(matches!(sessions, Err(HistoryError::TooSlow(_))), "{sessions:?}");
}

pub(super) async fn a_reader_of_changes_that_never_reads_keeps_no_batch_waiting<E: Engine>() {
    let time = Duration::from_secs(3);
    let world = World::<E>::with(Rules { bounds: Bounds { time, ..Bounds::default() }, ..Rules::default() }).await;
    let mut agent = world.host("web1").await;
    let rows: Vec<Change> = (1..=2000).map(|n| present(listener(n, &format!("0.0.0.0:{n}")))).collect();
    world.tell(&mut agent, SnapshotWhole, 1, rows).await;
    let (rows, mut chunks) = mpsc::channel(1);
    let store = world.store().clone();
    let subjects = ChangeSubject::ALL.to_vec();
    let question = ChangeQuestion { subjects, ..ChangeQuestion::default() };
    let mut asked = tokio::spawn(async move { store.list_changes(question, at(2), rows).await });
    // It has begun, and waits for its reader.
    let _first = chunks.recv().await.unwrap();
    for second in 2..12 {
        world.tell(&mut agent, Changes, second, vec![closed(listener(second as u64, "0.0.0.0:9"), second)]).await;
    }
    assert!(!asked.is_finished(), "the batches were stored while it waited");
    assert!(matches!((&mut asked).await.unwrap(), Err(HistoryError::TooSlow(_))));
}

/// Readers that never read take up all places; one more gets an answer in words, and in time.
pub(super) async fn a_question_that_finds_no_place_is_too_slow<E: Engine>() {
    let world = hasty::<E>(Duration::from_millis(500)).await;
    let mut asking = JoinSet::new();
    for _ in 0..40 {
        let store = world.store().clone();
        asking.spawn(async move {
            let (rows, _chunks) = mpsc::channel(1);
            store.list_ports(PortQuestion::default(), at(2), rows).await.map(drop)
        });
    }
    for outcome in asking.join_all().await {
        assert!(matches!(outcome, Err(HistoryError::TooSlow(_))), "{outcome:?}");
    }
    assert_eq!(world.listening().await.len(), 2000, "all places are free again");
}

/// A batch moves one session on: it closes the one and opens the next. No answer may show a state between.
pub(super) async fn readers_see_whole_batches_while_others_are_stored<E: Engine>() {
    const SESSIONS: u64 = 100;
    const ROUNDS: u64 = 40;
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let life = |cookie: u64| session(cookie, "10.0.0.1:443", In, "10.0.0.9:4000").since(1);
    world.tell(&mut agent, SnapshotWhole, 1, (1..=SESSIONS).map(|n| present(life(n))).collect()).await;
    let over = std::sync::Arc::new(AtomicBool::new(false));
    let mut asking = JoinSet::new();
    for _ in 0..6 {
        let (store, over) = (world.store().clone(), over.clone());
        asking.spawn(async move {
            let (mut asked, mut before) = (0, 0);
            while !over.load(Relaxed) || asked == 0 {
                let time = SessionTime::Within { since: at(0), until: None };
                let question = SessionQuestion { time, ..SessionQuestion::default() };
                let (rows, mut chunks) = mpsc::channel(1);
                let collect = async {
                    let mut rows = Vec::new();
                    while let Some(chunk) = chunks.recv().await {
                        rows.extend(chunk);
                    }
                    rows
                };
                let (meta, rows) = tokio::join!(store.list_sessions(question, at(9), rows), collect);
                meta.unwrap();
                let open = rows.iter().filter(|row| row.closed.is_none()).count() as u64;
                let closed = rows.len() as u64 - open;
                assert_eq!((open, closed % SESSIONS), (SESSIONS, 0));
                assert!(closed >= before, "an answer never goes back in time");
                (asked, before) = (asked + 1, closed);
            }
            asked
        });
    }
    for round in 0..ROUNDS {
        let first = round * SESSIONS + 1;
        let changes = (first..first + SESSIONS).flat_map(|n| [closed(life(n), 2), opened(life(n + SESSIONS))]);
        let batch = agent.batch(Changes, at(2), changes.collect());
        assert_eq!(world.store().apply(agent.host, batch).await.unwrap(), Applied::Committed);
    }
    over.store(true, Relaxed);
    assert!(asking.join_all().await.into_iter().all(|asked| asked > 0));
    assert_eq!(world.all_sessions().await.len() as u64, SESSIONS * (ROUNDS + 1));
    world.stop().await;
}
