//! What an agent or an operator proves itself with: a key, its certificates, the CA it trusts, and where its server is.
//!
//! On disk it is a folder (0700) of three files (0600): `identity.pem` (key, leaf, issuing CA: one file, so that key and
//! certificate are exchanged together or not at all), `root.pem` (each root that is trusted, the one in use first), and
//! `server` (the address).

use std::{fmt, path::Path};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{
    join::{Pin, ServerAddress},
    private::{self, PrivateFileError},
    spiffe::SpiffeId,
    time::Timestamp,
};

const IDENTITY_FILE: &str = "identity.pem";
const ROOT_FILE: &str = "root.pem";
const SERVER_FILE: &str = "server";
/// Most certificates of a chain that are looked at.
pub const CHAIN_LIMIT: usize = 4;
/// Most roots that are trusted at once: the one before, the one in use and the one to come.
pub const ROOTS_LIMIT: usize = 3;

/// Why there is no identity to use.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing, unreadable, or readable by others.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// A file does not hold what it should.
    #[error("{0}")]
    Content(String),
}

fn content(problem: impl fmt::Display) -> IdentityError {
    IdentityError::Content(problem.to_string())
}

/// A P-256 key, made where it is used.
pub struct Key(KeyPair);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A fresh key.
    pub fn generate() -> Result<Key, IdentityError> {
        KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map(Key).map_err(content)
    }

    /// The key in PKCS #8 (RFC 5958).
    pub fn from_pkcs8(der: &[u8]) -> Result<Key, IdentityError> {
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &PKCS_ECDSA_P256_SHA256)
            .map(Key)
            .map_err(content)
    }

    /// The key as PKCS #8: a secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// A certificate request (PKCS #10) that proves possession of the key and asks for nothing else.
    pub fn request_der(&self) -> Result<Vec<u8>, IdentityError> {
        let request = CertificateParams::default().serialize_request(&self.0).map_err(content)?;
        Ok(request.der().to_vec())
    }
}

/// What the key of a certificate signs to get the next one after that one is over: its purpose, so that no other
/// signature of the key can stand for it, the certificate, and the request for the new key.
pub fn renewal_statement(certificate_der: &[u8], csr_der: &[u8]) -> Vec<u8> {
    let mut statement = b"fleetsock renew expired v1\0".to_vec();
    for part in [certificate_der, csr_der] {
        statement.extend_from_slice(digest::digest(&digest::SHA256, part).as_ref());
    }
    statement
}

/// What an agent or an operator proves itself with.
pub struct Identity {
    /// Where its server is.
    pub address: ServerAddress,
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// When its certificate begins to be valid.
    pub begins_at: Timestamp,
    /// When its certificate ends.
    pub expires_at: Timestamp,
    /// Serial number of its certificate, big-endian.
    pub serial: Vec<u8>,
    key: Key,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("address", &self.address.as_str())
            .field("spiffe_id", &self.spiffe_id.to_string())
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// What a leaf certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its one URI subject alternative name.
    pub spiffe_id: SpiffeId,
    /// Serial number, big-endian.
    pub serial: Vec<u8>,
    /// Beginning of its validity.
    pub begins_at: Timestamp,
    /// End of its validity.
    pub expires_at: Timestamp,
}

impl Leaf {
    /// What the certificate of an agent or an operator says; refuses one with any other or further name, and one that
    /// is not for client authentication alone (verifiers check that only where a certificate speaks of it).
    pub fn parse(der: &[u8]) -> Result<Leaf, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(content)?;
        let names = certificate
            .subject_alternative_name()
            .map_err(content)?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let [GeneralName::URI(uri)] = names else {
            return Err(content("the certificate does not have exactly one URI as its name"));
        };
        let purpose = certificate.extended_key_usage().map_err(content)?.map(|extension| extension.value);
        let for_clients = purpose.is_some_and(|purpose| purpose.client_auth && !purpose.server_auth && !purpose.any);
        if !for_clients || certificate.is_ca() {
            return Err(content("the certificate is not for client authentication alone"));
        }
        let validity = certificate.validity();
        let moment = |seconds: i64| Timestamp::from_micros(seconds.saturating_mul(1_000_000));
        Ok(Leaf {
            spiffe_id: uri.parse().map_err(content)?,
            serial: certificate.raw_serial().to_vec(),
            begins_at: moment(validity.not_before.timestamp()),
            expires_at: moment(validity.not_after.timestamp()),
        })
    }
}

