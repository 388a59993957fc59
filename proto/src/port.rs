//! Ports: their classes and ranges.

use std::{fmt, str::FromStr};

use crate::{InvalidMessage, socket::Protocol, wire, word::words};

words! {
    /// RFC 6335 section 6.
    pub enum PortClass is "port class", or InvalidPortClass {
        /// 0 to 1023; the system ports.
        WellKnown = 1 "well-known" | "wellknown" | "system",
        /// 1024 to 49151; the user ports.
        Registered = 2 "registered" | "user",
        /// 49152 to 65535; the private or ephemeral ports.
        Dynamic = 3 "dynamic" | "private" | "ephemeral",
        /// Raw, packet and UNIX sockets have no port.
        Portless = 4 "portless" | "none",
    }
}

impl PortClass {
    /// The class of a socket with this protocol and port.
    pub const fn of(protocol: Protocol, port: u16) -> PortClass {
        match port {
            _ if !protocol.has_ports() => PortClass::Portless,
            0..=1023 => PortClass::WellKnown,
            1024..=49151 => PortClass::Registered,
            49152..=65535 => PortClass::Dynamic,
        }
    }

    /// The ports of the class; what stands in their place where there are none can be anything.
    pub const fn range(self) -> PortRange {
        match self {
            PortClass::WellKnown => PortRange { first: 0, last: 1023 },
            PortClass::Registered => PortRange { first: 1024, last: 49151 },
            PortClass::Dynamic => PortRange { first: 49152, last: 65535 },
            PortClass::Portless => PortRange { first: 0, last: u16::MAX },
        }
    }
}

/// An inclusive range of ports that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range, unless it is reversed.
    pub fn new(first: u16, last: u16) -> Result<PortRange, InvalidPortRange> {
        if first <= last { Ok(PortRange { first, last }) } else { Err(InvalidPortRange::Reversed { first, last }) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether the port lies in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}-{}", self.first, self.last) }
    }
}

/// A text that is no port range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPortRange {
    /// Not a number from 0 to 65535.
    #[error("`{0}` is no port; ports are 0 to 65535")]
    Port(String),
    /// The end lies before the beginning.
    #[error("`{first}-{last}` is reversed; write {last}-{first}")]
    Reversed {
        /// What stands first.
        first: u16,
        /// What stands last.
        last: u16,
    },
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    /// `443` or `8000-8100`.
    fn from_str(text: &str) -> Result<PortRange, InvalidPortRange> {
        let port = |text: &str| text.trim().parse().map_err(|_| InvalidPortRange::Port(text.to_owned()));
        match text.split_once('-') {
            Some((first, last)) => PortRange::new(port(first)?, port(last)?),
            None => port(text).map(|port| PortRange { first: port, last: port }),
        }
    }
}

/// The port in a field.
pub(crate) fn from_wire(field: &'static str, port: u32) -> Result<u16, InvalidMessage> {
    u16::try_from(port).map_err(|_| InvalidMessage::new(field, format!("{port} is no port")))
}

impl From<PortRange> for wire::PortRange {
    fn from(range: PortRange) -> wire::PortRange {
        wire::PortRange { first: range.first.into(), last: range.last.into() }
    }
}

impl TryFrom<wire::PortRange> for PortRange {
    type Error = InvalidMessage;

    fn try_from(range: wire::PortRange) -> Result<PortRange, InvalidMessage> {
        let field = "PortRange";
        PortRange::new(from_wire(field, range.first)?, from_wire(field, range.last)?)
            .map_err(|problem| InvalidMessage::new(field, problem.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_meet_without_a_gap() {
        for port in 0..=u16::MAX {
            let holding: Vec<_> = PortClass::ALL.iter().filter(|class| class.range().contains(port)).collect();
            assert_eq!(holding, [&PortClass::of(Protocol::Tcp, port), &PortClass::Portless], "{port}");
        }
    }

    #[test]
    fn what_raw_packet_and_unix_sockets_have_in_place_of_a_port_has_no_class_of_ports() {
        for protocol in Protocol::ALL {
            let is_portless = PortClass::of(*protocol, 1) == PortClass::Portless;
            let expected = [Protocol::Raw, Protocol::Packet, Protocol::Unix].contains(protocol);
            assert_eq!(is_portless, expected, "{protocol}");
        }
    }

    #[test]
    fn a_wrong_range_says_what_is_wrong() {
        let error = |text: &str| text.parse::<PortRange>().expect_err(text).to_string();
        assert_eq!(error("70000"), "`70000` is no port; ports are 0 to 65535");
        assert_eq!(error("90-80"), "`90-80` is reversed; write 80-90");
        assert_eq!(error("http"), "`http` is no port; ports are 0 to 65535");
        assert_eq!(error(""), "`` is no port; ports are 0 to 65535");
    }
}
