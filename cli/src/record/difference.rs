//! A listener that is not the same at two moments, as `diff` shows it.

use fleetsock_proto::{
    listener::Listener,
    owner::Owner,
    socket::{Known, OwnerKnown},
};
use serde_json::Value;

use super::{
    Cell, Column, Field, Marks, Record, Shown, Side, View, column, host_cell, mark, moment, moment_or_null, of_owner,
    owners, place_cell, process_cell, service_cell, service_source, text, user,
};
use crate::console::Tone;

/// What is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DifferenceKind {
    /// It is there at the later moment only.
    New,
    /// It is there at the earlier moment only.
    Gone,
    /// Other programs hold it.
    OwnerChanged,
}

impl DifferenceKind {
    /// The word in answers.
    pub const fn as_str(self) -> &'static str {
        match self {
            DifferenceKind::New => "new",
            DifferenceKind::Gone => "gone",
            DifferenceKind::OwnerChanged => "owner-changed",
        }
    }
}

/// At which of the two moments nobody looked at the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unobserved {
    /// At the earlier one.
    pub from: bool,
    /// At the later one.
    pub to: bool,
}

/// A difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What is different.
    pub kind: DifferenceKind,
    /// The listener: as it is at the later moment, or as it was when it is gone.
    pub listener: Listener,
    /// Who held it at the earlier moment, when that changed.
    pub owners_before: Vec<Owner>,
    /// What makes it doubtful.
    pub unobserved: Unobserved,
}

impl Difference {
    fn unobserved(&self) -> &'static str {
        match (self.unobserved.from, self.unobserved.to) {
            (false, false) => "",
            (true, false) => "from",
            (false, true) => "to",
            (true, true) => "both",
        }
    }
}

const FIELDS: &[Field<Difference>] = &[
    Field { name: "difference", value: |row, _| row.kind.as_str().into() },
    Field { name: "host", value: |row, _| row.listener.host.as_str().into() },
    Field { name: "host_id", value: |row, _| row.listener.host_id.to_string().into() },
    Field { name: "protocol", value: |row, _| row.listener.protocol.as_str().into() },
    Field { name: "family", value: |row, _| row.listener.family.as_str().into() },
    Field { name: "address", value: |row, _| row.listener.address.to_string().into() },
    Field { name: "port", value: |row, _| row.listener.port.into() },
    Field { name: "class", value: |row, _| row.listener.class().as_str().into() },
    Field {
        name: "service",
        value: |row, _| row.listener.service().map_or(Value::Null, |service| service.name.into()),
    },
    Field { name: "service_source", value: |row, _| service_source(row.listener.service()) },
    Field { name: "scope", value: |row, _| row.listener.scope().as_str().into() },
    Field { name: "netns", value: |row, _| row.listener.netns.into() },
    Field { name: "pid", value: |row, _| of_owner(&row.listener.owners, |owner| owner.pid.into()) },
    Field { name: "process", value: |row, _| of_owner(&row.listener.owners, |owner| text(&owner.process)) },
    Field { name: "exe", value: |row, _| of_owner(&row.listener.owners, |owner| text(&owner.exe)) },
    Field { name: "user", value: |row, _| of_owner(&row.listener.owners, |owner| user(owner).into()) },
    Field { name: "container", value: |row, _| of_owner(&row.listener.owners, |owner| text(&owner.container)) },
    Field { name: "unit", value: |row, _| of_owner(&row.listener.owners, |owner| text(&owner.unit)) },
    Field { name: "owner_known", value: |row, _| row.listener.owner_known.as_str().into() },
    Field { name: "owners", value: |row, _| owners(&row.listener.owners) },
    Field { name: "owners_before", value: |row, _| owners(&row.owners_before) },
    Field { name: "opened_at", value: |row, _| moment(row.listener.opened_at) },
    Field { name: "opened_known", value: |row, _| row.listener.opened_known.as_str().into() },
    Field { name: "closed_at", value: |row, _| moment_or_null(row.listener.closed.map(|(at, _)| at)) },
    Field {
        name: "closed_known",
        value: |row, _| row.listener.closed.map_or(Value::Null, |(_, known)| known.as_str().into()),
    },
    Field { name: "unobserved", value: |row, _| text(row.unobserved()) },
    Field { name: "host_state", value: |row, _| row.listener.host_state.as_str().into() },
    Field { name: "netns_name", value: |row, _| text(&row.listener.netns_name) },
];

