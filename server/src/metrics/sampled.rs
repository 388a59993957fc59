//! What is read at the moment of a scrape: who is there, what is kept, how much room there is, how long certificates hold.

use std::sync::atomic::{AtomicI64, AtomicU64};

use fleetsock_proto::{host::HostState, time::Timestamp};
use prometheus_client::{
    encoding::text,
    metrics::{counter::ConstCounter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{Label, PREFIX};
use crate::history::Vitals;

/// What is read.
#[derive(Debug)]
pub(crate) struct Sample {
    /// What the history says of itself.
    pub(crate) vitals: Vitals,
    /// Hosts that speak.
    pub(crate) agents_connected: usize,
    /// Connections, whoever is at their other end.
    pub(crate) connections: usize,
    /// Ends of certificates, by whose they are.
    pub(crate) certificates: Vec<(&'static str, Timestamp)>,
    /// Reasons not to be ready.
    pub(crate) unready: usize,
    /// CPU of this process, and its memory where that may be read.
    pub(crate) process: Process,
}

/// What the process costs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pub(crate) cpu_seconds: f64,
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) started_at: Timestamp,
}

fn whole(number: impl TryInto<i64>) -> Gauge<i64, AtomicI64> {
    let gauge = Gauge::default();
    gauge.set(number.try_into().unwrap_or(i64::MAX));
    gauge
}

fn real(number: f64) -> Gauge<f64, AtomicU64> {
    let gauge = Gauge::default();
    gauge.set(number);
    gauge
}

/// Seconds since the Unix epoch.
fn moment(at: Timestamp) -> f64 {
    // Exact to a microsecond until the year 2255.
    #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^53")]
    let us = at.as_micros() as f64;
    us / 1e6
}

/// Adds the sample to an exposition.
pub(crate) fn encode(sample: &Sample, text: &mut String) -> Result<(), std::fmt::Error> {
    let mut registry = Registry::with_prefix(PREFIX);
    people(sample, &mut registry);
    kept(sample, &mut registry);
    text::encode_registry(text, &registry)?;
    text::encode_registry(text, &process(&sample.process))
}

fn people(sample: &Sample, registry: &mut Registry) {
    let Vitals { hosts, agents, .. } = &sample.vitals;
    let states = Family::<Label, Gauge>::default();
    for state in HostState::ALL.iter().copied() {
        let count = hosts.iter().filter(|(of, _)| *of == state).map(|(_, count)| *count).sum::<u64>();
        states.get_or_create(&[("state", state.as_str())]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("hosts", "Hosts that enrolled, by state", states);
    let connected = "Hosts whose agents are connected and speak";
    registry.register("agents_connected", connected, whole(sample.agents_connected));
    registry.register("connections", "Connections with TLS, of whomever", whole(sample.connections));
    let losses = "Records that the agents know they lost since they started, in sum";
    registry.register("agents_losses", losses, whole(agents.losses));
    let memory = "Memory of the agents in sum, as they last told";
    registry.register_with_unit("agents_resident", memory, Unit::Bytes, whole(agents.rss_bytes));
    let cpu = "Processors that the agents take in sum, as they last told: 1 is one whole processor";
    let cores = f64::from(u32::try_from(agents.cpu_millipercent).unwrap_or(u32::MAX)) / 100_000.0;
    registry.register_with_unit("agents_cpu", cpu, Unit::Other("cores".to_owned()), real(cores));
    let clock = "Hosts whose clock is more than two seconds off, and is corrected";
    registry.register("hosts_clock_off", clock, whole(agents.clocks_off));
    registry.register("unready_reasons", "Why /readyz says no: the number of its reasons", whole(sample.unready));
}

fn kept(sample: &Sample, registry: &mut Registry) {
    let Vitals { queue, files, disk, oldest, newest, .. } = &sample.vitals;
    registry.register("history_queue_length", "Work that waits for the writer", whole(queue.0));
    registry.register("history_queue_limit", "Work that may wait for the writer", whole(queue.1));
    let (sizes, counts) = (Family::<Label, Gauge>::default(), Family::<Label, Gauge>::default());
    for (kind, count, bytes) in files {
        sizes.get_or_create(&[("kind", kind)]).set(i64::try_from(*bytes).unwrap_or(i64::MAX));
        counts.get_or_create(&[("kind", kind)]).set(i64::try_from(*count).unwrap_or(i64::MAX));
    }
    let size = "Size of the files of the history with their logs, by kind: main, hot (written to), complete";
    registry.register_with_unit("history_files", size, Unit::Bytes, sizes);
    registry.register("history_files", "Files of the history, by kind", counts);
    if let Some((free, size)) = disk {
        let help = "Room that is left on the file system of the history";
        registry.register_with_unit("history_disk_free", help, Unit::Bytes, whole(*free));
        let help = "Size of the file system of the history";
        registry.register_with_unit("history_disk_size", help, Unit::Bytes, whole(*size));
    }
    for (name, help, at) in [
        ("history_oldest_timestamp", "When the oldest file of sessions began", oldest),
        ("history_newest_timestamp", "When the file of sessions began that is written to", newest),
    ] {
        if let Some(at) = at {
            registry.register_with_unit(name, help, Unit::Seconds, real(moment(*at)));
        }
    }
    let ends = Family::<Label, Gauge<f64, AtomicU64>>::default();
    for (whose, at) in &sample.certificates {
        ends.get_or_create(&[("certificate", whose)]).set(moment(*at));
    }
    let help = "When a certificate of the server or its CA is over; agents' and operators' are not here";
    registry.register_with_unit("certificate_expiry_timestamp", help, Unit::Seconds, ends);
}

/// Under the names that every exporter has.
fn process(process: &Process) -> Registry {
    let mut registry = Registry::with_prefix("process");
    let help = "CPU of the server";
    registry.register_with_unit("cpu", help, Unit::Seconds, ConstCounter::new(process.cpu_seconds));
    let help = "When the server started";
    registry.register_with_unit("start_time", help, Unit::Seconds, real(moment(process.started_at)));
    if let Some(bytes) = process.resident_bytes {
        registry.register_with_unit("resident_memory", "Memory of the server", Unit::Bytes, whole(bytes));
    }
    registry
}
