//! A history that an earlier version wrote: it is copied as it was, brought to the newest schema, and answers as it did.

use std::os::unix::fs::PermissionsExt;

use fleetsock_server::history::sqlite::OpenError;

use super::{runs::as_of_the_first_version, *};

/// What takes back each migration of `main.db`, the newest first.
const BACK: [(i32, &str); 11] = [
    (
        12,
        "DROP INDEX listeners_open; CREATE INDEX listeners_open ON listeners (host_id, port) WHERE closed_at_us IS NULL",
    ),
    (11, "ALTER TABLE programs DROP COLUMN part_id"),
    (10, "DROP TABLE namespace_names"),
    (9, "ALTER TABLE tokens DROP COLUMN created_by"),
    (8, "ALTER TABLE hosts DROP COLUMN proved_at_us"),
    (7, "DROP TABLE host_addresses"),
    (
        6,
        "DROP TABLE restores;
         ALTER TABLE host_certificates DROP COLUMN adopted_at_us;
         ALTER TABLE operator_certificates DROP COLUMN adopted_at_us",
    ),
    (
        5,
        "ALTER TABLE hosts DROP COLUMN tcp_time_wait;
         ALTER TABLE hosts DROP COLUMN tcp_syn_received;
         ALTER TABLE hosts DROP COLUMN tcp_bound",
    ),
    (
        4,
        "ALTER TABLE parts DROP COLUMN sessions;
         ALTER TABLE parts DROP COLUMN max_closed_at_us;
         DROP TABLE horizon",
    ),
    (
        3,
        "CREATE TABLE before (
             id INTEGER PRIMARY KEY, process TEXT NOT NULL, exe TEXT NOT NULL, uid INTEGER NOT NULL, user TEXT NOT NULL,
             container TEXT NOT NULL, unit TEXT NOT NULL, UNIQUE (process, exe, uid, user, container, unit)
         ) STRICT;
         INSERT INTO before SELECT id, process, exe, uid, user, container, unit FROM programs;
         DROP TABLE programs;
         ALTER TABLE before RENAME TO programs",
    ),
    (
        2,
        "DROP TABLE owner_changes;
         DROP TABLE starts;
         DROP INDEX listeners_opened;
         DROP INDEX listeners_closed;
         DROP INDEX listeners_closed_of_host;
         DROP INDEX listeners_by_port",
    ),
];

/// Makes of a `main.db` what the version with this schema made.
fn back_to(schema: i32, main: &Path) {
    for (_, back) in BACK.iter().take_while(|(version, _)| *version > schema) {
        change(main, &format!("{back};"));
    }
    change(main, &format!("DELETE FROM refinery_schema_history WHERE version > {schema};"));
}

fn schema_of(path: &Path) -> i32 {
    let file = Connection::open(path).unwrap();
    let whole: String = file.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
    file.query_row("SELECT max(version) FROM refinery_schema_history", [], |row| row.get(0)).unwrap()
}

/// What is kept of the history as it was: the names of files, and the schema of those that have one.
fn kept(folder: &Path) -> Vec<(String, i32)> {
    let kept = folder.join("before-upgrade");
    assert!(!folder.join("upgrading").exists());
    let Ok(names) = fs::read_dir(&kept) else { return Vec::new() };
    let mut kept: Vec<_> = names.map(|entry| entry.unwrap().path()).filter(|path| !is_companion(path)).collect();
    kept.sort();
    let told = |path: &PathBuf| {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        (path.file_name().unwrap().to_string_lossy().into_owned(), schema_of(path))
    };
    kept.iter().map(told).collect()
}

/// Made by those who look.
fn is_companion(path: &Path) -> bool {
    ["-wal", "-shm"].iter().any(|ending| path.to_string_lossy().ends_with(ending))
}

fn named(files: &[(&str, i32)]) -> Vec<(String, i32)> {
    files.iter().map(|(name, schema)| ((*name).to_owned(), *schema)).collect()
}

