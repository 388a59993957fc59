//! What it takes to find the other ends of as many sessions as it is done for without being asked to, where that is most work:
//! at each of the limits of `history::pairing` and of the questions that look for them.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench pairs
//! ```
//!
//! Each answer is of 1,000 sessions of one host, from the file that is written to and once more when that is sealed. Its time
//! and its memory stand beside those of the same answer without other ends.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measuring, run by hand")]

#[path = "ingest/load.rs"]
#[allow(dead_code, reason = "another bench uses the rest")]
mod load;
#[path = "ingest/watch.rs"]
#[allow(dead_code, reason = "another bench uses the rest")]
mod watch;

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::OtherEnds,
    batch::{Change, Op, Role, Socket},
    host::HostId,
    owner::Owner,
    question::{Pairing, SessionQuestion, SessionTime},
    session::Session,
    socket::{
        Direction::{self, In, Out},
        Family, Known, OwnerKnown, Protocol, SocketKey, SocketState,
    },
    time::Timestamp,
};
use fleetsock_server::history::{
    Applied, History,
    pairing::{ALIKE_LIMIT, CANDIDATES_LIMIT},
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};
use tokio::sync::mpsc;

use self::{
    load::{BEGIN_US, batch, enrol},
    watch::Watch,
};

/// Sessions of an answer.
const FEW: u64 = 1_000;
/// Times that each question is asked.
const ASKED: usize = 10;
/// Rows of a batch.
const BATCH_ROWS: usize = 2_000;

/// A host whose sessions are asked for.
struct Case {
    what: String,
    host: usize,
    /// What each host reports.
    lives: Vec<(usize, Vec<Change>)>,
}

fn address(host: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x0a00_0000 + u32::try_from(host).unwrap())
}

fn at(address: Ipv4Addr, port: u64) -> SocketAddr {
    (address, u16::try_from(port).unwrap()).into()
}

/// A session of some minutes; all begin within a minute, so that each is open together with all others.
fn life(number: u64, direction: Direction, local: SocketAddr, peer: SocketAddr, owner: &Arc<Owner>) -> Change {
    let begun = BEGIN_US + i64::try_from(number % 60_000).unwrap() * 1_000;
    let socket = Socket {
        key: SocketKey { netns: 4_026_531_840, cookie: number + 1 },
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        state: SocketState::Established,
        local,
        path: None,
        role: Role::Session { direction, peer },
        opened_at: Timestamp::from_micros(begun),
        opened_known: Known::Event,
        owner_known: OwnerKnown::Exact,
        owners: vec![Arc::clone(owner)],
        bytes_sent: number,
        bytes_received: number,
    };
    let closed = Timestamp::from_micros(begun + 200_000_000);
    Change { op: Op::Closed { at: closed, known: Known::Event }, socket }
}

fn owner(process: &str) -> Arc<Owner> {
    Arc::new(Owner {
        pid: 812,
        started_at: Some(Timestamp::from_micros(BEGIN_US)),
        process: process.to_owned(),
        exe: format!("/usr/sbin/{process}"),
        uid: 100,
        user: process.to_owned(),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
    })
}

/// Each session with another host.
fn with_many_hosts(first: usize) -> Case {
    let (client, server) = (owner("curl"), owner("nginx"));
    let port = |n: u64| 40_000 + n;
    let ends = (0..FEW).map(|n| {
        let peer = first + 1 + usize::try_from(n).unwrap();
        (peer, vec![life(n, In, at(address(peer), 443), at(address(first), port(n)), &server)])
    });
    let own = (0..FEW).map(|n| {
        let peer = address(first + 1 + usize::try_from(n).unwrap());
        life(n, Out, at(address(first), port(n)), at(peer, 443), &client)
    });
    let lives = ends.chain([(first, own.collect())]).collect();
    Case { what: format!("each with another of {FEW} hosts"), host: first, lives }
}

