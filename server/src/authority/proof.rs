//! Proof of an old key: who may have a certificate in place of one that is over.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use fleetsock_proto::{
    host::HostId,
    identity::{Leaf, renewal_statement},
    spiffe::Subject,
    time::Timestamp,
    tls::provider,
};
use rustls::{RootCertStore, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{Authority, AuthorityError, REQUEST_LIMIT, request::is_p256};

/// The holder of a certificate's key, as the certificate names him.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The host.
    pub host: HostId,
    /// Serial number of the certificate.
    pub serial: Vec<u8>,
    /// When it ended.
    pub expires_at: Timestamp,
}

fn wrong(problem: impl ToString) -> AuthorityError {
    AuthorityError::Proof(problem.to_string())
}

impl Authority {
    /// Whose key signed a request for the next certificate. Everything that a handshake would check of the old one is
    /// checked as of its last second; whether it is still good is for the registry to say.
    pub fn proven(&self, certificate_der: &[u8], csr_der: &[u8], signature: &[u8]) -> Result<Proven, AuthorityError> {
        if certificate_der.len() > REQUEST_LIMIT || csr_der.len() > REQUEST_LIMIT {
            return Err(wrong("it is too long"));
        }
        let leaf = Leaf::parse(certificate_der).map_err(wrong)?;
        let Subject::Agent(host) = leaf.spiffe_id.subject else {
            return Err(wrong("only agents renew what is over"));
        };
        if leaf.spiffe_id.trust_domain != *self.trust_domain() {
            return Err(wrong("the certificate is of another fleet"));
        }
        self.check_issuer(certificate_der, leaf.expires_at)?;
        let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(wrong)?;
        let key = certificate.public_key();
        if !is_p256(key) {
            return Err(wrong("the certificate is not for a P-256 key"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &key.subject_public_key.data)
            .verify(&renewal_statement(certificate_der, csr_der), signature)
            .map_err(|_| wrong("it is not signed by the certificate's key"))?;
        Ok(Proven { host, serial: leaf.serial, expires_at: leaf.expires_at })
    }

    /// Whether a CA of agents of ours made the certificate.
    fn check_issuer(&self, certificate_der: &[u8], expires_at: Timestamp) -> Result<(), AuthorityError> {
        let mut roots = RootCertStore::empty();
        for ca in self.agents_cas() {
            roots.add(ca).map_err(wrong)?;
        }
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).build().map_err(wrong)?;
        let last = expires_at.minus(Duration::from_secs(1)).since(Timestamp::default());
        let last = UnixTime::since_unix_epoch(last);
        verifier.verify_client_cert(&CertificateDer::from(certificate_der), &[], last).map(drop).map_err(wrong)
    }
}
