//! New sessions: what is told of the kinds of a sealed file, held against what its sessions tell.

use std::collections::BTreeMap;

use fleetsock_proto::{
    change::{ChangeKind, ChangeRecord, ChangeSubject, Changed},
    host::HostSelector,
    question::ChangeQuestion,
    socket::Family,
};

use super::{peers::about, *};

const HOUR: i64 = 3600;
const HOURS: i64 = 60;
/// Sessions of each host that close in an hour.
const EACH: i64 = 7;
/// Several files, none of which begins or ends with an hour.
const ROWS: i64 = 290;

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: i64) -> i64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % limit.unsigned_abs()).cast_signed()
    }

    /// A peer that comes again after hours or days, or never.
    fn peer(&mut self) -> String {
        let number = [self.below(4), self.below(30), self.below(2000)][usize::try_from(self.below(3)).unwrap()];
        match number % 3 {
            0 => format!("[2001:db8::{number:x}]"),
            _ => format!("10.{}.{}.9", number % 5, number / 5 % 250),
        }
    }
}

async fn live_for_days(world: &World<Hesitant<ROWS>>) {
    let (mut numbers, mut agents) = (Numbers(7), Vec::new());
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("web{number}")).await;
        world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
        agents.push(agent);
    }
    for hour in 1..=HOURS {
        let end = hour * HOUR;
        for (number, agent) in (0..).zip(&mut agents) {
            let life = |n: i64| {
                let cookie = ((hour * HOSTS + number) * EACH + n + 1).unsigned_abs();
                let closed_at = end - numbers.below(HOUR);
                let opened_at = closed_at - [1, 40, 4000, 40_000][usize::try_from(numbers.below(4)).unwrap()];
                let (peer, other) = (numbers.peer(), 40_000 + cookie % 9000);
                let port = [22, 443, 5432, 8080][usize::try_from(numbers.below(4)).unwrap()];
                // So some of a kind are of another family.
                let own = ["10.0.0.1", "[2001:db8:1::1]"][usize::try_from(numbers.below(2)).unwrap()];
                let socket = match numbers.below(2) {
                    0 => session(cookie, &format!("{own}:{other}"), Out, &format!("{peer}:{port}")),
                    _ => session(cookie, &format!("{own}:{port}"), In, &format!("{peer}:{other}")),
                };
                // Some hold sessions of one kind in turns.
                let holder = ["nginx", "haproxy"][usize::try_from(numbers.below(2)).unwrap()];
                closed(socket.since(opened_at).held_by(&[owner(holder, 7)]), closed_at)
            };
            let lives: Vec<_> = (0..EACH).map(life).collect();
            world.tell(agent, Changes, end, lives).await;
        }
    }
}

fn line(one: &Session) -> String {
    format!("{} {}", one.opened_at.as_micros(), session_line(one))
}

/// What sessions have in common that are alike.
fn kind(one: &Session) -> (String, std::net::IpAddr, bool, u16, String) {
    let (is_in, port) = match one.direction {
        In => (true, one.local.port()),
        Out => (false, one.peer.port()),
    };
    (one.host.clone(), one.peer.ip(), is_in, port, one.protocol.to_string())
}

/// The new ones of all that are meant, by the definition.
fn new_ones(all: &[Session], question: &ChangeQuestion) -> BTreeSet<String> {
    let (since, until, baseline) = (question.since.unwrap(), question.until.unwrap(), question.baseline.unwrap());
    let mut firsts: BTreeMap<_, (Timestamp, Vec<&Session>)> = BTreeMap::new();
    let closed_at = |one: &Session| one.closed.unwrap().0;
    for one in all.iter().filter(|one| closed_at(one) >= since && one.opened_at <= until) {
        let first = firsts.entry(kind(one)).or_insert((one.opened_at, Vec::new()));
        if one.opened_at < first.0 {
            *first = (one.opened_at, Vec::new());
        }
        if one.opened_at == first.0 {
            first.1.push(one);
        }
    }
    for before in all.iter().filter(|one| one.opened_at < since && closed_at(one) >= baseline) {
        firsts.remove(&kind(before));
    }
    firsts.into_values().flat_map(|(_, ones)| ones).map(line).collect()
}

/// Whether a filter means a session.
type IsMeant = fn(&Session) -> bool;

