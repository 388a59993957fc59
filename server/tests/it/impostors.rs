//! A server that is not the one it seems to be gets nothing out of a client.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fleetsock_proto::{
    client::{AgentClient, ConnectError, OperatorClient, Target, enroll},
    identity::{Identity, Key},
    join::JoinString,
    time::Timestamp,
    tls,
    token::Role,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};

use crate::{exposition, fleet::Fleet, health::get, speaker::Speaker, victim::Victim};

/// Serves with the certificate of a client of the fleet, its root beside it; gives how many bytes it was told in the end.
fn impostor(listener: TcpListener, stolen: &Identity) -> JoinHandle<usize> {
    let mut chain = stolen.chain().to_vec();
    chain.extend(stolen.roots().iter().cloned());
    let mut config = ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, stolen.private_key())
        .unwrap();
    config.alpn_protocols = vec![tls::ALPN_H2.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let Ok(mut stream) = acceptor.accept(tcp).await else { return 0 };
        let mut told = Vec::new();
        stream.read_to_end(&mut told).await.ok();
        told.len()
    })
}

#[tokio::test]
async fn the_certificate_of_an_agent_or_an_operator_makes_no_server_and_no_secret_is_told() {
    let fleet = Fleet::start().await;
    let (agent, admin) = (fleet.agent("web1").await, fleet.operator("root", Role::Admin).await);
    let join: JoinString = fleet.join(1).await.parse().unwrap();
    for (what, stolen) in [("an agent's", &agent), ("an admin's", &admin)] {
        for (who, attempt) in [("a newcomer", 0), ("an agent", 1), ("an operator", 2)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let astray: fleetsock_proto::join::ServerAddress =
                listener.local_addr().unwrap().to_string().parse().unwrap();
            let served = impostor(listener, stolen);
            let lured = |identity: &Identity| {
                let mut lured = identity.duplicate().unwrap();
                lured.address = astray.clone();
                lured
            };
            let error = match attempt {
                0 => {
                    let join = JoinString { address: astray.clone(), ..join.clone() };
                    enroll(&join, "web2", Key::generate().unwrap()).await.map(drop).unwrap_err()
                }
                1 => AgentClient::connect(&lured(&agent)).await.map(drop).unwrap_err(),
                _ => {
                    let target = Target::Remote(Box::new(lured(&admin)));
                    OperatorClient::connect(target).await.map(drop).unwrap_err()
                }
            };
            assert!(matches!(error, ConnectError::NotTrusted { .. }), "{who} with {what} certificate: {error:?}");
            assert_eq!(served.await.unwrap(), 0, "{who} with {what} certificate");
        }
    }
    // The token was shown to nobody.
    enroll(&join, "web2", Key::generate().unwrap()).await.unwrap();
    fleet.stop().await;
}

#[tokio::test]
async fn a_newcomer_whose_clock_is_a_year_off_is_told_that_it_may_be_his_clock() {
    let year = Duration::from_secs(365 * 86_400);
    for (at, words) in [
        (Timestamp::now().plus(year), "not valid yet (or this machine's clock is wrong)"),
        (Timestamp::now().minus(year), "expired (or this machine's clock is wrong)"),
    ] {
        let fleet = Fleet::start_as_of(at, |_| {}).await;
        let join: JoinString = fleet.join(1).await.parse().unwrap();
        let error = enroll(&join, "web1", Key::generate().unwrap()).await.unwrap_err();
        assert!(matches!(&error, ConnectError::NotTrusted { problem, .. } if problem.contains(words)), "{error:?}");
        fleet.stop().await;
    }
}

/// How long the server lets a connection shake hands, counted from when it accepted it: its default.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// What a busy machine may add: until the server accepts, until its timer is looked at, and until this test hears of it.
const SLACK: Duration = Duration::from_secs(5);

/// Connects so often, from many addresses, so that the limit of one is not what closes connections. Each must be closed; how
/// long it lived, from when the kernel had made it.
async fn connect_in_silence(server: SocketAddr, count: u32) -> JoinSet<Duration> {
    let mut silent = JoinSet::new();
    for number in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        let [_, _, high, low] = (number / 8 + 2).to_be_bytes();
        socket.bind(SocketAddr::from(([127, 1, high, low], 0))).unwrap();
        let mut stream = socket.connect(server).await.unwrap();
        let begun = Instant::now();
        silent.spawn(async move {
            let read = timeout(Duration::from_secs(60), stream.read(&mut [0; 16])).await;
            assert_eq!(read.expect("it is closed").unwrap_or(0), 0);
            begun.elapsed()
        });
    }
    silent
}

