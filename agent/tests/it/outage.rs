//! A server that is away for a day: what an agent observes meanwhile waits in its spool, and all of it arrives. What does not
//! fit any more is a gap with exact ends.
//!
//! Time is compressed: the batches of the time are written as fast as the disk takes them, each about its own walk, into the
//! spool that agents have, and the uplink that agents have delivers them. `FLEETSOCK_LONG=1` makes a day of it, and half a day
//! more than the default spool has room for.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_agent::{
    facts::{Hearing, facts},
    observer::orders::Orders,
    outbox::Outbox,
    packing::{Content, Window, pack},
    spool::{Item, SPOOL_BYTES_LIMIT, Spool},
    uplink::{Uplink, random},
};
use fleetsock_proto::{
    answer::{Gap, GapReason},
    batch::{Change, Op, Role, Socket},
    client::dial_tcp,
    host::BootId,
    question::{SessionQuestion, SessionTime},
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};
use tokio_util::sync::CancellationToken;

use super::fleet::Fleet;

/// What an agent of a busy host has to tell, bytes a second.
const BYTES_PER_S: u64 = 2048;
/// Time between two walks that have something to tell.
const WALK: Duration = Duration::from_secs(2);
/// Rows of each batch, as many as fit into one: some more than [`BYTES_PER_S`] for [`WALK`].
const ROWS: u64 = 60;
/// Walks whose rows are asked for at once.
const WALKS_ASKED: usize = 2500;
/// How long delivery may take at most.
const PATIENCE: Duration = Duration::from_secs(900);

/// How long the server is away, and the room of a spool that is too small for another such time.
struct Outage {
    walks: u64,
    longer_walks: u64,
    small: u64,
}

fn outage() -> Outage {
    const DAY_S: u64 = 86_400;
    let (seconds, longer, small) = match std::env::var_os("FLEETSOCK_LONG") {
        Some(_) => (DAY_S, DAY_S * 2, SPOOL_BYTES_LIMIT),
        None => (DAY_S / 100, DAY_S / 100, 1024 * 1024),
    };
    Outage { walks: seconds / WALK.as_secs(), longer_walks: longer / WALK.as_secs(), small }
}

/// A connection that began and ended between two walks.
fn over(cookie: u64, until: Timestamp) -> Change {
    let port = u16::try_from(cookie % 60_000).unwrap() + 1024;
    let peer = Ipv6Addr::from((0x2001_0db8 << 96) | u128::from(cookie));
    let socket = Socket {
        key: SocketKey { netns: 4_026_531_840, cookie },
        protocol: Protocol::Tcp,
        family: Family::Ipv6,
        state: SocketState::TimeWait,
        local: "[2001:db8:1::443]:443".parse().unwrap(),
        path: None,
        role: Role::Session { direction: Direction::In, peer: (peer, port).into() },
        opened_at: until.minus(Duration::from_micros(900_000 + cookie % 1000)),
        opened_known: Known::Event,
        owner_known: OwnerKnown::Unknown,
        owners: Vec::new(),
        bytes_sent: 1000 + cookie % 977,
        bytes_received: 100 + cookie % 89,
    };
    Change { op: Op::Closed { at: until.minus(Duration::from_micros(cookie % 1000)), known: Known::Event }, socket }
}

/// The cookies in the batch with this number; the first batch is a snapshot of nothing.
fn cookies(seq: u64) -> RangeInclusive<u64> {
    (seq - 1) * ROWS + 1..=seq * ROWS
}

/// A time in which a host was walked.
#[derive(Debug, Clone, Copy)]
struct Time {
    ended: Timestamp,
    walks: u64,
}

impl Time {
    /// The moment of a walk, from 0 on.
    fn walk(self, number: u64) -> Timestamp {
        let seconds = |walks: u64| WALK * u32::try_from(walks).unwrap();
        self.ended.minus(seconds(self.walks)).plus(seconds(number))
    }
}

/// Writes what was observed in a time.
fn observe(state: &Path, limit: u64, time: Time) -> Spool {
    let walk = |number: u64| time.walk(number);
    let walks = time.walks;
    let mut spool = Spool::open(state, limit, walk(0)).unwrap();
    let window = |seq: u64| Window {
        boot_id: BootId::from_array([7; 16]),
        since: walk((seq - 1).saturating_sub(1)),
        until: walk(seq - 1),
    };
    spool.append(Content::Snapshot, pack(Content::Snapshot, window(1), []).drafts).unwrap();
    for seq in 2..=walks + 1 {
        let window = window(seq);
        let changes = pack(Content::Changes, window, cookies(seq).map(|cookie| over(cookie, window.until)));
        assert_eq!(changes.drafts.len(), 1);
        spool.append(Content::Changes, changes.drafts).unwrap();
    }
    assert_eq!(spool.given().seq, walks + 1);
    spool
}

/// What the spool has to tell of as lost.
fn lost(spool: &mut Spool) -> Vec<GapReport> {
    let (mut gaps, mut position) = (Vec::new(), BatchNumber::default());
    while let Some(Item::Gap(gap)) = spool.next_after(position) {
        position = BatchNumber { epoch: gap.epoch, seq: gap.seqs.unwrap().1 };
        gaps.push(gap);
    }
    gaps
}

