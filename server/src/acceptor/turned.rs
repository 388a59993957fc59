//! Why a connection is turned away, in a word for whoever counts and in a sentence for the log.

use std::io;

use rustls::{CertificateError, Error};

/// Why a connection was turned away before it was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// There are too many, or too many from its address.
    Full,
    /// The server has no descriptor left for it.
    NoDescriptor,
    /// There are too many of its kind, or of its agent.
    NoSeat,
    /// The handshake took too long.
    Slow,
    /// It asked for a name that is not served.
    Name,
    /// It showed no certificate where one is needed.
    NoCertificate,
    /// Its certificate is over.
    Expired,
    /// Its certificate is not one of ours.
    Certificate,
    /// Anything else that TLS does not like.
    Tls,
    /// It broke off.
    Broken,
}

impl Turned {
    /// Every reason.
    pub const ALL: [Turned; 10] = [
        Turned::Full,
        Turned::NoDescriptor,
        Turned::NoSeat,
        Turned::Slow,
        Turned::Name,
        Turned::NoCertificate,
        Turned::Expired,
        Turned::Certificate,
        Turned::Tls,
        Turned::Broken,
    ];

    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Turned::Full => "too-many",
            Turned::NoDescriptor => "no-descriptor",
            Turned::NoSeat => "too-many-of-its-kind",
            Turned::Slow => "timeout",
            Turned::Name => "name",
            Turned::NoCertificate => "no-certificate",
            Turned::Expired => "certificate-expired",
            Turned::Certificate => "certificate",
            Turned::Tls => "tls",
            Turned::Broken => "broken-off",
        }
    }
}

/// A connection that was turned away, with words for the log.
pub(super) type Refusal = (Turned, String);

/// Why a handshake failed.
pub(super) fn refusal(error: &io::Error) -> Refusal {
    let turned = match error.get_ref().and_then(|cause| cause.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented) => Turned::NoCertificate,
        Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) => {
            Turned::Expired
        }
        Some(Error::InvalidCertificate(_)) => Turned::Certificate,
        Some(_) => Turned::Tls,
        None => Turned::Broken,
    };
    (turned, error.to_string())
}
