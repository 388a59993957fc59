//! A session, as `sessions` shows it.

use fleetsock_proto::{owner::Owner, session::Session, socket::Known};
use serde_json::Value;

use super::{
    Cell, Column, Field, Marks, Record, Shown, Side, View, bytes_cell, column, host_cell, mark, moment, moment_or_null,
    of_owner, owners, place_cell, process_cell, service_cell, service_source, socket, text, user,
};
use crate::{clock, console::Tone};

/// A count of bytes; 0 means that it is not known.
fn bytes(count: u64) -> Value {
    if count == 0 { Value::Null } else { count.into() }
}

const FIELDS: &[Field<Session>] = &[
    Field { name: "host", value: |row, _| row.host.as_str().into() },
    Field { name: "host_id", value: |row, _| row.host_id.to_string().into() },
    Field { name: "protocol", value: |row, _| row.protocol.as_str().into() },
    Field { name: "family", value: |row, _| row.family.as_str().into() },
    Field { name: "direction", value: |row, _| row.direction.as_str().into() },
    Field { name: "local_address", value: |row, _| row.local.ip().to_string().into() },
    Field { name: "local_port", value: |row, _| row.local.port().into() },
    Field { name: "peer_address", value: |row, _| row.peer.ip().to_string().into() },
    Field { name: "peer_port", value: |row, _| row.peer.port().into() },
    Field { name: "peer_host", value: |row, _| text(&row.peer_host) },
    Field { name: "peer_process", value: |row, _| of_other(row, |owner| text(&owner.process)) },
    Field { name: "service", value: |row, _| row.service().map_or(Value::Null, |service| service.name.into()) },
    Field { name: "class", value: |row, _| row.class().as_str().into() },
    Field { name: "state", value: |row, _| row.state.as_str().into() },
    Field { name: "netns", value: |row, _| row.netns.into() },
    Field { name: "pid", value: |row, _| of_owner(&row.owners, |owner| owner.pid.into()) },
    Field { name: "process", value: |row, _| of_owner(&row.owners, |owner| text(&owner.process)) },
    Field { name: "exe", value: |row, _| of_owner(&row.owners, |owner| text(&owner.exe)) },
    Field { name: "user", value: |row, _| of_owner(&row.owners, |owner| user(owner).into()) },
    Field { name: "owner_known", value: |row, _| row.owner_known.as_str().into() },
    Field { name: "container", value: |row, _| of_owner(&row.owners, |owner| text(&owner.container)) },
    Field { name: "unit", value: |row, _| of_owner(&row.owners, |owner| text(&owner.unit)) },
    Field { name: "opened_at", value: |row, _| moment(row.opened_at) },
    Field { name: "opened_known", value: |row, _| row.opened_known.as_str().into() },
    Field { name: "closed_at", value: |row, _| moment_or_null(row.closed.map(|(at, _)| at)) },
    Field { name: "closed_known", value: |row, _| row.closed.map_or(Value::Null, |(_, known)| known.as_str().into()) },
    Field {
        name: "duration_ms",
        value: |row, view| u64::try_from(row.duration(view.until).as_millis()).unwrap_or(u64::MAX).into(),
    },
    Field { name: "bytes_sent", value: |row, _| bytes(row.bytes_sent) },
    Field { name: "bytes_received", value: |row, _| bytes(row.bytes_received) },
    Field { name: "service_source", value: |row, _| service_source(row.service()) },
    Field { name: "owners", value: |row, _| owners(&row.owners) },
    Field { name: "host_state", value: |row, _| row.host_state.as_str().into() },
    Field { name: "command_line", value: |row, _| of_owner(&row.owners, |owner| text(&owner.command_line)) },
    Field { name: "peer_pid", value: |row, _| of_other(row, |owner| owner.pid.into()) },
    Field { name: "peer_user", value: |row, _| of_other(row, |owner| user(owner).into()) },
    Field { name: "netns_name", value: |row, _| text(&row.netns_name) },
];

