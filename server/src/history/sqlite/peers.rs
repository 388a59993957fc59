//! Which peers may be among the last rows, which are in no index yet (`postings.rs`): a Bloom filter, so that a search for a
//! peer leaves most of them unread.
//!
//! A filter is two KiB for a thousand rows, written with them. It holds every address and its network (/24 of IPv4, /48 of IPv6):
//! what it denies is not there, and of a thousand rows that do not hold an address it denies all but a few in a hundred.

use std::net::IpAddr;

use ipnet::IpNet;

/// Bytes of a filter.
pub(super) const FILTER_BYTES: usize = 2048;
const BITS: u64 = FILTER_BYTES as u64 * 8;
/// Bits of a key.
const PROBES: u64 = 4;
/// Longest prefix of the network that is noted with an address.
const NETWORK_V4: u8 = 24;
const NETWORK_V6: u8 = 48;

/// A filter. What it looks like in a file is what [`PeerFilter::bytes`] gives, and must stay so.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PeerFilter(Box<[u8; FILTER_BYTES]>);

impl PeerFilter {
    pub(super) fn new() -> PeerFilter {
        PeerFilter(Box::new([0; FILTER_BYTES]))
    }

    /// The filter of a file; none when it has another size.
    pub(super) fn of(bytes: &[u8]) -> Option<PeerFilter> {
        bytes.try_into().ok().map(|bytes| PeerFilter(Box::new(bytes)))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_slice()
    }

    pub(super) fn add(&mut self, peer: IpAddr) {
        for key in [Key::address(peer), Key::network(peer)] {
            for bit in key.bits() {
                self.0[bit / 8] |= 1 << (bit % 8);
            }
        }
    }

    /// Whether an address of a network may have been added. Networks that are wider than what is noted may always.
    pub(super) fn may_hold(&self, wanted: &IpNet) -> bool {
        let (whole, noted) = match wanted {
            IpNet::V4(_) => (32, NETWORK_V4),
            IpNet::V6(_) => (128, NETWORK_V6),
        };
        let key = match wanted.prefix_len() {
            length if length == whole => Key::address(wanted.addr()),
            length if length >= noted => Key::network(wanted.addr()),
            _ => return true,
        };
        key.bits().all(|bit| self.0[bit / 8] & (1 << (bit % 8)) != 0)
    }
}

/// What is looked for.
struct Key(u64);

impl Key {
    fn address(address: IpAddr) -> Key {
        match address {
            IpAddr::V4(v4) => Key(mixed(u64::from(v4.to_bits()) | 4 << 32)),
            IpAddr::V6(v6) => Key(of_two(v6.to_bits(), 6)),
        }
    }

    fn network(address: IpAddr) -> Key {
        match address {
            IpAddr::V4(v4) => Key(mixed(u64::from(v4.to_bits() >> (32 - NETWORK_V4)) | 40 << 32)),
            IpAddr::V6(v6) => Key(of_two(v6.to_bits() >> (128 - NETWORK_V6), 60)),
        }
    }

    fn bits(&self) -> impl Iterator<Item = usize> {
        // Two halves make as many numbers as are wanted (Kirsch and Mitzenmacher, "Less Hashing, Same Performance", 2006).
        let (first, step) = (self.0 & 0xffff_ffff, self.0 >> 32 | 1);
        (0..PROBES).map(move |probe| usize::try_from((first + probe * step) % BITS).unwrap_or(0))
    }
}

fn of_two(bits: u128, kind: u64) -> u64 {
    let (high, low) = (bits >> 64, bits & u128::from(u64::MAX));
    let half = |part: u128| u64::try_from(part).unwrap_or(0);
    mixed(mixed(half(high) ^ kind) ^ half(low))
}

/// Spreads a number over all bits (splitmix64).
const fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_added_is_never_denied(addresses: Vec<IpAddr>, other: IpAddr, length in 0_u8..=128) {
            let mut filter = PeerFilter::new();
            addresses.iter().for_each(|address| filter.add(*address));
            let filter = PeerFilter::of(filter.bytes()).unwrap();
            for address in addresses {
                let most = if address.is_ipv4() { 32 } else { 128 };
                let network = IpNet::new(address, length.min(most)).unwrap();
                prop_assert!(filter.may_hold(&network) && filter.may_hold(&network.trunc()));
            }
            prop_assert!(PeerFilter::of(&[0; 7]).is_none());
            let any = IpNet::new(other, 0).unwrap();
            prop_assert!(filter.may_hold(&any));
        }
    }

    #[test]
    fn of_a_thousand_rows_nearly_all_that_is_not_there_is_denied() {
        let mut filter = PeerFilter::new();
        let v4 = |number: u64| IpAddr::from(u32::try_from(mixed(number) >> 32).unwrap().to_be_bytes());
        let v6 =
            |number: u64| IpAddr::from((u128::from(mixed(number)) << 64 | u128::from(mixed(number + 1))).to_be_bytes());
        for number in 0..512 {
            filter.add(v4(number));
            filter.add(v6(number));
        }
        let held = |address: &IpAddr| filter.may_hold(&IpNet::from(*address));
        let others = (10_000..20_000).flat_map(|number| [v4(number), v6(number)]);
        let wrong = others.filter(held).count();
        assert!(wrong < 1000, "{wrong} of 20,000");
    }

    #[test]
    fn the_bits_of_an_address_stay_what_they_are_in_files() {
        let bits = |address: &str| {
            let address: IpAddr = address.parse().unwrap();
            [Key::address(address), Key::network(address)].map(|key| key.bits().collect::<Vec<_>>())
        };
        assert_eq!(bits("192.0.2.1"), [[10489, 12616, 14743, 486], [2442, 13709, 8592, 3475]]);
        assert_eq!(bits("2001:db8::1"), [[2047, 9566, 701, 8220], [15054, 13087, 11120, 9153]]);
    }
}
