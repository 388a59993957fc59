//! A block: sessions of one host that are over, column by column, compressed.
//!
//! Values of one column are alike, and neighbours in time are alike, so that a general compressor (Zstandard) makes of a
//! session some twenty bytes. Addresses and owners, which come again, are written once and then named by their places.
//! [`Block`] is how everybody reads one: a column is taken apart when it is first asked for. `encoder` writes them.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
};

pub(in crate::history::sqlite) use self::reading::Recurring;
use self::reading::{ABSENT, MISSING, look_up, narrow, once, read_address, read_numbers, read_owners, read_values};
use super::{
    column::{self, Damaged, Reading},
    layout::{self, Layout},
};
use crate::history::sqlite::{coding::OwnerColumns, stored::StoredSession};

mod reading;

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
pub(super) enum Coding {
    /// Each as its difference to the one before.
    Difference,
    Signed,
    /// Signed, of 32 bits.
    Word,
    /// Unsigned, of 16 bits.
    Port,
}

impl Coding {
    /// What is written as this number.
    const fn number(self, written: u64) -> i64 {
        match self {
            Coding::Difference | Coding::Signed | Coding::Word => column::signed(written),
            Coding::Port => written.cast_signed(),
        }
    }
}

/// How a column is written, and what of a session stands in it.
pub(super) type Number = (Column, Coding, fn(&StoredSession) -> i64);

