//! Attacks by a client that shares no code with the server: `tests/attacks/attack.py`, against the real program.

use fleetsock_proto::host::HostSelector;
use serde_json::Value;

use crate::victim::{Victim, beside_an_honest_agent, tell};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_names_speak_tls_1_3_and_nothing_older() {
    let Some(victim) = Victim::start().await else { return };
    let told = victim.attack("attack.py", "versions").await;
    for name in ["server", "enroll"] {
        let (old, new) = (&told[name]["1.2"], &told[name]["1.3"]);
        assert!(text(&old["handshake"]).contains("version"), "{name}: {old}");
        assert_eq!(new["version"], "TLSv1.3", "{name}: {new}");
        assert!(
            text(&new["cipher"]).starts_with("tls_aes_") || text(&new["cipher"]).starts_with("tls_chacha20"),
            "{new}"
        );
        assert_eq!((new["ticket"].as_bool(), new["reused"].as_bool()), (Some(false), Some(false)), "{name}: {new}");
    }
    assert_eq!(told["server"]["1.3"]["status"], 0);
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_a_foreign_ca_and_no_certificate_get_nowhere() {
    let Some(victim) = Victim::start().await else { return };
    let told = victim.attack("attack.py", "names").await;
    assert!(told["other name"]["handshake"].is_string(), "{told}");
    for (what, words) in [("no certificate", "certificate required"), ("foreign certificate", "unknown ca")] {
        assert!(told[what]["status"].is_null(), "{what}: {told}");
        assert!(text(&told[what]["over"]).contains(words), "{what}: {told}");
    }
    assert!(text(&told["foreign root"]["handshake"]).contains("certificate verify failed"), "{told}");
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_session_is_resumed_and_a_revoked_agent_does_not_slip_in_by_one() {
    let Some(victim) = Victim::start().await else { return };
    let told = victim.attack("attack.py", "resume").await;
    assert_eq!((told["ticket"].as_bool(), told["again"]["reused"].as_bool()), (Some(false), Some(false)), "{told}");
    victim.local().await.revoke_host("hostile", "").await.unwrap();
    let told = victim.attack("attack.py", "resume").await;
    // UNAUTHENTICATED (16), where a good agent is told PERMISSION_DENIED (7) for a question.
    assert_eq!(
        (told["again"]["status"].as_u64(), told["again"]["reused"].as_bool()),
        (Some(16), Some(false)),
        "{told}"
    );
    assert_eq!(told["again"]["message"], "revoked");
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_calls_what_is_not_his() {
    let Some(victim) = Victim::start().await else { return };
    let told = victim.attack("attack.py", "calls").await;
    for (call, outcome) in told.as_object().unwrap() {
        // UNIMPLEMENTED (12): a name does not even serve what is not for its callers.
        let expected: &[u64] = if call == "viewer Inventory/ListHosts" { &[0] } else { &[7, 12] };
        assert!(outcome["status"].as_u64().is_some_and(|status| expected.contains(&status)), "{call}: {outcome}");
    }
    assert!(told.as_object().unwrap().len() > 10);
    assert_eq!(victim.local().await.list_tokens().await.unwrap().len(), 1, "nothing was made");
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_large_lie_or_are_nothing_get_a_status_and_cost_nothing() {
    let Some(victim) = Victim::start().await else { return };
    let before = victim.memory().0;
    let told = victim.attack("attack.py", "messages").await;
    for (what, outcome) in told.as_object().unwrap() {
        let refused = outcome["status"].as_u64().is_some_and(|status| status > 0) || outcome["reset"].is_number();
        assert!(refused, "{what}: {outcome}");
    }
    // RESOURCE_EXHAUSTED or OUT_OF_RANGE, as tonic has it.
    for what in ["enroll 100 KiB", "enroll 2 GiB announced", "agent 2 GiB announced"] {
        assert!([8, 11].contains(&told[what]["status"].as_u64().unwrap()), "{what}: {told}");
    }
    let cost = victim.memory().0 - before;
    assert!(cost < 32 * 1024, "{cost} KiB");
    let hosts = victim.local().await.list_hosts(HostSelector::default()).await.unwrap().collect().await.unwrap().0;
    assert_eq!(hosts.iter().filter(|host| host.facts.is_some()).count(), 0, "nothing was stored");
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_in_goaway_with_bounded_memory_and_an_honest_agent_is_heard_meanwhile() {
    let Some(victim) = Victim::start().await else { return };
    let before = victim.memory().0;
    let (told, took) = beside_an_honest_agent(&victim, "attack.py", "floods").await;
    let cost = victim.memory().0 - before;
    for (what, outcome) in told.as_object().unwrap() {
        assert!(outcome["over"].is_string(), "{what}: {outcome}");
        // PROTOCOL_ERROR (1), FRAME_SIZE_ERROR (6), COMPRESSION_ERROR (9) or ENHANCE_YOUR_CALM (11).
        let code = outcome["code"].as_u64();
        assert!(code.is_some_and(|code| [1, 6, 9, 11].contains(&code)), "{what}: {outcome}");
        assert!(outcome["sent"].as_u64().unwrap() < 20_000, "{what}: {outcome}");
    }
    assert_eq!(told.as_object().unwrap().len(), 8);
    assert!(cost < 32 * 1024, "{cost} KiB");
    tell("floods", took, cost);
    victim.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_settings_of_somebody_who_does_not_read_cost_bounded_memory() {
    let Some(victim) = Victim::start().await else { return };
    let before = victim.memory().0;
    let (told, took) = beside_an_honest_agent(&victim, "attack.py", "drips").await;
    let cost = victim.memory().0 - before;
    assert_eq!(told.as_object().unwrap().len(), 4, "{told}");
    assert!(cost < 32 * 1024, "{cost} KiB: {told}");
    tell("pings and settings", took, cost);
    victim.stop();
}