/// Delivers a spool until everything is acknowledged; how long that took.
async fn deliver(state: PathBuf, spool: Spool) -> Duration {
    let outbox = Arc::new(Outbox::new(spool));
    let uplink = Uplink {
        state,
        outbox: Arc::clone(&outbox),
        orders: Arc::new(Orders::default()),
        walk: WALK,
        facts: Arc::new(|| facts("test", 4_026_531_840, &Hearing::Nothing(String::new()), Vec::new())),
        clock: Timestamp::now,
        dial: dial_tcp,
        dice: random,
    };
    let (leave, began) = (CancellationToken::new(), Instant::now());
    let running = tokio::spawn(uplink.run(leave.clone()));
    while outbox.with(|spool| spool.bytes() > 0 || !lost(spool).is_empty()) {
        assert!(began.elapsed() < PATIENCE, "{} bytes are left", outbox.with(|spool| spool.bytes()));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let took = began.elapsed();
    leave.cancel();
    running.await.unwrap();
    took
}

/// The cookies of all sessions that an operator is answered, asked for some walks at a time. None is there twice.
async fn stored(fleet: &Fleet, time: Time) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for first in (0..=time.walks).step_by(WALKS_ASKED) {
        let asked = first..first + u64::try_from(WALKS_ASKED).unwrap();
        // Everything ended within a second before a walk.
        let [since, until] = [asked.start, asked.end].map(|number| time.walk(number).minus(WALK / 2));
        let within = SessionTime::Within { since, until: Some(until) };
        let question = SessionQuestion { time: within, ..SessionQuestion::default() };
        let (rows, meta) = fleet.local().await.list_sessions(question).await.unwrap().collect().await.unwrap();
        assert!(!meta.truncated, "{} rows", rows.len());
        for row in rows {
            let IpAddr::V6(peer) = row.peer.ip() else { panic!("{row:?}") };
            let cookie = u64::try_from(peer.to_bits() & u128::from(u64::MAX)).unwrap();
            assert!(found.insert(cookie), "{cookie} is there twice");
        }
    }
    found
}

async fn stored_gaps(fleet: &Fleet) -> Vec<Gap> {
    fleet.gaps().await.into_iter().filter(|gap| gap.reason.is_stored()).collect()
}

/// A fleet whose server is away, and the state folder of a host of it.
async fn away() -> (Fleet, PathBuf) {
    let mut fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    fleet.stop().await;
    (fleet, state)
}

#[expect(clippy::print_stderr, reason = "measured, for whoever runs it with --nocapture")]
fn note(what: &str, bytes: u64, walks: u64, took: Duration) {
    let (kib, rows) = (bytes >> 10, walks * ROWS);
    eprintln!("{what}: {kib} KiB, {walks} batches, {rows} rows delivered in {:.1} s", took.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_a_day_leaves_no_gap() {
    let Outage { walks, .. } = outage();
    let (mut fleet, state) = away().await;
    let time = Time { ended: Timestamp::now(), walks };
    let spool = observe(&state, SPOOL_BYTES_LIMIT, time);
    let (bytes, seconds) = (spool.bytes(), walks * WALK.as_secs());
    assert!(bytes >= seconds * BYTES_PER_S && spool.lost() == 0, "{bytes} bytes in {seconds} s");
    fleet.come_back().await;
    let took = deliver(state, spool).await;
    note("a day", bytes, walks, took);
    assert_eq!(stored_gaps(&fleet).await, []);
    let expected: BTreeSet<u64> = (2..=walks + 1).flat_map(cookies).collect();
    assert!(stored(&fleet, time).await == expected, "each row once");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_that_is_too_long_for_the_spool_leaves_one_gap_whose_ends_both_sides_know() {
    let Outage { longer_walks: walks, small, .. } = outage();
    let (mut fleet, state) = away().await;
    let time = Time { ended: Timestamp::now(), walks };
    let mut spool = observe(&state, small, time);
    let bytes = spool.bytes();
    assert!(bytes <= small && spool.lost() > 0);
    let [told] = lost(&mut spool)[..] else { panic!("{:?}", lost(&mut spool)) };
    let (first, last) = told.seqs.unwrap();
    assert_eq!((first, told.reason), (1, GapReason::SpoolFull));
    assert_eq!(spool.lost(), (last - 1) * ROWS, "the first batch had no rows");
    let Some(Item::Batch(oldest)) = spool.next_after(BatchNumber { epoch: told.epoch, seq: last }) else {
        panic!("nothing is left")
    };
    assert_eq!((oldest.number.seq, oldest.since), (last + 1, told.until), "it ends where the next batch begins");
    fleet.come_back().await;
    let took = deliver(state, spool).await;
    note("more than fits", bytes, walks + 1 - last, took);
    let [gap] = &stored_gaps(&fleet).await[..] else { panic!("{:?}", stored_gaps(&fleet).await) };
    assert_eq!((gap.since, gap.until, gap.reason), (told.since, Some(told.until), GapReason::SpoolFull));
    assert_eq!(gap.batches_lost, last, "both sides count alike");
    let expected: BTreeSet<u64> = (last + 1..=walks + 1).flat_map(cookies).collect();
    assert!(stored(&fleet, time).await == expected, "each row that was not dropped, once");
}
