//! Walks of all network namespaces of the host.
//!
//! The kernel keeps the TCP connections of all namespaces in one table, and a dump of one namespace reads all of it. So
//! dumping every namespace costs namespaces times sockets, and is done only when it must be: [`Extent::of`] says when.
//! Listeners are kept apart and cost little. Of each namespace that is not the agent's own the kernel is asked first how
//! many sockets it has ([`Census`]); what it has none of is not dumped, and where all TCP sockets turn out to be listeners,
//! the large table is not read either.
//!
//! Nothing of a foreign namespace stays open after a survey (see [`crate::namespaces`]).

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use fleetsock_proto::{
    socket::{Protocol, SocketState},
    tcp::TcpCounts,
};
use rustix::{io::Errno, net::netlink::SOCK_DIAG, system::uname};

use super::{
    CaptureError, SocketRow, WalkReport, Walker,
    census::Census,
    counted::{Counted, Telling},
    diag::{Queries, Query},
    netlink::Netlink,
    portless::{Paths, Wanted, append_portless, append_unix},
    walker::{Catch, WALK_ROWS_LIMIT, append},
};
use crate::namespaces::{EnterError, Namespace, Namespaces, Visitor};

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

/// What a walk of one namespace told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walked {
    /// How much it saw.
    pub coverage: Coverage,
    /// What it could not tell.
    pub report: WalkReport,
    /// Why it saw no raw and packet sockets: some kernels cannot list them.
    pub portless: Result<(), CaptureError>,
    /// And why no UNIX sockets, where they were wanted.
    pub unix: Result<(), CaptureError>,
}

