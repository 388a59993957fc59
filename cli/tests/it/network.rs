//! Hosts of their own: network namespaces, joined by a bridge. Needs root.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Once,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

/// How long anything real may take to happen on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

static NETWORKS: AtomicU32 = AtomicU32::new(0);
static CLEARED: Once = Once::new();

/// Network namespaces on one wire: `10.99.0.1` is the first, `10.99.0.2` the second.
pub(crate) struct Network {
    tag: String,
    hosts: Vec<&'static str>,
}

/// A program that runs on one of the hosts, and ends with the test.
pub(crate) struct Running {
    child: Child,
    what: String,
    ending: Ending,
}

/// How a program ends with the test.
enum Ending {
    Killed,
    /// By SIGTERM, so that it ends what it started.
    Asked,
}

fn ip(arguments: &[&str]) {
    let done = Command::new("ip").args(arguments).output().unwrap();
    assert!(done.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Removes the namespaces of tests that were killed: their names tell whose they are.
fn remove_abandoned() {
    for namespace in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = namespace.file_name().display().to_string();
        let pid = name.strip_prefix("fs").and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another test may be faster.
            drop(Command::new("ip").args(["netns", "delete", &name]).output());
        }
    }
}

impl Network {
    /// The hosts, when this machine lets us make them; else says why not.
    #[expect(clippy::print_stderr, reason = "a test that skips says why")]
    pub(crate) fn new(hosts: &[&'static str]) -> Option<Network> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: network namespaces need root");
            return None;
        }
        CLEARED.call_once(remove_abandoned);
        let tag = format!("fs{}-{}", std::process::id(), NETWORKS.fetch_add(1, Ordering::Relaxed));
        let network = Network { tag, hosts: hosts.to_vec() };
        for (number, host) in hosts.iter().enumerate() {
            let namespace = network.namespace(host);
            ip(&["netns", "add", &namespace]);
            ip(&["-n", &namespace, "link", "set", "lo", "up"]);
            if number == 0 {
                ip(&["-n", &namespace, "link", "add", "bridge", "type", "bridge"]);
                ip(&["-n", &namespace, "link", "set", "bridge", "up"]);
                ip(&["-n", &namespace, "address", "add", "10.99.0.1/24", "dev", "bridge"]);
            } else {
                let first = network.namespace(hosts[0]);
                let wire = format!("wire{number}");
                ip(&["-n", &first, "link", "add", &wire, "type", "veth", "peer", "name", "wire", "netns", &namespace]);
                ip(&["-n", &first, "link", "set", &wire, "master", "bridge", "up"]);
                ip(&["-n", &namespace, "link", "set", "wire", "up"]);
                let address = format!("10.99.0.{}/24", number + 1);
                ip(&["-n", &namespace, "address", "add", &address, "dev", "wire"]);
            }
        }
        Some(network)
    }

    fn namespace(&self, host: &str) -> String {
        format!("{}-{host}", self.tag)
    }

    /// A command that will run on a host.
    pub(crate) fn command(&self, host: &str, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.namespace(host))).arg("--").arg(program.as_ref());
        command
    }

    /// Starts a program on a host.
    pub(crate) fn start(&self, host: &str, program: impl AsRef<Path>, arguments: &[&str]) -> Running {
        let what = format!("{} on {host}", program.as_ref().display());
        let mut command = self.command(host, program);
        let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Running { child: child.spawn().unwrap(), what, ending: Ending::Killed }
    }

    /// Starts a Python program on a host; its text is the last argument but what follows.
    pub(crate) fn python(&self, host: &str, text: &str) -> Running {
        self.start(host, "python3", &["-c", text])
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in &self.hosts {
            // What still runs there keeps it alive until it ends; the name is gone at once.
            drop(Command::new("ip").args(["netns", "delete", &self.namespace(host)]).output());
        }
    }
}

impl Running {
    pub(crate) fn of(child: Child, what: &str) -> Running {
        Running { child, what: what.to_owned(), ending: Ending::Killed }
    }

    /// The same, of one whose processes would outlive it if it were killed.
    pub(crate) fn with_its_processes(mut self) -> Running {
        self.ending = Ending::Asked;
        self
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status().unwrap();
        assert!(sent.success(), "cannot signal {}", self.what);
    }

    /// Asks it to end, and waits until it did.
    pub(crate) fn stop(mut self) {
        self.signal("TERM");
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        match self.ending {
            Ending::Killed => drop(self.child.kill()),
            Ending::Asked => drop(Command::new("kill").args(["-TERM", &self.pid().to_string()]).output()),
        }
        drop(self.child.wait());
    }
}

/// Waits until something real has happened.
pub(crate) fn until<T>(what: &str, mut happened: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(outcome) = happened() {
            return outcome;
        }
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One of our binaries, beside this test and as new as it: `cargo test -p fleetctl` builds only its own.
pub(crate) fn binary(name: &str) -> PathBuf {
    static BUILT: Once = Once::new();
    let path = Path::new(env!("CARGO_BIN_EXE_fleetctl")).with_file_name(name);
    BUILT.call_once(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
        let mut build = Command::new(cargo);
        let built = build.args(["build", "--workspace", "--bins", "--quiet", "--profile", profile]).status().unwrap();
        assert!(built.success(), "the binaries cannot be built");
    });
    assert!(path.exists(), "there is no {}", path.display());
    path
}
