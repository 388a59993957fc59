//! What `fleetctl` shows of TCP sockets in every state, from the kernel of a host to the answer.

use crate::{fleet::Fleet, network::until};

/// One connection whose server does not close after its peer did, three half-open ones, five bound sockets, and four
/// closed connections.
const HOLDER: &str = r#"
import socket, time
waiting = socket.create_server(("127.0.0.1", 4000))
waiting.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 300)
half_open = [socket.create_connection(("127.0.0.1", 4000)) for _ in range(3)]
bound = [socket.socket() for _ in range(5)]
for s in bound:
    s.bind(("127.0.0.1", 0))
server = socket.create_server(("127.0.0.1", 5000))
for _ in range(4):
    client = socket.create_connection(("127.0.0.1", 5000))
    accepted, _ = server.accept()
    client.close()
    accepted.recv(1)
    accepted.close()
leaking = socket.create_connection(("127.0.0.1", 5000))
leaked, _ = server.accept()
leaking.shutdown(socket.SHUT_WR)
time.sleep(3600)
"#;

#[test]
fn every_state_of_tcp_is_shown_as_a_session_or_in_the_numbers_of_its_host() {
    let Some(fleet) = Fleet::start_with(&["server", "web1"], "namespaces = \"own\"\nreferee_s = 1") else { return };
    let holder = fleet.network.python("web1", HOLDER);
    let one = until("the numbers are told", || {
        let one = fleet.items(&["hosts", "web1"]).0.remove(0);
        (one["tcp_syn_received"] == 3 && one["tcp_time_wait"].as_u64() >= Some(4)).then_some(one)
    });
    // Older kernels do not tell of them, and nobody says that there are none.
    assert!(one["tcp_bound"].is_null() || one["tcp_bound"] == 5, "{one}");
    let card = fleet.ask(&["hosts", "web1"]).out;
    let line = card.lines().find(|line| line.starts_with("syn received ")).unwrap_or_else(|| panic!("{card}"));
    assert!(line.ends_with(" 3") && card.contains("\ntime wait ") && card.contains("\nbound "), "{card}");
    let wide = fleet.ask(&["hosts", "-o", "wide"]).out;
    assert!(wide.contains("TIME-WAIT") && wide.contains("SYN-RECEIVED") && wide.contains("BOUND"), "{wide}");

    let in_close_wait = until("the leak is known", || {
        let rows = fleet.items(&["sessions", "--state", "close-wait"]).0;
        (rows.len() == 1 && rows[0]["process"] == "python3").then(|| rows[0].clone())
    });
    assert_eq!((in_close_wait["direction"].as_str(), in_close_wait["local_port"].as_u64()), (Some("in"), Some(5000)));
    assert_eq!(in_close_wait["pid"].as_u64(), Some(holder.pid().into()));
    assert_eq!(fleet.items(&["sessions", "--state", "fin-wait-2"]).0.len(), 1, "its other end");
    let half_open = fleet.items(&["sessions", "--port", "4000"]).0;
    let directions: Vec<_> = half_open.iter().map(|row| row["direction"].as_str().unwrap()).collect();
    assert_eq!(directions, ["out"; 3], "the ends that are connected: {half_open:?}");
    for state in ["time-wait", "syn-received"] {
        let ran = fleet.ask(&["sessions", "--state", state]);
        assert!(ran.code == 0 && ran.err.contains("fleetctl hosts --columns HOST,TIME-WAIT"), "{ran:?}");
    }
    drop(holder);
    until("the numbers follow", || (fleet.items(&["hosts", "web1"]).0[0]["tcp_syn_received"] == 0).then_some(()));
}
