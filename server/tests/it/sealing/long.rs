//! What was open at a moment of a file that is not sealed, and closed soon after it or hours later.

use fleetsock_proto::{
    host::HostSelector, port::PortClass, question::SummaryQuestion, socket::Direction, summary::Dimension,
};

use super::*;

/// More hosts than are each looked for, with the rows of some zones.
const HOSTS: i64 = 70;
const EACH: i64 = 60;
/// How long they last, in seconds: less than a minute, as long, and more.
const LASTS: [i64; 6] = [0, 1, 59, 60, 61, 9_000];

fn opens(number: i64) -> i64 {
    number * 37 % 10_000
}

fn closes(number: i64) -> i64 {
    opens(number) + LASTS[usize::try_from(number).unwrap() % LASTS.len()]
}

/// The port of the other end.
fn port(number: i64) -> i64 {
    if number % 4 == 1 { 8_443 } else { 443 }
}

fn direction(number: i64) -> Direction {
    if number % 5 == 2 { In } else { Out }
}

/// The port of the service: some are well-known.
fn service(number: i64) -> i64 {
    if direction(number) == In { 1 + number } else { port(number) }
}

fn question(time: SessionTime, hosts: &str) -> SessionQuestion {
    let hosts = HostSelector { globs: vec![hosts.to_owned()], ..HostSelector::default() };
    let filter = SocketFilter { hosts, ..SocketFilter::default() };
    SessionQuestion { time, filter, ..SessionQuestion::default() }
}

/// A time, and of those that are meant the earliest closing and the latest opening.
fn times() -> Vec<(SessionTime, i64, i64)> {
    let moments = [-1, 0, 1, 59, 3_000, 9_999, 19_000].into_iter().map(|t| (SessionTime::At(at(t)), t + 1, t));
    let windows = [(0, 10), (50, 1_000), (1_000, 1_700), (0, 30_000)]
        .into_iter()
        .map(|(since, until)| (SessionTime::Within { since: at(since), until: Some(at(until)) }, since, until));
    moments.chain(windows).collect()
}

/// The sessions of so many hosts are there, and no others.
async fn answers_are_right(world: &World<Hesitant<MANY>>, count: i64) {
    let now = at(40_000);
    let well_known = Some(PortClass::WellKnown);
    for (hosts, meant, peer, class) in [
        ("*", count, None, None),
        ("*", count, None, well_known),
        ("host0*", 10, None, None),
        ("*", count, Some("10.9.9.9/32"), None),
    ] {
        let question = |time, hosts| {
            let peers = peer.iter().map(|peer| peer.parse().unwrap()).collect();
            let question = question(time, hosts);
            let filter = SocketFilter { classes: class.into_iter().collect(), ..question.filter };
            SessionQuestion { peers, filter, ..question }
        };
        for (time, since, until) in times() {
            let is_meant = |number: &i64| number % HOSTS < meant && (class.is_none() || service(*number) < 1024);
            let all = (0..HOSTS * EACH).filter(is_meant);
            let expected: Vec<i64> = all.filter(|number| opens(*number) <= until && closes(*number) >= since).collect();
            let numbers = |found: &[Session]| {
                let mut numbers: Vec<i64> = found.iter().map(|one| i64::from(one.local.port()) - 1).collect();
                numbers.sort_unstable();
                numbers
            };
            let found = world.sessions(question(time, hosts), now).await.unwrap().0;
            assert!(found.is_sorted_by_key(|one| std::cmp::Reverse(one.closed.map(|(at, _)| at))), "{time:?}");
            assert!(numbers(&found) == expected, "{time:?}, {hosts}: {} of {}", found.len(), expected.len());

            let some = SessionQuestion { limit: Some(50), ..question(time, hosts) };
            let first = world.sessions(some, now).await.unwrap().0;
            let closed = |some: &[Session]| some.iter().take(50).map(|one| one.closed).collect::<Vec<_>>();
            assert_eq!(closed(&first), closed(&found), "{time:?}");

            let before = SessionQuestion { closed_before: Some(at(5_000)), ..question(time, hosts) };
            let earlier = world.sessions(before, now).await.unwrap().0;
            let expected_earlier: Vec<i64> =
                expected.iter().copied().filter(|number| closes(*number) < 5_000).collect();
            assert!(numbers(&earlier) == expected_earlier, "{time:?}, {hosts}");

            // States are in no sums, so that each session is counted by itself.
            let sockets = SessionQuestion { states: SocketState::ALL.to_vec(), ..question(time, hosts) };
            let by_host = SummaryQuestion { sockets, by: vec![Dimension::Host], limit: None };
            let counted: u64 = world.sums(by_host, now).await.unwrap().0.iter().map(|sum| sum.sessions).sum();
            assert_eq!(counted, expected.len() as u64, "{time:?}, {hosts}");
        }
    }
}

async fn tell(world: &World<Hesitant<MANY>>, host: i64) {
    let mut agent = world.host(&format!("host{host:02}")).await;
    let mut numbers: Vec<i64> = (0..EACH).map(|n| n * HOSTS + host).collect();
    numbers.sort_by_key(|number| closes(*number));
    let lives = numbers.iter().map(|number| {
        let local = format!("10.0.0.1:{}", 1 + number);
        let peer = format!("10.9.9.9:{}", port(*number));
        closed(
            session(1 + number.unsigned_abs(), &local, direction(*number), &peer).since(opens(*number)),
            closes(*number),
        )
    });
    world.tell(&mut agent, SnapshotWhole, 30_000, lives.collect()).await;
}

#[tokio::test]
async fn what_was_open_is_shown_once_and_in_order_whenever_it_closed() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    for host in 0..HOSTS - 2 {
        tell(&world, host).await;
    }
    answers_are_right(&world, HOSTS - 2).await;

    // Of the zones of before nothing is told, and the last of them is one that goes on.
    world.stop().await;
    let path = world.engine.folder().join("day-1.db");
    change(&path, "DELETE FROM zone_long WHERE first_id < 2000 OR first_id = (SELECT max(first_id) FROM zones)");
    world.begin().await;
    tell(&world, HOSTS - 2).await;
    answers_are_right(&world, HOSTS - 1).await;
    world.stop().await;
    let told = || {
        let file = Connection::open(&path).unwrap();
        file.query_row("SELECT count(*) FROM zone_long", [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!(told(), 2, "of the others, and not of the one that nothing was told of");

    // What an earlier version told had no ports, and is not read.
    let earlier = "UPDATE zone_long SET rows = x'050903'; DROP TABLE peer_sums; DROP TABLE peer_spans;
        DELETE FROM refinery_schema_history WHERE version > 8";
    change(&path, earlier);
    world.begin().await;
    assert_eq!(told(), 0);
    tell(&world, HOSTS - 1).await;
    answers_are_right(&world, HOSTS).await;
    world.stop().await;
}
