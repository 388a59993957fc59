//! Ends that walks do not tell, and whose a session was.

use super::*;
use crate::{
    capture::Destroyed,
    lives::{Heard, Life, Purpose as LifePurpose},
};

fn destroyed(row: SocketRow) -> Destroyed {
    let SocketRow { key, protocol, family, local, peer, .. } = row;
    Destroyed { key, protocol, family, local, peer, traffic: None }
}

fn incoming(cookie: u64) -> SocketRow {
    session(cookie, "10.0.0.1:80", "10.0.0.9:4000")
}

/// One walk after what was told before it; what was open, and what was never.
fn then(table: &mut Table, second: i64, rows: &[SocketRow]) -> (Vec<Change>, Vec<Change>) {
    let wanted = table.wanted(rows, Search::Unknown);
    let comparison = table.apply(walk(second, rows, &whole()), &wanted, &OwnerScan::default(), &());
    (comparison.changes, comparison.unseen)
}

#[test]
fn a_socket_that_is_told_to_be_gone_closed_then_whether_a_walk_still_shows_it_or_not() {
    for still_shown in [true, false] {
        let mut table = Table::default();
        let rows = [incoming(1), unconnected(2, "0.0.0.0:53")];
        step(&mut table, 1, &rows, &OwnerScan::default());
        rows.iter().for_each(|row| table.depart(&destroyed(*row), at(2)));
        let (changes, unseen) = then(&mut table, 2, if still_shown { &rows } else { &[] });
        assert_eq!((ops(&changes), unseen.len()), (vec![("closed", 1), ("closed", 2)], 0));
        assert!(changes.iter().all(|change| change.op == Op::Closed { at: at(2), known: Known::Event }));
        assert_eq!(then(&mut table, 3, &[]), (Vec::new(), Vec::new()));
    }
}

#[test]
fn a_session_that_no_walk_saw_opened_after_the_last_one_and_went_the_way_that_listeners_say() {
    let mut table = Table::default();
    let server = listener(1, "0.0.0.0:80");
    step(&mut table, 1, &[server], &scan(&[(101, &[7])]));
    // The process ends and closes its listener first.
    table.depart(&destroyed(server), at(2));
    table.depart(&destroyed(incoming(2)), at(2));
    table.depart(&destroyed(session(3, "10.0.0.1:4000", "10.0.0.9:80")), at(2));
    // Reset, so that the kernel does not know any more who it was with.
    table.depart(&destroyed(row(4, SocketState::Established, "10.0.0.1:80", None)), at(2));
    let (changes, unseen) = then(&mut table, 3, &[]);
    assert_eq!((ops(&changes), ops(&unseen)), (vec![("closed", 1)], vec![("closed", 2), ("closed", 3)]));
    for (change, direction, owner_known) in
        [(&unseen[0], Direction::In, OwnerKnown::Listener), (&unseen[1], Direction::Out, OwnerKnown::Unknown)]
    {
        let Role::Session { direction: found, .. } = change.socket.role else { panic!("{change:?}") };
        assert_eq!((found, change.socket.owner_known), (direction, owner_known));
        assert_eq!((change.socket.opened_at, change.socket.opened_known), (at(2), Known::BetweenWalks));
    }
    assert_eq!(unseen[0].socket.owners, [owner(7)]);
    assert_eq!(direction(&step(&mut table, 4, &[incoming(5)], &OwnerScan::default()), 5), Direction::Out);
}

#[test]
fn what_a_walk_closed_is_not_told_again_by_its_destruction() {
    let mut table = Table::default();
    step(&mut table, 1, &[incoming(1)], &OwnerScan::default());
    step(&mut table, 2, &[], &OwnerScan::default());
    table.depart(&destroyed(incoming(1)), at(3));
    assert_eq!(then(&mut table, 3, &[]), (Vec::new(), Vec::new()));
}

