//! A complete file gets its sealed form, and nothing that is asked shows which of the two there is.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fleetsock_proto::{
    batch::BatchKind::{Changes, SnapshotWhole},
    port::PortRange,
    question::{SessionQuestion, SessionTime, SocketFilter, SummaryQuestion},
    session::Session,
    socket::{
        Direction::{In, Out},
        SocketState,
    },
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{
    CopyOrder, Heard, History, HistoryError,
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};
use rusqlite::Connection;

use crate::{
    engine::{Engine, Rules, World, actor, hurried, put_back, reopen},
    scene::{Agent, Described, at, closed, opened, owner, session, session_line},
};

mod cubes;
mod kinds;
mod long;
mod peers;
mod placed;
mod runs;
mod upgrades;

/// Sessions of a small file.
const FEW: i64 = 40;
/// More sessions than there are.
const MANY: i64 = 1_000_000;
const HOSTS: i64 = 3;
const ROUNDS: i64 = 20;

/// SQLite that seals when it is told to, with so many sessions in a file.
struct Hesitant<const ROWS: i64> {
    folder: tempfile::TempDir,
    pause_ms: AtomicU64,
}

impl<const ROWS: i64> Hesitant<ROWS> {
    fn folder(&self) -> PathBuf {
        self.folder.path().join("history")
    }

    /// Names of the files with this ending.
    fn files(&self, ending: &str) -> BTreeSet<String> {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("day-") && name.ends_with(ending)).collect()
    }

    /// Waits until nothing but the file that is written to has rows.
    fn wait_until_sealed(&self) {
        let begun = Instant::now();
        while self.files(".db").len() > 1 || !self.files(".unfinished").is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", self.files(""));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl<const ROWS: i64> Engine for Hesitant<ROWS> {
    type Store = SqliteHistory;

    fn prepare() -> Self {
        Hesitant { folder: tempfile::tempdir().unwrap(), pause_ms: AtomicU64::new(3_600_000) }
    }

    async fn open(&self, rules: Rules) -> SqliteHistory {
        let keeping = Keeping { part_rows: ROWS, ..Keeping::default() };
        let pause = Duration::from_millis(self.pause_ms.load(Relaxed));
        let sealing = Sealing { pause, stays: Duration::ZERO };
        let options =
            Options { stale_after: rules.stale_after, keeping, sealing, clock: hurried, ..Options::default() };
        reopen(&self.folder(), &options)
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }
}

/// Sessions of three hosts with peers of both families, many at the same moment, with none, one and several owners.
async fn live<const ROWS: i64>(world: &World<Hesitant<ROWS>>) {
    let mut agents: Vec<Agent> = Vec::new();
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("web{number}")).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    for round in 0..ROUNDS {
        for (number, agent) in (0..).zip(&mut agents) {
            let cookie = |n: i64| (round * 100 + number * 10 + n).unsigned_abs();
            let port = 40_000 + round;
            let begun = round * 10 + 1;
            let socket =
                |n: i64, local: &str, direction, peer: &str| session(cookie(n), local, direction, peer).since(begun);
            let held = socket(5, "10.0.0.1:443", In, &format!("203.0.113.{round}:{port}"));
            let mut shared = socket(3, "[2001:db8::1]:443", In, &format!("[2001:db8::{round:x}]:{port}"));
            shared.owners = vec![owner("nginx", 7), owner("worker", u32::try_from(round).unwrap() + 8)];
            let changes = vec![
                closed(socket(1, &format!("10.0.0.1:{port}"), Out, "10.0.0.9:5432"), begun + 3),
                closed(socket(2, &format!("10.0.0.1:{port}"), Out, &format!("198.51.100.{number}:22")), begun + 3),
                closed(shared, begun + number),
                opened(held.clone()),
            ];
            world.tell(agent, Changes, begun + 4, changes).await;
            world.tell(agent, Changes, begun + 6, vec![closed(held, begun + 5)]).await;
        }
    }
}

/// Dimensions that come together.
const OTHERS: [Dimension; 3] = [Dimension::Service, Dimension::Process, Dimension::Host];

