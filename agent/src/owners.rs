//! Which processes hold a socket.
//!
//! There is no index from a socket to its holders: every descriptor of every process is looked at (3 to 5 us each), so
//! a scan is for when something unknown appeared. `process` reads one process, `descriptors` its sockets, `holders` keeps
//! who has which, `placement` tells its container and unit, `users` the name of its user, `command_line` how it was called,
//! `known` remembers all that.

mod command_line;
mod descriptors;
mod holders;
mod known;
mod placement;
mod process;
mod users;

use std::{ffi::CString, io, mem::MaybeUninit, os::fd::OwnedFd, time::Duration};

use rustix::{
    ffi::CStr,
    fs::{AtFlags, CWD, Mode, OFlags, RawDir, SeekFrom, openat, seek, stat, statat},
    io::Errno,
};

pub use self::holders::{ByInode, Holders, InodeHasher, Inodes};
use self::{descriptors::Descriptors, known::Known};
pub(crate) use self::{
    placement::Placement,
    process::{Folder, buffer, cut, is_running, pid, started},
};
use crate::{ancestry::Described, config::CommandLines, cost};

/// Bytes of folder entries that are read at once.
const ENTRIES: usize = 32 * 1024;

/// What a scan of the processes found.
#[derive(Debug, Default)]
pub struct OwnerScan {
    /// Owners of the wanted inodes that were found, the primary one (the oldest living opener) first.
    pub owners: ByInode<Holders>,
    /// Processes that could not be looked into: an inode without an owner may be theirs. Those that are hidden (mount
    /// option `hidepid`) count as one.
    pub denied: u64,
    /// Owners above [`SOCKET_OWNERS_LIMIT`](fleetsock_proto::batch::SOCKET_OWNERS_LIMIT) of a socket: the youngest, counted, not kept.
    pub owners_cut: u64,
}

/// Inodes of sockets whose owners are looked for.
pub type Wanted = Inodes;

/// The processes cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum OwnersError {
    /// There is no /proc.
    #[error("cannot open /proc: {0}")]
    Proc(#[source] Errno),
    /// What hides secrets in command lines cannot be made.
    #[error("cannot make the patterns that hide secrets in command lines: {0}")]
    Redaction(#[source] Box<regex::Error>),
    /// There is no thread to look up the names of users.
    #[error("cannot start the thread that looks up user names: {0}")]
    Users(#[source] io::Error),
}

/// Looks for owners in the processes of the agent's pid namespace.
///
/// Not seen: descriptors of threads that left their process's table (CLONE_FILES), and files that are registered with
/// io_uring only.
#[derive(Debug)]
pub struct Processes {
    proc: OwnedFd,
    known: Known,
    /// Whether the kernel tells the number of descriptors as the size of `/proc/PID/fd` (since Linux 6.2).
    counts_descriptors: bool,
}

impl Processes {
    /// Opens /proc.
    pub fn open() -> Result<Processes, OwnersError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, c"/proc", flags, Mode::empty()).map_err(OwnersError::Proc)?;
        let own = stat("/proc/self/fd").map_err(OwnersError::Proc)?;
        let known = Known::new().map_err(OwnersError::Users)?;
        Ok(Processes { proc, known, counts_descriptors: own.st_size > 0 })
    }

    /// The same, that tells the command lines of processes if that is wanted.
    pub fn telling(mut self, command_lines: CommandLines) -> Result<Processes, OwnersError> {
        if command_lines == CommandLines::Redacted {
            self.known.tell_command_lines().map_err(|error| OwnersError::Redaction(Box::new(error)))?;
        }
        Ok(self)
    }

    /// Looks through the descriptors of all processes for the wanted socket inodes. Processes that end meanwhile own
    /// nothing.
    pub fn scan(&mut self, wanted: &Wanted) -> OwnerScan {
        let mut scan = OwnerScan::default();
        if wanted.is_empty() {
            return scan;
        }
        // Mostly each has one.
        scan.owners.reserve(wanted.len());
        self.known.begin();
        match self.look_through(wanted, &mut scan) {
            Ok(()) => self.known.end(),
            Err(errno) => {
                tracing::warn!(error = %errno, "cannot list /proc to its end");
                scan.denied += 1;
            }
        }
        scan
    }

    /// The process with this number, if it is alive and may be looked at.
    pub fn describe(&mut self, pid: u32) -> Option<Described> {
        let name = CString::new(pid.to_string()).ok()?;
        let folder = Folder::open(&self.proc, &name).ok()?;
        let (owner, started) = self.known.owner(pid, &folder).ok()?;
        Some(Described { owner, netns: folder.netns().unwrap_or(0), started_ns: by_events(started) })
    }

    /// The process of a thread that was there at a moment of the events' clock and is still.
    pub fn of_thread(&mut self, thread: u32, at_ns: u64) -> Option<u32> {
        let name = CString::new(thread.to_string()).ok()?;
        let folder = Folder::open(&self.proc, &name).ok()?;
        let (process, started) = self.known.of_thread(&folder).ok()?;
        // One that began later has a number that was used before.
        (by_events(started) <= at_ns).then_some(process)
    }

    /// Inode number of a process's network namespace, if it is alive and may be looked at.
    pub fn namespace_of(&self, pid: u32) -> Option<u64> {
        let name = CString::new(pid.to_string()).ok()?;
        Folder::open(&self.proc, &name).and_then(|folder| folder.netns()).ok()
    }

    fn look_through(&mut self, wanted: &Wanted, scan: &mut OwnerScan) -> Result<(), Errno> {
        if matches!(statat(&self.proc, c"1", AtFlags::empty()), Err(Errno::NOENT)) {
            // Every pid namespace has a first process.
            scan.denied += 1;
        }
        seek(&self.proc, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(&self.proc, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let Some(pid) = pid(entry.file_name()) else { continue };
            let mut search = Search {
                proc: &self.proc,
                known: &mut self.known,
                counts_descriptors: self.counts_descriptors,
                wanted,
                scan,
            };
            match search.look_into(pid, entry.file_name()) {
                Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(errno) => {
                    tracing::trace!(pid, error = %errno, "cannot look into a process");
                    scan.denied += 1;
                }
            }
        }
        Ok(())
    }
}

/// A scan, while it is at one process.
struct Search<'a> {
    proc: &'a OwnedFd,
    known: &'a mut Known,
    counts_descriptors: bool,
    wanted: &'a Wanted,
    scan: &'a mut OwnerScan,
}

