//! The addresses of the interfaces of a network namespace, by rtnetlink(7).

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use fleetsock_proto::address::{Scope, normalise};

use super::{
    message::{attributes, request},
    netlink::{DUMP, Netlink, NetlinkError},
};
use crate::kernel::bytes::at;

const RTM_GETADDR: u16 = 22;
const RTM_NEWADDR: u16 = 20;
/// Bytes of struct ifaddrmsg.
const ENTRY: usize = 8;
/// Attribute: the address, or that of the other end of a point-to-point link.
const IFA_ADDRESS: u16 = 1;
/// Attribute: the own address where the other one is not.
const IFA_LOCAL: u16 = 2;
/// How often a dump that was interrupted is tried before it is taken as it is.
const DUMP_TRIES: u32 = 3;

/// Every address of the calling thread's network namespace that others could know it by, loopback left out:
/// link-local ones last, otherwise in order.
pub(crate) fn addresses() -> Result<Vec<IpAddr>, NetlinkError> {
    let mut netlink = Netlink::open(None)?;
    let mut request = request(RTM_GETADDR, DUMP, &[0; ENTRY]);
    let mut found = BTreeSet::new();
    for _ in 0..DUMP_TRIES {
        found.clear();
        let dump = netlink.dump(&mut request, |message| {
            if message.kind == RTM_NEWADDR {
                found.extend(address(message.body).map(|address| (Scope::of(address) == Scope::Link, address)));
            }
        })?;
        if !dump.interrupted {
            break;
        }
    }
    Ok(found.into_iter().map(|(_, address)| address).filter(|address| Scope::of(*address) != Scope::Loopback).collect())
}

/// The own address in an entry (struct ifaddrmsg and attributes).
fn address(body: &[u8]) -> Option<IpAddr> {
    let mut address = None;
    for (kind, payload) in attributes(body.get(ENTRY..)?) {
        match kind {
            IFA_LOCAL => return parse(payload),
            IFA_ADDRESS => address = parse(payload),
            _ => {}
        }
    }
    address
}

fn parse(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => at::<4>(bytes, 0).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes))),
        16 => at::<16>(bytes, 0).map(|bytes| normalise(IpAddr::V6(Ipv6Addr::from(bytes)))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_own_end_of_a_point_to_point_link_is_taken() {
        let attribute = |kind: u16, bytes: [u8; 4]| [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &bytes].concat();
        let peer = attribute(IFA_ADDRESS, [10, 0, 0, 2]);
        let own = attribute(IFA_LOCAL, [10, 0, 0, 1]);
        let entry = [&[0; ENTRY][..], &peer, &own].concat();
        assert_eq!(address(&entry), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(address(&entry[..ENTRY + 8]), Some("10.0.0.2".parse().unwrap()));
        assert_eq!(address(&entry[..5]), None);
    }

    #[test]
    fn no_loopback_address_is_told() {
        assert_eq!(addresses().unwrap().into_iter().find(|address| address.is_loopback()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..120), kind in 0_u16..4, length in 0_u16..24) {
            let attribute = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), &bytes].concat();
            for body in [bytes, [&[0; ENTRY][..], &attribute].concat()] {
                prop_assert!(address(&body).is_none_or(|address| address == normalise(address)));
            }
        }
    }
}
