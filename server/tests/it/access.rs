//! Only the cells of the table pass: every call, by every identity.

use std::time::Duration;

use fleetsock_proto::{
    client::{AgentClient, CallError, ConnectError, OperatorClient, Refusal, Target, enroll},
    host::{HostId, HostSelector},
    identity::{self, Identity, Key},
    join::JoinString,
    spiffe::{SpiffeId, Subject},
    time::Timestamp,
    tls,
    token::{Operator, Role},
    wire,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tonic::{Code, Status, transport::Endpoint};
use tonic_prost::ProstCodec;

use crate::fleet::Fleet;

/// Every call of the contract.
fn calls() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(wire::DESCRIPTORS).unwrap();
    let mut calls = Vec::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                calls.push(format!("/{}.{}/{}", file.package(), service.name(), method.name()));
            }
        }
    }
    // Those of gRPC itself.
    calls.extend(["Check", "Watch"].map(|call| format!("/grpc.health.v1.Health/{call}")));
    calls
}

/// Makes the call with an empty message; whether it went through to the service.
pub(crate) async fn call(fleet: &Fleet, config: rustls::ClientConfig, name: &str, path: &str) -> Result<(), String> {
    let tls = fleet.tls(name, config).await.map_err(|error| error.to_string())?;
    let mut io = Some(TokioIo::new(tls));
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { io.map_err(std::io::Error::from) }
    });
    let channel = Endpoint::from_static("http://server")
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("{error:?}"))?;
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.map_err(|error| format!("{error:?}"))?;
    let path = http::uri::PathAndQuery::try_from(path).unwrap();
    let request = tonic::Request::new(tokio_stream::once(()));
    let answer = grpc.streaming(request, path, ProstCodec::<(), ()>::default()).await;
    let status: Status = match answer {
        Ok(response) => match response.into_inner().message().await {
            Ok(_) => return Ok(()),
            Err(status) => status,
        },
        Err(status) => status,
    };
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented | Code::Unavailable | Code::Unknown => {
            Err(status.to_string())
        }
        _ => Ok(()),
    }
}

/// A certificate of our own making: signed by a CA of the fleet or by a foreign one.
fn forged(
    fleet: &Fleet,
    ca: Option<&str>,
    uri: &str,
    purpose: Option<ExtendedKeyUsagePurpose>,
) -> rustls::ClientConfig {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = purpose.into_iter().collect();
    params.not_before = std::time::SystemTime::from(Timestamp::now().minus(Duration::from_secs(60))).into();
    params.not_after = std::time::SystemTime::from(Timestamp::now().plus(Duration::from_secs(3600))).into();
    let (leaf, above) = match ca {
        Some(file) => {
            let pem = std::fs::read(fleet.ca_file(file)).unwrap();
            let certificate = identity::certificates(&pem).unwrap().swap_remove(0);
            let ca_key = identity::private_key(&pem).unwrap();
            let der = PrivatePkcs8KeyDer::from(ca_key.pkcs8_der());
            let ca_key = KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).unwrap();
            let issuer = Issuer::from_ca_cert_der(&certificate, ca_key).unwrap();
            (params.signed_by(&key, &issuer).unwrap(), vec![certificate])
        }
        None => (params.self_signed(&key).unwrap(), Vec::new()),
    };
    let chain = std::iter::once(leaf.der().clone()).chain(above).collect();
    client(fleet, chain, &key)
}

