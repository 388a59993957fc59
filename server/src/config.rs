//! The server's settings: read whole and checked before a port opens.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use fleetsock_proto::{join::ServerAddress, spiffe::TrustDomain};
use serde::Deserialize;

use crate::rates::{Rate, RateLimits};

pub use self::{
    fleet::NewFleet,
    telling::{HealthAddress, LogFormat},
};

mod fleet;
mod telling;

/// Where a server keeps everything unless told otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/fleetsock/server";
/// The fleet's name unless `init` is told another.
pub const DEFAULT_TRUST_DOMAIN: &str = "fleetsock.internal";
/// Name of the settings file in the state folder.
pub const CONFIG_FILE: &str = "server.toml";
const SOCKET_FILE: &str = "admin.sock";
pub(crate) const CA_FOLDER: &str = "ca";
pub(crate) const HISTORY_FOLDER: &str = "history";
const BACKUPS_FOLDER: &str = "backups";

/// A number with the bounds that a setting is kept within.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    name: &'static str,
    least: u64,
    most: u64,
}

const STALE_AFTER_S: Bounds = Bounds { name: "stale_after_s", least: 5, most: 86_400 };
const HEARTBEAT_S: Bounds = Bounds { name: "heartbeat_s", least: 1, most: 300 };
const HANDSHAKE_S: Bounds = Bounds { name: "limits.handshake_s", least: 1, most: 60 };
const HANDSHAKES: Bounds = Bounds { name: "limits.handshakes", least: 1, most: 65_536 };
const HANDSHAKES_PER_ADDRESS: Bounds = Bounds { name: "limits.handshakes_per_address", least: 1, most: 65_536 };
const CONNECTIONS: Bounds = Bounds { name: "limits.connections", least: 1, most: 1_000_000 };
const CONNECTIONS_PER_ADDRESS: Bounds = Bounds { name: "limits.connections_per_address", least: 1, most: 1_000_000 };
const CONNECTIONS_PER_AGENT: Bounds = Bounds { name: "limits.connections_per_agent", least: 2, most: 1_000 };
const NEWCOMERS: Bounds = Bounds { name: "limits.newcomers", least: 1, most: 65_536 };
const ROWS: Bounds = Bounds { name: "limits.answer_rows", least: 1, most: 100_000_000 };
const QUESTION_S: Bounds = Bounds { name: "limits.question_s", least: 1, most: 3_600 };
const ENROLMENTS: Bounds = Bounds { name: "limits.enrolments_per_s", least: 1, most: 100_000 };
const ENROLMENTS_PER_ADDRESS: Bounds =
    Bounds { name: "limits.enrolments_per_address_per_min", least: 1, most: 6_000_000 };
const RENEWALS: Bounds = Bounds { name: "limits.renewals_per_min", least: 1, most: 600 };
const STREAMS: Bounds = Bounds { name: "limits.streams_per_agent_per_min", least: 1, most: 6_000 };
const REPORTED_ROWS: Bounds = Bounds { name: "limits.rows_per_agent_per_s", least: 1_000, most: 10_000_000 };
const CALLS: Bounds = Bounds { name: "limits.operator_calls_per_s", least: 1, most: 10_000 };
const KEPT_DAYS: Bounds = Bounds { name: "kept_days", least: 1, most: 36_500 };
const SUMS_DAYS: Bounds = Bounds { name: "sums_days", least: 0, most: 36_500 };
const RENEWABLE_DAYS: Bounds = Bounds { name: "renewable_days", least: 0, most: 365 };

/// Settings of a server.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder of the CA.
    pub ca: PathBuf,
    /// Folder of the history.
    pub history: PathBuf,
    /// Folder of the backups.
    pub backups: PathBuf,
    /// Where it is told over plain HTTP how the server is, and whether somebody chose that; nowhere without.
    pub health: Option<HealthAddress>,
    /// How the log is written.
    pub log_format: LogFormat,
    /// The settings as they were read: a backup of the fleet holds them.
    pub text: String,
    /// Where gRPC is listened for.
    pub listen: SocketAddr,
    /// How agents and operators reach it: goes into join strings.
    pub address: ServerAddress,
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// The Unix socket of the local admin.
    pub admin_socket: PathBuf,
    /// The age at which a silent host counts as stale.
    pub stale_after: Duration,
    /// How often agents send a sign of life.
    pub heartbeat: Duration,
    /// How long after its end an agent's certificate can be renewed by proof of its key.
    pub renewable: Duration,
    /// How long it is kept what is over: sessions, listeners, gaps.
    pub kept: Duration,
    /// How long sums of sessions are kept after these; absent when none are.
    pub sums: Option<Duration>,
    /// How often is looked whether the server's own certificate must be renewed.
    pub renewal_check: Duration,
    /// What bounds its peers.
    pub limits: Limits,
}

