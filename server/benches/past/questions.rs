//! Questions about the past, each asked often of other hosts, peers and times.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    change::{ChangeKind, ChangeSubject},
    port::{PortClass, PortRange},
    question::{ChangeQuestion, Pairing, PortQuestion, SessionQuestion, SessionTime, SocketFilter, SummaryQuestion},
    socket::Direction,
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{History, HistoryError, sqlite::SqliteHistory};
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{
    fleet::{CLIENTS, DAY_SESSIONS, DAY_US, HOSTS, address, client},
    load::{BEGIN_US, mixed},
    table::{median, p50_p99},
};

#[derive(Clone, Copy)]
struct Asking<'a> {
    history: &'a SqliteHistory,
    days: i64,
    /// How many times, how often these, and for how long at least.
    times: usize,
    again: usize,
    lasts: Duration,
    only: &'a str,
}

/// p50 and p99, ms.
pub(crate) type Took = (f64, f64);

/// Rows of the first page of an answer.
const PAGE: u32 = 100;

/// A question, and what the design measured of one like it over 100 million sessions.
type Question = (&'static str, Option<Took>);

/// A question, and how long its answers took.
pub(crate) struct Answered {
    pub(crate) what: &'static str,
    /// What the design measured of one like it over 100 million sessions.
    pub(crate) designed: Option<Took>,
    /// Rows of the middle answer.
    pub(crate) rows: usize,
    pub(crate) took: Took,
}

impl Answered {
    /// The line of a table: what was measured, beside what the design measured, and both ratios.
    pub(crate) fn line(&self, how: &str) -> [String; 4] {
        let Answered { what, designed, rows, took: (p50, p99) } = self;
        let (beside, ratios) = match designed {
            Some((middle, late)) => {
                (format!("designed: p50 {middle}, p99 {late} ms"), format!("{:.2}, {:.2}", p50 / middle, p99 / late))
            }
            None => (String::new(), String::new()),
        };
        [format!("{how}: {what} ({rows} rows)"), format!("p50 {p50:.2}, p99 {p99:.2} ms"), beside, ratios]
    }
}

/// All questions are asked in so many rounds, of which the middle one counts: one may meet a time in which the machine did
/// something else as well.
const ROUNDS: usize = 5;
/// Of quick questions all are asked so often in each round.
const AGAIN: usize = 2;
/// And again until so long has passed: two hundred that take a fifth of a millisecond would tell how it was for 40 ms, just
/// after the question before.
const LASTS: Duration = Duration::from_secs(1);

/// Asks all questions whose words have `only` in them, each so many times in each round.
pub(crate) async fn ask_all(history: &SqliteHistory, sessions: u64, (times, only): (usize, &str)) -> Vec<Answered> {
    let mut rounds = Vec::with_capacity(ROUNDS);
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        rounds.push(ask_once(history, sessions, (times, only)).await);
    }
    let mut answered = rounds.swap_remove(0);
    for (place, one) in answered.iter_mut().enumerate() {
        let took = || rounds.iter().map(|round| round[place].took).chain([one.took]);
        one.took = (median(took().map(|(p50, _)| p50).collect()), median(took().map(|(_, p99)| p99).collect()));
    }
    answered
}

