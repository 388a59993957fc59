//! A running agent: one thread that observes, one task that delivers, and their end.

use std::{path::PathBuf, sync::Arc};

use fleetsock_proto::identity::{Identity, IdentityError};
use tokio_util::sync::CancellationToken;

use crate::{
    capture::{CaptureError, Walker},
    config::Config,
    facts::facts,
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
    let facts = move || {
        let mut facts = facts(env!("CARGO_PKG_VERSION"), netns);
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
    let observer = Observer {
        walker,
        processes: Processes::open()?,
        boot_id: own.boot_id,
        outbox: Arc::clone(&outbox),
        clock,
        schedule: Schedule::new(config.walk, config.referee),
    };
    let uplink =
        Uplink { state, outbox, orders: Arc::clone(&orders), walk: config.walk, facts: Arc::new(facts), clock };
    let leave = CancellationToken::new();
    let (observed, ()) = tokio::join!(observe(observer, &orders, &stop, ready, &leave), uplink.run(leave.clone()));
    observed
}

/// Observes until `stop`, and lets the uplink leave when the last walk is in the spool.
async fn observe(
    observer: Observer,
    orders: &Arc<Orders>,
    stop: &CancellationToken,
    ready: impl FnOnce() + Send + 'static,
    leave: &CancellationToken,
) -> Result<(), RunError> {
    let _leaves = leave.clone().drop_guard();
    let told = Arc::clone(orders);
    let mut observing = tokio::task::spawn_blocking(move || observer.run(&told, ready));
    let broken = |problem| RunError::Broken { part: "observer", problem };
    tokio::select! {
        () = stop.cancelled() => {
            orders.stop();
            observing.await.map_err(|error| broken(error.to_string()))
        }
        ended = &mut observing => {
            Err(broken(ended.err().map_or_else(|| "it ended".to_owned(), |error| error.to_string())))
        }
    }
}
