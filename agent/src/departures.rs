//! Sockets of the own network namespace that are no more: a thread that takes the kernel's word as it comes, and what a
//! walk takes of it.
//!
//! The messages have no time, so that they get one when they are read, which is soon. The kernel sends them a moment after
//! the socket is gone.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleetsock_proto::time::Timestamp;
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, fcntl_dupfd_cloexec},
};

use crate::{
    capture::{CaptureError, Destroyed, Destructions, DrainReport},
    observer::Clock,
};

/// How long the thread rests after it read: being woken for every message would cost more than reading it.
const REST: Duration = Duration::from_millis(10);

/// A socket that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Departed {
    /// What the kernel told.
    pub socket: Destroyed,
    /// When that was read.
    pub at: Timestamp,
}

/// Sockets that are no more. Filled by one thread and by whoever takes.
#[derive(Debug)]
pub struct Departures {
    state: Mutex<State>,
    ready: OwnedFd,
    wake: OwnedFd,
    clock: Clock,
    limit: usize,
}

#[derive(Debug)]
struct State {
    destructions: Destructions,
    read: Vec<Destroyed>,
    departed: Vec<Departed>,
    lost: u64,
    failing: bool,
}

impl Departures {
    /// Keeps at most `limit` of them until they are taken; further ones are counted as lost.
    pub fn new(destructions: Destructions, clock: Clock, limit: usize) -> Result<Departures, Errno> {
        let ready = fcntl_dupfd_cloexec(&destructions, 0)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = State { destructions, read: Vec::new(), departed: Vec::new(), lost: 0, failing: false };
        Ok(Departures { state: Mutex::new(state), ready, wake, clock, limit })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The lists are whole after every statement, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until told to stop. For a thread of its own.
    pub fn run(&self) {
        while !self.is_woken(true, None) {
            self.state().read(self.clock, self.limit);
            if self.is_woken(false, Some(REST)) {
                return;
            }
        }
    }

    /// Waits; whether it was told to stop.
    fn is_woken(&self, or_ready: bool, patience: Option<Duration>) -> bool {
        let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
        if or_ready {
            fds.push(PollFd::new(&self.ready, PollFlags::IN));
        }
        let patience = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match poll(&mut fds, patience.as_ref()) {
            Ok(_) | Err(Errno::INTR) => fds[0].revents().contains(PollFlags::IN),
            Err(errno) => {
                tracing::error!(error = %errno, "cannot wait for the kernel's word on closed sockets");
                true
            }
        }
    }

    /// Tells the thread to end.
    pub fn stop(&self) {
        // A full counter wakes as well.
        if let Err(errno) = rustix::io::write(self.wake.as_fd(), &1_u64.to_ne_bytes()) {
            tracing::trace!(error = %errno, "the reader of closed sockets is being woken already");
        }
    }

    /// Takes all that the kernel told until now, and how many messages were lost since the last time.
    pub fn take(&self) -> (Vec<Departed>, u64) {
        let mut state = self.state();
        state.read(self.clock, self.limit);
        (std::mem::take(&mut state.departed), std::mem::take(&mut state.lost))
    }
}

impl State {
    fn read(&mut self, clock: Clock, limit: usize) {
        let drained = self.destructions.drain(&mut self.read);
        let at = clock();
        let room = limit.saturating_sub(self.departed.len());
        self.lost += u64::try_from(self.read.len().saturating_sub(room)).unwrap_or(u64::MAX);
        self.departed.extend(self.read.drain(..).take(room).map(|socket| Departed { socket, at }));
        match drained {
            Ok(DrainReport { lost, unreadable }) => {
                self.lost += lost + unreadable;
                self.failing = false;
            }
            Err(error) => self.fail(error),
        }
    }

    fn fail(&mut self, error: CaptureError) {
        self.lost += 1;
        if !std::mem::replace(&mut self.failing, true) {
            tracing::error!(%error, "cannot read the kernel's word on closed sockets");
        }
    }
}
