//! Sessions of each day are in a file of their own, and go with it when they are older than what is kept.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::GapReason,
    batch::BatchKind::{Changes, SnapshotWhole},
    question::{PortQuestion, SessionQuestion, SessionTime},
    socket::Direction,
    time::Timestamp,
};
use fleetsock_server::history::{
    CopyOrder, Heard, History,
    sqlite::{Keeping, Options, Sealing, SqliteHistory, verify},
};
use rusqlite::Connection;

use crate::{
    engine::{Engine, Rules, World, actor, reopen},
    scene::{Agent, Described, at, closed, listener, opened, owner, present, session, session_line},
};

const DAY: i64 = 86_400;

/// The day that it is, of a scene that begins in the middle of one. One test at a time moves it.
static SECOND: AtomicI64 = AtomicI64::new(0);
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn clock() -> Timestamp {
    // Each look is later than the one before, so that it is always time to tidy up.
    at(SECOND.fetch_add(2, Relaxed))
}

/// How often it is looked whether something is to be sealed: not while a test lasts (`sealing.rs` is about that), and soon.
const NEVER_MS: u64 = 3_600_000;
const SOON_MS: u64 = 2;

/// SQLite that keeps what is over for three days.
struct Daily<const SEALED_AFTER_MS: u64 = NEVER_MS>(tempfile::TempDir);

impl<const SEALED_AFTER_MS: u64> Daily<SEALED_AFTER_MS> {
    fn folder(&self) -> PathBuf {
        self.0.path().join("history")
    }

    /// Names of the files with sessions.
    fn files(&self) -> BTreeSet<String> {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("day-")).map(|name| name.replace("-wal", "").replace("-shm", "")).collect()
    }
}

impl<const SEALED_AFTER_MS: u64> Engine for Daily<SEALED_AFTER_MS> {
    type Store = SqliteHistory;

    fn prepare() -> Self {
        Daily(tempfile::tempdir().unwrap())
    }

    async fn open(&self, rules: Rules) -> SqliteHistory {
        let kept = Duration::from_secs(3 * DAY.unsigned_abs());
        let keeping = Keeping { kept: Some(kept), ..Keeping::default() };
        let sealing = Sealing { pause: Duration::from_millis(SEALED_AFTER_MS), stays: Duration::ZERO };
        let options = Options { stale_after: rules.stale_after, keeping, sealing, clock, ..Options::default() };
        reopen(&self.folder(), &options)
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }
}

/// Lets days go by, in each of which a host has a session and a listener that end, beside those that stay.
async fn days_go_by<E: Engine>(world: &World<E>, agent: &mut Agent, days: std::ops::Range<i64>) {
    for day in days {
        SECOND.store(day * DAY, Relaxed);
        let cookie = 100 + day.unsigned_abs();
        let short = session(cookie, "10.0.0.1:40000", Direction::Out, "10.0.0.9:443").since(day * DAY + 10);
        let port = listener(1000 + cookie, "0.0.0.0:8080").since(day * DAY + 10);
        let changes = vec![opened(short.clone()), opened(port.clone())];
        world.tell(agent, Changes, day * DAY + 20, changes).await;
        let changes = vec![closed(short, day * DAY + 30), closed(port, day * DAY + 30)];
        world.tell(agent, Changes, day * DAY + 40, changes).await;
    }
}

async fn since(world: &World<Daily>, second: i64) -> (Vec<String>, Vec<(GapReason, Timestamp, Option<Timestamp>)>) {
    let time = SessionTime::Within { since: at(second), until: None };
    let (rows, meta) =
        world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(100 * DAY)).await.unwrap();
    let over = meta.gaps.iter().filter(|gap| gap.until.is_some());
    let gaps = over.map(|gap| (gap.reason, gap.since, gap.until)).collect();
    (rows.iter().map(session_line).collect(), gaps)
}

