//! Whether a socket is one that a question means. Decided here for every engine; an engine may leave rows out earlier.

use std::collections::HashSet;

use fleetsock_proto::{
    port::{PortClass, PortRange},
    question::SocketFilter,
    service,
    socket::{Family, Protocol},
};

use super::HistoryError;

/// A pattern over names: `*`, `?` and `[...]` as in a shell.
#[derive(Debug, Clone)]
pub struct Glob(glob::Pattern);

impl Glob {
    /// The pattern; what is wrong with a bad one is for whoever asked.
    pub fn parse(text: &str) -> Result<Glob, HistoryError> {
        glob::Pattern::new(text)
            .map(Glob)
            .map_err(|error| HistoryError::Invalid(format!("`{text}` is no pattern: {}", error.msg)))
    }

    /// The text that was parsed.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// Whether it stands for one name only.
    pub fn is_literal(&self) -> bool {
        !self.0.as_str().contains(['*', '?', '['])
    }

    /// Whether a name matches.
    pub fn matches(&self, name: &str) -> bool {
        self.0.matches(name)
    }
}

/// The process and user of an owner, as filters see them.
#[derive(Debug, Clone, Copy)]
pub struct OwnerNames<'a> {
    /// Command name.
    pub process: &'a str,
    /// User name; may be empty.
    pub user: &'a str,
    /// Numeric user id.
    pub uid: u32,
}

/// A [`SocketFilter`], ready to be held against many sockets.
#[derive(Debug)]
pub struct Matcher {
    classes: Vec<PortClass>,
    ports: Vec<PortRange>,
    protocols: Vec<Protocol>,
    services: Option<HashSet<(u16, Protocol)>>,
    processes: Vec<Glob>,
    users: Vec<String>,
    families: Vec<Family>,
}

impl Matcher {
    /// The filter, unless it names a service that no port has.
    pub fn new(filter: &SocketFilter) -> Result<Matcher, HistoryError> {
        Ok(Matcher {
            classes: filter.classes.clone(),
            ports: filter.ports.clone(),
            protocols: filter.protocols.clone(),
            services: services(&filter.services)?,
            processes: filter.processes.iter().map(|text| Glob::parse(text)).collect::<Result<_, _>>()?,
            users: filter.users.clone(),
            families: filter.families.clone(),
        })
    }

    /// The ports outside of which nothing matches.
    pub fn port_bounds(&self) -> (u16, u16) {
        let mut bounds = (0, u16::MAX);
        let mut narrow = |first: Option<u16>, last: Option<u16>| {
            bounds = (bounds.0.max(first.unwrap_or(0)), bounds.1.min(last.unwrap_or(u16::MAX)));
        };
        let classes: Vec<PortRange> = self.classes.iter().map(|class| class.range()).collect();
        for ranges in [&classes, &self.ports].into_iter().filter(|ranges| !ranges.is_empty()) {
            narrow(ranges.iter().map(|range| range.first()).min(), ranges.iter().map(|range| range.last()).max());
        }
        if let Some(services) = &self.services {
            let ports = || services.iter().map(|(port, _)| *port);
            narrow(ports().min(), ports().max());
        }
        bounds
    }

    /// Whether protocol, family and the service's port match.
    pub fn matches_socket(&self, protocol: Protocol, family: Family, port: u16) -> bool {
        (self.classes.is_empty() || self.classes.contains(&PortClass::of(protocol, port)))
            // What is in place of the port of a raw socket is none.
            && (self.ports.is_empty() || protocol.has_ports() && self.ports.iter().any(|range| range.contains(port)))
            && (self.protocols.is_empty() || self.protocols.contains(&protocol))
            && self.services.as_ref().is_none_or(|services| services.contains(&(port, protocol)))
            && (self.families.is_empty() || self.families.iter().any(|wanted| reaches(family, *wanted)))
    }

    /// The same of a port of which only the class is known, as far as that tells.
    pub fn matches_class(&self, protocol: Protocol, family: Family, class: PortClass) -> bool {
        (self.classes.is_empty() || self.classes.contains(&class))
            && (self.protocols.is_empty() || self.protocols.contains(&protocol))
            && (self.families.is_empty() || self.families.iter().any(|wanted| reaches(family, *wanted)))
    }

    /// Whether a class is not enough.
    pub fn asks_for_ports(&self) -> bool {
        !self.ports.is_empty() || self.services.is_some()
    }

    /// Whether owners have to be looked at.
    pub fn asks_for_owners(&self) -> bool {
        !self.processes.is_empty() || !self.users.is_empty()
    }

    /// Whether any one owner has a wanted process and a wanted user.
    pub fn matches_owners<'a>(&self, mut owners: impl Iterator<Item = OwnerNames<'a>>) -> bool {
        !self.asks_for_owners() || owners.any(|owner| self.matches_owner(owner))
    }

    fn matches_owner(&self, owner: OwnerNames<'_>) -> bool {
        let uid = || owner.uid.to_string();
        (self.processes.is_empty() || self.processes.iter().any(|glob| glob.matches(owner.process)))
            && (self.users.is_empty() || self.users.iter().any(|user| user == owner.user || *user == uid()))
    }
}

