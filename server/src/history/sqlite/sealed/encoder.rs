//! How sessions of one host become a block.

use std::{io, net::IpAddr};

use super::{
    block::{Coding, LOCAL, NUMBERS, OWNERS, PEER},
    column::{Dictionary, Writing},
    layout::{COLUMNS, Packing},
};
use crate::history::sqlite::{
    coding::{AddressBytes, OwnerColumns},
    stored::StoredSession,
};

/// Writes blocks, one after the other in the same room.
#[derive(Default)]
pub(super) struct Encoder {
    packing: Packing,
    column: Writing,
    local: Dictionary<IpAddr>,
    peer: Dictionary<IpAddr>,
    owners: Dictionary<OwnerColumns>,
}

impl Encoder {
    /// The bytes of sessions of one host, which are all over.
    pub(super) fn encode(&mut self, sessions: &[StoredSession]) -> io::Result<&[u8]> {
        self.take_up(sessions);
        self.packing.begin(sessions.len())?;
        for number in 0..COLUMNS {
            self.write(number, sessions);
            self.packing.add(self.column.bytes())?;
        }
        Ok(self.packing.finish())
    }

    /// The peers of the block that was encoded last, and of each session the place of its peer.
    pub(super) fn peers(&self) -> (&[IpAddr], &[usize]) {
        (&self.peer.values, &self.peer.places)
    }

    /// Takes up the values that come again.
    pub(super) fn take_up(&mut self, sessions: &[StoredSession]) {
        self.local.fill(sessions.iter().map(|one| one.local.ip()));
        self.peer.fill(sessions.iter().map(|one| one.peer.ip()));
        self.owners.fill(sessions.iter().map(|one| &one.owners));
    }

    /// The bytes of a column, before they are compressed.
    pub(super) fn write(&mut self, number: usize, sessions: &[StoredSession]) -> &[u8] {
        let column = &mut self.column;
        column.clear();
        match number {
            LOCAL => self.local.write(column, write_address),
            PEER => self.peer.write(column, write_address),
            OWNERS => self.owners.write(column, write_owners),
            number => {
                let (_, coding, value) = NUMBERS[number];
                let values = sessions.iter().map(value);
                match coding {
                    Coding::Difference => values.for_each(|value| column.difference(value)),
                    Coding::Signed | Coding::Word => values.for_each(|value| column.signed(value)),
                    Coding::Port => values.for_each(|value| column.unsigned(value.cast_unsigned())),
                }
            }
        }
        column.bytes()
    }
}

fn write_address(column: &mut Writing, address: &IpAddr) {
    column.text(AddressBytes::of(*address).as_slice());
}

fn write_owners(column: &mut Writing, owners: &OwnerColumns) {
    let OwnerColumns { known, pid, started_at_us, program_id, more } = owners;
    column.signed((*known).into());
    column.unsigned((*pid).into());
    column.difference(*started_at_us);
    column.signed(*program_id);
    column.text(more.as_deref().unwrap_or_default());
}
