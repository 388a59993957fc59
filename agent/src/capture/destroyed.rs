//! What the kernel tells of sockets that are destroyed: the multicast groups of NETLINK_SOCK_DIAG that `ss -E` shows.
//!
//! They take no privilege and reach only the network namespace in which they were joined. A message has the socket's
//! cookie and, for TCP, its counters; no inode, user, process or time. Who has those joins them by the cookie.

use std::{
    fs::File,
    io::Read,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use fleetsock_proto::socket::{Family, Protocol, SocketKey, SocketState};
use rustix::{
    fs::{fstat, stat},
    io::{Errno, retry_on_intr},
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, connect,
        netlink::{SOCK_DIAG, SocketAddrNetlink},
        recv, socket_with,
        sockopt::{set_socket_recv_buffer_size, set_socket_recv_buffer_size_force, socket_recv_buffer_size},
    },
};

use super::{
    CaptureError,
    diag::{AF_INET, AF_INET6, ROW, SOCK_DIAG_BY_FAMILY, Unreadable, address, port},
    message::{Message, attributes, messages},
};
use crate::kernel::bytes::{at, u32_at};

/// SKNLGRP_INET_TCP_DESTROY (1), INET_UDP_DESTROY (2), INET6_TCP_DESTROY (3) and INET6_UDP_DESTROY (4), as masks
/// (include/uapi/linux/sock_diag.h).
const TCP_AND_UDP: u32 = 0b1111;
const UDP: u32 = 0b1010;
/// What the socket may hold, bytes: with 4 MiB a burst of 76,000 closings lost nothing.
const RECEIVE_BYTES: usize = 4 << 20;
/// A message has 380 bytes on Linux 6.18; tcp_info grows from release to release.
const DATAGRAM_LIMIT: usize = 4096;
/// Most messages that are taken out at once; the others come next time.
pub const DRAIN_LIMIT: usize = 256 * 1024;

/// Longest list of netlink sockets that is read, some 40,000 of them.
const LIST_LIMIT: u64 = 4 * 1024 * 1024;

/// Attribute: struct tcp_info.
const INFO: u16 = 2;
/// Attribute: u8, the protocol.
const PROTOCOL: u16 = 10;

/// What went over a TCP connection, as its socket counted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that were sent, each once; some may not have arrived.
    pub sent: u64,
    /// Bytes that arrived, and one more when the peer's FIN did: see [`Traffic::received`].
    counted: u64,
    /// What the process did not read of that.
    unread: u32,
    /// Whether the peer acknowledged more than bytes: the own FIN, or at least the own SYN.
    acknowledged: bool,
    /// Smoothed round-trip time, microseconds.
    pub round_trip_us: u32,
}

impl Traffic {
    /// So many bytes sent, and so many counted as received; everything was read and acknowledged.
    #[cfg(test)]
    pub(crate) fn of(sent: u64, counted: u64) -> Traffic {
        Traffic { sent, counted, unread: 0, acknowledged: true, round_trip_us: 0 }
    }

    /// Bytes that arrived, where `last` is the last state before the socket was closed. The kernel counts sequence numbers
    /// and so the peer's FIN as one; whether it came follows from the state. Without it, or when a process shut down its
    /// own half and then read to the end, the count can be one too high.
    pub fn received(&self, last: Option<SocketState>) -> u64 {
        let fin = match last {
            Some(SocketState::CloseWait | SocketState::LastAck | SocketState::Closing) => true,
            // Who closes with data unread resets the connection, so what lies there is the FIN.
            Some(SocketState::FinWait1 | SocketState::FinWait2) => self.unread > 0,
            Some(_) => false,
            None => self.unread == 1 && self.acknowledged,
        };
        self.counted.saturating_sub(fin.into())
    }
}

/// A socket that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destroyed {
    /// Its identity within the boot.
    pub key: SocketKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
    /// The host's end, address normalised; address and port may be erased (0) when it reset its connection.
    pub local: SocketAddr,
    /// The other end, address normalised; absent for listeners, and when it reset its connection or was refused.
    pub peer: Option<SocketAddr>,
    /// What its counters say. Absent where the kernel erased them, which it does with the peer; for UDP, which has none;
    /// and before Linux 4.19.
    pub traffic: Option<Traffic>,
}

/// How taking messages out went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Messages that the socket had no room for: at least so many.
    pub lost: u64,
    /// Messages that could not be read.
    pub unreadable: u64,
}

/// Whose destruction is told. Each message costs, whether it is read or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mortals {
    /// That of TCP and UDP sockets.
    TcpAndUdp,
    /// That of UDP sockets.
    Udp,
}

