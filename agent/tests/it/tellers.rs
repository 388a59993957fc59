//! What tells of connections: the agent's own trace buffers, beside whoever else listens to the same tracepoints.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::GapReason,
    session::Session,
    socket::{Direction, Known, OwnerKnown},
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    connecting::Connecting,
    fleet::{Fleet, until},
    listeners::{has, skip},
    tiers::{Agent, HEARING, has_events, makes_tiers},
};

pub(crate) const INSTANCES: &str = "/sys/kernel/tracing/instances";
pub(crate) const BY_BUFFERS: &str = "listening to events by trace buffers";
/// How long BPF may take to be attached.
const ATTACHING: Duration = Duration::from_secs(30);
/// Connections, each by a thread of its own.
const THREADS: usize = 100;

/// An agent of root with trace buffers of its own; none where they cannot be made.
async fn with_buffers() -> Option<(Fleet, Agent)> {
    if !makes_tiers() || !has_events() {
        return None;
    }
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet, None, "walk_ms = 200").await;
    fleet.facts().await;
    if !agent.log().contains(BY_BUFFERS) {
        skip(&format!("no trace buffers here: {}", agent.log()));
        return None;
    }
    Some((fleet, agent))
}

/// The instances that an agent made.
fn instances(pid: u32) -> Vec<PathBuf> {
    let all = fs::read_dir(INSTANCES).unwrap().map(|entry| entry.unwrap().path());
    let prefix = format!("fleetsock-{pid}-");
    all.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).collect()
}

/// Both ends of connections, once they are known to be over.
pub(crate) async fn over(fleet: &Fleet, port: u16, count: usize) -> Vec<Session> {
    until("all connections are known at both ends", async || {
        let mut sessions = fleet.sessions(port).await;
        sessions.retain(|session| session.closed.is_some());
        (sessions.len() >= 2 * count).then_some(sessions)
    })
    .await
}

/// Every one has been told by events, with the process that opened or closed it.
pub(crate) fn check(sessions: &[Session], (count, pid): (usize, u32)) {
    assert_eq!(sessions.len(), 2 * count);
    for session in sessions {
        assert_eq!((session.opened_known, session.closed.unwrap().1), (Known::Event, Known::Event), "{session:?}");
        let expected = match session.direction {
            Direction::Out => [OwnerKnown::Exact; 2],
            _ => [OwnerKnown::Closer, OwnerKnown::Exact],
        };
        assert!(expected.contains(&session.owner_known), "{session:?}");
        assert!(session.owners.iter().all(|owner| owner.pid == pid), "{session:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_threads_do_that_end_at_once_was_done_by_their_process() {
    if !has("python3") {
        return;
    }
    let mut load = Connecting::start();
    let Some((fleet, agent)) = with_buffers().await else { return };
    load.connect_by_threads(THREADS);
    check(&over(&fleet, load.port, THREADS).await, (THREADS, load.pid()));
    drop(agent);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_removes_its_buffers_and_those_of_one_that_was_killed() {
    let Some((_fleet, killed)) = with_buffers().await else { return };
    let left = killed.child.id();
    assert_eq!(instances(left).len(), 1, "{}", killed.log());
    // Killed and waited for.
    drop(killed);
    // Another process has the number of one that was killed: it began at another moment.
    let reused = format!("{INSTANCES}/fleetsock-{}-1-0", std::process::id());
    fs::create_dir(&reused).unwrap();
    // Another test's agent may be faster.
    let Some((_fleet, mut agent)) = with_buffers().await else { return };
    let is_gone = || instances(left).is_empty() && !Path::new(&reused).exists();
    until("what was left is gone", async || is_gone().then_some(())).await;
    let pid = agent.child.id();
    assert_eq!(instances(pid).len(), 1, "{}", agent.log());
    kill_process(Pid::from_child(&agent.child), Signal::TERM).unwrap();
    assert!(agent.child.wait().unwrap().success(), "{}", agent.log());
    // Though it had given up what root may do beside owning files.
    assert_eq!(instances(pid), Vec::<PathBuf>::new(), "{}", agent.log());
}

/// A program with BPF on the tracepoint, while it runs. Whoever listens to that by perf hears nothing meanwhile.
pub(crate) struct Deafening(Child);

impl Deafening {
    pub(crate) fn start() -> Option<Deafening> {
        if !has("tcplife") {
            return None;
        }
        // bpftrace would not do: its programs return 1, so that others hear as well. By lines: else nothing would be seen of
        // tcplife before a page is full.
        let mut command = Command::new("stdbuf");
        command.args(["-oL", "tcplife"]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let port = address.port().to_string();
        let (told, said) = mpsc::channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody asks any more when it was heard once.
                if line.split_whitespace().any(|field| field == port) && told.send(()).is_err() {
                    return;
                }
            }
        });
        let deafening = Deafening(child);
        let begun = Instant::now();
        while said.recv_timeout(Duration::from_millis(20)).is_err() {
            if begun.elapsed() > ATTACHING {
                skip("tcplife hears nothing here");
                return None;
            }
            drop((TcpStream::connect(address).unwrap(), listener.accept().unwrap()));
        }
        Some(deafening)
    }
}

impl Drop for Deafening {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_with_bpf_on_the_same_tracepoint_takes_nothing_from_trace_buffers_and_from_perf_with_a_gap() {
    const SHORT: usize = 50;
    let _alone = HEARING.write().await;
    let Some((fleet, agent)) = with_buffers().await else { return };
    // Nobody may not make trace buffers.
    let by_perf = Fleet::start().await;
    let deaf = Agent::start(&by_perf, Some(&["sys_ptrace", "dac_read_search", "perfmon"]), "walk_ms = 200").await;
    by_perf.facts().await;
    assert!(!deaf.log().contains(BY_BUFFERS), "{}", deaf.log());
    let mut load = Connecting::start();
    let Some(deafening) = Deafening::start() else { return };
    load.connect(SHORT);
    drop(deafening);
    check(&over(&fleet, load.port, SHORT).await, (SHORT, load.pid()));
    until("the time without records is a gap", async || {
        by_perf.gaps().await.iter().any(|gap| gap.reason == GapReason::KernelLoss).then_some(())
    })
    .await;
    assert!(deaf.log().contains("others keep the kernel's records"), "{}", deaf.log());
    drop((agent, deaf));
}
