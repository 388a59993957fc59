//! What is known of one host, and how it lies in its row.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fleetsock_proto::{
    host::{BootId, Host, HostFacts, HostId, HostState, Tier, Warning},
    port::PortRange,
    stream::AgentCost,
    tcp::TcpCounts,
    time::Timestamp,
    token::Approval,
};
use rusqlite::{Row, Transaction, params};

use super::super::coding;
use crate::history::{Contact, Labels, Skew};

/// What is known of a host.
#[derive(Debug, Clone)]
pub(in super::super) struct HostEntry {
    /// Its number in the database.
    pub(in super::super) id: i64,
    pub(in super::super) host_id: HostId,
    pub(in super::super) name: String,
    pub(in super::super) labels: Labels,
    pub(in super::super) enrolled_at: Timestamp,
    pub(in super::super) revoked: bool,
    /// It waits for approval.
    pub(in super::super) waits: bool,
    pub(in super::super) warning: Option<Warning>,
    pub(in super::super) facts: Option<HostFacts>,
    pub(in super::super) last_seen_at: Option<Timestamp>,
    /// The first walk that was told of, by the server's clock.
    pub(in super::super) observed_since: Option<Timestamp>,
    /// The last walk that a sign of life told of, by the server's clock.
    pub(in super::super) observed_until: Option<Timestamp>,
    /// The last walk that a batch told of, by the server's clock.
    pub(in super::super) told_until: Option<Timestamp>,
    pub(in super::super) skew: Skew,
    pub(in super::super) cost: AgentCost,
    pub(in super::super) tcp_counts: Option<TcpCounts>,
    /// The last walk as of which what is open here was what the agent has, by the server's clock.
    pub(in super::super) proved_at: Option<Timestamp>,
    /// There is something that is not written down yet.
    pub(super) unwritten: bool,
}

/// What of a host says how it is, and between which times it was observed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Signs {
    revoked: bool,
    waits: bool,
    last_seen_at: Option<Timestamp>,
    pub(super) observed_since: Option<Timestamp>,
    /// Up to when it told of what it observed, if it ever did.
    pub(super) known_until: Option<Timestamp>,
}

impl Signs {
    pub(super) fn of(entry: &HostEntry) -> Signs {
        let HostEntry { revoked, waits, last_seen_at, observed_since, .. } = *entry;
        let known = || entry.told_until.max(entry.observed_until).max(observed_since);
        Signs { revoked, waits, last_seen_at, observed_since, known_until: observed_since.and_then(|_| known()) }
    }

    /// How it is, where whoever was not seen since a moment is stale.
    pub(super) fn state(&self, stale_before: Timestamp) -> HostState {
        match self.last_seen_at {
            _ if self.revoked => HostState::Revoked,
            _ if self.waits => HostState::Pending,
            None => HostState::Pending,
            Some(at) if at < stale_before => HostState::Stale,
            Some(_) => HostState::Online,
        }
    }
}

impl HostEntry {
    /// A host that enrolled and did not speak yet.
    pub(in super::super) fn pending(
        id: i64,
        host_id: HostId,
        name: String,
        labels: Labels,
        (at, approval): (Timestamp, Approval),
    ) -> HostEntry {
        HostEntry {
            id,
            host_id,
            name,
            labels,
            enrolled_at: at,
            revoked: false,
            waits: approval == Approval::Needed,
            warning: None,
            facts: None,
            last_seen_at: None,
            observed_since: None,
            observed_until: None,
            told_until: None,
            skew: Skew::default(),
            cost: AgentCost::default(),
            tcp_counts: None,
            proved_at: None,
            unwritten: false,
        }
    }
}

/// Stores what a host says of itself.
pub(in super::super) fn store_hello(
    transaction: &Transaction<'_>,
    id: i64,
    contact: &Contact,
) -> Result<(), rusqlite::Error> {
    let facts = &contact.facts;
    let addresses: Vec<u8> = facts.addresses.iter().flat_map(|address| coding::address_bytes(*address)).collect();
    transaction
        .prepare_cached(
            "UPDATE hosts SET name = ?2, os = ?3, kernel = ?4, arch = ?5, boot_id = ?6, addresses = ?7,
                 ephemeral_first = ?8, ephemeral_last = ?9, agent_version = ?10, tier = ?11, tier_reason = ?12,
                 netns = ?13, last_seen_at_us = ?14, clock_offset_us = ?15 WHERE id = ?1",
        )?
        .execute(params![
            id,
            facts.name,
            facts.os,
            facts.kernel,
            facts.arch,
            facts.boot_id.as_bytes(),
            addresses,
            facts.ephemeral_ports.map(PortRange::first),
            facts.ephemeral_ports.map(PortRange::last),
            facts.agent_version,
            facts.tier.number(),
            facts.tier_reason,
            coding::signed(facts.netns),
            contact.at.as_micros(),
            contact.clock_offset_us,
        ])
        .map(drop)
}