/// The columns, each in its place.
pub(super) const NUMBERS: [Number; 14] = [
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
pub(super) const LOCAL: usize = NUMBERS.len();
pub(super) const PEER: usize = LOCAL + 1;
pub(super) const OWNERS: usize = PEER + 1;

/// When a session closed; those of a block all did.
fn closed(one: &StoredSession) -> (i64, i32) {
    one.closed.unwrap_or_default()
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

    /// The addresses of the peers.
    pub(in crate::history::sqlite) fn peers(&self) -> Result<&Recurring<IpAddr>, Damaged> {
        once(&self.peer, || look_up(&self.layout.column(PEER)?, self.sessions, read_address))
    }

    /// The owners.
    pub(in crate::history::sqlite) fn owners(&self) -> Result<&Recurring<OwnerColumns>, Damaged> {
        once(&self.owners, || look_up(&self.layout.column(OWNERS)?, self.sessions, read_owners))
    }

    /// The sessions in these places, which ascend. Of a column that was not taken apart before, only what they need is.
    pub(in crate::history::sqlite) fn sessions(&self, places: &[usize]) -> Result<Vec<StoredSession>, Damaged> {
        let mut columns: [Vec<i64>; NUMBERS.len()] = Default::default();
        for (numbers, (column, ..)) in columns.iter_mut().zip(&NUMBERS) {
            *numbers = self.picked(*column, places)?;
        }
        let local = self.recurring(&self.local, LOCAL, places, read_address)?;
        let peer = self.recurring(&self.peer, PEER, places, read_address)?;
        let mut owners = self.recurring(&self.owners, OWNERS, places, read_owners)?;
        let session = |at: usize| {
            let number = |column: Column| columns[column as usize][at];
            let closed_at_us = number(Column::ClosedAt);
            Ok(StoredSession {
                host_id: self.host_id,
                netns: number(Column::Netns),
                cookie: number(Column::Cookie),
                protocol: narrow(number(Column::Protocol))?,
                family: narrow(number(Column::Family))?,
                direction: narrow(number(Column::Direction))?,
                state: narrow(number(Column::State))?,
                local: SocketAddr::new(local[at], narrow(number(Column::LocalPort))?),
                peer: SocketAddr::new(peer[at], narrow(number(Column::PeerPort))?),
                owners: std::mem::take(&mut owners[at]),
                bytes_sent: number(Column::BytesSent),
                bytes_received: number(Column::BytesReceived),
                opened_at_us: closed_at_us.wrapping_sub(number(Column::Lasted)),
                opened_known: narrow(number(Column::OpenedKnown))?,
                closed: Some((closed_at_us, narrow(number(Column::ClosedKnown))?)),
            })
        };
        (0..places.len()).map(session).collect()
    }

    /// The numbers of a column in these places.
    fn picked(&self, column: Column, places: &[usize]) -> Result<Vec<i64>, Damaged> {
        let number = column as usize;
        let (_, coding, _) = NUMBERS[number];
        if self.numbers[number].get().is_some() || coding == Coding::Difference || self.means_most(places) {
            let all = self.numbers(column)?;
            return places.iter().map(|at| all.get(*at).copied().ok_or(MISSING)).collect();
        }
        self.is_in(places)?;
        let numbers = Reading::new(&self.layout.column(number)?).picked(places)?;
        Ok(numbers.into_iter().map(|number| coding.number(number)).collect())
    }

    /// The values of sessions in a column of values that come again.
    fn recurring<T: Clone>(
        &self,
        cell: &OnceCell<Recurring<T>>,
        column: usize,
        places: &[usize],
        read: impl Fn(&mut Reading<'_>) -> Result<T, Damaged>,
    ) -> Result<Vec<T>, Damaged> {
        if cell.get().is_some() || self.means_most(places) {
            let all = once(cell, || look_up(&self.layout.column(column)?, self.sessions, read))?;
            return places.iter().map(|at| all.of(*at).cloned()).collect();
        }
        self.is_in(places)?;
        let bytes = self.layout.column(column)?;
        let mut reading = Reading::new(&bytes);
        let values = read_values(&mut reading, self.sessions, read)?;
        let value = |place: u64| usize::try_from(place).ok().and_then(|place| values.get(place)).cloned();
        reading.picked(places)?.into_iter().map(|place| value(place).ok_or(ABSENT)).collect()
    }

    /// Whether it is as well to take a whole column apart.
    fn means_most(&self, places: &[usize]) -> bool {
        places.len() > self.sessions / 4
    }

    fn is_in(&self, places: &[usize]) -> Result<(), Damaged> {
        if places.last().is_none_or(|at| *at < self.sessions) { Ok(()) } else { Err(MISSING) }
    }

    /// All sessions, in the order of their closing.
    pub(in crate::history::sqlite) fn all(&self) -> Result<Vec<StoredSession>, Damaged> {
        self.sessions(&(0..self.sessions).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::history::sqlite::sealed::{encoder::Encoder, layout::COLUMNS};

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

    fn encode(sessions: &[StoredSession]) -> Vec<u8> {
        Encoder::default().encode(sessions).unwrap().to_vec()
    }

    fn columns(sessions: &[StoredSession]) -> [Vec<u8>; COLUMNS] {
        let mut encoder = Encoder::default();
        encoder.take_up(sessions);
        std::array::from_fn(|number| encoder.write(number, sessions).to_vec())
    }

    proptest! {
        #[test]
        fn sessions_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
            prop_assert_eq!(decode(layout::CODEC, &encode(&sessions)), Ok(sessions));
        }

        #[test]
        fn a_block_holds_nothing_of_the_one_before(before in vec(session(), 0..50), sessions in vec(session(), 0..50)) {
            let mut encoder = Encoder::default();
            encoder.encode(&before).unwrap();
            prop_assert_eq!(encoder.encode(&sessions).unwrap(), encode(&sessions));
            let (peers, places) = encoder.peers();
            let met: Vec<IpAddr> = places.iter().map(|place| peers[*place]).collect();
            prop_assert_eq!(met, sessions.iter().map(|one| one.peer.ip()).collect::<Vec<_>>());
        }

        #[test]
        fn sessions_of_an_earlier_version_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
            let before = layout::pack_together(sessions.len(), &columns(&sessions));
            prop_assert_eq!(decode(TOGETHER, &before), Ok(sessions));
        }

        #[test]
        fn some_sessions_are_decoded_as_all_are(sessions in vec(session(), 0..50), which: u64, before: bool) {
            let block = Block::read(7, layout::CODEC, &encode(&sessions)).unwrap();
            if before {
                block.peers().unwrap();
                block.numbers(Column::LocalPort).unwrap();
            }
            let places: Vec<usize> = (0..sessions.len()).filter(|at| which & which.rotate_left(9) >> at & 1 == 1).collect();
            let expected: Vec<_> = places.iter().map(|at| sessions[*at].clone()).collect();
            prop_assert_eq!(block.sessions(&places), Ok(expected));
            prop_assert_eq!(block.sessions(&[sessions.len()]), Err(MISSING));
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
            let mut block = encode(&sessions);
            let place = at.index(block.len());
            block[place] = to;
            drop(decode(layout::CODEC, &block));
            drop(Block::read(7, layout::CODEC, &block).map(|block| block.sessions(&[0])));
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
