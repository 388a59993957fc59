//! Numbered batches: each stored once, whole, in order.

use fleetsock_proto::{
    batch::BatchKind::{Changes, SnapshotBegin, SnapshotWhole},
    host::HostId,
    socket::Direction::In,
    stream::BatchNumber,
};
use fleetsock_server::history::{Applied, History, HistoryError};
use tokio::task::JoinSet;

use crate::{
    engine::{Engine, World},
    scene::{Agent, Described, at, closed, listener, opened, present, session},
};

fn number(epoch: u64, seq: u64) -> BatchNumber {
    BatchNumber { epoch, seq }
}

fn hole(epoch: u64, seq: u64) -> Applied {
    Applied::Hole { expected: number(epoch, seq) }
}

pub(super) async fn batches_are_stored_once_and_in_order<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(0, 0));
    let first = world.tell(&mut agent, SnapshotWhole, 1, vec![present(listener(1, "0.0.0.0:22"))]).await;
    let life = session(2, "10.0.0.1:22", In, "10.0.0.9:4000").since(2);
    let second = world.tell(&mut agent, Changes, 2, vec![closed(life, 3)]).await;
    let before = (world.listening().await, world.all_sessions().await);
    assert_eq!((before.0.len(), before.1.len()), (1, 1));

    for again in [&second, &first, &second] {
        assert_eq!(world.store().apply(agent.host, again.clone()).await.unwrap(), Applied::Committed);
    }
    let ahead = agent.numbered(1, 4, Changes, vec![opened(listener(3, "0.0.0.0:80"))]);
    assert_eq!(world.store().apply(agent.host, ahead).await.unwrap(), hole(1, 3));
    assert_eq!((world.listening().await, world.all_sessions().await), before);
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(1, 2));

    world.tell(&mut agent, Changes, 4, vec![opened(listener(3, "0.0.0.0:80").since(4))]).await;
    assert_eq!(world.listening().await.len(), 2);
}

pub(super) async fn a_lower_epoch_is_acknowledged_and_changes_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    agent.last.epoch = 5;
    world.tell(&mut agent, SnapshotWhole, 1, vec![present(listener(1, "0.0.0.0:22"))]).await;
    for (seq, kind) in [(1, SnapshotWhole), (2, Changes), (9, Changes)] {
        let late = agent.numbered(4, seq, kind, vec![opened(listener(seq, "0.0.0.0:80"))]);
        assert_eq!(world.store().apply(agent.host, late).await.unwrap(), Applied::Committed);
    }
    assert_eq!(world.listening().await, ["web1 tcp 0.0.0.0:22 0(event).."]);
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(5, 1));
}

pub(super) async fn a_numbering_begins_with_a_snapshot<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let socket = || vec![present(listener(1, "0.0.0.0:22"))];
    for epoch in [1, 2] {
        for (seq, kind) in [(1, Changes), (2, Changes), (2, SnapshotWhole), (7, SnapshotBegin)] {
            let batch = agent.numbered(epoch, seq, kind, socket());
            assert_eq!(world.store().apply(agent.host, batch).await.unwrap(), hole(epoch, 1), "{epoch}/{seq} {kind}");
        }
        agent.last = number(epoch, 0);
        world.tell(&mut agent, if epoch == 1 { SnapshotWhole } else { SnapshotBegin }, 1, socket()).await;
    }
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(2, 1));
}

pub(super) async fn the_numbering_survives_a_restart<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, vec![present(listener(1, "0.0.0.0:22"))]).await;
    let last = world.tell(&mut agent, Changes, 2, vec![opened(listener(2, "0.0.0.0:80").since(2))]).await;
    let before = world.listening().await;
    world.restart().await;
    assert_eq!(world.store().last_batch(agent.host).await.unwrap(), number(1, 2));
    assert_eq!(world.store().apply(agent.host, last).await.unwrap(), Applied::Committed);
    assert_eq!(world.listening().await, before);
    assert_eq!(world.store().apply(agent.host, agent.numbered(1, 4, Changes, Vec::new())).await.unwrap(), hole(1, 3));
}

