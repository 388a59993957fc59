//! What hosts report: batches of 50 rows, made before the clock runs.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    host::{BootId, HostFacts, HostId, Tier},
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
    token::{NewToken, TokenPurpose},
};
use fleetsock_server::history::{
    Actor, Applied, Claim, Contact, History, IssuedCertificate, Registry, Subject, sqlite::SqliteHistory,
};
use tokio::task::JoinSet;

use super::watch::{Took, Watch};

/// Rows of a batch.
pub(crate) const BATCH_ROWS: usize = 50;
/// When the load begins.
pub(crate) const BEGIN_US: i64 = 1_795_000_000_000_000;

/// What the rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mix {
    /// Sessions that are told of once, when they close.
    Short,
    /// Sessions that are told of twice: half of the rows open one, half close it.
    Walked,
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mix::Short => "each a session told of when it closes",
            Mix::Walked => "half of them open a session, half close one",
        })
    }
}

/// All batches of all hosts.
pub(crate) struct Load {
    mix: Mix,
    hosts: Vec<Vec<Batch>>,
}

/// A random-looking number for a number (splitmix64).
pub(crate) fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The processes of a host.
fn owners(host: usize) -> Vec<Arc<Owner>> {
    let owner = |(number, process): (usize, &&str)| {
        Arc::new(Owner {
            pid: (1000 + number) as u32,
            started_at: Some(Timestamp::from_micros(BEGIN_US - 1_000_000 * host as i64)),
            process: (*process).to_owned(),
            exe: format!("/usr/sbin/{process}"),
            uid: 100 + number as u32,
            user: (*process).to_owned(),
            container: String::new(),
            unit: format!("{process}.service"),
            command_line: String::new(),
        })
    };
    ["nginx", "postgres", "sshd", "node", "java", "chronyd"].iter().enumerate().map(owner).collect()
}

/// A session like those of a busy host: 15 % IPv6, many peers.
pub(crate) fn session(host: usize, number: u64, owners: &[Arc<Owner>]) -> Socket {
    let random = mixed((host as u64) << 40 | number);
    let wide = random.is_multiple_of(7);
    let address = |bits: u32| -> IpAddr {
        if wide {
            Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(bits)).into()
        } else {
            Ipv4Addr::from_bits(bits).into()
        }
    };
    let peer = SocketAddr::new(address((random >> 8) as u32), 32_768 + (random >> 45) as u16 % 28_000);
    Socket {
        key: SocketKey { netns: 4_026_531_840, cookie: number + 1 },
        protocol: Protocol::Tcp,
        family: if wide { Family::Ipv6 } else { Family::Ipv4 },
        state: SocketState::Established,
        local: SocketAddr::new(address(0x0a00_0000 + host as u32), [80, 443, 5432][(random % 3) as usize]),
        path: None,
        role: Role::Session { direction: Direction::In, peer },
        opened_at: Timestamp::from_micros(BEGIN_US + number as i64 * 10_000),
        opened_known: Known::Event,
        owner_known: OwnerKnown::Exact,
        owners: vec![Arc::clone(&owners[(random >> 20) as usize % owners.len()])],
        bytes_sent: random >> 44,
        bytes_received: random >> 50,
    }
}

fn ended(socket: Socket) -> Change {
    let at = Timestamp::from_micros(socket.opened_at.as_micros() + 1 + (mixed(socket.key.cookie) % 9_000_000) as i64);
    Change { op: Op::Closed { at, known: Known::Event }, socket }
}

pub(crate) fn batch(seq: u64, changes: Vec<Change>) -> Batch {
    let walk = Timestamp::from_micros(BEGIN_US + seq as i64 * 1_000_000);
    Batch {
        epoch: 1,
        seq,
        kind: if seq == 1 { BatchKind::SnapshotWhole } else { BatchKind::Changes },
        boot_id: BootId::from_array([7; 16]),
        observed_since: walk,
        observed_until: walk,
        changes,
        digest: None,
        namespaces: Vec::new(),
    }
}

impl Load {
    pub(crate) fn new(mix: Mix, hosts: usize, rows: usize) -> Load {
        let batches = (rows / BATCH_ROWS / hosts).max(1) as u64;
        Load { mix, hosts: (0..hosts).map(|host| Load::of_host(mix, host, batches)).collect() }
    }

