//! Delivers the spool to the server: connects, says what is held, hears what is committed, and comes back.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleetsock_proto::{
    client::{AgentClient, CallError, ConnectError, Dial, ServerMessages, renew_expired_by},
    host::{HostFacts, Tier},
    identity::{Identity, IdentityError},
    stream::{AgentMessage, BatchNumber, Hello, Outgoing, PROTOCOL_VERSION, ServerMessage, Welcome},
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

use self::{
    patience::{Ending, Patience},
    stream::Stream,
};
use crate::{
    cost::Meter,
    observer::{Clock, orders::Orders},
    outbox::Outbox,
    spool::Resumption,
};

pub mod delivery;
pub mod patience;
pub mod renewal;
mod stream;

/// How long the server may take to begin an answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A stream that lived this long proves that the server can be reached.
const PROOF: Duration = Duration::from_secs(30);
/// The bounds of the walk interval that a server may set.
pub const WALK: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
/// Refusals of one item, without anything committed between them, until it is given up.
const REFUSALS_LIMIT: u32 = 3;

/// What an uplink needs.
pub struct Uplink {
    /// Folder of the identity.
    pub state: PathBuf,
    /// What is to be delivered.
    pub outbox: Arc<Outbox>,
    /// How to ask for a snapshot or another rhythm.
    pub orders: Arc<Orders>,
    /// The walk interval where the server has no wish.
    pub walk: Duration,
    /// What the host says of itself.
    pub facts: Arc<dyn Fn() -> HostFacts + Send + Sync>,
    /// The time.
    pub clock: Clock,
    /// How the server is reached.
    pub dial: Dial,
    /// By what waits are spread.
    pub dice: Dice,
}

/// Gives random numbers.
pub type Dice = fn() -> u64;

impl std::fmt::Debug for Uplink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uplink").field("state", &self.state).finish_non_exhaustive()
    }
}

/// What outlives a stream.
#[derive(Debug, Default)]
struct Memory {
    meter: Meter,
    refusals: Refusals,
}

/// What the server knows of what is seen and what not.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Sight {
    tier: Tier,
    reason: String,
    /// How often the clock was set: the server must measure it anew.
    clock_leaps: u64,
}

impl Sight {
    fn of(facts: &HostFacts, clock_leaps: u64) -> Sight {
        Sight { tier: facts.tier, reason: facts.tier_reason.clone(), clock_leaps }
    }
}

/// A stream that was welcomed, before anything is sent on it.
struct Greeted {
    client: AgentClient,
    outgoing: mpsc::Sender<Outgoing>,
    incoming: ServerMessages,
    identity: Identity,
    welcome: Welcome,
    told: Sight,
}

/// Counts how often the server refused one item as such.
#[derive(Debug, Default)]
struct Refusals {
    item: BatchNumber,
    times: u32,
}

impl Refusals {
    /// The item after this number was refused; tells whether it is to be given up.
    fn note(&mut self, after: BatchNumber) -> bool {
        if self.item != after || self.times >= REFUSALS_LIMIT {
            *self = Refusals { item: after, times: 0 };
        }
        self.times += 1;
        self.times >= REFUSALS_LIMIT
    }
}

