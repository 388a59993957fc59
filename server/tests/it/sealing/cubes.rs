//! A summary that reads sums in place of rows says what the rows say, whatever window and dimensions are asked for.

use fleetsock_proto::{host::HostSelector, port::PortClass};

use super::*;

/// Sessions of the file, which is complete with them: more than the writer sums up at once.
const ROWS: i64 = 33_000;
const HOSTS: i64 = 3;
const HOUR_US: i64 = 3_600_000_000;

/// So many hours after a full one, and microseconds.
fn moment(hours: i64, by_us: i64) -> Timestamp {
    Timestamp::from_micros((at(0).as_micros() / HOUR_US + hours) * HOUR_US + by_us)
}

/// Sessions of most of a day: some open in the first microsecond of an hour or close in the last one.
fn life(number: i64) -> fleetsock_proto::batch::Change {
    let hours = number * 20 / ROWS;
    let opened_at = moment(hours, if number % 5 == 0 { 0 } else { number * 7_919_000 % HOUR_US });
    let lasted = match number % 4 {
        0 => HOUR_US - 1,
        1 => 2 * HOUR_US + number * 31_000 % HOUR_US,
        _ => number,
    };
    let closed_at = Timestamp::from_micros(opened_at.as_micros() + lasted);
    let (local, peer, direction) = match number % 3 {
        0 => ("10.0.0.1:443".to_owned(), format!("10.1.{}.9:{}", number % 41, 40_000 + number % 9000), In),
        1 => (format!("10.0.0.1:{}", 40_000 + number % 9000), format!("10.1.0.8:{}", 5432 + number % 2), Out),
        _ => ("[2001:db8::1]:22".to_owned(), format!("[2001:db8::{:x}]:{}", number % 1031, 1024 + number % 60_000), In),
    };
    let mut socket = session(number.unsigned_abs() + 1, &local, direction, &peer).held_by(&match number % 7 {
        0 => vec![],
        1 => vec![owner("nginx", 5), owner("worker", 6)],
        n => vec![owner(["sshd", "curl", "cron"][usize::try_from(n % 3).unwrap()], 7)],
    });
    (socket.opened_at, socket.bytes_sent, socket.bytes_received) = (opened_at, number.unsigned_abs(), 3);
    closed(socket, (closed_at.as_micros() - at(0).as_micros()) / 1_000_000)
}

async fn ask(world: &World<Hesitant<ROWS>>, sockets: SessionQuestion, by: &[Dimension]) -> Vec<String> {
    let mut told = Vec::new();
    for limit in [None, Some(7)] {
        let question = SummaryQuestion { sockets: sockets.clone(), by: by.to_vec(), limit };
        told.extend(world.sums(question, at(90_000)).await.unwrap().0.iter().map(|sum| format!("{sum:?}")));
    }
    told
}

/// Asks for sums, and once more in a way that only rows answer.
async fn sums_are_those_of_the_rows(world: &World<Hesitant<ROWS>>, total: u64) {
    let windows = [
        SessionTime::Within { since: at(-9_000), until: None },
        SessionTime::Within { since: moment(2, 0), until: Some(moment(6, 0)) },
        SessionTime::Within { since: moment(2, 1), until: Some(moment(6, -1)) },
        SessionTime::Within { since: moment(3, 1_234_567_890), until: Some(moment(3, 2_000_000_000)) },
        SessionTime::Within { since: moment(4, 900), until: None },
        SessionTime::Within { since: moment(6, 0), until: None },
        SessionTime::Within { since: moment(16, 0), until: None },
        SessionTime::Within { since: moment(3, 0), until: Some(moment(12, 0)) },
        SessionTime::Within { since: moment(5, 7), until: Some(moment(12, 1)) },
        SessionTime::Within { since: moment(5, 7), until: Some(moment(12, 0)) },
        SessionTime::Within { since: moment(5, 0), until: Some(moment(5, 0)) },
        SessionTime::Within { since: moment(5, 0), until: Some(moment(40, 0)) },
        SessionTime::At(moment(5, 0)),
        SessionTime::At(moment(5, 17)),
    ];
    let class = SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() };
    let hosts = HostSelector { globs: vec!["web[01]".to_owned()], ..HostSelector::default() };
    let asked = [
        SessionQuestion::default(),
        SessionQuestion { filter: class, directions: vec![In], ..SessionQuestion::default() },
        SessionQuestion { filter: SocketFilter { hosts, ..SocketFilter::default() }, ..SessionQuestion::default() },
        SessionQuestion { closed_before: Some(moment(5, 1_800_000_000)), ..SessionQuestion::default() },
    ];
    let dimensions = [
        &[][..],
        &[Dimension::Class, Dimension::Hour],
        &[Dimension::Service],
        &[Dimension::Host, Dimension::Process],
        &[Dimension::Hour, Dimension::Host],
        &[Dimension::Peer],
    ];
    for time in windows {
        for question in &asked {
            for by in dimensions {
                let sockets = SessionQuestion { time, ..question.clone() };
                let by_rows = SessionQuestion { states: SocketState::ALL.to_vec(), ..sockets.clone() };
                let (found, expected) = (ask(world, sockets.clone(), by).await, ask(world, by_rows, by).await);
                assert!(!expected.is_empty() || sockets.closed_before.is_some(), "{sockets:?}");
                assert_eq!(found, expected, "{sockets:?} by {by:?}");
            }
        }
    }
    let all =
        SummaryQuestion { sockets: SessionQuestion { time: windows[0], ..asked[0].clone() }, by: vec![], limit: None };
    assert_eq!(world.sums(all, at(90_000)).await.unwrap().0[0].sessions, total);
}

