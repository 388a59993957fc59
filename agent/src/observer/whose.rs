//! Whether something that ended unheard may have been in the own network namespace, where nobody was there to tell. Pure.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    socket::{Direction, Protocol},
};
use foldhash::HashSet;

use crate::lives::{Life, Purpose};

/// How long a listener that ended is remembered: an end that no record told is told when walks looked for its life in vain.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Most listeners that are remembered, the last ones.
const REMEMBERED_LIMIT: usize = 1024;

/// Whether a life may have been in a namespace with these addresses (loopback left out; all where they are not known), which
/// has or had a listener that can have accepted it or not. Events are those of all namespaces: what was certainly elsewhere is
/// no loss of this one. An address is mostly of one namespace, so that it decides; loopback is of all.
pub(super) fn may_be_here(life: &Life, can_be_accepted: bool, addresses: Option<&HashSet<IpAddr>>) -> bool {
    let local = life.local.ip().to_canonical();
    let is_ours = local.is_unspecified() || addresses.is_none_or(|addresses| addresses.contains(&local));
    let came_in = life.purpose == Purpose::Session(Some(Direction::In));
    is_ours || (local.is_loopback() && (can_be_accepted || !came_in))
}

/// The addresses of a namespace, loopback left out: those of its interfaces, and those that its open sockets have, which need not
/// be on any (local routes, transparent proxies, IP_FREEBIND, an address that was taken away). None where those of the
/// interfaces are not known.
pub(super) fn addresses<'a>(
    interfaces: Option<Vec<IpAddr>>,
    open: impl Iterator<Item = &'a Socket>,
    netns: u64,
) -> Option<HashSet<IpAddr>> {
    let mut addresses: HashSet<IpAddr> = interfaces?.into_iter().collect();
    let locals = open.filter(|socket| socket.key.netns == netns).map(|socket| socket.local.ip().to_canonical());
    addresses.extend(locals.filter(|local| !local.is_unspecified() && !local.is_loopback()));
    Some(addresses)
}

/// Listeners on loopback that ended a short while ago, the oldest first. A service that stops closes what it had accepted with
/// its listener.
#[derive(Debug, Default)]
pub(super) struct PastListeners(VecDeque<(Instant, SocketAddr)>);

