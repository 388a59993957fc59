//! What `fleetctl` says of the network namespaces that sockets are in.

use crate::{fleet::Fleet, network::until};

const LISTENER: &str = "
import socket, time
listener = socket.create_server(('127.0.0.1', PORT))
time.sleep(3600)
";

#[test]
fn sockets_of_other_namespaces_say_what_these_are_called_and_those_of_the_hosts_own_do_not() {
    let Some(fleet) = Fleet::start_with(&["server", "web1", "other"], "namespaces = \"all\"\nreferee_s = 1") else {
        return;
    };
    let text = |port: &str| LISTENER.replace("PORT", port);
    let _own = fleet.network.python("web1", &text("4701"));
    let _named = fleet.network.python("other", &text("4702"));
    // Nobody gave this one a name.
    let in_new =
        "import ctypes, os; assert ctypes.CDLL(None).unshare(0x40000000) == 0; os.system('ip link set lo up')\n";
    let unnamed = fleet.network.python("web1", &format!("{in_new}{}", text("4703")));
    let listener = |port: &str| {
        until("the listener and its namespace are known", || {
            let rows = fleet.items(&["ports", "--host", "web1", "--port", port]).0;
            rows.into_iter().find(|row| port == "4701" || !row["netns_name"].is_null())
        })
    };
    assert!(listener("4701")["netns_name"].is_null());
    let named = listener("4702")["netns_name"].clone();
    assert!(named.as_str().unwrap().ends_with("-other"), "{named}");
    let row = listener("4703");
    // A unit that the test itself runs in would be its name; else the kernel's word is.
    let called = row["netns_name"].as_str().unwrap();
    let kernels = std::fs::read_link(format!("/proc/{}/ns/net", unnamed.pid())).unwrap();
    assert!(called == kernels.to_str().unwrap() || row["unit"] == called || row["container"] == called, "{row}");
    let table = fleet.ask(&["ports", "--host", "web1", "--port", "4702"]).out;
    assert!(table.contains(&format!("netns:{}", named.as_str().unwrap())), "{table}");

    // Who asks about the past is told what it was called then.
    let (_, meta) = fleet.items(&["ports", "--host", "web1", "--port", "4703"]);
    drop(unnamed);
    until("it closed", || fleet.items(&["ports", "--host", "web1", "--port", "4703"]).0.is_empty().then_some(()));
    let then = fleet.items(&["ports", "--host", "web1", "--port", "4703", "--at", meta["as_of"].as_str().unwrap()]).0;
    assert_eq!(then[0]["netns_name"], row["netns_name"], "{then:?}");
}
