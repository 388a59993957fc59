//! A long history: how fast it grows, what a session takes on the disk, and how long answers about the past take.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench past                            # 20 million sessions, some minutes
//! cargo bench -p fleetsock-server --bench past -- --sessions 100000000    # 20 days of five million
//! cargo bench -p fleetsock-server --bench past -- --busy --acks --compare # also under load, and beside other ways
//! cargo bench -p fleetsock-server --bench past -- --sessions 0 --acks     # acknowledgements alone, two minutes
//! cargo bench -p fleetsock-server --bench past -- --sessions 0 --acks --day 5000000 # beside files of five million
//! cargo bench -p fleetsock-server --bench past -- --sessions 100000000 --single-table # one table in place of our own way
//! cargo build --release -p fleetctl                                       # also by whole commands:
//! cargo bench -p fleetsock-server --bench past -- --fleetctl $PWD/target/release/fleetctl
//! # one history for several builds:
//! cargo bench -p fleetsock-server --bench past -- --sessions 100000000 --keep /var/tmp/past --only 'a /24'
//! ```
//!
//! How both grow where memory is short: the same commands in a group that has 2 GiB, page cache included, for all that they
//! do. Build before (`cargo bench -p fleetsock-server --bench past --no-run`), so that the compiler is not in it. As root,
//! with systemd on cgroup v2:
//!
//! ```text
//! systemd-run --scope -p MemoryMax=2G -p MemorySwapMax=0 cargo bench -p fleetsock-server --bench past -- --sessions 100000000
//! ```
//!
//! without systemd, on cgroup v2 (first line) or v1 (second), and then:
//!
//! ```text
//! group=/sys/fs/cgroup/past limit=memory.max; mkdir $group; echo +memory > /sys/fs/cgroup/cgroup.subtree_control
//! group=/sys/fs/cgroup/memory/past limit=memory.limit_in_bytes; mkdir $group
//! echo 2G > $group/$limit
//! (echo 0 > $group/cgroup.procs; cargo bench -p fleetsock-server --bench past -- --sessions 100000000)
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

mod acks;
mod clock;
mod commands;
mod compare;
mod fleet;
#[path = "../ingest/load.rs"]
#[allow(dead_code, reason = "the other bench uses the rest")]
mod load;
mod memory;
mod pace;
mod questions;
mod single;
mod table;
#[path = "../ingest/watch.rs"]
mod watch;

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use clap::Parser;
use fleetsock_proto::{host::HostId, time::Timestamp};
use fleetsock_server::history::{
    Applied, Bounds, History,
    sqlite::{Options, Sealing, SqliteHistory},
};
use tikv_jemallocator::Jemalloc;
use tokio::{sync::mpsc, task::JoinSet};

use self::{
    fleet::{DAY_SESSIONS, DAY_US, HOSTS, Report, Reports},
    load::{BEGIN_US, batch, enrol},
    pace::steadily,
    questions::Answered,
    table::{Table, digits, p50_p99},
    watch::Watch,
};

/// The server's: what is measured is the server's.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Batches on the way at once.
const AT_ONCE: usize = 100;
/// Batches that are made for each of these beforehand: more let hosts be further apart in time.
const AHEAD: usize = 8;
/// Sessions between two lines about the rate.
const STEP: u64 = 10_000_000;
/// Sessions of a day that is sealed while acknowledgements are measured: as few as take as long as the time between.
const ACKNOWLEDGED_DAY: u64 = 1_000_000;

/// The growth of a long history, and questions about it.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Sessions that the history has in the end; 0 for no such history.
    #[arg(long, default_value_t = 20_000_000)]
    sessions: u64,
    /// How many of each question are asked in each of five rounds: of other hosts, peers and times. Of quick ones each is
    /// asked twice, and all again until a second has passed.
    #[arg(long, default_value_t = 50)]
    asked: usize,
    /// Ask only the questions that have these words.
    #[arg(long, default_value = "")]
    only: String,
    /// Also ask while 20,000 rows a second come in.
    #[arg(long)]
    busy: bool,
    /// Also measure how long acknowledgements take, while nothing is sealed and while a day is.
    #[arg(long)]
    acks: bool,
    /// Sessions of each day that is sealed while acknowledgements are measured.
    #[arg(long, default_value_t = ACKNOWLEDGED_DAY)]
    day: u64,
    /// Days that are sealed then.
    #[arg(long, default_value_t = 5, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..))]
    windows: usize,
    /// Also load sessions by other ways: bare SQLite, and `sqlite3` and PostgreSQL where they are installed.
    #[arg(long)]
    compare: bool,
    /// Sessions of a comparison.
    #[arg(long, default_value_t = DAY_SESSIONS)]
    compared: u64,
    /// Load the sessions into one table with both indexes, as fast as it takes them, in place of a history; ends with Ctrl-C.
    #[arg(long, conflicts_with_all = ["busy", "acks", "compare"])]
    single_table: bool,
    /// Also ask by whole commands of this `fleetctl`, over mutual TLS to a server that has the history.
    #[arg(long)]
    fleetctl: Option<std::path::PathBuf>,
    /// Where the history is made; by default beside the build.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
    /// Make the history in this folder and leave it there; one of as many sessions that is there already is only asked.
    #[arg(long, conflicts_with_all = ["folder", "busy", "fleetctl", "single_table"])]
    keep: Option<std::path::PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Sessions of the whole fleet in the order of their time, each host with its part, reported by hosts at once. What each ten million took, and
