//! The programs whose traffic is looked at: nginx and sshd on `web1`, PostgreSQL on `db1`, and their clients.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::scope::{Scope, end};
use crate::{
    fleet::Fleet,
    network::{Running, until},
};

/// Where Debian puts each version of PostgreSQL.
const POSTGRESQL: &str = "/usr/lib/postgresql";
/// The user under which it runs.
const POSTGRES: &str = "postgres";
/// How far the moments of logs may be outside of the session, seconds: that of PostgreSQL comes when the process is there.
/// A client's port is used again after a second at the earliest.
const LOG_MARGIN_S: f64 = 0.4;
const NEEDED: [&str; 7] = ["nginx", "wrk", "curl", "sshd", "ssh", "ssh-keygen", "setpriv"];

/// What this machine has not, if anything.
pub(super) fn missing() -> Option<String> {
    let absent = |name: &&str| path(name).is_none();
    let mut missing: Vec<&str> = NEEDED.into_iter().filter(absent).collect();
    missing.extend(postgresql().is_none().then_some("postgresql"));
    (!missing.is_empty()).then(|| missing.join(", "))
}

/// Where a program is. What daemons are is not in the PATH of everyone.
pub(super) fn path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    folders.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The programs of the newest PostgreSQL.
fn postgresql() -> Option<PathBuf> {
    let versions = fs::read_dir(POSTGRESQL).ok()?.map(|entry| entry.unwrap());
    let version = |name: &str| name.parse::<u32>().ok();
    let programs = versions.filter_map(|entry| Some((version(entry.file_name().to_str()?)?, entry.path().join("bin"))));
    programs.filter(|(_, programs)| programs.join("pgbench").exists()).max().map(|(_, programs)| programs)
}

fn done(command: &mut Command) {
    Client::begin("", command).end(0);
}

/// A client that runs, or ran.
struct Client {
    name: &'static str,
    pid: u32,
    child: Child,
}

impl Client {
    fn begin(name: &'static str, command: &mut Command) -> Client {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // nsenter and setpriv become the program that they run.
        Client { name, pid: child.id(), child }
    }

    /// When it has ended with this code.
    fn end(self, code: i32) -> (u32, &'static str) {
        let Client { name, pid, child } = self;
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        (pid, name)
    }
}

/// A daemon, which is asked to end, so that nothing of it remains.
struct Daemon(Option<Running>);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(running) = self.0.take() {
            // To PostgreSQL: without waiting for its clients.
            running.signal("INT");
            running.stop();
        }
    }
}

/// The daemons, ready to be asked.
pub(super) struct Programs<'a> {
    fleet: &'a Fleet,
    scope: &'a Scope,
    folder: tempfile::TempDir,
    postgresql: PathBuf,
    postmaster: u32,
    _daemons: Vec<Daemon>,
}

