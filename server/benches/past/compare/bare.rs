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
pub(crate) const SETTINGS: &str = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA wal_autocheckpoint=4000;
    PRAGMA cache_size=-65536;";

/// The table, whose addresses are of this type.
pub(crate) fn table(address: &str) -> String {
    let numbers = NUMBERS.map(|name| format!("{name} INTEGER NOT NULL"));
    let addresses = ADDRESSES.map(|name| format!("{name} {address} NOT NULL"));
    format!("CREATE TABLE sessions ({}, {}) STRICT;", numbers.join(", "), addresses.join(", "))
}

/// Of a table that is made only to be measured afterwards.
const HURRIED: &str = "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA cache_size=-262144;";

/// Inserts all rows with these indexes; seconds, of which making the rows ready is none.
pub(crate) fn insert(file: &Path, sessions: u64, indexes: &str) -> f64 {
    let mut database = Connection::open(file).unwrap();
    database.execute_batch(&[SETTINGS, &table("BLOB"), indexes].concat()).unwrap();
    fill(&mut database, sessions).as_secs_f64()
}

fn fill(database: &mut Connection, sessions: u64) -> Duration {
    let transaction = database.transaction().unwrap();
    let mut took = Duration::ZERO;
    let mut some = Vec::with_capacity(AT_ONCE);
    for more in ready(sessions) {
        some.extend(more);
        if some.len() >= AT_ONCE {
            took += store(&transaction, &some);
            some.clear();
        }
    }
    took += store(&transaction, &some);
    let begun = Instant::now();
    transaction.commit().unwrap();
    took + begun.elapsed()
}

/// The values of all rows, a batch at a time.
pub(crate) fn ready(sessions: u64) -> impl Iterator<Item = Vec<Vec<Value>>> {
    rows(sessions).map(|some| some.iter().map(values).collect())
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

/// Inserts rows; what that took.
pub(crate) fn store(transaction: &Transaction<'_>, rows: &[Vec<Value>]) -> Duration {
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

/// Deletes the first of two days from a table of both with both indexes, a part at a time, in transactions that are each
/// durable; seconds for so many sessions, which is what a day has.
pub(crate) fn delete_day(file: &Path, sessions: u64) -> f64 {
    let mut database = Connection::open(file).unwrap();
    database.execute_batch(&[HURRIED, &table("BLOB")].concat()).unwrap();
    fill(&mut database, 2 * sessions);
    database.execute_batch(&[HOST_INDEX, PEER_INDEX, SETTINGS].concat()).unwrap();
    let middle = "SELECT closed_at_us FROM sessions WHERE rowid = (SELECT max(rowid) / 2 FROM sessions)";
    let middle: i64 = database.query_row(middle, [], |row| row.get(0)).unwrap();
    let part = "DELETE FROM sessions WHERE rowid IN
                (SELECT rowid FROM sessions WHERE closed_at_us < ?1 ORDER BY rowid LIMIT ?2)";
    let (begun, mut deleted) = (Instant::now(), 0);
    loop {
        match database.execute(part, [middle, DELETED_AT_ONCE]).unwrap() {
            0 => break,
            some => deleted += some,
        }
    }
    begun.elapsed().as_secs_f64() * sessions as f64 / deleted as f64
}
