//! A change, as `changes` shows it.

use fleetsock_proto::{
    change::{ChangeKind, ChangeRecord, Changed},
    listener::Listener,
    port::PortClass,
    service::Service,
    session::Session,
    socket::{Direction, Family, OwnerKnown, Protocol},
    time::Timestamp,
};
use serde_json::Value;

use super::{
    Cell, Column, Field, Marks, Record, Shown, Side, View, column, host_cell, moment, moment_or_null, of_owner, owners,
    place_cell, process_cell, service_cell, service_source, text, user,
};
use crate::{clock, console::Tone, sanitise::sanitise};

/// The socket of a change; the start of an agent has none.
#[derive(Clone, Copy)]
enum Socket<'a> {
    Listener(&'a Listener),
    Session(&'a Session),
}

fn socket(row: &ChangeRecord) -> Option<Socket<'_>> {
    match &row.what {
        Changed::Listener(listener) => Some(Socket::Listener(listener)),
        Changed::Session(session) => Some(Socket::Session(session)),
        Changed::Start(_) => None,
    }
}

impl Socket<'_> {
    fn protocol(self) -> Protocol {
        match self {
            Socket::Listener(listener) => listener.protocol,
            Socket::Session(session) => session.protocol,
        }
    }

    fn family(self) -> Family {
        match self {
            Socket::Listener(listener) => listener.family,
            Socket::Session(session) => session.family,
        }
    }

    fn address(self) -> String {
        match self {
            Socket::Listener(listener) => listener.address.to_string(),
            Socket::Session(session) => session.local.ip().to_string(),
        }
    }

    fn port(self) -> u16 {
        match self {
            Socket::Listener(listener) => listener.port,
            Socket::Session(session) => session.local.port(),
        }
    }

    fn local(self) -> String {
        match self {
            Socket::Listener(listener) => listener.address.with_port(listener.port),
            Socket::Session(session) => session.local.to_string(),
        }
    }

    fn class(self) -> PortClass {
        match self {
            Socket::Listener(listener) => listener.class(),
            Socket::Session(session) => session.class(),
        }
    }

    fn service(self) -> Option<Service> {
        match self {
            Socket::Listener(listener) => listener.service(),
            Socket::Session(session) => session.service(),
        }
    }

    fn netns(self) -> u64 {
        match self {
            Socket::Listener(listener) => listener.netns,
            Socket::Session(session) => session.netns,
        }
    }

    fn netns_name(&self) -> &str {
        match self {
            Socket::Listener(listener) => &listener.netns_name,
            Socket::Session(session) => &session.netns_name,
        }
    }

    fn owner_known(self) -> OwnerKnown {
        match self {
            Socket::Listener(listener) => listener.owner_known,
            Socket::Session(session) => session.owner_known,
        }
    }

    fn opened_at(self) -> Timestamp {
        match self {
            Socket::Listener(listener) => listener.opened_at,
            Socket::Session(session) => session.opened_at,
        }
    }

    /// How long it was open when it closed.
    fn lasted(self, until: Timestamp) -> String {
        clock::lapse(until.since(self.opened_at()))
    }
}