#[tokio::test]
async fn a_history_of_each_schema_is_kept_as_it_was_and_answers_as_it_did() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    live(&world).await;
    let before = answers(&world).await;
    world.stop().await;
    let folder = world.engine.folder();
    let (main, day) = (folder.join("main.db"), folder.join("day-1.db"));
    let (newest, newest_day) = (schema_of(&main), schema_of(&day));
    assert_eq!(BACK[0].0, newest, "each migration is taken back here");
    assert_eq!(kept(&folder), [], "of what is new there is nothing to keep");
    for schema in (1..newest).rev() {
        back_to(schema, &main);
        if schema == 1 {
            as_of_the_first_version(&day);
        }
        world.begin().await;
        assert_eq!(answers(&world).await, before, "from schema {schema} on");
        world.stop().await;
        assert_eq!((schema_of(&main), schema_of(&day)), (newest, newest_day));
        let day = if schema == 1 { 1 } else { newest_day };
        assert_eq!(kept(&folder), named(&[("day-1.db", day), ("main.db", schema)]));
    }

    // The way back, as the README has it.
    let readme = include_str!("../../../../README.md");
    let (_, way) = readme.split_once("```sh upgrade\n").unwrap();
    let (way, _) = way.split_once("```").unwrap();
    let state = folder.parent().unwrap();
    let went = std::process::Command::new("sh").args(["-euc", way]).current_dir(state).status().unwrap();
    assert!(went.success());
    assert_eq!((schema_of(&main), schema_of(&day)), (1, 1));
    world.begin().await;
    assert_eq!(answers(&world).await, before);
    world.stop().await;
}

#[tokio::test]
async fn an_upgrade_that_is_killed_keeps_what_was_there_before_it_and_sealed_files_by_a_second_name() {
    let mut world = World::<Hesitant<FEW>>::new().await;
    live(&world).await;
    world.engine.pause_ms.store(1, Relaxed);
    world.restart().await;
    world.engine.wait_until_sealed();
    let before = answers(&world).await;
    world.stop().await;
    let folder = world.engine.folder();
    let (main, sealed) = (folder.join("main.db"), world.engine.files(".sealed"));
    back_to(8, &main);
    world.begin().await;
    world.stop().await;
    // As if it had been killed before it was done, and once more in the middle of a copy that nobody needs.
    fs::rename(folder.join("before-upgrade"), folder.join("upgrading")).unwrap();
    fs::create_dir(folder.join("upgrading.unfinished")).unwrap();
    back_to(9, &main);
    world.begin().await;
    assert_eq!(answers(&world).await, before);
    world.stop().await;
    assert!(!folder.join("upgrading.unfinished").exists());
    let names: BTreeSet<String> = kept(&folder).into_iter().map(|(name, _)| name).collect();
    assert!(sealed.len() > 4 && names.is_superset(&sealed), "{names:?}");
    assert_eq!(schema_of(&folder.join("before-upgrade/main.db")), 8, "not what the first attempt made of it");

    // One that was killed before anything was changed: more came in since, by the server before.
    fs::rename(folder.join("before-upgrade"), folder.join("upgrading")).unwrap();
    back_to(8, &main);
    change(&main, "UPDATE hosts SET os = 'later';");
    world.begin().await;
    world.stop().await;
    assert_eq!(kept(&folder).iter().find(|(name, _)| name == "main.db").unwrap().1, 8);
    let copy = Connection::open(folder.join("before-upgrade/main.db")).unwrap();
    let later: i64 = copy.query_row("SELECT count(*) FROM hosts WHERE os = 'later'", [], |row| row.get(0)).unwrap();
    assert_eq!(later, HOSTS);
    drop(copy);

    // After a week it is gone.
    let week_ago = std::time::SystemTime::now() - Duration::from_secs(7 * 86_400 + 60);
    fs::File::open(folder.join("before-upgrade")).unwrap().set_modified(week_ago).unwrap();
    world.begin().await;
    world.stop().await;
    assert_eq!(kept(&folder), []);
}

#[tokio::test]
async fn where_nothing_can_be_kept_nothing_is_changed() {
    let mut world = World::<Hesitant<MANY>>::new().await;
    live(&world).await;
    world.stop().await;
    let folder = world.engine.folder();
    let main = folder.join("main.db");
    back_to(8, &main);
    // What is in the way is no folder.
    let in_the_way = folder.join("upgrading");
    fs::write(&in_the_way, "").unwrap();
    let before = fs::read(&main).unwrap();
    let Err(error) = SqliteHistory::open(&folder, Options::default()) else { panic!("it was opened") };
    assert!(matches!(&error, OpenError::Engine { path, .. } if *path == folder), "{error}");
    assert!(
        error.to_string().contains("it was left alone: before its schema is changed it is copied, and that"),
        "{error}"
    );
    assert_eq!(fs::read(&main).unwrap(), before);
    fs::remove_file(&in_the_way).unwrap();
    world.begin().await;
    world.stop().await;
    assert_eq!(kept(&folder)[1], ("main.db".to_owned(), 8));
}
