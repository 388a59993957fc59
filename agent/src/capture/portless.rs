//! Sockets without a port: raw ones (raw(7)), packet sockets (packet(7)), and UNIX sockets that listen (unix(7)).
//!
//! They are rare and tell much: a raw or packet socket reads other programs' traffic. Whoever may not open one may still
//! list them. Packet and UNIX sockets are asked for by NETLINK_SOCK_DIAG; raw ones are read from /proc/net/raw and raw6,
//! because many kernels are built without diagnosis of them (CONFIG_INET_RAW_DIAG), which costs them their cookie.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use fleetsock_proto::{
    address::normalise,
    listener::SOCKET_PATH_LIMIT,
    socket::{Family, Protocol, SocketKey, SocketState},
};
use rustix::{fs::stat, net::netlink::SOCK_DIAG};

use super::{
    CaptureError, SocketRow, WalkReport,
    diag::SOCK_DIAG_BY_FAMILY,
    message::{attributes, request},
    netlink::{DUMP, Dump, Netlink},
    walker::WALK_ROWS_LIMIT,
};
use crate::{
    kernel::bytes::{at, u16_at, u32_at},
    owners::cut,
};

/// Longest list of raw sockets that is read, some 40,000 of them.
const LIST_LIMIT: usize = 4 * 1024 * 1024;
/// How often a dump that was interrupted is tried before it is taken as it is.
const DUMP_TRIES: u32 = 3;
/// Set in the cookie of a raw socket, whose other bits are its inode: the kernel counts cookies upwards from 1.
const BY_INODE: u64 = 1 << 63;

/// What Linux before 5.3 lets a UNIX socket's uid be: nobody in particular (overflowuid).
const NOBODY: u32 = 65534;

const AF_UNIX: u8 = 1;
const AF_PACKET: u8 = 17;
/// struct packet_diag_req: PACKET_SHOW_INFO. The socket's uid comes with it.
const PACKET_SHOW_INFO: u32 = 1;
/// struct unix_diag_req: UDIAG_SHOW_NAME and UDIAG_SHOW_UID.
const UNIX_SHOW: u32 = 0x1 | 0x40;
/// TCP_LISTEN, which UNIX sockets use too.
const LISTEN: u32 = 1 << 10;
/// Bytes of struct packet_diag_msg and of struct unix_diag_msg.
const ROW: usize = 16;

/// A socket without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portless {
    /// Its identity within the boot.
    pub key: SocketKey,
    /// Its inode.
    pub inode: u64,
    /// Its user.
    pub uid: u32,
    /// What it is.
    pub kind: PortlessKind,
}

/// What a socket without a port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortlessKind {
    /// Gets every datagram of an IP protocol.
    Raw {
        /// Address family.
        family: Family,
        /// IANA number of the IP protocol; 255 only sends.
        protocol: u8,
        /// The host's end, normalised; unspecified when it is bound to none.
        local: IpAddr,
        /// The other end, if it is connected.
        peer: Option<IpAddr>,
    },
    /// Gets the frames of an interface.
    Packet {
        /// EtherType; 3 is all of them (ETH_P_ALL), 0 none yet.
        ethertype: u16,
        /// Index of the interface; absent for all of them.
        interface: Option<u32>,
    },
    /// Waits for connections on the host.
    Unix {
        /// 1 stream (SOCK_STREAM), 5 sequenced packets (SOCK_SEQPACKET).
        kind: u8,
        /// Path, or `@` and an abstract name; empty when it has none.
        name: String,
    },
}

/// What UNIX sockets are bound to: a path, or `@` and an abstract name; empty when they have none.
pub type Paths = BTreeMap<SocketKey, Arc<str>>;

/// Which of them are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// Raw and packet sockets.
    #[default]
    Network,
    /// UNIX sockets that listen too.
    All,
}

/// Appends the raw and packet sockets of the network namespace of the calling thread, in which `netlink` was opened, as rows
/// of a walk: what they have in place of a port is the number of the IP protocol, or the EtherType. The interface of a
/// packet socket and the peer of a connected raw one are left out.
pub(super) fn append_portless(
    netlink: &mut Netlink,
    netns: u64,
    limit: usize,
    rows: &mut Vec<SocketRow>,
) -> Result<WalkReport, CaptureError> {
    let mut found = Vec::new();
    let mut report = raw("/proc/thread-self/net/raw", netns, &mut found)?;
    report += raw("/proc/thread-self/net/raw6", netns, &mut found)?;
    report += dump(netlink, "packet", &mut packets(), &mut found, |body| packet(body, netns))?;
    for row in found.iter().map(Portless::row) {
        report.overflow += u64::from(!keep(row, limit, rows));
    }
    Ok(report)
}

