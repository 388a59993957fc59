//! The files of a history: who may open them, how connections are born, and their schema.

use std::{
    fs::File,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use fleetsock_proto::{
    private::{self, PrivateFileError},
    time::Timestamp,
};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};

use super::{
    courtesy::LastAsked,
    leaving::{Asking, Leaving},
    parts::{self, Catalogue, Form, Hot, Keeping, Part, Shared, Summed},
    schema::{Kind, check_schema, migrate, refuse_newer},
    sealed,
};
use crate::history::HistoryError;

mod planning;
mod turning;
mod unchanging;
mod upgrading;

use self::{planning::keep_plans, turning::Turning, unchanging::open_unchanging};

const MAIN_FILE: &str = "main.db";
const LOCK_FILE: &str = "lock";
/// Versions before this one have open advisories.
const OLDEST_SQLITE: i32 = 3_051_003;
/// Pages of the log before they are moved into the database: more makes commits slower now and then, fewer makes
/// everything be written twice as often.
const CHECKPOINT_PAGES: i64 = 4000;
/// The log is cut to this many bytes after it grew.
const LOG_BYTES: i64 = 64 * 1024 * 1024;
/// Page cache of the writer for each of its two files, KiB (SQLite takes it negative). A commit looks through all of it when
/// a B-tree was balanced (pcache1TruncateUnsafe: the swap goes by a page number above all others), so that more of it costs
/// more than the pages that it saves, which the system has in memory too. Agents' rows cost the same CPU with 4 MiB as with
/// 16 (10.1 and 10.4 us).
const WRITER_CACHE_KIB: i64 = 4 * 1024;
/// Page cache of a reader, KiB.
const READER_CACHE_KIB: i64 = 16 * 1024;
/// The same for a file that is complete: there are many of them.
const PART_CACHE_KIB: i64 = 1024;
/// Rows of a table that are deleted in one transaction because they are too old.
const DELETED_AT_ONCE: u32 = 2_000;
/// Statements kept ready on a connection.
const STATEMENTS: usize = 64;

/// Why a history cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder is missing, not ours, or open to others.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// Another server has it.
    #[error("{} is in use by another fleetsock-server{}", folder.display(), pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// Who has it, when it said so.
        pid: Option<u32>,
    },
    /// A newer server wrote it.
    #[error(
        "{} was written by a newer fleetsock-server (schema {found}, this one knows up to {known}); it was left alone: use that server, or restore a backup",
        path.display()
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i32,
        /// The newest schema that this program knows.
        known: i32,
    },
    /// A migration that was applied is not the one that this program has.
    #[error("{}: the schema is not the one that this fleetsock-server made: {problem}", path.display())]
    Altered {
        /// Which file.
        path: PathBuf,
        /// What is different.
        problem: String,
    },
    /// SQLite or the disk refused.
    #[error("{}: {problem}", path.display())]
    Engine {
        /// Which file.
        path: PathBuf,
        /// What happened.
        problem: String,
    },
    /// The SQLite of this build is too old.
    #[error("SQLite {0} has open advisories; this program needs 3.51.3 or newer")]
    OldSqlite(&'static str),
    /// The system gave no thread.
    #[error("cannot start the writer: {0}")]
    Thread(io::Error),
}

/// The open files of a history, as its one writer has them.
pub(super) struct Database {
    /// `main.db`.
    pub(super) main: Connection,
    /// The file that sessions are written to.
    pub(super) day: Connection,
    /// The file after that, while it takes over what is open.
    turning: Option<Turning>,
    /// When it could not go on with that.
    given_up_at: Option<Timestamp>,
    files: Files,
    keeping: Keeping,
    // Held for as long as the files are open.
    _lock: File,
}

/// Where the files are, for readers.
#[derive(Debug, Clone)]
pub(super) struct Files {
    folder: PathBuf,
    main: PathBuf,
    catalogue: Shared,
    leaving: Leaving,
    asked: LastAsked,
}

