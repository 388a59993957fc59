//! The files of an instance: how it is set up, and whether it is as it should be.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
};

use super::{InstanceError, TEXT_LIMIT};
use crate::events::tracepoint::{DESTROY, STATE, Tracefs};

/// What is set besides the size, the filter and the tracepoints.
const SETTINGS: [(&str, &str); 3] = [
    // The clock of the perf rings.
    ("trace_clock", "mono"),
    // What there is no room for is dropped and counted, and what was written stays.
    ("options/overwrite", "0"),
    // Whoever waits is woken at half full.
    ("buffer_percent", "50"),
];
const SIZE: &str = "buffer_size_kb";
/// Whether anything is written at all; it is at the beginning.
const WRITES: &str = "tracing_on";
const TRACEPOINTS: [&str; 2] = [STATE, DESTROY];

/// Where instances are made.
pub(super) fn instances(tracefs: &Tracefs) -> PathBuf {
    tracefs.root().join("instances")
}

/// The folder of an instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folder(pub(super) PathBuf);

impl Folder {
    fn failed(&self, name: &str) -> impl FnOnce(io::Error) -> InstanceError {
        let path = self.0.join(name);
        |source| InstanceError::File { path, source }
    }

    /// A short file, in one read: some files of tracefs have nothing behind the first one (show_header() of
    /// kernel/trace/trace_events.c).
    pub(super) fn text(&self, name: &str) -> Result<String, InstanceError> {
        let mut bytes = vec![0; TEXT_LIMIT];
        let length = File::open(self.0.join(name)).and_then(|file| file.read_at(&mut bytes, 0));
        let length = length.map_err(self.failed(name))?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    pub(super) fn set(&self, name: &str, value: &str) -> Result<(), InstanceError> {
        // Nothing is made here: a file that the kernel does not have is an error.
        let file = OpenOptions::new().write(true).open(self.0.join(name));
        file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(self.failed(name))
    }

    /// A file that can be read without waiting.
    pub(super) fn open(&self, name: &str) -> Result<File, InstanceError> {
        let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
        let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(self.0.join(name));
        file.map_err(self.failed(name))
    }

    /// Sets up an instance that was just made, with the largest of these sizes that there is room for; nothing is written yet.
    pub(super) fn set_up(&self, sizes: &[usize], filter: &str) -> Result<(), InstanceError> {
        for (name, value) in SETTINGS {
            self.set(name, value)?;
        }
        let mut refused = InstanceError::Unknown("no size was tried".to_owned());
        let fits = sizes.iter().any(|bytes| match self.set(SIZE, &(bytes >> 10).to_string()) {
            Ok(()) => true,
            Err(error) => {
                refused = error;
                false
            }
        });
        if !fits {
            return Err(refused);
        }
        self.set(&filter_of(STATE), filter)
    }

    /// Has the tracepoints write.
    pub(super) fn begin(&self) -> Result<(), InstanceError> {
        TRACEPOINTS.iter().try_for_each(|tracepoint| self.set(&enable_of(tracepoint), "1"))
    }

    /// Has nothing written any more.
    pub(super) fn end(&self) -> Result<(), InstanceError> {
        self.set("events/enable", "0")
    }

    /// Whether it was set up as [`Folder::set_up`] does, and is written to.
    pub(super) fn check(&self, filter: &str) -> Result<(), InstanceError> {
        let expected = SETTINGS.map(|(name, value)| (name.to_owned(), value));
        let enabled = TRACEPOINTS.map(|tracepoint| (enable_of(tracepoint), "1"));
        let others = [(WRITES.to_owned(), "1"), (filter_of(STATE), filter), (filter_of(DESTROY), "none")];
        for (name, expected) in expected.into_iter().chain(enabled).chain(others) {
            let text = self.text(&name)?;
            let found = chosen(&text);
            if found != expected {
                let (path, found, expected) = (self.0.join(name), found.to_owned(), expected.to_owned());
                return Err(InstanceError::Strange { path, found, expected });
            }
        }
        Ok(())
    }

    /// Bytes of a processor's buffer, which the kernel may have made somewhat larger than it was told to.
    pub(super) fn bytes(&self) -> Result<usize, InstanceError> {
        let text = self.text(SIZE)?;
        let kib: Option<usize> = text.trim().parse().ok();
        kib.and_then(|kib| kib.checked_mul(1024))
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| InstanceError::Unknown(format!("{SIZE} is `{}`", text.trim())))
    }

    /// Keeps others from reading the instance and from making it anew, as long as what is given is not dropped.
    pub(super) fn hold(&self) -> Result<File, InstanceError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => InstanceError::Absent(self.0.clone()),
            _ => InstanceError::File { path: self.0.clone(), source },
        };
        let in_use = || InstanceError::InUse(self.0.clone());
        let folder = File::open(&self.0).map_err(failed)?;
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(in_use()),
            Err(errno) => return Err(failed(errno.into())),
        }
        // Somebody may have made it anew since it was opened.
        if is_at(&folder, &self.0).map_err(failed)? { Ok(folder) } else { Err(in_use()) }
    }

    /// Removes the instance, if it is there; not while somebody holds it.
    pub(super) fn remove(&self) -> Result<(), InstanceError> {
        match self.hold() {
            // Until it is gone.
            Ok(_held) => remove(&self.0),
            Err(InstanceError::Absent(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether a folder that is open is the one at a path.
fn is_at(folder: &File, path: &Path) -> io::Result<bool> {
    let (open, there) = (folder.metadata()?, fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (there.dev(), there.ino()))
}

fn filter_of(tracepoint: &str) -> String {
    format!("events/{tracepoint}/filter")
}

fn enable_of(tracepoint: &str) -> String {
    format!("events/{tracepoint}/enable")
}

/// The value in a file, which may show it in brackets among others.
fn chosen(text: &str) -> &str {
    let text = text.trim();
    let bracketed = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(text, |(value, _)| value)
}

/// Removes an instance. It is busy as long as anybody has one of its buffers open.
pub(super) fn remove(path: &Path) -> Result<(), InstanceError> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(()),
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(InstanceError::InUse(path.to_owned())),
        Err(source) => Err(InstanceError::File { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_was_made_anew_is_another_one() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("instance");
        fs::create_dir(&path).unwrap();
        let before = File::open(&path).unwrap();
        assert!(is_at(&before, &path).unwrap());
        fs::remove_dir(&path).unwrap();
        assert_eq!(is_at(&before, &path).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir(&path).unwrap();
        assert!(!is_at(&before, &path).unwrap());
    }

    #[test]
    fn what_is_held_is_neither_held_again_nor_removed_until_it_is_let_go() {
        let around = tempfile::tempdir().unwrap();
        let folder = Folder(around.path().join("instance"));
        assert!(matches!(folder.hold(), Err(InstanceError::Absent(_))));
        folder.remove().unwrap();
        fs::create_dir(&folder.0).unwrap();
        let held = folder.hold().unwrap();
        assert!(matches!(folder.hold(), Err(InstanceError::InUse(_))));
        assert!(matches!(folder.remove(), Err(InstanceError::InUse(_))));
        drop(held);
        folder.remove().unwrap();
        assert!(!folder.0.exists());
    }

    #[test]
    fn a_value_is_found_alone_and_among_others() {
        for (text, value) in [
            ("0\n", "0"),
            ("local global counter uptime perf [mono] mono_raw boot\n", "mono"),
            ("newstate != 3 && newstate != 5\n", "newstate != 3 && newstate != 5"),
            ("", ""),
            ("[", "["),
        ] {
            assert_eq!(chosen(text), value, "{text}");
        }
    }
}
