//! Sums: which group a listener or a session belongs to, and which groups come first. Decided here for every engine.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use fleetsock_proto::{
    host::HostId,
    listener::Listener,
    owner::Owner,
    port::PortClass,
    service::{self, Service},
    session::Session,
    socket::Protocol,
    summary::{Dimension, Group, Sum},
    time::Timestamp,
};

use super::HistoryError;

/// Most groups of an answer while it is made, about 300 bytes each.
pub const GROUPS_LIMIT: usize = 100_000;

const HOUR_US: i64 = 3_600_000_000;

/// Sums on their way.
#[derive(Debug)]
pub struct Sums {
    by: Vec<Dimension>,
    since: Timestamp,
    groups: HashMap<Group, Counts>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    listeners: u64,
    sessions: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

/// What a listener and a session have in common.
struct Socket<'a> {
    class: PortClass,
    service: Option<Service>,
    port: u16,
    protocol: Protocol,
    owners: &'a [Owner],
    opened_at: Timestamp,
}

/// What sessions of the past have in common of which only sums are kept.
#[derive(Debug, Clone)]
pub struct Past {
    /// Name and id of the host.
    pub host: (String, HostId),
    /// Some moment of the hour in which they opened.
    pub opened_at: Timestamp,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Class of the service's port.
    pub class: PortClass,
    /// The service's port; absent when it is not told.
    pub port: Option<u16>,
    /// Name of the process, empty when none is known; absent when it is not told.
    pub process: Option<String>,
    /// The peer, and the name of the host that has its address; absent when it is not told.
    pub peer: Option<(IpAddr, String)>,
}

impl Default for Past {
    fn default() -> Past {
        Past {
            host: (String::new(), HostId::from_array([0; 16])),
            opened_at: Timestamp::MIN,
            protocol: Protocol::Tcp,
            class: PortClass::WellKnown,
            port: None,
            process: None,
            peer: None,
        }
    }
}

/// The group of what is not told apart any more.
pub const OTHERS: &str = "(others)";

impl Sums {
    /// No sums yet, by these dimensions. What opened before `since` counts in its hour.
    pub fn new(by: &[Dimension], since: Timestamp) -> Sums {
        Sums { by: by.to_vec(), since, groups: HashMap::new() }
    }

    /// Counts a listener.
    pub fn add_listener(&mut self, listener: &Listener) -> Result<(), HistoryError> {
        let socket = Socket {
            class: listener.class(),
            service: listener.service(),
            port: listener.port,
            protocol: listener.protocol,
            owners: &listener.owners,
            opened_at: listener.opened_at,
        };
        let group = self.group(&socket, || (listener.host.clone(), listener.host_id), || None);
        self.counts(group)?.listeners += 1;
        Ok(())
    }

    /// Counts a session.
    pub fn add_session(&mut self, session: &Session) -> Result<(), HistoryError> {
        let socket = Socket {
            class: session.class(),
            service: session.service(),
            port: session.service_port(),
            protocol: session.protocol,
            owners: &session.owners,
            opened_at: session.opened_at,
        };
        let peer = || Some((session.peer.ip(), session.peer_host.clone()));
        let group = self.group(&socket, || (session.host.clone(), session.host_id), peer);
        let counts = self.counts(group)?;
        counts.sessions += 1;
        counts.bytes_sent = counts.bytes_sent.saturating_add(session.bytes_sent);
        counts.bytes_received = counts.bytes_received.saturating_add(session.bytes_received);
        Ok(())
    }

    /// Counts sessions of which only sums are kept: their number, and the bytes that they sent and received.
    pub fn add_past(&mut self, past: Past, [sessions, sent, received]: [u64; 3]) -> Result<(), HistoryError> {
        let mut group = Group::default();
        for dimension in &self.by {
            match dimension {
                Dimension::Class => group.class = Some(past.class),
                Dimension::Service => {
                    let name =
                        past.port.map(|port| service_name(service::by_port(port, past.protocol), port, past.protocol));
                    group.service = Some(name.unwrap_or_else(|| OTHERS.to_owned()));
                }
                Dimension::Host => group.host = Some(past.host.clone()),
                Dimension::Process => group.process = Some(past.process.clone().unwrap_or_else(|| OTHERS.to_owned())),
                Dimension::Peer => group.peer.clone_from(&past.peer),
                Dimension::Hour => group.hour = Some(hour(past.opened_at.max(self.since))),
            }
        }
        let counts = self.counts(group)?;
        counts.sessions = counts.sessions.saturating_add(sessions);
        counts.bytes_sent = counts.bytes_sent.saturating_add(sent);
        counts.bytes_received = counts.bytes_received.saturating_add(received);
        Ok(())
    }

