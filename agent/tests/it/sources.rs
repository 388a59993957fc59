//! A program in the kernel and the kernel's dump tell the same of the same sockets.

use std::{
    collections::{BTreeSet, HashMap},
    io::{BufRead, BufReader, ErrorKind, Write},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use fleetsock_agent::capture::{SocketRow, Source, Walker};
use fleetsock_proto::socket::{Family, SocketState};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, connect, listen, socket_with,
        sockopt::{set_socket_linger, socket_cookie},
    },
};

use crate::{
    listeners::{has, skip},
    load_walks::many_sockets,
    namespaces::{Named, PATIENCE, makes_namespaces, wait_until},
};

/// Stable connections, each two sockets, and walks of the program. FLEETSOCK_LONG=1 is the full form.
fn size() -> (usize, usize) {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { (8_000, 40) } else { (1_000, 10) }
}

/// A walker that always has the program tell connections; none, and why, where the kernel takes none.
fn by_program() -> Option<Walker> {
    let walker = Walker::open().unwrap().asking().asking_from(0);
    match walker.remark() {
        None => Some(walker),
        Some(remark) => {
            skip(&remark);
            None
        }
    }
}

fn pair(listener: &TcpListener, to: impl Into<SocketAddr>) -> [TcpStream; 2] {
    let client = TcpStream::connect(to.into()).unwrap();
    [client, listener.accept().unwrap().0]
}

/// One that takes no more connections: who calls it stays in SYN-SENT.
fn full_listener() -> (TcpListener, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(&listener, 0).unwrap();
    let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener, waiting)
}

/// Calls it, with a cookie from the beginning.
fn call(listener: SocketAddr) -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let caller = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None).unwrap();
    socket_cookie(&caller).unwrap();
    assert_eq!(connect(&caller, &listener), Err(Errno::INPROGRESS));
    caller
}

