//! Sockets by their pair. Pure.

use foldhash::HashMap;

use super::life::Pair;

/// Of several sockets with one pair the latest counts, and the others wait behind it: they are in other namespaces, or the
/// records of their ends did not come and the pair was used again.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    latest: HashMap<Pair, u64>,
    /// Never more than there are sockets.
    earlier: HashMap<Pair, Vec<u64>>,
}

impl Pairs {
    /// The latest socket with this pair.
    pub(super) fn get(&self, pair: Pair) -> Option<u64> {
        self.latest.get(&pair).copied()
    }

    /// All sockets with this pair.
    pub(super) fn with(&self, pair: Pair) -> impl Iterator<Item = u64> {
        self.latest.get(&pair).into_iter().chain(self.earlier.get(&pair).into_iter().flatten()).copied()
    }

    /// All of them.
    pub(super) fn sockets(&self) -> impl Iterator<Item = u64> {
        self.latest.values().chain(self.earlier.values().flatten()).copied()
    }

    pub(super) fn insert(&mut self, pair: Pair, socket: u64) {
        let before = self.latest.insert(pair, socket);
        if let Some(before) = before.filter(|before| *before != socket) {
            self.forget(pair, socket);
            self.earlier.entry(pair).or_default().push(before);
        }
    }

    /// Removes a socket; gives the one that it stood before, and that is the latest now.
    pub(super) fn remove(&mut self, pair: Pair, socket: u64) -> Option<u64> {
        if self.latest.get(&pair) != Some(&socket) {
            self.forget(pair, socket);
            return None;
        }
        self.latest.remove(&pair);
        let earlier = self.earlier.get_mut(&pair)?;
        let next = earlier.pop();
        if earlier.is_empty() {
            self.earlier.remove(&pair);
        }
        self.latest.extend(next.map(|next| (pair, next)));
        next
    }

    fn forget(&mut self, pair: Pair, socket: u64) {
        if let Some(earlier) = self.earlier.get_mut(&pair) {
            earlier.retain(|other| *other != socket);
            if earlier.is_empty() {
                self.earlier.remove(&pair);
            }
        }
    }

    pub(super) fn clear(&mut self) {
        self.latest.clear();
        self.earlier.clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.sockets().count()
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.latest.is_empty() && self.earlier.is_empty()
    }
}