/// Appends the UNIX sockets that listen in the network namespace in which `netlink` was opened, and their paths.
pub(super) fn append_unix(
    netlink: &mut Netlink,
    netns: u64,
    limit: usize,
    rows: &mut Vec<SocketRow>,
    paths: &mut Paths,
) -> Result<WalkReport, CaptureError> {
    let mut found = Vec::new();
    let mut report = dump(netlink, "listening UNIX", &mut unix_listeners(), &mut found, |body| unix(body, netns))?;
    for socket in found {
        let row = socket.row();
        match socket.kind {
            PortlessKind::Unix { name, .. } if keep(row, limit, rows) => drop(paths.insert(row.key, name.into())),
            _ => report.overflow += 1,
        }
    }
    Ok(report)
}

/// Appends a row, unless there are too many.
fn keep(row: SocketRow, limit: usize, rows: &mut Vec<SocketRow>) -> bool {
    let has_room = rows.len() < limit;
    if has_room {
        rows.push(row);
    }
    has_room
}

impl Portless {
    /// The row of a walk. The name of a UNIX socket is not in it.
    fn row(&self) -> SocketRow {
        let (protocol, family, state, local) = match self.kind {
            PortlessKind::Raw { family, protocol, local, .. } => {
                (Protocol::Raw, family, SocketState::Unconnected, SocketAddr::new(local, protocol.into()))
            }
            PortlessKind::Packet { ethertype, .. } => {
                let local = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ethertype);
                (Protocol::Packet, Family::Packet, SocketState::Unconnected, local)
            }
            PortlessKind::Unix { kind, .. } => {
                let local = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), kind.into());
                (Protocol::Unix, Family::Unix, SocketState::Listen, local)
            }
        };
        SocketRow {
            key: self.key,
            protocol,
            family,
            state,
            local,
            peer: None,
            inode: self.inode,
            uid: self.uid,
            cgroup_id: 0,
        }
    }
}

/// Lists them in the network namespace of the calling thread. Replaces the content of `rows`, which is incomplete after an
/// error.
pub fn walk_portless(wanted: Wanted, rows: &mut Vec<Portless>) -> Result<WalkReport, CaptureError> {
    rows.clear();
    let netns = stat("/proc/thread-self/ns/net").map_err(CaptureError::Namespace)?.st_ino;
    let mut netlink = Netlink::open(Some(SOCK_DIAG)).map_err(CaptureError::Socket)?;
    let mut report = raw("/proc/thread-self/net/raw", netns, rows)?;
    report += raw("/proc/thread-self/net/raw6", netns, rows)?;
    report += dump(&mut netlink, "packet", &mut packets(), rows, |body| packet(body, netns))?;
    if wanted == Wanted::All {
        report += dump(&mut netlink, "listening UNIX", &mut unix_listeners(), rows, |body| unix(body, netns))?;
    }
    Ok(report)
}