impl Database {
    /// Opens the files in a folder, or makes them.
    pub(super) fn open(folder: &Path, keeping: Keeping, now: Timestamp) -> Result<Database, OpenError> {
        if rusqlite::version_number() < OLDEST_SQLITE {
            return Err(OpenError::OldSqlite(rusqlite::version()));
        }
        private::make_folder(folder)?;
        let lock = lock(folder)?;
        let failed = |error: io::Error| OpenError::Engine { path: folder.to_owned(), problem: error.to_string() };
        parts::remove_unfinished(folder).map_err(failed)?;
        upgrading::keep_as_it_was(folder)?;
        let main_path = folder.join(MAIN_FILE);
        let mut main = open_for_writing(&main_path, Kind::Main.runner())?;
        let catalogue = parts::load(&mut main, folder, now).map_err(|error| engine(&main_path, &error))?;
        let next = catalogue.hot.next(folder, now);
        parts::remove(folder, &parts::file_of(next.id)).map_err(failed)?;
        let day = open_for_writing(&catalogue.hot.path, Kind::Day.runner())?;
        for part in &catalogue.complete {
            // SQLite would make an empty one, and days would be gone without a word.
            if !part.path.exists() {
                let problem = "it holds sessions that are kept, and it is missing; restore a backup".to_owned();
                return Err(OpenError::Engine { path: part.path.clone(), problem });
            }
            match part.form {
                // Also what is only read has the newest schema.
                Form::Rows => drop(open_for_writing(&part.path, Kind::Day.runner())?),
                Form::Sealed => {
                    let sealed = open_for_reading(&part.path).map_err(|error| engine(&part.path, &error))?;
                    check_schema(&part.path, &sealed, Kind::Sealed)?;
                    let rows = parts::file_of(part.id);
                    let failed =
                        |error: io::Error| OpenError::Engine { path: folder.join(&rows), problem: error.to_string() };
                    parts::remove(folder, &rows).map_err(failed)?;
                }
            }
        }
        for sums in &catalogue.sums {
            if !sums.path.exists() {
                let problem = "it holds sums that are kept, and it is missing; restore a backup".to_owned();
                return Err(OpenError::Engine { path: sums.path.clone(), problem });
            }
            let failed = |error: rusqlite::Error| engine(&sums.path, &error);
            check_schema(&sums.path, &open_for_reading(&sums.path).map_err(failed)?, Kind::Sums)?;
            let failed = |error: io::Error| OpenError::Engine { path: sums.path.clone(), problem: error.to_string() };
            parts::remove_all(folder, sums.id).map_err(failed)?;
        }
        upgrading::done(folder).map_err(failed)?;
        let files = Files {
            folder: folder.to_owned(),
            main: main_path,
            catalogue: Shared::new(catalogue),
            leaving: Leaving::default(),
            asked: LastAsked::new(),
        };
        let database = Database { main, day, turning: None, given_up_at: None, files, keeping, _lock: lock };
        parts::remove_dropped(&database.main, folder).map_err(|error| database.failed(error))?;
        Ok(database)
    }

    /// Drops what is older than it is kept.
    pub(super) fn drop_old(&mut self, now: Timestamp) -> Result<(), rusqlite::Error> {
        let Some(horizon) = parts::horizon(self.keeping, now) else { return Ok(()) };
        let catalogue = self.files.catalogue.get();
        // Where sums are kept, they take the place of a file first (`sealed::sealer`).
        let old = |part: &&Part| self.keeping.sums.is_none() && part.latest < horizon.as_micros();
        let gone: Vec<i64> = catalogue.complete.iter().filter(old).map(|part| part.id).collect();
        let of_sums = parts::horizon_of_sums(self.keeping, now);
        let is_old = |sums: &&Summed| sums.latest < of_sums.as_micros();
        let sums_gone: Vec<i64> = catalogue.sums.iter().filter(is_old).map(|sums| sums.id).collect();
        parts::drop_before(&mut self.main, (&gone, &sums_gone), (horizon, of_sums), DELETED_AT_ONCE)?;
        let horizon = parts::stored_horizon(&self.main)?;
        self.files.catalogue.change(|catalogue| {
            catalogue.complete.retain(|part| !gone.contains(&part.id));
            catalogue.sums.retain(|sums| !sums_gone.contains(&sums.id));
            catalogue.horizon = horizon;
        });
        if !gone.is_empty() || !sums_gone.is_empty() {
            tracing::info!(files = ?gone, sums = ?sums_gone, "what is older than what is kept is dropped");
            if let Err(error) = upgrading::remove_old(&self.files.folder) {
                tracing::warn!(%error, "the history as it was before an upgrade cannot be removed");
            }
        }
        self.files.leaving.add(parts::remove_dropped(&self.main, &self.files.folder)?);
        Ok(())
    }

