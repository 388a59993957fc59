//! What a sealed file has no session of, told without reading it: most files never met an address that is asked for, or a kind that
//! may be new, and each would have to be searched for it.
//!
//! It is a split block Bloom filter as Parquet has it (<https://parquet.apache.org/docs/file-format/bloomfilter/>): each
//! address sets one bit in each of the eight words of one block, so that to look for it takes one line of the processor's cache.
//! Only the hash is another: addresses are a number or two, for which Parquet's xxHash is more than it takes.
//! Of addresses that were never met about one in a hundred is looked for in vain.

use std::{marker::PhantomData, net::IpAddr};

use rusqlite::{Connection, params};

use super::column::Damaged;
use crate::history::sqlite::coding;

/// Words of a block.
const WORDS: usize = 8;
/// Bytes of a block.
const BLOCK_BYTES: usize = WORDS * size_of::<u32>();
/// Bits for each address, at least; there may be twice as many.
const BITS: u64 = 10;
/// Odd numbers, one for each word, which choose its bit (Parquet's).
const SALTS: [u32; WORDS] =
    [0x47b6_137b, 0x4497_4d91, 0x8824_ad5b, 0xa2b7_289d, 0x7054_95c7, 0x2df1_424b, 0x9efc_4947, 0x5c6b_fb31];

type Block = [u32; WORDS];

/// What a filter may be of.
pub(in crate::history::sqlite) trait Hashed {
    /// The table in which such filters are.
    const TABLE: &'static str;

    /// A hash that is a part of the schema. Who sends what is alike here makes a search take as long as without it.
    fn hash(&self) -> u64;
}

/// The addresses, or the kinds, of a sealed file's sessions.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Filter<T> {
    blocks: Vec<Block>,
    of: PhantomData<T>,
}

impl<T: Hashed> Filter<T> {
    /// One with room for so many addresses; there is none in it.
    pub(in crate::history::sqlite) fn with_room_for(addresses: u64) -> Filter<T> {
        Filter { blocks: vec![Block::default(); blocks_for(addresses)], of: PhantomData }
    }

    pub(in crate::history::sqlite) fn add(&mut self, address: &T) {
        let (at, bits) = self.of(address);
        self.blocks[at].iter_mut().zip(bits).for_each(|(word, bit)| *word |= bit);
    }

    /// Makes it as small as it may be for so many addresses: two blocks that follow each other become one.
    pub(in crate::history::sqlite) fn fold(&mut self, addresses: u64) {
        while self.blocks.len() > blocks_for(addresses) {
            let together = |two: &[Block]| std::array::from_fn(|word| two.iter().fold(0, |all, one| all | one[word]));
            self.blocks = self.blocks.chunks(2).map(together).collect();
        }
    }

    /// Whether there may be sessions with an address. Where there are some it is so.
    #[inline]
    pub(in crate::history::sqlite) fn may_have(&self, address: &T) -> bool {
        let (at, bits) = self.of(address);
        self.blocks[at].iter().zip(bits).all(|(word, bit)| word & bit != 0)
    }

    /// The bytes that it takes.
    pub(in crate::history::sqlite) fn bytes(&self) -> usize {
        BLOCK_BYTES * self.blocks.len()
    }

    /// The block of an address, and its bits there.
    #[inline]
    fn of(&self, address: &T) -> (usize, impl Iterator<Item = u32> + use<T>) {
        let hash = address.hash();
        let (high, low) = (hash >> 32, hash as u32);
        let at = (high * self.blocks.len() as u64) >> 32;
        (at as usize, SALTS.iter().map(move |salt| 1 << (low.wrapping_mul(*salt) >> 27)))
    }

    /// Stores it in its file.
    pub(in crate::history::sqlite) fn store(&self, sealed: &Connection) -> Result<(), rusqlite::Error> {
        let bytes: Vec<u8> = self.blocks.iter().flatten().flat_map(|word| word.to_le_bytes()).collect();
        sealed.execute(&format!("INSERT INTO {} (blocks) VALUES (?1)", T::TABLE), params![bytes]).map(drop)
    }

