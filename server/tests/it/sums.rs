//! Of sessions that are not kept any more sums are kept, which a summary of whole hours counts as it did the sessions.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::{AnswerMeta, GapReason},
    batch::BatchKind::{Changes, SnapshotWhole},
    host::HostSelector,
    port::PortClass,
    question::{PortQuestion, SessionQuestion, SessionTime, SocketFilter, SummaryQuestion},
    socket::{
        Direction::{self, In, Out},
        Protocol,
    },
    stream::GapReport,
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{
    CopyOrder, Heard, History,
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};
use rusqlite::Connection;

use crate::{
    engine::{Engine, Rules, World, actor, put_back, reopen},
    scene::{Agent, Described, at, closed, opened, owner, session},
};

const HOUR: i64 = 3_600;
const DAY: i64 = 24 * HOUR;
/// The scene begins in the middle of an hour; this is the first whole one.
const WHOLE: i64 = HOUR - 1_795_000_000 % HOUR;

/// The second that it is. One test at a time moves it.
static SECOND: AtomicI64 = AtomicI64::new(0);
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

fn clock() -> Timestamp {
    at(SECOND.load(Relaxed))
}

/// SQLite that keeps sessions and sums for as long as it is told to.
struct Summing {
    folder: tempfile::TempDir,
    kept_days: AtomicU64,
    sums_days: AtomicU64,
    pause_ms: AtomicU64,
}

impl Summing {
    fn folder(&self) -> PathBuf {
        self.folder.path().join("history")
    }

    /// Names of the files with this ending.
    fn files(&self, ending: &str) -> BTreeSet<String> {
        let names = fs::read_dir(self.folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with("day-") && name.ends_with(ending)).collect()
    }
}

impl Engine for Summing {
    type Store = SqliteHistory;

    fn prepare() -> Summing {
        let [kept_days, sums_days, pause_ms] = [1000, 1000, 3_600_000].map(AtomicU64::new);
        Summing { folder: tempfile::tempdir().unwrap(), kept_days, sums_days, pause_ms }
    }

    async fn open(&self, rules: Rules) -> SqliteHistory {
        let days = |days: &AtomicU64| Some(Duration::from_secs(days.load(Relaxed) * DAY.unsigned_abs()));
        let keeping = Keeping { kept: days(&self.kept_days), sums: days(&self.sums_days), ..Keeping::default() };
        let sealing = Sealing { pause: Duration::from_millis(self.pause_ms.load(Relaxed)), stays: Duration::ZERO };
        let options = Options { stale_after: rules.stale_after, keeping, sealing, clock, ..Options::default() };
        reopen(&self.folder(), &options)
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }
}

/// Days in which two hosts have sessions of many kinds: short ones, some of hours and one of days.
async fn days_go_by(world: &World<Summing>, agents: &mut [Agent], days: std::ops::Range<i64>) {
    for day in days {
        for (number, agent) in (0..).zip(agents.iter_mut()) {
            for turn in 0..6_i64 {
                let begun = WHOLE + day * DAY + turn * 3 * HOUR + 100 + number;
                SECOND.store(begun + 4 * HOUR, Relaxed);
                let cookie = |n: i64| (day * 1000 + turn * 10 + n).unsigned_abs();
                let process = ["nginx", "curl", "backup"][usize::try_from((day + turn) % 3).unwrap()];
                let socket = |n: i64, local: &str, direction: Direction, peer: String| {
                    let mut one = session(cookie(n), local, direction, &peer).since(begun);
                    (one.bytes_sent, one.bytes_received) = (begun.unsigned_abs() % 977, 5);
                    one
                };
                let changes = vec![
                    closed(
                        socket(1, "10.0.0.1:443", In, format!("203.0.113.{}:4000", turn + day))
                            .held_by(&[owner(process, 7)]),
                        begun + 20,
                    ),
                    closed(socket(2, "10.0.0.1:40000", Out, format!("198.51.100.{number}:5432")), begun + 2 * HOUR),
                    closed(socket(3, "[2001:db8::1]:5000", Out, format!("[2001:db8::{turn}]:53")).udp(), begun + 1),
                ];
                world.tell(agent, Changes, begun + 3 * HOUR, changes).await;
            }
            if day % 3 == 2 {
                let begun = WHOLE + (day - 2) * DAY + 50;
                let long = session(900 + day.unsigned_abs(), "10.0.0.1:22", In, "10.0.0.9:999").since(begun);
                world
                    .tell(
                        agent,
                        Changes,
                        WHOLE + day * DAY + 23 * HOUR,
                        vec![closed(long, WHOLE + day * DAY + 22 * HOUR)],
                    )
                    .await;
            }
        }
    }
}

