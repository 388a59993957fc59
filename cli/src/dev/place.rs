//! The state folder of `fleetctl dev`: one at a time, and nothing left behind.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use fleetsock_proto::private;
use tokio::time::{Instant, sleep};

use crate::failure::{Exit, Failure};

/// Held by `fleetctl dev` as long as it runs; holds its process id.
const LOCK: &str = "dev.lock";
/// Held by each of its children as long as that runs.
const CHILDREN_LOCK: &str = "children.lock";
/// Says that the state was kept on purpose.
const KEPT: &str = "kept";
/// Everything else that is ever made in the folder.
const CONTENTS: [&str; 7] = ["server", "agent", "server.log", "agent.log", "join", "join.partial", "dev.partial"];
/// How long the children of a killed `fleetctl dev` may take to end.
const LEFTOVERS_PATIENCE: Duration = Duration::from_secs(15);

/// A state folder that is ours alone for now.
#[derive(Debug)]
pub struct Place {
    folder: PathBuf,
    children: File,
    _lock: File,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |error| Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed(path))
}

fn is_locked(file: &File, path: &Path) -> Result<bool, Failure> {
    match file.try_lock() {
        Ok(()) => Ok(false),
        Err(fs::TryLockError::WouldBlock) => Ok(true),
        Err(fs::TryLockError::Error(error)) => Err(failed(path)(error)),
    }
}

impl Place {
    /// Takes the folder, empty. What a killed `fleetctl dev` left there is removed, when its children have ended.
    pub async fn take(folder: &Path) -> Result<Place, Failure> {
        private::make_folder(folder)?;
        refuse_strangers(folder)?;
        let path = folder.join(LOCK);
        let lock = open(&path)?;
        if is_locked(&lock, &path)? {
            return Err(taken(folder));
        }
        // Whoever cleaned up in this moment has removed the file that we hold.
        let same = fs::metadata(&path).and_then(|there| Ok(there.ino() == lock.metadata()?.ino()));
        if !same.unwrap_or(false) {
            return Err(taken(folder));
        }
        private::write(&folder.join("dev.pid"), std::process::id().to_string().as_bytes())?;
        let path = folder.join(CHILDREN_LOCK);
        let children = open(&path)?;
        let deadline = Instant::now() + LEFTOVERS_PATIENCE;
        while is_locked(&children, &path)? {
            if Instant::now() > deadline {
                let message = format!("processes of an earlier fleetctl dev still run in {}", folder.display());
                return Err(Failure::new(Exit::Failed, message)
                    .hint("wait until they have ended, or take another folder: fleetctl dev --state DIR"));
            }
            sleep(Duration::from_millis(100)).await;
        }
        let place = Place { folder: folder.to_owned(), children, _lock: lock };
        place.empty()?;
        Ok(place)
    }

    /// A file or folder in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What the children hold as long as they live.
    pub fn held(&self) -> &File {
        &self.children
    }

    /// Removes what was made in it.
    fn empty(&self) -> Result<(), Failure> {
        CONTENTS.iter().try_for_each(|name| remove(&self.join(name)))
    }

    /// Removes the folder and what was made in it.
    pub fn clear(self) -> Result<(), Failure> {
        self.empty()?;
        for name in ["dev.pid", CHILDREN_LOCK, LOCK] {
            remove(&self.join(name))?;
        }
        match fs::remove_dir(&self.folder) {
            // Somebody put something of his own there.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => removed.map_err(failed(&self.folder)),
        }
    }

    /// Leaves everything where it is, and a word that says so.
    pub fn keep(self) -> Result<PathBuf, Failure> {
        private::write(&self.join(KEPT), b"kept by fleetctl dev --keep\n")?;
        Ok(self.folder)
    }
}

fn remove(path: &Path) -> Result<(), Failure> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(failed(path)),
    }
}

/// Refuses a folder with anything in it that is not ours to remove.
fn refuse_strangers(folder: &Path) -> Result<(), Failure> {
    if folder.join(KEPT).exists() {
        let message = format!("{} holds a fleet that was kept", folder.display());
        let hint = format!("fleetsock-server serve --state {0}/server, or remove it: rm -r {0}", folder.display());
        return Err(Failure::new(Exit::Failed, message).hint(hint));
    }
    let ours = folder.join(LOCK).exists();
    let mut entries = fs::read_dir(folder).map_err(failed(folder))?;
    if !ours && let Some(entry) = entries.next() {
        let name = entry.map_err(failed(folder))?.file_name();
        let message = format!("{} is not empty ({})", folder.display(), name.to_string_lossy());
        return Err(Failure::usage(message).hint("fleetctl dev --state NEW-FOLDER"));
    }
    Ok(())
}

fn taken(folder: &Path) -> Failure {
    let pid = private::read(&folder.join("dev.pid")).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let who = pid.map_or_else(String::new, |pid| format!(" (process {})", pid.trim()));
    let message = format!("another fleetctl dev runs in {}{who}", folder.display());
    Failure::new(Exit::Failed, message)
        .hint("fleetctl ports --context dev (asks that one), or fleetctl dev --state ANOTHER-FOLDER --context dev2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("dev");
        (parent, folder)
    }

    #[tokio::test]
    async fn only_one_at_a_time_has_the_folder_and_the_last_one_removes_it() {
        let (_parent, folder) = state();
        let place = Place::take(&folder).await.unwrap();
        let failure = Place::take(&folder).await.unwrap_err();
        let expected = format!("another fleetctl dev runs in {} (process {})", folder.display(), std::process::id());
        assert_eq!(failure.message, expected);
        fs::write(place.join("server.log"), "x").unwrap();
        place.clear().unwrap();
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn what_a_killed_one_left_is_removed_and_a_kept_fleet_is_not() {
        let (_parent, folder) = state();
        let place = Place::take(&folder).await.unwrap();
        fs::create_dir(place.join("server")).unwrap();
        fs::write(place.join("server").join("history"), "x").unwrap();
        // Dropped as the kernel does it for a killed process: the locks go, the files stay.
        drop(place);
        let place = Place::take(&folder).await.unwrap();
        assert!(!place.join("server").exists());
        fs::create_dir(place.join("server")).unwrap();
        place.keep().unwrap();
        let failure = Place::take(&folder).await.unwrap_err();
        assert!(failure.message.ends_with("holds a fleet that was kept"), "{failure}");
        assert!(folder.join("server").exists());
    }

    #[tokio::test]
    async fn a_folder_with_somebody_elses_files_is_left_alone() {
        let (_parent, folder) = state();
        private::make_folder(&folder).unwrap();
        fs::write(folder.join("thesis.tex"), "x").unwrap();
        let failure = Place::take(&folder).await.unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(folder.join("thesis.tex").exists());
    }
}
