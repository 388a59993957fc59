//! What a server counts of itself, for whoever watches it. Names follow OpenMetrics: units at their end, counters `_total`.
//!
//! Nothing here names a host, an operator or an address: series are few whatever the size of the fleet, and the port that
//! shows them tells nobody who is in it.

use std::time::Duration;

use fleetsock_proto::answer::GapReason;
use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::acceptor::Turned;

pub mod counting;
pub mod sampled;

/// One label.
type Label = [(&'static str, &'static str); 1];
/// Two labels.
type Labels = [(&'static str, &'static str); 2];

/// Seconds: from a quarter of a millisecond to half a minute.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_25, 2.0, 18))
}

/// Counts: from 1 to 16,384.
fn counts() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 4.0, 8))
}

/// What the history counts. Made by it, shown by the server.
#[derive(Debug, Clone)]
pub struct HistoryMeters {
    /// Time of the transactions of one group.
    commit: Histogram,
    /// Batches of one group.
    group_batches: Histogram,
    /// Rows of one group.
    group_rows: Histogram,
    /// Rows that are durable.
    rows: Counter,
    /// Groups that were not stored.
    failures: Counter,
    /// Ranges that agents told of and that the history found, by reason.
    gaps: Family<Label, Counter>,
    /// Batches that will never come, by reason.
    batches_lost: Family<Label, Counter>,
    /// Digests that were held against the open rows, by what came of it.
    digests: Family<Label, Counter>,
    /// Time that it took.
    proving: Histogram,
    /// 1 while the disk takes nothing.
    full: Gauge,
}

impl Default for HistoryMeters {
    fn default() -> HistoryMeters {
        HistoryMeters {
            commit: seconds(),
            group_batches: counts(),
            group_rows: counts(),
            rows: Counter::default(),
            failures: Counter::default(),
            gaps: Family::default(),
            batches_lost: Family::default(),
            digests: Family::default(),
            proving: seconds(),
            full: Gauge::default(),
        }
    }
}

impl HistoryMeters {
    /// A group is durable.
    pub fn stored(&self, batches: usize, rows: usize, took: Duration) {
        let count = |number: usize| u32::try_from(number).map_or(f64::INFINITY, f64::from);
        self.commit.observe(took.as_secs_f64());
        self.group_batches.observe(count(batches));
        self.group_rows.observe(count(rows));
        self.rows.inc_by(u64::try_from(rows).unwrap_or(u64::MAX));
        self.full.set(0);
    }

    /// Rows that became durable so far.
    pub fn rows(&self) -> u64 {
        self.rows.get()
    }

    /// A group was not stored.
    pub fn failed(&self) {
        self.failures.inc();
    }

    /// The disk takes nothing, until something is stored.
    pub fn found_full(&self) {
        self.full.set(1);
    }

    /// There is room.
    pub fn found_room(&self) {
        self.full.set(0);
    }

    /// Whether the disk took nothing when it was last tried.
    pub fn is_full(&self) -> bool {
        self.full.get() == 1
    }

    /// A gap is stored.
    pub fn gap(&self, reason: GapReason, batches_lost: u64) {
        let label = [("reason", reason.as_str())];
        self.gaps.get_or_create(&label).inc();
        self.batches_lost.get_or_create(&label).inc_by(batches_lost);
    }

    /// A digest was held against the open rows, which took so long.
    pub fn proved(&self, equality: Equality, took: Duration) {
        self.digests.get_or_create(&[("result", equality.as_str())]).inc();
        self.proving.observe(took.as_secs_f64());
    }

    fn register(&self, registry: &mut Registry) {
        for equality in [Equality::Equal, Equality::Different] {
            drop(self.digests.get_or_create(&[("result", equality.as_str())]));
        }
        // A series that is there from the beginning shows its first increase.
        for reason in GapReason::ALL.iter().filter(|reason| reason.is_stored()) {
            let label = [("reason", reason.as_str())];
            drop((self.gaps.get_or_create(&label), self.batches_lost.get_or_create(&label)));
        }
        let time = "Time of the transactions in which a group of batches became durable";
        registry.register_with_unit("history_commit", time, Unit::Seconds, self.commit.clone());
        let batches = "Batches that became durable together";
        registry.register("history_group_batches", batches, self.group_batches.clone());
        registry.register("history_group_rows", "Rows that became durable together", self.group_rows.clone());
        registry.register("history_rows", "Rows that became durable", self.rows.clone());
        registry.register("history_commit_failures", "Groups of batches that were not stored", self.failures.clone());
        registry.register("history_gaps", "Ranges that were stored as not observed, or as lossy", self.gaps.clone());
        registry.register("history_batches_lost", "Batches that will never come", self.batches_lost.clone());
        let digests = "Digests of agents that were held against what is open in the history, by result";
        registry.register("history_digests", digests, self.digests.clone());
        let proving = "Time in which what is open of a host was read to be held against a digest";
        registry.register_with_unit("history_digest", proving, Unit::Seconds, self.proving.clone());
        registry.register("history_disk_full", "1 while the disk of the history takes nothing", self.full.clone());
    }
}

