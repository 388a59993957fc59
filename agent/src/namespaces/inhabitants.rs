//! Which process is in which network namespace.
//!
//! Reading it costs about 5 us per process, a listing of /proc a twentieth of that, so a process is looked at when it is
//! new, once more at the next look (a container's first process moves into its namespace shortly after it was born), and
//! then only when all are: that also finds a process that moved later, and a pid that was given to another process
//! between two looks. The start of a process, which would tell that at once, costs more to read than its namespace.

use std::{
    collections::HashMap,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    ffi::CStr,
    fs::{AtFlags, RawDir, SeekFrom, seek, statat},
    io::Errno,
};

use crate::owners::pid;

/// Most processes that are looked at; further ones are counted.
const PROCESSES_LIMIT: usize = 256 * 1024;
/// Bytes of folder entries that are read at once.
const ENTRIES: usize = 32 * 1024;
/// Looks at a new process until it is believed to stay where it is.
const LOOKS: u8 = 2;

/// Which processes are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// New ones.
    New,
    /// All of them.
    All,
}

/// Where a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    In(u64),
    /// It may not be looked into.
    Denied,
    /// It is dead and not yet buried.
    Nowhere,
}

#[derive(Debug)]
struct Inhabitant {
    place: Place,
    looks: u8,
    /// The last look that listed it.
    listed: u64,
}

/// The processes that are known.
#[derive(Debug, Default)]
pub(super) struct Inhabitants {
    living: HashMap<u32, Inhabitant>,
    /// Number of the look.
    look: u64,
}

/// What a look did not see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Blind {
    /// Processes that may not be looked into.
    pub(super) denied: u64,
    /// Processes above [`PROCESSES_LIMIT`].
    pub(super) beyond: u64,
}

impl Inhabitants {
    /// Looks at the processes.
    pub(super) fn look(&mut self, proc: &OwnedFd, pass: Pass) -> Result<Blind, Errno> {
        self.look += 1;
        let mut blind = Blind::default();
        seek(proc, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(proc, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if let Some(pid) = pid(entry.file_name()) {
                blind.beyond += self.list(pid, pass, || place(proc, entry.file_name()));
            }
        }
        let look = self.look;
        self.living.retain(|_, inhabitant| {
            let living = inhabitant.listed == look;
            blind.denied += u64::from(living && inhabitant.place == Place::Denied);
            living
        });
        Ok(blind)
    }

    /// A process was listed; counts it when there is no room.
    fn list(&mut self, pid: u32, pass: Pass, place: impl FnOnce() -> Place) -> u64 {
        let listed = self.look;
        let room = self.living.len() < PROCESSES_LIMIT;
        match self.living.get_mut(&pid) {
            Some(known) if pass == Pass::New && known.looks >= LOOKS => known.listed = listed,
            Some(known) => {
                *known = Inhabitant { place: place(), looks: known.looks.saturating_add(1), listed };
            }
            None if room => {
                self.living.insert(pid, Inhabitant { place: place(), looks: 1, listed });
            }
            None => return 1,
        }
        0
    }

    /// The processes and the inode numbers of their namespaces.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u64)> {
        self.living.iter().filter_map(|(pid, inhabitant)| match inhabitant.place {
            Place::In(netns) => Some((*pid, netns)),
            Place::Denied | Place::Nowhere => None,
        })
    }
}

/// The namespace of a process. A process that ends meanwhile is nowhere.
fn place(proc: impl AsFd, name: &CStr) -> Place {
    const FILE: &[u8] = b"/ns/net\0";
    let mut path = [0; 24];
    let pid = name.to_bytes();
    let Some((head, tail)) = path.split_at_mut_checked(pid.len()) else { return Place::Nowhere };
    let Some(tail) = tail.get_mut(..FILE.len()) else { return Place::Nowhere };
    head.copy_from_slice(pid);
    tail.copy_from_slice(FILE);
    let Ok(path) = CStr::from_bytes_until_nul(&path) else { return Place::Nowhere };
    match statat(proc, path, AtFlags::empty()) {
        Ok(namespace) => Place::In(namespace.st_ino),
        Err(Errno::ACCESS | Errno::PERM) => Place::Denied,
        Err(_) => Place::Nowhere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists one process at one look; whether its namespace was read.
    fn is_read(inhabitants: &mut Inhabitants, pass: Pass, netns: u64) -> bool {
        let mut read = false;
        inhabitants.look += 1;
        inhabitants.list(7, pass, || {
            read = true;
            Place::In(netns)
        });
        read
    }

    #[test]
    fn a_process_is_read_twice_when_it_is_new_and_then_only_with_all_others() {
        let mut inhabitants = Inhabitants::default();
        for (pass, netns, read) in [
            (Pass::New, 1, true),
            (Pass::New, 2, true),
            (Pass::New, 3, false),
            (Pass::New, 4, false),
            (Pass::All, 5, true),
            (Pass::New, 6, false),
        ] {
            assert_eq!(is_read(&mut inhabitants, pass, netns), read, "{pass:?} {netns}");
        }
        assert_eq!(inhabitants.iter().collect::<Vec<_>>(), [(7, 5)]);
    }

    #[test]
    fn the_namespace_of_a_process_is_that_of_its_link() {
        let proc = rustix::fs::open("/proc", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let own = rustix::fs::stat("/proc/self/ns/net").unwrap().st_ino;
        assert_eq!(place(&proc, c"self"), Place::In(own));
        assert_eq!(place(&proc, c"4294967295"), Place::Nowhere);
        assert_eq!(place(&proc, c"a name that is longer than any pid"), Place::Nowhere);
    }

    #[test]
    fn a_process_that_ended_is_forgotten() {
        let proc = rustix::fs::open("/proc", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()).unwrap();
        let mut inhabitants = Inhabitants::default();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        inhabitants.look(&proc, Pass::New).unwrap();
        assert!(inhabitants.iter().any(|(pid, _)| pid == child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        inhabitants.look(&proc, Pass::New).unwrap();
        assert!(inhabitants.iter().all(|(pid, _)| pid != child.id()));
    }
}
