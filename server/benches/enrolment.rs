//! How fast a fleet enrols, over real mutual TLS against a real `fleetsock-server` process.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench enrolment -- --hosts 1000
//! ```
//!
//! Every host makes its key, asks for its certificate with the join string that all share, and is done when it has it. Then
//! one more host enrols, connects and reports, and the time until `fleetctl ports` has its first row is told. All hosts
//! come from one address here, so the limits for each address are raised in the settings.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measuring, run by hand")]

use std::{
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use fleetsock_proto::{
    batch::{Batch, BatchKind, Change, Op, Role, Socket},
    client::{AgentClient, OperatorClient, Target, enroll},
    host::{BootId, HostFacts, Tier},
    identity::{Identity, Key},
    join::JoinString,
    question::PortQuestion,
    socket::{Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    stream::{AgentMessage, BatchNumber, Hello, PROTOCOL_VERSION},
    time::Timestamp,
    tls,
    token::{NewToken, TokenPurpose},
};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

/// What two processors must be able to enrol, hosts per second.
const RATE: f64 = 100.0;
/// What may pass between the command on a new host and its first row.
const FIRST_ROW: Duration = Duration::from_secs(10);

/// Hosts that enrol as fast as they can.
#[derive(Debug, Parser)]
struct Arguments {
    /// Hosts.
    #[arg(long, default_value_t = 1000)]
    hosts: u32,
    /// Hosts that enrol at once.
    #[arg(long, default_value_t = 32)]
    at_once: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A server process, killed when it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Server {
    async fn start(state: &Path) -> Server {
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let program = || Command::new(env!("CARGO_BIN_EXE_fleetsock-server"));
        let mut init = program();
        init.args(["init", "--listen", &listen.to_string(), "--state"]).arg(state).stdout(Stdio::null());
        assert!(init.status().unwrap().success());
        let settings = state.join("server.toml");
        let text = std::fs::read_to_string(&settings).unwrap()
            + "connections_per_address = 1000\nhandshakes_per_address = 256\nnewcomers = 1000\n\
               enrolments_per_s = 100000\nenrolments_per_address_per_min = 6000000\n";
        std::fs::write(&settings, text).unwrap();
        let mut serve = program();
        let child = serve.args(["serve", "--state"]).arg(state).env("FLEETSOCK_LOG", "warn").spawn().unwrap();
        let server = Server(child);
        while OperatorClient::connect(Target::Local(state.join("admin.sock"))).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        server
    }
}

fn snapshot(boot_id: BootId) -> Batch {
    let now = Timestamp::now();
    let socket = Socket {
        key: SocketKey { netns: 1, cookie: 1 },
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        state: SocketState::Listen,
        local: "0.0.0.0:443".parse().unwrap(),
        path: None,
        role: Role::Listener,
        opened_at: now,
        opened_known: Known::FirstSeen,
        owner_known: OwnerKnown::Exact,
        owners: Vec::new(),
        bytes_sent: 0,
        bytes_received: 0,
    };
    let changes = vec![Change { op: Op::Present, socket }];
    let kind = BatchKind::SnapshotWhole;
    Batch {
        epoch: 1,
        seq: 1,
        kind,
        boot_id,
        observed_since: now,
        observed_until: now,
        changes,
        digest: None,
        namespaces: Vec::new(),
    }
}

/// Reports one listener, and asks until it is there.
async fn first_row(identity: &Identity, admin: &mut OperatorClient) {
    let boot_id = BootId::from_array([1; 16]);
    let facts = HostFacts {
        name: "first".to_owned(),
        os: String::new(),
        kernel: String::new(),
        arch: String::new(),
        boot_id,
        addresses: Vec::new(),
        ephemeral_ports: None,
        agent_version: String::new(),
        tier: Tier::T0,
        tier_reason: String::new(),
        netns: 1,
    };
    let last = BatchNumber::default();
    let sent_at = Timestamp::now();
    let hello = Hello { protocol_version: PROTOCOL_VERSION, capabilities: Vec::new(), last, facts, sent_at };
    let (outgoing, messages) = mpsc::channel(4);
    outgoing.send(AgentMessage::Hello(hello)).await.unwrap();
    outgoing.send(AgentMessage::Batch(snapshot(boot_id))).await.unwrap();
    let mut client = AgentClient::connect(identity).await.unwrap();
    let _incoming = client.session(messages).await.unwrap();
    while admin.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap().0.is_empty() {}
}

/// Whether a goal was reached, in a word.
fn verdict(is_reached: bool) -> &'static str {
    if is_reached { "reached" } else { "MISSED" }
}

/// Tells what was measured; whether all of it is as it should be.
async fn measure(arguments: Arguments) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("server");
    let _server = Server::start(&state).await;
    let mut admin = OperatorClient::connect(Target::Local(state.join("admin.sock"))).await.unwrap();
    let purpose = TokenPurpose::Hosts { labels: Default::default() };
    let token = NewToken { lifetime_s: 3600, uses: arguments.hosts + 1, purpose, note: String::new() };
    let join: Arc<JoinString> = Arc::new(admin.create_token(token).await.unwrap().1.parse().unwrap());

    let at_once = Arc::new(Semaphore::new(arguments.at_once));
    let mut enrolling = JoinSet::new();
    let begun = Instant::now();
    for number in 0..arguments.hosts {
        let (join, at_once) = (Arc::clone(&join), Arc::clone(&at_once));
        enrolling.spawn(async move {
            let _permit = at_once.acquire().await.unwrap();
            let begun = Instant::now();
            enroll(&join, &format!("host{number:05}"), Key::generate().unwrap()).await.unwrap();
            begun.elapsed()
        });
    }
    let mut took = enrolling.join_all().await;
    let rate = f64::from(arguments.hosts) / begun.elapsed().as_secs_f64();
    took.sort_unstable();
    let percentile = |percent: usize| took[(took.len() * percent / 100).min(took.len() - 1)];

    let begun = Instant::now();
    let identity = enroll(&join, "first", Key::generate().unwrap()).await.unwrap();
    first_row(&identity, &mut admin).await;
    let (row, at_once) = (begun.elapsed(), arguments.at_once);
    let (is_fast, is_prompt) = (rate >= RATE, row <= FIRST_ROW);
    println!("hosts enrolled per second, {at_once} at once: {rate:.0} (goal {RATE}: {})", verdict(is_fast));
    println!("one of them: p50 {:.1?}, p99 {:.1?}", percentile(50), percentile(99));
    println!("from the join string to the first row: {row:.1?} (goal {FIRST_ROW:?}: {})", verdict(is_prompt));
    is_fast && is_prompt
}

fn main() -> ExitCode {
    tls::install_provider();
    match tokio::runtime::Runtime::new().unwrap().block_on(measure(Arguments::parse())) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
