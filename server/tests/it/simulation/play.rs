//! One play, from its seed to the verdict.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use fleetsock_agent::spool::SPOOL_BYTES_LIMIT;
use fleetsock_proto::{host::HostId, spiffe::Subject, time::Timestamp};
use fleetsock_server::{authority::Authority, config::Config, history::History};
use tempfile::TempDir;
use turmoil::Sim;

use super::{
    agent::{self, Place},
    chance::{self, Chance},
    faults::{Fault, Planned, plan},
    machine::Machine,
    station::{self, ADDRESS, Station, copy},
    still::Batches,
    verdict::{Memory, judge},
};
use crate::{fleet::Fleet, tell};

const AGENTS: usize = 2;
/// How much time passes between two looks at the network.
const TICK: Duration = Duration::from_millis(20);
/// How long things go wrong.
const TROUBLE: Duration = Duration::from_secs(90);
/// How long it may take after that until everything is delivered: a broken connection is noticed after 30 s, and then it
/// takes a wait of a minute or two.
const REST: Duration = Duration::from_secs(300);
/// The latency of a healthy network, ms.
const LATENCY_MS: (u64, u64) = (1, 60);

/// A fleet whose hosts are enrolled and silent, of which every play begins with a copy.
pub(super) struct Stage {
    folder: TempDir,
    config: Config,
    authority: Arc<Authority>,
    hosts: Vec<HostId>,
    begin: Timestamp,
}

fn name(agent: usize) -> String {
    format!("host{agent}")
}

/// The room of a spool: half of them are full after some seconds without a server.
fn room(seed: u64, agent: usize) -> u64 {
    let mut chance = Chance::of(seed, 200 + agent as u64);
    if chance.percent(50) { SPOOL_BYTES_LIMIT } else { 1_500 + chance.below(4_000) }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

impl Stage {
    pub(super) fn new() -> Stage {
        let memory = tempfile::tempdir_in("/dev/shm");
        let folder = memory.or_else(|_| tempfile::tempdir()).unwrap();
        runtime().block_on(async {
            let fleet = Fleet::start().await;
            let mut hosts = Vec::new();
            for agent in 0..AGENTS {
                let mut identity = fleet.agent(&name(agent)).await;
                let Subject::Agent(host) = identity.spiffe_id.subject else { panic!("no agent") };
                hosts.push(host);
                identity.address = ADDRESS.parse().unwrap();
                identity.store(&folder.path().join(name(agent))).unwrap();
            }
            let mut config = fleet.config.clone();
            let fleets = fleet.stop_and_keep().await;
            copy(&config.history, &folder.path().join("history"));
            let authority = Authority::load(&config.ca, &config.trust_domain, Timestamp::now()).unwrap();
            drop(fleets);
            config.admin_socket = folder.path().join("admin.sock");
            let begin = Timestamp::from_micros(Timestamp::now().as_micros() / 1_000_000 * 1_000_000);
            Stage { folder, config, authority: Arc::new(authority), hosts, begin }
        })
    }
}

/// What runs.
struct Play<'a> {
    stage: &'a Stage,
    sim: Sim<'static>,
    station: Rc<Station>,
    places: Vec<Rc<Place>>,
    folder: TempDir,
    folders: Cell<u32>,
    backup: Option<Backup>,
    /// Whether the server forgot what it had stored.
    memory: Memory,
}

/// A copy of the history.
struct Backup {
    folder: PathBuf,
    batches: Batches,
}

/// Plays a seed to its end, and holds what is stored against what was observed. Gives how often a batch came that was stored
/// already.
pub(super) fn play(stage: &Stage, seed: u64) -> u64 {
    chance::begin(seed);
    let mut play = Play::begin(stage, seed);
    let planned = plan(&mut Chance::of(seed, 1), AGENTS, TROUBLE);
    if std::env::var_os("FLEETSOCK_SEED").is_some() {
        planned.iter().for_each(|planned| tell(&format!("{planned:?}")));
    }
    play.suffer(&planned);
    play.rest();
    runtime().block_on(async {
        let store = play.station.store.borrow().clone().unwrap();
        let now = chance::now();
        for (place, host) in std::iter::zip(&play.places, &stage.hosts) {
            let came = play.station.record.stored(*host);
            judge(&store, (*host, place.as_ref()), (&came, play.memory), now).await;
        }
    });
    play.station.record.again()
}

