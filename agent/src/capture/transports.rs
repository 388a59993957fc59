//! SCTP (RFC 9260) and DCCP (RFC 4340), which most hosts do not use and some kernels do not have.
//!
//! Asking an old kernel for sockets of a protocol makes it load the module of that protocol. So nothing is asked before the
//! kernel's own list names it (/proc/net/protocols), and what it does not name costs nothing.
//!
//! An SCTP socket can have many associations. Each is a session, and the socket is a listener while it listens
//! (net/sctp/diag.c). They share the socket's cookie, and each has a stand-in: the verification tag, which stays.

use std::{
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use fleetsock_proto::{
    address::normalise,
    socket::{Protocol, SocketKey, SocketState},
};

use super::{
    diag::{AF_INET, AF_INET6, Answer, Query, Unreadable, by_family, parse, row_in_state},
    message::attributes,
};
use crate::kernel::bytes::{at, u16_at, u32_at};

/// Longest list that is read; it has a hundred bytes for each protocol.
const LIST_LIMIT: u64 = 64 * 1024;
/// Attributes: struct sctp_info, and arrays of struct sockaddr_storage.
const INFO: u16 = 2;
const LOCALS: u16 = 12;
const PEERS: u16 = 13;
/// idiag_ext: struct sctp_info is wanted.
const WITH_INFO: u8 = 1 << (INFO - 1);
/// TCP_LISTEN, which SCTP sockets use too.
const LISTEN: u8 = 10;

/// Which of them the kernel has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Transports {
    sctp: bool,
    dccp: bool,
}

impl Transports {
    /// Those of the running kernel, by now: modules are loaded when they are first used.
    pub(super) fn read() -> io::Result<Transports> {
        let mut list = Vec::new();
        File::open("/proc/thread-self/net/protocols")?.take(LIST_LIMIT).read_to_end(&mut list)?;
        Ok(Transports::of(&list))
    }

    /// Those in a list: the first word of each line is the name of a protocol, `SCTP` or `SCTPv6`.
    fn of(list: &[u8]) -> Transports {
        let mut transports = Transports::default();
        for line in list.split(|byte| *byte == b'\n') {
            match line.split(u8::is_ascii_whitespace).next() {
                Some(b"SCTP" | b"SCTPv6") => transports.sctp = true,
                Some(b"DCCP" | b"DCCPv6") => transports.dccp = true,
                _ => {}
            }
        }
        transports
    }

    /// Which of them it has not.
    pub(super) fn unsupported(self) -> Vec<Protocol> {
        let has = [(Protocol::Sctp, self.sctp), (Protocol::Dccp, self.dccp)];
        has.into_iter().filter(|(_, has)| !has).map(|(protocol, _)| protocol).collect()
    }

    /// The dumps for those that it has.
    pub(super) fn queries(self) -> Vec<Query> {
        let sctp = |about, family| Query {
            about,
            protocol: Protocol::Sctp,
            request: by_family(family, Protocol::Sctp, WITH_INFO),
        };
        let dccp =
            |about, family| Query { about, protocol: Protocol::Dccp, request: by_family(family, Protocol::Dccp, 0) };
        let mut queries = Vec::new();
        if self.sctp {
            queries.extend([sctp("SCTP over IPv4", AF_INET), sctp("SCTP over IPv6", AF_INET6)]);
        }
        if self.dccp {
            queries.extend([dccp("DCCP over IPv4", AF_INET), dccp("DCCP over IPv6", AF_INET6)]);
        }
        queries
    }
}

/// What a row of SCTP tells of: an endpoint, or an association, which has peers.
pub(super) fn sctp_answer(body: &[u8], netns: u64) -> Result<Answer, Unreadable> {
    let (mut locals, mut peers, mut tag) = (None, None, None);
    for (kind, payload) in attributes(body.get(super::diag::ROW..).ok_or(Unreadable)?) {
        match kind {
            LOCALS => locals = Some(payload),
            PEERS => peers = Some(payload),
            // sctpi_tag comes first.
            INFO => tag = u32_at(payload, 0),
            _ => {}
        }
    }
    let number = *body.get(1).ok_or(Unreadable)?;
    let Some(peers) = peers else {
        // Others are clients, and sockets of associations that have a row of their own.
        let listens = number == LISTEN;
        return if listens {
            parse(body, Protocol::Sctp, netns).map(Answer::Socket).ok_or(Unreadable)
        } else {
            Ok(Answer::Nothing)
        };
    };
    let Some(state) = state(number).ok_or(Unreadable)? else { return Ok(Answer::Nothing) };
    let mut row = row_in_state(body, Protocol::Sctp, netns, state).ok_or(Unreadable)?;
    // The first addresses: the primary path can change. Those of the row are not right where both families are used.
    let local = locals.and_then(first_address).unwrap_or(row.local.ip());
    row.local.set_ip(local);
    row.peer = row.peer.map(|peer| SocketAddr::new(first_address(peers).unwrap_or(peer.ip()), peer.port()));
    row.key = association(row.key, tag.ok_or(Unreadable)?);
    Ok(Answer::Socket(row))
}

