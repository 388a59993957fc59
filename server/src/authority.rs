//! The certificate authority of a fleet: a root, and under it one issuing CA each for agents, operators and servers.
//!
//! Every field of a certificate is decided here. Of a certificate request only the public key is used, after its
//! self-signature proved that the asker has the private one: a request that asks to be a CA gets what everybody gets.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::rand;
use fleetsock_proto::{
    identity::{self, IdentityError, Key, pem, pin_of},
    join::Pin,
    private::{self, PrivateFileError},
    spiffe::{self, SpiffeId, TrustDomain},
    time::Timestamp,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::{
    certification_request::X509CertificationRequest, der_parser::oid, prelude::FromDer,
    x509::SubjectPublicKeyInfo as Spki,
};

use crate::history::{IssuedCertificate, Subject};

/// Life of the root.
pub const ROOT_LIFE: Duration = days(3650);
/// Life of the issuing CAs.
pub const ISSUING_LIFE: Duration = days(1825);
/// Life of the server's certificate; a new one is made at the start when less than a third is left.
pub const SERVER_LIFE: Duration = days(90);
/// Life of an agent's certificate; renewed daily, so that six days without the server are survived.
pub const AGENT_LIFE: Duration = days(7);
/// Life of an operator's certificate.
pub const OPERATOR_LIFE: Duration = days(90);
/// How far in the past a validity begins, for clocks that are behind.
pub const BACKDATED: Duration = Duration::from_secs(3600);
/// Longest certificate request that is looked at, bytes.
pub const REQUEST_LIMIT: usize = 8 * 1024;

const fn days(days: u64) -> Duration {
    Duration::from_secs(days * 86_400)
}

/// What a CA of ours issues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Agents,
    Operators,
    Servers,
}

impl Role {
    const ALL: [Role; 3] = [Role::Agents, Role::Operators, Role::Servers];

    const fn file(self) -> &'static str {
        match self {
            Role::Agents => "agents.pem",
            Role::Operators => "operators.pem",
            Role::Servers => "servers.pem",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Role::Agents => "agents CA",
            Role::Operators => "operators CA",
            Role::Servers => "servers CA",
        }
    }
}

const ROOT_FILE: &str = "root.pem";
const LEAF_FILE: &str = "server-leaf.pem";

/// Why the CA cannot be used, or did not issue.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of it is missing, or others could read it.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// A file of it does not hold what it should.
    #[error("{}: {source}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: IdentityError,
    },
    /// There is one already.
    #[error("{} exists already: this folder has a CA, and agents that trust it", .0.display())]
    Exists(PathBuf),
    /// A request that cannot be honoured; for whoever sent it.
    #[error("the certificate request {0}")]
    Request(&'static str),
    /// Cryptography failed.
    #[error("{0}")]
    Crypto(String),
}

fn crypto(error: impl fmt::Display) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}

/// A CA: its certificate, and its key ready to sign.
struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The CA of a fleet.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    pin: Pin,
    agents: Ca,
    operators: Ca,
    leaf: ServerLeaf,
}

/// The server's own certificate.
pub struct ServerLeaf {
    /// Leaf and issuing CA.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key, PKCS #8.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// End of its validity.
    pub expires_at: Timestamp,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl fmt::Debug for ServerLeaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerLeaf").field("expires_at", &self.expires_at).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a new fleet in a folder that has none.
    pub fn create(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<(), AuthorityError> {
        private::make_folder(folder)?;
        let root_path = folder.join(ROOT_FILE);
        if root_path.exists() {
            return Err(AuthorityError::Exists(root_path));
        }
        let root_key = new_key()?;
        let root_params = ca_params(&format!("Fleetsock {trust_domain} root"), now, ROOT_LIFE, 1)?;
        let root = root_params.self_signed(&root_key).map_err(crypto)?;
        let root_issuer = Issuer::from_params(&root_params, &root_key);
        for role in Role::ALL {
            let key = new_key()?;
            let params = ca_params(&format!("Fleetsock {trust_domain} {}", role.name()), now, ISSUING_LIFE, 0)?;
            let certificate = params.signed_by(&key, &root_issuer).map_err(crypto)?;
            write_pair(&folder.join(role.file()), &[&certificate], &key)?;
        }
        // Last, because its presence says that the CA is whole.
        write_pair(&root_path, &[&root], &root_key)
    }

    /// Reads the CA of a folder, and sees to it that the server has a certificate with time left.
    pub fn load(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Authority, AuthorityError> {
        private::check_folder(folder)?;
        let root = certificate(&folder.join(ROOT_FILE))?;
        let pin = pin_of(&root).map_err(|source| AuthorityError::Content { path: folder.join(ROOT_FILE), source })?;
        let ca = |role: Role| load_ca(&folder.join(role.file()));
        let leaf = server_leaf(folder, &ca(Role::Servers)?, trust_domain, now)?;
        let (agents, operators) = (ca(Role::Agents)?, ca(Role::Operators)?);
        Ok(Authority { trust_domain: trust_domain.clone(), root, pin, agents, operators, leaf })
    }

    /// The fleet.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root's certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// What newcomers know the root by.
    pub fn pin(&self) -> Pin {
        self.pin
    }

    /// The CA under which the certificates of agents are valid.
    pub fn agents_ca(&self) -> &CertificateDer<'static> {
        &self.agents.certificate
    }

    /// The CA under which the certificates of operators are valid.
    pub fn operators_ca(&self) -> &CertificateDer<'static> {
        &self.operators.certificate
    }

