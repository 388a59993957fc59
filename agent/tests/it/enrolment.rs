//! What `fleetsock-agent enroll` and `run` say to a person who did something wrong.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::{PermissionsExt, symlink},
    path::Path,
    process::{Command, Output},
};

use fleetsock_proto::join::{JoinString, Pin, TokenSecret};

use crate::listeners::skip;

pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

/// A join string for a server that nobody runs.
fn join(address: &str) -> String {
    JoinString {
        address: address.parse().unwrap(),
        trust_domain: "fleetsock.internal".parse().unwrap(),
        token_id: "0a1b2c3d4e5f6071".to_owned(),
        secret: TokenSecret::from_array([7; 32]),
        pin: Pin::of_public_key(b"nobody's"),
    }
    .to_string()
}

fn agent(arguments: &[&str], state: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fleetsock-agent"))
        .args(arguments)
        .arg("--state")
        .arg(state)
        .env_remove("FLEETSOCK_JOIN")
        .env_remove("NOTIFY_SOCKET")
        .output()
        .unwrap()
}

/// The error of a run that must fail.
fn error(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_damaged_join_string_is_told_from_none() {
    let folder = folder();
    let damaged = join("127.0.0.1:1").replacen('A', "B", 1);
    for (arguments, expected) in [
        (vec!["enroll", "--join", &damaged], "error: the join string is damaged: copy all of it, it is one word\n"),
        (vec!["enroll", "--join", "hello"], "error: this is no join string: it does not begin with fsj1_\n"),
        (
            vec!["enroll"],
            "error: no join string: give it with --join, --join-file or FLEETSOCK_JOIN; an admin makes one with \
             `fleetctl tokens create`\n",
        ),
    ] {
        assert_eq!(error(&agent(&arguments, folder.path())), expected);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_join_file_that_others_could_have_read_or_swapped_is_refused_and_stays() {
    let folder = folder();
    let (file, link) = (folder.path().join("join"), folder.path().join("link"));
    fs::write(&file, join("127.0.0.1:1")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    symlink(&file, &link).unwrap();
    let state = folder.path().join("state");
    let refused = |path: &Path| error(&agent(&["enroll", "--join-file", path.to_str().unwrap()], &state));
    assert!(
        refused(&file).contains("join has mode 0644: others could have read it; set it to 0600"),
        "{}",
        refused(&file)
    );
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let expected = format!(
        "link is a symbolic link, not a regular file: name what it leads to (readlink -f {})\n",
        link.display()
    );
    assert!(
        refused(&link).starts_with("error: join file: ") && refused(&link).ends_with(&expected),
        "{}",
        refused(&link)
    );
    assert!(refused(&folder.path().join("absent")).contains("absent: No such file"));
    assert!(file.exists());
}

/// Gives a file to somebody else; whether that is possible.
fn give_away(path: &Path) -> bool {
    if !rustix::process::geteuid().is_root() {
        skip("giving a file to another user takes root");
        return false;
    }
    std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    true
}

#[test]
fn a_state_folder_of_another_owner_is_refused_by_name_and_with_what_to_type() {
    let folder = folder();
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    if !give_away(&state) {
        return;
    }
    let path = state.display();
    let expected = format!(
        "error: {path} belongs to user id 65534 and this runs as user id 0: run it as its owner, or, if you trust what is \
         there, give it to this one (chown -R 0 {path})\n"
    );
    for arguments in [vec!["enroll", "--join", &join("127.0.0.1:1")], vec!["run"]] {
        assert_eq!(error(&agent(&arguments, &state)), expected, "{}", arguments[0]);
    }
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "nothing was made");
}

#[test]
fn a_join_file_of_another_owner_is_refused_and_stays() {
    let folder = folder();
    let file = folder.path().join("join");
    fs::write(&file, join("127.0.0.1:1")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    if !give_away(&file) {
        return;
    }
    let said = error(&agent(&["enroll", "--join-file", file.to_str().unwrap()], &folder.path().join("state")));
    assert!(said.starts_with(&format!("error: join file: {} belongs to user id 65534", file.display())), "{said}");
    assert!(file.exists());
}

#[test]
fn an_identity_whose_key_others_could_have_read_is_not_used() {
    let folder = folder();
    for name in ["identity.pem", "root.pem", "server"] {
        fs::write(folder.path().join(name), "").unwrap();
    }
    let key = folder.path().join("identity.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let said = error(&agent(&["run"], folder.path()));
    let path = key.display();
    let expected =
        format!("error: {path} has mode 0644: others could have read it; set it to 0600 (chmod 600 {path})\n");
    assert_eq!(said, expected);
}

#[test]
fn a_server_that_is_not_there_is_named_and_the_join_file_stays_for_the_next_attempt() {
    let folder = folder();
    // Bound and not listening: nobody else gets the port, and connections are refused.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = folder.path().join("join");
    fs::write(&file, join(&format!("127.0.0.1:{port}"))).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let said = error(&agent(&["enroll", "--join-file", file.to_str().unwrap()], &folder.path().join("state")));
    assert!(said.starts_with(&format!("error: cannot reach server 127.0.0.1:{port}: ")), "{said}");
    assert!(file.exists());
}

#[test]
fn an_identity_that_is_there_is_not_replaced_unasked() {
    let folder = folder();
    fs::write(folder.path().join("identity.pem"), "").unwrap();
    let said = error(&agent(&["enroll", "--join", &join("127.0.0.1:1")], folder.path()));
    assert!(said.contains("identity.pem exists: this host is enrolled; replace its identity with --force"), "{said}");
}

#[test]
fn an_agent_without_identity_or_with_wrong_settings_says_what_to_do() {
    let folder = folder();
    let said = error(&agent(&["run"], folder.path()));
    assert!(said.starts_with("error: this host is not enrolled") && said.contains("fleetsock-agent enroll"), "{said}");
    fs::write(folder.path().join("agent.toml"), "walk_ms = 5").unwrap();
    let said = error(&agent(&["run"], folder.path()));
    assert!(said.ends_with("agent.toml: walk_ms = 5 is not within 100 and 3600000\n"), "{said}");
}

#[test]
fn a_walk_shows_a_listener_of_this_process() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let output = Command::new(env!("CARGO_BIN_EXE_fleetsock-agent")).arg("walk").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains(&address) && line.contains("listener")).unwrap();
    assert!(line.contains(&format!("({})", std::process::id())), "{line}");
}
