//! Kinds held against the sessions of their file, which come in another order.

use super::{Hours, Kind, Told, hashed};

/// Sums up of which kinds sessions are and when they closed, in any order, and what is told of the kinds, in any order. Two tellings of
/// the same are equal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Telling {
    sessions: u64,
    kinds: u64,
}

impl Telling {
    /// Adds a session that closed in an hour.
    pub(in crate::history::sqlite) fn session(&mut self, kind: Kind, hour: i64) {
        self.sessions = self.sessions.wrapping_add(hashed((kind, hour)));
    }

    /// Adds what is told of a kind.
    pub(super) fn kind(&mut self, (kind, Hours { first, last }): Told) {
        self.kinds = self.kinds.wrapping_add(hashed((kind, first, last)));
    }
}
