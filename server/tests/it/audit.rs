//! The audit log: who did and asked what is in it, and whoever touches it is seen.

use std::collections::BTreeSet;

use fleetsock_proto::{
    audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict},
    client::{CallError, OperatorClient},
    host::HostSelector,
    question::{CoverageQuestion, PortQuestion, SessionQuestion},
    token::Role,
};
use rusqlite::Connection;

use crate::{fleet::Fleet, speaker};

async fn log(client: &mut OperatorClient, question: AuditQuestion) -> Vec<AuditRow> {
    client.list_audit(question).await.unwrap().collect().await.unwrap().0
}

async fn all(fleet: &Fleet) -> Vec<AuditRow> {
    log(&mut fleet.local().await, AuditQuestion::default()).await
}

fn of(actor: &str) -> AuditQuestion {
    AuditQuestion { actor: Some(actor.to_owned()), ..AuditQuestion::default() }
}

#[tokio::test]
async fn every_question_of_an_operator_is_there_with_who_from_where_what_and_how_many_rows() {
    let fleet = Fleet::start().await;
    fleet.agent("web1").await;
    fleet.agent("web2").await;
    let mut alice = fleet.connected("alice", Role::Admin).await;
    let hosts = |glob: &str| HostSelector { globs: vec![glob.to_owned()], ..HostSelector::default() };
    alice.list_hosts(hosts("web*")).await.unwrap().collect().await.unwrap();
    alice.list_hosts(hosts("web3")).await.unwrap().collect().await.unwrap_err();
    alice.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    alice
        .list_sessions(SessionQuestion { limit: Some(7), ..Default::default() })
        .await
        .unwrap()
        .collect()
        .await
        .unwrap();
    alice.list_coverage(CoverageQuestion::default()).await.unwrap().collect().await.unwrap();
    alice.list_tokens().await.unwrap();
    alice.list_operators().await.unwrap();
    alice.verify_audit(None).await.unwrap();
    log(&mut alice, of("alice")).await;

    let rows = log(&mut fleet.local().await, of("alice")).await;
    let told: Vec<(&str, &str, Option<u64>)> =
        rows.iter().rev().map(|row| (row.action.as_str(), row.detail.as_str(), row.rows)).collect();
    assert_eq!(
        told,
        [
            ("list hosts", "--host web*", Some(2)),
            ("list hosts", "--host web3 (failed: no host is called `web3`; did you mean `web1` or `web2`?)", Some(0)),
            ("list ports", "", Some(0)),
            ("list sessions", "--limit 7", Some(0)),
            ("list coverage", "", Some(0)),
            ("list tokens", "", Some(2)),
            ("list operators", "", Some(1)),
            ("verify audit", "whole", Some(told[7].2.unwrap())),
            ("list audit", "--actor alice", Some(8)),
        ]
    );
    for row in &rows {
        assert_eq!((row.actor.as_str(), row.address.as_str()), ("operator/admin/alice", "127.0.0.1"), "{row:?}");
    }
    let times: Vec<_> = rows.iter().map(|row| row.at).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older));
    fleet.stop().await;
}

#[tokio::test]
async fn every_order_is_there_and_the_log_is_whole() {
    let fleet = Fleet::start().await;
    fleet.agent("web1").await;
    let mut admin = fleet.local().await;
    let token = admin.list_tokens().await.unwrap()[0].token_id.clone();
    admin.revoke_token(&token).await.unwrap();
    fleet.operator("alice", Role::Viewer).await;
    admin.revoke_operator("alice", "left").await.unwrap();
    admin.approve_host("web1").await.unwrap();
    admin.revoke_host("web1", "stolen").await.unwrap();
    let rows = all(&fleet).await;
    let actions: Vec<&str> = rows.iter().rev().map(|row| row.action.as_str()).collect();
    assert_eq!(
        actions,
        [
            "create token",
            "enrol",
            "list tokens",
            "revoke token",
            "issue operator",
            "revoke operator",
            "approve host",
            "revoke host"
        ]
    );
    let enrolled = &rows[rows.len() - 2];
    assert!(enrolled.actor == format!("token/{token}") && enrolled.detail.ends_with(" web1"), "{enrolled:?}");
    assert_eq!(rows.iter().map(|row| row.number).collect::<Vec<_>>(), (1..=8).rev().collect::<Vec<_>>());
    let verdict = admin.verify_audit(None).await.unwrap();
    assert_eq!((verdict.last.number, verdict.touched), (9, None));
    // An order that did not take effect left no row.
    assert!(admin.revoke_host("web9", "").await.is_err());
    assert_eq!(
        log(&mut admin, AuditQuestion { action: Some("revoke host".to_owned()), ..Default::default() }).await.len(),
        1
    );
    fleet.stop().await;
}

