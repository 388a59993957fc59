//! The table against a simple model, and each of its rules by itself.

use std::{collections::BTreeMap, net::SocketAddr};

use fleetsock_proto::socket::{Direction, Family};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::capture::Walked;

mod absence;
mod ends;

const NOBODY: u64 = 0;

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + second * 1_000_000)
}

fn row(cookie: u64, state: SocketState, local: &str, peer: Option<&str>) -> SocketRow {
    SocketRow {
        key: SocketKey { netns: 1, cookie },
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        state,
        local: local.parse().unwrap(),
        peer: peer.map(|peer| peer.parse().unwrap()),
        inode: 100 + cookie,
        uid: 0,
        cgroup_id: 0,
    }
}

fn listener(cookie: u64, local: &str) -> SocketRow {
    row(cookie, SocketState::Listen, local, None)
}

fn session(cookie: u64, local: &str, peer: &str) -> SocketRow {
    row(cookie, SocketState::Established, local, Some(peer))
}

fn udp(mut row: SocketRow) -> SocketRow {
    row.protocol = Protocol::Udp;
    row
}

fn unconnected(cookie: u64, local: &str) -> SocketRow {
    udp(row(cookie, SocketState::Unconnected, local, None))
}

fn owner(pid: u32) -> Arc<Owner> {
    Arc::new(Owner {
        pid,
        started_at: Some(at(0)),
        process: format!("p{pid}"),
        exe: String::new(),
        uid: 0,
        user: "root".to_owned(),
        container: String::new(),
        unit: String::new(),
        command_line: String::new(),
    })
}

/// A scan that finds these processes for these inodes.
fn scan(found: &[(u64, &[u32])]) -> OwnerScan {
    OwnerScan {
        owners: found.iter().map(|(inode, pids)| (*inode, pids.iter().map(|pid| owner(*pid)).collect())).collect(),
        ..OwnerScan::default()
    }
}

fn denied() -> OwnerScan {
    OwnerScan { denied: 1, ..OwnerScan::default() }
}

/// A survey of the namespaces that occur here, whole or not, of so much.
fn survey(coverage: Coverage, completeness: Completeness) -> SurveyReport {
    let interrupted = u64::from(completeness == Completeness::Partial);
    let walked = Walked {
        coverage,
        report: WalkReport { interrupted, ..WalkReport::default() },
        portless: Ok(()),
        others: Ok(()),
        unix: Ok(()),
    };
    SurveyReport { walked: [(1, walked), (2, walked)].into(), ..SurveyReport::default() }
}

/// Whether a walk saw every socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Completeness {
    Whole,
    Partial,
}

static NOTHING_VANISHED: BTreeSet<u64> = BTreeSet::new();

fn walk<'a>(second: i64, rows: &'a [SocketRow], survey: &'a SurveyReport) -> Walk<'a> {
    Walk { rows, began: at(second), at: at(second), survey, vanished: &NOTHING_VANISHED }
}

fn whole() -> SurveyReport {
    survey(Coverage::Everything, Completeness::Whole)
}

fn partial() -> SurveyReport {
    survey(Coverage::Everything, Completeness::Partial)
}

/// Both steps of one walk.
fn step(table: &mut Table, second: i64, rows: &[SocketRow], scan: &OwnerScan) -> Vec<Change> {
    let wanted = table.wanted(rows, Search::Unknown);
    table.apply(walk(second, rows, &whole()), &wanted, scan, &()).changes
}

fn ops(changes: &[Change]) -> Vec<(&'static str, u64)> {
    changes
        .iter()
        .map(|change| {
            let op = match change.op {
                Op::Opened => "opened",
                Op::Closed { .. } => "closed",
                Op::Updated => "updated",
                Op::Present => "present",
            };
            (op, change.socket.key.cookie)
        })
        .collect()
}

fn direction(changes: &[Change], cookie: u64) -> Direction {
    let change = changes.iter().find(|change| change.op == Op::Opened && change.socket.key.cookie == cookie).unwrap();
    match change.socket.role {
        Role::Session { direction, .. } => direction,
        Role::Listener => panic!("{cookie} is a listener"),
    }
}

fn socket(table: &Table, cookie: u64) -> Socket {
    table.snapshot().find(|change| change.socket.key.cookie == cookie).unwrap().socket
}

