//! A walk of a table that changes while it is read: whatever stays is told, once.

use std::{
    collections::HashMap,
    net::{TcpListener, TcpStream},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use fleetsock_agent::capture::Walker;
use rustix::{
    net::sockopt::{set_socket_linger, socket_cookie},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::namespaces::{Named, makes_namespaces, wait_until};

/// Lets a test have many sockets, one test at a time: this process may not have them twice.
pub(crate) fn many_sockets() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    alone
}

/// Connections that stay, each two sockets, and walks: enough that a dump takes many messages. FLEETSOCK_LONG=1 is the
/// full form.
fn size() -> (usize, usize) {
    if std::env::var_os("FLEETSOCK_LONG").is_some() { (8_000, 40) } else { (1_000, 10) }
}

/// Makes connections and resets them, until told to stop.
fn churn(stop: &AtomicBool, made: &AtomicU64) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    while !stop.load(Relaxed) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        // No TIME_WAIT, so that the ports last.
        set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        drop((client, server));
        made.fetch_add(1, Relaxed);
    }
}

#[test]
fn under_churn_every_socket_that_stays_is_in_every_walk_once() {
    if !makes_namespaces() {
        return;
    }
    let _alone = many_sockets();
    let (connections, walks) = size();
    let (stop, made) = (AtomicBool::new(false), AtomicU64::new(0));
    Named::new().within(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let connection = |_| [TcpStream::connect(address).unwrap(), listener.accept().unwrap().0];
        let stable: Vec<TcpStream> = (0..connections).flat_map(connection).collect();
        let cookies: Vec<u64> = stable.iter().map(|socket| socket_cookie(socket).unwrap()).collect();
        thread::scope(|threads| {
            let churning = threads.spawn(|| churn(&stop, &made));
            let mut walker = Walker::open().unwrap();
            let mut rows = Vec::new();
            for walk in 0..walks {
                let before = made.load(Relaxed);
                wait_until("connections come and go", || made.load(Relaxed) > before || churning.is_finished());
                walker.walk(&mut rows).unwrap();
                let mut told: HashMap<u64, u32> = HashMap::new();
                rows.iter().for_each(|row| *told.entry(row.key.cookie).or_default() += 1);
                let missing = cookies.iter().filter(|cookie| !told.contains_key(cookie)).count();
                let doubled = cookies.iter().filter(|cookie| told.get(cookie).is_some_and(|times| *times > 1)).count();
                // Also before the thread is joined, which a failure must not wait for.
                stop.store(walk + 1 == walks || missing + doubled > 0, Relaxed);
                assert_eq!((missing, doubled), (0, 0), "walk {walk}, {} connections made", made.load(Relaxed));
            }
        });
        assert!(made.load(Relaxed) > walks as u64);
    });
}
