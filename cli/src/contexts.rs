//! Contexts: which servers fleetctl knows, as whom, and which one is meant unless told otherwise.
//!
//! `config.toml` (0600) names them; the identities lie beside it in folders of their own (0700).

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    path::{Path, PathBuf},
    str::FromStr,
};

use fleetsock_proto::{
    identity::{Identity, IdentityError},
    private::{self, PrivateFileError},
};
use serde::Deserialize;

use crate::{
    failure::{Ended, Exit, Failure},
    suggestion,
};

const CONFIG_FILE: &str = "config.toml";
const IDENTITIES: &str = "identities";
/// Longest name of a context, bytes.
pub const CONTEXT_NAME_LIMIT: usize = 64;

/// The name of a context; also that of its folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextName(String);

/// A text that is no name of a context.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no context name; use 1 to {CONTEXT_NAME_LIMIT} of a-z, A-Z, 0-9, '.', '_', '-', not beginning with '.'"
)]
pub struct InvalidContextName(pub String);

impl ContextName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ContextName {
    /// The name of a context that no better one was found for.
    fn default() -> ContextName {
        ContextName("default".to_owned())
    }
}

impl fmt::Display for ContextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for ContextName {
    type Err = InvalidContextName;

    fn from_str(text: &str) -> Result<ContextName, InvalidContextName> {
        let allowed = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'-');
        let good =
            (1..=CONTEXT_NAME_LIMIT).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(allowed);
        if good { Ok(ContextName(text.to_owned())) } else { Err(InvalidContextName(text.to_owned())) }
    }
}

/// Why the contexts cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ContextsError {
    /// A file or folder.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong, with its line.
        problem: String,
    },
    /// An identity cannot be stored.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl From<ContextsError> for Failure {
    fn from(error: ContextsError) -> Failure {
        match error {
            ContextsError::File(error) => error.into(),
            ContextsError::Identity(error) => error.into(),
            invalid @ ContextsError::Invalid { .. } => {
                Failure::new(Exit::Failed, invalid.to_string()).hint("mend the line, or remove it")
            }
        }
    }
}

impl From<ContextsError> for Ended {
    fn from(error: ContextsError) -> Ended {
        Failure::from(error).into()
    }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, ConfigContext>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigContext {
    identity: PathBuf,
}

/// The contexts of this user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contexts {
    folder: PathBuf,
    current: Option<ContextName>,
    identities: BTreeMap<ContextName, PathBuf>,
}

