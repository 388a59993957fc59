//! Going into network namespaces.
//!
//! setns(2) moves a thread, and a thread that would go on working elsewhere in a foreign namespace would be a trap. So it
//! is done on a thread that lives for one visit. What is opened on it stays in its namespace; what is kept of that keeps
//! the namespace.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd, OwnedFd},
    panic::resume_unwind,
    thread::{Builder, scope},
};

use rustix::{
    fs::{CWD, Mode, OFlags, fstat, openat},
    io::Errno,
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{Namespace, Namespaces};

/// A namespace that could not be entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// No way leads there any more: it is gone, or about to be found elsewhere.
    #[error("no process and no mount leads to network namespace {netns} any more")]
    Gone {
        /// Its inode number.
        netns: u64,
    },
    /// The kernel refused; that takes CAP_SYS_ADMIN there and here (setns(2)).
    #[error("cannot enter network namespace {netns}: {cause}")]
    Refused {
        /// Its inode number.
        netns: u64,
        /// Why.
        #[source]
        cause: Errno,
    },
}

/// A thread that can go from namespace to namespace.
#[derive(Debug)]
pub struct Visitor<'a> {
    namespaces: &'a Namespaces,
    /// It is of no use to any other thread.
    stays: PhantomData<*const ()>,
}

impl Namespaces {
    /// Does something on a thread of its own that can enter namespaces, and waits until that has ended.
    pub fn visit<T: Send>(&self, work: impl FnOnce(&Visitor<'_>) -> T + Send) -> io::Result<T> {
        scope(|threads| {
            let visitor = move || work(&Visitor { namespaces: self, stays: PhantomData });
            let thread = Builder::new().name("namespaces".to_owned()).spawn_scoped(threads, visitor)?;
            Ok(thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    }
}

impl Visitor<'_> {
    /// Moves the thread into a namespace.
    pub fn enter(&self, namespace: &Namespace) -> Result<(), EnterError> {
        let netns = namespace.netns;
        let mut result = Err(EnterError::Gone { netns });
        for path in &namespace.mounts {
            if self.take(self.open(CWD, path, netns), netns, &mut result) {
                return result;
            }
        }
        for pid in &namespace.pids {
            let way = self.open(&self.namespaces.proc, format!("{pid}/ns/net"), netns);
            if self.take(way, netns, &mut result) {
                return result;
            }
        }
        result
    }

    /// Goes a way; whether it led there. What is refused stays to be told.
    fn take(&self, way: Result<OwnedFd, Errno>, netns: u64, result: &mut Result<(), EnterError>) -> bool {
        let entered = way.and_then(|way| move_into_link_name_space(way.as_fd(), Some(LinkNameSpaceType::Network)));
        match entered {
            Ok(()) => *result = Ok(()),
            Err(Errno::NOENT | Errno::SRCH) => {}
            Err(cause) => *result = Err(EnterError::Refused { netns, cause }),
        }
        result.is_ok()
    }

    /// Opens a way if it leads to this namespace. A path that was made something else meanwhile is not waited for.
    fn open(&self, at: impl AsFd, path: impl rustix::path::Arg, netns: u64) -> Result<OwnedFd, Errno> {
        let way = openat(at, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        let file = fstat(&way)?;
        if (file.st_ino, file.st_dev) == (netns, self.namespaces.own.1) { Ok(way) } else { Err(Errno::NOENT) }
    }
}
