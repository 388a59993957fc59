//! Any sequence of what can happen to a fleet leaves the history that a simple model in memory has, and what is open in it has
//! the digest of what is open on the hosts.
//!
//! More cases: `FLEETSOCK_LONG=1 cargo test -p fleetsock-server model`. A failure prints the shortest sequence that
//! proptest finds, and keeps its seed for the next run.

mod chosen;
pub(crate) mod expected;
mod lines;
mod paired;
mod simulated;

use std::{collections::BTreeMap, fmt::Debug};

use fleetsock_proto::{
    answer::GapReason,
    batch::{Batch, BatchKind, Change},
    change::{ChangeKind, ChangeRecord, ChangeSubject, Changed},
    listener::Listener,
    question::{ChangeQuestion, PortQuestion, SessionQuestion, SessionTime, SummaryQuestion},
    session::Session,
    socket::Direction,
    stream::GapReport,
    summary::Dimension,
    time::Timestamp,
};
use fleetsock_server::history::{Applied, History, Presence};
use proptest::{collection::vec, prelude::*};

use self::{
    chosen::{Chosen, any_choice},
    expected::Expected,
    lines::{change_line, connection, group_line, key, port},
    simulated::{Event, Simulated, Way, any_event, any_way},
};
use crate::{
    engine::{Engine, Sqlite, World},
    scene::at,
};

/// Simulated hosts, and how many seconds the clock of each is ahead: the second one too little to be corrected.
const CLOCKS: [i64; 3] = [0, 1, -3 * 86_400];

/// Something that happens.
#[derive(Debug, Clone)]
enum Step {
    /// A host is walked; the batch about it arrives, perhaps after it was stored by half.
    Walk { host: usize, events: Vec<Event>, hindered: bool },
    /// Nothing changed, and the agent says so.
    Heartbeat { host: usize },
    /// A host's agent starts anew, with its host or without; meanwhile something happened that nobody saw.
    Restart { host: usize, unseen: Vec<Event>, reboot: bool, parts: usize, interrupted: bool },
    /// An agent sends a snapshot within its numbering.
    Resync { host: usize, parts: usize },
    /// A host connects to another one, or to itself; both tell of it.
    Connect { from: usize, to: usize, way: Way, port: u16, short: bool },
    /// Batches with these events were lost on the host, and the agent says so.
    Lost { host: usize, events: Vec<Event> },
    /// One of the batches so far arrives again.
    Again { which: prop::sample::Index },
    /// A batch arrives before the one that must come first.
    TooEarly { host: usize },
    /// The server is stopped and started.
    Stop,
}

fn any_step() -> impl Strategy<Value = Step> {
    let host = || 0..CLOCKS.len();
    let events = || vec(any_event(), 0..8);
    prop_oneof![
        8 => (host(), events(), prop::bool::weighted(0.1))
            .prop_map(|(host, events, hindered)| Step::Walk { host, events, hindered }),
        1 => host().prop_map(|host| Step::Heartbeat { host }),
        2 => (host(), events(), prop::bool::weighted(0.3), 1..4_usize, any::<bool>())
            .prop_map(|(host, unseen, reboot, parts, interrupted)| {
                Step::Restart { host, unseen, reboot, parts, interrupted }
            }),
        1 => (host(), 1..4_usize).prop_map(|(host, parts)| Step::Resync { host, parts }),
        4 => (host(), host(), any_way(), 1..3_u16, any::<bool>())
            .prop_map(|(from, to, way, port, short)| Step::Connect { from, to, way, port, short }),
        1 => (host(), events()).prop_map(|(host, events)| Step::Lost { host, events }),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Again { which }),
        1 => host().prop_map(|host| Step::TooEarly { host }),
        1 => Just(Step::Stop),
    ]
}

/// A fleet, what the history has of it, and what the model has.
struct Play<E: Engine> {
    world: World<E>,
    hosts: Vec<Simulated>,
    expected: Vec<Expected>,
    sent: Vec<(usize, Batch)>,
    /// Whether nothing of a host was lost since its last snapshot.
    whole: [bool; CLOCKS.len()],
    second: i64,
}

