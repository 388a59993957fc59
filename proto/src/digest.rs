//! A digest of everything that is open on a host: two tables that have the same one are, but for an accident of one in 2^64,
//! equal, whatever the order of their rows.
//!
//! It is a sum, so that rows are added and taken away one by one and parts of a table are summed apart. What counts is which
//! socket is open: its key, its protocol, its role and its ends. How it is known, its state and its owners do not, because the
//! history knows them from more than the agent has at one moment. Nor does the direction of a session: an agent that starts
//! anew may judge it otherwise.

use std::net::SocketAddr;

use aws_lc_rs::digest::{Context, SHA256};

use crate::{
    InvalidMessage,
    address::{normalise, to_bytes},
    batch::{Role, Socket},
    listener::ListenAddress,
    socket::{Protocol, SocketKey},
    wire,
};

/// Sums of a digest. A difference of few sockets shows in few of them.
pub const DIGEST_PARTS: usize = 16;

/// What begins the hashed bytes of a listener and of a session.
const LISTENER: u8 = 1;
const SESSION: u8 = 2;

/// A digest of open sockets; that of none by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digest {
    items: u64,
    sums: [u64; DIGEST_PARTS],
}

/// How two digests differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// How many sockets are open on the host.
    pub told: u64,
    /// How many are in the history.
    pub stored: u64,
    /// In how many of [`DIGEST_PARTS`] parts they differ: no more sockets differ than are in these, and no fewer than they are.
    pub parts: usize,
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Difference { told, stored, parts } = self;
        write!(f, "the agent has {told} open sockets, the history {stored}, and {parts} of {DIGEST_PARTS} parts differ")
    }
}

/// The part of an open socket, and what it adds there.
#[derive(Debug, Clone, Copy)]
struct Mark {
    part: usize,
    sum: u64,
}

impl Mark {
    /// SHA-256 over the role, the key, the protocol, and the ends, each with its length and its port, big-endian. The first
    /// eight bytes are what is added; four bits of the ninth name the part.
    fn of(role: u8, key: SocketKey, protocol: Protocol, ends: &[(&[u8], u16)]) -> Mark {
        let mut hash = Context::new(&SHA256);
        hash.update(&[role]);
        hash.update(&key.netns.to_be_bytes());
        hash.update(&key.cookie.to_be_bytes());
        hash.update(&protocol.number().to_be_bytes());
        for (address, port) in ends {
            hash.update(&u64::try_from(address.len()).unwrap_or(u64::MAX).to_be_bytes());
            hash.update(address);
            hash.update(&port.to_be_bytes());
        }
        let hash = hash.finish();
        let (first, rest) = hash.as_ref().split_at(8);
        let sum = first.iter().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let part = rest.first().map_or(0, |byte| usize::from(*byte) % DIGEST_PARTS);
        Mark { part, sum }
    }

    fn of_socket(socket: &Socket) -> Mark {
        match socket.role {
            Role::Listener => {
                Mark::of_listener(socket.key, socket.protocol, &socket.listen_address(), socket.local.port())
            }
            Role::Session { peer, .. } => Mark::of_session(socket.key, socket.protocol, socket.local, peer),
        }
    }

    fn of_listener(key: SocketKey, protocol: Protocol, address: &ListenAddress, port: u16) -> Mark {
        match address {
            ListenAddress::Ip(address) => Mark::of(LISTENER, key, protocol, &[(&to_bytes(normalise(*address)), port)]),
            ListenAddress::Path(path) => Mark::of(LISTENER, key, protocol, &[(path.as_bytes(), port)]),
        }
    }

    fn of_session(key: SocketKey, protocol: Protocol, local: SocketAddr, peer: SocketAddr) -> Mark {
        let (here, there) = (to_bytes(normalise(local.ip())), to_bytes(normalise(peer.ip())));
        Mark::of(SESSION, key, protocol, &[(&here, local.port()), (&there, peer.port())])
    }
}

impl Digest {
    /// Adds an open socket.
    pub fn add(&mut self, socket: &Socket) {
        self.put(Mark::of_socket(socket));
    }

    /// Adds a listener.
    pub fn add_listener(&mut self, key: SocketKey, protocol: Protocol, address: &ListenAddress, port: u16) {
        self.put(Mark::of_listener(key, protocol, address, port));
    }

    /// Adds a session.
    pub fn add_session(&mut self, key: SocketKey, protocol: Protocol, local: SocketAddr, peer: SocketAddr) {
        self.put(Mark::of_session(key, protocol, local, peer));
    }

    /// Adds a row that cannot be read: it counts and is in no part.
    pub fn add_unreadable(&mut self) {
        self.items = self.items.wrapping_add(1);
    }

    /// Takes away a socket that was added.
    pub fn remove(&mut self, socket: &Socket) {
        let Mark { part, sum } = Mark::of_socket(socket);
        self.items = self.items.wrapping_sub(1);
        self.sums[part] = self.sums[part].wrapping_sub(sum);
    }

    fn put(&mut self, Mark { part, sum }: Mark) {
        self.items = self.items.wrapping_add(1);
        self.sums[part] = self.sums[part].wrapping_add(sum);
    }

    /// How many sockets it is of.
    pub fn items(&self) -> u64 {
        self.items
    }

    /// How this one, which an agent told, differs from that of what is stored.
    pub fn difference(&self, stored: &Digest) -> Option<Difference> {
        let parts = self.sums.iter().zip(&stored.sums).filter(|(told, stored)| told != stored).count();
        (self != stored).then_some(Difference { told: self.items, stored: stored.items, parts })
    }
}

