//! One thing of a host's story, as `timeline` shows it.

use fleetsock_proto::{
    answer::Gap,
    change::{ChangeRecord, Changed},
    socket::Known,
    time::Timestamp,
};
use serde_json::Value;

use super::{
    Cell, Column, Field, Marks, Record, Shown, Side, Times, View, mark, moment, moment_or_null, of_owner, text, user,
};
use crate::{clock, console::Tone, record::change, sanitise::sanitise};

/// Sessions that opened within a stretch of time, in sum.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Those that peers began.
    pub inward: u64,
    /// Those that the host began.
    pub outward: u64,
    /// Different addresses of peers, as far as they were counted.
    pub peers: u64,
    /// Whether there were more peers than were counted.
    pub peers_at_least: bool,
    /// Bytes sent, as far as known.
    pub bytes_sent: u64,
    /// Bytes received, as far as known.
    pub bytes_received: u64,
    /// The services with most sessions, and how many these are.
    pub services: Vec<(String, u64)>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// Something changed.
    Change(Box<ChangeRecord>),
    /// Nobody looked.
    Gap(Gap),
    /// Sessions opened, until the moment.
    Sessions(Timestamp, Traffic),
}

/// One thing of a host's story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When it happened or began.
    pub at: Timestamp,
    /// What.
    pub what: Happened,
}

impl Entry {
    /// The word for what happened.
    pub fn event(&self) -> &'static str {
        match &self.what {
            Happened::Change(change) => change.kind.as_str(),
            Happened::Gap(_) => "not-observed",
            Happened::Sessions(..) => "sessions",
        }
    }

    fn until(&self) -> Option<Timestamp> {
        match &self.what {
            Happened::Change(_) => None,
            Happened::Gap(gap) => gap.until,
            Happened::Sessions(until, _) => Some(*until),
        }
    }

    fn change(&self) -> Option<&ChangeRecord> {
        match &self.what {
            Happened::Change(change) => Some(change),
            Happened::Gap(_) | Happened::Sessions(..) => None,
        }
    }

    fn traffic(&self) -> Option<&Traffic> {
        match &self.what {
            Happened::Sessions(_, traffic) => Some(traffic),
            Happened::Change(_) | Happened::Gap(_) => None,
        }
    }
}

fn of_change(row: &Entry, fact: impl Fn(&ChangeRecord) -> Value) -> Value {
    row.change().map_or(Value::Null, fact)
}

fn of_traffic(row: &Entry, fact: impl Fn(&Traffic) -> u64) -> Value {
    row.traffic().map_or(Value::Null, |traffic| fact(traffic).into())
}

/// A fact of the listener that changed, or null.
fn of_listener(row: &Entry, fact: impl Fn(&fleetsock_proto::listener::Listener) -> Value) -> Value {
    of_change(row, |change| match &change.what {
        Changed::Listener(listener) => fact(listener),
        Changed::Session(_) | Changed::Start(_) => Value::Null,
    })
}

