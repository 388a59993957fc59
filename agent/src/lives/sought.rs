//! Which lives a walk should see: only a walk tells the cookie of an open socket, its inode and so its other owners. Pure.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
};

use fleetsock_proto::socket::SocketKey;

use super::LIVES_LIMIT;

/// Most lives that are named at once, 120 bytes each. A walk that is made for some shows all others of the namespace; but what
/// is not named is not held to be looked for in vain, and a host whose kernel leaves out thousands of ends should not
/// wait for them longer than for one.
pub(super) const SOUGHT_LIMIT: usize = 4096;
/// Walks that may fail to show a life until it is left to one that shows everything: it may be in a namespace that was not
/// walked.
const LOOKS_LIMIT: u8 = 2;

/// A life that a walk should see, or see gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sought {
    /// Its address in the kernel, and since when it is to be looked for: an address is soon used again.
    pub(crate) socket: u64,
    pub(crate) since_ns: u64,
    /// The host's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// The process that connected.
    pub opener: Option<u32>,
    /// What walks know it by, when it is closed and they do not know.
    pub walked: Option<SocketKey>,
    /// Walks that did not show it.
    pub looks: u8,
}

impl Sought {
    /// A life for tests, that no walk has looked for.
    #[cfg(test)]
    pub(crate) fn new(ends: [SocketAddr; 2], opener: Option<u32>, walked: Option<SocketKey>) -> Sought {
        let [local, peer] = ends;
        Sought { socket: 0, since_ns: 0, local, peer, opener, walked, looks: 0 }
    }
}

/// The lives that may have to be looked for: first those that may end by themselves, then those that did not.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// In the order of their times, or nearly so.
    young: VecDeque<Waiting>,
    waiting: Vec<Waiting>,
    /// Those that no walk showed.
    missed: Vec<Waiting>,
}

/// A life by its socket and by when it came into the queue, so that the next one at the same address is not taken for it.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    since_ns: u64,
    socket: u64,
    looks: u8,
}

impl Waiting {
    /// What it stands for, if that life still has to be looked for.
    fn find(self, find: impl Fn(u64) -> Option<Sought>) -> Option<Sought> {
        let sought = find(self.socket).filter(|sought| sought.since_ns == self.since_ns)?;
        Some(Sought { looks: self.looks, ..sought })
    }
}

impl Queue {
    /// Something happened to a socket that a walk does not know. Most are over before anybody looks. Tells how many had
    /// no room.
    pub(super) fn add(&mut self, since_ns: u64, socket: u64) -> u64 {
        if self.young.len() >= LIVES_LIMIT {
            return 1;
        }
        self.young.push_back(Waiting { since_ns, socket, looks: 0 });
        0
    }

    /// Some of those since `before_ns` or longer of which `find` still gives something.
    pub(super) fn sought(&mut self, before_ns: u64, find: impl Fn(u64) -> Option<Sought>) -> Vec<Sought> {
        while let Some(young) = self.young.front().copied()
            && young.since_ns <= before_ns
        {
            self.young.pop_front();
            if young.find(&find).is_some() && self.waiting.len() < LIVES_LIMIT {
                self.waiting.push(young);
            }
        }
        self.waiting.retain(|waiting| waiting.find(&find).is_some());
        self.waiting.iter().filter_map(|waiting| waiting.find(&find)).take(SOUGHT_LIMIT).collect()
    }

    /// See [`super::Lives::looked`].
    pub(super) fn looked(&mut self, looked_for: &[Sought]) {
        let lives: HashMap<(u64, u64), bool> =
            looked_for.iter().map(|sought| ((sought.socket, sought.since_ns), sought.walked.is_some())).collect();
        if lives.is_empty() {
            return;
        }
        let missed = &mut self.missed;
        self.waiting.retain_mut(|waiting| {
            let looked_for = lives.get(&(waiting.socket, waiting.since_ns));
            waiting.looks += u8::from(looked_for.is_some());
            let is_over = waiting.looks >= LOOKS_LIMIT;
            // Where a walk saw it, its namespace is known, and the walks have told whether it is still there.
            if is_over && looked_for == Some(&false) && missed.len() < LIVES_LIMIT {
                missed.push(*waiting);
            }
            !is_over
        });
    }

    /// Whether a walk was made that did not show some that are still there.
    pub(super) fn was_in_vain(&self) -> bool {
        self.has_missed() || self.waiting.iter().any(|waiting| waiting.looks > 0)
    }

    /// Whether some were looked for in vain, for the last time.
    pub(super) fn has_missed(&self) -> bool {
        !self.missed.is_empty()
    }

    /// Those that were looked for in vain, for the last time.
    pub(super) fn missed(&mut self, find: impl Fn(u64) -> Option<Sought>) -> Vec<Sought> {
        std::mem::take(&mut self.missed).into_iter().filter_map(|missed| missed.find(&find)).collect()
    }
}
