//! `fleetctl doctor`: every step between here and an answer, with a word on each, and what to do where one fails.

use std::{env, fs, io::Write, net::SocketAddr, path::PathBuf, time::Duration};

use fleetsock_proto::{
    answer::AnswerMeta,
    client::{CONNECT_TIMEOUT, CallError, OperatorClient},
    condition::Condition,
    host::{Host, HostSelector, Tier},
    identity::Identity,
    time::Timestamp,
};
use tokio::{net::TcpStream, time::timeout};

use crate::{
    Invocation, clock,
    console::Tone,
    contexts::{ContextName, Contexts},
    failure::{Ended, Exit, Failure},
    folders,
    listing::Listing,
    record::{Cell, Column, Field, Record, Shown, Side, context::operator, text},
    render::Format,
    sanitise::sanitise,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl doctor
  fleetctl doctor --context prod -o json

";

/// Remaining life of a certificate that is worth a warning.
const EXPIRY_WARNING: Duration = Duration::from_secs(2 * 86_400);
/// Difference of clocks that is worth a warning.
const SKEW_WARNING: Duration = Duration::from_secs(2);
/// Difference of clocks with which certificates and time windows go wrong.
const SKEW_WRONG: Duration = Duration::from_secs(60);
/// Hosts that are named in one line.
const NAMED: usize = 5;

/// What a check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Wrong,
}

/// One check.
#[derive(Debug, Clone)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    detail: String,
    hint: String,
}

impl Check {
    fn good(name: &'static str, detail: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Good, detail: detail.into(), hint: String::new() }
    }

    fn warning(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Warning, detail: detail.into(), hint: hint.into() }
    }

    fn wrong(name: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Wrong, detail: detail.into(), hint: hint.into() }
    }

    fn failed(name: &'static str, failure: &Failure) -> Check {
        Check::wrong(name, failure.message.clone(), failure.hint.clone().unwrap_or_default())
    }
}

impl Verdict {
    const fn word(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Wrong => "wrong",
        }
    }

    const fn sign(self) -> (&'static str, Tone) {
        match self {
            Verdict::Good => ("✓", Tone::Good),
            Verdict::Warning => ("!", Tone::Warning),
            Verdict::Wrong => ("✗", Tone::Bad),
        }
    }
}

impl Record for Check {
    const NOUN: &'static str = "check";

    fn fields() -> &'static [Field<Check>] {
        const FIELDS: &[Field<Check>] = &[
            Field { name: "check", value: |check, _| check.name.into() },
            Field { name: "state", value: |check, _| check.verdict.word().into() },
            Field { name: "detail", value: |check, _| text(&check.detail) },
            Field { name: "hint", value: |check, _| text(&check.hint) },
        ];
        FIELDS
    }

    fn columns() -> &'static [Column<Check>] {
        const fn column(
            name: &'static str,
            header: &'static str,
            cell: fn(&Check, &crate::record::View) -> Cell,
        ) -> Column<Check> {
            Column { name, header, fields: &[], shown: Shown::Always, side: Side::Left, cell }
        }
        const COLUMNS: &[Column<Check>] = &[
            column("check", "CHECK", |check, _| Cell::new(check.name)),
            column("state", "STATE", |check, _| Cell::new(check.verdict.word())),
            column("detail", "DETAIL", |check, _| Cell::new(&check.detail)),
            column("hint", "HINT", |check, _| Cell::new(&check.hint)),
        ];
        COLUMNS
    }

    fn name(&self) -> String {
        self.name.to_owned()
    }
}

/// The checks so far; in a table each is told as soon as it is known.
struct Report<'a> {
    invocation: &'a mut Invocation,
    checks: Vec<Check>,
    as_lines: bool,
}

impl Report<'_> {
    fn add(&mut self, check: Check) -> Result<(), Ended> {
        if self.as_lines {
            let console = &mut self.invocation.console;
            let (sign, tone) = check.verdict.sign();
            let sign = console.paint.tone(tone, sign);
            writeln!(console.out, "{sign} {:9} {}", check.name, sanitise(&check.detail))?;
            if !check.hint.is_empty() {
                writeln!(console.out, "            try: {}", check.hint)?;
            }
            console.out.flush()?;
        }
        self.checks.push(check);
        Ok(())
    }
}

/// Checks; exits with 1 when something is wrong.
pub async fn run(invocation: &mut Invocation) -> Result<Exit, Ended> {
    let listing = Listing::<Check>::new(invocation, &[])?;
    let as_lines = matches!(invocation.options.output, Format::Table | Format::Wide);
    let mut report = Report { invocation, checks: Vec::new(), as_lines };
    let checked = check_everything(&mut report).await;
    let checks = std::mem::take(&mut report.checks);
    checked?;
    let wrong = checks.iter().any(|check| check.verdict == Verdict::Wrong);
    if !as_lines {
        listing.write_rows(invocation, checks)?;
    }
    Ok(if wrong { Exit::Failed } else { Exit::Done })
}

