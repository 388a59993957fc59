//! A real `fleetsock-server` process with a state folder of its own.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use fleetsock_proto::{
    client::{OperatorClient, Target},
    join::JoinString,
    token::{NewToken, TokenPurpose},
};

/// A fleet on disk, and the process that serves it.
pub(super) struct Server {
    folder: tempfile::TempDir,
    child: Option<Child>,
}

/// The binary under test with these arguments.
pub(super) fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fleetsock-server"));
    command.args(arguments).env("FLEETSOCK_LOG", "error");
    command
}

impl Server {
    /// A new fleet, not served yet.
    pub(super) fn init() -> Server {
        let folder = tempfile::tempdir().unwrap();
        // Only the system knows a free port; it stays free for the moment until the server takes it.
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port)).to_string();
        let server = Server { folder, child: None };
        let made = self::server(&["init", "--listen", &listen, "--state"]).arg(server.state()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        server
    }

    /// A folder of its own for a fleet that is to be restored there.
    pub(super) fn nowhere() -> Server {
        Server { folder: tempfile::tempdir().unwrap(), child: None }
    }

    pub(super) fn state(&self) -> PathBuf {
        self.folder.path().join("server")
    }

    pub(super) fn history(&self) -> PathBuf {
        self.state().join("history")
    }

    /// Serves until it is stopped or killed; returns when it answers.
    pub(super) async fn start(&mut self) {
        let mut child = server(&["serve", "--state"]).arg(self.state()).stdin(Stdio::null()).spawn().unwrap();
        while self.local().await.is_none() {
            assert_eq!(child.try_wait().unwrap(), None, "the server ended while it started");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.child = Some(child);
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub(super) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the server must end in order, once our connections to it have.
    pub(super) async fn stop(&mut self) {
        let mut child = self.child.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let ended = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(ended.success(), "{ended}");
    }

    /// The local admin, when the server answers.
    pub(super) async fn local(&self) -> Option<OperatorClient> {
        OperatorClient::connect(Target::Local(self.state().join("admin.sock"))).await.ok()
    }

    /// A join string for one host.
    pub(super) async fn join(&self) -> JoinString {
        let purpose = TokenPurpose::Hosts { labels: Default::default() };
        let token = NewToken { lifetime_s: 3600, uses: 1, purpose, note: String::new() };
        self.local().await.unwrap().create_token(token).await.unwrap().1.parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A test failed before it stopped its server.
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Serves a state folder, which must be refused; the words.
pub(super) fn refusal(state: &Path) -> String {
    words(&server(&["serve", "--state"]).arg(state).output().unwrap())
}

/// What a command said on standard error when it failed.
pub(super) fn words(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text
}