fn client(fleet: &Fleet, chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> rustls::ClientConfig {
    let root = std::fs::read(fleet.ca_file("root.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(identity::certificates(&root).unwrap().swap_remove(0)).unwrap();
    let mut config = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    config
}

pub(crate) fn anonymous(fleet: &Fleet) -> rustls::ClientConfig {
    let pem = std::fs::read(fleet.ca_file("root.pem")).unwrap();
    let root = identity::certificates(&pem).unwrap().swap_remove(0);
    tls::pinned(identity::pin_of(&root).unwrap()).unwrap()
}

/// How an identity connects.
type Credentials<'a> = Box<dyn Fn() -> rustls::ClientConfig + 'a>;

#[tokio::test]
async fn only_the_cells_of_the_table_pass() {
    let fleet = Fleet::start().await;
    let (agent, viewer, admin) = (
        fleet.agent("web1").await,
        fleet.operator("watch", Role::Viewer).await,
        fleet.operator("root", Role::Admin).await,
    );
    let (server, enroll) = (fleet.trust_domain().server_name(), fleet.trust_domain().enroll_name());
    // Services: Enrollment, Agent, Inventory, Admin, Health.
    let identities: [(&str, &str, Credentials<'_>, [bool; 5]); 5] = [
        ("nobody, to enrol", &enroll, Box::new(|| anonymous(&fleet)), [true, false, false, false, false]),
        ("nobody, to the rest", &server, Box::new(|| anonymous(&fleet)), [false; 5]),
        ("an agent", &server, Box::new(|| tls::identified(&agent).unwrap()), [false, true, false, false, false]),
        ("a viewer", &server, Box::new(|| tls::identified(&viewer).unwrap()), [false, false, true, false, true]),
        ("an admin", &server, Box::new(|| tls::identified(&admin).unwrap()), [false, false, true, true, true]),
    ];
    for (who, name, config, expected) in &identities {
        for path in calls() {
            let service = ["Enrollment", "Agent", "Inventory", "Admin", "Health"]
                .iter()
                .position(|service| path.contains(&format!(".{service}/")))
                .unwrap();
            let passed = call(&fleet, config(), name, &path).await;
            // An empty enrolment passes the policy and is then refused by its content.
            let by_content =
                |error: &str| error.contains("request cannot be read") || error.contains("cannot be renewed");
            let passed = passed.is_ok() || (service == 0 && by_content(&passed.unwrap_err()));
            assert_eq!(passed, expected[service], "{path} by {who}");
        }
    }
    drop(identities);
    fleet.stop().await;
}

#[tokio::test]
async fn certificates_that_are_not_ours_or_not_for_this_pass_nowhere() {
    let fleet = Fleet::start().await;
    let agent_uri = format!("spiffe://fleetsock.internal/agent/{}", HostId::random());
    let admin_uri = "spiffe://fleetsock.internal/operator/admin/root";
    let client_auth = || Some(ExtendedKeyUsagePurpose::ClientAuth);
    let server = fleet.trust_domain().server_name();
    for (what, config) in [
        ("a foreign CA", forged(&fleet, None, admin_uri, client_auth())),
        ("an admin by the agents' CA", forged(&fleet, Some("agents.pem"), admin_uri, client_auth())),
        ("an agent by the operators' CA", forged(&fleet, Some("operators.pem"), &agent_uri, client_auth())),
        ("an admin by the servers' CA", forged(&fleet, Some("servers.pem"), admin_uri, client_auth())),
        ("an admin by the root", forged(&fleet, Some("root.pem"), admin_uri, client_auth())),
        ("no key usage", forged(&fleet, Some("operators.pem"), admin_uri, None)),
        (
            "a server's key usage",
            forged(&fleet, Some("operators.pem"), admin_uri, Some(ExtendedKeyUsagePurpose::ServerAuth)),
        ),
        (
            "another fleet's name",
            forged(&fleet, Some("operators.pem"), "spiffe://example.org/operator/admin/root", client_auth()),
        ),
        // Good in every way, and never written down by the server.
        ("an unknown serial number", forged(&fleet, Some("operators.pem"), admin_uri, client_auth())),
    ] {
        for path in calls() {
            assert!(call(&fleet, config.clone(), &server, &path).await.is_err(), "{path} with {what}");
        }
    }
    fleet.stop().await;
}

#[tokio::test]
async fn a_server_with_the_wrong_name_or_another_ca_gets_no_secret() {
    let (ours, other) = (Fleet::start().await, Fleet::start().await);
    let join: JoinString = ours.join(1).await.parse().unwrap();
    // The man in the middle has a CA of his own, and even our name.
    let astray = JoinString { address: other.address.to_string().parse().unwrap(), ..join.clone() };
    let error = enroll(&astray, "web1", Key::generate().unwrap()).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::NotTrusted { problem, .. } if problem.contains("not the one of the join string")),
        "{error:?}"
    );
    // The right CA with the wrong name.
    let renamed = JoinString { trust_domain: "other.internal".parse().unwrap(), ..join.clone() };
    let error = enroll(&renamed, "web1", Key::generate().unwrap()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Tls { .. } | ConnectError::NotTrusted { .. }), "{error:?}");
    // The token was never shown to anybody, so it is still good.
    enroll(&join, "web1", Key::generate().unwrap()).await.unwrap();
    ours.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn a_revoked_host_is_told_so_and_stays_out() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let mut agent = AgentClient::connect(&identity).await.unwrap();
    assert!(agent.renew(Key::generate().unwrap().request_der().unwrap()).await.is_ok());
    fleet.local().await.revoke_host("web1", "decommissioned").await.unwrap();
    let mut again = AgentClient::connect(&identity).await.unwrap();
    for client in [&mut agent, &mut again] {
        let error = client.renew(Key::generate().unwrap().request_der().unwrap()).await.unwrap_err();
        assert_eq!(error, CallError::Refused(Refusal::Other("revoked".to_owned())));
    }
    fleet.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_is_called_expired_by_the_server_too() {
    let fleet = Fleet::start().await;
    let identity = fleet.operator("late", Role::Viewer).await;
    // The same certificate's twin from a CA whose clock is a year behind.
    let authority =
        fleetsock_server::authority::Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    let key = Key::generate().unwrap();
    let request = fleetsock_server::authority::RequestedKey::of_request(&key.request_der().unwrap()).unwrap();
    let subject = fleetsock_server::history::Subject::Operator(Operator::new("late", Role::Viewer).unwrap());
    let year_ago = Timestamp::now().minus(Duration::from_secs(365 * 86_400));
    let issued = authority.issue(&subject, &request, year_ago).unwrap();
    let mut expired = identity.renewed(issued.chain_der, key).unwrap();

    let error = OperatorClient::connect(Target::Remote(Box::new(clone_of(&expired, &fleet)))).await.unwrap_err();
    assert!(matches!(error, ConnectError::Refused { refusal: Refusal::Expired, .. }), "{error}");
    // A client whose own clock is wrong asks the server, and understands the alert.
    expired.expires_at = Timestamp::MAX;
    let refusal = match OperatorClient::connect(Target::Remote(Box::new(expired))).await {
        Err(ConnectError::Refused { refusal, .. }) => refusal,
        Err(error) => panic!("{error}"),
        Ok(mut client) => match client.list_hosts(HostSelector::default()).await.map(drop) {
            Err(CallError::Refused(refusal)) => refusal,
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(refusal, Refusal::Expired);
    fleet.stop().await;
}

/// The same identity once more, by way of the disk.
fn clone_of(identity: &Identity, fleet: &Fleet) -> Identity {
    let folder = fleet.folder.path().join("identity");
    identity.store(&folder).unwrap();
    Identity::load(&folder).unwrap()
}

#[tokio::test]
async fn an_identity_survives_its_folder() {
    let fleet = Fleet::start().await;
    let identity = fleet.operator("root", Role::Admin).await;
    let again = clone_of(&identity, &fleet);
    assert_eq!((again.serial.clone(), again.expires_at), (identity.serial.clone(), identity.expires_at));
    let operator = Operator::new("root", Role::Admin).unwrap();
    let expected = SpiffeId { trust_domain: fleet.trust_domain().clone(), subject: Subject::Operator(operator) };
    assert_eq!(again.spiffe_id, expected);
    let mut client = OperatorClient::connect(Target::Remote(Box::new(again))).await.unwrap();
    let (hosts, meta) = client.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    assert_eq!((hosts.len(), meta.hosts_total), (0, 0));
    fleet.stop().await;
}

#[tokio::test]
async fn silent_connections_are_closed_and_honest_ones_unaffected() {
    use tokio::{io::AsyncReadExt, net::TcpStream};
    let fleet = Fleet::start_with(|config| config.limits.handshake = Duration::from_secs(1)).await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(fleet.address).await.unwrap());
    }
    for mut stream in silent {
        // Either closed at once, above the limit per address, or when the handshake took too long.
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
    let identity = fleet.operator("root", Role::Admin).await;
    OperatorClient::connect(Target::Remote(Box::new(identity))).await.unwrap();
    fleet.stop().await;
}