/// struct packet_diag_req, for all of them.
fn packets() -> Vec<u8> {
    let mut body = vec![AF_PACKET, 0, 0, 0];
    body.extend([0, PACKET_SHOW_INFO, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat());
    request(SOCK_DIAG_BY_FAMILY, DUMP, &body)
}

/// struct unix_diag_req, for those that listen.
fn unix_listeners() -> Vec<u8> {
    let mut body = vec![AF_UNIX, 0, 0, 0];
    body.extend([LISTEN, 0, UNIX_SHOW, u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat());
    request(SOCK_DIAG_BY_FAMILY, DUMP, &body)
}

/// Appends the rows of one dump, which is repeated while it is interrupted.
fn dump(
    netlink: &mut Netlink,
    about: &'static str,
    request: &mut [u8],
    rows: &mut Vec<Portless>,
    parse: impl Fn(&[u8]) -> Option<Portless>,
) -> Result<WalkReport, CaptureError> {
    let begin = rows.len();
    let mut tries = 0;
    loop {
        rows.truncate(begin);
        let mut report = WalkReport::default();
        let Dump { interrupted, malformed } = netlink
            .dump(request, |message| match parse(message.body) {
                Some(_) if rows.len() >= WALK_ROWS_LIMIT => report.overflow += 1,
                Some(row) => rows.push(row),
                None => report.unreadable += 1,
            })
            .map_err(|cause| CaptureError::Dump { about, cause })?;
        tries += 1;
        if !interrupted || tries == DUMP_TRIES {
            report.unreadable += malformed;
            report.interrupted = interrupted.into();
            return Ok(report);
        }
    }
}

/// struct packet_diag_msg: family, type, EtherType, inode, cookie.
fn packet(body: &[u8], netns: u64) -> Option<Portless> {
    const INFO: u16 = 0;
    const UID: u16 = 5;
    let (fixed, rest) = body.split_at_checked(ROW)?;
    (fixed[0] == AF_PACKET).then_some(())?;
    let (mut interface, mut uid) = (None, None);
    for (kind, payload) in attributes(rest) {
        match kind {
            INFO => interface = u32_at(payload, 0),
            UID => uid = u32_at(payload, 0),
            _ => {}
        }
    }
    let kind = PortlessKind::Packet { ethertype: u16_at(fixed, 2)?, interface: interface.filter(|index| *index != 0) };
    Some(Portless { key: key(fixed, netns)?, inode: u32_at(fixed, 4)?.into(), uid: uid?, kind })
}

/// struct unix_diag_msg: family, type, state, inode, cookie.
fn unix(body: &[u8], netns: u64) -> Option<Portless> {
    const NAME: u16 = 0;
    const UID: u16 = 7;
    let (fixed, rest) = body.split_at_checked(ROW)?;
    (fixed[0] == AF_UNIX).then_some(())?;
    let (mut name, mut uid) = (String::new(), NOBODY);
    for (kind, payload) in attributes(rest) {
        match kind {
            NAME => name = readable(payload),
            UID => uid = u32_at(payload, 0)?,
            _ => {}
        }
    }
    let kind = PortlessKind::Unix { kind: fixed[1], name };
    Some(Portless { key: key(fixed, netns)?, inode: u32_at(fixed, 4)?.into(), uid, kind })
}

/// An abstract name begins with a zero byte, which is shown as `@`, as are others in it (as in /proc/net/unix); a path may
/// end with one. Other control characters cannot be read.
fn readable(name: &[u8]) -> String {
    let (mark, name) = match name {
        [0, name @ ..] => ("@", name),
        path => ("", path.strip_suffix(b"\0").unwrap_or(path)),
    };
    let name = String::from_utf8_lossy(name);
    let readable = name.chars().map(|character| match character {
        '\0' => '@',
        character if character.is_control() => char::REPLACEMENT_CHARACTER,
        character => character,
    });
    cut(mark.chars().chain(readable).collect(), SOCKET_PATH_LIMIT)
}

fn key(fixed: &[u8], netns: u64) -> Option<SocketKey> {
    let [low, high] = [u32_at(fixed, 8)?, u32_at(fixed, 12)?];
    Some(SocketKey { netns, cookie: u64::from(high) << 32 | u64::from(low) })
}

/// Appends the rows of a list of raw sockets.
fn raw(path: &'static str, netns: u64, rows: &mut Vec<Portless>) -> Result<WalkReport, CaptureError> {
    let mut list = Vec::new();
    let limit = u64::try_from(LIST_LIMIT).unwrap_or(u64::MAX);
    match File::open(path).and_then(|file| file.take(limit).read_to_end(&mut list)) {
        Ok(_) => {}
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with('6') => {
            return Ok(WalkReport::default());
        }
        Err(error) => return Err(CaptureError::List { path, kind: error.kind() }),
    }
    let mut report = WalkReport { interrupted: u64::from(list.len() == LIST_LIMIT), ..WalkReport::default() };
    for line in String::from_utf8_lossy(&list).lines().skip(1) {
        match raw_socket(line, netns) {
            Some(_) if rows.len() >= WALK_ROWS_LIMIT => report.overflow += 1,
            Some(row) => rows.push(row),
            None => report.unreadable += 1,
        }
    }
    Ok(report)
}

/// `127: 0100007F:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1308947 2 00000000f2c6144b 0`: number,
/// local address and IP protocol, other address, state, queues, timers, retransmissions, uid, timeout, inode.
fn raw_socket(line: &str, netns: u64) -> Option<Portless> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, protocol) = fields.next()?.split_once(':')?;
    let (peer, _) = fields.next()?.split_once(':')?;
    let (family, local) = address(local)?;
    let (_, peer) = address(peer)?;
    let uid = fields.nth(4)?.parse().ok()?;
    let inode: u32 = fields.nth(1)?.parse().ok()?;
    let kind = PortlessKind::Raw {
        family,
        protocol: u16::from_str_radix(protocol, 16).ok()?.try_into().ok()?,
        local,
        peer: (!peer.is_unspecified()).then_some(peer),
    };
    let inode = u64::from(inode);
    Some(Portless { key: SocketKey { netns, cookie: BY_INODE | inode }, inode, uid, kind })
}

