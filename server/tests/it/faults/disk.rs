//! A disk that fills up: what was acknowledged stays, questions are answered, and when there is room again all goes on.
//!
//! The full disk is a small tmpfs in a mount namespace of its own, in which this test binary runs once more.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fleetsock_proto::{
    batch::BatchKind::{Changes, SnapshotWhole},
    host::HostSelector,
    question::{PortQuestion, SessionQuestion, SessionTime},
    socket::Direction::In,
    time::Timestamp,
    token::{NewToken, Role, TokenPurpose},
};
use fleetsock_server::history::{
    Applied, Contact, History, HistoryError, Registry, Subject,
    sqlite::{Options, SqliteHistory},
};
use tokio::sync::mpsc;

use crate::{
    engine::{actor, claim, issue},
    fleet::Fleet,
    health,
    scene::{Agent, Described, at, closed, facts, listener, opened, owner, session},
    speaker::{Ended, Speaker},
};

/// Where the small disk is, for the run inside the namespace.
const DISK: &str = "FLEETSOCK_TEST_SMALL_DISK";

#[test]
fn a_full_disk_loses_nothing_and_recovers() {
    if let Some(why) = on_a_disk_of("6m", "faults::disk::on_a_small_disk") {
        eprintln!("skipped: {why}");
    }
}

#[test]
fn a_server_on_a_disk_that_is_almost_full_answers_and_stores_nothing_until_there_is_room() {
    if let Some(why) = on_a_disk_of("64m", "faults::disk::a_server_on_a_small_disk") {
        eprintln!("skipped: {why}");
    }
}

/// Runs an ignored test of this binary whose temporary files are on a small disk; why not, where that cannot be.
fn on_a_disk_of(size: &str, test: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=$4,mode=700 small \"$1\" || exit 77; exec \"$2\" --exact \"$3\" --ignored \
                  --nocapture";
    let run = Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh"])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args([test, size])
        .env(DISK, folder.path())
        .env("TMPDIR", folder.path())
        .output();
    let output = match run {
        Ok(output) if output.status.code() == Some(77) || output.stderr.starts_with(b"unshare:") => {
            return Some(format!("a small disk needs root: {}", String::from_utf8_lossy(&output.stderr)));
        }
        Err(error) => return Some(format!("no unshare(1): {error}")),
        Ok(output) => output,
    };
    let said = [output.stdout.as_slice(), &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success() && said[0].contains("1 passed"), "{}{}", said[0], said[1]);
    None
}

#[tokio::test]
#[ignore = "runs in a namespace that a_full_disk_loses_nothing_and_recovers makes"]
async fn on_a_small_disk() {
    let disk = std::env::var_os(DISK).unwrap();
    let ballast = Path::new(&disk).join("ballast");
    fs::write(&ballast, vec![0; 2 << 20]).unwrap();
    let folder = Path::new(&disk).join("history");
    let store = SqliteHistory::open(&folder, Options::default()).unwrap();
    let mut load = Load::begin(&store).await;

    assert!(load.fill(&store).await > 10, "the disk was full at once");
    for _ in 0..20 {
        assert!(matches!(load.next(&store).await, Err(HistoryError::Full)));
        load.check(&store).await;
    }
    let token = NewToken {
        lifetime_s: 60,
        uses: 1,
        purpose: TokenPurpose::Hosts { labels: Default::default() },
        note: "x".repeat(200),
    };
    let refused = store.create_token("more".to_owned(), [1; 32], token, actor(1)).await;
    assert!(refused.is_ok() || matches!(refused, Err(HistoryError::Full)), "{refused:?}");

    fs::remove_file(&ballast).unwrap();
    for _ in 0..20 {
        load.next(&store).await.unwrap();
    }
    load.check(&store).await;
    // Full again, and started anew meanwhile.
    load.fill(&store).await;
    store.close().await.unwrap();
    drop(store);
    let again = SqliteHistory::open(&folder, Options::default()).unwrap();
    load.check(&again).await;
    again.close().await.unwrap();
}

/// Takes all of the small disk but a hundredth, until it is dropped.
struct Filler(PathBuf);

