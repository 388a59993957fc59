//! A host whose certificate is over comes back by itself, as long as nobody revoked it.

use std::{net::TcpListener, time::Duration};

use fleetsock_proto::time::Timestamp;

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