#[test]
fn a_state_that_events_tell_is_told_once_and_only_of_what_is_open() {
    let mut table = Table::default();
    step(&mut table, 1, &[incoming(1)], &OwnerScan::default());
    let key = |cookie| SocketKey { netns: 1, cookie };
    let states = || vec![(key(1), SocketState::CloseWait), (key(2), SocketState::CloseWait)];
    assert_eq!(ops(&table.restate(states())), [("updated", 1)]);
    assert_eq!(socket(&table, 1).state, SocketState::CloseWait);
    assert_eq!(table.restate(states()), []);
}

/// Who a session belongs to that came in on 10.0.0.1:80 and whose process is not found, when these listen.
fn owners_by(listeners: &[(SocketRow, &[u32])]) -> (OwnerKnown, Vec<u32>) {
    let mut table = Table::default();
    let rows: Vec<SocketRow> = listeners.iter().map(|(row, _)| *row).chain([incoming(9)]).collect();
    let found: Vec<(u64, &[u32])> = listeners.iter().map(|(row, pids)| (row.inode, *pids)).collect();
    step(&mut table, 1, &rows, &scan(&found));
    let socket = socket(&table, 9);
    (socket.owner_known, socket.owners.iter().map(|owner| owner.pid).collect())
}

#[test]
fn a_session_without_a_known_process_has_the_owners_of_the_one_listener_that_took_it() {
    use OwnerKnown::{Listener, Unknown};
    let dual = SocketRow { family: Family::Dual, ..listener(2, "[::]:80") };
    let elsewhere = SocketRow { key: SocketKey { netns: 2, cookie: 3 }, ..listener(3, "10.0.0.1:80") };
    let any = listener(1, "0.0.0.0:80");
    for (case, listeners, expected) in [
        ("one", vec![(any, &[7, 8][..])], (Listener, vec![7, 8])),
        ("one whose owner is not known", vec![(any, &[])], (Unknown, vec![])),
        ("twins of one process", vec![(any, &[7]), (listener(4, "0.0.0.0:80"), &[7])], (Listener, vec![7])),
        ("twins of two processes", vec![(any, &[7]), (listener(4, "0.0.0.0:80"), &[8])], (Unknown, vec![])),
        ("the address before the wildcard", vec![(any, &[7]), (listener(5, "10.0.0.1:80"), &[8])], (Listener, vec![8])),
        ("the wildcard before both families", vec![(dual, &[7]), (any, &[8])], (Listener, vec![8])),
        ("both families", vec![(dual, &[7])], (Listener, vec![7])),
        ("another namespace", vec![(any, &[7]), (elsewhere, &[8])], (Listener, vec![7])),
    ] {
        assert_eq!(owners_by(&listeners), expected, "{case}");
    }
}

#[test]
fn a_process_that_is_found_after_all_takes_the_place_of_the_listeners() {
    let mut table = Table::default();
    let rows = [listener(1, "0.0.0.0:80"), incoming(2)];
    step(&mut table, 1, &rows, &scan(&[(101, &[7])]));
    assert_eq!(socket(&table, 2).owner_known, OwnerKnown::Listener);
    let wanted = table.wanted(&rows, Search::Referee);
    let mut again = |second, found: &[(u64, &[u32])]| {
        let changes = table.apply(walk(second, &rows, &whole()), &wanted, &scan(found), &()).changes;
        (ops(&changes), socket(&table, 2).owner_known)
    };
    assert_eq!(again(2, &[(101, &[7])]), (vec![], OwnerKnown::Listener));
    assert_eq!(again(3, &[(101, &[7]), (102, &[8])]), (vec![("updated", 2)], OwnerKnown::Exact));
}

