//! Others that watch the same connections: `tcplife` of libbpf-tools the sockets of the whole machine, `conntrack -E` the
//! packets of a host.

use std::{
    collections::HashMap,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::{
    programs,
    scope::{HOSTS, PROBE, Scope, end, probe},
};
use crate::{fleet::Fleet, network::until};

/// What conntrack may have waiting for it, bytes: all of a run, each event some 9 KiB while it waits.
const BUFFER: &str = "268435456";
/// In a network namespace connections are only followed when a rule asks for them.
const RULES: &str = "table inet referee {
    chain enter { type filter hook prerouting priority -150; ct state invalid counter; }
    chain leave { type filter hook output priority -150; ct state invalid counter; }
}";

/// A socket whose life is over, as tcplife tells it.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) pid: u32,
    pub(super) process: String,
    /// Since it was established, milliseconds.
    pub(super) lasted_ms: f64,
}

/// A connection whose packets came by on a host, as conntrack tells it.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) host: &'static str,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
    /// When its first packet came by, seconds since 1970.
    pub(super) began: f64,
    /// Whether both ends agreed on it: else nobody accepted it.
    pub(super) is_established: bool,
    /// When nothing more was to come, seconds since 1970.
    pub(super) over: Option<f64>,
}

/// What conntrack saw on one host.
pub(super) struct Watched {
    pub(super) host: &'static str,
    pub(super) flows: Vec<Flow>,
    /// It was told that events were kept from it (ENOBUFS), as the kernel does on a machine that is very busy: what it has not
    /// says nothing.
    pub(super) missed: bool,
}

/// A program that writes down what it sees.
struct Referee {
    child: Child,
    out: PathBuf,
    err: PathBuf,
    /// What is in the lines about a probe.
    mark: fn(&str) -> bool,
}

impl Drop for Referee {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Referee {
    /// Starts it; when it sees probes it is ready. Why there is none, if it ends before.
    fn start(
        name: &str,
        folder: &Path,
        command: &mut Command,
        mark: fn(&str) -> bool,
        probe: &dyn Fn(),
    ) -> Result<Referee, String> {
        let [out, err] = ["out", "err"].map(|kind| folder.join(format!("{name}.{kind}")));
        let [to_out, to_err] = [&out, &err].map(|path| File::create(path).unwrap());
        let started = command.stdin(Stdio::null()).stdout(to_out).stderr(to_err).spawn();
        let child = started.map_err(|error| error.to_string())?;
        let mut referee = Referee { child, out, err, mark };
        until("a referee looks", || {
            probe();
            let ended = referee.child.try_wait().unwrap();
            let problem = ended.map(|status| Err(format!("{status}: {}", referee.said().trim())));
            problem.or_else(|| (referee.probes() > 0).then_some(Ok(())))
        })
        .map(|()| referee)
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.err).unwrap()
    }

    fn probes(&self) -> usize {
        fs::read_to_string(&self.out).unwrap().lines().filter(|line| (self.mark)(line)).count()
    }

    /// What it wrote down, when it has come to what is done now; and whether it knows that it missed something.
    fn end(mut self, probe: &dyn Fn()) -> (String, bool) {
        for _ in 0..3 {
            let before = self.probes();
            until("a referee has seen all", || {
                probe();
                (self.probes() > before).then_some(())
            });
        }
        let interrupted = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
        self.child.wait().unwrap();
        let said = self.said();
        (fs::read_to_string(&self.out).unwrap(), said.contains("lost ") || said.contains("ENOBUFS"))
    }
}

/// A probe that a host makes to another.
fn probe_from(fleet: &Fleet, scope: &Scope, host: &str) {
    let to = HOSTS.into_iter().find(|other| *other != host).unwrap();
    probe(fleet, host, scope.v4(to));
}

/// tcplife, from its start to its end.
pub(super) struct Tcplife<'a> {
    referee: Referee,
    probe: Box<dyn Fn() + 'a>,
}

