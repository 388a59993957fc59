//! Reads the socket table of one network namespace.

use std::ops::AddAssign;

use rustix::{fs::stat, io::Errno, net::netlink::SOCK_DIAG};

use super::{
    SocketRow,
    chains::{Chains, Passed},
    counted::Counted,
    diag::{Answer, Queries, Query, Unreadable, answer},
    netlink::{Netlink, NetlinkError},
    portless::{self, Paths},
};

/// Most sockets of a walk that are kept; the others are counted.
pub const WALK_ROWS_LIMIT: usize = 512 * 1024;
/// How often a dump that was interrupted is tried before it is taken as it is.
const DUMP_TRIES: u32 = 3;

/// From how many sockets on the kernel's program is asked for connections: to go through the whole table costs it more than a
/// dump, some 2 ms, and each socket less, by half a microsecond.
const WORTH_ASKING: usize = 8 * 1024;
/// How many walks dump connections after the program was asked in vain: new sockets are there that have no cookie, and on a
/// host that always has new ones most walks must not do both.
const PAUSE: u32 = 8;

/// A table that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CaptureError {
    /// The network namespace is not known.
    #[error("cannot tell the network namespace from /proc/thread-self/ns/net: {0}")]
    Namespace(#[source] Errno),
    /// There is no netlink socket to ask with.
    #[error("cannot open a NETLINK_SOCK_DIAG socket: {0}")]
    Socket(#[source] Errno),
    /// The kernel did not tell of some sockets. With "no such file or directory" it lacks the module inet_diag,
    /// tcp_diag or udp_diag.
    #[error("cannot read the {about} sockets from the kernel: {cause}")]
    Dump {
        /// Which sockets.
        about: &'static str,
        /// Why.
        #[source]
        cause: NetlinkError,
    },
    /// A list of sockets in /proc cannot be read.
    #[error("cannot read {path}: {kind}")]
    List {
        /// Which one.
        path: &'static str,
        /// Why.
        kind: std::io::ErrorKind,
    },
}

/// What a walk could not tell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalkReport {
    /// Sockets above the limit: counted, not kept.
    pub overflow: u64,
    /// Parts of the table that may lack rows: at every try the kernel said that it changed meanwhile
    /// (NLM_F_DUMP_INTR), or an answer was lost.
    pub interrupted: u64,
    /// Answers of the kernel that could not be read.
    pub unreadable: u64,
}

impl AddAssign for WalkReport {
    fn add_assign(&mut self, other: WalkReport) {
        self.overflow += other.overflow;
        self.interrupted += other.interrupted;
        self.unreadable += other.unreadable;
    }
}

/// Reads the sockets of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Walker {
    netns: u64,
    netlink: Netlink,
    queries: Queries,
    limit: usize,
    /// Tells connections without a dump.
    chains: Option<Chains>,
    /// From how many sockets on it is asked.
    worth_asking: usize,
    /// Why it does not tell, though it was to.
    obstacle: Option<String>,
    /// For how many walks it is not asked.
    pause: u32,
    /// Sockets that the last walk told.
    last: usize,
}

/// Who tells TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel's dump.
    Dump,
    /// A program in the kernel; what it cannot tell is dumped.
    Program,
}

impl Walker {
    /// A walker for the network namespace of the calling thread; it stays there.
    pub fn open() -> Result<Walker, CaptureError> {
        let netns = stat("/proc/thread-self/ns/net").map_err(CaptureError::Namespace)?.st_ino;
        let netlink = Netlink::open(Some(SOCK_DIAG)).map_err(CaptureError::Socket)?;
        let (queries, limit, worth_asking) = (Queries::new(), WALK_ROWS_LIMIT, WORTH_ASKING);
        Ok(Walker { netns, netlink, queries, limit, chains: None, worth_asking, obstacle: None, pause: 0, last: 0 })
    }

    /// The same, that has a program in the kernel tell TCP connections where there are many, if the kernel takes one from the
    /// calling thread; they are dumped where and as long as it does not tell them.
    pub fn asking(mut self) -> Walker {
        match Chains::open(self.netns) {
            Ok(chains) => self.chains = Some(chains),
            Err(error) => {
                tracing::info!(%error, "connections are dumped, however many there are");
                self.obstacle = Some(error.to_string());
            }
        }
        self
    }