/// All with one host, which had so many other sessions meanwhile.
fn with_a_busy_host(first: usize, others: u64) -> Case {
    let (client, server) = (owner("curl"), owner("nginx"));
    let (own, busy) = (address(first), address(first + 1));
    let foreign = |n: u64| at(Ipv4Addr::from_bits(0x5000_0000 + u32::try_from(n).unwrap()), 5000);
    let ends = (0..FEW).map(|n| life(n, In, at(busy, 443), at(own, 40_000 + n), &server));
    let more = (FEW..others).map(|n| life(n, In, at(busy, 443), foreign(n), &server));
    let lives = vec![
        (first + 1, ends.chain(more).collect()),
        (first, (0..FEW).map(|n| life(n, Out, at(own, 40_000 + n), at(busy, 443), &client)).collect()),
    ];
    Case { what: format!("with a host that had {others} meanwhile"), host: first, lives }
}

/// All with an address that as many hosts have as are looked at, each of which has such sessions.
fn with_a_shared_address(first: usize) -> Case {
    let (client, server) = (owner("curl"), owner("nginx"));
    let (own, shared) = (address(first), Ipv4Addr::new(192, 168, 7, 7));
    let ends = |_| (0..FEW).map(|n| life(n, In, at(shared, 443), at(own, 40_000 + n), &server)).collect();
    let mut lives: Vec<_> = (1..=CANDIDATES_LIMIT).map(|number| (first + number, ends(number))).collect();
    lives.push((first, (0..FEW).map(|n| life(n, Out, at(own, 40_000 + n), at(shared, 443), &client)).collect()));
    Case { what: format!("with an address of {CANDIDATES_LIMIT} hosts"), host: first, lives }
}

/// So many lives of the same two sockets at once, as only an agent that makes them up tells.
fn alike(first: usize, count: usize) -> Case {
    let (client, server) = (owner("curl"), owner("nginx"));
    let (out, inward) = (at(address(first), 40_000), at(address(first + 1), 443));
    let count = u64::try_from(count).unwrap();
    let lives = vec![
        (first + 1, (0..count).map(|n| life(n, In, inward, out, &server)).collect()),
        (first, (0..FEW).map(|n| life(n, Out, out, inward, &client)).collect()),
    ];
    Case { what: format!("all of the same two sockets, {count} lives at the other end"), host: first, lives }
}

async fn report(history: &SqliteHistory, hosts: &[HostId], cases: &mut [Case]) {
    for (host, changes) in cases.iter_mut().flat_map(|case| case.lives.drain(..)) {
        for (seq, changes) in (1..).zip(changes.chunks(BATCH_ROWS)) {
            let applied = history.apply(hosts[host], batch(seq, changes.to_vec())).await.unwrap();
            assert_eq!(applied, Applied::Committed);
        }
    }
}

/// What an answer was and took.
struct Answered {
    rows: usize,
    /// Of which the other end was found.
    paired: usize,
    other_ends: OtherEnds,
    ms: f64,
    /// Memory that was taken besides what was there before, KiB.
    memory_kib: u64,
}