/// Each step needs the one before; what cannot be reached is not checked.
async fn check_everything(report: &mut Report<'_>) -> Result<(), Ended> {
    report.add(program())?;
    let Some((name, identity)) = settings(report)? else { return Ok(()) };
    let now = report.invocation.clock.now();
    let expiry = expiry(&identity, now);
    let expired = expiry.verdict == Verdict::Wrong;
    report.add(expiry)?;
    let addresses = match tokio::net::lookup_host(identity.address.as_str()).await {
        Ok(addresses) => addresses.collect::<Vec<_>>(),
        Err(error) => {
            let detail = format!("{} is not found: {error}", identity.address);
            let hint = "another address: log in again with a join string of the server's new address";
            return report.add(Check::wrong("name", detail, hint));
        }
    };
    let told: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
    report.add(Check::good("name", format!("{} is {}", identity.address, told.join(", "))))?;
    let reached = reach(&addresses).await;
    let unreachable = reached.verdict == Verdict::Wrong;
    report.add(reached)?;
    if expired || unreachable {
        return Ok(());
    }
    let mut client = match server::connect_as(report.invocation, identity).await {
        Ok(client) => client,
        Err(failure) => return report.add(Check::failed("tls", &failure)),
    };
    report.add(Check::good("tls", "the server proved that it is ours"))?;
    match ask(&mut client).await {
        Ok((hosts, meta, clock)) => {
            report
                .add(Check::good("call", format!("context {name} may ask about {}", counted(hosts.len(), "host"))))?;
            report.add(clock)?;
            report.add(server_itself(client.show_server().await))?;
            fleet(report, &hosts, &meta)
        }
        Err(failure) => report.add(Check::failed("call", &failure)),
    }
}

/// What the server says of itself.
fn server_itself(answer: Result<Condition, CallError>) -> Check {
    match answer {
        Ok(Condition { unready, version }) if unready.is_empty() => {
            Check::good("server", format!("it does its work (version {version})"))
        }
        Ok(Condition { unready, .. }) => {
            let hint = "look at the server: its log, and the room on its disk";
            Check::wrong("server", unready.join("; "), hint)
        }
        Err(error) => Check::warning("server", format!("it does not say how it is: {error}"), ""),
    }
}

/// Whether this is the program that `fleetctl` starts.
fn program() -> Check {
    let own = env::current_exe().and_then(fs::canonicalize);
    let first = folders::in_path("fleetctl");
    match (own, first) {
        (Ok(own), Some(first)) => {
            if fs::canonicalize(&first).is_ok_and(|first| first == own) {
                return Check::good("program", format!("fleetctl of Fleetsock, {}", own.display()));
            }
            let detail =
                format!("another fleetctl comes first in PATH: {} (FleetDM has one of that name)", first.display());
            Check::warning("program", detail, format!("fleetsockctl, or {}", own.display()))
        }
        (Ok(own), None) => Check::good("program", format!("fleetctl of Fleetsock, {} (not in PATH)", own.display())),
        (Err(error), _) => Check::warning("program", format!("where this program lies is not known: {error}"), ""),
    }
}

/// The contexts file and the identity in it.
fn settings(report: &mut Report<'_>) -> Result<Option<(ContextName, Identity)>, Ended> {
    let loaded = folders::config().and_then(|folder| Ok((Contexts::load(&folder)?, folder)));
    let (contexts, folder): (Contexts, PathBuf) = match loaded {
        Ok(loaded) => loaded,
        Err(failure) => return report.add(Check::failed("config", &failure)).map(|()| None),
    };
    let count = contexts.iter().count();
    report.add(Check::good("config", format!("{}, {}", folder.display(), counted(count, "context"))))?;
    let chosen = contexts.choose(report.invocation.options.context.as_deref()).cloned();
    let name = match chosen {
        Ok(name) => name,
        Err(failure) => return report.add(Check::failed("context", &failure)).map(|()| None),
    };
    match contexts.identity_folder(&name).and_then(server::load) {
        Ok(identity) => {
            let detail = format!("{name}: {} as {}", identity.address, operator(&identity));
            report.add(Check::good("context", detail))?;
            Ok(Some((name, identity)))
        }
        Err(failure) => report.add(Check::failed("context", &failure)).map(|()| None),
    }
}

fn expiry(identity: &Identity, now: Timestamp) -> Check {
    let left = identity.expires_at.since(now);
    let again = "fleetctl login with a new join string (fleetctl tokens create --operator NAME)";
    if now < identity.begins_at {
        let detail = format!("not valid before {}", clock::rfc3339(identity.begins_at));
        Check::wrong("identity", detail, "set this machine's clock")
    } else if left.is_zero() {
        Check::wrong("identity", format!("expired {} ago", clock::lapse(now.since(identity.expires_at))), again)
    } else if left < EXPIRY_WARNING {
        Check::warning("identity", format!("valid for {} more", clock::lapse(left)), again)
    } else {
        Check::good("identity", format!("valid for {} more; its files are private", clock::lapse(left)))
    }
}