    /// The same, that asks it already for so many sockets.
    pub fn asking_from(mut self, sockets: usize) -> Walker {
        self.worth_asking = sockets;
        self
    }

    /// What is to be said when the program does not tell connections, though it was to be asked and there are many.
    pub fn remark(&self) -> Option<String> {
        let why = self.obstacle.as_ref().filter(|_| self.last >= self.worth_asking)?;
        Some(format!("connections are dumped, which takes several times the CPU ({why})"))
    }

    /// The same, that keeps at most `limit` sockets of a walk, and no more than [`WALK_ROWS_LIMIT`].
    pub fn within(mut self, limit: usize) -> Walker {
        self.limit = limit.min(WALK_ROWS_LIMIT);
        self
    }

    /// Inode number of the network namespace.
    pub fn netns(&self) -> u64 {
        self.netns
    }

    /// A full walk: TCP and UDP, IPv4 and IPv6, listening and connected. Replaces the content of `rows`, which is
    /// incomplete after an error. After an error the next walk may succeed. The calling thread must be in the network
    /// namespace of the walker, or connections are dumped.
    pub fn walk(&mut self, rows: &mut Vec<SocketRow>) -> Result<WalkReport, CaptureError> {
        self.walk_by(rows).map(|(report, _)| report)
    }

    /// The same, and who told the connections.
    pub fn walk_by(&mut self, rows: &mut Vec<SocketRow>) -> Result<(WalkReport, Source), CaptureError> {
        rows.clear();
        let (told, source) = match self.ask(rows)? {
            Some(told) => (told, Source::Program),
            None => (WalkReport::default(), Source::Dump),
        };
        let Queries { tcp, udp4, udp6, .. } = &mut self.queries;
        let mut catch = Catch { rows, limit: self.limit, counted: Counted::default() };
        let tcp = (source == Source::Dump).then_some(tcp);
        let mut report = append(&mut self.netlink, tcp.into_iter().chain([udp4, udp6]), self.netns, &mut catch)?;
        report += told;
        self.last = rows.len();
        Ok((report, source))
    }

    /// Has listeners dumped, which are in a table of their own, and the program tell connections; nothing if it does not.
    fn ask(&mut self, rows: &mut Vec<SocketRow>) -> Result<Option<WalkReport>, CaptureError> {
        let Some(chains) = &self.chains else { return Ok(None) };
        if self.last < self.worth_asking || self.pause > 0 {
            self.pause = self.pause.saturating_sub(1);
            return Ok(None);
        }
        let limit = self.limit;
        let mut catch = Catch { rows, limit, counted: Counted::default() };
        let mut report = append(&mut self.netlink, [&mut self.queries.tcp_listeners], self.netns, &mut catch)?;
        let passed = chains.pass(|row| match rows.len() >= limit {
            true => report.overflow += 1,
            false => rows.push(row),
        });
        let whole = matches!(passed, Ok(Passed::Whole));
        if !whole {
            rows.clear();
            self.pause = PAUSE;
        }
        let obstacle = passed.err().map(|error| error.to_string());
        if let Some(why) = obstacle.as_ref().filter(|_| obstacle != self.obstacle) {
            tracing::warn!(error = why, "the kernel's program does not tell connections: they are dumped");
        }
        self.obstacle = obstacle;
        Ok(whole.then_some(report))
    }

    /// The same that also counts TCP sockets in the states that are not followed.
    pub(super) fn walk_counting(&mut self, rows: &mut Vec<SocketRow>) -> Result<(WalkReport, Counted), CaptureError> {
        let Queries { tcp_all, udp4, udp6, .. } = &mut self.queries;
        rows.clear();
        let mut catch = Catch { rows, limit: self.limit, counted: Counted::default() };
        let report = append(&mut self.netlink, [tcp_all, udp4, udp6], self.netns, &mut catch)?;
        let counted = catch.counted;
        self.last = rows.len();
        Ok((report, counted))
    }

