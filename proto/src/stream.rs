//! What an agent and the server say to each other on their stream, besides batches.

use std::time::Duration;

use crate::{
    InvalidMessage,
    answer::GapReason,
    batch::Batch,
    host::{HostFacts, bounded},
    root::Renewal,
    tcp::TcpCounts,
    time,
    time::Timestamp,
    wire,
};

mod packed;

pub(crate) use self::packed::PackedRequest;
pub use self::packed::{Outgoing, PackedBatch};

/// The version of the contract that this build speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// Longest text of a Nack or Bye, bytes.
pub const REASON_LIMIT: usize = 1024;

/// What an agent says.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentMessage {
    /// First of all.
    Hello(Hello),
    /// Observations.
    Batch(Batch),
    /// Observations that will never come.
    Gap(GapReport),
    /// Nothing new.
    Heartbeat(Heartbeat),
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerMessage {
    /// The answer to Hello.
    Welcome(Welcome),
    /// Everything up to this number is committed.
    Ack(BatchNumber),
    /// A batch was not stored.
    Nack(Nack),
    /// So many more batches may be sent.
    Credit(u32),
    /// The server ends the stream.
    Bye(Bye),
    /// The roots have changed.
    Roots(Roots),
    /// What is open there is not what the agent has, for this reason: a snapshot is wanted.
    Resync(String),
}

/// The number of a batch. Ordered by epoch, then by sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchNumber {
    /// The numbering.
    pub epoch: u64,
    /// The number in it, from 1; 0 before the first.
    pub seq: u64,
}

/// An agent's first message.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// The version that it speaks.
    pub protocol_version: u32,
    /// What it can do beyond that.
    pub capabilities: Vec<String>,
    /// The last number that it gave out.
    pub last: BatchNumber,
    /// What its host is.
    pub facts: HostFacts,
    /// Its clock.
    pub sent_at: Timestamp,
}

/// Observations that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GapReport {
    /// The numbering.
    pub epoch: u64,
    /// First and last missing number; `None` when what was lost had no number yet.
    pub seqs: Option<(u64, u64)>,
    /// Where it begins.
    pub since: Timestamp,
    /// Where it ends.
    pub until: Timestamp,
    /// Why.
    pub reason: GapReason,
}

/// Nothing new.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heartbeat {
    /// The agent's clock.
    pub sent_at: Timestamp,
    /// When the last walk was made.
    pub observed_until: Timestamp,
    /// What the agent costs.
    pub cost: AgentCost,
    /// TCP sockets that are neither listeners nor sessions, once they were counted.
    pub tcp_counts: Option<TcpCounts>,
}

/// What an agent costs its host, and what it lost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AgentCost {
    /// CPU since its start.
    pub cpu: Duration,
    /// Resident memory, bytes.
    pub rss_bytes: u64,
    /// CPU since the heartbeat before, thousandths of a percent of one core.
    pub cpu_millipercent: u32,
    /// Records lost since its start.
    pub losses: u64,
}

/// The server's answer to Hello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that both speak from now on.
    pub protocol_version: u32,
    /// The last batch committed for this host.
    pub last: BatchNumber,
    /// How often to send a heartbeat.
    pub heartbeat: Duration,
    /// How often to walk; `None` leaves the agent's own setting.
    pub walk: Option<Duration>,
    /// How many batches may be sent before the next credit.
    pub credit: u32,
    /// The server's clock.
    pub sent_at: Timestamp,
    /// The roots to trust from now on, DER, the one in use first; none means those before.
    pub roots_der: Vec<Vec<u8>>,
    /// Certificates that are to be renewed before their time.
    pub renewal: Option<Renewal>,
}

/// The roots have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    /// The roots to trust from now on, DER, the one in use first; none means those before.
    pub roots_der: Vec<Vec<u8>>,
    /// Certificates that are to be renewed before their time.
    pub renewal: Option<Renewal>,
}

/// A batch was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nack {
    /// What the server expects next.
    pub expected: BatchNumber,
    /// Why.
    pub reason: String,
    /// Whether a snapshot must come first.
    pub snapshot_wanted: bool,
}

/// The server ends the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bye {
    /// Why.
    pub reason: String,
    /// When to come back.
    pub reconnect_after: Duration,
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