/// A TCP connection to the first address that takes one.
async fn reach(addresses: &[SocketAddr]) -> Check {
    let mut problems = Vec::new();
    for address in addresses {
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(Ok(_)) => return Check::good("tcp", format!("{address} accepts connections")),
            Ok(Err(error)) => problems.push(format!("{address}: {error}")),
            Err(_) => problems.push(format!("{address}: no answer within {} s", CONNECT_TIMEOUT.as_secs())),
        }
    }
    Check::wrong(
        "tcp",
        problems.join("; "),
        "is fleetsock-server running there, and does a firewall let the port through?",
    )
}

/// A real question, and how far the server's clock is from ours.
async fn ask(client: &mut OperatorClient) -> Result<(Vec<Host>, AnswerMeta, Check), Failure> {
    let before = Timestamp::now();
    let (hosts, meta) = client.list_hosts(HostSelector::default()).await?.collect().await?;
    let clock = skew(before, meta.as_of, Timestamp::now());
    Ok((hosts, meta, clock))
}

/// The server answered at some moment between our question and its arrival; what lies outside of that is skew.
fn skew(before: Timestamp, server: Timestamp, after: Timestamp) -> Check {
    let (ahead, behind) = (server.since(after), before.since(server));
    let (skew, side) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let detail = format!("the server's clock is {} {side} ours", clock::lapse(skew));
    match skew {
        _ if skew >= SKEW_WRONG => Check::wrong("clock", detail, "synchronise the clocks (chrony, systemd-timesyncd)"),
        _ if skew >= SKEW_WARNING => {
            Check::warning("clock", detail, "synchronise the clocks (chrony, systemd-timesyncd)")
        }
        _ => Check::good("clock", "the server's clock agrees with ours"),
    }
}

fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

fn named<'a>(hosts: impl Iterator<Item = &'a str>) -> (usize, String) {
    let mut names: Vec<&str> = hosts.collect();
    let count = names.len();
    names.truncate(NAMED);
    let more = if count > NAMED { ", ..." } else { "" };
    (count, format!("{}{more}", names.join(", ")))
}

/// How well the hosts report.
fn fleet(report: &mut Report<'_>, hosts: &[Host], meta: &AnswerMeta) -> Result<(), Ended> {
    if hosts.is_empty() {
        let hint = "fleetctl tokens create, and on a host: fleetsock-agent enroll --join fsj1_...";
        return report.add(Check::warning("hosts", "no host has enrolled yet", hint));
    }
    if meta.hosts_stale_total > 0 {
        let (_, names) = named(meta.hosts_stale.iter().map(String::as_str));
        let detail = format!("{} stale: {names}", meta.hosts_stale_total);
        report.add(Check::warning("hosts", detail, "on those hosts: systemctl status fleetsock-agent"))?;
    } else {
        report.add(Check::good("hosts", format!("{}, none is stale", counted(hosts.len(), "host"))))?;
    }
    let pick = |wanted: &dyn Fn(&&Host) -> bool| named(hosts.iter().filter(wanted).map(|host| host.name.as_str()));
    let skew_us = i64::try_from(SKEW_WARNING.as_micros()).unwrap_or(i64::MAX);
    if let (1.., names) = pick(&|host| host.clock_offset_us.abs() > skew_us) {
        report.add(Check::warning(
            "skew",
            format!("clocks off by more than {} s: {names}", SKEW_WARNING.as_secs()),
            "fleetctl hosts -o wide",
        ))?;
    }
    if let (1.., names) = pick(&|host| host.losses > 0) {
        report.add(Check::warning(
            "losses",
            format!("agents lost records: {names}"),
            "fleetctl hosts --columns host,losses",
        ))?;
    }
    if let (count @ 1.., names) = pick(&|host| host.facts.as_ref().is_some_and(|facts| facts.tier == Tier::T0)) {
        let detail = format!("{count} see the processes of their own user only: {names}");
        report.add(Check::warning("tier", detail, "fleetctl hosts NAME says why"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_agree_when_the_answer_lies_between_question_and_arrival() {
        let at = |seconds: i64| Timestamp::from_micros(seconds * 1_000_000);
        assert_eq!(skew(at(100), at(101), at(102)).verdict, Verdict::Good);
        assert_eq!(skew(at(100), at(103), at(102)).verdict, Verdict::Good);
        let ahead = skew(at(100), at(107), at(102));
        assert_eq!(
            (ahead.verdict, ahead.detail.as_str()),
            (Verdict::Warning, "the server's clock is 5s ahead of ours")
        );
        let behind = skew(at(1_000), at(100), at(1_001));
        assert_eq!((behind.verdict, behind.detail.as_str()), (Verdict::Wrong, "the server's clock is 15m behind ours"));
    }

    #[test]
    fn many_hosts_are_counted_and_some_are_named() {
        assert_eq!(named(["a", "b"].into_iter()), (2, "a, b".to_owned()));
        assert_eq!(named(["a", "b", "c", "d", "e", "f"].into_iter()), (6, "a, b, c, d, e, ...".to_owned()));
    }
}
