//! One walk after the other, and what is kept between them.

use std::{
    cell::OnceCell,
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::GapReason,
    socket::{Protocol, SocketKey},
};

use super::{
    Observer,
    continuity::{Break, Clocks, Continuity, Told as Said},
    names::Names,
    occasion::{Plan, Whereabouts, plan, referee, states_due},
    schedule::{Begun, Schedule},
    telling::{Naming, Teller, Turn, keep},
    unseen::remarks,
    whose::{PastListeners, addresses, may_be_here},
};
use crate::{
    capture::{Connections, Coverage, SocketRow, SurveyReport, WalkReport, interface},
    chronicle::{Chronicle, Look, Taken},
    cost,
    departures::Departed,
    lives::Heard,
    losses::Loss,
    namespaces::Pass,
    owners::{OwnerScan, Processes, Wanted},
    packing::Window,
    privileges,
    remarks::Topic,
    table::{Comparison, Search, Table, Told, Walk},
};

/// Rows whose memory is kept from walk to walk.
const ROWS_KEPT: usize = 16 * 1024;
/// Connections that were looked for in vain have everything walked at most this often.
const MISSED_PAUSE: Duration = Duration::from_secs(10);
/// What the operator is told where records are kept from the agent.
const MUTED: &str = "connections are missing: the kernel's records of them do not come; tcplife and other BPF programs on the \
    tracepoint sock:inet_sock_set_state keep them from everybody else while they run";

/// The state between two walks.
pub(super) struct Round {
    observer: Observer,
    rows: Vec<SocketRow>,
    /// What the last walk could not tell.
    report: WalkReport,
    /// The own namespace cannot be walked.
    failing: bool,
    /// Other namespaces that cannot be walked.
    failed: BTreeSet<u64>,
    /// Namespaces that nothing leads to any more, and whose sockets are not all closed.
    vanished: BTreeSet<u64>,
    /// Whether other namespaces can be entered, and are to be.
    travels: bool,
    /// Something was lost: the next walk looks at everything.
    heals: bool,
    /// When the host's connections were walked, and what that cost.
    shown: Option<(Instant, Duration)>,
    /// When everything was walked for connections that were looked for in vain.
    searched: Option<Instant>,
    /// Listeners of the own namespace that may have accepted what is told late.
    past: PastListeners,
    /// What was told of the names of network namespaces.
    names: Names,
    /// Whether time goes on as the clock says, and without losses.
    continuity: Continuity,
}

/// Where things are, for a plan.
struct Places<'a> {
    home: u64,
    walked: BTreeSet<u64>,
    processes: &'a Processes,
    table: &'a Table,
}

impl Whereabouts for Places<'_> {
    fn home(&self) -> u64 {
        self.home
    }

    fn is_walked(&self, netns: u64) -> bool {
        self.walked.contains(&netns)
    }

    fn of_process(&self, pid: u32) -> Option<u64> {
        self.processes.namespace_of(pid)
    }

    fn accepting(&self, local: SocketAddr) -> Vec<u64> {
        self.table.accepting(local).collect()
    }
}

impl Round {
    pub(super) fn new(observer: Observer) -> Round {
        let travels = observer.namespaces.is_some() && privileges::can_travel();
        Round {
            observer,
            rows: Vec::new(),
            report: WalkReport::default(),
            failing: false,
            failed: BTreeSet::new(),
            names: Names::default(),
            vanished: BTreeSet::new(),
            travels,
            heals: false,
            shown: None,
            searched: None,
            past: PastListeners::default(),
            continuity: Continuity::default(),
        }
    }

    pub(super) fn schedule(&mut self) -> &mut Schedule {
        &mut self.observer.schedule
    }

