//! The whole way, with the three real binaries: hosts of their own report over mutual TLS, and fleetctl answers.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::{
    network::{Network, Running, binary, until},
    program::{Home, Ran},
};

/// A server, agents and an operator, on a network.
pub(crate) struct Fleet {
    pub(crate) network: Network,
    pub(crate) home: Home,
    state: PathBuf,
    server: Option<Running>,
    agents: Vec<(&'static str, Running)>,
}

impl Fleet {
    /// A server on the first host, and an agent on each of the others, each for its own network namespace.
    pub(crate) fn start(hosts: &[&'static str]) -> Option<Fleet> {
        Fleet::start_with(hosts, "namespaces = \"own\"")
    }

    /// The same with other settings of the agents.
    pub(crate) fn start_with(hosts: &[&'static str], agent_settings: &str) -> Option<Fleet> {
        let network = Network::new(hosts)?;
        let home = Home::new();
        let state = home.path().join("state");
        fs::create_dir(&state).unwrap();
        let mut fleet = Fleet { network, home, state, server: None, agents: Vec::new() };
        let folder = fleet.folder("server");
        let made = fleet.on(hosts[0], "fleetsock-server", &["init", "--state", &folder, "--listen", "10.99.0.1:5290"]);
        assert_eq!(made.code, 0, "{}", made.err);
        let settings = fleet.state.join("server/server.toml");
        let text = fs::read_to_string(&settings).unwrap();
        let text =
            text.replace("# stale_after_s = 90", "stale_after_s = 5").replace("# heartbeat_s = 15", "heartbeat_s = 1");
        fs::write(&settings, text).unwrap();
        fleet.serve();
        let socket = format!("{folder}/admin.sock");
        let login = fleet.ask(&["login", "--local", &socket, "--name", "alice"]);
        assert_eq!(login.code, 0, "{}", login.err);
        for host in &hosts[1..] {
            fleet.enrol(host, agent_settings);
            fleet.report(host);
        }
        for host in &hosts[1..] {
            fleet.heard(host);
        }
        Some(fleet)
    }

    pub(crate) fn folder(&self, name: &str) -> String {
        self.state.join(name).display().to_string()
    }

    /// Runs one of our binaries on a host, to its end.
    pub(crate) fn on(&self, host: &str, program: &str, arguments: &[&str]) -> Ran {
        Ran::from(self.network.command(host, binary(program)).args(arguments).output().unwrap())
    }

    /// Runs fleetctl as alice, on the server's host.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.fleetctl(arguments).output().unwrap())
    }

    /// fleetctl as alice runs it, on the server's host.
    pub(crate) fn fleetctl(&self, arguments: &[&str]) -> Command {
        let mut command = self.network.command(self.first(), env!("CARGO_BIN_EXE_fleetctl"));
        command.args(arguments).env_clear().env("HOME", self.home.path()).env("TZ", "UTC").env("PATH", "/usr/bin:/bin");
        command
    }

    /// The items of an answer, and what it covers.
    pub(crate) fn items(&self, arguments: &[&str]) -> (Vec<Value>, Value) {
        let ran = self.ask(&[arguments, &["-o", "json"]].concat());
        assert_eq!(ran.code, 0, "{arguments:?}: {}", ran.err);
        let mut answer: Value = serde_json::from_str(&ran.out).unwrap();
        let Value::Array(items) = answer["items"].take() else { panic!("{}", ran.out) };
        (items, answer["meta"].take())
    }

    fn first(&self) -> &'static str {
        "server"
    }