#[test]
fn the_first_walk_tells_what_was_open_and_later_ones_what_opened_between() {
    let mut table = Table::default();
    let first = step(&mut table, 1, &[listener(1, "0.0.0.0:80")], &OwnerScan::default());
    let second = step(&mut table, 2, &[listener(1, "0.0.0.0:80"), listener(2, "0.0.0.0:81")], &OwnerScan::default());
    assert_eq!((first[0].socket.opened_at, first[0].socket.opened_known), (at(1), Known::FirstSeen));
    assert_eq!((second[0].socket.opened_at, second[0].socket.opened_known), (at(2), Known::BetweenWalks));
    assert_eq!(table.observed_since(), Some(at(2)));
    let third = step(&mut table, 3, &[listener(2, "0.0.0.0:81")], &OwnerScan::default());
    assert_eq!(third[0].op, Op::Closed { at: at(3), known: Known::BetweenWalks });
    assert_eq!(third[0].socket.opened_at, at(1));
}

#[test]
fn what_a_partial_walk_did_not_see_stays_open_and_the_next_one_looks_back_past_it() {
    let mut table = Table::default();
    step(&mut table, 1, &[listener(1, "0.0.0.0:80")], &OwnerScan::default());
    let rows = [listener(2, "0.0.0.0:81")];
    let wanted = table.wanted(&rows, Search::Unknown);
    let changes = table.apply(walk(2, &rows, &partial()), &wanted, &OwnerScan::default(), &()).changes;
    assert_eq!(ops(&changes), [("opened", 2)]);
    assert_eq!((table.observed_since(), table.observed_until()), (Some(at(1)), Some(at(2))));
    assert_eq!(ops(&step(&mut table, 3, &rows, &OwnerScan::default())), [("closed", 1)]);
}

#[test]
fn a_clock_that_was_set_back_closes_nothing_before_it_opened() {
    let mut table = Table::default();
    step(&mut table, 100, &[listener(1, "0.0.0.0:80")], &OwnerScan::default());
    let changes = step(&mut table, 50, &[], &OwnerScan::default());
    assert_eq!(changes[0].op, Op::Closed { at: at(100), known: Known::BetweenWalks });
}

#[test]
fn only_new_and_newly_accepted_sockets_are_looked_for_and_the_referee_looks_for_all() {
    let mut table = Table::default();
    let mut waiting = session(2, "10.0.0.1:80", "10.0.0.9:4000");
    waiting.inode = NOBODY;
    let rows = [listener(1, "0.0.0.0:80"), waiting];
    assert_eq!(table.wanted(&rows, Search::Unknown), Wanted::from_iter([101]));
    step(&mut table, 1, &rows, &scan(&[(101, &[7])]));
    assert_eq!(table.wanted(&rows, Search::Unknown), Wanted::default());
    let accepted = [listener(1, "0.0.0.0:80"), session(2, "10.0.0.1:80", "10.0.0.9:4000")];
    assert_eq!(table.wanted(&accepted, Search::Unknown), Wanted::from_iter([102]));
    assert_eq!(table.wanted(&accepted, Search::Referee), Wanted::from_iter([101, 102]));
    let changes = step(&mut table, 2, &accepted, &scan(&[(102, &[7])]));
    assert_eq!(ops(&changes), [("updated", 2)]);
    assert_eq!((changes[0].socket.owner_known, changes[0].socket.owners.len()), (OwnerKnown::Exact, 1));
}

#[test]
fn how_owners_are_known_is_said_for_every_case() {
    for (inode, scan, expected) in [
        (NOBODY, OwnerScan::default(), OwnerKnown::None),
        (NOBODY, denied(), OwnerKnown::None),
        (101, OwnerScan::default(), OwnerKnown::Unknown),
        (101, denied(), OwnerKnown::Denied),
        (101, scan(&[(101, &[1, 2])]), OwnerKnown::Exact),
    ] {
        let mut table = Table::default();
        let mut row = listener(1, "0.0.0.0:80");
        row.inode = inode;
        step(&mut table, 1, &[row], &scan);
        assert_eq!(socket(&table, 1).owner_known, expected, "inode {inode}, {} denied", scan.denied);
    }
}

