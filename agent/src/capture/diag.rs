//! NETLINK_SOCK_DIAG (sock_diag(7)): requests for dumps of sockets, and the rows of the answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fleetsock_proto::{
    address::normalise,
    socket::{Family, Protocol, SocketKey, SocketState},
};

use super::{
    SocketRow,
    counted::Idle,
    message::{attributes, request},
    netlink::DUMP,
    transports::sctp_answer,
};
use crate::kernel::bytes::{at, u32_at};

/// The legacy request: TCP of IPv4 and IPv6 in one pass over the kernel's table, 0.7 of the CPU of two.
const TCPDIAG_GETSOCK: u16 = 18;
/// The request for one address family.
pub(super) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Bytes of struct inet_diag_sockid: no socket in particular.
const ANY_SOCKET: [u8; 48] = [0; 48];
/// Bytes of struct inet_diag_msg.
pub(super) const ROW: usize = 72;

pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;

/// Attribute: u8, for listeners and unconnected sockets of AF_INET6.
const SKV6ONLY: u16 = 11;
/// Attribute: u64, unasked, since Linux 5.9.
const CGROUP_ID: u16 = 21;

/// What a walk asks for. TIME_WAIT and SYN_RECV have no owner; bound but unused sockets cost a pass of their own in the
/// kernel.
const TCP_STATES: u32 = CONNECTED_STATES | bit(SocketState::Listen);
/// The same without listeners.
pub(super) const CONNECTED_STATES: u32 = bit(SocketState::Established)
    | bit(SocketState::SynSent)
    | bit(SocketState::FinWait1)
    | bit(SocketState::FinWait2)
    | bit(SocketState::CloseWait)
    | bit(SocketState::LastAck)
    | bit(SocketState::Closing);
/// TCPF_BOUND_INACTIVE, which older kernels overlook.
const BOUND: u32 = 1 << 13;
/// What is counted too now and then. The kernel has a counter for TIME_WAIT, of which there can be many.
const TCP_ALL_STATES: u32 = TCP_STATES | bit(SocketState::SynReceived) | BOUND;
const UDP_STATES: u32 = bit(SocketState::Established) | bit(SocketState::Unconnected);

const fn bit(state: SocketState) -> u32 {
    1 << state.number()
}

/// One dump of a walk.
#[derive(Debug)]
pub(super) struct Query {
    /// What it is about, for errors.
    pub(super) about: &'static str,
    /// Its protocol.
    pub(super) protocol: Protocol,
    /// The bytes to send.
    pub(super) request: Vec<u8>,
}

/// The dumps that walks are made of.
#[derive(Debug)]
pub(super) struct Queries {
    /// TCP, every state that is walked.
    pub(super) tcp: Query,
    /// The same with the states that are counted only.
    pub(super) tcp_all: Query,
    /// TCP in LISTEN: the kernel keeps them in a table of their own, so that the large one is not read.
    pub(super) tcp_listeners: Query,
    /// UDP over IPv4.
    pub(super) udp4: Query,
    /// UDP over IPv6.
    pub(super) udp6: Query,
}

impl Queries {
    pub(super) fn new() -> Queries {
        let tcp = |about, states| Query { about, protocol: Protocol::Tcp, request: legacy_tcp(states) };
        let udp =
            |about, family| Query { about, protocol: Protocol::Udp, request: by_family(family, Protocol::Udp, 0) };
        Queries {
            tcp: tcp("TCP", TCP_STATES),
            tcp_all: tcp("TCP", TCP_ALL_STATES),
            tcp_listeners: tcp("listening TCP", bit(SocketState::Listen)),
            udp4: udp("UDP over IPv4", AF_INET),
            udp6: udp("UDP over IPv6", AF_INET6),
        }
    }
}

/// struct inet_diag_req: family, prefix lengths and extensions are ignored or not needed.
fn legacy_tcp(states: u32) -> Vec<u8> {
    let mut body = vec![0; 4];
    body.extend(ANY_SOCKET);
    body.extend(states.to_ne_bytes());
    body.extend([0; 4]);
    request(TCPDIAG_GETSOCK, DUMP, &body)
}

/// struct inet_diag_req_v2, with the extensions in `extensions` (idiag_ext). SCTP and DCCP have the states of TCP.
pub(super) fn by_family(family: u8, protocol: Protocol, extensions: u8) -> Vec<u8> {
    let states = if protocol == Protocol::Udp { UDP_STATES } else { TCP_STATES };
    let mut body = vec![family, u8::try_from(protocol.number()).unwrap_or_default(), extensions, 0];
    body.extend(states.to_ne_bytes());
    body.extend(ANY_SOCKET);
    request(SOCK_DIAG_BY_FAMILY, DUMP, &body)
}

/// A row that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable;

/// idiag_timer of what the kernel keeps of a closed connection (inet_twsk_diag_fill of net/ipv4/inet_diag.c). It is shown
/// as FIN-WAIT-2 where the peer did not close yet, with a cookie of its own, and is no socket any more.
const TIMEWAIT: u8 = 3;

