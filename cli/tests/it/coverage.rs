//! The timeline of observation of real hosts: what fleetctl draws and lists of it.

use serde_json::Value;

use crate::{fleet::Fleet, network::until};

/// Cover and reason of each period, in order.
fn told(periods: &[Value]) -> Vec<(String, String)> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    periods.iter().map(|period| (word(&period["cover"]), word(&period["reason"]))).collect()
}

fn is_without_holes(periods: &[Value]) -> bool {
    periods.windows(2).all(|pair| pair[0]["until"] == pair[1]["since"])
}

fn reasons(fleet: &Fleet, question: &[&str]) -> Vec<String> {
    let (_, meta) = fleet.items(question);
    let gaps = meta["gaps"].as_array().unwrap();
    gaps.iter().map(|gap| gap["reason"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_timeline_of_a_host_shows_when_nobody_looked_and_why_and_every_answer_names_it() {
    let Some(mut fleet) = Fleet::start(&["server", "web1", "db1"]) else { return };
    let coverage = ["hosts", "web1", "--coverage", "--since", "10m"];
    let (periods, _) = fleet.items(&coverage);
    let before = ("not-observed".to_owned(), "not-yet-observed".to_owned());
    let observed = ("observed".to_owned(), String::new());
    assert_eq!(told(&periods), [before.clone(), observed.clone()], "{periods:?}");

    // The server away: the agent tells of that time afterwards.
    fleet.stop_server();
    let seen = |fleet: &Fleet| fleet.items(&["hosts", "web1"]).0[0]["last_seen_at"].as_str().unwrap().to_owned();
    fleet.serve();
    let before_it = seen(&fleet);
    until("it is heard again", || (seen(&fleet) > before_it).then_some(()));
    until("nothing is missing", || {
        let (periods, _) = fleet.items(&coverage);
        (told(&periods) == [before.clone(), observed.clone()]).then_some(())
    });

    // Silent: not told yet, so not observed as far as is known.
    fleet.stop_agent("web1");
    let silent = ("not-observed".to_owned(), "not-reported".to_owned());
    let (periods, _) = until("it is silent for too long", || {
        let (periods, meta) = fleet.items(&coverage);
        (told(&periods).last() == Some(&silent)).then_some((periods, meta))
    });
    assert_eq!(told(&periods), [before.clone(), observed.clone(), silent], "{periods:?}");
    for question in [&["sessions", "--since", "10m"][..], &["changes", "--since", "10m"]] {
        assert!(reasons(&fleet, question).contains(&"not-reported".to_owned()), "{question:?}");
        let ran = fleet.ask(question);
        assert!(ran.err.contains("web1 since") && ran.err.contains("(not-reported)"), "{ran:?}");
    }
    let now = reasons(&fleet, &["ports"]);
    assert!(!now.contains(&"not-reported".to_owned()), "of now the line says that it is stale: {now:?}");

    fleet.report("web1");
    let down = ("not-observed".to_owned(), "agent-down".to_owned());
    until("it says why it was silent", || {
        let (periods, _) = fleet.items(&coverage);
        (told(&periods) == [before.clone(), observed.clone(), down.clone(), observed.clone()]).then_some(())
    });

    let drawn = fleet.ask(&["hosts", "--coverage", "--since", "2m"]);
    let lines: Vec<&str> = drawn.out.lines().collect();
    assert!(lines[0].starts_with("db1   ") && lines[1].starts_with("web1  "), "{}", drawn.out);
    assert!(lines[0].ends_with('█') && lines[1].contains('█') && lines[1].contains('·'), "{}", drawn.out);
    assert_eq!(lines[1].chars().count(), "web1  ".len() + 72, "{}", drawn.out);
    assert!(drawn.out.contains("HOST") && drawn.out.contains("agent-down"), "{}", drawn.out);
    assert!(drawn.err.contains("· not-observed") && drawn.err.contains("as of "), "{}", drawn.err);

    // Revoked: its history stays, and nothing comes after it.
    let revoked = fleet.ask(&["hosts", "revoke", "web1", "--reason", "test"]);
    assert_eq!(revoked.code, 0, "{revoked:?}");
    let (periods, meta) = until("the revocation is told", || {
        let (periods, meta) = fleet.items(&coverage);
        (told(&periods).last()?.1 == "revoked").then_some((periods, meta))
    });
    assert!(is_without_holes(&periods), "{periods:?}");
    assert!(meta["gaps"].as_array().unwrap().iter().any(|gap| gap["reason"] == "revoked"), "{meta}");
    assert!(reasons(&fleet, &["sessions", "--since", "10m"]).contains(&"revoked".to_owned()));

    let csv = fleet.ask(&["hosts", "db1", "--coverage", "--since", "10m", "-o", "csv"]);
    assert!(csv.out.starts_with("host,host_id,since,until,cover,reason,duration_ms,batches_lost\ndb1,"), "{}", csv.out);
    let partial = fleet.ask(&["hosts", "web1", "--coverage", "--since", "10m", "--fail-on-stale"]);
    assert_eq!(partial.code, 3, "{partial:?}");
    let unknown = fleet.ask(&["hosts", "web2", "--coverage"]);
    assert!(unknown.code == 6 && unknown.err.contains("web1"), "{unknown:?}");
}
