//! One connection to a server, and what can go wrong with it in words that a person can act on.

use std::{
    error::Error as _,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin as PinBox,
    sync::{Arc, Mutex, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint, Uri},
};
use tower::service_fn;

use crate::{InvalidMessage, identity::IdentityError, join::ServerAddress, time::Timestamp};

/// How long a server may take to accept a connection, and again to finish the TLS handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is probed, and how long a probe may stay unanswered.
pub const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(10));

/// What carries the bytes of a connection, in both directions.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Wire for S {}

/// A wire that is being laid.
pub type Dialling = PinBox<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

/// Lays a wire to an address.
pub type Dial = fn(ServerAddress) -> Dialling;

/// Lays a wire by TCP.
pub fn dial_tcp(address: ServerAddress) -> Dialling {
    Box::pin(async move {
        let tcp = TcpStream::connect(address.as_str()).await?;
        // Batches and questions are written whole; waiting to fill a packet would only delay them.
        tcp.set_nodelay(true)?;
        Ok(Box::new(tcp) as Box<dyn Wire>)
    })
}

/// Why a certificate of ours was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Its validity is over, by our clock or the server's.
    #[error("expired")]
    Expired,
    /// The server does not know its CA.
    #[error("made by a CA that the server does not know")]
    UnknownAuthority,
    /// The server wants one and got none.
    #[error("missing")]
    Missing,
    /// Anything else, in the server's words.
    #[error("{0}")]
    Other(String),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nothing answers there.
    #[error("cannot reach server {address}: {source}")]
    Unreachable {
        /// Where.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long.
    #[error("server {address} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut {
        /// Where.
        address: String,
    },
    /// It is not the server that it should be.
    #[error("{address} is not our server: {problem}")]
    NotTrusted {
        /// Where.
        address: String,
        /// What its certificate lacks.
        problem: String,
    },
    /// It does not accept us.
    #[error("server {address} refused our certificate: {refusal}")]
    Refused {
        /// Where.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// Something else answers there, or the handshake failed.
    #[error("no TLS connection to {address}: {problem}")]
    Tls {
        /// Where.
        address: String,
        /// What happened.
        problem: String,
    },
    /// Our own identity cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It answered, and not with what was wanted.
    #[error(transparent)]
    Call(#[from] CallError),
}

/// Why a call had no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// What was asked is wrong.
    #[error("{0}")]
    Invalid(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// We may not.
    #[error("{0}")]
    Denied(String),
    /// Our certificate is not accepted.
    #[error("the server refused our certificate: {0}")]
    Refused(Refusal),
    /// The connection broke, or the server cannot answer now.
    #[error("{0}")]
    Unavailable(String),
    /// A limit was reached.
    #[error("{0}")]
    TooMuch(String),
    /// It took longer than it may.
    #[error("{0}")]
    TooSlow(String),
    /// The server failed.
    #[error("the server failed: {0}")]
    Server(String),
    /// The answer breaks the contract: server and client are of different versions, or something is between them.
    #[error("the answer cannot be read: {0}")]
    Broken(#[from] InvalidMessage),
}

/// The refusal that a TLS alert tells of.
fn refusal(error: &rustls::Error) -> Option<Refusal> {
    let rustls::Error::AlertReceived(alert) = error else { return None };
    Some(match alert {
        AlertDescription::CertificateExpired => Refusal::Expired,
        AlertDescription::UnknownCA => Refusal::UnknownAuthority,
        AlertDescription::CertificateRequired => Refusal::Missing,
        AlertDescription::CertificateRevoked => Refusal::Other("revoked".to_owned()),
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::AccessDenied => Refusal::Other("it is not a certificate of this fleet".to_owned()),
        _ => return None,
    })
}

fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

/// Why the handshake failed.
fn handshake_error(address: &str, error: io::Error) -> ConnectError {
    let address = address.to_owned();
    let Some(tls) = rustls_error(&error) else {
        return ConnectError::Tls { address, problem: error.to_string() };
    };
    if let Some(refusal) = refusal(tls) {
        return ConnectError::Refused { address, refusal };
    }
    match tls {
        rustls::Error::InvalidCertificate(problem) => {
            let problem = match problem {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    "its certificate is expired (or this machine's clock is wrong)".to_owned()
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    "its certificate is not valid yet (or this machine's clock is wrong)".to_owned()
                }
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                    "its certificate has another name".to_owned()
                }
                CertificateError::UnknownIssuer => "its certificate was made by another CA".to_owned(),
                other => other.to_string(),
            };
            ConnectError::NotTrusted { address, problem }
        }
        rustls::Error::General(problem) => ConnectError::NotTrusted { address, problem: problem.clone() },
        other => ConnectError::Tls { address, problem: other.to_string() },
    }
}

