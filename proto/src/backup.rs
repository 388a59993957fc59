//! Backups of a server's history: what is asked for, how far it is, and what was made.

use std::{fmt, str::FromStr};

use crate::{InvalidMessage, time, time::Timestamp, wire};

/// Longest name of a backup, bytes.
pub const BACKUP_NAME_LIMIT: usize = 64;

/// Name of a backup's folder: letters, digits, `.`, `_` and `-`, no `.` first, so that it is no path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupName(String);

/// Why a text is no name of a backup.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name for a backup; write 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', and no '.' first")]
pub struct InvalidBackupName(String);

impl FromStr for BackupName {
    type Err = InvalidBackupName;

    fn from_str(text: &str) -> Result<BackupName, InvalidBackupName> {
        let fits = (1..=BACKUP_NAME_LIMIT).contains(&text.len()) && !text.starts_with('.');
        let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if fits && plain { Ok(BackupName(text.to_owned())) } else { Err(InvalidBackupName(text.to_owned())) }
    }
}

impl fmt::Display for BackupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for BackupName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupContent {
    /// The history.
    History,
    /// And the CA with its private keys, and the settings.
    Fleet,
}

/// How far a backup is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupProgress {
    /// What is done now, as in `copy main.db`.
    pub doing: String,
    /// Bytes of that which are done.
    pub bytes: u64,
    /// Bytes of that in all.
    pub bytes_total: u64,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupFile {
    /// Its path inside the folder.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The hash of its bytes.
    pub sha256: [u8; 32],
}

/// A backup that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupMade {
    /// Where it is on the server.
    pub folder: String,
    /// The moment of the history that it holds.
    pub taken_at: Timestamp,
    /// Its files, without the manifest.
    pub files: Vec<BackupFile>,
}

/// What a server says while it makes a backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackupStep {
    /// It is on the way.
    Progress(BackupProgress),
    /// It is there and was checked. Nothing comes after this.
    Made(BackupMade),
}

/// The request for a backup.
pub fn request(name: &BackupName, content: BackupContent) -> wire::BackupRequest {
    let content = match content {
        BackupContent::History => wire::BackupContent::History,
        BackupContent::Fleet => wire::BackupContent::Fleet,
    };
    wire::BackupRequest { name: name.to_string(), content: content.into() }
}

/// What a request asks for.
pub fn requested(request: &wire::BackupRequest) -> Result<(BackupName, BackupContent), InvalidMessage> {
    let name = request.name.parse();
    let name = name.map_err(|error: InvalidBackupName| InvalidMessage::new("name", error.to_string()))?;
    let content = match request.content() {
        wire::BackupContent::History => BackupContent::History,
        wire::BackupContent::Fleet => BackupContent::Fleet,
        wire::BackupContent::Unspecified => return Err(InvalidMessage::missing("content")),
    };
    Ok((name, content))
}

impl From<BackupStep> for wire::BackupResponse {
    fn from(step: BackupStep) -> wire::BackupResponse {
        use wire::backup_response::Step;
        let step = match step {
            BackupStep::Progress(BackupProgress { doing, bytes, bytes_total }) => {
                Step::Progress(wire::BackupProgress { doing, bytes, bytes_total })
            }
            BackupStep::Made(BackupMade { folder, taken_at, files }) => {
                let file =
                    |BackupFile { path, bytes, sha256 }| wire::BackupFile { path, bytes, sha256: sha256.to_vec() };
                let files = files.into_iter().map(file).collect();
                Step::Made(wire::BackupMade { folder, taken_at: Some(taken_at.into()), files })
            }
        };
        wire::BackupResponse { step: Some(step) }
    }
}

impl TryFrom<wire::BackupResponse> for BackupStep {
    type Error = InvalidMessage;

    fn try_from(response: wire::BackupResponse) -> Result<BackupStep, InvalidMessage> {
        use wire::backup_response::Step;
        match response.step.ok_or_else(|| InvalidMessage::missing("BackupResponse.step"))? {
            Step::Progress(wire::BackupProgress { doing, bytes, bytes_total }) => {
                Ok(BackupStep::Progress(BackupProgress { doing, bytes, bytes_total }))
            }
            Step::Made(wire::BackupMade { folder, taken_at, files }) => {
                let taken_at = time::required("BackupMade.taken_at", taken_at)?;
                let files = files.into_iter().map(BackupFile::try_from).collect::<Result<_, _>>()?;
                Ok(BackupStep::Made(BackupMade { folder, taken_at, files }))
            }
        }
    }
}

impl TryFrom<wire::BackupFile> for BackupFile {
    type Error = InvalidMessage;

    fn try_from(file: wire::BackupFile) -> Result<BackupFile, InvalidMessage> {
        let wire::BackupFile { path, bytes, sha256 } = file;
        let sha256 = sha256.try_into().map_err(|_| InvalidMessage::new("BackupFile.sha256", "is not 32 bytes"))?;
        Ok(BackupFile { path, bytes, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_never_a_path() {
        for name in ["a", "20261128T172000Z", "before-2.0_upgrade", &"x".repeat(BACKUP_NAME_LIMIT)] {
            assert_eq!(name.parse::<BackupName>().unwrap().to_string(), name);
        }
        for name in ["", ".", "..", ".hidden", "a/b", "../a", "a b", "ä", "a\0", &"x".repeat(BACKUP_NAME_LIMIT + 1)] {
            assert!(name.parse::<BackupName>().is_err(), "{name}");
        }
    }

    #[test]
    fn requests_and_steps_survive_the_wire() {
        let name: BackupName = "nightly".parse().unwrap();
        for content in [BackupContent::History, BackupContent::Fleet] {
            assert_eq!(requested(&request(&name, content)), Ok((name.clone(), content)));
        }
        assert!(requested(&wire::BackupRequest { name: "nightly".to_owned(), content: 0 }).is_err());
        let progress = BackupProgress { doing: "copy main.db".to_owned(), bytes: 1, bytes_total: 2 };
        let file = BackupFile { path: "main.db".to_owned(), bytes: 3, sha256: [7; 32] };
        let made = BackupMade { folder: "/b".to_owned(), taken_at: Timestamp::from_micros(5), files: vec![file] };
        for step in [BackupStep::Progress(progress), BackupStep::Made(made)] {
            assert_eq!(BackupStep::try_from(wire::BackupResponse::from(step.clone())), Ok(step));
        }
    }
}
