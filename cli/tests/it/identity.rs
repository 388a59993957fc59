//! Who may, who did, and who may not any more: with the real programs.

use std::process::Command;

use crate::{fleet::Fleet, network::until};

/// Changes the server's database behind its back, as somebody could who has the machine.
fn touch(fleet: &Fleet, sql: &str) {
    let database = fleet.home.path().join("state/server/history/main.db");
    let program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2]); c.commit()";
    let done = Command::new("python3").args(["-c", program]).arg(database).arg(sql).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_host_is_revoked_and_said_to_be_and_the_log_has_who_did_it() {
    let Some(fleet) = Fleet::start(&["server", "web1", "db1"]) else { return };
    let revoked = fleet.ask(&["hosts", "revoke", "web1", "--reason", "stolen"]);
    assert_eq!(revoked.code, 0, "{}", revoked.err);
    assert!(revoked.err.contains("host web1 (") && revoked.err.contains("is revoked"), "{}", revoked.err);
    let (hosts, _) = fleet.items(&["hosts"]);
    let states: Vec<_> = hosts.iter().map(|host| (host["host"].as_str(), host["state"].as_str())).collect();
    assert_eq!(states, [(Some("db1"), Some("online")), (Some("web1"), Some("revoked"))]);
    until("the agent says why it does not report", || {
        fleet.log("web1").contains("the server refuses this host's certificate").then_some(())
    });
    let unknown = fleet.ask(&["hosts", "revoke", "web9"]);
    assert!(unknown.code == 6 && unknown.err.contains("try: fleetctl hosts"), "{unknown:?}");

    let (rows, _) = fleet.items(&["audit", "--actor", "alice", "--action", "revoke host"]);
    assert_eq!(rows.len(), 1);
    assert!(rows[0]["detail"].as_str().unwrap().ends_with(": stolen") && rows[0]["address"] == "10.99.0.1", "{rows:?}");
    let (asked, _) = fleet.items(&["audit", "--actor", "alice", "--action", "list hosts", "--since", "1h"]);
    assert!(asked.iter().all(|row| row["rows"].as_u64().is_some_and(|rows| rows <= 2)), "{asked:?}");
}

