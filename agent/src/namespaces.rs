//! The network namespaces of the host: which there are, what they are called, and how to get into them.
//!
//! A namespace lives for as long as anything refers to it, and a descriptor of it or a socket in it is such a thing:
//! whoever keeps one open keeps the interfaces of a container that is long gone. So nothing stays open here. A namespace
//! is a number with ways in, which are opened for one visit and held against the number, because a pid or a path can
//! lead elsewhere by then.
//!
//! Ways in are processes and bind mounts (`ip netns add`, container engines). Not found: what only a descriptor, a socket
//! or a single thread refers to.

mod inhabitants;
mod mounts;
mod naming;
mod visit;

use std::{
    collections::{BTreeMap, btree_map::Entry},
    io,
    os::fd::OwnedFd,
    path::PathBuf,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, stat},
    io::Errno,
    thread::{CapabilitySet, capabilities},
};

use self::{inhabitants::Inhabitants, mounts::Mounts};
pub use self::{
    inhabitants::Pass,
    visit::{EnterError, Visitor},
};

/// Most namespaces besides the agent's own; further ones are counted, not kept.
pub const NAMESPACES_LIMIT: usize = 1024;
/// Ways into one namespace that are kept of each kind; one that leads there is enough.
const WAYS_LIMIT: usize = 3;

/// Namespaces cannot be found.
#[derive(Debug, thiserror::Error)]
pub enum NamespacesError {
    /// The own one is not known.
    #[error("cannot tell the network namespace from /proc/thread-self/ns/net: {0}")]
    Own(#[source] Errno),
    /// The processes cannot be listed.
    #[error("cannot list the processes in /proc: {0}")]
    Processes(#[source] Errno),
    /// The mounts cannot be listed.
    #[error("cannot read /proc/self/mountinfo: {0}")]
    Mounts(#[source] io::Error),
}

/// A network namespace other than the agent's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    netns: u64,
    name: String,
    /// Files that it is mounted on.
    mounts: Vec<PathBuf>,
    /// Some processes in it, lowest first.
    pids: Vec<u32>,
    /// What it is called after one of its processes.
    placed: Option<(u32, String)>,
}

impl Namespace {
    /// One that is called so, for tests.
    #[cfg(test)]
    pub(crate) fn called(netns: u64, name: &str) -> Namespace {
        Namespace { netns, name: name.to_owned(), mounts: Vec::new(), pids: Vec::new(), placed: None }
    }

    /// Its inode number.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// What it is called: the name that `ip netns` shows, else the container (12 digits) or systemd unit of a process in
    /// it, else what an engine called its mount; empty when there is nothing.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What came of looking for namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Those that were there before and are not now: no process is in them and no mount keeps them.
    pub vanished: Vec<u64>,
    /// Processes whose namespace may not be read.
    pub denied: u64,
    /// Processes that there were too many of.
    pub processes_beyond: u64,
    /// Namespaces above [`NAMESPACES_LIMIT`].
    pub overflow: u64,
    /// Lists of mounts that were longer than is read.
    pub mounts_cut: u64,
}

/// Finds the network namespaces.
#[derive(Debug)]
pub struct Namespaces {
    proc: OwnedFd,
    /// The agent's own, and the device that all namespaces are on.
    own: (u64, u64),
    inhabitants: Inhabitants,
    mounts: Mounts,
    known: BTreeMap<u64, Namespace>,
    findings: Findings,
}

impl Namespaces {
    /// Gets ready to look, from the network namespace of the calling thread; nothing is found before
    /// [`Namespaces::refresh`].
    pub fn open() -> Result<Namespaces, NamespacesError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, c"/proc", flags, Mode::empty()).map_err(NamespacesError::Processes)?;
        let own = stat("/proc/thread-self/ns/net").map_err(NamespacesError::Own)?;
        Ok(Namespaces {
            proc,
            own: (own.st_ino, own.st_dev),
            inhabitants: Inhabitants::default(),
            mounts: Mounts::open().map_err(NamespacesError::Mounts)?,
            known: BTreeMap::new(),
            findings: Findings::default(),
        })
    }

    /// Inode number of the agent's own.
    pub fn own(&self) -> u64 {
        self.own.0
    }

