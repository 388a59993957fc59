//! What is done with a batch, decided from how far the history of its host goes.

use fleetsock_proto::{
    batch::{Batch, BatchKind},
    host::BootId,
    stream::BatchNumber,
    time::Timestamp,
};

use super::Skew;

/// How far the history of a host goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The last batch.
    pub number: BatchNumber,
    /// The boot that it was about; absent before the first.
    pub boot_id: Option<BootId>,
    /// The last walk that was told of, by the server's clock.
    pub observed_until: Timestamp,
    /// Number of the last snapshot, from 1.
    pub snapshot: i64,
    /// Whether parts of it are still to come.
    pub unfinished: bool,
    /// The last walk before it began. What it has not named so far was last known to be open then.
    pub observed_before: Timestamp,
}

/// What is done with a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// Nothing: it is stored.
    Duplicate,
    /// Nothing: this one must come first.
    Hole(BatchNumber),
    /// It is stored.
    Next(Step),
}

/// How the next batch is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The cursor after it.
    pub after: Cursor,
    /// The host was started anew: nothing of the boot before is open any more.
    pub rebooted: bool,
    /// It is the last part of a snapshot: what no part named is not open any more.
    pub ends_snapshot: bool,
    /// When what is not open any more was last known to be: its closing is lost.
    pub last_observed: Timestamp,
    /// It is the first of its host.
    pub first: bool,
    /// The range before it that nobody observed.
    pub gap: Option<(Timestamp, Timestamp)>,
}

impl Cursor {
    /// The cursor of a host whose last sign of life told of a later walk than its last batch.
    pub fn observed(mut self, until: Option<Timestamp>) -> Cursor {
        self.observed_until = self.observed_until.max(until.unwrap_or_default());
        self
    }

    /// What is done with `batch`.
    pub fn admit(&self, batch: &Batch, skew: Skew) -> Admission {
        let number = BatchNumber { epoch: batch.epoch, seq: batch.seq };
        if number <= self.number {
            return Admission::Duplicate;
        }
        let begins = matches!(batch.kind, BatchKind::SnapshotBegin | BatchKind::SnapshotWhole);
        let expected = if number.epoch == self.number.epoch {
            BatchNumber { epoch: number.epoch, seq: self.number.seq.saturating_add(1) }
        } else {
            BatchNumber { epoch: number.epoch, seq: 1 }
        };
        let new_epoch = expected.seq == 1;
        if number != expected || (new_epoch && !begins) {
            return Admission::Hole(expected);
        }
        Admission::Next(self.step(batch, number, new_epoch, skew))
    }

    fn step(&self, batch: &Batch, number: BatchNumber, new_epoch: bool, skew: Skew) -> Step {
        let observed_until = skew.corrected(batch.observed_until);
        let (snapshot, unfinished) = match batch.kind {
            BatchKind::SnapshotBegin => (self.snapshot + 1, true),
            BatchKind::SnapshotWhole => (self.snapshot + 1, false),
            BatchKind::SnapshotEnd => (self.snapshot, false),
            BatchKind::SnapshotPart | BatchKind::Changes => (self.snapshot, self.unfinished),
        };
        let ends_snapshot = match batch.kind {
            BatchKind::SnapshotWhole => true,
            BatchKind::SnapshotEnd => self.unfinished,
            BatchKind::SnapshotBegin | BatchKind::SnapshotPart | BatchKind::Changes => false,
        };
        let known_before = self.boot_id.is_some();
        let last_observed = if self.unfinished { self.observed_before } else { self.observed_until };
        let observed_before = match batch.kind {
            BatchKind::SnapshotBegin => last_observed,
            _ => self.observed_before,
        };
        Step {
            rebooted: self.boot_id.is_some_and(|boot| boot != batch.boot_id),
            ends_snapshot,
            last_observed,
            first: !known_before,
            gap: (new_epoch && known_before && self.observed_until < observed_until)
                .then_some((self.observed_until, observed_until)),
            after: Cursor {
                number,
                boot_id: Some(batch.boot_id),
                observed_until,
                snapshot,
                unfinished,
                observed_before,
            },
        }
    }

    /// The range that nobody observed before a numbering whose first numbers, of what was observed since then, will never come.
    pub fn gap_before(&self, epoch: u64, since: Timestamp) -> Option<(Timestamp, Timestamp)> {
        let begins = epoch > self.number.epoch && self.boot_id.is_some() && self.observed_until < since;
        begins.then_some((self.observed_until, since))
    }

