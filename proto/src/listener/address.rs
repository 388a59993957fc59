//! What a listener is bound to.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::{
    InvalidMessage,
    address::{self, Scope},
    host::bounded,
    socket::Protocol,
};

/// Longest path of a UNIX socket, bytes of UTF-8; the kernel's have at most 108 (unix(7)), which can become longer when
/// they are made readable.
pub const SOCKET_PATH_LIMIT: usize = 255;

/// An address, or the path that UNIX sockets have in place of one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ListenAddress {
    /// Normalised.
    Ip(IpAddr),
    /// A path, or `@` and an abstract name, without control characters; empty when it is not known.
    Path(String),
}

impl ListenAddress {
    /// How far it can be reached: a path by processes of the host.
    pub fn scope(&self) -> Scope {
        match self {
            ListenAddress::Ip(address) => Scope::of(*address),
            ListenAddress::Path(_) => Scope::Loopback,
        }
    }

    /// With the port, `10.0.0.1:80` or `[::1]:80`; a path has none.
    pub fn with_port(&self, port: u16) -> String {
        match self {
            ListenAddress::Ip(address) => SocketAddr::new(*address, port).to_string(),
            ListenAddress::Path(path) => path.clone(),
        }
    }

    /// The bytes of a field.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        match self {
            ListenAddress::Ip(address) => address::to_bytes(address),
            ListenAddress::Path(path) => path.into_bytes(),
        }
    }

    /// What a field holds for a listener of this protocol.
    pub(crate) fn from_wire(
        field: &'static str,
        protocol: Protocol,
        bytes: impl AsRef<[u8]> + Into<Vec<u8>>,
    ) -> Result<ListenAddress, InvalidMessage> {
        match protocol {
            Protocol::Unix => path_from_wire(field, bytes.into()).map(ListenAddress::Path),
            _ => address::from_bytes(field, bytes.as_ref()).map(ListenAddress::Ip),
        }
    }
}

/// The path in a field.
pub(crate) fn path_from_wire(field: &'static str, bytes: Vec<u8>) -> Result<String, InvalidMessage> {
    let path = String::from_utf8(bytes).map_err(|_| InvalidMessage::new(field, "is no UTF-8"))?;
    // They would end a line where one line is one name.
    if path.contains(char::is_control) {
        return Err(InvalidMessage::new(field, "has a control character"));
    }
    bounded(field, path, SOCKET_PATH_LIMIT)
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ListenAddress::Ip(address) => address.fmt(f),
            ListenAddress::Path(path) => path.fmt(f),
        }
    }
}

impl From<IpAddr> for ListenAddress {
    fn from(address: IpAddr) -> ListenAddress {
        ListenAddress::Ip(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_unix_socket_has_a_path_and_it_is_short_and_readable() {
        let read = |protocol, bytes: &[u8]| ListenAddress::from_wire("Port.address", protocol, bytes.to_vec());
        let path = |text: &str| ListenAddress::Path(text.to_owned());
        assert_eq!(read(Protocol::Unix, b"/run"), Ok(path("/run")));
        assert_eq!(read(Protocol::Tcp, b"/run"), Ok(IpAddr::from(*b"/run").into()));
        assert_eq!(read(Protocol::Unix, b"@x"), Ok(path("@x")));
        assert!(read(Protocol::Tcp, b"@x").is_err());
        assert!(read(Protocol::Unix, &[0xff]).is_err() && read(Protocol::Unix, b"/a\nweb1/tcp/0.0.0.0:22").is_err());
        assert!(read(Protocol::Unix, &[b'/'; SOCKET_PATH_LIMIT]).is_ok());
        assert!(read(Protocol::Unix, &[b'/'; SOCKET_PATH_LIMIT + 1]).is_err());
        assert_eq!((path("/run/x").with_port(1), path("/run/x").scope()), ("/run/x".to_owned(), Scope::Loopback));
    }
}
