//! Changes: what opened, closed, changed hands or began to reach further, and how that is known.

use fleetsock_proto::{
    address::Scope,
    batch::{
        BatchKind::{Changes, SnapshotBegin, SnapshotEnd, SnapshotWhole},
        Socket,
    },
    change::{ChangeKind, ChangeRecord, ChangeSubject, Changed},
    owner::Owner,
    port::PortClass,
    question::{ChangeQuestion, PortQuestion, SocketFilter},
    socket::{
        Direction::{In, Out},
        Known,
    },
};
use fleetsock_server::history::{Bounds, HistoryError};

use crate::{
    engine::{Engine, Rules, World},
    scene::{Agent, Described, at, closed, listener, opened, owner, present, session, unix, updated},
};

/// A world with one host that said Hello and sent an empty snapshot.
async fn one_host<E: Engine>() -> (World<E>, Agent) {
    let world = World::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    (world, agent)
}

/// A change in one line: `12(between-walks) owner-changed 0.0.0.0:80 nginx/7 was apache/5`.
fn line(change: &ChangeRecord) -> String {
    let what = match &change.what {
        Changed::Listener(listener) => format!("{}:{}", listener.address, listener.port),
        Changed::Session(session) => format!("{} {}", session.local, session.peer),
        Changed::Start(start) => start.host.clone(),
    };
    let second = (change.at.as_micros() - at(0).as_micros()) / 1_000_000;
    let mut text = format!("{second}({}) {} {what}", change.known, change.kind);
    change.owners().iter().for_each(|owner| text += &format!(" {}/{}", owner.process, owner.pid));
    change.owners_before.iter().for_each(|owner| text += &format!(" was {}/{}", owner.process, owner.pid));
    change.scope_before.iter().for_each(|scope| text += &format!(" was {scope}"));
    text
}

async fn lines<E: Engine>(world: &World<E>, question: ChangeQuestion) -> Vec<String> {
    world.changes(question, at(1000)).await.unwrap().0.iter().map(line).collect()
}

fn of_kind(kind: ChangeKind) -> ChangeQuestion {
    ChangeQuestion { kinds: vec![kind], ..ChangeQuestion::default() }
}

pub(super) async fn an_owner_that_a_walk_saw_changed_between_it_and_the_walk_before<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let http = || listener(2, "0.0.0.0:80").since(10);
    let (apache, nginx, child, helper) = (owner("apache", 5), owner("nginx", 7), owner("nginx", 8), owner("helper", 9));
    world.tell(&mut agent, Changes, 11, vec![opened(http())]).await;
    world.tell(&mut agent, Changes, 12, vec![updated(http().held_by(&[apache]))]).await;
    world.tell(&mut agent, Changes, 21, vec![updated(http().held_by(std::slice::from_ref(&nginx)))]).await;
    // Other arguments, a child of the same program, and nobody to be seen.
    let titled = Owner { command_line: "nginx: 3 of 9".to_owned(), ..nginx.as_ref().clone() };
    world.tell(&mut agent, Changes, 21, vec![updated(http().held_by(&[titled.into()]))]).await;
    world.tell(&mut agent, Changes, 22, vec![updated(http().held_by(&[nginx.clone(), child]))]).await;
    world.tell(&mut agent, Changes, 23, vec![updated(http().held_by(&[]))]).await;
    world.tell(&mut agent, Changes, 31, vec![updated(http().held_by(&[nginx, helper]))]).await;
    world.tell(&mut agent, Changes, 41, vec![closed(http().held_by(&[owner("closer", 3)]), 40)]).await;
    assert_eq!(
        lines(&world, ChangeQuestion::default()).await,
        [
            "40(event) closed 0.0.0.0:80 closer/3",
            "40(between-walks) owner-changed 0.0.0.0:80 closer/3 was nginx/7 was helper/9",
            "31(between-walks) owner-changed 0.0.0.0:80 nginx/7 helper/9 was nginx/7 was nginx/8",
            "21(between-walks) owner-changed 0.0.0.0:80 nginx/7 was apache/5",
            "10(event) opened 0.0.0.0:80 apache/5",
        ]
    );
    for (moment, holders) in
        [(15, "apache/5"), (21, "nginx/7 nginx/8"), (30, "nginx/7 nginx/8"), (39, "nginx/7 helper/9")]
    {
        let row = world.listening_at(Some(moment)).await.remove(0);
        assert!(row.ends_with(&format!("(event) {holders}")), "at {moment}: {row}");
    }
}