/// An agent is heard until all connections are closed; how long each lived, the shortest first.
async fn heard_meanwhile(speaker: &mut Speaker, mut silent: JoinSet<Duration>) -> Vec<Duration> {
    let mut lives = Vec::new();
    while !silent.is_empty() {
        assert!(speaker.send(16).await);
        speaker.acknowledged().await.unwrap();
        tokio::select! {
            Some(lived) = silent.join_next() => lives.push(lived.unwrap()),
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
        }
        while let Some(lived) = silent.try_join_next() {
            lives.push(lived.unwrap());
        }
    }
    lives.sort();
    lives
}

/// How often the server turned a connection away for this reason.
async fn turned_away(fleet: &Fleet, reason: &str) -> f64 {
    let (_, text) = get(fleet.health, "GET /metrics").await;
    let found = exposition::parse(&text).unwrap();
    found.sum("fleetsock_handshakes_refused_total", &[("reason", reason)]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_of_two_thousand_silent_connections_is_closed_when_its_handshake_is_over_while_an_agent_is_heard() {
    let fleet = Fleet::start().await;
    assert_eq!(fleet.config.limits.handshake, HANDSHAKE);
    let places = fleet.config.limits.handshakes;
    let identity = fleet.agent("web1").await;
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    let silent = connect_in_silence(fleet.address, 2_000).await;
    let lives = heard_meanwhile(&mut speaker, silent).await;
    let (longest, patient) = (lives[lives.len() - 1], lives.iter().filter(|lived| **lived >= HANDSHAKE / 2).count());
    crate::tell(&format!("{patient} of {} lived until the limit, the longest {longest:?}", lives.len()));
    assert!(longest < HANDSHAKE + SLACK, "{longest:?}");
    // Those that found a place wait for the limit and no longer; no other waits for a place.
    assert!(patient >= places / 2, "{patient}");
    let (slow, full) = (turned_away(&fleet, "timeout").await, turned_away(&fleet, "too-many").await);
    assert_eq!(slow + full, 2_000.0, "{slow} and {full}: each is counted");
    drop(fleet.agent("web2").await);
    fleet.stop().await;
}

/// Until a connection that was shaken is closed by the server, which may say something itself before.
async fn until_closed(mut stream: TlsStream<TcpStream>) -> Duration {
    let (begun, mut sink) = (Instant::now(), [0; 256]);
    let closed = async { while stream.read(&mut sink).await.is_ok_and(|read| read > 0) {} };
    timeout(Duration::from_secs(60), closed).await.expect("it is closed");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_shakes_hands_and_then_says_nothing_or_half_a_preface_is_closed_whatever_his_certificate() {
    let fleet = Fleet::start().await;
    let (agent, revoked) = (fleet.agent("web1").await, fleet.operator("mallory", Role::Viewer).await);
    fleet.local().await.revoke_operator("mallory", "").await.unwrap();
    let join: JoinString = fleet.join(1).await.parse().unwrap();
    let server = fleet.trust_domain().server_name();
    let mut silent = JoinSet::new();
    for said in [&b""[..], b"PRI * HTTP/2.0"] {
        for (name, config) in [
            (server.clone(), tls::identified(&agent).unwrap()),
            (server.clone(), tls::identified(&revoked).unwrap()),
            (fleet.trust_domain().enroll_name(), tls::pinned(join.pin).unwrap()),
        ] {
            let mut stream = fleet.tls(&name, config).await.unwrap();
            stream.write_all(said).await.unwrap();
            silent.spawn(until_closed(stream));
        }
    }
    let lives = silent.join_all().await;
    assert!(lives.iter().all(|lived| *lived < HANDSHAKE + SLACK), "{lives:?}");
    // The same identity with something to say.
    Speaker::welcomed(&agent, "web1", 1).await;
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ran_out_of_descriptors_turns_others_away_hears_its_agents_and_recovers_alone() {
    let Some(victim) = Victim::start_with(120).await else { return };
    let mut speaker = Speaker::welcomed(&victim.honest, "honest", 1).await;
    let silent = connect_in_silence(victim.address(), 300).await;
    let lives = heard_meanwhile(&mut speaker, silent).await;
    let longest = lives[lives.len() - 1];
    crate::tell(&format!("without descriptors: the longest lived {longest:?}"));
    assert!(longest < HANDSHAKE + SLACK, "{longest:?}");
    // Others can come again.
    drop(victim.local().await.list_tokens().await.unwrap());
    drop(AgentClient::connect(&victim.honest).await.unwrap());
    victim.stop();
}
