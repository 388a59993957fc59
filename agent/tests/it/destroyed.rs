//! The kernel's word on sockets that are closed: one message each, with what went over them.
//!
//! The agent's end of it takes no privilege, so these tests give theirs up.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use fleetsock_agent::{
    capture::{Destroyed, Destructions, DrainReport},
    namespaces::{Namespaces, Pass},
};
use fleetsock_proto::socket::{Family, Protocol, SocketState};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::sockopt::{set_socket_linger, socket_cookie},
    thread::{CapabilitySet, capabilities, set_capabilities},
};

use crate::{
    listeners::apart,
    namespaces::{Named, makes_namespaces, wait_until},
};

static SENT: [u8; 100_000] = [b'x'; 100_000];
const ANSWERED: [u8; 50] = [b'y'; 50];

/// A connection over which something went both ways, everything read: client, server, and what they must be told as.
struct Connection {
    ends: [TcpStream; 2],
    cookies: [u64; 2],
    addresses: [SocketAddr; 2],
}

impl Connection {
    fn new(address: &str) -> Connection {
        let listener = TcpListener::bind(address).unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        thread::scope(|threads| {
            threads.spawn(|| client.write_all(&SENT).unwrap());
            server.read_exact(&mut [0; SENT.len()]).unwrap();
        });
        server.write_all(&ANSWERED).unwrap();
        client.read_exact(&mut [0; ANSWERED.len()]).unwrap();
        let cookies = [socket_cookie(&client).unwrap(), socket_cookie(&server).unwrap()];
        let addresses = [client.local_addr().unwrap(), server.local_addr().unwrap()];
        Connection { ends: [client, server], cookies, addresses }
    }
}

/// Closes one end in order, and the other when that arrived.
fn close_in_order(first: TcpStream, mut second: TcpStream) {
    drop(first);
    assert_eq!(second.read(&mut [0]).unwrap(), 0);
}

/// Closes one end by a reset, and the other when that arrived.
fn reset(first: TcpStream, mut second: TcpStream) {
    set_socket_linger(&first, Some(Duration::ZERO)).unwrap();
    drop(first);
    second.read(&mut [0]).unwrap_err();
}

/// Waits for the destruction of these sockets.
fn hear(destructions: &mut Destructions, cookies: &[u64]) -> Vec<Destroyed> {
    let mut heard = Vec::new();
    wait_until("sockets are told to be destroyed", || {
        let mut ready = [PollFd::new(destructions, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec { tv_sec: 1, tv_nsec: 0 })).unwrap();
        assert_eq!(destructions.drain(&mut heard), Ok(DrainReport::default()));
        cookies.iter().all(|cookie| heard.iter().any(|socket| socket.key.cookie == *cookie))
    });
    // Two messages of one socket would come together.
    assert_eq!(destructions.drain(&mut heard), Ok(DrainReport::default()));
    let of = |cookie: &u64| {
        let mut of = heard.iter().filter(|socket| socket.key.cookie == *cookie);
        let first = *of.next().unwrap();
        assert_eq!(of.next(), None, "a socket was told twice");
        first
    };
    cookies.iter().map(of).collect()
}

