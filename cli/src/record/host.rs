//! A host, as `hosts` shows it.

use std::time::Duration;

use fleetsock_proto::{
    host::{Host, HostFacts, HostState},
    tcp::TcpCounts,
};
use serde_json::Value;

use super::{Cell, Column, Field, Marks, Record, Shown, Side, View, column, moment_or_null, text};
use crate::console::Tone;

fn fact(host: &Host, value: impl Fn(&HostFacts) -> Value) -> Value {
    host.facts.as_ref().map_or(Value::Null, value)
}

fn fact_cell(host: &Host, read: impl Fn(&HostFacts) -> String) -> Cell {
    Cell::new(&host.facts.as_ref().map_or_else(String::new, read))
}

fn addresses(facts: &HostFacts) -> impl Iterator<Item = String> {
    facts.addresses.iter().map(ToString::to_string)
}

/// `1.5 s ahead`, `0.2 s behind`.
fn clock_text(host: &Host) -> String {
    let offset = Duration::from_micros(host.clock_offset_us.unsigned_abs());
    let side = if host.clock_offset_us < 0 { "behind" } else { "ahead" };
    format!("{:.3} s {side}", offset.as_secs_f64())
}

const FIELDS: &[Field<Host>] = &[
    Field { name: "host", value: |host, _| host.name.as_str().into() },
    Field { name: "host_id", value: |host, _| host.host_id.to_string().into() },
    Field { name: "state", value: |host, _| host.state.as_str().into() },
    Field { name: "last_seen_at", value: |host, _| moment_or_null(host.last_seen_at) },
    Field { name: "os", value: |host, _| fact(host, |facts| text(&facts.os)) },
    Field { name: "kernel", value: |host, _| fact(host, |facts| text(&facts.kernel)) },
    Field { name: "arch", value: |host, _| fact(host, |facts| text(&facts.arch)) },
    Field { name: "boot_id", value: |host, _| fact(host, |facts| facts.boot_id.to_string().into()) },
    Field { name: "addresses", value: |host, _| fact(host, |facts| addresses(facts).collect::<Vec<_>>().into()) },
    Field { name: "agent_version", value: |host, _| fact(host, |facts| text(&facts.agent_version)) },
    Field { name: "tier", value: |host, _| fact(host, |facts| facts.tier.as_str().into()) },
    Field { name: "tier_reason", value: |host, _| fact(host, |facts| text(&facts.tier_reason)) },
    Field {
        name: "labels",
        value: |host, _| host.labels.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect(),
    },
    Field { name: "listeners", value: |host, _| host.listeners.into() },
    Field { name: "sessions_open", value: |host, _| host.sessions_open.into() },
    Field { name: "losses", value: |host, _| host.losses.into() },
    Field { name: "agent_cpu_percent", value: |host, _| (f64::from(host.agent_cpu_millipercent) / 1_000.0).into() },
    Field { name: "agent_rss_bytes", value: |host, _| host.agent_rss_bytes.into() },
    Field { name: "enrolled_at", value: |host, _| moment_or_null(host.enrolled_at) },
    Field { name: "clock_offset_ms", value: |host, _| (host.clock_offset_us / 1_000).into() },
    Field {
        name: "ephemeral_ports",
        value: |host, _| {
            fact(host, |facts| facts.ephemeral_ports.map_or(Value::Null, |range| range.to_string().into()))
        },
    },
    Field { name: "netns", value: |host, _| fact(host, |facts| facts.netns.into()) },
    Field {
        name: "warning",
        value: |host, _| host.warning.as_ref().map_or(Value::Null, |warning| warning.text.as_str().into()),
    },
    Field { name: "warned_at", value: |host, _| moment_or_null(host.warning.as_ref().map(|warning| warning.at)) },
    Field { name: "tcp_time_wait", value: |host, _| tcp(host, |counts| Some(counts.time_wait)).into() },
    Field { name: "tcp_syn_received", value: |host, _| tcp(host, |counts| Some(counts.syn_received)).into() },
    Field { name: "tcp_bound", value: |host, _| tcp(host, |counts| counts.bound).into() },
    Field { name: "proved_at", value: |host, _| moment_or_null(host.proved_at) },
];

fn tcp(host: &Host, number: impl Fn(&TcpCounts) -> Option<u64>) -> Option<u64> {
    host.tcp_counts.as_ref().and_then(number)
}

fn tcp_cell(host: &Host, number: impl Fn(&TcpCounts) -> Option<u64>) -> Cell {
    Cell::new(&tcp(host, number).map_or_else(String::new, |number| number.to_string()))
}

fn state(host: &Host, _: &View) -> Cell {
    let mark = if host.warning.is_some() { " !" } else { "" };
    Cell::new(&format!("{}{mark}", host.state)).tone(match host.state {
        _ if host.warning.is_some() => Tone::Bad,
        HostState::Online => Tone::Good,
        HostState::Revoked => Tone::Bad,
        HostState::Stale | HostState::Pending => Tone::Warning,
    })
}

