//! Walks of all network namespaces of the host.
//!
//! A dump of the TCP connections of one namespace reads those of all ([`Extent`]); listeners are kept apart and cost
//! little. Of each namespace that is not the agent's own the kernel is asked first how many sockets it has ([`Census`]);
//! what it has none of is not dumped, and where all TCP sockets turn out to be listeners, the large table is not read
//! either.
//!
//! Nothing of a foreign namespace stays open after a survey (see [`crate::namespaces`]).

use std::collections::BTreeSet;

use fleetsock_proto::socket::Protocol;
use rustix::{net::netlink::SOCK_DIAG, system::uname};

use super::{
    CaptureError, SocketRow, WalkReport, Walker,
    census::Census,
    counted::{Counted, Telling},
    diag::{Queries, Query},
    netlink::Netlink,
    portless::{Paths, Wanted, append_portless, append_unix},
    survey::{Coverage, Extent, States, SurveyError, SurveyReport, Walked},
    transports::Transports,
    walker::{Catch, WALK_ROWS_LIMIT, append},
};
use crate::namespaces::{Namespace, Namespaces, Visitor};

/// Reads the sockets of all namespaces.
#[derive(Debug)]
pub struct Surveyor {
    home: Walker,
    limit: usize,
    queries: Queries,
    telling: Telling,
    portless: Wanted,
    transports: Transports,
    /// The dumps of what the kernel has of them.
    others: Vec<Query>,
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
        let (queries, portless, transports) = (Queries::new(), Wanted::default(), Transports::default());
        let others = Vec::new();
        let mut surveyor = Surveyor { home, limit, queries, telling, portless, transports, others, buffer: Vec::new() };
        surveyor.look_for_transports();
        Ok(surveyor)
    }

    /// The same, that has a program in the kernel tell TCP connections of its own namespace, see [`Walker::asking`].
    pub fn asking(self) -> Surveyor {
        Surveyor { home: self.home.asking(), ..self }
    }

    /// What is to be said when it does not, though it was to be asked.
    pub fn remark(&self) -> Option<String> {
        self.home.remark()
    }

    /// Looks which protocols the kernel has by now.
    fn look_for_transports(&mut self) {
        match Transports::read() {
            Ok(transports) if transports != self.transports => {
                (self.transports, self.others) = (transports, transports.queries());
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "cannot read which protocols the kernel has"),
        }
    }

    /// Protocols of which the kernel has none, as far as was last seen.
    pub fn unsupported(&self) -> Vec<Protocol> {
        self.transports.unsupported()
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
        if states == States::All {
            self.look_for_transports();
        }
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
                let others = match self.others.as_mut_slice() {
                    [] => Ok(()),
                    others => self.home.append_others(others, rows).map(|more| walked += more),
                };
                report.walked.insert(home, Walked { coverage, report: walked, portless, others, unix });
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
        if let (Ok(walked), [_, ..]) = (&mut walked, self.others.as_slice()) {
            let told = append(&mut stay.netlink, &mut self.others, netns, &mut stay.catch);
            walked.others = told.map(|more| walked.report += more);
        }
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
        Ok(Walked { coverage, report, portless, others: Ok(()), unix: Ok(()) })
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
