//! Backups that are made under load, and backups that must not be put in place.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use fleetsock_proto::{
    backup::{BackupContent, BackupMade, BackupStep},
    client::CallError,
};
use fleetsock_server::history::sqlite;
use rusqlite::Connection;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    kill::{Reporter, check_rows},
    process::{Server, server, words},
};

const AGENTS: usize = 3;
const BACKUPS: u64 = 5;

async fn backup(server: &Server, name: &str, content: BackupContent) -> Result<BackupMade, CallError> {
    let mut backup = server.local().await.unwrap().backup(&name.parse().unwrap(), content).await?;
    let mut steps = 0;
    loop {
        match backup.next().await? {
            BackupStep::Progress(progress) => {
                assert!(progress.bytes <= progress.bytes_total, "{progress:?}");
                steps += 1;
            }
            BackupStep::Made(made) => {
                assert!(steps > 0, "how far it is was told");
                return Ok(made);
            }
        }
    }
}

fn restore(from: &Path, state: &Path) -> std::process::Output {
    server(&["restore", "--from"]).arg(from).arg("--state").arg(state).output().unwrap()
}

/// How far each host's history goes, by the file that has listeners and by the one that has sessions.
fn cursors(backup: &Path) -> [Vec<(i64, i64, i64)>; 2] {
    [("main.db", "listener_cursors"), ("day-1.db", "cursors")].map(|(file, table)| {
        let database = Connection::open(backup.join("history").join(file)).unwrap();
        let sql = format!("SELECT host_id, epoch, seq FROM {table} ORDER BY host_id");
        let mut statement = database.prepare(&sql).unwrap();
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap();
        rows.map(Result::unwrap).collect()
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_load_is_one_moment_of_both_files_and_goes_on_where_it_was_made() {
    fleetsock_proto::tls::install_provider();
    let mut server = Server::init();
    server.start().await;
    let (acks, enough) = (Arc::new(AtomicU64::new(0)), CancellationToken::new());
    let mut reporting = JoinSet::new();
    for number in 0..AGENTS {
        let reporter = Reporter::enrol(&server, number).await;
        reporting.spawn(reporter.run(acks.clone(), enough.clone()));
    }
    let mut last = None;
    for number in 0..BACKUPS {
        let goal = acks.load(Relaxed) + 50;
        while acks.load(Relaxed) < goal {
            assert!(reporting.try_join_next().is_none(), "an agent ended early");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let made = backup(&server, &format!("b{number}"), BackupContent::Fleet).await.unwrap();
        let folder = PathBuf::from(&made.folder);
        assert_eq!(sqlite::verify(&folder.join("history")).unwrap(), ["main.db", "day-1.db"]);
        // Every batch here has listeners and sessions, so that both files count all of them.
        let [main, day] = cursors(&folder);
        assert_eq!((main.len(), main == day), (AGENTS, true), "{main:?} {day:?}");
        assert!(day.iter().map(|(_, _, seq)| seq.cast_unsigned()).sum::<u64>() >= goal, "all that was acknowledged");
        last = Some(folder);
    }
    // Nothing is acknowledged after the last backup but what comes while the agents stop.
    enough.cancel();
    let mut reporters = reporting.join_all().await;
    server.stop().await;

    let mut second = Server::nowhere();
    let folder = last.unwrap();
    let restored = restore(&folder, &second.state());
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    let told = String::from_utf8_lossy(&restored.stdout).into_owned();
    for text in
        ["WARNING: whether one of these was revoked since the backup is not known", "fleetctl hosts revoke HOST"]
    {
        assert!(told.contains(text), "{told}");
    }
    second.start().await;
    for reporter in &mut reporters {
        reporter.acknowledged = 0;
        check_rows(&second, reporter).await;
    }
    second.stop().await;
    let restored = ["main.db", "day-1.db"].map(|name| second.history().join(name));
    for file in walk(&folder).into_iter().chain(restored) {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o077, 0, "{}", file.display());
    }
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// A copy of a backup, to be changed.
fn copied(backup: &Path, to: &Path) -> PathBuf {
    let place = to.join("copy");
    if place.exists() {
        fs::remove_dir_all(&place).unwrap();
    }
    let copied = std::process::Command::new("cp").arg("-r").arg(backup).arg(&place).status().unwrap();
    assert!(copied.success());
    place
}

#[tokio::test]
async fn a_backup_that_is_damaged_newer_of_another_fleet_or_in_the_way_is_not_put_in_place() {
    let mut server = Server::init();
    server.start().await;
    let made = backup(&server, "good", BackupContent::Fleet).await.unwrap();
    let again = backup(&server, "good", BackupContent::History).await.unwrap_err();
    assert_eq!(again, CallError::Invalid("there is a backup `good` already; choose another name".to_owned()));
    let good = PathBuf::from(&made.folder);
    assert!(words(&restore(&good, &server.state())).contains("is in use by another fleetsock-server"));
    server.stop().await;

    let elsewhere = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&Path), expected: &str| {
        let backup = copied(&good, elsewhere.path());
        change(&backup);
        let before = fs::read(server.history().join("main.db")).unwrap();
        let text = words(&restore(&backup, &server.state()));
        assert!(text.contains(expected), "{expected}: {text}");
        assert_eq!(fs::read(server.history().join("main.db")).unwrap(), before, "{expected}: what was there stays");
        assert!(!server.state().join("restoring").exists(), "{expected}: nothing is left behind");
    };
    let one_byte = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        bytes[5000] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    refused(&|backup| one_byte(&backup.join("history/main.db")), "its SHA-256 or its size differs");
    refused(&|backup| fs::write(backup.join("ca/root.pem"), "x").unwrap(), "ca/root.pem: is not the file");
    refused(&|backup| fs::remove_file(backup.join("history/day-1.db")).unwrap(), "No such file");
    refused(&|backup| fs::remove_file(backup.join("manifest.toml")).unwrap(), "manifest.toml: No such file");
    refused(&|backup| newer(backup), "was written by a newer fleetsock-server (schema 99");
    refused(&|backup| manifest(backup, "history/day-1.db", "history/other.db"), "other.db: No such file");
    let other = Server::init();
    assert!(words(&restore(&good, &other.state())).contains("is of the fleet with the CA"));
    // And it is good.
    assert!(restore(&good, &server.state()).status.success());
    server.start().await;
    server.stop().await;
}

fn manifest(backup: &Path, from: &str, to: &str) {
    let path = backup.join("manifest.toml");
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{from}: {text}");
    fs::write(path, text.replace(from, to)).unwrap();
}

/// A backup of a newer server, whose manifest fits its files.
fn newer(backup: &Path) {
    let path = backup.join("history/main.db");
    let hash = |path: &Path| {
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &fs::read(path).unwrap());
        hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    let before = hash(&path);
    let sql = "INSERT INTO refinery_schema_history (version, name, applied_on, checksum)
        VALUES (99, 'later', '2030-01-01T00:00:00Z', '1')";
    Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    manifest(backup, &before, &hash(&path));
}

#[tokio::test]
async fn nothing_stays_of_a_backup_that_nobody_waits_for() {
    let mut server = Server::init();
    server.start().await;
    let name = "left".parse().unwrap();
    let backup = server.local().await.unwrap().backup(&name, BackupContent::History).await.unwrap();
    drop(backup);
    // Either it was whole before anybody noticed, or there is nothing of it, also no part.
    let folder = server.state().join("backups");
    loop {
        let names: Vec<_> =
            fs::read_dir(&folder).map_or(Vec::new(), |found| found.map(|one| one.unwrap().file_name()).collect());
        let over =
            server.local().await.unwrap().list_audit(Default::default()).await.unwrap().collect().await.unwrap().0;
        let over = over.iter().find(|row| ["backup made", "backup failed"].contains(&row.action.as_str()));
        if let Some(row) = over {
            let expected: &[&str] = if row.action == "backup made" { &["left"] } else { &[] };
            assert_eq!(names, expected, "{row:?}");
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    server.stop().await;
}
