//! All columns of a block, in place: for a few sessions of it.

use super::{Column, Damaged, NUMBERS, by_direction, gathered, put_together};
use crate::history::sqlite::{
    sealed::{
        layout::Layout,
        numbers::Numbers,
        packed::MISSING,
        recurring::{Addresses, Owners},
    },
    stored::StoredSession,
};

/// Where each value is, of whichever session.
pub(super) struct Opened<'a> {
    host_id: i64,
    numbers: Vec<Numbers<'a>>,
    local: Addresses<'a>,
    peer: Addresses<'a>,
    owners: Owners<'a>,
}

impl<'a> Opened<'a> {
    /// Reads the beginnings of the columns.
    pub(super) fn read(host_id: i64, layout: &'a Layout) -> Result<Opened<'a>, Damaged> {
        let numbers = gathered(NUMBERS.len(), NUMBERS.iter().map(|(column, ..)| layout.numbers(*column)))?;
        Ok(Opened { host_id, numbers, local: layout.local()?, peer: layout.peers()?, owners: layout.owners()? })
    }

    /// The session in a place.
    pub(super) fn session(&self, at: usize) -> Result<StoredSession, Damaged> {
        let written = |column: Column| self.numbers.get(column as usize).ok_or(MISSING)?.get(at);
        let direction = written(Column::Direction)?;
        let number = |column: Column| match column {
            Column::LocalPort => written(by_direction(direction, Column::ServicePort, Column::OtherPort)),
            Column::PeerPort => written(by_direction(direction, Column::OtherPort, Column::ServicePort)),
            column => written(column),
        };
        put_together(self.host_id, number, (self.local.of(at)?, self.peer.of(at)?, self.owners.of(at)?))
    }
}