impl From<AgentMessage> for wire::SessionRequest {
    fn from(message: AgentMessage) -> wire::SessionRequest {
        use wire::session_request::Message;
        let message = match message {
            AgentMessage::Hello(hello) => Message::Hello(wire::Hello {
                protocol_version: hello.protocol_version,
                capabilities: hello.capabilities,
                epoch: hello.last.epoch,
                last_seq: hello.last.seq,
                facts: Some(hello.facts.into()),
                sent_at: Some(hello.sent_at.into()),
            }),
            AgentMessage::Batch(batch) => Message::Batch(wire::Batch::from(&batch)),
            AgentMessage::Gap(gap) => {
                let (first_seq, last_seq) = gap.seqs.unwrap_or((0, 0));
                Message::Gap(wire::GapReport {
                    epoch: gap.epoch,
                    first_seq,
                    last_seq,
                    since: Some(gap.since.into()),
                    until: Some(gap.until.into()),
                    reason: gap.reason.number(),
                })
            }
            AgentMessage::Heartbeat(heartbeat) => Message::Heartbeat(wire::Heartbeat {
                sent_at: Some(heartbeat.sent_at.into()),
                observed_until: Some(heartbeat.observed_until.into()),
                cost: Some(wire::AgentCost {
                    cpu_us: u64::try_from(heartbeat.cost.cpu.as_micros()).unwrap_or(u64::MAX),
                    rss_bytes: heartbeat.cost.rss_bytes,
                    cpu_millipercent: heartbeat.cost.cpu_millipercent,
                    losses: heartbeat.cost.losses,
                }),
                tcp_counts: heartbeat.tcp_counts.map(Into::into),
            }),
        };
        wire::SessionRequest { message: Some(message) }
    }
}

impl TryFrom<wire::SessionRequest> for AgentMessage {
    type Error = InvalidMessage;

    fn try_from(request: wire::SessionRequest) -> Result<AgentMessage, InvalidMessage> {
        use wire::session_request::Message;
        match request.message.ok_or_else(|| InvalidMessage::missing("SessionRequest.message"))? {
            Message::Hello(hello) => Ok(AgentMessage::Hello(Hello {
                protocol_version: hello.protocol_version,
                capabilities: hello.capabilities,
                last: BatchNumber { epoch: hello.epoch, seq: hello.last_seq },
                facts: hello.facts.ok_or_else(|| InvalidMessage::missing("Hello.facts"))?.try_into()?,
                sent_at: time::required("Hello.sent_at", hello.sent_at)?,
            })),
            Message::Batch(batch) => Ok(AgentMessage::Batch(batch.try_into()?)),
            Message::Gap(gap) => gap_report(gap).map(AgentMessage::Gap),
            Message::Heartbeat(heartbeat) => {
                let cost = heartbeat.cost.unwrap_or_default();
                Ok(AgentMessage::Heartbeat(Heartbeat {
                    sent_at: time::required("Heartbeat.sent_at", heartbeat.sent_at)?,
                    observed_until: time::required("Heartbeat.observed_until", heartbeat.observed_until)?,
                    cost: AgentCost {
                        cpu: Duration::from_micros(cost.cpu_us),
                        rss_bytes: cost.rss_bytes,
                        cpu_millipercent: cost.cpu_millipercent,
                        losses: cost.losses,
                    },
                    tcp_counts: heartbeat.tcp_counts.map(Into::into),
                }))
            }
        }
    }
}

fn gap_report(gap: wire::GapReport) -> Result<GapReport, InvalidMessage> {
    let seqs = match (gap.first_seq, gap.last_seq) {
        (0, 0) => None,
        (first, last) if first >= 1 && first <= last => Some((first, last)),
        (first, last) => return Err(InvalidMessage::new("GapReport.first_seq", format!("{first} to {last}"))),
    };
    let since = time::required("GapReport.since", gap.since)?;
    let until = time::required("GapReport.until", gap.until)?;
    if since > until {
        return Err(InvalidMessage::new("GapReport.since", "lies after until"));
    }
    Ok(GapReport { epoch: gap.epoch, seqs, since, until, reason: told_reason(gap.reason)? })
}