    pub(super) fn files(&self) -> Files {
        self.files.clone()
    }

    /// The error of something that was asked of `main.db` while it was opened.
    pub(super) fn failed(&self, error: rusqlite::Error) -> OpenError {
        engine(&self.files.main, &error)
    }
}

impl Files {
    /// `main.db`.
    pub(super) fn main_path(&self) -> &Path {
        &self.main
    }

    /// The folder of all files.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Somebody begins to ask: what he finds can be read for as long as this is kept.
    pub(super) fn ask(&self) -> Asking {
        self.leaving.ask()
    }

    /// When somebody asked last.
    pub(super) fn asked(&self) -> &LastAsked {
        &self.asked
    }

    /// Files that lost their names, whose room is to be given back.
    pub(super) fn leaving(&self) -> &Leaving {
        &self.leaving
    }

    /// A connection that cannot write.
    pub(super) fn open_main(&self) -> Result<Connection, rusqlite::Error> {
        open_for_reading(&self.main)
    }

    /// Puts the sealed form of a file in its place; whether it was still kept. Only the writer may call this, between two
    /// pieces of its work.
    pub(super) fn exchange(&self, main: &Connection, id: i64) -> Result<bool, rusqlite::Error> {
        let exchanged = parts::exchange(main, id)?;
        if exchanged {
            let path = self.folder.join(parts::sealed_of(id));
            self.catalogue.change(|catalogue| {
                for part in catalogue.complete.iter_mut().filter(|part| part.id == id) {
                    *part = Part { path: path.clone(), form: Form::Sealed, ..part.clone() };
                }
            });
        }
        Ok(exchanged)
    }

    /// Puts the sums of a file in its place; whether it was still kept. Only the writer may call this.
    pub(super) fn exchange_for_sums(
        &self,
        main: &mut Connection,
        id: i64,
        horizon: Timestamp,
    ) -> Result<bool, rusqlite::Error> {
        let exchanged = parts::exchange_for_sums(main, id, horizon)?;
        if exchanged {
            let (sums, horizon) = (parts::load_sums(main, &self.folder)?, parts::stored_horizon(main)?);
            self.catalogue.change(|catalogue| {
                catalogue.complete.retain(|part| part.id != id);
                (catalogue.sums, catalogue.horizon) = (sums, horizon);
            });
        }
        Ok(exchanged)
    }

