//! Who had sessions with a peer, once these are sealed: by the places that the table of peers tells, in files of earlier
//! versions by blocks, and by blocks too where there are too many places.

use super::{
    peers::{about, all_are_found, peer},
    *,
};

/// More hosts than are each looked for, with more sessions than places are held.
const HOSTS: u64 = 70;
const EACH: u64 = 950;
const FULL: i64 = (HOSTS * EACH).cast_signed();

/// What was made of places before: which hosts met an address, and when.
const PAIRS: &str = "CREATE TABLE pairs (
    peer_address BLOB NOT NULL,
    host_id INTEGER NOT NULL,
    sessions INTEGER NOT NULL,
    min_closed_at_s INTEGER NOT NULL,
    max_closed_at_s INTEGER NOT NULL,
    PRIMARY KEY (peer_address, host_id)
) STRICT, WITHOUT ROWID;";

/// Places of a row of the table of peers.
fn places(first: i64, others: &[u8]) -> Vec<i64> {
    let (mut all, mut step, mut shift) = (vec![first], 0, 0);
    for byte in others {
        step |= i64::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            all.push(all[all.len() - 1] + step);
            (step, shift) = (0, 0);
        }
    }
    all
}

/// Makes of a sealed file what the version before places made of the same rows.
fn as_of_the_second_version(path: &Path) {
    let mut file = Connection::open(path).unwrap();
    let transaction = file.transaction().unwrap();
    transaction.execute_batch(PAIRS).unwrap();
    {
        let mut add = transaction
            .prepare(
                "INSERT INTO pairs SELECT ?1, host_id, 1, min_closed_at_us / 1000000, max_closed_at_us / 1000000
                 FROM blocks WHERE id = ?2
                 ON CONFLICT DO UPDATE SET sessions = sessions + 1,
                     min_closed_at_s = min(min_closed_at_s, excluded.min_closed_at_s),
                     max_closed_at_s = max(max_closed_at_s, excluded.max_closed_at_s)",
            )
            .unwrap();
        let mut peers = transaction.prepare("SELECT peer_address, first_place, places FROM peers").unwrap();
        let mut rows = peers.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let (address, others): (Vec<u8>, Vec<u8>) = (row.get(0).unwrap(), row.get(2).unwrap());
            for place in places(row.get(1).unwrap(), &others) {
                assert_eq!(add.execute(rusqlite::params![address, place / 2048]).unwrap(), 1);
            }
        }
    }
    let tables =
        "DROP TABLE peers; DROP TABLE beginnings; DROP TABLE cube_runs; DROP TABLE cube_open; DROP TABLE cube_totals;
         DROP TABLE cube_hours; DROP TABLE cubes;";
    let sums = include_str!("../../../../migrations/sqlite/sealed/V2__cubes.sql");
    let versions = "DELETE FROM refinery_schema_history WHERE version > 2";
    transaction.execute_batch(&format!("{tables} {sums} {versions}")).unwrap();
    transaction.commit().unwrap();
}

fn number(file: &Connection, sql: &str) -> i64 {
    file.query_row(sql, [], |row| row.get(0)).unwrap()
}

#[tokio::test]
async fn files_that_earlier_versions_sealed_answer_as_those_of_today() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    let expected = sorted(answers(&world).await);
    world.stop().await;
    let sealed = world.engine.files(".sealed");
    assert!(sealed.len() > 4, "{sealed:?}");
    let paths: Vec<PathBuf> = sealed.iter().map(|name| world.engine.folder().join(name)).collect();
    for path in &paths {
        change(path, "DROP TABLE peer_filter; DELETE FROM refinery_schema_history WHERE version > 6");
    }
    world.begin().await;
    assert_eq!(sorted(answers(&world).await), expected, "of the version before filters");
    world.stop().await;

    for path in &paths {
        as_of_the_second_version(path);
        let file = Connection::open(path).unwrap();
        let total = number(&file, "SELECT sum(sessions) FROM blocks");
        assert_eq!(number(&file, "SELECT sum(sessions) FROM pairs"), total, "every session has its place");
    }
    world.begin().await;
    assert_eq!(sorted(answers(&world).await), expected);
    world.stop().await;

    for path in &paths {
        change(path, "DROP TABLE cubes; DELETE FROM refinery_schema_history WHERE version > 1");
    }
    world.begin().await;
    assert_eq!(sorted(answers(&world).await), expected, "also of the first version");
    world.stop().await;
}