/// A reason that agents give; the others are only in answers.
fn told_reason(number: i32) -> Result<GapReason, InvalidMessage> {
    const FIELD: &str = "GapReport.reason";
    let reason = GapReason::from_wire(FIELD, number)?;
    if reason.is_stored() {
        Ok(reason)
    } else {
        Err(InvalidMessage::new(FIELD, format!("{reason} is not an agent's to tell")))
    }
}

impl From<ServerMessage> for wire::SessionResponse {
    fn from(message: ServerMessage) -> wire::SessionResponse {
        use wire::session_response::Message;
        let message = match message {
            ServerMessage::Welcome(welcome) => Message::Welcome(wire::Welcome {
                protocol_version: welcome.protocol_version,
                capabilities: Vec::new(),
                last_epoch: welcome.last.epoch,
                last_seq: welcome.last.seq,
                heartbeat_ms: millis(welcome.heartbeat),
                walk_ms: welcome.walk.map_or(0, millis),
                credit: welcome.credit,
                sent_at: Some(welcome.sent_at.into()),
                roots_der: welcome.roots_der,
                renewal: welcome.renewal.map(Into::into),
            }),
            ServerMessage::Ack(number) => Message::Ack(wire::Ack { epoch: number.epoch, seq: number.seq }),
            ServerMessage::Nack(nack) => Message::Nack(wire::Nack {
                epoch: nack.expected.epoch,
                expected_seq: nack.expected.seq,
                reason: nack.reason,
                snapshot_wanted: nack.snapshot_wanted,
            }),
            ServerMessage::Credit(batches) => Message::Credit(wire::Credit { batches }),
            ServerMessage::Bye(bye) => {
                Message::Bye(wire::Bye { reason: bye.reason, reconnect_after_ms: millis(bye.reconnect_after) })
            }
            ServerMessage::Roots(Roots { roots_der, renewal }) => {
                Message::Roots(wire::Roots { roots_der, renewal: renewal.map(Into::into) })
            }
            ServerMessage::Resync(reason) => Message::Resync(wire::Resync { reason }),
        };
        wire::SessionResponse { message: Some(message) }
    }
}

impl TryFrom<wire::SessionResponse> for ServerMessage {
    type Error = InvalidMessage;

    fn try_from(response: wire::SessionResponse) -> Result<ServerMessage, InvalidMessage> {
        use wire::session_response::Message;
        match response.message.ok_or_else(|| InvalidMessage::missing("SessionResponse.message"))? {
            Message::Welcome(welcome) => Ok(ServerMessage::Welcome(Welcome {
                protocol_version: welcome.protocol_version,
                last: BatchNumber { epoch: welcome.last_epoch, seq: welcome.last_seq },
                heartbeat: Duration::from_millis(welcome.heartbeat_ms.into()),
                walk: (welcome.walk_ms != 0).then(|| Duration::from_millis(welcome.walk_ms.into())),
                credit: welcome.credit,
                sent_at: time::required("Welcome.sent_at", welcome.sent_at)?,
                roots_der: welcome.roots_der,
                renewal: welcome.renewal.map(Renewal::try_from).transpose()?,
            })),
            Message::Ack(ack) => Ok(ServerMessage::Ack(BatchNumber { epoch: ack.epoch, seq: ack.seq })),
            Message::Nack(nack) => Ok(ServerMessage::Nack(Nack {
                expected: BatchNumber { epoch: nack.epoch, seq: nack.expected_seq },
                reason: bounded("Nack.reason", nack.reason, REASON_LIMIT)?,
                snapshot_wanted: nack.snapshot_wanted,
            })),
            Message::Credit(credit) => Ok(ServerMessage::Credit(credit.batches)),
            Message::Bye(bye) => Ok(ServerMessage::Bye(Bye {
                reason: bounded("Bye.reason", bye.reason, REASON_LIMIT)?,
                reconnect_after: Duration::from_millis(bye.reconnect_after_ms.into()),
            })),
            Message::Roots(wire::Roots { roots_der, renewal }) => {
                let renewal = renewal.map(Renewal::try_from).transpose()?;
                Ok(ServerMessage::Roots(Roots { roots_der, renewal }))
            }
            Message::Resync(wire::Resync { reason }) => {
                Ok(ServerMessage::Resync(bounded("Resync.reason", reason, REASON_LIMIT)?))
            }
        }
    }
}