pub(super) async fn an_owner_that_changed_while_nobody_looked_is_lost<E: Engine>() {
    let (mut world, mut agent) = one_host::<E>().await;
    let http = || listener(2, "0.0.0.0:80").since(10);
    world.tell(&mut agent, Changes, 12, vec![opened(http().held_by(&[owner("apache", 5)]))]).await;
    agent.restart();
    let snapshot = vec![present(http().held_by(&[owner("nginx", 7)]))];
    let batch = world.tell(&mut agent, SnapshotWhole, 30, snapshot).await;
    world.restart().await;
    // What arrives again changes nothing.
    fleetsock_server::history::History::apply(world.store().as_ref(), agent.host, batch).await.unwrap();
    let expected = ["12(lost) owner-changed 0.0.0.0:80 nginx/7 was apache/5"];
    assert_eq!(lines(&world, of_kind(ChangeKind::OwnerChanged)).await, expected);
    let (_, meta) = world.changes(ChangeQuestion::default(), at(99)).await.unwrap();
    assert_eq!((meta.gaps_total, meta.gaps[0].since), (1, at(12)), "the answer says what was not observed");
}

/// Batches between the parts of a snapshot tell of later walks than its parts do.
pub(super) async fn a_change_of_owners_is_never_told_before_the_one_before_it<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let held_by = |pid| listener(2, "0.0.0.0:80").since(10).held_by(&[owner("daemon", pid)]);
    world.tell(&mut agent, Changes, 12, vec![opened(held_by(1))]).await;
    world.tell(&mut agent, SnapshotBegin, 20, vec![present(held_by(2))]).await;
    world.tell(&mut agent, Changes, 21, vec![updated(held_by(3))]).await;
    world.tell(&mut agent, SnapshotEnd, 20, vec![present(held_by(4))]).await;
    assert_eq!(
        lines(&world, of_kind(ChangeKind::OwnerChanged)).await,
        [
            "21(lost) owner-changed 0.0.0.0:80 daemon/4 was daemon/3",
            "21(between-walks) owner-changed 0.0.0.0:80 daemon/3 was daemon/2",
            "12(lost) owner-changed 0.0.0.0:80 daemon/2 was daemon/1",
        ]
    );
    for (moment, pid) in [(11, 1), (12, 2), (20, 2), (21, 4)] {
        let row = world.listening_at(Some(moment)).await.remove(0);
        assert!(row.ends_with(&format!(" daemon/{pid}")), "at {moment}: {row}");
    }
}

pub(super) async fn a_port_that_is_reached_from_further_than_ever_before_has_a_wider_scope<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let mut second = 10;
    for (cookie, address) in
        ["127.0.0.1:80", "10.0.0.1:80", "127.0.0.1:80", "0.0.0.0:81", "0.0.0.0:80", "[::]:80"].iter().enumerate()
    {
        let life = listener(cookie as u64 + 1, address).since(second);
        world.tell(&mut agent, Changes, second + 1, vec![opened(life.clone())]).await;
        world.tell(&mut agent, Changes, second + 5, vec![closed(life, second + 4)]).await;
        second += 10;
    }
    let expected =
        ["50(event) scope-widened 0.0.0.0:80 was private", "20(event) scope-widened 10.0.0.1:80 was loopback"];
    assert_eq!(lines(&world, of_kind(ChangeKind::ScopeWidened)).await, expected);
}