#[tokio::test]
async fn a_file_for_each_day_goes_when_it_is_older_than_what_is_kept_and_answers_say_so() {
    let _alone = ALONE.lock().await;
    SECOND.store(0, Relaxed);
    let mut world = World::<Daily>::new().await;
    let mut agent = world.host("web1").await;
    let stays = session(1, "10.0.0.1:22", Direction::In, "10.0.0.7:5000");
    world.tell(&mut agent, SnapshotWhole, 1, vec![opened(stays), opened(listener(2, "0.0.0.0:22"))]).await;
    days_go_by(&world, &mut agent, 0..3).await;
    let (before, gaps) = since(&world, 2).await;
    let short = |day: i64| {
        let [opened, closed] = [10, 30].map(|second| day * DAY + second);
        format!("web1 tcp 10.0.0.1:40000 out 10.0.0.9:443 {opened}(event)..{closed}(event)")
    };
    let open = "web1 tcp 10.0.0.1:22 in 10.0.0.7:5000 0(event)..".to_owned();
    assert_eq!(before, [open.clone(), short(2), short(1), short(0)], "newest first, across files");
    assert_eq!((gaps, world.engine.files().len()), (vec![], 3));

    days_go_by(&world, &mut agent, 3..6).await;
    SECOND.store(5 * DAY + 1000, Relaxed);
    world.restart().await;
    world.tell(&mut agent, Changes, 5 * DAY + 1000, Vec::new()).await;
    // The batch is acknowledged before the writer tidies up; another order waits for that.
    world.hello(agent.host, "web1", at(5 * DAY + 1000), 0).await;
    // What is kept reaches three days back from now.
    let (after, gaps) = since(&world, 2).await;
    assert_eq!(after, [open, short(5), short(4), short(3)]);
    let [(GapReason::Expired, begins, Some(ends))] = gaps[..] else { panic!("{gaps:?}") };
    assert_eq!(begins, at(2), "the window's beginning: the host was observed before it");
    assert!((at(2 * DAY)..at(3 * DAY)).contains(&ends), "{ends:?}");
    assert_eq!(since(&world, 4 * DAY).await.1, [], "nothing of that time is gone");
    assert_eq!(world.engine.files(), ["day-4.db", "day-5.db", "day-6.db"].map(str::to_owned).into());

    let (rows, meta) =
        world.ports(PortQuestion { at: Some(at(DAY + 20)), ..PortQuestion::default() }, at(100 * DAY)).await.unwrap();
    assert_eq!((rows.len(), meta.gaps.len()), (1, 1), "the one that is open, and that others are not kept");
    world.stop().await;
}

#[tokio::test]
async fn what_a_crash_left_of_a_file_is_removed_and_what_was_to_be_dropped_is() {
    let _alone = ALONE.lock().await;
    SECOND.store(0, Relaxed);
    let mut world = World::<Daily>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    days_go_by(&world, &mut agent, 0..2).await;
    world.stop().await;
    // The crash came before the catalogue named the next file, and before one that was dropped was removed.
    fs::write(world.engine.folder().join("day-3.db"), b"half a file").unwrap();
    let main = Connection::open(world.engine.folder().join("main.db")).unwrap();
    main.execute("UPDATE parts SET state = 3 WHERE id = 1", []).unwrap();
    drop(main);
    world.begin().await;
    assert!(!world.engine.files().contains("day-1.db"));
    days_go_by(&world, &mut agent, 2..3).await;
    let (rows, _) = since(&world, 2).await;
    assert_eq!(rows.len(), 2, "{rows:?}");
    world.stop().await;
}

#[tokio::test]
async fn a_history_that_lacks_a_file_of_an_earlier_day_is_refused_and_nothing_is_made_in_its_place() {
    let _alone = ALONE.lock().await;
    SECOND.store(0, Relaxed);
    let mut world = World::<Daily>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    days_go_by(&world, &mut agent, 0..2).await;
    world.stop().await;
    let lost = world.engine.folder().join("day-1.db");
    fs::remove_file(&lost).unwrap();
    let error = SqliteHistory::open(&world.engine.folder(), Options::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("day-1.db: it holds sessions that are kept, and it is missing"), "{error}");
    assert!(!lost.exists());
}

