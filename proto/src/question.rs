//! What operators ask: the filters of each listing.

use ipnet::IpNet;

use crate::{
    InvalidMessage,
    address::{self, Scope},
    host::{HostSelector, bounded},
    port::{PortClass, PortRange},
    socket::{Direction, Family, Protocol, SocketState},
    time,
    time::Timestamp,
    wire,
};

mod changes;
mod summary;

pub use changes::ChangeQuestion;
pub use summary::SummaryQuestion;

/// Most values that one filter of a question may have.
pub const FILTER_VALUES_LIMIT: usize = 1_000;
/// Longest value of a filter, bytes.
pub const FILTER_TEXT_LIMIT: usize = 256;

/// Which sockets: the filters that listeners and sessions share. Empty means any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketFilter {
    /// Hosts.
    pub hosts: HostSelector,
    /// Classes of the service's port.
    pub classes: Vec<PortClass>,
    /// The service's port.
    pub ports: Vec<PortRange>,
    /// Transport protocols.
    pub protocols: Vec<Protocol>,
    /// Names or aliases of services.
    pub services: Vec<String>,
    /// Globs over process names.
    pub processes: Vec<String>,
    /// User names or numeric ids.
    pub users: Vec<String>,
    /// Families; [`Family::Dual`] sockets match IPv4 and IPv6.
    pub families: Vec<Family>,
}

impl SocketFilter {
    /// Whether it has any condition besides the hosts.
    pub fn is_about_sockets(&self) -> bool {
        let only_hosts = SocketFilter { hosts: self.hosts.clone(), ..SocketFilter::default() };
        *self != only_hosts
    }
}

/// What `ports` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PortQuestion {
    /// Which sockets.
    pub filter: SocketFilter,
    /// How far they can be reached.
    pub scopes: Vec<Scope>,
    /// As of this moment; absent means now.
    pub at: Option<Timestamp>,
    /// At most so many rows; absent means the server's limit.
    pub limit: Option<u32>,
}

/// The time that a question about sessions is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SessionTime {
    /// Those open now.
    #[default]
    Now,
    /// Those open at that moment.
    At(Timestamp),
    /// Those open at some time of the window.
    Within {
        /// Its beginning.
        since: Timestamp,
        /// Its end; absent means now.
        until: Option<Timestamp>,
    },
}

/// Whether the other ends of sessions are looked for in the fleet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pairing {
    /// When the answer has few sessions.
    #[default]
    OfFew,
    /// However many there are.
    Always,
    /// Not at all.
    Never,
}

impl Pairing {
    fn to_wire(self) -> i32 {
        let word = match self {
            Pairing::OfFew => wire::Pairing::Unspecified,
            Pairing::Always => wire::Pairing::Always,
            Pairing::Never => wire::Pairing::Never,
        };
        word.into()
    }

    fn from_wire(number: i32) -> Result<Pairing, InvalidMessage> {
        match wire::Pairing::try_from(number) {
            Ok(wire::Pairing::Unspecified) => Ok(Pairing::OfFew),
            Ok(wire::Pairing::Always) => Ok(Pairing::Always),
            Ok(wire::Pairing::Never) => Ok(Pairing::Never),
            Err(_) => Err(InvalidMessage::new("pairing", format!("{number} has no meaning"))),
        }
    }
}

/// How much is told of each session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SessionView {
    /// All of it.
    #[default]
    Full,
    /// Of each owner pid, process and uid alone: the rest of it is empty or absent.
    Basic,
}

impl SessionView {
    fn to_wire(self) -> i32 {
        let word = match self {
            SessionView::Full => wire::SessionView::Unspecified,
            SessionView::Basic => wire::SessionView::Basic,
        };
        word.into()
    }

    fn from_wire(number: i32) -> Result<SessionView, InvalidMessage> {
        match wire::SessionView::try_from(number) {
            Ok(wire::SessionView::Unspecified) => Ok(SessionView::Full),
            Ok(wire::SessionView::Basic) => Ok(SessionView::Basic),
            Err(_) => Err(InvalidMessage::new("view", format!("{number} has no meaning"))),
        }
    }
}

/// What `sessions` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionQuestion {
    /// Which sockets; ports, classes and services are those of the service's end.
    pub filter: SocketFilter,
    /// Directions.
    pub directions: Vec<Direction>,
    /// States when last seen.
    pub states: Vec<SocketState>,
    /// Prefixes that the peer's address lies in.
    pub peers: Vec<IpNet>,
    /// When.
    pub time: SessionTime,
    /// Only those that closed before this moment, and none that is open. With a window that begins, the pages of a long
    /// time: each session closes once.
    pub closed_before: Option<Timestamp>,
    /// At most so many rows; absent means the server's limit.
    pub limit: Option<u32>,
    /// Whether their other ends are looked for.
    pub pairing: Pairing,
    /// How much is told of each.
    pub view: SessionView,
}

