//! The rows of the load as others take them: columns of numbers and addresses, and a CSV file of them.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    net::{IpAddr, SocketAddr},
    path::Path,
};

use fleetsock_proto::batch::{Change, Op, Role};

use crate::fleet::{HOSTS, Report, Reports};

/// The columns of numbers, then the two of addresses.
pub(crate) const NUMBERS: [&str; 19] = [
    "host_id",
    "closed_at_us",
    "duration_us",
    "opened_known",
    "closed_known",
    "netns",
    "cookie",
    "protocol",
    "family",
    "direction",
    "state",
    "local_port",
    "peer_port",
    "owner_known",
    "pid",
    "started_at_us",
    "program_id",
    "bytes_sent",
    "bytes_received",
];
pub(crate) const ADDRESSES: [&str; 2] = ["local_address", "peer_address"];

/// A session with its columns ready.
pub(crate) struct Row {
    pub(crate) numbers: [i64; NUMBERS.len()],
    pub(crate) addresses: [IpAddr; 2],
}

/// All rows, in the order in which hosts report them, a batch at a time.
pub(crate) fn rows(sessions: u64) -> impl Iterator<Item = Vec<Row>> {
    let mut programs: HashMap<String, i64> = HashMap::new();
    Reports::of(0..HOSTS, sessions).map(move |Report { host, sessions, .. }| {
        sessions.iter().map(|change| row(host, change, &mut programs)).collect()
    })
}

fn row(host: usize, change: &Change, programs: &mut HashMap<String, i64>) -> Row {
    let socket = &change.socket;
    let Role::Session { direction, peer } = socket.role else { unreachable!("only sessions are reported") };
    let Op::Closed { at, known } = change.op else { unreachable!("all are over") };
    let owner = &socket.owners[0];
    let next = programs.len() as i64 + 1;
    let program = *programs.entry(owner.process.clone()).or_insert(next);
    let port = |end: SocketAddr| i64::from(end.port());
    let numbers = [
        host as i64 + 1,
        at.as_micros(),
        at.as_micros() - socket.opened_at.as_micros(),
        socket.opened_known.number().into(),
        known.number().into(),
        socket.key.netns.cast_signed(),
        socket.key.cookie.cast_signed(),
        socket.protocol.number().into(),
        socket.family.number().into(),
        direction.number().into(),
        socket.state.number().into(),
        port(socket.local),
        port(peer),
        socket.owner_known.number().into(),
        owner.pid.into(),
        owner.started_at.unwrap().as_micros(),
        program,
        socket.bytes_sent.cast_signed(),
        socket.bytes_received.cast_signed(),
    ];
    Row { numbers, addresses: [socket.local.ip(), peer.ip()] }
}

/// Writes all rows, one a line; how many they are.
pub(crate) fn write_csv(path: &Path, sessions: u64) -> u64 {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut written = 0;
    for Row { numbers, addresses } in rows(sessions).flatten() {
        for number in numbers {
            write!(file, "{number},").unwrap();
        }
        let [local, peer] = addresses;
        writeln!(file, "{local},{peer}").unwrap();
        written += 1;
    }
    file.into_inner().unwrap().sync_all().unwrap();
    written
}
