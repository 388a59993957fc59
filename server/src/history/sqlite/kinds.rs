//! Kinds of sessions: who had sessions with whom, in which direction and of which service, and in which hours the first and the last of
//! them closed. So it is known of a sealed file whether there was one like another without reading its sessions.
//!
//! They are gathered while peers are sorted for their index ([`Adding`]), stored in short stretches in the order of the addresses, and
//! looked for one after the other ([`Looking`]): of many that are asked for in their order, a stretch is read once for all that it has.

use fleetsock_proto::socket::Direction;
use rusqlite::Connection;

pub(super) use self::{adding::Adding, looking::Looking, telling::Telling};
use super::{
    coding::{self, Numeric},
    sealed::{Hashed, mixed},
    stored::StoredSession,
    sums::{beginning, end},
};

mod adding;
mod encoding;
mod looking;
mod telling;

/// Protocol, direction and the service's port, in one number that is quick to compare; a part of the schema.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Service(u32);

const OUT: u32 = 1 << 16;
const PROTOCOL: u32 = 1 << 17;
/// Protocols beyond have no room.
const LAST_PROTOCOL: u32 = u32::MAX / PROTOCOL;

impl Service {
    /// None of a protocol for which there is no room; no protocol that has a name is.
    pub(super) fn new(protocol: i32, direction: Direction, port: u16) -> Option<Service> {
        let protocol = u32::try_from(protocol).ok().filter(|protocol| *protocol <= LAST_PROTOCOL)?;
        let out = if direction == Direction::Out { OUT } else { 0 };
        Some(Service(protocol * PROTOCOL + out + u32::from(port)))
    }

    /// As a number.
    pub(super) const fn number(self) -> u32 {
        self.0
    }

    /// That of a number.
    pub(super) const fn numbered(number: u32) -> Service {
        Service(number)
    }

    /// That of a session, as it is stored.
    pub(super) fn of(one: &StoredSession) -> Option<Service> {
        let (direction, end) = match Direction::from_number(one.direction)? {
            Direction::In => (Direction::In, one.local),
            Direction::Out => (Direction::Out, one.peer),
        };
        Service::new(one.protocol, direction, end.port())
    }
}

/// What sessions have in common that are alike. In order, those of an address follow each other, as their table is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Kind {
    pub(super) peer: Numeric,
    pub(super) host_id: i64,
    pub(super) service: Service,
}

impl Hashed for Kind {
    const TABLE: &'static str = "kind_filter";

    fn hash(&self) -> u64 {
        mixed(mixed(self.peer.address().hash() ^ self.host_id.cast_unsigned()) ^ u64::from(self.service.0))
    }
}

impl Kind {
    pub(super) fn of(one: &StoredSession) -> Result<Kind, rusqlite::Error> {
        let service =
            Service::of(one).ok_or_else(|| coding::wrong("protocol", "it or the direction has no meaning"))?;
        Ok(Kind { peer: one.peer.ip().into(), host_id: one.host_id, service })
    }
}

/// In which hours the first and the last session of a kind closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Hours {
    pub(super) first: i64,
    pub(super) last: i64,
}

impl Hours {
    const fn of(hour: i64) -> Hours {
        Hours { first: hour, last: hour }
    }

    fn add(&mut self, hour: i64) {
        *self = Hours { first: self.first.min(hour), last: self.last.max(hour) };
    }

    /// Whether one of them closed after the first moment and not after the second, us: if hours tell it.
    pub(super) fn are_within(self, (after, last): (i64, i64)) -> Option<bool> {
        let is_within = |hour| after < beginning(hour) && end(hour) <= last;
        if is_within(self.first) || is_within(self.last) {
            return Some(true);
        }
        let is_outside = end(self.last) <= after || beginning(self.first) > last;
        is_outside.then_some(false)
    }
}

/// What is told of a kind.
type Told = (Kind, Hours);

/// Whether a file tells its kinds.
pub(super) fn are_told(sealed: &Connection) -> Result<bool, rusqlite::Error> {
    if !sealed.table_exists(None, "kinds")? {
        return Ok(false);
    }
    // One that has sessions has some, if it tells them.
    sealed.query_row("SELECT EXISTS (SELECT 1 FROM kinds)", [], |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::socket::Protocol;

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    #[test]
    fn the_hash_is_the_one_that_files_have() {
        // It is a part of the schema: other numbers would hide what earlier versions sealed.
        let hashes = ["192.0.2.9", "2001:db8::9"].map(|peer| {
            let peer = peer.parse::<std::net::IpAddr>().unwrap().into();
            Kind { peer, host_id: 7, service: Service::new(6, Direction::Out, 443).unwrap() }.hash()
        });
        assert_eq!(hashes, [0xd1da_0ea9_cd45_df3f, 0x2fac_1b1d_0288_fc55]);
    }

    #[test]
    fn services_are_apart_and_one_without_room_is_none() {
        let all = [
            Service::new(6, Direction::In, 443),
            Service::new(6, Direction::Out, 443),
            Service::new(6, Direction::In, 444),
            Service::new(17, Direction::In, 443),
            Service::new(32_767, Direction::Out, 65_535),
        ];
        let apart: std::collections::BTreeSet<_> = all.iter().map(|one| one.unwrap()).collect();
        assert_eq!(apart.len(), all.len());
        assert!(Protocol::ALL.iter().all(|protocol| Service::new(protocol.number(), Direction::Out, 65_535).is_some()));
        assert_eq!([-1, 32_768].map(|protocol| Service::new(protocol, Direction::In, 1)), [None, None]);
    }

    #[test]
    fn hours_tell_whether_something_closed_within_a_window_or_that_they_do_not_know() {
        let hours = Hours { first: 2, last: 5 };
        let at = |hour: i64, by: i64| hour * HOUR + by;
        for (after, last, expected) in [
            (i64::MIN, i64::MAX, Some(true)),
            (at(2, -1), at(3, -1), Some(true)),
            (at(2, 0), at(3, -1), None),
            (at(2, -1), at(3, -2), None),
            (at(5, -1), at(6, -1), Some(true)),
            (at(5, 0), i64::MAX, None),
            (at(3, 0), at(5, -1), None),
            (at(6, -1), i64::MAX, Some(false)),
            (at(6, -2), i64::MAX, None),
            (i64::MIN, at(2, -1), Some(false)),
            (i64::MIN, at(2, 0), None),
        ] {
            assert_eq!(hours.are_within((after, last)), expected, "{after} {last}");
        }
    }
}
