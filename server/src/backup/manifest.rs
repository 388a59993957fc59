//! The manifest of a backup, as TOML: what a person wants to know of it, and what every file must be.

use std::fmt;

use fleetsock_proto::time::Timestamp;
use serde::{Deserialize, Serialize};

/// Name of the file.
pub const FILE: &str = "manifest.toml";
/// The form of backups that this program makes and reads.
const FORMAT: u32 = 1;
/// More files than a backup can have.
const FILES_LIMIT: usize = 100_000;

/// What a backup consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The moment of the history that it holds.
    pub taken_at: Timestamp,
    /// Whose it is.
    pub trust_domain: String,
    /// SHA-256 of the CA's public key, hexadecimal.
    pub pin: String,
    /// Its files.
    pub files: Vec<ManifestFile>,
}

/// What a file must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestFile {
    /// Its path inside the backup: names with `/` between them, never `..`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// The hash of its bytes.
    pub sha256: [u8; 32],
    /// The number of its schema, when it is a database.
    pub schema: Option<i32>,
}

/// The file as it is written.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    version: String,
    taken_at_us: i64,
    trust_domain: String,
    pin: String,
    files: Vec<WrittenFile>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenFile {
    path: String,
    bytes: u64,
    sha256: String,
    schema: Option<i32>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

/// Whether a path stays where it is put: one or two plain names.
fn stays_inside(path: &str) -> bool {
    let plain = |name: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        !name.is_empty() && !name.starts_with('.') && name.bytes().all(known)
    };
    path.split('/').count() <= 2 && path.split('/').all(plain)
}

impl fmt::Display for Manifest {
    /// The file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = |file: &ManifestFile| WrittenFile {
            path: file.path.clone(),
            bytes: file.bytes,
            sha256: hex(&file.sha256),
            schema: file.schema,
        };
        let written = Written {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            taken_at_us: self.taken_at.as_micros(),
            trust_domain: self.trust_domain.clone(),
            pin: self.pin.clone(),
            files: self.files.iter().map(file).collect(),
        };
        let text = toml::to_string(&written).map_err(|_| fmt::Error)?;
        write!(
            f,
            "# A backup of a Fleetsock server; `fleetsock-server restore` checks every file against this.\n{text}"
        )
    }
}

impl Manifest {
    /// Reads the text of the file; the error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Manifest, String> {
        /// What every form of it has.
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let form: Form = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if form.format != FORMAT {
            return Err(format!("format {} is of another fleetsock-server; this one reads {FORMAT}", form.format));
        }
        let written: Written = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if written.files.len() > FILES_LIMIT {
            return Err(format!("more than {FILES_LIMIT} files"));
        }
        let mut files: Vec<ManifestFile> = Vec::new();
        for WrittenFile { path, bytes, sha256, schema } in written.files {
            if !stays_inside(&path) || files.iter().any(|file| file.path == path) {
                return Err(format!("`{path}` is no path of a file of a backup, or is there twice"));
            }
            let sha256 = unhex(&sha256).ok_or_else(|| format!("`{sha256}` is no SHA-256"))?;
            files.push(ManifestFile { path, bytes, sha256, schema });
        }
        let taken_at = Timestamp::from_micros(written.taken_at_us);
        Ok(Manifest { taken_at, trust_domain: written.trust_domain, pin: written.pin, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let file = |path: &str, schema| ManifestFile { path: path.to_owned(), bytes: 9, sha256: [0xa5; 32], schema };
        Manifest {
            taken_at: Timestamp::from_micros(1_795_000_000_123_456),
            trust_domain: "fleetsock.internal".to_owned(),
            pin: hex(&[1; 32]),
            files: vec![file("history/main.db", Some(3)), file("server.toml", None)],
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        assert_eq!(Manifest::parse(&manifest().to_string()), Ok(manifest()));
    }

    #[test]
    fn a_manifest_that_leads_out_of_its_folder_or_lies_about_itself_is_refused() {
        let text = manifest().to_string();
        for (from, to, expected) in [
            ("history/main.db", "../main.db", "`../main.db` is no path"),
            ("history/main.db", "/etc/passwd", "is no path"),
            ("history/main.db", "history/.main.db", "is no path"),
            ("history/main.db", "a/b/c", "is no path"),
            ("history/main.db", "server.toml", "is there twice"),
            ("format = 1", "format = 2", "format 2 is of another"),
            ("a5a5", "zzzz", "is no SHA-256"),
            ("bytes = 9", "bytes = -9", "invalid"),
            ("trust_domain", "colour", "unknown field"),
        ] {
            assert!(text.contains(from), "{from}");
            let error = Manifest::parse(&text.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