fn within(since: i64, until: i64) -> SessionTime {
    SessionTime::Within { since: at(WHOLE + since), until: Some(at(WHOLE + until)) }
}

/// What is asked: summaries of whole hours.
fn questions() -> Vec<(String, SummaryQuestion)> {
    let filters = [
        ("", SocketFilter::default()),
        ("class", SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() }),
        ("service", SocketFilter { services: vec!["https".to_owned()], ..SocketFilter::default() }),
        ("port", SocketFilter { ports: vec!["50-6000".parse().unwrap()], ..SocketFilter::default() }),
        ("protocol", SocketFilter { protocols: vec![Protocol::Udp], ..SocketFilter::default() }),
        ("process", SocketFilter { processes: vec!["c*".to_owned()], ..SocketFilter::default() }),
        (
            "host",
            SocketFilter {
                hosts: HostSelector { globs: vec!["web1".to_owned()], ..HostSelector::default() },
                ..SocketFilter::default()
            },
        ),
    ];
    use Dimension::{Class, Host, Hour, Peer, Process, Service};
    let bys: [&[Dimension]; 7] =
        [&[Class], &[Service], &[Host], &[Process], &[Hour], &[Host, Service, Process], &[Hour, Class, Host]];
    let mut questions = Vec::new();
    for time in [within(0, 40 * DAY), within(5 * HOUR, 2 * DAY), within(DAY, DAY + HOUR), within(2 * DAY, 30 * DAY)] {
        let all = SessionQuestion { time, ..SessionQuestion::default() };
        for (what, filter) in filters.clone() {
            for by in bys {
                let sockets = SessionQuestion { filter: filter.clone(), ..all.clone() };
                questions.push((
                    format!("{time:?} {what} {by:?}"),
                    SummaryQuestion { sockets, by: by.to_vec(), limit: None },
                ));
            }
        }
        let sockets = SessionQuestion { directions: vec![Out], ..all.clone() };
        questions.push((format!("{time:?} out"), SummaryQuestion { sockets, by: vec![Service], limit: None }));
    }
    for by in [vec![Peer], vec![Host, Peer]] {
        let sockets = SessionQuestion { time: within(0, 40 * DAY), ..SessionQuestion::default() };
        questions.push((format!("{by:?}"), SummaryQuestion { sockets, by, limit: None }));
    }
    questions
}

async fn answers(world: &World<Summing>) -> Vec<(String, Vec<String>)> {
    let mut answers = Vec::new();
    for (what, question) in questions() {
        let (sums, _) = world.sums(question, at(50 * DAY)).await.unwrap();
        answers.push((what, sums.iter().map(|sum| format!("{sum:?}")).collect()));
    }
    answers
}

fn same(found: &[(String, Vec<String>)], expected: &[(String, Vec<String>)]) {
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected, "found on the left");
    }
}

/// A world in which nothing happened yet.
async fn beginning() -> World<Summing> {
    SECOND.store(0, Relaxed);
    World::new().await
}

