//! Filters, held against rows by the plainest means.

use std::net::IpAddr;

use fleetsock_proto::{
    listener::Listener,
    owner::Owner,
    port::{PortClass, PortRange},
    question::{SessionQuestion, SessionTime, SocketFilter},
    session::Session,
    socket::{Direction, Protocol, SocketState},
};
use ipnet::IpNet;
use proptest::prelude::*;

use super::CLOCKS;

/// What is chosen of all sockets; of what is none, any.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    host: Option<usize>,
    peer: Option<IpNet>,
    direction: Option<Direction>,
    pub(super) state: Option<SocketState>,
    ports: Option<(u16, u16)>,
    class: Option<PortClass>,
    protocol: Option<Protocol>,
    process: Option<&'static str>,
    /// Most rows of a page.
    pub(super) limit: usize,
}

/// Networks with some of the addresses that there are, and with none.
const NETWORKS: [&str; 8] = [
    "10.0.0.9/32",
    "10.0.0.0/24",
    "10.1.0.0/16",
    "10.1.0.2/32",
    "127.0.0.1/32",
    "2001:db8::9/128",
    "2001:db8::/48",
    "192.0.2.1/32",
];

pub(super) fn any_choice() -> impl Strategy<Value = Chosen> {
    let port = || prop::sample::select(vec![0, 1, 3, 53, 443, 4000, 60_000, u16::MAX]);
    (
        (
            prop::option::weighted(0.4, 0..CLOCKS.len()),
            prop::option::weighted(0.5, prop::sample::select(NETWORKS.to_vec())),
            prop::option::weighted(0.2, prop::sample::select(Direction::ALL.to_vec())),
            prop::option::weighted(0.2, prop::sample::select(vec![SocketState::Established, SocketState::CloseWait])),
        ),
        (
            prop::option::weighted(0.2, (port(), port())),
            prop::option::weighted(0.2, prop::sample::select(vec![PortClass::WellKnown, PortClass::Registered])),
            prop::option::weighted(0.2, prop::sample::select(vec![Protocol::Tcp, Protocol::Udp])),
            prop::option::weighted(0.2, prop::sample::select(vec!["daemon", "h*", "closer", "nobody"])),
        ),
        1..9_usize,
    )
        .prop_map(|((host, peer, direction, state), (ports, class, protocol, process), limit)| Chosen {
            host,
            peer: peer.map(|network| network.parse().unwrap()),
            direction,
            state,
            ports: ports.map(|(one, other)| (one.min(other), one.max(other))),
            class,
            protocol,
            process,
            limit,
        })
}

impl Chosen {
    pub(super) const fn all() -> Chosen {
        Chosen {
            host: None,
            peer: None,
            direction: None,
            state: None,
            ports: None,
            class: None,
            protocol: None,
            process: None,
            limit: usize::MAX,
        }
    }

    pub(super) fn filter(&self) -> SocketFilter {
        let mut filter = SocketFilter {
            classes: self.class.into_iter().collect(),
            ports: self.ports.map(|(first, last)| PortRange::new(first, last).unwrap()).into_iter().collect(),
            protocols: self.protocol.into_iter().collect(),
            processes: self.process.map(str::to_owned).into_iter().collect(),
            ..SocketFilter::default()
        };
        filter.hosts.globs = self.host.map(|host| format!("host{host}")).into_iter().collect();
        filter
    }

    pub(super) fn sessions(&self, time: SessionTime) -> SessionQuestion {
        SessionQuestion {
            filter: self.filter(),
            directions: self.direction.into_iter().collect(),
            states: self.state.into_iter().collect(),
            peers: self.peer.into_iter().collect(),
            time,
            ..SessionQuestion::default()
        }
    }

    pub(super) fn has_session(&self, one: &Session) -> bool {
        self.has(&one.host, one.protocol, one.service_port(), &one.owners)
            && self.peer.is_none_or(|peer| peer.contains(&IpAddr::to_canonical(&one.peer.ip())))
            && self.direction.is_none_or(|direction| direction == one.direction)
            && self.state.is_none_or(|state| state == one.state)
    }

    pub(super) fn has_listener(&self, one: &Listener) -> bool {
        self.has(&one.host, one.protocol, one.port, &one.owners)
    }

    fn has(&self, host: &str, protocol: Protocol, port: u16, owners: &[Owner]) -> bool {
        let is_called = |glob: &str, name: &str| match glob.strip_suffix('*') {
            Some(begin) => name.starts_with(begin),
            None => name == glob,
        };
        self.host.is_none_or(|number| host == format!("host{number}"))
            && self.protocol.is_none_or(|its| its == protocol)
            && self.ports.is_none_or(|(first, last)| first <= port && port <= last)
            && self.class.is_none_or(|class| class == PortClass::of(protocol, port))
            && self.process.is_none_or(|glob| owners.iter().any(|owner| is_called(glob, &owner.process)))
    }
}