/// What is asked, and what the answer is.
async fn answers<const ROWS: i64>(world: &World<Hesitant<ROWS>>) -> Vec<(String, Vec<String>)> {
    let within = |since, until| SessionTime::Within { since: at(since), until: Some(at(until)) };
    let all = SessionQuestion { time: within(0, 10_000), ..SessionQuestion::default() };
    let peers = |text: &str| SessionQuestion { peers: vec![text.parse().unwrap()], ..all.clone() };
    let filter = |filter: SocketFilter| SessionQuestion { filter, ..all.clone() };
    let ports =
        |first, last| SocketFilter { ports: vec![PortRange::new(first, last).unwrap()], ..SocketFilter::default() };
    let questions = [
        ("all", all.clone()),
        ("of a while", SessionQuestion { time: within(55, 78), ..all.clone() }),
        ("open then", SessionQuestion { time: SessionTime::At(at(104)), ..all.clone() }),
        ("whatever state", SessionQuestion { states: vec![SocketState::Established], ..all.clone() }),
        ("outgoing", SessionQuestion { directions: vec![Out], ..all.clone() }),
        ("one peer", peers("203.0.113.7/32")),
        ("a peer of all", peers("10.0.0.9/32")),
        ("a network", peers("198.51.100.0/24")),
        ("a network of IPv6", peers("2001:db8::/125")),
        ("nobody", peers("192.0.2.0/24")),
        ("a port", filter(ports(22, 22))),
        ("ports", filter(ports(400, 6000))),
        ("a process", filter(SocketFilter { processes: vec!["worker".to_owned()], ..SocketFilter::default() })),
        ("over before", SessionQuestion { closed_before: Some(at(104)), ..all.clone() }),
        ("the newest", SessionQuestion { limit: Some(7), ..all.clone() }),
    ];
    let mut answers = Vec::new();
    for (what, question) in questions {
        let (rows, meta) = world.sessions(question.clone(), at(10_000)).await.unwrap();
        let full = |row| format!("{} {row:?}", session_line(row));
        answers.push((format!("{what} {}", meta.truncated), rows.iter().map(full).collect()));
        if question.limit.is_some() {
            continue;
        }
        for by in [&[Dimension::Peer][..], &[Dimension::Class, Dimension::Hour], &OTHERS, &OTHERS[1..]] {
            let question = SummaryQuestion { sockets: question.clone(), by: by.to_vec(), limit: None };
            let (sums, _) = world.sums(question, at(10_000)).await.unwrap();
            answers.push((format!("sums of {what} by {by:?}"), sums.iter().map(|sum| format!("{sum:?}")).collect()));
            let counted: u64 = sums.iter().map(|sum| sum.sessions).sum();
            assert_eq!(counted, rows.len() as u64, "{what} by {by:?}");
        }
    }
    answers
}

/// The same moment has no order, in either form.
fn sorted(mut answers: Vec<(String, Vec<String>)>) -> Vec<(String, Vec<String>)> {
    for (what, lines) in &mut answers {
        if !what.starts_with("the newest") {
            lines.sort();
        }
    }
    answers
}

#[tokio::test]
async fn a_sealed_file_answers_as_the_file_of_rows_did() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    let before = sorted(answers(&world).await);
    let rows = world.engine.files(".db");
    assert!(rows.len() > 4, "{rows:?}");
    assert_eq!(world.engine.files(".sealed"), BTreeSet::new());
    let counts: Vec<usize> = before.iter().map(|(_, lines)| lines.len()).collect();
    assert_eq!(counts[0], usize::try_from(HOSTS * ROUNDS * 4).unwrap());
    assert!(before.iter().all(|(what, lines)| lines.is_empty() == what.contains("nobody")), "{counts:?}");

    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    assert_eq!(world.engine.files(".sealed").len(), rows.len() - 1);
    let newest = |answers: &[(String, Vec<String>)]| {
        answers.iter().find(|(what, _)| what.starts_with("the newest")).unwrap().1.len()
    };
    let after = sorted(answers(&world).await);
    for (before, after) in before.iter().zip(&after).filter(|((what, _), _)| !what.starts_with("the newest")) {
        assert_eq!(before, after);
    }
    assert_eq!((newest(&before), newest(&after)), (7, 7));
    world.restart().await;
    assert_eq!(sorted(answers(&world).await), after, "also after a restart");

    let copy = tempfile::tempdir().unwrap();
    let order = CopyOrder { folder: copy.path().to_owned(), by: actor(1), detail: "backup".to_owned() };
    let copied = world.store().copy(order, Arc::new(|_| Heard::BySomebody)).await.unwrap();
    let names: BTreeSet<String> = copied.into_iter().map(|file| file.name).collect();
    assert!(names.is_superset(&world.engine.files(".sealed")), "{names:?}");
    world.stop().await;
    put_back(copy.path(), &names, &world.engine.folder());
    world.begin().await;
    assert_eq!(sorted(answers(&world).await), after, "also from a backup");
    world.stop().await;
}