impl<'a> Play<'a> {
    fn begin(stage: &'a Stage, seed: u64) -> Play<'a> {
        let folder = tempfile::tempdir_in(stage.folder.path()).unwrap();
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(24 * 3600))
            .min_message_latency(Duration::from_millis(LATENCY_MS.0))
            .max_message_latency(Duration::from_millis(LATENCY_MS.1))
            .tcp_capacity(4096)
            .enable_tokio_io()
            .build();
        chance::set_now(stage.begin);
        let history = folder.path().join("history");
        copy(&stage.folder.path().join("history"), &history);
        let station = Rc::new(Station::new(stage.config.clone(), Arc::clone(&stage.authority), history));
        let served = Rc::clone(&station);
        sim.host("server", move || station::run(Rc::clone(&served)));
        let mut places = Vec::new();
        for agent in 0..AGENTS {
            let state = folder.path().join(name(agent));
            copy(&stage.folder.path().join(name(agent)), &state);
            let place = Rc::new(Place {
                name: name(agent),
                folder: RefCell::new(state),
                machine: RefCell::new(Machine::new(Chance::of(seed, 100 + agent as u64))),
                deeds: RefCell::default(),
                spool_bytes: room(seed, agent),
                dropped: RefCell::default(),
                outbox: RefCell::default(),
                stop: RefCell::default(),
                walks: Cell::default(),
            });
            let run = Rc::clone(&place);
            sim.host(name(agent), move || agent::run(Rc::clone(&run)));
            places.push(place);
        }
        Play { stage, sim, station, places, folder, folders: Cell::new(0), backup: None, memory: Memory::Whole }
    }

    fn step(&mut self) {
        chance::set_now(self.stage.begin.plus(self.sim.elapsed()));
        self.sim.step().unwrap();
    }

