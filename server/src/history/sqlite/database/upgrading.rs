//! The history as it was before its schema is changed, for whoever must go back to the program before.
//!
//! It is a folder within that of the history, with all files of one moment: `main.db` and the files of rows as copies, the others,
//! which are never changed, by a second name. It is called `before-upgrade` when all files have the newest schema, and `upgrading`
//! as long as that is under way: who finds the latter at a start, and a file with a newer schema than its copy, was killed
//! meanwhile and has the copies already. It is kept for seven days, since what is dropped in the meantime keeps its room by it
//! (a file with a second name is not cut down, see `leaving`).

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection,
    backup::{Backup, StepResult},
};

use super::{OpenError, day_files, engine, main_file, open_for_reading, unchanging::open_unchanging};
use crate::history::sqlite::{
    parts::UNFINISHED,
    schema::{Kind, newest, refuse_newer, schema_of},
};

const KEPT: &str = "before-upgrade";
const UNDER_WAY: &str = "upgrading";
const FOR: Duration = Duration::from_secs(7 * 86_400);
/// What must be left of the disk beside the copies, bytes.
const RESERVE_BYTES: u64 = 64 * 1024 * 1024;

/// Keeps what is in the folder of a history, if the schema of any file in it is going to be changed. A history that a newer server
/// wrote is refused.
pub(super) fn keep_as_it_was(folder: &Path) -> Result<(), OpenError> {
    let (name, _) = main_file(folder);
    // What cannot be read is for those who open it to write.
    let Some(main) = look(folder, name, Kind::Main)? else { return Ok(()) };
    let Ok(days) = day_files(&main.connection) else { return Ok(()) };
    let (mut changing, mut unchanging) = (vec![main], Vec::new());
    for (name, kind) in days {
        match kind {
            Kind::Day => changing.extend(look(folder, name, kind)?),
            Kind::Main | Kind::Sealed | Kind::Sums => unchanging.push(name),
        }
    }
    let under_way = folder.join(UNDER_WAY);
    if !changing.iter().any(Changing::is_old) || changing.iter().any(|file| file.is_newer_than_in(&under_way)) {
        return Ok(());
    }
    tracing::info!(folder = %folder.display(), "the history is copied before its schema is changed");
    make_room(folder, &changing)?;
    let kept = keep(folder, &changing, &unchanging);
    kept.map_err(|error| failed(folder, &error.to_string()))
}

/// All files have the newest schema now.
pub(super) fn done(folder: &Path) -> io::Result<()> {
    let (under_way, kept) = (folder.join(UNDER_WAY), folder.join(KEPT));
    if under_way.exists() {
        remove(&kept)?;
        fs::rename(under_way, &kept)?;
        File::open(folder)?.sync_all()?;
        tracing::info!(before = %kept.display(), "the schema of the history was changed; as it was before it is kept for a week");
    }
    remove(&unfinished(folder))?;
    remove_old(folder)
}

fn unfinished(folder: &Path) -> PathBuf {
    folder.join(format!("{UNDER_WAY}.{UNFINISHED}"))
}

/// Removes what was kept if that is long ago.
pub(super) fn remove_old(folder: &Path) -> io::Result<()> {
    let kept = folder.join(KEPT);
    let made = match fs::symlink_metadata(&kept) {
        Ok(found) => found.modified()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // Of a clock that was set back nothing follows.
    if made.elapsed().is_ok_and(|age| age > FOR) { remove(&kept) } else { Ok(()) }
}

/// A file that has a schema, which may be changed.
struct Changing {
    name: String,
    kind: Kind,
    connection: Connection,
    schema: i32,
}

impl Changing {
    fn is_old(&self) -> bool {
        self.schema < newest(&self.kind.runner())
    }

    /// Whether its schema was changed after the copy in a folder was made.
    fn is_newer_than_in(&self, folder: &Path) -> bool {
        let path = folder.join(&self.name);
        let copied = open_unchanging(&path).ok().and_then(|copy| schema_of(&path, &copy).ok());
        copied.is_some_and(|copied| copied < self.schema)
    }

    fn bytes(&self) -> Result<u64, rusqlite::Error> {
        let ask = |what| self.connection.pragma_query_value(None, what, |row| row.get::<_, i64>(0));
        Ok(ask("page_count")?.cast_unsigned() * ask("page_size")?.cast_unsigned())
    }
}

fn look(folder: &Path, name: String, kind: Kind) -> Result<Option<Changing>, OpenError> {
    let path = folder.join(&name);
    let Ok(connection) = open_for_reading(&path) else { return Ok(None) };
    match refuse_newer(&path, &connection, &kind.runner()) {
        Ok(0) | Err(OpenError::Engine { .. }) => Ok(None),
        Ok(schema) => Ok(Some(Changing { name, kind, connection, schema })),
        Err(error) => Err(error),
    }
}

fn make_room(folder: &Path, changing: &[Changing]) -> Result<(), OpenError> {
    let mut wanted = RESERVE_BYTES;
    for file in changing {
        wanted += file.bytes().map_err(|error| engine(&folder.join(&file.name), &error))?;
    }
    let disk = rustix::fs::statvfs(folder).map_err(|error| failed(folder, &io::Error::from(error).to_string()))?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    if free < wanted {
        let problem = format!("the disk has room for {free} bytes, and {wanted} are needed (some are left free)");
        return Err(failed(folder, &problem));
    }
    Ok(())
}

fn keep(folder: &Path, changing: &[Changing], unchanging: &[String]) -> io::Result<()> {
    let (unfinished, under_way) = (unfinished(folder), folder.join(UNDER_WAY));
    remove(&unfinished)?;
    DirBuilder::new().mode(0o700).create(&unfinished)?;
    for file in changing {
        copy(&file.connection, &unfinished.join(&file.name))?;
    }
    for name in unchanging {
        match fs::hard_link(folder.join(name), unfinished.join(name)) {
            // Who opens it says so.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    File::open(&unfinished)?.sync_all()?;
    // Of an attempt that had not changed anything yet: more may have come in since.
    remove(&under_way)?;
    fs::rename(&unfinished, under_way)?;
    File::open(folder)?.sync_all()
}

fn copy(from: &Connection, to: &Path) -> io::Result<()> {
    // SQLite takes the empty file as it is, with its mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    copy_pages(from, to).map_err(io::Error::other)?;
    file.sync_all()
}

fn copy_pages(from: &Connection, to: &Path) -> Result<(), rusqlite::Error> {
    let mut copy = Connection::open(to)?;
    // It is written out before it counts.
    copy.pragma_update(None, "journal_mode", "OFF")?;
    copy.pragma_update(None, "synchronous", "OFF")?;
    let step = Backup::new(from, &mut copy)?.step(-1)?;
    if step != StepResult::Done {
        return Err(rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY), None));
    }
    copy.close().map_err(|(_, error)| error)
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn failed(folder: &Path, problem: &str) -> OpenError {
    let problem = format!("it was left alone: before its schema is changed it is copied, and that failed: {problem}");
    OpenError::Engine { path: folder.to_owned(), problem }
}