#[tokio::test]
async fn whatever_a_crash_left_while_a_file_was_sealed_nothing_is_lost() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    let expected = sorted(answers(&world).await);
    world.stop().await;
    let folder = world.engine.folder();
    let keep = tempfile::tempdir().unwrap();
    fs::copy(folder.join("day-1.db"), keep.path().join("rows")).unwrap();
    // It was being written; it was whole and the catalogue did not name it yet.
    fs::write(folder.join("day-1.unfinished"), b"half").unwrap();
    fs::write(folder.join("day-2.sealed"), b"whole, and of another attempt").unwrap();
    // It was being written, and the file was not kept any more before it could be written anew.
    fs::write(folder.join("day-77.unfinished"), b"half").unwrap();
    world.engine.pause_ms.store(1, Relaxed);
    world.begin().await;
    world.engine.wait_until_sealed();
    let all = |answers: &[(String, Vec<String>)]| answers[0].clone();
    assert_eq!(all(&sorted(answers(&world).await)), all(&expected));
    world.stop().await;

    // The catalogue named it, and the file of rows was not removed yet.
    fs::copy(keep.path().join("rows"), folder.join("day-1.db")).unwrap();
    world.begin().await;
    assert!(!world.engine.files(".db").contains("day-1.db"));
    assert_eq!(all(&sorted(answers(&world).await)), all(&expected));
    world.stop().await;

    fs::remove_file(folder.join("day-1.sealed")).unwrap();
    let error = SqliteHistory::open(&folder, Options::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("day-1.sealed: it holds sessions that are kept, and it is missing"), "{error}");
}

/// Lives, seals, and stops; gives the sealed form of the second file.
async fn sealed_second(world: &mut World<Hesitant<FEW>>) -> PathBuf {
    live(world).await;
    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    world.stop().await;
    world.engine.folder().join("day-2.sealed")
}

fn change(path: &Path, sql: &str) {
    Connection::open(path).unwrap().execute_batch(sql).unwrap();
}

#[tokio::test]
async fn a_block_that_was_damaged_is_an_error_and_never_another_answer() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    let sealed = sealed_second(&mut world).await;
    for (damage, words) in [
        ("UPDATE contents SET columns = substr(columns, 1, length(columns) - 9)", "its columns have other lengths"),
        ("UPDATE blocks SET codec = 1", "is damaged"),
        ("UPDATE blocks SET codec = 99", "its codec has no meaning"),
        ("DELETE FROM contents", "is missing"),
    ] {
        change(&sealed, damage);
        world.begin().await;
        let time = SessionTime::Within { since: at(0), until: None };
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        let error = world.sessions(question, at(10_000)).await.map(|(rows, _)| rows.len());
        assert!(matches!(&error, Err(HistoryError::Engine(problem)) if problem.contains(words)), "{error:?}");
        world.stop().await;
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_sealed_stays_as_it_is() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    let expected = sorted(answers(&world).await);
    world.stop().await;
    // A folder is where the sealed form is to be written.
    let obstacle = world.engine.folder().join("day-1.unfinished");
    fs::create_dir(&obstacle).unwrap();
    world.engine.pause_ms.store(1, Relaxed);
    world.begin().await;
    std::thread::sleep(Duration::from_millis(200));
    assert!(world.engine.files(".db").contains("day-1.db"));
    assert_eq!(sorted(answers(&world).await), expected);
    world.stop().await;
    fs::remove_dir(obstacle).unwrap();
    world.begin().await;
    world.engine.wait_until_sealed();
    world.stop().await;
}

#[tokio::test]
async fn what_was_open_at_a_moment_is_found_among_thousands_of_rows_that_opened_later() {
    const HOSTS: i64 = 70;
    const ROUNDS: i64 = 20;
    let mut world = World::<Hesitant<MANY>>::new().await;
    let mut agents = Vec::new();
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("host{number:02}")).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    for round in 0..ROUNDS {
        for (number, agent) in (0..).zip(&mut agents) {
            // Of a round one session lasted for long.
            let life = |n: i64| {
                let ended = 1000 + round * 100 + n * 10;
                let lasted = if n == 0 && number == round { 450 + round } else { 20 + number % 7 };
                let cookie = (round * 10 + n + 1).unsigned_abs();
                closed(session(cookie, "10.0.0.1:443", In, "10.0.0.9:4000").since(ended - lasted), ended)
            };
            world.tell(agent, Changes, 1050 + round * 100, (0..4).map(life).collect()).await;
        }
        if round == ROUNDS / 2 {
            world.restart().await;
        }
    }
    let ask = async |time| {
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        world.sessions(question, at(9_000)).await.unwrap().0
    };
    let all = ask(SessionTime::Within { since: at(0), until: None }).await;
    assert_eq!(i64::try_from(all.len()).unwrap(), HOSTS * ROUNDS * 4);
    for second in [900, 1017, 1500, 1903, 2550, 2899, 2950] {
        let is_open =
            |one: &&Session| one.opened_at <= at(second) && one.closed.is_none_or(|(closed, _)| closed > at(second));
        let mut expected: Vec<_> = all.iter().filter(is_open).map(|one| format!("{one:?}")).collect();
        let mut found: Vec<_> = ask(SessionTime::At(at(second))).await.iter().map(|one| format!("{one:?}")).collect();
        expected.sort();
        found.sort();
        assert_eq!(found, expected, "{second}");
        let until = ask(SessionTime::Within { since: at(0), until: Some(at(second)) }).await;
        assert_eq!(until.len(), all.iter().filter(|one| one.opened_at <= at(second)).count(), "until {second}");
    }
    world.stop().await;
}
