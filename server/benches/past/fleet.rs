//! A fleet's sessions: 1,000 hosts of very different load, with clients that come back, scanners that do not, and each other.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
};

use super::load::{BEGIN_US, mixed};

pub(crate) const HOSTS: usize = 1000;
/// Sessions of a day.
pub(crate) const DAY_SESSIONS: u64 = 5_000_000;
pub(crate) const DAY_US: i64 = 86_400_000_000;
/// Clients that there are.
pub(crate) const CLIENTS: u64 = 4_000_000;
/// Those that a host remembers, of which most sessions are.
const RECENT: usize = 64;

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn throw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        mixed(self.0)
    }

    /// Below 1.
    fn part(&mut self) -> f64 {
        (self.throw() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.throw() % limit
    }

    /// Small numbers are much more likely than large ones.
    fn skewed(&mut self, limit: u64) -> u64 {
        ((limit as f64).powf(self.part()) as u64 - 1).min(limit - 1)
    }
}

/// How much of the fleet's sessions a host has: about one over its number.
fn share(host: usize) -> f64 {
    let all: f64 = (0..HOSTS).map(|host| 1.0 / (host as f64 + 20.0)).sum();
    1.0 / (host as f64 + 20.0) / all
}

/// Which of so many each host reports by, so that each of these has about as much to report.
pub(crate) fn turns(count: usize) -> Vec<usize> {
    let mut loads = vec![0.0; count];
    // Shares fall.
    let turn = |host| {
        let least = (0..count).min_by(|one, other| f64::total_cmp(&loads[*one], &loads[*other])).unwrap();
        loads[least] += share(host);
        least
    };
    (0..HOSTS).map(turn).collect()
}

/// The address of a client: 15 % of them have IPv6.
pub(crate) fn client(number: u64) -> IpAddr {
    let random = mixed(number ^ 0xc11e);
    if random % 100 < 15 {
        Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(random) << 16).into()
    } else {
        Ipv4Addr::from_bits((random >> 16) as u32 % 0xa000_0000 + 0x2000_0000).into()
    }
}

pub(crate) fn address(host: usize) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0001 + host as u32).into()
}

/// What some hosts report, in the order of time, in batches of 10 to 100 sessions.
pub(crate) struct Reports {
    hosts: Vec<Reporting>,
    /// When the last session of each closed that has more, and its place.
    turns: BinaryHeap<Reverse<(i64, usize)>>,
}

struct Reporting {
    load: HostLoad,
    seq: u64,
    left: u64,
}

/// The sessions of a batch.
pub(crate) struct Report {
    pub(crate) host: usize,
    pub(crate) seq: u64,
    pub(crate) sessions: Vec<Change>,
}

impl Reports {
    /// Those of some hosts, each with its part of so many sessions of the fleet.
    pub(crate) fn of(numbers: impl Iterator<Item = usize>, sessions: u64) -> Reports {
        let part = |number: usize| (sessions as f64 * share(number)) as u64;
        let hosts: Vec<Reporting> =
            numbers.map(|number| Reporting { load: HostLoad::new(number), seq: 0, left: part(number) }).collect();
        Reports::from(hosts)
    }

    fn from(hosts: Vec<Reporting>) -> Reports {
        let turn = |(place, host): (usize, &Reporting)| Reverse((host.load.at(), place));
        let turns = hosts.iter().enumerate().filter(|(_, host)| host.left > 0).map(turn).collect();
        Reports { hosts, turns }
    }

    /// What these hosts report after that: so many sessions of the fleet more.
    pub(crate) fn continued(self, sessions: u64) -> Reports {
        let mut hosts = self.hosts;
        for host in &mut hosts {
            host.left += (sessions as f64 * share(host.load.number)) as u64;
        }
        Reports::from(hosts)
    }
}

impl Iterator for Reports {
    type Item = Report;

    fn next(&mut self) -> Option<Report> {
        let Reverse((_, place)) = self.turns.pop()?;
        let host = &mut self.hosts[place];
        host.seq += 1;
        let rows = (10 + host.seq % 91).min(host.left);
        host.left -= rows;
        let report = Report { host: host.load.number, seq: host.seq, sessions: host.load.next(rows) };
        if host.left > 0 {
            self.turns.push(Reverse((host.load.at(), place)));
        }
        Some(report)
    }
}

/// A host, and what it has been told of.
struct HostLoad {
    number: usize,
    dice: Dice,
    daemons: Vec<Arc<Owner>>,
    recent: Vec<u64>,
    cookie: u64,
    /// When the next session closes, and how far they are apart on average.
    closes_us: i64,
    apart_us: i64,
}

fn program(process: &str, pid: u32, started_at: i64) -> Arc<Owner> {
    Arc::new(Owner {
        pid,
        started_at: Some(Timestamp::from_micros(started_at)),
        process: process.to_owned(),
        exe: format!("/usr/sbin/{process}"),
        uid: 33,
        user: "www-data".to_owned(),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
    })
}

/// Ports of the first class that a host listens on, and how many others.
const WELL_KNOWN: [u16; 5] = [22, 25, 53, 80, 443];
const OTHERS: u16 = 15;
/// One report of so many tells of a listener that came and went.
const CAME_AND_WENT: u64 = 100;

