//! The server under load: a process of its own.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use fleetsock_proto::{
    client::{OperatorClient, Target},
    join::JoinString,
    token::{NewToken, TokenPurpose},
};

/// The server under load, a process of its own.
pub(super) struct Server {
    state: PathBuf,
    child: Child,
}

impl Server {
    pub(super) fn init(state: &Path) -> SocketAddr {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let made = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
            .args(["init", "--listen", &listen.to_string(), "--state"])
            .arg(state)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(made.success());
        // Far more agents than hosts behind one address, and all of them at once.
        let settings = state.join("server.toml");
        let text = std::fs::read_to_string(&settings).unwrap()
            + "connections = 100000\nconnections_per_address = 100000\nnewcomers = 1000\nhandshakes_per_address = 256\n\
               enrolments_per_s = 100000\nenrolments_per_address_per_min = 6000000\n";
        std::fs::write(&settings, text).unwrap();
        listen
    }

    pub(super) async fn start(state: &Path) -> Server {
        let child = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"))
            .args(["serve", "--state"])
            .arg(state)
            .env("FLEETSOCK_LOG", "warn")
            .spawn()
            .unwrap();
        let socket = state.join("admin.sock");
        while OperatorClient::connect(Target::Local(socket.clone())).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Server { state: state.to_owned(), child }
    }

    pub(super) fn stop(&mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        self.child.wait().unwrap();
    }

    /// CPU seconds and resident MiB.
    pub(super) fn cost(&self) -> (f64, f64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let kib: f64 = rss.trim().trim_end_matches(" kB").trim().parse().unwrap();
        (ticks / 100.0, kib / 1024.0)
    }

    pub(super) async fn token(&self, uses: u32) -> JoinString {
        let mut admin = OperatorClient::connect(Target::Local(self.state.join("admin.sock"))).await.unwrap();
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses, purpose, note: String::new() };
        admin.create_token(token).await.unwrap().1.parse().unwrap()
    }
}
