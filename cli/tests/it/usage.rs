//! What is typed wrong is told before any server is asked, with exit code 2 and what to type instead.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Command, Stdio},
};

use crate::program::{Home, Ran};

fn check(line: &str, code: i32, expected: &str) {
    let arguments = shell_words(line);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ran = Home::new().run(&arguments);
    assert_eq!((ran.code, ran.err.as_str(), ran.out.as_str()), (code, expected, ""), "{line}");
}

/// Words of a line; `'` keeps blanks together.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (place, part) in line.split('\'').enumerate() {
        if place % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[test]
fn a_wrong_filter_is_told_with_what_to_type() {
    for (line, expected) in [
        (
            "ports --class wellknwn",
            "error: --class: `wellknwn` is no port class; one of well-known, registered, dynamic, portless\n  \
             try: --class well-known\n",
        ),
        (
            "ports --port 70000",
            "error: --port: `70000` is no port; ports are 0 to 65535\n  try: --port 443,8000-8100\n",
        ),
        ("ports --port 443,90-80", "error: --port: `90-80` is reversed; write 80-90\n  try: --port 443,8000-8100\n"),
        ("ports --port http", "error: --port: `http` is no port; ports are 0 to 65535\n  try: --service http\n"),
        ("ports --service htpps", "error: --service: no port is called `htpps`\n  try: did you mean"),
        (
            "ports --scope publc",
            "error: --scope: `publc` is no scope; one of loopback, link, private, public, any\n  try: --scope public\n",
        ),
        (
            "ports --proto icmp",
            "error: --proto: `icmp` is no protocol; one of tcp, udp, dccp, sctp, raw, packet, unix\n  try: --proto tcp\n",
        ),
        (
            "ports --label site",
            "error: `site` is no label; write key=value, each 1 to 128 bytes\n  try: --label site=berlin\n",
        ),
        (
            "sessions --peer 10.0.0.0/33",
            "error: --peer: `10.0.0.0/33` is no CIDR prefix; the length of an IPv4 prefix is 0 to 32\n  \
             try: --peer 203.0.113.7, --peer 10.0.0.0/8, --peer 2001:db8::/32 or --peer web1\n",
        ),
        (
            "sessions --direction inn",
            "error: --direction: `inn` is no direction; one of in, out\n  try: --direction in\n",
        ),
        (
            "ports --columns host,prot",
            "error: a listening port has no column `prot`\n  try: did you mean port, proto or protocol?\n",
        ),
        (
            "changes --kind scope-widend",
            "error: --kind: `scope-widend` is no kind of change; one of opened, closed, owner-changed, scope-widened, \
             agent-started, host-booted\n  try: --kind scope-widened\n",
        ),
        (
            "summary --by sevice",
            "error: --by: `sevice` is no dimension; one of class, service, host, process, peer, hour\n  \
             try: --by service\n",
        ),
        (
            "backup ../x",
            "error: `../x` is no name for a backup; write 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-', and no '.' first\n  \
             try: fleetctl backup\n",
        ),
        ("hosts --sort=-uptime", "error: a host has no column `uptime`\n  try: one of"),
    ] {
        if !expected.ends_with('\n') {
            let ran = Home::new().run(&shell_words(line).iter().map(String::as_str).collect::<Vec<_>>());
            assert!(ran.code == 2 && ran.err.starts_with(expected), "{line}: {ran:?}");
        } else {
            check(line, 2, expected);
        }
    }
}

#[test]
fn what_cannot_be_written_as_parquet_is_told_with_what_to_type() {
    for (line, expected) in [
        (
            "ports -o parquet",
            "error: -o parquet: only an export is written as Parquet\n  \
             try: fleetctl export sessions.parquet --since 1d\n",
        ),
        (
            "export s.parquet -q --since 1d --columns host,peer,peer_port",
            "error: --columns: `peer_port` is named twice, and each column of a Parquet file has its own name\n  \
             try: name it once\n",
        ),
        (
            "export s.xlsx --since 1d",
            "error: `s.xlsx` does not say in which format: it ends in none of .csv, .tsv, .jsonl, .parquet\n  \
             try: fleetctl export s.xlsx -o csv\n",
        ),
    ] {
        check(line, 2, expected);
    }
}

/// A terminal is what script(1) makes.
#[test]
fn parquet_does_not_go_to_a_terminal() {
    let home = Home::new();
    let line = format!("{} export - -o parquet --since 30d", env!("CARGO_BIN_EXE_fleetctl"));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]).stdin(Stdio::null());
    let ran = Ran::from(script.env_clear().env("HOME", home.path()).env("PATH", "/usr/bin:/bin").output().unwrap());
    assert_eq!(ran.code, 2, "{ran:?}");
    let words = ["error: a Parquet file is not for a terminal", "try: fleetctl export sessions.parquet --since 30d"];
    assert!(words.iter().all(|words| ran.out.contains(words)), "{ran:?}");
}

