//! Sums: which group a listener or a session belongs to, and which groups come first. Decided here for every engine.

use std::{
    cmp::{Ordering, Reverse},
    collections::{BinaryHeap, HashMap},
    hash::{BuildHasher, Hash},
    net::IpAddr,
};

use fleetsock_proto::{
    host::HostId,
    port::PortClass,
    service,
    socket::Protocol,
    summary::{Dimension, Group, Sum},
    time::Timestamp,
};

use self::names::Names;
use super::{HistoryError, hashing::Seeded};

mod names;

/// Bytes that the groups of an answer may take while it is made.
pub const BYTES_LIMIT: usize = 128 * 1024 * 1024;
/// What a group takes of these: a map has room for up to twice as many as it holds, and half as many again while it grows.
const GROUP_BYTES: usize = 2 * size_of::<(Key, Counts)>();
/// Most groups that are put into order across parts, about 300 bytes each.
pub const ORDERED_LIMIT: usize = 100_000;

const HOUR_US: i64 = 3_600_000_000;

/// Sums on their way.
#[derive(Debug)]
pub struct Sums {
    by: Vec<Dimension>,
    since: Timestamp,
    part: Part,
    groups: HashMap<Key, Counts, Seeded>,
    hosts: Names<(String, HostId)>,
    services: Names<String>,
    processes: Names<String>,
    /// What the names take.
    name_bytes: usize,
    /// What groups and names may take together.
    most_bytes: usize,
}

/// Of which groups something is counted: those of one part of several, so that there may be more than fit into memory.
#[derive(Debug, Clone)]
pub struct Part {
    number: u64,
    of: u64,
    hash: Seeded,
}

impl Part {
    /// The only one.
    pub fn whole() -> Part {
        Part { number: 0, of: 1, hash: Seeded::default() }
    }

    /// Each of so many.
    pub fn each(of: u64) -> impl Iterator<Item = Part> {
        let hash = Seeded::default();
        (0..of).map(move |number| Part { number, of, hash: hash.clone() })
    }

    /// Numbers of names are others in each part.
    fn has(&self, words: impl FnOnce() -> u64) -> bool {
        self.of == 1 || words() % self.of == self.number
    }
}

/// A group in few bytes: what has a name has its number here.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Key {
    hour_us: i64,
    host: u32,
    service: u32,
    process: u32,
    class: Option<PortClass>,
    peer: Option<IpAddr>,
}

/// A [`Group`] that is not made yet, in the same order: an address has one name.
#[derive(PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Words<'a> {
    hour_us: Option<i64>,
    host: Option<&'a (String, HostId)>,
    class: Option<PortClass>,
    service: Option<&'a String>,
    process: Option<&'a String>,
    peer: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Counts {
    listeners: u64,
    sessions: u64,
    bytes_sent: u64,
    bytes_received: u64,
}

