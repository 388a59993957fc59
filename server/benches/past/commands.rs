//! The same questions as whole commands: processes of `fleetctl`, each with a connection of its own over mutual TLS to a process of
//! `fleetsock-server` that has this history.

use std::{
    fs,
    net::IpAddr,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::{
    fleet::{HOSTS, address},
    load::BEGIN_US,
    questions::{any, begin_us, host_name, nobody, ten_hosts, v4, v6, within},
    table::{Table, digits},
};

/// What a command may take, 95 of 100 times.
const WANTED_MS: f64 = 150.0;
/// Sessions that a page shows.
const PAGE: &str = "100";

/// A server, and an operator of it with a home of his own.
struct Fleet<'a> {
    fleetctl: &'a Path,
    home: PathBuf,
    state: PathBuf,
    server: Child,
}

/// Asks with this `fleetctl` of a history, which is moved to a server.
pub(crate) fn measure(
    place: &Path,
    history: &Path,
    fleetctl: &Path,
    (days, asked, only): (i64, usize, &str),
    table: &mut Table,
) {
    let fleet = Fleet::begin(place, history, fleetctl);
    for (what, command) in commands(days).into_iter().filter(|(what, _)| what.contains(only)) {
        eprintln!("asking by a command: {what}");
        let (mut ms, mut lines) = (Vec::new(), Vec::new());
        // The first time, which meets a cold cache, is left out.
        for turn in 0..=asked {
            let begun = Instant::now();
            let shown = fleet.ask(&command(turn));
            ms.push(begun.elapsed().as_secs_f64() * 1000.0);
            lines.push(shown);
        }
        ms.remove(0);
        ms.sort_by(f64::total_cmp);
        lines.sort_unstable();
        let at = |part: f64| ms[((ms.len() - 1) as f64 * part).round() as usize];
        let (p50, p95) = (at(0.5), at(0.95));
        table.line([
            format!("command: {what} ({} lines)", lines[lines.len() / 2]),
            format!("p50 {}, p95 {} ms", digits(p50), digits(p95)),
            format!("asked for: p95 {WANTED_MS} ms"),
            format!("{:.2}", p95 / WANTED_MS),
        ]);
    }
    fleet.end();
}

type Words = Box<dyn Fn(usize) -> Vec<String>>;

fn words(words: &str) -> Vec<String> {
    words.split_whitespace().map(str::to_owned).collect()
}

