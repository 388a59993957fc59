//! Names of ports: the IANA registry and everyday names. A name is a guess about the traffic.
//!
//! Source: IANA Service Name and Transport Protocol Port Number Registry (RFC 6335), September 2026, public domain
//! (CC0 1.0). `proto/iana/README.md` describes the two files.

use std::{cell::RefCell, collections::HashMap, sync::LazyLock};

use crate::{socket::Protocol, word::words};

const IANA: &str = include_str!("../iana/services.tsv");
const DE_FACTO: &str = include_str!("../iana/de-facto.tsv");

words! {
    /// Where the name of a service comes from.
    pub enum ServiceSource is "source of service names", or InvalidServiceSource {
        /// The registry.
        Iana = 1 "iana",
        /// Everyday use, where the registry has no name or another one.
        DeFacto = 2 "de-facto",
    }
}

/// What a port is usually used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// The port.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
    /// The primary name.
    pub name: &'static str,
    /// Further names, comma separated.
    pub aliases: &'static str,
    /// What it is, in words.
    pub description: &'static str,
    /// Where the name comes from.
    pub source: ServiceSource,
}

impl Service {
    /// Every name of the service, the primary one first.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.name).chain(self.aliases.split(',').filter(|alias| !alias.is_empty()))
    }
}

/// Names that people type and that the registry spells otherwise, for one port and protocol each.
const SPOKEN: [(&str, u16, Protocol); 13] = [
    ("rip", 520, Protocol::Udp),
    ("route", 520, Protocol::Udp),
    ("rtp", 5004, Protocol::Udp),
    ("rtp", 5004, Protocol::Tcp),
    ("sccp", 2000, Protocol::Tcp),
    ("msn", 1863, Protocol::Tcp),
    ("dns", 53, Protocol::Tcp),
    ("dns", 53, Protocol::Udp),
    ("radius", 1812, Protocol::Udp),
    ("postgres", 5432, Protocol::Tcp),
    ("http", 8080, Protocol::Tcp),
    ("http", 8008, Protocol::Tcp),
    ("pop", 110, Protocol::Tcp),
];

static BY_NAME: LazyLock<HashMap<String, Vec<(u16, Protocol)>>> = LazyLock::new(|| {
    let mut by_name = HashMap::with_capacity(16_000);
    for service in services() {
        // A registered name still finds a port that has an everyday one.
        for name in service.names() {
            remember(&mut by_name, name, service.port, service.protocol);
        }
    }
    for (name, port, protocol) in SPOKEN {
        remember(&mut by_name, name, port, protocol);
    }
    by_name
});

/// Those of the registry, then those of everyday use.
fn services() -> impl Iterator<Item = Service> {
    let iana = IANA.lines().filter_map(|line| row(line, ServiceSource::Iana));
    iana.chain(DE_FACTO.lines().filter_map(|line| row(line, ServiceSource::DeFacto)))
}

fn remember(by_name: &mut HashMap<String, Vec<(u16, Protocol)>>, name: &str, port: u16, protocol: Protocol) {
    let ports = by_name.entry(name.to_ascii_lowercase()).or_default();
    if !ports.contains(&(port, protocol)) {
        ports.push((port, protocol));
    }
}

/// One line of a file; `iana/` is checked by a test, so a line that does not parse cannot get here unseen.
fn row(line: &'static str, source: ServiceSource) -> Option<Service> {
    let mut columns = line.split('\t');
    let port = columns.next()?.parse().ok()?;
    let protocol = columns.next()?.parse().ok()?;
    let name = columns.next()?;
    let aliases = match source {
        ServiceSource::Iana => columns.next()?,
        ServiceSource::DeFacto => "",
    };
    let description = columns.next()?;
    Some(Service { port, protocol, name, aliases, description, source })
}

/// Bytes of an entry of an index: the port, and where its first line begins; both little-endian. `build.rs` writes it.
const ENTRY: usize = 2 + 4;

/// A file, and where the lines of each port are in it. Reading all lines would take a command that lasts a few milliseconds as
/// many.
struct Lines {
    text: &'static str,
    /// Entries in the order of their ports.
    index: &'static [u8],
    source: ServiceSource,
}

const BY_PORT: [Lines; 2] = [
    Lines {
        text: DE_FACTO,
        index: include_bytes!(concat!(env!("OUT_DIR"), "/de-facto.index")),
        source: ServiceSource::DeFacto,
    },
    Lines {
        text: IANA,
        index: include_bytes!(concat!(env!("OUT_DIR"), "/services.index")),
        source: ServiceSource::Iana,
    },
];

