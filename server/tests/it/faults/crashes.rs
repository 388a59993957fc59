//! kill -9 in each step of what becomes of a file of sessions: a batch is stored, the next file is begun, it is sealed, its
//! sums are made, what they replace is removed, or it is dropped without. Whatever a kill leaves, each session that was
//! acknowledged and is kept is there once, with all that was sent of it or in the sums of its hour, and every file is whole.
//!
//! The process is the history of a server, with its writer and its sealer and without its network (`kill` has that one):
//! only there can days go by within a second. `worker` is its other half.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use fleetsock_server::history::{Applied, History, sqlite::SqliteHistory};

use self::{
    checking::{Sent, check_files, compare, settled},
    steps::{Seen, Step, left, names, steps},
    worker::{ACKNOWLEDGED, FOLDER, HISTORY, HOST, WAY, WORK, Way, acknowledged, batch, it_is_after, options},
};
use crate::{
    engine::{Engine, Rules, World, reopen},
    tell,
};

mod checking;
mod steps;
mod worker;

/// How long a step is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// Kills that may miss a step before one finds it.
const MISSES: usize = 60;
/// Histories that are begun and killed again and again: each has all steps of its way. A long run has so many that it takes
/// some ten minutes; that each begins anew keeps what is compared after a kill small.
const TURNS: usize = 2;
const LONG_TURNS: usize = 80;

/// A history whose sealer works when it is told to.
struct Place {
    folder: tempfile::TempDir,
    pause_ms: AtomicU64,
    way: Way,
}

const NEVER_MS: u64 = 3_600_000;

impl Place {
    fn history(&self) -> PathBuf {
        self.folder.path().join(HISTORY)
    }
}

impl Engine for Place {
    type Store = SqliteHistory;

    fn prepare() -> Place {
        Place { folder: tempfile::tempdir().unwrap(), pause_ms: AtomicU64::new(NEVER_MS), way: Way::Sums }
    }

    async fn open(&self, _rules: Rules) -> SqliteHistory {
        reopen(&self.history(), &options(self.way, Duration::from_millis(self.pause_ms.load(Relaxed))))
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }
}

fn start(folder: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.args(["--exact", WORK, "--ignored", "--nocapture"]).env(FOLDER, folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Lets a process work on after so many batches until a step shows, and kills it so much later; the names of the files that
/// were there before.
fn work_and_kill(folder: &Path, batches: u64, step: Step, later: Duration) -> BTreeSet<String> {
    fs::write(folder.join(ACKNOWLEDGED), format!("{batches}\n")).unwrap();
    let before = Seen::now(folder);
    let mut child = start(folder);
    let mut last = Seen::now(folder);
    let begun = Instant::now();
    let shown = loop {
        let now = Seen::now(folder);
        if step.shows([&before, &last, &now]) {
            break Ok(());
        }
        last = now;
        if let Some(status) = child.try_wait().unwrap() {
            break Err(format!("it ended by itself: {status}"));
        }
        if begun.elapsed() > PATIENCE {
            break Err(format!("{step:?} does not come: {last:?}"));
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    if shown.is_ok() {
        std::thread::sleep(later);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    shown.unwrap();
    before.names
}

/// Starts what was killed and holds what it tells against what was sent; whether a batch is stored that was not acknowledged.
async fn restart(world: &mut World<Place>, sent: &mut Sent) -> bool {
    let folder = world.engine.folder.path().to_owned();
    let known = acknowledged(&folder);
    it_is_after(known);
    world.begin().await;
    let names = names(&world.engine.history());
    assert!(!names.iter().any(|name| name.ends_with("unfinished")), "{names:?}");
    let stored = world.store().last_batch(sent.host).await.unwrap().seq;
    assert!(stored == known || stored == known + 1, "{known} was acknowledged last, and {stored} is stored");
    sent.count_up_to(stored);
    compare(world, sent).await;
    stored > known
}

/// Kills a history in each of its steps; how often what was left.
async fn kill_in_each_step(turn: usize, found: &mut BTreeMap<Step, usize>) -> u64 {
    let mut world = World::<Place>::new().await;
    let host = world.host("web1").await.host;
    world.stop().await;
    world.engine.way = if turn.is_multiple_of(2) { Way::Sums } else { Way::Dropping };
    let folder = world.engine.folder.path().to_owned();
    fs::write(folder.join(HOST), host.to_string()).unwrap();
    fs::write(folder.join(WAY), world.engine.way.name()).unwrap();
    let mut sent = Sent::nothing(host);
    let mut kills = 0;
    for step in steps(world.engine.way) {
        let mut misses = 0;
        loop {
            let later = step.later(turn + misses) + Duration::from_micros((turn as u64 * 101 + kills * 37) % 400);
            let before = work_and_kill(&folder, sent.batches, *step, later);
            kills += 1;
            let mut left = left(&world.engine.history(), &before);
            if restart(&mut world, &mut sent).await {
                left.insert(Step::Unacknowledged);
            }
            left.iter().for_each(|step| *found.entry(*step).or_default() += 1);
            world.stop().await;
            check_files(&world.engine.history());
            if left.contains(step) {
                break;
            }
            misses += 1;
            assert!(misses < MISSES, "no kill leaves {step:?}: {found:?}");
        }
    }
    go_on(world, sent).await;
    kills
}

/// It goes on, as if nothing had been.
async fn go_on(mut world: World<Place>, mut sent: Sent) {
    world.engine.pause_ms.store(1, Relaxed);
    it_is_after(sent.batches);
    world.begin().await;
    for seq in sent.batches + 1..=sent.batches + 30 {
        it_is_after(seq);
        let applied = world.store().apply(sent.host, batch(sent.host, seq)).await.unwrap();
        assert_eq!(applied, Applied::Committed);
    }
    sent.count_up_to(sent.batches + 30);
    settled(&world.engine.history());
    compare(&world, &sent).await;
    world.stop().await;
    check_files(&world.engine.history());
}

#[tokio::test]
async fn killed_in_any_step_of_a_file_each_session_is_there_once_as_it_was_sent() {
    let turns = if std::env::var_os("FLEETSOCK_LONG").is_some() { LONG_TURNS } else { TURNS };
    let (begun, mut kills, mut found) = (Instant::now(), 0, BTreeMap::new());
    for turn in 0..turns {
        kills += kill_in_each_step(turn, &mut found).await;
        tell(&format!("{} of {turns}: {kills} kills in {:.0?}; what they left: {found:?}", turn + 1, begun.elapsed()));
    }
}
