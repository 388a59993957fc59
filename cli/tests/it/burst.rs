//! Tens of thousands of sockets closed at one moment: each is known to be closed, and what was not heard is counted.

use std::{collections::HashMap, process::Command};

use serde_json::Value;

use crate::{fleet::Fleet, network::until};

/// Connections, each with both ends here. FLEETSOCK_LONG=1 makes 76,000 sockets.
fn count() -> u64 {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { 38_000 } else { 4_000 }
}

/// Sockets are held by several processes, because there is a limit to the files of one. They are one process group, so that
/// one signal ends all. Each has an address of its own, with ports enough for its connections.
const HOLD: &str = "
import os, resource, socket, sys, time
count, each = int(sys.argv[1]), 4000
os.setpgid(0, 0)
resource.setrlimit(resource.RLIMIT_NOFILE, (2 * each + 100, 2 * each + 100))
for number, first in enumerate(range(0, count, each)):
    if os.fork() == 0:
        l = socket.socket(); l.bind((f'127.0.{number + 1}.1', 4300)); l.listen(64)
        kept = []
        for _ in range(min(each, count - first)):
            c = socket.socket(); c.connect(l.getsockname())
            kept.append((c, l.accept()[0]))
        break
time.sleep(3600)
";

#[test]
fn when_everything_closes_at_once_nothing_is_lost_or_the_loss_is_counted_and_all_is_closed() {
    let Some(fleet) = Fleet::start_with(&["server", "web1"], "namespaces = \"all\"") else { return };
    let host = || fleet.items(&["hosts"]).0[0].clone();
    if host()["tier"] != "T2" {
        eprintln!("skipped: the agent does not hear events here: {}", host()["tier_reason"]);
        return;
    }
    let count = count();
    let holder = fleet.network.start("web1", "python3", &["-c", HOLD, &count.to_string()]);
    until("all are known to be open", || (host()["sessions_open"].as_u64().unwrap() >= 2 * count).then_some(()));
    let group = format!("-{}", holder.pid());
    assert!(Command::new("kill").args(["-KILL", "--", &group]).status().unwrap().success());
    until("nearly all are known to be closed", || {
        (host()["sessions_open"].as_u64().unwrap() < count / 10).then_some(())
    });
    let (sessions, meta) = until("all of them are", || {
        let (sessions, meta) = fleet.items(&["sessions", "--since", "1h", "--port", "4300"]);
        sessions.iter().all(|session| !session["closed_at"].is_null()).then_some((sessions, meta))
    });
    let text = |session: &Value, field: &str| session[field].to_string();
    let ends = |session: &Value| {
        ["local_address", "local_port", "peer_address", "peer_port"].map(|field| text(session, field))
    };
    let mut told: HashMap<[String; 4], Vec<&Value>> = HashMap::new();
    sessions.iter().for_each(|session| told.entry(ends(session)).or_default().push(session));
    let doubled: Vec<_> = told.values().filter(|sessions| sessions.len() > 1).take(3).collect();
    assert!(doubled.is_empty(), "told twice: {doubled:#?}; {meta}; {}", fleet.log("web1"));
    assert_eq!(sessions.len() as u64, 2 * count, "{meta}; {}", fleet.log("web1"));
    let unheard = sessions.iter().filter(|session| session["closed_known"] != "event").count();
    let losses = host()["losses"].as_u64().unwrap();
    eprintln!("{} sockets, {unheard} ends known by a walk only, {losses} losses", 2 * count);
    assert!(unheard == 0 || losses > 0, "{unheard} ends were not heard and nothing is counted as lost");
}
