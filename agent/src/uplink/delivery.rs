//! What is sent next, and what an answer means. Pure: the stream and the spool are elsewhere.

use fleetsock_proto::stream::{BatchNumber, GapReport, Nack};

use crate::spool::Item;

/// Most batches that are on the way, however much credit a server gives.
pub const CREDIT_LIMIT: u32 = 1024;
/// Refusals in a row, without a batch committed between them, until the numbering begins anew.
const NACKS_LIMIT: u32 = 3;

/// The state of one stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The last number that was sent or that the server has.
    position: BatchNumber,
    credit: u32,
    /// Batches whose credit did not come back.
    unanswered: u32,
    /// A gap that was told of and not acknowledged. Nothing else is sent meanwhile: an Ack does not say what it is for.
    gap: Option<GapReport>,
    /// What the server has, when it asked for what comes after it and batches are still on the way.
    rewind: Option<BatchNumber>,
    nacks: u32,
}

/// What is to be done about what the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reaction {
    /// Nothing.
    Nothing,
    /// Everything up to a number is committed, and a gap without numbers is written down.
    Forget {
        /// The number.
        upto: BatchNumber,
        /// The gap that was told of.
        gap: Option<GapReport>,
    },
    /// Go on after what the server has.
    Resume(BatchNumber),
    /// Begin a new numbering: what is held does not lead on from what the server has.
    StartOver(BatchNumber),
}

impl Delivery {
    /// A stream on which the server has everything up to `last`.
    pub fn new(last: BatchNumber, credit: u32) -> Delivery {
        let credit = credit.min(CREDIT_LIMIT);
        Delivery { position: last, credit, unanswered: 0, gap: None, rewind: None, nacks: 0 }
    }

    /// Goes on after what the server has.
    pub fn resumed(&mut self, last: BatchNumber) {
        (self.position, self.gap, self.rewind) = (last, None, None);
    }

    /// The number after which the next item is wanted; `None` while nothing may be sent.
    pub fn wants_after(&self) -> Option<BatchNumber> {
        let may = self.credit > 0 && self.gap.is_none() && self.rewind.is_none();
        may.then_some(self.position)
    }

    /// Whether an item may be sent now.
    pub fn admits(&self, item: &Item) -> bool {
        self.wants_after().is_some() && (matches!(item, Item::Batch(_)) || self.unanswered == 0)
    }

    /// Whether everything that was sent is answered.
    pub fn is_settled(&self) -> bool {
        self.unanswered == 0 && self.gap.is_none()
    }

    /// An item was sent.
    pub fn sent(&mut self, item: &Item) {
        match item {
            Item::Batch(batch) => {
                self.position = batch.number;
                self.credit = self.credit.saturating_sub(1);
                self.unanswered += 1;
            }
            Item::Gap(gap) => self.gap = Some(*gap),
        }
    }

    /// Everything up to `upto` is committed.
    pub fn acknowledged(&mut self, upto: BatchNumber) -> Reaction {
        self.nacks = 0;
        let gap = self.gap.take();
        if let Some(GapReport { epoch, seqs: Some((_, last)), .. }) = gap {
            let end = BatchNumber { epoch, seq: last };
            if upto < end {
                // It was written down, and the cursor stands where it stood.
                return Reaction::StartOver(upto);
            }
        }
        self.position = self.position.max(upto);
        Reaction::Forget { upto, gap }
    }

    /// A batch was not stored.
    pub fn refused(&mut self, nack: &Nack) -> Reaction {
        let expected = nack.expected;
        let last = BatchNumber { epoch: expected.epoch, seq: expected.seq.saturating_sub(1) };
        // Those that are on the way are refused for the same reason, and no reason of their own.
        if self.rewind.is_none() {
            self.nacks += 1;
        }
        if nack.snapshot_wanted || self.nacks >= NACKS_LIMIT {
            self.nacks = 0;
            return Reaction::StartOver(last);
        }
        self.rewind = Some(last);
        self.settle()
    }

    /// So many more batches may be sent.
    pub fn credited(&mut self, batches: u32) -> Reaction {
        self.unanswered = self.unanswered.saturating_sub(batches);
        self.credit = self.credit.saturating_add(batches).min(CREDIT_LIMIT);
        self.settle()
    }