impl Search<'_> {
    fn look_into(&mut self, pid: u32, name: &CStr) -> Result<(), Errno> {
        self.known.saw(pid);
        let count = if self.counts_descriptors { Some(self.count_descriptors(name)?) } else { None };
        if count == Some(0) {
            // A thread of the kernel or a dead process, and this without opening anything.
            return Ok(());
        }
        let folder = Folder::open(self.proc, name)?;
        let descriptors = match folder.descriptors() {
            Err(Errno::ACCESS | Errno::PERM) if self.known.holds_nothing(&folder)? => return Ok(()),
            descriptors => Descriptors::new(descriptors?, count),
        };
        let mut owner = None;
        descriptors.sockets(|inode| {
            if self.wanted.contains(&inode) {
                let owner = match &owner {
                    Some(owner) => owner,
                    None => owner.insert(self.known.owner(pid, &folder)?.0),
                };
                self.scan.owners_cut += self.scan.owners.entry(inode).or_default().add(owner);
            }
            Ok(())
        })
    }

    fn count_descriptors(&self, name: &CStr) -> Result<u64, Errno> {
        let mut path = [0; 16];
        let name = name.to_bytes();
        let (pid, rest) = path.split_at_mut_checked(name.len()).ok_or(Errno::NAMETOOLONG)?;
        pid.copy_from_slice(name);
        rest.get_mut(..4).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(b"/fd\0");
        let path = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?;
        Ok(statat(self.proc, path, AtFlags::empty())?.st_size.unsigned_abs())
    }
}

/// A time since the boot by the clock of the events, which stands still while the host sleeps; nanoseconds.
fn by_events(since_boot: Duration) -> u64 {
    let awake = since_boot.saturating_sub(cost::since_boot().saturating_sub(cost::awake()));
    u64::try_from(awake.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, os::fd::AsRawFd, process::Command, sync::Arc};

    use fleetsock_proto::time::Timestamp;

    use super::*;

    fn inode(listener: &TcpListener) -> u64 {
        stat(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().st_ino
    }

    #[test]
    fn a_socket_of_this_process_is_found_with_its_facts() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let twin = listener.try_clone().unwrap();
        let mut processes = Processes::open().unwrap();
        let scan = processes.scan(&Wanted::from_iter([inode(&listener), 1]));
        // Another test may be between fork and exec, and then its child holds the socket too: it is younger.
        let owner = &scan.owners[&inode(&twin)][0];
        assert_eq!(owner.pid, std::process::id());
        assert_eq!(owner.exe, std::env::current_exe().unwrap().to_str().unwrap());
        assert!(owner.exe.rsplit('/').next().unwrap().starts_with(&owner.process), "{owner:?}");
        assert_eq!(owner.uid, rustix::process::getuid().as_raw());
        assert!(owner.started_at.unwrap() < Timestamp::now());
        assert_eq!(scan.owners.len(), 1);
    }

    #[test]
    fn an_owner_found_again_is_the_same_until_it_becomes_another_program() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (told, tell) = io::pipe().unwrap();
        // As its standard input the child inherits the listener, and hands it on to the next program.
        let mut shell = Command::new("sh");
        shell.args(["-c", "read line <&2; exec sleep 60"]);
        let mut child = shell.stdin(OwnedFd::from(listener.try_clone().unwrap())).stderr(told).spawn().unwrap();
        let mut processes = Processes::open().unwrap();
        let mut find = || {
            let scan = processes.scan(&Wanted::from_iter([inode(&listener)]));
            let owner = scan.owners[&inode(&listener)].iter().find(|owner| owner.pid == child.id()).cloned();
            owner.expect("the child holds the listener")
        };
        let (first, second) = (find(), find());
        drop(tell);
        let after = (0..100_000).map(|_| find()).find(|owner| owner.process == "sleep");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let after = after.expect("the shell becomes sleep");
        assert_eq!((after.pid, after.started_at), (first.pid, first.started_at));
        assert_ne!(after.exe, first.exe);
    }
}
