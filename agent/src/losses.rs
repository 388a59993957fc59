//! What the agent could not tell, counted where it happens and told to the server with every heartbeat.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where something was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Sockets that the kernel told of and a walk had no room for or could not read, and parts of walks that were
    /// interrupted.
    Walk,
    /// Sockets that the table had no room for.
    Table,
    /// Owners and ends of texts that had no room.
    Detail,
    /// Changes that the spool dropped.
    Spool,
    /// Records of events, and messages of closed sockets, that the kernel had no room for.
    Events,
    /// Lives that were not followed, or not kept until they could be told.
    Lives,
    /// Walks before which others kept records of connections from the agent.
    Muted,
}

impl Loss {
    const COUNT: usize = 7;

    fn words(self) -> &'static str {
        match self {
            Loss::Walk => "a walk of the socket table was incomplete",
            Loss::Table => "there are more sockets than are kept",
            Loss::Detail => "a socket has more owners or longer texts than travel",
            Loss::Spool => "changes were dropped before they were delivered",
            Loss::Events => "the kernel had no room for events",
            Loss::Lives => "more connections began and ended than could be kept",
            Loss::Muted => "others keep the kernel's records of connections from the agent",
        }
    }
}

/// Counts losses since the agent's start.
#[derive(Debug, Default)]
pub struct Losses([AtomicU64; Loss::COUNT]);

impl Losses {
    /// Counts; the first of its kind is logged.
    pub fn add(&self, loss: Loss, count: u64) {
        if count > 0 && self.0[loss as usize].fetch_add(count, Relaxed) == 0 {
            tracing::warn!(count, "records are lost: {}; further ones are counted", loss.words());
        }
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().map(|count| count.load(Relaxed)).sum()
    }
}
