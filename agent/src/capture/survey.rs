//! What a walk of network namespaces is to look at, and what it told.
//!
//! The kernel keeps the TCP connections of all namespaces in one table, and a dump of one namespace reads all of it. So
//! dumping every namespace costs namespaces times sockets, and is done only when it must be: [`Extent::of`] says when.

use std::{collections::BTreeMap, io};

use fleetsock_proto::{
    socket::{Protocol, SocketState},
    tcp::TcpCounts,
};
use rustix::io::Errno;

use super::{CaptureError, WalkReport, portless::Paths};
use crate::namespaces::EnterError;

/// How much of a namespace is walked, or was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Coverage {
    /// TCP in LISTEN, and all of what is not TCP.
    Listeners,
    /// TCP connections too.
    Everything,
}

impl Coverage {
    /// Whether a walk of this much would have shown such a socket, so that its absence means something.
    pub fn includes(self, protocol: Protocol, state: SocketState) -> bool {
        self == Coverage::Everything || protocol != Protocol::Tcp || state == SocketState::Listen
    }
}

/// Why a survey is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// Time passed, and events told of nothing that a walk has to look at.
    Steady,
    /// Connections were opened that are still open: only a walk tells their cookies, owners' inodes and control groups.
    Opened,
    /// Everything is to be checked, or something was lost.
    Referee,
}

/// What tells of TCP connections between two surveys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// Events of the kernel, for all namespaces.
    FromEvents,
    /// Nothing but walks.
    FromWalks,
}

/// Which states of TCP a walk of everything asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum States {
    /// Those of listeners and sessions.
    Followed,
    /// SYN_RECV and bound sockets too; these and TIME_WAIT are counted.
    All,
}

/// How much is walked of the agent's own namespace and of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Of its own.
    pub home: Coverage,
    /// Of each other one.
    pub foreign: Coverage,
    /// And in which states.
    pub states: States,
}

impl Extent {
    /// Where events tell of connections, nobody's are walked without a reason, and others' by the referee only.
    pub fn of(occasion: Occasion, connections: Connections) -> Extent {
        use Coverage::{Everything, Listeners};
        let (home, foreign) = match (occasion, connections) {
            (Occasion::Steady, Connections::FromEvents) => (Listeners, Listeners),
            (Occasion::Opened, Connections::FromEvents) => (Everything, Listeners),
            (Occasion::Referee, _) | (_, Connections::FromWalks) => (Everything, Everything),
        };
        Extent { home, foreign, states: States::Followed }
    }
}

/// A namespace that could not be walked.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    /// It could not be entered.
    #[error(transparent)]
    Enter(#[from] EnterError),
    /// Its sockets could not be counted.
    #[error("cannot count the sockets of network namespace {netns}: {cause}")]
    Count {
        /// Its inode number.
        netns: u64,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its table could not be read.
    #[error("network namespace {netns}: {cause}")]
    Walk {
        /// Its inode number.
        netns: u64,
        /// Why.
        #[source]
        cause: CaptureError,
    },
}

impl SurveyError {
    /// Whether the namespace is about to vanish or did: no failure.
    pub fn is_gone(&self) -> bool {
        matches!(self, SurveyError::Enter(EnterError::Gone { .. }))
    }

    /// Whether it takes a privilege that the agent lacks.
    pub fn is_denied(&self) -> bool {
        matches!(self, SurveyError::Enter(EnterError::Refused { cause: Errno::PERM | Errno::ACCESS, .. }))
    }
}

/// What a walk of one namespace told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// How much it saw.
    pub coverage: Coverage,
    /// What it could not tell.
    pub report: WalkReport,
    /// Why it saw no raw and packet sockets: some kernels cannot list them.
    pub portless: Result<(), CaptureError>,
    /// And why not those of SCTP and DCCP, where the kernel has them.
    pub others: Result<(), CaptureError>,
    /// And why no UNIX sockets, where they were wanted.
    pub unix: Result<(), CaptureError>,
}

impl Walked {
    /// Whether such a socket, if it is open, is among the rows.
    pub(super) fn shows(&self, protocol: Protocol, state: SocketState) -> bool {
        self.report == WalkReport::default()
            && self.coverage.includes(protocol, state)
            && match protocol {
                Protocol::Raw | Protocol::Packet => self.portless.is_ok(),
                Protocol::Sctp | Protocol::Dccp => self.others.is_ok(),
                Protocol::Unix => self.unix.is_ok(),
                Protocol::Tcp | Protocol::Udp => true,
            }
    }
}

