//! Puts a backup in place: every byte is checked first, and the state folder has either what it had or what the backup
//! holds, whenever the machine stops.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{Context, SHA256};
use fleetsock_proto::{private, time::Timestamp};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{
    BackupError, PIECE_BYTES, digest,
    manifest::{self, Manifest, ManifestFile},
    remove_folder, sync_folder,
};
use crate::{
    authority::{Authority, AuthorityError},
    config::{CA_FOLDER, CONFIG_FILE, Config, ConfigError, HISTORY_FOLDER},
    history::{
        adoption::Lost,
        sqlite::{self, Carried, Locked, OpenError, Unsure},
    },
};

/// Where files wait until all of them are checked; beside the place that they get.
const WAITING: &str = "restoring";
/// What the history that was there is called afterwards, with the moment of the restore.
const BEFORE: &str = "history.before-";

/// Why a backup was not put in place. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is none, or was changed.
    #[error("{}: {problem}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// It is of another fleet.
    #[error("the backup is of the fleet with the CA {backup}, and {} has the CA {state}", folder.display())]
    OtherFleet {
        /// The pin in the backup.
        backup: String,
        /// The pin of the state folder.
        state: String,
        /// The state folder.
        folder: PathBuf,
    },
    /// There is no CA in it, and none where it should go.
    #[error(
        "{} has no fleet, and the backup holds only the history: put `ca` and `server.toml` there first, or take a backup that was made with --fleet",
        .0.display()
    )]
    NoFleet(PathBuf),
    /// A file or folder.
    #[error(transparent)]
    File(#[from] BackupError),
    /// The history, of the backup or of the state folder.
    #[error(transparent)]
    History(#[from] OpenError),
    /// The settings of the state folder.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The CA of the state folder.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// A backup that was put in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The moment of the history that is there now.
    pub taken_at: Timestamp,
    /// Where the history is that was there before.
    pub before: Option<PathBuf>,
    /// Whether the CA and the settings came from the backup too.
    pub fleet: FleetFrom,
    /// What the history that was there knew of who may speak.
    pub carried: Carried,
    /// Who may speak again and may have been revoked since the backup; absent when that is known.
    pub unsure: Option<Unsure>,
}

/// Where the CA and the settings came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FleetFrom {
    /// They were there and stayed.
    State,
    /// They came with the backup.
    Backup,
}

/// How far a restore is: the file, its bytes so far, its bytes in all.
pub type Watcher<'a> = &'a dyn Fn(&str, u64, u64);

/// Checks the backup in `from` and puts it into the state folder.
pub fn restore(from: &Path, state: &Path, now: Timestamp, watcher: Watcher<'_>) -> Result<Restored, RestoreError> {
    let manifest = read_manifest(from)?;
    private::make_folder(state).map_err(BackupError::from)?;
    let fleet = fleet_of(&manifest, state, now)?;
    let history = state.join(HISTORY_FOLDER);
    let locked = if history.exists() { Some(Locked::folder(&history)?) } else { None };
    let waiting = state.join(WAITING);
    remove_folder(&waiting)?;
    let placed = fetch(&manifest, from, &waiting, watcher).and_then(|()| {
        verify(&manifest, &waiting)?;
        let lost = Lost { taken_at: manifest.taken_at, restored_at: now };
        let there = locked.is_some().then_some(history.as_path());
        let aside = set_aside(state)?;
        let carried = sqlite::note_restore(&waiting.join(HISTORY_FOLDER), there, &aside, lost)?;
        let unsure = match carried {
            Carried::Over { .. } => None,
            Carried::Refusals { .. } | Carried::Nothing => Some(sqlite::unsure(&waiting.join(HISTORY_FOLDER), now)?),
        };
        sync_folder(&waiting.join(HISTORY_FOLDER))?;
        let before = put_in_place(&waiting, state, fleet, locked.as_ref(), now)?;
        Ok(Restored { taken_at: manifest.taken_at, before, fleet, carried, unsure })
    });
    remove_folder(&waiting)?;
    placed
}

