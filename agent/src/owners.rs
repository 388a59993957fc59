//! Which processes hold a socket.
//!
//! There is no index from a socket to its holders: every descriptor of every process is looked at, so a scan is for when
//! something unknown appeared. The kernel does it where it lets the agent have it done: `holdings` asks it, by a `program`
//! that is made for the kernel's own BTF, and `told` takes what it tells. Elsewhere their links are read, 3 to 5 us each:
//! `search` goes through the processes, `descriptors` finds the sockets of one. `process` reads what a process is, `holders`
//! keeps who has which socket, `placement` tells its container and unit, `users` the name of its user, `command_line` how it
//! was called, `known` remembers all that.

mod command_line;
mod descriptors;
mod holders;
mod holdings;
mod known;
pub mod lookers;
mod placement;
mod process;
mod program;
mod search;
mod told;
mod users;

use std::{
    ffi::CString,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, stat},
    io::Errno,
};

pub use self::{
    holders::{ByInode, Holders, InodeHasher, Inodes},
    holdings::{Holdings, HoldingsError},
};
use self::{
    known::Known,
    search::{Search, every_process},
    told::Told,
};
pub(crate) use self::{
    placement::Placement,
    process::{Folder, buffer, cut, is_running, pid, started},
};
use crate::{
    ancestry::{Described, Look},
    config::CommandLines,
    cost,
};

/// How long the kernel is not asked again after it took too long to tell: whoever makes it slow costs the host one such pass in
/// that time.
const PASS_PAUSE: Duration = Duration::from_secs(600);

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

impl OwnerScan {
    /// Nothing yet, with room for all: mostly each socket has one.
    fn for_all(wanted: &Wanted) -> OwnerScan {
        let mut scan = OwnerScan::default();
        scan.owners.reserve(wanted.len());
        scan
    }
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
/// Not seen: files that are registered with io_uring only, and where the kernel does not tell, descriptors of threads that
/// left their process's table (CLONE_FILES) or outlive its first thread.
#[derive(Debug)]
pub struct Processes {
    proc: OwnedFd,
    known: Known,
    /// Has the kernel tell who holds which socket.
    holdings: Option<Holdings>,
    /// Why it does not, though it was to.
    obstacle: Option<String>,
    /// Until when it is not asked.
    paused_until: Option<Instant>,
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
        let counts_descriptors = own.st_size > 0;
        Ok(Processes { proc, known, holdings: None, obstacle: None, paused_until: None, counts_descriptors })
    }

    /// The same, that tells the command lines of processes if that is wanted.
    pub fn telling(mut self, command_lines: CommandLines) -> Result<Processes, OwnersError> {
        if command_lines == CommandLines::Redacted {
            self.known.tell_command_lines().map_err(|error| OwnersError::Redaction(Box::new(error)))?;
        }
        Ok(self)
    }

    /// The same, that has the kernel tell who holds which socket; /proc is read where and as long as it does not. What the
    /// calling thread is to give up is given up by now.
    pub fn asking(mut self, holdings: Result<Holdings, HoldingsError>) -> Processes {
        match holdings.and_then(Holdings::still_allowed) {
            Ok(holdings) => self.holdings = Some(holdings),
            Err(error) => self.obstacle = Some(error.to_string()),
        }
        self
    }

    /// What is to be said when the kernel does not tell who holds which socket, though it was to be asked.
    pub fn remark(&self) -> Option<String> {
        let why = self.obstacle.as_ref()?;
        Some(format!("owners are read from /proc, which takes several times the CPU ({why})"))
    }

    /// Looks through the descriptors of all processes for the wanted socket inodes. Processes that end meanwhile own
    /// nothing.
    pub fn scan(&mut self, wanted: &Wanted) -> OwnerScan {
        if wanted.is_empty() {
            return OwnerScan::default();
        }
        self.known.begin();
        match self.ask(wanted) {
            Some(scan) => scan,
            None => self.read(wanted),
        }
    }