    /// Goes back as soon as nothing is on the way any more.
    fn settle(&mut self) -> Reaction {
        match self.rewind {
            Some(last) if self.unanswered == 0 => {
                self.resumed(last);
                Reaction::Resume(last)
            }
            _ => Reaction::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use fleetsock_proto::{answer::GapReason, stream::PackedBatch, stream::ServerMessage, time::Timestamp};
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn number(epoch: u64, seq: u64) -> BatchNumber {
        BatchNumber { epoch, seq }
    }

    fn batch(seq: u64) -> Item {
        Item::Batch(PackedBatch::new(number(1, seq), Timestamp::default(), Vec::new()))
    }

    fn gap(seqs: Option<(u64, u64)>) -> GapReport {
        let at = Timestamp::default();
        GapReport { epoch: 1, seqs, since: at, until: at, reason: GapReason::SpoolFull }
    }

    fn nack(seq: u64) -> Nack {
        Nack { expected: number(1, seq), reason: String::new(), snapshot_wanted: false }
    }

    #[test]
    fn no_more_is_on_the_way_than_there_is_credit_for() {
        let mut delivery = Delivery::new(number(1, 0), 2);
        for seq in 1..=2 {
            assert_eq!(delivery.wants_after(), Some(number(1, seq - 1)));
            delivery.sent(&batch(seq));
        }
        assert_eq!(delivery.wants_after(), None);
        assert_eq!(delivery.acknowledged(number(1, 1)), Reaction::Forget { upto: number(1, 1), gap: None });
        assert_eq!(delivery.wants_after(), None, "an acknowledgement is no credit");
        assert_eq!(delivery.credited(1), Reaction::Nothing);
        assert_eq!(delivery.wants_after(), Some(number(1, 2)));
    }

    #[test]
    fn a_hole_is_filled_when_the_batches_on_the_way_are_answered() {
        let mut delivery = Delivery::new(number(1, 0), 4);
        for seq in 3..=5 {
            delivery.sent(&batch(seq));
        }
        for _ in 0..2 {
            assert_eq!(delivery.refused(&nack(1)), Reaction::Nothing);
            assert_eq!(delivery.credited(1), Reaction::Nothing);
            assert_eq!(delivery.wants_after(), None);
        }
        assert_eq!(delivery.refused(&nack(1)), Reaction::Nothing);
        assert_eq!(delivery.credited(1), Reaction::Resume(number(1, 0)));
        assert_eq!(delivery.wants_after(), Some(number(1, 0)));
    }

    #[test]
    fn a_server_that_keeps_refusing_gets_a_new_numbering() {
        let mut delivery = Delivery::new(number(1, 0), 4);
        for _ in 0..2 {
            delivery.sent(&batch(1));
            assert_eq!(delivery.refused(&nack(1)), Reaction::Nothing);
            assert_eq!(delivery.credited(1), Reaction::Resume(number(1, 0)));
        }
        delivery.sent(&batch(1));
        assert_eq!(delivery.refused(&nack(1)), Reaction::StartOver(number(1, 0)));
        let mut delivery = Delivery::new(number(1, 0), 4);
        assert_eq!(delivery.refused(&Nack { snapshot_wanted: true, ..nack(8) }), Reaction::StartOver(number(1, 7)));
    }

    #[test]
    fn a_gap_is_told_alone_and_answered_before_anything_else() {
        let mut delivery = Delivery::new(number(1, 0), 4);
        delivery.sent(&batch(1));
        let told = Item::Gap(gap(Some((2, 9))));
        assert!(!delivery.admits(&told) && delivery.admits(&batch(2)));
        delivery.acknowledged(number(1, 1));
        delivery.credited(1);
        assert!(delivery.admits(&told));
        delivery.sent(&told);
        assert_eq!((delivery.wants_after(), delivery.is_settled()), (None, false));
        let forget = Reaction::Forget { upto: number(1, 9), gap: Some(gap(Some((2, 9)))) };
        assert_eq!(delivery.acknowledged(number(1, 9)), forget);
        assert_eq!(delivery.wants_after(), Some(number(1, 9)));
        delivery.sent(&Item::Gap(gap(None)));
        let forget = Reaction::Forget { upto: number(1, 9), gap: Some(gap(None)) };
        assert_eq!(delivery.acknowledged(number(1, 9)), forget);
        delivery.sent(&Item::Gap(gap(Some((12, 14)))));
        assert_eq!(delivery.acknowledged(number(1, 9)), Reaction::StartOver(number(1, 9)));
    }

    /// A server that keeps the contract, over a connection that loses what `lossy` says.
    struct Server {
        stored: u64,
        answers: VecDeque<ServerMessage>,
    }

    impl Server {
        fn receive(&mut self, seq: u64) {
            if seq <= self.stored + 1 {
                self.stored = self.stored.max(seq);
                self.answers.push_back(ServerMessage::Ack(number(1, seq)));
            } else {
                self.answers.push_back(ServerMessage::Nack(nack(self.stored + 1)));
            }
            self.answers.push_back(ServerMessage::Credit(1));
        }
    }

    proptest! {
        #[test]
        fn everything_is_stored_whatever_the_order_of_sending_and_hearing(
            total in 1..30_u64,
            start in 0..30_u64,
            credit in 1..5_u32,
            turns in vec(any::<bool>(), 0..200),
        ) {
            // The stream begins somewhere, also too far on: the server asks for what is missing.
            let mut delivery = Delivery::new(number(1, start.min(total)), credit);
            let mut server = Server { stored: 0, answers: VecDeque::new() };
            let mut forgotten = 0;
            for send in turns.into_iter().chain(std::iter::repeat_n(true, 1).chain([false]).cycle().take(2000)) {
                if send {
                    if let Some(after) = delivery.wants_after() && after.seq < total {
                        delivery.sent(&batch(after.seq + 1));
                        prop_assert!(delivery.unanswered <= credit);
                        server.receive(after.seq + 1);
                    } else if delivery.is_settled() && server.stored < total {
                        // At the end of what is held: a heartbeat later another batch shows the hole.
                        delivery.sent(&batch(total + 1));
                        server.receive(total + 1);
                    }
                } else if let Some(answer) = server.answers.pop_front() {
                    let reaction = match answer {
                        ServerMessage::Ack(upto) => delivery.acknowledged(upto),
                        ServerMessage::Nack(nack) => delivery.refused(&nack),
                        ServerMessage::Credit(batches) => delivery.credited(batches),
                        other => panic!("{other:?}"),
                    };
                    match reaction {
                        Reaction::Forget { upto, .. } => {
                            prop_assert!(upto.seq <= server.stored);
                            forgotten = forgotten.max(upto.seq);
                        }
                        Reaction::Resume(last) => prop_assert_eq!(last.seq, server.stored),
                        Reaction::StartOver(_) => prop_assert!(false, "nothing was refused three times"),
                        Reaction::Nothing => {}
                    }
                }
            }
            prop_assert!(server.stored >= total);
            prop_assert_eq!(forgotten, server.stored);
        }
    }
}