impl<E: Engine> Play<E> {
    async fn begin() -> Play<E> {
        let world = World::<E>::new().await;
        let (mut hosts, mut expected) = (Vec::new(), Vec::new());
        for (number, ahead) in CLOCKS.into_iter().enumerate() {
            let name = format!("host{number}");
            let agent = world.host(&name).await;
            world.hello(agent.host, &name, at(0), ahead * 1_000_000).await;
            expected.push(Expected::of(agent.host, &name, ahead));
            hosts.push(Simulated::new(agent, ahead));
        }
        let whole = [false; CLOCKS.len()];
        let mut play = Play { world, hosts, expected, sent: Vec::new(), whole, second: 1 };
        for host in 0..CLOCKS.len() {
            play.snapshot(host, 1, false).await;
        }
        play
    }

    /// Sends a batch, which must be stored. Its digest, where nothing was lost since the last snapshot, must be that of what
    /// the history has as open.
    async fn send(&mut self, host: usize, mut batch: Batch) {
        let completes = matches!(batch.kind, BatchKind::SnapshotWhole | BatchKind::SnapshotEnd);
        self.whole[host] |= completes;
        if self.whole[host] && (completes || batch.kind == BatchKind::Changes) {
            batch.digest = Some(self.hosts[host].digest());
        }
        let outcome = self.world.store().apply(self.hosts[host].agent.host, batch.clone()).await.unwrap();
        assert_eq!(outcome, Applied::Committed, "{batch:?}");
        self.expected[host].apply(&batch);
        self.sent.push((host, batch));
    }

    /// Sends what is open on a host.
    async fn snapshot(&mut self, host: usize, parts: usize, interrupted: bool) {
        let (kinds, mut rows) = (kinds(parts), self.hosts[host].snapshot());
        for (index, kind) in kinds.iter().enumerate() {
            let rest = rows.split_off(rows.len() / (kinds.len() - index));
            let part = std::mem::replace(&mut rows, rest);
            let batch = self.hosts[host].batch(*kind, self.second, part);
            self.send(host, batch).await;
            if interrupted {
                self.world.restart().await;
            }
        }
    }

    async fn take(&mut self, step: Step) {
        match step {
            Step::Walk { host, events, hindered } => {
                let changes = self.happen(host, events);
                let batch = self.hosts[host].batch(BatchKind::Changes, self.second, changes);
                if hindered {
                    self.world.engine.hinder();
                    let outcome = self.world.store().apply(self.hosts[host].agent.host, batch.clone()).await;
                    self.world.engine.relieve();
                    assert!(!matches!(outcome, Ok(Applied::Hole { .. })));
                }
                self.send(host, batch).await;
            }
            Step::Heartbeat { host } => {
                let observed_until = Some(self.hosts[host].clock(self.second));
                let presence = Presence { at: at(self.second), observed_until, cost: None, tcp_counts: None };
                self.world.store().record_presence(self.hosts[host].agent.host, presence);
                self.expected[host].observed(self.hosts[host].clock(self.second));
            }
            Step::Restart { host, unseen, reboot, parts, interrupted } => {
                self.happen(host, unseen);
                self.hosts[host].restart(reboot, self.second);
                self.snapshot(host, parts, interrupted).await;
            }
            Step::Resync { host, parts } => self.snapshot(host, parts, false).await,
            Step::Connect { from, to, way, port, short } => {
                let ends = [(from, way.socket(from, port)), (to, way.socket(to, 443))];
                for (place, direction) in [Direction::Out, Direction::In].into_iter().enumerate() {
                    let ((host, local), (_, peer)) = (ends[place], ends[1 - place]);
                    let change = self.hosts[host].connect((local, direction, peer), short, self.second);
                    let batch = self.hosts[host].batch(BatchKind::Changes, self.second, vec![change]);
                    self.send(host, batch).await;
                }
            }
            Step::Lost { host, events } => {
                self.happen(host, events);
                let lost = self.hosts[host].batch(BatchKind::Changes, self.second, Vec::new());
                let (since, until) = (lost.observed_since, lost.observed_until);
                let seqs = Some((lost.seq, lost.seq));
                let gap = GapReport { epoch: lost.epoch, seqs, since, until, reason: GapReason::SpoolFull };
                for _ in 0..2 {
                    self.world.store().record_gap(self.hosts[host].agent.host, gap).await.unwrap();
                }
                self.expected[host].lose(lost.epoch, (since, until));
                self.whole[host] = false;
            }
            Step::Again { which } => {
                let (host, batch) = which.get(&self.sent).clone();
                let outcome = self.world.store().apply(self.hosts[host].agent.host, batch).await;
                assert_eq!(outcome.unwrap(), Applied::Committed);
            }
            Step::TooEarly { host } => {
                let agent = &self.hosts[host].agent;
                let early = agent.numbered(agent.last.epoch, agent.last.seq + 2, BatchKind::Changes, Vec::new());
                let outcome = self.world.store().apply(agent.host, early).await.unwrap();
                assert!(matches!(outcome, Applied::Hole { expected } if expected.seq == agent.last.seq + 1));
            }
            Step::Stop => self.world.restart().await,
        }
    }