    /// Has the kernel tell who holds them, if it does. One pass over everything costs less than to look for a few here and
    /// there.
    fn ask(&mut self, wanted: &Wanted) -> Option<OwnerScan> {
        let holdings = self.holdings.as_ref()?;
        if self.paused_until.is_some_and(|until| Instant::now() < until) {
            return None;
        }
        let mut told = Told::new(&self.proc, &mut self.known, wanted);
        let passed = holdings.pass(|holding| told.take(holding));
        if passed.is_ok() && told.scan.owners.len() < wanted.len() {
            told.scan.denied += denied(&told.look_for_hidden());
        }
        let scan = told.scan;
        let is_slow = matches!(passed, Err(HoldingsError::Slow(_)));
        self.paused_until = is_slow.then(|| Instant::now() + PASS_PAUSE);
        let obstacle = passed.err().map(|error| error.to_string());
        match &obstacle {
            Some(why) if obstacle != self.obstacle => {
                tracing::warn!(error = why, "the kernel does not tell who holds sockets: /proc is read");
            }
            None if self.obstacle.is_some() => tracing::info!("the kernel tells again who holds sockets"),
            _ => {}
        }
        self.obstacle = obstacle;
        self.obstacle.is_none().then(|| {
            self.known.end();
            scan
        })
    }

    /// Looks for them in /proc.
    fn read(&mut self, wanted: &Wanted) -> OwnerScan {
        let mut search = Search::new(&self.proc, &mut self.known, self.counts_descriptors, wanted);
        let looked = every_process(&self.proc, |pid, name| search.look_into(pid, name));
        let mut scan = search.scan;
        scan.denied += denied(&looked);
        if looked.is_ok() {
            self.known.end();
        }
        scan
    }

    /// Single processes are going to be looked at, for what events told.
    pub fn begin_look(&mut self) {
        self.known.begin_look();
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
}

impl Look for Processes {
    fn process(&mut self, pid: u32) -> Option<Described> {
        let name = CString::new(pid.to_string()).ok()?;
        let folder = Folder::open(&self.proc, &name).ok()?;
        let (owner, started) = self.known.owner(pid, &folder).ok()?;
        let nameless = self.known.is_nameless(pid);
        Some(Described { owner, netns: folder.netns().unwrap_or(0), started_ns: by_events(started), nameless })
    }

    fn user(&mut self, uid: u32) -> Option<String> {
        self.known.user(uid)
    }
}

/// How many processes could not be looked into, by a look at every process; one more when that did not come to its end.
fn denied(looked: &Result<u64, Errno>) -> u64 {
    looked.unwrap_or_else(|errno| {
        tracing::warn!(error = %errno, "cannot list /proc to its end");
        1
    })
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
    fn what_the_kernel_does_not_tell_is_read_from_proc_and_that_is_said() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut processes = Processes::open().unwrap().asking(Ok(Holdings::broken()));
        let scan = processes.scan(&Wanted::from_iter([inode(&listener)]));
        assert_eq!(scan.owners[&inode(&listener)][0].pid, std::process::id());
        let remark = processes.remark().unwrap();
        assert!(
            remark.starts_with("owners are read from /proc, ") && remark.contains("the kernel's iterator: "),
            "{remark}"
        );
    }

    #[test]
    fn a_kernel_that_takes_too_long_is_not_asked_again_for_a_while() {
        let holdings = match Holdings::open() {
            Ok(holdings) => holdings.within(Duration::ZERO),
            Err(error) => return eprintln!("skipped: the kernel does not tell who holds sockets: {error}"),
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = inode(&listener);
        let check = |processes: &mut Processes, expected: &str| {
            let scan = processes.scan(&Wanted::from_iter([inode]));
            assert_eq!(scan.owners[&inode][0].pid, std::process::id());
            let remark = processes.remark().unwrap();
            assert!(remark.contains(expected), "{remark}");
        };
        let mut processes = Processes::open().unwrap().asking(Ok(holdings));
        assert_eq!(processes.remark(), None);
        check(&mut processes, "the kernel's iterator takes more than 0 s of CPU");
        // It would say something else.
        processes.holdings = Some(Holdings::broken());
        check(&mut processes, "the kernel's iterator takes more than 0 s of CPU");
        processes.paused_until = Some(Instant::now());
        check(&mut processes, "the kernel's iterator: ");
        assert_eq!(processes.paused_until, None);
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
