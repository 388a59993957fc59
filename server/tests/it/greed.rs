//! What a peer can make the server keep is bounded, whatever it sends: `tests/attacks/greed.py`, against the real program.
//!
//! Pages of the database are not counted as a peer's: their caches have a size of their own that an honest day fills as
//! well, and the attacks store less than would fill them.

use serde_json::Value;

use crate::victim::{Victim, beside_an_honest_agent, tell};

/// What an enrolled agent may cost the server, KiB.
const OF_AN_AGENT: u64 = 64 * 1024;
/// What somebody without a certificate may cost it, KiB.
const OF_NOBODY: u64 = 32 * 1024;

/// Runs attacks one after the other, each beside an honest agent; what they told, and what all of them cost, KiB.
async fn attacked(victim: &Victim, attacks: &[&str]) -> (Vec<Value>, u64) {
    let (before, mut cost, mut outcomes) = (victim.memory().1, 0, Vec::new());
    for attack in attacks {
        let (told, took) = beside_an_honest_agent(victim, "greed.py", attack).await;
        cost = victim.memory().0.saturating_sub(before);
        crate::tell(&format!("{attack}: {told}"));
        tell(attack, took, cost);
        outcomes.push(told);
    }
    (outcomes, cost)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_agent_costs_at_most_64_mib_and_an_honest_one_is_heard_meanwhile() {
    let Some(victim) = Victim::start().await else { return };
    let (told, cost) = attacked(&victim, &["programs", "rows", "deaf", "crumbs", "epochs"]).await;
    let [programs, rows, deaf, crumbs, epochs] = told.as_slice() else { panic!() };
    // INVALID_ARGUMENT, in words; the messages before and after are answered by an acknowledgement and a credit each.
    assert_eq!(programs["eighty megabytes"]["status"], 3, "{programs}");
    assert_eq!(programs["one after the other"]["answers"], 1 + 2 * 12, "{programs}");
    assert_eq!((&rows["one after the other"]["answers"], &rows["one too many"]["status"]), (&41.into(), &3.into()));
    assert_eq!(epochs["epochs"]["answers"], 1 + 2 * 300, "{epochs}");
    let hellos = epochs["statuses"].as_object().unwrap();
    // RESOURCE_EXHAUSTED: a stream a second, and a few at once.
    assert!(hellos["8"] == 1 && hellos["welcome"].as_u64().unwrap() > 20, "{epochs}");
    assert!(deaf["sent"].as_u64().unwrap() < 20_000, "it was not listened to for ever: {deaf}");
    assert!(crumbs["connections"].as_u64().unwrap() <= 4 && crumbs["welcome"] == 1, "{crumbs}");
    assert!(cost <= OF_AN_AGENT, "{cost} KiB");
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_without_a_certificate_costs_at_most_32_mib_and_an_agent_is_heard_meanwhile() {
    let Some(victim) = Victim::start().await else { return };
    let (told, cost) = attacked(&victim, &["half", "silent", "newcomers", "tokens"]).await;
    let [half, silent, newcomers, tokens] = told.as_slice() else { panic!() };
    for held in [half, silent] {
        assert!(held["held"].as_u64().unwrap() > 300 && held["after"].is_number(), "all were closed: {held}");
    }
    assert!(newcomers["held"].as_u64().unwrap() <= 128 && newcomers["refused"].as_u64().unwrap() > 0, "{newcomers}");
    // PERMISSION_DENIED for what is heard, RESOURCE_EXHAUSTED for the rest.
    let statuses: Vec<&String> = tokens.as_object().unwrap().keys().collect();
    assert!(statuses.iter().all(|status| ["7", "8"].contains(&status.as_str())), "{tokens}");
    assert!(cost <= OF_NOBODY, "{cost} KiB");
    victim.stop();
}
