//! A fleet exchanges its root while it reports: within seconds, and nobody is left behind without being named.

use std::{
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    client::CallError,
    root::{Behind, RootState, Stragglers},
    time::Timestamp,
};

use super::fleet::{Agent, Fleet, eager, identity, until};

/// A step that must not be made; why.
fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> String {
    match outcome {
        Err(CallError::Invalid(text)) => text,
        other => panic!("{other:?}"),
    }
}

/// Waits until the next step waits for these hosts only.
async fn waits_for(fleet: &Fleet, names: &[&str]) {
    until(&format!("the next step waits for {names:?}"), async || {
        let roots = fleet.local().await.list_roots().await.unwrap();
        roots.iter().any(|root| root.state != RootState::Active && root.behind.host_names == names).then_some(())
    })
    .await;
}

/// Opens a listener and waits until the server knows of it.
async fn observed(fleet: &Fleet) -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    until("a new listener is known", async || fleet.listener(port).await.map(drop)).await;
    listener
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connected_fleet_exchanges_its_root_without_a_gap_and_names_who_was_away_at_each_step() {
    let mut fleet = Fleet::start().await;
    let states = [fleet.enrol("web1").await, fleet.enrol("web2").await];
    let away = fleet.enrol("away").await;
    let start = |name: &str, state: &PathBuf| Agent::start(state, eager(name), Timestamp::now);
    let agents = [start("web1", &states[0]), start("web2", &states[1])];
    let mut listeners = vec![observed(&fleet).await];
    let old = identity(&states[0]).roots()[0].clone();
    let begun = Instant::now();
    let pin = fleet.local().await.prepare_root().await.unwrap().pin;

    // Nobody connects anew for it: the hosts are told on their streams.
    waits_for(&fleet, &["away"]).await;
    assert_eq!(identity(&states[0]).roots().len(), 2);
    let text = refused(fleet.local().await.activate_root(Stragglers::Protect).await);
    assert!(text.contains("1 host (away) do not have the new root yet"), "{text}");
    let back = start("away", &away);
    waits_for(&fleet, &[]).await;
    back.stop().await;
    let (active, stranded) = fleet.local().await.activate_root(Stragglers::Protect).await.unwrap();
    assert_eq!((active.pin, stranded), (pin, Behind::default()));
    waits_for(&fleet, &["away"]).await;
    // Far below the day after which a certificate is renewed anyway, on the slowest machine.
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    listeners.push(observed(&fleet).await);

    // The server is started again in between, and stands where it stood.
    fleet.stop().await;
    fleet.come_back().await;
    waits_for(&fleet, &["away"]).await;
    let text = refused(fleet.local().await.retire_root(Stragglers::Protect).await);
    assert!(text.contains("1 host (away) still have a certificate of the root before"), "{text}");
    let back = start("away", &away);
    waits_for(&fleet, &[]).await;
    fleet.local().await.retire_root(Stragglers::Protect).await.unwrap();

    until("the old root is forgotten", async || {
        states.iter().chain([&away]).all(|state| identity(state).roots().len() == 1).then_some(())
    })
    .await;
    assert!(!identity(&states[0]).roots().contains(&old));
    listeners.push(observed(&fleet).await);
    let gaps: Vec<_> = fleet.gaps().await.into_iter().filter(|gap| gap.host != "away").collect();
    assert!(gaps.is_empty(), "{gaps:?}");
    // What newcomers are told fits what they get.
    fleet.enrol("new").await;
    drop(listeners);
    for agent in agents.into_iter().chain([back]) {
        agent.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_that_was_dropped_again_is_forgotten_by_agents_that_stay_connected() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let listener = observed(&fleet).await;
    fleet.local().await.prepare_root().await.unwrap();
    until("both roots are trusted", async || (identity(&state).roots().len() == 2).then_some(())).await;
    fleet.local().await.abort_root().await.unwrap();
    until("the dropped one is forgotten", async || (identity(&state).roots().len() == 1).then_some(())).await;
    drop(listener);
    agent.stop().await;
}
