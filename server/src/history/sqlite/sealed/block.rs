//! A block: sessions of one host that are over, column by column, compressed.
//!
//! Values of one column are alike, and neighbours in time are alike, so that a general compressor (Zstandard) makes of a
//! session some twenty bytes. Addresses and owners, which come again, are written once and then named by their places.
//! [`Block`] is how everybody reads one: a column is taken apart when it is first asked for.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
};

use super::{
    column::{self, Damaged, Dictionary, Reading, Writing},
    layout::{self, COLUMNS, Layout},
};
use crate::history::sqlite::{
    coding::{self, OwnerColumns},
    stored::StoredSession,
};

/// The columns that hold numbers, in the order in which they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) enum Column {
    ClosedAt,
    Lasted,
    ClosedKnown,
    OpenedKnown,
    Netns,
    Cookie,
    Protocol,
    Family,
    Direction,
    State,
    LocalPort,
    PeerPort,
    BytesSent,
    BytesReceived,
}

/// How the numbers of a column are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    /// Each as its difference to the one before.
    Difference,
    Signed,
    /// Signed, of 32 bits.
    Word,
    /// Unsigned, of 16 bits.
    Port,
}

/// How a column is written, and what of a session stands in it.
type Number = (Column, Coding, fn(&StoredSession) -> i64);

/// The columns, each in its place.
const NUMBERS: [Number; 14] = [
    (Column::ClosedAt, Coding::Difference, |one| closed(one).0),
    (Column::Lasted, Coding::Signed, |one| closed(one).0.wrapping_sub(one.opened_at_us)),
    (Column::ClosedKnown, Coding::Word, |one| closed(one).1.into()),
    (Column::OpenedKnown, Coding::Word, |one| one.opened_known.into()),
    (Column::Netns, Coding::Difference, |one| one.netns),
    (Column::Cookie, Coding::Difference, |one| one.cookie),
    (Column::Protocol, Coding::Word, |one| one.protocol.into()),
    (Column::Family, Coding::Word, |one| one.family.into()),
    (Column::Direction, Coding::Word, |one| one.direction.into()),
    (Column::State, Coding::Word, |one| one.state.into()),
    (Column::LocalPort, Coding::Port, |one| one.local.port().into()),
    (Column::PeerPort, Coding::Port, |one| one.peer.port().into()),
    (Column::BytesSent, Coding::Signed, |one| one.bytes_sent),
    (Column::BytesReceived, Coding::Signed, |one| one.bytes_received),
];

/// The columns of values that come again follow those of numbers.
const LOCAL: usize = NUMBERS.len();
const PEER: usize = LOCAL + 1;
const OWNERS: usize = PEER + 1;

/// When a session closed; those of a block all did.
fn closed(one: &StoredSession) -> (i64, i32) {
    one.closed.unwrap_or_default()
}

/// The bytes of sessions of one host, which are all over.
pub(super) fn encode(sessions: &[StoredSession]) -> std::io::Result<Vec<u8>> {
    layout::pack(sessions.len(), &columns(sessions))
}

fn columns(sessions: &[StoredSession]) -> [Vec<u8>; COLUMNS] {
    let address = |column: &mut Writing, value: &IpAddr| column.text(&coding::address_bytes(*value));
    std::array::from_fn(|number| match number {
        LOCAL => dictionary(sessions, |one| one.local.ip(), address),
        PEER => dictionary(sessions, |one| one.peer.ip(), address),
        OWNERS => dictionary(sessions, |one| one.owners.clone(), write_owners),
        number => {
            let (_, coding, value) = NUMBERS[number];
            let mut column = Writing::default();
            for one in sessions {
                match coding {
                    Coding::Difference => column.difference(value(one)),
                    Coding::Signed | Coding::Word => column.signed(value(one)),
                    Coding::Port => column.unsigned(value(one).cast_unsigned()),
                }
            }
            column.finish()
        }
    })
}

