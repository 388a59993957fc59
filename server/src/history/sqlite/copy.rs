//! Copies of the files as they were at one moment, made while the server goes on, and the check of such copies.
//!
//! The writer begins a reading transaction on each file between two groups of batches: no batch is in one of them and not
//! in the other. The copies are then read from these snapshots, in small steps. In WAL mode readers and the writer do not
//! wait for each other, and nothing that is committed meanwhile is in the copies.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use fleetsock_proto::backup::BackupProgress;
use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};

use super::{
    SqliteHistory,
    database::{Files, OpenError, day_files, engine, main_file},
    leaving::Asking,
    registry,
    schema::{Kind, check_schema},
    work::{Work, answer},
};
use crate::history::{CopiedFile, CopyOrder, Heard, Hearer, HistoryError};

/// Pages of one step: 1 MiB.
const STEP_PAGES: i32 = 256;
/// Between two steps, so that the disk has time for the writer.
const PAUSE: Duration = Duration::from_millis(1);
/// Steps of SQLite's machine between two looks whether the check of a copy is still wanted.
const CHECK_STEPS: i32 = 100_000;
/// What must be left of the disk beside a copy, bytes.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;
/// What the audit log calls it.
const ACTION: &str = "backup";

/// All files as they were at one moment.
struct Snapshots {
    files: Vec<Snapshot>,
    // As long as this is kept nothing is taken from those that lose their names.
    _asking: Asking,
}

/// A file as it was at one moment.
struct Snapshot {
    name: String,
    connection: Connection,
}

impl Snapshot {
    /// The file as it is now.
    fn hold(path: &Path, connection: Connection) -> Result<Snapshot, rusqlite::Error> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        connection.execute_batch("BEGIN")?;
        // The moment is that of the first look.
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(Snapshot { name, connection })
    }

    fn bytes(&self) -> Result<u64, rusqlite::Error> {
        let ask = |what| self.connection.pragma_query_value(None, what, |row| row.get::<_, i64>(0));
        Ok(ask("page_count")?.cast_unsigned() * ask("page_size")?.cast_unsigned())
    }
}

impl SqliteHistory {
    /// See [`crate::history::History::copy`].
    pub(super) async fn copy_files(&self, order: CopyOrder, hearer: Hearer) -> Result<Vec<CopiedFile>, HistoryError> {
        let CopyOrder { folder, by, detail } = order;
        let files = self.files.clone();
        let snapshots = self
            .order(|reply| {
                Work::Main(Box::new(move |main, _| {
                    let held = registry::note_order(main, &by, ACTION, &detail);
                    answer(reply, held.and_then(|()| Ok(hold_all(&files)?)));
                }))
            })
            .await?;
        blocking(move || copy_all(&snapshots, &folder, &hearer)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HistoryError> + Send + 'static,
) -> Result<T, HistoryError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| HistoryError::Engine(error.to_string()))?
}

/// Every file as it is now. Only the writer may call this, between two pieces of its work: then nothing changes meanwhile.
fn hold_all(files: &Files) -> Result<Snapshots, rusqlite::Error> {
    let asking = files.ask();
    let catalogue = files.catalogue();
    let mut snapshots = vec![Snapshot::hold(files.main_path(), files.open_main()?)?];
    for part in &catalogue.complete {
        if let Some(connection) = files.open_part(part)? {
            snapshots.push(Snapshot::hold(&part.path, connection)?);
        }
    }
    for sums in &catalogue.sums {
        if let Some(connection) = files.open_sums(sums)? {
            snapshots.push(Snapshot::hold(&sums.path, connection)?);
        }
    }
    snapshots.push(Snapshot::hold(&catalogue.hot.path, files.open_hot(&catalogue.hot)?)?);
    Ok(Snapshots { files: snapshots, _asking: asking })
}

