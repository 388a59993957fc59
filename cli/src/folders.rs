//! Where fleetctl keeps its things (XDG Base Directory Specification).

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

use crate::failure::{Exit, Failure};

/// The project's folder in each of the base folders.
const OURS: &str = "fleetsock";

/// `$XDG_CONFIG_HOME/fleetsock`, or `~/.config/fleetsock`.
pub fn config() -> Result<PathBuf, Failure> {
    base("XDG_CONFIG_HOME", ".config", |name| env::var_os(name)).map(|base| base.join(OURS))
}

/// `$XDG_STATE_HOME/fleetsock`, or `~/.local/state/fleetsock`.
pub fn state() -> Result<PathBuf, Failure> {
    base("XDG_STATE_HOME", ".local/state", |name| env::var_os(name)).map(|base| base.join(OURS))
}

fn base(variable: &str, below_home: &str, read: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, Failure> {
    // The specification: a path that is not absolute is to be ignored.
    let absolute = |name: &str| read(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable)
        .or_else(|| absolute("HOME").map(|home| home.join(below_home)))
        .ok_or_else(|| Failure::new(Exit::Failed, format!("neither {variable} nor HOME is set to an absolute path")))
}

/// The first file in PATH that is called `name` and that can be executed.
pub fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(name))
        .find(|path| is_executable(path))
}

/// Whether a path is a file that can be executed.
pub fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_folder_comes_from_its_variable_or_lies_below_home() {
        for (xdg, home, expected) in [
            (Some("/x"), Some("/home/a"), Some("/x")),
            (Some("relative"), Some("/home/a"), Some("/home/a/.config")),
            (None, Some("/home/a"), Some("/home/a/.config")),
            (None, None, None),
        ] {
            let read = |name: &str| if name == "HOME" { home } else { xdg }.map(OsString::from);
            assert_eq!(base("XDG_CONFIG_HOME", ".config", read).ok(), expected.map(PathBuf::from));
        }
    }
}
