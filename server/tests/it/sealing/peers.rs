//! Who had sessions with a peer, before these are sealed: by an index of most rows, and by what the writer knows of the last ones.

use fleetsock_proto::host::HostSelector;

use super::*;

const HOSTS: u64 = 70;
/// Together more rows than one segment of the index has.
const EACH: u64 = 500;

/// Makes of the file what the version before the index made, which had a filter for each zone. Here they deny every peer: nobody
/// asks them any more.
const BEFORE: &str = "DROP TABLE zone_long;
    ALTER TABLE zones ADD COLUMN peers BLOB;
    UPDATE zones SET peers = zeroblob(2048);
    DROP TABLE segments;
    DROP TABLE postings;
    DROP TABLE cubes;
    DROP TABLE cube_hours;
    DROP TABLE peer_sums;
    DROP TABLE peer_spans;
    DELETE FROM refinery_schema_history WHERE version > 4;";

pub(super) fn peer(number: u64) -> String {
    match number % 5 {
        0 => format!("[2001:db8:{:x}::{:x}]:443", number % 300, number),
        // One that all hosts have many sessions with.
        1 if number.is_multiple_of(4) => "10.9.9.9:443".to_owned(),
        _ => format!("{}.{}.{}.{}:443", 20 + number % 3, number % 7, number % 11, number % 251),
    }
}

/// The question about sessions with these networks.
pub(super) fn about(prefixes: &[&str], hosts: &str) -> SessionQuestion {
    let peers = prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect();
    let time = SessionTime::Within { since: at(0), until: None };
    let hosts = HostSelector { globs: vec![hosts.to_owned()], ..HostSelector::default() };
    let filter = SocketFilter { hosts, ..SocketFilter::default() };
    SessionQuestion { peers, time, filter, ..SessionQuestion::default() }
}

async fn ask<const ROWS: i64>(world: &World<Hesitant<ROWS>>, prefix: Option<&str>, hosts: &str) -> Vec<Session> {
    let prefixes: Vec<&str> = prefix.into_iter().collect();
    world.sessions(about(&prefixes, hosts), at(10)).await.unwrap().0
}

pub(super) async fn all_are_found<const ROWS: i64>(world: &World<Hesitant<ROWS>>, rows: u64) {
    let all = ask(world, None, "*").await;
    assert_eq!(all.len() as u64, rows);
    let prefixes = [
        "21.3.4.90/32",
        "10.9.9.9/32",
        "20.0.0.0/8",
        "22.5.10.0/24",
        "21.6.8.128/26",
        "2001:db8:7::/48",
        "::/0",
        "1.2.3.4/32",
    ];
    let exact = all.iter().step_by(1777).chain(all.iter().rev().take(3)).map(|one| ipnet::IpNet::from(one.peer.ip()));
    for network in prefixes.iter().map(|prefix| prefix.parse().unwrap()).chain(exact) {
        for hosts in ["*", "host07", "host1?"] {
            let pattern = glob::Pattern::new(hosts).unwrap();
            let is_meant = |one: &&Session| network.contains(&one.peer.ip()) && pattern.matches(&one.host);
            // Those of one moment have no order.
            let mut expected: Vec<_> = all.iter().filter(is_meant).map(session_line).collect();
            let found = ask(world, Some(&network.to_string()), hosts).await;
            assert!(
                found.is_sorted_by_key(|one| std::cmp::Reverse(one.closed.map(|(at, _)| at))),
                "{network}, {hosts}"
            );
            let mut found: Vec<_> = found.iter().map(session_line).collect();
            expected.sort();
            found.sort();
            assert!(found == expected, "{network}, {hosts}: {} of {}", found.len(), expected.len());
        }
    }
}

#[tokio::test]
async fn a_peer_is_found_among_thousands_of_rows_of_many_hosts_before_they_are_sealed() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    for host in 0..HOSTS {
        let mut agent = world.host(&format!("host{host:02}")).await;
        let lives = (0..EACH).map(|n| {
            let local = format!("10.0.0.1:{}", 1 + host * EACH + n);
            closed(session(1 + n, &local, Out, &peer(host * EACH + n)).since(1), 2 + i64::try_from(n % 7).unwrap())
        });
        world.tell(&mut agent, SnapshotWhole, 3, lives.collect()).await;
    }
    all_are_found(&world, HOSTS * EACH).await;
    world.stop().await;
    let path = world.engine.folder().join("day-1.db");
    assert_eq!(segments(&path), (1, 32_768));

    change(&path, BEFORE);
    world.begin().await;
    all_are_found(&world, HOSTS * EACH).await;
    let mut agent = world.host("late").await;
    world.tell(&mut agent, SnapshotWhole, 4, vec![closed(session(1, "10.0.0.1:1", Out, &peer(7)).since(1), 2)]).await;
    all_are_found(&world, HOSTS * EACH + 1).await;
    world.stop().await;
    assert_eq!(segments(&path), (1, 32_768), "a file of before gets its segments");
}

/// How many segments the index of a file has, and the last row that is in one.
fn segments(path: &Path) -> (i64, i64) {
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let sql = "SELECT count(*), coalesce(max(last_id), 0) FROM segments";
    Connection::open(path).unwrap().query_row(sql, [], read).unwrap()
}

#[tokio::test]
async fn a_file_that_is_complete_has_all_of_its_rows_in_the_index_and_their_sums() {
    const LIVES: u64 = 3 * FEW.unsigned_abs();
    let mut world = World::<Hesitant<FEW>>::new().await;
    for n in 0..LIVES {
        let life = session(1, "10.0.0.1:1", Out, &peer(n)).since(1);
        let mut agent = world.host(&format!("host{n:02}")).await;
        world.tell(&mut agent, SnapshotWhole, 3, vec![closed(life, 2)]).await;
    }
    all_are_found(&world, LIVES).await;
    world.stop().await;
    let mut complete: Vec<PathBuf> =
        world.engine.files(".db").iter().map(|name| world.engine.folder().join(name)).collect();
    let hot = complete.pop().unwrap();
    assert!(complete.len() > 1, "{complete:?}");
    for path in &complete {
        let file = Connection::open(path).unwrap();
        let number = |sql: &str| file.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
        let rows = number("SELECT max(id) FROM sessions");
        assert!(rows >= FEW);
        assert_eq!((segments(path), number("SELECT max(last_id) FROM cubes")), ((1, rows), rows), "{path:?}");
    }
    assert_eq!(segments(&hot), (0, 0));
    world.begin().await;
    all_are_found(&world, LIVES).await;
    world.stop().await;
}
