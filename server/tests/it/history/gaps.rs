//! Ranges that were not observed.

use fleetsock_proto::{
    answer::GapReason,
    batch::BatchKind::{Changes, SnapshotWhole},
    host::HostSelector,
    question::{CoverageQuestion, PortQuestion, SessionQuestion, SessionTime},
    stream::{BatchNumber, GapReport},
};
use fleetsock_server::history::{Applied, BETWEEN_EPOCHS, History, HistoryError, Registry};

use crate::{
    engine::{Engine, World},
    scene::{Agent, at},
};

fn report(epoch: u64, seqs: Option<(u64, u64)>, since: i64, until: i64, reason: GapReason) -> GapReport {
    GapReport { epoch, seqs, since: at(since), until: at(until), reason }
}

/// `host since..until reason lost` of each gap that is over.
async fn lines<E: Engine>(world: &World<E>, question: CoverageQuestion) -> Vec<String> {
    let (gaps, meta) = world.store().list_gaps(question, at(120)).await.unwrap();
    assert!(meta.gaps_total >= gaps.len() as u64);
    assert_eq!(meta.truncated, meta.gaps_total > gaps.len() as u64);
    let second = |at: fleetsock_proto::time::Timestamp| (at.as_micros() - crate::now().as_micros()) / 1_000_000;
    let line = |gap: &fleetsock_proto::answer::Gap| {
        let (since, until) = (second(gap.since), gap.until.map(second).unwrap());
        format!("{} {since}..{until} {} {}", gap.host, gap.reason, gap.batches_lost)
    };
    gaps.iter().filter(|gap| gap.reason != GapReason::NotReported).map(line).collect()
}

/// Two hosts that were observed from the beginning.
async fn observed<E: Engine>(world: &World<E>) -> (Agent, Agent) {
    let (mut web, mut db) = (world.host("web1").await, world.host("db1").await);
    for agent in [&mut web, &mut db] {
        world.tell(agent, SnapshotWhole, 0, Vec::new()).await;
        world.tell(agent, Changes, 99, Vec::new()).await;
    }
    (web, db)
}

async fn all<E: Engine>(world: &World<E>) -> Vec<String> {
    lines(world, CoverageQuestion::default()).await
}

pub(super) async fn a_new_numbering_leaves_a_gap_since_the_last_walk<E: Engine>() {
    assert_eq!(BETWEEN_EPOCHS, GapReason::AgentDown);
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    assert_eq!(all(&world).await, [""; 0], "before the first numbering there was nothing to observe");
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    world.tell(&mut agent, SnapshotWhole, 30, Vec::new()).await;
    assert_eq!(all(&world).await, [""; 0]);
    agent.restart();
    let first = world.tell(&mut agent, SnapshotWhole, 50, Vec::new()).await;
    world.store().apply(agent.host, first).await.unwrap();
    agent.reboot();
    world.tell(&mut agent, SnapshotWhole, 90, Vec::new()).await;
    assert_eq!(all(&world).await, ["web1 50..90 agent-down 0", "web1 30..50 agent-down 0"]);
    // A clock that was set back leaves no range.
    agent.restart();
    world.tell(&mut agent, SnapshotWhole, 60, Vec::new()).await;
    assert_eq!(all(&world).await.len(), 2);
}

pub(super) async fn a_gap_that_was_told_twice_is_one<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    for _ in 0..2 {
        let nameless = report(1, None, 11, 12, GapReason::KernelLoss);
        let numbered = report(1, Some((2, 5)), 13, 14, GapReason::SpoolFull);
        world.store().record_gap(agent.host, nameless).await.unwrap();
        world.store().record_gap(agent.host, numbered).await.unwrap();
        world.restart().await;
    }
    assert_eq!(all(&world).await, ["web1 13..14 spool-full 4", "web1 11..12 kernel-loss 0"]);
    let stranger = fleetsock_proto::host::HostId::random();
    let error = world.store().record_gap(stranger, report(1, None, 1, 2, GapReason::Delivery)).await.unwrap_err();
    assert!(matches!(error, HistoryError::NotFound(_)), "{error}");
}

pub(super) async fn every_lost_batch_of_a_walk_is_counted_once<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    // Batches of one walk that were dropped one after the other, and told each twice: the acknowledgement was lost.
    for seqs in [(2, 2), (2, 2), (3, 3), (2, 4), (2, 4), (5, 5)] {
        let gap = report(1, Some(seqs), 11, 12, GapReason::SpoolFull);
        world.store().record_gap(agent.host, gap).await.unwrap();
        world.restart().await;
    }
    assert_eq!(all(&world).await, ["web1 11..12 spool-full 4"]);
}

