//! A running agent: one thread that observes, one task that delivers, and their end.

use std::{path::PathBuf, sync::Arc};

use fleetsock_proto::{
    client::dial_tcp,
    identity::{Identity, IdentityError},
};
use tokio_util::sync::CancellationToken;

use self::sources::{Listeners, Sources};
use crate::{
    capture::CaptureError,
    config::Config,
    facts::facts,
    namespaces::{NamespacesError, Pass},
    observer::{Clock, Observer, orders::Orders, schedule::Schedule},
    outbox::Outbox,
    owners::OwnersError,
    remarks::{Remarks, Topic},
    restraint::Restraint,
    spool::{Spool, SpoolError},
    table::{TABLE_SOCKETS_LIMIT, Table},
    uplink::{Uplink, random},
};

mod sources;

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
    /// The network namespaces cannot be looked at.
    #[error(transparent)]
    Namespaces(#[from] NamespacesError),
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
///
/// Gives up the capabilities of the calling thread that are of no use to a running agent; its own threads never have them.
pub async fn run(
    foundation: Foundation,
    stop: CancellationToken,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), RunError> {
    let Foundation { state, config, clock } = foundation;
    let identity = identity(&state)?;
    let spool = Spool::open(&state, config.spool_bytes, clock())?;
    let sources = Sources::open(&config, clock)?;
    let Sources { surveyor, mut namespaces, events, departures, ledger, hearing, processes, sockets } = sources;
    let remarks = Arc::new(Remarks::default());
    remarks.make(Topic::Owners, processes.remark());
    if let Some(namespaces) = &mut namespaces {
        // Before the host says what it does not see.
        namespaces.refresh(Pass::All)?;
        remarks.make(Topic::Namespaces, namespaces.unseen());
    }
    let (name, netns, said) = (config.name.clone(), surveyor.netns(), Arc::clone(&remarks));
    let facts = move || {
        let mut facts = facts(env!("CARGO_PKG_VERSION"), netns, &hearing, said.all());
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
    let mut listeners = Listeners::default();
    let observer = Observer {
        surveyor,
        namespaces,
        processes,
        chronicle: events.as_ref().map(|(chronicle, _)| Arc::clone(chronicle)),
        departures: departures.clone(),
        ledger,
        table: Table::with_limit(sockets.min(TABLE_SOCKETS_LIMIT)),
        boot_id: own.boot_id,
        outbox: Arc::clone(&outbox),
        remarks,
        clock,
        schedule: Schedule::new(config.walk, config.referee).proving_every(config.digest),
        restraint: Restraint::new(config.cpu_percent),
    };
    if let Some((chronicle, reader)) = events {
        listeners.read(&chronicle, reader)?;
    }
    if let Some(departures) = &departures {
        listeners.hear(departures)?;
    }
    let uplink = Uplink {
        state,
        outbox,
        orders: Arc::clone(&orders),
        walk: config.walk,
        facts: Arc::new(facts),
        clock,
        dial: dial_tcp,
        dice: random,
    };
    let leave = CancellationToken::new();
    let (observed, ()) = tokio::join!(observe(observer, &orders, &stop, ready, &leave), uplink.run(leave.clone()));
    let ended = tokio::task::spawn_blocking(move || listeners.end()).await;
    observed.and(ended.unwrap_or_else(|error| Err(broken("reader of events", error))))
}

fn broken(part: &'static str, problem: impl ToString) -> RunError {
    RunError::Broken { part, problem: problem.to_string() }
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