pub(super) async fn starts_of_agents_and_hosts_are_told_when_asked_for<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    agent.restart();
    world.tell(&mut agent, SnapshotWhole, 20, Vec::new()).await;
    agent.reboot();
    world.tell(&mut agent, SnapshotWhole, 30, Vec::new()).await;
    let subjects = vec![ChangeSubject::Host];
    let question = ChangeQuestion { subjects, ..ChangeQuestion::default() };
    let expected =
        ["30(first-seen) host-booted web1", "20(first-seen) agent-started web1", "1(first-seen) agent-started web1"];
    assert_eq!(lines(&world, question).await, expected);
    assert_eq!(lines(&world, ChangeQuestion::default()).await, [""; 0]);
}

pub(super) async fn sessions_are_told_by_both_ends_among_the_listeners<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let life = |cookie, port: u16| session(cookie, "10.0.0.1:80", In, &format!("10.0.0.9:{port}"));
    let changes = vec![
        opened(listener(1, "0.0.0.0:80").since(15)),
        closed(life(2, 4002).since(10), 30),
        closed(life(3, 4003).since(20), 25),
        opened(life(4, 4004).since(22)),
    ];
    world.tell(&mut agent, Changes, 31, changes).await;
    let subjects = ChangeSubject::ALL.to_vec();
    let question = ChangeQuestion { subjects, since: Some(at(15)), until: Some(at(29)), ..ChangeQuestion::default() };
    assert_eq!(
        lines(&world, question.clone()).await,
        [
            "25(event) closed 10.0.0.1:80 10.0.0.9:4003",
            "22(event) opened 10.0.0.1:80 10.0.0.9:4004",
            "20(event) opened 10.0.0.1:80 10.0.0.9:4003",
            "15(event) opened 0.0.0.0:80",
        ]
    );
    let peers = vec!["10.0.0.0/8".parse().unwrap()];
    let cut = ChangeQuestion { peers, limit: Some(2), ..question };
    let (rows, meta) = world.changes(cut, at(99)).await.unwrap();
    assert_eq!((rows.len(), meta.truncated, meta.since, meta.until), (2, true, Some(at(15)), Some(at(29))));
}

/// Many changes of one moment, on more hosts than are read one by one.
pub(super) async fn every_change_is_told_once_however_many_there_are<E: Engine>() {
    const HOSTS: usize = 70;
    let world = World::<E>::new().await;
    let life = |cookie: u64| listener(cookie, &format!("0.0.0.0:{cookie}")).since(10);
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("host{number}")).await;
        // More than a page for one of them.
        let cookies = if number == 0 { 1..=600 } else { 1..=9 };
        world.tell(&mut agent, SnapshotWhole, 11, cookies.clone().map(|cookie| present(life(cookie))).collect()).await;
        world.tell(&mut agent, Changes, 21, cookies.map(|cookie| closed(life(cookie), 20)).collect()).await;
    }
    let all = world.changes(ChangeQuestion::default(), at(99)).await.unwrap().0;
    assert_eq!(all.len(), 2 * (600 + 9 * (HOSTS - 1)));
    assert!(all.is_sorted_by_key(|change| std::cmp::Reverse(change.at)));
    let mut one = ChangeQuestion::default();
    one.filter.hosts.globs = vec!["host0".to_owned()];
    let few = world.changes(one, at(99)).await.unwrap().0;
    assert!(few.iter().eq(all.iter().filter(|change| change.host() == "host0")));
    assert_eq!(few.len(), 1200);
}

