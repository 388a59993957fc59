//! Batches as they travel: a column for each fact of a socket or process, and one table of strings.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use super::{
    BATCH_NAMESPACES_LIMIT, BATCH_OWNERS_LIMIT, BATCH_PROCESS_TEXTS_LIMIT, BATCH_PROCESSES_LIMIT, BATCH_SOCKETS_LIMIT,
    BATCH_STRINGS_LIMIT, BATCH_TEXT_LIMIT, Batch, BatchKind, Change, NAMESPACE_NAME_LIMIT, NamespaceName, Op, Role,
    SOCKET_OWNERS_LIMIT, Socket,
};
use crate::{
    InvalidMessage,
    digest::Digest,
    host::{BootId, bounded},
    listener::path_from_wire,
    owner::Owner,
    port,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time,
    time::Timestamp,
    wire,
};

impl Op {
    fn number(self) -> wire::Op {
        match self {
            Op::Opened => wire::Op::Opened,
            Op::Closed { .. } => wire::Op::Closed,
            Op::Updated => wire::Op::Updated,
            Op::Present => wire::Op::Present,
        }
    }
}

/// The index of the empty string, which every batch has.
const EMPTY: u32 = 0;

/// Collects the strings and processes of a batch, each once.
#[derive(Default)]
struct Tables {
    strings: Vec<String>,
    string_of: HashMap<String, u32>,
    processes: wire::ProcessColumns,
    process_of: HashMap<Arc<Owner>, u32>,
    /// The same by their places in memory: most sockets share their owners, and comparing texts costs more.
    process_at: HashMap<usize, u32>,
}

impl Tables {
    fn new() -> Tables {
        let mut tables = Tables::default();
        tables.string("");
        tables
    }

    fn string(&mut self, text: &str) -> u32 {
        if let Some(index) = self.string_of.get(text) {
            return *index;
        }
        let index = index(self.strings.len());
        self.strings.push(text.to_owned());
        self.string_of.insert(text.to_owned(), index);
        index
    }

    fn process(&mut self, owner: &Arc<Owner>) -> u32 {
        let place = Arc::as_ptr(owner).addr();
        if let Some(index) = self.process_at.get(&place) {
            return *index;
        }
        let index = self.process_with_these_texts(owner);
        self.process_at.insert(place, index);
        index
    }

    fn process_with_these_texts(&mut self, owner: &Arc<Owner>) -> u32 {
        if let Some(index) = self.process_of.get(owner) {
            return *index;
        }
        let index = index(self.processes.pid.len());
        let [process, exe, user, container, unit, command_line] = owner.texts().map(|text| self.string(text));
        let columns = &mut self.processes;
        columns.pid.push(owner.pid);
        columns.started_at_us.push(owner.started_at.map_or(0, Timestamp::as_micros));
        columns.process.push(process);
        columns.exe.push(exe);
        columns.user.push(user);
        columns.container.push(container);
        columns.unit.push(unit);
        columns.command_line.push(command_line);
        columns.uid.push(owner.uid);
        self.process_of.insert(Arc::clone(owner), index);
        index
    }
}

impl wire::ProcessColumns {
    /// Most agents tell no command lines: then the column is absent.
    fn without_empty_columns(mut self) -> wire::ProcessColumns {
        if self.command_line.iter().all(|index| *index == EMPTY) {
            self.command_line = Vec::new();
        }
        self
    }
}

