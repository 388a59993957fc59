//! What the server shows of itself and whom it trusts, by the role that a certificate names.

use std::sync::{Arc, PoisonError, RwLock};

use fleetsock_proto::{
    identity::Leaf,
    spiffe::{Subject, TrustDomain},
    tls::{ALPN_H2, provider},
};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authority::{Authority, ShownChains};

/// What every connection is held to: no session is resumed, HTTP/2 only.
fn hardened(mut config: ServerConfig) -> ServerConfig {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config
}

/// The certificate that the server shows, under each of its names. Connections that are there keep the one that they
/// were made with; new ones get the newest.
#[derive(Debug, Clone)]
pub struct Shown {
    identified: Arc<Current>,
    newcomers: Arc<Current>,
    trusted: Arc<RoleVerifier>,
}

impl Shown {
    pub(super) fn new(authority: &Authority) -> Result<Shown, Error> {
        let (identified, newcomers) = certified(authority)?;
        Ok(Shown {
            identified: Arc::new(Current::new(identified)),
            newcomers: Arc::new(Current::new(newcomers)),
            trusted: Arc::new(RoleVerifier::new(authority)?),
        })
    }

    /// From now on new connections are shown what the authority has now, and held against what it trusts now.
    pub fn exchange(&self, authority: &Authority) -> Result<(), Error> {
        let (identified, newcomers) = certified(authority)?;
        self.identified.set(identified);
        self.newcomers.set(newcomers);
        self.trusted.exchange(Roles::new(authority)?);
        Ok(())
    }
}

/// The chains for callers with a certificate and for newcomers, who get the roots as well, to find the one that their pin
/// is of.
fn certified(authority: &Authority) -> Result<(CertifiedKey, CertifiedKey), Error> {
    let ShownChains { leaf, identified, newcomers } = authority.shown_chains();
    let certified = |chain| CertifiedKey::from_der(chain, leaf.key.clone_key().into(), &provider());
    Ok((certified(identified)?, certified(newcomers)?))
}

/// A certificate that can be exchanged.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    fn new(key: CertifiedKey) -> Current {
        Current(RwLock::new(Arc::new(key)))
    }

    fn set(&self, key: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(key);
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner)))
    }
}

pub(super) fn identified_config(shown: &Shown) -> Result<ServerConfig, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::clone(&shown.trusted) as _)
        .with_cert_resolver(Arc::clone(&shown.identified) as _);
    Ok(hardened(config))
}

pub(super) fn newcomers_config(shown: &Shown) -> Result<ServerConfig, Error> {
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&shown.newcomers) as _);
    Ok(hardened(config))
}

/// Accepts an agent's certificate from the agents' CA only, an operator's from the operators' only: the role in the
/// name, the issuing CA and the key usage must agree.
#[derive(Debug)]
struct RoleVerifier {
    trust_domain: TrustDomain,
    roles: RwLock<Arc<Roles>>,
}

/// Whose certificates are accepted, by role.
#[derive(Debug)]
struct Roles {
    agents: Arc<dyn ClientCertVerifier>,
    operators: Arc<dyn ClientCertVerifier>,
}

impl Roles {
    fn new(authority: &Authority) -> Result<Roles, Error> {
        let under = |cas: Vec<CertificateDer<'static>>| -> Result<Arc<dyn ClientCertVerifier>, Error> {
            let mut roots = RootCertStore::empty();
            for ca in cas {
                roots.add(ca)?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .map_err(|error| Error::General(error.to_string()))
        };
        Ok(Roles { agents: under(authority.agents_cas())?, operators: under(authority.operators_cas())? })
    }
}

impl RoleVerifier {
    fn new(authority: &Authority) -> Result<RoleVerifier, Error> {
        let roles = RwLock::new(Arc::new(Roles::new(authority)?));
        Ok(RoleVerifier { trust_domain: authority.trust_domain().clone(), roles })
    }

    fn roles(&self) -> Arc<Roles> {
        Arc::clone(&self.roles.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn exchange(&self, roles: Roles) {
        *self.roles.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(roles);
    }
}

impl ClientCertVerifier for RoleVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let refused = || Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        let leaf = Leaf::parse(end_entity).map_err(|_| refused())?;
        if leaf.spiffe_id.trust_domain != self.trust_domain {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let roles = self.roles();
        let verifier = match leaf.spiffe_id.subject {
            Subject::Agent(_) => &roles.agents,
            Subject::Operator(_) => &roles.operators,
        };
        // Directly under its CA, whatever else the caller put into the chain.
        verifier.verify_client_cert(end_entity, &[], now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.roles().agents.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.roles().agents.supported_verify_schemes()
    }
}
