//! Attacks by a client that shares no code with the server: `tests/attacks/attack.py`, against the real program.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    client::{OperatorClient, Target, enroll},
    host::HostSelector,
    identity::{Identity, Key, pem},
    tls,
    token::{NewToken, Operator, Role, TokenPurpose},
};
use fleetsock_server::{config::Config, setup};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use serde_json::Value;
use tokio::sync::Notify;

use crate::speaker::Speaker;

/// A server process, and identities on disk for the attacker.
struct Victim {
    folder: tempfile::TempDir,
    config: Config,
    server: Child,
    honest: Identity,
}

const DOMAIN: &str = "fleetsock.internal";

impl Victim {
    /// None when there is no Python.
    async fn start() -> Option<Victim> {
        if Command::new("python3").arg("--version").output().is_err() {
            crate::tell("skipped: there is no python3");
            return None;
        }
        tls::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("server");
        let listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let fleet = fleetsock_server::config::NewFleet {
            trust_domain: DOMAIN.parse().unwrap(),
            listen,
            address: listen.to_string().parse().unwrap(),
        };
        setup::init(&state, &fleet, fleetsock_proto::time::Timestamp::now()).unwrap();
        let config = Config::load(&state, None).unwrap();
        let mut server = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
            .args(["serve", "--state"])
            .arg(&state)
            .env("FLEETSOCK_LOG", "warn")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut local = loop {
            match OperatorClient::connect(Target::Local(config.admin_socket.clone())).await {
                Ok(local) => break local,
                Err(_) if server.try_wait().unwrap().is_some() => panic!("the server ended"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses: 2, purpose, note: String::new() };
        let join = local.create_token(token).await.unwrap().1.parse().unwrap();
        let agent = enroll(&join, "hostile", Key::generate().unwrap()).await.unwrap();
        let honest = enroll(&join, "honest", Key::generate().unwrap()).await.unwrap();
        let viewer = local.issue_operator(Operator::new("mallory", Role::Viewer).unwrap()).await.unwrap();
        agent.store(&folder.path().join("agent")).unwrap();
        viewer.store(&folder.path().join("viewer")).unwrap();
        std::fs::write(folder.path().join("root.pem"), pem("CERTIFICATE", viewer.root())).unwrap();
        foreign(folder.path());
        Some(Victim { folder, config, server, honest })
    }

    /// Runs an attack to its end.
    async fn attack(&self, name: &str) -> Value {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks/attack.py");
        let ran = tokio::process::Command::new("python3")
            .arg(script)
            .args([name, "--trust-domain", DOMAIN, "--address", &self.config.listen.to_string(), "--folder"])
            .arg(self.folder.path())
            .output()
            .await
            .unwrap();
        assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    /// The most memory that the server had resident since its start, and has now, KiB.
    fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(PathBuf::from(format!("/proc/{}/status", self.server.id()))).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").trim().parse().unwrap()
        };
        (kib("VmHWM:"), kib("VmRSS:"))
    }

    async fn local(&self) -> OperatorClient {
        OperatorClient::connect(Target::Local(self.config.admin_socket.clone())).await.unwrap()
    }

    fn stop(mut self) {
        assert_eq!(self.server.try_wait().unwrap(), None, "the server runs");
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// A CA that looks like ours, and an admin of its making.
fn foreign(folder: &Path) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let mut params = CertificateParams::default();
    let uri = format!("spiffe://{DOMAIN}/operator/admin/root");
    params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(&key).unwrap();
    let certificate = pem("CERTIFICATE", certificate.der());
    std::fs::write(folder.join("foreign.pem"), &certificate).unwrap();
    std::fs::create_dir(folder.join("foreign")).unwrap();
    let own = pem("PRIVATE KEY", key.serialized_der()) + &certificate;
    std::fs::write(folder.join("foreign/identity.pem"), own).unwrap();
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_names_speak_tls_1_3_and_nothing_older() {
    let Some(victim) = Victim::start().await else { return };
    let told = victim.attack("versions").await;
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
    let told = victim.attack("names").await;
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
    let told = victim.attack("resume").await;
    assert_eq!((told["ticket"].as_bool(), told["again"]["reused"].as_bool()), (Some(false), Some(false)), "{told}");
    victim.local().await.revoke_host("hostile", "").await.unwrap();
    let told = victim.attack("resume").await;
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
    let told = victim.attack("calls").await;
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
    let told = victim.attack("messages").await;
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

/// Runs an attack while an honest agent reports; how long its acknowledgements took.
async fn beside_an_honest_agent(victim: &Victim, attack: &str) -> (Value, Vec<Duration>) {
    let over = Arc::new(Notify::new());
    let mut speaker = Speaker::welcomed(&victim.honest, "honest", 1).await;
    let told = Arc::clone(&over);
    let honest = tokio::spawn(async move {
        let mut took = Vec::new();
        let mut over = std::pin::pin!(told.notified());
        loop {
            let begun = Instant::now();
            assert!(speaker.send(1024).await, "the honest agent is heard");
            speaker.acknowledged().await.unwrap();
            took.push(begun.elapsed());
            tokio::select! {
                () = &mut over => return took,
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
        }
    });
    let outcome = victim.attack(attack).await;
    over.notify_one();
    (outcome, honest.await.unwrap())
}

fn tell(what: &str, took: Vec<Duration>, kib: u64) {
    let count = took.len();
    let (median, high) = crate::revocation::percentiles(took);
    crate::tell(&format!("{what}: {kib} KiB more; {count} acknowledgements beside it, p50 {median:?}, p99 {high:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_end_in_goaway_with_bounded_memory_and_an_honest_agent_is_heard_meanwhile() {
    let Some(victim) = Victim::start().await else { return };
    let before = victim.memory().0;
    let (told, took) = beside_an_honest_agent(&victim, "floods").await;
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
    let (told, took) = beside_an_honest_agent(&victim, "drips").await;
    let cost = victim.memory().0 - before;
    assert_eq!(told.as_object().unwrap().len(), 4, "{told}");
    assert!(cost < 32 * 1024, "{cost} KiB: {told}");
    tell("pings and settings", took, cost);
    victim.stop();
}
