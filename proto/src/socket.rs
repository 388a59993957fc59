//! The words for a socket: protocol, family, state, direction, and how its facts are known.

use crate::word::words;

words! {
    /// Transport protocol, by its IANA protocol number.
    pub enum Protocol is "protocol", or InvalidProtocol {
        /// RFC 9293.
        Tcp = 6 "tcp",
        /// RFC 768.
        Udp = 17 "udp",
        /// RFC 4340.
        Dccp = 33 "dccp",
        /// RFC 9260.
        Sctp = 132 "sctp",
        /// A raw socket (raw(7)), which gets every datagram of an IP protocol. Where others have a port it has that
        /// protocol's number; 255 only sends.
        Raw = 255 "raw",
        /// A packet socket (packet(7)), which gets the frames of an interface. Where others have a port it has the
        /// EtherType; 3 is every frame (ETH_P_ALL), 0 none yet.
        Packet = 256 "packet",
        /// A UNIX socket (unix(7)), which processes of the host connect to. Where others have an address it has its path,
        /// and where they have a port its type: 1 stream, 5 seqpacket.
        Unix = 257 "unix",
    }
}

impl Protocol {
    /// Whether its sockets have ports.
    pub const fn has_ports(self) -> bool {
        !matches!(self, Protocol::Raw | Protocol::Packet | Protocol::Unix)
    }
}

words! {
    /// The address family of a socket as the kernel has it. Addresses are normalised; the family is kept.
    pub enum Family is "family", or InvalidFamily {
        /// AF_UNIX.
        Unix = 1 "unix",
        /// AF_INET.
        Ipv4 = 4 "ipv4",
        /// AF_INET6.
        Ipv6 = 6 "ipv6",
        /// A listener on `[::]` that IPv4 reaches too, because IPV6_V6ONLY is off (RFC 3493 section 5.3).
        Dual = 10 "dual",
        /// AF_PACKET: frames, of whatever is in them.
        Packet = 17 "packet",
    }
}

words! {
    /// RFC 9293 section 3.3.2; the numbers are the kernel's (include/net/tcp_states.h).
    pub enum SocketState is "socket state", or InvalidSocketState {
        /// Data can flow; also a connected UDP socket.
        Established = 1 "established",
        /// Connecting.
        SynSent = 2 "syn-sent",
        /// A connection request was answered.
        SynReceived = 3 "syn-received" | "syn-recv",
        /// Closed here, not yet acknowledged.
        FinWait1 = 4 "fin-wait-1",
        /// Closed here, the peer not yet.
        FinWait2 = 5 "fin-wait-2",
        /// Closed on both ends, kept for stray segments.
        TimeWait = 6 "time-wait",
        /// A UDP socket without a peer.
        Unconnected = 7 "unconnected" | "unconn",
        /// The peer closed; the owner did not yet.
        CloseWait = 8 "close-wait",
        /// Closed after the peer, not yet acknowledged.
        LastAck = 9 "last-ack",
        /// Waits for connections.
        Listen = 10 "listen",
        /// Both ends closed at once.
        Closing = 11 "closing",
    }
}

words! {
    /// Which end of a session began it.
    pub enum Direction is "direction", or InvalidDirection {
        /// The peer connected to a listener of the host.
        In = 1 "in",
        /// The host connected to the peer.
        Out = 2 "out",
    }
}

words! {
    /// How an end of an interval is known.
    pub enum Known is "kind of knowledge", or InvalidKnown {
        /// The kernel said so at that moment.
        Event = 1 "event",
        /// After one walk and before the next.
        BetweenWalks = 2 "between-walks",
        /// Open when observation began: at that time or earlier.
        FirstSeen = 3 "first-seen",
        /// After it was last seen, while nobody looked.
        Lost = 4 "lost",
    }
}

words! {
    /// How the owner of a socket is known.
    pub enum OwnerKnown is "kind of owner knowledge", or InvalidOwnerKnown {
        /// A process was seen holding it.
        Exact = 1 "exact",
        /// The process that closed it.
        Closer = 2 "closer",
        /// The process of the listener that accepted it.
        Listener = 3 "listener",
        /// Nobody was found before it was gone.
        Unknown = 4 "unknown",
        /// The agent may not look into other users' processes.
        Denied = 5 "denied",
        /// No process holds it: not yet accepted, orphaned, or the kernel's own.
        None = 6 "none",
    }
}

/// What identifies a socket for as long as its host is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SocketKey {
    /// Inode number of its network namespace (ioctl_ns(2)).
    pub netns: u64,
    /// sk_cookie, never reused within a boot (include/linux/sock_diag.h); or a [stand-in](SocketKey::STAND_IN).
    pub cookie: u64,
}

impl SocketKey {
    /// Set in what stands for the cookie of a connection whose cookie the kernel did not tell. The kernel counts cookies
    /// from 1 (net/core/sock_diag.c, include/linux/cookie.h), so that none of them has it.
    pub const STAND_IN: u64 = 1 << 63;

    /// Whether the cookie is a stand-in: then the same socket may be known by another key as well.
    pub const fn is_stand_in(self) -> bool {
        self.cookie & SocketKey::STAND_IN != 0
    }
}
