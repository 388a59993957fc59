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
    identity::{self, IdentityError, Key, pem},
    join::Pin,
    private::{self, PrivateFileError},
    root::RootState,
    spiffe::{self, SpiffeId, TrustDomain},
    time::Timestamp,
};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use self::{generation::Generation, rotation::Rotation};
pub use self::{leaf::ServerLeaf, proof::Proven, request::RequestedKey, rotation::Step};
use crate::history::{HistoryError, IssuedCertificate, Subject};

mod exchange;
mod generation;
mod leaf;
mod proof;
mod request;
pub(crate) mod rotation;

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
            Role::Agents => "agents",
            Role::Operators => "operators",
            Role::Servers => "servers",
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
    /// Where the exchange of the root stands cannot be read.
    #[error("{}: {problem}", path.display())]
    Rotation {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
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

/// From when on a certificate that is made at a moment is valid, in whole seconds, not before that moment's own.
pub(crate) fn begins_at(made_at: Timestamp) -> Timestamp {
    let micros = made_at.minus(BACKDATED).as_micros();
    // Certificates know no parts of a second.
    Timestamp::from_micros(micros.saturating_add(999_999).div_euclid(1_000_000).saturating_mul(1_000_000))
}

fn crypto(error: impl fmt::Display) -> AuthorityError {
    AuthorityError::Crypto(error.to_string())
}

/// A CA: its certificate, and its key ready to sign.
struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// The CA of a fleet: the one that issues, and while it is exchanged another one that is trusted as well.
pub struct Authority {
    trust_domain: TrustDomain,
    folder: PathBuf,
    current: RwLock<Current>,
    /// Held by whoever makes a step.
    changing: Mutex<()>,
}

/// What there is now.
#[derive(Clone)]
struct Current {
    rotation: Rotation,
    active: Arc<Generation>,
    other: Option<Arc<Generation>>,
}

impl Current {
    fn all(&self) -> impl Iterator<Item = &Arc<Generation>> {
        std::iter::once(&self.active).chain(&self.other)
    }

    fn retiring(&self) -> Option<&Arc<Generation>> {
        self.other.as_ref().filter(|other| self.rotation.retiring() == Some(other.number))
    }
}

/// A root that is handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRoot {
    /// What it is used for.
    pub state: RootState,
    /// What it is known by.
    pub pin: Pin,
    /// End of its validity.
    pub expires_at: Timestamp,
}

/// What a server shows in a handshake: its certificate, and what callers need to trust it.
#[derive(Debug, Clone)]
pub struct ShownChains {
    /// Its certificate and key.
    pub leaf: Arc<ServerLeaf>,
    /// For callers who have roots: leaf, issuing CA, and while the root before is trusted that CA as signed by it.
    pub identified: Vec<CertificateDer<'static>>,
    /// For callers who have a pin: the same and the roots.
    pub newcomers: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// Makes the CA of a new fleet in a folder that has none.
    pub fn create(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<(), AuthorityError> {
        generation::refuse_existing(folder)?;
        Rotation::refuse_existing(folder)?;
        private::make_folder(folder)?;
        generation::make(folder, Rotation::FIRST, None, trust_domain, now)
    }

    /// Reads the CA of a folder, and sees to it that the server has a certificate with time left. What a step that was cut
    /// off left behind is removed.
    pub fn load(folder: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Authority, AuthorityError> {
        private::check_folder(folder)?;
        let rotation = Rotation::read(folder)?;
        let load = |number| Generation::load(folder, number, trust_domain, now).map(Arc::new);
        let (active, other) = (load(rotation.active)?, rotation.other().map(load).transpose()?);
        generation::tidy(folder)?;
        generation::sweep(folder, rotation)?;
        let current = RwLock::new(Current { rotation, active, other });
        let (trust_domain, folder, changing) = (trust_domain.clone(), folder.to_owned(), Mutex::default());
        Ok(Authority { trust_domain, folder, current, changing })
    }

    /// The fleet.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The certificate of the root that is active.
    pub fn root(&self) -> CertificateDer<'static> {
        self.current().active.root.clone()
    }

    /// What newcomers know the active root by.
    pub fn pin(&self) -> Pin {
        self.current().active.pin
    }

    /// The roots that are handed out, the active one first.
    pub fn roots(&self) -> Vec<KnownRoot> {
        let current = self.current();
        let known = |generation: &Arc<Generation>| KnownRoot {
            state: current.rotation.state(generation.number),
            pin: generation.pin,
            expires_at: generation.expires_at,
        };
        current.all().map(known).collect()
    }

    /// The certificates of the roots that are handed out, DER, the active one first.
    pub fn roots_der(&self) -> Vec<Vec<u8>> {
        self.current().all().map(|generation| generation.root.to_vec()).collect()
    }

    /// While two roots are handed out: certificates that were made before this moment are to be renewed.
    pub fn renew_before(&self) -> Option<Timestamp> {
        self.current().rotation.renew_before()
    }

    /// The CAs under which the certificates of agents are valid.
    pub fn agents_cas(&self) -> Vec<CertificateDer<'static>> {
        self.current().all().map(|generation| generation.agents.certificate.clone()).collect()
    }

    /// The CAs under which the certificates of operators are valid.
    pub fn operators_cas(&self) -> Vec<CertificateDer<'static>> {
        self.current().all().map(|generation| generation.operators.certificate.clone()).collect()
    }

    /// The server's own certificate.
    pub fn server_leaf(&self) -> Arc<ServerLeaf> {
        self.current().active.leaf()
    }

    /// When the certificates are over that the fleet hangs on, by whose they are.
    pub fn ends(&self) -> Vec<(&'static str, Timestamp)> {
        let active = self.current().active;
        let mut ends = active.ca_ends.to_vec();
        ends.push(("server", active.leaf().expires_at));
        ends
    }

    /// What the server shows in a handshake. Whoever trusts either of two roots of which one retires, accepts it.
    pub fn shown_chains(&self) -> ShownChains {
        let current = self.current();
        let leaf = current.active.leaf();
        let retiring = current.retiring();
        let cross = retiring.and_then(|_| current.active.servers_cross.clone());
        let identified: Vec<_> = leaf.chain.iter().cloned().chain(cross).collect();
        let roots = std::iter::once(&current.active).chain(retiring).map(|generation| generation.root.clone());
        let newcomers = identified.iter().cloned().chain(roots).collect();
        ShownChains { leaf, identified, newcomers }
    }

    /// Makes the server's next certificate under each root where less than a third of this one's life is left; tells of
    /// the one under the active root.
    pub fn renew_server_leaf(&self, now: Timestamp) -> Result<Option<Arc<ServerLeaf>>, AuthorityError> {
        let current = self.current();
        if let Some(other) = &current.other {
            other.renew_leaf(&self.trust_domain, now)?;
        }
        current.active.renew_leaf(&self.trust_domain, now)
    }

    /// Makes a certificate for a subject and the key of a request.
    pub fn issue(
        &self,
        subject: &Subject,
        key: &RequestedKey,
        now: Timestamp,
    ) -> Result<IssuedCertificate, AuthorityError> {
        let active = self.current().active;
        let (ca, life, subject) = match subject {
            Subject::Host(host) => (&active.agents, AGENT_LIFE, spiffe::Subject::Agent(*host)),
            Subject::Operator(operator) => {
                (&active.operators, OPERATOR_LIFE, spiffe::Subject::Operator(operator.clone()))
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
