//! A running server: what is started, what it is given, and how it ends.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use fleetsock_proto::wire::{
    admin_server::AdminServer, enrollment_server::EnrollmentServer, inventory_server::InventoryServer,
};
use rustix::{
    fs::Mode,
    net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    time::Instant,
};
use tokio_stream::{
    StreamExt,
    wrappers::{ReceiverStream, UnixListenerStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::{Server, server::Router};
use tonic_health::pb::health_server::HealthServer;
use tower::layer::util::{Identity, Stack};

use crate::{
    acceptor::{Acceptor, Listener, Shown},
    api::{
        Clock,
        admin::AdminService,
        agent::{AgentCalls, AgentService},
        answering::Answering,
        enrollment::EnrollmentService,
        health::HealthService,
        inventory::InventoryService,
        roots::Exchange,
    },
    authority::Authority,
    backup::{Backups, Fleet},
    config::Config,
    health::{Health, Sources, port},
    history::{History, Registry},
    ledger::{Keeper, Ledger},
    live::{Answers, Live},
    metrics::Meters,
    peer::{Caller, Peer, PeerStream},
    policy::Policy,
    rates::Rates,
    refusals::Refusals,
    warnings::Warnings,
};

/// How long connections may take to end after the streams have.
const GRACE: Duration = Duration::from_secs(5);
/// Local connections that wait to be accepted.
const LOCAL_BACKLOG: i32 = 128;
/// HTTP/2 pings, and how long one may stay unanswered.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));
/// Largest compressed header list, bytes.
const HEADER_LIST_BYTES: u32 = 8 * 1024;
/// Largest message of a newcomer, of an agent, of an operator, bytes.
const MESSAGE_BYTES: (usize, usize, usize) = (64 * 1024, 256 * 1024, 1024 * 1024);
/// Streams at once on a connection of a newcomer, of an agent, of an operator.
const STREAMS: (u32, u32, u32) = (2, 8, 32);
/// Bytes that a peer may send before they are read, of one stream and of a connection. h2 keeps each DATA frame by itself,
/// so that many of one byte take hundreds of times as much.
const WINDOW_BYTES: (u32, u32) = (64 * 1024, 128 * 1024);
/// How long the connection of a newcomer may live, and how long its last call may then take: enrolment is one question.
const NEWCOMER_AGE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// Resets by our own doing before a connection ends (RUSTSEC-2024-0003), and of streams that were never accepted.
const RESETS: (usize, usize) = (64, 20);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The TLS settings cannot be made.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The Unix socket cannot be made.
    #[error("{}: {source}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// gRPC failed.
    #[error("gRPC: {0}")]
    Grpc(#[from] tonic::transport::Error),
}

/// What a server stands on.
#[derive(Debug)]
pub struct Foundation<S> {
    /// Its settings.
    pub config: Config,
    /// Its CA.
    pub authority: Arc<Authority>,
    /// Its history, which also knows the certificates in use.
    pub store: Arc<S>,
    /// Where it is told how the server is, over plain HTTP; nowhere without.
    pub health: Option<TcpListener>,
    /// The time.
    pub clock: Clock,
}

/// Serves until told to stop; returns when everything that was begun is over.
pub async fn serve<S: History + Registry>(
    foundation: Foundation<S>,
    listener: impl Listener,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let meters = Meters::default();
    let (acceptor, incoming) = Acceptor::new(&foundation.authority, &foundation.config.limits, meters.clone())?;
    let local = local_socket(&foundation.config.admin_socket)?;
    let (tasks, live) = (TaskTracker::new(), Arc::new(Live::default()));
    let sources = Sources {
        authority: Arc::clone(&foundation.authority),
        history: Arc::clone(&foundation.store) as _,
        live: Arc::clone(&live),
        connections: acceptor.connections(),
        stop: stop.clone(),
        clock: foundation.clock,
    };
    let health = Arc::new(Health::new(sources, &meters));
    let watched = Watched { meters, health: Arc::clone(&health) };
    let Services { agents, operators, newcomers, asking, refusals, keeper } =
        services(&foundation, &tasks, &live, acceptor.shown(), &watched);
    let Foundation { config, authority, health: watchers, clock, .. } = foundation;

    let drain = CancellationToken::new();
    let serving = async {
        let served = tokio::try_join!(
            agents.serve_with_incoming_shutdown(ReceiverStream::new(incoming.agents), drain.cancelled()),
            operators.serve_with_incoming_shutdown(ReceiverStream::new(incoming.operators), drain.cancelled()),
            newcomers.serve_with_incoming_shutdown(ReceiverStream::new(incoming.newcomers), drain.cancelled()),
            asking.serve_with_incoming_shutdown(local.map(local_peer), drain.cancelled()),
        );
        // Also when one of them failed: it takes the others with it.
        drain.cancel();
        served.map(drop)
    };
    // Streams end with a word to each agent; connections then have GRACE to follow.
    let deadline = async {
        stop.cancelled().await;
        live.stop();
        drain.cancel();
        tokio::time::sleep(GRACE).await;
    };
    let serving = async {
        tokio::select! {
            served = serving => served,
            () = deadline => Ok(()),
        }
    };
    let renewing = renew(authority, acceptor.shown(), config.renewal_check, clock, drain.clone());
    // It says that the server is stopping until nothing is served any more.
    let over = CancellationToken::new();
    let watching = async {
        if let Some(watchers) = watchers {
            port::serve(watchers, health, over.clone()).await;
        }
    };
    let serving = async {
        let (served, (), ()) = tokio::join!(serving, acceptor.run(listener, drain.clone()), renewing);
        over.cancel();
        served
    };
    let (served, (), ()) = tokio::join!(serving, watching, refusals.run(over.clone()));
    live.stop();
    tasks.close();
    tasks.wait().await;
    keeper.close().await;
    remove_socket(&config.admin_socket);
    Ok(served?)
}

/// What is served, by how it is reached.
struct Services {
    agents: Router<Stack<Policy, Identity>>,
    operators: Router<Stack<Policy, Identity>>,
    newcomers: Router<Stack<Policy, Identity>>,
    /// By the Unix socket.
    asking: Router<Stack<Policy, Identity>>,
    refusals: Arc<Refusals>,
    /// To be closed when nothing is served any more.
    keeper: Keeper,
}

/// What watches the services.
struct Watched {
    meters: Meters,
    health: Arc<Health>,
}

fn services<S: History + Registry>(
    foundation: &Foundation<S>,
    tasks: &TaskTracker,
    live: &Arc<Live>,
    shown: Shown,
    Watched { meters, health }: &Watched,
) -> Services {
    let Foundation { config, authority, store, clock, .. } = foundation;
    let registry: Arc<dyn Registry> = Arc::clone(store) as _;
    let history: Arc<dyn History> = Arc::clone(store) as _;
    let warnings = Warnings::new(Arc::clone(&registry));
    let rates = Arc::new(Rates::new(&config.limits.rates));
    let (ledger, keeper) = Ledger::open(Arc::clone(&registry));
    let refusals = Refusals::new(Arc::clone(&ledger), *clock);
    let policy = Policy::new(
        Arc::clone(&registry),
        Arc::clone(&rates),
        Arc::clone(&warnings),
        Arc::clone(&refusals),
        meters.clone(),
        Arc::clone(authority),
        *clock,
    );
    let answers = Arc::new(Answers::default());
    let answering = Answering {
        ledger,
        answers: Arc::clone(&answers),
        registry: Arc::clone(&registry),
        tasks: tasks.clone(),
        patience: config.limits.question,
        clock: *clock,
    };
    let agents = AgentService {
        authority: Arc::clone(authority),
        history: Arc::clone(&history),
        registry: Arc::clone(&registry),
        live: Arc::clone(live),
        rates,
        warnings,
        tasks: tasks.clone(),
        heartbeat: config.heartbeat,
        meters: meters.clone(),
        clock: *clock,
    };
    let backups = Arc::new(Backups::new(Arc::clone(&history), config, Fleet::of(authority)));
    let exchange =
        Exchange::new(Arc::clone(authority), Arc::clone(&registry), Arc::clone(live), shown, config.renewable, *clock);
    let inventory = InventoryService {
        history,
        answering: answering.clone(),
        authority: Arc::clone(authority),
        health: Arc::clone(health),
    };
    let admin = AdminService {
        authority: Arc::clone(authority),
        registry: Arc::clone(&registry),
        live: Arc::clone(live),
        answers,
        backups,
        answering,
        exchange,
        address: config.address.clone(),
        clock: *clock,
    };
    let enrollment =
        EnrollmentService { authority: Arc::clone(authority), registry, renewable: config.renewable, clock: *clock };
    let agents = AgentCalls::new(agents, MESSAGE_BYTES.1);
    let inventory = InventoryServer::new(inventory).max_decoding_message_size(MESSAGE_BYTES.2);
    let admin = AdminServer::new(admin).max_decoding_message_size(MESSAGE_BYTES.2);
    let enrollment = EnrollmentServer::new(enrollment).max_decoding_message_size(MESSAGE_BYTES.0);
    let newcomers = builder(&policy, STREAMS.0)
        .max_connection_age(NEWCOMER_AGE.0)
        .max_connection_age_grace(NEWCOMER_AGE.1)
        .add_service(enrollment);
    let agents = builder(&policy, STREAMS.1).add_service(agents);
    let asking = builder(&policy, STREAMS.2)
        .add_service(inventory)
        .add_service(admin)
        .add_service(HealthServer::new(HealthService::new(Arc::clone(health), tasks.clone())));
    Services { agents, operators: asking.clone(), newcomers, asking, refusals, keeper }
}

/// Sees to it that the server's own certificate is never over. Connections that are there go on with the one before.
async fn renew(authority: Arc<Authority>, shown: Shown, every: Duration, clock: Clock, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(every) => {}
        }
        let exchanged = match authority.renew_server_leaf(clock()) {
            Ok(None) => continue,
            Ok(Some(leaf)) => shown.exchange(&authority).map(|()| leaf).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match exchanged {
            Ok(leaf) => {
                tracing::info!(expires_at_us = leaf.expires_at.as_micros(), "the server's certificate was renewed")
            }
            // It is tried again at the next look, weeks before the end.
            Err(error) => tracing::error!(error, "the server's certificate was not renewed"),
        }
    }
}

fn builder(policy: &Policy, streams: u32) -> Server<Stack<Policy, Identity>> {
    Server::builder()
        .max_concurrent_streams(streams)
        .initial_stream_window_size(WINDOW_BYTES.0)
        .initial_connection_window_size(WINDOW_BYTES.1)
        .http2_keepalive_interval(Some(KEEP_ALIVE.0))
        .http2_keepalive_timeout(Some(KEEP_ALIVE.1))
        .http2_max_header_list_size(HEADER_LIST_BYTES)
        .http2_max_local_error_reset_streams(Some(RESETS.0))
        .http2_max_pending_accept_reset_streams(Some(RESETS.1))
        .layer(policy.clone())
}

/// The Unix socket of the local admin: whoever can open it is one, so nobody else may.
fn local_socket(path: &Path) -> Result<UnixListenerStream, ServeError> {
    let failed = |source| ServeError::Socket { path: path.to_owned(), source };
    remove_socket(path);
    let listener = private_listener(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    UnixListener::from_std(listener).map(UnixListenerStream::new).map_err(failed)
}

/// A Unix socket that nobody else could open at any moment: the mode that it has before it is bound is that of its file
/// (unix_bind of net/unix/af_unix.c). The umask would be that of all threads.
fn private_listener(path: &Path) -> io::Result<std::os::unix::net::UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    net::listen(&socket, LOCAL_BACKLOG)?;
    Ok(socket.into())
}

/// A socket that a server left behind, this one or one that was killed: the history's lock says there is no other.
fn remove_socket(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "cannot remove the socket");
        }
        _ => {}
    }
}

fn local_peer(accepted: io::Result<UnixStream>) -> io::Result<PeerStream<UnixStream, ()>> {
    let peer = Peer { caller: Caller::Local, address: None, shown: None, arrived: Instant::now() };
    Ok(PeerStream::new(accepted?, peer, ()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn the_local_socket_is_private_from_the_moment_it_can_be_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.sock");
        let _listener = private_listener(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let again = private_listener(&path).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