/// Each 4 bytes of an address are written as a number in the byte order of the machine.
fn address(digits: &str) -> Option<(Family, IpAddr)> {
    let mut bytes = [0; 16];
    let words = digits.as_bytes().chunks(8);
    for (word, place) in words.zip(bytes.chunks_mut(4)) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        place.copy_from_slice(&word.to_ne_bytes());
    }
    match digits.len() {
        8 => at::<4>(&bytes, 0).map(|bytes| (Family::Ipv4, Ipv4Addr::from(bytes).into())),
        32 => Some((Family::Ipv6, normalise(Ipv6Addr::from(bytes).into()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAW: &str =
        " 127: 0100007F:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000  1000        0 4711 2 0000f2c6 0";

    fn words(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[cfg(target_endian = "little")]
    #[test]
    fn raw_sockets_of_both_families_are_read() {
        let local = "127.0.0.1".parse().unwrap();
        let kind = PortlessKind::Raw { family: Family::Ipv4, protocol: 1, local, peer: None };
        let key = SocketKey { netns: 9, cookie: BY_INODE | 4711 };
        assert_eq!(raw_socket(RAW, 9), Some(Portless { key, inode: 4711, uid: 1000, kind }));
        let six = RAW
            .replace("0100007F:0001", "B80D0120000000000000000001000000:003A")
            .replace("00000000:0000 07", "B80D0120000000000000000002000000:0000 07");
        let [local, peer] = ["2001:db8::1", "2001:db8::2"].map(|address| address.parse().unwrap());
        let kind = PortlessKind::Raw { family: Family::Ipv6, protocol: 58, local, peer: Some(peer) };
        assert_eq!(raw_socket(&six, 9).map(|row| row.kind), Some(kind));
    }

    #[test]
    fn packet_sockets_tell_their_frames_and_interface() {
        // As Linux 6.18 sends it, but for the numbers.
        let mut body = words(&[0x0003_0311, 4711, 0x5566_7788, 0x1122_3344]);
        body.extend(words(&[0x0000_001c, 2, 0, 0, 0, 0, 0, 0x0005_0008, 1000]));
        let expected = Portless {
            key: SocketKey { netns: 9, cookie: 0x1122_3344_5566_7788 },
            inode: 4711,
            uid: 1000,
            kind: PortlessKind::Packet { ethertype: 3, interface: Some(2) },
        };
        if cfg!(target_endian = "little") {
            assert_eq!(packet(&body, 9), Some(expected));
        }
    }

    #[test]
    fn names_of_unix_sockets_are_made_readable() {
        for (name, expected) in [
            (&b"/run/x.sock\0"[..], "/run/x.sock"),
            (b"/run/x", "/run/x"),
            (b"\0abc", "@abc"),
            (b"", ""),
            (b"\0", "@"),
            (b"\0a\0b", "@a@b"),
            (b"/a\nb", "/a\u{fffd}b"),
        ] {
            assert_eq!(readable(name), expected);
        }
        assert!(readable(&[0xff; 400]).len() <= SOCKET_PATH_LIMIT);
    }

    proptest! {
        #[test]
        fn a_name_of_any_bytes_is_text_that_travels(name in proptest::collection::vec(any::<u8>(), 0..600)) {
            let readable = readable(&name);
            prop_assert!(readable.len() <= SOCKET_PATH_LIMIT);
            prop_assert!(!readable.contains(char::is_control));
            prop_assert_eq!(readable.starts_with('@'), matches!(name.first(), Some(0 | b'@')));
        }

        #[test]
        fn no_bytes_make_reading_fail(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), text in "[0-9A-F: ]{0,120}") {
            for family in [AF_PACKET, AF_UNIX] {
                if let Some(first) = bytes.first_mut() {
                    *first = family;
                }
                for row in [packet(&bytes, 9), unix(&bytes, 9)].into_iter().flatten() {
                    prop_assert_eq!(row.key.netns, 9);
                    let is_long = matches!(row.kind, PortlessKind::Unix { name, .. } if name.len() > SOCKET_PATH_LIMIT);
                    prop_assert!(!is_long);
                }
            }
            for line in [text.clone(), format!("1: {text}"), RAW.replace("0100007F", &text)] {
                prop_assert!(raw_socket(&line, 9).is_none_or(|row| row.key.cookie == BY_INODE | row.inode));
            }
        }
    }
}
