//! How sessions of one host become a block.

use std::net::IpAddr;

use super::{
    block::NUMBERS,
    layout::{Order, Packing},
    numbers::NumberWriter,
    recurring::{Dictionary, write_addresses, write_owners},
};
use crate::history::sqlite::{coding::OwnerColumns, stored::StoredSession};

/// Writes blocks, one after the other in the same room.
#[derive(Default)]
pub(super) struct Encoder {
    packing: Packing,
    numbers: Vec<i64>,
    writer: NumberWriter,
    local: Dictionary<IpAddr>,
    peer: Dictionary<IpAddr>,
    owners: Dictionary<OwnerColumns>,
}

impl Encoder {
    /// The bytes of sessions of one host, which are all over.
    pub(super) fn encode(&mut self, sessions: &[StoredSession]) -> &[u8] {
        self.local.fill(sessions.iter().map(|one| one.local.ip()));
        self.peer.fill(sessions.iter().map(|one| one.peer.ip()));
        self.owners.fill(sessions.iter().map(|one| &one.owners));
        let packing = &mut self.packing;
        packing.begin();
        for (_, nature, number) in NUMBERS {
            self.numbers.clear();
            self.numbers.extend(sessions.iter().map(number));
            self.writer.write(&self.numbers, nature, &mut packing.columns);
            packing.end_column();
        }
        for addresses in [&self.local, &self.peer] {
            write_addresses(addresses, &mut packing.columns);
            packing.end_column();
        }
        write_owners(&self.owners, &mut packing.columns);
        packing.end_column();
        packing.finish(sessions.len(), order(sessions))
    }

    /// The peers of the block that was encoded last, and of each session the place of its peer.
    pub(super) fn peers(&self) -> (&[IpAddr], &[usize]) {
        (&self.peer.values, &self.peer.places)
    }
}

fn order(sessions: &[StoredSession]) -> Order {
    let mut before = 0;
    for one in sessions {
        let (closed_at_us, _) = one.closed.unwrap_or_default();
        if closed_at_us < before || !(0..=closed_at_us).contains(&one.opened_at_us) {
            return Order::Unknown;
        }
        before = closed_at_us;
    }
    Order::Kept
}