/// A fact of the socket, or null.
fn of_socket(row: &ChangeRecord, fact: impl Fn(Socket<'_>) -> Value) -> Value {
    socket(row).map_or(Value::Null, fact)
}

/// A fact of the session, or null.
fn of_session(row: &ChangeRecord, fact: impl Fn(&Session) -> Value) -> Value {
    match &row.what {
        Changed::Session(session) => fact(session),
        Changed::Listener(_) | Changed::Start(_) => Value::Null,
    }
}

fn scope(row: &ChangeRecord) -> Value {
    match &row.what {
        Changed::Listener(listener) => listener.scope().as_str().into(),
        Changed::Session(_) | Changed::Start(_) => Value::Null,
    }
}

const FIELDS: &[Field<ChangeRecord>] = &[
    Field { name: "at", value: |row, _| moment(row.at) },
    Field { name: "known", value: |row, _| row.known.as_str().into() },
    Field { name: "change", value: |row, _| row.kind.as_str().into() },
    Field { name: "subject", value: |row, _| row.subject().as_str().into() },
    Field { name: "host", value: |row, _| row.host().into() },
    Field { name: "host_id", value: |row, _| row.host_id().to_string().into() },
    Field { name: "protocol", value: |row, _| of_socket(row, |socket| socket.protocol().as_str().into()) },
    Field { name: "family", value: |row, _| of_socket(row, |socket| socket.family().as_str().into()) },
    Field { name: "address", value: |row, _| of_socket(row, |socket| socket.address().into()) },
    Field { name: "port", value: |row, _| of_socket(row, |socket| socket.port().into()) },
    Field { name: "direction", value: |row, _| of_session(row, |session| session.direction.as_str().into()) },
    Field { name: "peer_address", value: |row, _| of_session(row, |session| session.peer.ip().to_string().into()) },
    Field { name: "peer_port", value: |row, _| of_session(row, |session| session.peer.port().into()) },
    Field { name: "peer_host", value: |row, _| of_session(row, |session| text(&session.peer_host)) },
    Field { name: "class", value: |row, _| of_socket(row, |socket| socket.class().as_str().into()) },
    Field {
        name: "service",
        value: |row, _| of_socket(row, |socket| socket.service().map_or(Value::Null, |service| service.name.into())),
    },
    Field { name: "service_source", value: |row, _| of_socket(row, |socket| service_source(socket.service())) },
    Field { name: "scope", value: |row, _| scope(row) },
    Field { name: "scope_before", value: |row, _| row.scope_before.map_or(Value::Null, |scope| scope.as_str().into()) },
    Field { name: "netns", value: |row, _| of_socket(row, |socket| socket.netns().into()) },
    Field { name: "pid", value: |row, _| of_owner(row.owners(), |owner| owner.pid.into()) },
    Field { name: "process", value: |row, _| of_owner(row.owners(), |owner| text(&owner.process)) },
    Field { name: "exe", value: |row, _| of_owner(row.owners(), |owner| text(&owner.exe)) },
    Field { name: "user", value: |row, _| of_owner(row.owners(), |owner| user(owner).into()) },
    Field { name: "container", value: |row, _| of_owner(row.owners(), |owner| text(&owner.container)) },
    Field { name: "unit", value: |row, _| of_owner(row.owners(), |owner| text(&owner.unit)) },
    Field { name: "owner_known", value: |row, _| of_socket(row, |socket| socket.owner_known().as_str().into()) },
    Field { name: "owners", value: |row, _| owners(row.owners()) },
    Field { name: "owners_before", value: |row, _| owners(&row.owners_before) },
    Field { name: "opened_at", value: |row, _| moment_or_null(socket(row).map(Socket::opened_at)) },
    Field {
        name: "boot_id",
        value: |row, _| match &row.what {
            Changed::Start(start) => start.boot_id.to_string().into(),
            Changed::Listener(_) | Changed::Session(_) => Value::Null,
        },
    },
    Field { name: "host_state", value: |row, _| row.host_state().as_str().into() },
    Field { name: "netns_name", value: |row, _| of_socket(row, |socket| text(socket.netns_name())) },
];

fn change(row: &ChangeRecord, _: &View) -> Cell {
    let tone = match row.kind {
        ChangeKind::ScopeWidened | ChangeKind::OwnerChanged => Tone::Warning,
        ChangeKind::Closed => Tone::Faint,
        ChangeKind::Opened | ChangeKind::AgentStarted | ChangeKind::HostBooted => Tone::Plain,
    };
    Cell::new(row.kind.as_str()).tone(tone)
}

fn local(row: &ChangeRecord, _: &View) -> Cell {
    Cell::new(&socket(row).map_or_else(String::new, Socket::local))
}

fn process(row: &ChangeRecord, _: &View) -> Cell {
    socket(row).map_or_else(|| Cell::new(""), |socket| process_cell(row.owners(), socket.owner_known()))
}

/// The peer of a session, and what it is called.
fn peer(session: &Session) -> String {
    let way = if session.direction == Direction::In { "from" } else { "to" };
    match session.peer_host.as_str() {
        "" => format!("{way} {}", session.peer),
        host => format!("{way} {} ({})", session.peer, sanitise(host)),
    }
}

/// What else there is to say, in words.
fn detail(row: &ChangeRecord, _: &View) -> Cell {
    let mut told = Vec::new();
    if let Changed::Session(session) = &row.what {
        told.push(peer(session));
    }
    match row.kind {
        ChangeKind::OwnerChanged => {
            told.push(format!("was {}", process_cell(&row.owners_before, OwnerKnown::Exact).text));
        }
        ChangeKind::ScopeWidened => {
            let before = row.scope_before.map_or("", fleetsock_proto::address::Scope::as_str);
            told.push(format!("{before} -> {}", scope(row).as_str().unwrap_or_default()));
        }
        ChangeKind::Closed => told.extend(socket(row).map(|socket| format!("after {}", socket.lasted(row.at)))),
        ChangeKind::HostBooted => told.push("another boot".to_owned()),
        ChangeKind::Opened | ChangeKind::AgentStarted => {}
    }
    Cell::new(&told.join(", "))
}

/// What changed and how, in one sentence without the moment and the host.
pub(super) fn sentence(row: &ChangeRecord, view: &View) -> String {
    let told = |cell: Cell| Some(cell.text.into_owned()).filter(|text| text != "-");
    let proto = socket(row).map(|socket| socket.protocol().to_string());
    let service = socket(row).and_then(Socket::service).map(|service| format!("({}?)", service.name));
    let held = told(process(row, view)).map(|process| format!("by {process}"));
    let detail = told(detail(row, view)).map(|detail| format!("[{detail}]"));
    [proto, told(local(row, view)), service, held, detail].into_iter().flatten().collect::<Vec<_>>().join(" ")
}

const COLUMNS: &[Column<ChangeRecord>] = &[
    column("when", "WHEN", &["at", "known"], Shown::Always, Side::Left, |row, view| {
        Cell::new(&view.opened(row.at, row.known))
    }),
    column("host", "HOST", &["host"], Shown::Always, Side::Left, |row, _| host_cell(row.host(), row.host_state())),
    column("change", "CHANGE", &["change"], Shown::Always, Side::Left, change),
    column("subject", "SUBJECT", &["subject"], Shown::Wide, Side::Left, |row, _| Cell::new(row.subject().as_str())),
    column("proto", "PROTO", &["protocol"], Shown::Always, Side::Left, |row, _| {
        Cell::new(socket(row).map_or("", |socket| socket.protocol().as_str()))
    }),
    column("local", "LOCAL", &["address", "port"], Shown::Always, Side::Left, local),
    column("service", "SERVICE?", &["service", "service_source"], Shown::Always, Side::Left, |row, _| {
        service_cell(socket(row).and_then(Socket::service))
    }),
    column("process", "PROCESS", &["process", "pid", "owner_known"], Shown::Always, Side::Left, process),
    column("user", "USER", &["user"], Shown::Always, Side::Left, |row, _| {
        Cell::new(&row.owners().first().map_or_else(String::new, user))
    }),
    column(
        "detail",
        "DETAIL",
        &["direction", "peer_address", "peer_port", "peer_host", "scope", "scope_before", "owners_before"],
        Shown::Always,
        Side::Left,
        detail,
    ),
    column("where", "WHERE", &["container", "netns_name", "unit"], Shown::Wide, Side::Left, |row, _| {
        socket(row).map_or_else(|| Cell::new(""), |socket| place_cell(row.owners(), socket.netns_name()))
    }),
    column("exe", "EXE", &["exe"], Shown::Wide, Side::Left, |row, _| {
        Cell::new(row.owners().first().map_or("", |owner| &owner.exe))
    }),
    column("host_id", "HOST-ID", &["host_id"], Shown::Wide, Side::Left, |row, _| Cell::new(&row.host_id().to_string())),
];

impl Record for ChangeRecord {
    const NOUN: &'static str = "change";

    fn fields() -> &'static [Field<ChangeRecord>] {
        FIELDS
    }

    fn columns() -> &'static [Column<ChangeRecord>] {
        COLUMNS
    }

    fn name(&self) -> String {
        let what = match socket(self) {
            Some(socket) => format!("/{}/{}", socket.protocol(), socket.local()),
            None => String::new(),
        };
        format!("{}{what} {}", self.host(), self.kind)
    }

    fn marks(&self) -> Marks {
        Marks::of(self.known)
    }
}
