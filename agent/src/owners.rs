//! Which processes hold a socket.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use fleetsock_proto::owner::Owner;

/// What a scan of the processes found.
#[derive(Debug, Default)]
pub struct OwnerScan {
    /// Owners of the wanted inodes that were found, the primary one (the oldest living opener) first.
    pub owners: HashMap<u64, Vec<Arc<Owner>>>,
    /// Processes that could not be looked into: an inode without an owner may be theirs.
    pub denied: u64,
}

/// Inodes of sockets whose owners are looked for.
pub type Wanted = HashSet<u64>;
