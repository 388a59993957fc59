//! An engine of the history under test, and a world of hosts in it. Knows the traits only; [`Sqlite`] is the one place
//! that names an engine.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU32, Ordering::Relaxed},
        mpsc::channel,
    },
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::{AnswerMeta, Gap},
    batch::{Batch, BatchKind, Change},
    change::ChangeRecord,
    host::{HostId, HostSelector},
    listener::Listener,
    private,
    question::{ChangeQuestion, CoverageQuestion, PortQuestion, SessionQuestion, SessionTime, SummaryQuestion},
    session::Session,
    summary::Sum,
    time::Timestamp,
    token::{NewToken, TokenPurpose},
};
use fleetsock_server::history::{
    Actor, Applied, Bounds, CHUNK_ROWS, Claim, Contact, History, HistoryError, Issue, IssuedCertificate, Labels,
    Registry, Subject,
    sqlite::{self, Keeping, OpenError, Options, Sealing, SqliteHistory},
};
use tokio::sync::mpsc;

use crate::scene::{Agent, at, facts, listener_line, session_line};

/// How an engine is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    pub(crate) stale_after: Duration,
    pub(crate) bounds: Bounds,
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { stale_after: Duration::from_secs(90), bounds: Bounds::default() }
    }
}

/// A place where an engine keeps one history.
pub(crate) trait Engine: Sized {
    type Store: History + Registry;

    /// A place with nothing in it.
    fn prepare() -> Self;

    /// The history of the place.
    async fn open(&self, rules: Rules) -> Self::Store;

    /// Lets go of it in order.
    async fn close(store: Self::Store);

    /// From now on batches fail as late as they can, when an engine stores them in more than one step.
    fn hinder(&self) {}

    /// They do not any more.
    fn relieve(&self) {}
}

/// A clock by which it is always time to look whether a file is complete, and never midnight, when one is that should not be. It
/// is that of all tests at once, so that it is set back from time to time.
pub(crate) fn hurried() -> Timestamp {
    static SECONDS: AtomicI64 = AtomicI64::new(0);
    at(SECONDS.fetch_add(2, Relaxed) % BEFORE_MIDNIGHT_S)
}

/// Seconds of the day in which the scene begins, at eleven o'clock.
const BEFORE_MIDNIGHT_S: i64 = 40_000;

/// Opens a history that may have been closed a moment ago. Another test may be between fork and exec, and then its child
/// has the lock still.
pub(crate) fn reopen(folder: &Path, options: &Options) -> SqliteHistory {
    let begun = Instant::now();
    loop {
        match SqliteHistory::open(folder, options.clone()) {
            Err(OpenError::InUse { .. }) if begun.elapsed() < Duration::from_secs(30) => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened.unwrap(),
        }
    }
}

/// Puts a copy of a history in the place of the history, once it is closed: all its files, which must be in order.
pub(crate) fn put_back(copy: &Path, names: &BTreeSet<String>, history: &Path) {
    assert_eq!(&BTreeSet::from_iter(sqlite::verify(copy).unwrap()), names);
    fs::remove_dir_all(history).unwrap();
    private::make_folder(history).unwrap();
    for name in names {
        fs::copy(copy.join(name), history.join(name)).unwrap();
    }
}

/// SQLite in a temporary folder.
pub(crate) struct Sqlite(tempfile::TempDir);

impl Engine for Sqlite {
    type Store = SqliteHistory;

    fn prepare() -> Sqlite {
        // Thousands of commits are made here and no power is cut: where memory can be had, fsync costs nothing.
        let memory = tempfile::tempdir_in("/dev/shm");
        Sqlite(memory.or_else(|_| tempfile::tempdir()).unwrap())
    }

    async fn open(&self, rules: Rules) -> SqliteHistory {
        // Files so small that whatever is tested happens across many of them.
        let keeping = Keeping { part_rows: 5, ..Keeping::default() };
        let Rules { stale_after, bounds } = rules;
        // And whenever a question is asked, some of them are sealed and others are not.
        let sealing = Sealing { pause: Duration::from_millis(1), ..Sealing::default() };
        let options = Options { stale_after, bounds, keeping, sealing, clock: hurried, ..Options::default() };
        reopen(&self.0.path().join("history"), &options)
    }

    async fn close(store: SqliteHistory) {
        store.close().await.unwrap();
    }

