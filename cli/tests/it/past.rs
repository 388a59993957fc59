//! Questions about what changed, on real hosts: what fleetctl tells of it.

use crate::{fleet::Fleet, network::until};

/// Listens on an address until it is ended.
fn listening_on(address: &str, port: u16) -> String {
    format!("import socket, time\ns = socket.create_server(('{address}', {port}))\ntime.sleep(3600)")
}

#[test]
fn a_listener_that_reaches_further_after_a_restart_is_told_with_its_process() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
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
