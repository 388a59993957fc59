//! The root that is to take the place of the one in use: made beside it, handed out, and dropped when it is not wanted.
//!
//! Its files are a folder of their own. That folder is made under another name and renamed when it is whole, and renamed
//! again before it is removed: the name says what it is, so that files and state cannot differ.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use fleetsock_proto::{identity::pin_of, join::Pin, private, spiffe::TrustDomain, time::Timestamp};
use rustls_pki_types::CertificateDer;

use super::{AuthorityError, ROOT_FILE, certificate, content, make};

const FOLDER: &str = "prepared";
/// While it is made, and while it is removed.
const UNFINISHED: [&str; 2] = ["prepared.making", "prepared.dropping"];

/// A root that is handed out beside the one in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// Its certificate.
    pub root: CertificateDer<'static>,
    /// What it is known by.
    pub pin: Pin,
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    move |source| AuthorityError::Folder { path: path.to_owned(), source }
}

fn sync(folder: &Path) -> Result<(), AuthorityError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed(folder))
}

/// Removes what an end in the middle of something left behind.
fn tidy(ca: &Path) -> Result<(), AuthorityError> {
    for name in UNFINISHED {
        let path = ca.join(name);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
    }
    Ok(())
}

fn folder(ca: &Path) -> PathBuf {
    ca.join(FOLDER)
}

fn read(folder: &Path) -> Result<Prepared, AuthorityError> {
    private::check_folder(folder)?;
    let path = folder.join(ROOT_FILE);
    let root = certificate(&path)?;
    let pin = pin_of(&root).map_err(content(&path))?;
    Ok(Prepared { root, pin })
}

/// The prepared root of a CA, if there is one.
pub(super) fn load(ca: &Path) -> Result<Option<Prepared>, AuthorityError> {
    tidy(ca)?;
    let folder = folder(ca);
    if folder.exists() { read(&folder).map(Some) } else { Ok(None) }
}

/// Makes a root and its issuing CAs, which nobody knows of until [`keep`].
pub(super) fn draft(ca: &Path, trust_domain: &TrustDomain, now: Timestamp) -> Result<Prepared, AuthorityError> {
    tidy(ca)?;
    let making = ca.join(UNFINISHED[0]);
    make(&making, trust_domain, now)?;
    read(&making)
}

/// Puts a draft into its place; durable when this returns.
pub(super) fn keep(ca: &Path) -> Result<(), AuthorityError> {
    let (making, folder) = (ca.join(UNFINISHED[0]), folder(ca));
    fs::rename(&making, &folder).map_err(failed(&folder))?;
    sync(ca)
}

/// Drops the prepared root; durable when this returns. What remains of it after an end in between is not used, and is
/// removed at the next start.
pub(super) fn discard(ca: &Path) -> Result<(), AuthorityError> {
    let (folder, dropping) = (folder(ca), ca.join(UNFINISHED[1]));
    fs::rename(&folder, &dropping).map_err(failed(&folder))?;
    sync(ca)?;
    tidy(ca)
}
