//! Which processes hold which sockets, told by the kernel in one pass over all descriptors: an iterator of BPF.
//!
//! A descriptor costs a tenth of reading its link in /proc. What it takes (CAP_BPF and CAP_PERFMON) it takes once, when it
//! is opened. Seen is also what threads have in descriptor tables of their own; not seen, as in /proc, are files that are
//! registered with io_uring only.

use std::{
    io,
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{io::Errno, thread::CapabilitySet};

use super::program::{Holding, Layout, RECORD_BYTES};
use crate::{
    cost,
    facts::{Namespace, altered_view},
    kernel::{
        assembly::LICENSE,
        bpf::{self, Refused},
        btf::{self, Btf, InvalidBtf, PATH},
        iterator::Readings,
    },
    privileges::{FOR_PROGRAMS, missing},
};

/// What the program is called in lists of programs.
const NAME: &[u8; 16] = b"fleetsock_owner\0";
/// Most readings of one pass. One gives up to a million descriptors that are looked at and up to 1,365 sockets.
const READINGS_LIMIT: usize = 1 << 20;
/// Most CPU of one pass, in which a kernel goes through more than ten million descriptors. It goes through those of a process
/// whose first thread is gone once for each other thread (task_seq_get_next() of kernel/bpf/task_iter.c compares their tables
/// with that of the first one), so that any user could have it go through billions.
const PASS_LIMIT: Duration = Duration::from_secs(5);

/// Why the kernel does not tell who holds sockets.
#[derive(Debug, thiserror::Error)]
pub enum HoldingsError {
    /// The agent may not ask, or not describe the processes that it is told.
    #[error("no {0}")]
    Unprivileged(String),
    /// Processes have other numbers in the agent's pid namespace.
    #[error("the agent is not in the first pid namespace")]
    OtherNumbers,
    /// Processes started at other times by the clock of the agent's time namespace.
    #[error("the agent is not in the first time namespace")]
    OtherTimes,
    /// The kernel does not describe its types.
    #[error("{PATH}: {0}")]
    Btf(#[source] io::Error),
    /// Its description is not understood, or it is of a kernel without what is needed.
    #[error("{0}")]
    Unknown(String),
    /// The kernel does not take the program.
    #[error("the kernel refuses the BPF program: {0}")]
    Refused(String),
    /// The kernel does not begin to tell, or does not go on.
    #[error("the kernel's iterator: {0}")]
    Broken(#[source] Errno),
    /// It has more to tell than may be listened to.
    #[error("the kernel's iterator takes more than {} s of CPU", .0.as_secs())]
    Slow(Duration),
}

impl From<Errno> for HoldingsError {
    fn from(errno: Errno) -> HoldingsError {
        HoldingsError::Broken(errno)
    }
}

impl From<InvalidBtf> for HoldingsError {
    fn from(error: InvalidBtf) -> HoldingsError {
        HoldingsError::Unknown(error.to_string())
    }
}

/// A program in the kernel that goes through the descriptors of all processes when it is asked.
#[derive(Debug)]
pub struct Holdings {
    /// Holds the program.
    link: OwnedFd,
    /// Most CPU of one pass.
    limit: Duration,
}

impl Holdings {
    /// Puts the program into the kernel, with the capabilities of the calling thread. Later passes need none.
    pub fn open() -> Result<Holdings, HoldingsError> {
        check_privileges()?;
        match altered_view() {
            None => {}
            Some(Namespace::Time) => return Err(HoldingsError::OtherTimes),
            Some(Namespace::Pid | Namespace::User) => return Err(HoldingsError::OtherNumbers),
        }
        let layout = layout()?;
        let program = bpf::load(NAME, &layout.program(), LICENSE, layout.function.0);
        let program = program.map_err(|refused: Refused| HoldingsError::Refused(refused.to_string()))?;
        let link = bpf::attach(program.as_fd())?;
        Ok(Holdings { link, limit: PASS_LIMIT })
    }

    /// The same, if the calling thread may have it tell with the capabilities that it has left.
    pub(super) fn still_allowed(self) -> Result<Holdings, HoldingsError> {
        match bpf::iterate(self.link.as_fd()) {
            Err(errno @ Errno::PERM) => Err(HoldingsError::Broken(errno)),
            // Anything else can be over at the next pass, which says so if it is not.
            Ok(_) | Err(_) => Ok(self),
        }
    }

    /// One that is none: the kernel refuses to go through it.
    #[cfg(test)]
    pub(super) fn broken() -> Holdings {
        Holdings { link: std::fs::File::open("/dev/null").unwrap().into(), limit: PASS_LIMIT }
    }

    /// The same with another limit.
    #[cfg(test)]
    pub(super) fn within(self, limit: Duration) -> Holdings {
        Holdings { limit, ..self }
    }

    /// Goes through everything once: process by process, in the order of their numbers. A socket is told for each of its
    /// descriptors.
    pub(super) fn pass(&self, mut each: impl FnMut(Holding)) -> Result<(), HoldingsError> {
        let begun = cost::thread_cpu();
        let goes_on = || match cost::thread_cpu().saturating_sub(begun) >= self.limit {
            true => Err(HoldingsError::Slow(self.limit)),
            false => Ok(()),
        };
        let readings = Readings { record: RECORD_BYTES, most: READINGS_LIMIT };
        readings
            .pass(self.link.as_fd(), goes_on, |record| {
                Holding::read(record).into_iter().for_each(&mut each);
                ControlFlow::Continue(())
            })
            .map(drop)
    }
}

/// What the kernel asks for, and what it takes to describe the processes of which it tells: who has not that may see less
/// than the kernel tells, and says so (see `facts`).
fn check_privileges() -> Result<(), HoldingsError> {
    let describes =
        [("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE), ("CAP_DAC_READ_SEARCH", CapabilitySet::DAC_READ_SEARCH)];
    match missing(FOR_PROGRAMS.into_iter().chain(describes)) {
        Some(missing) => Err(HoldingsError::Unprivileged(missing)),
        None => Ok(()),
    }
}

/// Where this kernel has what the program reads.
fn layout() -> Result<Layout, HoldingsError> {
    let bytes = btf::read().map_err(HoldingsError::Btf)?;
    Ok(Layout::of(&Btf::parse(&bytes)?)?)
}
