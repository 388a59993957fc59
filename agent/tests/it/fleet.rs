//! A server with a fleet of its own, in this process, over real TLS on loopback; it can stop and come back.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use fleetsock_agent::{
    config::Config as AgentConfig,
    enrolment::{Enrolment, Existing, JoinSource},
    run::{Foundation, RunError, run},
};
use fleetsock_proto::{
    answer::Gap,
    client::{OperatorClient, Target},
    host::{Host, HostFacts, HostSelector, HostState},
    identity::Identity,
    listener::Listener,
    port::PortRange,
    question::{CoverageQuestion, PortQuestion, SessionQuestion, SessionTime, SocketFilter},
    session::Session,
    time::Timestamp,
    tls,
    token::{NewToken, TokenPurpose},
};
use fleetsock_server::{
    authority::Authority,
    config::{Config, NewFleet},
    history::sqlite::SqliteHistory,
    serve::{self, ServeError, serve},
    setup,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// How long anything may take to become true. Reached only when it never does.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until a question has the wanted answer.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let answered = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    answered.await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// The connections through the wire.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// Those that there were.
    pub(crate) begun: AtomicUsize,
    /// Those that there are.
    pub(crate) open: AtomicUsize,
    /// The fewest that there were at once since this was set to what there are.
    pub(crate) fewest: AtomicUsize,
}

/// The wire between agents and the server. Cutting it is what they notice first of a server that stops, so that they
/// come back by their own patience and not after the longer pause that a stopping server asks for.
struct Wire {
    traffic: Arc<Traffic>,
    whole: watch::Sender<bool>,
    carrying: JoinHandle<()>,
}

impl Wire {
    fn new(listener: TcpListener, server: SocketAddr) -> Wire {
        let (whole, watched) = watch::channel(true);
        let traffic = Arc::new(Traffic::default());
        let counted = Arc::clone(&traffic);
        let carrying = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let mut watched = watched.clone();
                let counted = Arc::clone(&counted);
                counted.begun.fetch_add(1, Ordering::SeqCst);
                counted.open.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let carry = async {
                        let mut far = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut near, &mut far).await
                    };
                    tokio::select! {
                        _ = watched.wait_for(|whole| !whole) => {}
                        _ = carry => {}
                    }
                    let open = counted.open.fetch_sub(1, Ordering::SeqCst) - 1;
                    counted.fewest.fetch_min(open, Ordering::SeqCst);
                });
            }
        });
        Wire { traffic, whole, carrying }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.carrying.abort();
    }
}

/// A fleet whose server runs or not.
pub(crate) struct Fleet {
    pub(crate) folder: tempfile::TempDir,
    wire: Wire,
    address: SocketAddr,
    /// The server's.
    clock: fn() -> Timestamp,
    running: Option<Running>,
}

struct Running {
    store: Arc<SqliteHistory>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Fleet {
    pub(crate) async fn start() -> Fleet {
        Fleet::start_at(Timestamp::now).await
    }

    /// One whose server has another clock.
    pub(crate) async fn start_at(clock: fn() -> Timestamp) -> Fleet {
        tls::install_provider();
        let folder = super::enrolment::folder();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let wire = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let outside = wire.local_addr().unwrap();
        let fleet = NewFleet {
            trust_domain: "fleetsock.internal".parse().unwrap(),
            listen: address,
            address: outside.to_string().parse().unwrap(),
        };
        setup::init(&folder.path().join("server"), &fleet, Timestamp::now()).unwrap();
        let mut fleet = Fleet { folder, wire: Wire::new(wire, address), address, clock, running: None };
        fleet.serve(listener).await;
        fleet
    }

    /// What there is between agents and the server.
    pub(crate) fn traffic(&self) -> &Traffic {
        &self.wire.traffic
    }

    pub(crate) fn server_state(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    async fn serve(&mut self, listener: TcpListener) {
        let mut config = Config::load(&self.server_state(), None).unwrap();
        config.heartbeat = Duration::from_secs(1);
        let authority = Authority::load(&config.ca, &config.trust_domain, Timestamp::now()).unwrap();
        let store = Arc::new(SqliteHistory::open(&config.history, setup::history_options(&config)).unwrap());
        let stop = CancellationToken::new();
        let foundation = serve::Foundation {
            config,
            authority: Arc::new(authority),
            store: Arc::clone(&store),
            health: None,
            clock: self.clock,
        };
        let serving = tokio::spawn(serve(foundation, listener, stop.clone()));
        self.running = Some(Running { store, stop, serving });
        until("the server serves", async || self.try_local().await.map(drop)).await;
    }

    /// Stops the server and waits until everything that it began is over.
    pub(crate) async fn stop(&mut self) {
        let Running { store, stop, serving } = self.running.take().unwrap();
        self.wire.whole.send_replace(false);
        stop.cancel();
        serving.await.unwrap().unwrap();
        store.close().await.unwrap();
    }

    /// Starts it again, with the right clock.
    pub(crate) async fn come_back_in_time(&mut self) {
        self.clock = Timestamp::now;
        self.come_back().await;
    }

    /// Starts it again, where it was.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener).await;
        self.wire.whole.send_replace(true);
    }

    async fn try_local(&self) -> Option<OperatorClient> {
        OperatorClient::connect(Target::Local(self.server_state().join("admin.sock"))).await.ok()
    }

    pub(crate) async fn local(&self) -> OperatorClient {
        self.try_local().await.unwrap()
    }

    pub(crate) async fn join(&self) -> String {
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses: 1, purpose, note: String::new() };
        self.local().await.create_token(token).await.unwrap().1
    }

