//! Making a fleet.

use std::path::{Path, PathBuf};

use fleetsock_proto::{
    private::{self, PrivateFileError},
    time::Timestamp,
};

use crate::{
    authority::{Authority, AuthorityError},
    config::{CONFIG_FILE, Config, ConfigError, NewFleet},
    history::{
        Bounds,
        sqlite::{Keeping, OpenError, Options, Reserve, Sealing, SqliteHistory},
    },
};

/// Why a fleet was not made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is one.
    #[error("{} exists already: this folder has a fleet; serve it, or choose another folder with --state", .0.display())]
    Exists(PathBuf),
    /// A file or folder.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The CA.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// The database.
    #[error(transparent)]
    History(#[from] OpenError),
    /// The settings that were just written.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

/// Makes the CA, the database and the settings of a fleet; returns the pin of the CA as hexadecimal digits.
pub fn init(state: &Path, fleet: &NewFleet, now: Timestamp) -> Result<String, SetupError> {
    private::make_folder(state)?;
    let settings = state.join(CONFIG_FILE);
    if settings.exists() {
        return Err(SetupError::Exists(settings));
    }
    // The settings come last, because their presence says that the fleet is whole; until then they are only tried.
    let config = Config::parse(state, &fleet.to_string())
        .map_err(|problem| ConfigError::Invalid { path: settings.clone(), problem })?;
    Authority::create(&config.ca, &fleet.trust_domain, now)?;
    let authority = Authority::load(&config.ca, &fleet.trust_domain, now)?;
    drop(SqliteHistory::open(&config.history, history_options(&config))?);
    private::write(&settings, fleet.to_string().as_bytes())?;
    Ok(authority.pin().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// How the history is opened.
pub fn history_options(config: &Config) -> Options {
    let bounds = Bounds { rows: config.limits.answer_rows, time: config.limits.question, ..Bounds::default() };
    let keeping = Keeping { kept: Some(config.kept), sums: config.sums, ..Keeping::default() };
    let reserve = Some(Reserve::default());
    let sealing = Sealing::beside(config.limits.question);
    Options { stale_after: config.stale_after, bounds, keeping, sealing, reserve, ..Options::default() }
}

/// What this machine calls itself.
pub fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
