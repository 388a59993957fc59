//! kill -9 in each step of what becomes of a file of sessions: the next one is begun, it is sealed, its sums are made, and
//! what they replace is removed. Whatever a kill leaves, each session that was acknowledged is there once, with all that was
//! sent of it or in the sums of its hour, and every file is whole.
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

use fleetsock_proto::{
    host::HostId,
    question::{SessionQuestion, SessionTime, SummaryQuestion},
    session::Session,
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{Applied, History, sqlite::SqliteHistory};
use rusqlite::{Connection, OpenFlags};

use self::worker::{ACKNOWLEDGED, FOLDER, HISTORY, HOST, WORK, batch, clock, it_is_after, options, sent_of};
use crate::{
    engine::{Engine, Rules, World, reopen},
    scene::at,
    tell,
};

mod worker;

/// How long a step is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// After the sign of a step, how much later it is killed, by turns.
const LATER_US: [u64; 7] = [0, 1_000, 500, 4_000, 2_000, 9_000, 14_000];
/// Kills that may miss a step before one finds it.
const MISSES: usize = 60;
/// States of files in the catalogue.
const COMPLETE: i64 = 1;
const SEALED: i64 = 2;
const SUMMED: i64 = 4;

/// What a kill in a step leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// The next file of sessions, which the catalogue does not name.
    NextFile,
    /// A sealed form that is not whole.
    HalfSealed,
    /// One that is whole and not named.
    Sealed,
    /// The file of rows whose sealed form is named.
    RowsLeft,
    /// Sums that are not whole.
    HalfSummed,
    /// Sums that are whole and not named.
    Summed,
    /// The sealed form whose sums are named.
    SealedLeft,
}

const STEPS: [Step; 7] =
    [Step::NextFile, Step::HalfSealed, Step::Sealed, Step::RowsLeft, Step::HalfSummed, Step::Summed, Step::SealedLeft];

impl Step {
    /// Whether it shows in the names of files that it has begun, or is about to.
    fn shows(self, before: &BTreeSet<String>, names: &BTreeSet<String>) -> bool {
        let mut new = names.difference(before).filter_map(|name| parsed(name));
        let is_sealed = |id: i64| names.contains(&format!("day-{id}.sealed"));
        match self {
            Step::NextFile => new.any(|(_, ending)| ending == "db"),
            Step::HalfSealed => new.any(|(id, ending)| ending == "unfinished" && !is_sealed(id)),
            Step::Sealed | Step::RowsLeft => new.any(|(_, ending)| ending == "sealed"),
            Step::HalfSummed => new.any(|(id, ending)| ending == "unfinished" && is_sealed(id)),
            Step::Summed | Step::SealedLeft => new.any(|(_, ending)| ending == "sums"),
        }
    }

    /// The step in which a file like this one is there, where its number has this state in the catalogue.
    fn of(ending: &str, state: Option<i64>) -> Option<Step> {
        match (ending, state) {
            ("db", None) => Some(Step::NextFile),
            ("unfinished", Some(COMPLETE)) => Some(Step::HalfSealed),
            ("sealed", Some(COMPLETE)) => Some(Step::Sealed),
            ("db", Some(SEALED)) => Some(Step::RowsLeft),
            ("unfinished", Some(SEALED)) => Some(Step::HalfSummed),
            ("sums", Some(COMPLETE | SEALED)) => Some(Step::Summed),
            ("sealed", Some(SUMMED)) => Some(Step::SealedLeft),
            _ => None,
        }
    }
}

/// Number and ending of a file of sessions.
fn parsed(name: &str) -> Option<(i64, &str)> {
    let (id, ending) = name.strip_prefix("day-")?.split_once('.')?;
    Some((id.parse().ok()?, ending))
}

fn names(history: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(history).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// A history whose sealer works when it is told to.
struct Place {
    folder: tempfile::TempDir,
    pause_ms: AtomicU64,
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
        Place { folder: tempfile::tempdir().unwrap(), pause_ms: AtomicU64::new(NEVER_MS) }
    }

    async fn open(&self, _rules: Rules) -> SqliteHistory {
        reopen(&self.history(), &options(Duration::from_millis(self.pause_ms.load(Relaxed))))
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }
}

/// What was sent, in sum: by hour of opening and process the number of sessions and their bytes.
struct Sent {
    host: HostId,
    batches: u64,
    sums: BTreeMap<(Timestamp, String), [u64; 3]>,
}

