//! An agent without a host: it speaks to the server over real TLS, and says what a test makes it say.

use fleetsock_proto::{
    batch::{Batch, BatchKind, Change},
    client::{AgentClient, CallError, ServerMessages},
    host::{BootId, HostFacts},
    identity::Identity,
    stream::{AgentCost, AgentMessage, BatchNumber, Bye, Heartbeat, Hello, PROTOCOL_VERSION, ServerMessage},
    time::Timestamp,
};
use tokio::sync::mpsc;

use crate::scene::{facts, listener, present};

/// A stream that the server may have taken.
pub(crate) struct Speaker {
    _client: AgentClient,
    outgoing: mpsc::Sender<AgentMessage>,
    incoming: ServerMessages,
    boot: BootId,
    last: BatchNumber,
    /// What the server handed out in its Welcome.
    pub(crate) roots_der: Vec<Vec<u8>>,
}

/// How a stream ended.
#[derive(Debug)]
#[allow(dead_code, reason = "told when a test fails")]
pub(crate) enum Ended {
    Bye(Bye),
    Refused(CallError),
    Closed,
}

impl Speaker {
    /// Connects and says Hello, from a machine with this boot.
    pub(crate) async fn hello(identity: &Identity, name: &str, boot: u8) -> Result<Speaker, CallError> {
        let mut client = AgentClient::connect(identity).await.unwrap();
        let (outgoing, messages) = mpsc::channel(16);
        let boot = BootId::from_array([boot; 16]);
        let facts = HostFacts { boot_id: boot, ..facts(name, &["192.0.2.9".parse().unwrap()]) };
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: Vec::new(),
            last: BatchNumber::default(),
            facts,
            sent_at: Timestamp::now(),
        };
        outgoing.send(AgentMessage::Hello(hello)).await.unwrap();
        let incoming = client.session(messages).await?;
        let last = BatchNumber { epoch: 1, seq: 0 };
        Ok(Speaker { _client: client, outgoing, incoming, boot, last, roots_der: Vec::new() })
    }

    /// The same, and the server takes it.
    pub(crate) async fn welcomed(identity: &Identity, name: &str, boot: u8) -> Speaker {
        let mut speaker = Speaker::hello(identity, name, boot).await.unwrap();
        let Ok(Some(ServerMessage::Welcome(welcome))) = speaker.incoming.next().await else { panic!("no welcome") };
        speaker.last = BatchNumber { epoch: welcome.last.epoch.max(1), seq: welcome.last.seq };
        speaker.roots_der = welcome.roots_der;
        speaker
    }

    /// Sends a snapshot of one listener; whether it could be sent.
    pub(crate) async fn send(&mut self, port: u16) -> bool {
        self.last.seq += 1;
        let now = Timestamp::now();
        let socket = listener(u64::from(port), &format!("0.0.0.0:{port}"));
        let batch = Batch {
            epoch: self.last.epoch,
            seq: self.last.seq,
            kind: BatchKind::SnapshotWhole,
            boot_id: self.boot,
            observed_since: now,
            observed_until: now,
            changes: vec![present(fleetsock_proto::batch::Socket { opened_at: now, ..socket })] as Vec<Change>,
            digest: None,
            namespaces: Vec::new(),
        };
        self.outgoing.send(AgentMessage::Batch(batch)).await.is_ok()
    }

    /// Sends part of a snapshot.
    async fn send_part(&mut self, kind: BatchKind, cookies: std::ops::Range<u64>) {
        self.last.seq += 1;
        let now = Timestamp::now();
        let socket = |cookie: u64| {
            let address = format!("10.{}.{}.1:{}", cookie >> 24 & 255, cookie >> 16 & 255, cookie & 0xffff);
            present(fleetsock_proto::batch::Socket { opened_at: now, ..listener(cookie, &address) })
        };
        let batch = Batch {
            epoch: self.last.epoch,
            seq: self.last.seq,
            kind,
            boot_id: self.boot,
            observed_since: now,
            observed_until: now,
            changes: cookies.map(socket).collect(),
            digest: None,
            namespaces: Vec::new(),
        };
        self.outgoing.send(AgentMessage::Batch(batch)).await.unwrap();
        self.acknowledged().await.unwrap();
    }

    /// Sends a sign of life.
    pub(crate) async fn live(&self) {
        let now = Timestamp::now();
        let heartbeat = Heartbeat { sent_at: now, observed_until: now, cost: AgentCost::default(), tcp_counts: None };
        self.outgoing.send(AgentMessage::Heartbeat(heartbeat)).await.unwrap();
    }

    /// Waits until what was sent last is acknowledged; an end that comes before is given back.
    pub(crate) async fn acknowledged(&mut self) -> Result<(), Ended> {
        loop {
            match self.incoming.next().await {
                Ok(Some(ServerMessage::Ack(number))) if number == self.last => return Ok(()),
                Ok(Some(ServerMessage::Bye(bye))) => return Err(Ended::Bye(bye)),
                Ok(Some(_)) => {}
                Ok(None) => return Err(Ended::Closed),
                Err(error) => return Err(Ended::Refused(error)),
            }
        }
    }

    /// Waits for the end.
    pub(crate) async fn ended(&mut self) -> Ended {
        loop {
            match self.incoming.next().await {
                Ok(Some(ServerMessage::Bye(bye))) => return Ended::Bye(bye),
                Ok(Some(_)) => {}
                Ok(None) => return Ended::Closed,
                Err(error) => return Ended::Refused(error),
            }
        }
    }
}

/// Sends a snapshot of so many parts with so many listeners each.
pub(crate) async fn fill(speaker: &mut Speaker, parts: u64, each: u64) {
    for part in 0..parts {
        let kind = match part {
            0 => BatchKind::SnapshotBegin,
            part if part + 1 == parts => BatchKind::SnapshotEnd,
            _ => BatchKind::SnapshotPart,
        };
        speaker.send_part(kind, part * each + 1..(part + 1) * each + 1).await;
    }
}