pub(super) async fn changes_are_chosen_by_socket_scope_and_either_owner<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let http = |pid, name: &str| listener(1, "0.0.0.0:80").since(10).held_by(&[owner(name, pid)]);
    let dns = || listener(2, "127.0.0.1:53").udp().since(10).held_by(&[owner("dnsmasq", 9)]);
    world.tell(&mut agent, Changes, 12, vec![opened(http(5, "apache")), opened(dns())]).await;
    world.tell(&mut agent, Changes, 21, vec![updated(http(7, "nginx"))]).await;
    let count = async |change: fn(&mut ChangeQuestion)| {
        let mut question = ChangeQuestion::default();
        change(&mut question);
        lines(&world, question).await.len()
    };
    assert_eq!(count(|_| {}).await, 3);
    assert_eq!(count(|question| question.filter.ports = vec!["53".parse().unwrap()]).await, 1);
    assert_eq!(count(|question| question.scopes = vec![Scope::Any]).await, 2);
    assert_eq!(count(|question| question.filter.processes = vec!["apache".to_owned()]).await, 2, "opened, and was");
    assert_eq!(count(|question| question.filter.processes = vec!["nginx".to_owned()]).await, 1);
    assert_eq!(count(|question| question.filter.users = vec!["_dnsmasq".to_owned()]).await, 1);
    assert_eq!(count(|question| question.kinds = vec![ChangeKind::Closed]).await, 0);
    let mut then = PortQuestion { at: Some(at(15)), ..PortQuestion::default() };
    then.filter.processes = vec!["apache".to_owned()];
    assert_eq!(world.ports(then, at(99)).await.unwrap().0.len(), 1, "whoever held it then");
}

pub(super) async fn unix_listeners_are_told_apart_by_their_paths<E: Engine>() {
    let (mut world, mut agent) = one_host::<E>().await;
    let changes = vec![
        closed(unix(1, "/run/a.sock").since(110), 120),
        opened(unix(2, "/run/a.sock").since(210)),
        opened(unix(3, "/run/b.sock").since(211)),
        opened(unix(4, "@b").since(212)),
    ];
    world.tell(&mut agent, Changes, 221, changes).await;
    // The same ones, held by somebody now.
    let held = unix(3, "/run/b.sock").since(211).held_by(&[owner("b", 7)]);
    world.tell(&mut agent, Changes, 230, vec![updated(held)]).await;
    world.restart().await;
    let question = ChangeQuestion { since: Some(at(200)), baseline: Some(at(100)), ..ChangeQuestion::default() };
    assert_eq!(lines(&world, question).await, ["212(event) opened @b:1", "211(event) opened /run/b.sock:1 b/7"]);
    let (ports, _) = world.ports(PortQuestion::default(), at(300)).await.unwrap();
    let paths: Vec<String> = ports.iter().map(|port| port.address.to_string()).collect();
    assert_eq!(paths, ["/run/a.sock", "/run/b.sock", "@b"]);
    assert!(ports.iter().all(|port| (port.class(), port.scope()) == (PortClass::Portless, Scope::Loopback)));
    let loopback = PortQuestion { scopes: vec![Scope::Loopback], ..PortQuestion::default() };
    assert_eq!(world.ports(loopback, at(300)).await.unwrap().0.len(), 3);
}

