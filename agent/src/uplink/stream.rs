//! One stream: the loop around [`Delivery`].

use std::{collections::VecDeque, time::Duration};

use fleetsock_proto::{
    client::{AgentClient, CallError, ServerMessages},
    identity::{Identity, Key},
    stream::{AgentMessage, BatchNumber, Bye, Heartbeat, Outgoing, Roots, ServerMessage, Welcome},
    time::Timestamp,
};
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    CALL_TIMEOUT, Dice, Greeted, Memory, Sight, Uplink,
    delivery::{Delivery, Reaction},
    of_call,
    patience::Ending,
    renewal, store,
};
use crate::{observer::Clock, spool::Item};

/// Messages that wait for the network.
pub(super) const OUTGOING: usize = 2;
/// The bounds of the time between two heartbeats.
const HEARTBEAT: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(300);
/// How long the server may leave something unanswered before the connection counts as lost.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How often a snapshot is sent while a stream lives, so that a difference between both tables cannot stay.
const SNAPSHOT_EVERY: Duration = Duration::from_secs(3600);
/// How long a stream lives at least before it ends because the host has something else to say of itself: that is said at
/// the beginning of a stream.
const RETELL_PAUSE: Duration = Duration::from_secs(10);
/// How long what is left is delivered after the agent was told to stop.
const LEAVE_LIMIT: Duration = Duration::from_secs(1);

/// What happens on a stream.
enum Event {
    /// The server said something, or nothing more.
    Heard(Result<Option<ServerMessage>, CallError>),
    /// There is room for a message, or nobody takes any.
    Room,
    /// The observer put something into the spool.
    Appended,
    /// A heartbeat is due.
    Beat,
    /// The certificate is due.
    Renew,
    /// A snapshot is due.
    Snapshot,
    /// The agent stops.
    Leave,
    /// And the time for what is left is over.
    TimeIsUp,
}

/// A stream that was welcomed.
pub(super) struct Stream {
    client: AgentClient,
    outgoing: mpsc::Sender<Outgoing>,
    incoming: ServerMessages,
    identity: Identity,
    delivery: Delivery,
    /// What is said next.
    say: Option<Item>,
    heartbeat: Option<Heartbeat>,
    /// Nothing more was in the spool when it was last asked.
    idle: bool,
    /// Batches on the way, and the walk before each.
    on_the_way: VecDeque<(BatchNumber, Timestamp)>,
    /// Up to when the server knows everything, once that is known.
    delivered_until: Option<Timestamp>,
    beats: Interval,
    /// What was said of what is seen, and when it is to be said again if it is something else by then.
    told: Sight,
    retell_at: Instant,
    renew_at: Instant,
    snapshot_at: Instant,
    heard_at: Instant,
    /// The end of the time for what is left.
    leaving: Option<Instant>,
    /// The last heartbeat was made.
    farewell: bool,
    /// The last number that the server has.
    last: BatchNumber,
    /// Whether anything was committed.
    pub(super) committed: bool,
    /// The stream that takes the place of this one.
    pub(super) next: Option<Greeted>,
}

impl Stream {
    pub(super) fn new(
        client: AgentClient,
        outgoing: mpsc::Sender<Outgoing>,
        incoming: ServerMessages,
        identity: Identity,
        welcome: &Welcome,
        told: Sight,
        (clock, dice): (Clock, Dice),
    ) -> Stream {
        let now = Instant::now();
        let mut beats = interval(welcome.heartbeat.clamp(*HEARTBEAT.start(), *HEARTBEAT.end()));
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let due_in = renewal::due_in(identity.begins_at, identity.expires_at, clock(), dice());
        let hastened = renewal::hastened(welcome.renewal, identity.begins_at, dice());
        let renew_in = hastened.map_or(due_in, |hastened| hastened.min(due_in));
        Stream {
            client,
            outgoing,
            incoming,
            delivery: Delivery::new(welcome.last, welcome.credit),
            say: None,
            heartbeat: None,
            idle: false,
            on_the_way: VecDeque::new(),
            delivered_until: None,
            beats,
            told,
            retell_at: now + RETELL_PAUSE,
            renew_at: now + renew_in,
            snapshot_at: now + SNAPSHOT_EVERY,
            heard_at: now,
            leaving: None,
            farewell: false,
            last: welcome.last,
            committed: false,
            next: None,
            identity,
        }
    }

