//! A listener, as `ports` shows it.

use fleetsock_proto::listener::Listener;
use serde_json::Value;

use super::{
    Cell, Column, Field, Marks, Record, Shown, Side, column, host_cell, moment, moment_or_null, of_owner, owners,
    place_cell, process_cell, service_cell, service_source, text, user,
};

const FIELDS: &[Field<Listener>] = &[
    Field { name: "host", value: |row, _| row.host.as_str().into() },
    Field { name: "host_id", value: |row, _| row.host_id.to_string().into() },
    Field { name: "protocol", value: |row, _| row.protocol.as_str().into() },
    Field { name: "family", value: |row, _| row.family.as_str().into() },
    Field { name: "address", value: |row, _| row.address.to_string().into() },
    Field { name: "port", value: |row, _| row.port.into() },
    Field { name: "class", value: |row, _| row.class().as_str().into() },
    Field { name: "service", value: |row, _| row.service().map_or(Value::Null, |service| service.name.into()) },
    Field { name: "service_source", value: |row, _| service_source(row.service()) },
    Field { name: "scope", value: |row, _| row.scope().as_str().into() },
    Field { name: "netns", value: |row, _| row.netns.into() },
    Field { name: "pid", value: |row, _| of_owner(&row.owners, |owner| owner.pid.into()) },
    Field { name: "process", value: |row, _| of_owner(&row.owners, |owner| text(&owner.process)) },
    Field { name: "exe", value: |row, _| of_owner(&row.owners, |owner| text(&owner.exe)) },
    Field { name: "user", value: |row, _| of_owner(&row.owners, |owner| user(owner).into()) },
    Field { name: "owners", value: |row, _| owners(&row.owners) },
    Field { name: "owner_known", value: |row, _| row.owner_known.as_str().into() },
    Field { name: "container", value: |row, _| of_owner(&row.owners, |owner| text(&owner.container)) },
    Field { name: "unit", value: |row, _| of_owner(&row.owners, |owner| text(&owner.unit)) },
    Field { name: "opened_at", value: |row, _| moment(row.opened_at) },
    Field { name: "opened_known", value: |row, _| row.opened_known.as_str().into() },
    Field { name: "closed_at", value: |row, _| moment_or_null(row.closed.map(|(at, _)| at)) },
    Field { name: "closed_known", value: |row, _| row.closed.map_or(Value::Null, |(_, known)| known.as_str().into()) },
    Field { name: "host_state", value: |row, _| row.host_state.as_str().into() },
    Field { name: "command_line", value: |row, _| of_owner(&row.owners, |owner| text(&owner.command_line)) },
    Field { name: "netns_name", value: |row, _| text(&row.netns_name) },
];

const COLUMNS: &[Column<Listener>] = &[
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |row, _| host_cell(&row.host, row.host_state)),
    column("proto", "PROTO", &["protocol"], Shown::Always, Side::Left, |row, _| Cell::word(row.protocol.as_str())),
    column("family", "FAMILY", &["family"], Shown::Wide, Side::Left, |row, _| Cell::word(row.family.as_str())),
    column("address", "ADDRESS", &["address"], Shown::Always, Side::Left, |row, _| Cell::new(&row.address.to_string())),
    column("port", "PORT", &["port"], Shown::Always, Side::Right, |row, _| Cell::new(&row.port.to_string())),
    column("class", "CLASS", &["class"], Shown::Always, Side::Left, |row, _| Cell::new(row.class().as_str())),
    column("service", "SERVICE?", &["service", "service_source"], Shown::Always, Side::Left, |row, _| {
        service_cell(row.service())
    }),
    column("scope", "SCOPE", &["scope"], Shown::Always, Side::Left, |row, _| Cell::new(row.scope().as_str())),
    column("process", "PROCESS", &["process", "pid", "owner_known"], Shown::Always, Side::Left, |row, _| {
        process_cell(&row.owners, row.owner_known)
    }),
    column("user", "USER", &["user"], Shown::Always, Side::Left, |row, _| {
        Cell::new(&row.owners.first().map_or_else(String::new, user))
    }),
    column("where", "WHERE", &["container", "netns_name", "unit"], Shown::Always, Side::Left, |row, _| {
        place_cell(&row.owners, &row.netns_name)
    }),
    column("since", "SINCE", &["opened_at", "opened_known"], Shown::Always, Side::Left, |row, view| {
        Cell::new(&view.opened(row.opened_at, row.opened_known))
    }),
    column("exe", "EXE", &["exe"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(row.owners.first().map_or("", |owner| &owner.exe))
    }),
    column("netns", "NETNS", &["netns"], Shown::Wide, Side::Right, |row, _| Cell::new(&row.netns.to_string())),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |row, _| Cell::new(&row.host_id.to_string())),
    column("command_line", "COMMAND-LINE", &["command_line"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(row.owners.first().map_or("", |owner| &owner.command_line))
    }),
];

impl Record for Listener {
    const NOUN: &'static str = "listening port";

    fn fields() -> &'static [Field<Listener>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Listener>] {
        COLUMNS
    }

    fn name(&self) -> String {
        format!("{}/{}/{}", self.host, self.protocol, self.address.with_port(self.port))
    }

    fn marks(&self) -> Marks {
        Marks::of(self.opened_known)
    }
}
