//! The spool on real files.

use std::{
    collections::BTreeSet,
    os::unix::fs::{PermissionsExt, symlink},
};

use fleetsock_proto::{batch::BatchKind, host::BootId};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::packing::{Window, pack};

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + second * 1_000_000)
}

fn open(folder: &tempfile::TempDir) -> Spool {
    Spool::open(folder.path(), SPOOL_BYTES_LIMIT, at(0)).unwrap()
}

/// A batch about one second, padded to a size.
fn draft(kind: BatchKind, second: i64, size: usize) -> Draft {
    let window = Window { boot_id: BootId::from_array([1; 16]), since: at(second - 1), until: at(second) };
    let mut draft = pack(Content::Snapshot, window, []).drafts.remove(0);
    draft.kind = kind;
    draft.rows = 1;
    // An unknown field (number 100, length-delimited) as padding; readers skip it.
    draft.body.extend([0xa2, 0x06, (size & 0x7f) as u8 | 0x80, (size >> 7) as u8]);
    draft.body.extend(vec![0; size]);
    draft
}

fn append(spool: &mut Spool, kind: BatchKind, second: i64) {
    let content = if kind == BatchKind::Changes { Content::Changes } else { Content::Snapshot };
    spool.append(content, vec![draft(kind, second, 100)]).unwrap();
}

fn number(epoch: u64, seq: u64) -> BatchNumber {
    BatchNumber { epoch, seq }
}

/// Everything that would be delivered after a number: batches and the ranges of gaps.
fn rest(spool: &mut Spool, mut position: BatchNumber) -> Vec<(BatchNumber, BatchNumber)> {
    let mut items = Vec::new();
    while let Some(item) = spool.next_after(position) {
        let range = match item {
            Item::Batch(batch) => (batch.number, batch.number),
            Item::Gap(gap) => {
                let Some((first, last)) = gap.seqs else {
                    spool.forget(&gap);
                    continue;
                };
                (number(gap.epoch, first), number(gap.epoch, last))
            }
        };
        position = range.1;
        items.push(range);
    }
    items
}

fn single(epoch: u64, seqs: impl IntoIterator<Item = u64>) -> Vec<(BatchNumber, BatchNumber)> {
    seqs.into_iter().map(|seq| (number(epoch, seq), number(epoch, seq))).collect()
}

#[test]
fn batches_stay_in_order_until_they_are_acknowledged() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    for second in 2..=5 {
        append(&mut spool, BatchKind::Changes, second);
    }
    assert_eq!(spool.given(), number(1, 5));
    assert_eq!(rest(&mut spool, BatchNumber::default()), single(1, 1..=5));
    spool.acknowledge(number(1, 3));
    assert_eq!(rest(&mut spool, BatchNumber::default()), single(1, 4..=5));
    spool.acknowledge(number(1, 5));
    assert_eq!((rest(&mut spool, BatchNumber::default()), spool.bytes()), (vec![], 0));
}

#[test]
fn every_start_begins_a_numbering_with_a_snapshot_behind_what_is_left() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    append(&mut spool, BatchKind::Changes, 2);
    drop(spool);
    let mut spool = open(&folder);
    assert!(spool.wants_snapshot());
    assert_eq!(spool.append(Content::Changes, vec![draft(BatchKind::Changes, 3, 1)]), Err(SnapshotFirst));
    append(&mut spool, BatchKind::SnapshotWhole, 3);
    assert_eq!(rest(&mut spool, BatchNumber::default()), [single(1, 1..=2), single(2, [1])].concat());
}

