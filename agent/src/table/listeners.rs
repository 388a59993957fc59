//! Who listens where: what tells a session that was accepted from one that was begun here, and by whom.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use fleetsock_proto::{
    batch::Socket,
    owner::Owner,
    socket::{Family, OwnerKnown, Protocol},
};
use foldhash::HashMap;

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

#[derive(Debug, Clone)]
struct Bound {
    cookie: u64,
    address: IpAddr,
    family: Family,
    /// Those that were seen holding it.
    owners: Vec<Arc<Owner>>,
}

/// How well a listener fits to a session. Where several would take it, the kernel gives it to the closest
/// (compute_score of net/ipv4/inet_hashtables.c).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fit {
    /// It listens on that address.
    Address,
    /// It listens on all addresses of the family.
    Wildcard,
    /// It listens on all addresses of both families.
    Dual,
}

impl Bound {
    fn new(socket: &Socket) -> Bound {
        let owners = if socket.owner_known == OwnerKnown::Exact { socket.owners.clone() } else { Vec::new() };
        Bound { cookie: socket.key.cookie, address: socket.local.ip(), family: socket.family, owners }
    }

    /// Whether a session with this end of ours can have come through, and how well it fits. Addresses are normalised, so
    /// that a session over IPv4 of a dual listener has an IPv4 address.
    fn fit(&self, local: IpAddr) -> Option<Fit> {
        if self.address == local {
            Some(Fit::Address)
        } else if !self.address.is_unspecified() {
            None
        } else if self.address.is_ipv4() == local.is_ipv4() {
            Some(Fit::Wildcard)
        } else {
            (self.family == Family::Dual).then_some(Fit::Dual)
        }
    }
}

fn place(socket: &Socket) -> Place {
    Place { netns: socket.key.netns, protocol: socket.protocol, port: socket.local.port() }
}

impl Listeners {
    /// A listener opened. SO_REUSEPORT twins are counted each.
    pub(super) fn add(&mut self, socket: &Socket) {
        self.at.entry(place(socket)).or_default().push(Bound::new(socket));
    }

    /// It may have other owners.
    pub(super) fn update(&mut self, socket: &Socket) {
        let there = self.at.get_mut(&place(socket)).into_iter().flatten();
        for bound in there.filter(|bound| bound.cookie == socket.key.cookie) {
            *bound = Bound::new(socket);
        }
    }

    /// A listener closed.
    pub(super) fn remove(&mut self, socket: &Socket) {
        let place = place(socket);
        let Some(there) = self.at.get_mut(&place) else { return };
        if let Some(index) = there.iter().position(|other| other.cookie == socket.key.cookie) {
            there.swap_remove(index);
        }
        if there.is_empty() {
            self.at.remove(&place);
        }
    }

    /// Those that can have accepted a session with this end of ours.
    fn takers(&self, netns: u64, protocol: Protocol, local: SocketAddr) -> impl Iterator<Item = (Fit, &Bound)> {
        let there = self.at.get(&Place { netns, protocol, port: local.port() });
        there.into_iter().flatten().filter_map(move |bound| Some((bound.fit(local.ip())?, bound)))
    }

    /// Whether one of them can have accepted a session with this end of ours.
    pub(super) fn accept(&self, netns: u64, protocol: Protocol, local: SocketAddr) -> bool {
        self.takers(netns, protocol, local).next().is_some()
    }

    /// The owners of the one that accepted a session with this end of ours, when they are known and it cannot have been
    /// another one. Twins (SO_REUSEPORT) of the same owners count as one.
    pub(super) fn owners(&self, netns: u64, protocol: Protocol, local: SocketAddr) -> Option<&[Arc<Owner>]> {
        let takers = || self.takers(netns, protocol, local);
        let best = takers().map(|(fit, _)| fit).min()?;
        let mut owners = takers().filter(|(fit, _)| *fit == best).map(|(_, bound)| bound.owners.as_slice());
        let first = owners.next().filter(|owners| !owners.is_empty())?;
        owners.all(|others| others == first).then_some(first)
    }
}
