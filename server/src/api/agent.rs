//! The conversation with an agent. Which host speaks is decided by its certificate, never by what it says.

use std::{convert::Infallible, error::Error as _, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use fleetsock_proto::{
    host::HostId,
    stream::{AgentMessage, BatchNumber, Bye, Hello, Nack, PROTOCOL_VERSION, Roots, ServerMessage, Welcome},
    wire,
};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, body::Body};

pub use self::calls::AgentCalls;
use self::stream::{Arriving, Said};
use super::{Clock, peer, roots::renewal, status};
use crate::{
    authority::{Authority, RequestedKey},
    history::{Applied, Contact, History, HistoryError, Presence, Registry, Skew, Standing, Subject, proof::Wish},
    live::{End, Hearing, Live, LiveStream, Spot},
    metrics::{BatchResult, Meters},
    peer::{Caller, Peer},
    rates::Rates,
    warnings::Warnings,
};

mod calls;
mod stream;

/// How long an agent may take to say Hello.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a stream may be silent. Agents say something at least every five minutes at the slowest setting.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(90);
/// Batches that an agent may have on the way.
pub const CREDIT: u32 = 32;
/// When to come back after the server stopped, and after it ran out of room.
const RETURN_AFTER: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// When a host that waits for approval shall ask again.
const APPROVAL_AFTER: Duration = Duration::from_secs(10);
/// Heartbeats that may fail to come before a machine that was heard gives the voice of its host to another one.
const MISSED_HEARTBEATS: u32 = 2;
/// How long an agent that does not read may keep the last word from being sent.
const LAST_WORD: Duration = Duration::from_millis(200);
/// Messages that wait for a slow agent: an acknowledgement and a credit for every batch that it may have on the way, and
/// some for gaps and wishes. An agent that keeps to its credit has read of them before it sends more.
const OUTGOING: usize = 2 * CREDIT as usize + 16;

/// The agent service.
pub struct AgentService {
    /// Makes certificates.
    pub authority: Arc<Authority>,
    /// Where observations go.
    pub history: Arc<dyn History>,
    /// Knows the certificates in use.
    pub registry: Arc<dyn Registry>,
    /// Who is speaking.
    pub live: Arc<Live>,
    /// How much each may report.
    pub rates: Arc<Rates>,
    /// Where hosts that are odd are told of.
    pub warnings: Arc<Warnings>,
    /// Where conversations run, to be waited for when the server stops.
    pub tasks: TaskTracker,
    /// How often an agent shall send a sign of life.
    pub heartbeat: Duration,
    /// What is counted.
    pub meters: Meters,
    /// The time.
    pub clock: Clock,
}

impl std::fmt::Debug for AgentService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentService")
    }
}

fn agent(peer: Peer) -> Result<(HostId, Vec<u8>), Status> {
    match peer.caller {
        Caller::Agent { host, serial } => Ok((host, serial)),
        // The policy lets nobody else through; this is its second lock.
        caller => Err(Status::permission_denied(format!("{caller} is no agent"))),
    }
}

impl AgentService {
    /// Begins a conversation. What an agent says is in the body of its request, what it is told in that of the answer.
    async fn session(
        self: Arc<AgentService>,
        request: Request<Body>,
        limit: usize,
    ) -> Result<http::Response<Body>, Status> {
        let peer = peer(&request)?;
        let (address, arrived) = (peer.address, peer.arrived);
        let (host, serial) = agent(peer)?;
        let incoming = Arriving::of(request, limit)?;
        let live = self.live.begin(host, serial.clone());
        // Between the policy's look and the line above the host may have been revoked, and nobody would end the stream.
        let admission = match self.registry.host_standing(host, serial).await.map_err(status::of)? {
            Standing::Good => Admission::Free,
            Standing::Waits => Admission::Waits,
            _ => return Err(Status::unauthenticated("revoked")),
        };
        let (outgoing, said) = mpsc::channel(OUTGOING);
        let tasks = self.tasks.clone();
        let conversation = Conversation { service: self, host, address, arrived, admission, outgoing };
        tasks.spawn(conversation.run(incoming, live));
        Ok(stream::answer(said))
    }