fn unprivileged<T: Send>(run: impl FnOnce(&mut Destructions) -> T + Send) -> T {
    apart(|| {
        let mut privileges = capabilities(None).unwrap();
        privileges.effective = CapabilitySet::empty();
        privileges.permitted = CapabilitySet::empty();
        set_capabilities(None, privileges).unwrap();
        run(&mut Destructions::open().unwrap())
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Client,
    Server,
}

#[test]
fn each_end_that_closes_in_order_is_told_once_with_its_bytes() {
    use SocketState::{FinWait2, LastAck};
    let bytes = [SENT.len() as u64, ANSWERED.len() as u64];
    unprivileged(|destructions| {
        for (address, family) in [("127.0.0.1:0", Family::Ipv4), ("[::1]:0", Family::Ipv6)] {
            for (first, states) in [(First::Client, [FinWait2, LastAck]), (First::Server, [LastAck, FinWait2])] {
                let Connection { ends: [client, server], cookies, addresses } = Connection::new(address);
                match first {
                    First::Client => close_in_order(client, server),
                    First::Server => close_in_order(server, client),
                }
                let ends = hear(destructions, &cookies);
                for (end, other) in [(0, 1), (1, 0)] {
                    let told = ends[end];
                    assert_eq!((told.protocol, told.family), (Protocol::Tcp, family));
                    assert_eq!((told.local, told.peer), (addresses[end], Some(addresses[other])));
                    let traffic = told.traffic.unwrap();
                    let counted = (traffic.sent, traffic.received(Some(states[end])));
                    assert_eq!(counted, (bytes[end], bytes[other]), "{first:?} first, end {end}: {traffic:?}");
                    assert!(traffic.received(None).abs_diff(bytes[other]) <= 1, "{traffic:?}");
                }
            }
        }
    });
}

#[test]
fn who_resets_a_connection_is_told_by_its_cookie_and_the_other_end_with_its_bytes() {
    unprivileged(|destructions| {
        for (end, other, bytes) in [(0, 1, (ANSWERED.len(), SENT.len())), (1, 0, (SENT.len(), ANSWERED.len()))] {
            let Connection { ends: [client, server], cookies, addresses } = Connection::new("127.0.0.1:0");
            if end == 0 {
                reset(client, server)
            } else {
                reset(server, client)
            }
            let ends = hear(destructions, &cookies);
            assert_eq!((ends[end].peer, ends[end].traffic), (None, None));
            assert_eq!((ends[other].local, ends[other].peer), (addresses[other], Some(addresses[end])));
            let traffic = ends[other].traffic.unwrap();
            let counted = (traffic.sent, traffic.received(Some(SocketState::Established)));
            assert_eq!(counted, (bytes.0 as u64, bytes.1 as u64), "{traffic:?}");
        }
    });
}

#[test]
fn listeners_and_udp_sockets_are_told_too() {
    unprivileged(|destructions| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let bound = UdpSocket::bind("[::1]:0").unwrap();
        let connected = UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect("127.0.0.1:9").unwrap();
        let cookies = [socket_cookie(&listener), socket_cookie(&bound), socket_cookie(&connected)].map(Result::unwrap);
        let local = [listener.local_addr(), bound.local_addr(), connected.local_addr()].map(Result::unwrap);
        drop((listener, bound, connected));
        let told = hear(destructions, &cookies);
        assert_eq!(told.iter().map(|socket| socket.local).collect::<Vec<_>>(), local);
        assert_eq!(
            told.iter().map(|socket| (socket.protocol, socket.peer, socket.traffic)).collect::<Vec<_>>(),
            [
                (Protocol::Tcp, None, None),
                (Protocol::Udp, None, None),
                (Protocol::Udp, Some("127.0.0.1:9".parse().unwrap()), None)
            ]
        );
    });
}

/// Messages that netlink sockets of this namespace had no room for (the last column but one).
fn drops() -> u64 {
    let list = std::fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
    list.lines().skip(1).map(|line| line.split_whitespace().nth(8).unwrap().parse::<u64>().unwrap()).sum()
}

#[test]
fn what_the_queue_has_no_room_for_is_counted_and_the_rest_goes_on() {
    if !makes_namespaces() {
        return;
    }
    Named::new().within(|| {
        let mut destructions = Destructions::open().unwrap();
        let mut heard = Vec::new();
        for _ in 0..2 {
            let (mut closed, before) = (0, drops());
            wait_until("the queue is full", || {
                (0..1000).for_each(|_| drop(UdpSocket::bind("127.0.0.1:0").unwrap()));
                closed += 1000;
                drops() > before
            });
            // The kernel's workers may still be sending.
            let (mut told, mut lost) = (0, 0);
            wait_until("every socket is told or counted as lost", || {
                let report = destructions.drain(&mut heard).unwrap();
                assert_eq!(report.unreadable, 0);
                told += std::mem::take(&mut heard).len() as u64;
                lost += report.lost;
                told + lost >= closed
            });
            assert_eq!((told + lost, lost > 0), (closed, true), "{told} told, {lost} lost");
        }
    });
}

#[test]
fn destructions_that_are_opened_on_a_visit_are_those_of_the_namespace_visited() {
    if !makes_namespaces() {
        return;
    }
    let named = Named::new();
    let mut namespaces = Namespaces::open().unwrap();
    namespaces.refresh(Pass::New).unwrap();
    let opened = namespaces.visit(|visitor| {
        visitor.enter(namespaces.get(named.netns()).unwrap()).unwrap();
        Destructions::open().unwrap()
    });
    let mut destructions = opened.unwrap();
    assert_eq!(destructions.netns(), named.netns());
    let cookie = named.within(|| socket_cookie(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap());
    assert_eq!(hear(&mut destructions, &[cookie])[0].key.netns, named.netns());
}
