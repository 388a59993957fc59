//! The join string: everything that a host or an operator needs to enrol, in one word.
//!
//! `fsj1_` and, in URL-safe base64 without padding: the pin of the CA (32 bytes), the token's secret (32 bytes), its id
//! and the trust domain (each with a length byte), the server's address, and the first four bytes of the SHA-256 of all
//! that, so that a slip of the mouse is told from a refused token.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time::verify_slices_are_equal, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::spiffe::TrustDomain;

const PREFIX: &str = "fsj1_";
const CHECK_BYTES: usize = 4;
/// Longest join string, bytes.
pub const JOIN_STRING_LIMIT: usize = 1024;
/// Longest address of a server, bytes: a DNS name, a colon, a port.
pub const SERVER_ADDRESS_LIMIT: usize = 260;
/// Longest id of a token, bytes.
pub const TOKEN_ID_LIMIT: usize = 64;
/// The port of the server when an address names none (unassigned by IANA, below Linux's ephemeral range).
pub const DEFAULT_PORT: u16 = 5290;

/// Where a server is reached: a name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServerAddress(String);

/// A text that is no address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no server address; write host:port, for example db1.example.org:{DEFAULT_PORT} or [2001:db8::1]:{DEFAULT_PORT}"
)]
pub struct InvalidServerAddress(pub String);

impl ServerAddress {
    /// The text, `host:port`, with IPv6 addresses in brackets.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ServerAddress {
    type Err = InvalidServerAddress;

    fn from_str(text: &str) -> Result<ServerAddress, InvalidServerAddress> {
        let invalid = || InvalidServerAddress(text.to_owned());
        if text.len() > SERVER_ADDRESS_LIMIT {
            return Err(invalid());
        }
        if let Ok(address) = text.parse::<std::net::Ipv6Addr>() {
            return Ok(ServerAddress(format!("[{address}]:{DEFAULT_PORT}")));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, port.parse::<u16>().map_err(|_| invalid())?),
            None => (text, DEFAULT_PORT),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let named = |host: &str| {
            !host.is_empty() && host.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'-' | b'_'))
        };
        let good = match bracketed {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => named(host),
        };
        if good && port != 0 { Ok(ServerAddress(format!("{host}:{port}"))) } else { Err(invalid()) }
    }
}

/// The secret of a token. Compared in constant time, never printed.
#[derive(Clone, Eq)]
pub struct TokenSecret([u8; 32]);

impl TokenSecret {
    /// The secret with these bytes.
    pub const fn from_array(bytes: [u8; 32]) -> TokenSecret {
        TokenSecret(bytes)
    }

    /// The bytes, for the one message that carries them.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256 of the secret: what a server keeps.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.0)
    }
}

impl PartialEq for TokenSecret {
    fn eq(&self, other: &TokenSecret) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}

impl fmt::Debug for TokenSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenSecret(..)")
    }
}

/// SHA-256 of a CA's SubjectPublicKeyInfo (DER): what a newcomer trusts instead of the first answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    /// The pin of a public key, given as SubjectPublicKeyInfo.
    pub fn of_public_key(spki_der: &[u8]) -> Pin {
        Pin(sha256(spki_der))
    }

    /// The pin with these bytes.
    pub const fn from_array(bytes: [u8; 32]) -> Pin {
        Pin(bytes)
    }

    /// The bytes of the pin.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Everything that is needed to enrol.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinString {
    /// Where the server is.
    pub address: ServerAddress,
    /// Which fleet.
    pub trust_domain: TrustDomain,
    /// Public id of the token, 1 to [`TOKEN_ID_LIMIT`] bytes.
    pub token_id: String,
    /// Secret of the token.
    pub secret: TokenSecret,
    /// Pin of the root CA.
    pub pin: Pin,
}

/// A text that is no join string. The text is a secret and not repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidJoinString {
    /// It does not begin as one.
    #[error("this is no join string: it does not begin with {PREFIX}")]
    Prefix,
    /// A character was lost or changed on the way.
    #[error("the join string is damaged: copy all of it, it is one word")]
    Damaged,
}

pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}

