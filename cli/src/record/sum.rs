//! A sum, as `summary` shows it.

use fleetsock_proto::summary::Sum;
use serde_json::Value;

use super::{Cell, Column, Field, Record, Shown, Side, Times, View, bytes_cell, moment_or_null, text};

const FIELDS: &[Field<Sum>] = &[
    Field { name: "hour", value: |row, _| moment_or_null(row.group.hour) },
    Field {
        name: "host",
        value: |row, _| row.group.host.as_ref().map_or(Value::Null, |(name, _)| name.as_str().into()),
    },
    Field {
        name: "host_id",
        value: |row, _| row.group.host.as_ref().map_or(Value::Null, |(_, id)| id.to_string().into()),
    },
    Field { name: "class", value: |row, _| row.group.class.map_or(Value::Null, |class| class.as_str().into()) },
    Field { name: "service", value: |row, _| text(row.group.service.as_deref().unwrap_or_default()) },
    Field { name: "process", value: |row, _| text(row.group.process.as_deref().unwrap_or_default()) },
    Field {
        name: "peer_address",
        value: |row, _| row.group.peer.as_ref().map_or(Value::Null, |(address, _)| address.to_string().into()),
    },
    Field { name: "peer_host", value: |row, _| text(row.group.peer.as_ref().map_or("", |(_, host)| host)) },
    Field { name: "listeners", value: |row, _| row.listeners.into() },
    Field { name: "sessions", value: |row, _| row.sessions.into() },
    Field { name: "bytes_sent", value: |row, _| row.bytes_sent.into() },
    Field { name: "bytes_received", value: |row, _| row.bytes_received.into() },
];

/// The hour, on the clock.
fn hour(row: &Sum, view: &View) -> Cell {
    let told = |at| if view.times == Times::Absolute { view.clock.absolute(at) } else { view.clock.short(at) };
    Cell::new(&row.group.hour.map_or_else(String::new, told))
}

fn peer(row: &Sum, _: &View) -> Cell {
    Cell::new(&match &row.group.peer {
        None => String::new(),
        Some((address, host)) if host.is_empty() => address.to_string(),
        Some((address, host)) => format!("{address} ({host})"),
    })
}

const COLUMNS: &[Column<Sum>] = &[
    column("hour", "HOUR", &["hour"], Side::Left, hour),
    column("host", "HOST", &["host"], Side::Left, |row, _| {
        Cell::new(row.group.host.as_ref().map_or("", |(name, _)| name))
    }),
    column("class", "CLASS", &["class"], Side::Left, |row, _| {
        Cell::new(row.group.class.map_or("", fleetsock_proto::port::PortClass::as_str))
    }),
    column("service", "SERVICE?", &["service"], Side::Left, |row, _| {
        Cell::new(row.group.service.as_deref().unwrap_or_default())
    }),
    column("process", "PROCESS", &["process"], Side::Left, |row, _| {
        Cell::new(row.group.process.as_deref().unwrap_or_default())
    }),
    column("peer", "PEER", &["peer_address", "peer_host"], Side::Left, peer),
    column("listeners", "LISTENERS", &["listeners"], Side::Right, |row, _| Cell::of(row.listeners.to_string())),
    column("sessions", "SESSIONS", &["sessions"], Side::Right, |row, _| Cell::of(row.sessions.to_string())),
    column("sent", "SENT", &["bytes_sent"], Side::Right, |row, _| bytes_cell(row.bytes_sent)),
    column("received", "RECEIVED", &["bytes_received"], Side::Right, |row, _| bytes_cell(row.bytes_received)),
];

const fn column(
    name: &'static str,
    header: &'static str,
    fields: &'static [&'static str],
    side: Side,
    cell: fn(&Sum, &View) -> Cell,
) -> Column<Sum> {
    Column { name, header, fields, shown: Shown::Always, side, cell }
}

impl Record for Sum {
    const NOUN: &'static str = "group";

    fn fields() -> &'static [Field<Sum>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Sum>] {
        COLUMNS
    }

    fn name(&self) -> String {
        let group = &self.group;
        let told = [
            group.hour.map(crate::clock::rfc3339),
            group.host.as_ref().map(|(name, _)| name.clone()),
            group.class.map(|class| class.to_string()),
            group.service.clone(),
            group.process.clone(),
            group.peer.as_ref().map(|(address, _)| address.to_string()),
        ];
        told.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}
