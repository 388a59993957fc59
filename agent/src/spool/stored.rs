//! A batch in the spool, and which of them are dropped when there is no room.

use fleetsock_proto::{batch::BatchKind, stream::BatchNumber, time::Timestamp};

/// What is known of a batch without its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) number: BatchNumber,
    pub(super) kind: BatchKind,
    pub(super) changes: u64,
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) length: u64,
}

impl Head {
    /// What a batch takes besides its bytes.
    pub(super) const OVERHEAD: u64 = 64;

    pub(super) fn weight(&self) -> u64 {
        self.length + Head::OVERHEAD
    }
}

/// A numbered batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
}

/// Chooses what to drop, oldest first: as much as is needed, and never the beginning of a snapshot alone, because its
/// end would then close what the beginning named.
#[derive(Debug)]
pub(super) struct Dropping {
    need: u64,
    freed: u64,
    changes: u64,
}

impl Dropping {
    pub(super) fn new(need: u64) -> Dropping {
        Dropping { need, freed: 0, changes: 0 }
    }

    pub(super) fn takes(&mut self, head: &Head) -> bool {
        let continues = matches!(head.kind, BatchKind::SnapshotPart | BatchKind::SnapshotEnd);
        let takes = self.freed < self.need || (self.freed > 0 && continues);
        if takes {
            self.freed += head.weight();
            self.changes += head.changes;
        }
        takes
    }

    pub(super) fn needed(&self) -> bool {
        self.need > 0
    }

    pub(super) fn freed(&self) -> u64 {
        self.freed
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}