/// An index into a table of a batch; the limits keep it far below 2^32.
fn index(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

impl From<&Batch> for wire::Batch {
    fn from(batch: &Batch) -> wire::Batch {
        let mut tables = Tables::new();
        let mut columns = wire::SocketColumns::default();
        for change in &batch.changes {
            push_row(&mut columns, &mut tables, change, batch.observed_since);
        }
        wire::Batch {
            epoch: batch.epoch,
            seq: batch.seq,
            kind: batch.kind.number(),
            boot_id: batch.boot_id.as_bytes().to_vec(),
            observed_since: Some(batch.observed_since.into()),
            observed_until: Some(batch.observed_until.into()),
            strings: tables.strings,
            processes: Some(tables.processes.without_empty_columns()),
            sockets: Some(columns),
            digest: batch.digest.as_ref().map(Into::into),
            namespaces: batch.namespaces.iter().map(Into::into).collect(),
        }
    }
}

impl From<&NamespaceName> for wire::NamespaceName {
    fn from(NamespaceName { netns, name }: &NamespaceName) -> wire::NamespaceName {
        wire::NamespaceName { netns: *netns, name: name.clone() }
    }
}

fn namespaces(named: Vec<wire::NamespaceName>) -> Result<Vec<NamespaceName>, InvalidMessage> {
    let field = "Batch.namespaces";
    if named.len() > BATCH_NAMESPACES_LIMIT {
        return Err(InvalidMessage::new(field, format!("more than {BATCH_NAMESPACES_LIMIT}")));
    }
    let name = |wire::NamespaceName { netns, name }| {
        Ok(NamespaceName { netns, name: bounded(field, name, NAMESPACE_NAME_LIMIT)? })
    };
    named.into_iter().map(name).collect()
}

fn push_row(columns: &mut wire::SocketColumns, tables: &mut Tables, change: &Change, base: Timestamp) {
    let socket = &change.socket;
    let after = |time: Timestamp| time.as_micros().saturating_sub(base.as_micros());
    columns.op.push(change.op.number() as i32);
    columns.cookie.push(socket.key.cookie);
    columns.netns.push(socket.key.netns);
    columns.protocol.push(socket.protocol.number());
    columns.family.push(socket.family.number());
    columns.state.push(socket.state.number());
    columns.local_port.push(socket.local.port().into());
    // Both ends of a session have one length, so that one column says it for both.
    match socket.role {
        Role::Listener => {
            columns.direction.push(0);
            columns.address_length.push(match (socket.protocol, socket.path.as_deref().unwrap_or_default()) {
                (Protocol::Unix, path) => {
                    columns.local_address.extend(path.as_bytes());
                    index(path.len())
                }
                _ => push_address(&mut columns.local_address, socket.local.ip(), false),
            });
            columns.peer_port.push(0);
        }
        Role::Session { direction, peer } => {
            let wide = socket.local.is_ipv6() || peer.is_ipv6();
            columns.direction.push(direction.number());
            columns.address_length.push(push_address(&mut columns.local_address, socket.local.ip(), wide));
            push_address(&mut columns.peer_address, peer.ip(), wide);
            columns.peer_port.push(peer.port().into());
        }
    }
    columns.opened_at_us.push(after(socket.opened_at));
    columns.opened_known.push(socket.opened_known.number());
    let (closed_at, closed_known) = match change.op {
        Op::Closed { at, known } => (after(at), known.number()),
        Op::Opened | Op::Updated | Op::Present => (0, 0),
    };
    columns.closed_at_us.push(closed_at);
    columns.closed_known.push(closed_known);
    columns.owner_known.push(socket.owner_known.number());
    columns.owners.push(index(socket.owners.len()));
    for owner in &socket.owners {
        let process = tables.process(owner);
        columns.owner.push(process);
    }
    columns.bytes_sent.push(socket.bytes_sent);
    columns.bytes_received.push(socket.bytes_received);
}

/// Appends an address and gives its length; `wide` writes an IPv4 address in its mapped form.
fn push_address(column: &mut Vec<u8>, address: IpAddr, wide: bool) -> u32 {
    match address {
        IpAddr::V4(v4) if wide => column.extend(v4.to_ipv6_mapped().octets()),
        IpAddr::V4(v4) => {
            column.extend(v4.octets());
            return 4;
        }
        IpAddr::V6(v6) => column.extend(v6.octets()),
    }
    16
}

impl TryFrom<wire::Batch> for Batch {
    type Error = InvalidMessage;

    fn try_from(batch: wire::Batch) -> Result<Batch, InvalidMessage> {
        let observed_since = time::required("Batch.observed_since", batch.observed_since)?;
        let owners = owners(batch.strings, batch.processes.unwrap_or_default())?;
        let changes = changes(&batch.sockets.unwrap_or_default(), &owners, observed_since)?;
        if batch.epoch == 0 || batch.seq == 0 {
            return Err(InvalidMessage::new("Batch.seq", "epoch and seq begin with 1"));
        }
        Ok(Batch {
            epoch: batch.epoch,
            seq: batch.seq,
            kind: BatchKind::from_wire("Batch.kind", batch.kind)?,
            boot_id: BootId::from_wire("Batch.boot_id", &batch.boot_id)?,
            observed_since,
            observed_until: time::required("Batch.observed_until", batch.observed_until)?,
            changes,
            digest: batch.digest.map(Digest::try_from).transpose()?,
            namespaces: namespaces(batch.namespaces)?,
        })
    }
}

/// Refuses columns of different lengths.
fn same_length(field: &'static str, rows: usize, limit: usize, lengths: &[usize]) -> Result<(), InvalidMessage> {
    if rows > limit {
        return Err(InvalidMessage::new(field, format!("{rows} rows are more than {limit}")));
    }
    match lengths.iter().find(|length| **length != rows) {
        Some(length) => Err(InvalidMessage::new(field, format!("columns of {rows} and of {length} rows"))),
        None => Ok(()),
    }
}

fn owners(strings: Vec<String>, columns: wire::ProcessColumns) -> Result<Vec<Arc<Owner>>, InvalidMessage> {
    if strings.len() > BATCH_STRINGS_LIMIT {
        return Err(InvalidMessage::new("Batch.strings", format!("more than {BATCH_STRINGS_LIMIT}")));
    }
    let strings = strings
        .into_iter()
        .map(|text| bounded("Batch.strings", text, BATCH_TEXT_LIMIT))
        .collect::<Result<Vec<_>, _>>()?;
    let rows = columns.pid.len();
    same_length(
        "Batch.processes",
        rows,
        BATCH_PROCESSES_LIMIT,
        &[
            columns.started_at_us.len(),
            columns.process.len(),
            columns.exe.len(),
            columns.user.len(),
            columns.container.len(),
            columns.unit.len(),
            columns.uid.len(),
            if columns.command_line.is_empty() { rows } else { columns.command_line.len() },
        ],
    )?;
    let mut room = BATCH_PROCESS_TEXTS_LIMIT;
    let mut string = |index: u32| {
        let text = strings
            .get(index as usize)
            .ok_or_else(|| InvalidMessage::new("Batch.strings", format!("has no entry {index}")))?;
        room = room.checked_sub(text.len()).ok_or_else(|| {
            InvalidMessage::new("Batch.processes", format!("texts of more than {BATCH_PROCESS_TEXTS_LIMIT} bytes"))
        })?;
        Ok(text.clone())
    };
    (0..rows)
        .map(|row| {
            Ok(Arc::new(Owner {
                pid: columns.pid[row],
                started_at: Some(columns.started_at_us[row]).filter(|us| *us != 0).map(Timestamp::from_micros),
                process: string(columns.process[row])?,
                exe: string(columns.exe[row])?,
                uid: columns.uid[row],
                user: string(columns.user[row])?,
                container: string(columns.container[row])?,
                unit: string(columns.unit[row])?,
                command_line: columns.command_line.get(row).map_or(Ok(String::new()), |index| string(*index))?,
            }))
        })
        .collect()
}

fn changes(
    columns: &wire::SocketColumns,
    owners: &[Arc<Owner>],
    base: Timestamp,
) -> Result<Vec<Change>, InvalidMessage> {
    let rows = columns.op.len();
    same_length(
        "Batch.sockets",
        rows,
        BATCH_SOCKETS_LIMIT,
        &[
            columns.cookie.len(),
            columns.netns.len(),
            columns.protocol.len(),
            columns.family.len(),
            columns.state.len(),
            columns.direction.len(),
            columns.address_length.len(),
            columns.local_port.len(),
            columns.peer_port.len(),
            columns.opened_at_us.len(),
            columns.opened_known.len(),
            columns.closed_at_us.len(),
            columns.closed_known.len(),
            columns.owner_known.len(),
            columns.owners.len(),
            columns.bytes_sent.len(),
            columns.bytes_received.len(),
        ],
    )?;
    if columns.owner.len() > BATCH_OWNERS_LIMIT {
        return Err(InvalidMessage::new("Batch.sockets.owner", format!("more than {BATCH_OWNERS_LIMIT}")));
    }
    let mut runs = Runs { local: &columns.local_address, peer: &columns.peer_address, owner: &columns.owner, owners };
    let changes = (0..rows).map(|row| change(columns, row, &mut runs, base)).collect::<Result<Vec<_>, _>>()?;
    if runs.local.is_empty() && runs.peer.is_empty() && runs.owner.is_empty() {
        Ok(changes)
    } else {
        Err(InvalidMessage::new("Batch.sockets", "more addresses or owners than rows"))
    }
}

/// What is left of the columns that are cut up by others.
struct Runs<'a> {
    local: &'a [u8],
    peer: &'a [u8],
    owner: &'a [u32],
    owners: &'a [Arc<Owner>],
}