async fn ask_once(history: &SqliteHistory, sessions: u64, (times, only): (usize, &str)) -> Vec<Answered> {
    let days = i64::try_from(sessions / DAY_SESSIONS).unwrap().max(1);
    let asking = Asking { history, days, times, again: 1, lasts: Duration::ZERO, only };
    let quick = Asking { again: AGAIN, lasts: LASTS, ..asking };
    let mut told = Vec::new();
    let day = |turn: usize| {
        let since = begin_us(turn, days);
        (Timestamp::from_micros(since), Timestamp::from_micros(since + DAY_US))
    };
    let of_day = |turn| SessionTime::Within { since: day(turn).0, until: Some(day(turn).1) };
    let all = SessionTime::Within { since: Timestamp::MIN, until: None };
    let newest = |turn| SessionQuestion { limit: Some(PAGE), ..of(host(turn), of_day(turn)) };
    told.extend(quick.sessions(("a host, a day, newest 100", Some((0.57, 1.9))), newest).await);
    // The design's does not look for the other ends of sessions whose peers are hosts of the fleet.
    let alone = |turn| SessionQuestion { pairing: Pairing::Never, ..newest(turn) };
    told.extend(quick.sessions(("a host, a day, newest 100 without their other ends", Some((0.57, 1.9))), alone).await);
    let whole = |turn| of(host(turn), of_day(turn));
    told.extend(quick.sessions(("a host, a day, all", Some((10.5, 200.0))), whole).await);
    let peer = |prefix: IpNet| SessionQuestion { peers: vec![prefix], ..of(SocketFilter::default(), all) };
    let what = ("an external peer, IPv4, all history", Some((4.5, 37.0)));
    told.extend(quick.sessions(what, |turn| peer(v4(turn).into())).await);
    let what = ("an external peer, IPv6, all history", Some((3.0, 27.0)));
    told.extend(quick.sessions(what, |turn| peer(v6(turn).into())).await);
    let of_fleet = |turn: usize| peer(address(turn * 37 % HOSTS).into());
    let first = |turn| SessionQuestion { limit: Some(PAGE), ..of_fleet(turn) };
    told.extend(quick.sessions(("a host of the fleet as peer, newest 100", Some((10.2, 34.0))), first).await);
    told.extend(asking.sessions(("a host of the fleet as peer, all history", None), of_fleet).await);
    let what = ("a peer that was never there", Some((0.23, 0.34)));
    told.extend(quick.sessions(what, |turn| peer(nobody(turn).into())).await);
    // The middle one of the design's networks costs an eighth of its middle address: they are drawn like this.
    let of_any = |turn| peer(within(any(turn), 24));
    told.extend(quick.sessions(("a /24, all history", Some((0.58, 108.0))), of_any).await);
    let of_busy = |turn| peer(within(v4(turn), 24));
    told.extend(quick.sessions(("a /24 of a busy client, all history", None), of_busy).await);
    let first = |turn| SessionQuestion { limit: Some(PAGE), ..peer(within(any(turn), 16)) };
    told.extend(quick.sessions(("a /16, newest 100", Some((1.2, 113.0))), first).await);
    let first = |turn| SessionQuestion { limit: Some(PAGE), ..peer(within(v4(turn), 16)) };
    told.extend(quick.sessions(("a /16 of a busy client, newest 100", None), first).await);
    let well_known = SocketFilter { classes: vec![PortClass::WellKnown], ..SocketFilter::default() };
    let then = |turn: usize| SessionTime::At(Timestamp::from_micros(day(turn).0.as_micros() + DAY_US / 2));
    let few = Asking { times: times.min(10), ..asking };
    let open_then = |turn| of(well_known.clone(), then(turn));
    told.extend(few.sessions(("open at a moment, class well-known", Some((135.0, 446.0))), open_then).await);
    let by = |dimensions: &'static [Dimension]| {
        move |turn| SummaryQuestion {
            sockets: of(SocketFilter::default(), of_day(turn)),
            by: dimensions.to_vec(),
            limit: None,
        }
    };
    // The design's sums that are kept beside the rows have no listeners. Of a scan it has 335 and 349 ms.
    let alone = |question: SummaryQuestion| {
        let sockets = SessionQuestion { directions: Direction::ALL.to_vec(), ..question.sockets };
        SummaryQuestion { sockets, ..question }
    };
    for (dimensions, words, designed) in [
        (&[Dimension::Class, Dimension::Hour], ["a day's sessions by class and hour", "a day by class and hour"], 1.0),
        (
            &[Dimension::Host, Dimension::Process],
            ["a day's sessions by host and process", "a day by host and process"],
            6.0,
        ),
    ] {
        let question = by(dimensions);
        told.extend(quick.sums((words[0], Some((designed, designed))), |turn| alone(question(turn))).await);
        told.extend(asking.sums((words[1], None), question).await);
    }
    let peers = |hosts: SocketFilter, turn| SummaryQuestion {
        sockets: of(hosts, of_day(turn)),
        by: vec![Dimension::Peer],
        limit: Some(20),
    };
    let of_host = |turn| peers(host(turn), turn);
    told.extend(quick.sums(("a host, its day by peer, the first 20", None), of_host).await);
    let of_all = |turn| peers(SocketFilter::default(), turn);
    let what = ("a day by peer, the first 20", Some((83.0, 129.0)));
    told.extend(few.sums(what, of_all).await);
    let week = |turn: usize| {
        let time = SessionTime::Within { since: day(turn).0, until: Some(later(day(turn).0, 7 * DAY_US)) };
        let by = vec![Dimension::Class, Dimension::Hour];
        SummaryQuestion { sockets: of(SocketFilter::default(), time), by, limit: None }
    };
    told.extend(few.sums(("seven days by class and hour", Some((3336.0, 3336.0))), week).await);
    // All clients with IPv6 are in one /48; they are in as many /64 as the design's were in /48.
    let of_any = |turn| peer(within(any_v6(turn), 64));
    told.extend(quick.sessions(("a /64 of IPv6, all history", Some((0.46, 40.0))), of_any).await);
    let of_busy = |turn| peer(within(v6(turn), 64));
    told.extend(quick.sessions(("a /64 of IPv6 of a busy client, all history", None), of_busy).await);

    let ports = |filter: SocketFilter, at| PortQuestion { filter, at, ..PortQuestion::default() };
    let what = ("listeners, class well-known", Some((3.4, 7.5)));
    told.extend(quick.ports(what, |_| ports(well_known.clone(), None)).await);
    // The design's chose the hosts by a label.
    let some = |turn: usize| {
        let mut filter = SocketFilter { ports: vec![PortRange::new(443, 443).unwrap()], ..SocketFilter::default() };
        filter.hosts.globs = vec![ten_hosts(turn)];
        filter
    };
    told.extend(
        quick.ports(("listeners, a port of ten hosts", Some((0.28, 0.74))), |turn| ports(some(turn), None)).await,
    );
    let what = ("listeners at a moment, class well-known", Some((8.4, 16.0)));
    told.extend(quick.ports(what, |turn| ports(well_known.clone(), Some(day(turn).1))).await);

    let changed = |filter: SocketFilter, subject, turn| ChangeQuestion {
        filter,
        subjects: vec![subject],
        since: Some(day(turn).0),
        until: Some(later(day(turn).0, HOUR_US)),
        ..ChangeQuestion::default()
    };
    let new = |question: ChangeQuestion| {
        let baseline = question.since.map(|since| later(since, -7 * DAY_US));
        ChangeQuestion { baseline, kinds: vec![ChangeKind::Opened], ..question }
    };
    let fleet = |turn| new(changed(SocketFilter::default(), ChangeSubject::Listener, turn));
    let what = ("new listeners of an hour against seven days", Some((0.05, 0.5)));
    told.extend(quick.changes(what, fleet).await);
    let one = |turn| new(changed(host(turn), ChangeSubject::Session, turn));
    let what = ("a host's new peers of an hour against seven days", Some((3.5, 30.0)));
    told.extend(asking.changes(what, one).await);
    let fleet = |turn| new(changed(SocketFilter::default(), ChangeSubject::Session, turn));
    let what = ("new peers of an hour against seven days, newest 100", Some((134.0, 232.0)));
    let first = |turn| ChangeQuestion { limit: Some(PAGE), ..fleet(turn) };
    told.extend(few.changes(what, first).await);
    let what = ("new peers of an hour against seven days, all", Some((134.0, 232.0)));
    let once = Asking { times: 1, ..asking };
    told.extend(once.changes(what, fleet).await);
    told
}