impl<'a> FromIterator<&'a Socket> for Digest {
    fn from_iter<T: IntoIterator<Item = &'a Socket>>(sockets: T) -> Digest {
        let mut digest = Digest::default();
        sockets.into_iter().for_each(|socket| digest.add(socket));
        digest
    }
}

impl From<&Digest> for wire::Digest {
    fn from(digest: &Digest) -> wire::Digest {
        wire::Digest { items: digest.items, sums: digest.sums.to_vec() }
    }
}

impl TryFrom<wire::Digest> for Digest {
    type Error = InvalidMessage;

    fn try_from(digest: wire::Digest) -> Result<Digest, InvalidMessage> {
        let problem = || InvalidMessage::new("Digest.sums", format!("{} are not {DIGEST_PARTS}", digest.sums.len()));
        let sums = digest.sums.as_slice().try_into().map_err(|_| problem())?;
        Ok(Digest { items: digest.items, sums })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        socket::{Direction, Family, Known, OwnerKnown, SocketState},
        time::Timestamp,
    };

    fn socket(cookie: u64, port: u16, peer: Option<u16>) -> Socket {
        let end = |port| SocketAddr::new([10, 0, 0, 1].into(), port);
        let direction = Direction::Out;
        Socket {
            key: SocketKey { netns: 4_026_531_840, cookie },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::Established,
            local: end(port),
            path: None,
            role: peer.map_or(Role::Listener, |peer| Role::Session { direction, peer: end(peer) }),
            opened_at: Timestamp::from_micros(1),
            opened_known: Known::Event,
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        }
    }

    fn digest(socket: &Socket) -> Digest {
        [socket].into_iter().collect()
    }

    #[test]
    fn the_definition_is_the_one_that_agents_of_all_versions_have() {
        let sums = |socket: &Socket| {
            let sums = wire::Digest::from(&digest(socket)).sums;
            let part = sums.iter().position(|sum| *sum != 0).unwrap();
            (part, sums[part])
        };
        let path = Some(Arc::from("/run/x.sock"));
        let unix = Socket { protocol: Protocol::Unix, path, ..socket(3, 1, None) };
        // Computed with another program.
        let expected = [(11, 0xba1e_4f7d_52c4_c6e6), (7, 0x6e1f_ea99_43d5_bfc0), (15, 0xeca5_09ee_0302_a3be)];
        assert_eq!([&socket(1, 22, None), &socket(2, 22, Some(40_000)), &unix].map(sums), expected);
    }

    #[test]
    fn which_socket_is_open_counts_and_what_is_known_of_it_does_not() {
        let one = socket(1, 22, Some(40_000));
        let same = Socket {
            state: SocketState::CloseWait,
            family: Family::Dual,
            opened_at: Timestamp::from_micros(9),
            opened_known: Known::FirstSeen,
            owner_known: OwnerKnown::Denied,
            bytes_sent: 7,
            role: Role::Session { direction: Direction::In, peer: SocketAddr::new([10, 0, 0, 1].into(), 40_000) },
            local: "[::ffff:10.0.0.1]:22".parse().unwrap(),
            ..one.clone()
        };
        assert_eq!(digest(&one), digest(&same));
        for other in [
            socket(2, 22, Some(40_000)),
            socket(1, 23, Some(40_000)),
            socket(1, 22, Some(40_001)),
            socket(1, 22, None),
            Socket { protocol: Protocol::Udp, ..one.clone() },
            Socket { key: SocketKey { netns: 1, ..one.key }, ..one.clone() },
            Socket { local: "10.0.0.2:22".parse().unwrap(), ..one.clone() },
        ] {
            let difference = digest(&one).difference(&digest(&other)).unwrap();
            assert!((difference.told, difference.stored) == (1, 1) && difference.parts >= 1, "{other:?}");
        }
    }

    #[test]
    fn a_difference_says_how_many_there_are_and_in_how_many_parts_they_differ() {
        let all: Vec<Socket> = (0..500).map(|cookie| socket(cookie, 22, None)).collect();
        let (told, stored): (Digest, Digest) = (all.iter().collect(), all[1..].iter().collect());
        let difference = told.difference(&stored).unwrap();
        assert_eq!(difference, Difference { told: 500, stored: 499, parts: 1 });
        let text = "the agent has 500 open sockets, the history 499, and 1 of 16 parts differ";
        assert_eq!(difference.to_string(), text);
    }

    #[test]
    fn a_digest_with_another_number_of_sums_is_refused() {
        for parts in [0, DIGEST_PARTS - 1, DIGEST_PARTS + 1] {
            let error = Digest::try_from(wire::Digest { items: 1, sums: vec![7; parts] }).unwrap_err();
            assert_eq!(error.to_string(), format!("Digest.sums: {parts} are not 16"));
        }
    }

    proptest! {
        #[test]
        fn the_digest_of_what_is_left_is_that_of_what_is_open_whatever_the_order(
            steps in vec((0..40_u64, 1..3_u16, any::<bool>()), 0..200),
        ) {
            let (mut open, mut followed) = (BTreeMap::new(), Digest::default());
            for (cookie, port, opens) in steps {
                if let Some(before) = open.remove(&cookie) {
                    followed.remove(&before);
                }
                if opens {
                    let socket = socket(cookie, port, cookie.is_multiple_of(2).then_some(port));
                    followed.add(&socket);
                    open.insert(cookie, socket);
                }
            }
            let whole: Digest = open.values().rev().collect();
            prop_assert_eq!(followed, whole);
            prop_assert_eq!(Digest::try_from(wire::Digest::from(&whole)), Ok(whole));
            // Without one of them it is another one.
            if let Some((_, socket)) = open.pop_first() {
                followed.remove(&socket);
                prop_assert!(followed.difference(&whole).is_some());
            }
        }
    }
}
