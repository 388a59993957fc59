//! Who may speak after a restore: those who were renewed since the backup, and nobody who was revoked or replaced.

use std::{fs, path::PathBuf, time::Duration};

use fleetsock_proto::{
    backup::{BackupContent, BackupStep},
    client::{AgentClient, CallError, ConnectError, OperatorClient, Target, enroll},
    host::{HostId, HostSelector},
    identity::{Identity, Key},
    join::JoinString,
    spiffe,
    time::Timestamp,
    token::{Operator, Role},
};
use fleetsock_server::{
    authority::{Authority, RequestedKey},
    backup::restoring::{Restored, restore},
    history::{self, Registry, sqlite::Carried},
};

use crate::{fleet::Fleet, speaker::Speaker};

const SECOND: Duration = Duration::from_secs(1);

async fn backup(fleet: &Fleet) -> PathBuf {
    backup_as(fleet, "older").await
}

async fn backup_as(fleet: &Fleet, name: &str) -> PathBuf {
    let mut local = fleet.local().await;
    let mut backup = local.backup(&name.parse().unwrap(), BackupContent::History).await.unwrap();
    loop {
        if let BackupStep::Made(made) = backup.next().await.unwrap() {
            return PathBuf::from(made.folder);
        }
    }
}

fn host_of(identity: &Identity) -> HostId {
    match identity.spiffe_id.subject {
        spiffe::Subject::Agent(host) => host,
        spiffe::Subject::Operator(_) => panic!("an operator"),
    }
}

/// The same holder's certificate that the fleet's CA made at that moment, whether the history knows it or not.
fn made(fleet: &Fleet, identity: &Identity, at: Timestamp) -> (Identity, history::IssuedCertificate) {
    let authority = Authority::load(&fleet.config.ca, fleet.trust_domain(), Timestamp::now()).unwrap();
    let key = Key::generate().unwrap();
    let requested = RequestedKey::of_request(&key.request_der().unwrap()).unwrap();
    let subject = match &identity.spiffe_id.subject {
        spiffe::Subject::Agent(host) => history::Subject::Host(*host),
        spiffe::Subject::Operator(operator) => history::Subject::Operator(operator.clone()),
    };
    let issued = authority.issue(&subject, &requested, at).unwrap();
    (identity.renewed(issued.chain_der.clone(), key).unwrap(), issued)
}

