//! What a person should know of a host's identity: told in the log at once and in `fleetctl hosts` until somebody looked.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use fleetsock_proto::{
    host::{HostId, Warning},
    time::Timestamp,
};

use crate::history::Registry;

/// A host is warned of at most once within this time; what is odd about it does not change so fast.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Hosts beyond which those that were warned of long ago are forgotten.
const SWEEP_AT: usize = 1024;

/// Tells of hosts.
pub struct Warnings {
    registry: Arc<dyn Registry>,
    told: Mutex<HashMap<HostId, Timestamp>>,
}

impl std::fmt::Debug for Warnings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Warnings")
    }
}

impl Warnings {
    /// Warnings that a registry keeps.
    pub fn new(registry: Arc<dyn Registry>) -> Arc<Warnings> {
        Arc::new(Warnings { registry, told: Mutex::default() })
    }

    /// Something is odd about a host.
    pub async fn warn(&self, host: HostId, text: String, at: Timestamp) {
        if !self.is_due(host, at) {
            tracing::debug!(%host, text, "again");
            return;
        }
        tracing::warn!(%host, text, "a person should look at this host");
        if let Err(error) = self.registry.warn_host(host, Warning { text, at }).await {
            tracing::warn!(%host, %error, "the warning was not kept");
        }
    }

    fn is_due(&self, host: HostId, at: Timestamp) -> bool {
        // The map is whole after every statement, so a panic elsewhere does not spoil it.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.get(&host).is_some_and(|before| at.since(*before) < AGAIN_AFTER && at >= *before) {
            return false;
        }
        if told.len() > SWEEP_AT {
            told.retain(|_, before| at.since(*before) < AGAIN_AFTER);
        }
        told.insert(host, at);
        true
    }
}