    /// Those that were found, the agent's own left out, by number.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Namespace> {
        self.known.values()
    }

    /// The one with this inode number.
    pub fn get(&self, netns: u64) -> Option<&Namespace> {
        self.known.get(&netns)
    }

    /// Looks for namespaces. After an error what was known stays known.
    pub fn refresh(&mut self, pass: Pass) -> Result<&Findings, NamespacesError> {
        let blind = self.inhabitants.look(&self.proc, pass).map_err(NamespacesError::Processes)?;
        let mounts_cut = self.mounts.look().map_err(NamespacesError::Mounts)?;
        let mut found = self.ways();
        found.remove(&self.own.0);
        let mut vanished = Vec::new();
        self.known.retain(|netns, namespace| match found.remove(netns) {
            Some(ways) => {
                (namespace.mounts, namespace.pids) = (ways.mounts, ways.pids);
                true
            }
            None => {
                vanished.push(*netns);
                false
            }
        });
        let room = NAMESPACES_LIMIT.saturating_sub(self.known.len());
        let overflow = found.len().saturating_sub(room).try_into().unwrap_or(u64::MAX);
        self.known.extend(found.into_iter().take(room).map(|(netns, ways)| (netns, ways.into_namespace(netns))));
        for namespace in self.known.values_mut() {
            naming::name(namespace, &self.proc);
        }
        self.findings =
            Findings { vanished, denied: blind.denied, processes_beyond: blind.beyond, overflow, mounts_cut };
        Ok(&self.findings)
    }

    /// The ways into every namespace.
    fn ways(&self) -> BTreeMap<u64, Ways> {
        let mut ways: BTreeMap<u64, Ways> = BTreeMap::new();
        for mount in self.mounts.iter() {
            let ways = ways.entry(mount.netns).or_default();
            if ways.mounts.len() < WAYS_LIMIT {
                ways.mounts.push(mount.path.clone());
            }
        }
        // Nearly all processes are in the agent's own.
        for (pid, netns) in self.inhabitants.iter().filter(|(_, netns)| *netns != self.own.0) {
            match ways.entry(netns) {
                Entry::Vacant(entry) => entry.insert(Ways::default()).pids.push(pid),
                Entry::Occupied(mut entry) => entry.get_mut().add(pid),
            }
        }
        ways
    }

    /// What the operator must know of sockets in other namespaces that this agent does not see, and why; `None` when there
    /// is nothing to say. For [`fleetsock_proto::host::HostFacts::tier_reason`].
    pub fn unseen(&self) -> Option<String> {
        let access = match capabilities(None) {
            Ok(capabilities) if capabilities.effective.contains(CapabilitySet::SYS_ADMIN) => Access::Granted,
            _ => Access::Refused,
        };
        unseen(access, self.known.len(), &self.findings)
    }
}

/// Whether other namespaces can be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Granted,
    Refused,
}

/// See [`Namespaces::unseen`].
fn unseen(access: Access, known: usize, findings: &Findings) -> Option<String> {
    let namespaces = |count: u64| match count {
        1 => "1 other network namespace".to_owned(),
        _ => format!("{count} other network namespaces"),
    };
    let (count, why) = match access {
        Access::Granted => (findings.overflow, format!("only {NAMESPACES_LIMIT} are looked into")),
        Access::Refused => (findings.overflow + known as u64, "no CAP_SYS_ADMIN".to_owned()),
    };
    let mut reasons = Vec::new();
    if count > 0 {
        reasons.push(format!("{why}: sockets of {} are not seen", namespaces(count)));
    }
    if findings.denied > 0 {
        let processes = if findings.denied == 1 { "process" } else { "processes" };
        reasons.push(format!("the network namespaces of {} {processes} may not be read", findings.denied));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

/// How a namespace can be reached.
#[derive(Debug, Default)]
struct Ways {
    mounts: Vec<PathBuf>,
    pids: Vec<u32>,
}

impl Ways {
    /// Keeps the lowest: most likely the first of a container, which lives as long as it does.
    fn add(&mut self, pid: u32) {
        let place = self.pids.partition_point(|other| *other < pid);
        if place < WAYS_LIMIT {
            self.pids.insert(place, pid);
            self.pids.truncate(WAYS_LIMIT);
        }
    }

    fn into_namespace(self, netns: u64) -> Namespace {
        Namespace { netns, name: String::new(), mounts: self.mounts, pids: self.pids, placed: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_pids_are_the_ways_in() {
        let mut ways = Ways::default();
        for pid in [9, 4, 7, 2, 8, 3] {
            ways.add(pid);
        }
        assert_eq!(ways.pids, [2, 3, 4]);
    }

    #[test]
    fn what_is_not_seen_of_other_namespaces_is_said() {
        let findings = |denied, overflow| Findings { denied, overflow, ..Findings::default() };
        for (access, known, findings, expected) in [
            (Access::Granted, 7, findings(0, 0), None),
            (Access::Refused, 0, findings(0, 0), None),
            (
                Access::Refused,
                1,
                findings(0, 0),
                Some("no CAP_SYS_ADMIN: sockets of 1 other network namespace are not seen"),
            ),
            (
                Access::Refused,
                2,
                findings(9, 0),
                Some(
                    "no CAP_SYS_ADMIN: sockets of 2 other network namespaces are not seen; \
                     the network namespaces of 9 processes may not be read",
                ),
            ),
            (
                Access::Granted,
                1024,
                findings(0, 5),
                Some("only 1024 are looked into: sockets of 5 other network namespaces are not seen"),
            ),
            (Access::Granted, 0, findings(1, 0), Some("the network namespaces of 1 process may not be read")),
        ] {
            assert_eq!(unseen(access, known, &findings).as_deref(), expected);
        }
    }
}