/// Waits until certificates have another date than one that was made before.
async fn next_second(since: Timestamp) {
    while Timestamp::now().since(since) < Duration::from_millis(1_100) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Gets the next certificate, uses it, and waits until the one after it has another date.
async fn renewed(fleet: &Fleet, identity: &Identity) -> Identity {
    let at = Timestamp::now();
    let (next, issued) = made(fleet, identity, at);
    fleet.store.add_host_certificate(host_of(identity), issued, at).await.unwrap();
    hello(&next).await.unwrap();
    next_second(at).await;
    next
}

/// Whether an agent is let in; the words of the refusal.
async fn hello(identity: &Identity) -> Result<(), String> {
    match AgentClient::connect(identity).await.unwrap().renew(Vec::new()).await.unwrap_err() {
        // The policy let it through, and there was nothing to sign; or it is known, and asks too often.
        CallError::Invalid(_) => Ok(()),
        error if error.to_string().contains("too many renewals") => Ok(()),
        error => Err(error.to_string()),
    }
}

async fn asks(identity: Identity) -> Result<(), String> {
    let client = OperatorClient::connect(Target::Remote(Box::new(identity))).await;
    let mut client = client.map_err(|error| error.to_string())?;
    client.list_hosts(HostSelector::default()).await.map(drop).map_err(|error| error.to_string())
}

/// A fleet in whose life there was a backup, and much happened since.
struct Story {
    fleet: Fleet,
    taken: PathBuf,
    /// Certificates of web1, the newest last.
    web: [Identity; 3],
    /// db1 was renewed and revoked since.
    db: Identity,
    /// Enrolled since.
    late: Identity,
    /// A new certificate of alice, and one of bob, who was revoked since.
    alice: Identity,
    bob: Identity,
    /// A token that was spent since.
    spent: JoinString,
}

async fn story() -> Story {
    let fleet = Fleet::start().await;
    let (web, db) = (fleet.agent("web1").await, fleet.agent("db1").await);
    let spent: JoinString = fleet.join(1).await.parse().unwrap();
    fleet.operator("alice", Role::Viewer).await;
    fleet.operator("bob", Role::Admin).await;
    let mut speaker = Speaker::welcomed(&web, "web1", 1).await;
    assert!(speaker.send(1).await);
    speaker.acknowledged().await.unwrap();
    next_second(Timestamp::now()).await;
    let taken = backup(&fleet).await;
    next_second(Timestamp::now()).await;
    let second = renewed(&fleet, &web).await;
    let third = renewed(&fleet, &second).await;
    let db = renewed(&fleet, &db).await;
    fleet.local().await.revoke_host("db1", "stolen").await.unwrap();
    let alice = fleet.operator("alice", Role::Viewer).await;
    let bob = fleet.operator("bob", Role::Admin).await;
    fleet.local().await.revoke_operator("bob", "left").await.unwrap();
    let late = enroll(&spent, "late1", Key::generate().unwrap()).await.unwrap();
    next_second(Timestamp::now()).await;
    Story { fleet, taken, web: [web, second, third], db, late, alice, bob, spent }
}

async fn restored(fleet: Fleet, taken: &std::path::Path, is_lost: bool) -> (Fleet, Restored) {
    let mut restored = None;
    let fleet = fleet
        .restart_after(|state| {
            if is_lost {
                fs::remove_dir_all(state.join("history")).unwrap();
            }
            restored = Some(restore(taken, state, Timestamp::now(), &|_, _, _| {}).unwrap());
        })
        .await;
    (fleet, restored.unwrap())
}

/// Action and detail of the audit log's rows of this action.
async fn audited(fleet: &Fleet, action: &str) -> Vec<String> {
    let question = fleetsock_proto::audit::AuditQuestion::default();
    let (rows, _) = fleet.local().await.list_audit(question).await.unwrap().collect().await.unwrap();
    let found = rows.into_iter().filter(|row| row.action.contains(action));
    found.map(|row| format!("{}: {}", row.action, row.detail)).collect()
}

async fn warning(fleet: &Fleet, name: &str) -> String {
    let (hosts, _) = fleet.local().await.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    let host = hosts.into_iter().find(|host| host.name == name).unwrap();
    host.warning.map(|warning| warning.text).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_history_that_was_there_nothing_is_guessed() {
    let Story { fleet, taken, web, db, late, alice, bob, spent } = story().await;
    let (fleet, restored) = restored(fleet, &taken, false).await;
    assert_eq!(restored.carried, Carried::Over { hosts_revoked: 1, operators_revoked: 1 });
    assert_eq!(restored.unsure, None);
    hello(&web[2]).await.unwrap();
    for old in &web[..2] {
        assert!(hello(old).await.unwrap_err().contains("replaced by a newer one"));
    }
    assert!(hello(&db).await.unwrap_err().contains("revoked"));
    assert!(hello(&late).await.unwrap_err().contains("unknown to this server"), "its host is not in the backup");
    asks(alice).await.unwrap();
    assert!(asks(bob).await.unwrap_err().contains("revoked"));
    let refused = enroll(&spent, "thief", Key::generate().unwrap()).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Call(_) | ConnectError::Refused { .. }), "{refused:?}");
    // A certificate that the CA's key made behind the history's back, with a date from the time in question.
    let (forged, _) = made(&fleet, &web[0], restored.taken_at.plus(Duration::from_secs(1)));
    assert!(hello(&forged).await.unwrap_err().contains("unknown to this server"));
    assert_eq!(audited(&fleet, "adopt").await, [""; 0]);
    assert!(fleet.local().await.verify_audit(None).await.is_ok());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_it_the_newest_certificate_of_the_lost_time_is_taken_up_and_that_is_told() {
    let Story { fleet, taken, web, db, late, alice, bob, spent } = story().await;
    let (fleet, restored) = restored(fleet, &taken, true).await;
    assert_eq!(restored.carried, Carried::Nothing);
    let unsure = restored.unsure.as_ref().unwrap();
    let operators: Vec<String> = unsure.operators.iter().map(ToString::to_string).collect();
    assert_eq!(operators, ["alice (viewer)", "bob (admin)"]);
    assert_eq!(unsure.hosts, [("db1".to_owned(), host_of(&db)), ("web1".to_owned(), host_of(&web[0]))]);
    assert_eq!(unsure.tokens, [spent.token_id.as_str()]);
    // Until then it is the one of the backup that counts.
    hello(&web[0]).await.unwrap();
    assert_eq!(warning(&fleet, "web1").await, "");
    hello(&web[2]).await.unwrap();
    assert!(warning(&fleet, "web1").await.contains("made after the backup that was restored"));
    for old in &web[..2] {
        assert!(hello(old).await.unwrap_err().contains("replaced by a newer one"));
    }
    assert!(hello(&late).await.unwrap_err().contains("unknown to this server"));
    // Whether it was revoked nobody knows: it is let in, and a person is told.
    hello(&db).await.unwrap();
    assert!(warning(&fleet, "db1").await.contains("if it was revoked since the backup, revoke it again"));
    fleet.local().await.revoke_host("db1", "stolen").await.unwrap();
    assert!(hello(&db).await.unwrap_err().contains("revoked"));
    asks(alice).await.unwrap();
    asks(bob).await.unwrap();
    let mut told = audited(&fleet, "adopt").await;
    told.sort();
    let who: Vec<&str> = told.iter().map(|row| row.split(' ').nth(2).unwrap()).collect();
    assert_eq!(who, ["alice", "bob", "db1", "web1"], "{told:?}");
    fleet.local().await.revoke_operator("bob", "left").await.unwrap();
    let (another, _) = made(&fleet, &fleet.operator("bob", Role::Viewer).await, restored.taken_at.plus(3 * SECOND));
    assert!(asks(another).await.is_err(), "who was revoked since the restore is not taken up any more");

    // Made by somebody who has the CA's key, before the backup or after the restore.
    for at in [restored.taken_at.minus(Duration::from_secs(5)), Timestamp::now().plus(Duration::from_secs(60))] {
        let (forged, _) = made(&fleet, &web[0], at);
        assert!(hello(&forged).await.is_err(), "{at:?}");
    }
    // The host goes on as always: after its next renewal none of the lost time is taken up.
    let fourth = renewed(&fleet, &web[2]).await;
    let (copied, _) = made(&fleet, &web[0], restored.taken_at.plus(Duration::from_secs(2)));
    assert!(hello(&copied).await.unwrap_err().contains("replaced by a newer one"));
    hello(&fourth).await.unwrap();
    assert!(fleet.local().await.verify_audit(None).await.is_ok());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_the_history_there_does_not_follow_gives_nobody_access_back_who_was_revoked_in_it_or_before() {
    let Story { fleet, taken, web, bob, alice, .. } = story().await;
    let newer = fleet.agent("mail1").await;
    let carol = fleet.operator("carol", Role::Admin).await;
    let later = backup_as(&fleet, "later").await;
    fleet.local().await.revoke_host("mail1", "sold").await.unwrap();
    // The history goes back to the older backup, and on from there; then the later backup is wanted after all.
    let (fleet, older) = restored(fleet, &taken, false).await;
    assert!(matches!(older.carried, Carried::Over { .. }), "{older:?}");
    fleet.local().await.revoke_host("web1", "stolen").await.unwrap();
    next_second(Timestamp::now()).await;
    let (fleet, restored) = restored(fleet, &later, false).await;
    // What the later backup knows of db1 and bob is that they are revoked.
    assert_eq!(restored.carried, Carried::Refusals { hosts_revoked: 2, operators_revoked: 0 });
    for (refused, identity) in [("stolen", &web[2]), ("sold", &newer)] {
        assert!(hello(identity).await.unwrap_err().contains("revoked"), "{refused}");
    }
    assert!(asks(bob).await.unwrap_err().contains("revoked"));
    for identity in [alice, carol] {
        asks(identity).await.unwrap();
    }
    let unsure = restored.unsure.unwrap();
    assert_eq!(
        unsure.operators.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["alice (viewer)", "carol (admin)"]
    );
    assert_eq!(unsure.hosts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["late1"]);
    let told = audited(&fleet, "restore").await;
    assert!(told.iter().any(|row| row.contains("histories that do not follow it")), "{told:?}");
    assert!(fleet.local().await.verify_audit(None).await.is_ok());
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_who_was_revoked_in_a_history_that_does_not_follow_the_backup_stays_revoked() {
    let fleet = Fleet::start().await;
    fleet.operator("bob", Role::Admin).await;
    let taken = backup(&fleet).await;
    next_second(Timestamp::now()).await;
    let newest = fleet.operator("bob", Role::Admin).await;
    let later = backup_as(&fleet, "later").await;
    let (fleet, _) = restored(fleet, &taken, false).await;
    fleet.local().await.revoke_operator("bob", "left").await.unwrap();
    next_second(Timestamp::now()).await;
    let (fleet, restored) = restored(fleet, &later, false).await;
    assert_eq!(restored.carried, Carried::Refusals { hosts_revoked: 0, operators_revoked: 2 });
    assert!(asks(newest).await.unwrap_err().contains("revoked"));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_comes_first_is_found_when_the_newer_one_comes() {
    let Story { fleet, taken, web, .. } = story().await;
    let (fleet, _) = restored(fleet, &taken, true).await;
    // Somebody kept the certificate that was replaced since the backup.
    hello(&web[1]).await.unwrap();
    hello(&web[2]).await.unwrap();
    assert!(warning(&fleet, "web1").await.contains("a second certificate of it was taken up"));
    assert!(hello(&web[1]).await.unwrap_err().contains("replaced by a newer one"), "it is out");
    assert_eq!(audited(&fleet, "adopt another certificate").await.len(), 1);
    fleet.stop().await;
}

#[tokio::test]
async fn a_server_that_was_never_restored_takes_up_nothing() {
    let fleet = Fleet::start().await;
    let identity = fleet.agent("web1").await;
    let (forged, _) = made(&fleet, &identity, Timestamp::now());
    assert!(hello(&forged).await.unwrap_err().contains("unknown to this server"));
    let alice = fleet.operator("alice", Role::Admin).await;
    let (forged, _) = made(&fleet, &alice, Timestamp::now());
    assert!(asks(forged).await.unwrap_err().contains("unknown to this server"));
    assert!(Operator::new("alice", Role::Admin).is_ok());
    fleet.stop().await;
}
