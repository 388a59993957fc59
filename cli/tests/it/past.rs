//! Questions about what changed, on real hosts: what fleetctl tells of it.

use crate::{fleet::Fleet, network::until};

/// Owners of sockets that are open are looked for again every other second.
const SETTINGS: &str = "namespaces = \"own\"\nreferee_s = 2";

/// Listens on an address until it is ended.
fn listening_on(address: &str, port: u16) -> String {
    format!("import socket, time\ns = socket.create_server(('{address}', {port}))\ntime.sleep(3600)")
}

#[test]
fn a_listener_that_reaches_further_after_a_restart_is_told_with_its_process() {
    let Some(mut fleet) = Fleet::start_with(&["server", "web1"], SETTINGS) else { return };
    let listens = |fleet: &Fleet, address: &str| {
        until("it listens", || {
            let (items, _) = fleet.items(&["ports", "--port", "8099"]);
            items.iter().any(|item| item["address"] == address && item["process"] == "python3").then_some(())
        });
    };
    let near = fleet.network.python("web1", &listening_on("127.0.0.1", 8099));
    listens(&fleet, "127.0.0.1");
    near.stop();
    until("it does not listen", || fleet.items(&["ports", "--port", "8099"]).0.is_empty().then_some(()));
    let far = fleet.network.python("web1", &listening_on("0.0.0.0", 8099));
    listens(&fleet, "0.0.0.0");

    let (items, meta) = fleet.items(&["changes", "--host", "web1", "--port", "8099"]);
    let told: Vec<(&str, &str)> =
        items.iter().map(|item| (item["change"].as_str().unwrap(), item["address"].as_str().unwrap())).collect();
    let expected =
        [("scope-widened", "0.0.0.0"), ("opened", "0.0.0.0"), ("closed", "127.0.0.1"), ("opened", "127.0.0.1")];
    assert_eq!(told, expected, "{items:?}");
    assert_eq!((items[0]["scope_before"].as_str(), items[0]["scope"].as_str()), (Some("loopback"), Some("any")));
    assert!(items[..2].iter().all(|item| item["pid"] == far.pid() && item["process"] == "python3"), "{items:?}");
    assert!(
        items.iter().all(|item| ["event", "between-walks"].contains(&item["known"].as_str().unwrap())),
        "{items:?}"
    );
    assert!(meta["since"].is_string() && meta["hosts_total"] == 1, "{meta}");
    let table = fleet.ask(&["changes", "--port", "8099", "--kind", "scope-widened"]);
    assert!(table.out.contains("loopback -> any") && table.err.contains("as of "), "{table:?}");

    fleet.stop_agent("web1");
    fleet.report("web1");
    until("the agent's start is told", || {
        let (items, _) = fleet.items(&["changes", "--kind", "agent-started"]);
        (items.len() == 2).then_some(())
    });
}