impl fmt::Display for JoinString {
    /// Writes the secret too: for the person who will carry it over, and nobody else.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut payload = Vec::with_capacity(256);
        payload.extend_from_slice(&self.pin.0);
        payload.extend_from_slice(&self.secret.0);
        for text in [&self.token_id, &self.trust_domain.to_string()] {
            // Both are at most 200 bytes by their types.
            payload.push(u8::try_from(text.len()).map_err(|_| fmt::Error)?);
            payload.extend_from_slice(text.as_bytes());
        }
        payload.extend_from_slice(self.address.as_str().as_bytes());
        let check = sha256(&payload);
        payload.extend_from_slice(&check[..CHECK_BYTES]);
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(payload))
    }
}

/// Takes fields off the front of a payload.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn array(&mut self) -> Option<[u8; 32]> {
        self.take(32)?.try_into().ok()
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = *self.take(1)?.first()?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }
}

impl FromStr for JoinString {
    type Err = InvalidJoinString;

    fn from_str(text: &str) -> Result<JoinString, InvalidJoinString> {
        let encoded = text.trim().strip_prefix(PREFIX).ok_or(InvalidJoinString::Prefix)?;
        parse(encoded).ok_or(InvalidJoinString::Damaged)
    }
}

fn parse(encoded: &str) -> Option<JoinString> {
    if encoded.len() > JOIN_STRING_LIMIT {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(encoded).ok()?;
    let (payload, check) = bytes.split_at_checked(bytes.len().checked_sub(CHECK_BYTES)?)?;
    if sha256(payload)[..CHECK_BYTES] != *check {
        return None;
    }
    let mut reader = Reader(payload);
    let pin = Pin(reader.array()?);
    let secret = TokenSecret(reader.array()?);
    let token_id = reader.text()?.to_owned();
    let trust_domain = reader.text()?.parse().ok()?;
    let address = std::str::from_utf8(reader.0).ok()?.parse().ok()?;
    let named = (1..=TOKEN_ID_LIMIT).contains(&token_id.len());
    named.then_some(JoinString { address, trust_domain, token_id, secret, pin })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn join() -> JoinString {
        JoinString {
            address: "db1.example.org:5290".parse().unwrap(),
            trust_domain: "fleetsock.internal".parse().unwrap(),
            token_id: "0a1b2c3d4e5f6071".to_owned(),
            secret: TokenSecret([7; 32]),
            pin: Pin([9; 32]),
        }
    }

    #[test]
    fn a_join_string_reads_as_it_was_written_blanks_around_it_aside() {
        assert_eq!(format!(" {}\n", join()).parse(), Ok(join()));
    }

    #[test]
    fn a_changed_or_missing_character_is_told_from_a_refused_token() {
        let text = join().to_string();
        for cut in PREFIX.len()..text.len() {
            assert_eq!(text[..cut].parse::<JoinString>(), Err(InvalidJoinString::Damaged), "cut at {cut}");
        }
        let changed = text.replacen('J', "K", 1).replacen('C', "D", 1);
        assert_ne!(changed, text);
        assert_eq!(changed.parse::<JoinString>(), Err(InvalidJoinString::Damaged));
        assert_eq!("fsj2_abc".parse::<JoinString>(), Err(InvalidJoinString::Prefix));
    }

    #[test]
    fn debugging_does_not_print_the_secret() {
        assert!(!format!("{:?}", join()).contains("7, 7"));
    }

    #[test]
    fn server_addresses_get_the_usual_port_and_brackets() {
        for (text, expected) in [
            ("db1", Some("db1:5290")),
            ("db1.example.org:443", Some("db1.example.org:443")),
            ("192.0.2.7", Some("192.0.2.7:5290")),
            ("2001:db8::1", Some("[2001:db8::1]:5290")),
            ("[2001:db8::1]:9", Some("[2001:db8::1]:9")),
            ("db1:0", None),
            ("db1:70000", None),
            (":5290", None),
            ("[db1]:5290", None),
            ("https://db1:5290", None),
            ("", None),
        ] {
            let address = text.parse::<ServerAddress>().ok();
            assert_eq!(address.as_ref().map(ServerAddress::as_str), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(fsj1_)?[A-Za-z0-9_-]{0,400}") {
            // Whatever it is, the answer is a value.
            drop(text.parse::<JoinString>());
        }
    }
}