/// What a survey told and what it could not.
#[derive(Debug, Default)]
pub struct SurveyReport {
    /// The namespaces that were walked.
    pub walked: BTreeMap<u64, Walked>,
    /// Those that were not, and why; the agent's own may be among them.
    pub failed: Vec<(u64, SurveyError)>,
    /// There was no thread to go into other namespaces.
    pub stranded: Option<io::Error>,
    /// What the UNIX sockets among the rows are bound to.
    pub paths: Paths,
    /// TCP sockets that are not followed, when they were counted. In another namespace in which all TCP sockets listen
    /// only TIME_WAIT is.
    pub counts: Option<TcpCounts>,
}

impl SurveyReport {
    /// Whether such a socket of this namespace, if it is open, is among the rows: only then its absence means that it
    /// closed.
    pub fn would_show(&self, netns: u64, protocol: Protocol, state: SocketState) -> bool {
        self.walked.get(&netns).is_some_and(|walked| walked.shows(protocol, state))
    }

    /// Whether nothing was missed of what was walked. A namespace that could not be entered was not walked.
    pub fn is_whole(&self) -> bool {
        let entered = |error: &SurveyError| !matches!(error, SurveyError::Enter(_));
        self.stranded.is_none()
            && !self.failed.iter().any(|(_, error)| entered(error))
            && self.walked.values().all(|walked| walked.report == WalkReport::default())
    }

    /// Whether everything was walked, of all namespaces, and nothing was missed.
    pub fn shows_all(&self) -> bool {
        let whole = |walked: &Walked| walked.coverage == Coverage::Everything && walked.report == WalkReport::default();
        let failed = self.failed.iter().any(|(_, error)| !error.is_gone());
        self.stranded.is_none() && !failed && self.walked.values().all(whole)
    }

    /// Whether TCP connections of any namespace were walked.
    pub fn has_connections(&self) -> bool {
        self.walked.values().any(|walked| walked.coverage == Coverage::Everything)
    }

    /// Why raw and packet sockets of the namespaces were not seen, one reason for all.
    pub fn portless_unseen(&self) -> Option<CaptureError> {
        self.walked.values().find_map(|walked| walked.portless.err())
    }

    /// Why sockets of SCTP and DCCP were not seen, one reason for all.
    pub fn others_unseen(&self) -> Option<CaptureError> {
        self.walked.values().find_map(|walked| walked.others.err())
    }

    /// Why UNIX sockets of the namespaces were not seen, one reason for all.
    pub fn unix_unseen(&self) -> Option<CaptureError> {
        self.walked.values().find_map(|walked| walked.unix.err())
    }

    /// What all walks together could not tell.
    pub fn total(&self) -> WalkReport {
        let mut total = WalkReport::default();
        for walked in self.walked.values() {
            total += walked.report;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_walked_when_nothing_else_tells_of_them_and_others_by_the_referee() {
        use Connections::{FromEvents, FromWalks};
        use Coverage::{Everything, Listeners};
        use Occasion::{Opened, Referee, Steady};
        for (occasion, connections, home, foreign) in [
            (Steady, FromEvents, Listeners, Listeners),
            (Opened, FromEvents, Everything, Listeners),
            (Referee, FromEvents, Everything, Everything),
            (Steady, FromWalks, Everything, Everything),
            (Opened, FromWalks, Everything, Everything),
            (Referee, FromWalks, Everything, Everything),
        ] {
            let expected = Extent { home, foreign, states: States::Followed };
            assert_eq!(Extent::of(occasion, connections), expected, "{occasion:?} {connections:?}");
        }
    }

    #[test]
    fn absence_means_something_only_where_a_whole_walk_looked() {
        let cut = WalkReport { interrupted: 1, ..WalkReport::default() };
        let walked = |coverage, report| Walked { coverage, report, portless: Ok(()), others: Ok(()), unix: Ok(()) };
        let report = SurveyReport {
            walked: BTreeMap::from([
                (1, walked(Coverage::Everything, WalkReport::default())),
                (2, walked(Coverage::Listeners, WalkReport::default())),
                (3, walked(Coverage::Everything, cut)),
            ]),
            ..SurveyReport::default()
        };
        for (netns, listener, udp, connection) in
            [(1, true, true, true), (2, true, true, false), (3, false, false, false), (4, false, false, false)]
        {
            let shows = |protocol, state| report.would_show(netns, protocol, state);
            assert_eq!(shows(Protocol::Tcp, SocketState::Listen), listener, "{netns}");
            assert_eq!(shows(Protocol::Udp, SocketState::Established), udp, "{netns}");
            assert_eq!(shows(Protocol::Tcp, SocketState::Established), connection, "{netns}");
        }
        assert_eq!(report.total(), cut);
    }
}
