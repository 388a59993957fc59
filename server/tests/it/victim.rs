//! A server process to be attacked, with identities on disk for the attacker.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    client::{OperatorClient, Target, enroll},
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
pub(crate) struct Victim {
    folder: tempfile::TempDir,
    config: Config,
    server: Child,
    pub(crate) honest: Identity,
}

const DOMAIN: &str = "fleetsock.internal";

impl Victim {
    /// None when there is no Python.
    pub(crate) async fn start() -> Option<Victim> {
        Victim::start_with(20_000).await
    }

    /// One that may have so many files and connections open.
    pub(crate) async fn start_with(descriptors: u32) -> Option<Victim> {
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
        let mut server = Command::new("sh")
            .args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &descriptors.to_string()])
            .args([env!("CARGO_BIN_EXE_fleetsock-server"), "serve", "--state"])
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
        std::fs::write(folder.path().join("root.pem"), pem("CERTIFICATE", &viewer.roots()[0])).unwrap();
        std::fs::write(folder.path().join("request.der"), Key::generate().unwrap().request_der().unwrap()).unwrap();
        foreign(folder.path());
        Some(Victim { folder, config, server, honest })
    }

    /// Runs an attack of one of the scripts to its end.
    pub(crate) async fn attack(&self, script: &str, name: &str) -> Value {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks").join(script);
        let ran = tokio::process::Command::new("python3")
            .arg(script)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .args([name, "--trust-domain", DOMAIN, "--address", &self.config.listen.to_string(), "--folder"])
            .arg(self.folder.path())
            .output()
            .await
            .unwrap();
        assert!(ran.status.success(), "{name}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice(&ran.stdout).unwrap()
    }

    /// The most memory that the server had resident since its start, and has now, KiB.
    pub(crate) fn memory(&self) -> (u64, u64) {
        let status = std::fs::read_to_string(PathBuf::from(format!("/proc/{}/status", self.server.id()))).unwrap();
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").trim().parse().unwrap()
        };
        (kib("VmHWM:"), kib("VmRSS:"))
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.config.listen
    }

    pub(crate) async fn local(&self) -> OperatorClient {
        OperatorClient::connect(Target::Local(self.config.admin_socket.clone())).await.unwrap()
    }

    pub(crate) fn stop(mut self) {
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

/// Runs an attack while an honest agent reports; how long its acknowledgements took.
pub(crate) async fn beside_an_honest_agent(victim: &Victim, script: &str, attack: &str) -> (Value, Vec<Duration>) {
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
    let outcome = victim.attack(script, attack).await;
    over.notify_one();
    (outcome, honest.await.unwrap())
}

/// What 99 of 100 acknowledgements of an honest agent may take beside an attack.
const HEARD_WITHIN: Duration = Duration::from_millis(500);

/// Says what an attack cost; where times are measured, in an optimised build on a quiet machine, also holds them to the limit.
pub(crate) fn tell(what: &str, took: Vec<Duration>, kib: u64) {
    let count = took.len();
    let (median, high) = crate::revocation::percentiles(took);
    crate::tell(&format!("{what}: {kib} KiB more; {count} acknowledgements beside it, p50 {median:?}, p99 {high:?}"));
    assert!(cfg!(debug_assertions) || high <= HEARD_WITHIN, "{what}: {high:?} is more than {HEARD_WITHIN:?}");
}
