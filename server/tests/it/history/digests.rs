//! Digests: what an agent has as open is held against what the history has.

use fleetsock_proto::{
    answer::GapReason,
    batch::{
        BatchKind::{Changes, SnapshotWhole},
        Change,
    },
    digest::Difference,
    host::{HostId, HostSelector},
    socket::Direction::In,
    stream::GapReport,
    time::Timestamp,
};
use fleetsock_server::history::{Applied, History, proof::Wish};

use crate::{
    engine::{Engine, World},
    scene::{Agent, Described, at, listener, present, session},
};

/// Listeners and sessions of these numbers.
fn pairs(numbers: impl IntoIterator<Item = u64>) -> Vec<Change> {
    let pair = |number: u64| {
        [
            present(listener(2 * number, &format!("0.0.0.0:{number}")).since(5)),
            present(session(2 * number + 1, &format!("10.0.0.1:{number}"), In, "10.0.0.9:4000").since(5)),
        ]
    };
    numbers.into_iter().flat_map(pair).collect()
}

/// Tells a walk after which this is open on the host; in a snapshot, or in a batch without changes.
async fn prove<E: Engine>(world: &World<E>, agent: &mut Agent, kind: Kind, walk: i64, open: &[Change]) -> Applied {
    let changes = if kind == Kind::Snapshot { open.to_vec() } else { Vec::new() };
    let kind = if kind == Kind::Snapshot { SnapshotWhole } else { Changes };
    let mut batch = agent.batch(kind, at(walk), changes);
    batch.digest = Some(open.iter().map(|change| &change.socket).collect());
    world.store().apply(agent.host, batch).await.unwrap()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Snapshot,
    Digest,
}

fn differs(told: u64, stored: u64, wish: Wish) -> impl Fn(&Applied) -> bool {
    move |applied| match applied {
        Applied::Differs { difference: Difference { told: t, stored: s, parts }, wish: w } => {
            (*t, *s, *w) == (told, stored, wish) && *parts > 0
        }
        Applied::Committed | Applied::Hole { .. } => false,
    }
}

async fn proved_at<E: Engine>(world: &World<E>, host: HostId) -> Option<Timestamp> {
    let (hosts, _) = world.store().list_hosts(HostSelector::default(), at(99)).await.unwrap();
    hosts.into_iter().find(|found| found.host_id == host).unwrap().proved_at
}

async fn gaps<E: Engine>(world: &World<E>) -> Vec<(Timestamp, Option<Timestamp>)> {
    let gaps = world.gaps().await.into_iter();
    gaps.filter(|gap| gap.reason == GapReason::TableDiffered).map(|gap| (gap.since, gap.until)).collect()
}

pub(super) async fn a_digest_of_the_same_table_proves_it<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    assert_eq!(proved_at(&world, agent.host).await, None);
    assert_eq!(prove(&world, &mut agent, Kind::Snapshot, 10, &pairs(1..9)).await, Applied::Committed);
    assert_eq!(proved_at(&world, agent.host).await, Some(at(10)));
    assert_eq!(prove(&world, &mut agent, Kind::Digest, 20, &pairs(1..9)).await, Applied::Committed);
    world.restart().await;
    assert_eq!(proved_at(&world, agent.host).await, Some(at(20)));
    assert_eq!(prove(&world, &mut agent, Kind::Digest, 30, &pairs(1..9)).await, Applied::Committed);
    assert_eq!(gaps(&world).await, []);
}

pub(super) async fn a_digest_of_another_table_is_a_gap_since_the_last_proof_and_a_snapshot_heals_it<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    prove(&world, &mut agent, Kind::Snapshot, 10, &pairs([1, 2])).await;
    // The history lacks one of each.
    let applied = prove(&world, &mut agent, Kind::Digest, 20, &pairs([1, 2, 3])).await;
    assert!(differs(6, 4, Wish::Snapshot)(&applied), "{applied:?}");
    assert_eq!(gaps(&world).await, [(at(10), Some(at(20)))]);
    assert_eq!(proved_at(&world, agent.host).await, Some(at(10)));
    assert_eq!(prove(&world, &mut agent, Kind::Snapshot, 30, &pairs([1, 2, 3])).await, Applied::Committed);
    assert_eq!(world.listening().await.len(), 3);
    // It has one of each that the agent has not.
    let applied = prove(&world, &mut agent, Kind::Digest, 40, &pairs([2, 3])).await;
    assert!(differs(4, 6, Wish::Snapshot)(&applied), "{applied:?}");
    assert_eq!(gaps(&world).await, [(at(30), Some(at(40))), (at(10), Some(at(20)))]);
    assert_eq!(prove(&world, &mut agent, Kind::Snapshot, 50, &pairs([2, 3])).await, Applied::Committed);
    assert_eq!(proved_at(&world, agent.host).await, Some(at(50)));
    let lost: Vec<String> = world.all_sessions().await.into_iter().filter(|line| line.contains(":1 ")).collect();
    assert_eq!(lost, ["web1 tcp 10.0.0.1:1 in 10.0.0.9:4000 5(event)..40(lost)"]);
    assert_eq!(world.listening().await.len(), 2);
}

pub(super) async fn after_lost_batches_digests_wait_for_a_snapshot<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    prove(&world, &mut agent, Kind::Snapshot, 10, &pairs([1])).await;
    let lost = agent.batch(Changes, at(20), pairs([2]));
    let gap = GapReport {
        epoch: lost.epoch,
        seqs: Some((lost.seq, lost.seq)),
        since: at(10),
        until: at(20),
        reason: GapReason::SpoolFull,
    };
    world.store().record_gap(agent.host, gap).await.unwrap();
    assert_eq!(prove(&world, &mut agent, Kind::Digest, 30, &pairs([1, 2])).await, Applied::Committed);
    assert_eq!(proved_at(&world, agent.host).await, Some(at(10)), "it was not looked at");
    assert_eq!(prove(&world, &mut agent, Kind::Snapshot, 40, &pairs([1, 2])).await, Applied::Committed);
    assert_eq!(proved_at(&world, agent.host).await, Some(at(40)));
    let applied = prove(&world, &mut agent, Kind::Digest, 50, &pairs([1])).await;
    assert!(differs(2, 4, Wish::Snapshot)(&applied), "{applied:?}");
}

pub(super) async fn a_snapshot_that_does_not_help_is_not_asked_for_again_at_once<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    prove(&world, &mut agent, Kind::Snapshot, 10, &pairs([1])).await;
    let applied = prove(&world, &mut agent, Kind::Digest, 20, &pairs([1, 2])).await;
    assert!(differs(4, 2, Wish::Snapshot)(&applied), "{applied:?}");
    assert_eq!(prove(&world, &mut agent, Kind::Digest, 25, &pairs([1, 2])).await, Applied::Committed, "it is awaited");
    // Not even the snapshot has the digest that goes with it.
    let mut batch = agent.batch(SnapshotWhole, at(30), pairs([1]));
    batch.digest = Some(pairs([1, 2]).iter().map(|change| &change.socket).collect());
    let applied = world.store().apply(agent.host, batch).await.unwrap();
    assert!(differs(4, 2, Wish::Nothing)(&applied), "{applied:?}");
    assert_eq!(gaps(&world).await, [(at(10), Some(at(30)))], "one range");
}
