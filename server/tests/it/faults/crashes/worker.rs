//! The process that is killed: it stores batch after batch, in whose hours days go by, and notes what was acknowledged.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use fleetsock_proto::{
    batch::{
        Batch,
        BatchKind::{Changes, SnapshotWhole},
        Change, Op, Role, Socket,
    },
    host::{HostId, HostState},
    owner::Owner,
    session::Session,
    socket::{
        Direction::{In, Out},
        Known,
    },
    time::Timestamp,
};
use fleetsock_server::history::{
    Applied, History,
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};

use crate::scene::{Agent, Described, at, opened, owner, session};

/// Where it works.
pub(super) const FOLDER: &str = "FLEETSOCK_TEST_CRASHES";
/// The test that is this process.
pub(super) const WORK: &str = "faults::crashes::worker::stores_batches_until_it_is_killed";
/// The history in that folder.
pub(super) const HISTORY: &str = "history";
/// The file with the id of the host.
pub(super) const HOST: &str = "host";
/// The file with what becomes of files that are not kept.
pub(super) const WAY: &str = "way";
/// The file with the numbers of the last batch before it was started, and of those that were acknowledged since, a line each.
pub(super) const ACKNOWLEDGED: &str = "acknowledged";

const HOUR: i64 = 3_600;
/// Hours from one batch to the next.
const STEP: i64 = 2;
/// Sessions of a batch that are over when they are told.
const OVER: u64 = 80;
/// Batches whose sessions fill a file, of the twelve of a day.
pub(super) const BATCHES_OF_A_FILE: u64 = 5;
/// Days for which sessions are kept.
const KEPT_DAYS: u64 = 2;
/// Files of rows beyond which it waits for the sealer, which would not keep up on a machine that has other things to do.
const FILES: usize = 4;

/// The hour that it is.
static NOW: AtomicI64 = AtomicI64::new(0);

pub(super) fn clock() -> Timestamp {
    at(NOW.load(Relaxed) * HOUR)
}

/// It is the hour after that of a batch.
pub(super) fn it_is_after(seq: u64) {
    NOW.store(hour(seq) + 1, Relaxed);
}

fn hour(seq: u64) -> i64 {
    i64::try_from(seq).unwrap() * STEP
}

/// What becomes of files that are not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Their sums are kept for ever, so that everything is counted.
    Sums,
    /// They are dropped.
    Dropping,
}

impl Way {
    /// Batches that come within the time for which sessions are kept.
    pub(super) const KEPT_BATCHES: u64 = KEPT_DAYS * 24 / STEP.unsigned_abs();

    pub(super) const fn name(self) -> &'static str {
        match self {
            Way::Sums => "sums",
            Way::Dropping => "dropping",
        }
    }

    fn of_folder(folder: &Path) -> Way {
        let name = fs::read_to_string(folder.join(WAY)).unwrap();
        [Way::Sums, Way::Dropping].into_iter().find(|way| way.name() == name).unwrap()
    }
}

pub(super) fn options(way: Way, pause: Duration) -> Options {
    let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
    let sums = match way {
        Way::Sums => days(36_500),
        Way::Dropping => None,
    };
    let part_rows = i64::try_from(BATCHES_OF_A_FILE * OVER).unwrap();
    let keeping = Keeping { kept: days(KEPT_DAYS), sums, part_rows };
    let sealing = Sealing { pause, stays: Duration::from_millis(20) };
    Options { keeping, sealing, clock, ..Options::default() }
}

/// Since when all is kept that closed, after so many batches and perhaps while the next one is stored.
pub(super) fn kept_since(batches: u64) -> Timestamp {
    at((hour(batches + 1) + 1 - i64::try_from(KEPT_DAYS).unwrap() * 24) * HOUR)
}

/// The last batch that was acknowledged.
pub(super) fn acknowledged(folder: &Path) -> u64 {
    let text = fs::read_to_string(folder.join(ACKNOWLEDGED)).unwrap();
    // A line may be written just now, or a kill have cut it off.
    let (whole, _) = text.rsplit_once('\n').unwrap();
    whole.lines().last().unwrap().parse().unwrap()
}

/// So many microseconds after the hour of a batch.
fn moment(seq: u64, us: u64) -> Timestamp {
    Timestamp::from_micros(at(hour(seq) * HOUR).as_micros() + i64::try_from(us).unwrap())
}

/// The batch that told of a session, by its opening.
pub(super) fn number_of(session: &Session) -> u64 {
    let us = session.opened_at.as_micros() - at(0).as_micros();
    u64::try_from(us / (STEP * HOUR * 1_000_000)).unwrap()
}