fn told(row: SocketRow, owners: Vec<Arc<Owner>>, owner_known: OwnerKnown) -> Told {
    let life = Life {
        family: row.family,
        local: row.local,
        peer: row.peer.unwrap(),
        purpose: LifePurpose::Session(Some(Direction::In)),
        state: SocketState::LastAck,
        opened_ns: None,
        opener: None,
        closer: None,
        closed_ns: None,
    };
    Told {
        key: row.key,
        life,
        opened_at: Some(at(1)),
        closed_at: at(2),
        closed_known: Known::Event,
        owners,
        owner_known,
        heard: Heard::Told,
    }
}

#[test]
fn who_closed_a_session_is_better_known_than_who_listened() {
    let mut table = Table::default();
    step(&mut table, 1, &[listener(1, "0.0.0.0:80"), incoming(2)], &scan(&[(101, &[7])]));
    table.end(told(incoming(2), vec![owner(8)], OwnerKnown::Closer));
    table.end(told(incoming(3), Vec::new(), OwnerKnown::Unknown));
    let (changes, unseen) = then(&mut table, 2, &[listener(1, "0.0.0.0:80")]);
    assert_eq!((changes[0].socket.owner_known, &changes[0].socket.owners), (OwnerKnown::Closer, &vec![owner(8)]));
    assert_eq!(changes[0].socket.state, SocketState::LastAck);
    assert_eq!((unseen[0].socket.owner_known, &unseen[0].socket.owners), (OwnerKnown::Listener, &vec![owner(7)]));
}

/// The end of a connection whose cookie and beginning no record told.
fn nameless(cookie: u64, row: SocketRow) -> Told {
    let key = SocketKey { cookie: SocketKey::STAND_IN | cookie, ..row.key };
    Told { key, opened_at: None, closed_at: at(3), ..told(row, vec![owner(8)], OwnerKnown::Closer) }
}

#[test]
fn an_end_without_a_cookie_is_that_of_the_session_with_its_pair_whether_a_walk_closed_it_before_or_not() {
    for walked in [vec![incoming(1)], vec![]] {
        let mut table = Table::default();
        step(&mut table, 1, &[incoming(1)], &OwnerScan::default());
        let (before, _) = then(&mut table, 2, &walked);
        table.end(nameless(7, incoming(1)));
        let (after, unseen) = then(&mut table, 3, &walked);
        let closed: Vec<_> = before.iter().chain(&after).collect();
        assert_eq!(closed.len(), 1, "{closed:?}");
        assert!(matches!(closed[0].op, Op::Closed { .. }) && closed[0].socket.key.cookie == 1, "{closed:?}");
        assert_eq!(unseen, []);
        // The next one with this pair is another session.
        table.end(nameless(8, incoming(2)));
        assert_eq!(then(&mut table, 4, &[]).1.len(), 1);
    }
}

#[test]
fn an_end_without_a_cookie_is_not_that_of_a_session_elsewhere_or_later_or_whose_beginning_was_told() {
    let row = incoming(1);
    let elsewhere = nameless(7, SocketRow { key: SocketKey { netns: 2, cookie: 1 }, ..row });
    let other_peer = nameless(7, session(1, "10.0.0.1:80", "10.0.0.9:4001"));
    let earlier = Told { closed_at: at(1), ..nameless(7, row) };
    let begun = Told { opened_at: Some(at(2)), ..nameless(7, row) };
    for end in [elsewhere, other_peer, earlier, begun] {
        let mut table = Table::default();
        step(&mut table, 1, &[row], &OwnerScan::default());
        let key = end.key;
        table.end(end);
        let (changes, unseen) = then(&mut table, 3, &[row]);
        assert_eq!(changes, []);
        assert_eq!(unseen.iter().map(|change| change.socket.key).collect::<Vec<_>>(), [key]);
    }
}

/// Notes whose owners and whose origin are asked for.
#[derive(Default)]
struct Asking {
    doubts: bool,
    owners: std::cell::RefCell<Vec<u64>>,
    origins: std::cell::RefCell<Vec<u64>>,
}