#[tokio::test]
async fn a_peer_is_found_in_few_places_and_in_more_than_are_held() {
    let mut world = World::<Hesitant<FULL>>::new().await;
    for host in 0..HOSTS {
        let mut agent = world.host(&format!("host{host:02}")).await;
        let life = |n: u64| {
            let number = host * EACH + n;
            let local = format!("10.0.0.{}:{}", number / 60_000, number % 60_000 + 1);
            let until = 2 + i64::try_from(n % 7).unwrap();
            closed(session(1 + n, &local, Out, &peer(number % 60_000)).since(1), until)
        };
        world.tell(&mut agent, SnapshotWhole, 3, (0..EACH).map(life).collect()).await;
    }
    let mut late = world.host("late").await;
    world.tell(&mut late, SnapshotWhole, 4, vec![closed(session(1, "10.0.0.1:1", Out, &peer(7)).since(1), 2)]).await;
    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    assert_eq!(world.engine.files(".sealed").len(), 1);
    all_are_found(&world, HOSTS * EACH + 1).await;

    let all = world.sessions(about(&[], "*"), at(10)).await.unwrap().0;
    let closing = |one: &Session| one.closed.map(|(at, _)| at);
    assert!(all.iter().map(closing).rev().is_sorted(), "the newest of all blocks come first, and so to the end");
    // Together these are all sessions; the second and the third are in the first.
    let everything = ["0.0.0.0/0", "10.9.9.9/32", "20.0.0.0/8", "::/0"];
    for (hosts, prefixes) in [
        ("*", &everything[..]),
        ("host1?", &everything[..]),
        ("*", &everything[1..3]),
        ("host07", &["10.9.9.9/32", "20.3.4.90/32", "10.0.0.0/8"][..]),
    ] {
        let question = about(prefixes, hosts);
        let pattern = glob::Pattern::new(hosts).unwrap();
        let is_meant = |one: &&Session| {
            pattern.matches(&one.host) && question.peers.iter().any(|network| network.contains(&one.peer.ip()))
        };
        let mut expected: Vec<_> = all.iter().filter(is_meant).map(session_line).collect();
        let mut found: Vec<_> =
            world.sessions(question.clone(), at(10)).await.unwrap().0.iter().map(session_line).collect();
        expected.sort();
        found.sort();
        assert!(found == expected, "{prefixes:?}, {hosts}: {} of {}", found.len(), expected.len());
        let first = SessionQuestion { limit: Some(9), ..question.clone() };
        let newest: Vec<_> = world.sessions(first, at(10)).await.unwrap().0.iter().map(closing).collect();
        let mut latest: Vec<_> = all.iter().filter(is_meant).map(closing).collect();
        latest.sort();
        assert!(newest.iter().eq(latest.iter().rev().take(9)), "{prefixes:?}, {hosts}: {newest:?}");
        let by = vec![Dimension::Host];
        let sums = world.sums(SummaryQuestion { sockets: question, by, limit: None }, at(10)).await.unwrap().0;
        assert_eq!(sums.iter().map(|sum| sum.sessions).sum::<u64>(), expected.len() as u64);
    }
    world.stop().await;
    let file = Connection::open(world.engine.folder().join("day-1.sealed")).unwrap();
    let busiest = "SELECT count(*) FROM peers GROUP BY peer_address ORDER BY 1 DESC LIMIT 1";
    assert!(number(&file, busiest) > 1, "one has more places than a row");
}

#[tokio::test]
async fn a_file_is_not_searched_for_an_address_that_its_filter_has_not_but_for_a_network() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    let sealed = sealed_second(&mut world).await;
    let found = async |world: &mut World<Hesitant<FEW>>, network: &str| {
        world.begin().await;
        let found = world.sessions(about(&[network], "*"), at(10_000)).await.map(|(rows, _)| rows.len());
        world.stop().await;
        found
    };
    let address = {
        let file = Connection::open(&sealed).unwrap();
        let of_a_round = "SELECT min(peer_address) FROM peers WHERE peer_address > x'04cb007100'";
        let address: Vec<u8> = file.query_row(of_a_round, [], |row| row.get(0)).unwrap();
        std::net::IpAddr::from(<[u8; 4]>::try_from(&address[1..]).unwrap())
    };
    let (one, two) = (format!("{address}/32"), format!("{address}/31"));
    let near = found(&mut world, &two).await.unwrap();
    assert_eq!(found(&mut world, &one).await.unwrap(), 3);
    // Were it searched, all would be found again, and not those alone that are in other files.
    change(&sealed, "UPDATE peer_filter SET blocks = zeroblob(length(blocks))");
    assert!(found(&mut world, &one).await.unwrap() < 3);
    assert_eq!(found(&mut world, &two).await.unwrap(), near);
    change(&sealed, "UPDATE peer_filter SET blocks = x'00'");
    let error = found(&mut world, &one).await;
    assert!(matches!(&error, Err(HistoryError::Engine(problem)) if problem.contains("part of a word")), "{error:?}");
}

#[tokio::test]
async fn a_place_that_leads_elsewhere_is_an_error_and_never_another_answer() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    let sealed = sealed_second(&mut world).await;
    let address: Vec<u8> = {
        let file = Connection::open(&sealed).unwrap();
        let of_a_round = "SELECT min(peer_address) FROM peers WHERE peer_address > x'04cb007100'";
        file.query_row(of_a_round, [], |row| row.get(0)).unwrap()
    };
    let [4, 203, 0, 113, round] = address[..] else { panic!("{address:?}") };
    let network = format!("203.0.113.{round}/32");
    let found = async |world: &World<Hesitant<FEW>>| {
        world.sessions(about(&[&network], "*"), at(10_000)).await.map(|(rows, _)| rows.len())
    };
    for (damage, words) in [
        ("first_place = first_place / 2048 * 2048", "has another peer in one"),
        ("first_place = first_place / 2048 * 2048 + 2047", "there is no such session"),
        ("places = x'80'", "a number is missing"),
    ] {
        world.begin().await;
        assert_eq!(found(&world).await.unwrap(), 3);
        world.stop().await;
        let whole = fs::read(&sealed).unwrap();
        change(&sealed, &format!("UPDATE peers SET {damage} WHERE peer_address = x'04cb0071{round:02x}'"));
        world.begin().await;
        let error = found(&world).await;
        assert!(matches!(&error, Err(HistoryError::Engine(problem)) if problem.contains(words)), "{words}: {error:?}");
        world.stop().await;
        fs::write(&sealed, whole).unwrap();
    }
}