const HOUR_US: i64 = DAY_US / 24;

fn later(than: Timestamp, us: i64) -> Timestamp {
    Timestamp::from_micros(than.as_micros() + us)
}

fn of(filter: SocketFilter, time: SessionTime) -> SessionQuestion {
    SessionQuestion { filter, time, ..SessionQuestion::default() }
}

/// A full hour early in one of so many days: people ask for days from such.
pub(crate) fn begin_us(turn: usize, days: i64) -> i64 {
    let begin = BEGIN_US + DAY_US * (mixed(turn as u64) as i64).rem_euclid(days);
    (begin + HOUR_US) / HOUR_US * HOUR_US
}

/// A client with IPv4: such as many hosts know, and such as few do.
pub(crate) fn v4(turn: usize) -> IpAddr {
    (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv4).unwrap()
}

/// One of all clients with IPv4, each of which is as likely.
pub(crate) fn any(turn: usize) -> IpAddr {
    (0..).map(|n| client(mixed(turn as u64 + n * 977) % CLIENTS)).find(IpAddr::is_ipv4).unwrap()
}

/// The same of those with IPv6.
pub(crate) fn any_v6(turn: usize) -> IpAddr {
    (0..).map(|n| client(mixed(turn as u64 + n * 977) % CLIENTS)).find(IpAddr::is_ipv6).unwrap()
}

