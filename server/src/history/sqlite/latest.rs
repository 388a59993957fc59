//! Who the peers of the last rows are, which are in no segment of the index yet (`postings.rs`): in memory, for whoever asks.
//!
//! Rows are told of once they are committed. Those of the segment that was made last stay, because a question may still see the
//! file as it was before that. What is not known here is looked for in the rows themselves.

use std::{
    net::IpAddr,
    sync::{Arc, PoisonError, RwLock},
};

use super::postings::{Addresses, Peers};

/// Up to so many networks are looked for: the writer waits meanwhile, up to a tenth of a millisecond for each.
const NETWORKS: usize = 64;

/// The peers of rows that follow each other, some MiB at most.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    /// The number of the first of these rows.
    pub(super) first: i64,
    pub(super) peers: Vec<IpAddr>,
}

/// Rows behind a segment.
#[derive(Debug, Default)]
struct Tail {
    /// The first row that was in no segment then; 0 where nothing is known.
    first: i64,
    /// The row after the last one.
    next: i64,
    peers: Peers,
}

impl Tail {
    fn behind(first: i64) -> Tail {
        Tail { first, next: first, peers: Peers::default() }
    }

    fn add(&mut self, peer: IpAddr) {
        // A segment has some tens of thousands of rows.
        if let Ok(row) = u32::try_from(self.next - self.first) {
            self.peers.add(peer, row);
            self.next += 1;
        }
    }
}

#[derive(Debug, Default)]
struct Tails {
    now: Tail,
    /// As it was when the last segment was made.
    before: Tail,
}

/// The last rows of a file that is written to.
#[derive(Debug, Default, Clone)]
pub(super) struct Latest(Arc<RwLock<Tails>>);

impl Latest {
    /// Rows are committed: all those from the first that is in no segment on, or those that follow what was told before.
    pub(super) fn tell(&self, first: i64, fresh: Fresh) {
        let mut tails = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if tails.now.first != first {
            tails.before = std::mem::take(&mut tails.now);
        }
        if fresh.first == first {
            tails.now = Tail::behind(first);
        } else if tails.now.next != fresh.first {
            // Nothing is told of those between.
            tails.now = Tail::default();
            return;
        }
        fresh.peers.into_iter().for_each(|peer| tails.now.add(peer));
    }

    /// Shows the rows with addresses that are meant behind the last one of the index; gives the last row that is known, here or
    /// by the index.
    pub(super) fn find(&self, covered: i64, meant: &[Addresses], mut show: impl FnMut(i64)) -> i64 {
        if meant.len() > NETWORKS {
            return covered;
        }
        let tails = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(tail) = [&tails.now, &tails.before].into_iter().find(|tail| tail.first == covered + 1) else {
            return covered;
        };
        for addresses in meant {
            tail.peers.find(*addresses, |row| show(tail.first + i64::from(row)));
        }
        tail.next - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u8) -> IpAddr {
        if number.is_multiple_of(3) { IpAddr::from([number; 16]) } else { IpAddr::from([10, 0, 0, number]) }
    }

    fn told(latest: &Latest, first: i64, from: i64, numbers: &[u8]) {
        latest.tell(first, Fresh { first: from, peers: numbers.iter().map(|number| peer(*number)).collect() });
    }

    /// The rows with the peer of a number, and the last row that is known.
    fn found(latest: &Latest, covered: i64, number: u8) -> (Vec<i64>, i64) {
        let mut rows = Vec::new();
        let last = latest.find(covered, &[(peer(number), peer(number))], |row| rows.push(row));
        (rows, last)
    }

    #[test]
    fn rows_are_found_behind_the_last_segment_and_behind_the_one_before() {
        let latest = Latest::default();
        assert_eq!(found(&latest, 0, 1), (vec![], 0), "nothing was told");
        told(&latest, 1, 1, &[1, 2, 3, 1]);
        told(&latest, 1, 5, &[3, 1]);
        assert_eq!(found(&latest, 0, 1), (vec![1, 4, 6], 6));
        assert_eq!(found(&latest, 0, 3), (vec![3, 5], 6));
        let many = vec![(peer(1), peer(1)); NETWORKS + 1];
        assert_eq!(latest.find(0, &many, |row| panic!("{row}")), 0, "the writer would wait for long");
        // A segment was made of all of these and of two that are told of nowhere.
        told(&latest, 9, 9, &[1, 6]);
        assert_eq!(found(&latest, 8, 1), (vec![9], 10));
        assert_eq!(found(&latest, 0, 1), (vec![1, 4, 6], 6), "for who sees the file as it was");
        told(&latest, 11, 11, &[2]);
        assert_eq!(found(&latest, 8, 6), (vec![10], 10));
        assert_eq!(found(&latest, 0, 1), (vec![], 0), "it is forgotten");
    }

    #[test]
    fn what_is_told_anew_takes_the_place_of_what_was_told_and_a_hole_makes_it_be_forgotten() {
        let latest = Latest::default();
        told(&latest, 1, 1, &[1, 2, 4]);
        told(&latest, 1, 1, &[2, 2]);
        assert_eq!(found(&latest, 0, 2), (vec![1, 2], 2));
        told(&latest, 1, 4, &[2]);
        assert_eq!(found(&latest, 0, 2), (vec![], 0));
        told(&latest, 1, 1, &[1, 2]);
        assert_eq!(found(&latest, 0, 2), (vec![2], 2));
    }
}
