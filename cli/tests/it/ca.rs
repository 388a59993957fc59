//! The next root on its way to the hosts: with the real programs.

use std::{fs, path::PathBuf};

use serde_json::Value;

use crate::{fleet::Fleet, network::until};

/// How many roots an agent trusts.
fn trusted(fleet: &Fleet, host: &str) -> usize {
    let file: PathBuf = fleet.home.path().join("state").join(host).join("root.pem");
    fs::read_to_string(file).unwrap().matches("BEGIN CERTIFICATE").count()
}

fn states(fleet: &Fleet) -> Vec<String> {
    let (roots, _) = fleet.items(&["ca"]);
    roots.iter().map(|root: &Value| root["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_prepared_root_reaches_the_agents_and_is_forgotten_when_it_is_dropped() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    assert_eq!(states(&fleet), ["active"]);
    assert_eq!(trusted(&fleet, "web1"), 1);

    let prepared = fleet.ask(&["ca", "prepare"]);
    assert_eq!(prepared.code, 0, "{}", prepared.err);
    assert!(prepared.err.contains("is prepared: agents take it"), "{}", prepared.err);
    assert_eq!(states(&fleet), ["active", "prepared"]);
    let again = fleet.ask(&["ca", "prepare"]);
    assert!(again.code != 0 && again.err.contains("prepared already"), "{again:?}");

    // The server's next stop brings every agent back, and with it the roots.
    fleet.stop_server();
    fleet.serve();
    until("the agent trusts both roots", || (trusted(&fleet, "web1") == 2).then_some(()));

    // From its disk, by both, it connects again.
    fleet.stop_agent("web1");
    fleet.report("web1");
    until("the agent is connected", || fleet.log("web1").contains("\"connected\"").then_some(()));

    let dropped = fleet.ask(&["ca", "abort"]);
    assert!(dropped.code == 0 && dropped.err.contains("is dropped"), "{dropped:?}");
    assert_eq!(states(&fleet), ["active"]);
    fleet.stop_agent("web1");
    fleet.report("web1");
    until("the agent trusts the one root", || (trusted(&fleet, "web1") == 1).then_some(()));
    let nothing = fleet.ask(&["ca", "abort"]);
    assert!(nothing.code != 0 && nothing.err.contains("no root is prepared"), "{nothing:?}");
}
