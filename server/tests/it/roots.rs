//! A root takes the place of another in steps; nobody is left behind without being named, and an end in the middle leaves
//! nothing half-made.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use fleetsock_proto::{
    audit::AuditQuestion,
    client::{AgentClient, CallError, ConnectError, OperatorClient, Target, enroll, renew_operator},
    host::HostSelector,
    identity::{Identity, Key, pin_of},
    join::{JoinString, Pin},
    root::{RootState, Stragglers},
    time::Timestamp,
    tls,
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
    welcomed_as("web1", identity).await
}

async fn welcomed_as(name: &str, identity: &Identity) -> Vec<Pin> {
    let roots = Speaker::welcomed(identity, name, 1).await.roots_der;
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
    assert!(matches!(&nothing, CallError::Invalid(text) if text.contains("no root is prepared")), "{nothing:?}");
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

/// Waits until the next step waits for these only.
async fn waiting_for(fleet: &Fleet) -> Vec<String> {
    let roots = fleet.local().await.list_roots().await.unwrap();
    let other = roots.into_iter().find(|root| root.state != RootState::Active).unwrap();
    assert_eq!(
        (other.behind.hosts as usize, other.behind.operators as usize),
        (other.behind.host_names.len(), other.behind.operator_names.len())
    );
    other.behind.host_names.into_iter().chain(other.behind.operator_names).collect()
}

/// The host's next certificate, used once.
async fn renewed(identity: &Identity) -> Identity {
    let key = Key::generate().unwrap();
    let answer = AgentClient::connect(identity).await.unwrap().renew(key.request_der().unwrap()).await.unwrap();
    let mut next = identity.renewed(answer.chain_der, key).unwrap();
    next.trust(&answer.roots_der).unwrap();
    Speaker::welcomed(&next, "web1", 1).await;
    next
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>) -> String {
    match outcome {
        Err(CallError::Invalid(text)) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_root_takes_the_place_of_another_and_who_would_be_stranded_is_named_and_protected() {
    let fleet = Fleet::start().await;
    let (web1, away) = (fleet.agent("web1").await, fleet.agent("away").await);
    Speaker::welcomed(&away, "away", 1).await;
    let alice = fleet.operator("alice", Role::Admin).await;
    let old = pins(&web1)[0];
    let mut local = fleet.local().await;
    let new = local.prepare_root().await.unwrap().pin;
    assert_eq!(waiting_for(&fleet).await, ["away", "web1", "alice"]);

    let web1 = renewed(&web1).await;
    let alice = renew_operator(&alice).await.unwrap();
    assert_eq!((pins(&web1), pins(&alice)), (vec![old, new], vec![old, new]));
    assert_eq!(waiting_for(&fleet).await, ["away"]);
    let text = refused(local.activate_root(Stragglers::Protect).await);
    assert!(text.starts_with("1 host (away) do not have the new root yet"), "{text}");
    let join_before: JoinString = fleet.join(1).await.parse().unwrap();
    let (active, stranded) = local.activate_root(Stragglers::Strand).await.unwrap();
    assert_eq!((active.pin, active.state, stranded.to_string()), (new, RootState::Active, "1 host (away)".to_owned()));
    assert_eq!(waiting_for(&fleet).await, ["away", "web1", "alice"]);

    // After a restart the server shows the new certificate, and those who have only the old root still trust it.
    let fleet = fleet.restart().await;
    assert_eq!(listed(&fleet).await, [(RootState::Active, new), (RootState::Retiring, old)]);
    assert_eq!(pins(&away), [old]);
    assert_eq!(welcomed_as("away", &away).await, [new, old]);
    let old_join = enroll(&join_before, "web3", Key::generate().unwrap()).await.unwrap();
    let new_join = fleet.agent("web4").await;
    assert_eq!((pins(&old_join), pins(&new_join)), (vec![new, old], vec![new, old]));
    assert_ne!(join_before.pin, fleet.join(1).await.parse::<JoinString>().unwrap().pin);

    let web1 = renewed(&web1).await;
    let mut local = fleet.local().await;
    let text = refused(local.retire_root(Stragglers::Protect).await);
    let start = "1 host (away) and 1 operator (alice) still have a certificate of the root before";
    assert!(text.starts_with(start), "{text}");
    assert!(refused(local.abort_root().await).contains("active already"));
    let alice = renew_operator(&alice).await.unwrap();
    let (dropped, stranded) = local.retire_root(Stragglers::Strand).await.unwrap();
    assert_eq!((dropped.pin, stranded.to_string()), (old, "1 host (away)".to_owned()));

    // Nothing of the old root is good any more, without a restart as well as after one.
    let stays_out = async |fleet: &Fleet| {
        let shaken = fleet.tls(&fleet.trust_domain().server_name(), tls::identified(&away).unwrap()).await;
        assert!(shaken.is_err(), "its root is not the server's any more");
        let error = enroll(&join_before, "web5", Key::generate().unwrap()).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error:?}");
        assert_eq!(listed(fleet).await, [(RootState::Active, new)]);
        assert_eq!(welcomed(&web1).await, [new]);
    };
    stays_out(&fleet).await;
    let fleet = fleet.restart().await;
    stays_out(&fleet).await;
    let mut alice = OperatorClient::connect(Target::Remote(Box::new(alice))).await.unwrap();
    let (rows, _) = alice.list_audit(AuditQuestion::default()).await.unwrap().collect().await.unwrap();
    let told: Vec<_> = rows
        .iter()
        .filter(|row| row.action.ends_with(" root"))
        .map(|row| (row.action.as_str(), row.detail.split_once("; ").map_or("", |(_, rest)| rest)))
        .collect();
    let strands = "strands 1 host (away)";
    assert_eq!(told, [("retire root", strands), ("activate root", strands), ("prepare root", "")]);
    fleet.stop().await;
}

#[tokio::test]
async fn an_operator_renews_only_what_is_older_than_the_roots_and_never_after_a_revocation() {
    let fleet = Fleet::start().await;
    let (alice, bob) = (fleet.operator("alice", Role::Viewer).await, fleet.operator("bob", Role::Viewer).await);
    let denied = async |identity: &Identity| match renew_operator(identity).await.unwrap_err() {
        ConnectError::Call(error) => error,
        other => panic!("{other:?}"),
    };
    assert!(matches!(denied(&alice).await, CallError::Invalid(text) if text.contains("need not be renewed")));
    fleet.local().await.prepare_root().await.unwrap();
    let watch = {
        let mut client = OperatorClient::connect(Target::Remote(Box::new(alice.duplicate().unwrap()))).await.unwrap();
        client.list_hosts(HostSelector::default()).await.unwrap();
        client.renewal_watch()
    };
    assert!(watch.asks_for(&alice));
    let next = renew_operator(&alice).await.unwrap();
    assert_eq!((next.spiffe_id.clone(), next.roots().len()), (alice.spiffe_id.clone(), 2));
    fleet.local().await.revoke_operator("bob", "left").await.unwrap();
    assert!(matches!(denied(&bob).await, CallError::Refused(_)));
    fleet.stop().await;
}

/// What a step leaves in a folder, whenever it was ended: the state before or after it, whole.
mod ends {
    use std::{
        io::{BufRead, BufReader, Write},
        process::{Command, Stdio},
        time::Duration,
    };

    use fleetsock_proto::spiffe::TrustDomain;
    use fleetsock_server::authority::Step;

    use super::*;

    const FOLDER: &str = "FLEETSOCK_EXCHANGED_FOLDER";
    /// The two ways through an exchange, again and again.
    const STEPS: [Step; 5] = [Step::Prepare, Step::Activate, Step::Retire, Step::Prepare, Step::Abort];

    fn trust_domain() -> TrustDomain {
        "fleetsock.internal".parse().unwrap()
    }

    fn load(folder: &Path) -> Authority {
        Authority::load(folder, &trust_domain(), now()).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// Which step comes next.
    fn next(authority: &Authority) -> Vec<Step> {
        let all = [Step::Prepare, Step::Activate, Step::Retire, Step::Abort];
        all.into_iter().filter(|step| authority.may(*step).is_ok()).collect()
    }

    #[test]
    #[ignore = "a process of its own, which the test below starts and kills"]
    fn steps_are_made_until_the_end() {
        let Some(folder) = std::env::var_os(FOLDER) else { return };
        let authority = load(Path::new(&folder));
        let mut out = std::io::stdout();
        loop {
            for step in STEPS {
                if authority.may(step).is_ok() {
                    let known = authority.turn(step, Timestamp::now, |_| Ok(())).unwrap();
                    writeln!(out, "made {step:?} {:?}", known.pin.as_bytes()).unwrap();
                    out.flush().unwrap();
                }
            }
        }
    }

    #[test]
    fn killed_at_any_moment_the_exchange_stands_before_or_after_a_step() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        Authority::create(&ca, &trust_domain(), now()).unwrap();
        let mut made = Vec::new();
        for round in 0..40_u64 {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "roots::ends::steps_are_made_until_the_end", "--ignored", "--nocapture"])
                .env(FOLDER, &ca)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let first = lines.find_map(|line| line.ok().filter(|line| line.starts_with("made "))).unwrap();
            // Another moment each time: a step takes some milliseconds.
            std::thread::sleep(Duration::from_micros(round * 7_300 % 150_000));
            child.kill().unwrap();
            child.wait().unwrap();
            let told = lines.map_while(Result::ok).filter(|line| line.starts_with("made ")).last().unwrap_or(first);
            let authority = load(&ca);
            // What was told is made; at most one step that was not told is made too.
            let (word, possible) = (told.split(' ').nth(1).unwrap().to_owned(), next(&authority));
            let expected: [&[Step]; 3] = match word.as_str() {
                "Prepare" => [&[Step::Activate, Step::Abort], &[Step::Prepare], &[Step::Retire]],
                "Activate" => [&[Step::Retire], &[Step::Prepare], &[]],
                "Retire" | "Abort" => [&[Step::Prepare], &[Step::Activate, Step::Abort], &[]],
                other => panic!("{other}"),
            };
            assert!(expected.contains(&possible.as_slice()), "after {word}: {possible:?}");
            // Nothing is left of what is not used, and a second look changes nothing.
            let roots = authority.roots();
            let of_roots = names(&ca).into_iter().filter(|name| name.starts_with("root")).count();
            assert_eq!(of_roots, roots.len(), "{:?}", names(&ca));
            assert_eq!(load(&ca).roots(), roots);
            made.push(word);
        }
        assert!(made.iter().any(|word| word == "Activate" || word == "Retire"), "{made:?}");
    }

    #[test]
    fn a_step_that_cannot_be_written_into_the_log_is_not_made() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        Authority::create(&ca, &trust_domain(), now()).unwrap();
        let authority = load(&ca);
        for step in [Step::Prepare, Step::Activate, Step::Retire] {
            let before = authority.roots();
            let error = authority.turn(step, Timestamp::now, |_| Err(HistoryError::Full)).unwrap_err();
            assert!(matches!(error, AuthorityError::Unrecorded(HistoryError::Full)), "{error}");
            assert_eq!((authority.roots(), load(&ca).roots()), (before.clone(), before));
            authority.turn(step, Timestamp::now, |_| Ok(())).unwrap();
        }
    }

    #[test]
    fn a_prepared_root_that_others_could_read_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca");
        Authority::create(&ca, &trust_domain(), now()).unwrap();
        load(&ca).turn(Step::Prepare, Timestamp::now, |_| Ok(())).unwrap();
        for name in names(&ca) {
            assert_eq!(fs::metadata(ca.join(&name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        fs::set_permissions(ca.join("root-2.pem"), fs::Permissions::from_mode(0o644)).unwrap();
        let error = Authority::load(&ca, &trust_domain(), now()).unwrap_err().to_string();
        assert!(error.contains("root-2.pem has mode"), "{error}");
    }
}
