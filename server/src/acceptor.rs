//! Accepts connections: TLS 1.3 only, within limits, and sorted by the name that the caller asks for.
//!
//! `enroll.<trust domain>` asks for no certificate and leads to enrolment only; `server.<trust domain>` demands one,
//! from the CA of its role. No session is ever resumed, because a resumed one skips the check of the certificate.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use fleetsock_proto::{client::Wire, host::HostId, spiffe::TrustDomain};
use rustls::{Error, ServerConfig};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    spare::Spare,
    trust::{identified_config, newcomers_config},
    turned::{Refusal, refusal},
};
pub use self::{trust::Shown, turned::Turned};
use crate::{
    authority::Authority,
    config::Limits,
    gate::{Gate, Place, counted},
    metrics::Meters,
    peer::{Caller, Peer, PeerStream},
};

mod spare;
mod trust;
mod turned;

/// How long to wait when the system has no descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long a refused caller may take to read the reason.
const LINGER: Duration = Duration::from_secs(1);
/// Accepted connections that wait to be served, of each kind.
const BACKLOG: usize = 64;

/// Where connections come from.
pub trait Listener: Send + Sync {
    /// What carries their bytes.
    type Wire: Wire;

    /// The next one, and where it is from.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Wire, SocketAddr)>> + Send;

    /// A descriptor that is good for nothing else, where each connection takes one and there is one left.
    fn reserve(&self) -> Option<OwnedFd>;
}

impl Listener for TcpListener {
    type Wire = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (tcp, from) = TcpListener::accept(self).await?;
        // Answers are written whole; waiting to fill a packet would only delay them.
        tcp.set_nodelay(true)?;
        Ok((tcp, from))
    }

    fn reserve(&self) -> Option<OwnedFd> {
        // It is asked for again after the next connection that was turned away.
        self.as_fd().try_clone_to_owned().ok()
    }
}

/// A connection that is ready to be served, with its place among all and among those of its kind. What TLS knows of it is
/// large, and the task that serves it would have room for it twice: as what it was given and as what it works with.
pub type Accepted<W> = PeerStream<Box<TlsStream<W>>, (Place<IpAddr>, Seat)>;

/// The place of a connection among all, and the one that it has while it shakes hands.
type Places = (Place<IpAddr>, Place<IpAddr>);

/// The place of a connection among those of its kind.
#[derive(Debug)]
pub enum Seat {
    /// Of somebody without a certificate.
    Newcomer(Place<IpAddr>),
    /// Of an agent.
    Agent(Place<HostId>),
    /// Operators have their rates.
    Operator,
}

/// Accepted connections, by who is at their other end.
#[derive(Debug)]
pub struct Incoming<W> {
    /// Agents.
    pub agents: mpsc::Receiver<io::Result<Accepted<W>>>,
    /// Operators.
    pub operators: mpsc::Receiver<io::Result<Accepted<W>>>,
    /// Those who want to enrol.
    pub newcomers: mpsc::Receiver<io::Result<Accepted<W>>>,
}

/// Accepts connections.
#[derive(Debug)]
pub struct Acceptor<W> {
    trust_domain: TrustDomain,
    shown: Shown,
    identified: Arc<ServerConfig>,
    newcomers: Arc<ServerConfig>,
    ready: Ready<W>,
    handshake: Duration,
    handshakes: Arc<Gate<IpAddr>>,
    connections: Arc<Gate<IpAddr>>,
    of_newcomers: Arc<Gate<IpAddr>>,
    of_agents: Arc<Gate<HostId>>,
    meters: Meters,
}

/// How many connections there are, for whoever watches.
#[derive(Debug, Clone)]
pub struct Connections(Arc<Gate<IpAddr>>);

impl Connections {
    /// Those that are there now, whoever is at their other end.
    pub fn count(&self) -> usize {
        self.0.taken()
    }
}

/// Where connections go that are ready to be served.
#[derive(Debug)]
struct Ready<W> {
    agents: mpsc::Sender<io::Result<Accepted<W>>>,
    operators: mpsc::Sender<io::Result<Accepted<W>>>,
    newcomers: mpsc::Sender<io::Result<Accepted<W>>>,
}

impl<W: Wire> Acceptor<W> {
    /// An acceptor for a fleet, and where its connections arrive.
    pub fn new(authority: &Authority, limits: &Limits, meters: Meters) -> Result<(Acceptor<W>, Incoming<W>), Error> {
        let (to_agents, agents) = mpsc::channel(BACKLOG);
        let (to_operators, operators) = mpsc::channel(BACKLOG);
        let (to_newcomers, newcomers) = mpsc::channel(BACKLOG);
        let shown = Shown::new(authority)?;
        let acceptor = Acceptor {
            trust_domain: authority.trust_domain().clone(),
            identified: Arc::new(identified_config(&shown)?),
            newcomers: Arc::new(newcomers_config(&shown)?),
            ready: Ready { agents: to_agents, operators: to_operators, newcomers: to_newcomers },
            shown,
            handshake: limits.handshake,
            handshakes: Gate::new(limits.handshakes, limits.handshakes_per_address),
            connections: Gate::new(limits.connections, limits.connections_per_address),
            of_newcomers: Gate::new(limits.newcomers, limits.connections_per_address),
            of_agents: Gate::new(limits.connections, limits.connections_per_agent),
            meters,
        };
        Ok((acceptor, Incoming { agents, operators, newcomers }))
    }

