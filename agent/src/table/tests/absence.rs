//! What it means that a walk did not show a socket.

use super::*;

/// A walk that left TCP connections out.
fn steady(table: &mut Table, second: i64, rows: &[SocketRow]) -> Vec<Change> {
    let survey = survey(Coverage::Listeners, Completeness::Whole);
    let wanted = table.wanted(rows, Search::Unknown);
    table.apply(walk(second, rows, &survey), &wanted, &OwnerScan::default(), &()).changes
}

fn connected(cookie: u64) -> SocketRow {
    session(cookie, "10.0.0.1:80", "10.0.0.9:4000")
}

#[test]
fn a_walk_without_connections_closes_none_and_closes_what_it_would_have_shown() {
    let mut table = Table::default();
    let rows = [listener(1, "0.0.0.0:80"), connected(2), udp(connected(3)), unconnected(4, "0.0.0.0:53")];
    step(&mut table, 1, &rows, &OwnerScan::default());
    assert_eq!(steady(&mut table, 2, &[rows[0], rows[2], rows[3]]), []);
    let mut closed = ops(&steady(&mut table, 3, &[]));
    closed.sort();
    assert_eq!(closed, [("closed", 1), ("closed", 3), ("closed", 4)]);
    assert_eq!(table.observed_since(), Some(at(3)));
    assert_eq!(ops(&step(&mut table, 4, &[], &OwnerScan::default())), [("closed", 2)]);
}

#[test]
fn a_connection_that_no_walk_before_would_have_shown_may_have_been_open_all_the_time() {
    let mut table = Table::default();
    let known = |changes: Vec<Change>| changes[0].socket.opened_known;
    assert_eq!(known(steady(&mut table, 1, &[listener(1, "0.0.0.0:80")])), Known::FirstSeen);
    assert_eq!(
        known(steady(&mut table, 2, &[listener(1, "0.0.0.0:80"), listener(2, "0.0.0.0:81")])),
        Known::BetweenWalks
    );
    let rows = [listener(1, "0.0.0.0:80"), listener(2, "0.0.0.0:81"), connected(3)];
    assert_eq!(known(step(&mut table, 3, &rows, &OwnerScan::default())), Known::FirstSeen);
    let rows = [&rows[..], &[connected(4)]].concat();
    assert_eq!(known(step(&mut table, 4, &rows, &OwnerScan::default())), Known::BetweenWalks);
}

#[test]
fn what_lies_in_a_namespace_that_was_not_walked_stays_open() {
    let mut table = Table::default();
    let mut elsewhere = listener(2, "0.0.0.0:80");
    elsewhere.key.netns = 2;
    step(&mut table, 1, &[listener(1, "0.0.0.0:80"), elsewhere], &OwnerScan::default());
    let mut survey = whole();
    survey.walked.remove(&2);
    let scan = OwnerScan::default();
    let changes = table.apply(walk(2, &[], &survey), &Wanted::default(), &scan, &()).changes;
    assert_eq!(ops(&changes), [("closed", 1)]);
    assert_eq!(ops(&step(&mut table, 3, &[], &scan)), [("closed", 2)]);
}

#[test]
fn sockets_of_a_namespace_that_vanished_are_open_while_somebody_holds_them() {
    for (scan, expected) in
        [(scan(&[(102, &[7])]), None), (OwnerScan::default(), Some(Known::BetweenWalks)), (denied(), Some(Known::Lost))]
    {
        let mut table = Table::default();
        let mut elsewhere = listener(2, "0.0.0.0:80");
        elsewhere.key.netns = 2;
        step(&mut table, 1, &[elsewhere], &OwnerScan::default());
        let mut survey = whole();
        survey.walked.remove(&2);
        let vanished = BTreeSet::from([2]);
        let wanted: Wanted = table.inodes_in(&vanished).collect();
        assert_eq!(wanted, Wanted::from_iter([102]));
        let walk = Walk { vanished: &vanished, ..walk(2, &[], &survey) };
        let changes = table.apply(walk, &wanted, &scan, &()).changes;
        let closed = changes.first().map(|change| match change.op {
            Op::Closed { known, .. } => known,
            _ => panic!("{change:?}"),
        });
        assert_eq!(closed, expected);
        assert_eq!(table.has_namespace(2), expected.is_none());
    }
}
