//! What changed, as each format writes it.

use fleetctl::record::{
    difference::{Difference, DifferenceKind, Unobserved},
    entry::{Entry, Happened, Traffic},
};
use fleetsock_proto::{
    address::Scope,
    change::{ChangeKind, ChangeRecord, Changed, HostStart},
    port::PortClass,
    summary::{Group, Sum},
};

use super::*;

/// One of each kind.
fn changes() -> Vec<ChangeRecord> {
    let change = |kind, seconds, known, what| ChangeRecord {
        kind,
        at: ago(seconds),
        known,
        what,
        owners_before: Vec::new(),
        scope_before: None,
    };
    let listens = |port| Changed::Listener(Box::new(listener("web1", port)));
    let [_, short, _] = <[Session; 3]>::try_from(sessions()).unwrap();
    let start = HostStart {
        host_id: HostId::from_array([1; 16]),
        host: "web1".to_owned(),
        host_state: HostState::Online,
        boot_id: BootId::from_array([2; 16]),
    };
    vec![
        change(ChangeKind::Closed, 57, Known::BetweenWalks, Changed::Session(Box::new(short))),
        ChangeRecord {
            owners_before: vec![owner(700, "apache2"), owner(701, "apache2")],
            ..change(ChangeKind::OwnerChanged, 300, Known::Lost, listens(443))
        },
        ChangeRecord {
            scope_before: Some(Scope::Loopback),
            ..change(ChangeKind::ScopeWidened, 7_500, Known::Event, listens(8080))
        },
        change(ChangeKind::Opened, 7_500, Known::Event, listens(8080)),
        change(ChangeKind::HostBooted, 9_000, Known::FirstSeen, Changed::Start(start)),
    ]
}

#[test]
fn changes_as_a_table_and_for_machines() {
    check(Format::Table, &[], &changes(), "changes.txt");
    check(Format::Wide, &[], &changes(), "changes-wide.txt");
    check(Format::Jsonl, &[], &changes(), "changes.jsonl");
    let names = written(Format::Name, &[], Headers::Shown, &changes()[2..]);
    assert_eq!(names, "web1/tcp/0.0.0.0:8080 scope-widened\nweb1/tcp/0.0.0.0:8080 opened\nweb1 host-booted\n");
}

fn differences() -> Vec<Difference> {
    let [plain, hostile, nameless] = <[Listener; 3]>::try_from(listeners()).unwrap();
    let difference =
        |kind, listener| Difference { kind, listener, owners_before: Vec::new(), unobserved: Unobserved::default() };
    let gone = Listener { closed: Some((ago(60), Known::Lost)), ..listener("web1", 22) };
    vec![
        difference(DifferenceKind::New, nameless),
        Difference { unobserved: Unobserved { from: false, to: true }, ..difference(DifferenceKind::Gone, gone) },
        Difference { owners_before: vec![owner(5, "apache2")], ..difference(DifferenceKind::OwnerChanged, plain) },
        Difference {
            unobserved: Unobserved { from: true, to: true },
            ..difference(DifferenceKind::New, Listener { owners: vec![owner(7, "node")], ..hostile })
        },
    ]
}

#[test]
fn differences_as_a_table_and_for_machines() {
    check(Format::Table, &[], &differences(), "diff.txt");
    check(Format::Jsonl, &[], &differences()[1..2], "diff.jsonl");
    let names = written(Format::Name, &[], Headers::Shown, &differences()[..1]);
    assert_eq!(names, "web1/udp/127.0.0.1:61001 new\n");
}

#[test]
fn a_story_as_a_table_and_for_machines() {
    let mut entries: Vec<Entry> = changes()
        .into_iter()
        .filter(|change| !matches!(change.what, Changed::Session(_)))
        .map(|change| Entry { at: change.at, what: Happened::Change(Box::new(change)) })
        .collect();
    let gap = Gap { until: Some(ago(40)), ..meta().gaps.remove(0) };
    entries.push(Entry { at: ago(100), what: Happened::Gap(gap) });
    let traffic = Traffic {
        inward: 12,
        outward: 1,
        peers: 1,
        services: vec![("postgresql".to_owned(), 12), ("61999/tcp".to_owned(), 1)],
        bytes_sent: 7,
        ..Traffic::default()
    };
    entries.push(Entry { at: ago(7_391), what: Happened::Sessions(ago(3_791), traffic) });
    entries.sort_by_key(|entry| entry.at);
    check(Format::Table, &[], &entries, "timeline.txt");
    check(Format::Jsonl, &[], &entries[..2], "timeline.jsonl");
}

#[test]
fn sums_as_a_table_and_for_machines() {
    let hour = Timestamp::from_micros(now().as_micros() / 3_600_000_000 * 3_600_000_000);
    let group = |process: &str, peer: &str, peer_host: &str| Group {
        hour: Some(hour),
        host: Some(("web1".to_owned(), HostId::from_array([1; 16]))),
        class: Some(PortClass::WellKnown),
        service: Some("https".to_owned()),
        process: (!process.is_empty()).then(|| process.to_owned()),
        peer: Some((peer.parse().unwrap(), peer_host.to_owned())),
    };
    let sum = |group, sessions| Sum { group, listeners: 0, sessions, bytes_sent: 10 * sessions, bytes_received: 7 };
    let sums = [sum(group("nginx", "10.0.0.7", "db1"), 12), sum(group("", "2001:db8::1", ""), 1)];
    check(Format::Table, &[], &sums, "summary.txt");
    check(Format::Jsonl, &[], &sums, "summary.jsonl");
    let names = written(Format::Name, &[], Headers::Shown, &sums[..1]);
    assert_eq!(names, "2026-11-24T10:00:00.000Z web1 well-known https nginx 10.0.0.7\n");
}

#[test]
fn fields_of_what_changed_keep_their_names() {
    check_names::<ChangeRecord>(
        "at known change subject host host_id protocol family address port direction peer_address peer_port peer_host \
         class service service_source scope scope_before netns pid process exe user container unit owner_known owners \
         owners_before opened_at boot_id host_state",
    );
    check_names::<Entry>(
        "at until known event protocol address port service scope scope_before pid process user owners owners_before \
         boot_id reason sessions sessions_in sessions_out peers bytes_sent bytes_received services",
    );
    check_names::<Sum>(
        "hour host host_id class service process peer_address peer_host listeners sessions bytes_sent bytes_received",
    );
    check_names::<Difference>(
        "difference host host_id protocol family address port class service service_source scope netns pid process exe \
         user container unit owner_known owners owners_before opened_at opened_known closed_at closed_known unobserved \
         host_state",
    );
}
