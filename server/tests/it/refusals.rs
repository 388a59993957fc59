//! Calls of operators that are refused are in the audit log, and nobody fills it with them.

use fleetsock_proto::{
    audit::{AuditQuestion, AuditRow},
    client::CallError,
    host::HostSelector,
    spiffe::Subject,
    tls,
    token::Role,
};

use crate::{
    access::{anonymous, call},
    fleet::Fleet,
};

const BACKUP: &str = "/fleetsock.v1.Admin/Backup";
const LIST_HOSTS: &str = "/fleetsock.v1.Inventory/ListHosts";
/// Rows of one caller within a minute.
const CALLER_ROWS: usize = 10;

/// The refused calls in the log, the first one first.
async fn refused(fleet: &Fleet) -> Vec<AuditRow> {
    let question = AuditQuestion { action: Some("refused call".to_owned()), ..AuditQuestion::default() };
    let mut rows = fleet.local().await.list_audit(question).await.unwrap().collect().await.unwrap().0;
    rows.reverse();
    rows
}

#[tokio::test]
async fn a_call_of_operators_that_was_refused_is_there_with_who_from_where_what_and_why() {
    let fleet = Fleet::start().await;
    let (server, enroll) = (fleet.trust_domain().server_name(), fleet.trust_domain().enroll_name());
    let agent = fleet.agent("web1").await;
    // Without the role.
    let mut viewer = fleet.connected("watch", Role::Viewer).await;
    let error = viewer.revoke_host("web1", "").await.unwrap_err();
    assert!(matches!(error, CallError::Denied(_)), "{error:?}");
    // Revoked.
    let mut alice = fleet.connected("alice", Role::Admin).await;
    fleet.local().await.revoke_operator("alice", "left").await.unwrap();
    alice.list_hosts(HostSelector::default()).await.map(drop).unwrap_err();
    // Not an operator, and nobody.
    call(&fleet, tls::identified(&agent).unwrap(), &server, BACKUP).await.unwrap_err();
    call(&fleet, anonymous(&fleet), &enroll, LIST_HOSTS).await.unwrap_err();
    // What no operator may call either.
    call(&fleet, anonymous(&fleet), &enroll, "/fleetsock.v1.Agent/Session").await.unwrap_err();

    let Subject::Agent(host) = &agent.spiffe_id.subject else { panic!("{agent:?}") };
    let agent = format!("agent/{host}");
    let rows = refused(&fleet).await;
    let told: Vec<(&str, &str)> = rows.iter().map(|row| (row.actor.as_str(), row.detail.as_str())).collect();
    assert_eq!(
        told,
        [
            (
                "operator/viewer/watch",
                "Admin/RevokeHost: operator/viewer/watch may only ask; this takes the role admin"
            ),
            ("operator/admin/alice", "Inventory/ListHosts: revoked"),
            (agent.as_str(), &format!("Admin/Backup: {agent} may not call {BACKUP}")),
            ("anonymous", &format!("Inventory/ListHosts: anonymous may not call {LIST_HOSTS}")),
        ]
    );
    assert!(rows.iter().all(|row| row.address == "127.0.0.1" && row.rows.is_none()), "{rows:?}");
    assert_eq!(fleet.local().await.verify_audit(None).await.unwrap().touched, None);
    fleet.stop().await;
}

#[tokio::test]
async fn one_caller_gets_a_few_rows_and_what_was_left_out_is_a_number() {
    const CALLS: usize = 200;
    let fleet = Fleet::start().await;
    let (mut viewer, mut other) =
        (fleet.connected("watch", Role::Viewer).await, fleet.connected("other", Role::Viewer).await);
    for _ in 0..CALLS {
        viewer.revoke_host("web1", "").await.unwrap_err();
    }
    other.revoke_host("web1", "").await.unwrap_err();
    drop((viewer, other));
    // What was left out is told at the end of the minute, or of the server.
    let fleet = fleet.restart().await;
    let rows = refused(&fleet).await;
    let (numbers, listed): (Vec<_>, Vec<_>) = rows
        .iter()
        .filter(|row| row.actor == "operator/viewer/watch")
        .map(|row| row.detail.as_str())
        .partition(|detail| detail.ends_with(" more within a minute are not listed"));
    let left_out: usize = numbers.iter().map(|told| told.split(' ').next().unwrap().parse::<usize>().unwrap()).sum();
    // A slow machine may need another minute.
    assert!((CALLER_ROWS..CALLS / 2).contains(&listed.len()) && !numbers.is_empty(), "{rows:?}");
    assert_eq!(listed.len() + left_out, CALLS);
    assert_eq!(rows.iter().filter(|row| row.actor == "operator/viewer/other").count(), 1, "others are not left out");
    assert_eq!(fleet.local().await.verify_audit(None).await.unwrap().touched, None);
    fleet.stop().await;
}