/// Listens to the destruction of sockets in the network namespace in which it was opened, which lives as long as this does.
#[derive(Debug)]
pub struct Destructions {
    socket: OwnedFd,
    netns: u64,
    buffer: Vec<u8>,
    /// Messages that the kernel had dropped when it was last asked.
    dropped: u64,
    receive_bytes: usize,
}

impl Destructions {
    /// Begins to listen, TCP and UDP, in the network namespace of the calling thread.
    pub fn open() -> Result<Destructions, CaptureError> {
        Destructions::of(Mortals::TcpAndUdp)
    }

    /// Begins to listen in the network namespace of the calling thread.
    pub fn of(mortals: Mortals) -> Result<Destructions, CaptureError> {
        let groups = match mortals {
            Mortals::TcpAndUdp => TCP_AND_UDP,
            Mortals::Udp => UDP,
        };
        let netns = stat("/proc/thread-self/ns/net").map_err(CaptureError::Namespace)?.st_ino;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listen = || {
            let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?;
            // Beyond net.core.rmem_max takes CAP_NET_ADMIN.
            set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)
                .or_else(|_| set_socket_recv_buffer_size(&socket, RECEIVE_BYTES))?;
            bind(&socket, &SocketAddrNetlink::new(0, groups))?;
            // Connected to the kernel (port 0), so that no other process can put a datagram into the queue.
            connect(&socket, &SocketAddrNetlink::new(0, 0))?;
            let receive_bytes = socket_recv_buffer_size(&socket)?;
            Ok((socket, receive_bytes))
        };
        let (socket, receive_bytes) = listen().map_err(CaptureError::Socket)?;
        Ok(Destructions { socket, netns, buffer: vec![0; DATAGRAM_LIMIT], dropped: 0, receive_bytes })
    }

    /// Inode number of the network namespace.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// Bytes that the kernel keeps for this listener, its own overhead included.
    pub fn receive_bytes(&self) -> usize {
        self.receive_bytes
    }

    /// Takes what was told out of the socket and adds it to `destroyed`, at most [`DRAIN_LIMIT`] of them; does not wait.
    pub fn drain(&mut self, destroyed: &mut Vec<Destroyed>) -> Result<DrainReport, CaptureError> {
        let mut report = DrainReport::default();
        let mut overrun = false;
        for _ in 0..DRAIN_LIMIT {
            let received = retry_on_intr(|| {
                recv(&self.socket, self.buffer.as_mut_slice(), RecvFlags::TRUNC).map(|(_, length)| length)
            });
            match received {
                Ok(length) => match self.buffer.get(..length) {
                    Some(datagram) => report.unreadable += read(datagram, self.netns, destroyed),
                    None => report.unreadable += 1,
                },
                Err(Errno::AGAIN) => break,
                Err(Errno::NOBUFS) => overrun = true,
                Err(errno) => return Err(CaptureError::Socket(errno)),
            }
        }
        if overrun {
            // Only now: the kernel drops until the queue is empty, and says so once.
            report.lost = self.newly_dropped();
        }
        Ok(report)
    }

    /// Messages that were dropped since this was last asked. Where the kernel does not tell the number (the list shows the
    /// namespace of the calling thread only), at least one.
    fn newly_dropped(&mut self) -> u64 {
        let inode = fstat(&self.socket).map(|socket| socket.st_ino);
        let list = File::open("/proc/thread-self/net/netlink").and_then(|file| {
            let mut list = Vec::new();
            file.take(LIST_LIMIT).read_to_end(&mut list).map(|_| list)
        });
        let told = match (inode, list) {
            (Ok(inode), Ok(list)) => dropped(&list, inode),
            (Err(_), _) | (_, Err(_)) => None,
        };
        let Some(told) = told else { return 1 };
        told.saturating_sub(std::mem::replace(&mut self.dropped, told))
    }
}

