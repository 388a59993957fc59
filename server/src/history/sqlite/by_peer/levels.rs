//! Sums apart by how many sessions they count: what is far from the largest ones needs not be read for these.

use std::net::IpAddr;

use super::{Sum, encoding::Stretch};

/// The sums of each level but the highest count fewer sessions than this.
const BELOW: [u64; 2] = [8, 64];
/// How many levels there are.
pub(super) const LEVELS: usize = BELOW.len() + 1;
/// In which sums may count any number of sessions: those that an earlier version stored are in this one.
pub(super) const HIGHEST: usize = LEVELS - 1;

/// The level of sums of so many sessions.
pub(super) fn level(sessions: u64) -> usize {
    BELOW.iter().position(|below| sessions < *below).unwrap_or(HIGHEST)
}

/// How many sessions a sum of this level counts at most.
pub(super) fn most(level: usize) -> u64 {
    BELOW.get(level).map_or(u64::MAX, |below| below - 1)
}

/// A stretch as it is stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) level: usize,
    pub(super) last_peer: IpAddr,
    pub(super) bytes: Vec<u8>,
}

/// The sums of one scope while they are written: a stretch of each level.
#[derive(Debug, Default)]
pub(super) struct Levels([Stretch; LEVELS]);

impl Levels {
    /// Adds the sum of the next address; the stretch before it in its level, where that is full.
    pub(super) fn add(&mut self, sum: Sum) -> Option<Stored> {
        let level = level(sum.1.sessions);
        let full = self.0.get_mut(level)?.add(sum);
        full.map(|(bytes, last_peer)| Stored { level, last_peer, bytes })
    }

    /// What was added and is in no stretch that is full.
    pub(super) fn finish(self) -> impl Iterator<Item = Stored> {
        let rest = self.0.into_iter().enumerate();
        rest.filter_map(|(level, stretch)| {
            stretch.finish().map(|(bytes, last_peer)| Stored { level, last_peer, bytes })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_in_the_first_level_that_has_room_for_it() {
        let levels = [0, 1, 7, 8, 63, 64, u64::MAX].map(level);
        assert_eq!(levels, [0, 0, 0, 1, 1, 2, 2]);
        assert_eq!((0..LEVELS).map(most).collect::<Vec<_>>(), [7, 63, u64::MAX]);
        assert!((0..LEVELS).all(|of| level(most(of)) == of));
    }
}