/// Remembers the alert that the server sent, because in TLS 1.3 a refused client learns of it only after the
/// handshake, and HTTP/2 reports no more than a broken connection.
struct Watched<S> {
    stream: S,
    refusal: Arc<OnceLock<Refusal>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: PinBox<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = PinBox::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &polled
            && let Some(refusal) = rustls_error(error).and_then(refusal)
        {
            self.refusal.get_or_init(|| refusal);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: PinBox<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        PinBox::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: PinBox<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        PinBox::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: PinBox<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        PinBox::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// One connection. It is not made again when it breaks: who has it decides when to come back.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    refusal: Arc<OnceLock<Refusal>>,
}

impl Connection {
    /// Connects by TLS to `address`, where the certificate must have the name `name`.
    pub(crate) async fn tls(
        dial: Dial,
        address: &ServerAddress,
        name: String,
        config: Result<ClientConfig, rustls::Error>,
    ) -> Result<Connection, ConnectError> {
        let timed_out = || ConnectError::TimedOut { address: address.to_string() };
        let problem = |problem: String| ConnectError::Tls { address: address.to_string(), problem };
        let config = config.map_err(|error| problem(error.to_string()))?;
        let name = ServerName::try_from(name).map_err(|error| problem(error.to_string()))?;
        let wire = timeout(CONNECT_TIMEOUT, dial(address.clone()))
            .await
            .map_err(|_| timed_out())?
            .map_err(|source| ConnectError::Unreachable { address: address.to_string(), source })?;
        let tls = timeout(CONNECT_TIMEOUT, TlsConnector::from(Arc::new(config)).connect(name, wire))
            .await
            .map_err(|_| timed_out())?
            .map_err(|error| handshake_error(address.as_str(), error))?;
        Connection::over(tls, address.as_str()).await
    }

    /// Connects to the Unix socket of a server on this machine.
    pub(crate) async fn local(path: &Path) -> Result<Connection, ConnectError> {
        let address = PathBuf::from(path).display().to_string();
        let unreachable = |source| ConnectError::Unreachable { address: address.clone(), source };
        let stream = UnixStream::connect(path).await.map_err(unreachable)?;
        Connection::over(stream, &address).await
    }

    async fn over<S>(stream: S, address: &str) -> Result<Connection, ConnectError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let refusal = Arc::new(OnceLock::new());
        let io = Arc::new(Mutex::new(Some(Watched { stream, refusal: Arc::clone(&refusal) })));
        let connector = service_fn(move |_: Uri| -> PinBox<Box<dyn Future<Output = io::Result<_>> + Send>> {
            let taken = io.lock().ok().and_then(|mut io| io.take());
            Box::pin(async move { taken.map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()) })
        });
        // The name is not looked up: the stream is already there.
        let channel = Endpoint::from_static("http://fleetsock")
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .connect_with_connector(connector)
            .await;
        match channel {
            Ok(channel) => Ok(Connection { channel, refusal }),
            Err(error) => Err(match refusal.get() {
                Some(refusal) => ConnectError::Refused { address: address.to_owned(), refusal: refusal.clone() },
                None => ConnectError::Tls { address: address.to_owned(), problem: root_cause(&error) },
            }),
        }
    }

    /// What a status means for the caller.
    pub(crate) fn call_error(&self, status: Status) -> CallError {
        match self.refusal.get() {
            Some(refusal) if status.source().is_some() => CallError::Refused(refusal.clone()),
            _ => CallError::from(status),
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

impl From<Status> for CallError {
    fn from(status: Status) -> CallError {
        let text = status.message().to_owned();
        match status.code() {
            Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange | Code::AlreadyExists => {
                CallError::Invalid(text)
            }
            Code::NotFound => CallError::NotFound(text),
            Code::PermissionDenied => CallError::Denied(text),
            Code::Unauthenticated => CallError::Refused(Refusal::Other(text)),
            Code::DeadlineExceeded => CallError::TooSlow(text),
            Code::ResourceExhausted => CallError::TooMuch(text),
            Code::Unavailable | Code::Cancelled | Code::Aborted => CallError::Unavailable(text),
            _ if status.source().is_some() => {
                CallError::Unavailable(format!("the connection broke: {}", root_cause(&status)))
            }
            Code::Unimplemented => CallError::Server("it is older than this program and does not know this".to_owned()),
            _ => CallError::Server(text),
        }
    }
}

/// Refuses an identity whose time is over before the server has to.
pub(crate) fn check_expiry(address: &ServerAddress, expires_at: Timestamp, now: Timestamp) -> Result<(), ConnectError> {
    if now < expires_at {
        return Ok(());
    }
    Err(ConnectError::Refused { address: address.to_string(), refusal: Refusal::Expired })
}