impl PastListeners {
    /// Takes those of a namespace that are among the changes of a walk.
    pub(super) fn note<'a>(&mut self, changes: impl Iterator<Item = &'a Change>, netns: u64, now: Instant) {
        for Change { op, socket } in changes {
            let Socket { key, protocol, role, local, .. } = socket;
            let is_listener = *role == Role::Listener && *protocol == Protocol::Tcp && key.netns == netns;
            let takes_loopback = local.ip().is_loopback() || local.ip().is_unspecified();
            if matches!(op, Op::Closed { .. }) && is_listener && takes_loopback {
                self.0.push_back((now, *local));
            }
        }
        let beyond = self.0.len().saturating_sub(REMEMBERED_LIMIT);
        self.0.drain(..beyond);
        self.0.retain(|(at, _)| now.saturating_duration_since(*at) <= REMEMBERED);
    }

    /// Whether one of them can have accepted a session with this end of ours.
    pub(super) fn accepted(&self, local: SocketAddr, now: Instant) -> bool {
        let fits = |address: IpAddr| address.is_unspecified() || address == local.ip();
        let mut late = self.0.iter().filter(|(at, _)| now.saturating_duration_since(*at) <= REMEMBERED);
        late.any(|(_, listener)| listener.port() == local.port() && fits(listener.ip()))
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{
        socket::{Family, Known, OwnerKnown, SocketKey, SocketState},
        time::Timestamp,
    };

    use super::*;

    const HERE: u64 = 1;
    const ELSEWHERE: u64 = 2;

    fn socket(netns: u64, local: &str, role: Role) -> Socket {
        Socket {
            key: SocketKey { netns, cookie: 1 },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::Established,
            local: local.parse().unwrap(),
            path: None,
            role,
            opened_at: Timestamp::from_micros(0),
            opened_known: Known::Event,
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    fn session() -> Role {
        Role::Session { direction: Direction::In, peer: "10.0.0.9:4000".parse().unwrap() }
    }

    #[test]
    fn what_has_no_address_of_here_and_nobody_here_accepts_on_loopback_was_elsewhere() {
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
        let here = ["10.0.0.1".parse().unwrap()].into_iter().collect();
        let (inward, outward) = (Some(Direction::In), Some(Direction::Out));
        for (case, local, direction, can_be_accepted, expected) in [
            ("accepted", "10.0.0.1:80", inward, true, true),
            ("nobody listens any more", "10.0.0.1:80", inward, false, true),
            ("written as IPv6", "[::ffff:10.0.0.1]:80", inward, false, true),
            ("listened to by everybody, at an address of others", "172.17.0.2:80", inward, true, false),
            ("loopback is everywhere", "127.0.0.1:80", inward, true, true),
            ("loopback, where nobody listened", "127.0.0.1:80", inward, false, false),
            ("from loopback", "[::1]:40000", outward, false, true),
            ("from here", "10.0.0.1:40000", outward, false, true),
            ("from elsewhere", "172.17.0.2:40000", outward, false, false),
            ("without an address", "0.0.0.0:80", inward, false, true),
            ("without an address of IPv6", "[::]:40000", outward, false, true),
            ("older than the events", "10.0.0.1:80", None, false, true),
        ] {
            assert_eq!(may_be_here(&life(local, direction), can_be_accepted, Some(&here)), expected, "{case}");
        }
        assert!(may_be_here(&life("172.17.0.2:80", inward), true, None), "nobody knows the addresses");
    }

    #[test]
    fn an_address_is_of_here_by_an_interface_or_by_a_socket_and_loopback_never_is() {
        let open = [
            socket(HERE, "192.0.2.7:80", session()),
            socket(ELSEWHERE, "172.17.0.2:80", session()),
            socket(HERE, "127.0.0.1:80", session()),
            socket(HERE, "0.0.0.0:80", Role::Listener),
        ];
        let own = || Some(vec!["10.0.0.1".parse().unwrap()]);
        let expected = ["10.0.0.1", "192.0.2.7"].map(|address| address.parse::<IpAddr>().unwrap());
        assert_eq!(addresses(own(), open.iter(), HERE), Some(expected.into_iter().collect()));
        assert_eq!(addresses(None, open.iter(), HERE), None);
    }

    #[test]
    fn a_listener_that_ended_explains_what_it_had_accepted_for_a_minute() {
        let closed = Op::Closed { at: Timestamp::from_micros(0), known: Known::Event };
        let change = |op, netns, local, role| Change { op, socket: socket(netns, local, role) };
        let changes = [
            change(closed, HERE, "127.0.0.1:80", Role::Listener),
            change(closed, HERE, "0.0.0.0:81", Role::Listener),
            change(closed, ELSEWHERE, "127.0.0.1:82", Role::Listener),
            change(Op::Opened, HERE, "127.0.0.1:83", Role::Listener),
            change(closed, HERE, "127.0.0.1:84", session()),
        ];
        let (mut past, begun) = (PastListeners::default(), Instant::now());
        past.note(changes.iter(), HERE, begun);
        let accepted = |past: &PastListeners, local: &str, now| past.accepted(local.parse().unwrap(), now);
        for (local, expected) in [
            ("127.0.0.1:80", true),
            ("127.0.0.2:80", false),
            ("127.0.0.1:81", true),
            ("127.0.0.1:82", false),
            ("127.0.0.1:83", false),
            ("127.0.0.1:84", false),
        ] {
            assert_eq!(accepted(&past, local, begun + REMEMBERED), expected, "{local}");
        }
        let later = begun + REMEMBERED + Duration::from_nanos(1);
        assert!(!accepted(&past, "127.0.0.1:80", later));
        past.note([].iter(), HERE, later);
        assert!(past.0.is_empty());
    }

    #[test]
    fn of_too_many_listeners_that_ended_the_last_are_remembered() {
        let (mut past, now) = (PastListeners::default(), Instant::now());
        for port in 1..=REMEMBERED_LIMIT + 1 {
            let op = Op::Closed { at: Timestamp::from_micros(0), known: Known::Event };
            let change = Change { op, socket: socket(HERE, &format!("127.0.0.1:{port}"), Role::Listener) };
            past.note([change].iter(), HERE, now);
        }
        assert_eq!(past.0.len(), REMEMBERED_LIMIT);
        assert!(!past.accepted("127.0.0.1:1".parse().unwrap(), now));
        assert!(past.accepted("127.0.0.1:2".parse().unwrap(), now));
    }
}
