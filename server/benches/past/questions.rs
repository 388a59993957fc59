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
    table::p50_p99,
};

struct Asking<'a> {
    history: &'a SqliteHistory,
    days: i64,
    times: usize,
}

/// A question, and how long its answers took.
pub(crate) struct Answered {
    pub(crate) what: &'static str,
    /// Rows of the middle answer.
    pub(crate) rows: usize,
    /// p50 and p99, ms.
    pub(crate) took: (f64, f64),
}

/// Asks all questions, each so many times.
pub(crate) async fn ask_all(history: &SqliteHistory, sessions: u64, times: usize) -> Vec<Answered> {
    let days = i64::try_from(sessions / DAY_SESSIONS).unwrap().max(1);
    let asking = Asking { history, days, times };
    let mut told = Vec::new();
    let day = |turn: usize| {
        let since = BEGIN_US + DAY_US * (mixed(turn as u64) as i64).rem_euclid(days);
        (Timestamp::from_micros(since), Timestamp::from_micros(since + DAY_US))
    };
    let of_day = |turn| SessionTime::Within { since: day(turn).0, until: Some(day(turn).1) };
    let all = SessionTime::Within { since: Timestamp::MIN, until: None };
    let newest = |turn| SessionQuestion { limit: Some(100), ..of(host(turn), of_day(turn)) };
    told.push(asking.sessions("a host, a day, newest 100", newest).await);
    told.push(asking.sessions("a host, a day, all", |turn| of(host(turn), of_day(turn))).await);
    let peer = |prefix: IpNet| SessionQuestion { peers: vec![prefix], ..of(SocketFilter::default(), all) };
    let v4 = |turn: usize| (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv4).unwrap();
    let v6 = |turn: usize| (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv6).unwrap();
    told.push(asking.sessions("an external peer, IPv4, all history", |turn| peer(v4(turn).into())).await);
    told.push(asking.sessions("an external peer, IPv6, all history", |turn| peer(v6(turn).into())).await);
    told.push(
        asking
            .sessions("a host of the fleet as peer, all history", |turn| peer(address(turn * 37 % HOSTS).into()))
            .await,
    );
    let nobody = |turn: usize| IpAddr::from([1, 1, (turn >> 8) as u8, turn as u8]);
    told.push(asking.sessions("a peer that was never there", |turn| peer(nobody(turn).into())).await);
    told.push(asking.sessions("a /24, all history", |turn| peer(IpNet::new(v4(turn), 24).unwrap().trunc())).await);
    let well_known = SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() };
    let then = |turn: usize| SessionTime::At(Timestamp::from_micros(day(turn).0.as_micros() + DAY_US / 2));
    let few = Asking { times: times.min(10), ..asking };
    let open_then = |turn| of(well_known.clone(), then(turn));
    told.push(few.sessions("open at a moment, class well-known", open_then).await);
    let by = |dimensions: &'static [Dimension]| {
        move |turn| SummaryQuestion {
            sockets: of(SocketFilter::default(), of_day(turn)),
            by: dimensions.to_vec(),
            limit: None,
        }
    };
    told.push(few.sums("a day by class and hour", by(&[Dimension::Class, Dimension::Hour])).await);
    told.push(few.sums("a day by host and process", by(&[Dimension::Host, Dimension::Process])).await);
    told
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

    async fn sessions(&self, what: &'static str, question: impl Fn(usize) -> SessionQuestion) -> Answered {
        let mut told = Told::default();
        for turn in 0..=self.times {
            let (rows, chunks) = mpsc::channel(4);
            told.time(self.history.list_sessions(question(turn), self.now(), rows), chunks).await;
        }
        told.answered(what)
    }

    async fn sums(&self, what: &'static str, question: impl Fn(usize) -> SummaryQuestion) -> Answered {
        let mut told = Told::default();
        for turn in 0..=self.times {
            let (rows, chunks) = mpsc::channel(4);
            told.time(self.history.summarize(question(turn), self.now(), rows), chunks).await;
        }
        told.answered(what)
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
    fn answered(mut self, what: &'static str) -> Answered {
        self.ms.remove(0);
        self.rows.sort_unstable();
        Answered { what, rows: self.rows[self.rows.len() / 2], took: p50_p99(self.ms) }
    }
}