/// A host as its row has it.
pub(super) fn entry(row: &Row<'_>, labels: Labels) -> Result<HostEntry, rusqlite::Error> {
    let name: String = row.get("name")?;
    let boot_id: Option<[u8; 16]> = row.get("boot_id")?;
    let facts = match boot_id {
        Some(boot_id) => Some(facts(row, name.clone(), BootId::from_array(boot_id))?),
        None => None,
    };
    Ok(HostEntry {
        id: row.get("id")?,
        host_id: HostId::from_array(row.get("host_id")?),
        name,
        labels,
        enrolled_at: coding::time(row, "enrolled_at_us")?,
        revoked: row.get::<_, Option<i64>>("revoked_at_us")?.is_some(),
        waits: row.get("waits")?,
        warning: warning(row)?,
        facts,
        last_seen_at: coding::time_or_null(row, "last_seen_at_us")?,
        observed_since: coding::time_or_null(row, "observed_since_us")?,
        observed_until: coding::time_or_null(row, "observed_until_us")?,
        told_until: None,
        skew: Skew { offset_us: row.get("clock_offset_us")? },
        cost: AgentCost {
            cpu: Duration::ZERO,
            rss_bytes: coding::unsigned(row, "agent_rss_bytes")?,
            cpu_millipercent: row.get("agent_cpu_millipercent")?,
            losses: coding::unsigned(row, "losses")?,
        },
        tcp_counts: tcp_counts(row)?,
        proved_at: coding::time_or_null(row, "proved_at_us")?,
        unwritten: false,
    })
}

fn tcp_counts(row: &Row<'_>) -> Result<Option<TcpCounts>, rusqlite::Error> {
    let [time_wait, syn_received, bound] = ["tcp_time_wait", "tcp_syn_received", "tcp_bound"]
        .map(|column| row.get::<_, Option<i64>>(column).map(|number| number.map(i64::cast_unsigned)));
    let (time_wait, bound) = (time_wait?, bound?);
    Ok(time_wait.zip(syn_received?).map(|(time_wait, syn_received)| TcpCounts { time_wait, syn_received, bound }))
}

fn warning(row: &Row<'_>) -> Result<Option<Warning>, rusqlite::Error> {
    let (text, at): (Option<String>, _) = (row.get("warning")?, coding::time_or_null(row, "warned_at_us")?);
    Ok(text.zip(at).map(|(text, at)| Warning { text, at }))
}

fn facts(row: &Row<'_>, name: String, boot_id: BootId) -> Result<HostFacts, rusqlite::Error> {
    let ephemeral: (Option<u16>, Option<u16>) = (row.get("ephemeral_first")?, row.get("ephemeral_last")?);
    Ok(HostFacts {
        name,
        os: row.get("os")?,
        kernel: row.get("kernel")?,
        arch: row.get("arch")?,
        boot_id,
        addresses: coding::addresses("addresses", &row.get::<_, Vec<u8>>("addresses")?)?,
        ephemeral_ports: match ephemeral {
            (Some(first), Some(last)) => PortRange::new(first, last).ok(),
            _ => None,
        },
        agent_version: row.get("agent_version")?,
        tier: coding::word(row, "tier", Tier::from_number)?,
        tier_reason: row.get("tier_reason")?,
        netns: coding::unsigned(row, "netns")?,
    })
}

/// A host as an answer shows it.
pub(in super::super) fn host((entry, state): &(Arc<HostEntry>, HostState), listeners: u64, sessions_open: u64) -> Host {
    let HostEntry {
        host_id,
        name,
        labels,
        enrolled_at,
        facts,
        last_seen_at,
        skew,
        cost,
        tcp_counts,
        warning,
        waits,
        proved_at,
        ..
    } = HostEntry::clone(entry);
    let waiting = || Warning { text: format!("waits for approval: fleetctl hosts approve {host_id}"), at: enrolled_at };
    let warning = if waits { Some(waiting()) } else { warning };
    Host {
        host_id,
        name,
        state: *state,
        last_seen_at,
        enrolled_at: Some(enrolled_at),
        facts,
        labels: BTreeMap::clone(&labels),
        listeners,
        sessions_open,
        losses: cost.losses,
        agent_cpu_millipercent: cost.cpu_millipercent,
        agent_rss_bytes: cost.rss_bytes,
        clock_offset_us: skew.offset_us,
        warning,
        tcp_counts,
        proved_at,
    }
}
