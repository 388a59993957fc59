//! The next root is prepared beside the one in use, handed out, and dropped; an end in between leaves nothing half-made.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use fleetsock_proto::{
    audit::AuditQuestion,
    client::{AgentClient, CallError, enroll},
    identity::{Identity, Key, pin_of},
    join::Pin,
    root::RootState,
    token::Role,
};
use fleetsock_server::{
    authority::{Authority, AuthorityError},
    history::HistoryError,
};

use crate::{fleet::Fleet, now, speaker::Speaker};

fn pins(identity: &Identity) -> Vec<Pin> {
    identity.roots().iter().map(|root| pin_of(root).unwrap()).collect()
}

/// The roots that a host is given when it connects.
async fn welcomed(identity: &Identity) -> Vec<Pin> {
    let roots = Speaker::welcomed(identity, "web1", 1).await.roots_der;
    roots.iter().map(|root| pin_of(root).unwrap()).collect()
}

async fn listed(fleet: &Fleet) -> Vec<(RootState, Pin)> {
    let roots = fleet.local().await.list_roots().await.unwrap();
    roots.into_iter().map(|root| (root.state, root.pin)).collect()
}

#[tokio::test]
async fn a_prepared_root_is_handed_out_in_every_way_survives_a_restart_and_is_dropped_again() {
    let fleet = Fleet::start().await;
    let host = fleet.agent("web1").await;
    let active = pins(&host)[0];
    assert_eq!(listed(&fleet).await, [(RootState::Active, active)]);
    assert_eq!(welcomed(&host).await, [active]);

    let mut admin = fleet.connected("root", Role::Admin).await;
    let prepared = admin.prepare_root().await.unwrap();
    assert_eq!(prepared.state, RootState::Prepared);
    assert_ne!(prepared.pin, active);
    let again = admin.prepare_root().await.unwrap_err();
    assert!(matches!(&again, CallError::Invalid(text) if text.contains("prepared already")), "{again:?}");
    drop(admin);

    let fleet = fleet.restart().await;
    let both = [active, prepared.pin];
    assert_eq!(listed(&fleet).await, [(RootState::Active, active), (RootState::Prepared, prepared.pin)]);
    assert_eq!(welcomed(&host).await, both);
    let mut agent = AgentClient::connect(&host).await.unwrap();
    let key = Key::generate().unwrap();
    let renewed = agent.renew(key.request_der().unwrap()).await.unwrap();
    let mut next = host.renewed(renewed.chain_der, key).unwrap();
    assert!(next.trust(&renewed.roots_der).unwrap());
    assert_eq!(pins(&next), both);
    // With both it still reaches the server, which shows the one in use; and the join string names that one.
    assert_eq!(welcomed(&next).await, both);
    let newcomer = enroll(&fleet.join(1).await.parse().unwrap(), "web2", Key::generate().unwrap()).await.unwrap();
    assert_eq!(pins(&newcomer), both);
    assert_eq!(pins(&fleet.operator("alice", Role::Viewer).await), both);

    let dropped = fleet.local().await.abort_root().await.unwrap();
    assert_eq!(dropped.pin, prepared.pin);
    assert_eq!(welcomed(&next).await, [active]);
    let nothing = fleet.local().await.abort_root().await.unwrap_err();
    assert!(matches!(&nothing, CallError::Invalid(text) if text == "no root is prepared"), "{nothing:?}");
    let fleet = fleet.restart().await;
    assert_eq!(listed(&fleet).await, [(RootState::Active, active)]);

    let pin: String = prepared.pin.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    let rows = fleet.local().await.list_audit(AuditQuestion::default()).await.unwrap().collect().await.unwrap().0;
    let told: Vec<_> = rows
        .iter()
        .filter(|row| row.action.ends_with(" root"))
        .map(|row| (row.actor.as_str(), row.action.as_str(), row.detail == pin))
        .collect();
    // Newest first; refused orders are not in it.
    assert_eq!(told, [("local", "abort root", true), ("operator/admin/root", "prepare root", true)]);
    fleet.stop().await;
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_an_end_in_the_middle_leaves_is_not_used_and_is_gone_at_the_next_start() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let trust_domain = "fleetsock.internal".parse().unwrap();
    Authority::create(&ca, &trust_domain, now()).unwrap();
    let load = || Authority::load(&ca, &trust_domain, now()).unwrap();
    let authority = load();
    let clean = names(&ca);

    // The order is not in the log: the root is whole on disk, and is none.
    let unrecorded = authority.prepare(now(), |_| Err(HistoryError::Full)).unwrap_err();
    assert!(matches!(unrecorded, AuthorityError::Unrecorded(HistoryError::Full)), "{unrecorded}");
    assert!(names(&ca).contains(&"prepared.making".to_owned()));
    assert_eq!(authority.prepared(), None);
    assert_eq!(load().prepared(), None);
    assert_eq!(names(&ca), clean);

    // Ended while the files were written: any part of them.
    for files in [&[][..], &["agents.pem"], &["agents.pem", "operators.pem", "servers.partial"]] {
        let making = ca.join("prepared.making");
        fleetsock_proto::private::make_folder(&making).unwrap();
        for file in files {
            fs::write(making.join(file), "-----BEGIN").unwrap();
        }
        assert_eq!(load().prepared(), None);
        assert_eq!(names(&ca), clean);
    }

    let prepared = load().prepare(now(), |_| Ok(())).unwrap();
    assert_eq!(load().prepared(), Some(prepared.clone()));
    let place = ca.join("prepared");
    assert_eq!(fs::metadata(&place).unwrap().permissions().mode() & 0o777, 0o700);
    for file in names(&place) {
        assert_eq!(fs::metadata(place.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
    }

    // Refused by the log, it stays; ended while the files were removed, it does not come back.
    let authority = load();
    authority.abort(|_| Err(HistoryError::Full)).unwrap_err();
    assert_eq!(load().prepared(), Some(prepared));
    fs::rename(&place, ca.join("prepared.dropping")).unwrap();
    fs::remove_file(ca.join("prepared.dropping/root.pem")).unwrap();
    assert_eq!(load().prepared(), None);
    assert_eq!(names(&ca), clean);
}

#[test]
fn a_prepared_root_that_others_could_read_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca");
    let trust_domain = "fleetsock.internal".parse().unwrap();
    Authority::create(&ca, &trust_domain, now()).unwrap();
    Authority::load(&ca, &trust_domain, now()).unwrap().prepare(now(), |_| Ok(())).unwrap();
    let file = ca.join("prepared/root.pem");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let error = Authority::load(&ca, &trust_domain, now()).unwrap_err().to_string();
    assert!(error.contains("prepared/root.pem has mode"), "{error}");
}