    fn happen(&mut self, host: usize, events: Vec<Event>) -> Vec<Change> {
        events.into_iter().flat_map(|event| self.hosts[host].happen(event, self.second)).collect()
    }

    /// Compares what is open now.
    async fn compare_now(&self) {
        let now = at(self.second);
        let ports = self.world.ports(PortQuestion::default(), now).await.unwrap().0;
        same("ports now", ports.iter().map(port), self.listeners(None).iter().map(port));
        let sessions = self.world.sessions(SessionQuestion::default(), now).await.unwrap().0;
        same("sessions now", sessions.iter().map(connection), self.sessions(SessionTime::Now).iter().map(connection));
    }

    /// Compares all that ever was, and what was open at a moment.
    async fn compare_past(&self, moment: Timestamp) {
        let now = at(self.second);
        let ports = self.world.ports(PortQuestion { at: Some(moment), ..PortQuestion::default() }, now).await;
        same("ports then", ports.unwrap().0.iter().map(port), self.listeners(Some(moment)).iter().map(port));
        for time in [
            SessionTime::At(moment),
            SessionTime::Within { since: moment, until: Some(Timestamp::from_micros(moment.as_micros() + 9_000_000)) },
            SessionTime::Within { since: Timestamp::MIN, until: None },
        ] {
            let answer = self.world.sessions(SessionQuestion { time, ..SessionQuestion::default() }, now).await;
            let answer = answer.unwrap().0;
            same("sessions then", answer.iter().map(connection), self.sessions(time).iter().map(connection));
        }
    }

    fn listeners(&self, moment: Option<Timestamp>) -> Vec<Listener> {
        self.expected.iter().flat_map(|host| host.listeners(moment)).collect()
    }

    fn sessions(&self, time: SessionTime) -> Vec<Session> {
        paired::with_other_ends(&self.expected, time, at(self.second))
    }

    /// Compares all changes, and those of a window.
    async fn compare_changes(&self, since: Timestamp, until: Timestamp) {
        for (since, until) in [(None, None), (Some(since.min(until)), Some(since.max(until)))] {
            let subjects = ChangeSubject::ALL.to_vec();
            let question = ChangeQuestion { since, until, subjects, ..ChangeQuestion::default() };
            let found = self.world.changes(question, at(self.second)).await.unwrap().0;
            assert!(found.is_sorted_by_key(|change| std::cmp::Reverse(change.at)), "newest first");
            let within = |change: &ChangeRecord| {
                since.is_none_or(|since| change.at >= since) && until.is_none_or(|until| change.at <= until)
            };
            let expected = self.expected.iter().flat_map(Expected::changes).filter(within);
            same("changes", found.iter().map(change_line), expected.map(|change| change_line(&change)));
        }
    }

    /// Compares what is new in a window against a baseline.
    async fn compare_new(&self, baseline: Timestamp, since: Timestamp, until: Timestamp) {
        let subjects = ChangeSubject::ALL.to_vec();
        let (since, until, baseline) = (Some(since), Some(until), Some(baseline));
        let question = ChangeQuestion { since, until, baseline, subjects, ..ChangeQuestion::default() };
        let found = self.world.changes(question, at(self.second)).await.unwrap().0;
        let all: Vec<ChangeRecord> = self.expected.iter().flat_map(Expected::changes).collect();
        let expected = expected::news(&all, baseline.unwrap(), since.unwrap(), until.unwrap());
        same("new", found.iter().map(change_line), expected.into_iter().map(change_line));
    }