    async fn renew_certificate(
        &self,
        request: Request<wire::RenewCertificateRequest>,
    ) -> Result<Response<wire::RenewCertificateResponse>, Status> {
        let (host, _) = agent(peer(&request)?)?;
        let at = (self.clock)();
        let key = RequestedKey::of_request(&request.into_inner().csr_der).map_err(status::of_authority)?;
        let issued = self.authority.issue(&Subject::Host(host), &key, at).map_err(status::of_authority)?;
        self.registry.add_host_certificate(host, issued.clone(), at).await.map_err(status::of)?;
        tracing::info!(%host, "certificate renewed");
        Ok(Response::new(wire::RenewCertificateResponse {
            certificate_chain_der: issued.chain_der,
            expires_at: Some(issued.expires_at.into()),
            roots_der: self.authority.roots_der(),
        }))
    }
}

/// What became of a batch, to be counted.
fn result(applied: &Result<Applied, HistoryError>) -> BatchResult {
    match applied {
        Ok(Applied::Committed | Applied::Differs { .. }) => BatchResult::Committed,
        Ok(Applied::Hole { .. }) => BatchResult::Hole,
        Err(_) => BatchResult::Refused,
    }
}

/// Whether an agent may report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Free,
    /// Its host waits for approval.
    Waits,
}

/// One stream of one agent.
struct Conversation {
    service: Arc<AgentService>,
    host: HostId,
    address: Option<IpAddr>,
    /// When its connection was accepted.
    arrived: Instant,
    admission: Admission,
    outgoing: mpsc::Sender<Said>,
}

/// An address for people.
fn told(address: Option<IpAddr>) -> String {
    address.map_or_else(|| "nowhere".to_owned(), |address| address.to_string())
}

/// Why a conversation is over.
enum Over {
    /// The agent closed it, or the connection broke.
    Left,
    /// The server ends it with a word.
    Bye(Bye),
    /// The agent broke the contract.
    Fault(Status),
}

impl From<End> for Over {
    fn from(end: End) -> Over {
        let (reason, reconnect_after) = match end {
            End::Replaced => ("another stream of this host began", RETURN_AFTER.1),
            End::Revoked => return Over::Fault(Status::unauthenticated("revoked")),
            End::Stopping => ("the server stops", RETURN_AFTER.0),
        };
        Over::Bye(Bye { reason: reason.to_owned(), reconnect_after })
    }
}

impl From<HistoryError> for Over {
    fn from(error: HistoryError) -> Over {
        match error {
            HistoryError::Full | HistoryError::Closed => {
                Over::Bye(Bye { reason: error.to_string(), reconnect_after: RETURN_AFTER.1 })
            }
            error => Over::Fault(status::of(error)),
        }
    }
}

impl Conversation {
    async fn run(self, mut incoming: Arriving, live: LiveStream) {
        let over = tokio::select! {
            biased;
            end = live.ended() => end.into(),
            Err(over) = self.converse(&mut incoming, &live) => over,
        };
        let last = match over {
            Over::Left => None,
            Over::Bye(bye) => Some(Ok(Box::new(ServerMessage::Bye(bye).into()))),
            Over::Fault(status) => {
                tracing::warn!(host = %self.host, reason = status.message(), "stream ended");
                Some(Err(status))
            }
        };
        // Nothing more is heard from here on.
        drop((incoming, live));
        if let Some(last) = last
            && !matches!(timeout(LAST_WORD, self.outgoing.send(last)).await, Ok(Ok(())))
        {
            tracing::debug!(host = %self.host, "the agent was gone or did not read before the last word");
        }
    }

