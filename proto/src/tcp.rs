//! TCP sockets that are neither listeners nor sessions: how many of them a host has.

use crate::wire;

/// Numbers of TCP sockets by state (RFC 9293 section 3.3.2), in all network namespaces that are walked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TcpCounts {
    /// TIME-WAIT: closed at both ends, kept for stray segments. With them those in FIN-WAIT-2 that no process holds.
    pub time_wait: u64,
    /// SYN-RECEIVED: asked for and answered, not yet established.
    pub syn_received: u64,
    /// Bound to a port, neither listening nor connecting; absent where the kernel does not tell (before Linux 6.8).
    pub bound: Option<u64>,
}

impl From<TcpCounts> for wire::TcpCounts {
    fn from(counts: TcpCounts) -> wire::TcpCounts {
        wire::TcpCounts { time_wait: counts.time_wait, syn_received: counts.syn_received, bound: counts.bound }
    }
}

impl From<wire::TcpCounts> for TcpCounts {
    fn from(counts: wire::TcpCounts) -> TcpCounts {
        TcpCounts { time_wait: counts.time_wait, syn_received: counts.syn_received, bound: counts.bound }
    }
}
