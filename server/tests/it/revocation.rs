//! What is revoked is out at once: streams and answers end, and nothing is stored after the revocation is.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use fleetsock_proto::{
    batch::BatchKind,
    client::{AgentClient, CallError, OperatorClient, Refusal, Target, enroll},
    host::{HostSelector, HostState},
    identity::Key,
    join::JoinString,
    question::{PortQuestion, SessionQuestion},
    spiffe::Subject,
    token::{NewToken, Operator, Role, TokenPurpose},
};
use fleetsock_server::history::{Applied, History, HistoryError, Registry};
use tokio::task::JoinSet;

use crate::{
    fleet::Fleet,
    speaker::{Ended, Speaker},
};

fn revoked() -> CallError {
    CallError::Refused(Refusal::Other("revoked".to_owned()))
}

/// The median and the 99th of a hundred.
pub(crate) fn percentiles(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    (at(50), at(99))
}

/// Agents that send as fast as they are acknowledged are revoked one after another; how long each stream took to end
/// after the order was given.
async fn revoke_while_all_speak(agents: u32) -> Vec<Duration> {
    let fleet = Arc::new(
        Fleet::start_with(|config| {
            let limits = &mut config.limits;
            (limits.connections_per_address, limits.handshakes_per_address) = (100_000, 1000);
            limits.rates.enrolments_per_address = fleetsock_server::rates::Rate::per_second(10_000, 10_000);
            limits.rates.enrolments = limits.rates.enrolments_per_address;
        })
        .await,
    );
    let join: JoinString = fleet.join(agents).await.parse().unwrap();
    let mut speaking = JoinSet::new();
    let (begun, stored) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for number in 0..agents {
        let name = format!("host{number:04}");
        let identity = enroll(&join, &name, Key::generate().unwrap()).await.unwrap();
        let (begun, stored) = (Arc::clone(&begun), Arc::clone(&stored));
        speaking.spawn(async move {
            let mut speaker = Speaker::welcomed(&identity, &name, 1).await;
            begun.fetch_add(1, Relaxed);
            loop {
                if !speaker.send(1024).await {
                    return (number, Instant::now(), speaker.ended().await);
                }
                match speaker.acknowledged().await {
                    Ok(()) => stored.fetch_add(1, Relaxed),
                    Err(ended) => return (number, Instant::now(), ended),
                };
                // About a thousand batches a second from all of them together; an end is seen when it comes.
                tokio::select! {
                    ended = speaker.ended() => return (number, Instant::now(), ended),
                    () = tokio::time::sleep(Duration::from_millis(u64::from(agents))) => {}
                }
            }
        });
    }
    while begun.load(Relaxed) < u64::from(agents) || stored.load(Relaxed) < u64::from(agents) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let mut admin = fleet.local().await;
    let mut ordered = Vec::new();
    for number in 0..agents {
        ordered.push(Instant::now());
        let host = admin.revoke_host(&format!("host{number:04}"), "a test").await.unwrap();
        // The order was answered, so it is committed; what the history holds of the host now is all that it ever will.
        let last = fleet.store.last_batch(host).await;
        assert!(last.is_err(), "a revoked host has no say: {last:?}");
    }
    let mut took = Vec::new();
    while let Some(ended) = speaking.join_next().await {
        let (number, at, ended) = ended.unwrap();
        assert!(matches!(&ended, Ended::Refused(error) if *error == revoked()), "{number}: {ended:?}");
        took.push(at.saturating_duration_since(ordered[number as usize]));
    }
    drop(admin);
    Arc::into_inner(fleet).unwrap().stop().await;
    took
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_revoked_hosts_end_with_that_word_while_all_others_go_on() {
    let took = revoke_while_all_speak(24).await;
    assert_eq!(took.len(), 24);
}

/// What 99 of 100 streams may take to end.
const REVOKED_WITHIN: Duration = Duration::from_secs(1);

/// Run by hand: `cargo test --release -p fleetsock-server --test it -- --ignored --nocapture a_thousand_agents`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement: takes a minute"]
async fn a_thousand_agents_are_revoked_and_the_time_of_each_is_told() {
    let took = revoke_while_all_speak(1000).await;
    let (median, high) = percentiles(took.clone());
    crate::tell(&format!(
        "revoke to closed, {} live agents: p50 {median:?}, p99 {high:?}, max {:?}",
        took.len(),
        took.iter().max()
    ));
    assert!(high <= REVOKED_WITHIN, "{high:?} is more than {REVOKED_WITHIN:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_row_is_stored_after_the_revocation_is() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    let mut admin = fleet.local().await;
    // Batches are on their way all the time, and each opens another port.
    let flood = tokio::spawn(async move {
        let mut port = 1024;
        while speaker.send(port).await && port < 60_000 {
            port += 1;
        }
        (speaker.ended().await, port)
    });
    loop {
        let (ports, _) = admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
        if !ports.is_empty() {
            break;
        }
    }
    admin.revoke_host("web1", "").await.unwrap();
    let ports = admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap().0;
    let (ended, sent) = flood.await.unwrap();
    assert!(matches!(ended, Ended::Refused(error) if error == revoked()));
    assert!(sent > 1024);
    let after = admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap().0;
    assert_eq!(after, ports, "what was stored when the order was answered is all there is");
    let (sessions, _) = admin.list_sessions(SessionQuestion::default()).await.unwrap().collect().await.unwrap();
    assert_eq!(sessions.len(), 0);
    let (hosts, _) = admin.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    assert_eq!(hosts[0].state, HostState::Revoked);
    // It comes back by no way that it knew.
    let again = Speaker::hello(&identity, "web1", 1).await.err().unwrap();
    assert_eq!(again, revoked());
    fleet.stop().await;
}

/// Without streams in between, which end and so hide what the history itself would do.
#[tokio::test(flavor = "multi_thread")]
async fn of_batches_that_wait_for_the_writer_those_behind_the_revocation_are_refused_and_those_before_are_whole() {
    let fleet = Fleet::start().await;
    let Subject::Agent(host) = fleet.agent("web1").await.spiffe_id.subject else { panic!() };
    let mut agent = crate::scene::Agent::of(host);
    let mut batch = |number: u64| {
        let kind = if number == 1 { BatchKind::SnapshotWhole } else { BatchKind::Changes };
        let socket = crate::scene::listener(number, &format!("0.0.0.0:{}", 1000 + number));
        let change = if number == 1 { crate::scene::present(socket) } else { crate::scene::opened(socket) };
        agent.batch(kind, crate::scene::at(1), vec![change])
    };
    let store = Arc::clone(&fleet.store);
    // In this order into the writer's queue: each is polled once, which puts it there.
    let mut batches: Vec<_> = (1..=200).map(|number| store.apply(host, batch(number))).collect();
    let (mut behind, mut before) = (batches.split_off(100), batches);
    let mut order = store.revoke_host("web1".to_owned(), String::new(), crate::engine::actor(1));
    let mut context = Context::from_waker(Waker::noop());
    let (mut early, mut refused) = (Vec::new(), 0);
    for batch in &mut before {
        early.push(batch.as_mut().poll(&mut context));
    }
    let ordered = order.as_mut().poll(&mut context);
    let late: Vec<_> = behind.iter_mut().map(|batch| batch.as_mut().poll(&mut context)).collect();
    for (batch, polled) in before.into_iter().zip(early) {
        let applied = if let Poll::Ready(applied) = polled { applied } else { batch.await };
        assert_eq!(applied.unwrap(), Applied::Committed);
    }
    let revoked = if let Poll::Ready(revoked) = ordered { revoked } else { order.await };
    assert_eq!(revoked.unwrap(), host);
    for (batch, polled) in behind.into_iter().zip(late) {
        let applied = if let Poll::Ready(applied) = polled { applied } else { batch.await };
        assert!(matches!(applied, Err(HistoryError::Revoked)), "{applied:?}");
        refused += 1;
    }
    assert_eq!(refused, 100);
    let (ports, _) = fleet.local().await.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    assert_eq!(ports.len(), 100);
    fleet.stop().await;
}

#[tokio::test]
async fn a_host_that_calls_itself_by_the_id_of_another_does_not_shield_that_one() {
    let fleet = Fleet::start().await;
    let victim = fleet.agent("web1").await;
    let Subject::Agent(id) = victim.spiffe_id.subject.clone() else { panic!() };
    fleet.agent(&id.to_string()).await;
    let mut admin = fleet.local().await;
    assert_eq!(admin.revoke_host(&id.to_string(), "").await.unwrap(), id);
    let (hosts, _) = admin.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    let revoked: Vec<_> =
        hosts.iter().filter(|host| host.state == HostState::Revoked).map(|host| host.host_id).collect();
    assert_eq!(revoked, [id]);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_operator_is_cut_off_in_the_middle_of_an_answer_and_by_every_certificate_and_token() {
    let fleet = Fleet::start().await;
    // More rows than the windows and buffers of a connection hold, so that a reader who waits keeps the answer open.
    let host = fleet.agent("web1").await;
    let mut speaker = Speaker::welcomed(&host, "web1", 1).await;
    crate::speaker::fill(&mut speaker, 12, 4000).await;

    let mut alice = fleet.connected("alice", Role::Viewer).await;
    let mut bob = fleet.connected("bob", Role::Viewer).await;
    let second = fleet.operator("alice", Role::Admin).await;
    let purpose = TokenPurpose::Operator(Operator::new("alice", Role::Viewer).unwrap());
    let token = NewToken { lifetime_s: 3600, uses: 1, purpose, note: String::new() };
    let mut admin = fleet.local().await;
    let join: JoinString = admin.create_token(token).await.unwrap().1.parse().unwrap();

    let mut by_alice = fleet.connected("alice", Role::Admin).await;
    let mut made: Vec<JoinString> = Vec::new();
    for purpose in [
        TokenPurpose::Operator(Operator::new("mallory", Role::Admin).unwrap()),
        TokenPurpose::Hosts { labels: BTreeMap::new() },
    ] {
        let token = NewToken { lifetime_s: 3600, uses: 3, purpose, note: String::new() };
        made.push(by_alice.create_token(token).await.unwrap().1.parse().unwrap());
    }

    let mut answer = alice.list_ports(PortQuestion::default()).await.unwrap();
    let mut of_bob = bob.list_ports(PortQuestion::default()).await.unwrap();
    assert!(answer.next().await.unwrap().is_some() && of_bob.next().await.unwrap().is_some());

    let ended = admin.revoke_operator("alice", "left").await.unwrap();
    assert_eq!((ended.certificates, ended.tokens), (3, 3));
    let error = loop {
        match answer.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the answer came to its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(error, revoked());
    let mut rows = 0;
    while let Some(more) = of_bob.next().await.unwrap() {
        rows += more.len();
    }
    assert!(rows > 40_000, "bob's answer is whole");

    assert_eq!(alice.list_hosts(HostSelector::default()).await.unwrap_err(), revoked(), "on the same connection");
    let mut other = OperatorClient::connect(Target::Remote(Box::new(second))).await.unwrap();
    assert_eq!(other.list_tokens().await.unwrap_err(), revoked(), "by her other certificate");
    assert!(enroll(&join, "", Key::generate().unwrap()).await.is_err(), "by a token that was made for her");
    for join in made {
        assert!(enroll(&join, "", Key::generate().unwrap()).await.is_err(), "by a token that she made");
    }

    let certificates = admin.list_operators().await.unwrap();
    let told: Vec<_> = certificates.iter().map(|one| (one.operator.name(), one.revoked_at.is_some())).collect();
    assert_eq!(told, [("alice", true), ("alice", true), ("alice", true), ("bob", false)]);
    // How many rows she saw is in the log.
    let question = fleetsock_proto::audit::AuditQuestion { actor: Some("alice".to_owned()), ..Default::default() };
    let (log, _) = admin.list_audit(question).await.unwrap().collect().await.unwrap();
    let end = log.iter().find(|row| row.detail.contains("ended: the operator was revoked"));
    let end = end.unwrap_or_else(|| panic!("{log:?}"));
    assert!(end.rows.unwrap() > 0 && end.rows.unwrap() < 48_000, "{end:?}");

    // A new certificate under the name is another matter.
    fleet.connected("alice", Role::Viewer).await.list_hosts(HostSelector::default()).await.unwrap();
    drop((answer, of_bob, speaker));
    fleet.stop().await;
}

#[tokio::test]
async fn revoking_nobody_says_so() {
    let fleet = Fleet::start().await;
    let error = fleet.local().await.revoke_operator("nobody", "").await.unwrap_err();
    assert_eq!(error, CallError::NotFound("no operator is called `nobody`".to_owned()));
    let error = fleet.local().await.approve_host("nothing").await.unwrap_err();
    assert_eq!(error, CallError::NotFound("no host is called `nothing`".to_owned()));
    fleet.stop().await;
}

#[tokio::test]
async fn a_connection_of_a_revoked_host_can_do_nothing_more() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let mut client = AgentClient::connect(&identity).await.unwrap();
    fleet.local().await.revoke_host("web1", "").await.unwrap();
    let request = Key::generate().unwrap().request_der().unwrap();
    assert_eq!(client.renew(request).await.unwrap_err(), revoked());
    fleet.stop().await;
}