    /// Talks until one side ends it.
    pub(super) async fn run(&mut self, uplink: &Uplink, memory: &mut Memory, leave: &CancellationToken) -> Ending {
        let Err(ending) = self.talk(uplink, memory, leave).await;
        if ending == Ending::Left {
            self.hang_up().await;
        }
        ending
    }

    /// Says that nothing more comes, and waits until the server has heard it and everything before.
    async fn hang_up(&mut self) {
        let deadline = self.leaving.unwrap_or_else(Instant::now);
        // Dropping the sender in use ends our half of the stream.
        self.outgoing = mpsc::channel(1).0;
        while let Ok(Ok(Some(_))) = timeout_at(deadline, self.incoming.next()).await {}
    }

    async fn talk(
        &mut self,
        uplink: &Uplink,
        memory: &mut Memory,
        leave: &CancellationToken,
    ) -> Result<std::convert::Infallible, Ending> {
        loop {
            self.fetch(uplink).await?;
            if self.leaving.is_some() && self.idle && self.delivery.is_settled() && self.heartbeat.is_none() {
                if self.farewell {
                    return Err(Ending::Left);
                }
                // The last sign of life says up to when nothing was missed.
                self.farewell = true;
                self.beat(uplink, memory).await?;
                continue;
            }
            match self.next_event(uplink, leave).await {
                Event::Heard(message) => self.hear(uplink, memory, message).await?,
                Event::Room => self.send(uplink)?,
                Event::Appended => self.idle = false,
                Event::Beat => self.beat(uplink, memory).await?,
                Event::Renew => self.renew(uplink).await?,
                Event::Snapshot => {
                    uplink.orders.snapshot();
                    self.snapshot_at += SNAPSHOT_EVERY;
                }
                Event::Leave => {
                    self.leaving = Some(Instant::now() + LEAVE_LIMIT);
                    self.idle = false;
                }
                Event::TimeIsUp => return Err(Ending::Left),
            }
        }
    }

    async fn next_event(&mut self, uplink: &Uplink, leave: &CancellationToken) -> Event {
        let waiting = self.say.is_some() || self.heartbeat.is_some();
        let leaving = self.leaving.is_some();
        tokio::select! {
            message = self.incoming.next() => Event::Heard(message),
            // This is the only sender: room that there is once stays until it is used.
            _ = self.outgoing.reserve(), if waiting => Event::Room,
            () = uplink.outbox.appended(), if self.idle => Event::Appended,
            _ = self.beats.tick() => Event::Beat,
            () = sleep_until(self.renew_at), if !leaving => Event::Renew,
            () = sleep_until(self.snapshot_at) => Event::Snapshot,
            () = leave.cancelled(), if !leaving => Event::Leave,
            () = sleep_until(self.leaving.unwrap_or(self.snapshot_at)), if leaving => Event::TimeIsUp,
        }
    }

    /// Sends what waits, a heartbeat first. After the clock was set that waits for another Hello, by which the server
    /// measures it.
    fn send(&mut self, uplink: &Uplink) -> Result<(), Ending> {
        if uplink.outbox.clock_leaps() != self.told.clock_leaps {
            return Err(Ending::Retold);
        }
        let message = match (self.heartbeat.take(), self.say.take()) {
            (Some(heartbeat), item) => {
                self.say = item;
                AgentMessage::Heartbeat(heartbeat).into()
            }
            (None, Some(item)) => {
                self.delivery.sent(&item);
                match item {
                    Item::Batch(batch) => {
                        self.on_the_way.push_back((batch.number, batch.since));
                        self.delivered_until.get_or_insert(batch.since);
                        Outgoing::Batch(batch)
                    }
                    Item::Gap(gap) => AgentMessage::Gap(gap).into(),
                }
            }
            (None, None) => return Ok(()),
        };
        self.outgoing.try_send(message).map_err(|_| Ending::Lost("the connection broke".to_owned()))
    }