    pub(crate) fn serve(&mut self) {
        let folder = self.folder("server");
        let log = fs::File::create(self.state.join("server.log")).unwrap();
        let mut command = self.network.command(self.first(), binary("fleetsock-server"));
        let command =
            command.args(["serve", "--state", &folder]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.server = Some(Running::of(command.spawn().unwrap(), "the server"));
        let socket = self.state.join("server/admin.sock");
        until("the server serves", || std::os::unix::net::UnixStream::connect(&socket).ok());
    }

    pub(crate) fn stop_server(&mut self) {
        self.server.take().unwrap().stop();
    }

    /// kill -9.
    pub(crate) fn kill_server(&mut self) {
        drop(self.server.take());
    }

    fn enrol(&self, host: &str, settings: &str) {
        let token = self.ask(&["tokens", "create", "--label", "role=test"]);
        assert_eq!(token.code, 0, "{}", token.err);
        let folder = self.folder(host);
        let mut enrol = self.network.command(host, binary("fleetsock-agent"));
        enrol.args(["enroll", "--state", &folder, "--name", host]).env("FLEETSOCK_JOIN", token.out.trim());
        let enrolled = Ran::from(enrol.output().unwrap());
        assert_eq!(enrolled.code, 0, "{}", enrolled.err);
        fs::write(self.state.join(host).join("agent.toml"), format!("walk_ms = 200\n{settings}\n")).unwrap();
    }

    /// Starts the agent of a host.
    pub(crate) fn report(&mut self, host: &'static str) {
        let folder = self.folder(host);
        let log = fs::File::create(self.state.join(format!("{host}.log"))).unwrap();
        let mut command = self.network.command(host, binary("fleetsock-agent"));
        let command = command.args(["run", "--state", &folder, "--name", host]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.agents.push((host, Running::of(child, host)));
    }

    pub(crate) fn stop_agent(&mut self, host: &str) {
        let at = self.agents.iter().position(|(name, _)| *name == host).unwrap();
        self.agents.swap_remove(at).1.stop();
    }

    /// kill -9.
    pub(crate) fn kill_agent(&mut self, host: &str) {
        self.agents.retain(|(name, _)| *name != host);
    }

    fn heard(&self, host: &str) {
        until("a host is online", || {
            let (hosts, _) = self.items(&["hosts"]);
            hosts.into_iter().find(|found| found["host"] == host && found["state"] == "online")
        });
    }

    /// The log of the server or an agent, for a test that fails.
    pub(crate) fn log(&self, of: &str) -> String {
        fs::read_to_string(self.state.join(format!("{of}.log"))).unwrap_or_default()
    }
}

/// A program that listens on TCP and UDP ports and sleeps.
pub(crate) fn listening(ports: &[(&str, u16)]) -> String {
    let mut text = "import socket, time\nkept = []\n".to_owned();
    for (protocol, port) in ports {
        let kind = if *protocol == "tcp" { "SOCK_STREAM" } else { "SOCK_DGRAM" };
        text += &format!("s = socket.socket(socket.AF_INET, socket.{kind}); s.bind(('0.0.0.0', {port}))\n");
        if *protocol == "tcp" {
            text += "s.listen()\n";
        }
        text += "kept.append(s)\n";
    }
    text + "time.sleep(3600)\n"
}

fn ports(items: &[Value]) -> BTreeSet<(String, u64)> {
    items.iter().map(|item| (item["host"].as_str().unwrap().to_owned(), item["port"].as_u64().unwrap())).collect()
}

fn set(expected: &[(&str, u64)]) -> BTreeSet<(String, u64)> {
    expected.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
}

/// Hosts that were not observed for this reason.
pub(crate) fn gaps(meta: &Value, reason: &str) -> Vec<String> {
    let gaps = meta["gaps"].as_array().unwrap().iter().filter(|gap| gap["reason"] == reason);
    gaps.map(|gap| gap["host"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn every_host_answers_filters_select_and_a_stopped_agent_is_stale_and_not_closed() {
    let Some(mut fleet) = Fleet::start(&["server", "web1", "db1"]) else { return };
    let _web = fleet.network.python("web1", &listening(&[("tcp", 80), ("tcp", 443), ("udp", 520), ("udp", 5004)]));
    let _db = fleet.network.python("db1", &listening(&[("tcp", 5432), ("tcp", 22), ("udp", 53)]));
    until("all listeners are known", || {
        let (items, _) = fleet.items(&["ports", "--process", "python3"]);
        (items.len() == 7).then_some(())
    });

    for (filters, expected) in [
        (&["--class", "well-known"][..], &[("web1", 80), ("web1", 443), ("web1", 520), ("db1", 22), ("db1", 53)][..]),
        (&["--class", "registered", "--process", "python*"], &[("web1", 5004), ("db1", 5432)]),
        (&["--host", "web*", "--class", "system"], &[("web1", 80), ("web1", 443), ("web1", 520)]),
        (&["--port", "443,5000-6000", "--process", "python3"], &[("web1", 443), ("web1", 5004), ("db1", 5432)]),
        (&["--service", "rip"], &[("web1", 520)]),
        (&["--service", "RTP"], &[("web1", 5004)]),
        (&["--service", "postgres"], &[("db1", 5432)]),
        (&["-u", "--scope", "any"], &[("web1", 520), ("web1", 5004), ("db1", 53)]),
        (&["--scope", "loopback"], &[]),
        (&["--label", "role=other"], &[]),
        (&["--user", "root", "-t", "--process", "python3", "--host", "db1"], &[("db1", 5432), ("db1", 22)]),
    ] {
        let (items, meta) = fleet.items(&[&["ports"], filters].concat());
        assert_eq!(ports(&items), set(expected), "{filters:?}");
        assert_eq!(meta["hosts_stale"].as_array().unwrap().len(), 0, "{filters:?}");
    }
    let (items, _) = fleet.items(&["ports", "--port", "443"]);
    let one = &items[0];
    let told = ["protocol", "address", "class", "service", "service_source", "scope", "process", "user", "owner_known"]
        .map(|field| one[field].as_str().unwrap().to_owned());
    assert_eq!(told, ["tcp", "0.0.0.0", "well-known", "https", "iana", "any", "python3", "root", "exact"]);

    fleet.stop_agent("web1");
    until("the host is stale", || {
        let (_, meta) = fleet.items(&["ports"]);
        (meta["hosts_stale"][0] == "web1").then_some(())
    });
    let (items, meta) = fleet.items(&["ports", "--class", "well-known"]);
    assert_eq!(items.len(), 5, "nothing was closed because nobody looked");
    assert_eq!(meta["hosts_total"], 2);
    for item in &items {
        let expected = if item["host"] == "web1" { "stale" } else { "online" };
        assert_eq!((item["host_state"].as_str(), item["closed_at"].is_null()), (Some(expected), true), "{item}");
    }
    let table = fleet.ask(&["ports", "--host", "web1"]);
    assert!(table.out.contains("web1 (stale)") && table.err.contains("1 stale (> 5 s): web1"), "{table:?}");
    assert_eq!(fleet.ask(&["ports", "--fail-on-stale"]).code, 3);

    // It comes back, and what it was not there to see is said.
    fleet.report("web1");
    fleet.heard("web1");
    until("the gap is known", || {
        let (_, meta) = fleet.items(&["sessions", "--since", "10m"]);
        gaps(&meta, "agent-down").contains(&"web1".to_owned()).then_some(())
    });
    let (items, _) = fleet.items(&["ports", "--class", "well-known", "--host", "web1"]);
    assert_eq!(items.len(), 3, "they are the same listeners: {}", fleet.log("web1"));
}

#[test]
fn sessions_have_their_direction_peer_service_process_and_how_well_they_are_known() {
    let Some(fleet) = Fleet::start(&["server", "web1", "db1"]) else { return };
    let _db = fleet.network.python(
        "db1",
        "import socket\ns = socket.create_server(('10.99.0.3', 5432))\nwhile True:\n    c, _ = s.accept()\n    c.recv(1)\n    c.close()",
    );
    until("the database listens", || {
        let (items, _) = fleet.items(&["ports", "--host", "db1", "--port", "5432"]);
        (!items.is_empty()).then_some(())
    });
    let client = fleet
        .network
        .python("web1", "import socket, time\nc = socket.create_connection(('10.99.0.3', 5432))\ntime.sleep(3600)");
    let open = until("both ends are known", || {
        let (items, _) = fleet.items(&["sessions", "--service", "postgresql"]);
        let named = items.iter().all(|item| item["process"] == "python3");
        (items.len() == 2 && named).then_some(items)
    });
    let end = |host: &str| open.iter().find(|item| item["host"] == host).unwrap();
    let (out, inward) = (end("web1"), end("db1"));
    assert_eq!((out["direction"].as_str(), out["peer_host"].as_str()), (Some("out"), Some("db1")));
    assert_eq!((out["peer_address"].as_str(), out["peer_port"].as_u64()), (Some("10.99.0.3"), Some(5432)));
    assert_eq!((inward["direction"].as_str(), inward["peer_host"].as_str()), (Some("in"), Some("web1")));
    assert_eq!((inward["local_port"].as_u64(), inward["class"].as_str()), (Some(5432), Some("registered")));
    assert_eq!(out["pid"].as_u64(), Some(client.pid().into()));
    assert_eq!(out["state"], "established");

    client.stop();
    until("the session is over", || {
        let (items, _) = fleet.items(&["sessions", "--host", "web1", "--since", "10m", "--port", "5432"]);
        (items.len() == 1 && !items[0]["closed_at"].is_null()).then_some(())
    });
    let (items, _) = fleet.items(&["sessions", "--host", "web1", "--since", "10m", "--port", "5432"]);
    let over = &items[0];
    assert_eq!((over["process"].as_str(), over["pid"].as_u64()), (Some("python3"), out["pid"].as_u64()));
    assert!(["between-walks", "event"].contains(&over["closed_known"].as_str().unwrap()), "{over}");
    assert!(over["duration_ms"].as_u64().is_some());
    let table = fleet.ask(&["sessions", "--host", "web1", "--since", "10m", "--port", "5432"]);
    assert!(table.out.contains("out") && table.out.contains("python3["), "{}", table.out);
    assert!(
        fleet
            .items(&["sessions", "--peer", "10.99.0.0/24", "--direction", "in"])
            .0
            .iter()
            .all(|item| item["host"] == "db1")
    );
}

#[test]
fn what_is_asked_wrong_or_cannot_be_answered_has_its_own_exit_code_and_words() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    for (arguments, code, words) in [
        (&["ports", "--class", "wellknwon"][..], 2, "well-known"),
        (&["ports", "--port", "70000"], 2, "ports are 0 to 65535"),
        (&["ports", "--port", "90-80"], 2, "write 80-90"),
        (&["sessions", "--since", "tomorrow"], 2, "tomorrow"),
        (&["sessions", "--peer", "10.0.0.0/33"], 2, "10.0.0.0/33"),
        (&["ports", "--service", "htpps"], 2, "https"),
        (&["ports", "--host", "web2"], 6, "web1"),
        (&["tokens", "revoke", "0000000000000000"], 6, "0000000000000000"),
    ] {
        let ran = fleet.ask(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(words), "{arguments:?}: {}", ran.err);
    }
    let nothing = fleet.ask(&["ports", "--host", "nobody*"]);
    assert_eq!((nothing.code, nothing.out.as_str()), (0, ""), "{nothing:?}");

    let folder = fleet.folder("server");
    let second = fleet.on("server", "fleetsock-server", &["serve", "--state", &folder]);
    assert!(second.code == 1 && second.err.contains("in use by another fleetsock-server"), "{}", second.err);

    fleet.stop_server();
    let gone = fleet.ask(&["ports"]);
    assert!(gone.code == 5 && gone.err.contains("10.99.0.1:5290"), "{gone:?}");

    // The server comes back with another memory: it never made that certificate.
    fs::remove_dir_all(fleet.state.join("server/history")).unwrap();
    fleet.serve();
    let refused = fleet.ask(&["ports"]);
    assert!(refused.code == 4 && refused.err.contains("refused") && refused.err.contains("try: "), "{refused:?}");
}

#[test]
fn what_an_agent_saw_while_the_server_was_away_arrives_when_it_is_back() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    fleet.stop_server();
    let short = fleet.network.python("web1", &listening(&[("tcp", 8443)]));
    // Several walks of 200 ms.
    std::thread::sleep(std::time::Duration::from_secs(1));
    short.stop();
    let _long = fleet.network.python("web1", &listening(&[("tcp", 9443)]));
    std::thread::sleep(std::time::Duration::from_secs(1));
    fleet.serve();
    until("what was seen meanwhile is known", || {
        let (items, _) = fleet.items(&["ports", "--port", "9443"]);
        (!items.is_empty()).then_some(())
    });
    let (items, meta) = fleet.items(&["sessions", "--since", "10m"]);
    assert_eq!(gaps(&meta, "agent-down"), [""; 0], "the agent watched all the time: {items:?}");
    assert_eq!(gaps(&meta, "not-yet-observed"), ["web1"], "before it enrolled nobody did");
}

#[test]
fn unix_sockets_are_listeners_with_a_path_where_they_are_wanted() {
    let Some(fleet) = Fleet::start_with(&["server", "web1"], "namespaces = \"own\"\nunix = true") else { return };
    let path = fleet.folder("web1.sock");
    let text = format!(
        "
import socket, time
stream = socket.socket(socket.AF_UNIX)
stream.bind('{path}')
stream.listen()
packets = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
packets.bind('\\0fleetsock')
packets.listen()
time.sleep(3600)
"
    );
    let holder = fleet.network.start("web1", "python3", &["-c", &text]);
    let seen = until("both are seen with their process", || {
        let seen = fleet.items(&["ports", "--proto", "unix"]).0;
        (seen.len() == 2 && seen.iter().all(|row| row["pid"] == holder.pid())).then_some(seen)
    });
    let told: Vec<_> = ["address", "service", "class", "scope", "family"]
        .map(|field| [&seen[0], &seen[1]].map(|row| row[field].as_str().unwrap_or_default()))
        .to_vec();
    let expected =
        [[&path, "@fleetsock"], ["unix-stream", "unix-seqpacket"], ["portless"; 2], ["loopback"; 2], ["unix"; 2]];
    assert_eq!(told, expected);
    assert_eq!(fleet.items(&["ports", "--class", "portless"]).0.len(), 2);
    let table = fleet.ask(&["ports", "--service", "unix-stream"]).out;
    assert!(table.contains(&path) && table.contains("python3["), "{table}");
    let names = fleet.ask(&["ports", "--proto", "unix", "-o", "name"]).out;
    assert_eq!(names, format!("web1/unix/{path}\nweb1/unix/@fleetsock\n"));
    drop(holder);
    until("they are gone", || fleet.items(&["ports", "--class", "portless"]).0.is_empty().then_some(()));
    let closed = fleet.items(&["changes", "--proto", "unix", "--kind", "closed"]).0;
    assert_eq!(closed.len(), 2, "{closed:?}");
    assert!(closed.iter().any(|row| row["address"] == path.as_str()), "{closed:?}");
}

#[test]
fn raw_and_packet_sockets_are_listeners_of_their_own_kind_with_their_process() {
    let Some(fleet) = Fleet::start(&["server", "web1"]) else { return };
    let text = "
import socket, sys, time
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
six = socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58)
frames = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
time.sleep(3600)
";
    let sniffer = fleet.network.start("web1", "python3", &["-c", text]);
    let seen = until("all three are seen", || {
        let seen = fleet.items(&["ports", "--class", "portless"]).0;
        (seen.len() >= 3).then_some(seen)
    });
    let mut found: Vec<(&str, &str, &str, Option<u64>)> = seen
        .iter()
        .map(|row| {
            let text = |field: &str| row[field].as_str().unwrap_or_default();
            (text("protocol"), text("family"), text("service"), row["pid"].as_u64())
        })
        .collect();
    found.sort_unstable();
    let pid = Some(u64::from(sniffer.pid()));
    let expected =
        [("packet", "packet", "all-frames", pid), ("raw", "ipv4", "icmp", pid), ("raw", "ipv6", "ipv6-icmp", pid)];
    assert_eq!(found, expected);
    assert_eq!(fleet.items(&["ports", "--class", "well-known", "--proto", "raw"]).0, [0; 0], "it is no port");
    assert_eq!(fleet.items(&["ports", "--service", "icmp"]).0.len(), 1);
    drop(sniffer);
    until("they are gone", || fleet.items(&["ports", "--class", "portless"]).0.is_empty().then_some(()));
}