/// Closed while there is something to send, which the other end does not take.
fn orphan(listener: &TcpListener, address: SocketAddr) -> TcpStream {
    let [mut client, server] = pair(listener, address);
    client.set_nonblocking(true).unwrap();
    let full = loop {
        if let Err(error) = client.write(&[0; 65536]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    server
}

/// One socket of each kind, to be kept open.
fn of_each_kind() -> Vec<OwnedFd> {
    let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let v6 = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
    let dual = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
    let address = v4.local_addr().unwrap();
    let mut kept: Vec<OwnedFd> = Vec::new();
    let mapped = SocketAddr::from((Ipv4Addr::LOCALHOST, dual.local_addr().unwrap().port()));
    for ends in [pair(&v4, address), pair(&v6, v6.local_addr().unwrap()), pair(&dual, mapped)] {
        kept.extend(ends.map(OwnedFd::from));
    }
    let half_closed = pair(&v4, address);
    half_closed[0].shutdown(Shutdown::Write).unwrap();
    kept.extend(half_closed.map(OwnedFd::from));
    kept.push(orphan(&v4, address).into());
    // Both ends closed: TIME-WAIT.
    drop(pair(&v4, address));
    let (full, waiting) = full_listener();
    kept.push(call(full.local_addr().unwrap()));
    kept.extend([v4, v6, dual, full].map(OwnedFd::from));
    kept.push(waiting.into());
    kept
}

fn sorted(mut rows: Vec<SocketRow>) -> Vec<SocketRow> {
    rows.sort_by_key(|row| row.key);
    rows
}

#[test]
fn a_program_and_a_dump_tell_the_same_of_sockets_of_every_kind() {
    if !makes_namespaces() {
        return;
    }
    let other = Named::new();
    let elsewhere = other.within(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        pair(&listener, listener.local_addr().unwrap())
    });
    Named::new().within(|| {
        let Some(mut program) = by_program() else { return };
        let kept = of_each_kind();
        let mut dump = Walker::open().unwrap();
        let (mut dumped, mut told) = (Vec::new(), Vec::new());
        wait_until("both tell the same", || {
            dump.walk(&mut dumped).unwrap();
            let (report, source) = program.walk_by(&mut told).unwrap();
            let before = sorted(dumped.clone());
            dump.walk(&mut dumped).unwrap();
            // Else something changed meanwhile.
            let is_steady = before == sorted(dumped.clone()) && source == Source::Program;
            is_steady && report == Default::default() && before == sorted(told.clone())
        });
        let states: BTreeSet<SocketState> = told.iter().map(|row| row.state).collect();
        let expected = [
            SocketState::Established,
            SocketState::SynSent,
            SocketState::FinWait1,
            SocketState::FinWait2,
            SocketState::CloseWait,
            SocketState::Listen,
        ];
        assert_eq!(states, BTreeSet::from(expected));
        let has = |what: &str, is_it: &dyn Fn(&SocketRow) -> bool| assert!(told.iter().any(is_it), "{what}: {told:#?}");
        has("orphan", &|row| row.state == SocketState::FinWait1 && row.inode == 0);
        has("not accepted", &|row| row.state == SocketState::Established && row.inode == 0);
        has("IPv6", &|row| row.family == Family::Ipv6 && row.local.is_ipv6() && row.peer.is_some());
        has("v4-mapped", &|row| row.family == Family::Ipv6 && row.local.is_ipv4() && row.peer.is_some());
        has("dual-stack", &|row| row.family == Family::Dual);
        has("control group", &|row| row.peer.is_some() && row.cgroup_id != 0);
        let cookies = elsewhere.each_ref().map(|socket| socket_cookie(socket).unwrap());
        assert!(told.iter().all(|row| !cookies.contains(&row.key.cookie)), "{told:#?}");
        drop(kept);
    });
}

#[test]
fn a_socket_that_nobody_asked_for_its_cookie_is_dumped() {
    if !makes_namespaces() {
        return;
    }
    Named::new().within(|| {
        let Some(mut program) = by_program() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let kept = pair(&listener, listener.local_addr().unwrap());
        let mut rows = Vec::new();
        assert_eq!(program.walk_by(&mut rows).unwrap().1, Source::Dump);
        assert_eq!(rows.len(), 3);
        wait_until("the program is asked again", || program.walk_by(&mut rows).unwrap().1 == Source::Program);
        assert_eq!(rows.len(), 3);
        drop(kept);
    });
}

/// A process that is kept waiting while it sends, with its socket locked; the port of that.
fn kept_waiting(named: &Named) -> (Child, String) {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &named.0, "python3", "-c", include_str!("kept_waiting.py")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

#[test]
fn a_process_that_is_kept_waiting_while_it_sends_does_not_keep_a_walk_waiting() {
    if !makes_namespaces() || !has("python3") {
        return;
    }
    let named = Named::new();
    let (mut child, port) = kept_waiting(&named);
    let Ok(port) = port.parse::<u16>() else {
        child.wait().unwrap();
        return skip(&format!("no socket can be kept locked: {port}"));
    };
    let (tell, told) = mpsc::channel();
    let walking = thread::spawn(move || {
        let rows = named.within(|| {
            let mut walker = by_program()?;
            let mut rows = Vec::new();
            wait_until("the program tells", || walker.walk_by(&mut rows).unwrap().1 == Source::Program);
            Some(rows)
        });
        tell.send(rows).unwrap();
    });
    let rows = told.recv_timeout(2 * PATIENCE);
    // Whoever waits for the lock has it now.
    drop(child.stdin.take());
    child.wait().unwrap();
    walking.join().unwrap();
    if let Some(rows) = rows.unwrap() {
        assert!(rows.iter().any(|row| row.peer.is_some() && row.local.port() == port), "{port}: {rows:#?}");
    }
}

/// Begins connections and gives them up, until told to stop: sockets come into the kernel's table and leave it, and their
/// memory becomes other ones'.
fn churn(listener: SocketAddr, stop: &AtomicBool, made: &AtomicU64) {
    while !stop.load(Relaxed) {
        let caller = call(listener);
        set_socket_linger(&caller, Some(Duration::ZERO)).unwrap();
        drop(caller);
        made.fetch_add(1, Relaxed);
    }
}

/// Ends the churn however the test ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

#[test]
fn under_churn_the_program_tells_every_socket_that_stays_once() {
    if !makes_namespaces() {
        return;
    }
    let _alone = many_sockets();
    let (connections, walks) = size();
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    Named::new().within(|| {
        let Some(mut walker) = by_program() else { return };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stable: Vec<TcpStream> = (0..connections).flat_map(|_| pair(&listener, address)).collect();
        let cookies: Vec<u64> = stable.iter().map(|socket| socket_cookie(socket).unwrap()).collect();
        let (full, _waiting) = full_listener();
        // The one that waits has its cookie from a dump.
        let mut rows = Vec::new();
        Walker::open().unwrap().walk(&mut rows).unwrap();
        let full = full.local_addr().unwrap();
        thread::scope(|threads| {
            let churning = threads.spawn(|| churn(full, &stop, &made));
            let _stop = Stop(&stop);
            let mut by_program = 0;
            wait_until("the program tells all walks", || {
                let before = made.load(Relaxed);
                wait_until("sockets come and go", || made.load(Relaxed) > before || churning.is_finished());
                let (_, source) = walker.walk_by(&mut rows).unwrap();
                by_program += usize::from(source == Source::Program);
                let mut told: HashMap<u64, u32> = HashMap::new();
                rows.iter().for_each(|row| *told.entry(row.key.cookie).or_default() += 1);
                let missing = cookies.iter().filter(|cookie| !told.contains_key(cookie)).count();
                let doubled = cookies.iter().filter(|cookie| told.get(cookie).is_some_and(|times| *times > 1)).count();
                assert_eq!((missing, doubled), (0, 0), "{source:?}, {} sockets made", made.load(Relaxed));
                by_program == walks
            });
        });
        assert!(made.load(Relaxed) > walks as u64);
    });
}