fn dictionary<T: Eq + std::hash::Hash + Clone>(
    sessions: &[StoredSession],
    value: impl Fn(&StoredSession) -> T,
    write: impl Fn(&mut Writing, &T),
) -> Vec<u8> {
    let mut dictionary = Dictionary::new();
    let places: Vec<u64> = sessions.iter().map(|one| dictionary.place(&value(one))).collect();
    let mut column = Writing::default();
    column.unsigned(dictionary.values.len() as u64);
    dictionary.values.iter().for_each(|value| write(&mut column, value));
    places.into_iter().for_each(|place| column.unsigned(place));
    column.finish()
}

fn write_owners(column: &mut Writing, owners: &OwnerColumns) {
    let OwnerColumns { known, pid, started_at_us, program_id, more } = owners;
    column.signed((*known).into());
    column.unsigned((*pid).into());
    column.difference(*started_at_us);
    column.signed(*program_id);
    column.text(more.as_deref().unwrap_or_default());
}

/// A block whose columns are taken apart when they are first asked for.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Block {
    host_id: i64,
    sessions: usize,
    layout: Layout,
    numbers: [OnceCell<Vec<i64>>; NUMBERS.len()],
    local: OnceCell<Recurring<IpAddr>>,
    peer: OnceCell<Recurring<IpAddr>>,
    owners: OnceCell<Recurring<OwnerColumns>>,
}

/// A column whose values come again.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Recurring<T> {
    /// Each value once.
    pub(in crate::history::sqlite) values: Vec<T>,
    /// Of each session the place of its value.
    pub(in crate::history::sqlite) places: Vec<usize>,
}

impl<T> Recurring<T> {
    fn of(&self, at: usize) -> Result<&T, Damaged> {
        self.places.get(at).and_then(|place| self.values.get(*place)).ok_or(MISSING)
    }
}

/// What was asked for is in no block of this size.
const MISSING: Damaged = Damaged("there is no such session");

impl Block {
    /// The block of a host, whose bytes these are.
    pub(in crate::history::sqlite) fn read(host_id: i64, codec: i64, bytes: &[u8]) -> Result<Block, Damaged> {
        let (sessions, layout) = layout::unpack(codec, bytes)?;
        let (local, peer, owners) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Ok(Block { host_id, sessions, layout, numbers: Default::default(), local, peer, owners })
    }

    /// Whose sessions these are.
    pub(in crate::history::sqlite) const fn host_id(&self) -> i64 {
        self.host_id
    }

    /// How many they are.
    pub(in crate::history::sqlite) const fn len(&self) -> usize {
        self.sessions
    }

    /// The numbers of a column, one for each session.
    pub(in crate::history::sqlite) fn numbers(&self, column: Column) -> Result<&[i64], Damaged> {
        let number = column as usize;
        let (cell, (_, coding, _)) = (&self.numbers[number], NUMBERS[number]);
        once(cell, || read_numbers(&self.layout.column(number)?, coding, self.sessions)).map(Vec::as_slice)
    }

    /// The addresses of the host.
    fn local(&self) -> Result<&Recurring<IpAddr>, Damaged> {
        once(&self.local, || look_up(&self.layout.column(LOCAL)?, self.sessions, read_address))
    }

    /// The addresses of the peers.
    pub(in crate::history::sqlite) fn peers(&self) -> Result<&Recurring<IpAddr>, Damaged> {
        once(&self.peer, || look_up(&self.layout.column(PEER)?, self.sessions, read_address))
    }

    /// The owners.
    pub(in crate::history::sqlite) fn owners(&self) -> Result<&Recurring<OwnerColumns>, Damaged> {
        once(&self.owners, || look_up(&self.layout.column(OWNERS)?, self.sessions, read_owners))
    }