#[test]
fn a_story_is_told_in_order_with_what_was_not_observed_and_a_comparison_by_its_exit_code() {
    let Some(mut fleet) = Fleet::start_with(&["server", "web1"], SETTINGS) else { return };
    let _kept = fleet.network.python("web1", &listening_on("0.0.0.0", 8098));
    let short = fleet.network.python("web1", &listening_on("0.0.0.0", 8099));
    let count = |fleet: &Fleet, port: &str| fleet.items(&["ports", "--port", port]).0.len();
    until("both listen", || (count(&fleet, "8098,8099") == 2).then_some(()));
    let moment = || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        format!("@{}.{:06}", now.as_secs(), now.subsec_micros())
    };
    let both = moment();
    let client = fleet
        .network
        .python("server", "import socket, time\ns = socket.create_connection(('10.99.0.2', 8098))\ntime.sleep(3600)");
    until("a session is there", || {
        (!fleet.items(&["sessions", "--host", "web1", "--port", "8098"]).0.is_empty()).then_some(())
    });
    let (sums, meta) = fleet.items(&["summary", "--by", "host,class", "--port", "8098"]);
    let told = ["host", "class"].map(|field| sums[0][field].as_str().unwrap());
    assert_eq!((sums.len(), told), (1, ["web1", "registered"]), "{sums:?}");
    assert_eq!(["listeners", "sessions"].map(|field| sums[0][field].as_u64()), [Some(1); 2], "{sums:?}");
    assert_eq!((meta["truncated"].as_bool(), meta["hosts_total"].as_u64()), (Some(false), Some(1)));
    let by_peer = fleet.ask(&["summary", "--by", "peer", "--since", "1h", "--port", "8098"]);
    assert!(by_peer.out.contains("10.99.0.1") && !by_peer.out.contains("LISTENERS"), "{by_peer:?}");
    client.stop();
    fleet.stop_agent("web1");
    let unobserved = moment();
    short.stop();
    fleet.report("web1");
    until("it is closed", || (count(&fleet, "8099") == 0).then_some(()));

    let same = fleet.ask(&["diff", "--from", &both, "--to", &both]);
    assert_eq!((same.code, same.out.as_str()), (0, ""), "{same:?}");
    let differs = fleet.ask(&["diff", "--from", &both, "--port", "8098,8099", "-o", "json"]);
    assert_eq!(differs.code, 1, "{differs:?}");
    let answer: serde_json::Value = serde_json::from_str(&differs.out).unwrap();
    let [gone] = answer["items"].as_array().unwrap().as_slice() else { panic!("{answer}") };
    let told = ["difference", "host", "process", "closed_known"].map(|field| gone[field].as_str());
    assert_eq!(told, [Some("gone"), Some("web1"), Some("python3"), Some("lost")], "{gone}");
    assert_eq!((gone["port"].as_u64(), gone["unobserved"].as_str()), (Some(8099), None));
    let doubtful = fleet.ask(&["diff", "--from", &both, "--to", &unobserved, "--port", "8099"]);
    assert!(doubtful.out.contains("not observed at --to") && doubtful.err.contains("agent-down"), "{doubtful:?}");
    let turned = fleet.ask(&["diff", "--from", &unobserved, "--to", &both]);
    assert!(turned.code == 2 && turned.err.contains("--from lies after --to"), "{turned:?}");

    let ran = fleet.ask(&["timeline", "web1", "--since", "1h", "-o", "jsonl"]);
    let entries: Vec<serde_json::Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(entries.is_sorted_by_key(|entry| entry["at"].as_str().unwrap().to_owned()), "{}", ran.out);
    let place = |event: &str, reason: Option<&str>, port: Option<u64>| {
        let is_it = |entry: &serde_json::Value| {
            entry["event"] == event && entry["reason"].as_str() == reason && entry["port"].as_u64() == port
        };
        entries.iter().position(is_it).unwrap_or_else(|| panic!("no {event} {reason:?} {port:?}: {}", ran.out))
    };
    let story = [
        place("not-observed", Some("not-yet-observed"), None),
        place("agent-started", None, None),
        place("opened", None, Some(8099)),
        place("closed", None, Some(8099)),
    ];
    assert!(story.is_sorted(), "{story:?} {}", ran.out);
    assert!(place("not-observed", Some("agent-down"), None) > place("opened", None, Some(8099)));
    let inward: u64 = entries.iter().filter_map(|entry| entry["sessions_in"].as_u64()).sum();
    assert!(inward >= 1, "{}", ran.out);
    let table = fleet.ask(&["timeline", "web1", "--since", "1h"]);
    assert!(table.out.contains("tcp 0.0.0.0:8099 by python3") && table.err.contains("as of "), "{table:?}");
    for (host, code, words) in [("web2", 6, "web1"), ("nobody*", 6, "nobody*")] {
        let ran = fleet.ask(&["timeline", host]);
        assert!(ran.code == code && ran.err.contains(words), "{ran:?}");
    }
}

#[test]
fn a_listener_that_a_child_keeps_when_its_parent_ends_has_changed_hands() {
    let Some(fleet) = Fleet::start_with(&["server", "web1"], SETTINGS) else { return };
    // The child ends when the test's folder does.
    let text = format!(
        "import os, socket, time\ns = socket.create_server(('0.0.0.0', 8097))\nparent = os.fork()\n\
         while os.path.exists('{}'):\n    time.sleep(0.2)",
        fleet.home.path().display()
    );
    let parent = fleet.network.python("web1", &text);
    let pid = parent.pid();
    until("the parent is known", || {
        let (items, _) = fleet.items(&["ports", "--port", "8097"]);
        items.iter().any(|item| item["pid"] == pid).then_some(())
    });
    parent.stop();
    let changed = until("the child holds it", || {
        let (mut items, _) = fleet.items(&["changes", "--port", "8097", "--kind", "owner-changed"]);
        items.pop()
    });
    let before: Vec<u64> =
        changed["owners_before"].as_array().unwrap().iter().map(|it| it["pid"].as_u64().unwrap()).collect();
    assert!(before.contains(&u64::from(pid)) && changed["pid"] != pid && changed["process"] == "python3", "{changed}");
    assert_eq!(changed["known"], "between-walks", "{changed}");
}