impl Filler {
    fn new(disk: &Path) -> Filler {
        let path = disk.join("filler");
        let found = rustix::fs::statvfs(disk).unwrap();
        let bytes = (found.f_bavail - found.f_blocks / 100) * found.f_frsize;
        fs::write(&path, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
        Filler(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Asks whether the server is ready until it says so or not; what it says.
async fn ready(fleet: &Fleet, expected: u16) -> String {
    let asked = tokio::time::timeout(Duration::from_secs(60), async {
        loop {
            let (status, text) = health::get(fleet.health, "GET /readyz").await;
            if status == expected {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    asked.await.unwrap_or_else(|_| panic!("/readyz never said {expected}"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "runs in a namespace that the test of a server on a disk that is almost full makes"]
async fn a_server_on_a_small_disk() {
    let disk = PathBuf::from(std::env::var_os(DISK).unwrap());
    let fleet = Fleet::start().await;
    assert!(fleet.folder.path().starts_with(&disk));
    let ballast = fleet.config.history.join("ballast");
    assert!(fs::metadata(&ballast).unwrap().len() >= 1 << 20);
    let identity = fleet.agent("web1").await;
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    assert!(speaker.send(1).await);
    speaker.acknowledged().await.unwrap();

    let filler = Filler::new(&disk);
    let text = ready(&fleet, 503).await;
    assert!(text.contains("disk: no room: nothing is stored and agents keep what they observe"), "{text}");
    assert!(!ballast.exists(), "it was given up");
    let (_, metrics) = health::get(fleet.health, "GET /metrics").await;
    assert!(metrics.contains("\nfleetsock_history_disk_full 1\n"), "{metrics}");
    // Again and again: not acknowledged, and told to come back.
    assert!(speaker.send(2).await);
    let Err(Ended::Bye(bye)) = speaker.acknowledged().await else { panic!("it was acknowledged") };
    assert!(bye.reason.contains("the disk of the history is full"), "{bye:?}");
    let mut again = Speaker::welcomed(&identity, "web1", 1).await;
    assert!(again.send(2).await);
    assert!(matches!(again.acknowledged().await, Err(Ended::Bye(_))));
    // Questions are answered and recorded, orders carried out, and it is said how the server is.
    let mut alice = fleet.connected("alice", Role::Viewer).await;
    let (hosts, _) = alice.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    assert_eq!((hosts.len(), hosts[0].listeners), (1, 1));
    assert!(alice.show_server().await.unwrap().unready[0].starts_with("disk: no room"));
    fleet.local().await.revoke_operator("alice", "test").await.unwrap();
    let audited = fleet.local().await.verify_audit(None).await;
    assert!(audited.is_ok(), "{audited:?}");

    // It ends in order, and starts on the full disk.
    let fleet = fleet.restart().await;
    ready(&fleet, 503).await;
    assert!(!ballast.exists());
    drop(filler);
    // By itself.
    assert_eq!(ready(&fleet, 200).await, "ready\n");
    assert!(fs::metadata(&ballast).unwrap().len() >= 1 << 20, "and the ballast is there again");
    let mut speaker = Speaker::welcomed(&identity, "web1", 1).await;
    assert!(speaker.send(2).await);
    speaker.acknowledged().await.unwrap();
    let (hosts, _) = fleet.local().await.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    assert_eq!(hosts[0].listeners, 1, "the snapshot has one");
    fleet.stop().await;
}

/// A host that reports, and what of it was acknowledged.
struct Load {
    agent: Agent,
    batches: u64,
}

/// Sessions of a batch; each has one listener beside them.
const SESSIONS: u64 = 20;

impl Load {
    async fn begin(store: &SqliteHistory) -> Load {
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 60, uses: 1, purpose, note: String::new() };
        store.create_token("one".to_owned(), [1; 32], token, actor(0)).await.unwrap();
        let (issue, subject) = issue(b"serial");
        store.redeem(claim("one", "web1", b"key"), issue).await.unwrap();
        let Ok(Subject::Host(host)) = subject.recv() else { panic!("no host") };
        let contact = Contact { facts: facts("web1", &[]), at: at(0), clock_offset_us: 0 };
        store.record_hello(host, contact).await.unwrap();
        Load { agent: Agent::of(host), batches: 0 }
    }

    /// Reports one batch, and the same again as long as it is not acknowledged.
    async fn next(&mut self, store: &SqliteHistory) -> Result<(), HistoryError> {
        let first = self.batches * SESSIONS;
        let held = |cookie| [owner(&format!("daemon{cookie}"), 7)];
        let life = |cookie: u64| session(cookie, "10.0.0.1:443", In, "10.0.0.9:4000").held_by(&held(cookie / 50));
        let mut changes: Vec<_> = (first..first + SESSIONS).map(|cookie| closed(life(cookie), 1)).collect();
        let port = self.batches % 60_000 + 1;
        changes.push(opened(listener(1_000_000 + self.batches, &format!("0.0.0.0:{port}")).held_by(&held(first))));
        let kind = if self.batches == 0 { SnapshotWhole } else { Changes };
        let before = self.agent.clone();
        let batch = self.agent.batch(kind, at(2), changes);
        match store.apply(self.agent.host, batch).await {
            Ok(Applied::Committed) => {
                self.batches += 1;
                Ok(())
            }
            Ok(hole) => panic!("{hole:?}"),
            Err(error) => {
                self.agent = before;
                Err(error)
            }
        }
    }

    /// Reports until the disk is full; how many batches fitted.
    async fn fill(&mut self, store: &SqliteHistory) -> u64 {
        let before = self.batches;
        loop {
            match self.next(store).await {
                Ok(()) => {}
                Err(HistoryError::Full) => return self.batches - before,
                Err(error) => panic!("{error:?} after {} batches", self.batches),
            }
        }
    }

    /// Every session that was acknowledged is there once. A listener may be there of the batch that was not, because
    /// listeners are stored first; none may be missing.
    async fn check(&self, store: &SqliteHistory) {
        let time = SessionTime::Within { since: Timestamp::MIN, until: None };
        let question = SessionQuestion { time, ..SessionQuestion::default() };
        let (rows, mut chunks) = mpsc::channel::<Vec<_>>(4);
        let count = async {
            let mut count = 0;
            while let Some(chunk) = chunks.recv().await {
                count += chunk.len() as u64;
            }
            count
        };
        let (meta, sessions) = tokio::join!(store.list_sessions(question, at(3), rows), count);
        meta.unwrap();
        assert_eq!(sessions, self.batches * SESSIONS);
        let (rows, mut chunks) = mpsc::channel::<Vec<_>>(1000);
        store.list_ports(PortQuestion::default(), at(3), rows).await.unwrap();
        let mut listeners = 0;
        while let Some(chunk) = chunks.recv().await {
            listeners += chunk.len() as u64;
        }
        assert!((self.batches..=self.batches + 1).contains(&listeners), "{listeners} of {}", self.batches);
    }
}