/// What listeners or sessions have in common that are counted together, as far as sums are by it.
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
    /// The peer; absent when it is not told.
    pub peer: Option<IpAddr>,
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
    /// No sums yet, of groups that may take so many bytes, by these dimensions. What opened before `since` counts in its hour.
    pub fn new(by: &[Dimension], since: Timestamp, (part, most_bytes): (Part, usize)) -> Sums {
        Sums {
            by: by.to_vec(),
            since,
            part,
            groups: HashMap::default(),
            hosts: Names::default(),
            services: Names::default(),
            processes: Names::default(),
            name_bytes: 0,
            most_bytes,
        }
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
        self.groups.reserve(groups.min((self.most_bytes / GROUP_BYTES).saturating_sub(self.groups.len())));
    }

    /// Counts so many listeners by what they have in common.
    pub fn add_listeners(&mut self, alike: Alike, listeners: u64) -> Result<(), HistoryError> {
        self.count(alike, Counts { listeners, ..Counts::default() })
    }

    /// Counts sessions by what they have in common: their number, and the bytes that they sent and received.
    pub fn add_sessions(&mut self, alike: Alike, [sessions, sent, received]: [u64; 3]) -> Result<(), HistoryError> {
        self.count(alike, Counts { listeners: 0, sessions, bytes_sent: sent, bytes_received: received })
    }

    /// How many sessions are counted with each peer so far, in ascending order, where sums are by nothing else.
    pub fn held_by_peer(&self) -> Vec<(IpAddr, u64)> {
        let with_peer = self.groups.iter().filter_map(|(key, counts)| key.peer.map(|peer| (peer, counts.sessions)));
        let mut held: Vec<_> = with_peer.collect();
        held.sort_unstable();
        held
    }

    /// Counts the rest of sums by nothing but the peer: of each in ascending order what is not counted yet. Of these only the first
    /// few are held, so that what cannot be among these may be left out.
    pub fn end_by_peer(
        &mut self,
        most: usize,
        mut next: impl FnMut() -> Result<Option<(IpAddr, [u64; 3])>, HistoryError>,
    ) -> Result<(), HistoryError> {
        let mut first: BinaryHeap<(Rank, IpAddr, Counts)> = BinaryHeap::new();
        // What is counted already, in the same order; most peers are not among these.
        let mut held = self.held_by_peer().into_iter().map(|(peer, _)| peer).peekable();
        while let Some((peer, [sessions, bytes_sent, bytes_received])) = next()? {
            let key = Key { peer: Some(peer), ..Key::default() };
            if !self.part.has(|| self.part.hash.hash_one(self.words(&key))) {
                continue;
            }
            let mut counts = Counts { listeners: 0, sessions, bytes_sent, bytes_received };
            if most > ORDERED_LIMIT {
                self.count_in(key, counts)?;
                continue;
            }
            while held.next_if(|held| *held < peer).is_some() {}
            if held.next_if_eq(&peer).is_some()
                && let Some(held) = self.groups.remove(&key)
            {
                counts.add(held);
            }
            let one = (rank(0, &counts, false), peer, counts);
            if first.len() < most {
                first.push(one);
            } else if let Some(mut last) = first.peek_mut()
                && one < *last
            {
                *last = one;
            }
        }
        self.groups
            .extend(first.into_iter().map(|(_, peer, counts)| (Key { peer: Some(peer), ..Key::default() }, counts)));
        Ok(())
    }

    fn count(&mut self, alike: Alike, more: Counts) -> Result<(), HistoryError> {
        let key = self.key(alike);
        if self.part.has(|| self.part.hash.hash_one(self.words(&key))) { self.count_in(key, more) } else { Ok(()) }
    }

    /// Counts in a group of this part.
    fn count_in(&mut self, key: Key, more: Counts) -> Result<(), HistoryError> {
        if self.groups.len() * GROUP_BYTES + self.name_bytes > self.most_bytes && !self.groups.contains_key(&key) {
            return Err(self.too_many());
        }
        self.groups.entry(key).or_default().add(more);
        Ok(())
    }

    fn key(&mut self, alike: Alike) -> Key {
        let Alike { host, opened_at, protocol, class, port, process, peer } = alike;
        let others = || OTHERS.to_owned();
        let mut key = Key::default();
        if self.are_by(Dimension::Class) {
            key.class = Some(class);
        }
        if self.are_by(Dimension::Hour) {
            key.hour_us = self.hour_of(opened_at).as_micros();
        }
        if self.are_by(Dimension::Service) {
            let service = port.map_or_else(others, |port| service_name(port, protocol));
            key.service = names::numbered(&mut self.services, service.len(), service, &mut self.name_bytes);
        }
        if self.are_by(Dimension::Process) {
            let process = process.unwrap_or_else(others);
            key.process = names::numbered(&mut self.processes, process.len(), process, &mut self.name_bytes);
        }
        if self.are_by(Dimension::Host) {
            key.host = names::numbered(&mut self.hosts, host.0.len(), host, &mut self.name_bytes);
        }
        key.peer = peer.filter(|_| self.are_by(Dimension::Peer));
        key
    }

    fn group(&self, key: &Key, host_with: &dyn Fn(IpAddr) -> String) -> Group {
        let Words { hour_us, host, class, service, process, peer } = self.words(key);
        Group {
            hour: hour_us.map(Timestamp::from_micros),
            host: host.cloned(),
            class,
            service: service.cloned(),
            process: process.cloned(),
            peer: peer.map(|address| (address, host_with(address))),
        }
    }

    fn words(&self, key: &Key) -> Words<'_> {
        let is = |dimension| self.are_by(dimension);
        Words {
            hour_us: is(Dimension::Hour).then_some(key.hour_us),
            host: self.hosts.name(key.host).filter(|_| is(Dimension::Host)),
            class: key.class,
            service: self.services.name(key.service).filter(|_| is(Dimension::Service)),
            process: self.processes.name(key.process).filter(|_| is(Dimension::Process)),
            peer: key.peer,
        }
    }

    fn too_many(&self) -> HistoryError {
        let by: Vec<&str> = self.by.iter().map(|dimension| dimension.as_str()).collect();
        let (count, of) = (self.groups.len() as u64 * self.part.of, by.join(","));
        HistoryError::TooMuch(format!(
            "there are more than {count} groups by {of}; ask for the first few of them (--limit), fewer hosts, a shorter time \
             or fewer dimensions"
        ))
    }

    /// The first groups, in order: most sessions first, then most listeners, then most bytes. By the hour first of all: the latest
    /// hour first. `host_with` tells the name of the fleet's host that has an address, empty for none.
    pub fn first(&self, most: usize, host_with: &dyn Fn(IpAddr) -> String) -> impl Iterator<Item = Sum> {
        let by_hour = by_hour(&self.by);
        let mut first: BinaryHeap<Ranked<'_>> = BinaryHeap::new();
        for (key, counts) in &self.groups {
            let one = Ranked { rank: rank(key.hour_us, counts, by_hour), key, counts, sums: self };
            if first.len() < most {
                first.push(one);
            } else if let Some(mut last) = first.peek_mut()
                && one < *last
            {
                *last = one;
            }
        }
        first.into_sorted_vec().into_iter().map(|one| sum(self.group(one.key, host_with), *one.counts))
    }
}