impl Runs<'_> {
    fn owners(&mut self, count: u32) -> Result<Vec<Arc<Owner>>, InvalidMessage> {
        let field = "Batch.sockets.owner";
        let count = count as usize;
        if count > SOCKET_OWNERS_LIMIT {
            return Err(InvalidMessage::new(field, format!("{count} owners are more than {SOCKET_OWNERS_LIMIT}")));
        }
        let (run, rest) =
            self.owner.split_at_checked(count).ok_or_else(|| InvalidMessage::new(field, "is too short"))?;
        self.owner = rest;
        run.iter()
            .map(|index| {
                self.owners
                    .get(*index as usize)
                    .cloned()
                    .ok_or_else(|| InvalidMessage::new(field, format!("there is no process {index}")))
            })
            .collect()
    }
}

/// Takes a path of `length` bytes off the run.
fn take_path(run: &mut &[u8], length: u32) -> Result<Arc<str>, InvalidMessage> {
    let field = "Batch.sockets.local_address";
    let (path, rest) =
        run.split_at_checked(length as usize).ok_or_else(|| InvalidMessage::new(field, "is too short"))?;
    *run = rest;
    path_from_wire(field, path.to_vec()).map(Arc::from)
}

/// Takes an address of `length` bytes off the run.
fn take_address(run: &mut &[u8], length: u32) -> Result<IpAddr, InvalidMessage> {
    let field = "Batch.sockets.address";
    let short = || InvalidMessage::new(field, "is too short");
    match length {
        4 => {
            let (bytes, rest) = run.split_first_chunk::<4>().ok_or_else(short)?;
            *run = rest;
            Ok(IpAddr::V4(Ipv4Addr::from(*bytes)))
        }
        16 => {
            let (bytes, rest) = run.split_first_chunk::<16>().ok_or_else(short)?;
            *run = rest;
            Ok(IpAddr::V6(Ipv6Addr::from(*bytes)).to_canonical())
        }
        _ => Err(InvalidMessage::new(field, format!("{length} bytes are no IP address"))),
    }
}