pub(super) async fn what_is_new_was_not_there_since_the_baseline_began<E: Engine>() {
    let (world, mut agent) = one_host::<E>().await;
    let to = |cookie, peer: &str, port: u16| session(cookie, "10.0.0.1:5000", Out, &format!("{peer}:{port}"));
    let changes = vec![
        // Long ago, in the baseline, and in the window.
        closed(listener(1, "0.0.0.0:80").since(10), 20),
        closed(listener(2, "0.0.0.0:81").since(110), 120),
        opened(listener(3, "0.0.0.0:80").since(210)),
        opened(listener(4, "0.0.0.0:81").since(210)),
        opened(listener(5, "127.0.0.1:81").since(211)),
        closed(to(6, "10.0.0.9", 443).since(110), 120),
        closed(to(7, "10.0.0.9", 443).since(210), 220),
        closed(to(8, "10.0.0.9", 22).since(212), 220),
        opened(to(9, "10.0.0.8", 443).since(213)),
        opened(to(10, "10.0.0.8", 443).since(214)),
    ];
    world.tell(&mut agent, Changes, 221, changes).await;
    let subjects = ChangeSubject::ALL.to_vec();
    let question =
        ChangeQuestion { since: Some(at(200)), baseline: Some(at(100)), subjects, ..ChangeQuestion::default() };
    let expected = [
        "213(event) opened 10.0.0.1:5000 10.0.0.8:443",
        "212(event) opened 10.0.0.1:5000 10.0.0.9:22",
        "211(event) opened 127.0.0.1:81",
        "210(event) opened 0.0.0.0:80",
    ];
    assert_eq!(lines(&world, question.clone()).await, expected);
    let early = ChangeQuestion { baseline: Some(at(-100)), ..question };
    let (rows, meta) = world.changes(early, at(300)).await.unwrap();
    assert_eq!(rows.len(), 3, "with 0.0.0.0:80 in the baseline");
    assert_eq!((meta.gaps_total, meta.gaps[0].since), (1, at(-100)), "a baseline that nobody observed is told");

    // More than a page of those that are looked for where few are wanted; the rare ones are on the first and the last.
    let held = |n: u64| owner(if n.is_multiple_of(39) { "rare" } else { "common" }, 7);
    let since = |n: u64| 230 + n.cast_signed();
    let new = |n: u64| opened(listener(100 + n, &format!("0.0.0.0:{}", 1000 + n)).since(since(n)).held_by(&[held(n)]));
    world.tell(&mut agent, Changes, 280, (0..40).map(new).collect()).await;
    let by = |processes: &[&str], limit| ChangeQuestion {
        since: Some(at(225)),
        baseline: Some(at(100)),
        filter: SocketFilter {
            processes: processes.iter().map(|name| (*name).to_owned()).collect(),
            ..SocketFilter::default()
        },
        limit,
        ..ChangeQuestion::default()
    };
    for (question, expected, truncated) in [
        (by(&[], None), (0..40).rev().collect::<Vec<u64>>(), false),
        (by(&[], Some(20)), (20..40).rev().collect(), true),
        (by(&["rare"], Some(2)), vec![39, 0], false),
        (by(&["rare"], Some(1)), vec![39], true),
    ] {
        let (rows, meta) = world.changes(question, at(300)).await.unwrap();
        let moments: Vec<_> = rows.iter().map(|row| row.at).collect();
        assert_eq!(moments, expected.into_iter().map(|n| at(since(n))).collect::<Vec<_>>());
        assert_eq!(meta.truncated, truncated);
    }
}

/// More sessions at once than may wait for their turn: the question is refused with words, and costs no more memory.
pub(super) async fn a_question_that_would_hold_too_much_is_refused_with_words<E: Engine>() {
    let bounds = Bounds { time: std::time::Duration::from_secs(120), ..Bounds::default() };
    let world = World::<E>::with(Rules { bounds, ..Rules::default() }).await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, Vec::new()).await;
    let life = |number: u64| -> Socket {
        let peer = format!("10.{}.{}.9:{}", number / 65_536, number / 256 % 256, 1 + number % 256);
        session(number, "10.0.0.1:80", In, &peer).since(10).known(Known::Event)
    };
    for batch in 0..26 {
        let numbers = batch * 4_000..(batch + 1) * 4_000;
        world.tell(&mut agent, Changes, 11, numbers.map(|number| opened(life(number + 1))).collect()).await;
    }
    let subjects = vec![ChangeSubject::Session];
    let question = ChangeQuestion { subjects, ..ChangeQuestion::default() };
    let refused = world.changes(question, at(99)).await;
    assert!(matches!(&refused, Err(HistoryError::TooMuch(words)) if words.contains("fewer hosts")), "{refused:?}");
}
