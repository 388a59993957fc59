//! What the operator must know of what this agent does not see, beyond its privileges: said with the host's facts.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// What a remark is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Topic {
    /// Network namespaces that are not looked into.
    Namespaces,
    /// Raw and packet sockets that cannot be listed.
    Portless,
    /// SCTP and DCCP, which the kernel has not, or cannot list.
    Transports,
    /// UNIX sockets that cannot be listed.
    Unix,
    /// Walks that are further apart than they should be.
    Walks,
    /// Sockets that there is no room for.
    Room,
    /// Events that do not come.
    Events,
    /// Owners that the kernel does not tell.
    Owners,
    /// Connections that are dumped.
    Connections,
}

/// The remarks, one for each topic. Made by one thread, read by another.
#[derive(Debug, Default)]
pub struct Remarks(Mutex<BTreeMap<Topic, String>>);

impl Remarks {
    fn made(&self) -> MutexGuard<'_, BTreeMap<Topic, String>> {
        // Texts are whole whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a remark in place of the one before, or takes it back.
    pub fn make(&self, topic: Topic, remark: Option<String>) {
        match remark {
            Some(remark) => self.made().insert(topic, remark),
            None => self.made().remove(&topic),
        };
    }

    /// All of them.
    pub fn all(&self) -> Vec<String> {
        self.made().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remark_takes_the_place_of_the_one_before_on_its_topic() {
        let remarks = Remarks::default();
        remarks.make(Topic::Room, Some("full".to_owned()));
        remarks.make(Topic::Namespaces, Some("unseen".to_owned()));
        remarks.make(Topic::Room, Some("fuller".to_owned()));
        assert_eq!(remarks.all(), ["unseen", "fuller"]);
        remarks.make(Topic::Room, None);
        assert_eq!(remarks.all(), ["unseen"]);
    }
}
