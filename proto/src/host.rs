//! A machine with an agent: its id, what it says of itself, what the fleet knows of it.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use uuid::Uuid;

use crate::{InvalidMessage, address, port::PortRange, tcp::TcpCounts, time, time::Timestamp, wire, word::words};

/// Longest host name, bytes (RFC 1035 section 2.3.4).
pub const HOST_NAME_LIMIT: usize = 253;
/// Most addresses that a host tells of.
pub const HOST_ADDRESSES_LIMIT: usize = 256;
/// Longest of the other texts that a host says of itself, bytes.
pub const HOST_TEXT_LIMIT: usize = 1024;

/// The id of a host: the UUID in its agent's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(Uuid);

impl HostId {
    /// A fresh random id.
    pub fn random() -> HostId {
        HostId(Uuid::new_v4())
    }

    /// The id with these 16 bytes.
    pub const fn from_array(bytes: [u8; 16]) -> HostId {
        HostId(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id in a field.
    pub fn from_wire(field: &'static str, bytes: &[u8]) -> Result<HostId, InvalidMessage> {
        uuid_bytes(field, bytes).map(HostId)
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no host id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no host id; a host id is a UUID")]
pub struct InvalidHostId(pub String);

impl FromStr for HostId {
    type Err = InvalidHostId;

    fn from_str(text: &str) -> Result<HostId, InvalidHostId> {
        Uuid::try_parse(text).map(HostId).map_err(|_| InvalidHostId(text.to_owned()))
    }
}

/// The id that the kernel gives itself at boot (/proc/sys/kernel/random/boot_id).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId(Uuid);

impl BootId {
    /// The id with these 16 bytes.
    pub const fn from_array(bytes: [u8; 16]) -> BootId {
        BootId(Uuid::from_bytes(bytes))
    }

    /// The 16 bytes of the id.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id in a field.
    pub fn from_wire(field: &'static str, bytes: &[u8]) -> Result<BootId, InvalidMessage> {
        uuid_bytes(field, bytes).map(BootId)
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BootId {
    type Err = InvalidHostId;

    fn from_str(text: &str) -> Result<BootId, InvalidHostId> {
        Uuid::try_parse(text.trim()).map(BootId).map_err(|_| InvalidHostId(text.to_owned()))
    }
}

fn uuid_bytes(field: &'static str, bytes: &[u8]) -> Result<Uuid, InvalidMessage> {
    Uuid::from_slice(bytes).map_err(|_| InvalidMessage::new(field, format!("{} bytes are no UUID", bytes.len())))
}

words! {
    /// What an agent is allowed to see.
    pub enum Tier is "tier", or InvalidTier {
        /// Every socket; owners of the agent's own user only.
        T0 = 1 "T0" | "t0",
        /// Owners of all open sockets.
        T1 = 2 "T1" | "t1",
        /// Every connection however short, with its process.
        T2 = 3 "T2" | "t2",
        /// The same by BPF.
        T3 = 4 "T3" | "t3",
    }
}

words! {
    /// Whether a host is being heard.
    pub enum HostState is "host state", or InvalidHostState {
        /// It reports.
        Online = 1 "online",
        /// It did not report for longer than the server's stale_after.
        Stale = 2 "stale",
        /// Its certificates are refused.
        Revoked = 3 "revoked",
        /// Enrolled; it has not reported yet, or waits for approval.
        Pending = 4 "pending",
    }
}

/// What a host says of itself. Labels, never proofs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Its name, at most [`HOST_NAME_LIMIT`] bytes.
    pub name: String,
    /// Operating system, from os-release(5).
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Machine architecture.
    pub arch: String,
    /// The running boot.
    pub boot_id: BootId,
    /// Addresses of its interfaces, loopback left out.
    pub addresses: Vec<IpAddr>,
    /// Where the kernel takes source ports from.
    pub ephemeral_ports: Option<PortRange>,
    /// Version of the agent.
    pub agent_version: String,
    /// What the agent may see.
    pub tier: Tier,
    /// Why the tier is not higher and what cannot be seen.
    pub tier_reason: String,
    /// The network namespace that is walked.
    pub netns: u64,
}

/// A host as an answer shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Its id.
    pub host_id: HostId,
    /// Its name.
    pub name: String,
    /// Whether it is being heard.
    pub state: HostState,
    /// When it last said anything, by the server's clock.
    pub last_seen_at: Option<Timestamp>,
    /// When it got its first certificate.
    pub enrolled_at: Option<Timestamp>,
    /// What it said when it last connected; absent while it is pending.
    pub facts: Option<HostFacts>,
    /// Labels that operators gave.
    pub labels: BTreeMap<String, String>,
    /// Open listeners.
    pub listeners: u64,
    /// Open sessions.
    pub sessions_open: u64,
    /// Records that the agent knows it lost since it started.
    pub losses: u64,
    /// CPU of the agent, thousandths of a percent of one core.
    pub agent_cpu_millipercent: u32,
    /// Resident memory of the agent, bytes.
    pub agent_rss_bytes: u64,
    /// The agent's clock less the server's, microseconds.
    pub clock_offset_us: i64,
    /// What a person should look at, and when it was noticed.
    pub warning: Option<Warning>,
    /// TCP sockets that are neither listeners nor sessions, as last told.
    pub tcp_counts: Option<TcpCounts>,
    /// The last walk as of which what is open in the history was shown to be what the agent has, by the server's clock.
    pub proved_at: Option<Timestamp>,
}

/// Something about a host that a person should look at: it waits for approval, or its identity seems to be used twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What, in a sentence.
    pub text: String,
    /// When it was last noticed.
    pub at: Timestamp,
}

/// Which hosts a question is about; empty means all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostSelector {
    /// Globs (`*`, `?`, `[...]`) over names, or ids; any of them.
    pub globs: Vec<String>,
    /// Labels; all of them.
    pub labels: BTreeMap<String, String>,
}

impl HostSelector {
    /// Whether every host is meant.
    pub fn is_all(&self) -> bool {
        self.globs.is_empty() && self.labels.is_empty()
    }
}

/// `text`, unless it is longer than `limit` bytes.
pub(crate) fn bounded(field: &'static str, text: String, limit: usize) -> Result<String, InvalidMessage> {
    if text.len() <= limit {
        Ok(text)
    } else {
        Err(InvalidMessage::new(field, format!("{} bytes are more than {limit}", text.len())))
    }
}

impl From<HostFacts> for wire::HostFacts {
    fn from(facts: HostFacts) -> wire::HostFacts {
        wire::HostFacts {
            name: facts.name,
            os: facts.os,
            kernel: facts.kernel,
            arch: facts.arch,
            boot_id: facts.boot_id.as_bytes().to_vec(),
            addresses: facts.addresses.into_iter().map(address::to_bytes).collect(),
            ephemeral_ports: facts.ephemeral_ports.map(Into::into),
            agent_version: facts.agent_version,
            tier: facts.tier.number(),
            tier_reason: facts.tier_reason,
            netns: facts.netns,
        }
    }
}

impl TryFrom<wire::HostFacts> for HostFacts {
    type Error = InvalidMessage;

    fn try_from(facts: wire::HostFacts) -> Result<HostFacts, InvalidMessage> {
        if facts.addresses.len() > HOST_ADDRESSES_LIMIT {
            return Err(InvalidMessage::new("HostFacts.addresses", format!("more than {HOST_ADDRESSES_LIMIT}")));
        }
        if facts.name.is_empty() {
            return Err(InvalidMessage::missing("HostFacts.name"));
        }
        Ok(HostFacts {
            name: bounded("HostFacts.name", facts.name, HOST_NAME_LIMIT)?,
            os: bounded("HostFacts.os", facts.os, HOST_TEXT_LIMIT)?,
            kernel: bounded("HostFacts.kernel", facts.kernel, HOST_TEXT_LIMIT)?,
            arch: bounded("HostFacts.arch", facts.arch, HOST_TEXT_LIMIT)?,
            boot_id: BootId::from_wire("HostFacts.boot_id", &facts.boot_id)?,
            addresses: facts
                .addresses
                .iter()
                .map(|bytes| address::from_bytes("HostFacts.addresses", bytes))
                .collect::<Result<_, _>>()?,
            ephemeral_ports: facts.ephemeral_ports.map(PortRange::try_from).transpose()?,
            agent_version: bounded("HostFacts.agent_version", facts.agent_version, HOST_TEXT_LIMIT)?,
            tier: Tier::from_wire("HostFacts.tier", facts.tier)?,
            tier_reason: bounded("HostFacts.tier_reason", facts.tier_reason, HOST_TEXT_LIMIT)?,
            netns: facts.netns,
        })
    }
}

impl From<Host> for wire::Host {
    fn from(host: Host) -> wire::Host {
        let facts = host.facts.map(wire::HostFacts::from).unwrap_or_default();
        let (warning, warned_at) = host.warning.map(|warning| (warning.text, warning.at)).unzip();
        wire::Host {
            host_id: host.host_id.as_bytes().to_vec(),
            name: host.name,
            state: host.state.number(),
            last_seen_at: host.last_seen_at.map(Into::into),
            os: facts.os,
            kernel: facts.kernel,
            arch: facts.arch,
            boot_id: facts.boot_id,
            addresses: facts.addresses,
            agent_version: facts.agent_version,
            tier: facts.tier,
            tier_reason: facts.tier_reason,
            labels: host.labels.into_iter().collect(),
            listeners: host.listeners,
            sessions_open: host.sessions_open,
            losses: host.losses,
            agent_cpu_millipercent: host.agent_cpu_millipercent,
            agent_rss_bytes: host.agent_rss_bytes,
            clock_offset_us: host.clock_offset_us,
            enrolled_at: host.enrolled_at.map(Into::into),
            ephemeral_ports: facts.ephemeral_ports,
            netns: facts.netns,
            warning: warning.unwrap_or_default(),
            warned_at: warned_at.map(Into::into),
            tcp_counts: host.tcp_counts.map(Into::into),
            proved_at: host.proved_at.map(Into::into),
        }
    }
}

impl TryFrom<wire::Host> for Host {
    type Error = InvalidMessage;

    fn try_from(host: wire::Host) -> Result<Host, InvalidMessage> {
        let facts = if host.boot_id.is_empty() {
            None
        } else {
            Some(HostFacts::try_from(wire::HostFacts {
                name: host.name.clone(),
                os: host.os,
                kernel: host.kernel,
                arch: host.arch,
                boot_id: host.boot_id,
                addresses: host.addresses,
                ephemeral_ports: host.ephemeral_ports,
                agent_version: host.agent_version,
                tier: host.tier,
                tier_reason: host.tier_reason,
                netns: host.netns,
            })?)
        };
        let warning = match time::optional("Host.warned_at", host.warned_at)? {
            Some(at) if !host.warning.is_empty() => Some(Warning { text: host.warning, at }),
            _ => None,
        };
        Ok(Host {
            host_id: HostId::from_wire("Host.host_id", &host.host_id)?,
            name: host.name,
            state: HostState::from_wire("Host.state", host.state)?,
            last_seen_at: time::optional("Host.last_seen_at", host.last_seen_at)?,
            enrolled_at: time::optional("Host.enrolled_at", host.enrolled_at)?,
            facts,
            labels: host.labels.into_iter().collect(),
            listeners: host.listeners,
            sessions_open: host.sessions_open,
            losses: host.losses,
            agent_cpu_millipercent: host.agent_cpu_millipercent,
            agent_rss_bytes: host.agent_rss_bytes,
            clock_offset_us: host.clock_offset_us,
            warning,
            tcp_counts: host.tcp_counts.map(Into::into),
            proved_at: time::optional("Host.proved_at", host.proved_at)?,
        })
    }
}

impl From<HostSelector> for wire::HostSelector {
    fn from(selector: HostSelector) -> wire::HostSelector {
        wire::HostSelector { globs: selector.globs, labels: selector.labels.into_iter().collect() }
    }
}

impl From<wire::HostSelector> for HostSelector {
    fn from(selector: wire::HostSelector) -> HostSelector {
        HostSelector { globs: selector.globs, labels: selector.labels.into_iter().collect() }
    }
}
