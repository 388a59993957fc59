//! A certificate is renewed without anybody seeing it; a host whose certificate is over comes back by itself, as long as
//! nobody revoked it.

use std::{
    collections::BTreeSet,
    net::{TcpListener, TcpStream},
    sync::atomic::Ordering,
    time::Duration,
};

use fleetsock_proto::{host::HostState, time::Timestamp};

use super::fleet::{Agent, Fleet, eager, identity, until};

/// A day and an hour after certificates that are made now are over, it is now.
fn eight_days_ago() -> Timestamp {
    Timestamp::now().minus(Duration::from_secs(8 * 86_400 + 3_600))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_certificate_was_over_while_it_was_down_reports_again_without_an_operator() {
    let mut fleet = Fleet::start_at(eight_days_ago).await;
    let state = fleet.enrol("web1").await;
    let before = identity(&state);
    assert!(before.expires_at < Timestamp::now());
    fleet.stop().await;
    fleet.come_back_in_time().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    until("its listener is known", async || fleet.listener(port).await.map(drop)).await;
    let after = identity(&state);
    assert!(after.expires_at > Timestamp::now());
    assert_eq!(after.spiffe_id, before.spiffe_id, "the same host");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_was_revoked_does_not_come_back_when_its_certificate_is_over() {
    let mut fleet = Fleet::start_at(eight_days_ago).await;
    let (revoked, other) = (fleet.enrol("web1").await, fleet.enrol("web2").await);
    let before = identity(&revoked);
    fleet.local().await.revoke_host("web1", "stolen").await.unwrap();
    fleet.stop().await;
    fleet.come_back_in_time().await;
    let agents = [&revoked, &other].map(|state| Agent::start(state, eager("web"), Timestamp::now));
    // The other one shows how long it takes.
    until("the other one is heard", async || fleet.online().await.then_some(())).await;
    assert_eq!(identity(&revoked).serial, before.serial);
    for agent in agents {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_is_seen_by_nobody_no_gap_no_stale_moment_no_row_twice() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let service = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = service.local_addr().unwrap();
    until("the service is known", async || fleet.listener(address.port()).await.map(drop)).await;
    until("the host is heard", async || fleet.online().await.then_some(())).await;
    let traffic = fleet.traffic();
    until("nothing but the agent's stream is there", async || (traffic.open.load(Ordering::SeqCst) == 1).then_some(()))
        .await;
    traffic.fewest.store(1, Ordering::SeqCst);
    let begun = traffic.begun.load(Ordering::SeqCst);
    let before = identity(&state);
    fleet.local().await.prepare_root().await.unwrap();

    // Something happens all the time, and an operator asks all the time; for a while after the renewal too.
    let (mut clients, mut after) = (Vec::new(), 0);
    while after < 20 {
        clients.push((TcpStream::connect(address).unwrap(), service.accept().unwrap()));
        let host = fleet.host().await.unwrap();
        assert_eq!(host.state, HostState::Online);
        let (ports, _) = fleet.local().await.list_ports(Default::default()).await.unwrap().collect().await.unwrap();
        assert_eq!(ports.iter().filter(|row| row.port == address.port()).count(), 1);
        after += usize::from(traffic.begun.load(Ordering::SeqCst) > begun);
        assert!(clients.len() < 5_000, "it is never renewed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_ne!(identity(&state).serial, before.serial);
    // The second stream was there before the first was let go, and there was no third.
    assert_eq!((traffic.begun.load(Ordering::SeqCst), traffic.fewest.load(Ordering::SeqCst)), (begun + 1, 1));

    let ends: BTreeSet<u16> = clients.iter().map(|(client, _)| client.local_addr().unwrap().port()).collect();
    let rows = until("every session is known", async || {
        let sessions = fleet.sessions(address.port()).await;
        let known: BTreeSet<u16> = sessions.iter().flat_map(|row| [row.local.port(), row.peer.port()]).collect();
        ends.is_subset(&known).then_some(sessions)
    })
    .await;
    let keys: BTreeSet<_> = rows.iter().map(|row| (row.local, row.peer)).collect();
    assert_eq!(keys.len(), rows.len(), "a session is there twice");
    let gaps = fleet.gaps().await;
    assert!(gaps.is_empty(), "{gaps:?}");
    assert_eq!(fleet.host().await.unwrap().warning, None);
    agent.stop().await;
}
