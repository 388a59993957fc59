//! Maps whose keys are numbers that this server gave: hosts, programs, places. They need no hash that withstands an attacker.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

/// Mixes the numbers of a key. What keys of a host meet costs only as much as its rows, which are few in one map.
#[derive(Debug, Default)]
pub(super) struct Mixing(u64);

impl Hasher for Mixing {
    fn write(&mut self, bytes: &[u8]) {
        let (eights, rest) = bytes.as_chunks::<8>();
        eights.iter().for_each(|eight| self.write_u64(u64::from_le_bytes(*eight)));
        if !rest.is_empty() {
            self.write_u64(rest.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)));
        }
    }

    fn write_usize(&mut self, _length: usize) {
        // Of keys of one map it is the same.
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(23) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }
}

/// A map with keys of numbers.
pub(super) type Numbered<K, V> = HashMap<K, V, BuildHasherDefault<Mixing>>;