/// Eight days of two hosts, all of which is kept.
async fn eight_days(world: &World<Summing>) -> Vec<(String, Vec<String>)> {
    let mut agents = Vec::new();
    for name in ["web1", "web2"] {
        let mut agent = world.host(name).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    let stays = session(1, "10.0.0.1:22", In, "10.0.0.7:5000").since(WHOLE + 10);
    world.tell(&mut agents[0], Changes, WHOLE + 20, vec![opened(stays)]).await;
    days_go_by(world, &mut agents, 0..8).await;
    let (since, until) = (at(WHOLE + DAY + 100), at(WHOLE + DAY + 200));
    let lost = GapReport { epoch: 1, seqs: None, since, until, reason: GapReason::KernelLoss };
    world.store().record_gap(agents[0].host, lost).await.unwrap();
    let answers = answers(world).await;
    assert!(answers.iter().filter(|(_, lines)| !lines.is_empty()).count() > 100, "{answers:?}");
    answers
}

/// Starts again with so many days of sessions kept, and waits until nothing is left to do with complete files.
async fn keep(world: &mut World<Summing>, days: u64) {
    world.engine.kept_days.store(days, Relaxed);
    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    settled(&world.engine, days);
}

fn settled(engine: &Summing, days: u64) {
    let horizon = clock().minus(Duration::from_secs(days * DAY.unsigned_abs())).as_micros();
    let main = Connection::open(engine.folder().join("main.db")).unwrap();
    let count = |sql: &str| usize::try_from(main.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap()).unwrap();
    let begun = Instant::now();
    loop {
        let due = format!("SELECT count(*) FROM parts WHERE state = 1 OR state = 2 AND max_closed_at_us < {horizon}");
        let files = [".db", ".sealed", ".sums"].map(|ending| engine.files(ending).len());
        let states = [0, 2, 4].map(|state| count(&format!("SELECT count(*) FROM parts WHERE state = {state}")));
        if count(&due) == 0 && files == states && engine.files(".unfinished").is_empty() {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?} {files:?} {states:?}", engine.files(""));
        std::thread::sleep(Duration::from_millis(5));
    }
}

async fn meta(world: &World<Summing>, question: SummaryQuestion) -> AnswerMeta {
    world.sums(question, at(50 * DAY)).await.unwrap().1
}

#[tokio::test]
async fn a_summary_of_whole_hours_is_the_same_before_and_after_sessions_are_dropped() {
    let _alone = ALONE.lock().await;
    for sealed in [false, true] {
        let mut world = beginning().await;
        let expected = eight_days(&world).await;
        if sealed {
            keep(&mut world, 1000).await;
            assert!(world.engine.files(".sealed").len() > 6);
            same(&answers(&world).await, &expected);
        }
        keep(&mut world, 3).await;
        assert!(world.engine.files(".sums").len() > 3, "{:?}", world.engine.files(""));
        same(&answers(&world).await, &expected);
        world.restart().await;
        same(&answers(&world).await, &expected);
        world.stop().await;
    }
}

#[tokio::test]
async fn answers_say_of_what_time_only_sums_are_kept_and_what_those_do_not_tell() {
    let _alone = ALONE.lock().await;
    let mut world = beginning().await;
    eight_days(&world).await;
    keep(&mut world, 3).await;
    let horizon = clock().minus(Duration::from_secs(3 * DAY.unsigned_abs()));
    let all = SessionQuestion { time: within(0, 40 * DAY), ..SessionQuestion::default() };
    let expired = |meta: &AnswerMeta| meta.gaps.iter().filter(|gap| gap.reason == GapReason::Expired).count();

    let of = |sockets: SessionQuestion, by: &[Dimension]| SummaryQuestion { sockets, by: by.to_vec(), limit: None };
    let counted = meta(&world, of(all.clone(), &[Dimension::Host])).await;
    let sums = counted.sums.clone().unwrap();
    assert!(sums.counted && sums.lacks.is_empty() && sums.unclear == 0, "{sums:?}");
    // It was looked for what is too old a moment later.
    assert!(sums.until.since(horizon) < Duration::from_secs(60), "{:?}", sums.until);
    assert_eq!(expired(&counted), 0, "nothing of it is missing");
    let lost = |meta: &AnswerMeta| meta.gaps.iter().filter(|gap| gap.reason == GapReason::KernelLoss).count();
    assert_eq!(lost(&counted), 1, "what was not observed is in no sum either");

    let user = SocketFilter { users: vec!["root".to_owned()], ..SocketFilter::default() };
    for (sockets, by, expected) in [
        (SessionQuestion { filter: user, ..all.clone() }, &[Dimension::Class][..], "users"),
        (
            SessionQuestion { states: vec![fleetsock_proto::socket::SocketState::Established], ..all.clone() },
            &[Dimension::Class],
            "states",
        ),
        (
            SessionQuestion { peers: vec!["203.0.113.0/24".parse().unwrap()], ..all.clone() },
            &[Dimension::Class],
            "chosen peers",
        ),
        (all.clone(), &[Dimension::Peer, Dimension::Service], "peers together with anything but hosts"),
        (
            SessionQuestion { time: SessionTime::At(at(WHOLE + DAY)), ..all.clone() },
            &[Dimension::Class],
            "single moments",
        ),
    ] {
        let told = meta(&world, of(sockets, by)).await;
        let sums = told.sums.clone().unwrap();
        assert_eq!((sums.counted, sums.lacks), (false, vec![expected.to_owned()]));
        assert_eq!(expired(&told), 2, "both hosts were observed then, and it is not in the answer");
    }

    let (_, listed) = world.sessions(all, at(50 * DAY)).await.unwrap();
    let (_, ports) =
        world.ports(PortQuestion { at: Some(at(WHOLE + DAY)), ..PortQuestion::default() }, at(50 * DAY)).await.unwrap();
    for told in [listed, ports] {
        let sums = told.sums.clone().unwrap();
        assert!(!sums.counted && sums.lacks.is_empty() && sums.until == counted.sums.as_ref().unwrap().until);
        assert_eq!(expired(&told), 2);
    }
    let (_, recent) = world
        .sessions(SessionQuestion { time: within(7 * DAY, 8 * DAY), ..SessionQuestion::default() }, at(50 * DAY))
        .await
        .unwrap();
    assert_eq!((recent.sums.clone(), expired(&recent)), (None, 0));
    world.stop().await;
}

#[tokio::test]
async fn wherever_a_crash_came_each_session_is_counted_once() {
    let _alone = ALONE.lock().await;
    let mut world = beginning().await;
    let expected = eight_days(&world).await;
    keep(&mut world, 1000).await;
    world.stop().await;
    let (folder, aside) = (world.engine.folder(), tempfile::tempdir().unwrap());
    for name in world.engine.files("") {
        fs::copy(folder.join(&name), aside.path().join(&name)).unwrap();
    }
    // The sums of the first were being written; those of the second were whole, and the catalogue did not name them yet.
    fs::write(folder.join("day-1.unfinished"), b"half").unwrap();
    fs::write(folder.join("day-2.sums"), b"whole, and of another attempt").unwrap();
    keep_from_stopped(&mut world, 3).await;
    same(&answers(&world).await, &expected);
    world.stop().await;

    // The catalogue named them, and what they are about was not removed yet.
    for name in ["day-1.sealed", "day-2.sealed"] {
        fs::copy(aside.path().join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("day-1.db"), b"rows of before it was sealed").unwrap();
    world.begin().await;
    assert!(["day-1.sealed", "day-2.sealed"].iter().all(|name| !world.engine.files("").contains(*name)));
    assert!(!world.engine.files("").contains("day-1.db"));
    same(&answers(&world).await, &expected);
    world.stop().await;

    fs::remove_file(folder.join("day-1.sums")).unwrap();
    let error = SqliteHistory::open(&folder, Options::default()).map(drop).unwrap_err();
    assert!(error.to_string().contains("day-1.sums: it holds sums that are kept, and it is missing"), "{error}");
}

async fn keep_from_stopped(world: &mut World<Summing>, days: u64) {
    world.engine.kept_days.store(days, Relaxed);
    world.begin().await;
    settled(&world.engine, days);
}

#[tokio::test]
async fn sums_go_when_they_are_older_than_they_are_kept_and_are_in_backups_before() {
    let _alone = ALONE.lock().await;
    let mut world = beginning().await;
    let expected = eight_days(&world).await;
    keep(&mut world, 3).await;
    let copy = tempfile::tempdir().unwrap();
    let order = CopyOrder { folder: copy.path().to_owned(), by: actor(1), detail: "backup".to_owned() };
    let copied = world.store().copy(order, Arc::new(|_| Heard::BySomebody)).await.unwrap();
    let names: BTreeSet<String> = copied.into_iter().map(|file| file.name).collect();
    assert!(names.is_superset(&world.engine.files(".sums")), "{names:?}");

    let before = world.engine.files(".sums").len();
    world.engine.sums_days.store(5, Relaxed);
    world.restart().await;
    // Any order makes the writer look for what is too old.
    world.host("web3").await;
    world.host("web4").await;
    let after = world.engine.files(".sums").len();
    assert!(0 < after && after < before, "{before} {after}");
    let all = SessionQuestion { time: within(0, 40 * DAY), ..SessionQuestion::default() };
    let told = meta(&world, SummaryQuestion { sockets: all, by: vec![Dimension::Host], limit: None }).await;
    let sums = told.sums.unwrap();
    assert!(
        world.gaps().await.iter().all(|gap| gap.reason != GapReason::KernelLoss),
        "it goes with the sums of its time"
    );
    let main = Connection::open(world.engine.folder().join("main.db")).unwrap();
    let gaps: i64 = main.query_row("SELECT count(*) FROM gaps", [], |row| row.get(0)).unwrap();
    assert_eq!(gaps, 0);
    let expired: Vec<_> = told.gaps.iter().filter(|gap| gap.reason == GapReason::Expired).collect();
    assert!(sums.counted && expired.len() == 2 && expired.iter().all(|gap| gap.until == Some(sums.since)), "{sums:?}");

    world.stop().await;
    put_back(copy.path(), &names, &world.engine.folder());
    world.engine.sums_days.store(1000, Relaxed);
    world.begin().await;
    same(&answers(&world).await, &expected);
    world.stop().await;
}

#[tokio::test]
async fn of_many_kinds_and_peers_the_largest_are_told_and_all_are_counted_for_many_hosts_too() {
    const HOSTS: i64 = 70;
    let _alone = ALONE.lock().await;
    let mut world = beginning().await;
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("host{number:02}")).await;
        let kinds = if number == 0 { 600 } else { 2 };
        let lives = (0..kinds).flat_map(|kind: i64| {
            (0..=i64::from(kind < 100)).map(move |again| {
                let local = format!("10.0.0.1:{}", 2000 + kind);
                let peer = format!("10.1.{}.{}:4000", kind / 200, kind % 200);
                closed(session((kind * 2 + again + 1).unsigned_abs(), &local, In, &peer).since(WHOLE + 10), WHOLE + 20)
            })
        });
        world.tell(&mut agent, SnapshotWhole, WHOLE + 30, lives.collect()).await;
    }
    SECOND.store(WHOLE + 20 * DAY, Relaxed);
    world.host("later").await;
    world.host("latest").await;
    let ask = async |filter: SocketFilter, by: Dimension, world: &World<Summing>| {
        let sockets = SessionQuestion { filter, time: within(0, DAY), ..SessionQuestion::default() };
        world.sums(SummaryQuestion { sockets, by: vec![by], limit: None }, at(50 * DAY)).await.unwrap()
    };
    let before = ask(SocketFilter::default(), Dimension::Host, &world).await.0;
    keep(&mut world, 3).await;
    assert_eq!(world.engine.files(".sums").len(), 1);
    assert_eq!(ask(SocketFilter::default(), Dimension::Host, &world).await.0, before);

    let first = HostSelector { globs: vec!["host00".to_owned()], ..HostSelector::default() };
    let first = SocketFilter { hosts: first, ..SocketFilter::default() };
    let services = ask(first.clone(), Dimension::Service, &world).await.0;
    assert_eq!(
        (services.len(), services[0].group.service.as_deref(), services[0].sessions),
        (257, Some("(others)"), 344)
    );
    assert_eq!(services.iter().map(|sum| sum.sessions).sum::<u64>(), 700);
    let peers = ask(first.clone(), Dimension::Peer, &world).await.0;
    assert_eq!((peers.len(), peers[0].group.peer.is_none(), peers[0].sessions), (65, true, 700 - 128));

    let ports = SocketFilter { ports: vec!["2000-2010".parse().unwrap()], ..first };
    let (found, meta) = ask(ports, Dimension::Class, &world).await;
    assert_eq!((found[0].sessions, meta.sums.unwrap().unclear), (22, 344), "some may be of those ports");
    world.stop().await;
}