/// A fact of the process at the other end, or null.
fn of_other(row: &Session, fact: impl Fn(&Owner) -> Value) -> Value {
    row.other_end.as_ref().and_then(|other| other.owner.as_ref()).map_or(Value::Null, fact)
}

/// The process at the other end.
fn other_process(row: &Session, _: &View) -> Cell {
    match &row.other_end {
        Some(other) => process_cell(other.owner.as_slice(), other.owner_known),
        None => Cell::new(""),
    }
}

fn peer(row: &Session, _: &View) -> Cell {
    if row.peer_host.is_empty() {
        Cell::of(socket(row.peer))
    } else {
        Cell::of([socket(row.peer).as_str(), " (", &row.peer_host, ")"].concat())
    }
}

/// The state when it was last seen, or how it ended.
fn state(row: &Session, _: &View) -> Cell {
    match row.closed {
        None => Cell::word(row.state.as_str()),
        Some((_, Known::Lost)) => Cell::word("closed?").tone(Tone::Warning),
        Some(_) => Cell::word("closed").tone(Tone::Faint),
    }
}

/// How long it lasted. It lasted at least so long when it was open before observation began, and about so long when
/// either end was only seen between two walks.
fn duration(row: &Session, view: &View) -> Cell {
    let closed = row.closed.map_or(Known::Event, |(_, known)| known);
    let mark = match (row.opened_known, closed) {
        (Known::FirstSeen, _) | (_, Known::Lost) => "≥",
        (Known::BetweenWalks, _) | (_, Known::BetweenWalks) => "~",
        _ => "",
    };
    let lapse = clock::lapse(row.duration(view.until));
    Cell::of(if mark.is_empty() { lapse } else { [mark, &lapse].concat() })
}

fn closed(row: &Session, view: &View) -> Cell {
    Cell::of(row.closed.map_or_else(String::new, |(at, known)| [mark(known), &view.moment(at)].concat()))
}

const COLUMNS: &[Column<Session>] = &[
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |row, _| host_cell(&row.host, row.host_state)),
    column("dir", "DIR", &["direction"], Shown::Always, Side::Left, |row, _| Cell::word(row.direction.as_str())),
    column("proto", "PROTO", &["protocol"], Shown::Always, Side::Left, |row, _| Cell::word(row.protocol.as_str())),
    column("local", "LOCAL", &["local_address", "local_port"], Shown::Always, Side::Left, |row, _| {
        Cell::of(socket(row.local))
    }),
    column("peer", "PEER", &["peer_address", "peer_port", "peer_host"], Shown::Always, Side::Left, peer),
    column("class", "CLASS", &["class"], Shown::Wide, Side::Left, |row, _| Cell::word(row.class().as_str())),
    column("service", "SERVICE?", &["service", "service_source"], Shown::Always, Side::Left, |row, _| {
        service_cell(row.service())
    }),
    column("process", "PROCESS", &["process", "pid", "owner_known"], Shown::Always, Side::Left, |row, _| {
        process_cell(&row.owners, row.owner_known)
    }),
    column("peer_process", "PEER-PROCESS", &["peer_process", "peer_pid"], Shown::Wide, Side::Left, other_process),
    column("user", "USER", &["user"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(&row.owners.first().map_or_else(String::new, user))
    }),
    column("where", "WHERE", &["container", "netns_name", "unit"], Shown::Wide, Side::Left, |row, _| {
        place_cell(&row.owners, &row.netns_name)
    }),
    column("state", "STATE", &["state"], Shown::Always, Side::Left, state),
    column("opened", "OPENED", &["opened_at", "opened_known"], Shown::Always, Side::Left, |row, view| {
        Cell::of(view.opened(row.opened_at, row.opened_known))
    }),
    column("closed", "CLOSED", &["closed_at", "closed_known"], Shown::Wide, Side::Left, closed),
    column("duration", "DURATION", &["duration_ms"], Shown::Always, Side::Left, duration),
    column("sent", "SENT", &["bytes_sent"], Shown::Wide, Side::Right, |row, _| bytes_cell(row.bytes_sent)),
    column("received", "RECEIVED", &["bytes_received"], Shown::Wide, Side::Right, |row, _| {
        bytes_cell(row.bytes_received)
    }),
    column("exe", "EXE", &["exe"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(row.owners.first().map_or("", |owner| &owner.exe))
    }),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |row, _| Cell::of(row.host_id.to_string())),
    column("command_line", "COMMAND-LINE", &["command_line"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(row.owners.first().map_or("", |owner| &owner.command_line))
    }),
];

