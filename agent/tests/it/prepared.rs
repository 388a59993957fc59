//! An agent that may not make trace buffers, and reads those that root prepared for it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use fleetsock_proto::host::Tier;

use crate::{
    connecting::Connecting,
    fleet::Fleet,
    listeners::skip,
    namespaces::makes_namespaces,
    tellers::{BY_BUFFERS, Deafening, INSTANCES, check, over},
    tiers::{Agent, DAC_READ_SEARCH, HEARING, SYS_PTRACE, has_events, makes_tiers},
};

/// What the unit in `deploy/systemd` gives its agent.
const OF_THE_UNIT: [&str; 3] = ["sys_ptrace", "dac_read_search", "perfmon"];
/// Connections that no walk sees.
const SHORT: usize = 50;

/// What root prepared, removed at the end.
struct Prepared(String);

impl Prepared {
    /// None where there can be no trace buffers.
    fn new(name: &str) -> Option<Prepared> {
        let prepared = Prepared(format!("{name}-{}", std::process::id()));
        let made = prepared.order("make");
        if made.status.success() {
            return Some(prepared);
        }
        skip(&format!("no trace buffers here: {}", String::from_utf8_lossy(&made.stderr)));
        None
    }

    fn order(&self, order: &str) -> Output {
        Command::new(env!("CARGO_BIN_EXE_fleetsock-agent")).args(["buffers", order, &self.0]).output().unwrap()
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("{INSTANCES}/fleetsock-prepared-{}", self.0))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.order("remove");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_of_another_user_hears_everything_by_prepared_buffers_also_beside_a_program_with_bpf() {
    let _alone = HEARING.write().await;
    if !makes_tiers() || !has_events() {
        return;
    }
    let Some(prepared) = Prepared::new("heard") else { return };
    let fleet = Fleet::start().await;
    let buffers = ["--buffers", prepared.0.as_str()];
    let agent = Agent::start_with(&fleet, Some(&OF_THE_UNIT), "walk_ms = 200", &buffers).await;
    let facts = fleet.facts().await;
    assert!(agent.log().contains(BY_BUFFERS), "{}", agent.log());
    assert!(facts.tier == Tier::T2 && !facts.tier_reason.contains("by perf"), "{}", facts.tier_reason);
    assert_eq!(agent.capabilities(), BTreeSet::from([SYS_PTRACE | DAC_READ_SEARCH]));

    let mut load = Connecting::start();
    let deafening = Deafening::start();
    load.connect(SHORT);
    drop(deafening);
    check(&over(&fleet, load.port, SHORT).await, (SHORT, load.pid()));

    let refused = prepared.order("remove");
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && words.contains("is in use by another agent"), "{words}");
    // Killed and waited for: what is left is removed by whoever prepared it.
    drop(agent);
    assert!(prepared.path().exists());
    let removed = prepared.order("remove");
    assert!(removed.status.success() && !prepared.path().exists(), "{}", String::from_utf8_lossy(&removed.stderr));
    assert!(prepared.order("remove").status.success(), "there is nothing to remove");
}

#[test]
fn whoever_prepares_buffers_where_processes_have_other_numbers_or_starts_leaves_those_of_running_agents() {
    if !makes_namespaces() {
        return;
    }
    let Some(prepared) = Prepared::new("altered") else { return };
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let start = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(19).unwrap();
    // As an agent would have made it that is this process.
    let running = PathBuf::from(format!("{INSTANCES}/fleetsock-{}-{start}-900", std::process::id()));
    fs::create_dir(&running).unwrap();
    let mut views = vec![vec!["--pid", "--mount-proc"]];
    if Path::new("/proc/self/ns/time").exists() {
        views.push(vec!["--time", "--boottime", "1000000"]);
    }
    let agent = env!("CARGO_BIN_EXE_fleetsock-agent");
    let outcomes = views.iter().map(|view| {
        let mut command = Command::new("unshare");
        command.args(view).args(["--fork", agent, "buffers", "make", &prepared.0]);
        (view, command.output().unwrap(), running.exists())
    });
    let outcomes: Vec<_> = outcomes.collect();
    if running.exists() {
        fs::remove_dir(&running).unwrap();
    }
    for (view, made, is_left) in outcomes {
        assert!(made.status.success() && is_left, "{view:?}: {}", String::from_utf8_lossy(&made.stderr));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_for_which_nobody_prepared_buffers_says_so_and_hears_by_perf() {
    if !makes_tiers() || !has_events() {
        return;
    }
    let fleet = Fleet::start().await;
    let agent = Agent::start_with(&fleet, Some(&OF_THE_UNIT), "walk_ms = 200", &["--buffers", "nobodys"]).await;
    let facts = fleet.facts().await;
    assert_eq!(facts.tier, Tier::T2, "{}", agent.log());
    for words in ["connections are heard by perf", "fleetsock-prepared-nobodys is not there: nobody prepared it"] {
        assert!(facts.tier_reason.contains(words), "{}", facts.tier_reason);
    }
    assert!(agent.log().contains("the prepared trace buffers are not read"), "{}", agent.log());
}
