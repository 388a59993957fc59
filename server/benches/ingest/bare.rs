//! The limit: the same rows into one table of the same columns, without an index, by one prepared statement.

use std::{net::IpAddr, path::Path};

use fleetsock_proto::batch::{Change, Op, Role};
use rusqlite::{Connection, params};

use super::{Took, Watch};

const TABLE: &str = "CREATE TABLE rows (id INTEGER PRIMARY KEY, host_id INTEGER NOT NULL, closed_at_us INTEGER NOT NULL,
    duration_us INTEGER NOT NULL, opened_known INTEGER NOT NULL, closed_known INTEGER NOT NULL, netns INTEGER NOT NULL,
    cookie INTEGER NOT NULL, protocol INTEGER NOT NULL, family INTEGER NOT NULL, direction INTEGER NOT NULL,
    state INTEGER NOT NULL, local_address BLOB NOT NULL, local_port INTEGER NOT NULL, peer_address BLOB NOT NULL,
    peer_port INTEGER NOT NULL, owner_known INTEGER NOT NULL, pid INTEGER NOT NULL, started_at_us INTEGER NOT NULL,
    program_id INTEGER NOT NULL, more_owners BLOB, bytes_sent INTEGER NOT NULL, bytes_received INTEGER NOT NULL) STRICT";

const INSERT: &str = "INSERT INTO rows (host_id, closed_at_us, duration_us, opened_known, closed_known, netns, cookie,
    protocol, family, direction, state, local_address, local_port, peer_address, peer_port, owner_known, pid,
    started_at_us, program_id, more_owners, bytes_sent, bytes_received)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22)";

/// A row with its columns ready.
struct Row {
    numbers: [i64; 11],
    local: (Vec<u8>, u16),
    peer: (Vec<u8>, u16),
    owner: [i64; 4],
    bytes: [i64; 2],
}

fn address(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[4][..], &v4.octets()].concat(),
        IpAddr::V6(v6) => [&[6][..], &v6.octets()].concat(),
    }
}

fn row(change: &Change) -> Row {
    let socket = &change.socket;
    let Role::Session { direction, peer } = socket.role else { unreachable!("only sessions are loaded") };
    let (closed_at, closed_known) = match change.op {
        Op::Closed { at, known } => (at, known.number()),
        Op::Opened | Op::Updated | Op::Present => (socket.opened_at, 0),
    };
    let owner = &socket.owners[0];
    Row {
        numbers: [
            i64::from(owner.uid),
            closed_at.as_micros(),
            closed_at.as_micros() - socket.opened_at.as_micros(),
            socket.opened_known.number().into(),
            closed_known.into(),
            socket.key.netns.cast_signed(),
            socket.key.cookie.cast_signed(),
            socket.protocol.number().into(),
            socket.family.number().into(),
            direction.number().into(),
            socket.state.number().into(),
        ],
        local: (address(socket.local.ip()), socket.local.port()),
        peer: (address(peer.ip()), peer.port()),
        owner: [
            socket.owner_known.number().into(),
            owner.pid.into(),
            owner.started_at.unwrap().as_micros(),
            i64::from(owner.uid),
        ],
        bytes: [socket.bytes_sent.cast_signed(), socket.bytes_received.cast_signed()],
    }
}

/// Inserts all rows, so many per transaction; only the inserts are timed.
pub(crate) fn insert(folder: &Path, changes: &[&Change], per_transaction: usize) -> Took {
    let rows: Vec<Row> = changes.iter().map(|change| row(change)).collect();
    let mut database = Connection::open(folder.join("bare.db")).unwrap();
    database.pragma_update(None, "journal_mode", "WAL").unwrap();
    database.pragma_update(None, "synchronous", "FULL").unwrap();
    database.pragma_update(None, "wal_autocheckpoint", 4000).unwrap();
    database.pragma_update(None, "cache_size", -64 * 1024).unwrap();
    database.execute_batch(TABLE).unwrap();
    let watch = Watch::start();
    for part in rows.chunks(per_transaction.min(rows.len())) {
        let transaction = database.transaction().unwrap();
        {
            let mut insert = transaction.prepare_cached(INSERT).unwrap();
            for Row { numbers: n, local, peer, owner: o, bytes } in part {
                let none: Option<Vec<u8>> = None;
                let columns = params![
                    n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8], n[9], n[10], local.0, local.1, peer.0,
                    peer.1, o[0], o[1], o[2], o[3], none, bytes[0], bytes[1],
                ];
                insert.execute(columns).unwrap();
            }
        }
        transaction.commit().unwrap();
    }
    watch.took()
}
