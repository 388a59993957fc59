//! Files and folders that nobody else may read: keys, identities, databases.
//!
//! Reading refuses what others could have read or written, and says which file; writing is atomic and durable.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

/// Largest private file that is read, bytes: some certificates and a key.
pub const PRIVATE_FILE_LIMIT: u64 = 256 * 1024;

/// How the name of a file ends that [`write()`] did not bring to its end, in place of the file's own ending.
pub const UNFINISHED: &str = ".partial";

/// What is expected, in words.
const FILE: &str = "regular file";
const FOLDER: &str = "folder";

/// Why a private file or folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFileError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Of what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Group or others may read or write it.
    #[error("{} has mode {mode:04o}: others could have read it; set it to {wanted:04o} (chmod {wanted:o} {})", path.display(), path.display())]
    Mode {
        /// Which.
        path: PathBuf,
        /// The mode it has.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// Another user owns it.
    #[error("{} belongs to user id {owner} and this runs as user id {user}: run it as its owner, or, if you trust what is there, give it to this one (chown -R {user} {})", path.display(), path.display())]
    Owner {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this.
        user: u32,
    },
    /// It is a symbolic link: whoever can change it chooses what is read.
    #[error("{} is a symbolic link, not a {wanted}: name what it leads to (readlink -f {})", path.display(), path.display())]
    Link {
        /// Which.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// It is a device or a folder where a file is expected, or the reverse.
    #[error("{} is not a {wanted}", path.display())]
    Kind {
        /// Which.
        path: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// It is larger than such a file can be.
    #[error("{} has {size} bytes, more than {PRIVATE_FILE_LIMIT}", path.display())]
    Size {
        /// Which.
        path: PathBuf,
        /// Its size.
        size: u64,
    },
}

impl PrivateFileError {
    /// Whether the file or folder is just not there.
    pub fn is_missing(&self) -> bool {
        matches!(self, PrivateFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> PrivateFileError {
    move |source| PrivateFileError::Io { path: path.to_owned(), source }
}

fn check_kind(path: &Path, found: &fs::Metadata, wanted: &'static str) -> Result<(), PrivateFileError> {
    let path = || path.to_owned();
    match found.file_type() {
        kind if kind.is_symlink() => Err(PrivateFileError::Link { path: path(), wanted }),
        kind if kind.is_dir() == (wanted == FOLDER) && kind.is_file() == (wanted == FILE) => Ok(()),
        _ => Err(PrivateFileError::Kind { path: path(), wanted }),
    }
}

fn check_owner_and_mode(path: &Path, found: &fs::Metadata, wanted: u32) -> Result<(), PrivateFileError> {
    let user = rustix::process::geteuid().as_raw();
    if found.uid() != user {
        return Err(PrivateFileError::Owner { path: path.to_owned(), owner: found.uid(), user });
    }
    let mode = found.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateFileError::Mode { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

/// Makes the folder with mode 0700 unless it is there; refuses one that others can enter or that another user owns.
pub fn make_folder(path: &Path) -> Result<(), PrivateFileError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error(path))?;
    check_folder(path)
}

/// Refuses a folder that others can enter or that another user owns.
pub fn check_folder(path: &Path) -> Result<(), PrivateFileError> {
    let found = fs::symlink_metadata(path).map_err(io_error(path))?;
    check_kind(path, &found, FOLDER)?;
    check_owner_and_mode(path, &found, 0o700)
}

/// Refuses a file that others can read or write or that another user owns, and symbolic links.
pub fn check_file(path: &Path) -> Result<(), PrivateFileError> {
    let found = fs::symlink_metadata(path).map_err(io_error(path))?;
    check_kind(path, &found, FILE)?;
    check_owner_and_mode(path, &found, 0o600)
}

/// Reads a file that only its owner, who runs this, can read. Symbolic links are refused.
pub fn read(path: &Path) -> Result<Vec<u8>, PrivateFileError> {
    let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = match OpenOptions::new().read(true).custom_flags(no_follow).open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            return Err(PrivateFileError::Link { path: path.to_owned(), wanted: FILE });
        }
        Err(error) => {
            // That it is another user's says more than that it cannot be opened.
            if error.kind() == io::ErrorKind::PermissionDenied {
                check_file(path)?;
            }
            return Err(io_error(path)(error));
        }
    };
    let found = file.metadata().map_err(io_error(path))?;
    check_kind(path, &found, FILE)?;
    check_owner_and_mode(path, &found, 0o600)?;
    if found.len() > PRIVATE_FILE_LIMIT {
        return Err(PrivateFileError::Size { path: path.to_owned(), size: found.len() });
    }
    let mut bytes = Vec::new();
    file.take(PRIVATE_FILE_LIMIT).read_to_end(&mut bytes).map_err(io_error(path))?;
    Ok(bytes)
}

/// Puts a file in place whole, with mode 0600, and returns when it would survive a power cut.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), PrivateFileError> {
    let partial = path.with_extension(UNFINISHED.trim_start_matches('.'));
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&partial)(error)),
        _ => {}
    }
    let write_whole = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write_whole().map_err(io_error(&partial))?;
    fs::rename(&partial, path).map_err(io_error(path))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io_error(folder))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    #[test]
    fn a_private_file_reads_as_it_was_written_and_replaces_the_one_before() {
        let folder = folder();
        let path = folder.path().join("key.pem");
        for bytes in [b"first".as_slice(), b"second"] {
            write(&path, bytes).unwrap();
            assert_eq!(read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left behind");
    }

    #[test]
    fn what_others_could_have_read_or_written_is_refused_by_name() {
        let folder = folder();
        let path = folder.path().join("key.pem");
        write(&path, b"key").unwrap();
        for mode in [0o644, 0o640, 0o660, 0o602] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err().to_string();
            assert!(error.contains("key.pem has mode") && error.contains("chmod 600"), "{error}");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = check_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains("chmod 700"), "{error}");
    }

    #[test]
    fn links_and_folders_are_no_private_files() {
        let folder = folder();
        let (target, link) = (folder.path().join("target"), folder.path().join("link"));
        write(&target, b"x").unwrap();
        symlink(&target, &link).unwrap();
        for (path, expected) in [
            (link.as_path(), "is a symbolic link, not a regular file: name what it leads to (readlink -f "),
            (folder.path(), "is not a regular file"),
        ] {
            for error in [read(path).unwrap_err(), check_file(path).unwrap_err()] {
                assert!(error.to_string().contains(expected), "{error}");
            }
        }
        let (elsewhere, way) = (folder.path().join("elsewhere"), folder.path().join("way"));
        make_folder(&elsewhere).unwrap();
        symlink(&elsewhere, &way).unwrap();
        let error = make_folder(&way).unwrap_err().to_string();
        assert!(error.contains("way is a symbolic link, not a folder"), "{error}");
        assert!(check_folder(&target).unwrap_err().to_string().ends_with("target is not a folder"));
        assert!(read(&folder.path().join("absent")).unwrap_err().is_missing());
    }
}