/// The state of an association (enum sctp_state of include/net/sctp/constants.h), by the word of TCP that means the same;
/// nothing before it began.
fn state(number: u8) -> Option<Option<SocketState>> {
    Some(Some(match number {
        0 => return Some(None),
        // COOKIE_WAIT and COOKIE_ECHOED.
        1 | 2 => SocketState::SynSent,
        3 => SocketState::Established,
        // SHUTDOWN_PENDING and SHUTDOWN_SENT.
        4 | 5 => SocketState::FinWait1,
        // SHUTDOWN_RECEIVED.
        6 => SocketState::CloseWait,
        // SHUTDOWN_ACK_SENT.
        7 => SocketState::LastAck,
        _ => return None,
    }))
}

/// The key of an association of a socket.
fn association(socket: SocketKey, tag: u32) -> SocketKey {
    let low = socket.cookie & u64::from(u32::MAX >> 1);
    SocketKey { cookie: SocketKey::STAND_IN | low << 32 | u64::from(tag), ..socket }
}

/// The address in the first struct sockaddr_storage of several.
fn first_address(storages: &[u8]) -> Option<IpAddr> {
    let family = u8::try_from(u16_at(storages, 0)?).ok()?;
    match family {
        AF_INET => at::<4>(storages, 4).map(|bytes| Ipv4Addr::from(bytes).into()),
        AF_INET6 => at::<16>(storages, 8).map(|bytes| normalise(Ipv6Addr::from(bytes).into())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::socket::Family;
    use proptest::prelude::*;

    use super::*;
    use crate::capture::diag::{self, ROW};

    /// struct inet_diag_msg as inet_sctp_diag_fill fills it: `[::]:5000` of an IPv6 socket, and a peer's port.
    fn fixed(state: u8, peer_port: u16) -> Vec<u8> {
        let mut bytes = vec![AF_INET6, state, 3, 0];
        bytes.extend(5000_u16.to_be_bytes());
        bytes.extend(peer_port.to_be_bytes());
        bytes.extend([0; 36]);
        bytes.extend([7_u32, 0].map(u32::to_ne_bytes).concat());
        bytes.extend([0; 12]);
        bytes.extend([1000_u32, 4711].map(u32::to_ne_bytes).concat());
        bytes
    }

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat()
    }

    fn storage(address: &str) -> Vec<u8> {
        let mut bytes = match address.parse().unwrap() {
            IpAddr::V4(v4) => [&2_u16.to_ne_bytes()[..], &[0; 2], &v4.octets()].concat(),
            IpAddr::V6(v6) => [&10_u16.to_ne_bytes()[..], &[0; 6], &v6.octets()].concat(),
        };
        bytes.resize(128, 0);
        bytes
    }

    fn peers(tag: u32, addresses: [&str; 2]) -> Vec<u8> {
        let info = [tag, 3].map(u32::to_ne_bytes).concat();
        let storages = addresses.map(storage).concat();
        [attribute(INFO, &info), attribute(LOCALS, &storage("10.0.0.1")), attribute(PEERS, &storages)].concat()
    }

    fn row(bytes: &[u8]) -> crate::capture::SocketRow {
        match diag::answer(bytes, Protocol::Sctp, 9) {
            Ok(Answer::Socket(row)) => row,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_socket_that_listens_is_a_listener_and_each_association_of_it_a_session() {
        let v6only = attribute(11, &[0, 0, 0, 0]);
        let listener = row(&[fixed(LISTEN, 0), v6only, attribute(LOCALS, &storage("::"))].concat());
        assert_eq!((listener.state, listener.family, listener.peer), (SocketState::Listen, Family::Dual, None));
        assert_eq!((listener.local, listener.key), ("[::]:5000".parse().unwrap(), SocketKey { netns: 9, cookie: 7 }));
        let one = row(&[fixed(3, 40_000), peers(1, ["10.0.0.9", "2001:db8::9"])].concat());
        let two = row(&[fixed(3, 40_000), peers(2, ["2001:db8::9", "10.0.0.9"])].concat());
        assert_eq!((one.state, one.inode, one.uid), (SocketState::Established, 4711, 1000));
        assert_eq!((one.local, one.peer), ("10.0.0.1:5000".parse().unwrap(), "10.0.0.9:40000".parse().ok()));
        assert_eq!(two.peer, "[2001:db8::9]:40000".parse().ok());
        assert!(one.key != two.key && one.key != listener.key && one.key.netns == 9);
    }

    #[test]
    fn states_of_associations_have_the_words_of_tcp() {
        use SocketState::{CloseWait, Established, FinWait1, LastAck, SynSent};
        let expected = [SynSent, SynSent, Established, FinWait1, FinWait1, CloseWait, LastAck];
        for (number, expected) in (1..).zip(expected) {
            assert_eq!(row(&[fixed(number, 1), peers(1, ["10.0.0.9", "::1"])].concat()).state, expected, "{number}");
        }
        let answer = |number| diag::answer(&[fixed(number, 1), peers(1, ["::1", "::1"])].concat(), Protocol::Sctp, 9);
        assert_eq!((answer(0), answer(8)), (Ok(Answer::Nothing), Err(Unreadable)));
        // The socket of an association, and a client that is not connected.
        for number in [1, 7] {
            assert_eq!(diag::answer(&fixed(number, 0), Protocol::Sctp, 9), Ok(Answer::Nothing));
        }
    }

    #[test]
    fn dccp_sockets_are_read_as_those_of_tcp() {
        let mut bytes = fixed(1, 40_000);
        bytes[2] = 0;
        let row = diag::answer(&bytes, Protocol::Dccp, 9);
        assert!(matches!(row, Ok(Answer::Socket(row)) if row.state == SocketState::Established), "{row:?}");
        bytes[2] = 3;
        assert_eq!(diag::answer(&bytes, Protocol::Dccp, 9), Ok(Answer::Nothing), "it is over");
    }

    #[test]
    fn only_what_the_kernel_has_is_asked_for() {
        let list = b"protocol  size sockets\nSCTPv6    1400   0\nTCP       2304      1\n";
        for (list, unsupported, queries) in [
            (&b""[..], vec![Protocol::Sctp, Protocol::Dccp], 0),
            (list, vec![Protocol::Dccp], 2),
            (b"DCCP 1\nSCTP 2", vec![], 4),
            (b"SCTPX 1\n DCCP", vec![Protocol::Sctp, Protocol::Dccp], 0),
        ] {
            let transports = Transports::of(list);
            assert_eq!((transports.unsupported(), transports.queries().len()), (unsupported, queries));
        }
        let query = &Transports { sctp: true, dccp: false }.queries()[1];
        assert_eq!(query.request[16..20], [AF_INET6, 132, WITH_INFO, 0]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), kind in 0_u16..16, cut in 0..200_usize) {
            Transports::of(&bytes);
            first_address(&bytes);
            let rest = bytes.split_off(ROW.min(bytes.len()));
            if let Some(family) = bytes.first_mut() {
                *family = if kind % 2 == 0 { AF_INET } else { AF_INET6 };
            }
            let hostile = attribute(kind, &rest);
            for body in [[&bytes[..], &rest].concat(), [&bytes[..], &hostile[..cut.min(hostile.len())]].concat(), [&bytes[..], &peers(1, ["::1", "1.1.1.1"]), &hostile].concat()] {
                for protocol in [Protocol::Sctp, Protocol::Dccp] {
                    if let Ok(Answer::Socket(row)) = diag::answer(&body, protocol, 9) {
                        prop_assert_eq!(row.local.ip(), normalise(row.local.ip()));
                        prop_assert_eq!(row.peer.is_none(), matches!(row.state, SocketState::Listen | SocketState::Unconnected));
                    }
                }
            }
        }
    }
}