/// What came of holding a digest against the open rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Equality {
    /// The history has as open what the agent has.
    Equal,
    /// It has not.
    Different,
}

impl Equality {
    const fn as_str(self) -> &'static str {
        match self {
            Equality::Equal => "equal",
            Equality::Different => "different",
        }
    }
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchResult {
    /// It is durable, now or since before.
    Committed,
    /// One before it is missing.
    Hole,
    /// The history did not take it.
    Refused,
}

impl BatchResult {
    const fn as_str(self) -> &'static str {
        match self {
            BatchResult::Committed => "committed",
            BatchResult::Hole => "hole",
            BatchResult::Refused => "refused",
        }
    }
}

/// What the server counts besides the history.
#[derive(Debug, Clone)]
pub struct Meters {
    /// Handshakes that led to a connection.
    pub handshakes: Counter,
    refused: Family<Label, Counter>,
    calls: Family<Labels, Counter>,
    batches: Family<Label, Counter>,
    ack: Histogram,
    /// Streams that were held back because they told more than they may.
    pub held_back: Counter,
}

impl Default for Meters {
    fn default() -> Meters {
        Meters {
            handshakes: Counter::default(),
            refused: Family::default(),
            calls: Family::default(),
            batches: Family::default(),
            ack: seconds(),
            held_back: Counter::default(),
        }
    }
}

impl Meters {
    /// A connection was turned away.
    pub fn turned_away(&self, turned: Turned) {
        self.refused.get_or_create(&[("reason", turned.as_str())]).inc();
    }

    /// A call is over.
    pub fn called(&self, method: &'static str, code: tonic::Code) {
        self.calls.get_or_create(&[("method", method), ("code", code_name(code))]).inc();
    }

    /// A batch was answered, so long after it came.
    pub fn answered(&self, result: BatchResult, after: Duration) {
        self.batches.get_or_create(&[("result", result.as_str())]).inc();
        if result == BatchResult::Committed {
            self.ack.observe(after.as_secs_f64());
        }
    }

    fn register(&self, registry: &mut Registry) {
        for turned in Turned::ALL {
            drop(self.refused.get_or_create(&[("reason", turned.as_str())]));
        }
        for method in crate::policy::methods() {
            drop(self.calls.get_or_create(&[("method", method), ("code", code_name(tonic::Code::Ok))]));
        }
        for result in [BatchResult::Committed, BatchResult::Hole, BatchResult::Refused] {
            drop(self.batches.get_or_create(&[("result", result.as_str())]));
        }
        registry.register("handshakes", "Connections whose TLS handshake was done", self.handshakes.clone());
        let refused = "Connections that were turned away before they were served, by reason";
        registry.register("handshakes_refused", refused, self.refused.clone());
        registry.register("rpcs", "Calls that are over, by method and gRPC status code", self.calls.clone());
        registry.register("batches", "Batches of agents that were answered, by result", self.batches.clone());
        let ack = "Time from the arrival of a batch to its acknowledgement, which means durable";
        registry.register_with_unit("ack", ack, Unit::Seconds, self.ack.clone());
        let held = "Messages after which an agent was not heard for a while because it tells more than it may";
        registry.register("agents_held_back", held, self.held_back.clone());
    }
}

/// The names of gRPC status codes (grpc/doc/statuscodes.md).
const fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Prefix of all names.
pub(crate) const PREFIX: &str = "fleetsock";

/// Everything that counts on, under its name.
pub(crate) fn registry(meters: &Meters, history: &HistoryMeters) -> Registry {
    let mut registry = Registry::with_prefix(PREFIX);
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", build);
    meters.register(&mut registry);
    history.register(&mut registry);
    registry
}