/// What the body of an answer tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// A socket that is followed.
    Socket(SocketRow),
    /// One that is only counted.
    Idle(Idle),
    /// None to report: UDP that has no port yet, or what is left of a closed connection.
    Nothing,
}

/// What the body of an answer (struct inet_diag_msg and attributes) tells of. Scope ids of link-local addresses are
/// dropped.
pub(super) fn answer(body: &[u8], protocol: Protocol, netns: u64) -> Result<Answer, Unreadable> {
    match (protocol, body.get(2)) {
        (Protocol::Sctp, _) => return sctp_answer(body, netns),
        (Protocol::Tcp | Protocol::Dccp, Some(&TIMEWAIT)) => return Ok(Answer::Nothing),
        _ => {}
    }
    let row = parse(body, protocol, netns).ok_or(Unreadable)?;
    Ok(match (protocol, row.state) {
        (Protocol::Udp, _) if row.local.port() == 0 => Answer::Nothing,
        (Protocol::Tcp, SocketState::SynReceived) => Answer::Idle(Idle::SynReceived),
        // The kernel's TCP_CLOSE.
        (Protocol::Tcp, SocketState::Unconnected) => Answer::Idle(Idle::Bound),
        _ => Answer::Socket(row),
    })
}

/// The row of a socket whose state is in its number.
pub(super) fn parse(body: &[u8], protocol: Protocol, netns: u64) -> Option<SocketRow> {
    let state = state(protocol, *body.get(1)?, port(body, 6)?)?;
    row_in_state(body, protocol, netns, state)
}

/// The row of a socket in this state.
pub(super) fn row_in_state(body: &[u8], protocol: Protocol, netns: u64, state: SocketState) -> Option<SocketRow> {
    let (fixed, rest) = body.split_at_checked(ROW)?;
    let family = fixed[0];
    let local = SocketAddr::new(address(fixed, family, 8)?, port(fixed, 4)?);
    let remote = SocketAddr::new(address(fixed, family, 24)?, port(fixed, 6)?);
    let has_peer = !matches!(state, SocketState::Listen | SocketState::Unconnected);
    let [low, high] = [u32_at(fixed, 44)?, u32_at(fixed, 48)?];
    let mut extra = Extra::default();
    for (kind, payload) in attributes(rest) {
        extra.take(kind, payload);
    }
    let open_to_ipv4 = !has_peer && extra.v6only == Some(false) && local.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    Some(SocketRow {
        key: SocketKey { netns, cookie: u64::from(high) << 32 | u64::from(low) },
        protocol,
        family: match family {
            AF_INET => Family::Ipv4,
            _ if open_to_ipv4 => Family::Dual,
            _ => Family::Ipv6,
        },
        state,
        local,
        peer: has_peer.then_some(remote),
        inode: u32_at(fixed, 68)?.into(),
        uid: u32_at(fixed, 64)?,
        cgroup_id: extra.cgroup_id,
    })
}

/// The kernel numbers states as [`SocketState`] does. UDP is connected when it has a peer.
fn state(protocol: Protocol, number: u8, peer_port: u16) -> Option<SocketState> {
    match (protocol, peer_port) {
        (Protocol::Udp, 0) => Some(SocketState::Unconnected),
        (Protocol::Udp, _) => Some(SocketState::Established),
        _ => SocketState::from_number(number.into()),
    }
}

/// An address of 4 or 16 bytes in network order, normalised.
pub(super) fn address(row: &[u8], family: u8, offset: usize) -> Option<IpAddr> {
    match family {
        AF_INET => at::<4>(row, offset).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        AF_INET6 => at::<16>(row, offset).map(|bytes| normalise(IpAddr::V6(Ipv6Addr::from(bytes)))),
        _ => None,
    }
}

/// Ports are in network order.
pub(super) fn port(row: &[u8], offset: usize) -> Option<u16> {
    at(row, offset).map(u16::from_be_bytes)
}

/// What the attributes of a row tell.
#[derive(Default)]
struct Extra {
    v6only: Option<bool>,
    cgroup_id: u64,
}

