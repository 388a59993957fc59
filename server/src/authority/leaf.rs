//! The server's own certificate: made here, and made again before it is over.

use std::{fmt, path::Path};

use fleetsock_proto::{
    identity::{self, pem},
    private,
    spiffe::TrustDomain,
    time::Timestamp,
};
use rcgen::{ExtendedKeyUsagePurpose, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use super::{AuthorityError, Ca, SERVER_LIFE, content, crypto, new_key, params};

/// The server's own certificate.
pub struct ServerLeaf {
    /// Leaf and issuing CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key, PKCS #8.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// End of its validity.
    pub expires_at: Timestamp,
}

impl ServerLeaf {
    /// Whether more than a third of its life is left.
    pub fn has_time_left(&self, now: Timestamp) -> bool {
        self.expires_at.since(now) > SERVER_LIFE / 3
    }
}

impl fmt::Debug for ServerLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLeaf").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

/// The server's certificate: the one on disk while it has a third of its life left, else a new one.
pub(super) fn load_or_make(
    path: &Path,
    ca: &Ca,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<ServerLeaf, AuthorityError> {
    if path.exists() {
        let text = private::read(path)?;
        let chain = identity::certificates(&text).map_err(content(path))?;
        let key = identity::private_key(&text).map_err(content(path))?;
        let expires_at = identity::expiry(&chain[0]).map_err(content(path))?;
        let made_by_this_ca = chain.get(1) == Some(&ca.certificate);
        let leaf = ServerLeaf { chain, key: key.pkcs8_der().to_vec().into(), expires_at };
        if made_by_this_ca && leaf.has_time_left(now) {
            return Ok(leaf);
        }
    }
    let key = new_key()?;
    let mut params = params(&trust_domain.server_name(), now, SERVER_LIFE)?;
    for name in [trust_domain.server_name(), trust_domain.enroll_name()] {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(crypto)?));
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let leaf = params.signed_by(&key, &ca.issuer).map_err(crypto)?;
    let text =
        [pem("PRIVATE KEY", key.serialized_der()), pem("CERTIFICATE", leaf.der()), pem("CERTIFICATE", &ca.certificate)]
            .concat();
    private::write(path, text.as_bytes())?;
    let chain = vec![leaf.der().clone(), ca.certificate.clone()];
    Ok(ServerLeaf { chain, key: key.serialize_der().into(), expires_at: now.plus(SERVER_LIFE) })
}
