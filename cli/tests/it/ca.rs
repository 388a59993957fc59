//! Another root on its way through a fleet: with the real programs.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::{fleet::Fleet, network::until};

/// How many roots the holder of an identity trusts.
fn trusted(folder: &Path) -> usize {
    fs::read_to_string(folder.join("root.pem")).unwrap().matches("BEGIN CERTIFICATE").count()
}

fn of_host(fleet: &Fleet, host: &str) -> PathBuf {
    fleet.home.path().join("state").join(host)
}

fn states(fleet: &Fleet) -> Vec<String> {
    let (roots, _) = fleet.items(&["ca"]);
    roots.iter().map(|root: &Value| root["state"].as_str().unwrap().to_owned()).collect()
}

/// Whom the next step waits for.
fn behind(fleet: &Fleet) -> Vec<String> {
    let (roots, _) = fleet.items(&["ca"]);
    let named = |root: &Value| root["behind_names"].as_array().unwrap().clone();
    roots.iter().flat_map(named).map(|name| name.as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_root_is_exchanged_with_four_commands_and_whoever_was_away_is_named() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    assert_eq!(states(&fleet), ["active"]);
    fleet.stop_agent("web1");
    let prepared = fleet.ask(&["ca", "prepare"]);
    assert!(prepared.code == 0 && prepared.err.contains("is prepared: connected hosts"), "{prepared:?}");
    // The one who asked has the new root with his answer.
    assert!(prepared.err.contains("it is trusted, and your certificate is renewed"), "{prepared:?}");
    let next = fleet.ask(&["ca"]);
    assert!(next.code == 0 && next.out.contains("1 host (web1)"), "{next:?}");
    assert_eq!(states(&fleet), ["active", "prepared"]);
    let again = fleet.ask(&["ca", "prepare"]);
    assert!(again.code != 0 && again.err.contains("prepared already"), "{again:?}");
    let early = fleet.ask(&["ca", "activate"]);
    assert!(early.code != 0 && early.err.contains("1 host (web1) do not have the new root yet"), "{early:?}");

    fleet.report("web1");
    until("nobody is waited for", || behind(&fleet).is_empty().then_some(()));
    assert_eq!(trusted(&of_host(&fleet, "web1")), 2);
    let active = fleet.ask(&["ca", "activate"]);
    assert!(active.code == 0 && active.err.contains("is active"), "{active:?}");
    assert!(active.err.contains("your certificate is renewed"), "{active:?}");
    // The server that was started again shows a certificate of the new root.
    fleet.stop_server();
    fleet.serve();
    until("nobody is waited for", || behind(&fleet).is_empty().then_some(()));
    let retired = fleet.ask(&["ca", "retire"]);
    assert!(retired.code == 0 && retired.err.contains("is dropped, with every certificate under it"), "{retired:?}");
    assert!(!retired.err.contains("stranded"), "{retired:?}");
    assert_eq!(states(&fleet), ["active"]);
    until("the agent trusts the one root", || (trusted(&of_host(&fleet, "web1")) == 1).then_some(()));
    let nothing = fleet.ask(&["ca", "abort"]);
    assert!(nothing.code != 0 && nothing.err.contains("no root is prepared"), "{nothing:?}");
}

#[test]
fn a_root_that_was_prepared_in_error_is_dropped_and_forgotten() {
    let Some(fleet) = Fleet::start(&["server", "web1"]) else { return };
    assert_eq!(fleet.ask(&["ca", "prepare"]).code, 0);
    until("the agent trusts both roots", || (trusted(&of_host(&fleet, "web1")) == 2).then_some(()));
    let dropped = fleet.ask(&["ca", "abort"]);
    assert!(dropped.code == 0 && dropped.err.contains("is dropped"), "{dropped:?}");
    assert_eq!(states(&fleet), ["active"]);
    until("the agent trusts the one root", || (trusted(&of_host(&fleet, "web1")) == 1).then_some(()));
}