/// How many days what is over is kept.
const DEFAULT_KEPT_DAYS: u64 = 30;
/// How many days sums of sessions are kept.
const DEFAULT_SUMS_DAYS: u64 = 400;
/// How often a server looks whether its own certificate must be renewed: weeks before it has to be.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

/// What bounds the peers of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Longest TLS handshake.
    pub handshake: Duration,
    /// Handshakes at once.
    pub handshakes: usize,
    /// Handshakes at once from one address.
    pub handshakes_per_address: usize,
    /// Connections.
    pub connections: usize,
    /// Connections from one address.
    pub connections_per_address: usize,
    /// Connections of one agent: the one that speaks, and those before it that died without a word.
    pub connections_per_agent: usize,
    /// Connections of those who have no certificate yet.
    pub newcomers: usize,
    /// Rows of an answer.
    pub answer_rows: u32,
    /// Longest time that a question may take.
    pub question: Duration,
    /// How often each may ask.
    pub rates: RateLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            handshake: Duration::from_secs(5),
            handshakes: 256,
            handshakes_per_address: 16,
            connections: 12_000,
            connections_per_address: 64,
            connections_per_agent: 4,
            newcomers: 128,
            answer_rows: 1_000_000,
            question: Duration::from_secs(30),
            rates: RateLimits::default(),
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
        source: std::io::Error,
    },
    /// There is no fleet in the folder.
    #[error("{} does not exist: make a fleet first with `fleetsock-server init`", .0.display())]
    Missing(PathBuf),
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
struct File {
    trust_domain: String,
    listen: SocketAddr,
    address: String,
    admin_socket: Option<PathBuf>,
    backups: Option<PathBuf>,
    health: Option<String>,
    #[serde(default)]
    log_format: LogFormat,
    stale_after_s: Option<u64>,
    heartbeat_s: Option<u64>,
    renewable_days: Option<u64>,
    kept_days: Option<u64>,
    sums_days: Option<u64>,
    #[serde(default)]
    limits: FileLimits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    handshake_s: Option<u64>,
    handshakes: Option<u64>,
    handshakes_per_address: Option<u64>,
    connections: Option<u64>,
    connections_per_address: Option<u64>,
    connections_per_agent: Option<u64>,
    newcomers: Option<u64>,
    answer_rows: Option<u64>,
    question_s: Option<u64>,
    enrolments_per_s: Option<u64>,
    enrolments_per_address_per_min: Option<u64>,
    renewals_per_min: Option<u64>,
    streams_per_agent_per_min: Option<u64>,
    rows_per_agent_per_s: Option<u64>,
    operator_calls_per_s: Option<u64>,
}

impl Bounds {
    fn check(self, value: Option<u64>, default: u64) -> Result<u64, String> {
        let Bounds { name, least, most } = self;
        match value {
            None => Ok(default),
            Some(value) if (least..=most).contains(&value) => Ok(value),
            Some(value) => Err(format!("{name} = {value} is not within {least} and {most}")),
        }
    }

    fn seconds(self, value: Option<u64>, default: Duration) -> Result<Duration, String> {
        self.check(value, default.as_secs()).map(Duration::from_secs)
    }

    /// A rate with another number of times; what may be had at once grows with it.
    fn rate(self, value: Option<u64>, default: Rate) -> Result<Rate, String> {
        let times = u32::try_from(self.check(value, default.times.into())?).unwrap_or(u32::MAX);
        let burst = u64::from(default.burst) * u64::from(times) / u64::from(default.times.max(1));
        Ok(Rate { times, burst: u32::try_from(burst).unwrap_or(u32::MAX).max(1), ..default })
    }