    /// Everything that is planned happens.
    fn suffer(&mut self, planned: &[Planned]) {
        let mut moments: Vec<(Duration, bool, Fault)> =
            planned.iter().flat_map(|p| [(p.from, true, p.fault), (p.until, false, p.fault)]).collect();
        moments.sort_by_key(|(at, ..)| *at);
        let mut moments = moments.into_iter().peekable();
        while moments.peek().is_some() || self.sim.elapsed() < TROUBLE {
            while let Some((_, begins, fault)) = moments.next_if(|(at, ..)| *at <= self.sim.elapsed()) {
                if begins { self.strike(fault) } else { self.heal(fault) }
            }
            self.step();
        }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Partition(agent) => self.sim.partition(name(agent), "server"),
            Fault::Mute(agent) => self.sim.partition_oneway(name(agent), "server"),
            Fault::Deaf(agent) => self.sim.partition_oneway("server", name(agent)),
            Fault::Hold(agent) => self.sim.hold(name(agent), "server"),
            Fault::Slow(agent, ms) => {
                self.sim.set_link_max_message_latency(name(agent), "server", Duration::from_millis(ms));
            }
            Fault::KillServer => self.kill_server(),
            Fault::StopServer => self.station.stop.borrow().cancel(),
            Fault::Backup => self.back_up(),
            Fault::Restore => self.restore(),
            Fault::KillAgent(agent) => self.kill_agent(agent),
            Fault::StopAgent(agent) => self.places[agent].stop.borrow().cancel(),
            Fault::Reboot(agent) => {
                self.kill_agent(agent);
                self.places[agent].machine.borrow_mut().reboot();
            }
        }
    }

    fn heal(&mut self, fault: Fault) {
        match fault {
            Fault::Partition(agent) => self.sim.repair(name(agent), "server"),
            Fault::Mute(agent) => self.sim.repair_oneway(name(agent), "server"),
            Fault::Deaf(agent) => self.sim.repair_oneway("server", name(agent)),
            Fault::Hold(agent) => self.sim.release(name(agent), "server"),
            Fault::Slow(agent, _) => {
                let usual = Duration::from_millis(LATENCY_MS.1);
                self.sim.set_link_max_message_latency(name(agent), "server", usual);
            }
            Fault::KillServer | Fault::Restore => self.start("server".to_owned()),
            Fault::Backup => {}
            Fault::StopServer => self.start_again("server".to_owned()),
            Fault::KillAgent(agent) | Fault::Reboot(agent) => self.start(name(agent)),
            Fault::StopAgent(agent) => self.start_again(name(agent)),
        }
    }

    /// Starts what stopped in order, when it is over.
    fn start_again(&mut self, host: String) {
        while self.sim.is_host_running(host.as_str()) {
            self.step();
        }
        self.start(host);
    }

    /// Starts what is not running, and lets it begin: what goes wrong next may be an order to stop, which only what has begun
    /// can hear.
    fn start(&mut self, host: String) {
        self.sim.bounce(host);
        self.step();
    }

    fn next_folder(&self) -> PathBuf {
        self.folders.set(self.folders.get() + 1);
        self.folder.path().join(format!("after-{}", self.folders.get()))
    }

    fn kill_server(&mut self) {
        let store = self.station.store.take();
        if let Some(store) = &store {
            // What was asked of the writer and is not waited for is done.
            runtime().block_on(store.probe()).unwrap();
        }
        let left = self.next_folder();
        copy(&self.station.folder.borrow(), &left);
        drop(store);
        self.sim.crash("server");
        let before = self.station.folder.replace(left);
        std::fs::remove_dir_all(before).unwrap();
    }

    /// Copies the history of a server that runs.
    fn back_up(&mut self) {
        let Some(store) = self.station.store.borrow().clone() else { return };
        runtime().block_on(store.probe()).unwrap();
        let folder = self.next_folder();
        copy(&self.station.folder.borrow(), &folder);
        let before = self.backup.replace(Backup { folder, batches: self.station.record.all() });
        before.map_or(Ok(()), |before| std::fs::remove_dir_all(before.folder)).unwrap();
    }

    fn restore(&mut self) {
        self.kill_server();
        let Some(Backup { folder, batches }) = &self.backup else { return };
        let restored = self.next_folder();
        copy(folder, &restored);
        self.station.record.go_back_to(batches.clone());
        self.memory = Memory::Restored;
        let before = self.station.folder.replace(restored);
        std::fs::remove_dir_all(before).unwrap();
    }

    fn kill_agent(&mut self, agent: usize) {
        let place = Rc::clone(&self.places[agent]);
        let left = self.next_folder();
        copy(&place.folder.borrow(), &left);
        place.outbox.take();
        self.sim.crash(name(agent));
        let before = place.folder.replace(left);
        std::fs::remove_dir_all(before).unwrap();
    }

    /// Nothing changes and nothing goes wrong any more, until everything is delivered.
    fn rest(&mut self) {
        let end = self.sim.elapsed() + REST;
        // One more walk sees what changed last.
        let walked: Vec<u32> = self.places.iter().map(|place| place.walks.get()).collect();
        self.places.iter().for_each(|place| place.machine.borrow_mut().rests = true);
        let runtime = runtime();
        loop {
            for _ in 0..50 {
                self.step();
            }
            let store = self.station.store.borrow().clone();
            let delivered = std::iter::zip(&self.places, &self.stage.hosts).all(|(place, host)| {
                let last = store.as_ref().map(|store| runtime.block_on(store.last_batch(*host)).unwrap());
                place.given().is_some_and(|given| given.seq > 0 && last == Some(given))
            });
            let walked_on = std::iter::zip(&self.places, &walked).all(|(place, before)| place.walks.get() > before + 1);
            if delivered && walked_on {
                return;
            }
            assert!(self.sim.elapsed() < end, "not everything was delivered {} s after the last fault", REST.as_secs());
        }
    }
}
