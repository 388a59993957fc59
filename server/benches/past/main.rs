//! A long history: how fast it grows, what a session takes on the disk, and how long answers about the past take.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench past                            # 20 million sessions, some minutes
//! cargo bench -p fleetsock-server --bench past -- --sessions 100000000    # 20 days of five million
//! ```
//!
//! Sessions go in through the history's own write path, in batches that are each acknowledged when they are durable, and
//! files are sealed beside that as they are in a server.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for measuring, run by hand"
)]

mod fleet;
#[path = "../ingest/load.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod load;
mod questions;
#[path = "../ingest/watch.rs"]
mod watch;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use fleetsock_proto::host::HostId;
use fleetsock_server::history::{
    Applied, Bounds, History,
    sqlite::{Options, Sealing, SqliteHistory},
};
use tokio::task::JoinSet;

use self::{
    fleet::{HOSTS, HostLoad, share},
    load::{batch, enrol},
    watch::Watch,
};

/// Batches on the way at once.
const AT_ONCE: usize = 100;
/// Sessions between two lines about the rate.
const STEP: u64 = 10_000_000;

/// The growth of a long history, and questions about it.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Sessions that the history has in the end.
    #[arg(long, default_value_t = 20_000_000)]
    sessions: u64,
    /// Times that each question is asked.
    #[arg(long, default_value_t = 50)]
    asked: usize,
    /// Where the history is made; by default beside the build.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sessions of the whole fleet, each host with its part, reported by hosts at once.
async fn grow(history: &Arc<SqliteHistory>, hosts: &[HostId], sessions: u64) -> Vec<f64> {
    let stored = Arc::new(AtomicU64::new(0));
    let mut reporting = JoinSet::new();
    for first in 0..AT_ONCE {
        let mine: Vec<(usize, HostId)> = (first..HOSTS).step_by(AT_ONCE).map(|host| (host, hosts[host])).collect();
        let (history, stored) = (Arc::clone(history), Arc::clone(&stored));
        reporting.spawn(async move { report(&history, &mine, sessions, &stored).await });
    }
    let (begun, mut rates, mut step) = (Instant::now(), Vec::new(), (0, 0.0));
    while !reporting.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        while reporting.try_join_next().is_some() {}
        let (now, at) = (stored.load(Relaxed), begun.elapsed().as_secs_f64());
        if now - step.0 >= STEP {
            rates.push((now - step.0) as f64 / (at - step.1));
            eprintln!("{} million sessions, {:.0} a second", now / 1_000_000, rates[rates.len() - 1]);
            step = (now, at);
        }
    }
    rates
}

/// Reports the sessions of some hosts, in batches of 10 to 100, in the order of time.
async fn report(history: &SqliteHistory, hosts: &[(usize, HostId)], sessions: u64, stored: &AtomicU64) {
    let part = |number: usize| (sessions as f64 * share(number)) as u64;
    let mut loads: Vec<_> =
        hosts.iter().map(|(number, host)| (*host, HostLoad::new(*number), 1, part(*number))).collect();
    while let Some((host, load, seq, left)) =
        loads.iter_mut().filter(|(.., left)| *left > 0).min_by_key(|(_, load, ..)| load.at())
    {
        let rows = (10 + *seq % 91).min(*left);
        let batch = batch(*seq, load.next(rows));
        assert_eq!(history.apply(*host, batch).await.unwrap(), Applied::Committed);
        *seq += 1;
        *left -= rows;
        stored.fetch_add(rows, Relaxed);
    }
}

/// Bytes of all files with this ending, and how many they are.
fn files(folder: &Path, ending: &str) -> (u64, usize) {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let days = entries.filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("day-") && name.ends_with(ending)
    });
    days.fold((0, 0), |(bytes, count), entry| (bytes + entry.metadata().unwrap().len(), count + 1))
}

async fn run(arguments: Arguments) {
    let place = match &arguments.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")),
    };
    let place = place.unwrap();
    let folder = place.path().join("history");
    let sealing = Sealing { stays: Duration::from_secs(1), ..Sealing::default() };
    let bounds = Bounds { rows: u32::MAX, ..Bounds::default() };
    let options = Options { sealing, bounds, ..Options::default() };
    let history = Arc::new(SqliteHistory::open(&folder, options).unwrap());
    let hosts = enrol(&history, HOSTS).await;

    let watch = Watch::start();
    let rates = grow(&history, &hosts, arguments.sessions).await;
    let ingest = watch.took();
    // The last file is written to still; what is complete gets sealed.
    while files(&folder, ".db").1 > 1 || files(&folder, ".unfinished").1 > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = watch.took();
    let rate = |clock: f64| arguments.sessions as f64 / clock / 1000.0;
    println!("\n| {} sessions of {HOSTS} hosts | |\n|---|---|", arguments.sessions);
    println!("| stored, k/s, while earlier days are sealed | {:.0} |", rate(ingest.clock));
    println!("| stored and sealed, k/s | {:.0} |", rate(all.clock));
    println!("| CPU of both with the load itself, us per session | {:.2} |", all.cpu * 1e6 / arguments.sessions as f64);
    if let (Some(slowest), Some(fastest)) =
        (rates.iter().copied().reduce(f64::min), rates.iter().copied().reduce(f64::max))
    {
        println!("| slowest of fastest ten million | {:.2} |", slowest / fastest);
    }
    let (bytes, count) = files(&folder, ".sealed");
    let sealed = sealed_sessions(&folder);
    if sealed > 0 {
        println!("| bytes per sealed session, peers included ({count} files) | {:.1} |", bytes as f64 / sealed as f64);
    }
    questions::ask_all(&history, arguments.sessions, arguments.asked).await;
    history.close().await.unwrap();
}

fn sealed_sessions(folder: &Path) -> i64 {
    let main = rusqlite::Connection::open(folder.join("main.db")).unwrap();
    let sum = "SELECT coalesce(sum(sessions), 0) FROM parts WHERE file LIKE '%.sealed'";
    main.query_row(sum, [], |row| row.get(0)).unwrap()
}

fn main() {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run(arguments));
}
