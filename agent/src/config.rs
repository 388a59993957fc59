//! The agent's settings: read whole and checked before anything begins.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use fleetsock_proto::host::HOST_NAME_LIMIT;
use serde::Deserialize;

use crate::{
    capture::portless::Wanted, events::BuffersName, observer::schedule::DIGEST_EVERY, spool::SPOOL_BYTES_LIMIT,
};

/// Where an agent keeps everything unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/fleetsock/agent";
/// Name of the settings file in the state folder.
pub const CONFIG_FILE: &str = "agent.toml";
/// The settings file where the state folder has none.
pub const DEFAULT_CONFIG: &str = "/etc/fleetsock/agent.toml";

/// A settings file in which every setting is told, with its default.
pub const ALL_SETTINGS: &str = include_str!("settings.toml");

const MIB: u64 = 1024 * 1024;

/// A number with the bounds that a setting is kept within.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    name: &'static str,
    least: u64,
    most: u64,
}

const WALK_MS: Bounds = Bounds { name: "walk_ms", least: 100, most: 3_600_000 };
const REFEREE_S: Bounds = Bounds { name: "referee_s", least: 1, most: 86_400 };
const DIGEST_S: Bounds = Bounds { name: "digest_s", least: 1, most: 3600 };
const SPOOL_MIB: Bounds = Bounds { name: "spool_mib", least: 1, most: 65_536 };
const CPU_PERCENT: Bounds = Bounds { name: "cpu_percent", least: 1, most: 100 };
const MEMORY_MIB: Bounds = Bounds { name: "memory_mib", least: 32, most: 65_536 };

/// Settings of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// How often to walk where the server has no wish.
    pub walk: Duration,
    /// How often to look for all owners.
    pub referee: Duration,
    /// How often to tell a digest of what is open, by which the server finds out whether it has the same.
    pub digest: Duration,
    /// What the spool may take of the disk, bytes.
    pub spool_bytes: u64,
    /// What the host calls itself, in place of its host name.
    pub name: Option<HostName>,
    /// Trace buffers that root prepared for it. Not of the file: who prepares them also starts the agent.
    pub buffers: Option<BuffersName>,
    /// Whose sockets are told.
    pub reach: Reach,
    /// Whether the bytes of TCP connections are counted. Absent leaves it to what else they give: without events, the end
    /// of every connection; where events tell that, they would nearly double what a connection costs.
    pub bytes: Option<Bytes>,
    /// Whether command lines of processes are told.
    pub command_lines: CommandLines,
    /// Which sockets without a port are told.
    pub portless: Wanted,
    /// What walks may cost, percent of one core; what is dearer comes less often.
    pub cpu_percent: u32,
    /// What the agent may take of memory, bytes; sockets that do not fit are counted and not followed.
    pub memory_bytes: u64,
}

/// Whether the kernel is asked for a message about each TCP socket of the agent's own network namespace that is closed,
/// with what went over it. Those about UDP sockets are always asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bytes {
    /// It is: some 6 us of CPU for each, most of it in the kernel.
    On,
    /// It is not.
    Off,
}

/// Whether the command lines of the processes that own sockets are told. They can hold secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CommandLines {
    /// They are not read.
    #[default]
    Untold,
    /// They are, with what looks like a secret replaced by `***`.
    Redacted,
}

/// Whose sockets are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum Reach {
    /// Those of every network namespace of the machine.
    #[default]
    #[serde(rename = "all")]
    Host,
    /// Those of the agent's own network namespace: for machines where each namespace is a host with an agent. A connection
    /// whose namespace is not known, because its process was gone before anybody looked, is left out.
    #[serde(rename = "own")]
    Namespace,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            walk: Duration::from_secs(1),
            referee: Duration::from_secs(60),
            digest: DIGEST_EVERY,
            spool_bytes: SPOOL_BYTES_LIMIT,
            name: None,
            buffers: None,
            reach: Reach::default(),
            bytes: None,
            command_lines: CommandLines::default(),
            portless: Wanted::default(),
            cpu_percent: 10,
            memory_bytes: 512 * MIB,
        }
    }
}

/// A name that a host can report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(String);