    /// Walks once; tells whether that worked.
    pub(super) fn observe(&mut self, turn: Turn) -> bool {
        let (began, now) = ((self.observer.clock)(), Instant::now());
        let begun = self.observer.schedule.begin_walk(now);
        let cpu = cost::cpu();
        let before = self.observer.table.observed_until();
        let vanished = self.look_for_namespaces(begun.search);
        let plan = self.plan(begun.search).counting(begun.search);
        let survey = self.survey(&plan);
        if !self.is_usable(&survey) {
            return false;
        }
        let owners = self.owners(begun.search, &vanished);
        self.count(&survey, begun.search, &owners.1);
        let at = (self.observer.clock)();
        let since = self.observer.table.observed_since().unwrap_or(began).min(at);
        let walk = Walk { rows: &[], began, at, survey: &survey, vanished: &vanished };
        let walked = cost::cpu();
        if plan.extent.home == Coverage::Everything {
            self.shown = Some((now, walked.saturating_sub(cpu)));
        }
        let (comparison, said) = self.compare(walk, owners, &plan);
        // Events cost what they cost, however far apart walks are.
        let paid = if self.observer.chronicle.is_some() { walked } else { cost::cpu() };
        self.restrain(paid.saturating_sub(cpu), begun);
        let is_late = begun.overdue && self.observer.chronicle.is_none();
        let breaks = self.continuity.walked(before, (Clocks::at(at), now), if is_late { Said::Lossy } else { said });
        let rest = if turn == Turn::Last { self.continuity.end() } else { None };
        breaks.chain(rest).for_each(|gap| self.admit_gap(gap));
        let window = Window { boot_id: self.observer.boot_id, since, until: at };
        let Observer { outbox, schedule, ledger, table, namespaces, .. } = &mut self.observer;
        let naming = Naming { names: &mut self.names, namespaces: namespaces.as_ref() };
        keep(Teller { outbox, schedule, ledger: ledger.as_mut(), table, naming }, window, comparison, now, turn);
        self.observer.outbox.observed(at);
        true
    }

    /// Looks for other namespaces; gives those whose sockets are to be held against what processes hold.
    fn look_for_namespaces(&mut self, search: Search) -> BTreeSet<u64> {
        let pass = if search == Search::Referee { Pass::All } else { Pass::New };
        let Some(namespaces) = &mut self.observer.namespaces else { return BTreeSet::new() };
        // Events tell of sockets in namespaces that cannot be entered too, and these have names.
        if !self.travels && self.observer.chronicle.is_none() && pass == Pass::New {
            return BTreeSet::new();
        }
        let vanished = match namespaces.refresh(pass) {
            Ok(findings) => findings.vanished.clone(),
            Err(error) => {
                tracing::warn!(%error, "cannot look for network namespaces");
                Vec::new()
            }
        };
        self.observer.remarks.make(Topic::Namespaces, namespaces.unseen());
        let table = &self.observer.table;
        let before = self.vanished.len();
        self.vanished.extend(vanished.into_iter().filter(|netns| table.has_namespace(*netns)));
        let is_new = self.vanished.len() > before;
        self.vanished.retain(|netns| table.has_namespace(*netns) && namespaces.get(*netns).is_none());
        if is_new || pass == Pass::All { self.vanished.clone() } else { BTreeSet::new() }
    }

    /// How much this walk looks at.
    fn plan(&mut self, search: Search) -> Plan {
        let Some(chronicle) = &self.observer.chronicle else {
            return plan(Connections::FromWalks, Vec::new(), &self.places());
        };
        let age = self.observer.schedule.interval() / 2;
        let mut look = chronicle.look();
        let (sought, has_lost) = (look.sought(age), look.has_lost());
        drop(look);
        if std::mem::take(&mut self.heals) || has_lost || search == Search::Referee {
            return referee(Connections::FromEvents, sought);
        }
        let (since, cost) = self.shown.map(|(at, cost)| (at.elapsed(), cost)).unzip();
        let mut plan = plan(Connections::FromEvents, sought, &self.places());
        if states_due(since, cost.unwrap_or_default()) {
            plan.extent.home = Coverage::Everything;
        }
        plan
    }