    /// Compares what is meant of some sockets, all of it and its first page.
    async fn compare_chosen(&self, chosen: &Chosen, time: SessionTime) {
        let now = at(self.second);
        let all = self.sessions(time).into_iter().filter(|one| chosen.has_session(one)).collect::<Vec<_>>();
        let found = self.world.sessions(chosen.sessions(time), now).await.unwrap().0;
        same("chosen sessions", found.iter().map(connection), all.iter().map(connection));
        // Of those that end or begin at one moment any may be on the page.
        let ended = |one: &Session| one.closed.map_or((Timestamp::MAX, one.opened_at), |(at, _)| (at, Timestamp::MIN));
        let limit = Some(u32::try_from(chosen.limit).unwrap());
        let first = self.world.sessions(SessionQuestion { limit, ..chosen.sessions(time) }, now).await.unwrap();
        let mut newest: Vec<_> = all.iter().map(ended).collect();
        newest.sort_unstable_by(|one, other| other.cmp(one));
        newest.truncate(chosen.limit);
        assert_eq!(first.0.iter().map(ended).collect::<Vec<_>>(), newest, "the newest {limit:?} of {time:?}");
        assert_eq!(first.1.truncated, all.len() > chosen.limit);
        let at = match time {
            SessionTime::Now => None,
            SessionTime::At(at) => Some(at),
            SessionTime::Within { .. } => return,
        };
        let question = PortQuestion { filter: chosen.filter(), at, ..PortQuestion::default() };
        let found = self.world.ports(question, now).await.unwrap().0;
        let all = self.listeners(at).into_iter().filter(|one| chosen.has_listener(one)).collect::<Vec<_>>();
        same("chosen listeners", found.iter().map(port), all.iter().map(port));
    }

    /// Compares which sessions are new among those that are meant, all of them and the last ones.
    async fn compare_new_sessions(&self, chosen: &Chosen, [baseline, since, until]: [Timestamp; 3]) {
        let SessionQuestion { filter, directions, peers, .. } = chosen.sessions(SessionTime::Now);
        let mut chosen = chosen.clone();
        // Changes are not chosen by states.
        chosen.state = None;
        let all: Vec<ChangeRecord> = self.expected.iter().flat_map(Expected::changes).collect();
        let meant = |change: &&ChangeRecord| matches!(&change.what, Changed::Session(one) if chosen.has_session(one));
        let all: Vec<ChangeRecord> = all.iter().filter(meant).cloned().collect();
        let expected = expected::news(&all, baseline, since, until);
        let (subjects, kinds) = (vec![ChangeSubject::Session], vec![ChangeKind::Opened]);
        let question = ChangeQuestion {
            filter,
            directions,
            peers,
            subjects,
            kinds,
            since: Some(since),
            until: Some(until),
            baseline: Some(baseline),
            ..ChangeQuestion::default()
        };
        let found = self.world.changes(question.clone(), at(self.second)).await.unwrap().0;
        same("new sessions", found.iter().map(change_line), expected.iter().map(|change| change_line(change)));
        let limit = Some(u32::try_from(chosen.limit).unwrap());
        let (last, meta) = self.world.changes(ChangeQuestion { limit, ..question }, at(self.second)).await.unwrap();
        let lines = |some: &[ChangeRecord]| some.iter().map(change_line).collect::<Vec<_>>();
        assert_eq!(lines(&last), lines(&found[..found.len().min(chosen.limit)]), "the last {limit:?}");
        assert_eq!(meta.truncated, found.len() > chosen.limit);
    }