impl Extra {
    fn take(&mut self, kind: u16, payload: &[u8]) {
        match (kind, payload) {
            (SKV6ONLY, [flag, ..]) => self.v6only = Some(*flag != 0),
            (CGROUP_ID, _) => self.cgroup_id = at(payload, 0).map_or(0, u64::from_ne_bytes),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What the kernel would send.
    struct Told {
        family: u8,
        state: u8,
        local: (Ipv6Addr, u16),
        peer: (Ipv6Addr, u16),
        v6only: Option<bool>,
    }

    impl Told {
        fn bytes(&self) -> Vec<u8> {
            let mut bytes = vec![self.family, self.state, 0, 0];
            bytes.extend(self.local.1.to_be_bytes());
            bytes.extend(self.peer.1.to_be_bytes());
            for address in [self.local.0, self.peer.0] {
                match address.to_ipv4_mapped() {
                    Some(v4) if self.family == AF_INET => bytes.extend(v4.octets().into_iter().chain([0; 12])),
                    _ => bytes.extend(address.octets()),
                }
            }
            bytes.extend(0_u32.to_ne_bytes());
            bytes.extend([0x5566_7788_u32, 0x1122_3344].map(u32::to_ne_bytes).concat());
            bytes.extend([0; 12]);
            bytes.extend(1000_u32.to_ne_bytes());
            bytes.extend(4711_u32.to_ne_bytes());
            if let Some(v6only) = self.v6only {
                bytes.extend(attribute(SKV6ONLY, &[v6only.into(), 0, 0, 0], 5));
            }
            bytes.extend(attribute(CGROUP_ID, &77_u64.to_ne_bytes(), 12));
            bytes
        }

        fn row(&self, protocol: Protocol) -> SocketRow {
            match answer(&self.bytes(), protocol, 9) {
                Ok(Answer::Socket(row)) => row,
                other => panic!("{other:?}"),
            }
        }
    }

    fn attribute(kind: u16, padded: &[u8], length: u16) -> Vec<u8> {
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), padded].concat()
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    #[test]
    fn a_dual_stack_listener_is_told_from_one_for_ipv6_only() {
        for (address, v6only, family) in [
            ("::", Some(false), Family::Dual),
            ("::", Some(true), Family::Ipv6),
            ("::", None, Family::Ipv6),
            ("::1", Some(false), Family::Ipv6),
            ("::ffff:127.0.0.1", Some(false), Family::Ipv6),
        ] {
            let answer = Told { family: AF_INET6, state: 10, local: (v6(address), 80), peer: (v6("::"), 0), v6only };
            let row = answer.row(Protocol::Tcp);
            assert_eq!((row.family, row.peer), (family, None), "{address} {v6only:?}");
            assert_eq!(row.local, SocketAddr::new(normalise(v6(address).into()), 80));
        }
    }

    #[test]
    fn what_is_left_of_a_closed_connection_is_no_socket() {
        let peer = (v6("::ffff:127.0.0.1"), 443);
        let answer = Told { family: AF_INET, state: 5, local: (v6("::ffff:127.0.0.1"), 80), peer, v6only: None };
        let mut bytes = answer.bytes();
        bytes[2] = TIMEWAIT;
        assert_eq!(super::answer(&bytes, Protocol::Tcp, 9), Ok(Answer::Nothing));
        bytes[2] = 0;
        assert!(matches!(super::answer(&bytes, Protocol::Tcp, 9), Ok(Answer::Socket(_))));
    }

    #[test]
    fn half_open_and_bound_sockets_are_only_counted() {
        for (state, peer, idle) in [(3, 443, Idle::SynReceived), (7, 0, Idle::Bound)] {
            let peer = (v6("::ffff:192.0.2.7"), peer);
            let told = Told { family: AF_INET, state, local: (v6("::ffff:10.0.0.1"), 80), peer, v6only: None };
            assert_eq!(answer(&told.bytes(), Protocol::Tcp, 9), Ok(Answer::Idle(idle)));
        }
    }

    #[test]
    fn every_field_of_a_row_is_read() {
        let answer = Told {
            family: AF_INET,
            state: 8,
            local: (v6("::ffff:10.0.0.1"), 443),
            peer: (v6("::ffff:192.0.2.7"), 51000),
            v6only: None,
        };
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
        assert_eq!(answer.row(Protocol::Tcp), expected);
    }

    #[test]
    fn udp_is_connected_when_it_has_a_peer() {
        let mut answer =
            Told { family: AF_INET6, state: 7, local: (v6("::1"), 53), peer: (v6("::"), 0), v6only: Some(true) };
        assert_eq!(answer.row(Protocol::Udp).state, SocketState::Unconnected);
        (answer.state, answer.peer) = (1, (v6("::1"), 4000));
        assert_eq!(answer.row(Protocol::Udp).peer, Some("[::1]:4000".parse().unwrap()));
        answer.local.1 = 0;
        assert_eq!(super::answer(&answer.bytes(), Protocol::Udp, 9), Ok(Answer::Nothing));
    }

    #[test]
    fn a_row_cut_short_is_unreadable() {
        let answer =
            Told { family: AF_INET, state: 10, local: (v6("::"), 1), peer: (v6("::"), 0), v6only: None }.bytes();
        for length in 0..ROW {
            assert_eq!(super::answer(&answer[..length], Protocol::Tcp, 9), Err(Unreadable), "{length}");
        }
        assert!(super::answer(&answer[..ROW], Protocol::Tcp, 9).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_row_fail_to_parse(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), six in any::<bool>()) {
            if let Some(family) = bytes.first_mut() {
                *family = if six { AF_INET6 } else { AF_INET };
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                if let Ok(Answer::Socket(row)) = answer(&bytes, protocol, 9) {
                    prop_assert_eq!(row.local.ip(), normalise(row.local.ip()));
                    prop_assert_eq!(row.peer.is_none(), matches!(row.state, SocketState::Listen | SocketState::Unconnected));
                }
            }
        }
    }
}