pub(super) async fn a_gap_moves_the_numbering_over_what_will_never_come<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    let last = async |world: &World<E>| world.store().last_batch(agent.host).await.unwrap();
    let number = |epoch, seq| BatchNumber { epoch, seq };
    for (seqs, expected) in [
        (None, number(1, 1)),
        // Not the next ones: what lies before them may still come.
        (Some((3, 9)), number(1, 1)),
        (Some((1, 1)), number(1, 1)),
        (Some((2, 5)), number(1, 5)),
        (Some((4, 7)), number(1, 7)),
        (Some((2, 5)), number(1, 7)),
    ] {
        let gap = report(1, seqs, 11, 12, GapReason::SpoolFull);
        world.store().record_gap(agent.host, gap).await.unwrap();
        assert_eq!(last(&world).await, expected, "{seqs:?}");
        world.restart().await;
        assert_eq!(last(&world).await, expected, "{seqs:?} after a restart");
    }
    let late = agent.numbered(1, 6, Changes, Vec::new());
    assert_eq!(world.store().apply(agent.host, late).await.unwrap(), Applied::Committed);
    assert_eq!(last(&world).await, number(1, 7));
    agent.last.seq = 7;
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    // All that a later numbering had so far.
    let gap = report(3, Some((1, 4)), 21, 30, GapReason::SpoolFull);
    world.store().record_gap(agent.host, gap).await.unwrap();
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(3, 4));
    assert_eq!(all(&world).await[..2], ["web1 21..30 spool-full 4", "web1 20..21 agent-down 0"], "when nobody looked");
}

pub(super) async fn gaps_are_listed_newest_first_within_window_and_hosts<E: Engine>() {
    let world = World::<E>::new().await;
    let (web, db) = observed(&world).await;
    for (agent, since, until) in [(&web, 10, 20), (&db, 5, 30), (&web, 25, 40), (&web, 1, 3)] {
        let gap = report(1, None, since, until, GapReason::KernelLoss);
        world.store().record_gap(agent.host, gap).await.unwrap();
    }
    let window = |since: Option<i64>, until: Option<i64>| CoverageQuestion {
        since: since.map(at),
        until: until.map(at),
        ..CoverageQuestion::default()
    };
    let ranges = async |question| -> Vec<String> {
        let cut = |line: String| line.split_once(" kernel").unwrap().0.to_owned();
        lines(&world, question).await.into_iter().map(cut).collect()
    };
    let every = ["web1 25..40", "db1 5..30", "web1 10..20", "web1 1..3"];
    for (question, expected) in [
        (window(None, None), &every[..]),
        (window(Some(20), None), &every[..2]),
        (window(Some(19), None), &every[..3]),
        (window(None, Some(25)), &every[1..]),
        (window(None, Some(26)), &every[..]),
        (window(Some(50), None), &[]),
        (CoverageQuestion { limit: Some(2), ..CoverageQuestion::default() }, &every[..2]),
        (
            CoverageQuestion {
                hosts: HostSelector { globs: vec!["db*".to_owned()], ..HostSelector::default() },
                ..CoverageQuestion::default()
            },
            &every[1..2],
        ),
    ] {
        assert_eq!(ranges(question.clone()).await, expected, "{question:?}");
    }
}

pub(super) async fn an_answer_tells_the_gaps_of_its_moment_or_window<E: Engine>() {
    let world = World::<E>::new().await;
    let (web, db) = observed(&world).await;
    for (agent, since, until) in [(&web, 10, 20), (&db, 15, 30)] {
        let gap = report(1, None, since, until, GapReason::KernelLoss);
        world.store().record_gap(agent.host, gap).await.unwrap();
    }
    for (moment, expected) in [(5, 0), (10, 0), (11, 1), (16, 2), (20, 1), (29, 1), (30, 0)] {
        let question = PortQuestion { at: Some(at(moment)), ..PortQuestion::default() };
        let (_, meta) = world.ports(question, at(100)).await.unwrap();
        assert_eq!((meta.gaps_total, meta.gaps.len() as u64), (expected, expected), "ports at {moment}");
        let question = SessionQuestion { time: SessionTime::At(at(moment)), ..SessionQuestion::default() };
        let (_, meta) = world.sessions(question, at(100)).await.unwrap();
        assert_eq!(meta.gaps_total, expected, "sessions at {moment}");
        assert_eq!(meta.as_of, at(moment));
    }
    for (since, until, expected) in [(0, Some(10), 0), (0, Some(11), 1), (0, None, 2), (20, None, 1), (30, None, 0)] {
        let time = SessionTime::Within { since: at(since), until: until.map(at) };
        let (_, meta) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(100)).await.unwrap();
        assert_eq!(meta.gaps_total, expected, "{since}..{until:?}");
        assert_eq!((meta.since, meta.until), (Some(at(since)), until.map(at)));
    }
    let (_, meta) = world.ports(PortQuestion::default(), at(17)).await.unwrap();
    assert_eq!((meta.gaps_total, meta.as_of), (2, at(17)));
    let hosts = HostSelector { globs: vec!["db1".to_owned()], ..HostSelector::default() };
    let (_, meta) = world.store().list_hosts(hosts, at(17)).await.unwrap();
    assert_eq!(meta.hosts_total, 1);
}