    /// Enrols a host and gives the folder of its agent.
    pub(crate) async fn enrol(&self, name: &str) -> PathBuf {
        let state = self.folder.path().join(name);
        let join = JoinSource::Text(self.join().await);
        let enrolment = Enrolment { state: state.clone(), join, name: name.to_owned(), existing: Existing::Keep };
        enrolment.run().await.unwrap();
        state
    }

    /// The listeners that the server knows to be open, by port.
    pub(crate) async fn listener(&self, port: u16) -> Option<Listener> {
        let (rows, _) = self.local().await.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
        rows.into_iter().find(|row| row.port == port)
    }

    /// Whether a host is heard.
    pub(crate) async fn online(&self) -> bool {
        let hosts = self.local().await.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap().0;
        hosts.iter().any(|host| host.state == HostState::Online)
    }

    pub(crate) async fn host(&self) -> Option<Host> {
        let (rows, _) = self.local().await.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
        rows.into_iter().next()
    }

    /// All sessions of the service at this port that the server knows of, open or over.
    pub(crate) async fn sessions(&self, port: u16) -> Vec<Session> {
        let filter = SocketFilter { ports: vec![PortRange::new(port, port).unwrap()], ..SocketFilter::default() };
        let time = SessionTime::Within { since: Timestamp::MIN, until: None };
        let question = SessionQuestion { filter, time, ..SessionQuestion::default() };
        self.local().await.list_sessions(question).await.unwrap().collect().await.unwrap().0
    }

    /// What the host says of itself, when it did.
    pub(crate) async fn facts(&self) -> HostFacts {
        until("the host reports", async || self.host().await.and_then(|host| host.facts)).await
    }

    pub(crate) async fn gaps(&self) -> Vec<Gap> {
        let question = CoverageQuestion::default();
        self.local().await.list_coverage(question).await.unwrap().collect().await.unwrap().0
    }
}

/// An agent in this process.
pub(crate) struct Agent {
    // Dropped by a test that fails, it ends the agent's thread, which the runtime waits for.
    stop: DropGuard,
    running: JoinHandle<Result<(), RunError>>,
}

impl Agent {
    pub(crate) fn start(state: &Path, config: AgentConfig, clock: fn() -> Timestamp) -> Agent {
        let stop = CancellationToken::new();
        let foundation = Foundation { state: state.to_owned(), config, clock };
        let running = tokio::spawn(run(foundation, stop.clone(), || {}));
        Agent { stop: stop.drop_guard(), running }
    }

    pub(crate) async fn stop(self) {
        drop(self.stop);
        self.running.await.unwrap().unwrap();
    }
}

/// Walks often, so that tests are short.
pub(crate) fn eager(name: &str) -> AgentConfig {
    AgentConfig { walk: Duration::from_millis(100), name: Some(name.parse().unwrap()), ..AgentConfig::default() }
}

/// The identity in a folder.
pub(crate) fn identity(state: &Path) -> Identity {
    Identity::load(state).unwrap()
}
