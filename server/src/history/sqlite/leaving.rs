//! Files that have no name any more, until their room is given back.
//!
//! To free hundreds of megabytes at once keeps the journal of a file system busy for tens of milliseconds, and the disk
//! longer where it is told what it may forget (discard); whoever makes something durable waits for both. So a file loses
//! its name first, which is quick, is kept open, and is cut down some megabytes at a time. Nobody can open it then, and
//! none who opened it before may read it any more: those who ask are numbered, and a file waits for all that began before
//! it lost its name. A crash leaves nothing: what has no name goes with its last descriptor.
//!
//! The same holds for the log of a file that is complete. It is folded into it and removed when the last connection is
//! closed, for which the writer need not wait either; where somebody reads it then, the log loses its name with the file.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rusqlite::Connection;

use super::parts::LOG;

/// Bytes that are given back at once.
const STEP_BYTES: u64 = 8 * 1024 * 1024;

#[derive(Debug, Default)]
struct State {
    /// Number of the next one who asks.
    next: u64,
    /// Numbers of those who ask now.
    asking: BTreeSet<u64>,
    /// Files, and the number from which on nobody can have opened them.
    files: Vec<(u64, File)>,
    /// Connections that are to be closed, and to what.
    connections: Vec<(PathBuf, Connection)>,
}

/// The files, and who may be reading them.
#[derive(Debug, Clone, Default)]
pub(super) struct Leaving(Arc<Mutex<State>>);

/// Somebody who may read every file that had a name when he began, for as long as this is kept.
#[derive(Debug)]
pub(super) struct Asking {
    number: u64,
    leaving: Leaving,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.leaving.state().asking.remove(&self.number);
    }
}

impl Leaving {
    /// Somebody begins to ask. He looks which files there are only after that.
    pub(super) fn ask(&self) -> Asking {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.asking.insert(number);
        Asking { number, leaving: self.clone() }
    }

    /// Takes up files that lost their names. One that has another is left alone: somebody keeps it, or reads a log still, or a
    /// log could not be folded into its file.
    pub(super) fn add(&self, files: impl IntoIterator<Item = File>) {
        let mut state = self.state();
        let from = state.next;
        let is_nameless = |file: &File| file.metadata().is_ok_and(|found| found.nlink() == 0);
        state.files.extend(files.into_iter().filter(is_nameless).map(|file| (from, file)));
    }

    /// A file that nobody can be reading any more.
    pub(super) fn take(&self) -> Option<File> {
        let mut state = self.state();
        let oldest = state.asking.first().copied().unwrap_or(state.next);
        let place = state.files.iter().position(|(from, _)| *from <= oldest)?;
        Some(state.files.swap_remove(place).1)
    }

    /// Takes up the connection of a file that is not written to any more.
    pub(super) fn add_connection(&self, path: &Path, connection: Connection) {
        self.state().connections.push((path.to_owned(), connection));
    }

    /// Closes the connections that were taken up.
    pub(super) fn close_connections(&self) {
        let connections = std::mem::take(&mut self.state().connections);
        for (path, connection) in connections {
            let log = File::options().write(true).open(log_of(&path));
            if let Err((_, error)) = connection.close() {
                // What is in the log is read from there.
                tracing::warn!(%error, file = %path.display(), "a file that is complete keeps its log");
            }
            self.add(log);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log that SQLite keeps beside a file.
fn log_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(LOG);
    name.into()
}

/// Gives back the room of a file from its end on; `goes_on` is asked between two steps, and may rest.
pub(super) fn give_back(file: &File, goes_on: impl Fn() -> bool) -> io::Result<()> {
    let mut left = file.metadata()?.len();
    while left > 0 {
        left = left.saturating_sub(STEP_BYTES);
        file.set_len(left)?;
        if !goes_on() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn rows(path: &Path) -> Connection {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "journal_mode", "WAL").unwrap();
        connection.execute_batch("CREATE TABLE IF NOT EXISTS a (b); INSERT INTO a VALUES (1)").unwrap();
        connection
    }

    #[test]
    fn a_file_that_is_kept_by_another_name_is_not_cut_down() {
        let folder = tempfile::tempdir().unwrap();
        let (name, other) = (folder.path().join("day-1.sealed"), folder.path().join("kept"));
        let leaving = Leaving::default();
        for is_kept in [true, false] {
            std::fs::write(&name, "sessions").unwrap();
            if is_kept {
                std::fs::hard_link(&name, &other).unwrap();
            }
            let file = File::options().write(true).open(&name).unwrap();
            std::fs::remove_file(&name).unwrap();
            leaving.add([file]);
            assert_eq!(leaving.take().is_none(), is_kept);
        }
        assert_eq!(std::fs::read(&other).unwrap(), b"sessions");
    }

    #[test]
    fn the_log_of_a_file_is_given_back_only_when_it_is_in_the_file_and_nobody_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, leaving) = (folder.path().join("day-1.db"), Leaving::default());
        for is_read in [true, false] {
            leaving.add_connection(&path, rows(&path));
            assert!(log_of(&path).exists());
            let reader = is_read.then(|| Connection::open(&path).unwrap());
            let count = |reader: &Connection| reader.query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
            let before: Option<i64> = reader.as_ref().map(count);
            leaving.close_connections();
            assert_eq!(log_of(&path).exists(), is_read);
            assert_eq!(leaving.take().is_some(), !is_read);
            assert_eq!(reader.as_ref().map(count), before);
        }
        let count: i64 = rows(&path).query_row("SELECT count(*) FROM a", [], |row| row.get(0)).unwrap();
        assert_eq!(count, 3);
    }

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_file_waits_for_all_who_began_before_it_lost_its_name_and_for_nobody_else() {
        let leaving = Leaving::default();
        assert!(leaving.take().is_none());
        let (first, second) = (leaving.ask(), leaving.ask());
        leaving.add(vec![file()]);
        let third = leaving.ask();
        leaving.add(vec![file()]);
        assert!(leaving.take().is_none());
        drop(second);
        assert!(leaving.take().is_none());
        drop(first);
        assert!(leaving.take().is_some(), "the third began later");
        assert!(leaving.take().is_none());
        let _fourth = leaving.ask();
        drop(third);
        assert!(leaving.take().is_some());
        leaving.add(vec![file()]);
        assert!(leaving.take().is_none());
    }

    #[test]
    fn room_is_given_back_in_steps_until_nothing_is_left_or_it_is_to_end() {
        let (file, seen) = (file(), RefCell::new(Vec::new()));
        file.set_len(2 * STEP_BYTES + 5).unwrap();
        let step = || {
            seen.borrow_mut().push(file.metadata().unwrap().len());
            true
        };
        give_back(&file, step).unwrap();
        assert_eq!(*seen.borrow(), [STEP_BYTES + 5, 5, 0]);
        file.set_len(3 * STEP_BYTES).unwrap();
        give_back(&file, || false).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 2 * STEP_BYTES);
    }
}