/// what could follow.
async fn grow(history: &Arc<SqliteHistory>, hosts: &[HostId], sessions: u64) -> (Vec<Step>, Reports) {
    let stored = Arc::new(AtomicU64::new(0));
    let (mut reporting, mut senders) = (JoinSet::new(), Vec::new());
    for _ in 0..AT_ONCE {
        let (sender, mut reports) = mpsc::channel::<Report>(AHEAD);
        let (history, stored, hosts) = (Arc::clone(history), Arc::clone(&stored), hosts.to_vec());
        senders.push(sender);
        reporting.spawn(async move {
            while let Some(report) = reports.recv().await {
                let mut changes = fleet::listeners(&report);
                let Report { host, seq, sessions } = report;
                let rows = sessions.len() as u64;
                changes.extend(sessions);
                assert_eq!(history.apply(hosts[host], batch(seq, changes)).await.unwrap(), Applied::Committed);
                stored.fetch_add(rows, Relaxed);
            }
        });
    }
    let turns = fleet::turns(AT_ONCE);
    let making = tokio::spawn(async move {
        let mut reports = Reports::of(0..HOSTS, sessions);
        for report in &mut reports {
            senders[turns[report.host]].send(report).await.unwrap();
        }
        reports
    });
    let (mut watch, mut steps, mut before) = (Watch::start(), Vec::new(), 0);
    while !reporting.is_empty() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        while let Some(reported) = reporting.try_join_next() {
            reported.unwrap();
        }
        let now = stored.load(Relaxed);
        if now - before >= STEP {
            let (took, sessions) = (watch.took(), (now - before) as f64);
            let step = Step { rate: sessions / took.clock, cpu_us: took.cpu * 1e6 / sessions };
            let Step { rate, cpu_us } = step;
            eprintln!("{} million sessions, {rate:.0} a second, {cpu_us:.2} us of CPU each", now / 1_000_000);
            steps.push(step);
            (watch, before) = (Watch::start(), now);
        }
    }
    (steps, making.await.unwrap())
}

/// Ten million sessions: how many were stored a second, and the CPU of one, with the load's and that of files that were sealed meanwhile.
struct Step {
    rate: f64,
    cpu_us: f64,
}

/// Bytes of all files with this ending, and how many they are.
fn files(folder: &Path, ending: &str) -> (u64, usize) {
    let days = fs::read_dir(folder).unwrap().map(Result::unwrap).filter(|entry| {
        let name = entry.file_name().into_string().unwrap();
        name.starts_with("day-") && name.ends_with(ending)
    });
    // One that was there may be gone by now.
    let sizes = days.filter_map(|entry| Some(entry.metadata().ok()?.len()));
    sizes.fold((0, 0), |(bytes, count), size| (bytes + size, count + 1))
}

async fn run(arguments: Arguments) {
    let place = match &arguments.folder {
        Some(folder) => fs::create_dir_all(folder).and_then(|()| tempfile::tempdir_in(folder)),
        None => tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")),
    };
    let place = place.unwrap();
    let mut table = Table::default();
    if arguments.single_table {
        single::grow(place.path(), arguments.sessions, &mut table).await;
    } else if arguments.sessions > 0 {
        let kept = arguments.keep.as_deref();
        grow_and_ask(kept.unwrap_or(place.path()), &arguments, &mut table).await;
    }
    if arguments.acks {
        acks::measure(place.path(), (arguments.day, arguments.windows), &mut table).await;
    }
    if arguments.compare {
        compare::compare(place.path(), arguments.compared, &mut table).await;
    }
    table.print();
}

/// The history in a folder, which is begun if there is none.
fn open(folder: &Path) -> Arc<SqliteHistory> {
    let sealing = Sealing { stays: Duration::from_secs(1), ..Sealing::default() };
    // On a machine that does other things too an answer may take long, and that is to be told.
    let bounds = Bounds { rows: u32::MAX, time: Duration::from_secs(60), ..Bounds::default() };
    let options = Options { sealing, bounds, ..Options::default() };
    Arc::new(SqliteHistory::open(folder, options).unwrap())
}