fn warning(host: &Host, view: &View) -> Cell {
    let Some(warning) = &host.warning else { return Cell::new("") };
    match view.times {
        super::Times::Absolute => Cell::new(&format!("{} ({})", warning.text, view.clock.absolute(warning.at))),
        super::Times::Relative => Cell::new(&warning.text),
    }
    .tone(Tone::Bad)
}

fn address(host: &Host, view: &View) -> Cell {
    fact_cell(host, |facts| {
        let shown = if view.times == super::Times::Absolute { usize::MAX } else { 1 };
        let mut text = addresses(facts).take(shown).collect::<Vec<_>>().join(" ");
        if let more @ 1.. = facts.addresses.len().saturating_sub(shown) {
            text.push_str(&format!(" +{more}"));
        }
        text
    })
}

fn losses(host: &Host, _: &View) -> Cell {
    Cell::new(&host.losses.to_string()).tone(if host.losses == 0 { Tone::Plain } else { Tone::Warning })
}

fn labels(host: &Host, _: &View) -> Cell {
    Cell::new(&host.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","))
}

const COLUMNS: &[Column<Host>] = &[
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |host, _| Cell::new(&host.name)),
    column("state", "STATE", &["state"], Shown::Always, Side::Left, state),
    column("seen", "SEEN", &["last_seen_at"], Shown::Always, Side::Left, |host, view| {
        Cell::new(&host.last_seen_at.map_or_else(String::new, |at| view.moment(at)))
    }),
    column("address", "ADDRESS", &["addresses"], Shown::Always, Side::Left, address),
    column("os", "OS", &["os"], Shown::Always, Side::Left, |host, _| fact_cell(host, |facts| facts.os.clone())),
    column("kernel", "KERNEL", &["kernel"], Shown::Wide, Side::Left, |host, _| {
        fact_cell(host, |facts| facts.kernel.clone())
    }),
    column("arch", "ARCH", &["arch"], Shown::Wide, Side::Left, |host, _| fact_cell(host, |facts| facts.arch.clone())),
    column("tier", "TIER", &["tier"], Shown::Always, Side::Left, |host, _| {
        fact_cell(host, |facts| facts.tier.to_string())
    }),
    column("listeners", "LISTENERS", &["listeners"], Shown::Always, Side::Right, |host, _| {
        Cell::new(&host.listeners.to_string())
    }),
    column("sessions", "SESSIONS", &["sessions_open"], Shown::Always, Side::Right, |host, _| {
        Cell::new(&host.sessions_open.to_string())
    }),
    column("time_wait", "TIME-WAIT", &["tcp_time_wait"], Shown::Wide, Side::Right, |host, _| {
        tcp_cell(host, |counts| Some(counts.time_wait))
    }),
    column("syn_received", "SYN-RECEIVED", &["tcp_syn_received"], Shown::Wide, Side::Right, |host, _| {
        tcp_cell(host, |counts| Some(counts.syn_received))
    }),
    column("bound", "BOUND", &["tcp_bound"], Shown::Wide, Side::Right, |host, _| tcp_cell(host, |counts| counts.bound)),
    column("losses", "LOSSES", &["losses"], Shown::Always, Side::Right, losses),
    column("proved", "PROVED", &["proved_at"], Shown::Wide, Side::Left, |host, view| {
        Cell::new(&host.proved_at.map_or_else(String::new, |at| view.moment(at)))
    }),
    column("agent", "AGENT", &["agent_version"], Shown::Wide, Side::Left, |host, _| {
        fact_cell(host, |facts| facts.agent_version.clone())
    }),
    column("cpu", "CPU%", &["agent_cpu_percent"], Shown::Wide, Side::Right, |host, _| {
        Cell::new(&format!("{:.2}", f64::from(host.agent_cpu_millipercent) / 1_000.0))
    }),
    column("memory", "RSS-MIB", &["agent_rss_bytes"], Shown::Wide, Side::Right, |host, _| {
        Cell::new(&(host.agent_rss_bytes >> 20).to_string())
    }),
    column("clock", "CLOCK", &["clock_offset_ms"], Shown::Wide, Side::Left, |host, _| Cell::new(&clock_text(host))),
    column("labels", "LABELS", &["labels"], Shown::Wide, Side::Left, labels),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |host, _| Cell::new(&host.host_id.to_string())),
    column("tier_reason", "TIER-REASON", &["tier_reason"], Shown::Wide, Side::Left, |host, _| {
        fact_cell(host, |facts| facts.tier_reason.clone())
    }),
    column("warning", "WARNING", &["warning", "warned_at"], Shown::Wide, Side::Left, warning),
];

impl Record for Host {
    const NOUN: &'static str = "host";

    fn fields() -> &'static [Field<Host>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Host>] {
        COLUMNS
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn marks(&self) -> Marks {
        if self.warning.is_some() { Marks::warning() } else { Marks::default() }
    }
}
