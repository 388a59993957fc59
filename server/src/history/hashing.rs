//! Hashing of sessions, of their values and of groups of them, which each session of a file goes through several times: a word
//! for each multiplication, in place of SipHash's several for each byte.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};

/// A number whose bits are as good as random (of the golden ratio).
const MIXING: u64 = 0x9e37_79b9_7f4a_7c15;

/// A hash that is seeded and not secret: for what is told by nobody, and for tables that are small.
#[derive(Debug, Clone, Copy)]
pub(in crate::history) struct Folding(u64);

impl Default for Folding {
    fn default() -> Folding {
        Folding(MIXING)
    }
}

impl Hasher for Folding {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.write_u64(u64::from_le_bytes(*word)));
        if !rest.is_empty() {
            let mut word = [0; 8];
            word.iter_mut().zip(rest).for_each(|(into, byte)| *into = *byte);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, number: u8) {
        self.write_u64(number.into());
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(MIXING);
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

/// The hash of one thing.
pub(in crate::history) fn folded(value: impl Hash) -> u64 {
    let mut hasher = Folding::default();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Makes hashes of tables. Where they begin is not known to who chooses the values: addresses come from anywhere.
#[derive(Debug, Clone)]
pub(in crate::history) struct Seeded(Folding);

impl Default for Seeded {
    fn default() -> Seeded {
        Seeded(Folding(RandomState::new().hash_one(MIXING)))
    }
}

impl BuildHasher for Seeded {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::Hash, net::IpAddr};

    use super::*;

    fn hash(value: impl Hash) -> u64 {
        let mut hasher = Folding::default();
        value.hash(&mut hasher);
        hasher.finish()
    }

    #[test]
    fn values_that_differ_in_one_bit_or_in_their_order_have_other_hashes() {
        let values: Vec<(i64, i32)> =
            (0..64).map(|bit| (1 << bit, 0)).chain((0..32).map(|bit| (0, 1 << bit))).chain([(0, 0)]).collect();
        let alone: HashSet<u64> = values.iter().map(hash).collect();
        assert_eq!(alone.len(), values.len());
        let pairs: HashSet<u64> =
            values.iter().flat_map(|one| values.iter().map(move |other| hash((one, other)))).collect();
        assert_eq!(pairs.len(), values.len() * values.len());
        for bytes in [&[][..], &[0], &[0, 0], &[0; 8], &[0; 9], &[1, 0], &[0, 1]] {
            let others = [&[][..], &[0], &[0, 0], &[0; 8], &[0; 9], &[1, 0], &[0, 1]];
            let same = others.into_iter().filter(|other| hash(other) == hash(bytes)).count();
            assert_eq!(same, 1, "{bytes:?}");
        }
    }

    #[test]
    fn neighbouring_addresses_spread_over_a_table() {
        let seeded = Seeded::default();
        let address = |number: u32| IpAddr::from(number.to_be_bytes());
        let mut filled = [0_u32; 256];
        for number in 0..65_536_u32 {
            let hash = seeded.hash_one(address(0x0a00_0000 + number));
            filled[usize::from(hash.to_le_bytes()[0])] += 1;
        }
        assert!(filled.iter().all(|count| (128..512).contains(count)), "{filled:?}");
    }
}