impl<'a> Programs<'a> {
    pub(super) fn start(fleet: &'a Fleet, scope: &'a Scope) -> Programs<'a> {
        let folder = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o711)).tempdir().unwrap();
        let postgresql = postgresql().unwrap();
        let mut programs = Programs { fleet, scope, folder, postgresql, postmaster: 0, _daemons: Vec::new() };
        let postgres = programs.postgres();
        programs.postmaster = postgres.0.as_ref().unwrap().pid();
        programs._daemons = vec![programs.nginx(), programs.sshd(), postgres];
        programs
    }

    fn at(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn daemon(&self, host: &str, command: &mut Command, port: u16) -> Daemon {
        let log = File::create(self.at(&format!("{port}.err"))).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let daemon = Daemon(Some(Running::of(child, host)));
        let open = format!(":{port} ");
        until("a daemon listens", || {
            let listeners = self.fleet.network.command(host, "ss").args(["-Hltn"]).output().unwrap();
            String::from_utf8(listeners.stdout).unwrap().contains(&open).then_some(())
        });
        daemon
    }

    fn nginx(&self) -> Daemon {
        let config = format!(
            "daemon off; user root; worker_processes 2; pid {pid}; error_log {error};
            events {{ worker_connections 1024; }}
            http {{
                log_format sides '$msec $pid $remote_addr $remote_port $server_port';
                access_log {log} sides; keepalive_requests 100;
                server {{ listen 80; listen [::]:80 ipv6only=on; listen [::]:8080 ipv6only=off; return 200 'here'; }}
            }}",
            pid = self.at("nginx.pid"),
            error = self.at("nginx.err"),
            log = self.at("nginx.log"),
        );
        fs::write(self.at("nginx.conf"), config).unwrap();
        let mut command = self.fleet.network.command("web1", path("nginx").unwrap());
        self.daemon("web1", command.args(["-e", &self.at("nginx.err"), "-c", &self.at("nginx.conf")]), 80)
    }

    fn sshd(&self) -> Daemon {
        // What the package's unit makes before it starts the daemon.
        fs::create_dir_all("/run/sshd").unwrap();
        for key in ["host", "user"] {
            done(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f", &self.at(key)]));
        }
        let config = format!(
            "HostKey {}\nAuthorizedKeysFile {}\nStrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\nPidFile none\n",
            self.at("host"),
            self.at("user.pub"),
        );
        fs::write(self.at("sshd.conf"), config).unwrap();
        let mut command = self.fleet.network.command("web1", path("sshd").unwrap());
        self.daemon("web1", command.args(["-D", "-e", "-f", &self.at("sshd.conf")]), 22)
    }

    /// One of PostgreSQL's programs on a host, under its user.
    fn postgres_program(&self, host: &str, name: &str) -> Command {
        let mut command = self.fleet.network.command(host, "setpriv");
        command.args(["--reuid", POSTGRES, "--regid", POSTGRES, "--init-groups"]);
        command.arg(self.postgresql.join(name)).current_dir("/").env("PGHOST", self.scope.v4("db1").to_string());
        command
    }

    fn postgres(&self) -> Daemon {
        let home = self.at("postgresql");
        done(Command::new("install").args(["-d", "-o", POSTGRES, "-g", POSTGRES, "-m", "700", &home]));
        let data = format!("{home}/data");
        let mut made = self.postgres_program("db1", "initdb");
        done(made.args(["--auth=trust", "--no-locale", "--encoding=UTF8", "--no-sync", "--pgdata", &data]));
        let access = format!("{data}/pg_hba.conf");
        let text = fs::read_to_string(&access).unwrap();
        fs::write(&access, text + "host all all all trust\n").unwrap();
        let sockets = format!("unix_socket_directories={home}");
        let settings = ["listen_addresses=*", &sockets, "log_connections=on", "log_line_prefix=%n %p "];
        let mut command = self.postgres_program("db1", "postgres");
        command.args(["-D", &data]).args(settings.iter().flat_map(|setting| ["-c", setting]));
        self.daemon("db1", &mut command, 5432)
    }

    /// Makes all the traffic, and returns when it is over: the processes that connected, with their names.
    pub(super) fn work(&self, times: u32) -> BTreeMap<u32, &'static str> {
        let [web, web6, db] = [self.scope.v4("web1"), self.scope.v6("web1"), self.scope.v4("db1")];
        let mut made = BTreeMap::new();
        made.extend([self.postgres_client("web1", "pgbench", &["-i", "-q", "postgres"]).end(0)]);
        let each = (100 * times).to_string();
        let transactions = ["--no-vacuum", "-C", "-c", "4", "-j", "2", "-t", &each, "postgres"];
        let lasting = [
            self.wrk("often", 20, 3 * times, ["-c10", "Connection: close"]),
            self.wrk("kept", 5, 3 * times, ["-c8", "Connection: keep-alive"]),
            self.postgres_client("web1", "pgbench", &transactions),
        ];
        for round in 0..10 * times {
            made.extend([
                self.curl("client1", &format!("http://{web}/{round}")).end(0),
                self.curl("db1", &format!("http://[{web6}]/{round}")).end(0),
                // A listener for both families, and both ends on one host.
                self.curl("client1", &format!("http://{web}:8080/{round}")).end(0),
                self.curl("web1", &format!("http://{web}/{round}")).end(0),
                // Nobody listens there.
                self.curl("client1", &format!("http://{db}/{round}")).end(7),
                self.ssh("client1", web).end(0),
                self.postgres_client("client1", "psql", &["--no-psqlrc", "-c", "SELECT 1", "postgres"]).end(0),
            ]);
        }
        made.extend(lasting.map(|client| client.end(0)));
        made
    }

    /// Requests wait, so that there are as many of them on a fast machine as on a slow one.
    fn wrk(&self, name: &str, wait_ms: u32, seconds: u32, [connections, header]: [&str; 2]) -> Client {
        let script = self.at(&format!("{name}.lua"));
        fs::write(&script, format!("function delay() return {wait_ms} end\n")).unwrap();
        let (url, seconds) = (format!("http://{}/", self.scope.v4("web1")), format!("-d{seconds}s"));
        let mut wrk = self.fleet.network.command("client1", "wrk");
        Client::begin("wrk", wrk.args(["-t1", connections, &seconds, "-s", &script, "-H", header, &url]))
    }

    fn postgres_client(&self, host: &str, name: &'static str, arguments: &[&str]) -> Client {
        Client::begin(name, self.postgres_program(host, name).args(arguments))
    }

    fn curl(&self, host: &str, url: &str) -> Client {
        Client::begin("curl", self.fleet.network.command(host, "curl").args(["-sS", "-o", "/dev/null", url]))
    }

    fn ssh(&self, host: &str, address: IpAddr) -> Client {
        let mut ssh = self.fleet.network.command(host, "ssh");
        ssh.args(["-F", "none", "-i", &self.at("user"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]);
        Client::begin("ssh", ssh.args(["-o", "UserKnownHostsFile=/dev/null", &format!("root@{address}"), "true"]))
    }

    /// What the servers' own logs say of the processes that served clients.
    pub(super) fn served(&self) -> Served {
        let mut served = Served { postmaster: self.postmaster, by_client: BTreeMap::new() };
        for line in fs::read_to_string(self.at("nginx.log")).unwrap().lines() {
            let [at, pid, address, port, here] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            served.add(end(address, port).unwrap(), here.parse().unwrap(), at.parse().unwrap(), pid.parse().unwrap());
        }
        for line in fs::read_to_string(self.at("5432.err")).unwrap().lines() {
            let Some((begins, client)) = line.split_once(" LOG:  connection received: host=") else { continue };
            let (at, pid) = begins.split_once(' ').unwrap();
            let (address, port) = client.split_once(" port=").unwrap();
            served.add(end(address, port).unwrap(), 5432, at.parse().unwrap(), pid.parse().unwrap());
        }
        served
    }
}

/// Which process served whom, by the client's end and the server's port: when (seconds since 1970), and which.
pub(super) struct Served {
    by_client: BTreeMap<(SocketAddr, u16), Vec<(f64, u32)>>,
    /// The process of PostgreSQL that accepts and then begins another one to serve.
    pub(super) postmaster: u32,
}

impl Served {
    fn add(&mut self, client: SocketAddr, port: u16, at: f64, pid: u32) {
        self.by_client.entry((client, port)).or_default().push((at, pid));
    }

    /// Who served a client at some time within this one, or at the moment that is nearest to it.
    pub(super) fn during(&self, client: SocketAddr, port: u16, (since, until): (f64, f64)) -> Option<u32> {
        let all = self.by_client.get(&(client, port))?;
        let outside = |at: f64| (since - at).max(at - until).max(0.0);
        let (at, pid) = all.iter().min_by(|(one, _), (other, _)| f64::total_cmp(&outside(*one), &outside(*other)))?;
        (outside(*at) < LOG_MARGIN_S).then_some(*pid)
    }
}
