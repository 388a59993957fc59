//! Questions about the past, each asked often of other hosts, peers and times.

use std::{net::IpAddr, time::Instant};

use fleetsock_proto::{
    port::PortClass,
    question::{SessionQuestion, SessionTime, SocketFilter, SummaryQuestion},
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{History, HistoryError, sqlite::SqliteHistory};
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{
    fleet::{DAY_SESSIONS, DAY_US, HOSTS, address, client},
    load::{BEGIN_US, mixed},
};

struct Asking<'a> {
    history: &'a SqliteHistory,
    days: i64,
    times: usize,
}

pub(crate) async fn ask_all(history: &SqliteHistory, sessions: u64, times: usize) {
    let days = i64::try_from(sessions / DAY_SESSIONS).unwrap().max(1);
    let asking = Asking { history, days, times };
    println!("\n| question | rows | p50 ms | p99 ms |\n|---|---|---|---|");
    let day = |turn: usize| {
        let since = BEGIN_US + DAY_US * (mixed(turn as u64) as i64).rem_euclid(days);
        (Timestamp::from_micros(since), Timestamp::from_micros(since + DAY_US))
    };
    let of_day = |turn| SessionTime::Within { since: day(turn).0, until: Some(day(turn).1) };
    let all = SessionTime::Within { since: Timestamp::MIN, until: None };
    let newest = |turn| SessionQuestion { limit: Some(100), ..of(host(turn), of_day(turn)) };
    asking.sessions("a host, a day, newest 100", newest).await;
    asking.sessions("a host, a day, all", |turn| of(host(turn), of_day(turn))).await;
    let peer = |prefix: IpNet| SessionQuestion { peers: vec![prefix], ..of(SocketFilter::default(), all) };
    let v4 = |turn: usize| (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv4).unwrap();
    let v6 = |turn: usize| (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv6).unwrap();
    asking.sessions("an external peer, IPv4, all history", |turn| peer(v4(turn).into())).await;
    asking.sessions("an external peer, IPv6, all history", |turn| peer(v6(turn).into())).await;
    asking.sessions("a host of the fleet as peer, all history", |turn| peer(address(turn * 37 % HOSTS).into())).await;
    let nobody = |turn: usize| IpAddr::from([1, 1, (turn >> 8) as u8, turn as u8]);
    asking.sessions("a peer that was never there", |turn| peer(nobody(turn).into())).await;
    asking.sessions("a /24, all history", |turn| peer(IpNet::new(v4(turn), 24).unwrap().trunc())).await;
    let well_known = SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() };
    let then = |turn: usize| SessionTime::At(Timestamp::from_micros(day(turn).0.as_micros() + DAY_US / 2));
    let few = Asking { times: times.min(10), ..asking };
    few.sessions("open at a moment, class well-known", |turn| of(well_known.clone(), then(turn))).await;
    few.sums("a day by class and hour", |turn| SummaryQuestion {
        sockets: of(SocketFilter::default(), of_day(turn)),
        by: vec![Dimension::Class, Dimension::Hour],
        limit: None,
    })
    .await;
}

fn of(filter: SocketFilter, time: SessionTime) -> SessionQuestion {
    SessionQuestion { filter, time, ..SessionQuestion::default() }
}

/// Busy ones and quiet ones.
fn host(turn: usize) -> SocketFilter {
    let mut filter = SocketFilter::default();
    filter.hosts.globs = vec![format!("host{:05}", turn * 37 % HOSTS)];
    filter
}

impl Asking<'_> {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(BEGIN_US + DAY_US * self.days)
    }

    async fn sessions(&self, what: &str, question: impl Fn(usize) -> SessionQuestion) {
        let mut told = Told::default();
        for turn in 0..=self.times {
            let (rows, chunks) = mpsc::channel(4);
            told.time(self.history.list_sessions(question(turn), self.now(), rows), chunks).await;
        }
        told.line(what);
    }

    async fn sums(&self, what: &str, question: impl Fn(usize) -> SummaryQuestion) {
        let mut told = Told::default();
        for turn in 0..=self.times {
            let (rows, chunks) = mpsc::channel(4);
            told.time(self.history.summarize(question(turn), self.now(), rows), chunks).await;
        }
        told.line(what);
    }
}

/// Answers of one question.
#[derive(Default)]
struct Told {
    rows: Vec<usize>,
    ms: Vec<f64>,
}

impl Told {
    /// Takes the rows of an answer while it is made.
    async fn time<T, A>(
        &mut self,
        answer: impl Future<Output = Result<A, HistoryError>>,
        mut chunks: mpsc::Receiver<Vec<T>>,
    ) {
        let begun = Instant::now();
        let take = async {
            let mut count = 0;
            while let Some(chunk) = chunks.recv().await {
                count += chunk.len();
            }
            count
        };
        let (meta, count) = tokio::join!(answer, take);
        meta.unwrap();
        self.ms.push(begun.elapsed().as_secs_f64() * 1000.0);
        self.rows.push(count);
    }

    /// The first time, which meets a cold cache, is left out.
    fn line(mut self, what: &str) {
        self.ms.remove(0);
        self.ms.sort_by(f64::total_cmp);
        self.rows.sort_unstable();
        let at = |part: f64| self.ms[((self.ms.len() - 1) as f64 * part).round() as usize];
        println!("| {what} | {} | {:.2} | {:.2} |", self.rows[self.rows.len() / 2], at(0.5), at(0.99));
    }
}