fn change(
    columns: &wire::SocketColumns,
    row: usize,
    runs: &mut Runs<'_>,
    base: Timestamp,
) -> Result<Change, InvalidMessage> {
    let after = |us: i64| Timestamp::from_micros(base.as_micros().saturating_add(us));
    let length = columns.address_length[row];
    let protocol = Protocol::from_wire("Batch.sockets.protocol", columns.protocol[row])?;
    let (address, path) = match protocol {
        Protocol::Unix => (Ipv4Addr::LOCALHOST.into(), Some(take_path(&mut runs.local, length)?)),
        _ => (take_address(&mut runs.local, length)?, None),
    };
    let local = SocketAddr::new(address, port::from_wire("Batch.sockets.local_port", columns.local_port[row])?);
    let role = match columns.direction[row] {
        0 => Role::Listener,
        _ if path.is_some() => {
            return Err(InvalidMessage::new("Batch.sockets.direction", "a UNIX socket is no session"));
        }
        direction => Role::Session {
            direction: Direction::from_wire("Batch.sockets.direction", direction)?,
            peer: SocketAddr::new(
                take_address(&mut runs.peer, length)?,
                port::from_wire("Batch.sockets.peer_port", columns.peer_port[row])?,
            ),
        },
    };
    let op = match wire::Op::try_from(columns.op[row]) {
        Ok(wire::Op::Opened) => Op::Opened,
        Ok(wire::Op::Updated) => Op::Updated,
        Ok(wire::Op::Present) => Op::Present,
        Ok(wire::Op::Closed) => Op::Closed {
            at: after(columns.closed_at_us[row]),
            known: Known::from_wire("Batch.sockets.closed_known", columns.closed_known[row])?,
        },
        Ok(wire::Op::Unspecified) | Err(_) => {
            return Err(InvalidMessage::new("Batch.sockets.op", format!("{} is no op", columns.op[row])));
        }
    };
    Ok(Change {
        op,
        socket: Socket {
            key: SocketKey { netns: columns.netns[row], cookie: columns.cookie[row] },
            protocol,
            family: Family::from_wire("Batch.sockets.family", columns.family[row])?,
            state: SocketState::from_wire("Batch.sockets.state", columns.state[row])?,
            local,
            path,
            role,
            opened_at: after(columns.opened_at_us[row]),
            opened_known: Known::from_wire("Batch.sockets.opened_known", columns.opened_known[row])?,
            owner_known: OwnerKnown::from_wire("Batch.sockets.owner_known", columns.owner_known[row])?,
            owners: runs.owners(columns.owners[row])?,
            bytes_sent: columns.bytes_sent[row],
            bytes_received: columns.bytes_received[row],
        },
    })
}
