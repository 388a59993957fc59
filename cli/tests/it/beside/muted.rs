//! The history beside `tcplife`, which keeps the kernel's records from the agents while it runs
//! (`agent/src/lives/silence.rs`): what that makes the history miss must lie in gaps.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{
    HOSTS, Programs, Scope, Session, fleet, history, moment, referee,
    referees::{Heard, Tcplife},
    say, side_by_side,
};
use crate::{fleet::Fleet, network::until};

/// How much longer or shorter a session may be than the same one of tcplife, milliseconds: tcplife begins when the connection
/// is established, and is as exact as the history otherwise.
const LASTED_MS: f64 = 50.0;
/// tcplife tells its time in whole seconds, when it gets to it.
const MARGIN_S: f64 = 1.5;
const DAY_S: f64 = 86_400.0;

/// What was not observed whole on a host.
struct Gap {
    host: String,
    since: f64,
    until: f64,
}

impl Gap {
    fn has(&self, host: &str, heard: &Heard) -> bool {
        // Its day is that of the gap, or the gap lasts past midnight.
        let after = (f64::from(heard.at) - (self.since - MARGIN_S)).rem_euclid(DAY_S);
        self.host == host && after <= self.until - self.since + 2.0 * MARGIN_S
    }
}

fn gaps(fleet: &Fleet) -> Vec<Gap> {
    let told = |host: &&'static str| {
        let periods = fleet.items(&["hosts", host, "--coverage", "--since", "1h"]).0;
        let lossy = periods.into_iter().filter(|period| period["reason"] == "kernel-loss");
        let host = (*host).to_owned();
        lossy.map(move |period| Gap {
            host: host.clone(),
            since: moment(&period["since"]),
            until: moment(&period["until"]),
        })
    };
    HOSTS.iter().flat_map(told).collect()
}

/// The hosts that say that records are kept from them.
fn muted(fleet: &Fleet) -> usize {
    let hosts = fleet.items(&["hosts"]).0;
    hosts.iter().filter(|host| host["tier_reason"].as_str().is_some_and(|reason| reason.contains("tcplife"))).count()
}

/// Makes traffic at every host until what came of it is heard.
fn until_they_hear(fleet: &Fleet, programs: &Programs<'_>) {
    until("the agents hear again", || {
        programs.fetch("client1");
        programs.fetch("db1");
        std::thread::sleep(Duration::from_millis(500));
        (muted(fleet) == 0).then_some(())
    });
}

#[test]
fn what_tcplife_keeps_from_the_agents_is_a_gap_and_outside_of_it_the_history_equals_what_it_saw() {
    if std::env::var_os("FLEETSOCK_TCPLIFE").is_none() {
        eprintln!("skipped: tcplife would take the records of other tests too; FLEETSOCK_TCPLIFE=1 runs it");
        return;
    }
    let Some(fleet) = fleet() else { return };
    let scope = Scope::new(&fleet);
    let programs = Programs::start(&fleet, &scope);
    let folder = tempfile::tempdir().unwrap();
    let Some(tcplife) = referee("tcplife", Tcplife::start(&fleet, &scope, folder.path())) else { return };
    programs.work(1);
    let over = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    until("all hosts say so", || (muted(&fleet) == HOSTS.len()).then_some(()));
    let heard = tcplife.end(&scope);
    until_they_hear(&fleet, &programs);

    let sessions = history(&fleet, &scope);
    let gaps = gaps(&fleet);
    let (both, ours, theirs) =
        side_by_side(&sessions, &heard, |row: &Session| (row.local, row.peer), |row| vec![(row.local, row.peer)]);
    let is_other = |(session, heard): &&(&Session, &Heard)| {
        // Of what was accepted tcplife often has a stranger: whoever runs when the last packet arrives.
        let is_same = (session.pid, &session.process) == (heard.pid, &heard.process);
        let is_of_another = session.direction == "out" && !is_same;
        is_of_another || (session.lasted_ms - heard.lasted_ms).abs() > LASTED_MS
    };
    let others: Vec<&Heard> = both.iter().filter(is_other).map(|(_, heard)| *heard).collect();
    let is_told = |heard: &&Heard| {
        let host = scope.host(heard.local.ip()).unwrap();
        gaps.iter().any(|gap| gap.has(host, heard))
    };
    let untold: Vec<_> = theirs.iter().chain(&others).copied().filter(|heard| !is_told(heard)).collect();
    say(&format!(
        "{} rows of tcplife, {} of the history; {} have no session, {} another length or process; {} gaps",
        heard.len(),
        both.len() + ours.len(),
        theirs.len(),
        others.len(),
        gaps.len(),
    ));
    let invented: Vec<_> = ours.iter().filter(|session| session.opened < over).collect();
    assert!(invented.is_empty(), "tcplife has none of these: {invented:#?}");
    assert!(untold.is_empty(), "{} in no gap: {untold:#?}", untold.len());
    assert!(heard.len() > 1000, "there was hardly any traffic");
}
