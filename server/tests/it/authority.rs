//! The CA gives everybody what the profile says, whatever a request asks for.

use fleetsock_proto::{
    host::HostId,
    identity::{Key, Leaf},
    time::Timestamp,
    token::{Operator, Role},
};
use fleetsock_server::{
    authority::{AGENT_LIFE, Authority, AuthorityError, BACKDATED, RequestedKey},
    history::Subject,
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, SanType,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::now;

fn authority() -> (tempfile::TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let trust_domain = "fleetsock.internal".parse().unwrap();
    Authority::create(&ca, &trust_domain, now()).unwrap();
    let authority = Authority::load(&ca, &trust_domain, now()).unwrap();
    (folder, authority)
}

/// A request that asks for everything.
fn hostile_request() -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::Any];
    params.distinguished_name.push(DnType::CommonName, "root");
    params.subject_alt_names = vec![
        SanType::URI("spiffe://fleetsock.internal/operator/admin/root".try_into().unwrap()),
        SanType::DnsName("server.fleetsock.internal".try_into().unwrap()),
    ];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    params.serialize_request(&key).unwrap().der().to_vec()
}

#[test]
fn a_request_that_asks_to_be_a_ca_and_an_admin_gets_the_profile_of_an_agent() {
    let (_folder, authority) = authority();
    let host = HostId::random();
    let key = RequestedKey::of_request(&hostile_request()).unwrap();
    let issued = authority.issue(&Subject::Host(host), &key, now()).unwrap();

    let leaf = Leaf::parse(&issued.chain_der[0]).unwrap();
    assert_eq!(leaf.spiffe_id.to_string(), format!("spiffe://fleetsock.internal/agent/{host}"));
    assert_eq!(leaf.serial, issued.serial);
    assert_eq!(leaf.expires_at.since(now()), AGENT_LIFE);
    assert_eq!(now().since(leaf.begins_at), BACKDATED);

    let (_, certificate) = X509Certificate::from_der(&issued.chain_der[0]).unwrap();
    assert!(!certificate.is_ca());
    let usage = certificate.key_usage().unwrap().unwrap().value;
    assert!(usage.digital_signature() && !usage.key_cert_sign() && !usage.crl_sign());
    let names = &certificate.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn every_certificate_has_a_serial_number_of_its_own() {
    let (_folder, authority) = authority();
    let key = RequestedKey::of_request(&Key::generate().unwrap().request_der().unwrap()).unwrap();
    let operator = Subject::Operator(Operator::new("ci", Role::Viewer).unwrap());
    let serials: std::collections::HashSet<_> =
        (0..100).map(|_| authority.issue(&operator, &key, now()).unwrap().serial).collect();
    assert_eq!(serials.len(), 100);
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let good = Key::generate().unwrap().request_der().unwrap();
    let mut bad_signature = good.clone();
    *bad_signature.last_mut().unwrap() ^= 1;
    let mut trailing = good.clone();
    trailing.push(0);
    let other_curve = {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    };
    for (request, expected) in [
        (Vec::new(), "cannot be read"),
        (vec![0x30; 200], "cannot be read"),
        (vec![0; 9000], "is too long"),
        (good[..good.len() - 1].to_vec(), "cannot be read"),
        (trailing, "has something behind it"),
        (bad_signature, "is not signed by its own key"),
        (other_curve, "is not for a P-256 key"),
    ] {
        let error = RequestedKey::of_request(&request).unwrap_err();
        assert!(matches!(error, AuthorityError::Request(problem) if problem == expected), "{error}, not {expected}");
    }
}

#[test]
fn a_second_ca_is_not_made_over_the_first() {
    let (folder, _authority) = authority();
    let error = Authority::create(&folder.path().join("ca"), &"x.org".parse().unwrap(), now()).unwrap_err();
    assert!(matches!(error, AuthorityError::Exists(_)), "{error}");
}

#[test]
fn a_key_that_others_can_read_is_refused_by_name() {
    use std::os::unix::fs::PermissionsExt;
    let (folder, authority) = authority();
    let path = folder.path().join("ca/agents.pem");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::load(&folder.path().join("ca"), authority.trust_domain(), now()).unwrap_err();
    assert!(error.to_string().contains("agents.pem has mode 0644"), "{error}");
}

#[test]
fn the_server_keeps_its_certificate_until_a_third_of_its_life_is_left() {
    let (folder, authority) = authority();
    let reload = |days: u64| {
        let at = now().plus(std::time::Duration::from_secs(days * 86_400));
        Authority::load(&folder.path().join("ca"), authority.trust_domain(), at).unwrap().server_leaf().expires_at
    };
    let first: Timestamp = authority.server_leaf().expires_at;
    // Certificates count whole seconds.
    assert!(first.since(reload(59)).as_secs() < 1);
    assert!(reload(61) > first);
}