impl Walked {
    /// Whether such a socket, if it is open, is among the rows.
    fn shows(&self, protocol: Protocol, state: SocketState) -> bool {
        self.report == WalkReport::default()
            && self.coverage.includes(protocol, state)
            && match protocol {
                Protocol::Raw | Protocol::Packet => self.portless.is_ok(),
                Protocol::Unix => self.unix.is_ok(),
                _ => true,
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

/// Reads the sockets of all namespaces.
#[derive(Debug)]
pub struct Surveyor {
    home: Walker,
    limit: usize,
    queries: Queries,
    telling: Telling,
    portless: Wanted,
    /// The memory of the sockets that are opened elsewhere.
    buffer: Vec<u8>,
}

impl Surveyor {
    /// A surveyor at home in the network namespace of the calling thread.
    pub fn open() -> Result<Surveyor, CaptureError> {
        Surveyor::within(WALK_ROWS_LIMIT)
    }

    /// The same, that keeps at most `limit` sockets of a survey, and no more than [`WALK_ROWS_LIMIT`].
    pub fn within(limit: usize) -> Result<Surveyor, CaptureError> {
        let limit = limit.min(WALK_ROWS_LIMIT);
        let telling = Telling::of(&uname().release().to_string_lossy());
        let home = Walker::open()?.within(limit);
        let (queries, portless) = (Queries::new(), Wanted::default());
        Ok(Surveyor { home, limit, queries, telling, portless, buffer: Vec::new() })
    }

    /// The same, that looks for these sockets without a port.
    pub fn listing(self, portless: Wanted) -> Surveyor {
        Surveyor { portless, ..self }
    }

    /// Inode number of its own network namespace.
    pub fn netns(&self) -> u64 {
        self.home.netns()
    }

    /// Walks its own namespace alone. Replaces the content of `rows`, of which at most as many as it was opened for are
    /// kept. If that failed there are no rows.
    pub fn survey_home(&mut self, coverage: Coverage, states: States, rows: &mut Vec<SocketRow>) -> SurveyReport {
        let mut report = SurveyReport::default();
        let home = self.netns();
        let walked = match (coverage, states) {
            (Coverage::Everything, States::All) => {
                let telling = self.telling;
                self.home.walk_counting(rows).map(|(walked, counted)| {
                    report.counts = telling.home(counted);
                    walked
                })
            }
            (Coverage::Everything, States::Followed) => self.home.walk(rows),
            (Coverage::Listeners, _) => self.home.walk_listeners(rows),
        };
        match walked {
            Ok(mut walked) => {
                let portless = self.home.append_portless(rows).map(|more| walked += more);
                let unix = match self.portless {
                    Wanted::Network => Ok(()),
                    Wanted::All => self.home.append_unix(rows, &mut report.paths).map(|more| walked += more),
                };
                report.walked.insert(home, Walked { coverage, report: walked, portless, unix });
            }
            Err(cause) => {
                rows.clear();
                report.failed.push((home, SurveyError::Walk { netns: home, cause }));
            }
        }
        report
    }

    /// Walks its own namespace and those that were found, like [`Surveyor::survey_home`]. Of a namespace that failed there
    /// are no rows.
    pub fn survey(&mut self, namespaces: &Namespaces, extent: Extent, rows: &mut Vec<SocketRow>) -> SurveyReport {
        self.survey_with(namespaces, extent, &BTreeSet::new(), rows)
    }

    /// The same, and everything in some of the other namespaces.
    pub fn survey_with(
        &mut self,
        namespaces: &Namespaces,
        extent: Extent,
        whole: &BTreeSet<u64>,
        rows: &mut Vec<SocketRow>,
    ) -> SurveyReport {
        let mut report = self.survey_home(extent.home, extent.states, rows);
        if namespaces.iter().len() > 0 {
            let coverage = |netns| if whole.contains(&netns) { Coverage::Everything } else { extent.foreign };
            let travels = namespaces.visit(|visitor| self.travel(visitor, namespaces, coverage, rows, &mut report));
            report.stranded = travels.err();
        }
        report
    }

    /// Goes from namespace to namespace.
    fn travel(
        &mut self,
        visitor: &Visitor<'_>,
        namespaces: &Namespaces,
        coverage: impl Fn(u64) -> Coverage,
        rows: &mut Vec<SocketRow>,
        report: &mut SurveyReport,
    ) {
        for namespace in namespaces.iter() {
            let (netns, begin) = (namespace.netns(), rows.len());
            match self.look_into(visitor, namespace, coverage(netns), rows, report) {
                Ok(walked) => {
                    report.walked.insert(netns, walked);
                }
                Err(error) => {
                    rows.truncate(begin);
                    report.failed.push((netns, error));
                }
            }
        }
    }

    fn look_into(
        &mut self,
        visitor: &Visitor<'_>,
        namespace: &Namespace,
        coverage: Coverage,
        rows: &mut Vec<SocketRow>,
        SurveyReport { counts, paths, .. }: &mut SurveyReport,
    ) -> Result<Walked, SurveyError> {
        let netns = namespace.netns();
        visitor.enter(namespace)?;
        let census = count(netns)?;
        let netlink = Netlink::open_with(Some(SOCK_DIAG), std::mem::take(&mut self.buffer))
            .map_err(|errno| SurveyError::Walk { netns, cause: CaptureError::Socket(errno) })?;
        let catch = Catch { rows, limit: self.limit, counted: Counted::default() };
        let mut stay = Stay { netns, netlink, census, catch };
        let states = if counts.is_some() { States::All } else { States::Followed };
        let mut walked = stay.walk(&mut self.queries, coverage, states);
        if let (Ok(walked), Wanted::All) = (&mut walked, self.portless) {
            walked.unix = stay.append_unix(paths).map(|more| walked.report += more);
        }
        if let Some(counts) = counts {
            self.telling.sum(counts, &stay.census, stay.catch.counted);
        }
        self.buffer = stay.netlink.close();
        walked
    }
}

fn count(netns: u64) -> Result<Census, SurveyError> {
    Census::take().map_err(|cause| SurveyError::Count { netns, cause })
}

/// The time in one namespace.
struct Stay<'a> {
    netns: u64,
    netlink: Netlink,
    census: Census,
    catch: Catch<'a>,
}

impl Stay<'_> {
    fn walk(&mut self, queries: &mut Queries, coverage: Coverage, states: States) -> Result<Walked, SurveyError> {
        let Queries { tcp, tcp_all, tcp_listeners, udp4, udp6 } = queries;
        let begin = self.catch.rows.len();
        let mut report = WalkReport::default();
        if self.census.tcp > 0 {
            report = self.ask(tcp_listeners)?;
        }
        let listeners = self.catch.rows.len() - begin;
        if coverage == Coverage::Everything && !(report == WalkReport::default() && self.has_only(listeners)?) {
            self.catch.rows.truncate(begin);
            report = self.ask(if states == States::All { tcp_all } else { tcp })?;
        }
        if self.census.udp4 > 0 {
            report += self.ask(udp4)?;
        }
        if self.census.udp6 > 0 {
            report += self.ask(udp6)?;
        }
        let Catch { rows, limit, .. } = &mut self.catch;
        let portless = append_portless(&mut self.netlink, self.netns, *limit, rows).map(|more| report += more);
        Ok(Walked { coverage, report, portless, unix: Ok(()) })
    }

    fn append_unix(&mut self, paths: &mut Paths) -> Result<WalkReport, CaptureError> {
        let Catch { rows, limit, .. } = &mut self.catch;
        append_unix(&mut self.netlink, self.netns, *limit, rows, paths)
    }

    /// Whether all TCP sockets are these listeners. Counted before and after they were dumped: otherwise one that began
    /// to listen in between would stand for a connection.
    fn has_only(&self, listeners: usize) -> Result<bool, SurveyError> {
        let listeners = u64::try_from(listeners).unwrap_or(u64::MAX);
        Ok(self.census.tcp == listeners && count(self.netns)?.tcp == listeners)
    }

    fn ask(&mut self, query: &mut Query) -> Result<WalkReport, SurveyError> {
        append(&mut self.netlink, [query], self.netns, &mut self.catch)
            .map_err(|cause| SurveyError::Walk { netns: self.netns, cause })
    }
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
        let walked = |coverage, report| Walked { coverage, report, portless: Ok(()), unix: Ok(()) };
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