/// A session of a batch, of one of many kinds; each opens in a microsecond of its own.
fn life(seq: u64, n: u64) -> Socket {
    let (local, direction, peer) = match n % 3 {
        0 => ("10.0.0.1:443".to_owned(), In, format!("203.0.113.{}:{}", n % 7, 4000 + n)),
        1 => (format!("10.0.0.1:{}", 40_000 + n), Out, format!("198.51.100.{}:5432", n % 90)),
        _ => (format!("[2001:db8::1]:{}", 50_000 + n), Out, format!("[2001:db8::{:x}]:53", n + seq % 50)),
    };
    let mut one = session(seq * 1000 + n, &local, direction, &peer);
    if n % 3 == 2 {
        one = one.udp();
    }
    let pid = u32::try_from(n + seq % 1000).unwrap() + 1;
    one = match n % 4 {
        0 => one.held_by(&[]),
        1 => one.held_by(&[owner("nginx", pid)]),
        2 => one.held_by(&[owner("curl", pid)]),
        _ => one.held_by(&[owner("nginx", pid), owner("worker", pid + 1)]),
    };
    one.opened_at = moment(seq, n);
    one.opened_known = [Known::Event, Known::BetweenWalks, Known::FirstSeen][usize::try_from(n % 3).unwrap()];
    (one.bytes_sent, one.bytes_received) = (seq % 100 * 1000 + n, n * n);
    one
}

fn over(socket: Socket, at: Timestamp, known: Known) -> Change {
    Change { op: Op::Closed { at, known }, socket }
}

/// The session of a batch that stays until the next one.
fn stays(seq: u64) -> Socket {
    life(seq, OVER)
}

/// The batch of a number, the same each time.
pub(super) fn batch(host: HostId, seq: u64) -> Batch {
    let mut agent = Agent::of(host);
    agent.last.seq = seq - 1;
    let known = |n: u64| if n.is_multiple_of(5) { Known::BetweenWalks } else { Known::Event };
    let mut changes: Vec<Change> =
        (0..OVER).map(|n| over(life(seq, n), moment(seq, 60_000_000 + n * 1_001), known(n))).collect();
    if seq > 1 {
        changes.push(over(stays(seq - 1), moment(seq, 30_000_000), Known::Event));
    }
    changes.push(opened(stays(seq)));
    let kind = if seq == 1 { SnapshotWhole } else { Changes };
    let batch = agent.batch(kind, moment(seq, 90_000_000), changes);
    Batch { observed_since: moment(seq - 1, 90_000_000), ..batch }
}

/// The sessions that a batch told of, as an answer is to show them after so many batches, by their opening.
pub(super) fn sent_of(host: HostId, seq: u64, batches: u64) -> BTreeMap<Timestamp, Session> {
    let mut changes = batch(host, seq).changes;
    if seq < batches {
        changes.extend(batch(host, seq + 1).changes.into_iter().find(|change| change.socket.key == stays(seq).key));
    }
    let is_of_it = |change: &Change| change.socket.opened_at >= moment(seq, 0);
    changes
        .iter()
        .filter(|change| is_of_it(change))
        .map(|change| (change.socket.opened_at, shown(host, change)))
        .collect()
}

/// A session as an answer is to show it after that was the last that was told of it.
fn shown(host: HostId, change: &Change) -> Session {
    let socket = change.socket.clone();
    let Role::Session { direction, peer } = socket.role else { panic!("{change:?}") };
    let closed = match change.op {
        Op::Closed { at, known } => Some((at, known)),
        Op::Opened | Op::Updated | Op::Present => None,
    };
    Session {
        host_id: host,
        host: "web1".to_owned(),
        host_state: HostState::Online,
        protocol: socket.protocol,
        family: socket.family,
        direction,
        local: socket.local,
        peer,
        peer_host: String::new(),
        state: socket.state,
        netns: socket.key.netns,
        netns_name: String::new(),
        owner_known: socket.owner_known,
        owners: socket.owners.into_iter().map(|owner| Owner::clone(&owner)).collect(),
        opened_at: socket.opened_at,
        opened_known: socket.opened_known,
        closed,
        bytes_sent: socket.bytes_sent,
        bytes_received: socket.bytes_received,
        other_end: None,
    }
}

fn files_of_rows(history: &Path) -> usize {
    let names = fs::read_dir(history).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("day-") && name.ends_with(".db")).count()
}

#[tokio::test]
#[ignore = "the process that killed_in_any_step_of_a_file_each_session_is_there_once_as_it_was_sent kills"]
async fn stores_batches_until_it_is_killed() {
    let folder = std::env::var_os(FOLDER).unwrap();
    let folder = Path::new(&folder);
    let host: HostId = fs::read_to_string(folder.join(HOST)).unwrap().parse().unwrap();
    it_is_after(acknowledged(folder));
    let mut acknowledged = OpenOptions::new().append(true).open(folder.join(ACKNOWLEDGED)).unwrap();
    let history = folder.join(HISTORY);
    let store = SqliteHistory::open(&history, options(Way::of_folder(folder), Duration::from_millis(1))).unwrap();
    let mut seq = store.last_batch(host).await.unwrap().seq;
    // It ends with the test that began it, however that ends.
    let parent = rustix::process::getppid();
    while rustix::process::getppid() == parent {
        seq += 1;
        it_is_after(seq);
        assert_eq!(store.apply(host, batch(host, seq)).await.unwrap(), Applied::Committed);
        writeln!(acknowledged, "{seq}").unwrap();
        while files_of_rows(&history) > FILES {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