impl<'a> Tcplife<'a> {
    pub(super) fn start(fleet: &'a Fleet, scope: &'a Scope, folder: &Path) -> Result<Tcplife<'a>, String> {
        let program = programs::path("tcplife").ok_or("not installed: apt-get install libbpf-tools")?;
        let probe = Box::new(|| probe_from(fleet, scope, HOSTS[0]));
        // By lines: else nothing would be seen of it before a page is full.
        let mut command = Command::new("stdbuf");
        command.arg("-oL").arg(program).arg("-T").env("TZ", "UTC");
        let is_probe = |line: &str| heard(line).is_some_and(|heard| heard.peer.port() == PROBE);
        let referee = Referee::start("tcplife", folder, &mut command, is_probe, &probe)?;
        Ok(Tcplife { referee, probe })
    }

    pub(super) fn end(self, scope: &Scope) -> Vec<Heard> {
        let (told, missed) = self.referee.end(&self.probe);
        assert!(!missed, "tcplife missed something");
        told.lines().filter_map(heard).filter(|heard| scope.has([heard.local, heard.peer])).collect()
    }
}

/// `TIME(s) PID COMM LADDR LPORT RADDR RPORT TX_KB RX_KB MS`, and before it a line of titles.
fn heard(line: &str) -> Option<Heard> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [_, pid, comm @ .., local, local_port, peer, peer_port, _, _, ms] = &fields[..] else { return None };
    let (pid, process, lasted_ms) = (pid.parse().ok()?, comm.join(" "), ms.parse().ok()?);
    Some(Heard { pid, process, local: end(local, local_port)?, peer: end(peer, peer_port)?, lasted_ms })
}

/// conntrack on one host, from its start to its end.
pub(super) struct Conntrack<'a> {
    host: &'static str,
    referee: Referee,
    probe: Box<dyn Fn() + 'a>,
}

impl<'a> Conntrack<'a> {
    pub(super) fn start(
        fleet: &'a Fleet,
        scope: &'a Scope,
        folder: &Path,
        host: &'static str,
    ) -> Result<Conntrack<'a>, String> {
        let program = programs::path("conntrack").ok_or("not installed: apt-get install conntrack")?;
        let nft = programs::path("nft").ok_or("not installed: apt-get install nftables")?;
        let ruled = fleet.network.command(host, nft).arg(RULES).output().unwrap();
        if !ruled.status.success() {
            return Err(format!("nft: {}", String::from_utf8_lossy(&ruled.stderr).trim()));
        }
        let probe = Box::new(move || probe_from(fleet, scope, host));
        let mut command = fleet.network.command(host, program);
        command.args(["-E", "-p", "tcp", "-e", "NEW,UPDATES", "-o", "timestamp", "-b", BUFFER]);
        let is_probe = |line: &str| field(line, "dport=") == Some("9") && line.contains("[NEW]");
        let referee = Referee::start(&format!("conntrack-{host}"), folder, &mut command, is_probe, &probe)?;
        Ok(Conntrack { host, referee, probe })
    }

    pub(super) fn end(self, scope: &Scope) -> Watched {
        let (told, missed) = self.referee.end(&self.probe);
        let mut flows: Vec<Flow> = Vec::new();
        let mut latest: HashMap<[SocketAddr; 2], usize> = HashMap::new();
        for line in told.lines() {
            let (at, ends) = seen(line).unwrap_or_else(|| panic!("conntrack: {line}"));
            let ([client, server], host) = (ends, self.host);
            if !scope.has(ends) {
                continue;
            }
            if line.contains("[NEW]") {
                latest.insert(ends, flows.len());
                flows.push(Flow { host, client, server, began: at, is_established: false, over: None });
                continue;
            }
            let Some(at_which) = latest.get(&ends) else {
                assert!(missed, "without a beginning: {line}");
                continue;
            };
            let flow = &mut flows[*at_which];
            flow.is_established |= line.contains(" ESTABLISHED ");
            if flow.over.is_none() && (line.contains(" TIME_WAIT ") || line.contains(" CLOSE ")) {
                flow.over = Some(at);
            }
        }
        Watched { host: self.host, flows, missed }
    }
}

/// The first value with this name: of the packet that began the connection.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(name))
}

/// `[SECONDS] [NEW] tcp 6 120 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=4000 dport=80 ...`
fn seen(line: &str) -> Option<(f64, [SocketAddr; 2])> {
    let at = line.strip_prefix('[')?.split_once(']')?.0.parse().ok()?;
    let source = end(field(line, "src=")?, field(line, "sport=")?)?;
    Some((at, [source, end(field(line, "dst=")?, field(line, "dport=")?)?]))
}