#[test]
fn a_wrong_time_is_told_with_what_to_type() {
    for (line, expected) in [
        (
            "sessions --since tomorrow",
            "error: --since: `tomorrow` lies in the future\n  \
             try: --since 2h, --since yesterday or --since 'yesterday 10:00'\n",
        ),
        (
            "ports --at 9999-01-01",
            "error: --at: `9999-01-01` lies in the future\n  try: --at 2h, --at yesterday or --at 'yesterday 10:00'\n",
        ),
        (
            "sessions --since soon",
            "error: --since: `soon` is no time\n  \
             try: --since 2h30m, --since 10:00 or --since '2026-11-21 10:00' (fleetctl help time)\n",
        ),
        (
            "sessions --utc --since 2026-01-02 --until 2026-01-01",
            "error: --since lies after --until: 2026-01-02 00:00:00 +00:00 is later than 2026-01-01 00:00:00 +00:00\n  \
             try: --since 2026-01-01 --until 2026-01-02\n",
        ),
        ("changes --since 1h --until 2h", "error: --since lies after --until\n  try: --since 2h --until 1h\n"),
        (
            "changes --utc -q --since 2026-01-01 --baseline 2026-01-02",
            "error: --baseline lies after --since: 2026-01-02 00:00:00 +00:00 is later than 2026-01-01 00:00:00 +00:00\n  \
             try: --since 1h --baseline 30d\n",
        ),
        (
            "diff --utc --from 2026-01-02 --to 2026-01-01",
            "error: --from lies after --to: 2026-01-02 00:00:00 +00:00 is later than 2026-01-01 00:00:00 +00:00\n  \
             try: --from 2026-01-01 --to 2026-01-02\n",
        ),
        ("sessions --until 2h", "error: --until needs a beginning\n  try: --since yesterday --until 10:00\n"),
    ] {
        check(line, 2, expected);
    }
    let ran = Home::new().run(&["sessions", "--at", "2h", "--since", "3h"]);
    assert!(ran.code == 2 && ran.err.contains("cannot be used with"), "{ran:?}");
}

#[test]
fn the_window_that_was_understood_is_told_and_q_keeps_it_quiet() {
    let home = Home::new();
    let ran = home.run(&["sessions", "--utc", "--since", "2026-01-01 10:00", "--until", "@1767348000"]);
    assert!(ran.err.starts_with("from 2026-01-01 10:00:00 +00:00 to 2026-01-02 10:00:00 +00:00\n"), "{ran:?}");
    let ran = home.run(&["sessions", "-q", "--since", "2h"]);
    assert!(ran.err.starts_with("error: "), "{ran:?}");
}

#[test]
fn an_unknown_command_or_option_is_told_with_a_suggestion() {
    for (arguments, expected) in [
        (&["prots"][..], "'ports'"),
        (&["ports", "--hots", "a"][..], "a similar argument exists: '--host'"),
        (&["ports", "-o", "xml"][..], "invalid value 'xml'"),
        (&["ports", "--limit", "0"][..], "invalid value '0'"),
        (&["ports", "--color", "sometimes"][..], "one of auto, always, never"),
        (&["help", "tiem"][..], "did you mean time?"),
    ] {
        let ran = Home::new().run(arguments);
        assert!(ran.code == 2 && ran.err.contains(expected) && ran.out.is_empty(), "{ran:?}");
    }
}

#[test]
fn with_json_an_error_is_an_object_on_standard_error() {
    let home = Home::new();
    for (arguments, code, message) in [
        (&["ports", "-o", "json", "--port", "70000"][..], "usage", "--port: `70000` is no port; ports are 0 to 65535"),
        (&["ports", "-o", "json"], "denied", "fleetctl does not know any server yet"),
        (&["ports", "--output=json", "--nonsense"], "usage", "unexpected argument '--nonsense' found"),
    ] {
        let ran = home.run(arguments);
        let error: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
        assert_eq!((error["code"].as_str().unwrap(), error["message"].as_str().unwrap()), (code, message));
        assert_eq!(error["exit_code"], ran.code);
        assert!(error["hint"].is_string(), "{error}");
    }
}

#[test]
fn who_knows_no_server_is_told_how_to_begin() {
    for command in ["hosts", "ports", "sessions", "changes", "tokens"] {
        let ran = Home::new().run(&[command]);
        assert_eq!(ran.code, 4, "{ran:?}");
        assert!(ran.err.contains("fleetctl login") && ran.err.contains("fleetctl dev"), "{ran:?}");
    }
}

#[test]
fn a_reader_who_leaves_early_is_no_error() {
    let home = Home::new();
    let mut child =
        home.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::with_capacity(1, child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut err = String::new();
    child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    assert_eq!((child.wait().unwrap().code(), err.as_str()), (Some(0), ""));
    assert!(line.starts_with("_fleetctl"), "{line}");
}

#[test]
fn a_full_disk_is_told() {
    let home = Home::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let ran = Ran::from(home.command(&["completions", "bash"]).stdout(full).output().unwrap());
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("error: cannot write to standard output: No space left on device"), "{ran:?}");
}

#[test]
fn what_was_typed_does_not_move_the_cursor_when_it_is_repeated() {
    let ran = Home::new().run(&["ports", "--service", "\u{1b}[2J\u{202e}x"]);
    assert_eq!(ran.err.lines().next().unwrap(), "error: --service: no port is called `\\u{1b}[2J\\u{202e}x`");
}

#[test]
fn colour_is_written_when_it_is_wanted_and_never_otherwise() {
    let home = Home::new();
    let plain = home.run(&["ports", "--port", "70000"]);
    assert!(!plain.err.contains('\u{1b}'), "{plain:?}");
    let forced = home.run(&["ports", "--port", "70000", "--color", "always"]);
    assert!(forced.err.contains("\u{1b}[1m\u{1b}[31merror:"), "{forced:?}");
    let forced = Ran::from(home.command(&["ports", "--port", "70000"]).env("CLICOLOR_FORCE", "1").output().unwrap());
    assert!(forced.err.contains("\u{1b}["), "{forced:?}");
    let never = Ran::from(
        home.command(&["ports", "--port", "70000", "--color", "never"]).env("CLICOLOR_FORCE", "1").output().unwrap(),
    );
    assert!(!never.err.contains('\u{1b}'), "{never:?}");
}