    fn group(
        &self,
        socket: &Socket<'_>,
        host: impl Fn() -> (String, HostId),
        peer: impl Fn() -> Option<(IpAddr, String)>,
    ) -> Group {
        let mut group = Group::default();
        for dimension in &self.by {
            match dimension {
                Dimension::Class => group.class = Some(socket.class),
                Dimension::Service => group.service = Some(service_name(socket.service, socket.port, socket.protocol)),
                Dimension::Host => group.host = Some(host()),
                Dimension::Process => {
                    let primary = socket.owners.first();
                    group.process = Some(primary.map(|owner| owner.process.clone()).unwrap_or_default());
                }
                Dimension::Peer => group.peer = peer(),
                Dimension::Hour => group.hour = Some(hour(socket.opened_at.max(self.since))),
            }
        }
        group
    }

    fn counts(&mut self, group: Group) -> Result<&mut Counts, HistoryError> {
        if self.groups.len() >= GROUPS_LIMIT && !self.groups.contains_key(&group) {
            let by: Vec<&str> = self.by.iter().map(|dimension| dimension.as_str()).collect();
            return Err(HistoryError::TooMuch(format!(
                "there are more than {GROUPS_LIMIT} groups by {}; ask for fewer hosts, a shorter time or fewer dimensions",
                by.join(",")
            )));
        }
        Ok(self.groups.entry(group).or_default())
    }

    /// The sums: most sessions first, then most listeners, then most bytes. By the hour first of all: the latest hour first.
    pub fn ordered(self) -> Vec<Sum> {
        let by_hour = self.by.first() == Some(&Dimension::Hour);
        let mut sums: Vec<Sum> = self.groups.into_iter().map(|(group, counts)| sum(group, counts)).collect();
        sums.sort_by(|one, other| rank(one, by_hour).cmp(&rank(other, by_hour)));
        sums
    }
}

fn sum(group: Group, counts: Counts) -> Sum {
    let Counts { listeners, sessions, bytes_sent, bytes_received } = counts;
    Sum { group, listeners, sessions, bytes_sent, bytes_received }
}

type Rank<'a> = (Option<Reverse<Option<Timestamp>>>, Reverse<(u64, u64, u64)>, &'a Group);

fn rank(sum: &Sum, by_hour: bool) -> Rank<'_> {
    let size = (sum.sessions, sum.listeners, sum.bytes_sent.saturating_add(sum.bytes_received));
    (by_hour.then_some(Reverse(sum.group.hour)), Reverse(size), &sum.group)
}

fn service_name(service: Option<Service>, port: u16, protocol: Protocol) -> String {
    match service {
        Some(service) => service.name.to_owned(),
        None => format!("{port}/{protocol}"),
    }
}

/// The beginning of the hour of a moment, UTC.
fn hour(at: Timestamp) -> Timestamp {
    Timestamp::from_micros(at.as_micros().div_euclid(HOUR_US) * HOUR_US)
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{
        host::HostState,
        socket::{Direction, Family, Known, OwnerKnown, SocketState},
    };

    use super::*;

    fn session(peer: u32) -> Session {
        Session {
            host_id: HostId::from_array([1; 16]),
            host: "web1".to_owned(),
            host_state: HostState::Online,
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            direction: Direction::In,
            local: "10.0.0.1:443".parse().unwrap(),
            peer: std::net::SocketAddr::from((std::net::Ipv4Addr::from(peer), 4000)),
            peer_host: String::new(),
            state: SocketState::Established,
            netns: 1,
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            opened_at: Timestamp::from_micros(HOUR_US + 5),
            opened_known: Known::Event,
            closed: None,
            bytes_sent: u64::MAX,
            bytes_received: 1,
            other_end: None,
        }
    }

    #[test]
    fn more_groups_than_may_be_held_are_refused_with_words_and_a_known_one_still_counts() {
        let mut sums = Sums::new(&[Dimension::Peer], Timestamp::MIN);
        let limit = u32::try_from(GROUPS_LIMIT).unwrap();
        (0..limit).for_each(|peer| sums.add_session(&session(peer)).unwrap());
        sums.add_session(&session(7)).unwrap();
        let refused = sums.add_session(&session(limit)).unwrap_err().to_string();
        assert!(refused.contains("more than 100000 groups by peer; ask for fewer hosts"), "{refused}");
        let largest = sums.ordered().swap_remove(0);
        assert_eq!((largest.sessions, largest.bytes_sent, largest.bytes_received), (2, u64::MAX, 2));
    }

    #[test]
    fn what_opened_before_the_window_counts_in_its_first_hour() {
        let mut sums = Sums::new(&[Dimension::Hour], Timestamp::from_micros(5 * HOUR_US + 1));
        sums.add_session(&session(1)).unwrap();
        assert_eq!(sums.ordered()[0].group.hour, Some(Timestamp::from_micros(5 * HOUR_US)));
    }
}
