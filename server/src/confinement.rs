//! What a serving server can still do: read and write its own folders, and listen on its ports. Nothing else.
//!
//! Landlock (landlock(7)) and an empty set of capabilities, for the thread that calls and all that it starts: called
//! before there are others. On a kernel without Landlock, or with an older one, what it can do is done, and what it
//! cannot is said.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, NetPort, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus,
    Scope, path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::config::Config;

/// The newest rules that this program knows: of these a kernel keeps those that it knows too.
const RULES: ABI = ABI::V6;
/// Where SQLite puts what does not fit into memory while it sorts (`unixTempFileDir`).
const TEMPORARY: [&str; 2] = ["/var/tmp", "/tmp"];

/// What the runtime reads to learn how many threads it may use, and what memory the process has.
const READ: [&str; 3] = ["/proc/self/cgroup", "/proc/self/statm", "/sys/fs/cgroup"];

/// Why the server is not confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfinementError {
    /// Landlock is there and refuses.
    #[error("Landlock: {0}")]
    Landlock(#[from] RulesetError),
    /// The capabilities stay.
    #[error("capabilities: {0}")]
    Capabilities(io::Error),
}

/// How well the server is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// By every rule.
    Whole,
    /// By those that this kernel knows.
    Partial,
    /// Only by its lack of capabilities: this kernel has no Landlock.
    Capabilities,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Confinement::Whole => "Landlock and no capabilities",
            Confinement::Partial => "an older Landlock and no capabilities",
            Confinement::Capabilities => "no capabilities (this kernel has no Landlock)",
        })
    }
}

/// The folders that a server with these settings writes to.
fn folders(config: &Config) -> Vec<PathBuf> {
    let socket = config.admin_socket.parent().unwrap_or(Path::new("/")).to_owned();
    let mut folders = vec![config.ca.clone(), config.history.clone(), config.backups.clone(), socket];
    folders.extend(TEMPORARY.iter().map(PathBuf::from));
    folders
}

/// Gives up everything that a server with these settings does not need, for good.
pub fn confine(config: &Config) -> Result<Confinement, ConfinementError> {
    let everything = AccessFs::from_all(RULES);
    let status = Ruleset::default()
        .handle_access(everything)?
        .handle_access(AccessNet::from_all(RULES))?
        .scope(Scope::from_all(RULES))?
        .create()?
        .add_rules(path_beneath_rules(folders(config), everything & !AccessFs::Execute))?
        .add_rules(path_beneath_rules(READ, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rule(NetPort::new(config.listen.port(), AccessNet::BindTcp))?
        .add_rules(
            config
                .health
                .map(|health| Ok::<_, RulesetError>(NetPort::new(health.address().port(), AccessNet::BindTcp))),
        )?
        .restrict_self()?;
    give_up_capabilities().map_err(|error| ConfinementError::Capabilities(error.into()))?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Confinement::Whole,
        RulesetStatus::PartiallyEnforced => Confinement::Partial,
        RulesetStatus::NotEnforced => Confinement::Capabilities,
    })
}

/// None is left, and none comes back by running a program (`no_new_privs`).
fn give_up_capabilities() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets)
}
