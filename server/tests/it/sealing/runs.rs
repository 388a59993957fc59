//! Where the rows of a host are in a file that is not sealed: in runs, also in files of before there were any.

use fleetsock_proto::{batch::Change, host::HostSelector};
use rusqlite::Row;

use super::*;

/// What must not be in any file: rows that are in no run of their host or in several, runs and chapters that say something
/// else than what is in them, and runs that are too long.
const WRONG: [&str; 4] = [
    "SELECT count(*) FROM sessions s WHERE 1 <>
         (SELECT count(*) FROM runs r WHERE r.host_id = s.host_id AND s.id BETWEEN r.first_id AND r.last_id)",
    "SELECT count(*) FROM runs WHERE (last_id - first_id + 1, min_closed_at_us, max_closed_at_us, min_opened_at_us) <>
         (SELECT count(*), min(closed_at_us), max(closed_at_us), min(closed_at_us - duration_us)
          FROM sessions WHERE id BETWEEN first_id AND last_id)",
    "SELECT count(*) FROM chapters WHERE (runs, min_closed_at_us, max_closed_at_us, min_opened_at_us) <>
         (SELECT count(*), min(min_closed_at_us), max(max_closed_at_us), min(min_opened_at_us)
          FROM runs WHERE chapter_id = chapters.id)",
    "SELECT count(*) FROM runs WHERE last_id - first_id >= 1024",
];

fn numbers(file: &Connection, sql: &str) -> Vec<Vec<i64>> {
    let mut statement = file.prepare(sql).unwrap();
    let columns = statement.column_count();
    let row = |row: &Row<'_>| (0..columns).map(|column| row.get(column)).collect();
    statement.query_map([], row).unwrap().map(Result::unwrap).collect()
}

fn all_is_right(file: &Connection) {
    for sql in WRONG {
        assert_eq!(numbers(file, sql), [[0]], "{sql}");
    }
    let numbered = "SELECT count(*), coalesce(max(id), 0) FROM chapters";
    let [count, last] = numbers(file, numbered)[0][..] else { panic!() };
    assert_eq!((count, numbers(file, "SELECT count(DISTINCT chapter_id) FROM runs")), (last, vec![vec![last]]));
}

/// Makes of a file what the first version made.
pub(super) fn as_of_the_first_version(path: &Path) {
    change(
        path,
        "CREATE INDEX sessions_by_host ON sessions (host_id, closed_at_us);
         DROP TABLE zone_long;
         DROP TABLE runs;
         DROP TABLE chapters;
         ALTER TABLE zones DROP COLUMN min_opened_at_us;
         DROP TABLE segments;
         DROP TABLE postings;
         DROP TABLE cubes;
         DROP TABLE cube_hours;
         DROP TABLE peer_sums;
         DROP TABLE peer_spans;
         DELETE FROM refinery_schema_history WHERE version > 1;",
    );
}

#[tokio::test]
async fn files_of_the_first_version_get_their_runs_and_answer_as_they_did() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    let before = answers(&world).await;
    world.stop().await;
    let paths: Vec<PathBuf> = world.engine.files(".db").iter().map(|name| world.engine.folder().join(name)).collect();
    let tables = || -> Vec<_> {
        let all = ["SELECT * FROM runs ORDER BY first_id", "SELECT * FROM chapters"];
        let files = paths.iter().map(|path| Connection::open(path).unwrap());
        files.map(|file| all.map(|sql| numbers(&file, sql))).collect()
    };
    let noted = tables();
    let runs: usize = noted.iter().map(|[runs, _]| runs.len()).sum();
    assert!(noted.len() > 4 && runs >= usize::try_from(HOSTS * ROUNDS).unwrap(), "{noted:?}");
    paths.iter().for_each(|path| as_of_the_first_version(path));
    world.begin().await;
    assert_eq!(answers(&world).await, before);
    let mut agent = world.host("late").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    world.stop().await;
    assert_eq!(tables(), noted, "as if they had been noted from the first row on");
    for path in &paths {
        as_of_the_first_version(path);
    }
    world.engine.pause_ms.store(1, Relaxed);
    world.begin().await;
    world.engine.wait_until_sealed();
    assert_eq!(sorted(answers(&world).await)[..1], sorted(before)[..1]);
    world.stop().await;
}

/// A life that is told of when it is over; its ports tell it from others.
fn brief(number: i64, since: i64, until: i64) -> Change {
    let (cookie, port) = (number.unsigned_abs() + 1, number % 60_000 + 1);
    closed(
        session(cookie, &format!("10.0.0.1:{port}"), Out, &format!("10.0.0.9:{}", 443 + number / 60_000)).since(since),
        until,
    )
}

