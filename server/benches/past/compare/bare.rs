//! The limit: the same rows into one table of SQLite, in one transaction, by one prepared statement; and what it takes to
//! delete them again.

use std::{
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{Connection, Transaction, params_from_iter, types::Value};

use super::rows::{ADDRESSES, NUMBERS, Row, rows};

/// Rows that are made ready before the clock runs again.
const AT_ONCE: usize = 100_000;
/// Rows of one deleting transaction: others have to wait for no longer than that.
const DELETED_AT_ONCE: i64 = 20_000;

pub(crate) const HOST_INDEX: &str = "CREATE INDEX sessions_by_host ON sessions (host_id, closed_at_us);";
pub(crate) const PEER_INDEX: &str = "CREATE INDEX sessions_by_peer ON sessions (peer_address, host_id);";

/// The settings of a server that loses nothing.
const SETTINGS: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000;
    PRAGMA cache_size=-65536;";

/// The table, whose addresses are of this type.
pub(crate) fn table(address: &str) -> String {
    let numbers = NUMBERS.map(|name| format!("{name} INTEGER NOT NULL"));
    let addresses = ADDRESSES.map(|name| format!("{name} {address} NOT NULL"));
    format!("CREATE TABLE sessions ({}, {}) STRICT;", numbers.join(", "), addresses.join(", "))
}

/// Inserts all rows with these indexes; seconds, of which making the rows ready is none.
pub(crate) fn insert(file: &Path, sessions: u64, indexes: &str) -> f64 {
    let mut database = Connection::open(file).unwrap();
    database.execute_batch(SETTINGS).unwrap();
    database.execute_batch(&table("BLOB")).unwrap();
    database.execute_batch(indexes).unwrap();
    let transaction = database.transaction().unwrap();
    let mut took = Duration::ZERO;
    let mut ready = Vec::with_capacity(AT_ONCE);
    for some in rows(sessions) {
        ready.extend(some.iter().map(values));
        if ready.len() >= AT_ONCE {
            took += store(&transaction, &ready);
            ready.clear();
        }
    }
    took += store(&transaction, &ready);
    let begun = Instant::now();
    transaction.commit().unwrap();
    (took + begun.elapsed()).as_secs_f64()
}

fn values(row: &Row) -> Vec<Value> {
    let numbers = row.numbers.iter().map(|number| Value::from(*number));
    numbers.chain(row.addresses.iter().map(|address| Value::from(bytes(*address)))).collect()
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => [&[4][..], &v4.octets()].concat(),
        IpAddr::V6(v6) => [&[6][..], &v6.octets()].concat(),
    }
}

fn store(transaction: &Transaction<'_>, rows: &[Vec<Value>]) -> Duration {
    let places = vec!["?"; NUMBERS.len() + ADDRESSES.len()].join(", ");
    let begun = Instant::now();
    let mut insert = transaction.prepare_cached(&format!("INSERT INTO sessions VALUES ({places})")).unwrap();
    for row in rows {
        insert.execute(params_from_iter(row)).unwrap();
    }
    begun.elapsed()
}

/// Deletes all rows, a part at a time; seconds.
pub(crate) fn delete(file: &Path) -> f64 {
    let database = Connection::open(file).unwrap();
    database.execute_batch(SETTINGS).unwrap();
    let begun = Instant::now();
    let part = "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions ORDER BY rowid LIMIT ?1)";
    while database.execute(part, [DELETED_AT_ONCE]).unwrap() > 0 {}
    begun.elapsed().as_secs_f64()
}
