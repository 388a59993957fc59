//! A server that was restored from a backup, and the same agent goes on: with a certificate that the backup does not know.

use std::{fs, net::TcpListener, path::PathBuf};

use fleetsock_proto::{
    audit::AuditQuestion,
    backup::{BackupContent, BackupStep},
    client::AgentClient,
    identity::Key,
    time::Timestamp,
};
use fleetsock_server::{backup::restoring::restore, history::sqlite::Carried};

use super::fleet::{Agent, Fleet, eager, identity, until};

/// What becomes of the history that a restore finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum There {
    Kept,
    Lost,
}

fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

async fn appears(fleet: &Fleet, port: u16) {
    until("a listener appears", async || fleet.listener(port).await.map(drop)).await;
}

async fn backup(fleet: &Fleet) -> PathBuf {
    let mut local = fleet.local().await;
    let mut backup = local.backup(&"older".parse().unwrap(), BackupContent::History).await.unwrap();
    loop {
        if let BackupStep::Made(made) = backup.next().await.unwrap() {
            return PathBuf::from(made.folder);
        }
    }
}

async fn actions(fleet: &Fleet) -> Vec<String> {
    let question = AuditQuestion::default();
    let (rows, _) = fleet.local().await.list_audit(question).await.unwrap().collect().await.unwrap();
    rows.into_iter().map(|row| row.action).collect()
}

async fn check(there: There) {
    let mut fleet = Fleet::start().await;
    let state = fleet.enrol("web1").await;
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let (_before, port) = listen();
    appears(&fleet, port).await;
    let taken = backup(&fleet).await;
    agent.stop().await;
    let first = identity(&state);

    // Renewed after the backup, and used; what is observed now will be forgotten.
    let key = Key::generate().unwrap();
    let chain = AgentClient::connect(&first).await.unwrap().renew(key.request_der().unwrap()).await.unwrap();
    first.renewed(chain.chain_der, key).unwrap().store(&state).unwrap();
    let agent = Agent::start(&state, eager("web1"), Timestamp::now);
    let (_forgotten, forgotten) = listen();
    appears(&fleet, forgotten).await;
    let unknown = Timestamp::now();

    fleet.stop().await;
    let (_held, held) = listen();
    let server = fleet.server_state();
    if there == There::Lost {
        fs::remove_dir_all(server.join("history")).unwrap();
    }
    let restored = restore(&taken, &server, Timestamp::now(), &|_, _, _| {}).unwrap();
    let expected = Carried::Over { hosts_revoked: 0, operators_revoked: 0 };
    assert_eq!(restored.carried, if there == There::Lost { Carried::Nothing } else { expected });
    fleet.come_back().await;

    for port in [port, forgotten, held] {
        appears(&fleet, port).await;
    }
    until("what the server forgot is a gap", async || {
        fleet.gaps().await.into_iter().find(|gap| gap.since <= unknown && gap.until.is_some_and(|end| end >= unknown))
    })
    .await;
    let host = fleet.host().await.unwrap();
    let told = actions(&fleet).await;
    assert!(told.contains(&"restore".to_owned()), "{told:?}");
    let adopted = told.contains(&"adopt certificate".to_owned());
    assert_eq!(adopted, there == There::Lost, "{told:?}");
    let warning = host.warning.map(|warning| warning.text).unwrap_or_default();
    assert_eq!(warning.contains("made after the backup that was restored"), there == There::Lost, "{warning}");
    // The one before it is not good any more.
    let mut old = AgentClient::connect(&first).await.unwrap();
    let refused = old.renew(Key::generate().unwrap().request_der().unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("replaced by a newer one"), "{refused}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_renewed_after_the_backup_goes_on_when_the_history_that_was_there_knows_it() {
    check(There::Kept).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_renewed_after_the_backup_goes_on_when_nobody_knows_it_and_that_is_told() {
    check(There::Lost).await;
}
