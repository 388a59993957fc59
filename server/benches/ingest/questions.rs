//! How long answers take: 1,000 hosts with 20 listeners each, and a great many closed sessions.

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Instant,
};

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    owner::Owner,
    port::PortClass,
    question::{PortQuestion, SessionQuestion, SessionTime, SocketFilter},
    socket::SocketState,
    time::Timestamp,
};
use fleetsock_server::history::{
    Applied, History,
    sqlite::{Options, SqliteHistory},
};
use tokio::{sync::mpsc, task::JoinSet};

use super::load::{BATCH_ROWS, BEGIN_US, batch, enrol, session};

const HOSTS: usize = 1000;
/// Five of them well-known.
const PORTS: [u16; 20] =
    [22, 53, 80, 111, 443, 2000, 3000, 3306, 5000, 5290, 5432, 6379, 8000, 8008, 8080, 8443, 9090, 9100, 50000, 60000];

/// A history with a fleet in it.
pub(crate) struct Fleet {
    history: SqliteHistory,
    sessions: usize,
}

fn owner(number: usize) -> Arc<Owner> {
    let process = format!("daemon{number}");
    Arc::new(Owner {
        pid: 1000 + number as u32,
        started_at: Some(Timestamp::from_micros(BEGIN_US)),
        exe: format!("/usr/sbin/{process}"),
        uid: number as u32,
        user: process.clone(),
        container: String::new(),
        unit: format!("{process}.service"),
        command_line: String::new(),
        process,
    })
}

fn listeners(host: usize, owners: &[Arc<Owner>]) -> Vec<Change> {
    let listener = |(number, port): (usize, &u16)| {
        let base = session(host, 1_000_000 + number as u64, owners);
        let socket = Socket {
            role: Role::Listener,
            state: SocketState::Listen,
            local: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), *port),
            owners: vec![Arc::clone(&owners[number])],
            opened_at: Timestamp::from_micros(BEGIN_US),
            ..base
        };
        Change { op: Op::Present, socket }
    };
    PORTS.iter().enumerate().map(listener).collect()
}

impl Fleet {
    /// Builds it by way of the history itself.
    pub(crate) async fn build(folder: &Path, sessions: usize) -> Fleet {
        let history = Arc::new(SqliteHistory::open(folder, Options::default()).unwrap());
        let owners: Arc<[_]> = (0..PORTS.len()).map(owner).collect();
        let batches = (sessions / BATCH_ROWS / HOSTS) as u64;
        let mut reporting = JoinSet::new();
        for (number, host) in enrol(&history, HOSTS).await.into_iter().enumerate() {
            let (history, owners) = (Arc::clone(&history), Arc::clone(&owners));
            reporting.spawn(async move {
                history.apply(host, batch(1, listeners(number, &owners))).await.unwrap();
                for seq in 2..batches + 2 {
                    let first = (seq - 2) * BATCH_ROWS as u64;
                    let ended = |cookie| {
                        let socket = session(number, cookie, &owners);
                        let at = Timestamp::from_micros(socket.opened_at.as_micros() + 1_000_000);
                        Change { op: Op::Closed { at, known: socket.opened_known }, socket }
                    };
                    let changes = (first..first + BATCH_ROWS as u64).map(ended).collect();
                    assert_eq!(history.apply(host, batch(seq, changes)).await.unwrap(), Applied::Committed);
                }
            });
        }
        reporting.join_all().await;
        Fleet { history: Arc::into_inner(history).unwrap(), sessions: batches as usize * BATCH_ROWS * HOSTS }
    }

    pub(crate) async fn ask_all(&self, times: usize) {
        println!(
            "\n| {HOSTS} hosts, {} listeners, {} closed sessions | rows | p50 ms | p99 ms |",
            HOSTS * PORTS.len(),
            self.sessions
        );
        println!("|---|---|---|---|");
        let ports = |filter| PortQuestion { filter, ..PortQuestion::default() };
        let well_known = SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() };
        let one = SocketFilter { ports: vec!["443".parse().unwrap()], ..SocketFilter::default() };
        self.ask_ports("`ports --class well-known`", times, |_| ports(well_known.clone())).await;
        self.ask_ports("`ports --port 443`", times, |_| ports(one.clone())).await;
        self.ask_ports("`ports --host H`", times, |turn| ports(of_host(turn))).await;
        self.ask_ports("`ports --class well-known --at T`", times, |_| PortQuestion {
            at: Some(Timestamp::from_micros(BEGIN_US + 3_600_000_000)),
            ..ports(well_known.clone())
        })
        .await;
        let time = SessionTime::Within { since: Timestamp::from_micros(BEGIN_US), until: None };
        let newest = |filter| SessionQuestion { filter, time, limit: Some(100), ..SessionQuestion::default() };
        self.ask_sessions("`sessions --host H`, newest 100", times, |turn| newest(of_host(turn))).await;
        self.ask_sessions("`sessions`, newest 100 of the fleet", times, |_| newest(SocketFilter::default())).await;
        self.ask_sessions("`sessions --peer P`, all history", times.min(10), |turn| SessionQuestion {
            peers: vec![peer_of(&session(turn, 1, &[owner(0)]))],
            limit: None,
            ..newest(SocketFilter::default())
        })
        .await;
    }

    async fn ask_ports(&self, what: &str, times: usize, question: impl Fn(usize) -> PortQuestion) {
        let mut times_ms = Vec::new();
        let mut count = 0;
        for turn in 0..=times {
            let begun = Instant::now();
            let (rows, mut chunks) = mpsc::channel::<Vec<_>>(4);
            let answer = self.history.list_ports(question(turn), Timestamp::from_micros(BEGIN_US), rows);
            count = counted(answer, &mut chunks).await;
            times_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        line(what, count, times_ms);
    }

    async fn ask_sessions(&self, what: &str, times: usize, question: impl Fn(usize) -> SessionQuestion) {
        let mut times_ms = Vec::new();
        let mut count = 0;
        for turn in 0..=times {
            let begun = Instant::now();
            let (rows, mut chunks) = mpsc::channel::<Vec<_>>(4);
            let answer = self.history.list_sessions(question(turn), Timestamp::from_micros(BEGIN_US), rows);
            count = counted(answer, &mut chunks).await;
            times_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        }
        line(what, count, times_ms);
    }
}

/// Takes the rows of an answer while it is made.
async fn counted<T, A>(
    answer: impl Future<Output = Result<A, fleetsock_server::history::HistoryError>>,
    chunks: &mut mpsc::Receiver<Vec<T>>,
) -> usize {
    let take = async {
        let mut count = 0;
        while let Some(chunk) = chunks.recv().await {
            count += chunk.len();
        }
        count
    };
    let (meta, count) = tokio::join!(answer, take);
    meta.unwrap();
    count
}

fn peer_of(socket: &Socket) -> ipnet::IpNet {
    let Role::Session { peer, .. } = socket.role else { unreachable!("a session has a peer") };
    peer.ip().into()
}

fn of_host(turn: usize) -> SocketFilter {
    let mut filter = SocketFilter::default();
    filter.hosts.globs = vec![format!("host{:05}", turn * 37 % HOSTS)];
    filter
}

/// The first time, which meets a cold cache, is left out.
fn line(what: &str, rows: usize, mut times_ms: Vec<f64>) {
    times_ms.remove(0);
    times_ms.sort_by(f64::total_cmp);
    let at = |part: f64| times_ms[((times_ms.len() - 1) as f64 * part).round() as usize];
    println!("| {what} | {rows} | {:.2} | {:.2} |", at(0.5), at(0.99));
}