    /// A connection to a file of sums; none when it was dropped meanwhile.
    pub(super) fn open_sums(&self, sums: &Summed) -> Result<Option<Connection>, rusqlite::Error> {
        match open_unchanging(&sums.path) {
            Ok(connection) => Ok(Some(connection)),
            Err(_) if !self.catalogue().sums.contains(sums) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The files that hold sessions, as they are now.
    pub(super) fn catalogue(&self) -> Arc<Catalogue> {
        self.catalogue.get()
    }

    /// A connection to the file that is written to, that cannot write.
    pub(super) fn open_hot(&self, hot: &Hot) -> Result<Connection, rusqlite::Error> {
        open_for_reading(&hot.path)
    }

    /// A connection to a file that is complete; none when it was dropped meanwhile.
    pub(super) fn open_part(&self, part: &Part) -> Result<Option<Connection>, rusqlite::Error> {
        let opened = match part.form {
            Form::Sealed => open_unchanging(&part.path),
            Form::Rows => open_for_reading(&part.path),
        };
        match opened {
            Ok(connection) => {
                connection.pragma_update(None, "cache_size", -PART_CACHE_KIB)?;
                Ok(Some(connection))
            }
            Err(_) if !self.catalogue().complete.iter().any(|kept| kept.id == part.id) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

pub(super) fn engine(path: &Path, error: &rusqlite::Error) -> OpenError {
    let problem = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::ReadOnly) => "it is read-only here, and a server must write".to_owned(),
        Some(rusqlite::ErrorCode::DiskFull) => "the disk is full".to_owned(),
        Some(rusqlite::ErrorCode::CannotOpen) => format!("{error} (is the disk full or read-only?)"),
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            format!("{error}; restore a backup")
        }
        _ => error.to_string(),
    };
    OpenError::Engine { path: path.to_owned(), problem }
}

/// A folder that no server can open for as long as this is held.
#[derive(Debug)]
pub struct Locked {
    _lock: File,
}

impl Locked {
    /// Takes a folder that is there; refused while a server has it.
    pub fn folder(folder: &Path) -> Result<Locked, OpenError> {
        lock(folder).map(|lock| Locked { _lock: lock })
    }
}

/// The file in a folder that everything begins with.
pub(super) fn main_file(folder: &Path) -> (String, PathBuf) {
    (MAIN_FILE.to_owned(), folder.join(MAIN_FILE))
}

/// The names of the files that hold sessions, as the catalogue has them, and of which kind each is; those that are being
/// dropped count no more.
pub(super) fn day_files(main: &Connection) -> Result<Vec<(String, Kind)>, rusqlite::Error> {
    let kind = |state: i64| match state {
        parts::SEALED => Kind::Sealed,
        parts::SUMMED => Kind::Sums,
        _ => Kind::Day,
    };
    main.prepare("SELECT file, state FROM parts WHERE state <> ?1 ORDER BY id")?
        .query_map([parts::DROPPING], |row| Ok((row.get("file")?, kind(row.get("state")?))))?
        .collect()
}

/// Keeps other servers out for as long as the file is open.
fn lock(folder: &Path) -> Result<File, OpenError> {
    let path = folder.join(LOCK_FILE);
    let io_error = |source| OpenError::File(PrivateFileError::Io { path: path.clone(), source });
    let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(io_error)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut text = String::new();
            // The number only helps the reader; when it cannot be read the error stands without it.
            let pid = file.read_to_string(&mut text).map_or(None, |_| text.trim().parse().ok());
            return Err(OpenError::InUse { folder: folder.to_owned(), pid });
        }
        Err(error) => return Err(io_error(error.into())),
    }
    let mut write_pid = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write_pid().map_err(io_error)?;
    Ok(file)
}

/// Opens a `main.db` by itself, with the newest schema.
pub(super) fn open_main_for_writing(path: &Path) -> Result<Connection, OpenError> {
    open_for_writing(path, Kind::Main.runner())
}

fn open_for_writing(path: &Path, runner: refinery::Runner) -> Result<Connection, OpenError> {
    // First by a connection that cannot write, because even closing one that can would fold the log into the file. What
    // else that one meets (a creation that was broken off) is for the one that can write.
    if path.exists()
        && let Ok(reader) = open_for_reading(path)
        && let Err(error @ OpenError::Newer { .. }) = refuse_newer(path, &reader, &runner)
    {
        return Err(error);
    }
    let mut connection = Connection::open(path).map_err(|error| engine(path, &error))?;
    refuse_newer(path, &connection, &runner)?;
    let settle = || {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)
    };
    settle().map_err(|error| engine(path, &error))?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    migrate(path, &mut connection, &runner)?;
    Ok(connection)
}

pub(super) fn open_for_reading(path: &Path) -> Result<Connection, rusqlite::Error> {
    settled_for_reading(Connection::open_with_flags(path, sealed::ALONE)?)
}

fn settled_for_reading(connection: Connection) -> Result<Connection, rusqlite::Error> {
    connection.pragma_update(None, "query_only", true)?;
    keep_plans(&connection)?;
    connection.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

impl From<rusqlite::Error> for HistoryError {
    fn from(error: rusqlite::Error) -> HistoryError {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => HistoryError::Full,
            _ => HistoryError::Engine(error.to_string()),
        }
    }
}

/// Whether an error leaves unknown what is stored: after a failed fsync the kernel may have dropped the pages.
pub(super) fn is_fatal(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let code = match error {
        rusqlite::Error::SqliteFailure(failure, _) => failure.extended_code,
        _ => return false,
    };
    matches!(code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC | ffi::SQLITE_IOERR_CLOSE)
}
