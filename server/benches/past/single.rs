//! One table that grows with both indexes kept up to date: what a history without files for days would be. Its rate is told
//! for each million, so that it can be seen to fall, and it can be ended at any time with Ctrl-C.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use crate::{
    compare::bare::{self, HOST_INDEX, PEER_INDEX},
    table::Table,
};

/// Rows of a transaction.
const AT_ONCE: usize = 10_000;
/// Rows between two lines about the rate.
const STEP: u64 = 1_000_000;

/// Stores so many sessions, or what there is when it is ended, in transactions that are each durable.
pub(crate) async fn grow(place: &Path, sessions: u64, table: &mut Table) {
    let enough = Arc::new(AtomicBool::new(false));
    let growing = {
        let (file, enough) = (place.join("single.db"), Arc::clone(&enough));
        thread::spawn(move || fill(&file, sessions, &enough))
    };
    while !growing.is_finished() {
        tokio::select! {
            ended = tokio::signal::ctrl_c() => {
                ended.unwrap();
                enough.store(true, Relaxed);
            }
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
    let rates = growing.join().unwrap();
    if let (Some(first), Some(last)) = (rates.first(), rates.last()) {
        let what = format!("one table with both indexes, million {}", rates.len());
        table.beside(&what, (last / 1000.0, "k sessions/s"), ("the first million", first / 1000.0));
    }
}

/// Rows a second of each million.
fn fill(file: &Path, sessions: u64, enough: &AtomicBool) -> Vec<f64> {
    let mut database = Connection::open(file).unwrap();
    database.execute_batch(&[bare::SETTINGS, &bare::table("BLOB"), HOST_INDEX, PEER_INDEX].concat()).unwrap();
    let (mut rates, mut ready) = (Vec::new(), Vec::with_capacity(AT_ONCE));
    let (mut stored, mut took) = (0, Duration::ZERO);
    for some in bare::ready(sessions) {
        ready.extend(some);
        if ready.len() < AT_ONCE {
            continue;
        }
        let begun = Instant::now();
        let transaction = database.transaction().unwrap();
        bare::store(&transaction, &ready);
        transaction.commit().unwrap();
        took += begun.elapsed();
        stored += ready.len() as u64;
        ready.clear();
        if stored >= STEP {
            rates.push(stored as f64 / took.as_secs_f64());
            let (last, part) = (rates[rates.len() - 1], rates[rates.len() - 1] / rates[0]);
            eprintln!("one table: million {}, {last:.0} a second, {part:.2} of the first", rates.len());
            (stored, took) = (0, Duration::ZERO);
        }
        if enough.load(Relaxed) {
            break;
        }
    }
    rates
}
