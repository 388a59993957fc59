//! Backups: a folder with checked copies of the history's files, on request with the CA and the settings, and a manifest
//! that says what every file must be. [`restoring`] puts one in place.
//!
//! ```text
//! <backups>/<name>/manifest.toml
//!                  history/main.db, history/day-1.db
//!                  ca/*.pem, server.toml            when the whole fleet was asked for
//! ```

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Read},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, TryLockError},
};

use aws_lc_rs::digest::{Context, SHA256};
use fleetsock_proto::{
    backup::{BackupContent, BackupFile, BackupMade, BackupName, BackupProgress},
    private::{self, PrivateFileError},
};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use self::manifest::{Manifest, ManifestFile};
use crate::{
    authority::{Authority, rotation},
    config::{CA_FOLDER, CONFIG_FILE, Config, HISTORY_FOLDER},
    history::{Actor, CopyOrder, Heard, Hearer, History, HistoryError},
};

pub mod manifest;
pub mod restoring;

/// Bytes that are read at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// Why there is no backup.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// There is one of that name.
    #[error("there is a backup `{0}` already; choose another name")]
    Exists(BackupName),
    /// One at a time.
    #[error("another backup is being made")]
    Busy,
    /// A private file or folder.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// Any other file.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The history.
    #[error(transparent)]
    History(#[from] HistoryError),
}

/// Makes backups of a server.
pub struct Backups {
    /// What is copied.
    history: Arc<dyn History>,
    folder: PathBuf,
    ca: PathBuf,
    settings: String,
    fleet: Fleet,
    /// Held while one is made.
    one: Mutex<()>,
}

/// Which fleet a backup is of.
#[derive(Debug, Clone)]
pub struct Fleet {
    /// Its name in certificates.
    pub trust_domain: String,
    /// SHA-256 of its CA's public key, hexadecimal.
    pub pin: String,
}

/// A backup that is wanted.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its name.
    pub name: BackupName,
    /// What it holds.
    pub content: BackupContent,
    /// Who ordered it, and when.
    pub by: Actor,
}

impl Fleet {
    /// The fleet of a CA.
    pub fn of(authority: &Authority) -> Fleet {
        let pin = authority.pin().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        Fleet { trust_domain: authority.trust_domain().to_string(), pin }
    }
}

impl Backups {
    /// Of a server with these settings.
    pub fn new(history: Arc<dyn History>, config: &Config, fleet: Fleet) -> Backups {
        let Config { backups, ca, text, .. } = config;
        let (folder, ca, settings) = (backups.clone(), ca.clone(), text.clone());
        Backups { history, folder, ca, settings, fleet, one: Mutex::new(()) }
    }

    /// Makes one. It blocks for as long as that takes: files are copied, hashed, written out. What was begun is removed
    /// when it fails or when nobody hears any more.
    pub fn make(&self, wanted: &Wanted, hearer: &Hearer) -> Result<BackupMade, BackupError> {
        let _one = match self.one.try_lock() {
            Ok(one) => one,
            Err(TryLockError::Poisoned(one)) => PoisonError::into_inner(one),
            Err(TryLockError::WouldBlock) => return Err(BackupError::Busy),
        };
        private::make_folder(&self.folder)?;
        let place = self.folder.join(wanted.name.as_ref());
        if fs::symlink_metadata(&place).is_ok() {
            return Err(BackupError::Exists(wanted.name.clone()));
        }
        // No backup has such a name: it is what a server that was killed left, or what this one makes.
        let partial = self.folder.join(format!(".{}.partial", wanted.name));
        remove_folder(&partial)?;
        let made = self.fill(wanted, &partial, hearer).and_then(|files| {
            match renameat_with(CWD, &partial, CWD, &place, RenameFlags::NOREPLACE) {
                Err(rustix::io::Errno::EXIST) => return Err(BackupError::Exists(wanted.name.clone())),
                renamed => renamed.map_err(|error| io_error(&place)(error.into()))?,
            }
            sync_folder(&self.folder)?;
            Ok(BackupMade { folder: place.display().to_string(), taken_at: wanted.by.at, files })
        });
        if made.is_err() {
            remove_folder(&partial)?;
        }
        made
    }

