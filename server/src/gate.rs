//! How many connections there may be, in all and from one address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// Counts places and gives them out up to two limits.
#[derive(Debug)]
pub struct Gate {
    total: usize,
    per_address: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    gate: Arc<Gate>,
    address: IpAddr,
}

/// Whose limit an address counts against: a subscriber has at least a /64 of IPv6.
pub(crate) fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !(u128::from(u64::MAX)))),
        v4 => v4,
    }
}

impl Gate {
    /// A gate with these limits.
    pub fn new(total: usize, per_address: usize) -> Arc<Gate> {
        Arc::new(Gate { total, per_address, taken: Mutex::default() })
    }

    /// A place for a connection from this address, unless a limit is reached.
    pub fn enter(self: &Arc<Gate>, address: IpAddr) -> Option<Place> {
        let address = counted(address);
        // The numbers are whole after every statement, so a panic elsewhere does not spoil them.
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let here = taken.by_address.get(&address).copied().unwrap_or(0);
        if taken.total >= self.total || here >= self.per_address {
            return None;
        }
        taken.total += 1;
        taken.by_address.insert(address, here + 1);
        Some(Place { gate: Arc::clone(self), address })
    }

    /// Places taken now.
    pub fn taken(&self) -> usize {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner).total
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.gate.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.total -= 1;
        if let Some(here) = taken.by_address.get_mut(&self.address) {
            *here -= 1;
            if *here == 0 {
                taken.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_limits_hold_and_places_come_back() {
        let gate = Gate::new(3, 2);
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let first = gate.enter(a);
        let second = gate.enter(a);
        assert!(first.is_some() && second.is_some() && gate.enter(a).is_none(), "two per address");
        let third = gate.enter(b);
        assert!(third.is_some() && gate.enter(b).is_none(), "three in all");
        drop(first);
        assert!(gate.enter(b).is_some());
        drop((second, third));
        assert_eq!((gate.taken(), gate.taken.lock().unwrap().by_address.len()), (0, 0), "nothing is remembered");
    }

    #[test]
    fn addresses_of_one_subscriber_count_together_and_mapped_ones_as_ipv4() {
        let gate = Gate::new(9, 1);
        let _first = gate.enter("2001:db8::1".parse().unwrap()).unwrap();
        assert!(gate.enter("2001:db8::ffff:2".parse().unwrap()).is_none());
        assert!(gate.enter("2001:db8:0:1::1".parse().unwrap()).is_some());
        let _mapped = gate.enter("::ffff:192.0.2.1".parse().unwrap()).unwrap();
        assert!(gate.enter("192.0.2.1".parse().unwrap()).is_none());
    }
}