/// A dual-stack listener is reached by both families.
fn reaches(family: Family, wanted: Family) -> bool {
    family == wanted || family == Family::Dual
}

fn services(names: &[String]) -> Result<Option<HashSet<(u16, Protocol)>>, HistoryError> {
    if names.is_empty() {
        return Ok(None);
    }
    let mut ports = HashSet::new();
    for name in names {
        let known = service::by_name(name);
        if known.is_empty() {
            let hint = match service::similar(name).as_slice() {
                [] => "ask for the port instead".to_owned(),
                similar => format!("did you mean `{}`?", similar.join("` or `")),
            };
            return Err(HistoryError::Invalid(format!("no port is known for the service `{name}`; {hint}")));
        }
        ports.extend(known);
    }
    Ok(Some(ports))
}

#[cfg(test)]
mod tests {
    use super::*;
    use Protocol::{Packet, Raw, Tcp, Udp};

    fn matcher(change: impl FnOnce(&mut SocketFilter)) -> Matcher {
        let mut filter = SocketFilter::default();
        change(&mut filter);
        Matcher::new(&filter).unwrap()
    }

    #[test]
    fn an_empty_filter_matches_everything() {
        let all = matcher(|_| {});
        assert!(all.matches_socket(Tcp, Family::Ipv4, 0) && all.matches_owners(std::iter::empty()));
        assert_eq!(all.port_bounds(), (0, u16::MAX));
    }

    #[test]
    fn conditions_of_different_kinds_must_all_hold() {
        let both = matcher(|filter| {
            filter.classes = vec![PortClass::WellKnown];
            filter.ports = vec!["443".parse().unwrap(), "8000-9000".parse().unwrap()];
        });
        assert!(both.matches_socket(Tcp, Family::Ipv4, 443));
        assert!(!both.matches_socket(Tcp, Family::Ipv4, 8080));
        assert_eq!(both.port_bounds(), (443, 1023));
    }

    #[test]
    fn what_has_no_port_is_found_by_its_class_and_its_service_but_not_by_a_number() {
        let by_number = matcher(|filter| filter.ports = vec!["1".parse().unwrap()]);
        let well_known = matcher(|filter| filter.classes = vec![PortClass::WellKnown]);
        for port in [&by_number, &well_known] {
            assert!(port.matches_socket(Tcp, Family::Ipv4, 1) && !port.matches_socket(Raw, Family::Ipv4, 1));
        }
        let portless = matcher(|filter| filter.classes = vec![PortClass::Portless]);
        assert!(portless.matches_socket(Packet, Family::Packet, 3) && !portless.matches_socket(Tcp, Family::Ipv4, 3));
        assert_eq!(portless.port_bounds(), (0, u16::MAX));
        let icmp = matcher(|filter| filter.services = vec!["icmp".to_owned()]);
        assert!(icmp.matches_socket(Raw, Family::Ipv4, 1) && !icmp.matches_socket(Tcp, Family::Ipv4, 1));
    }

    #[test]
    fn a_service_is_a_port_with_its_protocol() {
        let rip = matcher(|filter| filter.services = vec!["RIP".to_owned()]);
        assert!(rip.matches_socket(Udp, Family::Ipv4, 520));
        assert!(!rip.matches_socket(Tcp, Family::Ipv4, 520), "520/tcp is another service");
        assert_eq!(rip.port_bounds(), (520, 520));
        let filter = SocketFilter { services: vec!["htpps".to_owned()], ..SocketFilter::default() };
        let error = Matcher::new(&filter).unwrap_err().to_string();
        assert!(error.contains("`htpps`") && error.contains("`https`"), "{error}");
    }

    #[test]
    fn a_dual_stack_listener_is_found_by_either_family() {
        for wanted in [Family::Ipv4, Family::Ipv6] {
            let one = matcher(|filter| filter.families = vec![wanted]);
            assert!(one.matches_socket(Tcp, Family::Dual, 80) && one.matches_socket(Tcp, wanted, 80));
        }
        let v4 = matcher(|filter| filter.families = vec![Family::Ipv4]);
        assert!(!v4.matches_socket(Tcp, Family::Ipv6, 80));
    }

    #[test]
    fn process_and_user_must_be_of_one_owner() {
        let one = matcher(|filter| {
            filter.processes = vec!["ngin?".to_owned()];
            filter.users = vec!["33".to_owned()];
        });
        let owner = |process, user, uid| OwnerNames { process, user, uid };
        assert!(one.matches_owners([owner("nginx", "www-data", 33)].into_iter()));
        assert!(!one.matches_owners([owner("nginx", "root", 0), owner("sshd", "www-data", 33)].into_iter()));
        assert!(!one.matches_owners(std::iter::empty()));
    }
}