/// Waits until something holds.
fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_has_all_of_what_loses_its_name_while_it_is_made_and_the_room_is_given_back_after_it() {
    let _alone = ALONE.lock().await;
    SECOND.store(0, Relaxed);
    let mut world = World::<Daily<SOON_MS>>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    days_go_by(&world, &mut agent, 0..3).await;
    let has = |name: &str| world.engine.files().contains(name);
    // The rows go when the catalogue names what took their place.
    wait_until("what is complete is sealed", || has("day-2.sealed") && !has("day-2.db"));

    let copy = tempfile::tempdir().unwrap();
    let (begun, goes_on) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let hearer = {
        let (begun, goes_on) = (Arc::clone(&begun), Arc::clone(&goes_on));
        Arc::new(move |_| {
            begun.store(true, Relaxed);
            wait_until("the copy goes on", || goes_on.load(Relaxed));
            Heard::BySomebody
        })
    };
    let copied = {
        let (store, folder) = (Arc::clone(world.store()), copy.path().to_owned());
        let order = CopyOrder { folder, by: actor(1), detail: "backup".to_owned() };
        tokio::spawn(async move { store.copy(order, hearer).await })
    };
    wait_until("the copy begins", || begun.load(Relaxed));
    days_go_by(&world, &mut agent, 3..9).await;
    world.hello(agent.host, "web1", at(8 * DAY + 1000), 0).await;
    // Before another file is sealed it is looked of what the room can be given back.
    wait_until("the day before is sealed", || has("day-8.sealed"));
    assert!(!["day-1.sealed", "day-2.sealed", "day-3.db"].into_iter().any(has), "{:?}", world.engine.files());
    let has_room = || {
        let links =
            fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
        let mut names = links.map(|link| link.to_string_lossy().into_owned());
        names.any(|name| name.starts_with(&*world.engine.folder().to_string_lossy()) && name.contains("day-1.sealed"))
    };
    assert!(has_room());
    goes_on.store(true, Relaxed);
    let copied: BTreeSet<String> = copied.await.unwrap().unwrap().into_iter().map(|file| file.name).collect();
    let expected = ["main.db", "day-1.sealed", "day-2.sealed", "day-3.db"].map(str::to_owned);
    assert_eq!(copied, expected.clone().into());
    assert_eq!(verify(copy.path()).unwrap(), expected);
    wait_until("the room is given back", || !has_room());
    world.stop().await;
}

/// Names of the processes in the dictionary of programs.
fn programs(world: &World<Daily<SOON_MS>>) -> BTreeSet<String> {
    let main = Connection::open(world.engine.folder().join("main.db")).unwrap();
    let mut statement = main.prepare("SELECT process FROM programs").unwrap();
    statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_that_nothing_names_any_more_are_forgotten_and_all_others_are_told() {
    let _alone = ALONE.lock().await;
    SECOND.store(0, Relaxed);
    let mut world = World::<Daily<SOON_MS>>::new().await;
    let mut agent = world.host("web1").await;
    let stays =
        session(1, "10.0.0.1:22", Direction::In, "10.0.0.7:5000").held_by(&[owner("stays", 7), owner("too", 8)]);
    let listens = listener(2, "0.0.0.0:22").held_by(&[owner("listens", 9)]);
    let short = |cookie: u64, name: &str, second: i64| {
        let one = session(cookie, "10.0.0.1:40001", Direction::Out, "10.0.0.8:443").since(second);
        closed(one.held_by(&[owner(name, 70)]), second + 1)
    };
    let first = vec![opened(stays), opened(listens.clone()), short(3, "once", 1), short(4, "again", 1)];
    world.tell(&mut agent, SnapshotWhole, 2, first).await;
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(programs(&world), all(&["again", "listens", "once", "stays", "too"]));
    days_go_by(&world, &mut agent, 0..6).await;
    world.hello(agent.host, "web1", at(5 * DAY + 50), 0).await;
    wait_until("two are forgotten", || programs(&world) == all(&["listens", "stays", "too"]));

    // The open one is not named in the snapshot, so that its row is stored by what is known of it: it was lost.
    world.tell(&mut agent, SnapshotWhole, 5 * DAY + 100, vec![present(listens)]).await;
    days_go_by(&world, &mut agent, 6..8).await;
    world.hello(agent.host, "web1", at(7 * DAY + 1000), 0).await;
    world.tell(&mut agent, Changes, 7 * DAY + 2000, vec![short(5, "again", 7 * DAY + 1500)]).await;

    let time = SessionTime::Within { since: at(0), until: None };
    let (rows, _) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(8 * DAY)).await.unwrap();
    let names: BTreeSet<&str> = rows.iter().flat_map(|row| &row.owners).map(|owner| owner.process.as_str()).collect();
    assert_eq!(names, ["again", "stays", "too"].into(), "{rows:?}");
    days_go_by(&world, &mut agent, 8..10).await;
    world.hello(agent.host, "web1", at(9 * DAY + 1000), 0).await;
    wait_until("those of the lost one are forgotten too", || programs(&world) == all(&["listens", "again"]));
    let (rows, _) = world.ports(PortQuestion::default(), at(10 * DAY)).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.owners[0].process.as_str()).collect::<Vec<_>>(), ["listens"]);
    world.stop().await;
}