/// Puts groups of several parts into the same order.
pub fn put_into_order(by: &[Dimension], sums: &mut [Sum]) {
    let by_hour = by_hour(by);
    sums.sort_by(|one, other| {
        let rank = |sum: &Sum| {
            let Sum { listeners, sessions, bytes_sent, bytes_received, ref group } = *sum;
            rank(
                group.hour.map_or(0, Timestamp::as_micros),
                &Counts { listeners, sessions, bytes_sent, bytes_received },
                by_hour,
            )
        };
        rank(one).cmp(&rank(other)).then_with(|| one.group.cmp(&other.group))
    });
}

impl Counts {
    fn add(&mut self, more: Counts) {
        self.listeners = self.listeners.saturating_add(more.listeners);
        self.sessions = self.sessions.saturating_add(more.sessions);
        self.bytes_sent = self.bytes_sent.saturating_add(more.bytes_sent);
        self.bytes_received = self.bytes_received.saturating_add(more.bytes_received);
    }
}

fn sum(group: Group, counts: Counts) -> Sum {
    let Counts { listeners, sessions, bytes_sent, bytes_received } = counts;
    Sum { group, listeners, sessions, bytes_sent, bytes_received }
}

/// A group in the order of the answer; what it is called decides only among equals.
struct Ranked<'a> {
    rank: Rank,
    key: &'a Key,
    counts: &'a Counts,
    sums: &'a Sums,
}

impl Ord for Ranked<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then_with(|| self.sums.words(self.key).cmp(&other.sums.words(other.key)))
    }
}

impl PartialOrd for Ranked<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ranked<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Ranked<'_> {}

fn by_hour(by: &[Dimension]) -> bool {
    by.first() == Some(&Dimension::Hour)
}

type Rank = (Reverse<i64>, Reverse<(u64, u64, u64)>);

