//! An agent on a simulated machine: the real table, packing, spool and uplink around walks that are made up.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeSet,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fleetsock_agent::{
    capture::{Coverage, SurveyReport, WalkReport, Walked},
    observer::{
        names::Names,
        orders::{Orders, Told as Ordered},
        schedule::Schedule,
        telling::{Naming, Teller, keep},
    },
    outbox::Outbox,
    packing::Window,
    spool::{Item, SPOOL_BYTES_LIMIT, Spool},
    table::{Table, Walk},
    uplink::Uplink,
};
use fleetsock_proto::{
    batch::Batch,
    client::{Dialling, Wire},
    host::HostFacts,
    join::ServerAddress,
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};
use tokio_util::sync::CancellationToken;

use super::{
    chance::{dice, now},
    machine::Machine,
};
use crate::scene::{NETNS, facts};

/// How often a machine is walked.
const WALK: Duration = Duration::from_millis(1500);
/// How often all owners are looked for, and a digest is told.
const REFEREE: Duration = Duration::from_secs(20);
/// How often the observer looks what it was told.
const GLANCE: Duration = Duration::from_millis(100);

/// What an agent did, in this order.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    /// A batch is in the spool.
    Kept(Box<Batch>),
    /// One was in it, and gave room to a later one of the same walk.
    Displaced(BatchNumber, (Timestamp, Timestamp)),
    /// A walk is done.
    Walked(Timestamp),
}

/// What outlives an agent.
pub(super) struct Place {
    pub(super) name: String,
    /// The folder of the state, another one after each kill.
    pub(super) folder: RefCell<PathBuf>,
    pub(super) machine: RefCell<Machine>,
    pub(super) deeds: RefCell<Vec<Deed>>,
    pub(super) spool_bytes: u64,
    /// What the spool had no room for.
    pub(super) dropped: RefCell<BTreeSet<BatchNumber>>,
    /// The agent that runs.
    pub(super) outbox: RefCell<Option<Arc<Outbox>>>,
    pub(super) stop: RefCell<CancellationToken>,
    pub(super) walks: Cell<u32>,
}

impl Place {
    fn facts(&self) -> HostFacts {
        HostFacts { boot_id: self.machine.borrow().boot_id(), ..facts(&self.name, &[]) }
    }

    /// The last number that was given out.
    pub(super) fn given(&self) -> Option<BatchNumber> {
        self.outbox.borrow().as_ref().map(|outbox| outbox.with(|spool| spool.given()))
    }
}

fn dial(address: ServerAddress) -> Dialling {
    Box::pin(async move {
        let tcp = turmoil::net::TcpStream::connect(address.as_str()).await?;
        Ok(Box::new(tcp) as Box<dyn Wire>)
    })
}

/// Runs an agent until it is told to stop.
pub(super) async fn run(place: Rc<Place>) -> turmoil::Result {
    let folder = place.folder.borrow().clone();
    let spool = Spool::open(&folder, place.spool_bytes, now())?;
    let outbox = Arc::new(Outbox::new(spool));
    place.outbox.replace(Some(Arc::clone(&outbox)));
    let stop = CancellationToken::new();
    place.stop.replace(stop.clone());
    let orders = Arc::new(Orders::default());
    let own = place.facts();
    let uplink = Uplink {
        state: folder,
        outbox: Arc::clone(&outbox),
        orders: Arc::clone(&orders),
        walk: WALK,
        facts: Arc::new(move || own.clone()),
        clock: now,
        dial,
        dice,
    };
    let leave = CancellationToken::new();
    let observer = Observer {
        place: Rc::clone(&place),
        outbox,
        table: Table::default(),
        schedule: Schedule::new(WALK, REFEREE).proving_every(REFEREE),
    };
    let observing = async {
        observer.run(&orders, &stop).await;
        leave.cancel();
    };
    tokio::join!(observing, uplink.run(leave.clone()));
    place.outbox.take();
    Ok(())
}

struct Observer {
    place: Rc<Place>,
    outbox: Arc<Outbox>,
    table: Table,
    schedule: Schedule,
}

impl Observer {
    async fn run(mut self, orders: &Orders, stop: &CancellationToken) {
        loop {
            let Ordered { snapshot, begin, interval, .. } = orders.wait(Duration::ZERO);
            if let Some(interval) = interval {
                self.schedule.set_interval(interval);
            }
            if snapshot {
                self.schedule.want_snapshot();
            }
            let last = stop.is_cancelled();
            if begin || last || self.schedule.due_in(tokio::time::Instant::now().into_std()).is_zero() {
                self.walk(last);
            }
            if last {
                return;
            }
            tokio::time::sleep(GLANCE).await;
        }
    }