/// A text that no host can report as its name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{}` is no host name; use 1 to {HOST_NAME_LIMIT} bytes without blanks or control characters", .0.escape_debug())]
pub struct InvalidHostName(pub String);

impl HostName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for HostName {
    type Err = InvalidHostName;

    fn from_str(text: &str) -> Result<HostName, InvalidHostName> {
        let printable = !text.chars().any(|c| c.is_control() || c.is_whitespace());
        if printable && (1..=HOST_NAME_LIMIT).contains(&text.len()) {
            Ok(HostName(text.to_owned()))
        } else {
            Err(InvalidHostName(text.to_owned()))
        }
    }
}

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong, with the line where it is known.
        problem: String,
    },
}

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    walk_ms: Option<u64>,
    referee_s: Option<u64>,
    digest_s: Option<u64>,
    spool_mib: Option<u64>,
    name: Option<String>,
    #[serde(default)]
    namespaces: Reach,
    bytes: Option<Bytes>,
    #[serde(default)]
    command_line: bool,
    /// UNIX sockets too.
    #[serde(default)]
    unix: bool,
    cpu_percent: Option<u64>,
    memory_mib: Option<u64>,
}

impl Bounds {
    fn check(self, value: Option<u64>) -> Result<Option<u64>, String> {
        let Bounds { name, least, most } = self;
        match value {
            Some(value) if !(least..=most).contains(&value) => {
                Err(format!("{name} = {value} is not within {least} and {most}"))
            }
            value => Ok(value),
        }
    }
}

impl Config {
    /// Reads the settings: from `file` when one is named, else from the state folder or from
    /// [`DEFAULT_CONFIG`] when there is one, else none.
    pub fn load(state: &Path, file: Option<&Path>) -> Result<Config, ConfigError> {
        if let Some(path) = file {
            return match Config::read(path)? {
                Some(config) => Ok(config),
                None => Err(ConfigError::Unreadable { path: path.to_owned(), source: io::ErrorKind::NotFound.into() }),
            };
        }
        for path in [state.join(CONFIG_FILE), PathBuf::from(DEFAULT_CONFIG)] {
            if let Some(config) = Config::read(&path)? {
                return Ok(config);
            }
        }
        Ok(Config::default())
    }

    fn read(path: &Path) -> Result<Option<Config>, ConfigError> {
        match fs::read_to_string(path) {
            Ok(text) => Config::parse(&text)
                .map(Some)
                .map_err(|problem| ConfigError::Invalid { path: path.to_owned(), problem }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ConfigError::Unreadable { path: path.to_owned(), source }),
        }
    }