    /// The cursor after numbers that will never come.
    pub fn over(&self, epoch: u64, (first, last): (u64, u64)) -> Option<Cursor> {
        let follows = if epoch == self.number.epoch {
            first <= self.number.seq.saturating_add(1) && last > self.number.seq
        } else {
            epoch > self.number.epoch && first == 1
        };
        follows.then(|| Cursor { number: BatchNumber { epoch, seq: last }, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: u64, seq: u64, kind: BatchKind) -> Batch {
        let at = |s: i64| Timestamp::from_micros(s * 1_000_000);
        Batch {
            epoch,
            seq,
            kind,
            boot_id: BootId::from_array([1; 16]),
            observed_since: at(99),
            observed_until: at(100),
            changes: Vec::new(),
            digest: None,
            namespaces: Vec::new(),
        }
    }

    fn cursor(epoch: u64, seq: u64) -> Cursor {
        Cursor {
            number: BatchNumber { epoch, seq },
            boot_id: Some(BootId::from_array([1; 16])),
            observed_until: Timestamp::from_micros(50_000_000),
            snapshot: 3,
            unfinished: false,
            observed_before: Timestamp::from_micros(40_000_000),
        }
    }

    #[test]
    fn numbers_are_stored_once_and_without_holes() {
        use BatchKind::{Changes, SnapshotBegin, SnapshotPart, SnapshotWhole};
        let hole = |epoch, seq| Some(Admission::Hole(BatchNumber { epoch, seq }));
        for (last, next, kind, refused) in [
            ((0, 0), (1, 1), SnapshotWhole, None),
            ((0, 0), (7, 1), SnapshotBegin, None),
            ((0, 0), (1, 1), Changes, hole(1, 1)),
            ((0, 0), (1, 2), SnapshotWhole, hole(1, 1)),
            ((2, 5), (2, 6), Changes, None),
            ((2, 5), (2, 7), Changes, hole(2, 6)),
            ((2, 5), (2, 5), Changes, Some(Admission::Duplicate)),
            ((2, 5), (1, 9), Changes, Some(Admission::Duplicate)),
            ((2, 5), (3, 1), SnapshotWhole, None),
            ((2, 5), (3, 1), SnapshotPart, hole(3, 1)),
            ((2, 5), (3, 2), Changes, hole(3, 1)),
        ] {
            let admission = cursor(last.0, last.1).admit(&batch(next.0, next.1, kind), Skew::default());
            match refused {
                Some(expected) => assert_eq!(admission, expected, "{last:?} then {next:?}"),
                None => assert!(matches!(admission, Admission::Next(_)), "{last:?} then {next:?}: {admission:?}"),
            }
        }
    }

    fn step(cursor: &Cursor, batch: &Batch) -> Step {
        match cursor.admit(batch, Skew::default()) {
            Admission::Next(step) => step,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_snapshot_ends_with_its_last_part_and_only_when_its_first_was_stored() {
        let begin = step(&cursor(1, 1), &batch(1, 2, BatchKind::SnapshotBegin));
        assert_eq!((begin.ends_snapshot, begin.after.snapshot, begin.after.unfinished), (false, 4, true));
        let part = step(&begin.after, &batch(1, 3, BatchKind::SnapshotPart));
        assert_eq!((part.ends_snapshot, part.after.snapshot, part.after.unfinished), (false, 4, true));
        let end = step(&part.after, &batch(1, 4, BatchKind::SnapshotEnd));
        assert_eq!((end.ends_snapshot, end.after.snapshot, end.after.unfinished), (true, 4, false));
        let walks = [&begin, &part, &end].map(|step| step.last_observed.as_micros() / 1_000_000);
        assert_eq!(walks, [50, 50, 50], "the last one before the snapshot, not the one that its parts tell of");
        let headless = step(&cursor(1, 1), &batch(1, 2, BatchKind::SnapshotEnd));
        assert_eq!((headless.ends_snapshot, headless.after.snapshot), (false, 3));
    }

    #[test]
    fn a_new_numbering_leaves_a_gap_since_the_last_walk_and_a_new_boot_is_noticed() {
        let known = cursor(1, 9).observed(Some(Timestamp::from_micros(60_000_000)));
        let next = step(&known, &batch(2, 1, BatchKind::SnapshotWhole));
        assert_eq!(next.gap, Some((Timestamp::from_micros(60_000_000), Timestamp::from_micros(100_000_000))));
        assert_eq!((next.rebooted, next.last_observed), (false, Timestamp::from_micros(60_000_000)));
        assert_eq!(step(&known, &batch(1, 10, BatchKind::Changes)).gap, None);
        assert_eq!(step(&Cursor::default(), &batch(1, 1, BatchKind::SnapshotWhole)).gap, None);
        let other_boot = Batch { boot_id: BootId::from_array([2; 16]), ..batch(2, 1, BatchKind::SnapshotWhole) };
        assert!(step(&known, &other_boot).rebooted);
    }

    #[test]
    fn the_time_between_two_numberings_is_a_gap_also_when_the_second_begins_with_one() {
        let at = |s: i64| Timestamp::from_micros(s * 1_000_000);
        let known = cursor(2, 5);
        assert_eq!(known.gap_before(3, at(60)), Some((at(50), at(60))));
        assert_eq!(known.clone().observed(Some(at(55))).gap_before(3, at(60)), Some((at(55), at(60))));
        assert_eq!(known.gap_before(2, at(60)), None, "the agent went on");
        assert_eq!(known.gap_before(3, at(50)), None);
        assert_eq!(Cursor::default().gap_before(3, at(60)), None, "nothing was observed before");
    }

    #[test]
    fn a_gap_moves_the_cursor_only_over_what_comes_next() {
        for (last, epoch, range, moved) in [
            ((2, 5), 2, (6, 9), Some((2, 9))),
            ((2, 5), 2, (3, 9), Some((2, 9))),
            ((2, 5), 2, (7, 9), None),
            ((2, 5), 2, (2, 5), None),
            ((2, 5), 3, (1, 4), Some((3, 4))),
            ((2, 5), 3, (2, 4), None),
            ((2, 5), 1, (1, 99), None),
        ] {
            let after = cursor(last.0, last.1).over(epoch, range).map(|cursor| cursor.number);
            assert_eq!(after, moved.map(|(epoch, seq)| BatchNumber { epoch, seq }), "{last:?}, {epoch}/{range:?}");
        }
    }
}