    fn count(self, value: Option<u64>, default: usize) -> Result<usize, String> {
        let default = u64::try_from(default).unwrap_or(u64::MAX);
        self.check(value, default).map(|count| usize::try_from(count).unwrap_or(usize::MAX))
    }
}

impl Config {
    /// Reads the settings of the fleet in `state`, from `file` when one is given.
    pub fn load(state: &Path, file: Option<&Path>) -> Result<Config, ConfigError> {
        let path = file.map_or_else(|| state.join(CONFIG_FILE), Path::to_owned);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ConfigError::Missing(path)),
            Err(source) => return Err(ConfigError::Unreadable { path, source }),
        };
        Config::parse(state, &text).map_err(|problem| ConfigError::Invalid { path, problem })
    }

    pub(crate) fn parse(state: &Path, text: &str) -> Result<Config, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        let stale_after = STALE_AFTER_S.seconds(file.stale_after_s, Duration::from_secs(90))?;
        let heartbeat = HEARTBEAT_S.seconds(file.heartbeat_s, Duration::from_secs(15))?;
        if heartbeat >= stale_after {
            return Err("heartbeat_s must be less than stale_after_s, or every host is stale".to_owned());
        }
        let defaults = Limits::default();
        let sums = sums(&file)?;
        let limits = file.limits;
        Ok(Config {
            ca: state.join(CA_FOLDER),
            history: state.join(HISTORY_FOLDER),
            backups: file.backups.unwrap_or_else(|| state.join(BACKUPS_FOLDER)),
            health: HealthAddress::parse(file.health.as_deref())?,
            log_format: file.log_format,
            text: text.to_owned(),
            listen: file.listen,
            address: file.address.parse().map_err(|error| format!("address: {error}"))?,
            trust_domain: file.trust_domain.parse().map_err(|error| format!("trust_domain: {error}"))?,
            admin_socket: file.admin_socket.unwrap_or_else(|| state.join(SOCKET_FILE)),
            stale_after,
            heartbeat,
            renewable: Duration::from_secs(RENEWABLE_DAYS.check(file.renewable_days, 30)? * 86_400),
            kept: Duration::from_secs(KEPT_DAYS.check(file.kept_days, DEFAULT_KEPT_DAYS)? * 86_400),
            sums,
            renewal_check: RENEWAL_CHECK,
            limits: Limits {
                handshake: HANDSHAKE_S.seconds(limits.handshake_s, defaults.handshake)?,
                handshakes: HANDSHAKES.count(limits.handshakes, defaults.handshakes)?,
                handshakes_per_address: HANDSHAKES_PER_ADDRESS
                    .count(limits.handshakes_per_address, defaults.handshakes_per_address)?,
                connections: CONNECTIONS.count(limits.connections, defaults.connections)?,
                connections_per_address: CONNECTIONS_PER_ADDRESS
                    .count(limits.connections_per_address, defaults.connections_per_address)?,
                connections_per_agent: CONNECTIONS_PER_AGENT
                    .count(limits.connections_per_agent, defaults.connections_per_agent)?,
                newcomers: NEWCOMERS.count(limits.newcomers, defaults.newcomers)?,
                answer_rows: u32::try_from(ROWS.check(limits.answer_rows, defaults.answer_rows.into())?)
                    .unwrap_or(u32::MAX),
                question: QUESTION_S.seconds(limits.question_s, defaults.question)?,
                rates: RateLimits {
                    enrolments: ENROLMENTS.rate(limits.enrolments_per_s, defaults.rates.enrolments)?,
                    enrolments_per_address: ENROLMENTS_PER_ADDRESS
                        .rate(limits.enrolments_per_address_per_min, defaults.rates.enrolments_per_address)?,
                    renewals: RENEWALS.rate(limits.renewals_per_min, defaults.rates.renewals)?,
                    streams: STREAMS.rate(limits.streams_per_agent_per_min, defaults.rates.streams)?,
                    rows: REPORTED_ROWS.rate(limits.rows_per_agent_per_s, defaults.rates.rows)?,
                    calls: CALLS.rate(limits.operator_calls_per_s, defaults.rates.calls)?,
                },
            },
        })
    }
}