/// The network of an address.
pub(crate) fn within(address: IpAddr, length: u8) -> IpNet {
    IpNet::new(address, length).unwrap().trunc()
}

/// One with IPv6.
pub(crate) fn v6(turn: usize) -> IpAddr {
    (0..).map(|n| client(turn as u64 * 977 + n)).find(IpAddr::is_ipv6).unwrap()
}

/// One that no host ever met.
pub(crate) fn nobody(turn: usize) -> IpAddr {
    IpAddr::from([1, 1, (turn >> 8) as u8, turn as u8])
}

/// Busy ones and quiet ones.
pub(crate) fn host_name(turn: usize) -> String {
    format!("host{:05}", turn * 37 % HOSTS)
}

/// The names of ten hosts.
pub(crate) fn ten_hosts(turn: usize) -> String {
    format!("host{:04}*", turn * 37 % (HOSTS / 10))
}

fn host(turn: usize) -> SocketFilter {
    let mut filter = SocketFilter::default();
    filter.hosts.globs = vec![host_name(turn)];
    filter
}

impl Asking<'_> {
    /// All turns so often, after one that meets a cold cache.
    fn turns(&self) -> impl Iterator<Item = usize> {
        let (begun, asked, lasts) = (Instant::now(), self.times * self.again, self.lasts);
        let asked_yet = (1..=self.times).cycle().enumerate();
        let wanted = asked_yet.take_while(move |(count, _)| *count < asked || begun.elapsed() < lasts);
        std::iter::once(0).chain(wanted.map(|(_, turn)| turn))
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(BEGIN_US + DAY_US * self.days)
    }

    async fn sessions(&self, what: Question, question: impl Fn(usize) -> SessionQuestion) -> Option<Answered> {
        self.ask(what, async |turn, rows| self.history.list_sessions(question(turn), self.now(), rows).await).await
    }

    async fn ports(&self, what: Question, question: impl Fn(usize) -> PortQuestion) -> Option<Answered> {
        self.ask(what, async |turn, rows| self.history.list_ports(question(turn), self.now(), rows).await).await
    }

    async fn changes(&self, what: Question, question: impl Fn(usize) -> ChangeQuestion) -> Option<Answered> {
        self.ask(what, async |turn, rows| self.history.list_changes(question(turn), self.now(), rows).await).await
    }

    async fn sums(&self, what: Question, question: impl Fn(usize) -> SummaryQuestion) -> Option<Answered> {
        self.ask(what, async |turn, rows| self.history.summarize(question(turn), self.now(), rows).await).await
    }

    async fn ask<T, A>(
        &self,
        what: Question,
        answer: impl AsyncFn(usize, mpsc::Sender<Vec<T>>) -> Result<A, HistoryError>,
    ) -> Option<Answered> {
        if !what.0.contains(self.only) {
            return None;
        }
        eprintln!("asking: {}", what.0);
        let mut told = Told::default();
        for turn in self.turns() {
            let (rows, chunks) = mpsc::channel(4);
            told.time(answer(turn, rows), chunks).await;
        }
        Some(told.answered(what))
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
    fn answered(mut self, (what, designed): Question) -> Answered {
        self.ms.remove(0);
        self.rows.sort_unstable();
        Answered { what, designed, rows: self.rows[self.rows.len() / 2], took: p50_p99(self.ms) }
    }
}