    /// A walk that leaves TCP connections out, and the kernel's large table with them: TCP in LISTEN, and all of UDP.
    /// Otherwise like [`Walker::walk`].
    pub fn walk_listeners(&mut self, rows: &mut Vec<SocketRow>) -> Result<WalkReport, CaptureError> {
        let Queries { tcp_listeners, udp4, udp6, .. } = &mut self.queries;
        rows.clear();
        let mut catch = Catch { rows, limit: self.limit, counted: Counted::default() };
        append(&mut self.netlink, [tcp_listeners, udp4, udp6], self.netns, &mut catch)
    }

    /// Appends the raw and packet sockets of the network namespace of the calling thread, which must be that of the walker.
    pub fn append_portless(&mut self, rows: &mut Vec<SocketRow>) -> Result<WalkReport, CaptureError> {
        portless::append_portless(&mut self.netlink, self.netns, self.limit, rows)
    }

    /// Appends the sockets of further protocols.
    pub(super) fn append_others(
        &mut self,
        queries: &mut [Query],
        rows: &mut Vec<SocketRow>,
    ) -> Result<WalkReport, CaptureError> {
        let mut catch = Catch { rows, limit: self.limit, counted: Counted::default() };
        append(&mut self.netlink, queries, self.netns, &mut catch)
    }

    /// Appends the UNIX sockets that listen in the network namespace, and their paths.
    pub(super) fn append_unix(
        &mut self,
        rows: &mut Vec<SocketRow>,
        paths: &mut Paths,
    ) -> Result<WalkReport, CaptureError> {
        portless::append_unix(&mut self.netlink, self.netns, self.limit, rows, paths)
    }
}

/// What dumps bring in.
#[derive(Debug)]
pub(super) struct Catch<'a> {
    pub(super) rows: &'a mut Vec<SocketRow>,
    /// Most rows that are kept, those of other walks included.
    pub(super) limit: usize,
    pub(super) counted: Counted,
}

/// Appends what some dumps tell.
pub(super) fn append<'a>(
    netlink: &mut Netlink,
    queries: impl IntoIterator<Item = &'a mut Query>,
    netns: u64,
    catch: &mut Catch<'_>,
) -> Result<WalkReport, CaptureError> {
    let mut report = WalkReport::default();
    for query in queries {
        report +=
            dump(netlink, query, netns, catch).map_err(|cause| CaptureError::Dump { about: query.about, cause })?;
    }
    Ok(report)
}

/// Appends what one dump tells, which is repeated while it is interrupted.
fn dump(
    netlink: &mut Netlink,
    query: &mut Query,
    netns: u64,
    catch: &mut Catch<'_>,
) -> Result<WalkReport, NetlinkError> {
    let (begin, counted) = (catch.rows.len(), catch.counted);
    let mut tries = 0;
    loop {
        catch.rows.truncate(begin);
        catch.counted = counted;
        let mut report = WalkReport::default();
        let dump = netlink.dump(&mut query.request, |message| match answer(message.body, query.protocol, netns) {
            Ok(Answer::Socket(_)) if catch.rows.len() >= catch.limit => report.overflow += 1,
            Ok(Answer::Socket(row)) => catch.rows.push(row),
            Ok(Answer::Idle(idle)) => catch.counted.add(idle),
            Ok(Answer::Nothing) => {}
            Err(Unreadable) => report.unreadable += 1,
        })?;
        tries += 1;
        if !dump.interrupted || tries == DUMP_TRIES {
            report.unreadable += dump.malformed;
            report.interrupted = dump.interrupted.into();
            return Ok(report);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_the_program_does_not_tell_are_dumped_and_that_is_said() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut walker = Walker::open().unwrap().asking_from(0);
        walker.chains = Some(Chains::broken());
        let mut rows = Vec::new();
        let (_, source) = walker.walk_by(&mut rows).unwrap();
        assert_eq!(source, Source::Dump);
        assert!(rows.iter().any(|row| row.local == client.local_addr().unwrap()));
        let remark = walker.remark().unwrap();
        assert!(
            remark.starts_with("connections are dumped, ") && remark.contains("the kernel's iterator: "),
            "{remark}"
        );
    }
}
