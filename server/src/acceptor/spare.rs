//! A descriptor in reserve, so that a server that has none left can still turn connections away.

use std::{io, net::SocketAddr, os::fd::OwnedFd, time::Duration};

use rustix::io::Errno;
use tokio::time::timeout;

use super::Listener;

/// What is given up for a moment to accept a connection, which is then closed. Without it, those that cannot be accepted
/// would wait in the kernel's queue for as long as others hold the descriptors, and nobody's limit would count for them.
#[derive(Debug)]
pub(super) struct Spare(Option<OwnedFd>);

impl Spare {
    /// One for the connections of this listener.
    pub(super) fn of(listener: &impl Listener) -> Spare {
        Spare(listener.reserve())
    }

    /// Closes the connection that waits longest; from where it came. None when none waits, or when the descriptor went to
    /// another thread.
    pub(super) async fn turn_away(&mut self, listener: &impl Listener) -> Option<SocketAddr> {
        drop(self.0.take());
        let closed = timeout(Duration::ZERO, listener.accept()).await;
        let from = closed.ok().and_then(Result::ok).map(|(_, from)| from);
        self.0 = listener.reserve();
        from
    }
}

/// Whether nothing could be accepted for want of a descriptor, of this process or of the system (accept(2)).
pub(super) fn is_exhausted(error: &io::Error) -> bool {
    error
        .raw_os_error()
        .map(Errno::from_raw_os_error)
        .is_some_and(|errno| [Errno::MFILE, Errno::NFILE].contains(&errno))
}