/// What `hosts --coverage` asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CoverageQuestion {
    /// Hosts.
    pub hosts: HostSelector,
    /// Beginning of the window; absent means all time.
    pub since: Option<Timestamp>,
    /// End of the window; absent means now.
    pub until: Option<Timestamp>,
    /// At most so many rows; absent means the server's limit.
    pub limit: Option<u32>,
}

fn numbers<W: Copy>(words: Vec<W>, number: impl Fn(W) -> i32) -> Vec<i32> {
    words.into_iter().map(number).collect()
}

fn each<I, O>(
    field: &'static str,
    values: Vec<I>,
    parse: impl Fn(I) -> Result<O, InvalidMessage>,
) -> Result<Vec<O>, InvalidMessage> {
    if values.len() > FILTER_VALUES_LIMIT {
        return Err(InvalidMessage::new(field, format!("{} values are more than {FILTER_VALUES_LIMIT}", values.len())));
    }
    values.into_iter().map(parse).collect()
}

fn texts(field: &'static str, values: Vec<String>) -> Result<Vec<String>, InvalidMessage> {
    each(field, values, |text| bounded(field, text, FILTER_TEXT_LIMIT))
}

fn hosts(selector: Option<wire::HostSelector>) -> Result<HostSelector, InvalidMessage> {
    let selector = HostSelector::from(selector.unwrap_or_default());
    if selector.labels.len() > FILTER_VALUES_LIMIT {
        return Err(InvalidMessage::new("hosts.labels", format!("more than {FILTER_VALUES_LIMIT}")));
    }
    Ok(HostSelector { globs: texts("hosts.globs", selector.globs)?, labels: selector.labels })
}

/// The hosts of a [`wire::ListHostsRequest`].
pub fn hosts_question(request: wire::ListHostsRequest) -> Result<HostSelector, InvalidMessage> {
    hosts(request.hosts)
}

fn limit(limit: u32) -> Option<u32> {
    (limit != 0).then_some(limit)
}

impl From<PortQuestion> for wire::ListPortsRequest {
    fn from(question: PortQuestion) -> wire::ListPortsRequest {
        let filter = question.filter;
        wire::ListPortsRequest {
            hosts: Some(filter.hosts.into()),
            classes: numbers(filter.classes, PortClass::number),
            ports: filter.ports.into_iter().map(Into::into).collect(),
            protocols: numbers(filter.protocols, Protocol::number),
            services: filter.services,
            processes: filter.processes,
            users: filter.users,
            scopes: numbers(question.scopes, Scope::number),
            families: numbers(filter.families, Family::number),
            at: question.at.map(Into::into),
            limit: question.limit.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::ListPortsRequest> for PortQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::ListPortsRequest) -> Result<PortQuestion, InvalidMessage> {
        Ok(PortQuestion {
            filter: SocketFilter {
                hosts: hosts(request.hosts)?,
                classes: each("classes", request.classes, |n| PortClass::from_wire("classes", n))?,
                ports: each("ports", request.ports, PortRange::try_from)?,
                protocols: each("protocols", request.protocols, |n| Protocol::from_wire("protocols", n))?,
                services: texts("services", request.services)?,
                processes: texts("processes", request.processes)?,
                users: texts("users", request.users)?,
                families: each("families", request.families, |n| Family::from_wire("families", n))?,
            },
            scopes: each("scopes", request.scopes, |n| Scope::from_wire("scopes", n))?,
            at: time::optional("at", request.at)?,
            limit: limit(request.limit),
        })
    }
}

impl From<SessionQuestion> for wire::ListSessionsRequest {
    fn from(question: SessionQuestion) -> wire::ListSessionsRequest {
        let filter = question.filter;
        let (at, since, until) = match question.time {
            SessionTime::Now => (None, None, None),
            SessionTime::At(at) => (Some(at), None, None),
            SessionTime::Within { since, until } => (None, Some(since), until),
        };
        wire::ListSessionsRequest {
            hosts: Some(filter.hosts.into()),
            classes: numbers(filter.classes, PortClass::number),
            ports: filter.ports.into_iter().map(Into::into).collect(),
            protocols: numbers(filter.protocols, Protocol::number),
            services: filter.services,
            processes: filter.processes,
            users: filter.users,
            directions: numbers(question.directions, Direction::number),
            states: numbers(question.states, SocketState::number),
            peers: question.peers.into_iter().map(prefix_to_wire).collect(),
            families: numbers(filter.families, Family::number),
            since: since.map(Into::into),
            until: until.map(Into::into),
            at: at.map(Into::into),
            limit: question.limit.unwrap_or(0),
            closed_before: question.closed_before.map(Into::into),
            pairing: question.pairing.to_wire(),
            view: question.view.to_wire(),
        }
    }
}

impl TryFrom<wire::ListSessionsRequest> for SessionQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::ListSessionsRequest) -> Result<SessionQuestion, InvalidMessage> {
        let at = time::optional("at", request.at)?;
        let since = time::optional("since", request.since)?;
        let until = time::optional("until", request.until)?;
        Ok(SessionQuestion {
            filter: SocketFilter {
                hosts: hosts(request.hosts)?,
                classes: each("classes", request.classes, |n| PortClass::from_wire("classes", n))?,
                ports: each("ports", request.ports, PortRange::try_from)?,
                protocols: each("protocols", request.protocols, |n| Protocol::from_wire("protocols", n))?,
                services: texts("services", request.services)?,
                processes: texts("processes", request.processes)?,
                users: texts("users", request.users)?,
                families: each("families", request.families, |n| Family::from_wire("families", n))?,
            },
            directions: each("directions", request.directions, |n| Direction::from_wire("directions", n))?,
            states: each("states", request.states, |n| SocketState::from_wire("states", n))?,
            peers: each("peers", request.peers, |peer| prefix("peers", peer))?,
            time: session_time(at, since, until)?,
            closed_before: time::optional("closed_before", request.closed_before)?,
            limit: limit(request.limit),
            pairing: Pairing::from_wire(request.pairing)?,
            view: SessionView::from_wire(request.view)?,
        })
    }
}

