//! Certificates are renewed while everything runs, and after their end by proof of the old key.

use std::{sync::Arc, time::Duration};

use fleetsock_proto::{
    client::{AgentClient, CallError, ConnectError, renew_expired},
    identity::{Identity, Key, renewal_statement},
    spiffe::Subject,
    time::Timestamp,
    tls,
    token::Role,
};
use fleetsock_server::{
    authority::{Authority, RequestedKey},
    history::{self, Registry},
};

use crate::{fleet::Fleet, speaker::Speaker};

const DAY: Duration = Duration::from_secs(86_400);

/// The certificate that the server shows to somebody new.
async fn shown(fleet: &Fleet, name: &str) -> Vec<u8> {
    let root = std::fs::read(fleet.ca_file("root.pem")).unwrap();
    let root = fleetsock_proto::identity::certificates(&root).unwrap().swap_remove(0);
    let config = match name {
        name if name == fleet.trust_domain().enroll_name() => {
            tls::pinned(fleetsock_proto::identity::pin_of(&root).unwrap())
        }
        _ => tls::trusting(std::slice::from_ref(&root)),
    };
    let connection = fleet.tls(name, config.unwrap()).await.unwrap();
    connection.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn the_servers_certificate_is_renewed_while_it_runs_and_no_stream_is_dropped() {
    // 65 of its 90 days are over.
    let made = Timestamp::now().minus(65 * DAY);
    let fleet = Fleet::start_as_of(made, |config| config.renewal_check = Duration::from_millis(300)).await;
    let (server, enroll) = (fleet.trust_domain().server_name(), fleet.trust_domain().enroll_name());
    let before = [shown(&fleet, &server).await, shown(&fleet, &enroll).await];
    let identity = fleet.agent("web1").await;
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    let mut operator = fleet.connected("alice", Role::Viewer).await;
    let after = loop {
        let after = [shown(&fleet, &server).await, shown(&fleet, &enroll).await];
        if after.iter().zip(&before).all(|(after, before)| after != before) {
            break after;
        }
    };
    let expiry = fleetsock_proto::identity::expiry(&after[0]).unwrap();
    assert!(expiry.since(Timestamp::now()) > 89 * DAY);
    speaker.send(1111).await;
    speaker.acknowledged().await.unwrap();
    operator.list_hosts(Default::default()).await.unwrap().collect().await.unwrap();
    // It is on disk as well: the next start takes it.
    let authority = Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    assert_eq!(authority.server_leaf().chain[0].to_vec(), after[0]);
    drop((speaker, operator));
    fleet.stop().await;
}

/// A host whose certificate ended so long ago.
async fn expired(fleet: &Fleet, name: &str, ago: Duration) -> Identity {
    let identity = fleet.agent(name).await;
    let Subject::Agent(host) = identity.spiffe_id.subject else { panic!() };
    let authority = Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    let key = Key::generate().unwrap();
    let request = RequestedKey::of_request(&key.request_der().unwrap()).unwrap();
    let at = Timestamp::now().minus(fleetsock_server::authority::AGENT_LIFE + ago);
    let issued = authority.issue(&history::Subject::Host(host), &request, at).unwrap();
    fleet.store.add_host_certificate(host, issued.clone(), at).await.unwrap();
    assert_eq!(fleet.store.host_standing(host, issued.serial.clone()).await.unwrap(), history::Standing::Good);
    identity.renewed(issued.chain_der, key).unwrap()
}

fn denied(outcome: Result<Identity, ConnectError>) {
    match outcome {
        Err(ConnectError::Call(CallError::Denied(text))) => {
            assert_eq!(text, "the certificate cannot be renewed; enrol this host anew with a new token");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_host_whose_certificate_is_over_comes_back_by_proof_of_its_old_key() {
    let fleet = Fleet::start().await;
    let old = expired(&fleet, "web1", 20 * DAY).await;
    assert!(AgentClient::connect(&old).await.is_err());
    let new = renew_expired(&old).await.unwrap();
    assert_eq!(new.spiffe_id, old.spiffe_id);
    assert!(new.expires_at.since(Timestamp::now()) > 6 * DAY);
    let mut speaker = Speaker::welcomed(&new, "web1", 1).await;
    speaker.send(1111).await;
    speaker.acknowledged().await.unwrap();
    // The new one took the place of the old, which is worth nothing from now on.
    denied(renew_expired(&old).await);
    drop(speaker);
    fleet.stop().await;
}

#[tokio::test]
async fn an_answer_that_was_lost_can_be_asked_for_again() {
    let fleet = Fleet::start().await;
    let old = expired(&fleet, "web1", DAY).await;
    let lost = renew_expired(&old).await.unwrap();
    let new = renew_expired(&old).await.unwrap();
    Speaker::welcomed(&new, "web1", 1).await;
    assert!(Speaker::hello(&lost, "web1", 1).await.is_err());
    fleet.stop().await;
}

#[tokio::test]
async fn what_is_over_for_too_long_or_revoked_is_not_renewed() {
    let fleet = Fleet::start().await;
    denied(renew_expired(&expired(&fleet, "web1", 31 * DAY).await).await);
    let revoked = expired(&fleet, "web2", DAY).await;
    fleet.local().await.revoke_host("web2", "stolen").await.unwrap();
    denied(renew_expired(&revoked).await);
    // An operator's certificate is not renewed this way at all.
    denied(renew_expired(&fleet.operator("alice", Role::Admin).await).await);
    // Nor that of another fleet.
    let other = Fleet::start().await;
    let foreign = other.agent("web1").await;
    let authority = Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    let csr = Key::generate().unwrap().request_der().unwrap();
    let signature = foreign.sign_renewal(&csr).unwrap();
    let error = authority.proven(foreign.chain().first().unwrap(), &csr, &signature).unwrap_err();
    assert!(error.to_string().contains("the proof of an old key"), "{error}");
    other.stop().await;
    fleet.stop().await;
}

#[tokio::test]
async fn only_the_old_key_proves_and_only_for_this_request() {
    let fleet = Fleet::start().await;
    let old = Arc::new(expired(&fleet, "web1", DAY).await);
    let authority = Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    let request = || Key::generate().unwrap().request_der().unwrap();
    let (csr, other) = (request(), request());
    let certificate = old.chain()[0].to_vec();
    let signature = old.sign_renewal(&csr).unwrap();
    let proven = authority.proven(&certificate, &csr, &signature).unwrap();
    assert_eq!(Subject::Agent(proven.host), old.spiffe_id.subject);
    assert!(authority.proven(&certificate, &other, &signature).is_err(), "another request");
    assert!(authority.proven(&certificate, &csr, b"").is_err(), "nothing");
    let neighbour = expired(&fleet, "web2", DAY).await;
    assert!(authority.proven(&certificate, &csr, &neighbour.sign_renewal(&csr).unwrap()).is_err(), "another key");
    assert!(authority.proven(&certificate, &csr, &renewal_statement(&certificate, &csr)).is_err(), "the text itself");
    for length in [0, 10, certificate.len() - 1] {
        assert!(authority.proven(&certificate[..length], &csr, &signature).is_err());
    }
    fleet.stop().await;
}
