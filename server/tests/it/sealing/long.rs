//! What was open at a moment of a file that is not sealed, and closed soon after it or hours later.

use fleetsock_proto::{host::HostSelector, question::SummaryQuestion, summary::Dimension};

use super::*;

/// More hosts than are each looked for, with more sessions than are read at once.
const HOSTS: i64 = 70;
const EACH: i64 = 60;
/// How long they last, in seconds: less than ten minutes, as long, and more.
const LASTS: [i64; 6] = [0, 1, 599, 600, 601, 9_000];

fn opens(number: i64) -> i64 {
    number * 37 % 10_000
}

/// Many close at one moment.
fn closes(number: i64) -> i64 {
    opens(number) + LASTS[usize::try_from(number).unwrap() % LASTS.len()]
}

fn question(time: SessionTime, hosts: &str) -> SessionQuestion {
    let hosts = HostSelector { globs: vec![hosts.to_owned()], ..HostSelector::default() };
    let filter = SocketFilter { hosts, ..SocketFilter::default() };
    SessionQuestion { time, filter, ..SessionQuestion::default() }
}

#[tokio::test]
async fn what_was_open_is_shown_once_and_in_order_whenever_it_closed() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    for host in 0..HOSTS {
        let mut agent = world.host(&format!("host{host:02}")).await;
        let mut numbers: Vec<i64> = (0..EACH).map(|n| n * HOSTS + host).collect();
        numbers.sort_by_key(|number| closes(*number));
        let lives = numbers.iter().map(|number| {
            let local = format!("10.0.0.1:{}", 1 + number);
            closed(
                session(1 + number.unsigned_abs(), &local, Out, "10.9.9.9:443").since(opens(*number)),
                closes(*number),
            )
        });
        world.tell(&mut agent, SnapshotWhole, 30_000, lives.collect()).await;
    }
    let now = at(40_000);
    // When those that are meant closed at the earliest, and opened at the latest.
    let times: Vec<(SessionTime, i64, i64)> = [-1, 0, 1, 599, 3_000, 9_999, 19_000]
        .into_iter()
        .map(|t| (SessionTime::At(at(t)), t + 1, t))
        .chain(
            [(0, 10), (50, 1_000), (1_000, 1_700), (0, 30_000)]
                .into_iter()
                .map(|(since, until)| (SessionTime::Within { since: at(since), until: Some(at(until)) }, since, until)),
        )
        .collect();
    for (hosts, count) in [("*", HOSTS), ("host0*", 10)] {
        for (time, since, until) in &times {
            let all = (0..HOSTS * EACH).filter(|number| number % HOSTS < count);
            let mut expected: Vec<i64> =
                all.filter(|number| opens(*number) <= *until && closes(*number) >= *since).collect();
            let found = world.sessions(question(*time, hosts), now).await.unwrap().0;
            assert!(found.is_sorted_by_key(|one| std::cmp::Reverse(one.closed.map(|(at, _)| at))), "{time:?}");
            let mut numbers: Vec<i64> = found.iter().map(|one| i64::from(one.local.port()) - 1).collect();
            numbers.sort_unstable();
            expected.sort_unstable();
            assert!(numbers == expected, "{time:?}, {hosts}: {} of {}", numbers.len(), expected.len());

            let some = SessionQuestion { limit: Some(50), ..question(*time, hosts) };
            let first = world.sessions(some, now).await.unwrap().0;
            assert_eq!(
                first.iter().map(|one| one.closed).collect::<Vec<_>>(),
                found.iter().take(50).map(|one| one.closed).collect::<Vec<_>>(),
                "{time:?}"
            );
            // States are in no sums, so that each session is counted by itself.
            let sockets = SessionQuestion { states: SocketState::ALL.to_vec(), ..question(*time, hosts) };
            let by_host = SummaryQuestion { sockets, by: vec![Dimension::Host], limit: None };
            let counted: u64 = world.sums(by_host, now).await.unwrap().0.iter().map(|sum| sum.sessions).sum();
            assert_eq!(counted, expected.len() as u64, "{time:?}, {hosts}");
        }
    }
    world.stop().await;
}