#[tokio::test]
async fn every_row_is_in_one_run_of_its_host_whatever_brought_it_and_answers_are_in_order() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    let mut agents = [world.host("web0").await, world.host("web1").await, world.host("web2").await];
    // One that goes away all at once, and what is not seen to end ends at one moment.
    let many = (0..2500).map(|n| opened(session(100_000 + n, "10.0.0.1:22", In, &format!("10.1.0.9:{}", n + 1))));
    world.tell(&mut agents[0], SnapshotWhole, 1, many.collect()).await;
    world.tell(&mut agents[1], SnapshotWhole, 1, Vec::new()).await;
    world.tell(&mut agents[2], SnapshotWhole, 1, Vec::new()).await;
    let mut number = 0;
    let mut next = |since, until| {
        number += 1;
        brief(number, since, until)
    };
    // Many short runs, of two hosts in turns; some of their sessions end at one moment.
    for turn in 0..1100 {
        let changes = (0..=turn % 3).map(|n| next(turn, turn + 10 * (n % 2))).collect();
        world.tell(&mut agents[1 + usize::try_from(turn % 2).unwrap()], Changes, 2 + turn, changes).await;
    }
    agents[0].reboot();
    world.tell(&mut agents[0], SnapshotWhole, 2000, Vec::new()).await;
    world.restart().await;
    // One host alone, batch after batch: more at a time than are held.
    for batch in 0..18 {
        let changes = (0..1024).map(|n| next(2000, if n == 1023 { 9000 } else { 3000 + n + batch % 5 })).collect();
        world.tell(&mut agents[0], Changes, 9000 + batch, changes).await;
    }
    for batch in 0..5 {
        let changes = (0..10).map(|_| next(9000, 9100 + batch)).collect();
        world.tell(&mut agents[2], Changes, 9200 + batch, changes).await;
    }
    world.stop().await;

    let file = Connection::open(world.engine.folder().join("day-1.db")).unwrap();
    all_is_right(&file);
    let runs = |sql: &str| numbers(&file, &format!("SELECT count(*) FROM runs WHERE {sql}"))[0][0];
    assert_eq!(numbers(&file, "SELECT max(id) FROM chapters"), [[2]]);
    assert_eq!(runs("TRUE"), 1100 + 3 + 18 + 1);
    assert_eq!(runs("host_id = 3 AND last_id - first_id = 49"), 1, "batches that follow each other are one run");

    world.begin().await;
    for (host, id) in [("web0", 1), ("web1", 2), ("web2", 3)] {
        let filter = SocketFilter {
            hosts: HostSelector { globs: vec![host.to_owned()], ..Default::default() },
            ..SocketFilter::default()
        };
        let [first, last] = [3100, 3700].map(at);
        for (question, meant) in [
            (SessionQuestion::default(), "TRUE".to_owned()),
            (SessionQuestion { limit: Some(700), ..SessionQuestion::default() }, "TRUE".to_owned()),
            (
                SessionQuestion { closed_before: Some(first), ..SessionQuestion::default() },
                format!("closed_at_us < {}", first.as_micros()),
            ),
            (
                SessionQuestion { closed_before: Some(last), limit: Some(900), ..SessionQuestion::default() },
                format!("closed_at_us < {}", last.as_micros()),
            ),
        ] {
            let limit = question.limit;
            let time = SessionTime::Within { since: at(0), until: None };
            let question = SessionQuestion { filter: filter.clone(), time, ..question };
            let (rows, _) = world.sessions(question.clone(), at(10_000)).await.unwrap();
            let found: Vec<_> = rows
                .iter()
                .map(|one| [one.closed.unwrap().0.as_micros(), one.local.port().into(), one.peer.port().into()])
                .collect();
            let ordered = format!(
                "SELECT closed_at_us, local_port, peer_port FROM sessions WHERE host_id = {id} AND {meant}
                 ORDER BY closed_at_us DESC, id DESC LIMIT {}",
                limit.map_or(-1, i64::from)
            );
            assert!(numbers(&file, &ordered) == found, "{host}, {meant}, {limit:?}");
            if limit.is_none() {
                let question = SummaryQuestion { sockets: question, by: vec![Dimension::Host], limit: None };
                let (sums, _) = world.sums(question, at(10_000)).await.unwrap();
                assert_eq!(sums.iter().map(|sum| sum.sessions).sum::<u64>(), found.len() as u64, "{host}, {meant}");
            }
        }
    }
    world.stop().await;
}