    fn parse(text: &str) -> Result<Config, String> {
        let settings: Settings = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let defaults = Config::default();
        let name = settings.name.map(|name| name.parse()).transpose().map_err(|error| format!("name: {error}"))?;
        Ok(Config {
            walk: WALK_MS.check(settings.walk_ms)?.map_or(defaults.walk, Duration::from_millis),
            referee: REFEREE_S.check(settings.referee_s)?.map_or(defaults.referee, Duration::from_secs),
            digest: DIGEST_S.check(settings.digest_s)?.map_or(defaults.digest, Duration::from_secs),
            spool_bytes: SPOOL_MIB.check(settings.spool_mib)?.map_or(defaults.spool_bytes, |mib| mib * MIB),
            name,
            buffers: defaults.buffers,
            reach: settings.namespaces,
            bytes: settings.bytes,
            command_lines: if settings.command_line { CommandLines::Redacted } else { CommandLines::Untold },
            portless: if settings.unix { Wanted::All } else { Wanted::Network },
            cpu_percent: CPU_PERCENT
                .check(settings.cpu_percent)?
                .and_then(|percent| percent.try_into().ok())
                .unwrap_or(defaults.cpu_percent),
            memory_bytes: MEMORY_MIB.check(settings.memory_mib)?.map_or(defaults.memory_bytes, |mib| mib * MIB),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_is_not_written_has_its_default() {
        assert_eq!(Config::parse(""), Ok(Config::default()));
        let config = Config::parse("walk_ms = 250\nname = \"web1\"\nbytes = \"off\"").unwrap();
        assert_eq!((config.bytes, config.memory_bytes), (Some(Bytes::Off), Config::default().memory_bytes));
        assert_eq!(config.command_lines, CommandLines::Untold);
        assert_eq!(config.portless, Wanted::Network);
        assert_eq!(Config::parse("unix = true").unwrap().portless, Wanted::All);
        assert_eq!(Config::parse("command_line = true").unwrap().command_lines, CommandLines::Redacted);
        assert_eq!((config.walk, config.referee), (Duration::from_millis(250), Config::default().referee));
        assert_eq!(config.digest, Duration::from_secs(300));
        assert_eq!(Config::parse("digest_s = 60").unwrap().digest, Duration::from_secs(60));
        assert_eq!(config.name.unwrap().as_str(), "web1");
    }

    #[test]
    fn all_settings_are_told_with_their_defaults() {
        assert_eq!(Config::parse(ALL_SETTINGS), Ok(Config::default()));
        let is_setting = |line: &&str| line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '));
        let told: Vec<&str> =
            ALL_SETTINGS.lines().filter_map(|line| line.strip_prefix("# ")).filter(is_setting).collect();
        let config = Config::parse(&told.join("\n")).unwrap();
        assert_eq!(Config { name: None, bytes: None, ..config }, Config::default());
        // Who asks for another one is told of all there are.
        let problem = Config::parse("wakl_ms = 1").unwrap_err();
        let known: BTreeSet<&str> = problem.split('`').skip(1).step_by(2).filter(|word| *word != "wakl_ms").collect();
        let told: BTreeSet<&str> = told.iter().filter_map(|line| line.split(" = ").next()).collect();
        assert_eq!(told, known, "{problem}");
    }

    #[test]
    fn settings_that_cannot_be_meant_are_refused_by_name() {
        for (text, expected) in [
            ("walk_ms = 99", "walk_ms = 99 is not within 100 and 3600000"),
            ("spool_mib = 0", "spool_mib = 0 is not within 1 and 65536"),
            ("referee_s = 0", "referee_s = 0 is not within 1 and 86400"),
            ("digest_s = 3601", "digest_s = 3601 is not within 1 and 3600"),
            ("name = \"\"", "name: `` is no host name"),
            ("name = \"web 1\"", "name: `web 1` is no host name"),
            ("namespaces = \"some\"", "unknown variant `some`"),
            ("bytes = true", "line 1"),
            ("command_line = \"yes\"", "line 1"),
            ("cpu_percent = 0", "cpu_percent = 0 is not within 1 and 100"),
            ("memory_mib = 31", "memory_mib = 31 is not within 32 and 65536"),
            ("wakl_ms = 1", "unknown field `wakl_ms`"),
            ("walk_ms = \"1s\"", "line 1"),
        ] {
            let problem = Config::parse(text).unwrap_err();
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn a_file_that_is_named_must_be_there_and_the_one_in_the_state_folder_may() {
        let state = tempfile::tempdir().unwrap();
        let absent = state.path().join("absent.toml");
        let error = Config::load(state.path(), Some(&absent)).unwrap_err().to_string();
        assert!(error.contains("absent.toml"), "{error}");
        fs::write(state.path().join(CONFIG_FILE), "spool_mib = 3").unwrap();
        assert_eq!(Config::load(state.path(), None).unwrap().spool_bytes, 3 * MIB);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_reading_fail_in_another_way_than_with_words(
            noise in ".{0,200}",
            name in "(walk_ms|referee_s|digest_s|spool_mib|name|namespaces|bytes|command_line|unix|cpu_percent|memory_mib|[a-z_]{1,9})",
            value in "(-?[0-9]{1,25}|\"[^\"]{0,80}\"|true|\\[.{0,9}|1e999|0x[0-9a-f]{1,20})",
        ) {
            for text in [noise.clone(), format!("{name} = {value}"), format!("{name} = {value}\n{noise}")] {
                if let Err(problem) = Config::parse(&text) {
                    proptest::prop_assert!(!problem.is_empty(), "{text:?}");
                }
            }
        }
    }
}
