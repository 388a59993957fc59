//! Which agent made an instance, and what one leaves that is killed.
//!
//! An instance stays when its maker is killed, until the next agent that makes one removes it, or until buffers are prepared
//! for one; so there is one on a host as a rule. Until then it costs little: a full buffer takes nothing more.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::process::getpid;

use super::{InstanceError, folder};
use crate::{
    facts::altered_view,
    owners::{is_running, started},
};

/// What our instances are called, with the agent's process, its start and a number behind it.
const NAME: &str = "fleetsock-";
/// Numbers that are tried for a name: agents of one process.
const NAMES_LIMIT: u32 = 1024;

/// The process that made an instance, by its number and its start, which an older agent did not write down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Maker {
    pid: u32,
    start_ticks: Option<u64>,
}

impl Maker {
    fn of(name: &str) -> Option<Maker> {
        let mut numbers = name.strip_prefix(NAME)?.split('-');
        let pid = numbers.next()?.parse().ok()?;
        let rest: Vec<u64> = numbers.map(str::parse).collect::<Result<_, _>>().ok()?;
        match *rest {
            [_] => Some(Maker { pid, start_ticks: None }),
            [start_ticks, _] => Some(Maker { pid, start_ticks: Some(start_ticks) }),
            _ => None,
        }
    }
}

/// Makes a folder with a name that nobody has.
pub(super) fn make(instances: &Path) -> Result<PathBuf, InstanceError> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let pid = getpid().as_raw_nonzero().get().unsigned_abs();
    let start_ticks = started(pid).unwrap_or_default();
    let mut tried = 0;
    loop {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = instances.join(format!("{NAME}{pid}-{start_ticks}-{number}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(source) if source.kind() == std::io::ErrorKind::AlreadyExists && tried < NAMES_LIMIT => tried += 1,
            Err(source) => return Err(InstanceError::File { path, source }),
        }
    }
}

/// Removes the instances of agents that are no more. Where processes have other numbers or starts than their makers wrote down,
/// all of these would seem to be gone: nothing is removed there.
pub(super) fn remove_abandoned(instances: &Path) {
    if altered_view().is_some() {
        return;
    }
    let Ok(entries) = fs::read_dir(instances) else { return };
    for entry in entries.flatten() {
        let Some(Maker { pid, start_ticks }) = entry.file_name().to_str().and_then(Maker::of) else { continue };
        if is_running(pid, start_ticks) {
            continue;
        }
        let path = entry.path();
        tracing::info!(path = %path.display(), "removing what a killed agent left");
        if let Err(error) = folder::remove(&path) {
            tracing::warn!(%error, "cannot remove an instance of tracefs");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_a_maker() {
        let maker = |pid, start_ticks| Some(Maker { pid, start_ticks });
        assert_eq!(Maker::of("fleetsock-77-8812-0"), maker(77, Some(8812)));
        assert_eq!(Maker::of("fleetsock-77-0"), maker(77, None));
        for other in [
            "fleetsock-77",
            "fleetsock-77-x",
            "fleetsock-x-1",
            "fleetsock-1-2-3-4",
            "fleetsock-",
            "77-1",
            "other-77-1",
            "fleetsock-prepared-1",
            "fleetsock-prepared-1-2",
        ] {
            assert_eq!(Maker::of(other), None, "{other}");
        }
    }
}