/// Of whom is asked: what kinds tell, and what sessions of one kind need not have in common.
fn questions() -> [(SocketFilter, IsMeant); 5] {
    let hosts = HostSelector { globs: vec!["web1".to_owned()], ..HostSelector::default() };
    let none = SocketFilter::default;
    [
        (none(), |_| true),
        (SocketFilter { hosts, ..none() }, |one| one.host == "web1"),
        (SocketFilter { ports: vec![PortRange::new(400, 6000).unwrap()], ..none() }, |one| {
            (400..=6000).contains(&kind(one).3)
        }),
        (SocketFilter { processes: vec!["nginx".to_owned()], ..none() }, |one| one.owners[0].process == "nginx"),
        (SocketFilter { families: vec![Family::Ipv6], ..none() }, |one| one.family == Family::Ipv6),
    ]
}

/// Asks about many windows; how many there were new in all.
async fn all_windows_are_right(world: &World<Hesitant<ROWS>>, all: &[Session]) -> usize {
    let now = at((HOURS + 1) * HOUR);
    let whole_hour = |at: Timestamp| {
        let hour_us = HOUR * 1_000_000;
        Timestamp::from_micros(at.as_micros().div_euclid(hour_us) * hour_us)
    };
    let mut numbers = Numbers(11);
    let mut found = 0;
    for turn in 0..60 {
        let begin = numbers.below(HOURS * HOUR);
        let end = begin + 1 + numbers.below(5 * HOUR);
        let before = begin - 1 - numbers.below(50 * HOUR);
        let mut window = [before, begin, end].map(at);
        if turn % 2 == 0 {
            window = window.map(whole_hour);
        }
        let [baseline, since, until] = window;
        for (filter, is_meant) in questions() {
            let question = ChangeQuestion {
                filter,
                kinds: vec![ChangeKind::Opened],
                subjects: vec![ChangeSubject::Session],
                since: Some(since),
                until: Some(until),
                baseline: Some(baseline),
                ..ChangeQuestion::default()
            };
            let meant: Vec<Session> = all.iter().filter(|one| is_meant(one)).cloned().collect();
            let expected = new_ones(&meant, &question);
            let asked = [None, Some(1000)].map(|limit| ChangeQuestion { limit, ..question.clone() });
            for question in asked {
                let (rows, _) = world.changes(question, now).await.unwrap();
                let of = |row: &ChangeRecord| match &row.what {
                    Changed::Session(one) => line(one),
                    other => panic!("{other:?}"),
                };
                assert_eq!(rows.iter().map(of).collect::<BTreeSet<_>>(), expected, "{since:?} {until:?} {baseline:?}");
            }
            found += expected.len();
        }
    }
    found
}

#[tokio::test]
async fn what_is_new_is_told_by_kinds_and_by_sessions_alike() {
    let mut world = World::<Hesitant<ROWS>>::new().await;
    live_for_days(&world).await;
    let question =
        SessionQuestion { time: SessionTime::Within { since: Timestamp::MIN, until: None }, ..about(&[], "*") };
    let all = world.sessions(question, at((HOURS + 1) * HOUR)).await.unwrap().0;
    assert_eq!(i64::try_from(all.len()).unwrap(), HOSTS * HOURS * EACH);
    let found = all_windows_are_right(&world, &all).await;
    assert!(found > 1000, "{found}");

    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    assert_eq!(all_windows_are_right(&world, &all).await, found);
    world.stop().await;

    let sealed = world.engine.files(".sealed");
    assert!(sealed.len() >= 4, "{sealed:?}");
    for (number, name) in sealed.iter().enumerate() {
        let path = world.engine.folder().join(name);
        let file = Connection::open(&path).unwrap();
        let stretches: i64 = file.query_row("SELECT count(*) FROM kinds", [], |row| row.get(0)).unwrap();
        assert!(stretches > 1, "{stretches} in {name}");
        // Some, as the version before kinds sealed them.
        if number % 2 == 0 {
            change(&path, "DROP TABLE kinds; DELETE FROM refinery_schema_history WHERE version > 8");
        }
    }
    world.begin().await;
    assert_eq!(all_windows_are_right(&world, &all).await, found);
    world.stop().await;

    // So it is known that they are asked.
    for name in &sealed {
        let path = world.engine.folder().join(name);
        let file = Connection::open(&path).unwrap();
        if file.query_row("SELECT count(*) FROM sqlite_schema WHERE name = 'kinds'", [], |row| row.get(0)) == Ok(1) {
            change(&path, "UPDATE kinds SET kinds = x'ff'");
        }
    }
    world.begin().await;
    let question = ChangeQuestion {
        subjects: vec![ChangeSubject::Session],
        since: Some(at((HOURS - 1) * HOUR)),
        baseline: Some(at(0)),
        ..ChangeQuestion::default()
    };
    let refused = world.changes(question, at((HOURS + 1) * HOUR)).await.unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    world.stop().await;
}