impl Insight for Asking {
    fn doubts(&self) -> bool {
        self.doubts
    }

    fn origin(&self, key: SocketKey, _local: SocketAddr, _peer: SocketAddr) -> Option<Origin> {
        self.origins.borrow_mut().push(key.cookie);
        None
    }

    fn ask_owners(&self, key: SocketKey, _local: SocketAddr, _peer: SocketAddr) {
        self.owners.borrow_mut().push(key.cookie);
    }

    fn closed_at(&self, _local: SocketAddr, _peer: SocketAddr) -> Option<Timestamp> {
        None
    }
}

#[test]
fn whose_a_socket_was_that_its_process_had_closed_is_asked_for_and_told_though_its_end_is_not() {
    let mut table = Table::default();
    let rows = [session(1, "10.0.0.1:4000", "10.0.0.9:80"), incoming(2)];
    let orphan = SocketRow { inode: 0, state: SocketState::FinWait1, ..rows[0] };
    let (asking, rows) = (Asking::default(), [orphan, rows[1], listener(3, "0.0.0.0:80")]);
    let found = scan(&[(102, &[8]), (103, &[7])]);
    let wanted = table.wanted(&rows, Search::Unknown);
    table.apply(walk(1, &rows, &whole()), &wanted, &found, &asking);
    assert_eq!(asking.owners.into_inner(), [1], "the others have owners");
    let key = |cookie| SocketKey { netns: 1, cookie };
    let owned = |cookie| Owned { key: key(cookie), owners: vec![owner(5)], owner_known: OwnerKnown::Closer };
    table.own(vec![owned(1), owned(2), owned(9)]);
    let (changes, _) = then(&mut table, 2, &[]);
    assert_eq!(ops(&changes)[0], ("updated", 1), "{changes:?}");
    let closed = changes.iter().find(|change| matches!(change.op, Op::Closed { .. }) && change.socket.key == key(1));
    assert_eq!(closed.unwrap().socket.owners, [owner(5)]);
    assert_eq!(closed.unwrap().socket.owner_known, OwnerKnown::Closer);
    let other = changes.iter().find(|change| change.socket.key == key(2)).unwrap();
    assert_eq!(other.socket.owners, [owner(8)], "who holds it is known better");
}

#[test]
fn who_follows_sessions_hears_of_a_known_one_again_when_its_state_is_new_or_something_was_looked_for_in_vain() {
    let row = session(1, "10.0.0.1:4000", "10.0.0.9:80");
    for (doubts, state, expected) in
        [(false, row.state, [1].as_slice()), (false, SocketState::CloseWait, &[1, 1]), (true, row.state, &[1, 1])]
    {
        let mut table = Table::default();
        let asking = Asking { doubts, ..Asking::default() };
        for (moment, row) in [(1, row), (2, SocketRow { state, ..row })] {
            table.apply(walk(moment, &[row], &whole()), &Wanted::default(), &OwnerScan::default(), &asking);
        }
        assert_eq!(asking.origins.into_inner(), expected, "{doubts}, {state}");
    }
}

#[test]
fn events_that_leave_out_a_state_do_not_take_back_what_a_walk_saw() {
    let mut table = Table::default();
    let key = SocketKey { netns: 1, cookie: 1 };
    for (seen, told, expected) in [
        (SocketState::FinWait2, SocketState::FinWait1, SocketState::FinWait2),
        (SocketState::FinWait1, SocketState::FinWait1, SocketState::FinWait1),
        (SocketState::Established, SocketState::CloseWait, SocketState::CloseWait),
        (SocketState::Established, SocketState::FinWait1, SocketState::FinWait1),
    ] {
        then(&mut table, 1, &[row(1, seen, "10.0.0.1:4000", Some("10.0.0.9:80"))]);
        table.restate(vec![(key, told)]);
        assert_eq!(socket(&table, 1).state, expected, "{seen} and {told}");
    }
}
