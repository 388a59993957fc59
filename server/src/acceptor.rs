//! Accepts connections: TLS 1.3 only, within limits, and sorted by the name that the caller asks for.
//!
//! `enroll.<trust domain>` asks for no certificate and leads to enrolment only; `server.<trust domain>` demands one,
//! from the CA of its role. No session is ever resumed, because a resumed one skips the check of the certificate.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use fleetsock_proto::{
    client::Wire,
    host::HostId,
    identity::Leaf,
    spiffe::{Subject, TrustDomain},
    tls::{ALPN_H2, provider},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::turned::Turned;
use self::{
    spare::Spare,
    turned::{Refusal, refusal},
};
use crate::{
    authority::{Authority, ShownChains},
    config::Limits,
    gate::{Gate, Place, counted},
    metrics::Meters,
    peer::{Caller, Peer, PeerStream},
};

mod spare;
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

/// A connection that is ready to be served, with its place among all and among those of its kind.
pub type Accepted<W> = PeerStream<TlsStream<W>, (Place<IpAddr>, Seat)>;

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

    async fn shake_hands(&self, wire: W, address: IpAddr, arrived: Instant) -> Result<(TlsStream<W>, Peer), Refusal> {
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
            Ok(tls) => tls,
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

fn hardened(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// The certificate that the server shows, under each of its names. Connections that are there keep the one that they
/// were made with; new ones get the newest.
#[derive(Debug, Clone)]
pub struct Shown {
    identified: Arc<Current>,
    newcomers: Arc<Current>,
    trusted: Arc<RoleVerifier>,
}

impl Shown {
    fn new(authority: &Authority) -> Result<Shown, Error> {
        let (identified, newcomers) = certified(authority)?;
        Ok(Shown {
            identified: Arc::new(Current::new(identified)),
            newcomers: Arc::new(Current::new(newcomers)),
            trusted: Arc::new(RoleVerifier::new(authority)?),
        })
    }

    /// From now on new connections are shown what the authority has now, and held against what it trusts now.
    pub fn exchange(&self, authority: &Authority) -> Result<(), Error> {
        let (identified, newcomers) = certified(authority)?;
        self.identified.set(identified);
        self.newcomers.set(newcomers);
        self.trusted.exchange(Roles::new(authority)?);
        Ok(())
    }
}

/// The chains for callers with a certificate and for newcomers, who get the roots as well, to find the one that their pin
/// is of.
fn certified(authority: &Authority) -> Result<(CertifiedKey, CertifiedKey), Error> {
    let ShownChains { leaf, identified, newcomers } = authority.shown_chains();
    let certified = |chain| CertifiedKey::from_der(chain, leaf.key.clone_key().into(), &provider());
    Ok((certified(identified)?, certified(newcomers)?))
}

/// A certificate that can be exchanged.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn new(key: CertifiedKey) -> Current {
        Current(RwLock::new(Arc::new(key)))
    }

    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

fn identified_config(shown: &Shown) -> Result<ServerConfig, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&shown.trusted) as _)
        .with_cert_resolver(Arc::clone(&shown.identified) as _);
    Ok(hardened(config))
}

fn newcomers_config(shown: &Shown) -> Result<ServerConfig, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&shown.newcomers) as _);
    Ok(hardened(config))
}

/// Accepts an agent's certificate from the agents' CA only, an operator's from the operators' only: the role in the
/// name, the issuing CA and the key usage must agree.
#[derive(Debug)]
struct RoleVerifier {
    trust_domain: TrustDomain,
    roles: RwLock<Arc<Roles>>,
}

/// Whose certificates are accepted, by role.
#[derive(Debug)]
struct Roles {
    agents: Arc<dyn ClientCertVerifier>,
    operators: Arc<dyn ClientCertVerifier>,
}

impl Roles {
    fn new(authority: &Authority) -> Result<Roles, Error> {
        let under = |cas: Vec<CertificateDer<'static>>| -> Result<Arc<dyn ClientCertVerifier>, Error> {
            let mut roots = RootCertStore::empty();
            for ca in cas {
                roots.add(ca)?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|error| Error::General(error.to_string()))
        };
        Ok(Roles { agents: under(authority.agents_cas())?, operators: under(authority.operators_cas())? })
    }
}

impl RoleVerifier {
    fn new(authority: &Authority) -> Result<RoleVerifier, Error> {
        let roles = RwLock::new(Arc::new(Roles::new(authority)?));
        Ok(RoleVerifier { trust_domain: authority.trust_domain().clone(), roles })
    }

    fn roles(&self) -> Arc<Roles> {
        Arc::clone(&self.roles.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn exchange(&self, roles: Roles) {
        *self.roles.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roles);
    }
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let leaf = Leaf::parse(end_entity).map_err(|_| refused())?;
        if leaf.spiffe_id.trust_domain != self.trust_domain {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let roles = self.roles();
        let verifier = match leaf.spiffe_id.subject {
            Subject::Agent(_) => &roles.agents,
            Subject::Operator(_) => &roles.operators,
        };
        // Directly under its CA, whatever else the caller put into the chain.
        verifier.verify_client_cert(end_entity, &[], now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.roles().agents.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roles().agents.supported_verify_schemes()
    }
}