fn copy_all(snapshots: &Snapshots, folder: &Path, hearer: &Hearer) -> Result<Vec<CopiedFile>, HistoryError> {
    let mut wanted = RESERVE_BYTES;
    for snapshot in &snapshots.files {
        wanted += snapshot.bytes()?;
    }
    let disk = rustix::fs::statvfs(folder).map_err(|error| failed(folder, &error.into()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < wanted {
        return Err(HistoryError::TooMuch(format!(
            "{} has room for {free} bytes, and the backup needs {wanted} (some are left free)",
            folder.display()
        )));
    }
    snapshots.files.iter().map(|snapshot| copy_one(snapshot, &folder.join(&snapshot.name), hearer)).collect()
}

fn failed(path: &Path, error: &io::Error) -> HistoryError {
    HistoryError::Engine(format!("{}: {error}", path.display()))
}

fn copy_one(snapshot: &Snapshot, path: &Path, hearer: &Hearer) -> Result<CopiedFile, HistoryError> {
    // SQLite takes the empty file as it is, with its mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(|error| failed(path, &error))?;
    copy_pages(snapshot, path, hearer)?;
    let schema = check(path, &snapshot.name, hearer)?;
    file.sync_all().map_err(|error| failed(path, &error))?;
    Ok(CopiedFile { name: snapshot.name.clone(), schema })
}

fn copy_pages(snapshot: &Snapshot, path: &Path, hearer: &Hearer) -> Result<(), HistoryError> {
    let mut copy = Connection::open(path)?;
    // A copy that breaks off is removed, and one that does not is written out before it counts.
    copy.pragma_update(None, "journal_mode", "OFF")?;
    copy.pragma_update(None, "synchronous", "OFF")?;
    let page: i64 = snapshot.connection.pragma_query_value(None, "page_size", |row| row.get(0))?;
    let bytes = |pages: i32| i64::from(pages).cast_unsigned() * page.cast_unsigned();
    {
        let backup = Backup::new(&snapshot.connection, &mut copy)?;
        loop {
            let step = backup.step(STEP_PAGES)?;
            let at = backup.progress();
            let progress = BackupProgress {
                doing: format!("copy {}", snapshot.name),
                bytes: bytes(at.pagecount - at.remaining),
                bytes_total: bytes(at.pagecount),
            };
            if hearer(progress) == Heard::ByNobody {
                return Err(HistoryError::Abandoned);
            }
            match step {
                StepResult::Done => break,
                StepResult::More => std::thread::sleep(PAUSE),
                other => return Err(HistoryError::Engine(format!("{}: {other:?}", path.display()))),
            }
        }
    }
    copy.close().map_err(|(_, error)| HistoryError::from(error))
}

/// Reads a copy whole and makes it a file that needs no log beside it; its schema.
fn check(path: &Path, name: &str, hearer: &Hearer) -> Result<i32, HistoryError> {
    let mut copy = Connection::open(path)?;
    copy.pragma_update(None, "journal_mode", "DELETE")?;
    let (heard, doing) = (hearer.clone(), format!("check {name}"));
    let progress = move || BackupProgress { doing: doing.clone(), bytes: 0, bytes_total: 0 };
    copy.progress_handler(CHECK_STEPS, Some(move || heard(progress()) == Heard::ByNobody))?;
    let found = problem(&copy).map_err(|error| match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::OperationInterrupted) => HistoryError::Abandoned,
        _ => HistoryError::from(error),
    })?;
    match found {
        None => Ok(schema(&copy)?),
        Some(problem) => Err(HistoryError::Engine(format!("the copy of {name} is damaged: {problem}"))),
    }
}

/// What is wrong with the pages of a file.
fn problem(copy: &Connection) -> Result<Option<String>, rusqlite::Error> {
    let word: String = copy.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    Ok(Some(word).filter(|word| word != "ok"))
}

fn schema(copy: &Connection) -> Result<i32, rusqlite::Error> {
    copy.query_row("SELECT coalesce(max(version), 0) FROM refinery_schema_history", [], |row| row.get(0))
}

/// Reads the files of a copied history whole; the names of those that it consists of. Nothing is changed in them.
pub fn verify(folder: &Path) -> Result<Vec<String>, OpenError> {
    let (main_name, main_path) = main_file(folder);
    let main = open_copy(&main_path)?;
    check_schema(&main_path, &main, Kind::Main)?;
    let days = day_files(&main).map_err(|error| engine(&main_path, &error))?;
    sound(&main_path, &main)?;
    let mut names = vec![main_name];
    for (name, kind) in days {
        let path = folder.join(&name);
        if name.contains('/') {
            let problem = format!("`{name}` is no name of a file in its folder");
            return Err(OpenError::Engine { path: main_path, problem });
        }
        let day = open_copy(&path)?;
        check_schema(&path, &day, kind)?;
        sound(&path, &day)?;
        names.push(name);
    }
    Ok(names)
}

fn open_copy(path: &Path) -> Result<Connection, OpenError> {
    File::open(path).map_err(|error| OpenError::Engine { path: path.to_owned(), problem: error.to_string() })?;
    Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| engine(path, &error))
}

fn sound(path: &Path, copy: &Connection) -> Result<(), OpenError> {
    match problem(copy).map_err(|error| engine(path, &error))? {
        None => Ok(()),
        Some(problem) => Err(OpenError::Engine { path: path.to_owned(), problem }),
    }
}