impl Lines {
    fn find(&self, port: u16, protocol: Protocol) -> Option<Service> {
        let (entries, _) = self.index.as_chunks::<ENTRY>();
        let at = entries.binary_search_by_key(&port, |[low, high, ..]| u16::from_le_bytes([*low, *high])).ok()?;
        let [_, _, begin @ ..] = *entries.get(at)?;
        let begin = usize::try_from(u32::from_le_bytes(begin)).ok()?;
        let lines = self.text.get(begin..)?.lines().map_while(|line| row(line, self.source));
        lines.take_while(|service| service.port == port).find(|service| service.protocol == protocol)
    }
}

/// Ports of which a thread remembers the services.
const REMEMBERED: usize = 64;

/// A port, and its service where it has one.
type Known = ((u16, Protocol), Option<Service>);

thread_local! {
    /// What was asked for lately: the many rows of an answer are of few services.
    static LATELY: RefCell<[Option<Known>; REMEMBERED]> = const { RefCell::new([None; REMEMBERED]) };
}

/// The usual service of a port.
pub fn by_port(port: u16, protocol: Protocol) -> Option<Service> {
    LATELY.with_borrow_mut(|lately| match &mut lately[usize::from(port) % REMEMBERED] {
        Some((known, service)) if *known == (port, protocol) => *service,
        place => {
            // The everyday name comes first and wins.
            let service = BY_PORT.iter().find_map(|lines| lines.find(port, protocol));
            *place = Some(((port, protocol), service));
            service
        }
    })
}

/// The ports that a name or alias stands for, upper or lower case; empty when nobody uses the name.
pub fn by_name(name: &str) -> &'static [(u16, Protocol)] {
    BY_NAME.get(&name.to_ascii_lowercase()).map_or(&[], Vec::as_slice)
}

/// The names that resemble `name` most, for an error's hint; at most three.
pub fn similar(name: &str) -> Vec<&'static str> {
    let wanted = name.to_ascii_lowercase();
    let mut close: Vec<(usize, &'static str)> = BY_NAME
        .keys()
        .filter(|known| known.len().abs_diff(wanted.len()) <= 2)
        .map(|known| (edit_distance(known, &wanted), known.as_str()))
        .filter(|(distance, _)| *distance <= 2)
        .collect();
    close.sort_unstable();
    close.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein distance in bytes: how many letters make one word the other.
pub fn edit_distance(left: &str, right: &str) -> usize {
    let right = right.as_bytes();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protocol::{Tcp, Udp};

    #[test]
    fn every_line_of_the_files_is_a_service() {
        for (file, source) in [(IANA, ServiceSource::Iana), (DE_FACTO, ServiceSource::DeFacto)] {
            for line in file.lines() {
                assert!(row(line, source).is_some(), "{line}");
            }
        }
    }

    #[test]
    fn each_port_has_its_line_and_the_everyday_one_wins() {
        let mut last: HashMap<(u16, Protocol), Service> = HashMap::new();
        last.extend(services().map(|service| ((service.port, service.protocol), service)));
        for protocol in Protocol::ALL.iter().copied() {
            for port in 0..=u16::MAX {
                assert_eq!(by_port(port, protocol), last.get(&(port, protocol)).copied(), "{port}/{protocol}");
            }
        }
    }

    #[test]
    fn the_usual_ports_have_names() {
        for (ports, protocols) in [
            (&[20, 21, 23, 25, 80, 110, 194, 443, 1863, 2000, 8008, 8080][..], &[Tcp][..]),
            (&[69, 520, 1812, 5004, 5060][..], &[Udp][..]),
            (&[53, 161, 531, 1433, 2948, 5432][..], &[Tcp, Udp][..]),
        ] {
            for port in ports {
                for protocol in protocols {
                    assert!(by_port(*port, *protocol).is_some(), "{port}/{protocol}");
                }
            }
        }
    }

    #[test]
    fn names_find_their_ports() {
        for (name, port, protocol) in [
            ("rip", 520, Udp),
            ("router", 520, Udp),
            ("route", 520, Udp),
            ("rtp", 5004, Udp),
            ("sccp", 2000, Tcp),
            ("cisco-sccp", 2000, Tcp),
            ("msn", 1863, Tcp),
            ("msnp", 1863, Tcp),
            ("HTTPS", 443, Tcp),
            ("ssh", 22, Tcp),
            ("postgresql", 5432, Tcp),
            ("kubelet", 10250, Tcp),
            ("websm", 9090, Tcp),
            ("prometheus", 9090, Tcp),
        ] {
            assert!(by_name(name).contains(&(port, protocol)), "{name}: {:?}", by_name(name));
        }
        assert!(by_name("no-such-service").is_empty());
    }

    #[test]
    fn an_everyday_name_wins_over_an_unused_registration() {
        let service = by_port(9090, Tcp).expect("a name");
        assert_eq!((service.name, service.source), ("prometheus", ServiceSource::DeFacto));
    }

    #[test]
    fn a_misspelt_name_gets_a_hint() {
        assert!(similar("htpps").contains(&"https"), "{:?}", similar("htpps"));
    }
}