/// How long sums are kept: by default at least as long as sessions.
fn sums(file: &File) -> Result<Option<Duration>, String> {
    let kept = KEPT_DAYS.check(file.kept_days, DEFAULT_KEPT_DAYS)?;
    let days = SUMS_DAYS.check(file.sums_days, DEFAULT_SUMS_DAYS.max(kept))?;
    match days {
        0 => Ok(None),
        days if days < kept => Err(format!("sums_days = {days} must be 0 or at least kept_days, {kept}")),
        days => Ok(Some(Duration::from_secs(days * 86_400))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "trust_domain = \"example.org\"\nlisten = \"127.0.0.1:5290\"\naddress = \"db1:5290\"\n";

    #[test]
    fn what_init_writes_reads_back_with_every_default() {
        let fleet = NewFleet {
            trust_domain: DEFAULT_TRUST_DOMAIN.parse().unwrap(),
            listen: NewFleet::default_listen(),
            address: "db1".parse().unwrap(),
        };
        let written = Config::parse(Path::new("/s"), &fleet.to_string()).unwrap();
        assert_eq!(written.limits, Limits::default());
        assert_eq!(written.address.as_str(), "db1:5290");
        let setting = |line: &str| line.contains(" = ") && !line.contains("admin_socket") && !line.contains("backups");
        let uncommented: Vec<String> = fleet
            .to_string()
            .lines()
            .map(|line| line.strip_prefix("# ").filter(|line| setting(line)).unwrap_or(line).to_owned())
            .collect();
        let named = Config::parse(Path::new("/s"), &uncommented.join("\n")).unwrap();
        assert_eq!((named.limits, named.stale_after), (written.limits, written.stale_after));
        assert_eq!((named.heartbeat, named.renewable), (written.heartbeat, written.renewable));
        assert_eq!((named.kept, named.log_format), (written.kept, written.log_format));
        assert_eq!((named.sums, written.sums.map(|sums| sums.as_secs())), (written.sums, Some(400 * 86_400)));
        let parsed = |text: &str| Config::parse(Path::new("/s"), &format!("{LEAST}{text}")).unwrap().sums;
        assert_eq!(parsed("sums_days = 0\n"), None);
        assert_eq!(parsed("kept_days = 500\n").map(|sums| sums.as_secs()), Some(500 * 86_400));
        assert_eq!(written.health, Some(HealthAddress::Default));
        assert_eq!(named.health, Some(HealthAddress::Chosen(HealthAddress::Default.address())));
        let none = Config::parse(Path::new("/s"), &format!("{LEAST}health = \"none\"\n")).unwrap();
        assert_eq!(none.health, None);
    }

    #[test]
    fn wrong_settings_are_refused_with_their_place() {
        for (addition, expected) in [
            ("colour = 1\n", "unknown field `colour`"),
            ("stale_after_s = 1\n", "stale_after_s = 1 is not within 5 and 86400"),
            ("stale_after_s = 10\nheartbeat_s = 10\n", "heartbeat_s must be less than stale_after_s"),
            ("[limits]\nconnections = 0\n", "limits.connections = 0"),
            ("[limits]\nconections = 1\n", "unknown field `conections`"),
            ("listen = \"nowhere\"\n", "duplicate key"),
            ("heartbeat_s = -1\n", "line 4"),
            ("[limits]\nenrolments_per_s = 0\n", "limits.enrolments_per_s = 0 is not within 1 and 100000"),
            ("renewable_days = 366\n", "renewable_days = 366"),
            ("kept_days = 0\n", "kept_days = 0 is not within 1 and 36500"),
            ("sums_days = 29\n", "sums_days = 29 must be 0 or at least kept_days, 30"),
            ("sums_days = 36501\n", "sums_days = 36501 is not within 0 and 36500"),
            ("health = \"localhost\"\n", "health: `localhost` is no address with a port"),
            ("log_format = \"xml\"\n", "unknown variant `xml`, expected one of `auto`, `json`, `text`"),
        ] {
            let problem = Config::parse(Path::new("/s"), &format!("{LEAST}{addition}")).unwrap_err();
            assert!(problem.contains(expected), "{addition}: {problem}");
        }
    }
}