fn rank(hour_us: i64, counts: &Counts, by_hour: bool) -> Rank {
    let size = (counts.sessions, counts.listeners, counts.bytes_sent.saturating_add(counts.bytes_received));
    (Reverse(if by_hour { hour_us } else { 0 }), Reverse(size))
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
        let peer = Some(Ipv4Addr::from_bits(peer).into());
        Alike { opened_at: Timestamp::from_micros(HOUR_US + 5), peer, ..Alike::default() }
    }

    fn whole(by: Dimension, since: Timestamp) -> Sums {
        Sums::new(&[by], since, (Part::whole(), BYTES_LIMIT))
    }

    #[test]
    fn more_groups_than_may_be_held_are_refused_with_words_and_a_known_one_still_counts() {
        let mut sums = whole(Dimension::Peer, Timestamp::MIN);
        let limit = (0..).find(|peer| sums.add_sessions(with(*peer), COUNTS).is_err()).unwrap();
        assert!((500_000..1_000_000).contains(&limit), "{limit}");
        sums.add_sessions(with(7), COUNTS).unwrap();
        let refused = sums.add_sessions(with(limit), COUNTS).unwrap_err().to_string();
        assert!(refused.contains(&format!("more than {limit} groups by peer; ask for the first few")), "{refused}");
        let largest = sums.first(1, &|_| String::new()).next().unwrap();
        assert_eq!((largest.sessions, largest.bytes_sent, largest.bytes_received), (2, u64::MAX, 2));
    }

    #[test]
    fn long_names_take_the_room_of_groups() {
        let mut sums = whole(Dimension::Process, Timestamp::MIN);
        let named =
            |number: usize| Alike { process: Some(format!("{number}{}", "x".repeat(65536))), ..Alike::default() };
        let limit = (0..).find(|number| sums.add_sessions(named(*number), COUNTS).is_err()).unwrap();
        assert!(limit <= BYTES_LIMIT / (2 * 65536), "{limit}");
    }

    #[test]
    fn parts_have_each_group_once_and_come_into_one_order() {
        let by = [Dimension::Peer, Dimension::Service];
        let counted = |part: Part| {
            let mut sums = Sums::new(&by, Timestamp::MIN, (part, BYTES_LIMIT));
            for (peer, port) in (0..1000).zip((0..7).cycle()) {
                let sessions = u64::from(peer % 10);
                sums.add_sessions(Alike { port: Some(port), ..with(peer) }, [sessions, 0, 0]).unwrap();
            }
            sums.first(100, &|_| String::new()).collect::<Vec<Sum>>()
        };
        let whole = counted(Part::whole());
        assert_eq!((whole.len(), whole[99].sessions), (100, 9));
        let mut of_parts: Vec<Sum> = Part::each(7).flat_map(counted).collect();
        put_into_order(&by, &mut of_parts);
        of_parts.truncate(100);
        assert_eq!(of_parts, whole);
        assert_eq!(whole, {
            let mut sorted = whole.clone();
            put_into_order(&by, &mut sorted);
            sorted
        });
    }

    #[test]
    fn what_ascending_peers_have_beside_what_is_held_is_counted_once_and_only_the_first_are_held() {
        let by = [Dimension::Peer];
        let sessions = |peer: u32| u64::from(peer * 7919 % 1000);
        let counted = |most: usize, part: Part| {
            let mut sums = Sums::new(&by, Timestamp::MIN, (part, BYTES_LIMIT));
            for peer in (0..1000).step_by(3) {
                sums.add_sessions(with(peer), [1, 5, 0]).unwrap();
            }
            let mut ascending =
                (0..1000).step_by(2).map(|peer| (Ipv4Addr::from_bits(peer).into(), [sessions(peer), 2, 1]));
            sums.end_by_peer(most, || Ok(ascending.next())).unwrap();
            (sums.groups.len(), sums.first(most, &|_| String::new()).collect::<Vec<Sum>>())
        };
        let mut expected = Sums::new(&by, Timestamp::MIN, (Part::whole(), BYTES_LIMIT));
        for peer in 0..1000 {
            if peer % 3 == 0 {
                expected.add_sessions(with(peer), [1, 5, 0]).unwrap();
            }
            if peer % 2 == 0 {
                expected.add_sessions(with(peer), [sessions(peer), 2, 1]).unwrap();
            }
        }
        let expected: Vec<Sum> = expected.first(usize::MAX, &|_| String::new()).collect();
        assert_eq!(counted(usize::MAX, Part::whole()), (667, expected.clone()));
        let (held, first) = counted(20, Part::whole());
        assert!(held < 200 && first == expected[..20], "{held}");
        let mut of_parts: Vec<Sum> = Part::each(4).flat_map(|part| counted(20, part).1).collect();
        put_into_order(&by, &mut of_parts);
        assert_eq!(of_parts[..20], expected[..20]);
    }

    #[test]
    fn what_opened_before_the_window_counts_in_its_first_hour() {
        let mut sums = whole(Dimension::Hour, Timestamp::from_micros(5 * HOUR_US + 1));
        sums.add_sessions(with(1), COUNTS).unwrap();
        assert_eq!(
            sums.first(1, &|_| String::new()).next().unwrap().group.hour,
            Some(Timestamp::from_micros(5 * HOUR_US))
        );
    }
}