fn difference(row: &Difference, _: &View) -> Cell {
    let (sign, tone) = match row.kind {
        DifferenceKind::New => ("+", Tone::Good),
        DifferenceKind::Gone => ("-", Tone::Bad),
        DifferenceKind::OwnerChanged => ("!", Tone::Warning),
    };
    Cell::new(&format!("{sign} {}", row.kind.as_str())).tone(tone)
}

/// When it came or went, who held it, and whether anybody looked.
fn detail(row: &Difference, view: &View) -> Cell {
    let listener = &row.listener;
    let mut told = vec![match (row.kind, listener.closed) {
        (DifferenceKind::New, _) => format!("since {}", view.opened(listener.opened_at, listener.opened_known)),
        (DifferenceKind::Gone, Some((at, known))) => format!("closed {}{}", mark(known), view.moment(at)),
        (DifferenceKind::Gone, None) => String::new(),
        (DifferenceKind::OwnerChanged, _) => {
            format!("was {}", process_cell(&row.owners_before, OwnerKnown::Exact).text)
        }
    }];
    match row.unobserved() {
        "" => {}
        "both" => told.push("not observed at either moment".to_owned()),
        moment => told.push(format!("not observed at --{moment}")),
    }
    told.retain(|words| !words.is_empty());
    Cell::new(&told.join(", "))
}

const COLUMNS: &[Column<Difference>] = &[
    column("difference", "DIFFERENCE", &["difference"], Shown::Always, Side::Left, difference),
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |row, _| {
        host_cell(&row.listener.host, row.listener.host_state)
    }),
    column("proto", "PROTO", &["protocol"], Shown::Always, Side::Left, |row, _| {
        Cell::new(row.listener.protocol.as_str())
    }),
    column("address", "ADDRESS", &["address"], Shown::Always, Side::Left, |row, _| {
        Cell::new(&row.listener.address.to_string())
    }),
    column("port", "PORT", &["port"], Shown::Always, Side::Right, |row, _| Cell::new(&row.listener.port.to_string())),
    column("service", "SERVICE?", &["service", "service_source"], Shown::Always, Side::Left, |row, _| {
        service_cell(row.listener.service())
    }),
    column("scope", "SCOPE", &["scope"], Shown::Always, Side::Left, |row, _| Cell::new(row.listener.scope().as_str())),
    column("process", "PROCESS", &["process", "pid", "owner_known"], Shown::Always, Side::Left, |row, _| {
        process_cell(&row.listener.owners, row.listener.owner_known)
    }),
    column("user", "USER", &["user"], Shown::Always, Side::Left, |row, _| {
        Cell::new(&row.listener.owners.first().map_or_else(String::new, user))
    }),
    column("where", "WHERE", &["container", "netns_name", "unit"], Shown::Always, Side::Left, |row, _| {
        place_cell(&row.listener.owners, &row.listener.netns_name)
    }),
    column(
        "detail",
        "DETAIL",
        &["opened_at", "opened_known", "closed_at", "closed_known", "owners_before", "unobserved"],
        Shown::Always,
        Side::Left,
        detail,
    ),
    column("netns", "NETNS", &["netns"], Shown::Wide, Side::Right, |row, _| Cell::new(&row.listener.netns.to_string())),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(&row.listener.host_id.to_string())
    }),
];

impl Record for Difference {
    const NOUN: &'static str = "difference";

    fn fields() -> &'static [Field<Difference>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Difference>] {
        COLUMNS
    }

    fn name(&self) -> String {
        let Listener { host, protocol, address, port, .. } = &self.listener;
        format!("{host}/{protocol}/{} {}", address.with_port(*port), self.kind.as_str())
    }

    fn marks(&self) -> Marks {
        match (self.kind, self.listener.closed) {
            (DifferenceKind::New, _) => Marks::of(self.listener.opened_known),
            (DifferenceKind::Gone, Some((_, known))) => Marks::of(known),
            (DifferenceKind::Gone | DifferenceKind::OwnerChanged, _) => Marks::of(Known::Event),
        }
    }
}
