//! What travels from an agent: numbered batches of changes, packed in columns.
//!
//! Columns keep a small message from becoming a large one: a row costs its bytes and nothing else, owners are
//! pointed to, strings are said once. Everything is bounded before anything is allocated for it.

use std::{net::SocketAddr, sync::Arc};

use crate::{
    digest::Digest,
    host::BootId,
    listener::ListenAddress,
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
    word::words,
};

mod columns;

/// Most sockets of a batch.
pub const BATCH_SOCKETS_LIMIT: usize = 4096;
/// Most processes of a batch.
pub const BATCH_PROCESSES_LIMIT: usize = 4096;
/// Most strings of a batch.
pub const BATCH_STRINGS_LIMIT: usize = 8192;
/// Most owners of all sockets of a batch together.
pub const BATCH_OWNERS_LIMIT: usize = 16_384;
/// Most owners of one socket that travel; the agent counts the rest as a loss of detail.
pub const SOCKET_OWNERS_LIMIT: usize = 64;
/// Most names of network namespaces of a batch.
pub const BATCH_NAMESPACES_LIMIT: usize = 128;
/// Longest name of a network namespace, bytes: that of a file (NAME_MAX of Linux).
pub const NAMESPACE_NAME_LIMIT: usize = 255;
/// Longest string of a batch, bytes (PATH_MAX of Linux).
pub const BATCH_TEXT_LIMIT: usize = 4096;
/// Most bytes of the texts of all processes of a batch together, a string counted for each process that points to it:
/// that is what they take where they are read and stored, however few bytes they were on the way.
/// Agents count texts in this way when they keep to [`BATCH_BYTES_LIMIT`], so that none of them comes near.
pub const BATCH_PROCESS_TEXTS_LIMIT: usize = 1024 * 1024;
/// Aim for encoded batches of at most this many bytes while there is little to tell: for as long as a connection lives, the
/// server keeps the room that its largest frame took (in h2, which begins with 8 KiB, and frames of at most 16 KiB).
pub const BATCH_BYTES_AIM: usize = 7 * 1024;
/// Most bytes of an encoded batch, which a busy host and a single socket with many owners come near, so that it fits the
/// message limit of 256 KiB.
pub const BATCH_BYTES_LIMIT: usize = 192 * 1024;

words! {
    /// What a batch tells.
    pub enum BatchKind is "kind of batch", or InvalidBatchKind {
        /// What changed since the batch before.
        Changes = 1 "changes",
        /// The first of several parts of a snapshot.
        SnapshotBegin = 2 "snapshot-begin",
        /// A further part.
        SnapshotPart = 3 "snapshot-part",
        /// The last part: what no part named is not open any more.
        SnapshotEnd = 4 "snapshot-end",
        /// A snapshot in one part.
        SnapshotWhole = 5 "snapshot-whole",
    }
}

/// Numbered observations of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The numbering that `seq` belongs to.
    pub epoch: u64,
    /// From 1, without holes.
    pub seq: u64,
    /// What it tells.
    pub kind: BatchKind,
    /// The boot that it is about.
    pub boot_id: BootId,
    /// The walk before.
    pub observed_since: Timestamp,
    /// The walk that this tells of.
    pub observed_until: Timestamp,
    /// In order.
    pub changes: Vec<Change>,
    /// What is open on the host after it, where that is told.
    pub digest: Option<Digest>,
    /// What network namespaces are called from then on, at most [`BATCH_NAMESPACES_LIMIT`].
    pub namespaces: Vec<NamespaceName>,
}

/// What a network namespace other than the host's own is called.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NamespaceName {
    /// Its inode number.
    pub netns: u64,
    /// At most [`NAMESPACE_NAME_LIMIT`] bytes.
    pub name: String,
}

/// What happened to a socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What.
    pub op: Op,
    /// To which; as it was after (for a close: before).
    pub socket: Socket,
}

/// What can happen to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// It opened.
    Opened,
    /// It closed.
    Closed {
        /// When.
        at: Timestamp,
        /// How that is known.
        known: Known,
    },
    /// Its owners or its state changed.
    Updated,
    /// It is open; a row of a snapshot.
    Present,
}

/// An open (or just closed) socket of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Its identity within the boot.
    pub key: SocketKey,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family.
    pub family: Family,
    /// State when last seen.
    pub state: SocketState,
    /// The host's end, address normalised. That of a UNIX socket is 127.0.0.1 and its type.
    pub local: SocketAddr,
    /// What a UNIX socket has in place of an address; absent for all others.
    pub path: Option<Arc<str>>,
    /// A listener or a session.
    pub role: Role,
    /// When it opened.
    pub opened_at: Timestamp,
    /// How that is known.
    pub opened_known: Known,
    /// How the owners are known.
    pub owner_known: OwnerKnown,
    /// Who holds it, the primary owner first, at most [`SOCKET_OWNERS_LIMIT`].
    pub owners: Vec<Arc<Owner>>,
    /// Bytes sent and acknowledged; 0 when not known.
    pub bytes_sent: u64,
    /// Bytes received; 0 when not known.
    pub bytes_received: u64,
}

impl Socket {
    /// What it is bound to.
    pub fn listen_address(&self) -> ListenAddress {
        match &self.path {
            Some(path) => ListenAddress::Path(path.to_string()),
            None => ListenAddress::Ip(self.local.ip()),
        }
    }
}

/// What a socket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It waits for peers.
    Listener,
    /// It has a peer.
    Session {
        /// Which end began it.
        direction: Direction,
        /// The other end, address normalised.
        peer: SocketAddr,
    },
}

#[cfg(test)]
mod tests;
