//! Certificate requests: of each only the public key is used.

use std::fmt;

use fleetsock_proto::join::Pin;
use rcgen::SubjectPublicKeyInfo;
use x509_parser::{
    certification_request::X509CertificationRequest, der_parser::oid, prelude::FromDer,
    x509::SubjectPublicKeyInfo as Spki,
};

use super::{AuthorityError, REQUEST_LIMIT};

/// A public key whose holder proved to have the private one.
pub struct RequestedKey(SubjectPublicKeyInfo, [u8; 32]);

impl fmt::Debug for RequestedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestedKey(..)")
    }
}

impl RequestedKey {
    /// The key of a PKCS #10 request (RFC 2986), DER. Everything else that the request asks for is ignored.
    pub fn of_request(der: &[u8]) -> Result<RequestedKey, AuthorityError> {
        if der.len() > REQUEST_LIMIT {
            return Err(AuthorityError::Request("is too long"));
        }
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|_| AuthorityError::Request("cannot be read"))?;
        if !rest.is_empty() {
            return Err(AuthorityError::Request("has something behind it"));
        }
        let key = &request.certification_request_info.subject_pki;
        if !is_p256(key) {
            return Err(AuthorityError::Request("is not for a P-256 key"));
        }
        request.verify_signature().map_err(|_| AuthorityError::Request("is not signed by its own key"))?;
        let hash = *Pin::of_public_key(key.raw).as_bytes();
        let key =
            SubjectPublicKeyInfo::from_der(key.raw).map_err(|_| AuthorityError::Request("has an unusable key"))?;
        Ok(RequestedKey(key, hash))
    }

    pub(super) fn info(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }

    /// SHA-256 of the key, by which a repeated request is known.
    pub fn hash(&self) -> [u8; 32] {
        self.1
    }
}

/// id-ecPublicKey with the curve secp256r1 (RFC 5480).
pub(super) fn is_p256(key: &Spki<'_>) -> bool {
    let parameters = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    key.algorithm.algorithm == oid!(1.2.840.10045.2.1) && parameters == Some(oid!(1.2.840.10045.3.1.7))
}