fn session_time(
    at: Option<Timestamp>,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
) -> Result<SessionTime, InvalidMessage> {
    match (at, since, until) {
        (None, None, None) => Ok(SessionTime::Now),
        (Some(at), None, None) => Ok(SessionTime::At(at)),
        (None, Some(since), Some(until)) if since > until => Err(InvalidMessage::new("since", "lies after until")),
        (None, Some(since), until) => Ok(SessionTime::Within { since, until }),
        (None, None, Some(_)) => Err(InvalidMessage::new("until", "needs since")),
        (Some(_), _, _) => Err(InvalidMessage::new("at", "excludes since and until")),
    }
}

pub(crate) fn prefix_to_wire(prefix: IpNet) -> wire::Prefix {
    wire::Prefix { address: address::to_bytes(prefix.addr()), length: prefix.prefix_len().into() }
}

/// A prefix, its address normalised and cut to its length.
pub(crate) fn prefix(field: &'static str, prefix: wire::Prefix) -> Result<IpNet, InvalidMessage> {
    let address = address::from_bytes(field, &prefix.address)?;
    u8::try_from(prefix.length)
        .ok()
        .and_then(|length| IpNet::new(address, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| InvalidMessage::new(field, format!("{address}/{} is no prefix", prefix.length)))
}

impl From<CoverageQuestion> for wire::ListCoverageRequest {
    fn from(question: CoverageQuestion) -> wire::ListCoverageRequest {
        wire::ListCoverageRequest {
            hosts: Some(question.hosts.into()),
            since: question.since.map(Into::into),
            until: question.until.map(Into::into),
            limit: question.limit.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::ListCoverageRequest> for CoverageQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::ListCoverageRequest) -> Result<CoverageQuestion, InvalidMessage> {
        Ok(CoverageQuestion {
            hosts: hosts(request.hosts)?,
            since: time::optional("since", request.since)?,
            until: time::optional("until", request.until)?,
            limit: limit(request.limit),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_the_wire() {
        let question = SessionQuestion {
            filter: SocketFilter {
                classes: vec![PortClass::WellKnown],
                services: vec!["rip".to_owned()],
                ports: vec!["80-90".parse().expect("a range")],
                ..SocketFilter::default()
            },
            directions: vec![Direction::In],
            peers: vec!["203.0.113.0/24".parse().expect("a prefix"), "2001:db8::/48".parse().expect("a prefix")],
            time: SessionTime::Within { since: Timestamp::from_micros(5), until: None },
            closed_before: Some(Timestamp::from_micros(7)),
            ..SessionQuestion::default()
        };
        for pairing in [Pairing::OfFew, Pairing::Always, Pairing::Never] {
            let question = SessionQuestion { pairing, ..question.clone() };
            let wire = wire::ListSessionsRequest::from(question.clone());
            assert_eq!(SessionQuestion::try_from(wire), Ok(question));
        }
        assert!(Pairing::from_wire(3).is_err());
        for view in [SessionView::Full, SessionView::Basic] {
            let question = SessionQuestion { view, ..question.clone() };
            let wire = wire::ListSessionsRequest::from(question.clone());
            assert_eq!(SessionQuestion::try_from(wire), Ok(question));
        }
        assert!(SessionView::from_wire(2).is_err());
    }

    #[test]
    fn contradictory_times_are_refused() {
        let [early, late] = [1, 2].map(|us| Some(Timestamp::from_micros(us)));
        assert!(session_time(None, late, early).is_err());
        assert!(session_time(None, None, late).is_err());
        assert!(session_time(early, late, None).is_err());
    }

    #[test]
    fn a_filter_has_a_bounded_number_of_values() {
        let request = wire::ListPortsRequest { classes: vec![1; FILTER_VALUES_LIMIT + 1], ..Default::default() };
        assert!(PortQuestion::try_from(request).is_err());
    }
}