#[test]
fn a_socket_that_its_process_closed_keeps_the_owners_it_had() {
    let mut table = Table::default();
    let mut row = session(1, "10.0.0.1:80", "10.0.0.9:4000");
    step(&mut table, 1, &[row], &scan(&[(101, &[7])]));
    (row.state, row.inode) = (SocketState::FinWait2, NOBODY);
    let changes = step(&mut table, 2, &[row], &denied());
    assert_eq!(ops(&changes), [("updated", 1)]);
    assert_eq!((changes[0].socket.owner_known, &changes[0].socket.owners), (OwnerKnown::Exact, &vec![owner(7)]));
    let closed = step(&mut table, 3, &[], &OwnerScan::default());
    assert_eq!(closed[0].socket.owners, [owner(7)]);
}

#[test]
fn a_change_of_owners_is_found_by_the_referee_and_told_once() {
    let mut table = Table::default();
    let rows = [listener(1, "0.0.0.0:80")];
    step(&mut table, 1, &rows, &scan(&[(101, &[7])]));
    let survey = whole();
    let walk = |second| walk(second, &rows, &survey);
    let wanted = table.wanted(&rows, Search::Referee);
    let forked = scan(&[(101, &[7, 8])]);
    assert_eq!(ops(&table.apply(walk(2), &wanted, &forked, &()).changes), [("updated", 1)]);
    assert_eq!(table.apply(walk(3), &wanted, &forked, &()).changes, []);
    assert_eq!(socket(&table, 1).owners, [owner(7), owner(8)]);
}

#[test]
fn owners_beyond_what_travels_are_counted() {
    let mut table = Table::default();
    let rows = [listener(1, "0.0.0.0:80")];
    let pids: Vec<u32> = (1..=70).collect();
    let wanted = table.wanted(&rows, Search::Unknown);
    let comparison = table.apply(walk(1, &rows, &whole()), &wanted, &scan(&[(101, &pids)]), &());
    assert_eq!((comparison.owners_lost, socket(&table, 1).owners.len()), (6, SOCKET_OWNERS_LIMIT));
}

#[test]
fn a_session_came_in_when_a_listener_can_have_taken_it() {
    for (family, bound, local, expected) in [
        (Family::Ipv4, "0.0.0.0:80", "10.0.0.1:80", Direction::In),
        (Family::Ipv4, "10.0.0.1:80", "10.0.0.1:80", Direction::In),
        (Family::Ipv4, "10.0.0.2:80", "10.0.0.1:80", Direction::Out),
        (Family::Ipv4, "0.0.0.0:80", "10.0.0.1:81", Direction::Out),
        (Family::Ipv4, "0.0.0.0:80", "[2001:db8::1]:80", Direction::Out),
        (Family::Ipv6, "[::]:80", "[2001:db8::1]:80", Direction::In),
        (Family::Ipv6, "[::]:80", "10.0.0.1:80", Direction::Out),
        (Family::Dual, "[::]:80", "10.0.0.1:80", Direction::In),
        (Family::Dual, "[::]:80", "[2001:db8::1]:80", Direction::In),
        // Bound to ::ffff:0.0.0.0, which is IPv4 alone.
        (Family::Ipv6, "0.0.0.0:80", "10.0.0.1:80", Direction::In),
    ] {
        let mut table = Table::default();
        let mut listener = listener(1, bound);
        listener.family = family;
        // The session comes first in the walk: the order of rows means nothing.
        let rows = [session(2, local, "192.0.2.9:4000".parse::<SocketAddr>().unwrap().to_string().as_str()), listener];
        let changes = step(&mut table, 1, &rows, &OwnerScan::default());
        assert_eq!(direction(&changes, 2), expected, "{family} {bound} for {local}");
    }
}

#[test]
fn listeners_of_another_namespace_or_protocol_take_nothing() {
    for change in [|row: &mut SocketRow| row.key.netns = 2, |row: &mut SocketRow| row.protocol = Protocol::Sctp] {
        let mut table = Table::default();
        let mut listener = listener(1, "0.0.0.0:80");
        change(&mut listener);
        let rows = [listener, session(2, "10.0.0.1:80", "10.0.0.9:4000")];
        assert_eq!(direction(&step(&mut table, 1, &rows, &OwnerScan::default()), 2), Direction::Out);
    }
}

