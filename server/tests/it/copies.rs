//! An identity that is used from two places is noticed, told of, and never mixed into one host.

use fleetsock_proto::{
    client::{AgentClient, OperatorClient},
    host::{Host, HostSelector},
    identity::{Identity, Key},
    question::PortQuestion,
};

use crate::{
    fleet::Fleet,
    speaker::{Ended, Speaker},
};

async fn host(admin: &mut OperatorClient) -> Host {
    admin.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap().0.swap_remove(0)
}

async fn ports(admin: &mut OperatorClient) -> Vec<u16> {
    let (ports, _) = admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    ports.iter().map(|row| row.port).collect()
}

#[tokio::test]
async fn a_cloned_image_is_not_let_in_beside_the_first_and_both_are_told_of() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let mut first = Speaker::welcomed(&identity, "web1", 1).await;
    assert!(first.send(1111).await);
    first.acknowledged().await.unwrap();

    let mut second = Speaker::hello(&identity, "web1", 2).await.unwrap();
    second.send(2222).await;
    let Ended::Bye(bye) = second.ended().await else { panic!("the copy was let in") };
    assert!(bye.reason.contains("another machine") && bye.reason.contains("127.0.0.1"), "{}", bye.reason);
    let mut admin = fleet.local().await;
    assert_eq!(host(&mut admin).await.warning, None, "it may be that the host started again");

    // The first one says something: so both are alive.
    assert!(first.send(1112).await);
    first.acknowledged().await.unwrap();
    let warned = host(&mut admin).await;
    let warning = warned.warning.expect("a warning");
    assert!(warning.text.contains("a second machine uses its identity, from 127.0.0.1"), "{}", warning.text);
    assert_eq!(ports(&mut admin).await, [1112], "nothing of the copy was mixed in");

    // It stays until somebody looked, also when the server starts again.
    let fleet = fleet.restart().await;
    let mut admin = fleet.local().await;
    assert_eq!(host(&mut admin).await.warning, Some(warning));
    admin.approve_host("web1").await.unwrap();
    assert_eq!(host(&mut admin).await.warning, None);
    fleet.stop().await;
}

#[tokio::test]
async fn agents_of_one_machine_that_replace_each_other_again_and_again_are_told_of() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let mut admin = fleet.local().await;
    let mut speakers = vec![Speaker::welcomed(&identity, "web1", 1).await];
    for round in 0..3 {
        assert_eq!(host(&mut admin).await.warning, None, "after {round} replacements");
        speakers.push(Speaker::welcomed(&identity, "web1", 1).await);
        let Ended::Bye(bye) = speakers[round].ended().await else { panic!() };
        assert!(bye.reason.contains("another stream of this host"), "{}", bye.reason);
    }
    let warning = host(&mut admin).await.warning.expect("a warning");
    assert!(warning.text.contains("replaced 3 times"), "{}", warning.text);
    drop(speakers);
    fleet.stop().await;
}

#[tokio::test]
async fn a_host_that_started_again_is_let_in_when_its_old_stream_is_gone() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    drop(Speaker::welcomed(&identity, "web1", 1).await);
    // The server notices the end of a connection when it comes to it.
    let again = loop {
        let mut speaker = Speaker::hello(&identity, "web1", 2).await.unwrap();
        if speaker.send(1111).await && speaker.acknowledged().await.is_ok() {
            break speaker;
        }
    };
    again.live().await;
    assert_eq!(host(&mut fleet.local().await).await.warning, None);
    drop(again);
    fleet.stop().await;
}

#[tokio::test]
async fn a_certificate_whose_place_another_took_is_refused_and_told_of() {
    let fleet = Fleet::start().await;
    let old = fleet.agent("web1").await;
    let key = Key::generate().unwrap();
    let chain = AgentClient::connect(&old).await.unwrap().renew(key.request_der().unwrap()).await.unwrap().chain_der;
    let new: Identity = old.renewed(chain, key).unwrap();
    let _speaker = Speaker::welcomed(&new, "web1", 1).await;
    let mut admin = fleet.local().await;
    assert_eq!(host(&mut admin).await.warning, None);
    let error = Speaker::hello(&old, "web1", 1).await.err().unwrap();
    assert!(error.to_string().contains("replaced by a newer one"), "{error}");
    let warning = host(&mut admin).await.warning.expect("a warning");
    assert!(warning.text.contains("an older certificate of it was shown from 127.0.0.1"), "{}", warning.text);
    fleet.stop().await;
}
