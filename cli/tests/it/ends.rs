//! Both ends of real connections between hosts of their own: direct, through v4-mapped addresses, inside a host, and through
//! a proxy.

use serde_json::Value;

use crate::{fleet::Fleet, network::until};

/// Accepts connections on some addresses, and holds them.
const SERVER: &str = "
import socket, time
held = []
def serve(family, address, port):
    s = socket.socket(family); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen(); held.append(s)
    return s
servers = [serve(socket.AF_INET6, '::', 5432), serve(socket.AF_INET, '127.0.0.1', 6379)]
import select
while True:
    for s in select.select(servers, [], [])[0]:
        held.append(s.accept()[0])
";

/// Hands what comes on to the database.
const PROXY: &str = "
import socket, threading
s = socket.create_server(('10.99.0.4', 5432))
held = []
while True:
    c, _ = s.accept()
    held.append((c, socket.create_connection(('10.99.0.3', 5432))))
";

fn client(text: &str) -> String {
    format!("import socket, time\nheld = []\n{text}\ntime.sleep(3600)")
}

fn text<'a>(row: &'a Value, field: &str) -> &'a str {
    row[field].as_str().unwrap_or_default()
}

/// One session: where, to where, and who is said to be there.
fn line(row: &Value) -> String {
    let port = if row["direction"] == "in" { &row["local_port"] } else { &row["peer_port"] };
    let ends = [text(row, "host"), text(row, "direction"), text(row, "peer_address"), &port.to_string()].join(" ");
    format!("{ends} {} {}", text(row, "peer_host"), text(row, "peer_process"))
}

#[test]
fn the_process_at_the_other_end_of_each_connection_is_told_while_it_is_open_and_after() {
    let Some(fleet) = Fleet::start(&["server", "web1", "db1", "proxy1"]) else { return };
    let server = fleet.network.python("db1", SERVER);
    let proxy = fleet.network.python("proxy1", PROXY);
    until("all listen", || {
        let listening = fleet.items(&["ports", "--process", "python3", "--port", "5432,6379"]).0;
        (listening.len() == 3).then_some(())
    });
    let direct = "held.append(socket.create_connection(('10.99.0.3', 5432)))";
    let mapped = "s = socket.socket(socket.AF_INET6); s.connect(('::ffff:10.99.0.3', 5432)); held.append(s)";
    let proxied = "held.append(socket.create_connection(('10.99.0.4', 5432)))";
    let loopback = "held.append(socket.create_connection(('127.0.0.1', 6379)))";
    let web = fleet.network.python("web1", &client(&[direct, mapped, proxied].join("\n")));
    let db = fleet.network.python("db1", &client(loopback));
    let ask = |more: &[&str]| {
        let mut rows = fleet.items(&[&["sessions", "--port", "5432,6379"][..], more].concat()).0;
        rows.retain(|row| text(row, "process") == "python3");
        rows
    };
    let rows = until("all are known", || Some(ask(&[])).filter(|rows| rows.len() == 10));
    let mut lines: Vec<String> = rows.iter().map(line).collect();
    lines.sort();
    let expected = [
        "db1 in 10.99.0.2 5432 web1 python3",
        "db1 in 10.99.0.2 5432 web1 python3",
        "db1 in 10.99.0.4 5432 proxy1 python3",
        "db1 in 127.0.0.1 6379 db1 python3",
        "db1 out 127.0.0.1 6379 db1 python3",
        "proxy1 in 10.99.0.2 5432 web1 python3",
        "proxy1 out 10.99.0.3 5432 db1 python3",
        "web1 out 10.99.0.3 5432 db1 python3",
        "web1 out 10.99.0.3 5432 db1 python3",
        "web1 out 10.99.0.4 5432 proxy1 python3",
    ];
    assert_eq!(lines, expected);
    let pids = [server.pid(), proxy.pid(), web.pid(), db.pid()].map(u64::from);
    for row in &rows {
        let [own, other] = ["pid", "peer_pid"].map(|field| row[field].as_u64().unwrap());
        assert!(own != other && pids.contains(&own) && pids.contains(&other), "{row}");
    }
    let wide = fleet.ask(&["sessions", "--port", "5432", "--host", "web1", "-o", "wide"]);
    assert!(
        wide.out.contains("PEER-PROCESS") && wide.out.contains(&format!("python3[{}]", proxy.pid())),
        "{}",
        wide.out
    );

    drop((web, db, server, proxy));
    let over = until("all are over", || {
        let rows = ask(&["--since", "1h"]);
        (rows.len() == 10 && rows.iter().all(|row| !row["closed_at"].is_null())).then_some(rows)
    });
    let mut lines: Vec<String> = over.iter().map(line).collect();
    lines.sort();
    assert_eq!(lines, expected, "also of what is over");
}