impl Contexts {
    /// Reads the contexts below `folder`; none when nothing is there yet.
    pub fn load(folder: &Path) -> Result<Contexts, ContextsError> {
        let path = folder.join(CONFIG_FILE);
        let bytes = match private::check_folder(folder).and_then(|()| private::read(&path)) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&bytes);
        Contexts::parse(folder, &text).map_err(|problem| ContextsError::Invalid { path, problem })
    }

    fn parse(folder: &Path, text: &str) -> Result<Contexts, String> {
        let file: ConfigFile = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let mut identities = BTreeMap::new();
        for (name, context) in file.contexts {
            let name = name.parse::<ContextName>().map_err(|error| error.to_string())?;
            // A relative path is meant from the file; join keeps an absolute one.
            identities.insert(name, folder.join(context.identity));
        }
        let current = file.current.map(|name| name.parse::<ContextName>()).transpose();
        let current = current.map_err(|error| format!("current: {error}"))?;
        if let Some(name) = current.as_ref().filter(|name| !identities.contains_key(name)) {
            return Err(format!("current: there is no [contexts.{name}]"));
        }
        Ok(Contexts { folder: folder.to_owned(), current, identities })
    }

    /// The file's text.
    fn to_toml(&self) -> String {
        let mut text =
            String::from("# The servers that fleetctl knows. Written by `fleetctl login` and `fleetctl context`.\n");
        let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
        if let Some(current) = &self.current {
            text.push_str(&format!("current = {}\n", quoted(current.as_str())));
        }
        for (name, identity) in &self.identities {
            let identity = identity.strip_prefix(&self.folder).unwrap_or(identity);
            text.push_str(&format!("\n[contexts.{}]\n", quoted(name.as_str())));
            text.push_str(&format!("identity = {}\n", quoted(&identity.to_string_lossy())));
        }
        text
    }

    /// Changes the contexts below `folder`; another fleetctl that does the same waits meanwhile.
    pub fn change<T>(folder: &Path, change: impl FnOnce(&mut Contexts) -> Result<T, Failure>) -> Result<T, Failure> {
        private::make_folder(folder)?;
        let locked = File::open(folder).and_then(|lock| lock.lock().map(|()| lock));
        let _lock = locked.map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", folder.display())))?;
        let mut contexts = Contexts::load(folder)?;
        let result = change(&mut contexts)?;
        private::write(&folder.join(CONFIG_FILE), contexts.to_toml().as_bytes())?;
        Ok(result)
    }

    /// Stores an identity as the context `name`, in the place of one that had that name.
    pub fn put(&mut self, name: ContextName, identity: &Identity) -> Result<(), Failure> {
        let folder = self.folder.join(IDENTITIES).join(name.as_str());
        identity.store(&folder)?;
        self.identities.insert(name, folder);
        Ok(())
    }

    /// Forgets a context; its identity goes with it when it lies in our own folder.
    pub fn remove(&mut self, name: &ContextName) -> Result<(), Failure> {
        let Some(identity) = self.identities.remove(name) else { return Err(self.unknown(name)) };
        if self.current.as_ref() == Some(name) {
            self.current = None;
        }
        if identity != self.folder.join(IDENTITIES).join(name.as_str()) {
            return Ok(());
        }
        match fs::remove_dir_all(&identity) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::new(Exit::Failed, format!("{}: {error}", identity.display())))
            }
            _ => Ok(()),
        }
    }

    /// Makes a context the one that is meant unless told otherwise.
    pub fn set_current(&mut self, name: Option<ContextName>) -> Result<(), Failure> {
        if let Some(name) = name.as_ref().filter(|name| !self.identities.contains_key(name)) {
            return Err(self.unknown(name));
        }
        self.current = name;
        Ok(())
    }

    /// The one that is meant unless told otherwise.
    pub fn current(&self) -> Option<&ContextName> {
        self.current.as_ref()
    }

    /// Every context and the folder of its identity, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&ContextName, &Path)> {
        self.identities.iter().map(|(name, folder)| (name, folder.as_path()))
    }

    /// The folder of the identity of a context.
    pub fn identity_folder(&self, name: &ContextName) -> Result<&Path, Failure> {
        self.identities.get(name).map(PathBuf::as_path).ok_or_else(|| self.unknown(name))
    }

    /// The context that is meant: the one `asked` for, or the current one.
    pub fn choose(&self, asked: Option<&str>) -> Result<&ContextName, Failure> {
        match asked {
            Some(asked) => {
                let name = asked.parse::<ContextName>().map_err(|error| Failure::usage(error.to_string()))?;
                self.identities.get_key_value(&name).map(|(name, _)| name).ok_or_else(|| self.unknown(&name))
            }
            None => self.current.as_ref().ok_or_else(|| self.none_chosen()),
        }
    }

    fn none_chosen(&self) -> Failure {
        match self.identities.keys().next() {
            Some(name) => Failure::new(Exit::Denied, "no context is in use, so it is not known which server is meant")
                .hint(format!("fleetctl context use {name}")),
            None => Failure::new(Exit::Denied, "fleetctl does not know any server yet")
                .hint("fleetctl login fsj1_... (with a join string from an admin), or fleetctl dev (this host alone)"),
        }
    }

    fn unknown(&self, name: &ContextName) -> Failure {
        let known: Vec<&str> = self.identities.keys().map(ContextName::as_str).collect();
        let similar = suggestion::similar(name.as_str(), known.iter().copied());
        let hint = suggestion::did_you_mean(&similar).unwrap_or_else(|| "fleetctl context".to_owned());
        Failure::new(Exit::NotFound, format!("there is no context `{name}`")).hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder() -> tempfile::TempDir {
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
    }

    #[test]
    fn contexts_read_as_they_are_written() {
        let text = "current = \"prod\"\n[contexts.prod]\nidentity = \"identities/prod\"\n\
                    [contexts.\"db1.example.org\"]\nidentity = \"/etc/elsewhere\"\n";
        let contexts = Contexts::parse(Path::new("/c"), text).unwrap();
        assert_eq!(Contexts::parse(Path::new("/c"), &contexts.to_toml()).unwrap(), contexts);
        let folders: Vec<_> = contexts.iter().map(|(_, folder)| folder.to_str().unwrap()).collect();
        assert_eq!(folders, ["/etc/elsewhere", "/c/identities/prod"]);
    }

    #[test]
    fn a_wrong_file_is_refused_with_its_line() {
        for (text, expected) in [
            ("current = \"a\"\ncolour = 1\n", "line 2"),
            ("current = \"a\"\ncolour = 1\n", "unknown field `colour`"),
            ("[contexts.a]\nserver = \"db1\"\n", "unknown field `server`"),
            ("[contexts.a]\n", "missing field `identity`"),
            ("current = \"a\"\n", "current: there is no [contexts.a]"),
            ("[contexts.\"../etc\"]\nidentity = \"x\"\n", "`../etc` is no context name"),
            ("current = ", "line 1"),
        ] {
            let problem = Contexts::parse(Path::new("/c"), text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_file_that_others_can_read_is_refused_by_name() {
        let folder = folder();
        Contexts::change(folder.path(), |_| Ok(())).unwrap();
        let file = folder.path().join(CONFIG_FILE);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Contexts::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("config.toml has mode 0644") && error.contains("chmod 600"), "{error}");
    }

    #[test]
    fn the_context_that_is_meant_is_the_one_asked_for_or_the_current_one() {
        let text = "[contexts.prod]\nidentity = \"x\"\n[contexts.stage]\nidentity = \"y\"\n";
        let mut contexts = Contexts::parse(Path::new("/c"), text).unwrap();
        let failure = contexts.choose(None).unwrap_err();
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::Denied, Some("fleetctl context use prod")));
        contexts.set_current(Some("stage".parse().unwrap())).unwrap();
        assert_eq!(contexts.choose(None).unwrap().as_str(), "stage");
        assert_eq!(contexts.choose(Some("prod")).unwrap().as_str(), "prod");
        let failure = contexts.choose(Some("prdo")).unwrap_err();
        assert_eq!((failure.exit, failure.hint.as_deref()), (Exit::NotFound, Some("did you mean prod?")));
        assert_eq!(contexts.choose(Some("../x")).unwrap_err().exit, Exit::Usage);
        contexts.remove(&"stage".parse().unwrap()).unwrap();
        assert_eq!(contexts.current(), None);
    }

    #[test]
    fn who_knows_no_server_is_told_how_to_begin() {
        let contexts = Contexts::parse(Path::new("/c"), "").unwrap();
        let failure = contexts.choose(None).unwrap_err();
        assert_eq!(failure.exit, Exit::Denied);
        assert!(failure.hint.unwrap().contains("fleetctl dev"));
    }
}
