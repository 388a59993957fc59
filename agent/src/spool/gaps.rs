//! What the spool gave up and the server does not know of yet.

use fleetsock_proto::{
    answer::GapReason,
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};

use super::stored::Head;

/// Most gaps that are kept. Neighbours are one, so that each further one stands for another start of the agent.
pub const GAPS_LIMIT: usize = 1024;

/// Gaps: first those of what had no number, then by number. Neighbours with one reason are one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Gaps(Vec<GapReport>);

/// First and last number of a gap; those without numbers come before all others.
fn range(gap: &GapReport) -> (BatchNumber, BatchNumber) {
    match gap.seqs {
        Some((first, last)) => {
            (BatchNumber { epoch: gap.epoch, seq: first }, BatchNumber { epoch: gap.epoch, seq: last })
        }
        None => (BatchNumber::default(), BatchNumber::default()),
    }
}

/// The gap that two become, when they touch.
fn joined(left: &GapReport, right: &GapReport) -> Option<GapReport> {
    let ((first, end), (begin, last)) = (left.seqs?, right.seqs?);
    let touch = left.epoch == right.epoch && left.reason == right.reason && end + 1 >= begin;
    touch.then(|| GapReport {
        seqs: Some((first, last.max(end))),
        since: left.since.min(right.since),
        until: left.until.max(right.until),
        ..*left
    })
}

impl Gaps {
    /// The gaps that were written down.
    pub(super) fn of(gaps: Vec<GapReport>) -> Gaps {
        let mut all = Gaps::default();
        for gap in gaps {
            all.insert(gap);
        }
        all
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &GapReport> {
        self.0.iter()
    }

    /// Notes that a batch will never come.
    pub(super) fn add(&mut self, batch: &Head, reason: GapReason) {
        let BatchNumber { epoch, seq } = batch.number;
        self.insert(GapReport {
            epoch,
            seqs: Some((seq, seq)),
            since: batch.since.min(batch.until),
            until: batch.until,
            reason,
        });
    }

    /// Puts a gap in its place.
    pub(super) fn insert(&mut self, gap: GapReport) {
        let index = self.0.partition_point(|other| range(other).0 <= range(&gap).0);
        self.0.insert(index, gap);
        self.join(index);
        if index > 0 {
            self.join(index - 1);
        }
        if self.0.len() > GAPS_LIMIT {
            // The oldest two become one without numbers: the range stays exact, the count of batches does not.
            let (first, second) = (self.0.remove(0), self.0.remove(0));
            let (since, until) = (first.since.min(second.since), first.until.max(second.until));
            self.0.insert(0, GapReport { seqs: None, since, until, ..second });
        }
    }

    fn join(&mut self, index: usize) {
        if let [left, right, ..] = &self.0[index..]
            && let Some(gap) = joined(left, right)
        {
            self.0[index] = gap;
            self.0.remove(index + 1);
        }
    }

    /// Forgets what the server knows: everything up to a number. A gap whose beginning was delivered after all shrinks.
    pub(super) fn acknowledge(&mut self, upto: BatchNumber) {
        self.0.retain_mut(|gap| {
            let (first, last) = range(gap);
            if gap.seqs.is_some() && first <= upto && upto < last {
                gap.seqs = Some((upto.seq + 1, last.seq));
            }
            gap.seqs.is_none() || upto < last
        });
    }

    /// Forgets a gap that was told of.
    pub(super) fn forget(&mut self, told: &GapReport) {
        self.0.retain(|gap| gap != told);
    }

    /// Forgets the gaps with numbers of numberings below one; gives the time that they span.
    pub(super) fn take_below(&mut self, epoch: u64) -> Option<(Timestamp, Timestamp)> {
        let numbered = self.0.extract_if(.., |gap| gap.seqs.is_some() && gap.epoch < epoch);
        numbered.map(|gap| (gap.since, gap.until)).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1)))
    }

    /// Gives the gaps of one numbering another one.
    pub(super) fn renumber(&mut self, from: u64, to: u64) {
        for gap in self.0.iter_mut().filter(|gap| gap.epoch == from) {
            gap.epoch = to;
        }
    }

    /// The first gap that is to be told of after a number.
    pub(super) fn after(&self, position: BatchNumber) -> Option<&GapReport> {
        self.0.iter().find(|gap| gap.seqs.is_none() || position < range(gap).1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn gap(epoch: u64, first: u64, last: u64) -> GapReport {
        let at = |seq: u64| Timestamp::from_micros(seq as i64 * 1_000_000);
        GapReport {
            epoch,
            seqs: Some((first, last)),
            since: at(first - 1),
            until: at(last),
            reason: GapReason::SpoolFull,
        }
    }

    fn number(epoch: u64, seq: u64) -> BatchNumber {
        BatchNumber { epoch, seq }
    }

    #[test]
    fn neighbours_become_one_gap_and_others_stay_apart() {
        let other = GapReport { reason: GapReason::Delivery, ..gap(1, 9, 9) };
        let gaps = Gaps::of(vec![gap(1, 1, 1), gap(1, 3, 4), gap(2, 1, 1), other, gap(1, 2, 2), gap(1, 7, 8)]);
        assert_eq!(gaps.0, [gap(1, 1, 4), gap(1, 7, 8), other, gap(2, 1, 1)]);
    }

    #[test]
    fn what_arrived_after_all_is_taken_out_of_a_gap() {
        let mut gaps = Gaps::of(vec![gap(1, 3, 9), gap(2, 1, 2)]);
        gaps.acknowledge(number(1, 5));
        assert_eq!(gaps.0[0].seqs, Some((6, 9)));
        gaps.acknowledge(number(1, 9));
        assert_eq!(gaps.0, [gap(2, 1, 2)]);
        assert_eq!(gaps.after(number(1, 9)), Some(&gap(2, 1, 2)));
        assert_eq!(gaps.after(number(2, 2)), None);
    }

    #[test]
    fn what_had_no_number_is_told_first_and_until_it_was_told() {
        let unnumbered = GapReport { seqs: None, ..gap(5, 1, 1) };
        let mut gaps = Gaps::of(vec![gap(1, 3, 9), unnumbered]);
        assert_eq!(gaps.after(number(9, 9)), Some(&unnumbered));
        gaps.acknowledge(number(9, 9));
        gaps.forget(&unnumbered);
        assert_eq!(gaps, Gaps::default());
    }

    #[test]
    fn too_many_gaps_become_fewer_that_span_the_same_time() {
        let gaps = Gaps::of((1..=GAPS_LIMIT as u64 + 10).map(|epoch| gap(epoch, 1, epoch)).collect());
        assert_eq!(gaps.0.len(), GAPS_LIMIT);
        let span = gaps.iter().fold((i64::MAX, 0), |(since, until), gap| {
            (since.min(gap.since.as_micros()), until.max(gap.until.as_micros()))
        });
        assert_eq!(span, (0, (GAPS_LIMIT as i64 + 10) * 1_000_000));
    }

    proptest! {
        #[test]
        fn exactly_the_numbers_that_were_added_are_in_some_gap(seqs in vec(1..40_u64, 0..40), upto in 0..40_u64) {
            let mut gaps = Gaps::of(seqs.iter().map(|seq| gap(1, *seq, *seq)).collect());
            gaps.acknowledge(number(1, upto));
            for seq in 1..40 {
                let told = gaps.iter().filter(|gap| gap.seqs.is_some_and(|(a, b)| (a..=b).contains(&seq))).count();
                prop_assert_eq!(told, usize::from(seqs.contains(&seq) && seq > upto), "{}", seq);
            }
        }
    }
}