/// Pin of a certificate's public key.
pub fn pin_of(certificate_der: &[u8]) -> Result<Pin, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(content)?;
    Ok(Pin::of_public_key(certificate.public_key().raw))
}

/// End of a certificate's validity.
pub fn expiry(certificate_der: &[u8]) -> Result<Timestamp, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(certificate_der).map_err(content)?;
    Ok(Timestamp::from_micros(certificate.validity().not_after.timestamp().saturating_mul(1_000_000)))
}

/// A certificate that can be a root.
fn root(der: &[u8]) -> Result<CertificateDer<'static>, IdentityError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(content)?;
    if !certificate.is_ca() {
        return Err(content("a root that is no CA"));
    }
    Ok(CertificateDer::from(der.to_vec()))
}

/// One section of a PEM file (RFC 7468).
pub fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    let encoded = STANDARD.encode(der);
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Certificates of a PEM text, in order, at most [`CHAIN_LIMIT`].
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pem).take(CHAIN_LIMIT + 1).collect::<Result<_, _>>().map_err(content)?;
    if chain.is_empty() || chain.len() > CHAIN_LIMIT {
        return Err(content(format!("expected 1 to {CHAIN_LIMIT} certificates")));
    }
    Ok(chain)
}

/// The one private key of a PEM text.
pub fn private_key(pem: &[u8]) -> Result<Key, IdentityError> {
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(content)?;
    Key::from_pkcs8(key.secret_pkcs8_der())
}

impl Identity {
    /// Puts together what an enrolment gave.
    pub fn new(
        address: ServerAddress,
        root_der: Vec<u8>,
        chain_der: Vec<Vec<u8>>,
        key: Key,
    ) -> Result<Identity, IdentityError> {
        let leaf = Leaf::parse(chain_der.first().ok_or_else(|| content("there is no certificate"))?)?;
        Ok(Identity {
            address,
            spiffe_id: leaf.spiffe_id,
            begins_at: leaf.begins_at,
            expires_at: leaf.expires_at,
            serial: leaf.serial,
            key,
            chain: chain_der.into_iter().map(CertificateDer::from).collect(),
            roots: vec![CertificateDer::from(root_der)],
        })
    }

    /// The same holder with a new key and certificate.
    pub fn renewed(&self, chain_der: Vec<Vec<u8>>, key: Key) -> Result<Identity, IdentityError> {
        let mut renewed = Identity::new(self.address.clone(), Vec::new(), chain_der, key)?;
        renewed.roots.clone_from(&self.roots);
        Ok(renewed)
    }

    /// The same once more, to be given away.
    pub fn duplicate(&self) -> Result<Identity, IdentityError> {
        let chain_der = self.chain.iter().map(|certificate| certificate.to_vec()).collect();
        self.renewed(chain_der, Key::from_pkcs8(self.key.pkcs8_der())?)
    }

    /// Trusts these roots from now on, the one in use first, in place of those before; none leaves those. Tells whether
    /// anything changed. They must come from a server that proved itself by a root that is trusted now.
    pub fn trust(&mut self, roots_der: &[Vec<u8>]) -> Result<bool, IdentityError> {
        if roots_der.len() > ROOTS_LIMIT {
            return Err(content(format!("{} roots, of at most {ROOTS_LIMIT}", roots_der.len())));
        }
        let roots = roots_der.iter().map(|der| root(der)).collect::<Result<Vec<_>, _>>()?;
        let changed = !roots.is_empty() && roots != self.roots;
        if changed {
            self.roots = roots;
        }
        Ok(changed)
    }

    /// Writes the roots that are trusted to a folder that has the rest of the identity.
    pub fn store_roots(&self, folder: &Path) -> Result<(), IdentityError> {
        let roots: String = self.roots.iter().map(|root| pem("CERTIFICATE", root)).collect();
        Ok(private::write(&folder.join(ROOT_FILE), roots.as_bytes())?)
    }