    /// Compares sums with those of the model's rows, by any dimensions.
    async fn compare_sums(&self, chosen: &Chosen, time: SessionTime, by: &[Dimension]) {
        let question = SummaryQuestion { sockets: chosen.sessions(time), by: by.to_vec(), limit: None };
        let counts_listeners = question.counts_listeners();
        let sums = self.world.sums(question, at(self.second)).await.unwrap().0;
        let since = if let SessionTime::Within { since, .. } = time { since } else { Timestamp::MIN };
        let mut expected: BTreeMap<String, [u64; 4]> = BTreeMap::new();
        let mut count = |key: String, counts: [u64; 4]| {
            let sum = expected.entry(key).or_default();
            std::iter::zip(sum, counts).for_each(|(sum, count)| *sum += count);
        };
        let sessions = self.expected.iter().flat_map(|host| host.sessions(time));
        for row in sessions.filter(|one| chosen.has_session(one)) {
            let process = row.owners.first().map_or("", |owner| &owner.process);
            let peer = row.peer.ip().to_string();
            let facts = (row.host.as_str(), process, peer.as_str(), row.opened_at.max(since));
            count(key(by, facts, (row.protocol, row.service_port())), [0, 1, row.bytes_sent, row.bytes_received]);
        }
        let listeners = self.expected.iter().flat_map(|host| host.listeners_of(time)).filter(|_| counts_listeners);
        for row in listeners.filter(|one| chosen.has_listener(one)) {
            let process = row.owners.first().map_or("", |owner| &owner.process);
            let facts = (row.host.as_str(), process, "", row.opened_at.max(since));
            count(key(by, facts, (row.protocol, row.port)), [1, 0, 0, 0]);
        }
        let found = sums
            .iter()
            .map(|sum| (group_line(&sum.group), [sum.listeners, sum.sessions, sum.bytes_sent, sum.bytes_received]));
        same("sums", found, expected.into_iter());
        if by.first() == Some(&Dimension::Hour) {
            assert!(sums.is_sorted_by_key(|sum| std::cmp::Reverse(sum.group.hour)), "the latest hour first");
        } else {
            assert!(sums.is_sorted_by_key(|sum| std::cmp::Reverse(sum.sessions)), "most sessions first");
        }
    }

    async fn compare_gaps(&self) {
        let stored = self.world.gaps().await;
        let stored = stored.iter().map(|gap| format!("{} {:?} {:?} {}", gap.host, gap.since, gap.until, gap.reason));
        same("gaps", stored, self.expected.iter().flat_map(Expected::gaps));
    }
}

fn kinds(parts: usize) -> Vec<BatchKind> {
    match parts {
        1 => vec![BatchKind::SnapshotWhole],
        parts => {
            let between = std::iter::repeat_n(BatchKind::SnapshotPart, parts - 2);
            [BatchKind::SnapshotBegin].into_iter().chain(between).chain([BatchKind::SnapshotEnd]).collect()
        }
    }
}

/// The order of rows is tested elsewhere; here it is which there are.
fn same<T: Ord + Debug>(what: &str, found: impl Iterator<Item = T>, expected: impl Iterator<Item = T>) {
    let (mut found, mut expected): (Vec<T>, Vec<T>) = (found.collect(), expected.collect());
    found.sort();
    expected.sort();
    assert_eq!(found, expected, "{what}: stored on the left, expected on the right");
}

async fn play<E: Engine>(
    steps: Vec<(Step, i64)>,
    moments: Vec<prop::sample::Index>,
    by: Vec<Dimension>,
    chosen: [Chosen; 2],
) {
    let mut play = Play::<E>::begin().await;
    for (step, seconds) in steps {
        play.second += seconds;
        play.take(step).await;
        play.compare_now().await;
    }
    let last = usize::try_from(play.second + 10).unwrap();
    let moments: Vec<Timestamp> = moments.iter().map(|it| at(i64::try_from(it.index(last)).unwrap())).collect();
    for moment in &moments {
        play.compare_past(*moment).await;
    }
    play.compare_changes(moments[0], moments[1]).await;
    let mut ordered = moments.clone();
    ordered.sort();
    play.compare_new(ordered[0], ordered[1], ordered[3]).await;
    let (since, until) = (moments[2].min(moments[3]), Some(moments[2].max(moments[3])));
    for time in [SessionTime::Now, SessionTime::At(moments[2]), SessionTime::Within { since, until }] {
        play.compare_sums(&Chosen::all(), time, &by).await;
        for chosen in &chosen {
            play.compare_sums(chosen, time, &by).await;
            play.compare_chosen(chosen, time).await;
        }
    }
    for chosen in chosen {
        play.compare_new_sessions(&chosen, [ordered[0], ordered[1], ordered[3]]).await;
        play.compare_chosen(&chosen, SessionTime::Within { since: Timestamp::MIN, until: None }).await;
    }
    play.compare_gaps().await;
    play.world.stop().await;
}

fn cases() -> u32 {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { 10_000 } else { 128 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_history_is_that_of_the_model(
        steps in vec((any_step(), 1..20_i64), 1..40),
        moments in vec(any::<prop::sample::Index>(), 4),
        by in prop::sample::subsequence(Dimension::ALL, 1..=Dimension::ALL.len()).prop_shuffle(),
        chosen in [any_choice(), any_choice()],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play::<Sqlite>(steps, moments, by, chosen));
    }
}