    /// The server's own certificate.
    pub fn server_leaf(&self) -> &ServerLeaf {
        &self.leaf
    }

    /// Makes a certificate for a subject and the key of a request.
    pub fn issue(
        &self,
        subject: &Subject,
        key: &RequestedKey,
        now: Timestamp,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let (ca, life, subject) = match subject {
            Subject::Host(host) => (&self.agents, AGENT_LIFE, spiffe::Subject::Agent(*host)),
            Subject::Operator(operator) => {
                (&self.operators, OPERATOR_LIFE, spiffe::Subject::Operator(operator.clone()))
            }
        };
        let spiffe_id = SpiffeId { trust_domain: self.trust_domain.clone(), subject }.to_string();
        let mut params = params(&spiffe_id, now, life)?;
        params.subject_alt_names = vec![SanType::URI(spiffe_id.as_str().try_into().map_err(crypto)?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let serial = params.serial_number.as_ref().map(SerialNumber::to_bytes).unwrap_or_default();
        let leaf = params.signed_by(&key.0, &ca.issuer).map_err(crypto)?;
        Ok(IssuedCertificate {
            serial,
            chain_der: vec![leaf.der().to_vec(), ca.certificate.to_vec()],
            expires_at: now.plus(life),
            spiffe_id,
        })
    }
}

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

    /// SHA-256 of the key, by which a repeated request is known.
    pub fn hash(&self) -> [u8; 32] {
        self.1
    }
}

/// id-ecPublicKey with the curve secp256r1 (RFC 5480).
fn is_p256(key: &Spki<'_>) -> bool {
    let parameters = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    key.algorithm.algorithm == oid!(1.2.840.10045.2.1) && parameters == Some(oid!(1.2.840.10045.3.1.7))
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto)
}

/// What every certificate has: a random serial number, dates, a name for people.
fn params(name: &str, now: Timestamp, life: Duration) -> Result<CertificateParams, AuthorityError> {
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(crypto)?;
    // Positive and of one length (RFC 5280 section 4.1.2.2).
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = SystemTime::from(now.minus(BACKDATED)).into();
    params.not_after = SystemTime::from(now.plus(life)).into();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca_params(name: &str, now: Timestamp, life: Duration, below: u8) -> Result<CertificateParams, AuthorityError> {
    let mut params = params(name, now, life)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn write_pair(path: &Path, certificates: &[&Certificate], key: &KeyPair) -> Result<(), AuthorityError> {
    let mut text = pem("PRIVATE KEY", key.serialized_der());
    for certificate in certificates {
        text.push_str(&pem("CERTIFICATE", certificate.der()));
    }
    Ok(private::write(path, text.as_bytes())?)
}

fn content(path: &Path) -> impl FnOnce(IdentityError) -> AuthorityError {
    move |source| AuthorityError::Content { path: path.to_owned(), source }
}

fn certificate(path: &Path) -> Result<CertificateDer<'static>, AuthorityError> {
    let text = private::read(path)?;
    Ok(identity::certificates(&text).map_err(content(path))?.swap_remove(0))
}

fn load_ca(path: &Path) -> Result<Ca, AuthorityError> {
    let text = private::read(path)?;
    let certificate = identity::certificates(&text).map_err(content(path))?.swap_remove(0);
    let key = key_pair(&identity::private_key(&text).map_err(content(path))?)?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(crypto)?;
    Ok(Ca { certificate, issuer })
}

fn key_pair(key: &Key) -> Result<KeyPair, AuthorityError> {
    let der = PrivatePkcs8KeyDer::from(key.pkcs8_der());
    KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256).map_err(crypto)
}

/// The server's certificate: the one on disk while it has a third of its life left, else a new one.
fn server_leaf(
    folder: &Path,
    ca: &Ca,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<ServerLeaf, AuthorityError> {
    let path = folder.join(LEAF_FILE);
    if path.exists() {
        let text = private::read(&path)?;
        let chain = identity::certificates(&text).map_err(content(&path))?;
        let key = identity::private_key(&text).map_err(content(&path))?;
        let expires_at = identity::expiry(&chain[0]).map_err(content(&path))?;
        let made_by_this_ca = chain.get(1) == Some(&ca.certificate);
        if made_by_this_ca && expires_at.since(now) > SERVER_LIFE / 3 {
            return Ok(ServerLeaf { chain, key: key.pkcs8_der().to_vec().into(), expires_at });
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
    private::write(&path, text.as_bytes())?;
    let chain = vec![leaf.der().clone(), ca.certificate.clone()];
    Ok(ServerLeaf { chain, key: key.serialize_der().into(), expires_at: now.plus(SERVER_LIFE) })
}
