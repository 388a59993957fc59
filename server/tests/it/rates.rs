//! Nobody asks more often than he may, and each is told when to come back.

use fleetsock_proto::{
    client::{AgentClient, CallError, ConnectError, enroll},
    host::HostSelector,
    identity::Key,
    join::JoinString,
    token::Role,
};
use fleetsock_server::rates::Rate;

use crate::fleet::Fleet;

/// Within a test no second one comes.
const FEW: Rate = Rate { times: 1, within: std::time::Duration::from_secs(86_400), burst: 3 };

fn refused(error: CallError, words: &str) {
    assert!(
        matches!(&error, CallError::TooMuch(text) if text.contains(words) && text.contains("; try again in ")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_address_may_try_a_few_tokens_and_then_one_at_a_time_and_a_right_one_is_not_spent() {
    let fleet = Fleet::start_with(|config| config.limits.rates.enrolments_per_address = FEW).await;
    let right: JoinString = fleet.join(1).await.parse().unwrap();
    let wrong = JoinString { token_id: "0000000000000000".to_owned(), ..right.clone() };
    for _ in 0..FEW.burst {
        let error = enroll(&wrong, "web1", Key::generate().unwrap()).await.unwrap_err();
        assert!(matches!(error, ConnectError::Call(CallError::Denied(_))), "{error:?}");
    }
    let Err(ConnectError::Call(error)) = enroll(&right, "web1", Key::generate().unwrap()).await else { panic!() };
    refused(error, "too many enrolments, from 127.0.0.1");
    let tokens = fleet.local().await.list_tokens().await.unwrap();
    assert_eq!(tokens[0].uses_left, 1);
    fleet.stop().await;
}

#[tokio::test]
async fn an_agent_renews_now_and_then() {
    let fleet = Fleet::start_with(|config| config.limits.rates.renewals = FEW).await;
    let (one, other) = (fleet.agent("web1").await, fleet.agent("web2").await);
    let request = || Key::generate().unwrap().request_der().unwrap();
    let mut client = AgentClient::connect(&one).await.unwrap();
    for _ in 0..FEW.burst {
        client.renew(request()).await.unwrap();
    }
    refused(client.renew(request()).await.unwrap_err(), "too many renewals");
    AgentClient::connect(&other).await.unwrap().renew(request()).await.unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn an_operator_asks_only_so_often_whatever_his_connections_and_the_local_admin_is_free() {
    let fleet = Fleet::start_with(|config| config.limits.rates.calls = FEW).await;
    let (mut one, mut other) =
        (fleet.connected("alice", Role::Viewer).await, fleet.connected("alice", Role::Viewer).await);
    let mut bob = fleet.connected("bob", Role::Viewer).await;
    one.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    for client in [&mut one, &mut other] {
        client.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    }
    for client in [&mut one, &mut other] {
        refused(client.list_hosts(HostSelector::default()).await.unwrap_err(), "too many calls of the operator alice");
    }
    bob.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    let mut local = fleet.local().await;
    for _ in 0..FEW.burst * 3 {
        local.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    }
    fleet.stop().await;
}