    /// The sessions in these places, in this order.
    pub(in crate::history::sqlite) fn sessions(
        &self,
        places: impl IntoIterator<Item = usize>,
    ) -> Result<Vec<StoredSession>, Damaged> {
        let mut columns: [&[i64]; NUMBERS.len()] = [&[]; NUMBERS.len()];
        for (numbers, (column, ..)) in columns.iter_mut().zip(&NUMBERS) {
            *numbers = self.numbers(*column)?;
        }
        let (local, peer, owners) = (self.local()?, self.peers()?, self.owners()?);
        let session = |at: usize| {
            let number = |column: Column| columns[column as usize].get(at).copied().ok_or(MISSING);
            let closed_at_us = number(Column::ClosedAt)?;
            Ok(StoredSession {
                host_id: self.host_id,
                netns: number(Column::Netns)?,
                cookie: number(Column::Cookie)?,
                protocol: narrow(number(Column::Protocol)?)?,
                family: narrow(number(Column::Family)?)?,
                direction: narrow(number(Column::Direction)?)?,
                state: narrow(number(Column::State)?)?,
                local: SocketAddr::new(*local.of(at)?, narrow(number(Column::LocalPort)?)?),
                peer: SocketAddr::new(*peer.of(at)?, narrow(number(Column::PeerPort)?)?),
                owners: owners.of(at)?.clone(),
                bytes_sent: number(Column::BytesSent)?,
                bytes_received: number(Column::BytesReceived)?,
                opened_at_us: closed_at_us.wrapping_sub(number(Column::Lasted)?),
                opened_known: narrow(number(Column::OpenedKnown)?)?,
                closed: Some((closed_at_us, narrow(number(Column::ClosedKnown)?)?)),
            })
        };
        places.into_iter().map(session).collect()
    }

    /// All sessions, in the order of their closing.
    pub(in crate::history::sqlite) fn all(&self) -> Result<Vec<StoredSession>, Damaged> {
        self.sessions(0..self.sessions)
    }
}

fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, Damaged> {
    T::try_from(number).map_err(|_| Damaged("a number is too large"))
}

fn once<T>(cell: &OnceCell<T>, read: impl FnOnce() -> Result<T, Damaged>) -> Result<&T, Damaged> {
    match cell.get() {
        Some(known) => Ok(known),
        None => read().map(|value| cell.get_or_init(|| value)),
    }
}

fn read_numbers(bytes: &[u8], coding: Coding, sessions: usize) -> Result<Vec<i64>, Damaged> {
    let mut reading = Reading::new(bytes);
    let numbers = reading.numbers(sessions)?;
    reading.end()?;
    let signed = |number: u64| column::signed(number);
    let mut before = 0_i64;
    let numbers: Vec<i64> = match coding {
        Coding::Difference => numbers
            .into_iter()
            .map(|number| {
                before = before.wrapping_add(signed(number));
                before
            })
            .collect(),
        Coding::Signed | Coding::Word => numbers.into_iter().map(signed).collect(),
        Coding::Port => numbers.into_iter().map(u64::cast_signed).collect(),
    };
    match coding {
        Coding::Word if numbers.iter().any(|number| i32::try_from(*number).is_err()) => {
            Err(Damaged("a word has too large a number"))
        }
        Coding::Port if numbers.iter().any(|number| u16::try_from(*number).is_err()) => {
            Err(Damaged("a port is too large"))
        }
        _ => Ok(numbers),
    }
}