impl AsFd for Destructions {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Reads the messages of a datagram; how many could not be read.
fn read(datagram: &[u8], netns: u64, destroyed: &mut Vec<Destroyed>) -> u64 {
    let mut unreadable = 0;
    for message in messages(datagram) {
        let read = match message {
            Ok(Message { kind: SOCK_DIAG_BY_FAMILY, body, .. }) => parse(body, netns),
            Ok(_) => continue,
            Err(_) => None,
        };
        match read.ok_or(Unreadable) {
            Ok(socket) => destroyed.push(socket),
            Err(Unreadable) => unreadable += 1,
        }
    }
    unreadable
}

/// struct inet_diag_msg and attributes. Its state is always CLOSE.
fn parse(body: &[u8], netns: u64) -> Option<Destroyed> {
    let (fixed, rest) = body.split_at_checked(ROW)?;
    let number = fixed[0];
    let family = match number {
        AF_INET => Family::Ipv4,
        AF_INET6 => Family::Ipv6,
        _ => return None,
    };
    let (mut protocol, mut info) = (None, None);
    for (kind, payload) in attributes(rest) {
        match (kind, payload) {
            (PROTOCOL, [number, ..]) => protocol = Protocol::from_number((*number).into()),
            (INFO, _) => info = traffic(payload),
            _ => {}
        }
    }
    let local = SocketAddr::new(address(fixed, number, 8)?, port(fixed, 4)?);
    let peer = SocketAddr::new(address(fixed, number, 24)?, port(fixed, 6)?);
    let [low, high] = [u32_at(fixed, 44)?, u32_at(fixed, 48)?];
    let info = info.map(|traffic| Traffic { unread: u32_at(fixed, 56).unwrap_or_default(), ..traffic });
    let has_peer = peer.port() != 0;
    Some(Destroyed {
        key: SocketKey { netns, cookie: u64::from(high) << 32 | u64::from(low) },
        protocol: protocol?,
        family,
        local,
        peer: has_peer.then_some(peer),
        // tcp_disconnect, which a reset goes through, sets them to 0 along with the peer's port.
        traffic: info.filter(|_| has_peer),
    })
}

/// The parts of struct tcp_info (include/uapi/linux/tcp.h) that are needed; `None` where it is shorter, before Linux 4.19.
fn traffic(info: &[u8]) -> Option<Traffic> {
    let u64_at = |offset| at(info, offset).map(u64::from_ne_bytes);
    let (acked, received) = (u64_at(120)?, u64_at(128)?);
    let (sent, sent_again) = (u64_at(200)?, u64_at(208)?);
    let sent = sent.saturating_sub(sent_again);
    // Segments with data: without any, what was counted is the FIN.
    let counted = if u32_at(info, 152)? == 0 { 0 } else { received };
    Some(Traffic { sent, counted, unread: 0, acknowledged: acked > sent, round_trip_us: u32_at(info, 68)? })
}

/// The column "Drops" of /proc/net/netlink in the line of a socket.
fn dropped(list: &[u8], inode: u64) -> Option<u64> {
    let list = std::str::from_utf8(list).ok()?;
    list.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(8);
        let (drops, of) = (fields.next()?.parse().ok()?, fields.next()?.parse::<u64>().ok()?);
        (of == inode).then_some(drops)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::capture::message::request;

    const INFO_BYTES: usize = 280;

    fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(4 + payload.len()).unwrap();
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// struct tcp_info with these counters.
    fn info(acked: u64, received: u64, data_segments: u32, sent: u64, sent_again: u64) -> Vec<u8> {
        let mut info = vec![0; INFO_BYTES];
        info[68..72].copy_from_slice(&250_u32.to_ne_bytes());
        for (offset, number) in [(120, acked), (128, received), (200, sent), (208, sent_again)] {
            info[offset..offset + 8].copy_from_slice(&number.to_ne_bytes());
        }
        info[152..156].copy_from_slice(&data_segments.to_ne_bytes());
        info
    }

    fn body(family: u8, peer_port: u16, unread: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; ROW];
        (body[0], body[1]) = (family, 7);
        body[4..6].copy_from_slice(&443_u16.to_be_bytes());
        body[6..8].copy_from_slice(&peer_port.to_be_bytes());
        body[8..12].copy_from_slice(&[10, 0, 0, 1]);
        body[24..28].copy_from_slice(&[192, 0, 2, 7]);
        body[44..52].copy_from_slice(&0x1122_3344_5566_7788_u64.to_ne_bytes());
        body[56..60].copy_from_slice(&unread.to_ne_bytes());
        body.extend(attributes.concat());
        body
    }

    #[test]
    fn every_field_of_a_message_is_read() {
        let attributes = [attribute(PROTOCOL, &[6]), attribute(INFO, &info(101, 51, 1, 120, 20))];
        let traffic = Traffic { sent: 100, counted: 51, unread: 1, acknowledged: true, round_trip_us: 250 };
        let expected = Destroyed {
            key: SocketKey { netns: 9, cookie: 0x1122_3344_5566_7788 },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            local: "10.0.0.1:443".parse().unwrap(),
            peer: Some("192.0.2.7:51000".parse().unwrap()),
            traffic: Some(traffic),
        };
        assert_eq!(parse(&body(AF_INET, 51000, 1, &attributes), 9), Some(expected));
        let six = parse(&body(AF_INET6, 51000, 1, &attributes), 9).unwrap();
        assert_eq!((six.family, six.local), (Family::Ipv6, "[a00:1::]:443".parse().unwrap()));
    }