#[test]
fn a_full_spool_drops_the_oldest_and_tells_exactly_which() {
    let folder = folder();
    let mut spool = Spool::open(folder.path(), 5 * 1024, at(0)).unwrap();
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    for second in 2..=12 {
        spool.append(Content::Changes, vec![draft(BatchKind::Changes, second, 1000)]).unwrap();
    }
    let Some(Item::Gap(gap)) = spool.next_after(BatchNumber::default()) else { panic!("no gap") };
    let (first, last) = gap.seqs.unwrap();
    assert_eq!(
        (gap.epoch, first, gap.since, gap.until, gap.reason),
        (1, 1, at(0), at(last as i64), GapReason::SpoolFull)
    );
    assert_eq!(rest(&mut spool, number(1, last)), single(1, last + 1..=12));
    assert_eq!(spool.lost(), last);
    assert!(spool.bytes() <= 5 * 1024);
    drop(spool);
    let mut spool = open(&folder);
    assert_eq!(spool.next_after(BatchNumber::default()), Some(Item::Gap(gap)), "a gap survives a restart");
    spool.acknowledge(number(1, last));
    assert!(matches!(spool.next_after(BatchNumber::default()), Some(Item::Batch(_))));
}

#[test]
fn a_damaged_file_is_put_aside_and_its_loss_is_told() {
    let folder = folder();
    let path = folder.path().join(SPOOL_FILE);
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    drop(spool);
    for damage in [vec![0xff; 8192], b"SQLite format 3\0".iter().copied().chain([0x7f; 8192]).collect()] {
        fs::write(&path, damage).unwrap();
        let mut spool = open(&folder);
        let Some(Item::Gap(gap)) = spool.next_after(BatchNumber::default()) else { panic!("no gap") };
        assert_eq!((gap.seqs, gap.reason), (None, GapReason::Delivery));
        append(&mut spool, BatchKind::SnapshotWhole, 2);
        assert_eq!(rest(&mut spool, BatchNumber::default()).len(), 1);
        assert!(spool.bytes() > 0, "the new one is on disk");
        assert!(folder.path().join(CORRUPT_FILE).exists());
    }
}

#[test]
fn a_spool_that_is_not_ours_alone_is_refused_and_left_as_it_is() {
    let folder = folder();
    let path = folder.path().join(SPOOL_FILE);
    let refusal = || Spool::open(folder.path(), SPOOL_BYTES_LIMIT, at(0)).unwrap_err().to_string();
    let first = open(&folder);
    assert!(refusal().ends_with("is in use by another fleetsock-agent"), "{}", refusal());
    drop(first);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal().contains("spool.db has mode 0644"), "{}", refusal());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 9).unwrap();
    assert!(refusal().contains("newer fleetsock-agent (schema 9)"), "{}", refusal());
    fs::rename(&path, folder.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &path).unwrap();
    assert!(refusal().contains("spool.db is a symbolic link, not a regular file"), "{}", refusal());
}

#[test]
fn what_the_server_forgot_becomes_a_gap_and_delivery_goes_on() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    for second in 2..=9 {
        append(&mut spool, BatchKind::Changes, second);
    }
    spool.acknowledge(number(1, 7));
    let last = number(1, 4);
    assert_eq!(spool.resume_after(last), Resumption::After { missing: (5, 7), since: at(4), until: at(7) });
    assert_eq!(rest(&mut spool, last), [vec![(number(1, 5), number(1, 7))], single(1, 8..=9)].concat());
    // A backup that is older than anything that is remembered.
    spool.acknowledge(number(1, 9));
    assert_eq!(spool.resume_after(number(0, 0)), Resumption::Anew { epoch: 2 });
    assert!(spool.wants_snapshot() && spool.given().epoch == 2);
}

#[test]
fn a_lost_numbering_is_replaced_by_one_that_the_server_has_not_seen_and_loses_nothing() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    append(&mut spool, BatchKind::Changes, 2);
    let last = number(7, 30);
    assert_eq!(spool.resume_after(last), Resumption::Renumber { epoch: 8 });
    assert_eq!(rest(&mut spool, last), single(8, 1..=2));
    append(&mut spool, BatchKind::Changes, 3);
    assert_eq!((spool.given(), spool.lost()), (number(8, 3), 0));
    drop(spool);
    assert_eq!(open(&folder).given(), number(9, 0));
}

#[test]
fn what_cannot_be_delivered_in_order_any_more_is_told_as_lost() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, BatchKind::SnapshotWhole, 1);
    append(&mut spool, BatchKind::Changes, 2);
    append(&mut spool, BatchKind::Changes, 3);
    spool.acknowledge(number(1, 1));
    let last = number(5, 5);
    assert_eq!(spool.resume_after(last), Resumption::Anew { epoch: 6 });
    let Some(Item::Gap(gap)) = spool.next_after(last) else { panic!("no gap") };
    assert_eq!((gap.seqs, gap.since, gap.until, gap.reason), (None, at(1), at(3), GapReason::Delivery));
    assert_eq!((spool.lost(), spool.given()), (2, number(6, 0)));
}