pub(super) async fn what_lies_before_the_first_report_was_not_observed<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let gaps = async |world: &World<E>, since: i64| {
        let time = SessionTime::Within { since: at(since), until: None };
        let (_, meta) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(100)).await.unwrap();
        meta.gaps.into_iter().map(|gap| (gap.since, gap.until, gap.reason)).collect::<Vec<_>>()
    };
    let not_yet = |since, until| vec![(at(since), until, GapReason::NotYetObserved)];
    assert_eq!(gaps(&world, 5).await, not_yet(5, None), "a host that enrolled and never spoke");
    let (_, meta) = world.ports(PortQuestion::default(), at(7)).await.unwrap();
    assert_eq!((meta.gaps_total, meta.hosts_stale_total), (1, 0));
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    world.restart().await;
    assert_eq!(gaps(&world, 5).await, not_yet(5, Some(at(10))));
    assert_eq!(gaps(&world, 10).await, []);
    let question = PortQuestion { at: Some(at(9)), ..PortQuestion::default() };
    assert_eq!(world.ports(question, at(100)).await.unwrap().1.gaps_total, 1);
    assert_eq!(all(&world).await, [""; 0], "without a window there is no beginning");
}

/// `since reason` of each gap that is not over, of an answer about a window.
async fn open_gaps<E: Engine>(world: &World<E>, (since, until): (i64, Option<i64>), now: i64) -> Vec<(i64, GapReason)> {
    let time = SessionTime::Within { since: at(since), until: until.map(at) };
    let (_, meta) = world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, at(now)).await.unwrap();
    let second = |at: fleetsock_proto::time::Timestamp| (at.as_micros() - crate::now().as_micros()) / 1_000_000;
    meta.gaps.iter().filter(|gap| gap.until.is_none()).map(|gap| (second(gap.since), gap.reason)).collect()
}

pub(super) async fn what_a_silent_host_did_not_tell_yet_is_not_observed<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    assert_eq!(open_gaps(&world, (5, None), 100).await, [], "it is late, and not yet too late");
    assert_eq!(open_gaps(&world, (15, None), 200).await, [(20, GapReason::NotReported)]);
    assert_eq!(open_gaps(&world, (15, Some(20)), 200).await, [], "that was observed");
    assert_eq!(open_gaps(&world, (15, Some(21)), 200).await, [(20, GapReason::NotReported)]);
    let question = PortQuestion { at: Some(at(50)), ..PortQuestion::default() };
    assert_eq!(world.ports(question, at(200)).await.unwrap().1.gaps_total, 1);
    let (_, meta) = world.ports(PortQuestion::default(), at(200)).await.unwrap();
    assert_eq!((meta.gaps_total, meta.hosts_stale_total), (0, 1), "of now it is said that the host is stale");
    // It tells of the time after all, of an hour in a moment: up to there it was observed.
    world.tell(&mut agent, Changes, 150, Vec::new()).await;
    assert_eq!(open_gaps(&world, (15, None), 200).await, []);
}

pub(super) async fn what_a_revoked_host_sees_is_not_observed<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 10, Vec::new()).await;
    world.tell(&mut agent, Changes, 20, Vec::new()).await;
    world.store().revoke_host("web1".to_owned(), "stolen".to_owned(), crate::engine::actor(25)).await.unwrap();
    assert_eq!(open_gaps(&world, (5, None), 30).await, [(20, GapReason::Revoked)]);
    assert_eq!(open_gaps(&world, (5, Some(19)), 30).await, []);
}

pub(super) async fn losses_that_follow_each_other_are_one_gap<E: Engine>() {
    let world = World::<E>::new().await;
    let (web, _db) = observed(&world).await;
    for (since, until, reason) in [
        (10, 20, GapReason::KernelLoss),
        (20, 30, GapReason::KernelLoss),
        (15, 25, GapReason::KernelLoss),
        (30, 31, GapReason::ClockLeap),
        (40, 50, GapReason::KernelLoss),
        (50, 60, GapReason::Asleep),
        (60, 70, GapReason::Asleep),
    ] {
        world.store().record_gap(web.host, report(1, None, since, until, reason)).await.unwrap();
    }
    assert_eq!(
        all(&world).await,
        [
            "web1 60..70 asleep 0",
            "web1 50..60 asleep 0",
            "web1 40..50 kernel-loss 0",
            "web1 30..31 clock-leap 0",
            "web1 10..30 kernel-loss 0",
        ]
    );
}
