//! Sessions in sum, by the hour in which they opened.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use fleetsock_proto::{session::Session, socket::Direction, time::Timestamp};

use crate::record::entry::{Entry, Happened, Traffic};

const HOUR_US: i64 = 3_600_000_000;
/// Peers of an hour that are told apart.
const PEERS_LIMIT: usize = 10_000;
/// Services of an hour that are told apart; what comes later counts as other.
const SERVICES_LIMIT: usize = 1_000;
/// Services that are named.
const SERVICES_TOLD: usize = 3;

/// The hours of a window.
pub(super) struct Hours {
    since: Timestamp,
    until: Timestamp,
    hours: BTreeMap<i64, Hour>,
}

#[derive(Default)]
struct Hour {
    traffic: Traffic,
    peers: HashSet<IpAddr>,
    services: HashMap<String, u64>,
}

impl Hours {
    pub(super) fn new(since: Timestamp, until: Timestamp) -> Hours {
        Hours { since, until, hours: BTreeMap::new() }
    }

    /// Counts a session. One that was open when the window began counts where it begins.
    pub(super) fn add(&mut self, session: &Session) {
        let opened_at = session.opened_at.max(self.since);
        let hour = self.hours.entry(opened_at.as_micros().div_euclid(HOUR_US)).or_default();
        match session.direction {
            Direction::In => hour.traffic.inward += 1,
            Direction::Out => hour.traffic.outward += 1,
        }
        hour.traffic.bytes_sent = hour.traffic.bytes_sent.saturating_add(session.bytes_sent);
        hour.traffic.bytes_received = hour.traffic.bytes_received.saturating_add(session.bytes_received);
        if hour.peers.len() < PEERS_LIMIT {
            hour.peers.insert(session.peer.ip());
        } else if !hour.peers.contains(&session.peer.ip()) {
            hour.traffic.peers_at_least = true;
        }
        let named = |service: fleetsock_proto::service::Service| service.name.to_owned();
        let name = session.service().map_or_else(|| format!("{}/{}", session.service_port(), session.protocol), named);
        let is_full = hour.services.len() >= SERVICES_LIMIT && !hour.services.contains_key(&name);
        *hour.services.entry(if is_full { "other".to_owned() } else { name }).or_default() += 1;
    }

    /// An entry for each hour in which sessions opened.
    pub(super) fn entries(self) -> Vec<Entry> {
        let (since, until) = (self.since, self.until);
        self.hours
            .into_iter()
            .map(|(number, hour)| {
                let begin = Timestamp::from_micros(number.saturating_mul(HOUR_US)).max(since);
                let end = Timestamp::from_micros((number + 1).saturating_mul(HOUR_US)).min(until).max(begin);
                Entry { at: begin, what: Happened::Sessions(end, hour.sum()) }
            })
            .collect()
    }
}

impl Hour {
    fn sum(self) -> Traffic {
        let mut services: Vec<(String, u64)> = self.services.into_iter().collect();
        services.sort_by(|(name, count), (other, others)| others.cmp(count).then_with(|| name.cmp(other)));
        services.truncate(SERVICES_TOLD);
        Traffic { peers: self.peers.len() as u64, services, ..self.traffic }
    }
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{
        host::{HostId, HostState},
        socket::{Family, Known, OwnerKnown, Protocol, SocketState},
    };
    use proptest::prelude::*;

    use super::*;

    fn session(minute: i64, direction: Direction, peer: u8, port: u16) -> Session {
        let here = std::net::SocketAddr::from(([10, 0, 0, 1], port));
        let there = std::net::SocketAddr::from(([10, 0, 1, peer], port));
        Session {
            host_id: HostId::from_array([1; 16]),
            host: "web1".to_owned(),
            host_state: HostState::Online,
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            direction,
            local: here,
            peer: there,
            peer_host: String::new(),
            state: SocketState::Established,
            netns: 1,
            netns_name: String::new(),
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            opened_at: minutes(minute),
            opened_known: Known::Event,
            closed: None,
            bytes_sent: 3,
            bytes_received: 5,
            other_end: None,
        }
    }

    fn minutes(count: i64) -> Timestamp {
        Timestamp::from_micros(count * 60_000_000)
    }

    proptest! {
        #[test]
        fn every_session_counts_once_in_the_hour_in_which_it_opened_or_where_the_window_begins(
            sessions in prop::collection::vec((0..600_i64, any::<bool>(), 0..5_u8, prop::sample::select(vec![22, 443, 61_999])), 0..60),
            since in 0..600_i64,
        ) {
            let mut hours = Hours::new(minutes(since), minutes(600));
            let rows: Vec<Session> = sessions
                .iter()
                .map(|(minute, is_in, peer, port)| {
                    session(*minute, if *is_in { Direction::In } else { Direction::Out }, *peer, *port)
                })
                .collect();
            rows.iter().for_each(|row| hours.add(row));
            let entries = hours.entries();
            prop_assert!(entries.is_sorted_by_key(|entry| entry.at));
            let mut left = rows.len();
            for Entry { at, what } in entries {
                let Happened::Sessions(until, sum) = what else { panic!("{what:?}") };
                prop_assert!(at >= minutes(since) && until <= minutes(600));
                let here: Vec<&Session> = rows
                    .iter()
                    .filter(|row| {
                        let opened = row.opened_at.max(minutes(since));
                        at <= opened && (opened < until || until == minutes(600))
                    })
                    .collect();
                left -= here.len();
                let of = |direction| here.iter().filter(|row| row.direction == direction).count() as u64;
                prop_assert_eq!((sum.inward, sum.outward), (of(Direction::In), of(Direction::Out)));
                let peers: HashSet<IpAddr> = here.iter().map(|row| row.peer.ip()).collect();
                prop_assert_eq!((sum.peers, sum.peers_at_least), (peers.len() as u64, false));
                prop_assert_eq!((sum.bytes_sent, sum.bytes_received), (3 * here.len() as u64, 5 * here.len() as u64));
                prop_assert_eq!(sum.services.iter().map(|(_, count)| count).sum::<u64>(), here.len() as u64);
                prop_assert!(sum.services.is_sorted_by(|(_, one), (_, other)| one >= other));
            }
            prop_assert_eq!(left, 0);
        }
    }
}
