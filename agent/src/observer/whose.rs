//! Whether something that ended unheard may have been in the own network namespace, where nobody was there to tell. Pure.

use std::net::IpAddr;

use fleetsock_proto::socket::Direction;

use crate::lives::{Life, Purpose};

/// Whether a life may have been in a namespace with these addresses (loopback left out; all where they are not known), which
/// has a listener that can have accepted it or not. Events are those of all namespaces: what was certainly elsewhere is no
/// loss of this one.
pub(super) fn may_be_here(life: &Life, can_be_accepted: bool, addresses: Option<&[IpAddr]>) -> bool {
    let local = life.local.ip().to_canonical();
    let has_address = local.is_loopback() || addresses.is_none_or(|addresses| addresses.contains(&local));
    let came_in = life.purpose == Purpose::Session(Some(Direction::In));
    has_address && (can_be_accepted || !came_in)
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::socket::{Family, SocketState};

    use super::*;

    #[test]
    fn what_nobody_here_accepts_or_has_the_address_of_was_elsewhere() {
        let life = |local: &str, direction| Life {
            family: Family::Ipv4,
            local: local.parse().unwrap(),
            peer: "10.0.0.9:4000".parse().unwrap(),
            purpose: Purpose::Session(direction),
            state: SocketState::Established,
            opened_ns: None,
            opener: None,
            closer: None,
            closed_ns: None,
        };
        let here = ["10.0.0.1".parse().unwrap()];
        let (inward, outward) = (Some(Direction::In), Some(Direction::Out));
        for (case, local, direction, can_be_accepted, expected) in [
            ("accepted", "10.0.0.1:80", inward, true, true),
            ("nobody listens", "10.0.0.1:80", inward, false, false),
            ("listened to by everybody, at an address of others", "172.17.0.2:80", inward, true, false),
            ("loopback is everywhere", "127.0.0.1:80", inward, true, true),
            ("from here", "10.0.0.1:40000", outward, false, true),
            ("from elsewhere", "172.17.0.2:40000", outward, false, false),
            ("older than the events", "10.0.0.1:80", None, false, true),
        ] {
            assert_eq!(may_be_here(&life(local, direction), can_be_accepted, Some(&here)), expected, "{case}");
        }
        assert!(may_be_here(&life("172.17.0.2:80", inward), true, None), "nobody knows the addresses");
    }
}
