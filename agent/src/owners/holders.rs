//! Sockets by their inodes, and who holds one of them.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasherDefault, Hasher},
    mem,
    ops::Deref,
    sync::Arc,
};

use fleetsock_proto::{batch::SOCKET_OWNERS_LIMIT, owner::Owner};

/// Inodes of sockets.
pub type Inodes = HashSet<u64, BuildHasherDefault<InodeHasher>>;
/// What is known of sockets, by their inodes.
pub type ByInode<T> = HashMap<u64, T, BuildHasherDefault<InodeHasher>>;

/// The bits of an inode that say where in a table it is. The others (the upper 7) tell those apart that are at one place.
const PLACE: u64 = u64::MAX >> 7;
/// An odd number without a pattern: 2^64 by the golden ratio.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Puts neighbours side by side. The kernel numbers sockets one after the other, and a process has its own in that order, so
/// that whoever looks through its descriptors finds the next one in memory that is at hand. To make many collide one would
/// have to open a table's size of sockets for each.
#[derive(Debug, Clone, Copy, Default)]
pub struct InodeHasher(u64);

impl Hasher for InodeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0.rotate_left(8) ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, inode: u64) {
        self.0 = (inode & PLACE) | (inode.wrapping_mul(MIX) & !PLACE);
    }
}

/// The owners of one socket, the oldest first. Mostly there is one, which takes no memory besides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Holders {
    /// None was found.
    #[default]
    Nobody,
    /// One.
    One(Arc<Owner>),
    /// Several, at most [`SOCKET_OWNERS_LIMIT`].
    Several(Vec<Arc<Owner>>),
}

impl Deref for Holders {
    type Target = [Arc<Owner>];

    fn deref(&self) -> &[Arc<Owner>] {
        match self {
            Holders::Nobody => &[],
            Holders::One(owner) => std::slice::from_ref(owner),
            Holders::Several(owners) => owners,
        }
    }
}

impl FromIterator<Arc<Owner>> for Holders {
    /// Owners in their order.
    fn from_iter<T: IntoIterator<Item = Arc<Owner>>>(owners: T) -> Holders {
        let mut owners: Vec<Arc<Owner>> = owners.into_iter().collect();
        match owners.len() {
            0 | 1 => owners.pop().map_or(Holders::Nobody, Holders::One),
            _ => Holders::Several(owners),
        }
    }
}

impl Holders {
    /// Adds an owner in its place; how many are above the limit and left out. A process may have several descriptors of one
    /// socket.
    pub(super) fn add(&mut self, owner: &Arc<Owner>) -> u64 {
        match self {
            Holders::Nobody => *self = Holders::One(Arc::clone(owner)),
            Holders::One(first) if is_same(first, owner) => {}
            Holders::One(_) => {
                let mut owners = match mem::take(self) {
                    Holders::One(first) => vec![first],
                    Holders::Nobody | Holders::Several(_) => Vec::new(),
                };
                insert(&mut owners, owner);
                *self = Holders::Several(owners);
            }
            Holders::Several(owners) => return insert(owners, owner),
        }
        0
    }
}

/// Whether they are one process, which may have been described twice.
fn is_same(one: &Arc<Owner>, other: &Arc<Owner>) -> bool {
    Arc::ptr_eq(one, other) || (one.pid, one.started_at) == (other.pid, other.started_at)
}

fn insert(owners: &mut Vec<Arc<Owner>>, owner: &Arc<Owner>) -> u64 {
    if owners.iter().any(|other| is_same(other, owner)) {
        return 0;
    }
    let place = owners.partition_point(|other| (other.started_at, other.pid) < (owner.started_at, owner.pid));
    owners.insert(place, Arc::clone(owner));
    let above = owners.len().saturating_sub(SOCKET_OWNERS_LIMIT);
    owners.truncate(SOCKET_OWNERS_LIMIT);
    above as u64
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::time::Timestamp;
    use proptest::prelude::*;

    use super::*;

    fn owner(pid: u32, started_at: i64) -> Arc<Owner> {
        Arc::new(Owner {
            pid,
            started_at: Some(Timestamp::from_micros(started_at)),
            process: String::new(),
            exe: String::new(),
            uid: 0,
            user: String::new(),
            container: String::new(),
            unit: String::new(),
            command_line: String::new(),
        })
    }

    #[test]
    fn of_too_many_owners_the_oldest_are_kept_in_order() {
        let (mut holders, mut left_out) = (Holders::default(), 0);
        let limit = u32::try_from(SOCKET_OWNERS_LIMIT).unwrap();
        for pid in (0..limit + 9).rev() {
            let owner = owner(pid, i64::from(pid / 2));
            left_out += holders.add(&owner);
            left_out += holders.add(&owner);
        }
        let kept: Vec<u32> = holders.iter().map(|owner| owner.pid).collect();
        assert_eq!(kept, (0..limit).collect::<Vec<_>>());
        assert_eq!(left_out, 9);
    }

    #[test]
    fn a_process_that_was_described_twice_is_one_owner_and_one_that_began_later_with_its_number_another() {
        let mut holders = Holders::default();
        for (pid, started_at, expected) in [(7, 1, 1), (7, 1, 1), (8, 1, 2), (7, 1, 2), (8, 1, 2), (7, 2, 3)] {
            assert_eq!(holders.add(&owner(pid, started_at)), 0);
            assert_eq!(holders.len(), expected, "{pid} {started_at}");
        }
    }

    proptest! {
        #[test]
        fn every_process_is_an_owner_once_and_the_oldest_is_the_first(
            starts in proptest::collection::vec(0..9_i64, 0..9), order in proptest::collection::vec(any::<prop::sample::Index>(), 0..40)
        ) {
            let owners: Vec<Arc<Owner>> =
                (1..).zip(&starts).map(|(pid, started_at)| owner(pid, *started_at)).collect();
            let chosen: Vec<&Arc<Owner>> =
                order.iter().filter(|_| !owners.is_empty()).map(|index| index.get(&owners)).collect();
            let mut expected: Vec<Arc<Owner>> = chosen.iter().copied().cloned().collect();
            expected.sort_by_key(|owner| (owner.started_at, owner.pid));
            expected.dedup();
            let mut holders = Holders::default();
            prop_assert!(chosen.into_iter().all(|owner| holders.add(owner) == 0));
            prop_assert_eq!(&*holders, &expected[..]);
        }

        #[test]
        fn inodes_are_found_whatever_their_numbers_have_in_common(
            first in any::<u64>(), step in prop_oneof![1..5_u64, (0..64_u32).prop_map(|bit| 1 << bit)], count in 0..300_u64
        ) {
            let numbers: Vec<u64> = (0..count).map(|number| first.wrapping_add(number.wrapping_mul(step))).collect();
            let inodes: Inodes = numbers.iter().copied().collect();
            prop_assert!(numbers.iter().all(|number| inodes.contains(number)));
            prop_assert!(!inodes.contains(&first.wrapping_sub(step)) || numbers.contains(&first.wrapping_sub(step)));
        }
    }
}
