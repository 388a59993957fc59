//! kill -9 under load: every batch that was acknowledged is stored once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fleetsock_proto::{
    batch::{
        Batch,
        BatchKind::{Changes, SnapshotWhole},
    },
    client::{AgentClient, enroll},
    identity::{Identity, Key},
    question::{PortQuestion, SessionQuestion, SessionTime},
    socket::Direction::In,
    stream::{AgentMessage, BatchNumber, Hello, PROTOCOL_VERSION, ServerMessage},
    time::Timestamp,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::process::Server;
use crate::scene::{Agent, Described, at, closed, facts, listener, opened, session};

const AGENTS: usize = 4;
/// Short sessions of a batch.
const SESSIONS: u64 = 10;
/// Batches on the way at once, of the 32 that the server allows.
const AHEAD: u64 = 16;

/// An agent with a spool in memory.
pub(super) struct Reporter {
    pub(super) name: String,
    identity: Identity,
    agent: Agent,
    /// Not acknowledged, by number.
    spool: BTreeMap<u64, Batch>,
    pub(super) acknowledged: u64,
}

impl Reporter {
    pub(super) async fn enrol(server: &Server, number: usize) -> Reporter {
        let name = format!("host{number}");
        let identity = enroll(&server.join().await, &name, Key::generate().unwrap()).await.unwrap();
        let fleetsock_proto::spiffe::Subject::Agent(host) = identity.spiffe_id.subject else { panic!("no agent") };
        Reporter { name, identity, agent: Agent::of(host), spool: BTreeMap::new(), acknowledged: 0 }
    }

    /// The batch of a number: sessions that are over, one session that the next batch closes, and a listener likewise.
    fn make(&mut self) {
        let seq = self.agent.last.seq + 1;
        let cookie = |n: u64| seq * 100 + n;
        let life = |cookie: u64| session(cookie, "10.0.0.1:443", In, "10.0.0.9:4000").since(1);
        let port = |seq: u64| listener(seq * 100 + 99, &format!("0.0.0.0:{}", seq % 60_000 + 1)).udp().since(1);
        let mut changes: Vec<_> = (0..SESSIONS).map(|n| closed(life(cookie(n)), 2)).collect();
        if seq > 1 {
            changes.push(closed(life(cookie(98) - 100), 2));
            changes.push(closed(port(seq - 1), 2));
        }
        changes.extend([opened(life(cookie(98))), opened(port(seq))]);
        let kind = if seq == 1 { SnapshotWhole } else { Changes };
        let batch = self.agent.batch(kind, at(2), changes);
        self.spool.insert(seq, batch);
    }

    /// Reports until the stream breaks, or until `enough`.
    async fn report(&mut self, acks: &AtomicU64, enough: &CancellationToken) -> Option<()> {
        let mut client = AgentClient::connect(&self.identity).await.ok()?;
        let (outgoing, receiver) = mpsc::channel(2 * AHEAD as usize);
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: Vec::new(),
            last: self.agent.last,
            facts: facts(&self.name, &[]),
            sent_at: Timestamp::now(),
        };
        outgoing.send(AgentMessage::Hello(hello)).await.ok()?;
        let mut incoming = client.session(receiver).await.ok()?;
        let Some(ServerMessage::Welcome(welcome)) = incoming.next().await.ok()? else { return None };
        assert!(welcome.last.seq >= self.acknowledged, "{} forgot {}", welcome.last.seq, self.acknowledged);
        assert!(welcome.last.seq <= self.agent.last.seq);
        let mut sent = welcome.last.seq;
        self.acknowledge(welcome.last, acks);
        while !enough.is_cancelled() {
            while sent < self.acknowledged + AHEAD {
                if sent == self.agent.last.seq {
                    self.make();
                }
                sent += 1;
                outgoing.send(AgentMessage::Batch(self.spool[&sent].clone())).await.ok()?;
            }
            match incoming.next().await.ok()?? {
                ServerMessage::Ack(number) => self.acknowledge(number, acks),
                ServerMessage::Credit(_) => {}
                ServerMessage::Bye(_) => return None,
                other => panic!("{other:?}"),
            }
        }
        Some(())
    }

    fn acknowledge(&mut self, number: BatchNumber, acks: &AtomicU64) {
        acks.fetch_add(number.seq.saturating_sub(self.acknowledged), Relaxed);
        self.acknowledged = self.acknowledged.max(number.seq);
        self.spool.retain(|seq, _| *seq > number.seq);
    }

    pub(super) async fn run(mut self, acks: Arc<AtomicU64>, enough: CancellationToken) -> Reporter {
        while self.report(&acks, &enough).await.is_none() && !enough.is_cancelled() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self
    }
}

/// A number that differs from round to round, the same in every run (splitmix64).
fn mixed(round: u64) -> u64 {
    let mut z = (round + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_before_a_kill_is_stored_once() {
    fleetsock_proto::tls::install_provider();
    let kills = if std::env::var_os("FLEETSOCK_LONG").is_some() { 300 } else { 4 };
    let mut server = Server::init();
    server.start().await;
    let (acks, enough) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut reporting = JoinSet::new();
    for number in 0..AGENTS {
        let reporter = Reporter::enrol(&server, number).await;
        reporting.spawn(reporter.run(acks.clone(), enough.clone()));
    }
    for round in 0..kills {
        // By progress, not by time, so that every kill finds work under way.
        let goal = acks.load(Relaxed) + 1 + mixed(round) % 400;
        while acks.load(Relaxed) < goal {
            assert!(reporting.try_join_next().is_none(), "an agent ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        server.kill();
        server.start().await;
    }
    let goal = acks.load(Relaxed) + 100;
    while acks.load(Relaxed) < goal {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    enough.cancel();
    let reporters = reporting.join_all().await;
    server.stop().await;
    check_files(&server);
    server.start().await;
    for reporter in &reporters {
        check_rows(&server, reporter).await;
    }
    server.stop().await;
}

fn check_files(server: &Server) {
    for name in ["main.db", "day-1.db"] {
        let database = rusqlite::Connection::open(server.history().join(name)).unwrap();
        let word: String = database.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(word, "ok", "{name}");
    }
}

/// Batches that were stored and not acknowledged may be there too; they too must be whole and there once.
pub(super) async fn check_rows(server: &Server, reporter: &Reporter) {
    let mut client = server.local().await.unwrap();
    let mut question = SessionQuestion {
        time: SessionTime::Within { since: Timestamp::MIN, until: None },
        ..SessionQuestion::default()
    };
    question.filter.hosts.globs = vec![reporter.name.clone()];
    let (sessions, _) = client.list_sessions(question).await.unwrap().collect().await.unwrap();
    let (open, over): (Vec<_>, Vec<_>) = sessions.iter().partition(|session| session.closed.is_none());
    let stored = over.len() as u64 / (SESSIONS + 1) + 1;
    assert!((reporter.acknowledged..=reporter.agent.last.seq).contains(&stored), "{stored} batches");
    // The sessions of each batch, and the one of the batch before, each once.
    assert_eq!((open.len(), over.len() as u64), (1, stored * SESSIONS + stored - 1));
    let mut question = PortQuestion::default();
    question.filter.hosts.globs = vec![reporter.name.clone()];
    let (ports, _) = client.list_ports(question).await.unwrap().collect().await.unwrap();
    let ports: Vec<_> = ports.iter().map(|row| u64::from(row.port)).collect();
    // Listeners are stored first, so that a kill between the two may have left those of one more batch.
    assert!(ports == [stored % 60_000 + 1] || ports == [(stored + 1) % 60_000 + 1], "{ports:?} after {stored}");
}