fn look_up<T>(
    bytes: &[u8],
    sessions: usize,
    read: impl Fn(&mut Reading<'_>) -> Result<T, Damaged>,
) -> Result<Recurring<T>, Damaged> {
    let mut column = Reading::new(bytes);
    let count = column.narrow::<usize>()?;
    if count > sessions {
        return Err(Damaged("there are more values than rows"));
    }
    let values: Vec<T> = (0..count).map(|_| read(&mut column)).collect::<Result<_, _>>()?;
    let place = |place: u64| usize::try_from(place).ok().filter(|place| *place < values.len());
    let places: Option<Vec<usize>> = column.numbers(sessions)?.into_iter().map(place).collect();
    column.end()?;
    match places {
        Some(places) => Ok(Recurring { values, places }),
        None => Err(Damaged("a value is missing")),
    }
}

fn read_address(column: &mut Reading<'_>) -> Result<IpAddr, Damaged> {
    match coding::take_address(column.text()?) {
        Some((address, [])) => Ok(address),
        _ => Err(Damaged("no address")),
    }
}

fn read_owners(column: &mut Reading<'_>) -> Result<OwnerColumns, Damaged> {
    Ok(OwnerColumns {
        known: i32::try_from(column.signed()?).map_err(|_| Damaged("a word has too large a number"))?,
        pid: column.narrow()?,
        started_at_us: column.difference()?,
        program_id: column.signed()?,
        more: Some(column.text()?.to_vec()).filter(|more| !more.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    prop_compose! {
        fn owners()(known: i32, pid: u32, started_at_us: i64, program_id: i64, more in prop::option::of(vec(any::<u8>(), 1..60)))
            -> OwnerColumns
        {
            OwnerColumns { known, pid, started_at_us, program_id, more }
        }
    }

    fn session() -> impl Strategy<Value = StoredSession> {
        // Few addresses and owners, so that they come again.
        let address = prop_oneof![
            any::<u8>().prop_map(|last| IpAddr::from([10, 0, 0, last % 8])),
            any::<[u8; 16]>().prop_map(IpAddr::from),
        ];
        let words = (any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>());
        let numbers = (any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>());
        let ports = (any::<u16>(), any::<u16>());
        (words, numbers, (address.clone(), address), ports, owners()).prop_map(
            |(words, numbers, addresses, ports, owners)| StoredSession {
                host_id: 7,
                netns: numbers.0,
                cookie: numbers.1,
                protocol: words.0,
                family: words.1,
                direction: words.2,
                state: words.3,
                local: SocketAddr::new(addresses.0, ports.0),
                peer: SocketAddr::new(addresses.1, ports.1),
                owners,
                bytes_sent: numbers.2,
                bytes_received: numbers.3,
                opened_at_us: numbers.4,
                opened_known: words.4,
                closed: Some((numbers.5, words.5)),
            },
        )
    }

    /// How blocks were written before.
    const TOGETHER: i64 = 1;

    fn decode(codec: i64, bytes: &[u8]) -> Result<Vec<StoredSession>, Damaged> {
        Block::read(7, codec, bytes)?.all()
    }

    proptest! {
        #[test]
        fn sessions_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
            prop_assert_eq!(decode(layout::CODEC, &encode(&sessions).unwrap()), Ok(sessions));
        }

        #[test]
        fn sessions_of_an_earlier_version_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
            let before = layout::pack_together(sessions.len(), &columns(&sessions));
            prop_assert_eq!(decode(TOGETHER, &before), Ok(sessions));
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(
            bytes: Vec<u8>, sessions in vec(session(), 1..9), at: prop::sample::Index, to: u8
        ) {
            // As they are, and as if they had been compressed.
            drop(decode(TOGETHER, &bytes));
            drop(decode(TOGETHER, &layout::squeeze(&bytes)));
            drop(decode(layout::CODEC, &bytes));
            // One byte of a good block is another: of one that is compressed, and of a column before that.
            let mut block = encode(&sessions).unwrap();
            let place = at.index(block.len());
            block[place] = to;
            drop(decode(layout::CODEC, &block));
            let mut columns = columns(&sessions);
            let column = &mut columns[at.index(COLUMNS)];
            let place = at.index(column.len());
            column[place] = to;
            drop(decode(TOGETHER, &layout::pack_together(sessions.len(), &columns)));
        }
    }

    #[test]
    fn every_column_has_its_place() {
        assert!(NUMBERS.iter().enumerate().all(|(place, (column, ..))| *column as usize == place));
        assert_eq!(OWNERS, COLUMNS - 1);
    }
}