    /// The bytes that it takes in a file; none in one that an earlier version sealed.
    pub(in crate::history::sqlite) fn bytes_of(sealed: &Connection) -> Result<Option<usize>, rusqlite::Error> {
        if !sealed.table_exists(None, T::TABLE)? {
            return Ok(None);
        }
        let length = format!("SELECT length(blocks) FROM {}", T::TABLE);
        let length: i64 = sealed.query_row(&length, [], |row| row.get(0))?;
        Ok(Some(usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// The one of a file.
    pub(in crate::history::sqlite) fn of_file(sealed: &Connection) -> Result<Filter<T>, rusqlite::Error> {
        sealed.query_row(&format!("SELECT blocks FROM {}", T::TABLE), [], |row| {
            let bytes = row.get_ref(0)?.as_blob()?;
            Filter::read(bytes).map_err(|error| coding::wrong("blocks", error.to_string()))
        })
    }

    fn read(bytes: &[u8]) -> Result<Filter<T>, Damaged> {
        let (words, []) = bytes.as_chunks::<4>() else { return Err(Damaged("a filter has a part of a word")) };
        let (blocks, []) = words.as_chunks::<WORDS>() else { return Err(Damaged("a filter has a part of a block")) };
        if blocks.is_empty() {
            return Err(Damaged("a filter has no blocks"));
        }
        let blocks = blocks.iter().map(|block| block.map(u32::from_le_bytes)).collect();
        Ok(Filter { blocks, of: PhantomData })
    }
}

/// Blocks with room for so many addresses: a power of two, so that they can be folded.
fn blocks_for(addresses: u64) -> usize {
    let blocks = addresses.saturating_mul(BITS).div_ceil(8 * BLOCK_BYTES as u64);
    usize::try_from(blocks).unwrap_or(usize::MAX / 2).next_power_of_two()
}

impl Hashed for IpAddr {
    const TABLE: &'static str = "peer_filter";

    fn hash(&self) -> u64 {
        match self {
            IpAddr::V4(address) => mixed(address.to_bits().into()),
            IpAddr::V6(address) => {
                let bits = address.to_bits();
                mixed(mixed((bits >> 64) as u64) ^ bits as u64)
            }
        }
    }
}

/// Each bit of a number spread over all: the finalizer of MurmurHash3 (Appleby, `fmix64`).
pub(in crate::history::sqlite) const fn mixed(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses of both families: near each other, as those of a network are, and far apart.
    fn address(number: u32) -> IpAddr {
        match number % 4 {
            0 => number.to_be_bytes().into(),
            1 => number.wrapping_mul(0x9e37_79b9).to_be_bytes().into(),
            2 => ((0x2001_0db8 << 96) | u128::from(number)).to_be_bytes().into(),
            _ => ((0x2001_0db8 << 96) | u128::from(number) << 64).to_be_bytes().into(),
        }
    }

    fn filled(room: u64, addresses: u32) -> Filter<IpAddr> {
        let mut filter = Filter::with_room_for(room);
        (0..addresses).for_each(|number| filter.add(&address(number)));
        filter
    }

    #[test]
    fn what_was_added_is_found_and_few_others_are_however_much_it_was_folded() {
        for (room, addresses) in [(0, 1), (1, 1), (40_000, 40_000), (5_000_000, 40_000), (50_000, 26_000)] {
            let mut filter = filled(room, addresses);
            filter.fold(addresses.into());
            assert!((0..addresses).all(|number| filter.may_have(&address(number))), "{room} {addresses}");
            let bits = 8 * filter.bytes();
            let most = (2 * u64::from(addresses) * BITS).max(8 * BLOCK_BYTES as u64);
            assert!(bits as u64 <= most, "{room} {addresses}: {bits}");
            let others = addresses..addresses + 100_000;
            let in_vain = others.filter(|number| filter.may_have(&address(*number))).count();
            assert!(in_vain < 1500, "{room} {addresses}: {in_vain}");
        }
    }

    #[test]
    fn folded_it_is_the_one_that_is_as_small_from_the_beginning() {
        let mut folded = filled(1_000_000, 5000);
        folded.fold(5000);
        assert_eq!(folded, filled(5000, 5000));
    }

    #[test]
    fn it_is_stored_as_it_is_and_another_form_is_damaged() {
        let sealed = Connection::open_in_memory().unwrap();
        assert_eq!(Filter::<IpAddr>::bytes_of(&sealed), Ok(None), "none of an earlier version");
        sealed.execute_batch(include_str!("../../../../../migrations/sqlite/sealed/V7__peer_filter.sql")).unwrap();
        let filter = filled(3000, 3000);
        filter.store(&sealed).unwrap();
        assert_eq!(Filter::<IpAddr>::bytes_of(&sealed), Ok(Some(filter.bytes())));
        assert_eq!(Filter::of_file(&sealed).unwrap(), filter);
        for (bytes, problem) in [(0, "no blocks"), (6, "part of a word"), (36, "part of a block")] {
            sealed.execute("UPDATE peer_filter SET blocks = zeroblob(?1)", [bytes]).unwrap();
            let error = Filter::<IpAddr>::of_file(&sealed).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn the_hash_is_the_one_that_files_have() {
        // They are a part of the schema: other numbers would hide what earlier versions sealed.
        let hashes = ["192.0.2.9", "2001:db8::9"].map(|address| address.parse::<IpAddr>().unwrap().hash());
        assert_eq!(hashes, [0xf090_490d_2d7f_1e16, 0xfe66_44df_51c7_bc16]);
    }
}