/// The fields that need [`SessionView::Full`](fleetsock_proto::question::SessionView::Full).
pub const OF_FULL_VIEW: &[&str] = &["exe", "user", "owners", "container", "unit", "command_line"];

impl Record for Session {
    const NOUN: &'static str = "session";

    fn fields() -> &'static [Field<Session>] {
        FIELDS
    }

    fn columns() -> &'static [Column<Session>] {
        COLUMNS
    }

    fn name(&self) -> String {
        format!("{}/{}/{}-{}", self.host, self.protocol, self.local, self.peer)
    }

    fn marks(&self) -> Marks {
        let closed = self.closed.map(|(_, known)| Marks::of(known)).unwrap_or_default();
        Marks::of(self.opened_known).and(closed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleetsock_proto::{
        host::{HostId, HostState},
        session::OtherEnd,
        socket::{Direction, Family, OwnerKnown, Protocol, SocketState},
        time::Timestamp,
        wire::SessionRecord,
    };
    use jiff::tz::TimeZone;

    use super::*;
    use crate::{clock::Clock, record::Times};

    #[test]
    fn what_is_not_of_the_full_view_is_shown_alike_of_the_basic_one_and_the_rest_is_not() {
        let at = Timestamp::from_micros(1_795_510_991_123_456);
        let owner = Owner {
            pid: 812,
            started_at: Some(at),
            process: "nginx".to_owned(),
            exe: "/usr/sbin/nginx".to_owned(),
            uid: 33,
            user: "www-data".to_owned(),
            container: "0123456789ab".to_owned(),
            unit: "nginx.service".to_owned(),
            command_line: "nginx -g daemon off".to_owned(),
        };
        let other = OtherEnd {
            host_id: HostId::from_array([2; 16]),
            host: "db1".to_owned(),
            netns: 5,
            owner_known: OwnerKnown::Exact,
            owner: Some(owner.clone()),
        };
        let full = Session {
            host_id: HostId::from_array([1; 16]),
            host: "web1".to_owned(),
            host_state: HostState::Stale,
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            direction: Direction::In,
            local: "10.0.0.1:443".parse().unwrap(),
            peer: "203.0.113.9:40001".parse().unwrap(),
            peer_host: "db1".to_owned(),
            state: SocketState::Established,
            netns: 7,
            netns_name: "netns:blue".to_owned(),
            owner_known: OwnerKnown::Exact,
            owners: vec![owner],
            opened_at: at,
            opened_known: Known::Event,
            closed: Some((at.plus(Duration::from_secs(9)), Known::Event)),
            bytes_sent: 5,
            bytes_received: 6,
            other_end: Some(Box::new(other)),
        };
        let of = |owner: &Owner| Owner {
            uid: owner.uid,
            pid: owner.pid,
            process: owner.process.clone(),
            ..Owner::default()
        };
        let basic = Session { owners: full.owners.iter().map(of).collect(), ..full.clone() };
        let record: SessionRecord = basic.clone().into_basic();
        assert_eq!((record.class, record.service.as_str()), (0, ""));
        let basic = Session::try_from(record).unwrap();
        let view = View { clock: Clock::at(at, TimeZone::UTC), times: Times::Absolute, until: at };
        for Field { name, value } in FIELDS {
            let alike = value(&full, &view) == value(&basic, &view);
            assert_eq!(alike, !OF_FULL_VIEW.contains(name), "{name}");
        }
        for column in COLUMNS {
            let alike = (column.cell)(&full, &view) == (column.cell)(&basic, &view);
            assert_eq!(alike, !column.fields.iter().any(|field| OF_FULL_VIEW.contains(field)), "{}", column.name);
        }
    }
}