    /// Reads the identity in a folder. Refuses files that others could have read, and says which.
    pub fn load(folder: &Path) -> Result<Identity, IdentityError> {
        private::check_folder(folder)?;
        let within = |file: &str, error: IdentityError| match error {
            IdentityError::Content(problem) => content(format!("{}: {problem}", folder.join(file).display())),
            other => other,
        };
        let own = private::read(&folder.join(IDENTITY_FILE))?;
        let root = private::read(&folder.join(ROOT_FILE))?;
        let server = String::from_utf8_lossy(&private::read(&folder.join(SERVER_FILE))?).into_owned();
        let address = server.trim().parse().map_err(|error| within(SERVER_FILE, content(error)))?;
        let roots = certificates(&root).map_err(|error| within(ROOT_FILE, error))?;
        let key = private_key(&own).map_err(|error| within(IDENTITY_FILE, error))?;
        let chain = certificates(&own).map_err(|error| within(IDENTITY_FILE, error))?;
        let chain = chain.iter().map(|certificate| certificate.to_vec()).collect();
        let identity = Identity::new(address, Vec::new(), chain, key).map_err(|error| within(IDENTITY_FILE, error))?;
        Ok(Identity { roots, ..identity })
    }

    /// Writes the identity to a folder, which is made unless it is there. A half-written one is never seen.
    pub fn store(&self, folder: &Path) -> Result<(), IdentityError> {
        private::make_folder(folder)?;
        self.store_roots(folder)?;
        private::write(&folder.join(SERVER_FILE), format!("{}\n", self.address).as_bytes())?;
        let mut own = pem("PRIVATE KEY", self.key.pkcs8_der());
        for certificate in &self.chain {
            own.push_str(&pem("CERTIFICATE", certificate));
        }
        private::write(&folder.join(IDENTITY_FILE), own.as_bytes())?;
        Ok(())
    }

    /// Our signature of a [`renewal_statement`]: ECDSA with SHA-256, ASN.1.
    pub fn sign_renewal(&self, csr_der: &[u8]) -> Result<Vec<u8>, IdentityError> {
        let leaf = self.chain.first().ok_or_else(|| content("there is no certificate"))?;
        self.key.0.sign(&renewal_statement(leaf, csr_der)).map_err(content)
    }

    /// Leaf and issuing CA, as TLS shows them.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The roots that the server is trusted by, the one in use first.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The key, as TLS takes it.
    pub fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.pkcs8_der().to_vec()).into()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, SanType};

    use super::*;

    fn certificate(key: &Key, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        change(&mut params);
        params.self_signed(&key.0).unwrap().der().to_vec()
    }

    fn root() -> Vec<u8> {
        certificate(&Key::generate().unwrap(), |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))
    }

    fn leaf(key: &Key) -> Vec<u8> {
        certificate(key, |params| {
            let uri = "spiffe://fleetsock.internal/operator/viewer/alice".try_into().unwrap();
            params.subject_alt_names = vec![SanType::URI(uri)];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        })
    }

    fn roots(identity: &Identity) -> Vec<Vec<u8>> {
        identity.roots().iter().map(|root| root.to_vec()).collect()
    }

    #[test]
    fn an_identity_keeps_every_root_that_it_trusts_and_takes_none_that_cannot_be_one() {
        let (key, first, second) = (Key::generate().unwrap(), root(), root());
        let leaf = leaf(&key);
        let mut identity =
            Identity::new("server:5290".parse().unwrap(), first.clone(), vec![leaf.clone()], key).unwrap();
        let both = [first.clone(), second.clone()];
        assert!(identity.trust(&both).unwrap());
        assert!(!identity.trust(&both).unwrap());
        // A server that hands none out is an older one.
        assert!(!identity.trust(&[]).unwrap());

        let too_many = vec![first; ROOTS_LIMIT + 1];
        for (what, refused) in
            [("too many", too_many), ("a leaf", vec![second, leaf]), ("no certificate", vec![vec![1]])]
        {
            assert!(identity.trust(&refused).is_err(), "{what}");
            assert_eq!(roots(&identity), both, "{what}");
        }

        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("identity");
        identity.store(&folder).unwrap();
        assert_eq!(roots(&Identity::load(&folder).unwrap()), both);
        let chain = identity.chain().iter().map(|certificate| certificate.to_vec()).collect();
        let key = Key::from_pkcs8(identity.key.pkcs8_der()).unwrap();
        assert_eq!(roots(&identity.renewed(chain, key).unwrap()), both);
    }
}