#[tokio::test]
async fn the_log_is_filtered_by_time_actor_and_action_and_says_when_there_is_more() {
    let fleet = Fleet::start().await;
    let mut admin = fleet.local().await;
    for name in ["al", "alice", "bob"] {
        let mut client = fleet.connected(name, Role::Viewer).await;
        client.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
        client.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    }
    let count = async |admin: &mut OperatorClient, question: AuditQuestion| log(admin, question).await.len();
    assert_eq!(count(&mut admin, of("al")).await, 2, "not those of alice");
    assert_eq!(count(&mut admin, of("operator/viewer/bob")).await, 2);
    assert_eq!(count(&mut admin, of("ob")).await, 0);
    let action = |action: &str| AuditQuestion { action: Some(action.to_owned()), ..AuditQuestion::default() };
    assert_eq!(count(&mut admin, action("list ports")).await, 3);
    let middle = log(&mut admin, of("alice")).await[1].at;
    let since = log(&mut admin, AuditQuestion { since: Some(middle), ..action("list ports") }).await;
    assert_eq!(since.len(), 2);
    let until = log(&mut admin, AuditQuestion { until: Some(middle), ..action("list ports") }).await;
    assert_eq!(until.len(), 1);
    let question = AuditQuestion { limit: Some(2), ..action("list hosts") };
    let (rows, meta) = admin.list_audit(question).await.unwrap().collect().await.unwrap();
    assert_eq!((rows.len(), meta.truncated), (2, true));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_answer_is_in_the_log_before_its_first_row_leaves_and_again_when_it_is_given_up() {
    let fleet = Fleet::start().await;
    let host = fleet.agent("web1").await;
    let mut speaker = speaker::Speaker::welcomed(&host, "web1", 1).await;
    speaker::fill(&mut speaker, 12, 4000).await;
    let mut alice = fleet.connected("alice", Role::Viewer).await;
    let mut answer = alice.list_ports(PortQuestion::default()).await.unwrap();
    assert!(answer.next().await.unwrap().is_some());
    let begun = log(&mut fleet.local().await, of("alice")).await;
    assert_eq!((begun.len(), begun[0].rows), (1, None), "{begun:?}");
    drop((answer, alice));
    let ended = loop {
        let rows = log(&mut fleet.local().await, of("alice")).await;
        if rows.len() == 2 {
            break rows[0].clone();
        }
    };
    assert!(ended.detail.contains("given up by the asker"), "{ended:?}");
    assert!((256..48_000).contains(&ended.rows.unwrap()), "{ended:?}");

    let mut bob = fleet.connected("bob", Role::Viewer).await;
    let (rows, _) = bob.list_ports(PortQuestion::default()).await.unwrap().collect().await.unwrap();
    let told = log(&mut fleet.local().await, of("bob")).await;
    assert_eq!((rows.len(), told.len(), told[0].rows), (48_000, 2, Some(48_000)));
    drop(speaker);
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_reader_does_not_read_on_ends_with_the_time_of_a_question() {
    let fleet = Fleet::start_with(|config| config.limits.question = std::time::Duration::from_secs(1)).await;
    let host = fleet.agent("web1").await;
    let mut speaker = speaker::Speaker::welcomed(&host, "web1", 1).await;
    speaker::fill(&mut speaker, 12, 4000).await;
    let mut alice = fleet.connected("alice", Role::Viewer).await;
    let mut answer = alice.list_ports(PortQuestion::default()).await.unwrap();
    assert!(answer.next().await.unwrap().is_some());
    let ended = loop {
        let rows = log(&mut fleet.local().await, of("alice")).await;
        if rows.len() == 2 {
            break rows[0].clone();
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    assert!(ended.detail.contains("failed: the question took longer than 1 s"), "{ended:?}");
    drop((answer, speaker));
    fleet.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_who_ask_at_once_are_each_in_the_log_once() {
    let fleet = Fleet::start().await;
    let mut asking = tokio::task::JoinSet::new();
    for number in 0..20 {
        let mut client = fleet.connected(&format!("op{number}"), Role::Viewer).await;
        asking.spawn(async move {
            for _ in 0..10 {
                client.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
            }
        });
    }
    asking.join_all().await;
    let rows = all(&fleet).await;
    for number in 0..20 {
        let actor = format!("operator/viewer/op{number}");
        assert_eq!(rows.iter().filter(|row| row.actor == actor).count(), 10, "{actor}");
    }
    let verdict = fleet.local().await.verify_audit(None).await.unwrap();
    assert_eq!(verdict.touched, None);
    fleet.stop().await;
}

/// A fleet whose log has some rows.
async fn with_rows() -> Fleet {
    let fleet = Fleet::start().await;
    let mut admin = fleet.local().await;
    for _ in 0..9 {
        admin.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    }
    fleet
}

/// Changes the log behind the server's back and lets it verify.
async fn touched(sql: &str) -> AuditVerdict {
    let fleet = with_rows().await;
    let mut admin = fleet.local().await;
    assert_eq!(admin.verify_audit(None).await.unwrap().touched, None);
    let main = Connection::open(fleet.config.history.join("main.db")).unwrap();
    main.execute_batch(sql).unwrap();
    let verdict = admin.verify_audit(None).await.unwrap();
    fleet.stop().await;
    verdict
}

#[tokio::test]
async fn an_edited_a_deleted_and_an_inserted_row_are_each_named() {
    let copy = "INSERT INTO audit (id, at_us, actor, address, action, detail, answer_rows, hash)
                SELECT {id}, at_us, 'operator/viewer/mallory', address, action, detail, answer_rows, hash FROM audit
                WHERE id = 3;";
    for (what, sql, row, words) in [
        (
            "another actor",
            "UPDATE audit SET actor = 'operator/viewer/mallory' WHERE id = 4".to_owned(),
            4,
            "do not fit",
        ),
        ("another time", "UPDATE audit SET at_us = at_us + 1 WHERE id = 1".to_owned(), 1, "do not fit"),
        ("fewer rows", "UPDATE audit SET answer_rows = NULL WHERE id = 9".to_owned(), 9, "do not fit"),
        ("another hash", "UPDATE audit SET hash = zeroblob(32) WHERE id = 5".to_owned(), 5, "do not fit"),
        ("no hash", "UPDATE audit SET hash = x'00' WHERE id = 5".to_owned(), 5, "do not fit"),
        ("deleted", "DELETE FROM audit WHERE id = 6".to_owned(), 6, "it is missing; after row 5 comes row 7"),
        ("the first deleted", "DELETE FROM audit WHERE id = 1".to_owned(), 1, "it is missing"),
        // The tenth row is the server's own word on the first verify.
        ("the end deleted", "DELETE FROM audit WHERE id >= 8".to_owned(), 8, "it is missing, and all after it"),
        ("all deleted", "DELETE FROM audit".to_owned(), 1, "it is missing"),
        ("inserted at the end", copy.replace("{id}", "11"), 11, "it was not written by the server"),
        ("inserted before the first", copy.replace("{id}", "0"), 1, "after row 0 comes row 0"),
        (
            "inserted in the middle",
            format!(
                "UPDATE audit SET id = id + 1000 WHERE id >= 4; {} UPDATE audit SET id = id - 999 WHERE id > 1000;
                 UPDATE audit_head SET last = last + 1",
                copy.replace("{id}", "4")
            ),
            4,
            "do not fit",
        ),
        ("the head set back", "UPDATE audit_head SET last = 3".to_owned(), 4, "it was not written by the server"),
        ("the head's hash", "UPDATE audit_head SET hash = zeroblob(32)".to_owned(), 10, "its hash is not the one"),
    ] {
        let verdict = touched(sql.trim()).await;
        let (number, problem) = verdict.touched.unwrap_or_else(|| panic!("{what}: nothing was noticed"));
        assert_eq!(number, row, "{what}: {problem}");
        assert!(problem.contains(words), "{what}: {problem}");
    }
}

#[tokio::test]
async fn a_row_that_was_edited_with_its_hash_is_found_by_the_one_that_follows() {
    let fleet = with_rows().await;
    let rows = all(&fleet).await;
    let (before, mut row) = (rows[rows.len() - 3].clone(), rows[rows.len() - 4].clone());
    row.detail = "something else".to_owned();
    let hash = row.follows(&before.hash);
    let main = Connection::open(fleet.config.history.join("main.db")).unwrap();
    let changed = rusqlite::params![row.detail, hash, row.number.cast_signed()];
    main.execute("UPDATE audit SET detail = ?1, hash = ?2 WHERE id = ?3", changed).unwrap();
    let (number, problem) = fleet.local().await.verify_audit(None).await.unwrap().touched.unwrap();
    assert_eq!(number, row.number + 1);
    assert!(problem.contains(&format!("does not follow from row {}", row.number)), "{problem}");
    fleet.stop().await;
}

#[tokio::test]
async fn a_log_that_was_written_anew_is_found_by_the_mark_of_an_earlier_reading() {
    let fleet = with_rows().await;
    let mut admin = fleet.local().await;
    let mark = admin.verify_audit(None).await.unwrap().last;
    assert_eq!(admin.verify_audit(Some(mark)).await.unwrap().touched, None);
    // Whoever can write the file and knows how can make every row follow again, and the head too.
    let main = Connection::open(fleet.config.history.join("main.db")).unwrap();
    let mut rows = all(&fleet).await;
    rows.reverse();
    rows[2].detail = "something else".to_owned();
    let mut before = [0; 32];
    for row in &rows {
        before = row.follows(&before);
        let changed = rusqlite::params![row.detail, before, row.number.cast_signed()];
        main.execute("UPDATE audit SET detail = ?1, hash = ?2 WHERE id = ?3", changed).unwrap();
    }
    let last = rows.last().unwrap().number.cast_signed();
    main.execute("DELETE FROM audit WHERE id > ?1", [last]).unwrap();
    main.execute("UPDATE audit_head SET last = ?1, hash = ?2", rusqlite::params![last, before]).unwrap();
    assert_eq!(admin.verify_audit(None).await.unwrap().touched, None, "nothing in the file tells of it");
    let (number, problem) = admin.verify_audit(Some(mark)).await.unwrap().touched.unwrap();
    assert!(number == mark.number && problem.contains("written anew"), "{number}: {problem}");
    let beyond = AuditMark { number: 10_000, ..mark };
    assert_eq!(admin.verify_audit(Some(beyond)).await.unwrap().touched.unwrap().0, 10_000);
    fleet.stop().await;
}

#[tokio::test]
async fn a_question_that_cannot_be_recorded_is_not_answered() {
    let fleet = Fleet::start().await;
    let mut alice = fleet.connected("alice", Role::Viewer).await;
    let main = Connection::open(fleet.config.history.join("main.db")).unwrap();
    main.execute_batch("CREATE TRIGGER broken BEFORE INSERT ON audit BEGIN SELECT raise(ABORT, 'no'); END").unwrap();
    let error = alice.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap_err();
    assert!(matches!(&error, CallError::Unavailable(text) if text.contains("audit log")), "{error:?}");
    main.execute_batch("DROP TRIGGER broken").unwrap();
    alice.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap();
    let actions: BTreeSet<String> = all(&fleet).await.into_iter().map(|row| row.action).collect();
    assert!(actions.contains("list hosts"));
    fleet.stop().await;
}