    #[test]
    fn counters_that_were_erased_with_the_peer_are_not_told_as_0() {
        let attributes = [attribute(PROTOCOL, &[6]), attribute(INFO, &info(0, 0, 0, 0, 0))];
        let reset = parse(&body(AF_INET, 0, 0, &attributes), 9).unwrap();
        assert_eq!((reset.peer, reset.traffic), (None, None));
    }

    #[test]
    fn a_message_without_what_names_the_socket_is_unreadable() {
        let whole = body(AF_INET, 1, 0, &[attribute(PROTOCOL, &[17])]);
        assert!(parse(&whole, 9).is_some());
        for length in 0..whole.len() - 3 {
            assert_eq!(parse(&whole[..length], 9), None, "{length}");
        }
        assert_eq!(parse(&body(AF_INET, 1, 0, &[attribute(PROTOCOL, &[250])]), 9), None);
        assert_eq!(parse(&body(1, 1, 0, &[attribute(PROTOCOL, &[6])]), 9), None);
    }

    #[test]
    fn the_fin_of_the_peer_is_no_byte() {
        use SocketState::{CloseWait, Established, FinWait2, LastAck};
        let received = |counted, data_segments, unread, acked, last| {
            let traffic = traffic(&info(acked, counted, data_segments, 100, 0)).unwrap();
            Traffic { unread, ..traffic }.received(last)
        };
        for (counted, data_segments, unread, acked, last, expected) in [
            // The peer closed first, whether its FIN was read or not.
            (51, 1, 0, 101, Some(LastAck), 50),
            (51, 1, 1, 101, Some(CloseWait), 50),
            // The host closed first, and the peer's FIN came, or did not before the socket was gone.
            (51, 1, 1, 102, Some(FinWait2), 50),
            (50, 1, 0, 102, Some(FinWait2), 50),
            // A reset: no FIN.
            (50, 1, 10, 101, Some(Established), 50),
            // Nothing but the FIN.
            (1, 0, 1, 102, None, 0),
            (51, 1, 1, 102, None, 50),
            // Not known: one too many.
            (51, 1, 0, 102, None, 51),
        ] {
            assert_eq!(received(counted, data_segments, unread, acked, last), expected, "{counted} {unread} {last:?}");
        }
    }

    #[test]
    fn an_older_kernels_shorter_counters_are_no_counters() {
        let whole = info(1, 2, 3, 4, 0);
        assert_eq!(traffic(&whole[..215]), None);
        assert!(traffic(&whole[..216]).is_some());
    }

    #[test]
    fn the_drops_of_a_socket_stand_in_its_line() {
        let list = b"sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
            00000000 4   0          00000000 0        0        0     2        0        1031\n\
            00000000 4   7116       0000000f 4194816  0        0     2        4712     58813\n";
        assert_eq!((dropped(list, 58813), dropped(list, 1031), dropped(list, 7)), (Some(4712), Some(0), None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut destroyed = Vec::new();
            let unreadable = read(&bytes, 9, &mut destroyed);
            prop_assert!(destroyed.len() as u64 + unreadable <= bytes.len() as u64 / 16 + 1);
            prop_assert!(dropped(&bytes, 7).is_none_or(|_| bytes.contains(&b'7')));
        }

        #[test]
        fn no_body_makes_parsing_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), six in any::<bool>()) {
            if let Some(family) = bytes.first_mut() {
                *family = if six { AF_INET6 } else { AF_INET };
            }
            let mut datagram = request(SOCK_DIAG_BY_FAMILY, 0, &bytes);
            let mut destroyed = Vec::new();
            let unreadable = read(&datagram, 9, &mut destroyed);
            prop_assert_eq!(destroyed.len() as u64 + unreadable, 1);
            datagram.truncate(datagram.len() / 2);
            read(&datagram, 9, &mut destroyed);
            for socket in destroyed {
                prop_assert_eq!(socket.peer.is_none(), socket.peer.is_none_or(|peer| peer.port() == 0));
                prop_assert!(socket.peer.is_some() || socket.traffic.is_none());
            }
        }

        #[test]
        fn any_counters_give_a_number(bytes in proptest::collection::vec(any::<u8>(), 0..300), unread in any::<u32>()) {
            if let Some(traffic) = traffic(&bytes) {
                let traffic = Traffic { unread, ..traffic };
                for last in SocketState::ALL.iter().copied().map(Some).chain([None]) {
                    prop_assert!(traffic.counted - traffic.received(last) <= 1);
                }
            }
        }
    }
}
