//! What agents and fleetctl read from a server, which may be anybody who came by its keys.

use std::sync::LazyLock;

use fleetsock_proto::{
    answer::{AnswerMeta, Gap},
    audit::{AuditRow, AuditVerdict},
    backup::BackupStep,
    change::ChangeRecord,
    host::Host,
    identity::{self, Identity, Key, Leaf, pin_of},
    listener::Listener,
    root::{Behind, Root},
    session::Session,
    stream::ServerMessage,
    summary::Sum,
    tls,
    token::{OperatorCertificate, Token},
    wire,
};
use prost::Message;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};

use super::targets::{Read, Target};

/// What becomes of the certificates that a server sends, as far as a handshake.
fn trusted(chain_der: Vec<Vec<u8>>, roots_der: &[Vec<u8>], key: Key) {
    for root in roots_der {
        drop(pin_of(root));
        drop(identity::expiry(root));
    }
    let root = roots_der.first().cloned().unwrap_or_default();
    let Ok(mut identity) = Identity::new("server:5290".parse().unwrap(), root, chain_der, key) else { return };
    drop(identity.trust(roots_der));
    drop(tls::identified(&identity));
    drop(tls::trusting(identity.roots()));
}

fn key() -> Key {
    static MADE: LazyLock<Key> = LazyLock::new(|| Key::generate().unwrap());
    Key::from_pkcs8(MADE.pkcs8_der()).unwrap()
}

/// A certificate of an operator, and everything that reads one.
pub(crate) fn certificate() -> Target {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://fleetsock.internal/operator/viewer/alice".try_into().unwrap();
    params.subject_alt_names = vec![SanType::URI(uri)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let good = params.self_signed(&pair).unwrap().der().to_vec();
    Leaf::parse(&good).unwrap();
    let read = |bytes: &[u8]| trusted(vec![bytes.to_vec()], &[bytes.to_vec()], key());
    Target::new("certificate", 64 * 1024, Box::new(move |_| good.clone()), Box::new(read))
}

/// A reader of one answer: decoded, and then made into what a client works with.
pub(crate) fn reader(message: &str) -> Option<Read> {
    macro_rules! read {
        ($message:ident, $then:expr) => {
            Some(Box::new(|bytes: &[u8]| {
                if let Ok(message) = wire::$message::decode(bytes) {
                    // Whether it is refused is a matter of other tests.
                    let then: fn(wire::$message) = $then;
                    then(message);
                }
            }))
        };
    }
    macro_rules! rows {
        ($message:ident, $rows:ident, $row:ty) => {
            read!($message, |it| {
                it.$rows.into_iter().for_each(|row| drop(<$row>::try_from(row)));
                drop(it.meta.map(AnswerMeta::try_from));
            })
        };
    }
    macro_rules! step {
        ($message:ident) => {
            read!($message, |it| drop(it.root.map(Root::try_from)))
        };
        ($message:ident, stranded) => {
            read!($message, |it| {
                drop(it.root.map(Root::try_from));
                drop(it.stranded.map(Behind::try_from));
            })
        };
    }
    match message {
        "EnrollResponse" => read!(EnrollResponse, |it| {
            let roots: Vec<_> = std::iter::once(it.root_der).chain(it.roots_der).collect();
            trusted(it.certificate_chain_der, &roots, key());
        }),
        "RenewExpiredResponse" => {
            read!(RenewExpiredResponse, |it| trusted(it.certificate_chain_der, &it.roots_der, key()))
        }
        "RenewCertificateResponse" => {
            read!(RenewCertificateResponse, |it| trusted(it.certificate_chain_der, &it.roots_der, key()))
        }
        "RenewOperatorResponse" => {
            read!(RenewOperatorResponse, |it| trusted(it.certificate_chain_der, &it.roots_der, key()))
        }
        "IssueOperatorResponse" => read!(IssueOperatorResponse, |it| {
            drop(it.address.parse::<fleetsock_proto::join::ServerAddress>());
            let roots: Vec<_> = std::iter::once(it.root_der).chain(it.roots_der).collect();
            trusted(it.certificate_chain_der, &roots, key());
        }),
        "SessionResponse" => read!(SessionResponse, |it| match ServerMessage::try_from(it) {
            Ok(ServerMessage::Welcome(welcome)) => trusted(Vec::new(), &welcome.roots_der, key()),
            Ok(ServerMessage::Roots(roots)) => trusted(Vec::new(), &roots.roots_der, key()),
            _ => {}
        }),
        "ListHostsResponse" => rows!(ListHostsResponse, hosts, Host),
        "ListPortsResponse" => rows!(ListPortsResponse, ports, Listener),
        "ListSessionsResponse" => rows!(ListSessionsResponse, sessions, Session),
        "ListCoverageResponse" => rows!(ListCoverageResponse, gaps, Gap),
        "ListChangesResponse" => rows!(ListChangesResponse, changes, ChangeRecord),
        "SummarizeResponse" => rows!(SummarizeResponse, sums, Sum),
        "ShowServerResponse" => read!(ShowServerResponse, |it| drop(fleetsock_proto::condition::Condition::from(it))),
        "ListAuditResponse" => rows!(ListAuditResponse, rows, AuditRow),
        "CreateTokenResponse" => read!(CreateTokenResponse, |it| drop(it.token.map(Token::try_from))),
        "ListTokensResponse" => {
            read!(ListTokensResponse, |it| it.tokens.into_iter().for_each(|row| drop(Token::try_from(row))))
        }
        "ListOperatorsResponse" => read!(ListOperatorsResponse, |it| {
            it.certificates.into_iter().for_each(|row| drop(OperatorCertificate::try_from(row)));
        }),
        "ListRootsResponse" => {
            read!(ListRootsResponse, |it| it.roots.into_iter().for_each(|row| drop(Root::try_from(row))))
        }
        "RevokeHostResponse" => read!(RevokeHostResponse, drop),
        "ApproveHostResponse" => read!(ApproveHostResponse, drop),
        "RevokeTokenResponse" => read!(RevokeTokenResponse, drop),
        "RevokeOperatorResponse" => read!(RevokeOperatorResponse, drop),
        "VerifyAuditResponse" => read!(VerifyAuditResponse, |it| drop(AuditVerdict::try_from(it))),
        "BackupResponse" => read!(BackupResponse, |it| drop(BackupStep::try_from(it))),
        "PrepareRootResponse" => step!(PrepareRootResponse),
        "AbortRootResponse" => step!(AbortRootResponse),
        "ActivateRootResponse" => step!(ActivateRootResponse, stranded),
        "RetireRootResponse" => step!(RetireRootResponse, stranded),
        _ => None,
    }
}
