//! A backup of a running server, and what agents and history are after it was put in place.

use std::fs;

use serde_json::Value;

use crate::{
    fleet::{Fleet, gaps, listening},
    network::until,
};

fn made(fleet: &Fleet, arguments: &[&str]) -> Value {
    let ran = fleet.ask(&[&["backup", "-o", "json"], arguments].concat());
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).unwrap()
}

fn appears(fleet: &Fleet, port: &str) {
    until("a listener is known", || {
        let (items, _) = fleet.items(&["ports", "--port", port]);
        (!items.is_empty()).then_some(())
    });
}

#[test]
fn after_an_older_backup_agents_tell_again_what_they_hold_and_the_rest_is_a_gap() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    let before = fleet.network.python("web1", &listening(&[("tcp", 8001)]));
    appears(&fleet, "8001");
    let backup = made(&fleet, &["older"]);
    let again = fleet.ask(&["backup", "older"]);
    assert!(again.code == 2 && again.err.contains("there is a backup `older` already"), "{again:?}");
    let folder = backup["folder"].as_str().unwrap().to_owned();
    assert!(folder.ends_with("/server/backups/older") && backup["bytes"].as_u64() > Some(0), "{backup}");
    assert!(!fs::exists(format!("{folder}/ca")).unwrap(), "the CA was not asked for");

    // Delivered and acknowledged, and then forgotten by the server.
    before.stop();
    let _forgotten = fleet.network.python("web1", &listening(&[("tcp", 8002)]));
    appears(&fleet, "8002");
    for _ in 0..3 {
        let short = fleet.network.python("web1", &listening(&[("tcp", 8003)]));
        appears(&fleet, "8003");
        short.stop();
        until("it is gone", || fleet.items(&["ports", "--port", "8003"]).0.is_empty().then_some(()));
    }
    let state = fleet.folder("server");
    let restore = ["restore", "--from", &folder, "--state", &state];
    let refused = fleet.on("server", "fleetsock-server", &restore);
    assert!(refused.code == 1 && refused.err.contains("is in use by another fleetsock-server"), "{refused:?}");
    fleet.stop_server();
    // The agent goes on meanwhile; this is in its spool.
    let _held = fleet.network.python("web1", &listening(&[("tcp", 8004)]));
    let restored = fleet.on("server", "fleetsock-server", &restore);
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert!(
        restored.out.contains("/history.before-") && restored.out.contains("those that were there"),
        "{restored:?}"
    );
    fleet.serve();

    appears(&fleet, "8004");
    appears(&fleet, "8002");
    until("what is gone is gone", || fleet.items(&["ports", "--port", "8001"]).0.is_empty().then_some(()));
    until("the gap is known", || {
        let (_, meta) = fleet.items(&["sessions", "--since", "10m"]);
        let told = [gaps(&meta, "delivery"), gaps(&meta, "agent-down")].concat();
        told.contains(&"web1".to_owned()).then_some(())
    });
    let actions: Vec<String> = fleet.items(&["audit"]).0.iter().map(|row| row["action"].to_string()).collect();
    assert!(actions.contains(&"\"backup\"".to_owned()), "the backup tells of itself: {actions:?}");
}

#[test]
fn a_backup_of_the_fleet_makes_a_server_where_there_was_none() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    let _kept = fleet.network.python("web1", &listening(&[("tcp", 8001)]));
    appears(&fleet, "8001");
    let folder = made(&fleet, &["whole", "--fleet"])["folder"].as_str().unwrap().to_owned();
    let history = made(&fleet, &["history-only"])["folder"].as_str().unwrap().to_owned();
    fleet.stop_server();
    let state = fleet.folder("server");
    let lost = fleet.folder("lost");
    fs::rename(&state, &lost).unwrap();
    let moved = |folder: &str| folder.replace(&state, &lost);
    let nothing = fleet.on("server", "fleetsock-server", &["restore", "--from", &moved(&history), "--state", &state]);
    assert!(nothing.code == 1 && nothing.err.contains("the backup holds only the history"), "{nothing:?}");
    let restored = fleet.on("server", "fleetsock-server", &["restore", "--from", &moved(&folder), "--state", &state]);
    assert_eq!(restored.code, 0, "{}", restored.err);
    assert!(restored.out.contains("the CA and the settings are those of the backup"), "{restored:?}");
    fleet.serve();
    // The same agent and the same operator, by their old certificates.
    let _new = fleet.network.python("web1", &listening(&[("tcp", 8002)]));
    appears(&fleet, "8002");
    appears(&fleet, "8001");
}