const FIELDS: &[Field<Entry>] = &[
    Field { name: "at", value: |row, _| moment(row.at) },
    Field { name: "until", value: |row, _| moment_or_null(row.until()) },
    Field { name: "known", value: |row, _| of_change(row, |change| change.known.as_str().into()) },
    Field { name: "event", value: |row, _| row.event().into() },
    Field { name: "protocol", value: |row, _| of_listener(row, |listener| listener.protocol.as_str().into()) },
    Field { name: "address", value: |row, _| of_listener(row, |listener| listener.address.to_string().into()) },
    Field { name: "port", value: |row, _| of_listener(row, |listener| listener.port.into()) },
    Field {
        name: "service",
        value: |row, _| of_listener(row, |listener| listener.service().map_or(Value::Null, |it| it.name.into())),
    },
    Field { name: "scope", value: |row, _| of_listener(row, |listener| listener.scope().as_str().into()) },
    Field {
        name: "scope_before",
        value: |row, _| of_change(row, |change| change.scope_before.map_or(Value::Null, |scope| scope.as_str().into())),
    },
    Field { name: "pid", value: |row, _| of_change(row, |change| of_owner(change.owners(), |owner| owner.pid.into())) },
    Field {
        name: "process",
        value: |row, _| of_change(row, |change| of_owner(change.owners(), |owner| text(&owner.process))),
    },
    Field {
        name: "user",
        value: |row, _| of_change(row, |change| of_owner(change.owners(), |owner| user(owner).into())),
    },
    Field { name: "owners", value: |row, _| of_change(row, |change| super::owners(change.owners())) },
    Field { name: "owners_before", value: |row, _| of_change(row, |change| super::owners(&change.owners_before)) },
    Field {
        name: "boot_id",
        value: |row, _| {
            of_change(row, |change| match &change.what {
                Changed::Start(start) => start.boot_id.to_string().into(),
                Changed::Listener(_) | Changed::Session(_) => Value::Null,
            })
        },
    },
    Field {
        name: "reason",
        value: |row, _| match &row.what {
            Happened::Gap(gap) => gap.reason.as_str().into(),
            Happened::Change(_) | Happened::Sessions(..) => Value::Null,
        },
    },
    Field { name: "sessions", value: |row, _| of_traffic(row, |traffic| traffic.inward + traffic.outward) },
    Field { name: "sessions_in", value: |row, _| of_traffic(row, |traffic| traffic.inward) },
    Field { name: "sessions_out", value: |row, _| of_traffic(row, |traffic| traffic.outward) },
    Field { name: "peers", value: |row, _| of_traffic(row, |traffic| traffic.peers) },
    Field { name: "bytes_sent", value: |row, _| of_traffic(row, |traffic| traffic.bytes_sent) },
    Field { name: "bytes_received", value: |row, _| of_traffic(row, |traffic| traffic.bytes_received) },
    Field {
        name: "services",
        value: |row, _| {
            row.traffic().map_or(Value::Null, |traffic| {
                let counts = traffic.services.iter().map(|(name, sessions)| (name.clone(), Value::from(*sessions)));
                counts.collect::<serde_json::Map<_, _>>().into()
            })
        },
    },
];

/// The moment, on the clock: a story is not told in ages.
fn time(row: &Entry, view: &View) -> Cell {
    let at = if view.times == Times::Absolute { view.clock.absolute(row.at) } else { view.clock.short(row.at) };
    Cell::new(&match row.change().map(|change| change.known) {
        Some(Known::FirstSeen) => format!("≤{at}"),
        Some(known) => format!("{}{at}", mark(known)),
        None => at,
    })
}

fn event(row: &Entry, _: &View) -> Cell {
    let tone = match row.event() {
        "scope-widened" | "owner-changed" | "not-observed" => Tone::Warning,
        "closed" | "sessions" => Tone::Faint,
        _ => Tone::Plain,
    };
    Cell::new(row.event()).tone(tone)
}

fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

fn traffic(traffic: &Traffic) -> String {
    let Traffic { inward, outward, peers, services, .. } = traffic;
    let more = if traffic.peers_at_least { "more than " } else { "" };
    let mut told = format!("{inward} in, {outward} out, with {more}{}", count(*peers, "peer"));
    let named: Vec<String> = services.iter().map(|(name, sessions)| format!("{} {sessions}", sanitise(name))).collect();
    if !named.is_empty() {
        told.push_str(&format!(": {}", named.join(", ")));
    }
    told
}

fn story(row: &Entry, view: &View) -> Cell {
    Cell::new(&match &row.what {
        Happened::Change(change) => change::sentence(change, view),
        Happened::Gap(gap) => match gap.until {
            Some(until) => {
                format!(
                    "for {}, until {}: {}",
                    clock::lapse(until.since(gap.since)),
                    view.clock.short(until),
                    gap.reason
                )
            }
            None => gap.reason.to_string(),
        },
        Happened::Sessions(until, sum) => format!("until {}: {}", view.clock.short(*until), traffic(sum)),
    })
}

const COLUMNS: &[Column<Entry>] = &[
    column("time", "TIME", &["at", "known"], time),
    column("event", "EVENT", &["event"], event),
    column(
        "story",
        "STORY",
        &["until", "protocol", "address", "port", "process", "pid", "user", "reason", "sessions", "peers"],
        story,
    ),
];

const fn column(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    cell: fn(&Entry, &View) -> Cell,
) -> Column<Entry> {
    Column { name, header, fields, shown: Shown::Always, side: Side::Left, cell }
}

impl Record for Entry {
    const NOUN: &'static str = "event";

    fn fields() -> &'static [Field<Entry>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Entry>] {
        COLUMNS
    }

    fn name(&self) -> String {
        match &self.what {
            Happened::Change(change) => change.name(),
            Happened::Gap(_) | Happened::Sessions(..) => self.event().to_owned(),
        }
    }

    fn marks(&self) -> Marks {
        self.change().map_or_else(Marks::default, |change| Marks::of(change.known))
    }
}
