//! Digests: what the server has as open is what the agent has, or that is found out, told and healed.

use std::{
    net::{TcpListener, TcpStream, UdpSocket},
    path::Path,
    time::Duration,
};

use fleetsock_agent::config::Config;
use fleetsock_proto::{answer::GapReason, socket::Known, time::Timestamp};
use rusqlite::Connection;

use super::fleet::{Agent, Fleet, eager, until};

/// Tells a digest with nearly every walk.
fn proving(name: &str) -> Config {
    Config { digest: Duration::from_millis(100), ..eager(name) }
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// The two files of a history that are written to.
struct Files {
    main: Connection,
    day: Connection,
}

impl Files {
    fn of(history: &Path) -> Files {
        let main = Connection::open(history.join("main.db")).unwrap();
        let newest = "SELECT file FROM parts WHERE state = 0 ORDER BY id DESC LIMIT 1";
        let file: String = main.query_row(newest, [], |row| row.get("file")).unwrap();
        Files { day: Connection::open(history.join(file)).unwrap(), main }
    }

    /// How many snapshots there were of the host.
    fn snapshots(&self) -> i64 {
        self.day.query_row("SELECT snapshot FROM cursors", [], |row| row.get("snapshot")).unwrap()
    }

    /// Removes the open rows with this port of ours.
    fn remove(&self, port: u16) {
        let listeners = "DELETE FROM listeners WHERE port = ?1 AND closed_at_us IS NULL";
        assert_eq!(self.main.execute(listeners, [port]).unwrap(), 1);
        assert!(self.day.execute("DELETE FROM open_sessions WHERE local_port = ?1", [port]).unwrap() > 0);
    }

    /// Adds a listener and a session, like those with this port, that no host has: with another one.
    fn add(&self, port: u16, phantom: u16) {
        let copy = |connection: &Connection, table: &str, column: &str| {
            connection
                .execute_batch(&format!(
                    "CREATE TEMP TABLE phantom AS SELECT * FROM {table} WHERE {column} = {port} LIMIT 1;
                     UPDATE phantom SET {column} = {phantom}, cookie = 1 << 50;
                     INSERT INTO {table} SELECT * FROM phantom;"
                ))
                .unwrap();
        };
        copy(&self.main, "listeners", "port");
        copy(&self.day, "open_sessions", "local_port");
    }
}

/// The last walk as of which both tables were the same.
async fn proved_after(fleet: &Fleet, moment: Timestamp) -> Timestamp {
    let proved = async || fleet.host().await.and_then(|host| host.proved_at).filter(|at| *at > moment);
    until("the tables are the same", proved).await
}

async fn differences(fleet: &Fleet) -> usize {
    fleet.gaps().await.iter().filter(|gap| gap.reason == GapReason::TableDiffered).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_that_are_the_same_are_proved_so_again_and_again_and_no_snapshot_is_asked_for() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, proving("web1"), Timestamp::now);
    let mut proved = proved_after(&fleet, Timestamp::MIN).await;
    let files = Files::of(&fleet.server_state().join("history"));
    let snapshots = files.snapshots();
    let mut kept = Vec::new();
    for turn in 0..12 {
        let (listener, port) = listen();
        let near = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (far, _) = listener.accept().unwrap();
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        if turn % 2 == 0 {
            datagrams.connect(("127.0.0.1", port)).unwrap();
        }
        kept.push((listener, near, far, datagrams));
        proved = proved_after(&fleet, proved).await;
        if turn % 3 == 2 {
            drop(kept.split_off(1));
        }
    }
    assert_eq!((differences(&fleet).await, files.snapshots()), (0, snapshots));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_missing_or_that_no_host_has_are_found_out_and_told_and_healed() {
    let fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, proving("web1"), Timestamp::now);
    let (listener, port) = listen();
    let _near = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _far = listener.accept().unwrap();
    until("listener and session are open", async || {
        let open = fleet.sessions(port).await.iter().filter(|session| session.closed.is_none()).count();
        (open == 2 && fleet.listener(port).await.is_some()).then_some(())
    })
    .await;
    let proved = proved_after(&fleet, Timestamp::now()).await;
    let files = Files::of(&fleet.server_state().join("history"));
    let snapshots = files.snapshots();

    let (_reserved, phantom) = listen();
    drop(_reserved);
    files.add(port, phantom);
    files.remove(port);
    assert!(fleet.listener(phantom).await.is_some() && fleet.listener(port).await.is_none());

    let gap = until("that they differed is told", async || {
        fleet.gaps().await.into_iter().find(|gap| gap.reason == GapReason::TableDiffered)
    })
    .await;
    assert!(gap.since >= proved && gap.until.is_some(), "{gap:?} and proved at {proved:?}");
    let proved = proved_after(&fleet, gap.until.unwrap()).await;
    assert!(files.snapshots() > snapshots, "a snapshot came");
    assert!(fleet.listener(phantom).await.is_none() && fleet.listener(port).await.is_some());
    let open = fleet.sessions(port).await.into_iter().filter(|session| session.closed.is_none()).count();
    assert_eq!(open, 2, "both ends");
    let [over] = &fleet.sessions(phantom).await[..] else { panic!("one session that was none") };
    assert!(matches!(over.closed, Some((_, Known::Lost))), "{over:?}");
    proved_after(&fleet, proved).await;
    assert_eq!(differences(&fleet).await, 1, "it happened once");
    agent.stop().await;
}
