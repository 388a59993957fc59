//! Sums: which group a listener or a session belongs to, and which groups come first. Decided here for every engine.

use std::{cmp::Reverse, collections::HashMap, net::IpAddr};

use fleetsock_proto::{
    host::HostId,
    listener::Listener,
    port::PortClass,
    service,
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

/// What sessions have in common that are counted together, as far as sums are by it.
#[derive(Debug, Clone)]
pub struct Alike {
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

impl Default for Alike {
    fn default() -> Alike {
        Alike {
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

    /// Whether they are by this dimension.
    pub fn are_by(&self, dimension: Dimension) -> bool {
        self.by.contains(&dimension)
    }

    /// The beginning of the hour in which is counted what opened then.
    pub fn hour_of(&self, opened_at: Timestamp) -> Timestamp {
        hour(opened_at.max(self.since))
    }

    /// Makes room for so many groups more, which are about to be counted.
    pub fn reserve(&mut self, groups: usize) {
        self.groups.reserve(groups.min(GROUPS_LIMIT.saturating_sub(self.groups.len())));
    }

    /// Counts a listener.
    pub fn add_listener(&mut self, listener: &Listener) -> Result<(), HistoryError> {
        let group = self.group(Alike {
            host: (listener.host.clone(), listener.host_id),
            opened_at: listener.opened_at,
            protocol: listener.protocol,
            class: listener.class(),
            port: Some(listener.port),
            process: Some(listener.owners.first().map(|owner| owner.process.clone()).unwrap_or_default()),
            peer: None,
        });
        self.counts(group)?.listeners += 1;
        Ok(())
    }

    /// Counts sessions by what they have in common: their number, and the bytes that they sent and received.
    pub fn add_sessions(&mut self, alike: Alike, [sessions, sent, received]: [u64; 3]) -> Result<(), HistoryError> {
        let group = self.group(alike);
        let counts = self.counts(group)?;
        counts.sessions = counts.sessions.saturating_add(sessions);
        counts.bytes_sent = counts.bytes_sent.saturating_add(sent);
        counts.bytes_received = counts.bytes_received.saturating_add(received);
        Ok(())
    }

    fn group(&self, alike: Alike) -> Group {
        let Alike { host, opened_at, protocol, class, port, process, peer } = alike;
        let is = |dimension| self.are_by(dimension);
        let others = || OTHERS.to_owned();
        Group {
            class: is(Dimension::Class).then_some(class),
            service: is(Dimension::Service).then(|| port.map_or_else(others, |port| service_name(port, protocol))),
            host: is(Dimension::Host).then_some(host),
            process: is(Dimension::Process).then(|| process.unwrap_or_else(others)),
            peer: peer.filter(|_| is(Dimension::Peer)),
            hour: is(Dimension::Hour).then(|| self.hour_of(opened_at)),
        }
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
        let mut sums: Vec<Option<Sum>> =
            self.groups.into_iter().map(|(group, counts)| Some(sum(group, counts))).collect();
        // They are large: what is put into order is where they are.
        let mut ranked: Vec<(Option<Rank>, usize)> =
            sums.iter().enumerate().map(|(at, sum)| (sum.as_ref().map(|sum| rank(sum, by_hour)), at)).collect();
        let group = |at: usize| sums.get(at).and_then(Option::as_ref).map(|sum| &sum.group);
        ranked
            .sort_unstable_by(|(one, at), (other, there)| one.cmp(other).then_with(|| group(*at).cmp(&group(*there))));
        ranked.into_iter().filter_map(|(_, at)| sums.get_mut(at)?.take()).collect()
    }
}

fn sum(group: Group, counts: Counts) -> Sum {
    let Counts { listeners, sessions, bytes_sent, bytes_received } = counts;
    Sum { group, listeners, sessions, bytes_sent, bytes_received }
}

type Rank = (Option<Reverse<Option<Timestamp>>>, Reverse<(u64, u64, u64)>);

fn rank(sum: &Sum, by_hour: bool) -> Rank {
    let size = (sum.sessions, sum.listeners, sum.bytes_sent.saturating_add(sum.bytes_received));
    (by_hour.then_some(Reverse(sum.group.hour)), Reverse(size))
}

fn service_name(port: u16, protocol: Protocol) -> String {
    match service::by_port(port, protocol) {
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
    use std::net::Ipv4Addr;

    use super::*;

    const COUNTS: [u64; 3] = [1, u64::MAX, 1];

    fn with(peer: u32) -> Alike {
        let peer = Some((Ipv4Addr::from_bits(peer).into(), String::new()));
        Alike { opened_at: Timestamp::from_micros(HOUR_US + 5), peer, ..Alike::default() }
    }

    #[test]
    fn more_groups_than_may_be_held_are_refused_with_words_and_a_known_one_still_counts() {
        let mut sums = Sums::new(&[Dimension::Peer], Timestamp::MIN);
        let limit = u32::try_from(GROUPS_LIMIT).unwrap();
        (0..limit).for_each(|peer| sums.add_sessions(with(peer), COUNTS).unwrap());
        sums.add_sessions(with(7), COUNTS).unwrap();
        let refused = sums.add_sessions(with(limit), COUNTS).unwrap_err().to_string();
        assert!(refused.contains("more than 100000 groups by peer; ask for fewer hosts"), "{refused}");
        let largest = sums.ordered().swap_remove(0);
        assert_eq!((largest.sessions, largest.bytes_sent, largest.bytes_received), (2, u64::MAX, 2));
    }

    #[test]
    fn what_opened_before_the_window_counts_in_its_first_hour() {
        let mut sums = Sums::new(&[Dimension::Hour], Timestamp::from_micros(5 * HOUR_US + 1));
        sums.add_sessions(with(1), COUNTS).unwrap();
        assert_eq!(sums.ordered()[0].group.hour, Some(Timestamp::from_micros(5 * HOUR_US)));
    }
}
