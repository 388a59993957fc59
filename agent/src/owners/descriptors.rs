//! The sockets among the descriptors of one process.
//!
//! A new descriptor gets the lowest number that is free (open(2)), so that most tables have no holes. Their links are read
//! by number; the folder is listed only where that stops to pay, because listing costs a fifth of reading the links.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    ffi::CStr,
    fs::{RawDir, fstat, readlinkat_raw},
    io::Errno,
    path::DecInt,
};

use super::process;

/// Bytes of folder entries that are read at once.
const ENTRIES: usize = 32 * 1024;
/// Bytes that are read of a descriptor's link: `socket:[` and 20 digits and `]` fit; longer ones are of no socket.
const LINK: usize = 32;
/// Most numbers without a descriptor that are tried, in all.
const HOLES: u64 = 64;

/// A folder `/proc/PID/fd`.
#[derive(Debug)]
pub(super) struct Descriptors {
    folder: OwnedFd,
    /// How many there are, where the kernel tells.
    count: Option<u64>,
}

impl Descriptors {
    pub(super) fn new(folder: OwnedFd, count: Option<u64>) -> Descriptors {
        Descriptors { folder, count }
    }

    /// Hands out the inode of each descriptor that is a socket.
    pub(super) fn sockets(&self, mut found: impl FnMut(u64) -> Result<(), Errno>) -> Result<(), Errno> {
        let Some(mut count) = self.count else { return self.listed(0, &mut found) };
        let (mut number, mut seen) = (0, 0);
        while seen < count {
            if number - seen > HOLES {
                return self.listed(number, &mut found);
            }
            match self.link(DecInt::new(number).as_c_str())? {
                Link::Nothing => {}
                Link::Other => seen += 1,
                Link::Socket(inode) => {
                    seen += 1;
                    found(inode)?;
                }
            }
            number += 1;
            if seen == count {
                // Some may have been opened since, into holes before the last one: in our own process this folder is.
                count = fstat(&self.folder)?.st_size.unsigned_abs();
            }
        }
        Ok(())
    }

    /// The same for those from a number on, as the folder lists them.
    fn listed(&self, from: u64, found: &mut impl FnMut(u64) -> Result<(), Errno>) -> Result<(), Errno> {
        let mut buffer = [MaybeUninit::uninit(); ENTRIES];
        let mut entries = RawDir::new(self.folder.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            // Also not `.` and `..`.
            let number = entry.file_name().to_str().ok().and_then(|name| name.parse::<u64>().ok());
            if number.is_some_and(|number| number >= from)
                && let Link::Socket(inode) = self.link(entry.file_name())?
            {
                found(inode)?;
            }
        }
        Ok(())
    }

    fn link(&self, name: &CStr) -> Result<Link, Errno> {
        let mut link = [MaybeUninit::uninit(); LINK];
        match readlinkat_raw(&self.folder, name, &mut link) {
            Ok((link, _)) => Ok(process::socket_inode(link).map_or(Link::Other, Link::Socket)),
            // None with this number, or closed meanwhile.
            Err(Errno::NOENT) => Ok(Link::Nothing),
            Err(errno) => Err(errno),
        }
    }
}

/// What a descriptor is.
enum Link {
    Nothing,
    Other,
    Socket(u64),
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::TcpListener, os::fd::AsRawFd};

    use rustix::fs::{CWD, Mode, OFlags, openat, stat};

    use super::*;

    fn sockets(count: Option<u64>) -> BTreeSet<u64> {
        let folder = openat(CWD, "/proc/self/fd", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let mut sockets = BTreeSet::new();
        let found = |inode| {
            sockets.insert(inode);
            Ok(())
        };
        Descriptors::new(folder, count).sockets(found).unwrap();
        sockets
    }

    #[test]
    fn sockets_are_found_by_number_and_beyond_many_holes() {
        let open: Vec<TcpListener> = (0..200).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let inode = |listener: &TcpListener| stat(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap().st_ino;
        // What was between them is closed again: more holes than are tried.
        let kept: Vec<TcpListener> = open
            .into_iter()
            .enumerate()
            .filter_map(|(number, listener)| (!(20..=180).contains(&number)).then_some(listener))
            .collect();
        let kept_inodes: BTreeSet<u64> = kept.iter().map(inode).collect();
        let count = u64::try_from(stat("/proc/self/fd").unwrap().st_size).unwrap();
        assert!(count > 0, "this test needs Linux 6.2 or later");
        // They were counted before others were opened.
        for count in [Some(count), Some(count - 9), None] {
            assert!(kept_inodes.is_subset(&sockets(count)), "{count:?}");
        }
        assert_eq!(sockets(Some(0)), BTreeSet::new());
    }
}
