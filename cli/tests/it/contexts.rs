//! Contexts, identities and their files, with a server that is not there.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt};

use fleetsock_proto::{
    identity::{Identity, Key},
    join::{JoinString, Pin, TokenSecret},
};

use crate::program::{Home, Ran};

/// A join string for an address where nobody listens.
fn join(address: &str) -> String {
    let join = JoinString {
        address: address.parse().unwrap(),
        trust_domain: "fleetsock.internal".parse().unwrap(),
        token_id: "t1".to_owned(),
        secret: TokenSecret::from_array([7; 32]),
        pin: Pin::of_public_key(b"nobody"),
    };
    join.to_string()
}

/// An address on which nothing listens any more.
fn closed_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn write_config(home: &Home, text: &str, mode: u32) {
    let folder = home.config();
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let file = folder.join("config.toml");
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_server_that_is_not_there_is_exit_code_5() {
    let (home, address) = (Home::new(), closed_address());
    for ran in [
        home.run(&["login", &join(&address)]),
        Ran::from(home.command(&["login"]).env("FLEETSOCK_JOIN", join(&address)).output().unwrap()),
    ] {
        let expected = format!(
            "error: cannot reach server {address}: Connection refused (os error 111)\n  try: fleetctl doctor\n"
        );
        assert_eq!((ran.code, ran.err), (5, expected));
    }
    let told = home.run(&["-v", "login", &join(&address)]).err;
    assert_eq!(told.matches("Connection refused").count(), 1, "{told}");
    assert!(!home.config().join("config.toml").exists(), "nothing is kept of a login that failed");
}

#[test]
fn a_damaged_join_string_is_told_and_not_repeated() {
    let home = Home::new();
    let mut damaged = join("127.0.0.1:1");
    damaged.pop();
    let ran = home.run(&["login", &damaged]);
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("the join string is damaged") && !ran.err.contains(&damaged), "{ran:?}");
    let ran = home.run(&["login"]);
    assert!(ran.code == 2 && ran.err.contains("login takes a join string"), "{ran:?}");
}

#[test]
fn a_missing_unix_socket_is_exit_code_5() {
    let home = Home::new();
    let socket = home.path().join("admin.sock");
    let ran = home.run(&["login", "--local", socket.to_str().unwrap(), "--name", "root"]);
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains("fleetsock-server serve"), "{ran:?}");
}

#[test]
fn a_config_file_that_others_can_read_is_refused_by_name() {
    let home = Home::new();
    write_config(&home, "", 0o644);
    let ran = home.run(&["ports"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("config.toml has mode 0644") && ran.err.contains("chmod 600"), "{ran:?}");
}

#[test]
fn an_unknown_key_is_told_with_its_line() {
    let home = Home::new();
    write_config(&home, "[contexts.prod]\nidentity = \"x\"\nserver = \"db1\"\n", 0o600);
    let ran = home.run(&["context"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("line 3") && ran.err.contains("unknown field `server`"), "{ran:?}");
}

#[test]
fn contexts_are_listed_chosen_and_removed() {
    let home = Home::new();
    write_config(
        &home,
        "[contexts.prod]\nidentity = \"identities/prod\"\n[contexts.stage]\nidentity = \"/none\"\n",
        0o600,
    );
    let ran = home.run(&["context", "use", "prdo"]);
    assert_eq!((ran.code, ran.err.as_str()), (6, "error: there is no context `prdo`\n  try: did you mean prod?\n"));
    let ran = home.run(&["context", "use", "prod"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, "context prod is in use from now on\n"));
    let ran = home.run(&["context", "-o", "csv", "--columns", "context,current"]);
    assert_eq!(ran.out, "context,current\nprod,true\nstage,false\n");
    let ran = home.run(&["context", "remove", "prod"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(home.run(&["context", "list", "-o", "name"]).out, "stage\n");
    let ran = home.run(&["ports"]);
    assert_eq!((ran.code, ran.err.contains("fleetctl context use stage")), (4, true), "{ran:?}");
}

#[test]
fn an_identity_that_is_missing_or_readable_by_others_is_exit_code_4() {
    let home = Home::new();
    write_config(&home, "current = \"a\"\n[contexts.a]\nidentity = \"identities/a\"\n", 0o600);
    let ran = home.run(&["hosts"]);
    assert!(ran.code == 4 && ran.err.contains("fleetctl login"), "{ran:?}");
    let folder = home.config().join("identities/a");
    fs::create_dir_all(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    let ran = home.run(&["hosts"]);
    assert!(ran.code == 4 && ran.err.contains("chmod 700"), "{ran:?}");
}

#[test]
fn the_variable_chooses_a_context_and_the_option_wins() {
    let home = Home::new();
    write_config(&home, "[contexts.a]\nidentity = \"x\"\n", 0o600);
    let with = |arguments: &[&str]| Ran::from(home.command(arguments).env("FLEETSOCK_CONTEXT", "b").output().unwrap());
    let ran = with(&["ports"]);
    assert!(ran.code == 6 && ran.err.contains("there is no context `b`"), "{ran:?}");
    let ran = with(&["ports", "--context", "c"]);
    assert!(ran.code == 6 && ran.err.contains("there is no context `c`"), "{ran:?}");
}

#[test]
fn doctor_says_how_far_it_got() {
    let home = Home::new();
    let ran = home.run(&["doctor"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.contains("✗ context   fleetctl does not know any server yet\n            try: fleetctl login"),
        "{ran:?}"
    );

    // An identity of our own making, for a server that is not there.
    let address = closed_address();
    identity(&address).store(&home.config().join("identities/a")).unwrap();
    write_config(&home, "current = \"a\"\n[contexts.a]\nidentity = \"identities/a\"\n", 0o600);
    let ran = home.run(&["doctor"]);
    assert_eq!(ran.code, 1);
    assert!(ran.out.contains(&format!("✓ context   a: {address} as alice (admin)\n")), "{ran:?}");
    assert!(ran.out.contains("✗ identity  expired"), "{ran:?}");
    assert!(ran.out.contains(&format!("✗ tcp       {address}: Connection refused")), "{ran:?}");
    let ran = home.run(&["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let wrong = report["items"].as_array().unwrap().iter().filter(|check| check["state"] == "wrong").count();
    assert_eq!(wrong, 2, "{report}");

    let ran = home.run(&["hosts"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.starts_with(&format!("error: server {address} refused our certificate (expired ")), "{ran:?}");
    assert!(ran.err.contains("  try: fleetctl login"), "{ran:?}");
}

/// An operator's identity whose certificate ended on 2020-01-02. No server made it: it is for us to refuse.
fn identity(address: &str) -> Identity {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut parameters = rcgen::CertificateParams::default();
    let uri = "spiffe://fleetsock.internal/operator/admin/alice".try_into().unwrap();
    parameters.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let certificate = parameters.self_signed(&pair).unwrap().der().to_vec();
    let key = Key::from_pkcs8(pair.serialized_der()).unwrap();
    Identity::new(address.parse().unwrap(), certificate.clone(), vec![certificate], key).unwrap()
}
