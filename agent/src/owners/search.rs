//! A scan of /proc: process by process, the sockets among their descriptors.

use std::{mem::MaybeUninit, os::fd::OwnedFd};

use rustix::{
    ffi::CStr,
    fs::{AtFlags, RawDir, SeekFrom, readlinkat_raw, seek, statat},
    io::Errno,
};

use super::{
    OwnerScan, Wanted,
    descriptors::Descriptors,
    known::Known,
    process::{Folder, pid},
};

/// Bytes of folder entries that are read at once.
const ENTRIES: usize = 32 * 1024;
/// Bytes of a path below /proc: a number and the name of a file.
const PATH: usize = 16;

/// Has a look at every process; how many could not be looked at. Those that are hidden (mount option `hidepid`) count as one.
pub(super) fn every_process(
    proc: &OwnedFd,
    mut look: impl FnMut(u32, &CStr) -> Result<(), Errno>,
) -> Result<u64, Errno> {
    // Every pid namespace has a first process.
    let mut denied = u64::from(matches!(statat(proc, c"1", AtFlags::empty()), Err(Errno::NOENT)));
    seek(proc, SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); ENTRIES];
    let mut entries = RawDir::new(proc, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let Some(pid) = pid(entry.file_name()) else { continue };
        match look(pid, entry.file_name()) {
            // It ended meanwhile.
            Ok(()) | Err(Errno::NOENT | Errno::SRCH) => {}
            Err(errno) => {
                tracing::trace!(pid, error = %errno, "cannot look into a process");
                denied += 1;
            }
        }
    }
    Ok(denied)
}

/// Whether a process may be looked into. The links of its descriptors are read by the same right as any other link of its
/// folder, of which this one is always there.
pub(super) fn look_at(proc: &OwnedFd, name: &CStr) -> Result<(), Errno> {
    below(name, b"/cwd\0", |path| readlinkat_raw(proc, path, &mut [MaybeUninit::uninit(); 1]).map(drop))
}

/// A scan, while it is at one process.
#[derive(Debug)]
pub(super) struct Search<'a> {
    proc: &'a OwnedFd,
    known: &'a mut Known,
    counts_descriptors: bool,
    wanted: &'a Wanted,
    /// What was found so far.
    pub(super) scan: OwnerScan,
}

impl<'a> Search<'a> {
    pub(super) fn new(
        proc: &'a OwnedFd,
        known: &'a mut Known,
        counts_descriptors: bool,
        wanted: &'a Wanted,
    ) -> Search<'a> {
        Search { proc, known, counts_descriptors, wanted, scan: OwnerScan::for_all(wanted) }
    }

    /// Looks for the sockets in a process, whose folder has this name.
    pub(super) fn look_into(&mut self, pid: u32, name: &CStr) -> Result<(), Errno> {
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
        let size = |path: &CStr| Ok(statat(self.proc, path, AtFlags::empty())?.st_size);
        Ok(below(name, b"/fd\0", size)?.unsigned_abs())
    }
}

/// Does something with the path of a file in the folder of this name. The file's name begins with a slash and ends with a
/// nought.
fn below<T>(name: &CStr, file: &[u8], run: impl FnOnce(&CStr) -> Result<T, Errno>) -> Result<T, Errno> {
    let mut path = [0; PATH];
    let name = name.to_bytes();
    let (pid, rest) = path.split_at_mut_checked(name.len()).ok_or(Errno::NAMETOOLONG)?;
    pid.copy_from_slice(name);
    rest.get_mut(..file.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(file);
    run(CStr::from_bytes_until_nul(&path).map_err(|_| Errno::NAMETOOLONG)?)
}