#[test]
fn a_batch_that_is_given_up_becomes_a_gap_with_the_rest_of_its_snapshot() {
    let folder = folder();
    let mut spool = open(&folder);
    let parts = [BatchKind::SnapshotBegin, BatchKind::SnapshotPart, BatchKind::SnapshotEnd];
    spool.append(Content::Snapshot, parts.map(|kind| draft(kind, 1, 10)).to_vec()).unwrap();
    append(&mut spool, BatchKind::Changes, 2);
    spool.acknowledge(number(1, 1));
    spool.give_up_after(number(1, 1));
    assert_eq!(rest(&mut spool, number(1, 1)), [vec![(number(1, 2), number(1, 3))], single(1, [4])].concat());
}

#[derive(Debug, Clone)]
enum Step {
    Changes(usize),
    Snapshot(usize),
    Acknowledge(u64),
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..3000_usize).prop_map(Step::Changes),
        2 => (1..5_usize).prop_map(Step::Snapshot),
        2 => (1..6_u64).prop_map(Step::Acknowledge),
        1 => Just(Step::Restart),
    ]
}

fn snapshot(spool: &mut Spool, second: i64, parts: usize) {
    let kind = |part| match (part, parts) {
        (0, 1) => BatchKind::SnapshotWhole,
        (0, _) => BatchKind::SnapshotBegin,
        (part, parts) if part + 1 == parts => BatchKind::SnapshotEnd,
        _ => BatchKind::SnapshotPart,
    };
    spool.append(Content::Snapshot, (0..parts).map(|part| draft(kind(part), second, 500)).collect()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_number_is_delivered_or_told_as_lost_exactly_once(steps in vec(step(), 1..40)) {
        let folder = folder();
        let limit = 6000;
        let mut spool = Spool::open(folder.path(), limit, at(0)).unwrap();
        let (mut given, mut told) = (BTreeSet::new(), BTreeSet::new());
        let mut position = BatchNumber::default();
        let mut before = spool.given();
        for (step, second) in steps.into_iter().zip(1..) {
            match step {
                Step::Changes(_) | Step::Snapshot(_) if spool.wants_snapshot() => snapshot(&mut spool, second, 3),
                Step::Changes(size) => {
                    spool.append(Content::Changes, vec![draft(BatchKind::Changes, second, size)]).unwrap();
                }
                Step::Snapshot(parts) => snapshot(&mut spool, second, parts),
                Step::Acknowledge(count) => {
                    for _ in 0..count {
                        let Some(item) = spool.next_after(position) else { break };
                        let (epoch, first, last) = match item {
                            Item::Batch(batch) => (batch.number.epoch, batch.number.seq, batch.number.seq),
                            Item::Gap(gap) => (gap.epoch, gap.seqs.unwrap().0, gap.seqs.unwrap().1),
                        };
                        for seq in first..=last {
                            prop_assert!(told.insert(number(epoch, seq)), "{epoch}/{seq} twice");
                        }
                        position = number(epoch, last);
                        spool.acknowledge(position);
                    }
                }
                Step::Restart => {
                    drop(spool);
                    spool = Spool::open(folder.path(), limit, at(0)).unwrap();
                }
            }
            let now = spool.given();
            let first = if now.epoch == before.epoch { before.seq + 1 } else { 1 };
            given.extend((first..=now.seq).map(|seq| number(now.epoch, seq)));
            before = now;
            // A single append may be larger than the limit: it is kept alone.
            prop_assert!(spool.bytes() <= limit.max(5 * 1000));
        }
        for (first, last) in rest(&mut spool, position) {
            for seq in first.seq..=last.seq {
                prop_assert!(told.insert(number(first.epoch, seq)), "{}/{seq} twice", first.epoch);
            }
        }
        prop_assert_eq!(told, given);
    }
}