    /// Takes what is next out of the spool, when it may be sent and is not known to be nothing.
    async fn fetch(&mut self, uplink: &Uplink) -> Result<(), Ending> {
        let Some(position) = self.delivery.wants_after().filter(|_| self.say.is_none() && !self.idle) else {
            return Ok(());
        };
        // Read before the spool is asked: what that walk found is there by then.
        let observed = uplink.outbox.observed_until();
        let asked = uplink.outbox.ask(move |spool| (spool.next_after(position), spool.wants_snapshot()));
        let (next, begins) = asked.await.map_err(lost)?;
        match next {
            Some(item) if self.delivery.admits(&item) => self.say = Some(item),
            // A gap waits until what was sent before it is answered; the answer brings us back here.
            Some(_) => {}
            None => {
                self.idle = true;
                // Before its first snapshot a numbering says nothing, also not that all before it is known: the server may
                // have forgotten that, and finds the time since what it has by the snapshot.
                if !begins && self.delivery.is_settled() {
                    self.delivered_until = observed;
                }
            }
        }
        Ok(())
    }

    async fn hear(
        &mut self,
        uplink: &Uplink,
        memory: &mut Memory,
        message: Result<Option<ServerMessage>, CallError>,
    ) -> Result<(), Ending> {
        self.heard_at = Instant::now();
        let reaction = match message {
            Ok(Some(ServerMessage::Ack(upto))) => self.delivery.acknowledged(upto),
            Ok(Some(ServerMessage::Nack(nack))) => {
                tracing::warn!(reason = nack.reason, "the server did not store a batch");
                self.delivery.refused(&nack)
            }
            Ok(Some(ServerMessage::Credit(batches))) => self.delivery.credited(batches),
            Ok(Some(ServerMessage::Bye(Bye { reason, reconnect_after: after }))) => {
                return Err(Ending::Bye { reason, after });
            }
            Ok(Some(ServerMessage::Roots(roots))) => return self.change_roots(uplink, roots).await,
            Ok(Some(ServerMessage::Resync(reason))) => {
                tracing::warn!(reason, "the server has other sockets as open than there are: a snapshot follows");
                uplink.orders.snapshot();
                return Ok(());
            }
            Ok(Some(ServerMessage::Welcome(_))) => return Err(Ending::Lost("a second Welcome".to_owned())),
            Ok(None) => return Err(Ending::Lost("the server closed the stream".to_owned())),
            Err(error) => return Err(self.broken(uplink, memory, error).await),
        };
        self.react(uplink, reaction).await
    }

    async fn react(&mut self, uplink: &Uplink, reaction: Reaction) -> Result<(), Ending> {
        match reaction {
            Reaction::Nothing => {}
            Reaction::Forget { upto, gap } => {
                self.committed = true;
                self.last = self.last.max(upto);
                while self.on_the_way.front().is_some_and(|(number, _)| *number <= upto) {
                    self.on_the_way.pop_front();
                }
                if let Some((_, since)) = self.on_the_way.front() {
                    self.delivered_until = Some(*since);
                }
                let forget = move |spool: &mut crate::spool::Spool| {
                    spool.acknowledge(upto);
                    if let Some(gap) = gap {
                        spool.forget(&gap);
                    }
                };
                uplink.outbox.ask(forget).await.map_err(lost)?;
                if gap.is_some() {
                    // The server's table lacks what was in the gap.
                    tracing::warn!(?gap, "the server was told of a gap; a snapshot follows");
                    uplink.orders.snapshot();
                }
            }
            Reaction::Resume(last) => {
                self.go_back(last);
                let resumed = uplink.resume_after(last).await?;
                tracing::info!(last = format!("{}/{}", last.epoch, last.seq), resumed, "sending again");
            }
            Reaction::StartOver(last) => {
                self.go_back(last);
                tracing::warn!("a new numbering begins: the server does not take the one before");
                uplink.outbox.ask(move |spool| spool.start_over(last)).await.map_err(lost)?;
                uplink.orders.begin();
            }
        }
        Ok(())
    }

    fn go_back(&mut self, last: BatchNumber) {
        self.delivery.resumed(last);
        self.say = None;
        self.idle = false;
        self.on_the_way.clear();
        self.delivered_until = None;
    }

    /// The stream broke. When the server says that what was sent breaks the contract, sending it again and again
    /// would stop everything behind it.
    async fn broken(&self, uplink: &Uplink, memory: &mut Memory, error: CallError) -> Ending {
        let to_blame = matches!(error, CallError::Invalid(_) | CallError::TooMuch(_)) && !self.delivery.is_settled();
        if to_blame && memory.refusals.note(self.last) {
            let last = self.last;
            tracing::error!(%error, after = format!("{}/{}", last.epoch, last.seq), "given up: the server refuses it");
            let given_up = uplink.outbox.ask(move |spool| spool.give_up_after(last)).await;
            if let Err(error) = given_up {
                return lost(error);
            }
        }
        of_call(error)
    }