    fn hinder(&self) {
        // Cursors are stored last, after main.db was committed.
        self.alter_day("CREATE TRIGGER hinder BEFORE INSERT ON cursors BEGIN SELECT RAISE(ABORT, 'hindered'); END");
    }

    fn relieve(&self) {
        self.alter_day("DROP TRIGGER IF EXISTS hinder");
    }
}

impl Sqlite {
    fn alter_day(&self, sql: &str) {
        let history = self.0.path().join("history");
        let newest = "SELECT file FROM parts WHERE state = 0 ORDER BY id DESC LIMIT 1";
        let main = rusqlite::Connection::open(history.join("main.db")).unwrap();
        let file: String = main.query_row(newest, [], |row| row.get("file")).unwrap();
        rusqlite::Connection::open(history.join(file)).unwrap().execute_batch(sql).unwrap();
    }
}

/// A history with hosts in it.
pub(crate) struct World<E: Engine> {
    pub(crate) engine: E,
    pub(crate) rules: Rules,
    store: Option<Arc<E::Store>>,
    tokens: AtomicU32,
}

impl<E: Engine> World<E> {
    pub(crate) async fn new() -> World<E> {
        World::with(Rules::default()).await
    }

    pub(crate) async fn with(rules: Rules) -> World<E> {
        let engine = E::prepare();
        let store = Some(Arc::new(engine.open(rules).await));
        World { engine, rules, store, tokens: AtomicU32::new(0) }
    }

    pub(crate) fn store(&self) -> &Arc<E::Store> {
        self.store.as_ref().unwrap()
    }

    /// Stops the history and starts it again.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.begin().await;
    }

    /// Starts the history after it was stopped.
    pub(crate) async fn begin(&mut self) {
        self.store = Some(Arc::new(self.engine.open(self.rules).await));
    }

    /// Stops the history. Nothing else may hold it.
    pub(crate) async fn stop(&mut self) {
        let store = self.store.take().unwrap();
        E::close(Arc::into_inner(store).unwrap()).await;
    }

    /// Enrols a host, which then says Hello; its agent.
    pub(crate) async fn host(&self, name: &str) -> Agent {
        let host = self.enrol(name, Labels::new()).await;
        self.hello(host, name, at(0), 0).await;
        Agent::of(host)
    }

    /// Enrols a host, which stays silent.
    pub(crate) async fn enrol(&self, name: &str, labels: Labels) -> HostId {
        let number = self.tokens.fetch_add(1, Relaxed);
        let token_id = format!("t{number}");
        let token =
            NewToken { lifetime_s: 3600, uses: 1, purpose: TokenPurpose::Hosts { labels }, note: String::new() };
        self.store().create_token(token_id.clone(), [1; 32], token, actor(0)).await.unwrap();
        let claim = claim(&token_id, name, &number.to_be_bytes());
        let (issue, subject) = issue(&number.to_be_bytes());
        self.store().redeem(claim, issue).await.unwrap();
        match subject.recv().unwrap() {
            Subject::Host(host) => host,
            Subject::Operator(operator) => panic!("{operator}"),
        }
    }

    /// A host says what it is; its clock is ahead by so many microseconds.
    pub(crate) async fn hello(&self, host: HostId, name: &str, at: Timestamp, clock_offset_us: i64) {
        self.store().record_hello(host, Contact { facts: facts(name, &[]), at, clock_offset_us }).await.unwrap();
    }

    /// A batch about a walk at that second, which must be stored.
    pub(crate) async fn tell(&self, agent: &mut Agent, kind: BatchKind, walk: i64, changes: Vec<Change>) -> Batch {
        let batch = agent.batch(kind, at(walk), changes);
        assert_eq!(self.store().apply(agent.host, batch.clone()).await.unwrap(), Applied::Committed);
        batch
    }

    pub(crate) async fn ports(
        &self,
        question: PortQuestion,
        now: Timestamp,
    ) -> Result<(Vec<Listener>, AnswerMeta), HistoryError> {
        let (rows, chunks) = mpsc::channel(1);
        let (meta, rows) = tokio::join!(self.store().list_ports(question, now, rows), collect(chunks));
        Ok((rows, meta?))
    }

    pub(crate) async fn sessions(
        &self,
        question: SessionQuestion,
        now: Timestamp,
    ) -> Result<(Vec<Session>, AnswerMeta), HistoryError> {
        let (rows, chunks) = mpsc::channel(1);
        let (meta, rows) = tokio::join!(self.store().list_sessions(question, now, rows), collect(chunks));
        Ok((rows, meta?))
    }

    pub(crate) async fn changes(
        &self,
        question: ChangeQuestion,
        now: Timestamp,
    ) -> Result<(Vec<ChangeRecord>, AnswerMeta), HistoryError> {
        let (rows, chunks) = mpsc::channel(1);
        let (meta, rows) = tokio::join!(self.store().list_changes(question, now, rows), collect(chunks));
        Ok((rows, meta?))
    }

    pub(crate) async fn sums(
        &self,
        question: SummaryQuestion,
        now: Timestamp,
    ) -> Result<(Vec<Sum>, AnswerMeta), HistoryError> {
        let (rows, chunks) = mpsc::channel(1);
        let (meta, rows) = tokio::join!(self.store().summarize(question, now, rows), collect(chunks));
        Ok((rows, meta?))
    }

    /// The gaps that are over.
    pub(crate) async fn gaps(&self) -> Vec<Gap> {
        let (mut gaps, _) = self.store().list_gaps(CoverageQuestion::default(), at(1_000_000)).await.unwrap();
        gaps.retain(|gap| gap.until.is_some());
        gaps
    }

    /// The open listeners, a line each.
    pub(crate) async fn listening(&self) -> Vec<String> {
        self.listening_at(None).await
    }

    /// The listeners as of a second, a line each.
    pub(crate) async fn listening_at(&self, second: Option<i64>) -> Vec<String> {
        let question = PortQuestion { at: second.map(at), ..PortQuestion::default() };
        self.ports(question, at(1000)).await.unwrap().0.iter().map(listener_line).collect()
    }

    /// Every session that ever was, a line each.
    pub(crate) async fn all_sessions(&self) -> Vec<String> {
        self.sessions_in(SessionTime::Within { since: Timestamp::MIN, until: None }).await
    }

    /// The sessions of a time, a line each.
    pub(crate) async fn sessions_in(&self, time: SessionTime) -> Vec<String> {
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        self.sessions(question, at(1000)).await.unwrap().0.iter().map(session_line).collect()
    }

    /// The hosts that a question means, by name.
    pub(crate) async fn host_names(&self, hosts: HostSelector) -> Result<Vec<String>, HistoryError> {
        let (hosts, _) = self.store().list_hosts(hosts, at(0)).await?;
        Ok(hosts.into_iter().map(|host| host.name).collect())
    }
}

