//! What the benches of a whole agent share: a server in a process of its own, and the real agent beside it.

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::TcpListener as StdListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_agent::enrolment::{Enrolment, Existing, JoinSource};
use fleetsock_proto::{
    client::{OperatorClient, Target},
    host::{Host, HostSelector},
    time::Timestamp,
    tls,
    token::{NewToken, TokenPurpose},
};
use fleetsock_server::{
    authority::Authority,
    config::{Config, NewFleet},
    history::sqlite::SqliteHistory,
    serve::{self, serve},
    setup,
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

/// The argument with which a bench runs itself as the server.
pub(crate) const SERVE: &str = "serve";
const PATIENCE: Duration = Duration::from_secs(120);

/// Is the server, until it is killed.
pub(crate) fn be_the_server(folder: &Path) {
    tls::install_provider();
    Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let listen = listener.local_addr().unwrap();
        let trust_domain = "fleetsock.internal".parse().unwrap();
        let fleet = NewFleet { trust_domain, listen, address: listen.to_string().parse().unwrap() };
        setup::init(folder, &fleet, Timestamp::now()).unwrap();
        let mut config = Config::load(folder, None).unwrap();
        config.heartbeat = Duration::from_secs(1);
        let authority = Authority::load(&config.ca, &config.trust_domain, Timestamp::now()).unwrap();
        let store = Arc::new(SqliteHistory::open(&config.history, setup::history_options(&config)).unwrap());
        let foundation =
            serve::Foundation { config, authority: Arc::new(authority), store, health: None, clock: Timestamp::now };
        serve(foundation, listener, CancellationToken::new()).await.unwrap();
    });
}

/// A server and a host that is enrolled.
pub(crate) struct Fleet {
    server: Child,
    folder: tempfile::TempDir,
    runtime: Runtime,
}

/// The real agent; it ends with this.
pub(crate) struct Agent(Child);

impl Fleet {
    pub(crate) fn start() -> Fleet {
        tls::install_provider();
        let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let server = Command::new(env::current_exe().unwrap())
            .arg(SERVE)
            .arg(folder.path().join("server"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let fleet = Fleet { server, folder, runtime };
        until("the server serves", || fleet.runtime.block_on(OperatorClient::connect(fleet.target())).ok());
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses: 1, purpose, note: String::new() };
        let join = fleet.ask(async |mut server| server.create_token(token).await.unwrap().1);
        let enrolment = Enrolment {
            state: fleet.agent_state(),
            join: JoinSource::Text(join),
            name: "bench".to_owned(),
            existing: Existing::Keep,
        };
        fleet.runtime.block_on(enrolment.run()).unwrap();
        fleet
    }

    fn target(&self) -> Target {
        Target::Local(self.folder.path().join("server/admin.sock"))
    }

    fn agent_state(&self) -> PathBuf {
        self.folder.path().join("agent")
    }

    /// Asks the server.
    pub(crate) fn ask<T>(&self, question: impl AsyncFnOnce(OperatorClient) -> T) -> T {
        self.runtime.block_on(async { question(OperatorClient::connect(self.target()).await.unwrap()).await })
    }

    pub(crate) fn host(&self) -> Option<Host> {
        let hosts =
            async |mut server: OperatorClient| server.list_hosts(HostSelector::default()).await?.collect().await;
        self.ask(hosts).unwrap().0.into_iter().next()
    }

    /// Runs the agent with its default settings, and waits until the server hears it.
    pub(crate) fn agent(&self) -> Agent {
        let log = File::create(self.folder.path().join("agent.log")).unwrap();
        let began = Timestamp::now();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fleetsock-agent"));
        command.args(["run", "--name", "bench", "--state"]).arg(self.agent_state());
        let agent = Agent(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap());
        // Not the one before it.
        until("the agent is heard", || self.host().filter(|host| host.last_seen_at > Some(began)));
        agent
    }

    /// What the agent wrote.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap()
    }
}

impl Agent {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// Waits until something real has happened.
pub(crate) fn until<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(outcome) = happened() {
            return outcome;
        }
        assert!(begun.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// CPU of a process that runs, all threads, user and system: /proc/PID/stat, in ticks of 10 ms (proc_pid_stat(5)).
pub(crate) fn cpu_of(pid: u32) -> Duration {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// The first line that a child writes.
pub(crate) fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}