/// A line of proc_pid_status(5), KiB.
fn status(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

async fn ask(history: &SqliteHistory, host: usize, pairing: Pairing) -> Answered {
    let time = SessionTime::Within { since: Timestamp::MIN, until: None };
    let mut question = SessionQuestion { time, pairing, ..SessionQuestion::default() };
    question.filter.hosts.globs = vec![format!("host{host:05}")];
    let now = Timestamp::from_micros(BEGIN_US + 3_300_000_000);
    // Resets the peak (proc_pid_clear_refs(5)).
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let (before, begun) = (status("VmRSS"), Instant::now());
    let (rows, mut chunks) = mpsc::channel::<Vec<Session>>(4);
    let take = async {
        let (mut rows, mut paired) = (0, 0);
        while let Some(chunk) = chunks.recv().await {
            rows += chunk.len();
            paired += chunk.iter().filter(|session| session.other_end.is_some()).count();
        }
        (rows, paired)
    };
    let (meta, (rows, paired)) = tokio::join!(history.list_sessions(question, now, rows), take);
    let ms = begun.elapsed().as_secs_f64() * 1000.0;
    let memory_kib = status("VmHWM").saturating_sub(before);
    Answered { rows, paired, other_ends: meta.unwrap().other_ends.unwrap(), ms, memory_kib }
}

/// Answers to one question.
struct Often {
    /// The one of middling speed.
    middle: Answered,
    /// Of each, all threads of the process together.
    cpu_ms: f64,
    /// Of the one that took most.
    memory_kib: u64,
}

async fn ask_often(history: &SqliteHistory, host: usize, pairing: Pairing) -> Often {
    // The first one meets cold caches.
    let mut memory_kib = ask(history, host, pairing).await.memory_kib;
    let (watch, mut answers) = (Watch::start(), Vec::with_capacity(ASKED));
    for _ in 0..ASKED {
        answers.push(ask(history, host, pairing).await);
    }
    let cpu_ms = watch.took().cpu * 1000.0 / ASKED as f64;
    memory_kib = answers.iter().map(|answer| answer.memory_kib).fold(memory_kib, u64::max);
    answers.sort_by(|one, other| one.ms.total_cmp(&other.ms));
    Often { middle: answers.swap_remove(ASKED / 2), cpu_ms, memory_kib }
}

async fn measure(history: &SqliteHistory, form: &str, cases: &[Case]) {
    for case in cases {
        let without = ask_often(history, case.host, Pairing::Never).await;
        let with = ask_often(history, case.host, Pairing::OfFew).await;
        let looked = if with.middle.other_ends == OtherEnds::LookedFor { "" } else { ", given up" };
        println!(
            "| {}, {form} | {} | {}{looked} | {:.0} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} |",
            case.what,
            with.middle.rows,
            with.middle.paired,
            without.cpu_ms,
            with.cpu_ms,
            without.middle.ms,
            with.middle.ms,
            without.memory_kib as f64 / 1024.0,
            with.memory_kib as f64 / 1024.0,
        );
    }
}

/// Has the one file sealed, which the next batch ends.
async fn seal(folder: &Path, history: &SqliteHistory, host: HostId) {
    assert_eq!(history.apply(host, batch(1, Vec::new())).await.unwrap(), Applied::Committed);
    while folder.join("day-1.db").exists() || !folder.join("day-1.sealed").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn run() {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = place.path().join("history");
    let mut cases = vec![
        with_many_hosts(0),
        with_a_busy_host(1_100, 10_000),
        with_a_busy_host(1_110, 100_000),
        with_a_busy_host(1_120, 240_000),
        with_a_busy_host(1_130, 600_000),
        with_a_shared_address(1_140),
        alike(1_160, ALIKE_LIMIT / 4),
        alike(1_170, ALIKE_LIMIT),
        alike(1_180, ALIKE_LIMIT + 1),
    ];
    let history = SqliteHistory::open(&folder, Options::default()).unwrap();
    let hosts = enrol(&history, 1_200).await;
    report(&history, &hosts, &mut cases).await;
    println!("| 1,000 sessions | rows | paired | CPU ms without | with | ms without | with | MiB without | with |");
    println!("|---|---|---|---|---|---|---|---|---|");
    measure(&history, "as rows", &cases).await;
    history.close().await.unwrap();
    drop(history);

    let keeping = Keeping { part_rows: 1, ..Keeping::default() };
    let sealing = Sealing { pause: Duration::from_millis(10), stays: Duration::ZERO };
    let history = SqliteHistory::open(&folder, Options { keeping, sealing, ..Options::default() }).unwrap();
    seal(&folder, &history, hosts[1_199]).await;
    measure(&history, "sealed", &cases).await;
    history.close().await.unwrap();
}

fn main() {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run());
}
