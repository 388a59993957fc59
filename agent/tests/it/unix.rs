//! UNIX sockets that listen are listeners with a path, where they are wanted.

use std::{
    net::TcpListener,
    os::{
        fd::OwnedFd,
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    time::Duration,
};

use fleetsock_agent::{
    capture::{Coverage, Extent, SocketRow, States, SurveyReport, Surveyor, WalkReport, portless::Wanted},
    config::Config as AgentConfig,
    namespaces::{Namespaces, Pass},
};
use fleetsock_proto::{
    listener::ListenAddress,
    question::PortQuestion,
    socket::{Family, Known, OwnerKnown, Protocol, SocketState},
    time::Timestamp,
};
use rustix::{
    fs::fstat,
    net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket},
};

use crate::{
    fleet::{Agent, Fleet, eager, until},
    namespaces::{Named, makes_namespaces},
};

/// A listener with a path, one with an abstract name, a connection of the first, and a socket for datagrams.
struct Sockets {
    stream: UnixListener,
    packets: OwnedFd,
    _connection: (UnixStream, UnixStream),
    _datagrams: UnixDatagram,
    folder: tempfile::TempDir,
}

impl Sockets {
    fn open(name: &str) -> Sockets {
        let folder = tempfile::tempdir().unwrap();
        let stream = UnixListener::bind(folder.path().join("stream")).unwrap();
        let client = UnixStream::connect(folder.path().join("stream")).unwrap();
        let connection = (client, stream.accept().unwrap().0);
        let packets = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        bind(&packets, &SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap()).unwrap();
        listen(&packets, 1).unwrap();
        let datagrams = UnixDatagram::bind(folder.path().join("datagrams")).unwrap();
        Sockets { stream, packets, _connection: connection, _datagrams: datagrams, folder }
    }

    fn path(&self) -> String {
        self.folder.path().join("stream").to_str().unwrap().to_owned()
    }
}

type Told = (u16, String, u64, Family, SocketState);

/// The UNIX sockets of a namespace among the rows.
fn told(rows: &[SocketRow], report: &SurveyReport, netns: u64) -> Vec<Told> {
    let ours = rows.iter().filter(|row| row.protocol == Protocol::Unix && row.key.netns == netns);
    let told =
        |row: &SocketRow| (row.local.port(), report.paths[&row.key].to_string(), row.inode, row.family, row.state);
    let mut told: Vec<Told> = ours.map(told).collect();
    told.sort_unstable_by_key(|told| told.0);
    told
}

#[test]
fn those_that_listen_are_seen_in_every_namespace_with_their_path_and_type() {
    if !makes_namespaces() {
        return;
    }
    let (named, other) = (Named::new(), Named::new());
    let sockets = named.within(|| Sockets::open("fleetsock-seen"));
    let inode = |socket: rustix::io::Result<rustix::fs::Stat>| socket.unwrap().st_ino;
    let expected = |(port, path, inode): (u16, String, u64)| (port, path, inode, Family::Unix, SocketState::Listen);
    let expected = [
        (1, sockets.path(), inode(fstat(&sockets.stream))),
        (5, "@fleetsock-seen".to_owned(), inode(fstat(&sockets.packets))),
    ]
    .map(expected);
    let extent = Extent { home: Coverage::Listeners, foreign: Coverage::Listeners, states: States::Followed };
    for place in [&named, &other] {
        place.within(|| {
            let mut namespaces = Namespaces::open().unwrap();
            namespaces.refresh(Pass::New).unwrap();
            let (mut surveyor, mut rows) = (Surveyor::open().unwrap().listing(Wanted::All), Vec::new());
            let report = surveyor.survey(&namespaces, extent, &mut rows);
            assert_eq!(told(&rows, &report, named.netns()), expected);
            let walked = report.walked[&named.netns()];
            assert_eq!((walked.report, walked.unix), (WalkReport::default(), Ok(())));
            assert!(report.would_show(named.netns(), Protocol::Unix, SocketState::Listen));
            let report = Surveyor::open().unwrap().survey(&namespaces, extent, &mut rows);
            assert!(report.paths.is_empty() && rows.iter().all(|row| row.protocol != Protocol::Unix), "unasked");
        });
    }
}

/// What the server knows of the UNIX sockets of this test.
async fn ports(fleet: &Fleet, sockets: &[ListenAddress]) -> Vec<fleetsock_proto::listener::Listener> {
    let (mut rows, _) = fleet.local().await.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    rows.retain(|row| sockets.contains(&row.address));
    rows.sort_unstable_by_key(|row| row.port);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_listeners_with_their_process_from_their_beginning_to_their_end() {
    let fleet = Fleet::start().await;
    let config = AgentConfig { portless: Wanted::All, ..eager("web1") };
    let agent = Agent::start(&fleet.enrol("web1").await, config, Timestamp::now);
    fleet.facts().await;
    let name = format!("fleetsock-{}-told", std::process::id());
    let sockets = Sockets::open(&name);
    let addresses = [ListenAddress::Path(sockets.path()), ListenAddress::Path(format!("@{name}"))];
    let rows = until("both are told", async || {
        let rows = ports(&fleet, &addresses).await;
        (rows.len() == 2 && rows.iter().all(|row| row.owner_known == OwnerKnown::Exact)).then_some(rows)
    })
    .await;
    for row in &rows {
        assert_eq!(
            (row.protocol, row.opened_known, row.owners[0].pid),
            (Protocol::Unix, Known::BetweenWalks, std::process::id())
        );
    }
    assert_eq!([rows[0].port, rows[1].port], [1, 5]);
    // Everything is told again in a snapshot: they stay the same.
    agent.stop().await;
    let config = AgentConfig { portless: Wanted::All, walk: Duration::from_millis(200), ..eager("web1") };
    let agent = Agent::start(&fleet.folder.path().join("web1"), config, Timestamp::now);
    let later = TcpListener::bind("127.0.0.1:0").unwrap();
    let later_port = later.local_addr().unwrap().port();
    until("its snapshot is there", async || fleet.listener(later_port).await).await;
    let still: Vec<_> = ports(&fleet, &addresses).await.iter().map(|row| row.opened_at).collect();
    assert_eq!(still, rows.iter().map(|row| row.opened_at).collect::<Vec<_>>());
    drop(sockets);
    until("they are closed", async || ports(&fleet, &addresses).await.is_empty().then_some(())).await;
    agent.stop().await;
}
