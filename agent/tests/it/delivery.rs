//! Everything that an agent observes is on the server once, or a gap says what is missing.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::Command,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use fleetsock_agent::{
    config::Config as AgentConfig,
    spool::{Item, Spool},
};
use fleetsock_proto::{
    answer::GapReason,
    host::HostState,
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};

use super::fleet::{Agent, Fleet, eager, identity, until};

/// A listener of this process, and its port.
fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn appears(fleet: &Fleet, port: u16) {
    until("a listener appears", async || fleet.listener(port).await.map(drop)).await;
}

async fn disappears(fleet: &Fleet, port: u16) {
    until("a listener disappears", async || fleet.listener(port).await.is_none().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_is_known_with_its_process_from_its_opening_to_its_closing() {
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, eager("web1"), Timestamp::now);
    until("the host reports", async || fleet.host().await.filter(|host| host.state == HostState::Online)).await;
    let (listener, port) = listen();
    appears(&fleet, port).await;
    let row = fleet.listener(port).await.unwrap();
    assert_eq!((row.host.as_str(), row.owners[0].pid), ("web1", std::process::id()));
    drop(listener);
    disappears(&fleet, port).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_while_the_server_was_away_arrives_when_it_is_back() {
    let mut fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, eager("web1"), Timestamp::now);
    let (early, early_port) = listen();
    appears(&fleet, early_port).await;
    fleet.stop().await;
    drop(early);
    let (_late, late_port) = listen();
    tokio::time::sleep(Duration::from_millis(300)).await;
    fleet.come_back().await;
    appears(&fleet, late_port).await;
    assert_eq!(fleet.listener(early_port).await.map(|row| row.port), None);
    assert_eq!(fleet.gaps().await, []);
    agent.stop().await;
}

/// Opens and closes listeners until the spool in a folder has dropped something.
async fn churn(batches: u32) {
    for _ in 0..batches {
        let (listener, _) = listen();
        tokio::time::sleep(Duration::from_millis(120)).await;
        drop(listener);
        tokio::time::sleep(Duration::from_millis(120)).await;
    }
}

/// The gaps that a spool has to tell of.
fn gaps_in_spool(state: &Path) -> Vec<GapReport> {
    let mut spool = Spool::open(state, u64::MAX, Timestamp::now()).unwrap();
    let (mut gaps, mut position) = (Vec::new(), BatchNumber::default());
    while let Some(item) = spool.next_after(position) {
        position = match item {
            Item::Batch(batch) => batch.number,
            Item::Gap(gap) => {
                gaps.push(gap);
                BatchNumber { epoch: gap.epoch, seq: gap.seqs.unwrap().1 }
            }
        };
    }
    gaps
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_spool_is_a_gap_that_both_sides_count_alike() {
    let mut fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let (first, first_port) = listen();
    appears(&fleet, first_port).await;
    drop(first);
    // Nothing is on the way: an answer that is lost would make the server know more than the agent.
    agent.stop().await;
    fleet.stop().await;
    let small = AgentConfig { spool_bytes: 2048, ..eager("web1") };
    let agent = Agent::start(&state, small, Timestamp::now);
    let (_kept, port) = listen();
    churn(8).await;
    agent.stop().await;
    let [told] = gaps_in_spool(&state)[..] else { panic!("{:?}", gaps_in_spool(&state)) };
    let (first, last) = told.seqs.unwrap();

    // With room, so that nothing more is dropped before the server is back.
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    fleet.come_back().await;
    appears(&fleet, port).await;
    let full = until("the gap is known", async || {
        fleet.gaps().await.into_iter().find(|gap| gap.reason == GapReason::SpoolFull)
    })
    .await;
    assert_eq!((full.batches_lost, told.reason), (last - first + 1, GapReason::SpoolFull));
    let near = |a: Timestamp, b: Timestamp| a.since(b).max(b.since(a)) < Duration::from_secs(1);
    assert!(near(full.since, told.since) && near(full.until.unwrap(), told.until), "{full:?} {told:?}");
    agent.stop().await;
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_from_an_older_backup_gets_what_is_still_held_and_a_gap_for_the_rest() {
    let mut fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, eager("web1"), Timestamp::now);
    let (before, before_port) = listen();
    appears(&fleet, before_port).await;
    fleet.stop().await;
    let (history, backup) = (fleet.server_state().join("history"), fleet.folder.path().join("backup"));
    copy(&history, &backup);
    fleet.come_back().await;
    // Delivered, and then forgotten by the server.
    drop(before);
    let (_forgotten, forgotten_port) = listen();
    appears(&fleet, forgotten_port).await;
    disappears(&fleet, before_port).await;
    // And acknowledged: later changes came by the same stream.
    for _ in 0..3 {
        let (listener, port) = listen();
        appears(&fleet, port).await;
        drop(listener);
        disappears(&fleet, port).await;
    }
    fleet.stop().await;
    fs::remove_dir_all(&history).unwrap();
    fs::rename(&backup, &history).unwrap();
    let (_held, held_port) = listen();
    fleet.come_back().await;
    appears(&fleet, held_port).await;
    // Nothing changes any more, so that only the snapshot can tell.
    appears(&fleet, forgotten_port).await;
    disappears(&fleet, before_port).await;
    let gaps = fleet.gaps().await;
    assert!(gaps.iter().any(|gap| gap.reason == GapReason::Delivery && gap.batches_lost > 0), "{gaps:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_lost_its_spool_goes_on_with_numbers_that_the_server_has_not_seen() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    for _ in 0..2 {
        let agent = Agent::start(&state, eager("web1"), Timestamp::now);
        let (listener, port) = listen();
        appears(&fleet, port).await;
        drop(listener);
        disappears(&fleet, port).await;
        agent.stop().await;
        for file in ["spool.db", "spool.db-wal"] {
            if state.join(file).exists() {
                fs::remove_file(state.join(file)).unwrap();
            }
        }
    }
}

/// The clock of a host whose certificate is two days old.
fn in_two_days() -> Timestamp {
    Timestamp::now().plus(Duration::from_secs(2 * 86_400))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_due_is_renewed_and_used_at_once() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let first = identity(&state);
    let agent = Agent::start(&state, eager("web1"), in_two_days);
    let second =
        until("a new certificate", async || Some(identity(&state)).filter(|new| new.serial != first.serial)).await;
    assert_eq!(second.spiffe_id, first.spiffe_id);
    // By its clock the new one is due as well, so that the agent would go on; the first one is worth nothing now.
    until("the old certificate is refused", async || {
        let mut client = fleetsock_proto::client::AgentClient::connect(&first).await.ok()?;
        client.renew(Vec::new()).await.err().filter(|error| error.to_string().contains("refused our certificate"))
    })
    .await;
    agent.stop().await;
}

/// How far the clock of a host was set, seconds.
static LEAP_S: AtomicI64 = AtomicI64::new(0);

/// A clock that somebody sets.
fn set() -> Timestamp {
    Timestamp::from_micros(Timestamp::now().as_micros() + LEAP_S.load(Ordering::Relaxed) * 1_000_000)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_is_told_as_a_gap_and_measured_anew() {
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, eager("web1"), set);
    let (_listener, port) = listen();
    appears(&fleet, port).await;
    let before = Timestamp::now();
    LEAP_S.store(3600, Ordering::Relaxed);
    let gap = until("the leap is told", async || {
        fleet.gaps().await.into_iter().find(|gap| gap.reason == GapReason::ClockLeap)
    })
    .await;
    // By the server's clock, though the agent's made an hour of it.
    let (since, until_at) = (gap.since, gap.until.unwrap());
    let margin = Duration::from_secs(60);
    assert!(since >= before.minus(margin) && until_at <= Timestamp::now().plus(margin), "{gap:?}, {before:?}");
    until("the server knows how far the clock is off", async || {
        let off = fleet.host().await?.clock_offset_us;
        (off.abs_diff(3_600_000_000) < 60_000_000).then_some(())
    })
    .await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_agent_is_observed_up_to_its_end_and_no_further() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let (_listener, port) = listen();
    appears(&fleet, port).await;
    let before = Timestamp::now();
    agent.stop().await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let gap = until("the time between is a gap", async || fleet.gaps().await.into_iter().next()).await;
    assert!(gap.reason == GapReason::AgentDown && gap.since >= before, "{gap:?} begins before {before:?}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_agent_process_that_is_killed_comes_back_and_its_table_is_right() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let start = || {
        Command::new(env!("CARGO_BIN_EXE_fleetsock-agent"))
            .args(["run", "--name", "web1", "--state"])
            .arg(&state)
            .env("FLEETSOCK_LOG", "error")
            .env_remove("NOTIFY_SOCKET")
            .spawn()
            .unwrap()
    };
    fs::write(state.join("agent.toml"), "walk_ms = 100").unwrap();
    let mut agent = start();
    for _ in 0..3 {
        let (listener, port) = listen();
        appears(&fleet, port).await;
        agent.kill().unwrap();
        agent.wait().unwrap();
        drop(listener);
        agent = start();
        disappears(&fleet, port).await;
    }
    let pid = rustix::process::Pid::from_child(&agent);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(agent.wait().unwrap().success(), "SIGTERM is a good end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_host_is_told_what_to_do() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let log = fleet.folder.path().join("log");
    let mut agent = Command::new(env!("CARGO_BIN_EXE_fleetsock-agent"))
        .args(["run", "--name", "web1", "--state"])
        .arg(&state)
        .env("FLEETSOCK_LOG", "info")
        .env_remove("NOTIFY_SOCKET")
        .stderr(fs::File::create(&log).unwrap())
        .spawn()
        .unwrap();
    until("the host reports", async || fleet.host().await.filter(|host| host.state == HostState::Online)).await;
    fleet.local().await.revoke_host("web1", "stolen").await.unwrap();
    let said = until("the agent says so", async || {
        fs::read_to_string(&log).ok()?.lines().find(|line| line.contains("ERROR")).map(str::to_owned)
    })
    .await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    assert!(said.contains("revoked") && said.contains("fleetsock-agent enroll --force"), "{said}");
}