pub(super) async fn hosts_that_report_at_once_keep_their_own_numbers<E: Engine>() {
    const HOSTS: u64 = 20;
    const BATCHES: u64 = 20;
    let mut world = World::<E>::new().await;
    let mut reporting = JoinSet::new();
    for number in 0..HOSTS {
        let mut agent = world.host(&format!("host{number:02}")).await;
        let store = world.store().clone();
        reporting.spawn(async move {
            for seq in 1..=BATCHES {
                let kind = if seq == 1 { SnapshotWhole } else { Changes };
                // The same cookies on every host.
                let life = session(seq, "10.0.0.1:22", In, "10.0.0.9:4000").since(1);
                let batch = agent.batch(kind, at(2), vec![closed(life, 2)]);
                for _ in 0..2 {
                    assert_eq!(store.apply(agent.host, batch.clone()).await.unwrap(), Applied::Committed);
                }
            }
            agent.host
        });
    }
    for host in reporting.join_all().await {
        assert_eq!(world.store().last_batch(host).await.unwrap(), number(1, BATCHES));
    }
    let mut per_host = std::collections::BTreeMap::<_, u64>::new();
    for line in world.all_sessions().await {
        *per_host.entry(line[.."host00".len()].to_owned()).or_default() += 1;
    }
    assert_eq!(per_host.len(), 20);
    assert!(per_host.values().all(|rows| *rows == BATCHES), "{per_host:?}");
    world.stop().await;
}

pub(super) async fn a_host_that_nobody_enrolled_stores_nothing<E: Engine>() {
    let world = World::<E>::new().await;
    let mut agent = Agent::of(HostId::random());
    let batch = agent.batch(SnapshotWhole, at(1), vec![present(listener(1, "0.0.0.0:22"))]);
    let error = world.store().apply(agent.host, batch).await.unwrap_err();
    assert!(matches!(error, HistoryError::NotFound(_)), "{error}");
    assert_eq!(world.listening().await, [""; 0]);
}

/// The server may die between the steps in which an engine stores a batch; the agent then sends it again, by another
/// connection and perhaps with another measured offset of its clock.
pub(super) async fn a_batch_that_was_stored_by_half_is_stored_once<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    let (dns, ssh) = (listener(1, "0.0.0.0:53").udp(), listener(2, "0.0.0.0:22"));
    let query = || session(1, "0.0.0.0:53", In, "10.0.0.9:4000").udp().since(30);
    world.tell(&mut agent, SnapshotWhole, 10, vec![present(dns.clone()), present(ssh.clone())]).await;
    agent.restart();
    world
        .tell(&mut agent, SnapshotWhole, 20, vec![present(dns.clone().since(20)), present(ssh.clone().since(20))])
        .await;

    let changes = vec![
        // Each closing tells an opening that is later than the stored one.
        closed(ssh.since(20), 30),
        closed(dns.clone().since(20), 30),
        opened(query()),
        closed(query(), 31),
        opened(dns.since(31)),
        opened(listener(3, "0.0.0.0:80").since(31)),
    ];
    let batch = agent.batch(Changes, at(32), changes);
    world.engine.hinder();
    let hindered = world.store().apply(agent.host, batch.clone()).await;
    world.engine.relieve();
    if hindered.is_err() {
        world.restart().await;
        world.hello(agent.host, "web1", at(40), 3_000_001).await;
    }
    for _ in 0..2 {
        assert_eq!(world.store().apply(agent.host, batch.clone()).await.unwrap(), Applied::Committed);
    }
    assert_eq!(world.listening().await.len(), 2, "{:?}", world.listening().await);
    assert_eq!(world.listening_at(Some(25)).await.len(), 2, "{:?}", world.listening_at(Some(25)).await);
    assert_eq!(world.listening_at(Some(15)).await.len(), 2, "{:?}", world.listening_at(Some(15)).await);
    assert_eq!(world.all_sessions().await.len(), 1);
}

pub(super) async fn what_was_acknowledged_is_there_after_a_close<E: Engine>() {
    let mut world = World::<E>::new().await;
    let mut agent = world.host("web1").await;
    world.tell(&mut agent, SnapshotWhole, 1, vec![present(listener(1, "0.0.0.0:22"))]).await;
    world.stop().await;
    // What is opened again is what was acknowledged.
    let again = world.engine.open(world.rules).await;
    assert_eq!(again.last_batch(agent.host).await.unwrap(), number(1, 1));
    E::close(again).await;
}