#[tokio::test]
async fn sums_beside_rows_say_what_the_rows_say_before_they_are_sealed_and_after() {
    let mut world = World::<Hesitant<ROWS>>::new().await;
    let mut agents = Vec::new();
    for host in 0..HOSTS {
        let mut agent = world.host(&format!("web{host}")).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    let mut number = 0;
    while number < ROWS + 900 {
        let agent = &mut agents[usize::try_from(number / 300 % HOSTS).unwrap()];
        world.tell(agent, Changes, 80_000 + number, (number..number + 300).map(life).collect()).await;
        number += 300;
    }
    let total = number.unsigned_abs();
    let in_first = |table: &str| {
        let file = Connection::open(world.engine.folder().join("day-1.db")).unwrap();
        file.query_row(&format!("SELECT coalesce(max(last_id), 0) FROM {table}"), [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert!(in_first("cubes") >= ROWS && in_first("cubes") == in_first("zones"), "a complete file has all sums");
    sums_are_those_of_the_rows(&world, total).await;
    assert_eq!(in_first("peer_spans JOIN cubes USING (first_id)"), in_first("cubes"), "and by peer");

    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    assert_eq!(world.engine.files(".sealed").len(), 1);
    sums_are_those_of_the_rows(&world, total).await;
    world.stop().await;
    let sealed = Connection::open(world.engine.folder().join("day-1.sealed")).unwrap();
    let together: i64 = sealed.query_row("SELECT count(*) FROM cube_totals", [], |row| row.get(0)).unwrap();
    assert_eq!(together, 2, "by service, and by host and program");
    let runs: i64 = sealed.query_row("SELECT count(*) FROM cube_runs", [], |row| row.get(0)).unwrap();
    assert!(runs > 4, "several hours together, of both kinds");
    let open: i64 = sealed.query_row("SELECT count(*) FROM cube_open", [], |row| row.get(0)).unwrap();
    assert!(open > 40, "what was open when each hour began, of both kinds");
    let by_peer: (i64, i64, i64) = sealed
        .query_row(
            "SELECT count(*), sum(open), (SELECT count(DISTINCT scope) FROM peer_sums) FROM peer_hours",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    assert!(by_peer.0 > 20 && by_peer == (by_peer.0, by_peer.0, 3), "{by_peer:?}");
    drop(sealed);

    // One that earlier versions sealed has sums by peer that are not apart by their size, or none of these, of runs of hours or of all hours together, other sums, or none.
    let alike = concat!(
        "DROP TABLE kind_filter; DROP TABLE peer_sums; DROP TABLE peer_hours;
         DELETE FROM refinery_schema_history WHERE version > 9;",
        include_str!("../../../../migrations/sqlite/sealed/V8__peer_sums.sql"),
        "INSERT INTO peer_sums (scope, hour, sums) VALUES (1, 0, x'0501020304');
         INSERT INTO peer_hours SELECT column1, 0, 1 FROM (VALUES (1), (2));"
    );
    let many = "DROP TABLE peer_sums; DROP TABLE peer_hours; DELETE FROM refinery_schema_history WHERE version > 7;";
    let whole = "DROP TABLE cube_runs; DROP TABLE cube_open; DELETE FROM refinery_schema_history WHERE version > 5;";
    let apart = "DROP TABLE cube_totals; DELETE FROM refinery_schema_history WHERE version > 4;";
    let before = concat!(
        "DROP TABLE beginnings; DROP TABLE cube_hours; DROP TABLE cubes; DELETE FROM refinery_schema_history WHERE version > 3;",
        include_str!("../../../../migrations/sqlite/sealed/V2__cubes.sql"),
        "INSERT INTO cubes VALUES (1, 5, x'01', x'0101', x'0202');"
    );
    for made_earlier in
        [alike, many, whole, apart, before, "DROP TABLE cubes; DELETE FROM refinery_schema_history WHERE version > 1;"]
    {
        change(&world.engine.folder().join("day-1.sealed"), made_earlier);
        world.begin().await;
        sums_are_those_of_the_rows(&world, total).await;
        world.stop().await;
    }
}
