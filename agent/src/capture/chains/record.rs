//! What the program writes for a socket.

use fleetsock_proto::socket::{Family, Protocol, SocketKey, SocketState};

use super::super::{
    SocketRow,
    diag::{AF_INET, address, port},
};
use crate::kernel::bytes::{at, u32_at, u64_at};

/// Bytes of a record: cookie, inode and control group in eight bytes each, user in four, the ports in two each (the other end's in network
/// order), state and family in four each, and both addresses in sixteen each.
pub(super) const RECORD_BYTES: usize = 72;

/// What a record tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    /// A socket.
    Socket(SocketRow),
    /// One that has no cookie yet, or a part of the table that changed too much to be told.
    Doubtful,
}

impl Record {
    /// Reads a record of [`RECORD_BYTES`] of a socket in this network namespace.
    pub(super) fn read(record: &[u8], netns: u64) -> Option<Record> {
        let record = record.get(..RECORD_BYTES)?;
        let cookie = u64_at(record, 0)?;
        let (uid, state, family) = (u32_at(record, 24)?, u32_at(record, 32)?.cast_signed(), u32_at(record, 36)?);
        if cookie == 0 {
            return Some(Record::Doubtful);
        }
        let number = u8::try_from(family).ok()?;
        let local_port = at(record, 28).map(u16::from_ne_bytes)?;
        let [local, peer] = [(40, local_port), (56, port(record, 30)?)];
        let end = |(offset, port)| Some((address(record, number, offset)?, port).into());
        Some(Record::Socket(SocketRow {
            key: SocketKey { netns, cookie },
            protocol: Protocol::Tcp,
            family: if number == AF_INET { Family::Ipv4 } else { Family::Ipv6 },
            state: SocketState::from_number(state)?,
            local: end(local)?,
            peer: Some(end(peer)?),
            inode: u64_at(record, 8)?,
            uid,
            cgroup_id: u64_at(record, 16)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[test]
    fn every_field_of_a_record_is_read() {
        let mut record = [0x1122_3344_5566_7788_u64, 4711, 77].map(u64::to_ne_bytes).as_flattened().to_vec();
        record.extend(1000_u32.to_ne_bytes());
        record.extend([443_u16.to_ne_bytes(), 51000_u16.to_be_bytes()].as_flattened());
        record.extend([8_u32, 2].map(u32::to_ne_bytes).as_flattened());
        record.extend([[10, 0, 0, 1], [0; 4], [0; 4], [0; 4], [192, 0, 2, 7], [0; 4], [0; 4], [0; 4]].as_flattened());
        let expected = SocketRow {
            key: SocketKey { netns: 9, cookie: 0x1122_3344_5566_7788 },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::CloseWait,
            local: "10.0.0.1:443".parse().unwrap(),
            peer: Some("192.0.2.7:51000".parse().unwrap()),
            inode: 4711,
            uid: 1000,
            cgroup_id: 77,
        };
        assert_eq!(Record::read(&record, 9), Some(Record::Socket(expected)));
        record[..8].fill(0);
        assert_eq!(Record::read(&record, 9), Some(Record::Doubtful));
    }

    proptest! {
        #[test]
        fn a_record_of_any_bytes_is_a_connection_or_none(mut bytes in vec(any::<u8>(), 0..100), state in 0..16_u32, family in prop::sample::select(vec![2_u32, 10, 11])) {
            if let Some(place) = bytes.get_mut(32..40) {
                place.copy_from_slice([state, family].map(u32::to_ne_bytes).as_flattened());
            }
            match Record::read(&bytes, 9) {
                Some(Record::Socket(row)) => {
                    prop_assert!(bytes.len() >= RECORD_BYTES && row.peer.is_some() && row.key.cookie != 0);
                    prop_assert_eq!(row.state.number().cast_unsigned(), state);
                }
                Some(Record::Doubtful) => prop_assert!(bytes[..8] == [0; 8]),
                None => prop_assert!(bytes.len() < RECORD_BYTES || family == 11 || SocketState::from_number(state.cast_signed()).is_none()),
            }
        }
    }
}
