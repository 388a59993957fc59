//! Files of a history that must not be opened, and are left as they are.

use std::{
    collections::BTreeMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
};

use fleetsock_server::history::sqlite::{OpenError, Options, SqliteHistory};
use rusqlite::Connection;

use super::process::{Server, refusal, words};

/// A folder with a history that was closed in order.
fn history() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let history = folder.path().join("history");
    drop(SqliteHistory::open(&history, Options::default()).unwrap());
    (folder, history)
}

/// The database files of a folder with length and hash of their bytes; the log's index is rebuilt by every reader.
fn bytes(folder: &Path) -> BTreeMap<PathBuf, (usize, u64)> {
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let kept = |path: &PathBuf| !path.ends_with("lock") && !path.to_string_lossy().ends_with("-shm");
    let digest = |path: PathBuf| {
        let bytes = fs::read(&path).unwrap();
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        (path, (bytes.len(), hasher.finish()))
    };
    // An empty log is none.
    files.filter(kept).map(digest).filter(|(_, (length, _))| *length > 0).collect()
}

fn refused(folder: &Path) -> OpenError {
    SqliteHistory::open(folder, Options::default()).map(drop).unwrap_err()
}

const FROM_THE_FUTURE: &str = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
    VALUES (99, 'later', '2030-01-01T00:00:00Z', '1')";

#[tokio::test]
async fn a_second_server_on_one_database_is_refused_with_the_pid_of_the_first() {
    let mut server = Server::init();
    server.start().await;
    let text = refusal(&server.state());
    let expected = format!("is in use by another fleetsock-server (pid {})", server.pid());
    assert!(text.contains(&expected) && text.contains("/history"), "{text}");
    assert!(server.local().await.is_some(), "the first one serves on");
    server.stop().await;
    // The lock goes with its process, also with one that was killed.
    server.start().await;
    server.kill();
    server.start().await;
    server.stop().await;
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    for name in ["main.db", "day-1.db"] {
        let (_folder, history) = history();
        Connection::open(history.join(name)).unwrap().execute_batch(FROM_THE_FUTURE).unwrap();
        let before = bytes(&history);
        let error = refused(&history);
        assert!(matches!(&error, OpenError::Newer { path, found: 99, .. } if path.ends_with(name)), "{error}");
        let expected = "was written by a newer fleetsock-server (schema 99, this one knows up to ";
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(bytes(&history), before, "{name}");
    }
}

/// A newer server that was killed left a log, which an orderly close by anybody would fold into the database.
#[tokio::test]
async fn a_database_of_a_newer_version_with_a_log_is_left_alone_too() {
    let (_folder, history) = history();
    let copy = tempfile::tempdir().unwrap();
    let killed = copy.path().join("history");
    fs::create_dir(&killed).unwrap();
    fs::set_permissions(&killed, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let newer = Connection::open(history.join("main.db")).unwrap();
    newer.execute_batch(FROM_THE_FUTURE).unwrap();
    for name in ["main.db", "main.db-wal", "day-1.db"] {
        fs::copy(history.join(name), killed.join(name)).unwrap();
    }
    let before = bytes(&killed);
    assert_eq!(before.len(), 3);
    assert!(matches!(refused(&killed), OpenError::Newer { found: 99, .. }));
    assert_eq!(bytes(&killed), before);
}

#[tokio::test]
async fn a_schema_that_somebody_altered_is_refused() {
    for (name, alter) in [
        ("main.db", "UPDATE refinery_schema_history SET checksum = '1'"),
        ("day-1.db", "UPDATE refinery_schema_history SET checksum = '1'"),
        ("day-1.db", "UPDATE refinery_schema_history SET name = 'other'"),
    ] {
        let (_folder, history) = history();
        Connection::open(history.join(name)).unwrap().execute_batch(alter).unwrap();
        let error = refused(&history);
        assert!(matches!(&error, OpenError::Altered { path, .. } if path.ends_with(name)), "{error}");
        assert!(error.to_string().contains("is not the one that this fleetsock-server made"), "{error}");
    }
}

#[tokio::test]
async fn what_is_no_database_is_refused_with_advice() {
    let (_folder, history) = history();
    fs::write(history.join("main.db"), [b'x'; 8192]).unwrap();
    let error = refused(&history).to_string();
    assert!(error.contains("main.db") && error.contains("restore a backup"), "{error}");
    assert_eq!(fs::read(history.join("main.db")).unwrap(), [b'x'; 8192]);
}

#[tokio::test]
async fn a_folder_that_others_can_read_is_refused() {
    let (_folder, history) = history();
    fs::set_permissions(&history, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let error = refused(&history).to_string();
    assert!(error.contains("chmod 700"), "{error}");
}

/// What a server says that does not start; its state folder after something was done to it.
fn start_refused(spoil: impl FnOnce(&Path)) -> (PathBuf, String) {
    let server = Server::init();
    spoil(&server.state());
    (server.state(), refusal(&server.state()))
}

#[tokio::test]
async fn a_server_whose_state_folder_or_a_part_of_it_is_another_users_does_not_start_and_says_what_to_type() {
    if !rustix::process::geteuid().is_root() {
        return eprintln!("skipped: giving a folder to another user takes root");
    }
    for part in ["", "ca", "ca/agents.pem", "history"] {
        let (state, said) = start_refused(|state| {
            // Made by the first start.
            fs::create_dir_all(state.join("history")).unwrap();
            let path = if part.is_empty() { state.to_owned() } else { state.join(part) };
            std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
        });
        let path = if part.is_empty() { state } else { state.join(part) };
        let expected = format!("{} belongs to user id 65534 and this runs as user id 0: ", path.display());
        assert!(
            said.contains(&expected) && said.contains(&format!("(chown -R 0 {})", path.display())),
            "{part}: {said}"
        );
    }
}

#[tokio::test]
async fn a_server_whose_state_folder_or_key_others_can_read_or_is_a_link_does_not_start_and_says_what_to_type() {
    let mode =
        |path: &Path, mode| fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    let (state, said) = start_refused(|state| mode(state, 0o755));
    let expected =
        format!("{0} has mode 0755: others could have read it; set it to 0700 (chmod 700 {0})", state.display());
    assert!(said.contains(&expected), "{said}");
    let (state, said) = start_refused(|state| mode(&state.join("ca/server-leaf.pem"), 0o644));
    assert!(said.contains(&format!("(chmod 600 {}/ca/server-leaf.pem)", state.display())), "{said}");
    let (state, said) = start_refused(|state| {
        fs::rename(state.join("ca/agents.pem"), state.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(state.join("elsewhere"), state.join("ca/agents.pem")).unwrap();
    });
    assert!(
        said.contains(&format!("{}/ca/agents.pem is a symbolic link, not a regular file", state.display())),
        "{said}"
    );
}

#[tokio::test]
async fn a_read_only_folder_is_refused_by_name() {
    let server = Server::init();
    // Permission bits do not bind root, a read-only mount does; it is gone with its namespace.
    let script =
        "mount --bind \"$1\" \"$1\" && mount -o remount,bind,ro \"$1\" || exit 77; exec \"$2\" serve --state \"$1\"";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(server.state())
        .arg(env!("CARGO_BIN_EXE_fleetsock-server"))
        .output();
    let output = match output {
        Ok(output) if output.status.code() == Some(77) || output.stderr.starts_with(b"unshare:") => {
            return eprintln!("skipped: a read-only mount needs root: {}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => return eprintln!("skipped: no unshare(1): {error}"),
        Ok(output) => output,
    };
    let text = words(&output);
    assert!(text.contains("/history/") && text.to_lowercase().contains("read-only"), "{text}");
}
