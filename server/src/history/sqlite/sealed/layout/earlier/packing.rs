//! How blocks of earlier forms were written, so that tests have some.

use std::net::IpAddr;

use super::COLUMNS;
use crate::history::sqlite::{
    coding::{AddressBytes, OwnerColumns},
    sealed::{column::Writing, recurring::Dictionary},
    stored::StoredSession,
};

const LEVEL: i32 = 3;

/// The columns of sessions, before they are compressed.
pub(in crate::history::sqlite::sealed) fn columns(sessions: &[StoredSession]) -> [Vec<u8>; COLUMNS] {
    let signed = |number: fn(&StoredSession) -> i64| {
        let mut column = Writing::default();
        sessions.iter().for_each(|one| column.signed(number(one)));
        column.finish()
    };
    let difference = |number: fn(&StoredSession) -> i64| {
        let (mut column, mut before) = (Writing::default(), 0);
        sessions.iter().map(number).for_each(|number| difference(&mut column, &mut before, number));
        column.finish()
    };
    let addresses = |address: fn(&StoredSession) -> IpAddr| {
        recurring(sessions.iter().map(address), |column, address| column.text(AddressBytes::of(*address).as_slice()))
    };
    [
        difference(|one| one.closed.unwrap().0),
        signed(|one| one.closed.unwrap().0.wrapping_sub(one.opened_at_us)),
        signed(|one| one.closed.unwrap().1.into()),
        signed(|one| one.opened_known.into()),
        difference(|one| one.netns),
        difference(|one| one.cookie),
        signed(|one| one.protocol.into()),
        signed(|one| one.family.into()),
        signed(|one| one.direction.into()),
        signed(|one| one.state.into()),
        numbers(&sessions.iter().map(|one| one.local.port().into()).collect::<Vec<_>>()),
        numbers(&sessions.iter().map(|one| one.peer.port().into()).collect::<Vec<_>>()),
        signed(|one| one.bytes_sent),
        signed(|one| one.bytes_received),
        addresses(|one| one.local.ip()),
        addresses(|one| one.peer.ip()),
        {
            let mut before = 0;
            recurring(sessions.iter().map(|one| one.owners.clone()), |column, owners| {
                write_owners(column, &mut before, owners);
            })
        },
    ]
}

/// A number by its difference to the one before.
fn difference(column: &mut Writing, before: &mut i64, number: i64) {
    column.signed(number.wrapping_sub(*before));
    *before = number;
}

fn recurring<T: Eq + std::hash::Hash + Clone>(
    values: impl Iterator<Item = T>,
    mut write: impl FnMut(&mut Writing, &T),
) -> Vec<u8> {
    let (mut dictionary, mut column) = (Dictionary::default(), Writing::default());
    dictionary.fill(values);
    column.unsigned(dictionary.values.len() as u64);
    dictionary.values.iter().for_each(|value| write(&mut column, value));
    dictionary.places.iter().for_each(|place| column.unsigned(*place as u64));
    column.finish()
}

fn write_owners(column: &mut Writing, before: &mut i64, owners: &OwnerColumns) {
    let OwnerColumns { known, pid, started_at_us, program_id, more } = owners;
    column.signed((*known).into());
    column.unsigned((*pid).into());
    difference(column, before, *started_at_us);
    column.signed(*program_id);
    column.text(more.as_deref().unwrap_or_default());
}

/// A block whose columns are compressed each by itself.
pub(in crate::history::sqlite::sealed) fn pack_apart(sessions: usize, columns: &[Vec<u8>; COLUMNS]) -> Vec<u8> {
    let (mut head, mut body) = (vec![sessions as u64], Vec::new());
    for column in columns {
        let compressed = compress(column);
        // What would not become smaller was kept as it is.
        let stored = if compressed.len() < column.len() { &compressed } else { column };
        head.extend([column.len() as u64, stored.len() as u64]);
        body.extend_from_slice(stored);
    }
    [numbers(&head), body].concat()
}

/// A block whose columns are compressed together.
pub(in crate::history::sqlite::sealed) fn pack_together(sessions: usize, columns: &[Vec<u8>; COLUMNS]) -> Vec<u8> {
    let mut block = Writing::default();
    block.unsigned(sessions as u64);
    columns.iter().for_each(|column| block.text(column));
    squeeze(block.bytes())
}

/// Compressed, after the number of bytes before.
pub(in crate::history::sqlite::sealed) fn squeeze(bytes: &[u8]) -> Vec<u8> {
    [numbers(&[bytes.len() as u64]), compress(bytes)].concat()
}

pub(super) fn compress(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, LEVEL).unwrap()
}

pub(super) fn numbers(numbers: &[u64]) -> Vec<u8> {
    let mut writing = Writing::default();
    numbers.iter().for_each(|number| writing.unsigned(*number));
    writing.finish()
}
