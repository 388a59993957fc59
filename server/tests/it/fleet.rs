//! A server with a fleet of its own, in this process, over real TLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleetsock_proto::{
    client::{OperatorClient, Target, enroll},
    identity::{Identity, Key},
    spiffe::TrustDomain,
    time::Timestamp,
    tls,
    token::{Conditions, NewToken, Operator, Role, TokenPurpose},
};
use fleetsock_server::{
    authority::Authority,
    config::{Config, NewFleet},
    history::sqlite::SqliteHistory,
    serve::{Foundation, ServeError, serve},
    setup,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

/// A running server. Dropping it stops nothing: call [`Fleet::stop`].
pub(crate) struct Fleet {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) address: SocketAddr,
    /// Where it tells how it is.
    pub(crate) health: SocketAddr,
    pub(crate) store: Arc<SqliteHistory>,
    stop: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Fleet {
    pub(crate) async fn start() -> Fleet {
        Fleet::start_with(|_| {}).await
    }

    /// Makes and serves a fleet whose settings were changed by `change`.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Fleet {
        Fleet::start_as_of(Timestamp::now(), change).await
    }

    /// The same with a certificate of the server that was made at that moment.
    pub(crate) async fn start_as_of(at: Timestamp, change: impl FnOnce(&mut Config)) -> Fleet {
        tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let fleet = NewFleet {
            trust_domain: "fleetsock.internal".parse().unwrap(),
            listen: address,
            address: address.to_string().parse().unwrap(),
        };
        let state = folder.path().join("server");
        setup::init(&state, &fleet, Timestamp::now()).unwrap();
        let mut config = Config::load(&state, None).unwrap();
        change(&mut config);
        std::fs::remove_file(config.ca.join("server-leaf.pem")).unwrap();
        let authority = Authority::load(&config.ca, &config.trust_domain, at).unwrap();
        Fleet::serve(folder, config, authority, listener).await
    }

    async fn serve(folder: tempfile::TempDir, config: Config, authority: Authority, listener: TcpListener) -> Fleet {
        let address = listener.local_addr().unwrap();
        let store = Arc::new(SqliteHistory::open(&config.history, setup::history_options(&config)).unwrap());
        let stop = CancellationToken::new();
        let watched = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let health = watched.local_addr().unwrap();
        let foundation = Foundation {
            config: config.clone(),
            authority: Arc::new(authority),
            store: Arc::clone(&store),
            health: Some(watched),
            clock: Timestamp::now,
        };
        let serving = tokio::spawn(serve(foundation, listener, stop.clone()));
        while std::os::unix::net::UnixStream::connect(&config.admin_socket).is_err() {
            tokio::task::yield_now().await;
        }
        Fleet { folder, config, address, health, store, stop, serving }
    }

    /// Stops the server and waits until everything that it began is over.
    pub(crate) async fn stop(self) {
        self.stop_and_keep().await;
    }

    /// The same, and its folder stays as long as what is given back.
    pub(crate) async fn stop_and_keep(self) -> tempfile::TempDir {
        self.stop.cancel();
        self.serving.await.unwrap().unwrap();
        self.store.close().await.unwrap();
        self.folder
    }

    /// Stops the server and starts another one on what it left.
    pub(crate) async fn restart(self) -> Fleet {
        self.restart_after(|_| {}).await
    }

    /// The same after something was done to the state folder.
    pub(crate) async fn restart_after(self, between: impl FnOnce(&Path)) -> Fleet {
        let Fleet { folder, config, address, store, stop, serving, .. } = self;
        stop.cancel();
        serving.await.unwrap().unwrap();
        store.close().await.unwrap();
        drop(store);
        between(&folder.path().join("server"));
        let authority = Authority::load(&config.ca, &config.trust_domain, Timestamp::now()).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        Fleet::serve(folder, config, authority, listener).await
    }

    pub(crate) fn trust_domain(&self) -> &TrustDomain {
        &self.config.trust_domain
    }

    pub(crate) fn ca_file(&self, name: &str) -> PathBuf {
        self.config.ca.join(name)
    }

    /// The local admin.
    pub(crate) async fn local(&self) -> OperatorClient {
        OperatorClient::connect(Target::Local(self.config.admin_socket.clone())).await.unwrap()
    }

    /// An identity of an operator.
    pub(crate) async fn operator(&self, name: &str, role: Role) -> Identity {
        self.local().await.issue_operator(Operator::new(name, role).unwrap()).await.unwrap()
    }

    /// An operator who is connected.
    pub(crate) async fn connected(&self, name: &str, role: Role) -> OperatorClient {
        let identity = Box::new(self.operator(name, role).await);
        OperatorClient::connect(Target::Remote(identity)).await.unwrap()
    }

    /// A join string for hosts.
    pub(crate) async fn join(&self, uses: u32) -> String {
        self.join_under(uses, Conditions::default()).await
    }

    /// The same under conditions.
    pub(crate) async fn join_under(&self, uses: u32, conditions: Conditions) -> String {
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses, purpose, note: String::new() };
        self.local().await.create_token_under(token, conditions).await.unwrap().1
    }

    /// An identity of an agent.
    pub(crate) async fn agent(&self, host_name: &str) -> Identity {
        let join = self.join(1).await.parse().unwrap();
        enroll(&join, host_name, Key::generate().unwrap()).await.unwrap()
    }

    /// A TLS connection, whatever comes of it.
    pub(crate) async fn tls(&self, name: &str, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(self.address).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }
}
