//! Tokens under conditions: from where they may be used, and hosts that wait until a person looked at them.

use fleetsock_proto::{
    audit::AuditQuestion,
    client::{CallError, ConnectError, OperatorClient, enroll},
    host::{Host, HostSelector, HostState},
    identity::Key,
    join::JoinString,
    question::PortQuestion,
    token::{Approval, Conditions},
};

use crate::{
    fleet::Fleet,
    speaker::{Ended, Speaker},
};

async fn hosts(admin: &mut OperatorClient) -> Vec<Host> {
    admin.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap().0
}

async fn ports(admin: &mut OperatorClient) -> usize {
    admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap().0.len()
}

#[tokio::test]
async fn a_token_is_refused_from_elsewhere_with_the_words_of_a_wrong_one() {
    let fleet = Fleet::start().await;
    for (prefix, admitted) in [
        ("127.0.0.0/8", true),
        ("127.0.0.1/32", true),
        ("127.0.0.2/32", false),
        ("10.0.0.0/8", false),
        ("::/0", false),
        ("0.0.0.0/0", true),
    ] {
        let conditions = Conditions { from: prefix.parse().ok(), ..Conditions::default() };
        let join: JoinString = fleet.join_under(1, conditions.clone()).await.parse().unwrap();
        match enroll(&join, "web1", Key::generate().unwrap()).await {
            Ok(_) => assert!(admitted, "{prefix}"),
            Err(ConnectError::Call(CallError::Denied(text))) => {
                assert!(!admitted && text == "the token is not valid", "{prefix}: {text}");
            }
            Err(error) => panic!("{prefix}: {error:?}"),
        }
        let tokens = fleet.local().await.list_tokens().await.unwrap();
        let token = tokens.iter().find(|token| token.token_id == join.token_id).unwrap();
        assert_eq!((token.uses_left == 0, &token.conditions), (admitted, &conditions), "{prefix}");
    }
    fleet.stop().await;
}

#[tokio::test]
async fn nothing_of_a_host_is_stored_before_it_is_approved_and_it_is_told_what_it_waits_for() {
    let fleet = Fleet::start().await;
    let join = fleet.join_under(1, Conditions { approval: Approval::Needed, ..Conditions::default() }).await;
    let identity = enroll(&join.parse().unwrap(), "web1", Key::generate().unwrap()).await.unwrap();
    let mut admin = fleet.local().await;
    let before = hosts(&mut admin).await.swap_remove(0);
    assert!(before.state == HostState::Pending && before.facts.is_none());

    let mut speaker = Speaker::hello(&identity, "web1", 1).await.unwrap();
    // It does not wait for a Welcome, as a hostile one would not.
    speaker.send(4444).await;
    let Ended::Bye(bye) = speaker.ended().await else { panic!("it was let in") };
    assert!(bye.reason.contains(&format!("fleetctl hosts approve {}", before.host_id)), "{}", bye.reason);
    let waits = hosts(&mut admin).await.swap_remove(0);
    let facts = waits.facts.as_ref().expect("a person can see what it says of itself");
    assert_eq!((waits.state, facts.name.as_str(), ports(&mut admin).await), (HostState::Pending, "web1", 0));
    let warning = waits.warning.expect("a warning");
    assert!(warning.text.contains("waits for approval"), "{}", warning.text);

    // The history itself does not take its batches, whichever way they come.
    let mut scene = crate::scene::Agent::of(waits.host_id);
    let batch = scene.batch(fleetsock_proto::batch::BatchKind::SnapshotWhole, crate::scene::at(0), Vec::new());
    let error = fleetsock_server::history::History::apply(&*fleet.store, waits.host_id, batch).await.unwrap_err();
    assert!(error.to_string().contains("waits for approval"), "{error}");

    assert_eq!(admin.approve_host("web1").await.unwrap(), waits.host_id);
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    speaker.send(4444).await;
    speaker.acknowledged().await.unwrap();
    let after = hosts(&mut admin).await.swap_remove(0);
    assert_eq!((after.state, after.warning, ports(&mut admin).await), (HostState::Online, None, 1));
    let question = AuditQuestion { action: Some("approve host".to_owned()), ..AuditQuestion::default() };
    let (rows, _) = admin.list_audit(question).await.unwrap().collect().await.unwrap();
    assert_eq!(rows.len(), 1);
    drop(speaker);
    fleet.stop().await;
}

#[tokio::test]
async fn a_host_that_waits_still_waits_after_a_restart_and_can_be_revoked_instead() {
    let fleet = Fleet::start().await;
    let join = fleet.join_under(1, Conditions { approval: Approval::Needed, ..Conditions::default() }).await;
    let identity = enroll(&join.parse().unwrap(), "web1", Key::generate().unwrap()).await.unwrap();
    let fleet = fleet.restart().await;
    let mut speaker = Speaker::hello(&identity, "web1", 1).await.unwrap();
    assert!(matches!(speaker.ended().await, Ended::Bye(_)));
    let mut admin = fleet.local().await;
    admin.revoke_host("web1", "not ours").await.unwrap();
    let error = admin.approve_host("web1").await.unwrap_err();
    assert!(matches!(&error, CallError::Invalid(text) if text.contains("is revoked")), "{error:?}");
    assert!(Speaker::hello(&identity, "web1", 1).await.is_err());
    fleet.stop().await;
}
