//! A scan to which the kernel tells who holds which socket: what of that is wanted, and who the processes are.

use std::{os::fd::OwnedFd, sync::Arc};

use fleetsock_proto::owner::Owner;
use foldhash::{HashSet, HashSetExt};
use rustix::{io::Errno, path::DecInt};

use super::{
    OwnerScan, Wanted,
    known::Known,
    process::Folder,
    program::Holding,
    search::{every_process, look_at},
};

/// A scan, while the kernel is at one process.
#[derive(Debug)]
pub(super) struct Told<'a> {
    proc: &'a OwnedFd,
    known: &'a mut Known,
    wanted: &'a Wanted,
    /// What was found so far.
    pub(super) scan: OwnerScan,
    /// The process: its number, and when it started.
    process: (u32, u64),
    /// Who that is, once it was asked; nobody any more, or nobody that may be looked at.
    owner: Option<Option<Arc<Owner>>>,
    /// All that were told of.
    processes: HashSet<u32>,
}

impl<'a> Told<'a> {
    pub(super) fn new(proc: &'a OwnedFd, known: &'a mut Known, wanted: &'a Wanted) -> Told<'a> {
        let scan = OwnerScan::for_all(wanted);
        Told { proc, known, wanted, scan, process: (0, 0), owner: None, processes: HashSet::new() }
    }

    /// A process holds a socket. It is looked at in /proc once, when it is known to hold one that is wanted.
    pub(super) fn take(&mut self, Holding { process, started_ns, inode }: Holding) {
        if self.process != (process, started_ns) {
            self.known.saw(process);
            self.processes.insert(process);
            (self.process, self.owner) = ((process, started_ns), None);
        }
        if !self.wanted.contains(&inode) {
            return;
        }
        if self.owner.is_none() {
            self.owner = Some(self.describe());
        }
        if let Some(Some(owner)) = &self.owner {
            self.scan.owners_cut += self.scan.owners.entry(inode).or_default().add(owner);
        }
    }

    /// How many processes could not be looked into and were not told of: a kernel can keep some from programs as well as from
    /// /proc (one was seen that does so with the first process). A socket without an owner may be theirs.
    pub(super) fn look_for_hidden(&self) -> Result<u64, Errno> {
        every_process(self.proc, |pid, name| match self.processes.contains(&pid) {
            true => Ok(()),
            false => look_at(self.proc, name),
        })
    }

    fn describe(&mut self) -> Option<Arc<Owner>> {
        let (process, started_ns) = self.process;
        let folder = Folder::open(self.proc, DecInt::new(process).as_c_str());
        match folder.and_then(|folder| self.known.owner_since(process, started_ns, &folder)) {
            Ok(owner) => Some(owner),
            // It ended meanwhile.
            Err(Errno::NOENT | Errno::SRCH) => None,
            Err(errno) => {
                tracing::trace!(pid = process, error = %errno, "cannot look at a process");
                self.scan.denied += 1;
                None
            }
        }
    }
}