    fn fill(&self, wanted: &Wanted, folder: &Path, hearer: &Hearer) -> Result<Vec<BackupFile>, BackupError> {
        let history = folder.join(HISTORY_FOLDER);
        for folder in [folder, &history] {
            DirBuilder::new().mode(0o700).create(folder).map_err(io_error(folder))?;
        }
        let detail = match wanted.content {
            BackupContent::History => wanted.name.to_string(),
            BackupContent::Fleet => format!("{} with the CA and the settings", wanted.name),
        };
        let order = CopyOrder { folder: history.clone(), by: wanted.by.clone(), detail };
        let copied = tokio::runtime::Handle::current().block_on(self.history.copy(order, Arc::clone(hearer)))?;
        let mut files = Vec::new();
        for copy in copied {
            let path = format!("{HISTORY_FOLDER}/{}", copy.name);
            files.push(entry(folder, path, Some(copy.schema), hearer)?);
        }
        sync_folder(&history)?;
        if wanted.content == BackupContent::Fleet {
            for path in self.copy_fleet(folder)? {
                files.push(entry(folder, path, None, hearer)?);
            }
        }
        let told =
            files.iter().map(|file| BackupFile { path: file.path.clone(), bytes: file.bytes, sha256: file.sha256 });
        let told = told.collect();
        let Fleet { trust_domain, pin } = self.fleet.clone();
        let manifest = Manifest { taken_at: wanted.by.at, trust_domain, pin, files };
        private::write(&folder.join(manifest::FILE), manifest.to_string().as_bytes())?;
        Ok(told)
    }

    /// Copies the CA and the settings; their paths in the backup.
    fn copy_fleet(&self, folder: &Path) -> Result<Vec<String>, BackupError> {
        let to = folder.join(CA_FOLDER);
        DirBuilder::new().mode(0o700).create(&to).map_err(io_error(&to))?;
        let stands = || fs::read(self.ca.join(rotation::FILE)).ok();
        let (stood, mut paths) = (stands(), Vec::new());
        for found in fs::read_dir(&self.ca).map_err(io_error(&self.ca))? {
            let name = found.map_err(io_error(&self.ca))?.file_name();
            let kept = |name: &&str| name.ends_with(".pem") || *name == rotation::FILE;
            let Some(name) = name.to_str().filter(kept) else { continue };
            private::write(&to.join(name), &private::read(&self.ca.join(name))?)?;
            paths.push(format!("{CA_FOLDER}/{name}"));
        }
        if stands() != stood {
            let meanwhile = io::Error::other("the root was exchanged meanwhile; try again");
            return Err(io_error(&self.ca)(meanwhile));
        }
        paths.sort();
        private::write(&folder.join(CONFIG_FILE), self.settings.as_bytes())?;
        paths.push(CONFIG_FILE.to_owned());
        Ok(paths)
    }
}

impl std::fmt::Debug for Backups {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Backups").field("folder", &self.folder).finish_non_exhaustive()
    }
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    move |source| BackupError::Io { path: path.to_owned(), source }
}

fn entry(folder: &Path, path: String, schema: Option<i32>, hearer: &Hearer) -> Result<ManifestFile, BackupError> {
    let whole = folder.join(&path);
    let mut file = File::open(&whole).map_err(io_error(&whole))?;
    let bytes_total = file.metadata().map_err(io_error(&whole))?.len();
    let told = |bytes| hearer(BackupProgress { doing: format!("hash {path}"), bytes, bytes_total });
    let mut hash = Context::new(&SHA256);
    let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0);
    loop {
        let read = file.read(&mut piece).map_err(io_error(&whole))?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
        bytes += read as u64;
        if told(bytes) == Heard::ByNobody {
            return Err(HistoryError::Abandoned.into());
        }
    }
    Ok(ManifestFile { path, bytes, sha256: digest(hash), schema })
}

fn digest(hash: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(hash.finish().as_ref());
    digest
}

fn remove_folder(path: &Path) -> Result<(), BackupError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(io_error(path))
}
