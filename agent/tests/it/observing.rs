//! What stays open is shown open, with what changes, in every network namespace, though most walks look at little of it.
//!
//! The referee does not come by in these tests unless one says so: what is shown was found without it.

use std::{
    io::{BufRead, BufReader},
    net::{Shutdown, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleetsock_agent::config::{Bytes, Config as AgentConfig, Reach};
use fleetsock_proto::{
    host::Tier,
    session::Session,
    socket::{Direction, Known, OwnerKnown, SocketState},
    time::Timestamp,
};
use rustix::net::sockopt::set_socket_linger;

use crate::{
    fleet::{Agent, Fleet, eager, until},
    listeners::{has, skip},
    namespaces::{Named, makes_namespaces},
};

const NO_REFEREE: Duration = Duration::from_secs(86_400);

/// An agent of this process that hears events; none where that is not possible.
async fn hearing(config: AgentConfig) -> Option<(Fleet, Agent)> {
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, config, Timestamp::now);
    let facts = fleet.facts().await;
    if facts.tier != Tier::T2 {
        skip(&format!("no events here: {}", facts.tier_reason));
        agent.stop().await;
        return None;
    }
    Some((fleet, agent))
}

fn without_referee() -> AgentConfig {
    AgentConfig { referee: NO_REFEREE, ..eager("web1") }
}

/// A connection of this process with itself.
struct Connection {
    listener: TcpListener,
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn new() -> Connection {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        Connection { listener, client, server }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }
}

/// The open sessions of a port, when there are so many of them.
async fn open(fleet: &Fleet, port: u16, count: usize) -> Vec<Session> {
    until("sessions are open", async || {
        let mut sessions = fleet.sessions(port).await;
        sessions.retain(|session| session.closed.is_none());
        (sessions.len() == count).then_some(sessions)
    })
    .await
}

async fn end(fleet: &Fleet, port: u16, direction: Direction, is_so: impl Fn(&Session) -> bool) -> Session {
    until("a session is as it should be", async || {
        let sessions = fleet.sessions(port).await;
        sessions.into_iter().find(|session| session.direction == direction && is_so(session))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stays_is_shown_open_with_its_process_its_states_and_its_end() {
    let Some((fleet, agent)) = hearing(without_referee()).await else { return };
    let connection = Connection::new();
    let port = connection.port();
    for session in open(&fleet, port, 2).await {
        assert_eq!((session.owner_known, session.owners[0].pid), (OwnerKnown::Exact, std::process::id()));
        assert_eq!((session.state, session.opened_known), (SocketState::Established, Known::Event));
    }
    connection.client.shutdown(Shutdown::Write).unwrap();
    let in_close_wait = |session: &Session| session.state == SocketState::CloseWait;
    end(&fleet, port, Direction::In, in_close_wait).await;
    end(&fleet, port, Direction::Out, |session| session.state == SocketState::FinWait2).await;
    // Reset by the client; the server's process holds on to what is left.
    set_socket_linger(&connection.client, Some(Duration::ZERO)).unwrap();
    drop(connection.client);
    for direction in [Direction::In, Direction::Out] {
        let session = end(&fleet, port, direction, |session| session.closed.is_some()).await;
        assert_eq!(session.closed.unwrap().1, Known::Event);
    }
    drop((connection.server, connection.listener));
    until("the listener is closed", async || fleet.listener(port).await.is_none().then_some(())).await;
    assert_eq!(fleet.sessions(port).await.len(), 2, "each was told once");
    agent.stop().await;
}

/// A UDP socket with a peer, and that.
struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
}

impl Datagrams {
    fn new() -> Datagrams {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        Datagrams { client, server }
    }

    fn port(&self) -> u16 {
        self.server.local_addr().unwrap().port()
    }
}

/// Sockets of a namespace.
fn sockets_in(named: &Named) -> (Connection, Datagrams) {
    named.within(|| (Connection::new(), Datagrams::new()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_in_another_namespace_is_shown_there_from_its_beginning_to_its_end() {
    if !makes_namespaces() {
        return;
    }
    let named = Named::new();
    let Some((fleet, agent)) = hearing(without_referee()).await else { return };
    let (connection, udp) = sockets_in(&named);
    let (port, udp_port) = (connection.port(), udp.port());
    let listener = until("the listener is shown", async || fleet.listener(port).await).await;
    assert_eq!((listener.netns, listener.owners[0].pid), (named.netns(), std::process::id()));
    for session in open(&fleet, port, 2).await {
        assert_eq!((session.netns, session.owners[0].pid), (named.netns(), std::process::id()));
    }
    assert_eq!(open(&fleet, udp_port, 1).await[0].netns, named.netns());
    drop((connection, udp));
    for (port, direction) in [(port, Direction::In), (port, Direction::Out), (udp_port, Direction::Out)] {
        end(&fleet, port, direction, |session| session.closed.is_some()).await;
    }
    // Nothing is said of losses: they are the host's, and the kernel may leave out records of other tests.
    until("the listener is closed", async || fleet.listener(port).await.is_none().then_some(())).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_outlive_their_namespaces_name_only_while_they_are_held() {
    if !makes_namespaces() {
        return;
    }
    let named = Named::new();
    let often = AgentConfig { referee: Duration::from_secs(1), ..eager("web1") };
    let Some((fleet, agent)) = hearing(often).await else { return };
    let (connection, udp) = sockets_in(&named);
    let (port, udp_port, netns) = (connection.port(), udp.port(), named.netns());
    open(&fleet, port, 2).await;
    open(&fleet, udp_port, 1).await;
    // Only descriptors of this process, which is in another namespace, keep it from now on.
    drop(named);
    let later = TcpListener::bind("127.0.0.1:0").unwrap();
    let later_port = later.local_addr().unwrap().port();
    until("a walk came by", async || fleet.listener(later_port).await).await;
    drop(later);
    until("and another one", async || fleet.listener(later_port).await.is_none().then_some(())).await;
    assert_eq!(open(&fleet, port, 2).await[0].netns, netns);
    assert!(fleet.listener(port).await.is_some() && open(&fleet, udp_port, 1).await.len() == 1);
    drop((connection, udp));
    until("the listener is closed", async || fleet.listener(port).await.is_none().then_some(())).await;
    end(&fleet, udp_port, Direction::Out, |session| session.closed.is_some()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_went_over_a_connection_are_told_with_its_end() {
    let counting = AgentConfig { bytes: Some(Bytes::On), ..without_referee() };
    let Some((fleet, agent)) = hearing(counting).await else { return };
    // One that no walk sees, and one that stays until it was seen.
    for stays in [false, true] {
        let Connection { listener, mut client, mut server } = Connection::new();
        let port = listener.local_addr().unwrap().port();
        std::io::Write::write_all(&mut client, &[0; 1000]).unwrap();
        std::io::Read::read_exact(&mut server, &mut [0; 1000]).unwrap();
        std::io::Write::write_all(&mut server, &[0; 50]).unwrap();
        std::io::Read::read_exact(&mut client, &mut [0; 50]).unwrap();
        if stays {
            open(&fleet, port, 2).await;
        }
        drop(client);
        assert_eq!(std::io::Read::read(&mut server, &mut [0]).unwrap(), 0);
        drop(server);
        for (direction, expected) in [(Direction::Out, (1000, 50)), (Direction::In, (50, 1000))] {
            let session = end(&fleet, port, direction, |session| session.closed.is_some()).await;
            assert_eq!((session.bytes_sent, session.bytes_received), expected, "{session:?}");
            assert_eq!(session.closed.unwrap().1, Known::Event);
        }
    }
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_udp_socket_that_lives_between_two_walks_is_a_session_when_it_had_a_peer() {
    let slow = AgentConfig { walk: Duration::from_secs(1), ..without_referee() };
    let Some((fleet, agent)) = hearing(slow).await else { return };
    let Datagrams { server, client } = Datagrams::new();
    let port = server.local_addr().unwrap().port();
    drop(client);
    for _ in 1..20 {
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
    }
    until("all are known", async || {
        let over = fleet.sessions(port).await.into_iter().filter(|session| session.closed.is_some());
        (over.count() == 20).then_some(())
    })
    .await;
    agent.stop().await;
}

/// Connections of another namespace, each two sockets of a process that is there.
const ELSEWHERE: u64 = 200;
const CONNECTED: &str = "
import socket, sys
listener = socket.create_server(('127.0.0.1', 0), backlog=1000)
count = int(sys.argv[1])
held = [(socket.create_connection(listener.getsockname()), listener.accept()[0]) for _ in range(count)]
print('ready', flush=True)
sys.stdin.read()
";

/// A process, killed at the end.
struct Busy(Child);

impl Busy {
    /// One that has connected so often in a namespace, with itself.
    fn new(named: &Named) -> Busy {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &named.0, "python3", "-c", CONNECTED, &ELSEWHERE.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Busy(child)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Lets walks look for what events tell to be open, twice, and one that shows everything say that the rest is over.
async fn walk_often(fleet: &Fleet) {
    for _ in 0..20 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        until("a walk came by", async || fleet.listener(port).await).await;
        drop(listener);
        until("and another one", async || fleet.listener(port).await.is_none().then_some(())).await;
    }
}

/// What the host says that it lost until now.
async fn losses(fleet: &Fleet) -> u64 {
    let now = Some(Timestamp::now());
    let heard = async || fleet.host().await.filter(|host| host.last_seen_at > now);
    until("the host said what it lost", heard).await.losses
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_other_namespaces_that_are_not_to_be_told_are_no_losses() {
    if !makes_namespaces() || !has("python3") {
        return;
    }
    let own = AgentConfig { reach: Reach::Namespace, referee: Duration::from_secs(1), ..eager("web1") };
    let Some((fleet, agent)) = hearing(own).await else { return };
    let mut lost = Vec::new();
    // Other tests make more connections at once than there is room for; not all the time.
    while lost.iter().all(|lost| *lost >= ELSEWHERE / 4) {
        assert!(lost.len() < 5, "{lost:?}");
        let before = losses(&fleet).await;
        let named = Named::new();
        let _busy = Busy::new(&named);
        walk_often(&fleet).await;
        lost.push(losses(&fleet).await - before);
    }
    agent.stop().await;
}
