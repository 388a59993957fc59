//! What README.md shows is what fleetctl answers, on hosts that run nginx, PostgreSQL and OpenSSH.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    fleet::Fleet,
    network::{Network, Running, until},
};

const README: &str = include_str!("../../../README.md");

/// A command of the README and what it shows beneath.
#[derive(Debug)]
struct Example {
    command: Vec<String>,
    shown: Vec<String>,
}

/// The examples in fences that say ```` ```console fleet ````.
fn examples() -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut inside = false;
    for line in README.lines() {
        match line.strip_prefix("```") {
            Some(info) => inside = !inside && info == "console fleet",
            None if !inside => {}
            None => match (line.strip_prefix("$ fleetctl "), examples.last_mut()) {
                (Some(command), _) => {
                    let command = command.split_whitespace().map(|word| word.replace('\'', "")).collect();
                    examples.push(Example { command, shown: Vec::new() });
                }
                (None, Some(example)) => example.shown.push(line.to_owned()),
                (None, None) => panic!("output without a command: {line}"),
            },
        }
    }
    examples
}

/// A line with what differs from run to run made equal: process ids, times, ages, widths of columns.
fn steady(line: &str) -> String {
    let word = |word: &str| {
        let (name, rest) = word.split_once('[').unwrap_or((word, ""));
        if let Some(after) = rest.split_once(']').filter(|(pid, _)| pid.bytes().all(|c| c.is_ascii_digit())) {
            return format!("{name}[PID]{}", after.1);
        }
        let bare = word.trim_start_matches(['~', '<', '≥', '≤', '?']).trim_end_matches(',');
        let is_age = bare.starts_with(|c: char| c.is_ascii_digit())
            && bare.ends_with(['s', 'm', 'h', 'd'])
            && bare.bytes().all(|c| c.is_ascii_digit() || b"smhd.".contains(&c));
        let is_clock = bare.len() == 8 && bare.bytes().filter(|c| *c == b':').count() == 2;
        let is_date = bare.len() == 10 && bare.bytes().filter(|c| *c == b'-').count() == 2;
        let is_ephemeral = |(_, port): (&str, &str)| port.parse().is_ok_and(|port: u16| port >= 32768);
        if is_age || is_clock || is_date {
            "TIME".to_owned()
        } else if let Some((address, port)) = word.rsplit_once(':').filter(|pair| is_ephemeral(*pair)) {
            format!("{address}:{}", "N".repeat(port.len().min(1)))
        } else {
            word.to_owned()
        }
    };
    // Further owners: a child that has just been forked holds what its parent listens on for a moment.
    let is_more = |word: &&str| word.strip_prefix('+').is_some_and(|count| count.bytes().all(|c| c.is_ascii_digit()));
    line.split_whitespace().filter(|word| !is_more(word)).map(word).collect::<Vec<_>>().join(" ")
}

/// Whether a line does not depend on how well the kernel let the agents hear: the legend of marks does.
fn is_steady(line: &&str) -> bool {
    !line.starts_with(['~', '≥', '≤', '?'])
}

/// A folder that other users can enter.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The programs that the README's hosts run; what is missing here.
struct Programs {
    nginx: PathBuf,
    sshd: PathBuf,
    postgres: PathBuf,
    psql: PathBuf,
}

impl Programs {
    fn find() -> Result<Programs, &'static str> {
        let installed = |path: &str| Some(PathBuf::from(path)).filter(|path| path.exists());
        let postgres = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let postgres = postgres.map(|version| version.path().join("bin/postgres")).find(|path| path.exists());
        Ok(Programs {
            nginx: installed("/usr/sbin/nginx").ok_or("nginx-light")?,
            sshd: installed("/usr/sbin/sshd").ok_or("openssh-server")?,
            psql: postgres.as_ref().map(|path| path.with_file_name("psql")).ok_or("postgresql")?,
            postgres: postgres.ok_or("postgresql")?,
        })
    }

    fn start_nginx(&self, network: &Network, host: &str, folder: &Path) -> Running {
        let config = folder.join("nginx.conf");
        let text = format!(
            "user www-data; worker_processes 1; pid {0}/nginx.pid; error_log stderr;\nevents {{}}\n\
             http {{ access_log off; server {{ listen 80; listen 127.0.0.1:8080; }} }}\n",
            folder.display()
        );
        fs::write(&config, text).unwrap();
        network
            .start(host, &self.nginx, &["-c", &config.display().to_string(), "-g", "daemon off;"])
            .with_its_processes()
    }

    fn start_sshd(&self, network: &Network, host: &str, folder: &Path) -> Running {
        fs::create_dir_all("/run/sshd").unwrap();
        let key = folder.join(format!("{host}-key"));
        succeeds(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key));
        network.start(host, &self.sshd, &["-D", "-f", "/dev/null", "-h", &key.display().to_string()])
    }

    fn start_postgres(&self, network: &Network, host: &str, folder: &Path) -> Running {
        let data = folder.join("data").display().to_string();
        let as_postgres = ["--reuid", "postgres", "--regid", "postgres", "--clear-groups", "--"];
        succeeds(Command::new("install").args(["-d", "-o", "postgres", "-g", "postgres", "-m", "700", &data]));
        let initdb = self.postgres.with_file_name("initdb").display().to_string();
        succeeds(Command::new("setpriv").args(as_postgres).args([&initdb, "-D", &data, "-A", "trust", "--no-sync"]));
        fs::write(folder.join("data/pg_hba.conf"), "host all all 10.99.0.0/24 trust\n").unwrap();
        let postgres = self.postgres.display().to_string();
        let listen = ["-c", "listen_addresses=*", "-c", "unix_socket_directories="];
        let arguments = [&as_postgres[..], &[postgres.as_str(), "-D", &data], &listen].concat();
        network.start(host, "setpriv", &arguments)
    }
}

#[test]
fn the_readme_shows_what_fleetctl_answers() {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(package) => return eprintln!("skipped: the README's hosts need the package {package}"),
    };
    let Some(fleet) = Fleet::start(&["server", "web1", "db1"]) else { return };
    let folder = open_folder();
    let network = &fleet.network;
    let _running = [
        programs.start_nginx(network, "web1", folder.path()),
        programs.start_sshd(network, "web1", folder.path()),
        programs.start_sshd(network, "db1", folder.path()),
        programs.start_postgres(network, "db1", folder.path()),
    ];
    until("PostgreSQL listens", || {
        let (items, _) = fleet.items(&["ports", "--port", "5432"]);
        (items.len() == 2).then_some(())
    });
    let query = ["-h", "10.99.0.3", "-U", "postgres", "-c", "select pg_sleep(3600)"];
    let _client = network.start("web1", &programs.psql, &query);
    until("both ends of the query are known, with their processes", || {
        let (items, _) = fleet.items(&["sessions", "--port", "5432"]);
        (items.len() == 2 && items.iter().all(|item| !item["process"].is_null())).then_some(())
    });

    let examples = examples();
    assert!(examples.len() >= 4, "{examples:?}");
    for Example { command, shown } in examples {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let ran = fleet.ask(&command);
        let mut told: Vec<String> = ran.out.lines().chain(ran.err.lines()).filter(is_steady).map(steady).collect();
        let mut shown: Vec<String> = shown.iter().map(String::as_str).filter(is_steady).map(steady).collect();
        // The two ends of a session begin within microseconds, and either can be the newer one.
        told.sort();
        shown.sort();
        assert_eq!(told, shown, "fleetctl {}\n{}{}", command.join(" "), ran.out, ran.err);
    }
}
