//! IP addresses: their one form, how far they reach, and their bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{InvalidMessage, word::words};

words! {
    /// How far a listener can be reached, judged by the address that it is bound to. From near to far.
    pub enum Scope is "scope", or InvalidScope {
        /// 127.0.0.0/8 (RFC 1122) and ::1 (RFC 4291).
        Loopback = 1 "loopback",
        /// 169.254.0.0/16 (RFC 3927) and fe80::/10 (RFC 4291).
        Link = 2 "link",
        /// RFC 1918, RFC 6598 (shared address space) and RFC 4193 (unique local) ranges.
        Private = 3 "private",
        /// Any other address.
        Public = 4 "public",
        /// 0.0.0.0 or ::, every address of the host.
        Any = 5 "any",
    }
}

impl Scope {
    /// The scope of a listener on this address.
    pub fn of(address: IpAddr) -> Scope {
        match normalise(address) {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                if v4.is_unspecified() {
                    Scope::Any
                } else if v4.is_loopback() {
                    Scope::Loopback
                } else if v4.is_link_local() {
                    Scope::Link
                } else if v4.is_private() || (a == 100 && (b & 0xc0) == 64) {
                    Scope::Private
                } else {
                    Scope::Public
                }
            }
            IpAddr::V6(v6) => {
                if v6.is_unspecified() {
                    Scope::Any
                } else if v6.is_loopback() {
                    Scope::Loopback
                } else if v6.is_unicast_link_local() {
                    Scope::Link
                } else if v6.is_unique_local() {
                    Scope::Private
                } else {
                    Scope::Public
                }
            }
        }
    }
}

/// An IPv4-mapped IPv6 address (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2) as the IPv4 address it means.
pub fn normalise(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// The 4 or 16 bytes of an address, in network order.
pub fn to_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// The address in 4 or 16 bytes, normalised.
pub fn from_bytes(field: &'static str, bytes: &[u8]) -> Result<IpAddr, InvalidMessage> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::V4(Ipv4Addr::from(v4)))
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(normalise(IpAddr::V6(Ipv6Addr::from(v6))))
    } else {
        Err(InvalidMessage::new(field, format!("{} bytes are no IP address", bytes.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_follow_the_rfcs() {
        for (address, scope) in [
            ("127.8.9.1", Scope::Loopback),
            ("::1", Scope::Loopback),
            ("::ffff:127.0.0.1", Scope::Loopback),
            ("169.254.1.1", Scope::Link),
            ("fe80::1", Scope::Link),
            ("10.0.0.1", Scope::Private),
            ("172.16.0.1", Scope::Private),
            ("172.32.0.1", Scope::Public),
            ("192.168.1.1", Scope::Private),
            ("100.64.0.1", Scope::Private),
            ("100.128.0.1", Scope::Public),
            ("fd00::1", Scope::Private),
            ("203.0.113.5", Scope::Public),
            ("2001:db8::1", Scope::Public),
            ("0.0.0.0", Scope::Any),
            ("::", Scope::Any),
        ] {
            assert_eq!(Scope::of(address.parse().expect("a literal")), scope, "{address}");
        }
    }
}
