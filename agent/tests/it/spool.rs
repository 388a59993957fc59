//! The spool of a process that is killed, and on a disk that is full.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use fleetsock_agent::{
    packing::{Content, Window, pack},
    spool::{Item, SPOOL_BYTES_LIMIT, Spool},
};
use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    host::BootId,
    socket::{Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::BatchNumber,
    time::Timestamp,
};

use super::enrolment::folder;

const CHILD: &str = "FLEETSOCK_TEST_SPOOL";

fn at(second: u64) -> Timestamp {
    Timestamp::from_micros(1_700_000_000_000_000 + second as i64 * 1_000_000)
}

fn socket(cookie: u64) -> Socket {
    Socket {
        key: SocketKey { netns: 1, cookie },
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        state: SocketState::Listen,
        local: "192.0.2.1:80".parse().unwrap(),
        path: None,
        role: Role::Listener,
        opened_at: at(cookie),
        opened_known: Known::BetweenWalks,
        owner_known: OwnerKnown::None,
        owners: Vec::new(),
        bytes_sent: 0,
        bytes_received: 0,
    }
}

/// Appends one batch of so many rows about a second.
fn append(spool: &mut Spool, second: u64, rows: u64) {
    let window = Window { boot_id: BootId::from_array([1; 16]), since: at(second - 1), until: at(second) };
    let (content, op) = match spool.wants_snapshot() {
        true => (Content::Snapshot, Op::Present),
        false => (Content::Changes, Op::Opened),
    };
    let changes = (0..rows).map(|row| Change { op, socket: socket(second * 1000 + row) });
    spool.append(content, pack(content, window, changes).drafts).unwrap();
}

fn open(folder: &Path) -> Spool {
    Spool::open(folder, SPOOL_BYTES_LIMIT, at(0)).unwrap()
}

fn number(item: &Item) -> BatchNumber {
    match item {
        Item::Batch(batch) => batch.number,
        Item::Gap(gap) => panic!("{gap:?}"),
    }
}

/// Not a test: what the process does that is killed below.
#[test]
#[ignore = "run by kill_minus_nine_loses_nothing_that_was_appended"]
fn append_until_killed() {
    let Ok(folder) = std::env::var(CHILD) else { return };
    let mut spool = open(Path::new(&folder));
    for second in 1.. {
        append(&mut spool, second, 20);
        println!("appended {}/{}", spool.given().epoch, spool.given().seq);
    }
}

#[test]
fn kill_minus_nine_loses_nothing_that_was_appended() {
    let folder = folder();
    let mut acknowledged = BatchNumber::default();
    let mut last = BatchNumber::default();
    for lines in [1, 40, 3, 150, 17] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "spool::append_until_killed", "--ignored", "--nocapture"])
            .env(CHILD, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let said = stdout.lines().map(Result::unwrap).filter(|line| line.contains("appended ")).nth(lines).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (epoch, seq) = said.rsplit_once(' ').unwrap().1.split_once('/').unwrap();
        let said = BatchNumber { epoch: epoch.parse().unwrap(), seq: seq.parse().unwrap() };
        assert!(said.epoch > last.epoch, "every start begins a numbering");

        let mut spool = open(folder.path());
        let mut held = Vec::new();
        let mut position = BatchNumber::default();
        while let Some(item) = spool.next_after(position) {
            position = number(&item);
            held.push(position);
        }
        // Without holes from what was acknowledged to what the process said last, or a little further.
        let follows = |before: BatchNumber, next: BatchNumber| {
            next == BatchNumber { seq: before.seq + 1, ..before } || (next.epoch > before.epoch && next.seq == 1)
        };
        assert!(follows(acknowledged, held[0]), "{acknowledged:?} {:?}", held[0]);
        for pair in held.windows(2) {
            assert!(follows(pair[0], pair[1]), "{pair:?}");
        }
        last = *held.last().unwrap();
        assert!(last >= said && last.epoch == said.epoch, "said {said:?}, held {last:?}");
        acknowledged = held[held.len() / 2].min(BatchNumber { seq: last.seq - 1, ..last });
        spool.acknowledge(acknowledged);
    }
}

/// A file system of one mebibyte; gone with the value.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` where the process may not mount.
    fn mount() -> Option<SmallDisk> {
        let folder = folder();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "fleetsock-test"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg(self.0.path()).status().unwrap();
    }
}

#[test]
fn a_full_disk_costs_nothing_that_fits_into_memory_and_is_recovered_from() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut spool = open(disk.0.path());
    append(&mut spool, 1, 10);
    let ballast = disk.0.path().join("ballast");
    // Writes until there is no room.
    fs::write(&ballast, vec![0; 2 * 1024 * 1024]).unwrap_err();
    for second in 2..=80 {
        append(&mut spool, second, 50);
    }
    let on_disk = spool.bytes();
    assert!(on_disk < 80 * 50 * 30, "not all of it was written: {on_disk}");
    let held = |spool: &mut Spool| {
        let mut position = BatchNumber::default();
        std::iter::from_fn(|| {
            position = number(&spool.next_after(position)?);
            Some(position.seq)
        })
        .collect::<Vec<u64>>()
    };
    assert_eq!(held(&mut spool), (1..=80).collect::<Vec<_>>());
    // What the server takes meanwhile is gone, although the disk does not let go of it.
    spool.acknowledge(BatchNumber { epoch: 1, seq: 5 });
    fs::remove_file(&ballast).unwrap();
    append(&mut spool, 81, 1);
    assert!(spool.bytes() > on_disk);
    assert_eq!(spool.lost(), 0);
    drop(spool);
    let mut spool = open(disk.0.path());
    spool.acknowledge(BatchNumber { epoch: 1, seq: 5 });
    assert_eq!(held(&mut spool), (6..=81).collect::<Vec<_>>(), "all of it is on disk");
}

#[test]
fn what_does_not_fit_into_memory_while_the_disk_is_full_is_counted_and_told() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("skipped: mounting a small file system needs root");
        return;
    };
    let mut spool = open(disk.0.path());
    append(&mut spool, 1, 10);
    fs::write(disk.0.path().join("ballast"), vec![0; 2 * 1024 * 1024]).unwrap_err();
    for second in 2..=120 {
        append(&mut spool, second, 2000);
    }
    let appended = 10 + 119 * 2000;
    assert!(spool.lost() > 0);
    let (mut position, mut told, mut batches, mut rows) = (BatchNumber::default(), 0, 0, 0);
    while let Some(item) = spool.next_after(position) {
        match item {
            Item::Batch(batch) => {
                position = batch.number;
                batches += 1;
                rows += batch.unpack().unwrap().changes.len() as u64;
            }
            Item::Gap(gap) => {
                let (first, last) = gap.seqs.unwrap();
                assert_eq!(first, position.seq + 1);
                position.seq = last;
                told += last - first + 1;
            }
        }
    }
    assert_eq!((position, batches + told), (spool.given(), spool.given().seq));
    assert_eq!(spool.lost() + rows, appended, "every change is held or counted");
}
