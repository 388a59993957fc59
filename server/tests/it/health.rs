//! What a server tells of itself to those who watch it, over plain HTTP and over gRPC.

use std::{net::SocketAddr, time::Duration};

use fleetsock_proto::{
    host::HostSelector,
    time::Timestamp,
    tls,
    token::{Operator, Role},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{Code, transport::Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::{
    exposition::{self, Exposition},
    fleet::Fleet,
    speaker::Speaker,
};

/// Asks over plain HTTP; the status and the body.
pub(crate) async fn get(from: SocketAddr, request: &str) -> (u16, String) {
    let mut tcp = TcpStream::connect(from).await.unwrap();
    tcp.write_all(format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // What speaks no HTTP resets the connection.
    drop(tcp.read_to_end(&mut answer).await);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn scrape(fleet: &Fleet) -> (Exposition, String) {
    let (status, text) = get(fleet.health, "GET /metrics").await;
    assert_eq!(status, 200, "{text}");
    (exposition::parse(&text).unwrap_or_else(|problem| panic!("{problem}\n{text}")), text)
}

/// Scrapes until a value is the expected one.
async fn until(fleet: &Fleet, name: &str, labels: &[(&str, &str)], expected: impl Fn(f64) -> bool) -> Exposition {
    let asked = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let (found, _) = scrape(fleet).await;
            if found.sum(name, labels).is_some_and(&expected) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("never: {name} {labels:?}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_is_openmetrics_counts_what_happened_and_names_nobody() {
    let fleet = Fleet::start().await;
    let before = scrape(&fleet).await.0;
    assert_eq!(before.sum("fleetsock_agents_connected", &[]), Some(0.0));
    assert_eq!(before.sum("fleetsock_batches_total", &[("result", "committed")]), Some(0.0));
    assert_eq!(before.sum("fleetsock_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), Some(1.0));

    let mut speaker = Speaker::welcomed(&fleet.agent("secret-host-name").await, "secret-host-name", 1).await;
    assert!(speaker.send(443).await);
    speaker.acknowledged().await.unwrap();
    let mut alice = fleet.connected("alice", Role::Viewer).await;
    alice.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    alice.list_tokens().await.unwrap_err();
    // Somebody without a certificate, who does not want to enrol; and something that is no TLS.
    let anonymous = tls::pinned(fleetsock_proto::join::Pin::from_array([0; 32])).unwrap();
    fleet.tls("another.name", anonymous).await.unwrap_err();
    get(fleet.address, "GET /").await;

    let found = until(&fleet, "fleetsock_batches_total", &[("result", "committed")], |count| count == 1.0).await;
    for (name, labels, expected) in [
        ("fleetsock_agents_connected", &[][..], 1.0),
        ("fleetsock_hosts", &[("state", "online")], 1.0),
        ("fleetsock_ack_seconds_count", &[], 1.0),
        ("fleetsock_history_group_batches_sum", &[], 1.0),
        ("fleetsock_history_queue_length", &[], 0.0),
        ("fleetsock_unready_reasons", &[], 0.0),
        ("fleetsock_handshakes_refused_total", &[("reason", "name")], 1.0),
        ("fleetsock_rpcs_total", &[("method", "/fleetsock.v1.Inventory/ListHosts"), ("code", "OK")], 1.0),
        ("fleetsock_rpcs_total", &[("method", "/fleetsock.v1.Admin/ListTokens"), ("code", "PERMISSION_DENIED")], 1.0),
    ] {
        assert_eq!(found.sum(name, labels), Some(expected), "{name} {labels:?}");
    }
    for name in ["fleetsock_history_disk_free_bytes", "fleetsock_history_files_bytes", "process_resident_memory_bytes"]
    {
        assert!(found.sum(name, &[]).unwrap() > 1e4, "{name}");
    }
    let day = 86_400.0;
    #[expect(clippy::cast_precision_loss, reason = "seconds")]
    let now = (Timestamp::now().as_micros() / 1_000_000) as f64;
    for certificate in ["server", "root", "agents-ca", "operators-ca"] {
        let ends =
            found.sum("fleetsock_certificate_expiry_timestamp_seconds", &[("certificate", certificate)]).unwrap();
        assert!(ends > now + day, "{certificate}: {ends}");
    }
    let (all, text) = scrape(&fleet).await;
    assert!(all.names().iter().all(|name| name.starts_with("fleetsock_") || name.starts_with("process_")), "{text}");
    for secret in ["secret-host-name", "alice", "127.0.0.1", &fleet.folder.path().display().to_string()] {
        assert!(!text.contains(secret), "{secret}: {text}");
    }
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_admin_port_answers_get_and_nothing_else_and_says_why_it_is_not_ready() {
    let fleet = Fleet::start().await;
    for (request, status, body) in [
        ("GET /livez", 200, "alive\n"),
        ("GET /readyz", 200, "ready\n"),
        ("POST /readyz", 405, "only GET is answered\n"),
        ("DELETE /metrics", 405, "only GET is answered\n"),
        ("GET /", 404, "there is /metrics, /livez and /readyz\n"),
        ("GET /debug/pprof", 404, "there is /metrics, /livez and /readyz\n"),
        ("GET /metrics/../readyz", 404, "there is /metrics, /livez and /readyz\n"),
    ] {
        assert_eq!(get(fleet.health, request).await, (status, body.to_owned()), "{request}");
    }
    assert_eq!(get(fleet.health, "HEAD /metrics").await, (200, String::new()));
    let long = format!("GET /{}", "x".repeat(64 * 1024));
    assert!([0, 400, 414, 431].contains(&get(fleet.health, &long).await.0));
    // The history went away under it.
    fleet.store.close().await.unwrap();
    let (status, text) = get(fleet.health, "GET /readyz").await;
    assert_eq!((status, text.as_str()), (503, "history: the history is closed\n"));
    assert_eq!(get(fleet.health, "GET /livez").await.0, 200, "it is alive all the same");
    assert_eq!(get(fleet.health, "GET /metrics").await.0, 503);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_say_nothing_to_the_admin_port_keep_others_waiting_only_for_a_while() {
    let fleet = Fleet::start().await;
    let mut silent = Vec::new();
    for _ in 0..64 {
        silent.push(TcpStream::connect(fleet.health).await.unwrap());
    }
    assert_eq!(get(fleet.health, "GET /livez").await, (200, "alive\n".to_owned()));
    drop(silent);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_service_of_grpc_says_what_readyz_says() {
    let fleet = Fleet::start().await;
    let alice = fleet.operator("alice", Role::Viewer).await;
    let tls = fleet.tls(&fleet.trust_domain().server_name(), tls::identified(&alice).unwrap()).await.unwrap();
    let mut io = Some(hyper_util::rt::TokioIo::new(tls));
    let connector = tower::service_fn(move |_: http::Uri| {
        let io = io.take().ok_or(std::io::ErrorKind::NotConnected);
        async move { io.map_err(std::io::Error::from) }
    });
    let channel = Endpoint::from_static("http://server").connect_with_connector(connector).await.unwrap();
    let mut client = HealthClient::new(channel);
    let of = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "fleetsock.v1.Inventory"] {
        let answer = client.check(of(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    assert_eq!(client.check(of("nothing")).await.unwrap_err().code(), Code::NotFound);
    let mut watch = client.watch(of("")).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    // A viewer who is revoked is not told either.
    let operator = Operator::new("alice", Role::Viewer).unwrap();
    fleet.local().await.revoke_operator(operator.name(), "test").await.unwrap();
    assert_eq!(client.check(of("")).await.unwrap_err().code(), Code::Unauthenticated);
    fleet.stop().await;
    let last = watch.message().await.unwrap().unwrap();
    assert_eq!(last.status(), ServingStatus::NotServing);
}
