//! Who is at the other end of a connection: decided once, from its certificate, and carried with every request.

use std::{
    fmt, io,
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll},
};

use fleetsock_proto::{
    host::HostId,
    identity::{IdentityError, Leaf},
    spiffe::Subject,
    time::Timestamp,
    token::Operator,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};
use tonic::transport::server::Connected;

use crate::{
    authority::BACKDATED,
    history::{Actor, Serial, adoption::Shown},
};

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// Somebody without a certificate, who may only enrol.
    Anonymous,
    /// The agent of a host.
    Agent {
        /// The host.
        host: HostId,
        /// Serial number of the certificate.
        serial: Serial,
    },
    /// An operator.
    Operator {
        /// Name and role.
        operator: Operator,
        /// Serial number of the certificate.
        serial: Serial,
    },
    /// Whoever can open the Unix socket of the server.
    Local,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Anonymous => f.write_str("anonymous"),
            Caller::Agent { host, .. } => write!(f, "agent/{host}"),
            Caller::Operator { operator, .. } => write!(f, "operator/{}/{}", operator.role(), operator.name()),
            Caller::Local => f.write_str("local"),
        }
    }
}

/// The other end of a connection. Found in the extensions of every request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub caller: Caller,
    /// From where; absent on the Unix socket.
    pub address: Option<IpAddr>,
    /// The certificate that it showed.
    pub shown: Option<Shown>,
    /// When the connection was accepted.
    pub arrived: Instant,
}

impl Peer {
    /// Whose certificate it is, if there is one. Its signatures and dates were checked before.
    pub fn of_certificate(der: Option<&[u8]>, address: IpAddr, arrived: Instant) -> Result<Peer, IdentityError> {
        let Some(der) = der else {
            return Ok(Peer { caller: Caller::Anonymous, address: Some(address), shown: None, arrived });
        };
        let Leaf { spiffe_id, serial, begins_at, expires_at } = Leaf::parse(der)?;
        let shown = Shown { serial: serial.clone(), made_at: begins_at.plus(BACKDATED), expires_at };
        let caller = match spiffe_id.subject {
            Subject::Agent(host) => Caller::Agent { host, serial },
            Subject::Operator(operator) => Caller::Operator { operator, serial },
        };
        Ok(Peer { caller, address: Some(address), shown: Some(shown), arrived })
    }

    /// Who did something, for the audit log.
    pub fn actor(&self, at: Timestamp) -> Actor {
        let address = self.address.map(|address| address.to_string()).unwrap_or_default();
        Actor { name: self.caller.to_string(), address, at }
    }
}

/// Bytes with which every HTTP/2 connection begins (RFC 9113, section 3.4). Pings are only sent to whoever sent them.
const PREFACE_BYTES: usize = 24;

/// A connection that knows its peer, and gives its place back when it ends.
pub struct PeerStream<S, P> {
    stream: S,
    peer: Peer,
    preface: Option<Preface>,
    _place: P,
}

/// What a connection owes before it is one of HTTP/2.
struct Preface {
    missing: usize,
    over: Pin<Box<Sleep>>,
}

impl<S, P> PeerStream<S, P> {
    /// A connection with its peer and the place that it takes.
    pub fn new(stream: S, peer: Peer, place: P) -> PeerStream<S, P> {
        PeerStream { stream, peer, preface: None, _place: place }
    }

    /// The same connection, which fails unless it begins to speak HTTP/2 before a moment.
    #[must_use]
    pub fn speaking_before(self, moment: Instant) -> PeerStream<S, P> {
        let preface = Preface { missing: PREFACE_BYTES, over: Box::pin(sleep_until(moment)) };
        PeerStream { preface: Some(preface), ..self }
    }
}

impl<S, P> fmt::Debug for PeerStream<S, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerStream").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl<S, P> Connected for PeerStream<S, P> {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for PeerStream<S, P> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let Some(preface) = &mut self.preface else { return read };
        if read.is_pending() && preface.over.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        preface.missing = preface.missing.saturating_sub(buf.filled().len() - before);
        if preface.missing == 0 {
            self.preface = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for PeerStream<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