#[test]
fn a_listener_that_closed_since_the_walk_before_still_explains_its_sessions_and_no_later_ones() {
    let mut table = Table::default();
    step(&mut table, 1, &[listener(1, "0.0.0.0:80")], &OwnerScan::default());
    let first = session(2, "10.0.0.1:80", "10.0.0.9:4000");
    assert_eq!(direction(&step(&mut table, 2, &[first], &OwnerScan::default()), 2), Direction::In);
    let second = session(3, "10.0.0.1:80", "10.0.0.9:4001");
    assert_eq!(direction(&step(&mut table, 3, &[first, second], &OwnerScan::default()), 3), Direction::Out);
}

#[test]
fn a_twin_that_closes_leaves_the_other_listening() {
    let mut table = Table::default();
    let twins = [listener(1, "0.0.0.0:80"), listener(2, "0.0.0.0:80")];
    step(&mut table, 1, &twins, &OwnerScan::default());
    step(&mut table, 2, &twins[..1], &OwnerScan::default());
    let rows = [twins[0], session(3, "10.0.0.1:80", "10.0.0.9:4000")];
    assert_eq!(direction(&step(&mut table, 3, &rows, &OwnerScan::default()), 3), Direction::In);
}

#[test]
fn who_connects_goes_out_and_the_direction_stays() {
    let mut table = Table::default();
    let mut connecting = session(2, "10.0.0.1:80", "10.0.0.9:4000");
    connecting.state = SocketState::SynSent;
    let rows = [listener(1, "0.0.0.0:80"), connecting];
    assert_eq!(direction(&step(&mut table, 1, &rows, &OwnerScan::default()), 2), Direction::Out);
    let rows = [listener(1, "0.0.0.0:80"), session(2, "10.0.0.1:80", "10.0.0.9:4000")];
    let changes = step(&mut table, 2, &rows, &OwnerScan::default());
    assert_eq!(ops(&changes), [("updated", 2)]);
    let peer = "10.0.0.9:4000".parse().unwrap();
    assert_eq!(changes[0].socket.role, Role::Session { direction: Direction::Out, peer });
}

#[test]
fn a_udp_socket_that_connects_closes_as_listener_and_opens_as_session() {
    let mut table = Table::default();
    step(&mut table, 1, &[unconnected(1, "0.0.0.0:5004")], &scan(&[(101, &[7])]));
    let connected = udp(session(1, "10.0.0.1:5004", "10.0.0.9:4000"));
    // Its inode is known already, its owners are kept across the change.
    let wanted = table.wanted(&[connected], Search::Unknown);
    assert_eq!(wanted, Wanted::default());
    let changes = step(&mut table, 2, &[connected], &OwnerScan::default());
    assert_eq!(ops(&changes), [("closed", 1), ("opened", 1)]);
    assert_eq!(changes[0].socket.role, Role::Listener);
    assert_eq!(direction(&changes, 1), Direction::In);
    assert_eq!((changes[1].socket.opened_at, changes[1].socket.opened_known), (at(2), Known::BetweenWalks));
    assert_eq!((changes[1].socket.owner_known, &changes[1].socket.owners), (OwnerKnown::Exact, &vec![owner(7)]));
    let elsewhere = udp(session(1, "10.0.0.1:5004", "10.0.0.8:4000"));
    assert_eq!(ops(&step(&mut table, 3, &[elsewhere], &OwnerScan::default())), [("closed", 1), ("opened", 1)]);
    let back = unconnected(1, "0.0.0.0:5004");
    assert_eq!(ops(&step(&mut table, 4, &[back], &OwnerScan::default())), [("closed", 1), ("opened", 1)]);
}

#[test]
fn a_bound_tcp_socket_that_does_not_listen_is_nothing_to_report() {
    let mut table = Table::default();
    let bound = row(1, SocketState::Unconnected, "0.0.0.0:80", None);
    assert_eq!(step(&mut table, 1, &[bound], &OwnerScan::default()), []);
    assert!(table.is_empty());
}

#[test]
fn sockets_beyond_the_limit_are_counted_once_and_found_when_there_is_room() {
    let mut table = Table::with_limit(2);
    let rows: Vec<SocketRow> = (1..=4).map(|cookie| listener(cookie, "0.0.0.0:80")).collect();
    let apply = |table: &mut Table, second, rows: &[SocketRow]| {
        let wanted = table.wanted(rows, Search::Unknown);
        table.apply(walk(second, rows, &whole()), &wanted, &OwnerScan::default(), &())
    };
    assert_eq!(apply(&mut table, 1, &rows).sockets_lost, 2);
    assert_eq!(apply(&mut table, 2, &rows).sockets_lost, 0);
    let comparison = apply(&mut table, 3, &rows[2..]);
    assert_eq!(ops(&comparison.changes[2..]), [("opened", 3), ("opened", 4)]);
    assert!(comparison.changes[2..].iter().all(|change| change.socket.opened_known == Known::FirstSeen));
}

