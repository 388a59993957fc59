//! The certificate authority of a fleet: a root, and under it one issuing CA each for agents, operators and servers.
//!
//! Every field of a certificate is decided here. Of a certificate request only the public key is used, after its
//! self-signature proved that the asker has the private one: a request that asks to be a CA gets what everybody gets.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
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
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

pub use self::{leaf::ServerLeaf, prepared::Prepared, proof::Proven, request::RequestedKey};
use crate::history::{HistoryError, IssuedCertificate, Subject};

mod leaf;
mod prepared;
mod proof;
mod request;

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
    /// A folder of it cannot be made, renamed or removed.
    #[error("{}: {source}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was ordered does not fit the roots that there are; for whoever ordered it.
    #[error("{0}")]
    Order(&'static str),
    /// An order that was not written down is not carried out.
    #[error("the audit log: {0}")]
    Unrecorded(#[from] HistoryError),
    /// A request that cannot be honoured; for whoever sent it.
    #[error("the certificate request {0}")]
    Request(&'static str),
    /// A proof that proves nothing; for the log.
    #[error("the proof of an old key: {0}")]
    Proof(String),
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
    folder: PathBuf,
    leaf: RwLock<Arc<ServerLeaf>>,
    ca_ends: Vec<(&'static str, Timestamp)>,
    prepared: RwLock<Option<Prepared>>,
    /// Held by whoever changes which roots there are.
    changing: Mutex<()>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a new fleet in a folder that has none.
    pub fn create(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<(), AuthorityError> {
        let root_path = folder.join(ROOT_FILE);
        if root_path.exists() {
            return Err(AuthorityError::Exists(root_path));
        }
        make(folder, trust_domain, now)
    }

    /// Reads the CA of a folder, and sees to it that the server has a certificate with time left.
    pub fn load(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Authority, AuthorityError> {
        private::check_folder(folder)?;
        let root = certificate(&folder.join(ROOT_FILE))?;
        let pin = pin_of(&root).map_err(|source| AuthorityError::Content { path: folder.join(ROOT_FILE), source })?;
        let ca = |role: Role| load_ca(&folder.join(role.file()));
        let leaf = leaf::load_or_make(folder, &ca(Role::Servers)?, trust_domain, now)?;
        let (agents, operators) = (ca(Role::Agents)?, ca(Role::Operators)?);
        let prepared = RwLock::new(prepared::load(folder)?);
        let (trust_domain, folder, leaf) = (trust_domain.clone(), folder.to_owned(), RwLock::new(Arc::new(leaf)));
        let changing = Mutex::default();
        let ca_ends = vec![
            ("root", end_of(&root)?),
            ("agents-ca", end_of(&agents.certificate)?),
            ("operators-ca", end_of(&operators.certificate)?),
        ];
        Ok(Authority { trust_domain, root, pin, agents, operators, folder, leaf, ca_ends, prepared, changing })
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

    /// The root that is to take the place of the one in use.
    pub fn prepared(&self) -> Option<Prepared> {
        self.prepared.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The roots that are handed out, DER, the one in use first.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        let prepared = self.prepared().map(|prepared| prepared.root.to_vec());
        std::iter::once(self.root.to_vec()).chain(prepared).collect()
    }

    /// Makes a root that is to take the place of the one in use, once `record` has written down which it is. Without
    /// that, and after an end in between, there is none. Takes a while: it writes files.
    pub fn prepare(
        &self,
        now: Timestamp,
        record: impl FnOnce(&Prepared) -> Result<(), HistoryError>,
    ) -> Result<Prepared, AuthorityError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.prepared().is_some() {
            return Err(AuthorityError::Order("a root is prepared already; fleetctl ca abort drops it"));
        }
        let prepared = prepared::draft(&self.folder, &self.trust_domain, now)?;
        record(&prepared)?;
        prepared::keep(&self.folder)?;
        *self.prepared.write().unwrap_or_else(PoisonError::into_inner) = Some(prepared.clone());
        Ok(prepared)
    }

    /// Drops the prepared root, once `record` has written that down. Takes a while: it removes files.
    pub fn abort(
        &self,
        record: impl FnOnce(&Prepared) -> Result<(), HistoryError>,
    ) -> Result<Prepared, AuthorityError> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let prepared = self.prepared().ok_or(AuthorityError::Order("no root is prepared"))?;
        record(&prepared)?;
        prepared::discard(&self.folder)?;
        *self.prepared.write().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(prepared)
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
    pub fn server_leaf(&self) -> Arc<ServerLeaf> {
        Arc::clone(&self.leaf.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// When the certificates are over that the fleet hangs on, by whose they are. Those of the CA do not change while the
    /// server runs.
    pub fn ends(&self) -> Vec<(&'static str, Timestamp)> {
        let mut ends = self.ca_ends.clone();
        ends.push(("server", self.server_leaf().expires_at));
        ends
    }

    /// Makes the server's next certificate when less than a third of this one's life is left; whether it did. The key of
    /// the CA is read from its file for that and is not kept.
    pub fn renew_server_leaf(&self, now: Timestamp) -> Result<Option<Arc<ServerLeaf>>, AuthorityError> {
        if self.server_leaf().has_time_left(now) {
            return Ok(None);
        }
        let ca = load_ca(&self.folder.join(Role::Servers.file()))?;
        let leaf = Arc::new(leaf::load_or_make(&self.folder, &ca, &self.trust_domain, now)?);
        *self.leaf.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&leaf);
        Ok(Some(leaf))
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
        let leaf = params.signed_by(key.info(), &ca.issuer).map_err(crypto)?;
        Ok(IssuedCertificate {
            serial,
            chain_der: vec![leaf.der().to_vec(), ca.certificate.to_vec()],
            expires_at: now.plus(life),
            spiffe_id,
        })
    }
}

/// When a certificate is over.
fn end_of(certificate: &CertificateDer<'_>) -> Result<Timestamp, AuthorityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(crypto)?;
    Ok(Timestamp::from_micros(parsed.validity().not_after.timestamp().saturating_mul(1_000_000)))
}

/// Makes a root and its issuing CAs in a folder.
fn make(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<(), AuthorityError> {
    private::make_folder(folder)?;
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
    write_pair(&folder.join(ROOT_FILE), &[&root], &root_key)
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
