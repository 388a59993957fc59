//! A block: sessions of one host that are over, column by column, compressed.
//!
//! Values of one column are alike, and neighbours in time are alike, so that a general compressor (Zstandard) makes of a
//! session some twenty bytes. Addresses and owners, which come again, are written once and then named by their places.

use std::net::{IpAddr, SocketAddr};

use super::column::{Damaged, Dictionary, Reading, Writing};
use crate::history::sqlite::{
    coding::{self, OwnerColumns},
    stored::StoredSession,
};

/// Most sessions of a block. More compress a little better and are more to read for one.
pub(in crate::history::sqlite) const BLOCK_SESSIONS: usize = 2048;
/// Most bytes of a block that is not compressed: each session has texts of bounded length.
const BLOCK_BYTES: usize = 16 * 1024 * 1024;
/// Level of the compressor: more costs much and saves little.
const LEVEL: i32 = 3;
/// How the bytes of a block are to be read.
pub(in crate::history::sqlite) const CODEC: i64 = 1;

/// A column whose values are numbers.
type Number = (fn(&mut Writing, &StoredSession), fn(&mut Reading<'_>, &mut StoredSession) -> Result<(), Damaged>);

/// All that is a number of its own.
const NUMBERS: &[Number] = &[
    (
        |column, one| column.difference(closed(one).0),
        |column, one| {
            one.closed = Some((column.difference()?, 0));
            Ok(())
        },
    ),
    (
        |column, one| column.signed(closed(one).0.wrapping_sub(one.opened_at_us)),
        |column, one| {
            one.opened_at_us = closed(one).0.wrapping_sub(column.signed()?);
            Ok(())
        },
    ),
    (
        |column, one| column.signed(closed(one).1.into()),
        |column, one| {
            one.closed = Some((closed(one).0, word(column)?));
            Ok(())
        },
    ),
    (|column, one| column.signed(one.opened_known.into()), |column, one| set(&mut one.opened_known, word(column))),
    (|column, one| column.difference(one.netns), |column, one| set(&mut one.netns, column.difference())),
    (|column, one| column.difference(one.cookie), |column, one| set(&mut one.cookie, column.difference())),
    (|column, one| column.signed(one.protocol.into()), |column, one| set(&mut one.protocol, word(column))),
    (|column, one| column.signed(one.family.into()), |column, one| set(&mut one.family, word(column))),
    (|column, one| column.signed(one.direction.into()), |column, one| set(&mut one.direction, word(column))),
    (|column, one| column.signed(one.state.into()), |column, one| set(&mut one.state, word(column))),
    (
        |column, one| column.unsigned(one.local.port().into()),
        |column, one| {
            one.local.set_port(column.narrow()?);
            Ok(())
        },
    ),
    (
        |column, one| column.unsigned(one.peer.port().into()),
        |column, one| {
            one.peer.set_port(column.narrow()?);
            Ok(())
        },
    ),
    (|column, one| column.signed(one.bytes_sent), |column, one| set(&mut one.bytes_sent, column.signed())),
    (|column, one| column.signed(one.bytes_received), |column, one| set(&mut one.bytes_received, column.signed())),
];

/// The columns of values that come again: what they hold and the places of it.
const DICTIONARIES: usize = 3;

fn set<T>(field: &mut T, value: Result<T, Damaged>) -> Result<(), Damaged> {
    *field = value?;
    Ok(())
}

/// The number of a word.
fn word(column: &mut Reading<'_>) -> Result<i32, Damaged> {
    i32::try_from(column.signed()?).map_err(|_| Damaged("a word has too large a number"))
}

/// When a session closed; those of a block all did.
fn closed(one: &StoredSession) -> (i64, i32) {
    one.closed.unwrap_or_default()
}

/// The bytes of sessions of one host, which are all over.
pub(super) fn encode(sessions: &[StoredSession]) -> std::io::Result<Vec<u8>> {
    let mut columns: Vec<Vec<u8>> = NUMBERS
        .iter()
        .map(|(write, _)| {
            let mut column = Writing::default();
            sessions.iter().for_each(|one| write(&mut column, one));
            column.finish()
        })
        .collect();
    for address in [|one: &StoredSession| one.local.ip(), |one: &StoredSession| one.peer.ip()] {
        columns.push(dictionary(sessions, address, |column, value| column.text(&coding::address_bytes(*value))));
    }
    columns.push(dictionary(sessions, |one| one.owners.clone(), write_owners));
    let mut block = Writing::default();
    block.unsigned(sessions.len() as u64);
    columns.iter().for_each(|column| block.text(column));
    compress(&block.finish())
}

/// Compressed, after the number of bytes before.
fn compress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut length = Writing::default();
    length.unsigned(bytes.len() as u64);
    let mut compressed = length.finish();
    compressed.extend(zstd::bulk::compress(bytes, LEVEL)?);
    Ok(compressed)
}

fn decompress(bytes: &[u8]) -> Result<Vec<u8>, Damaged> {
    let mut reading = Reading::new(bytes);
    let length = reading.narrow::<usize>()?;
    if length > BLOCK_BYTES {
        return Err(Damaged("it has too many bytes"));
    }
    zstd::bulk::decompress(reading.rest(), length).map_err(|_| Damaged("it cannot be decompressed"))
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

/// The sessions of a host whose bytes these are.
pub(in crate::history::sqlite) fn decode(host_id: i64, bytes: &[u8]) -> Result<Vec<StoredSession>, Damaged> {
    let bytes = decompress(bytes)?;
    let mut block = Reading::new(&bytes);
    let count = block.narrow::<usize>()?;
    if count > BLOCK_SESSIONS {
        return Err(Damaged("it has too many sessions"));
    }
    let mut sessions = vec![nothing(host_id); count];
    for (_, read) in NUMBERS {
        let mut column = Reading::new(block.text()?);
        for one in &mut sessions {
            read(&mut column, one)?;
        }
        column.end()?;
    }
    let [local, peer, owners] = [(); DICTIONARIES].map(|()| block.text());
    look_up(&mut sessions, local?, read_address, |one, address| one.local.set_ip(*address))?;
    look_up(&mut sessions, peer?, read_address, |one, address| one.peer.set_ip(*address))?;
    look_up(&mut sessions, owners?, read_owners, |one, owners| one.owners.clone_from(owners))?;
    block.end()?;
    Ok(sessions)
}

/// A session before its columns are read.
fn nothing(host_id: i64) -> StoredSession {
    let nowhere = SocketAddr::new(IpAddr::from([0; 4]), 0);
    StoredSession {
        host_id,
        netns: 0,
        cookie: 0,
        protocol: 0,
        family: 0,
        direction: 0,
        state: 0,
        local: nowhere,
        peer: nowhere,
        owners: OwnerColumns::default(),
        bytes_sent: 0,
        bytes_received: 0,
        opened_at_us: 0,
        opened_known: 0,
        closed: None,
    }
}

fn look_up<T>(
    sessions: &mut [StoredSession],
    bytes: &[u8],
    mut read: impl FnMut(&mut Reading<'_>) -> Result<T, Damaged>,
    put: impl Fn(&mut StoredSession, &T),
) -> Result<(), Damaged> {
    let mut column = Reading::new(bytes);
    let count = column.narrow::<usize>()?;
    if count > sessions.len() {
        return Err(Damaged("there are more values than rows"));
    }
    let values: Vec<T> = (0..count).map(|_| read(&mut column)).collect::<Result<_, _>>()?;
    for one in sessions {
        put(one, values.get(column.narrow::<usize>()?).ok_or(Damaged("a value is missing"))?);
    }
    column.end()
}

fn read_address(column: &mut Reading<'_>) -> Result<IpAddr, Damaged> {
    match coding::take_address(column.text()?) {
        Some((address, [])) => Ok(address),
        _ => Err(Damaged("no address")),
    }
}

fn read_owners(column: &mut Reading<'_>) -> Result<OwnerColumns, Damaged> {
    Ok(OwnerColumns {
        known: word(column)?,
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

    proptest! {
        #[test]
        fn sessions_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
            prop_assert_eq!(decode(7, &encode(&sessions).unwrap()), Ok(sessions));
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>, sessions in vec(session(), 1..9), at: prop::sample::Index, to: u8) {
            // As they are, and as if they had been compressed.
            drop(decode(7, &bytes));
            drop(decode(7, &compress(&bytes).unwrap()));
            // One byte of a good block is another.
            let mut block = decompress(&encode(&sessions).unwrap()).unwrap();
            let place = at.index(block.len());
            block[place] = to;
            drop(decode(7, &compress(&block).unwrap()));
        }
    }

    #[test]
    fn a_block_that_would_be_too_large_is_refused() {
        let bomb = compress(&vec![0; BLOCK_BYTES + 1]).unwrap();
        assert!(bomb.len() < 10_000);
        assert_eq!(decode(7, &bomb), Err(Damaged("it has too many bytes")));
        let mut liar = Writing::default();
        liar.unsigned(10);
        let liar = [liar.finish(), bomb[3..].to_vec()].concat();
        assert_eq!(decode(7, &liar), Err(Damaged("it cannot be decompressed")));
        let mut many = Writing::default();
        many.unsigned(1 << 40);
        assert_eq!(decode(7, &compress(&many.finish()).unwrap()), Err(Damaged("it has too many sessions")));
    }
}