impl Sent {
    fn count_up_to(&mut self, batches: u64) {
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

fn start(folder: &Path, batches: u64) -> Child {
    fs::write(folder.join(ACKNOWLEDGED), format!("{batches}\n")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    let command = command.args(["--exact", WORK, "--ignored", "--nocapture"]).env(FOLDER, folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
}

/// Lets a process work on after so many batches until a step shows, and kills it so much later; the names of the files that
/// were there before.
fn work_and_kill(folder: &Path, batches: u64, step: Step, later: Duration) -> BTreeSet<String> {
    let before = names(&folder.join(HISTORY));
    let mut child = start(folder, batches);
    let begun = Instant::now();
    let shown = loop {
        if step.shows(&before, &names(&folder.join(HISTORY))) {
            break Ok(());
        }
        if let Some(status) = child.try_wait().unwrap() {
            break Err(format!("it ended by itself: {status}"));
        }
        if begun.elapsed() > PATIENCE {
            break Err(format!("{step:?} does not come: {:?}", names(&folder.join(HISTORY))));
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    if shown.is_ok() {
        std::thread::sleep(later);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    shown.unwrap();
    before
}

/// The last batch that was acknowledged.
fn acknowledged(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join(ACKNOWLEDGED)).unwrap();
    // The kill may have cut the last line off.
    let (whole, _) = text.rsplit_once('\n').unwrap();
    whole.lines().last().unwrap().parse().unwrap()
}

/// The states of the files that a catalogue names. It is read from a copy, so that nothing is touched before the restart.
fn states(history: &Path) -> BTreeMap<i64, i64> {
    let copy = tempfile::tempdir().unwrap();
    for name in ["main.db", "main.db-wal"].into_iter().filter(|name| history.join(name).exists()) {
        fs::copy(history.join(name), copy.path().join(name)).unwrap();
    }
    states_in(&Connection::open(copy.path().join("main.db")).unwrap())
}

fn states_in(main: &Connection) -> BTreeMap<i64, i64> {
    let mut statement = main.prepare("SELECT id, state FROM parts").unwrap();
    statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect()
}

/// The steps of which something is left that was not there before.
fn left(history: &Path, before: &BTreeSet<String>) -> BTreeSet<Step> {
    let states = states(history);
    let of = |name: &String| {
        let (id, ending) = parsed(name)?;
        let step = Step::of(ending, states.get(&id).copied())?;
        let was_there_for_long = [Step::RowsLeft, Step::SealedLeft].contains(&step);
        (was_there_for_long || !before.contains(name)).then_some(step)
    };
    names(history).iter().filter_map(of).collect()
}

fn check_files(history: &Path) {
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
async fn compare(world: &World<Place>, sent: &Sent) {
    let time = SessionTime::Within { since: at(-1_000_000), until: None };
    let question = SessionQuestion { time, ..SessionQuestion::default() };
    let (rows, _) = world.sessions(question.clone(), clock()).await.unwrap();
    let (mut told, mut batches) = (BTreeSet::new(), BTreeMap::new());
    for row in rows {
        let seq = worker::number_of(&row);
        let batch = batches.entry(seq).or_insert_with(|| sent_of(sent.host, seq, sent.batches));
        assert!(told.insert(row.opened_at), "it is there twice: {row:?}");
        let expected = batch.get(&row.opened_at).unwrap_or_else(|| panic!("nobody sent {row:?}"));
        // Whether the host is heard now is no part of a session.
        let expected = Session { host_state: row.host_state, ..expected.clone() };
        assert_eq!(row, expected, "what was sent is on the right");
    }
    assert!(!told.is_empty());
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
fn settled(history: &Path) {
    let begun = Instant::now();
    let main = Connection::open_with_flags(history.join("main.db"), OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    loop {
        let (states, names) = (states_in(&main), names(history));
        let step = |name: &String| parsed(name).and_then(|(id, ending)| Step::of(ending, states.get(&id).copied()));
        let is_left = |name: &&String| step(name).is_some() || name.ends_with("unfinished");
        let left: Vec<&String> = names.iter().filter(is_left).collect();
        if left.is_empty() && states.values().all(|state| *state != COMPLETE) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{left:?} {states:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts what was killed and holds what it tells against what was sent.
async fn restart(world: &mut World<Place>, sent: &mut Sent) {
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
}

#[tokio::test]
async fn killed_in_any_step_of_sealing_and_summing_each_session_is_there_once_as_it_was_sent() {
    let wanted = if std::env::var_os("FLEETSOCK_LONG").is_some() { 25 } else { 2 };
    let mut world = World::<Place>::new().await;
    let host = world.host("web1").await.host;
    world.stop().await;
    let folder = world.engine.folder.path().to_owned();
    fs::write(folder.join(HOST), host.to_string()).unwrap();
    let mut sent = Sent { host, batches: 0, sums: BTreeMap::new() };
    let mut kills = 0;
    let mut found: BTreeMap<Step, usize> = BTreeMap::new();
    for turn in 0..wanted {
        for step in STEPS {
            let mut misses = 0;
            loop {
                let later = LATER_US[(turn + misses) % LATER_US.len()] + kills * 37 % 400;
                let before = work_and_kill(&folder, sent.batches, step, Duration::from_micros(later));
                kills += 1;
                let left = left(&world.engine.history(), &before);
                left.iter().for_each(|step| *found.entry(*step).or_default() += 1);
                restart(&mut world, &mut sent).await;
                world.stop().await;
                check_files(&world.engine.history());
                if left.contains(&step) {
                    break;
                }
                misses += 1;
                assert!(misses < MISSES, "no kill leaves {step:?}: {found:?}");
            }
        }
    }
    tell(&format!("{kills} kills, {} batches; what they left: {found:?}", sent.batches));
    world.engine.pause_ms.store(1, Relaxed);
    world.begin().await;
    // It goes on, as if nothing had been.
    for seq in sent.batches + 1..=sent.batches + 30 {
        it_is_after(seq);
        assert_eq!(world.store().apply(host, batch(host, seq)).await.unwrap(), Applied::Committed);
    }
    sent.count_up_to(sent.batches + 30);
    settled(&world.engine.history());
    compare(&world, &sent).await;
    world.stop().await;
    check_files(&world.engine.history());
}