/// Histories that earlier restores set aside, the newest first.
fn set_aside(state: &Path) -> Result<Vec<PathBuf>, BackupError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(state).map_err(super::io_error(state))? {
        let entry = entry.map_err(super::io_error(state))?;
        if entry.file_name().as_encoded_bytes().starts_with(BEFORE.as_bytes()) {
            found.push(entry.path());
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

fn read_manifest(from: &Path) -> Result<Manifest, RestoreError> {
    let path = from.join(manifest::FILE);
    let damaged = |problem: String| RestoreError::Damaged { path: path.clone(), problem };
    let text = fs::read_to_string(&path).map_err(|error| damaged(error.to_string()))?;
    Manifest::parse(&text).map_err(damaged)
}

/// Whose CA and settings count: those that are there, if the backup is of that fleet, or else those of the backup.
fn fleet_of(manifest: &Manifest, state: &Path, now: Timestamp) -> Result<FleetFrom, RestoreError> {
    match Config::load(state, None) {
        Ok(config) => {
            let pin = super::Fleet::of(&Authority::load(&config.ca, &config.trust_domain, now)?).pin;
            if pin == manifest.pin {
                return Ok(FleetFrom::State);
            }
            Err(RestoreError::OtherFleet { backup: manifest.pin.clone(), state: pin, folder: state.to_owned() })
        }
        Err(ConfigError::Missing(_)) if manifest.files.iter().any(|file| file.path == CONFIG_FILE) => {
            Ok(FleetFrom::Backup)
        }
        Err(ConfigError::Missing(_)) => Err(RestoreError::NoFleet(state.to_owned())),
        Err(error) => Err(error.into()),
    }
}

/// Copies every file of the manifest, and refuses one that is not what the manifest says.
fn fetch(manifest: &Manifest, from: &Path, to: &Path, watcher: Watcher<'_>) -> Result<(), RestoreError> {
    for folder in [to.to_owned(), to.join(HISTORY_FOLDER), to.join(CA_FOLDER)] {
        DirBuilder::new().mode(0o700).create(&folder).map_err(super::io_error(&folder))?;
    }
    for file in &manifest.files {
        let (source, target) = (from.join(&file.path), to.join(&file.path));
        let found = copy(&source, &target, file, watcher);
        let found =
            found.map_err(|error| RestoreError::Damaged { path: source.clone(), problem: error.to_string() })?;
        if found != (file.bytes, file.sha256) {
            let problem = "is not the file that was backed up: its SHA-256 or its size differs".to_owned();
            return Err(RestoreError::Damaged { path: source, problem });
        }
    }
    sync_folder(&to.join(HISTORY_FOLDER))?;
    sync_folder(&to.join(CA_FOLDER))?;
    Ok(sync_folder(to)?)
}

fn copy(from: &Path, to: &Path, file: &ManifestFile, watcher: Watcher<'_>) -> io::Result<(u64, [u8; 32])> {
    let mut source = File::open(from)?;
    let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let mut hash = Context::new(&SHA256);
    let (mut piece, mut bytes) = (vec![0; PIECE_BYTES], 0);
    loop {
        let read = source.read(&mut piece)?;
        // What is longer than it was is another file; there is no need to copy all of it.
        if read == 0 || bytes > file.bytes {
            break;
        }
        hash.update(&piece[..read]);
        target.write_all(&piece[..read])?;
        bytes += read as u64;
        watcher(&file.path, bytes, file.bytes);
    }
    target.sync_all()?;
    Ok((bytes, digest(hash)))
}

/// The history that waits is whole, known, and made of the files of the manifest.
fn verify(manifest: &Manifest, waiting: &Path) -> Result<(), RestoreError> {
    let mut names = sqlite::verify(&waiting.join(HISTORY_FOLDER))?;
    let prefix = format!("{HISTORY_FOLDER}/");
    let mut told: Vec<&str> = manifest.files.iter().filter_map(|file| file.path.strip_prefix(&prefix)).collect();
    names.sort_unstable();
    told.sort_unstable();
    if told != names {
        let problem = format!("the manifest names {told:?}, and the history consists of {names:?}");
        return Err(RestoreError::Damaged { path: waiting.join(HISTORY_FOLDER), problem });
    }
    Ok(())
}

/// One rename puts the history in place. Of a whole fleet the settings come last: without them a folder has no fleet.
fn put_in_place(
    waiting: &Path,
    state: &Path,
    fleet: FleetFrom,
    locked: Option<&Locked>,
    now: Timestamp,
) -> Result<Option<PathBuf>, RestoreError> {
    if fleet == FleetFrom::Backup {
        place(&waiting.join(CA_FOLDER), &state.join(CA_FOLDER), RenameFlags::NOREPLACE)?;
    }
    let (new, history) = (waiting.join(HISTORY_FOLDER), state.join(HISTORY_FOLDER));
    let before = match locked {
        None => {
            place(&new, &history, RenameFlags::NOREPLACE)?;
            None
        }
        Some(_) => {
            place(&new, &history, RenameFlags::EXCHANGE)?;
            let before = state.join(format!("{BEFORE}{}", now.as_micros() / 1_000_000));
            place(&new, &before, RenameFlags::NOREPLACE)?;
            Some(before)
        }
    };
    if fleet == FleetFrom::Backup {
        sync_folder(state)?;
        place(&waiting.join(CONFIG_FILE), &state.join(CONFIG_FILE), RenameFlags::NOREPLACE)?;
    }
    sync_folder(state)?;
    Ok(before)
}

fn place(from: &Path, to: &Path, how: RenameFlags) -> Result<(), BackupError> {
    renameat_with(CWD, from, CWD, to, how).map_err(|error| super::io_error(to)(error.into()))
}