    /// Talks until one side has enough. What happens once or rarely is boxed: a conversation takes the room of the longest
    /// of its steps for as long as it lives.
    async fn converse(&self, incoming: &mut Arriving, live: &LiveStream) -> Result<Infallible, Over> {
        let hello = match self.hear(incoming, HELLO_TIMEOUT).await? {
            AgentMessage::Hello(hello) => hello,
            _ => return Err(Over::Fault(Status::invalid_argument("a stream begins with Hello"))),
        };
        if self.admission == Admission::Waits {
            return Err(Box::pin(self.introduce(hello)).await?);
        }
        Box::pin(self.take_the_voice(&hello, live)).await?;
        // Before Welcome says which roots there are, so that no change falls between.
        let mut told = self.service.live.told();
        Box::pin(self.welcome(hello)).await?;
        loop {
            let message = self.hear_while_telling(incoming, &mut told).await?;
            let now = (self.service.clock)();
            if let Some(rival) = live.heard(now) {
                Box::pin(self.warn_of_copy(rival)).await;
            }
            let rows = if let AgentMessage::Batch(batch) = &message {
                batch.changes.len() + batch.namespaces.len()
            } else {
                0
            };
            self.handle(message).await?;
            let wait = self.service.rates.report(self.host, rows, Instant::now());
            if !wait.is_zero() {
                self.service.meters.held_back.inc();
                tracing::debug!(host = %self.host, ?wait, "it reports more than it may: not heard for a while");
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Keeps what a host that waits for approval says of itself; why the stream ends.
    async fn introduce(&self, hello: Hello) -> Result<Over, Over> {
        let contact = self.contact(hello);
        tracing::info!(host = %self.host, name = contact.facts.name, "a host waits for approval");
        self.service.registry.introduce(self.host, contact).await?;
        let reason =
            format!("this host waits for approval, and nothing is stored before: fleetctl hosts approve {}", self.host);
        Ok(Over::Bye(Bye { reason, reconnect_after: APPROVAL_AFTER }))
    }

    /// Makes this stream the one that speaks for the host, unless another machine does.
    async fn take_the_voice(&self, hello: &Hello, live: &LiveStream) -> Result<(), Over> {
        let AgentService { heartbeat, clock, warnings, .. } = &*self.service;
        let spot = Spot { boot_id: hello.facts.boot_id, netns: hello.facts.netns, address: self.address };
        let patience = *heartbeat * MISSED_HEARTBEATS + HELLO_TIMEOUT / 2;
        match live.speak(spot, clock(), patience) {
            Hearing::Taken => Ok(()),
            Hearing::TakenAgain { times } => {
                let text = format!(
                    "its stream was replaced {times} times within minutes, lately from {}: two agents may use one \
                     identity",
                    told(self.address)
                );
                warnings.warn(self.host, text, clock()).await;
                Ok(())
            }
            Hearing::Occupied { by } => {
                tracing::warn!(
                    host = %self.host, from = told(self.address), boot_id = %spot.boot_id,
                    other = told(by.address), other_boot_id = %by.boot_id,
                    "another machine was heard as this host a moment ago: not let in"
                );
                let reason = format!(
                    "another machine was heard as this host a moment ago, from {}; if this one is a copy of it, enrol \
                     it anew: fleetsock-agent enroll --force --join ...",
                    told(by.address)
                );
                Err(Over::Bye(Bye { reason, reconnect_after: patience }))
            }
        }
    }

    /// Two machines are alive with one identity.
    async fn warn_of_copy(&self, rival: Spot) {
        let text = format!(
            "a second machine uses its identity, from {} (boot {}); it is not let in, and this one, from {}, is",
            told(rival.address),
            rival.boot_id,
            told(self.address)
        );
        self.service.warnings.warn(self.host, text, (self.service.clock)()).await;
    }

    fn contact(&self, hello: Hello) -> Contact {
        let at = (self.service.clock)();
        let Skew { offset_us } = Skew::least(hello.sent_at, at, self.arrived.elapsed());
        Contact { facts: hello.facts, at, clock_offset_us: offset_us }
    }

    async fn hear(&self, incoming: &mut Arriving, patience: Duration) -> Result<AgentMessage, Over> {
        match timeout(patience, incoming.next()).await {
            Ok(Ok(Some(message))) => {
                AgentMessage::try_from(message).map_err(|error| Over::Fault(status::of_invalid(error)))
            }
            Ok(Ok(None)) => Err(Over::Left),
            // What the message was read by says what is wrong with it; what broke beneath has a cause.
            Ok(Err(error)) if error.source().is_none() => Err(Over::Fault(error)),
            Ok(Err(error)) => {
                tracing::debug!(host = %self.host, %error, "stream broke");
                Err(Over::Left)
            }
            Err(_) => {
                let text = format!("nothing was heard for {} s", patience.as_secs());
                Err(Over::Fault(Status::deadline_exceeded(text)))
            }
        }
    }

    /// The next message; what every agent is told meanwhile is told.
    async fn hear_while_telling(
        &self,
        incoming: &mut Arriving,
        told: &mut watch::Receiver<Option<Roots>>,
    ) -> Result<AgentMessage, Over> {
        let mut hearing = pin!(self.hear(incoming, SILENCE_LIMIT));
        loop {
            tokio::select! {
                message = &mut hearing => return message,
                Ok(()) = told.changed() => {
                    let roots = told.borrow_and_update().clone();
                    roots.map_or(Ok(()), |roots| self.say(ServerMessage::Roots(roots)))?;
                }
            }
        }
    }

    /// Says something without waiting: what an agent sends while nobody reads it would have to be kept.
    fn say(&self, message: ServerMessage) -> Result<(), Over> {
        self.outgoing.try_send(Ok(Box::new(message.into()))).map_err(|error| match error {
            TrySendError::Full(_) => {
                Over::Fault(Status::resource_exhausted("this agent sends on and does not read what it is told"))
            }
            TrySendError::Closed(_) => Over::Left,
        })
    }

    async fn welcome(&self, hello: Hello) -> Result<(), Over> {
        let AgentService { authority, history, live, heartbeat, clock, .. } = &*self.service;
        let contact = self.contact(hello);
        tracing::info!(host = %self.host, name = contact.facts.name, "agent connected");
        history.record_hello(self.host, contact).await?;
        let last = history.last_batch(self.host).await?;
        self.say(ServerMessage::Welcome(Welcome {
            protocol_version: PROTOCOL_VERSION,
            last,
            heartbeat: *heartbeat,
            walk: None,
            credit: CREDIT,
            sent_at: clock(),
            roots_der: authority.roots_der(),
            renewal: renewal(authority, live),
        }))
    }

    async fn handle(&self, message: AgentMessage) -> Result<(), Over> {
        let AgentService { history, clock, .. } = &*self.service;
        let mut presence = Presence { at: clock(), observed_until: None, cost: None, tcp_counts: None };
        match message {
            AgentMessage::Hello(_) => return Err(Over::Fault(Status::invalid_argument("a second Hello"))),
            AgentMessage::Heartbeat(heartbeat) => {
                presence.observed_until = Some(heartbeat.observed_until);
                presence.cost = Some(heartbeat.cost);
                presence.tcp_counts = heartbeat.tcp_counts;
            }
            AgentMessage::Batch(batch) => {
                let number = BatchNumber { epoch: batch.epoch, seq: batch.seq };
                let came = Instant::now();
                let applied = history.apply(self.host, batch).await;
                self.service.meters.answered(result(&applied), came.elapsed());
                self.answer(number, applied?)?;
            }
            AgentMessage::Gap(gap) => {
                history.record_gap(self.host, gap).await?;
                self.say(ServerMessage::Ack(history.last_batch(self.host).await?))?;
            }
        }
        history.record_presence(self.host, Presence { at: clock(), ..presence });
        Ok(())
    }

    fn answer(&self, number: BatchNumber, applied: Applied) -> Result<(), Over> {
        match applied {
            Applied::Committed => {
                self.say(ServerMessage::Ack(number))?;
                self.say(ServerMessage::Credit(1))
            }
            Applied::Differs { difference, wish } => {
                self.say(ServerMessage::Ack(number))?;
                self.say(ServerMessage::Credit(1))?;
                tracing::warn!(
                    host = %self.host, batch = format!("{}/{}", number.epoch, number.seq), %difference,
                    asked = wish == Wish::Snapshot, "what is open in the history is not what the agent has"
                );
                match wish {
                    Wish::Snapshot => self.say(ServerMessage::Resync(difference.to_string())),
                    Wish::Nothing => Ok(()),
                }
            }
            Applied::Hole { expected } => {
                let reason = format!(
                    "batch {}/{} came where {}/{} is expected",
                    number.epoch, number.seq, expected.epoch, expected.seq
                );
                self.say(ServerMessage::Nack(Nack { expected, reason, snapshot_wanted: false }))?;
                self.say(ServerMessage::Credit(1))
            }
        }
    }
}
