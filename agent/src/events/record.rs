//! What the kernel tells of: records of sockets, processes and threads.

use std::net::SocketAddr;

use fleetsock_proto::socket::{Family, SocketState};

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// When, nanoseconds of CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// What.
    pub what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A TCP socket changed its state; `None` stands for CLOSE.
    State {
        /// Which, and who did it.
        event: SocketEvent,
        /// From.
        old: Option<SocketState>,
        /// To.
        new: Option<SocketState>,
    },
    /// A TCP socket is no more.
    Destroyed {
        /// Which, and who did it.
        event: SocketEvent,
        /// sk_cookie: what walks know it by.
        cookie: u64,
    },
    /// A process has another name.
    Named {
        /// Which.
        pid: u32,
        /// /proc/PID/comm.
        name: String,
        /// Whether it runs another program now.
        exec: bool,
    },
    /// A process began as the copy of another.
    Forked {
        /// The new one.
        pid: u32,
        /// The old one.
        parent: u32,
    },
    /// A process ended.
    Exited {
        /// Which.
        pid: u32,
    },
    /// A process has another thread, besides its first one.
    ThreadBegan {
        /// Its number, of the same numbers as those of processes.
        thread: u32,
        /// The process.
        pid: u32,
    },
    /// Such a thread ended.
    ThreadEnded {
        /// Which.
        thread: u32,
    },
}

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Actor {
    /// This process, in a system call or while it ended.
    Process(u32),
    /// This thread, of a process that is not known by that.
    Thread(u32),
    /// The kernel, on its own.
    Kernel,
}

/// A socket as a record tells of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketEvent {
    /// Its address in the kernel: an identity while it lives, used again afterwards.
    pub socket: u64,
    /// Family of the socket.
    pub family: Family,
    /// The host's end, address normalised; the port is 0 until it is connected.
    pub local: SocketAddr,
    /// The other end, address normalised.
    pub peer: SocketAddr,
    /// Who did it.
    pub by: Actor,
}
