//! An agent that is not fast enough, or may not take what it would need, says what it did not see.

use std::{
    net::{TcpListener, TcpStream},
    time::Duration,
};

use fleetsock_agent::config::Config as AgentConfig;
use fleetsock_proto::{
    answer::{Gap, GapReason},
    host::Tier,
    socket::Known,
    time::Timestamp,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    fleet::{Agent as OwnAgent, Fleet, eager, until},
    tiers::{Agent, has_events, makes_tiers, refuses_events},
};

/// A process that does not run until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(agent: &Agent) -> Stopped {
        let pid = Pid::from_child(&agent.child);
        kill_process(pid, Signal::STOP).unwrap();
        Stopped(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        kill_process(self.0, Signal::CONT).unwrap();
    }
}

async fn gap(fleet: &Fleet) -> Gap {
    until("what was not observed is told", async || {
        fleet.gaps().await.into_iter().find(|gap| gap.reason == GapReason::KernelLoss)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_in_which_the_agent_did_not_run_was_not_observed() {
    if !makes_tiers() || !refuses_events() {
        return;
    }
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet, Some(&["sys_ptrace", "dac_read_search"]), "walk_ms = 100").await;
    assert_eq!(fleet.facts().await.tier, Tier::T1, "{}", agent.log());
    let before = Timestamp::now();
    let stopped = Stopped::new(&agent);
    // Three intervals and five seconds are what a busy machine may take.
    tokio::time::sleep(Duration::from_secs(6)).await;
    drop(stopped);
    // The last walk may have been a moment before. What the kernel had no room for meanwhile makes a gap of its own, after this.
    let begun = before.plus(Duration::from_secs(1));
    let gap = until("the time without walks is told", async || {
        let gaps = fleet.gaps().await;
        gaps.into_iter().find(|gap| gap.reason == GapReason::KernelLoss && gap.since <= begun)
    })
    .await;
    assert!(gap.until.unwrap() >= before.plus(Duration::from_secs(6)), "{gap:?} after {before:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_had_no_room_are_counted_and_a_full_walk_heals_what_they_would_have_told() {
    if !makes_tiers() || !has_events() {
        return;
    }
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet, None, "walk_ms = 100\nreferee_s = 86400").await;
    assert_eq!(fleet.facts().await.tier, Tier::T2, "{}", agent.log());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let connect = || {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    };
    let open = async || {
        let sessions = fleet.sessions(port).await;
        sessions.into_iter().filter(|session| session.closed.is_none()).count()
    };
    let closes = connect();
    until("a connection is open", async || (open().await == 2).then_some(())).await;
    let stopped = Stopped::new(&agent);
    drop(closes);
    // Far more than the rings of some processors hold.
    let processors = std::thread::available_parallelism().unwrap().get();
    (0..processors * 4000).for_each(|_| drop(connect()));
    let _opened = connect();
    drop(stopped);
    gap(&fleet).await;
    until("the loss is counted", async || fleet.host().await.filter(|host| host.losses > 0)).await;
    until("what is open is known", async || (open().await == 2).then_some(())).await;
    let sessions = fleet.sessions(port).await;
    let known = |session: &&fleetsock_proto::session::Session| session.closed.is_none();
    // Nobody told when it opened: after the last walk that would have shown it.
    assert!(sessions.iter().filter(known).all(|session| session.opened_known != Known::FirstSeen), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_with_little_memory_says_that_sockets_had_no_room() {
    let fleet = Fleet::start().await;
    let room = AgentConfig { memory_bytes: (24 * 1024 + 30) * 1024, ..eager("web1") };
    let agent = OwnAgent::start(&fleet.enrol("web1").await, room, Timestamp::now);
    fleet.facts().await;
    let _listeners: Vec<_> = (0..60).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    until("the loss is counted", async || fleet.host().await.filter(|host| host.losses > 0)).await;
    until("and said", async || {
        Some(fleet.facts().await).filter(|facts| facts.tier_reason.contains("memory_mib is reached: up to "))
    })
    .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn walks_that_cost_more_than_they_may_are_further_apart_and_that_is_said() {
    let fleet = Fleet::start().await;
    // A walk ten times a second costs more than a percent of a core, whatever the machine.
    let frugal = AgentConfig { cpu_percent: 1, ..eager("web1") };
    let agent = OwnAgent::start(&fleet.enrol("web1").await, frugal, Timestamp::now);
    let _listeners: Vec<_> = (0..500).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    until("the restraint is said", async || {
        Some(fleet.facts().await).filter(|facts| facts.tier_reason.contains("cpu_percent = 1 is reached"))
    })
    .await;
    agent.stop().await;
}
