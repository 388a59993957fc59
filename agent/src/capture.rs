//! The socket table, as the kernel tells it.
//!
//! [`Walker`] asks by NETLINK_SOCK_DIAG, and for TCP connections, where the kernel lets it, by a program (`chains`); `diag` knows the questions and reads the answers, `netlink` carries them,
//! `message` takes datagrams apart. The two that read bytes do no I/O. [`Surveyor`] walks all network namespaces;
//! [`Destructions`] hears of the end of sockets; `counted` are those of which only the number is told; `transports` are SCTP and DCCP; `portless` lists raw, packet and UNIX sockets.

mod census;
mod chains;
mod counted;
mod destroyed;
mod diag;
pub(crate) mod interface;
mod message;
mod netlink;
pub mod portless;
mod survey;
mod surveyor;
mod transports;
mod walker;

use std::net::SocketAddr;

use fleetsock_proto::socket::{Family, Protocol, SocketKey, SocketState};

pub use self::{
    destroyed::{DRAIN_LIMIT, Destroyed, Destructions, DrainReport, Mortals, Traffic},
    netlink::NetlinkError,
    survey::{Connections, Coverage, Extent, Occasion, States, SurveyError, SurveyReport, Walked},
    surveyor::Surveyor,
    walker::{CaptureError, Source, WALK_ROWS_LIMIT, WalkReport, Walker},
};

/// One socket of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SocketRow {
    /// Its identity within the boot.
    pub key: SocketKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family; [`Family::Dual`] for a listener on `[::]` without IPV6_V6ONLY.
    pub family: Family,
    /// State.
    pub state: SocketState,
    /// The host's end, address normalised.
    pub local: SocketAddr,
    /// The other end, address normalised; absent for listeners and unconnected sockets.
    pub peer: Option<SocketAddr>,
    /// Inode of the socket; 0 when no file descriptor holds it (not yet accepted, orphaned).
    pub inode: u64,
    /// User id that the kernel charges it to.
    pub uid: u32,
    /// Id of its cgroup (INET_DIAG_CGROUP_ID); 0 when the kernel does not tell.
    pub cgroup_id: u64,
}