#[test]
fn a_revoked_operator_is_told_so_and_what_to_type() {
    let Some(fleet) = Fleet::start(&["server"]) else { return };
    let token = fleet.ask(&["tokens", "create", "--operator", "bob", "--role", "admin"]);
    let login = fleet.ask(&["login", "--context", "bob", token.out.trim()]);
    assert_eq!(login.code, 0, "{}", login.err);
    assert_eq!(fleet.ask(&["hosts", "--context", "bob"]).code, 0);
    let alice =
        fleet.ask(&["context", "list", "-o", "name"]).out.lines().find(|name| *name != "bob").unwrap().to_owned();
    let revoked = fleet.ask(&["operators", "revoke", "bob", "--reason", "left", "--context", &alice]);
    assert!(revoked.code == 0 && revoked.err.contains("1 certificate and 0 tokens ended"), "{revoked:?}");
    let refused = fleet.ask(&["hosts", "--context", "bob"]);
    assert_eq!(refused.code, 4);
    assert!(refused.err.contains("revoked") && refused.err.contains("try: fleetctl login"), "{}", refused.err);
    let ran = fleet.ask(&["operators", "-o", "json", "--context", &alice]);
    let operators: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let states: Vec<_> =
        operators["items"].as_array().unwrap().iter().map(|one| one["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["valid", "revoked"]);
    let nobody = fleet.ask(&["operators", "revoke", "nobody", "--context", &alice]);
    assert!(nobody.code == 6 && nobody.err.contains("no operator is called `nobody`"), "{nobody:?}");
}

#[test]
fn a_touched_audit_log_is_named_and_exits_with_one() {
    let Some(fleet) = Fleet::start(&["server"]) else { return };
    for _ in 0..3 {
        fleet.ask(&["hosts"]);
    }
    let whole = fleet.ask(&["audit", "verify"]);
    assert_eq!(whole.code, 0, "{whole:?}");
    assert!(whole.out.starts_with("the audit log is whole: ") && whole.err.contains("--mark "), "{whole:?}");
    let mark = whole.err.rsplit_once("--mark ").unwrap().1.trim().to_owned();
    assert_eq!(fleet.ask(&["audit", "verify", "--mark", &mark]).code, 0);
    touch(&fleet, "UPDATE audit SET actor = 'operator/viewer/mallory' WHERE id = 3");
    let touched = fleet.ask(&["audit", "verify"]);
    assert_eq!(touched.code, 1);
    assert!(touched.out.starts_with("row 3 was touched: its content and its hash do not fit"), "{touched:?}");
    let json = fleet.ask(&["audit", "verify", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!((json["whole"].as_bool(), json["touched"].as_u64()), (Some(false), Some(3)));
    let wrong = fleet.ask(&["audit", "verify", "--mark", "3:zz"]);
    assert!(wrong.code == 2 && wrong.err.contains("is no NUMBER:HASH"), "{wrong:?}");
}

#[test]
fn a_host_waits_until_it_is_approved_and_both_sides_say_so() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    fleet.stop_agent("web1");
    let token = fleet.ask(&["tokens", "create", "--approve", "--from", "10.99.0.0/24"]);
    assert_eq!(token.code, 0, "{}", token.err);
    assert!(
        token.err.contains("from 10.99.0.0/24") && token.err.contains("fleetctl hosts approve HOST"),
        "{}",
        token.err
    );
    let folder = fleet.home.path().join("state/web1").display().to_string();
    let enrol = ["enroll", "--force", "--state", &folder, "--name", "web1", "--join", token.out.trim()];
    let enrolled = fleet.on("web1", "fleetsock-agent", &enrol);
    assert_eq!(enrolled.code, 0, "{}", enrolled.err);
    fleet.report("web1");
    let waiting = until("the host waits, and says what it is", || {
        let (hosts, _) = fleet.items(&["hosts"]);
        hosts.into_iter().find(|host| host["state"] == "pending" && !host["os"].is_null())
    });
    let id = waiting["host_id"].as_str().unwrap().to_owned();
    assert_eq!(waiting["warning"], format!("waits for approval: fleetctl hosts approve {id}"));
    let (ports, _) = fleet.items(&["ports", "--host", &id]);
    assert_eq!(ports.len(), 0);
    let (tokens, _) = fleet.items(&["tokens"]);
    assert_eq!((tokens[0]["from"].as_str(), tokens[0]["approval"].as_bool()), (Some("10.99.0.0/24"), Some(true)));
    let approved = fleet.ask(&["hosts", "approve", &id]);
    assert!(approved.code == 0 && approved.err.contains("is approved"), "{approved:?}");
    until("it reports", || {
        let (hosts, _) = fleet.items(&["hosts", "--host", &id]);
        (hosts[0]["state"] == "online" && hosts[0]["warning"].is_null()).then_some(())
    });
}

#[test]
fn a_token_that_is_for_other_addresses_admits_nobody_here() {
    let Some(fleet) = Fleet::start(&["server", "web1"]) else { return };
    let token = fleet.ask(&["tokens", "create", "--from", "203.0.113.0/24"]);
    let folder = fleet.home.path().join("state/web1").display().to_string();
    let enrol = ["enroll", "--force", "--state", &folder, "--join", token.out.trim()];
    let refused = fleet.on("web1", "fleetsock-agent", &enrol);
    assert!(refused.code != 0 && refused.err.contains("the token is not valid"), "{refused:?}");
    let wrong = fleet.ask(&["tokens", "create", "--from", "203.0.113.0/33"]);
    assert!(wrong.code == 2 && wrong.err.contains("is no IP address or CIDR prefix"), "{wrong:?}");
    let wrong = fleet.ask(&["tokens", "create", "--approve", "--operator", "bob"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
}