    async fn beat(&mut self, uplink: &Uplink, memory: &mut Memory) -> Result<(), Ending> {
        if !self.delivery.is_settled() && self.heard_at.elapsed() > ANSWER_PATIENCE {
            return Err(Ending::Lost(format!("no answer for {} s", ANSWER_PATIENCE.as_secs())));
        }
        if self.idle {
            self.idle = false;
            self.fetch(uplink).await?;
        }
        self.retell(uplink).await?;
        // Never later than what is delivered: the server counts the time up to this as observed.
        if let Some(observed_until) = self.delivered_until {
            let cost = memory.meter.read(uplink.outbox.losses().total());
            let tcp_counts = uplink.outbox.tcp_counts();
            self.heartbeat = Some(Heartbeat { sent_at: (uplink.clock)(), observed_until, cost, tcp_counts });
        }
        Ok(())
    }

    /// Ends the stream when something else is to be said of what is seen, and nothing is on the way.
    async fn retell(&mut self, uplink: &Uplink) -> Result<(), Ending> {
        if self.leaving.is_some() || Instant::now() < self.retell_at || !self.delivery.is_settled() {
            return Ok(());
        }
        self.retell_at = Instant::now() + RETELL_PAUSE;
        let is_told = Sight::of(&uplink.facts_now().await?, uplink.outbox.clock_leaps()) == self.told;
        if is_told { Ok(()) } else { Err(Ending::Retold) }
    }

    /// Trusts other roots from now on, and gets a certificate before its time when that is wanted.
    async fn change_roots(&mut self, uplink: &Uplink, Roots { roots_der, renewal }: Roots) -> Result<(), Ending> {
        let identity = self.identity.duplicate().map_err(|error| Ending::Lost(error.to_string()))?;
        self.identity = uplink.take_roots(identity, roots_der).await?;
        if let Some(wait) = renewal::hastened(renewal, self.identity.begins_at, (uplink.dice)()) {
            self.renew_at = self.renew_at.min(Instant::now() + wait);
        }
        Ok(())
    }

    /// Gets a certificate for a new key, and a stream that speaks with it, while this one is still there. The old one is
    /// used until the new one is on disk: its first use ends the old.
    async fn renew(&mut self, uplink: &Uplink) -> Result<(), Ending> {
        match self.try_renew(uplink).await {
            Ok(()) => {
                match uplink.greet().await {
                    Ok(next) => self.next = Some(next),
                    Err(ending) => {
                        tracing::info!(?ending, "no second stream with the new certificate: one after the other")
                    }
                }
                Err(Ending::Renewed)
            }
            Err(problem) => {
                tracing::warn!(problem, "the certificate was not renewed; it is tried again");
                self.renew_at = Instant::now() + renewal::RETRY;
                Ok(())
            }
        }
    }

    async fn try_renew(&mut self, uplink: &Uplink) -> Result<(), String> {
        let key = Key::generate().map_err(|error| error.to_string())?;
        let request = key.request_der().map_err(|error| error.to_string())?;
        let renewed = timeout(CALL_TIMEOUT, self.client.renew(request))
            .await
            .map_err(|_| format!("the server did not answer within {} s", CALL_TIMEOUT.as_secs()))?
            .map_err(|error| error.to_string())?;
        let mut identity = self.identity.renewed(renewed.chain_der, key).map_err(|error| error.to_string())?;
        if identity.spiffe_id != self.identity.spiffe_id {
            return Err(format!("the new certificate is for {}", identity.spiffe_id));
        }
        identity.trust(&renewed.roots_der).map_err(|error| error.to_string())?;
        let expires_in = identity.expires_at.since((uplink.clock)());
        store(identity, &uplink.state).await?;
        tracing::info!(expires_in_hours = expires_in.as_secs() / 3600, "certificate renewed");
        Ok(())
    }
}

fn lost(error: tokio::task::JoinError) -> Ending {
    Ending::Lost(format!("the spool failed: {error}"))
}
