//! Who listens where: what tells a session that was accepted from one that was begun here.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use fleetsock_proto::{
    batch::Socket,
    socket::{Family, Protocol},
};

/// The listeners of a table, by where they listen.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    at: HashMap<Place, Vec<Bound>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Place {
    netns: u64,
    protocol: Protocol,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bound {
    address: IpAddr,
    family: Family,
}

impl Bound {
    /// Whether a session with this end of ours can have come through. Addresses are normalised, so that a session
    /// over IPv4 of a dual listener has an IPv4 address.
    fn takes(self, local: IpAddr) -> bool {
        let wildcard = self.address.is_unspecified() && self.address.is_ipv4() == local.is_ipv4();
        let dual = self.address.is_unspecified() && self.family == Family::Dual;
        self.address == local || wildcard || dual
    }
}

fn place(socket: &Socket) -> (Place, Bound) {
    (
        Place { netns: socket.key.netns, protocol: socket.protocol, port: socket.local.port() },
        Bound { address: socket.local.ip(), family: socket.family },
    )
}

impl Listeners {
    /// A listener opened. SO_REUSEPORT twins are counted each.
    pub(super) fn add(&mut self, socket: &Socket) {
        let (place, bound) = place(socket);
        self.at.entry(place).or_default().push(bound);
    }

    /// A listener closed.
    pub(super) fn remove(&mut self, socket: &Socket) {
        let (place, bound) = place(socket);
        let Some(there) = self.at.get_mut(&place) else { return };
        if let Some(index) = there.iter().position(|other| *other == bound) {
            there.swap_remove(index);
        }
        if there.is_empty() {
            self.at.remove(&place);
        }
    }

    /// Whether one of them can have accepted a session with this end of ours.
    pub(super) fn accept(&self, netns: u64, protocol: Protocol, local: SocketAddr) -> bool {
        let place = Place { netns, protocol, port: local.port() };
        self.at.get(&place).is_some_and(|there| there.iter().any(|bound| bound.takes(local.ip())))
    }
}