    /// The connections that it let in.
    pub fn connections(&self) -> Connections {
        Connections(Arc::clone(&self.connections))
    }

    /// What it shows of the server, to be exchanged while it runs.
    pub fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Accepts until told to stop; returns when the last handshake is over.
    pub async fn run(self, listener: impl Listener<Wire = W>, stop: CancellationToken) {
        let (acceptor, handshakes, mut spare) = (Arc::new(self), TaskTracker::new(), Spare::of(&listener));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((wire, from)) => {
                    // From here on, whenever the handshake gets its turn.
                    let arrived = Instant::now();
                    let address = from.ip().to_canonical();
                    let Some(places) = acceptor.places(address) else {
                        acceptor.meters.turned_away(Turned::Full);
                        tracing::debug!(%address, "too many connections: closed");
                        continue;
                    };
                    let (acceptor, stop) = (Arc::clone(&acceptor), stop.clone());
                    handshakes.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = acceptor.admit(wire, address, arrived, places) => {}
                        }
                    });
                }
                Err(error) => acceptor.not_accepted(&error, &listener, &mut spare).await,
            }
        }
        handshakes.close();
        handshakes.wait().await;
    }

    /// Where there is no descriptor for a connection it is closed, because in the kernel's queue it would have no limit.
    async fn not_accepted(&self, error: &io::Error, listener: &impl Listener, spare: &mut Spare) {
        if spare::is_exhausted(error)
            && let Some(from) = spare.turn_away(listener).await
        {
            self.meters.turned_away(Turned::NoDescriptor);
            tracing::debug!(address = %from.ip().to_canonical(), %error, "closed");
            return;
        }
        tracing::warn!(%error, "cannot accept connections");
        tokio::time::sleep(ACCEPT_RETRY).await;
    }

    fn places(&self, address: IpAddr) -> Option<Places> {
        let address = counted(address);
        Some((self.connections.enter(address)?, self.handshakes.enter(address)?))
    }

    /// A place among those of the same kind, and where such connections go.
    fn seat(&self, caller: &Caller, address: IpAddr) -> Option<(Seat, &mpsc::Sender<io::Result<Accepted<W>>>)> {
        let Ready { agents, operators, newcomers } = &self.ready;
        Some(match caller {
            Caller::Anonymous => (Seat::Newcomer(self.of_newcomers.enter(counted(address))?), newcomers),
            Caller::Agent { host, .. } => (Seat::Agent(self.of_agents.enter(*host)?), agents),
            Caller::Operator { .. } | Caller::Local => (Seat::Operator, operators),
        })
    }

    /// Shakes hands and hands over.
    async fn admit(&self, wire: W, address: IpAddr, arrived: Instant, (connection, handshake): Places) {
        match self.shake_hands(wire, address, arrived).await {
            Ok((tls, peer)) => {
                drop(handshake);
                let Some((seat, ready)) = self.seat(&peer.caller, address) else {
                    self.meters.turned_away(Turned::NoSeat);
                    tracing::info!(caller = %peer.caller, %address, "too many connections of its kind: closed");
                    return;
                };
                self.meters.handshakes.inc();
                // Who has a certificate is known now, but not yet whether he has anything to say.
                let stream =
                    PeerStream::new(tls, peer, (connection, seat)).speaking_before(Instant::now() + self.handshake);
                if ready.send(Ok(stream)).await.is_err() {
                    tracing::debug!(%address, "closed: the server is stopping");
                }
            }
            Err((turned, reason)) => {
                self.meters.turned_away(turned);
                tracing::debug!(%address, reason, "handshake failed");
            }
        }
    }

    async fn shake_hands(
        &self,
        wire: W,
        address: IpAddr,
        arrived: Instant,
    ) -> Result<(Box<TlsStream<W>>, Peer), Refusal> {
        let deadline = arrived + self.handshake;
        let slow = |_| (Turned::Slow, "it took too long".to_owned());
        let hello = timeout_at(deadline, LazyConfigAcceptor::new(rustls::server::Acceptor::default(), wire))
            .await
            .map_err(slow)?
            .map_err(|error| refusal(&error))?;
        let name = hello.client_hello().server_name().unwrap_or_default().to_owned();
        let config = if name == self.trust_domain.server_name() {
            &self.identified
        } else if name == self.trust_domain.enroll_name() {
            &self.newcomers
        } else {
            return Err((Turned::Name, format!("`{name}` is not served here")));
        };
        let shaken = timeout_at(deadline, hello.into_stream(Arc::clone(config)).into_fallible()).await;
        let tls = match shaken.map_err(slow)? {
            Ok(tls) => Box::new(tls),
            Err((error, wire)) => {
                linger(wire).await;
                return Err(refusal(&error));
            }
        };
        let certificate = tls.get_ref().1.peer_certificates().and_then(<[_]>::first).map(AsRef::as_ref);
        let peer = Peer::of_certificate(certificate, address, arrived)
            .map_err(|error| (Turned::Certificate, error.to_string()))?;
        Ok((tls, peer))
    }
}

/// Lets a refused caller read the alert: closing with bytes unread would reset the connection and lose it.
async fn linger(mut wire: impl Wire) {
    let drain = async {
        wire.shutdown().await?;
        let mut sink = [0; 1024];
        while wire.read(&mut sink).await? > 0 {}
        Ok::<(), io::Error>(())
    };
    if !matches!(timeout(LINGER, drain).await, Ok(Ok(()))) {
        tracing::debug!("a refused caller did not close in time");
    }
}