    fn places(&self) -> Places<'_> {
        let walked = self.observer.namespaces.as_ref().filter(|_| self.travels);
        Places {
            home: self.observer.surveyor.netns(),
            walked: walked.into_iter().flat_map(|namespaces| namespaces.iter()).map(|there| there.netns()).collect(),
            processes: &self.observer.processes,
            table: &self.observer.table,
        }
    }

    fn survey(&mut self, Plan { extent, whole, looked_for }: &Plan) -> SurveyReport {
        tracing::trace!(?extent, ?whole, ?looked_for, "walking");
        let surveyor = &mut self.observer.surveyor;
        match &self.observer.namespaces {
            Some(namespaces) if self.travels => surveyor.survey_with(namespaces, *extent, whole, &mut self.rows),
            _ => surveyor.survey_home(extent.home, extent.states, &mut self.rows),
        }
    }

    /// The owners of sockets of which they are not known, or may have changed.
    fn owners(&mut self, search: Search, vanished: &BTreeSet<u64>) -> (Wanted, OwnerScan) {
        let mut wanted = self.observer.table.wanted(&self.rows, search);
        wanted.extend(self.observer.table.inodes_in(vanished));
        let scan = match wanted.is_empty() {
            true => OwnerScan::default(),
            false => self.observer.processes.scan(&wanted),
        };
        self.observer.remarks.make(Topic::Owners, self.observer.processes.remark());
        self.observer.remarks.make(Topic::Connections, self.observer.surveyor.remark());
        (wanted, scan)
    }

    /// Whether the own namespace was walked. When not, nothing is closed because it was not seen now; the next walk tells
    /// of the longer time.
    fn is_usable(&mut self, survey: &SurveyReport) -> bool {
        let home = self.observer.surveyor.netns();
        let failure = survey.failed.iter().find(|(netns, _)| *netns == home);
        if let Some((_, error)) = failure
            && !self.failing
        {
            tracing::error!(%error, "cannot walk the socket table");
        }
        if failure.is_none() && self.failing {
            tracing::info!("the socket table can be walked again");
        }
        self.failing = failure.is_some();
        !self.failing
    }

    fn count(&mut self, survey: &SurveyReport, search: Search, scan: &OwnerScan) {
        if let Some(counts) = survey.counts {
            self.observer.outbox.counted(counts);
        }
        let losses = self.observer.outbox.losses();
        let report = survey.total();
        // The same sockets are above the limit at every walk: only what is more than before is new.
        losses.add(Loss::Walk, report.overflow.saturating_sub(self.report.overflow));
        losses.add(Loss::Walk, report.unreadable.saturating_sub(self.report.unreadable));
        losses.add(Loss::Walk, report.interrupted);
        self.report = report;
        for (topic, remark) in remarks(survey) {
            self.observer.remarks.make(topic, remark);
        }
        if let Some(error) = &survey.stranded {
            losses.add(Loss::Walk, 1);
            tracing::warn!(%error, "there is no thread to walk other network namespaces");
        }
        let mut failed = BTreeSet::new();
        for (netns, error) in survey.failed.iter().filter(|(_, error)| !error.is_gone()) {
            if !self.failed.contains(netns) {
                losses.add(Loss::Walk, 1);
                tracing::warn!(netns, %error, "the sockets of a network namespace are not seen");
            }
            failed.insert(*netns);
        }
        self.failed = failed;
        if search == Search::Unknown {
            // The referee sees the same owners again and again.
            losses.add(Loss::Detail, scan.owners_cut);
        }
    }

    /// What changed, by the walk and by what was told before it; and whether something is missing.
    fn compare(&mut self, walk: Walk<'_>, (wanted, scan): (Wanted, OwnerScan), plan: &Plan) -> (Comparison, Said) {
        let chronicle = self.observer.chronicle.clone();
        let is_caught_up = chronicle.as_ref().is_none_or(|chronicle| chronicle.catch_up());
        if !is_caught_up {
            tracing::debug!("events are behind the walk");
        }
        // One look for all: what ended after it is still open for this walk.
        let mut look = chronicle.as_deref().map(Chronicle::look);
        let Taken { told, states, owned, lost } = look.as_mut().map(Look::take).unwrap_or_default();
        let (departed, departures_lost) =
            self.observer.departures.as_ref().map(|departures| departures.take()).unwrap_or_default();
        if let (Some(look), Some(ledger)) = (&mut look, &mut self.observer.ledger) {
            // Their ends are told by the next walk, with what their accounts say.
            look.depart(ledger.take_unclaimed()).iter().for_each(|departed| ledger.note(departed));
        }
        self.depart(&departed);
        let missed = self.end(told);
        self.observer.table.own(owned);
        // An end that was not read yet is not one that was left out.
        let shows_all = is_caught_up && self.shows_all(walk.survey);
        let table = &mut self.observer.table;
        let mut comparison = table.apply(Walk { rows: &self.rows, ..walk }, &wanted, &scan, &look);
        comparison.changes.extend(table.restate(states));
        let changes = comparison.changes.iter().chain(&comparison.unseen);
        self.past.note(changes, self.observer.surveyor.netns(), Instant::now());
        let mut searches = false;
        if let Some(look) = &mut look {
            look.looked(&plan.looked_for);
            if shows_all {
                look.conclude();
            } else if look.has_missed() && self.searched.is_none_or(|at| at.elapsed() >= MISSED_PAUSE) {
                self.searched = Some(Instant::now());
                searches = true;
            }
        }
        if self.rows.capacity() > ROWS_KEPT {
            // Most walks have few; and what is told next needs the room.
            self.rows = Vec::new();
        }
        self.heals = searches || lost.records > 0 || lost.lives > 0 || lost.is_muted;
        // When records are known to be lost, what they told is among them.
        let hears = chronicle.is_some() && lost.records == 0 && !lost.is_muted;
        let unheard = lost.unheard + missed + if hears { comparison.began_unheard() } else { 0 };
        let losses = self.observer.outbox.losses();
        losses.add(Loss::Events, lost.records + unheard + departures_lost);
        losses.add(Loss::Lives, lost.lives);
        losses.add(Loss::Muted, lost.is_muted.into());
        self.observer.remarks.make(Topic::Events, lost.is_muted.then(|| MUTED.to_owned()));
        losses.add(Loss::Table, comparison.sockets_lost);
        losses.add(Loss::Detail, comparison.owners_lost);
        let beyond = Some(table.beyond()).filter(|beyond| *beyond > 0).map(u64::next_power_of_two);
        let remark = beyond.map(|beyond| format!("memory_mib is reached: up to {beyond} sockets are not followed"));
        self.observer.remarks.make(Topic::Room, remark);
        let unseen =
            self.report.overflow + self.report.unreadable + u64::try_from(self.failed.len()).unwrap_or(u64::MAX);
        let missing = lost.records + lost.lives + u64::from(lost.is_muted) + departures_lost + table.beyond() + unseen;
        (comparison, if missing > 0 { Said::Lossy } else { Said::Whole })
    }

    /// Whether every connection of the host that events tell of and that is wanted is among the rows, if it is open.
    fn shows_all(&self, survey: &SurveyReport) -> bool {
        let everywhere = match &self.observer.namespaces {
            None => true,
            Some(namespaces) => self.vanished.is_empty() && (self.travels || namespaces.iter().count() <= 1),
        };
        everywhere && survey.shows_all()
    }

    /// Takes the sockets that the kernel told to be no more. Where events tell of TCP, only the bytes are news.
    fn depart(&mut self, departed: &[Departed]) {
        for departed in departed {
            let is_tcp = departed.socket.protocol == Protocol::Tcp;
            if is_tcp && let Some(ledger) = &mut self.observer.ledger {
                ledger.note(departed);
            }
            if !is_tcp || self.observer.chronicle.is_none() {
                self.observer.table.depart(&departed.socket, departed.at);
            }
        }
    }

    /// Takes the lives that ended, those of other namespaces only if they are wanted; gives how many ends were missed of those
    /// that are, or may be.
    fn end(&mut self, told: Vec<Told>) -> u64 {
        let home = self.observer.surveyor.netns();
        let (own, now) = (OnceCell::new(), Instant::now());
        let mut missed = 0;
        for mut told in told {
            let at_home = SocketKey { netns: home, ..told.key };
            let is_known_here = || {
                let ledger = self.observer.ledger.as_ref();
                ledger.is_some_and(|ledger| ledger.knows(at_home.cookie)) || self.observer.table.holds(at_home)
            };
            if told.key.netns == 0 && is_known_here() {
                told.key = at_home;
            }
            let table = &mut self.observer.table;
            let is_wanted = self.observer.namespaces.is_some() || told.key.netns == home;
            let may_be_wanted = || {
                let local = told.life.local;
                let listens = table.accepting(local).any(|netns| netns == home) || self.past.accepted(local, now);
                let own = own.get_or_init(|| addresses(interface::addresses().ok(), table.open(), home));
                may_be_here(&told.life, listens, own.as_ref())
            };
            let is_missed = told.heard == Heard::Missed;
            missed += u64::from(is_missed && (is_wanted || (told.key.netns == 0 && may_be_wanted())));
            if is_wanted {
                table.end(told);
            }
        }
        missed
    }

    /// Tells the server that a time was not observed as it should.
    fn admit_gap(&self, Break { since, until, reason }: Break) {
        tracing::warn!(seconds = until.since(since).as_secs(), %reason, "a time was not observed");
        if reason != GapReason::KernelLoss {
            // Before anything is told by the new clock.
            self.observer.outbox.clock_leapt();
        }
        self.observer.outbox.with(|spool| spool.unobserved(since, until, reason));
        self.observer.outbox.notify();
    }

    /// Holds the next walk back when walks cost more than they may.
    fn restrain(&mut self, cost: Duration, begun: Begun) {
        let Observer { schedule, restraint, remarks, .. } = &mut self.observer;
        let wait = restraint.paid(cost, begun.elapsed.unwrap_or_default(), schedule.interval());
        schedule.hold_back(wait);
        remarks.make(Topic::Walks, restraint.remark());
    }
}
