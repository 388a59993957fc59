//! A running agent: one thread that observes, one task that delivers, and their end.

use std::{path::PathBuf, sync::Arc};

use fleetsock_proto::identity::{Identity, IdentityError};
use tokio_util::sync::CancellationToken;

use crate::{
    capture::{CaptureError, Walker},
    chronicle::{Chronicle, Reader},
    config::Config,
    events::Events,
    facts::{Hearing, facts},
    observer::{Clock, Observer, orders::Orders, schedule::Schedule},
    outbox::Outbox,
    owners::{OwnersError, Processes},
    spool::{Spool, SpoolError},
    uplink::Uplink,
};

/// What an agent is made of.
#[derive(Debug)]
pub struct Foundation {
    /// Folder of the identity and the spool.
    pub state: PathBuf,
    /// Its settings.
    pub config: Config,
    /// The time.
    pub clock: Clock,
}

/// Why an agent did not run, or does not any more.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The host has no identity.
    #[error("this host is not enrolled ({} does not exist): fleetsock-agent enroll --join ...", .0.display())]
    NotEnrolled(PathBuf),
    /// The identity cannot be used.
    #[error(transparent)]
    Identity(IdentityError),
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The kernel does not tell of sockets.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The processes cannot be looked at.
    #[error(transparent)]
    Owners(#[from] OwnersError),
    /// A part of the agent broke.
    #[error("the {part} failed: {problem}")]
    Broken {
        /// Which.
        part: &'static str,
        /// How.
        problem: String,
    },
}

fn identity(state: &std::path::Path) -> Result<Identity, RunError> {
    Identity::load(state).map_err(|error| match error {
        IdentityError::File(file) if file.is_missing() => {
            RunError::NotEnrolled(state.join(crate::enrolment::IDENTITY_FILE))
        }
        error => RunError::Identity(error),
    })
}

/// Runs an agent until `stop`; calls `ready` after the first walk.
pub async fn run(
    foundation: Foundation,
    stop: CancellationToken,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), RunError> {
    let Foundation { state, config, clock } = foundation;
    let identity = identity(&state)?;
    let spool = Spool::open(&state, config.spool_bytes, clock())?;
    let walker = Walker::open()?;
    let netns = walker.netns();
    let name = config.name.clone();
    let (hearing, listening) = listen()?;
    let facts = move || {
        let mut facts = facts(env!("CARGO_PKG_VERSION"), netns, &hearing);
        if let Some(name) = &name {
            facts.name = name.as_str().to_owned();
        }
        facts
    };
    let own = facts();
    tracing::info!(
        host = own.name,
        tier = %own.tier,
        tier_reason = own.tier_reason,
        server = %identity.address,
        identity = %identity.spiffe_id,
        "observing"
    );
    let outbox = Arc::new(Outbox::new(spool));
    let orders = Arc::new(Orders::default());
    let (chronicle, reader) = listening.unzip();
    let observer = Observer {
        walker,
        processes: Processes::open()?,
        chronicle: chronicle.clone(),
        reach: config.reach,
        boot_id: own.boot_id,
        outbox: Arc::clone(&outbox),
        clock,
        schedule: Schedule::new(config.walk, config.referee),
    };
    let uplink =
        Uplink { state, outbox, orders: Arc::clone(&orders), walk: config.walk, facts: Arc::new(facts), clock };
    let leave = CancellationToken::new();
    let hearing = chronicle.clone().zip(reader).map(|(chronicle, reader)| {
        std::thread::Builder::new().name("events".to_owned()).spawn(move || chronicle.run(reader))
    });
    let hearing = hearing.transpose().map_err(|error| broken("reader of events", error))?;
    let (observed, ()) = tokio::join!(observe(observer, &orders, &stop, ready, &leave), uplink.run(leave.clone()));
    if let Some((chronicle, hearing)) = chronicle.zip(hearing) {
        chronicle.stop();
        let joined = tokio::task::spawn_blocking(move || hearing.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            return Err(broken("reader of events", "it panicked"));
        }
    }
    observed
}

fn broken(part: &'static str, problem: impl ToString) -> RunError {
    RunError::Broken { part, problem: problem.to_string() }
}

/// What events tell, and who reads them.
type Listening = (Arc<Chronicle>, Reader);

/// Listens to the kernel, where it lets us.
fn listen() -> Result<(Hearing, Option<Listening>), RunError> {
    let events = match Events::open() {
        Ok(events) => events,
        Err(error) => return Ok((Hearing::Nothing(error.to_string()), None)),
    };
    tracing::info!(ring_bytes = events.ring_bytes(), "listening to events");
    let chronicle = Chronicle::new().map_err(|error| broken("reader of events", error))?;
    Ok((Hearing::Events, Some((Arc::new(chronicle), Reader::new(events, Processes::open()?)))))
}

/// Ends the observer's thread when nobody waits for it any more.
struct StopOnDrop<'a>(&'a Orders);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Observes until `stop`, and lets the uplink leave when the last walk is in the spool.
async fn observe(
    observer: Observer,
    orders: &Arc<Orders>,
    stop: &CancellationToken,
    ready: impl FnOnce() + Send + 'static,
    leave: &CancellationToken,
) -> Result<(), RunError> {
    // However this ends, also by being dropped: the thread ends and the uplink leaves.
    let _leaves = leave.clone().drop_guard();
    let _stops = StopOnDrop(orders);
    let told = Arc::clone(orders);
    let mut observing = tokio::task::spawn_blocking(move || observer.run(&told, ready));
    tokio::select! {
        () = stop.cancelled() => {
            orders.stop();
            observing.await.map_err(|error| broken("observer", error))
        }
        ended = &mut observing => {
            Err(broken("observer", ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string())))
        }
    }
}
