//! How many connections there may be, in all and of one address or host.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts places and gives them out up to two limits: in all, and for each of those who ask.
#[derive(Debug)]
pub struct Gate<K> {
    total: usize,
    each: usize,
    taken: Mutex<Taken<K>>,
}

#[derive(Debug)]
struct Taken<K> {
    total: usize,
    by_key: HashMap<K, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    gate: Arc<Gate<K>>,
    key: K,
}

/// Whose limit an address counts against: a subscriber has at least a /64 of IPv6.
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::from(u64::MAX)))),
        v4 => v4,
    }
}

impl<K: Hash + Eq + Copy> Gate<K> {
    /// A gate with these limits.
    pub fn new(total: usize, each: usize) -> Arc<Gate<K>> {
        Arc::new(Gate { total, each, taken: Mutex::new(Taken { total: 0, by_key: HashMap::new() }) })
    }

    /// A place for a connection of this address (of IPv6, of its /64) or host, unless a limit is reached.
    pub fn enter(self: &Arc<Gate<K>>, key: K) -> Option<Place<K>> {
        // The numbers are whole after every statement, so a panic elsewhere does not spoil them.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_key.get(&key).copied().unwrap_or(0);
        if taken.total >= self.total || here >= self.each {
            return None;
        }
        taken.total += 1;
        taken.by_key.insert(key, here + 1);
        Some(Place { gate: Arc::clone(self), key })
    }

    /// Places taken now.
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(here) = taken.by_key.get_mut(&self.key) {
            *here -= 1;
            if *here == 0 {
                taken.by_key.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: &str) -> IpAddr {
        counted(address.parse().unwrap())
    }

    #[test]
    fn both_limits_hold_and_places_come_back() {
        let gate = Gate::new(3, 2);
        let (a, b) = (at("192.0.2.1"), at("192.0.2.2"));
        let first = gate.enter(a);
        let second = gate.enter(a);
        assert!(first.is_some() && second.is_some() && gate.enter(a).is_none(), "two per address");
        let third = gate.enter(b);
        assert!(third.is_some() && gate.enter(b).is_none(), "three in all");
        drop(first);
        assert!(gate.enter(b).is_some());
        drop((second, third));
        assert_eq!((gate.taken(), gate.taken.lock().unwrap().by_key.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn addresses_of_one_subscriber_count_together_and_mapped_ones_as_ipv4() {
        let gate = Gate::new(9, 1);
        let _first = gate.enter(at("2001:db8::1")).unwrap();
        assert!(gate.enter(at("2001:db8::ffff:2")).is_none());
        assert!(gate.enter(at("2001:db8:0:1::1")).is_some());
        let _mapped = gate.enter(at("::ffff:192.0.2.1")).unwrap();
        assert!(gate.enter(at("192.0.2.1")).is_none());
    }
}