/// Puts an identity on disk in place of the one before, and gives it back.
async fn store(identity: Identity, state: &Path) -> Result<Identity, String> {
    let state = state.to_owned();
    let stored = tokio::task::spawn_blocking(move || identity.store(&state).map(|()| identity)).await;
    stored.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

/// Trusts these roots from now on and keeps them; whether they are others than before. An identity that an operator put
/// into the folder meanwhile is left alone.
fn trust(mut identity: Identity, roots_der: &[Vec<u8>], state: &Path) -> (Identity, Result<bool, IdentityError>) {
    let changed = identity.trust(roots_der);
    let kept = changed.and_then(|changed| {
        if changed && Identity::load(state)?.serial == identity.serial {
            identity.store_roots(state)?;
        }
        Ok(changed)
    });
    (identity, kept)
}

/// A random number that nobody foresees.
pub fn random() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn of_connect(error: ConnectError) -> Ending {
    match error {
        ConnectError::Refused { refusal, .. } | ConnectError::Call(CallError::Refused(refusal)) => {
            Ending::Refused(refusal.to_string())
        }
        error => Ending::Lost(error.to_string()),
    }
}

fn of_call(error: CallError) -> Ending {
    match error {
        CallError::Refused(refusal) => Ending::Refused(refusal.to_string()),
        error => Ending::Lost(error.to_string()),
    }
}

impl Uplink {
    /// Delivers until it is told to leave; then for a moment more what is left.
    pub async fn run(self, leave: CancellationToken) {
        let mut patience = Patience::default();
        let mut memory = Memory::default();
        let mut before = Ending::Left;
        while !leave.is_cancelled() {
            let began = tokio::time::Instant::now();
            let (ending, committed) = self.connect(&mut memory, &leave).await;
            if ending == Ending::Left {
                break;
            }
            if committed || began.elapsed() >= PROOF {
                patience.proved();
                before = Ending::Left;
            }
            let wait = patience.wait(&ending, (self.dice)());
            report(&before, &ending, wait);
            before = ending;
            tokio::select! {
                () = leave.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// One connection, from its beginning to its end; tells also whether anything was committed.
    async fn connect(&self, memory: &mut Memory, leave: &CancellationToken) -> (Ending, bool) {
        let mut greeted = tokio::select! {
            () = leave.cancelled() => return (Ending::Left, false),
            greeted = self.greet() => greeted,
        };
        let mut committed = false;
        loop {
            let mut stream = match greeted {
                Ok(greeted) => match self.begin(greeted).await {
                    Ok(stream) => stream,
                    Err(ending) => return (ending, committed),
                },
                Err(ending) => return (ending, committed),
            };
            let ending = stream.run(self, memory, leave).await;
            committed |= stream.committed;
            // The next stream was there before this one is let go.
            match stream.next.take() {
                Some(next) if ending == Ending::Renewed => greeted = Ok(next),
                _ => return (ending, committed),
            }
        }
    }

    /// What the host proves itself with. Read anew each time: an operator may have given it another one meanwhile. One that
    /// is over is renewed first: its key proves who asks.
    async fn identity(&self) -> Result<Identity, Ending> {
        let identity = Identity::load(&self.state).map_err(|error| Ending::Lost(error.to_string()))?;
        let now = (self.clock)();
        if identity.expires_at > now {
            return Ok(identity);
        }
        let over_for = now.since(identity.expires_at);
        let silent = |_| Ending::Lost(format!("the server said nothing for {} s", CALL_TIMEOUT.as_secs()));
        let renewed = timeout(CALL_TIMEOUT, renew_expired_by(self.dial, &identity)).await.map_err(silent)?;
        let renewed = renewed.map_err(|error| match error {
            ConnectError::Call(CallError::Denied(reason)) => Ending::Refused(reason),
            error => of_connect(error),
        })?;
        if renewed.spiffe_id != identity.spiffe_id {
            return Err(Ending::Lost(format!("the new certificate is for {}", renewed.spiffe_id)));
        }
        let renewed = store(renewed, &self.state).await.map_err(Ending::Lost)?;
        tracing::info!(over_for_hours = over_for.as_secs() / 3600, "certificate renewed after its end");
        Ok(renewed)
    }

    /// Connects, says Hello and hears Welcome. From then on the server hears this host on this stream and on no other.
    async fn greet(&self) -> Result<Greeted, Ending> {
        let identity = self.identity().await?;
        let mut client = AgentClient::connect_by(self.dial, &identity).await.map_err(of_connect)?;
        let facts = self.facts_now().await?;
        let told = Sight::of(&facts, self.outbox.clock_leaps());
        let given = self.outbox.ask(|spool| spool.given()).await.map_err(|error| Ending::Lost(error.to_string()))?;
        let (outgoing, messages) = mpsc::channel(stream::OUTGOING);
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            capabilities: Vec::new(),
            last: given,
            facts,
            sent_at: (self.clock)(),
        };
        let gone = |_| Ending::Lost("the stream ended before it began".to_owned());
        outgoing.send(AgentMessage::Hello(hello).into()).await.map_err(gone)?;
        let silent = |_| Ending::Lost(format!("the server said nothing for {} s", CALL_TIMEOUT.as_secs()));
        let mut incoming = timeout(CALL_TIMEOUT, client.session(messages)).await.map_err(silent)?.map_err(of_call)?;
        let welcome = match timeout(CALL_TIMEOUT, incoming.next()).await.map_err(silent)?.map_err(of_call)? {
            Some(ServerMessage::Welcome(welcome)) if welcome.protocol_version == PROTOCOL_VERSION => welcome,
            Some(ServerMessage::Welcome(Welcome { protocol_version, .. })) => {
                let problem = format!("the server speaks version {protocol_version}, this agent {PROTOCOL_VERSION}");
                return Err(Ending::Lost(problem));
            }
            Some(ServerMessage::Bye(bye)) => {
                return Err(Ending::Bye { reason: bye.reason, after: bye.reconnect_after });
            }
            other => return Err(Ending::Lost(format!("the server began with {other:?} in place of Welcome"))),
        };
        Ok(Greeted { client, outgoing, incoming, identity, welcome, told })
    }

    /// Goes on with what the server has, on a stream that was welcomed.
    async fn begin(&self, greeted: Greeted) -> Result<Stream, Ending> {
        let Greeted { client, outgoing, incoming, identity, welcome, told } = greeted;
        let identity = self.take_roots(identity, welcome.roots_der.clone()).await?;
        self.welcomed(&identity, &welcome).await?;
        Ok(Stream::new(client, outgoing, incoming, identity, &welcome, told, (self.clock, self.dice)))
    }

    /// Trusts the roots that the server hands out, from the next connection on. What cannot be used or kept is told of,
    /// and those before stay.
    async fn take_roots(&self, identity: Identity, roots_der: Vec<Vec<u8>>) -> Result<Identity, Ending> {
        let state = self.state.clone();
        let taken = tokio::task::spawn_blocking(move || trust(identity, &roots_der, &state)).await;
        let (identity, taken) = taken.map_err(|error| Ending::Lost(error.to_string()))?;
        match taken {
            Ok(false) => {}
            Ok(true) => tracing::info!(roots = identity.roots().len(), "the server has other roots now"),
            Err(error) => tracing::warn!(%error, "the roots that the server hands out were not taken"),
        }
        Ok(identity)
    }

    /// What the host says of itself, which may take a while to read.
    async fn facts_now(&self) -> Result<HostFacts, Ending> {
        let facts = Arc::clone(&self.facts);
        tokio::task::spawn_blocking(move || facts()).await.map_err(|error| Ending::Lost(error.to_string()))
    }

    async fn welcomed(&self, identity: &Identity, welcome: &Welcome) -> Result<(), Ending> {
        let walk = welcome.walk.map_or(self.walk, |walk| walk.clamp(*WALK.start(), *WALK.end()));
        self.orders.interval(walk);
        let last = welcome.last;
        let resumed = self.resume_after(last).await?;
        let offset = (self.clock)().as_micros().saturating_sub(welcome.sent_at.as_micros()) / 1000;
        tracing::info!(
            server = %identity.address,
            last = format!("{}/{}", last.epoch, last.seq),
            resumed,
            clock_offset_ms = offset,
            "connected"
        );
        Ok(())
    }

    /// Lets the spool go on after what the server has; asks for the snapshot that it may need for that.
    async fn resume_after(&self, last: BatchNumber) -> Result<&'static str, Ending> {
        let resumed = self.outbox.ask(move |spool| (spool.resume_after(last), spool.wants_snapshot())).await;
        let (resumption, wants_snapshot) = resumed.map_err(|error| Ending::Lost(error.to_string()))?;
        if wants_snapshot {
            self.orders.begin();
        }
        Ok(match resumption {
            Resumption::InOrder => "in order",
            Resumption::After { .. } => "after a gap: the server forgot what it had",
            Resumption::Renumber { .. } => "with other numbers: the server is ahead",
            Resumption::Anew { .. } => "anew: what is held does not follow what the server has",
        })
    }
}

/// Logs what is new; a server that stays away is not told of again and again.
fn report(before: &Ending, ending: &Ending, wait: Duration) {
    let wait_s = format!("{:.1}", wait.as_secs_f64());
    match ending {
        Ending::Left => {}
        Ending::Renewed => tracing::debug!("connecting again with the new certificate"),
        Ending::Retold => tracing::info!("connecting again to say what is not seen now"),
        Ending::Bye { reason, .. } => tracing::info!(reason, wait_s, "the server ended the stream"),
        Ending::Refused(reason) if !matches!(before, Ending::Refused(_)) => tracing::error!(
            reason,
            "the server refuses this host's certificate; to let it report again, enrol it anew: \
             fleetsock-agent enroll --force --join ... (the agent need not be restarted)"
        ),
        Ending::Lost(reason) if !matches!(before, Ending::Lost(_)) => {
            tracing::warn!(reason, wait_s, "no connection to the server; what is observed is kept");
        }
        Ending::Refused(reason) | Ending::Lost(reason) => tracing::debug!(reason, wait_s, "still no connection"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_given_up_when_it_was_refused_three_times_in_a_row() {
        let mut refusals = Refusals::default();
        let number = |seq| BatchNumber { epoch: 1, seq };
        let noted: Vec<bool> = [1, 1, 2, 2, 2, 3, 3, 3].map(|seq| refusals.note(number(seq))).to_vec();
        assert_eq!(noted, [false, false, false, false, true, false, false, true]);
    }
}