    fn of_host(mix: Mix, host: usize, batches: u64) -> Vec<Batch> {
        let owners = owners(host);
        let short = |seq: u64| {
            let first = (seq - 1) * BATCH_ROWS as u64;
            (first..first + BATCH_ROWS as u64).map(|number| ended(session(host, number, &owners))).collect()
        };
        let walked = |seq: u64| {
            let half = BATCH_ROWS as u64 / 2;
            let opens = (seq * half..(seq + 1) * half)
                .map(|number| Change { op: Op::Opened, socket: session(host, number, &owners) });
            let ends = ((seq - 1) * half..seq * half).map(|number| ended(session(host, number, &owners)));
            ends.chain(opens).collect()
        };
        (1..=batches).map(|seq| batch(seq, if mix == Mix::Short { short(seq) } else { walked(seq) })).collect()
    }

    /// The rows of all batches, in the order in which hosts that take turns report them.
    pub(crate) fn rows(&self) -> Vec<&Change> {
        let most = self.hosts.iter().map(Vec::len).max().unwrap_or(0);
        (0..most)
            .flat_map(|turn| self.hosts.iter().filter_map(move |host| host.get(turn)))
            .flat_map(|b| &b.changes)
            .collect()
    }

    /// Rows in the database afterwards: a session that was told of twice is one.
    pub(crate) fn stored(&self) -> usize {
        let rows = self.rows().len();
        match self.mix {
            Mix::Short => rows,
            Mix::Walked => rows / 2 + self.hosts.len() * BATCH_ROWS / 2,
        }
    }

    /// All hosts report at once, each waiting for the acknowledgement of one batch before it sends the next.
    pub(crate) async fn report(&self, history: &Arc<SqliteHistory>) -> Took {
        let hosts = enrol(history, self.hosts.len()).await;
        let work: Vec<_> = hosts.into_iter().zip(self.hosts.clone()).collect();
        let watch = Watch::start();
        let mut reporting = JoinSet::new();
        for (host, batches) in work {
            let history = Arc::clone(history);
            reporting.spawn(async move {
                for batch in batches {
                    assert_eq!(history.apply(host, batch).await.unwrap(), Applied::Committed);
                }
            });
        }
        reporting.join_all().await;
        let took = watch.took();
        history.close().await.unwrap();
        took
    }
}

/// Enrols so many hosts, which say Hello.
pub(crate) async fn enrol(history: &SqliteHistory, hosts: usize) -> Vec<HostId> {
    let at = Timestamp::from_micros(BEGIN_US);
    let by = Actor { name: "local".to_owned(), address: String::new(), at };
    let purpose = TokenPurpose::Hosts { labels: BTreeMap::new() };
    let token = NewToken { lifetime_s: 3600, uses: hosts as u32, purpose, note: String::new() };
    history.create_token("all".to_owned(), [0; 32], token, by).await.unwrap();
    let mut enrolled = Vec::with_capacity(hosts);
    for number in 0..hosts {
        let name = format!("host{number:05}");
        let mut key_hash = [0; 32];
        key_hash[..8].copy_from_slice(&(number as u64).to_be_bytes());
        let claim = Claim {
            token_id: "all".to_owned(),
            secret_hash: [0; 32],
            key_hash,
            host_name: name.clone(),
            address: String::new(),
            at,
        };
        let (told, subject) = std::sync::mpsc::channel();
        let issue = Box::new(move |subject: &Subject| {
            told.send(subject.clone()).unwrap();
            let chain_der = vec![Vec::new(), Vec::new()];
            Ok(IssuedCertificate { serial: key_hash.to_vec(), chain_der, expires_at: at, spiffe_id: String::new() })
        });
        history.redeem(claim, issue).await.unwrap();
        let Subject::Host(host) = subject.recv().unwrap() else { unreachable!("the token is for hosts") };
        let facts = HostFacts {
            name,
            os: "Debian GNU/Linux 12 (bookworm)".to_owned(),
            kernel: "6.1.0".to_owned(),
            arch: "x86_64".to_owned(),
            boot_id: BootId::from_array([7; 16]),
            addresses: vec![Ipv4Addr::from_bits(0x0a00_0000 + number as u32).into()],
            ephemeral_ports: None,
            agent_version: "0.1.0".to_owned(),
            tier: Tier::T1,
            tier_reason: String::new(),
            netns: 4_026_531_840,
        };
        history.record_hello(host, Contact { facts, at, clock_offset_us: 0 }).await.unwrap();
        enrolled.push(host);
    }
    enrolled
}
