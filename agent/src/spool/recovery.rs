//! How the spool goes on after a server that has more, less or something else than was thought.

use std::collections::VecDeque;

use fleetsock_proto::{
    answer::GapReason,
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};

use super::{
    Item, Spool,
    disk::Dropped,
    first_of,
    resumption::{Holdings, Numbering, Resumption, resume},
    stored::{Dropping, Head, Stored},
};

impl Spool {
    /// Arranges what is held so that delivery goes on after what the server has, and tells how.
    pub fn resume_after(&mut self, last: BatchNumber) -> Resumption {
        let resumption = resume(last, &self.holdings(last));
        self.arrange(last, resumption);
        resumption
    }

    fn holdings(&mut self, last: BatchNumber) -> Holdings {
        let head = self.head_after(last).map(|head| (head.number, head.since));
        let numbered = self
            .gaps
            .iter()
            .filter(|gap| gap.seqs.is_some_and(|(_, end)| last < BatchNumber { epoch: gap.epoch, seq: end }));
        let gap = numbered.map(|gap| (first_of(gap), gap.since)).next();
        let numbering = match self.acknowledged.epoch == self.given.epoch {
            true => Numbering::Shared,
            false if self.guessed => Numbering::Guessed,
            false => Numbering::Fresh,
        };
        let mark = self.ask(|disk| disk.mark(last)).flatten();
        let next = [head, gap].into_iter().flatten().min();
        let before = next.map(|(first, _)| BatchNumber { seq: first.seq.saturating_sub(1), ..first });
        let last_mark = before.and_then(|before| self.ask(|disk| disk.mark(before)).flatten());
        Holdings { given: self.given, numbering, next, mark, last_mark, until: self.until }
    }

    fn arrange(&mut self, last: BatchNumber, resumption: Resumption) {
        match resumption {
            Resumption::InOrder => {}
            Resumption::After { missing, since, until } => {
                let reason = GapReason::Delivery;
                self.gaps.insert(GapReport { epoch: last.epoch, seqs: Some(missing), since, until, reason });
            }
            Resumption::Renumber { epoch } => {
                let from = self.given.epoch;
                self.give_up_below(from);
                self.renumber_memory(epoch);
                self.ask(|disk| disk.renumber(from, epoch).and_then(|()| disk.note_epoch(epoch)));
            }
            Resumption::Anew { epoch } => {
                self.give_up_below(u64::MAX);
                self.begin_epoch(epoch);
            }
        }
        self.guessed = false;
        self.acknowledge(last);
    }

    /// Drops what is held of the numberings below one: it cannot be delivered in order any more.
    fn give_up_below(&mut self, epoch: u64) {
        let on_disk = self.ask(|disk| disk.drop_below(epoch)).flatten();
        let (given_up, kept): (VecDeque<Stored>, _) =
            self.memory.drain(..).partition(|batch| batch.head.number.epoch < epoch);
        self.memory = kept;
        let in_memory =
            given_up.iter().map(|Stored { head: Head { since, until, changes, .. }, .. }| (*since, *until, *changes));
        let gaps = self.gaps.take_below(epoch).map(|(since, until)| (since, until, 0));
        let all = in_memory.chain(gaps).map(|(since, until, changes)| Dropped { since, until, changes }).chain(on_disk);
        let dropped = all.reduce(|a, b| Dropped {
            since: a.since.min(b.since),
            until: a.until.max(b.until),
            changes: a.changes + b.changes,
        });
        self.note_lost(dropped);
    }

    /// Tells that a time was not observed.
    pub fn unobserved(&mut self, since: Timestamp, until: Timestamp, reason: GapReason) {
        let since = since.min(until);
        self.gaps.insert(GapReport { epoch: self.given.epoch, seqs: None, since, until, reason });
        let gaps = self.gaps.clone();
        self.ask(|disk| disk.store_gaps(&gaps));
    }

    /// Begins a new numbering: what is held does not lead on from what the server has.
    pub fn start_over(&mut self, last: BatchNumber) {
        self.arrange(last, Resumption::Anew { epoch: last.epoch.max(self.given.epoch) + 1 });
    }

    /// Gives up the item after what the server has: it refuses that as often as it is sent. A batch becomes a gap, with
    /// the rest of its snapshot; a gap is forgotten and a new numbering begins.
    pub fn give_up_after(&mut self, last: BatchNumber) {
        match self.next_after(last) {
            Some(Item::Batch(_)) => self.give_up_first(),
            Some(Item::Gap(gap)) => {
                self.gaps.forget(&gap);
                self.start_over(last);
            }
            None => {}
        }
    }

    fn give_up_first(&mut self) {
        let gaps = self.gaps.clone();
        if let Some((gaps, lost)) = self.ask(|disk| disk.drop_first(GapReason::Delivery, gaps))
            && lost.is_some()
        {
            self.gaps = gaps;
            self.lost += lost.unwrap_or(0);
            return;
        }
        let mut dropping = Dropping::new(1);
        while let Some(oldest) = self.memory.front()
            && dropping.takes(&oldest.head)
        {
            self.gaps.add(&oldest.head, GapReason::Delivery);
            self.memory.pop_front();
        }
        self.lost += dropping.changes();
    }
}