/// What a host has to report of listeners beside its sessions: twenty that stay, and some that come and go.
pub(crate) fn listeners(report: &Report) -> Vec<Change> {
    let Report { host, seq, ref sessions } = *report;
    let listener = |port: u16, opened_us: i64, op: Op| {
        let socket = Socket {
            key: SocketKey { netns: 4_026_531_840, cookie: seq << 48 | u64::from(port) },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::Listen,
            local: SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)),
            path: None,
            role: Role::Listener,
            opened_at: Timestamp::from_micros(opened_us),
            opened_known: Known::Event,
            owner_known: OwnerKnown::Exact,
            owners: vec![program("nginx", 700, BEGIN_US - 1_000_000 * host as i64)],
            bytes_sent: 0,
            bytes_received: 0,
        };
        Change { op, socket }
    };
    if seq == 1 {
        let ports = WELL_KNOWN.into_iter().chain((0..OTHERS).map(|number| 8000 + number));
        return ports.map(|port| listener(port, BEGIN_US, Op::Opened)).collect();
    }
    let Some(Change { op: Op::Closed { at, known }, .. }) = sessions.last().filter(|_| seq % CAME_AND_WENT == 0) else {
        return Vec::new();
    };
    let port = 49_152 + (seq / CAME_AND_WENT % 16_000) as u16;
    vec![listener(port, at.as_micros() - 1_000_000, Op::Closed { at: *at, known: *known })]
}

impl HostLoad {
    fn new(number: usize) -> HostLoad {
        let daemons = ["nginx", "postgres", "sshd", "node", "java"];
        let started = BEGIN_US - 1_000_000 * number as i64;
        HostLoad {
            number,
            dice: Dice((number as u64) << 40),
            daemons: (700..).zip(daemons).map(|(pid, name)| program(name, pid, started)).collect(),
            recent: (0..RECENT as u64).map(|client| client * 7919 + number as u64).collect(),
            cookie: 0,
            closes_us: BEGIN_US,
            apart_us: (DAY_US as f64 / (DAY_SESSIONS as f64 * share(number))) as i64,
        }
    }

    /// When its last session closed, us.
    fn at(&self) -> i64 {
        self.closes_us
    }

    fn peer(&mut self) -> IpAddr {
        match self.dice.below(100) {
            0..60 => {
                let place = self.dice.below(RECENT as u64) as usize;
                client(self.recent[place])
            }
            60..85 => {
                let number = self.dice.skewed(CLIENTS);
                let place = self.dice.below(RECENT as u64) as usize;
                self.recent[place] = number;
                client(number)
            }
            // A scanner, which knocks once.
            85..90 => client(CLIENTS + self.dice.throw()),
            _ => address((self.number + self.dice.below(50) as usize) % HOSTS),
        }
    }

    /// The next sessions, all over.
    fn next(&mut self, sessions: u64) -> Vec<Change> {
        (0..sessions).map(|_| self.session()).collect()
    }

    fn session(&mut self) -> Change {
        self.cookie += 1 + self.dice.below(3);
        self.closes_us += 1 + self.dice.below(2 * self.apart_us.unsigned_abs()) as i64;
        let peer = self.peer();
        let (wide, out) = (peer.is_ipv6(), self.dice.below(4) == 0);
        let ephemeral = 32_768 + self.dice.below(28_232) as u16;
        let service = [443, 443, 443, 80, 5432, 22, 8080][self.dice.below(7) as usize];
        let own: IpAddr = if wide {
            Ipv6Addr::from_bits(0x2001_0db9 << 96 | self.number as u128).into()
        } else {
            address(self.number)
        };
        let (local, peer) = if out { ((own, ephemeral), (peer, service)) } else { ((own, service), (peer, ephemeral)) };
        // Most last for milliseconds, some for hours.
        let lasts = 1_000 + self.dice.skewed(10_000_000_000) as i64;
        let owner = if out && self.dice.below(2) == 0 {
            program("curl", 10_000 + self.dice.below(100_000) as u32, self.closes_us - lasts - 2_000)
        } else {
            let place = self.dice.skewed(self.daemons.len() as u64) as usize;
            Arc::clone(&self.daemons[place])
        };
        let socket = Socket {
            key: SocketKey { netns: 4_026_531_840, cookie: self.cookie },
            protocol: Protocol::Tcp,
            family: if wide { Family::Ipv6 } else { Family::Ipv4 },
            state: SocketState::Established,
            local: SocketAddr::from(local),
            path: None,
            role: Role::Session {
                direction: if out { Direction::Out } else { Direction::In },
                peer: SocketAddr::from(peer),
            },
            opened_at: Timestamp::from_micros(self.closes_us - lasts),
            opened_known: Known::Event,
            owner_known: OwnerKnown::Exact,
            owners: vec![owner],
            bytes_sent: self.dice.skewed(50_000_000),
            bytes_received: self.dice.skewed(1_000_000),
        };
        Change { op: Op::Closed { at: Timestamp::from_micros(self.closes_us), known: Known::Event }, socket }
    }
}