/// A history with its sessions, all of them sealed but the last; its hosts, and what could follow.
async fn grown(folder: &Path, arguments: &Arguments, table: &mut Table) -> (Arc<SqliteHistory>, Vec<HostId>, Reports) {
    let history = open(folder);
    let hosts = enrol(&history, HOSTS).await;
    let watch = Watch::start();
    let (steps, reports) = grow(&history, &hosts, arguments.sessions).await;
    let ingest = watch.took();
    // The last file is written to still; what is complete gets sealed.
    while files(folder, ".db").1 > 1 || files(folder, ".unfinished").1 > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = watch.took();
    let rate = |clock: f64| format!("{:.0} k/s", arguments.sessions as f64 / clock / 1000.0);
    table.figure(
        &format!("{} sessions of {HOSTS} hosts stored, earlier days sealed", arguments.sessions),
        rate(ingest.clock),
    );
    table.figure("the same until all is sealed", rate(all.clock));
    table.figure("CPU, the load's too", format!("{:.2} us a session", all.cpu * 1e6 / arguments.sessions as f64));
    let ends = |of: fn(&Step) -> f64| {
        let all = || steps.iter().map(of);
        all().reduce(f64::min).zip(all().reduce(f64::max))
    };
    if let (Some((slowest, fastest)), Some((least, most))) = (ends(|step| step.rate / 1000.0), ends(|step| step.cpu_us))
    {
        table.beside("slowest ten million", (slowest, "k/s"), ("fastest", fastest));
        table.beside("least CPU of a session in ten million", (least, "us"), ("most", most));
    }
    let (bytes, count) = files(folder, ".sealed");
    let sealed = sealed_sessions(folder);
    if sealed > 0 {
        let each = format!("{:.1} B a session", bytes as f64 / sealed as f64);
        table.figure(&format!("{count} sealed files, peers included"), each);
    }
    (history, hosts, reports)
}

/// Has the system have the sealed files in memory, as far as there is room, as they were when the questions were designed.
fn read_through(folder: &Path) {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for path in files.filter(|path| path.extension().is_some_and(|ending| ending == "sealed")) {
        std::io::copy(&mut fs::File::open(path).unwrap(), &mut std::io::sink()).unwrap();
    }
}

async fn grow_and_ask(place: &Path, arguments: &Arguments, table: &mut Table) {
    let folder = place.join("history");
    // Written when the history is whole: one that broke off would be asked as if it were.
    let told = place.join("sessions");
    let (history, hosts, reports) = if folder.exists() {
        let sessions = fs::read_to_string(&told).unwrap_or_default();
        assert_eq!(sessions, arguments.sessions.to_string(), "{} has other sessions, or not all", folder.display());
        (open(&folder), Vec::new(), Reports::of(0..0, 0))
    } else {
        let grown = grown(&folder, arguments, table).await;
        fs::write(told, arguments.sessions.to_string()).unwrap();
        grown
    };
    read_through(&folder);
    let idle = questions::ask_all(&history, arguments.sessions, (arguments.asked, &arguments.only)).await;
    let (busy, acknowledged) = match arguments.busy {
        true => ask_busily(&history, &hosts, reports, arguments).await,
        false => Default::default(),
    };
    for one in &idle {
        table.line(one.line("question"));
    }
    for (busy, idle) in busy.iter().zip(&idle) {
        table.line(busy.line("at 20,000 rows/s"));
        let (late, before) = (busy.took.1, idle.took.1);
        table.beside(&format!("its p99: {}", busy.what), (late, "ms"), ("while nothing comes in", before));
    }
    if !acknowledged.is_empty() {
        let (p50, p99) = p50_p99(acknowledged);
        let took = format!("p50 {}, p99 {} ms", digits(p50), digits(p99));
        table.figure("acknowledged while they are asked, 20,000 rows/s", took);
    }
    history.close().await.unwrap();
    match &arguments.fleetctl {
        Some(fleetctl) => {
            // A question about the future is refused, and the sessions of this history go on into it.
            let past = (Timestamp::now().as_micros() - BEGIN_US) / DAY_US - 1;
            let days = i64::try_from(arguments.sessions / DAY_SESSIONS).unwrap().clamp(1, past.max(1));
            commands::measure(place, &folder, fleetctl, (days, arguments.asked, &arguments.only), table);
        }
        None if arguments.keep.is_none() => fs::remove_dir_all(folder).unwrap(),
        None => {}
    }
}

/// The same questions while sessions come in, and after how many milliseconds these were acknowledged.
async fn ask_busily(
    history: &Arc<SqliteHistory>,
    hosts: &[HostId],
    reports: Reports,
    arguments: &Arguments,
) -> (Vec<Answered>, Vec<f64>) {
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let (history, hosts, over) = (Arc::clone(history), hosts.to_vec(), Arc::clone(&over));
        let mut reports = reports.continued(arguments.sessions.max(DAY_SESSIONS));
        tokio::spawn(async move { steadily(&history, &hosts, &mut reports, |_| !over.load(Relaxed)).await })
    };
    let answered = questions::ask_all(history, arguments.sessions, (arguments.asked, &arguments.only)).await;
    over.store(true, Relaxed);
    let acknowledged: Vec<f64> = load.await.unwrap().iter().map(|one| one.ms).collect();
    assert!(!acknowledged.is_empty());
    (answered, acknowledged)
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
