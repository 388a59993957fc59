//! What `changes` asks.

use ipnet::IpNet;

use super::{SocketFilter, each, hosts, limit, numbers, prefix, prefix_to_wire, texts};
use crate::{
    InvalidMessage,
    address::Scope,
    change::{ChangeKind, ChangeSubject},
    port::{PortClass, PortRange},
    socket::{Direction, Family, Protocol},
    time,
    time::Timestamp,
    wire,
};

/// What `changes` asks. Empty means any, but for the subjects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChangeQuestion {
    /// Which sockets. An owner that changed matches when the one before or the one after does.
    pub filter: SocketFilter,
    /// Scopes of listeners; with it only listeners are meant.
    pub scopes: Vec<Scope>,
    /// Directions of sessions; with it only sessions are meant.
    pub directions: Vec<Direction>,
    /// Prefixes that the peer's address lies in; with it only sessions are meant.
    pub peers: Vec<IpNet>,
    /// What happened.
    pub kinds: Vec<ChangeKind>,
    /// To what; empty means to listeners.
    pub subjects: Vec<ChangeSubject>,
    /// Beginning of the window; absent means all time.
    pub since: Option<Timestamp>,
    /// End of the window; absent means no end.
    pub until: Option<Timestamp>,
    /// Only openings of what is new: nothing like it was there since then. Needs `since`, and lies not after it.
    pub baseline: Option<Timestamp>,
    /// At most so many rows; absent means the server's limit.
    pub limit: Option<u32>,
}

impl ChangeQuestion {
    /// Whether changes of this sort of thing are meant.
    pub fn is_about(&self, subject: ChangeSubject) -> bool {
        let named = match subject {
            ChangeSubject::Listener => self.subjects.is_empty() || self.subjects.contains(&subject),
            ChangeSubject::Session | ChangeSubject::Host => self.subjects.contains(&subject),
        };
        let (no_scope, no_peer) = (self.scopes.is_empty(), self.directions.is_empty() && self.peers.is_empty());
        named
            && match subject {
                ChangeSubject::Listener => no_peer,
                ChangeSubject::Session => no_scope,
                ChangeSubject::Host => {
                    no_scope && no_peer && self.baseline.is_none() && !self.filter.is_about_sockets()
                }
            }
    }

    /// Whether changes of this kind are meant.
    pub fn wants(&self, kind: ChangeKind) -> bool {
        let is_new = self.baseline.is_none() || kind == ChangeKind::Opened;
        is_new && (self.kinds.is_empty() || self.kinds.contains(&kind))
    }
}

impl From<ChangeQuestion> for wire::ListChangesRequest {
    fn from(question: ChangeQuestion) -> wire::ListChangesRequest {
        let filter = question.filter;
        wire::ListChangesRequest {
            hosts: Some(filter.hosts.into()),
            classes: numbers(filter.classes, PortClass::number),
            ports: filter.ports.into_iter().map(Into::into).collect(),
            protocols: numbers(filter.protocols, Protocol::number),
            services: filter.services,
            processes: filter.processes,
            users: filter.users,
            families: numbers(filter.families, Family::number),
            scopes: numbers(question.scopes, Scope::number),
            directions: numbers(question.directions, Direction::number),
            peers: question.peers.into_iter().map(prefix_to_wire).collect(),
            kinds: numbers(question.kinds, ChangeKind::number),
            subjects: numbers(question.subjects, ChangeSubject::number),
            since: question.since.map(Into::into),
            until: question.until.map(Into::into),
            baseline: question.baseline.map(Into::into),
            limit: question.limit.unwrap_or(0),
        }
    }
}

impl TryFrom<wire::ListChangesRequest> for ChangeQuestion {
    type Error = InvalidMessage;

    fn try_from(request: wire::ListChangesRequest) -> Result<ChangeQuestion, InvalidMessage> {
        let since = time::optional("since", request.since)?;
        let until = time::optional("until", request.until)?;
        let baseline = time::optional("baseline", request.baseline)?;
        if let (Some(since), Some(until)) = (since, until)
            && since > until
        {
            return Err(InvalidMessage::new("since", "lies after until"));
        }
        match (baseline, since) {
            (Some(_), None) => return Err(InvalidMessage::new("baseline", "needs since")),
            (Some(baseline), Some(since)) if baseline > since => {
                return Err(InvalidMessage::new("baseline", "lies after since"));
            }
            _ => {}
        }
        Ok(ChangeQuestion {
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
            directions: each("directions", request.directions, |n| Direction::from_wire("directions", n))?,
            peers: each("peers", request.peers, |peer| prefix("peers", peer))?,
            kinds: each("kinds", request.kinds, |n| ChangeKind::from_wire("kinds", n))?,
            subjects: each("subjects", request.subjects, |n| ChangeSubject::from_wire("subjects", n))?,
            since,
            until,
            baseline,
            limit: limit(request.limit),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_survives_the_wire() {
        let question = ChangeQuestion {
            filter: SocketFilter { users: vec!["root".to_owned()], ..SocketFilter::default() },
            scopes: vec![Scope::Any],
            directions: vec![Direction::Out],
            peers: vec!["203.0.113.0/24".parse().expect("a prefix")],
            kinds: vec![ChangeKind::OwnerChanged],
            subjects: vec![ChangeSubject::Listener, ChangeSubject::Host],
            since: Some(Timestamp::from_micros(5)),
            until: Some(Timestamp::from_micros(6)),
            baseline: Some(Timestamp::from_micros(4)),
            limit: Some(3),
        };
        assert_eq!(ChangeQuestion::try_from(wire::ListChangesRequest::from(question.clone())), Ok(question.clone()));
        for since in [None, Some(Timestamp::from_micros(3))] {
            let baseless = ChangeQuestion { since, ..question.clone() };
            assert!(ChangeQuestion::try_from(wire::ListChangesRequest::from(baseless)).is_err());
        }
        let turned = ChangeQuestion { since: question.until, until: question.since, ..question };
        assert!(ChangeQuestion::try_from(wire::ListChangesRequest::from(turned)).is_err());
    }

    #[test]
    fn a_filter_that_only_one_sort_of_thing_has_leaves_the_others_out() {
        use ChangeSubject::{Host, Listener, Session};
        let all = ChangeQuestion { subjects: vec![Listener, Session, Host], ..ChangeQuestion::default() };
        let about = |question: &ChangeQuestion| [Listener, Session, Host].map(|subject| question.is_about(subject));
        assert_eq!(about(&ChangeQuestion::default()), [true, false, false]);
        assert_eq!(about(&all), [true; 3]);
        assert_eq!(about(&ChangeQuestion { scopes: vec![Scope::Any], ..all.clone() }), [true, false, false]);
        assert_eq!(about(&ChangeQuestion { directions: vec![Direction::In], ..all.clone() }), [false, true, false]);
        let filter = SocketFilter { users: vec!["root".to_owned()], ..SocketFilter::default() };
        assert_eq!(about(&ChangeQuestion { filter, ..all }), [true, true, false], "a host has no user");
    }
}