/// The commands, for so many days of which none lies in the future, where no moment is taken.
fn commands(days: i64) -> Vec<(&'static str, Words)> {
    let second = |us: i64| us / 1_000_000;
    let since = second(BEGIN_US);
    let of_day = move |turn| {
        format!("--since @{} --until @{}", second(begin_us(turn, days)), second(begin_us(turn, days)) + 86_400)
    };
    let peer = move |peer: String| format!("sessions --peer {peer} --since @{since}");
    let command = |what, text: Box<dyn Fn(usize) -> String>| -> (&'static str, Words) {
        (what, Box::new(move |turn| words(&text(turn))))
    };
    let new = move |turn| {
        let since = second(begin_us(turn, days));
        format!("changes --since @{since} --until @{} --baseline @{}", since + 3600, since - 7 * 86_400)
    };
    let fleet = |turn: usize| -> IpAddr { address(turn * 37 % HOSTS) };
    vec![
        command(
            "a host, a day, newest 100",
            Box::new(move |turn| format!("sessions --host {} {} --limit {PAGE}", host_name(turn), of_day(turn))),
        ),
        command(
            "a host, a day, all",
            Box::new(move |turn| format!("sessions --host {} {}", host_name(turn), of_day(turn))),
        ),
        command("an external peer, IPv4, all history", Box::new(move |turn| peer(v4(turn).to_string()))),
        command("an external peer, IPv6, all history", Box::new(move |turn| peer(v6(turn).to_string()))),
        command(
            "a host of the fleet as peer, newest 100",
            Box::new(move |turn| format!("{} --limit {PAGE}", peer(fleet(turn).to_string()))),
        ),
        command("a peer that was never there", Box::new(move |turn| peer(nobody(turn).to_string()))),
        command("a /24, all history", Box::new(move |turn| peer(within(any(turn), 24).to_string()))),
        command("a /24 of a busy client, all history", Box::new(move |turn| peer(within(v4(turn), 24).to_string()))),
        command(
            "a /16, newest 100",
            Box::new(move |turn| format!("{} --limit {PAGE}", peer(within(any(turn), 16).to_string()))),
        ),
        command(
            "open at a moment, class well-known",
            Box::new(move |turn| {
                format!("sessions --class well-known --at @{}", second(begin_us(turn, days)) + 43_200)
            }),
        ),
        command("a day by class and hour", Box::new(move |turn| format!("summary --by class,hour {}", of_day(turn)))),
        command(
            "a day by host and process",
            Box::new(move |turn| format!("summary --by host,process {}", of_day(turn))),
        ),
        command(
            "a day by peer, the first 20",
            Box::new(move |turn| format!("summary --by peer --limit 20 {}", of_day(turn))),
        ),
        command("listeners, class well-known", Box::new(|_| "ports --class well-known".to_owned())),
        command(
            "listeners, a port of ten hosts",
            Box::new(|turn| format!("ports --port 443 --host {}", ten_hosts(turn))),
        ),
        command(
            "listeners at a moment, class well-known",
            Box::new(move |turn| format!("ports --class well-known --at @{}", second(begin_us(turn, days)) + 86_400)),
        ),
        command("new listeners of an hour against seven days", Box::new(new)),
        command(
            "a host's new peers of an hour against seven days",
            Box::new(move |turn| format!("{} --sessions --host {}", new(turn), host_name(turn))),
        ),
        command(
            "new peers of an hour against seven days, newest 100",
            Box::new(move |turn| format!("{} --sessions --limit {PAGE}", new(turn))),
        ),
    ]
}

impl Fleet<'_> {
    fn begin<'a>(place: &Path, history: &Path, fleetctl: &'a Path) -> Fleet<'a> {
        let (state, home) = (place.join("server"), place.join("home"));
        fs::create_dir(&home).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let program = || Command::new(env!("CARGO_BIN_EXE_fleetsock-server"));
        let init = ["init", "--listen", &free.to_string(), "--state"];
        assert!(program().args(init).arg(&state).stdout(Stdio::null()).status().unwrap().success());
        // Its own history is empty yet, and the keys of the fleet are beside it.
        fs::remove_dir_all(state.join("history")).unwrap();
        fs::rename(history, state.join("history")).unwrap();
        add_settings(&state);
        let mut serve = program();
        let server = serve.args(["serve", "--state"]).arg(&state).env("FLEETSOCK_LOG", "warn").spawn().unwrap();
        let socket = state.join("admin.sock");
        let begun = Instant::now();
        while UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60), "the server does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        let fleet = Fleet { fleetctl, home, state, server };
        let socket = socket.display().to_string();
        fleet.ask(&["login", "--local", &socket, "--name", "bench", "--role", "viewer"].map(str::to_owned));
        fleet
    }

    /// Runs a command to its end; how many lines it showed.
    fn ask(&self, arguments: &[String]) -> usize {
        let mut command = Command::new(self.fleetctl);
        let ran = command.args(arguments).env_clear().env("HOME", &self.home).env("TZ", "UTC").output().unwrap();
        let problem = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{arguments:?}: {problem}");
        ran.stdout.iter().filter(|byte| **byte == b'\n').count()
    }

    fn end(mut self) {
        assert!(Command::new("kill").arg(self.server.id().to_string()).status().unwrap().success());
        self.server.wait().unwrap();
        fs::remove_dir_all(self.state).unwrap();
        fs::remove_dir_all(self.home).unwrap();
    }
}

/// One operator asks more often here than a person does.
fn add_settings(state: &Path) {
    let path = state.join("server.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}operator_calls_per_s = 1000\n")).unwrap();
}