async fn collect<T>(mut chunks: mpsc::Receiver<Vec<T>>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(chunk) = chunks.recv().await {
        assert!((1..=CHUNK_ROWS).contains(&chunk.len()));
        all.extend(chunk);
    }
    all
}

/// Somebody who gives orders at that second.
pub(crate) fn actor(second: i64) -> Actor {
    Actor { name: "operator/admin/alice".to_owned(), address: "192.0.2.1".to_owned(), at: at(second) }
}

/// An attempt to use a token whose secret hashes to ones, with a key of this name.
pub(crate) fn claim(token_id: &str, host_name: &str, key: &[u8]) -> Claim {
    Claim {
        token_id: token_id.to_owned(),
        secret_hash: [1; 32],
        key_hash: padded(key),
        host_name: host_name.to_owned(),
        address: "192.0.2.7".to_owned(),
        at: at(1),
    }
}

fn padded(bytes: &[u8]) -> [u8; 32] {
    let mut padded = [0; 32];
    padded[..bytes.len()].copy_from_slice(bytes);
    padded
}

/// A certificate with this serial number; the history keeps it and does not look into it.
pub(crate) fn certificate(serial: &[u8]) -> IssuedCertificate {
    IssuedCertificate {
        serial: serial.to_vec(),
        chain_der: vec![[b"leaf ", serial].concat(), b"issuer".to_vec()],
        expires_at: at(86_400),
        spiffe_id: "spiffe://fleetsock.internal/somebody".to_owned(),
    }
}

/// Makes a certificate with this serial number, and tells for whom.
pub(crate) fn issue(serial: &[u8]) -> (Issue, std::sync::mpsc::Receiver<Subject>) {
    let (told, subject) = channel();
    let certificate = certificate(serial);
    let issue = Box::new(move |subject: &Subject| {
        // Nobody may be listening any more; the certificate is made all the same.
        drop(told.send(subject.clone()));
        Ok(certificate)
    });
    (issue, subject)
}
