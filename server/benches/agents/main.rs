//! A load generator: many simulated agents over real mutual TLS against a real `fleetsock-server` process.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench agents -- --agents 1000 --seconds 60
//! ```
//!
//! Each agent enrols, sends a snapshot, and then a batch of changes at every interval; every batch is timed until its
//! acknowledgement, which the server gives after an fsync: those that were sent while all agents were there and their
//! snapshots acknowledged, and by themselves those of a storm of snapshots. `--restart` stops the server half-way and starts
//! it again. Agents come from `--addresses` addresses, 127.0.0.1 and on, each always from the same.
//! The table at the end is for capacity planning: rows per second, acknowledgement times, CPU and memory of the server, and
//! whether its memory grows while the load stays the same.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for measuring, run by hand"
)]

mod agent;
mod report;
mod server;

use std::{
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Parser;
use fleetsock_proto::{client::enroll_by, identity::Key, stream::BatchNumber, tls};
use tokio::{sync::Semaphore, task::JoinSet};

use self::{
    agent::{Agent, SOURCE, dial_from_source},
    report::{Figures, Measured, report},
    server::Server,
};

/// Load of simulated agents against a real server.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Simulated agents.
    #[arg(long, default_value_t = 100)]
    agents: u32,
    /// How long they report, seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Open sockets of each agent in its first snapshot.
    #[arg(long, default_value_t = 200)]
    sockets: u32,
    /// Changed sockets of each agent in every batch.
    #[arg(long, default_value_t = 50)]
    rows: u32,
    /// Time between two batches of an agent, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    every: u64,
    /// Loopback addresses that the agents come from.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=250))]
    addresses: u32,
    /// Stop the server half-way and start it again.
    #[arg(long)]
    restart: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// Where an agent comes from.
    fn source(&self, agent: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + agent % self.addresses)
    }
}

async fn enrolled(server: &Server, arguments: &Arguments, measured: &Arc<Measured>) -> Vec<Agent> {
    let join = Arc::new(server.token(arguments.agents).await);
    let at_once = Arc::new(Semaphore::new(64));
    let mut enrolling = JoinSet::new();
    for number in 0..arguments.agents {
        let (join, at_once) = (Arc::clone(&join), Arc::clone(&at_once));
        let (arguments, measured) = (arguments.clone(), Arc::clone(measured));
        enrolling.spawn(async move {
            let _permit = at_once.acquire().await.unwrap();
            let (name, key) = (format!("sim{number:05}"), Key::generate().unwrap());
            let enrolling = enroll_by(dial_from_source, &join, &name, key);
            let identity = SOURCE.scope(arguments.source(number), enrolling).await.unwrap();
            Agent { number, identity, last: BatchNumber::default(), cookie: 0, arguments, measured }
        });
    }
    enrolling.join_all().await
}

async fn load(arguments: Arguments) {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("server");
    Server::init(&state);
    let mut server = Server::start(&state).await;
    let empty = server.cost().1;
    let measured = Arc::new(Measured::default());

    let begun = Instant::now();
    let agents = enrolled(&server, &arguments, &measured).await;
    let enrolment = f64::from(arguments.agents) / begun.elapsed().as_secs_f64();
    println!("enrolled {} agents, {enrolment:.0} per second", arguments.agents);

    let (cpu_before, begun) = (server.cost().0, Instant::now());
    let until = begun + Duration::from_secs(arguments.seconds);
    let handshakes = Arc::new(Semaphore::new(128));
    let mut running = JoinSet::new();
    for agent in agents {
        let source = arguments.source(agent.number);
        running.spawn(SOURCE.scope(source, agent.run(until, Arc::clone(&handshakes))));
    }
    let caught_up = measured.all_caught_up(arguments.agents, until).await;
    let mut rss_before = server.cost().1;
    let mut cpu = 0.0;
    let mut back = None;
    if arguments.restart {
        tokio::time::sleep_until((begun + Duration::from_secs(arguments.seconds / 2)).into()).await;
        cpu += server.cost().0 - cpu_before;
        server.stop();
        server = Server::start(&state).await;
        back = Some(measured.all_caught_up(arguments.agents, until).await);
        rss_before = server.cost().1;
    }
    let end = until - Duration::from_millis(500);
    let third = end.saturating_duration_since(Instant::now()) / 3;
    tokio::time::sleep(third).await;
    let rss_third = server.cost().1;
    tokio::time::sleep_until(end.into()).await;
    let (cpu_after, rss) = server.cost();
    cpu += if arguments.restart { cpu_after } else { cpu_after - cpu_before };
    running.join_all().await;
    let elapsed = begun.elapsed().as_secs_f64();
    report(&arguments, &measured, Figures { elapsed, cpu, empty, rss_before, rss_third, rss, caught_up, back }).await;
    server.stop();
}

fn main() {
    tls::install_provider();
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(load(arguments));
}