    /// One walk, as the observer's thread makes it.
    fn walk(&mut self, last: bool) {
        let (at, instant) = (now(), tokio::time::Instant::now().into_std());
        let search = self.schedule.begin_walk(instant).search;
        let mut machine = self.place.machine.borrow_mut();
        let before = self.table.observed_until();
        for told in machine.live(before.unwrap_or(at), at) {
            self.table.end(told);
        }
        let rows = machine.rows();
        let wanted = self.table.wanted(&rows, search);
        let scan = machine.owners(&wanted);
        let (survey, nowhere) = (whole(), BTreeSet::new());
        let since = self.table.observed_since().unwrap_or(at).min(at);
        let walk = Walk { rows: &rows, began: at, at, survey: &survey, vanished: &nowhere };
        let comparison = self.table.apply(walk, &wanted, &scan, &());
        let window = Window { boot_id: machine.boot_id(), since, until: at };
        drop(machine);
        let given = self.outbox.with(|spool| spool.given());
        let naming = Naming { names: &mut Names::default(), namespaces: None };
        let (outbox, schedule, table) = (&self.outbox, &mut self.schedule, &self.table);
        let teller = Teller { outbox, schedule, ledger: None, table, naming };
        keep(teller, window, comparison, instant, last.into());
        self.note(given, (since, at));
        self.outbox.observed(at);
        self.place.deeds.borrow_mut().push(Deed::Walked(at));
        self.place.walks.set(self.place.walks.get() + 1);
    }

    /// Writes down what a walk put into the spool since a number was the last, and what that took the room of.
    fn note(&self, before: BatchNumber, time: (Timestamp, Timestamp)) {
        let mut deeds = self.place.deeds.borrow_mut();
        self.outbox.with(|spool| {
            let given = spool.given();
            assert_eq!(given.epoch, before.epoch, "a walk begins no numbering");
            let unnumbered = take_unnumbered(spool);
            for seq in before.seq..given.seq {
                let number = BatchNumber { seq: seq + 1, ..given };
                deeds.push(match spool.next_after(BatchNumber { seq, ..given }) {
                    Some(Item::Batch(batch)) if batch.number == number => Deed::Kept(Box::new(batch.unpack().unwrap())),
                    Some(Item::Gap(gap)) if gap.seqs.is_some() => Deed::Displaced(number, time),
                    other => panic!("{}/{} was appended, and {other:?} is there", number.epoch, number.seq),
                });
            }
            if self.place.spool_bytes < SPOOL_BYTES_LIMIT {
                self.place.dropped.borrow_mut().extend(dropped(spool));
            }
            for GapReport { since, until, reason, .. } in unnumbered {
                spool.unobserved(since, until, reason);
            }
        });
    }
}

/// Takes the gaps without numbers out of a spool, which come before everything, so that what comes after them can be seen.
fn take_unnumbered(spool: &mut Spool) -> Vec<GapReport> {
    let mut taken = Vec::new();
    while let Some(Item::Gap(gap)) = spool.next_after(BatchNumber::default())
        && gap.seqs.is_none()
    {
        spool.forget(&gap);
        taken.push(gap);
    }
    taken
}

/// The numbers that a spool has gaps for.
fn dropped(spool: &mut Spool) -> BTreeSet<BatchNumber> {
    let (mut numbers, mut position) = (BTreeSet::new(), BatchNumber::default());
    while let Some(item) = spool.next_after(position) {
        position = match item {
            Item::Batch(batch) => batch.number,
            Item::Gap(gap) => {
                let (first, last) = gap.seqs.unwrap_or_else(|| panic!("{gap:?} has no numbers"));
                numbers.extend((first..=last).map(|seq| BatchNumber { epoch: gap.epoch, seq }));
                BatchNumber { epoch: gap.epoch, seq: last }
            }
        };
    }
    numbers
}

/// A walk that saw everything.
fn whole() -> SurveyReport {
    let walked = Walked {
        coverage: Coverage::Everything,
        report: WalkReport::default(),
        portless: Ok(()),
        others: Ok(()),
        unix: Ok(()),
    };
    SurveyReport { walked: [(NETNS, walked)].into(), ..SurveyReport::default() }
}
