//! Getting an identity for this host: a join string against a certificate.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use fleetsock_proto::{
    client::{ConnectError, enroll},
    identity::{Identity, IdentityError, Key},
    join::{InvalidJoinString, JoinString},
    private::{self, PrivateFileError},
};

/// The file that says that a host is enrolled.
pub const IDENTITY_FILE: &str = "identity.pem";
/// The key of an enrolment that was not answered: the server answers the same key again at no cost.
const PENDING_FILE: &str = "enrolment.key";

/// Where the join string is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinSource {
    /// Here.
    Text(String),
    /// In a file that only its owner can read. It is deleted when the host is enrolled.
    File(PathBuf),
}

/// What becomes of an identity that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is done.
    Keep,
    /// Another takes its place.
    Replace,
}

/// An enrolment that is wanted.
#[derive(Debug)]
pub struct Enrolment {
    /// Folder for the identity.
    pub state: PathBuf,
    /// Where the join string is.
    pub join: JoinSource,
    /// What the host calls itself.
    pub name: String,
    /// What becomes of an identity that is there.
    pub existing: Existing,
}

/// Why the host was not enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolmentError {
    /// It is enrolled.
    #[error("{} exists: this host is enrolled; replace its identity with --force, or choose another folder with --state", .0.display())]
    Exists(PathBuf),
    /// The join string is none.
    #[error(transparent)]
    Join(#[from] InvalidJoinString),
    /// The file with the join string cannot be used.
    #[error("join file: {0}")]
    JoinFile(#[source] PrivateFileError),
    /// The file with the join string holds something else.
    #[error("join file {}: {source}", path.display())]
    JoinContent {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: InvalidJoinString,
    },
    /// The folder or a file in it.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The server did not do it.
    #[error(transparent)]
    Server(#[from] ConnectError),
    /// The identity cannot be made or kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The host is enrolled, and the join string is still there.
    #[error("the host is enrolled; delete {} yourself, which cannot be done here", path.display())]
    Leftover {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Enrolment {
    /// Enrols this host.
    pub async fn run(self) -> Result<Identity, EnrolmentError> {
        let join = self.join()?;
        private::make_folder(&self.state)?;
        let file = self.state.join(IDENTITY_FILE);
        if self.existing == Existing::Keep && fs::symlink_metadata(&file).is_ok() {
            return Err(EnrolmentError::Exists(file));
        }
        let pending = self.state.join(PENDING_FILE);
        let identity = enroll(&join, &self.name, pending_key(&pending)?).await?;
        identity.store(&self.state)?;
        remove(&pending)?;
        if let JoinSource::File(path) = &self.join {
            remove(path)?;
        }
        Ok(identity)
    }

    fn join(&self) -> Result<JoinString, EnrolmentError> {
        match &self.join {
            JoinSource::Text(text) => Ok(text.parse()?),
            JoinSource::File(path) => {
                let bytes = private::read(path).map_err(EnrolmentError::JoinFile)?;
                let text = String::from_utf8_lossy(&bytes);
                text.parse().map_err(|source| EnrolmentError::JoinContent { path: path.clone(), source })
            }
        }
    }
}

/// The key of an earlier attempt whose answer was lost, or a new one.
fn pending_key(path: &Path) -> Result<Key, EnrolmentError> {
    match private::read(path) {
        Ok(der) => Ok(Key::from_pkcs8(&der)?),
        Err(error) if error.is_missing() => {
            let key = Key::generate()?;
            private::write(path, key.pkcs8_der())?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

fn remove(path: &Path) -> Result<(), EnrolmentError> {
    match fs::remove_file(path) {
        // Another host that was enrolled with it was quicker.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| EnrolmentError::Leftover { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_file_that_is_gone_is_as_good_as_deleted_and_one_that_stays_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("join");
        fs::write(&path, "fsj1_").unwrap();
        remove(&path).unwrap();
        remove(&path).unwrap();
        // A folder is no file.
        let error = remove(folder.path()).unwrap_err();
        assert!(error.to_string().contains("the host is enrolled; delete"), "{error}");
    }
}