/// A row of a small world, so that keys meet again in other roles.
fn any_row() -> impl Strategy<Value = SocketRow> {
    (0..6_u64, 0..4_u8, 0..2_u16, 0..3_u64, any::<bool>()).prop_map(|(cookie, kind, port, inode, is_udp)| {
        let local = format!("10.0.0.1:{}", 80 + port);
        let mut row = match kind {
            0 => listener(cookie, &local),
            1 => session(cookie, &local, "10.0.0.9:4000"),
            2 => row(cookie, SocketState::FinWait1, &local, Some("10.0.0.9:4000")),
            _ => unconnected(cookie, &local),
        };
        row.inode = if inode == 0 { NOBODY } else { 100 * inode + cookie };
        if is_udp && kind == 1 { udp(row) } else { row }
    })
}

fn any_walk() -> impl Strategy<Value = (Vec<SocketRow>, Completeness, Search, u64)> {
    let completeness = prop_oneof![4 => Just(Completeness::Whole), 1 => Just(Completeness::Partial)];
    let search = prop_oneof![Just(Search::Unknown), Just(Search::Referee)];
    (vec(any_row(), 0..8), completeness, search, 0..3_u64)
}

/// What a reader of the changes holds to be open. Panics at a change that cannot follow from those before.
#[derive(Default)]
struct Replay(BTreeMap<SocketKey, Socket>);

impl Replay {
    fn take(&mut self, change: &Change) {
        let key = change.socket.key;
        match change.op {
            Op::Opened => assert_eq!(self.0.insert(key, change.socket.clone()), None, "opened twice"),
            Op::Closed { at, .. } => {
                let open = self.0.remove(&key).expect("a close without an open");
                assert_eq!(open, change.socket);
                assert!(at >= open.opened_at);
            }
            Op::Updated => {
                let open = self.0.insert(key, change.socket.clone()).expect("an update without an open");
                assert_eq!((open.role, open.local, open.opened_at), {
                    let socket = &change.socket;
                    (socket.role, socket.local, socket.opened_at)
                });
                assert_ne!(open, change.socket, "an update that changes nothing");
            }
            Op::Present => panic!("a row of a snapshot among changes"),
        }
    }
}

proptest! {
    #[test]
    fn replaying_the_changes_gives_what_the_last_walk_saw(walks in vec(any_walk(), 1..12), limit in 1..7_usize) {
        let mut table = Table::with_limit(limit);
        let mut replay = Replay::default();
        for (second, (rows, completeness, search, pid)) in walks.iter().enumerate() {
            let wanted = table.wanted(rows, *search);
            let found: Vec<(u64, Vec<u32>)> =
                wanted.iter().filter(|inode| *inode % 3 != pid % 3).map(|inode| (*inode, vec![*pid as u32])).collect();
            let scan = OwnerScan {
                owners: found.iter().map(|(inode, pids)| (*inode, pids.iter().map(|pid| owner(*pid)).collect())).collect(),
                denied: pid % 2,
                ..OwnerScan::default()
            };
            let survey = survey(Coverage::Everything, *completeness);
            for change in table.apply(walk(second as i64, rows, &survey), &wanted, &scan, &()).changes {
                replay.take(&change);
            }
            let snapshot: BTreeMap<_, _> =
                table.snapshot().map(|change| (change.socket.key, change.socket)).collect();
            prop_assert_eq!(&snapshot, &replay.0);
            prop_assert!(snapshot.len() <= limit);

            let mut first_rows = BTreeMap::new();
            for row in rows.iter().filter(|row| purpose(row).is_some()) {
                first_rows.entry(row.key).or_insert(row);
            }
            for (key, socket) in &snapshot {
                match first_rows.get(key) {
                    Some(row) => prop_assert_eq!((row.state, row.local, row.protocol), (socket.state, socket.local, socket.protocol)),
                    None => prop_assert_eq!(*completeness, Completeness::Partial, "{:?} should be closed", key),
                }
            }
            if snapshot.len() < limit {
                prop_assert!(first_rows.keys().all(|key| snapshot.contains_key(key)));
            }
        }
    }
}
