//! The time that a question is about, as `--at`, `--since` and `--until` say it.

use std::time::Duration;

use fleetsock_proto::{question::SessionTime, time::Timestamp};

use crate::{Invocation, failure::Failure, moment::InvalidMoment};

/// How far a question about changes goes back when it does not say.
const CHANGES_WINDOW: Duration = Duration::from_secs(86_400);

/// What was typed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Window<'a> {
    /// `--at`.
    pub at: Option<&'a str>,
    /// `--since`.
    pub since: Option<&'a str>,
    /// `--until`.
    pub until: Option<&'a str>,
}

fn moment(invocation: &Invocation, flag: &str, text: &str) -> Result<Timestamp, Failure> {
    invocation.clock.parse(text).map_err(|error| {
        let failure = Failure::usage(format!("{flag}: {error}"));
        match error {
            InvalidMoment::Future(_) => {
                failure.hint(format!("{flag} 2h, {flag} yesterday or {flag} 'yesterday 10:00'"))
            }
            InvalidMoment::TooEarly(_) => failure.hint(format!("{flag} 7d")),
            InvalidMoment::Unreadable(_) => {
                failure.hint(format!("{flag} 2h30m, {flag} 10:00 or {flag} '2026-11-21 10:00' (fleetctl help time)"))
            }
        }
    })
}

/// The moment of `--at`, and says what it was taken for.
pub fn at(invocation: &Invocation, text: Option<&str>) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let at = moment(invocation, "--at", text)?;
    invocation.console.note(&format!("at {}", invocation.clock.resolved(at)));
    Ok(Some(at))
}

/// The time of a question about a log, each end of which may be open.
pub fn of_log(
    invocation: &Invocation,
    since: Option<&str>,
    until: Option<&str>,
) -> Result<(Option<Timestamp>, Option<Timestamp>), Failure> {
    let parsed_since = since.map(|text| moment(invocation, "--since", text)).transpose()?;
    let parsed_until = until.map(|text| moment(invocation, "--until", text)).transpose()?;
    if let (Some(from), Some(to)) = (parsed_since, parsed_until)
        && from > to
    {
        let hint = format!("--since {} --until {}", until.unwrap_or_default(), since.unwrap_or_default());
        return Err(Failure::usage("--since lies after --until").hint(hint));
    }
    Ok((parsed_since, parsed_until))
}

/// The time of a question about changes, the last day unless it says otherwise, and says what it was taken for.
pub fn of_changes(
    invocation: &Invocation,
    since: Option<&str>,
    until: Option<&str>,
) -> Result<(Timestamp, Option<Timestamp>), Failure> {
    let (since, until) = of_log(invocation, since, until)?;
    let since = since.unwrap_or_else(|| until.unwrap_or(invocation.clock.now()).minus(CHANGES_WINDOW));
    let end = until.map_or_else(|| "now".to_owned(), |until| invocation.clock.resolved(until));
    invocation.console.note(&format!("from {} to {end}", invocation.clock.resolved(since)));
    Ok((since, until))
}

/// Since when what is new may not have been there, and says what it was taken for. It lies before the window.
pub fn baseline(invocation: &Invocation, text: Option<&str>, since: Timestamp) -> Result<Option<Timestamp>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let baseline = moment(invocation, "--baseline", text)?;
    let (told, begin) = (invocation.clock.resolved(baseline), invocation.clock.resolved(since));
    if baseline > since {
        let message = format!("--baseline lies after --since: {told} is later than {begin}");
        return Err(Failure::usage(message).hint("--since 1h --baseline 30d"));
    }
    invocation.console.note(&format!("new against what was there from {told}"));
    Ok(Some(baseline))
}

/// The two moments of a comparison, the later one now unless it says otherwise, and says what they were taken for.
pub fn of_diff(invocation: &Invocation, from: &str, to: Option<&str>) -> Result<(Timestamp, Timestamp), Failure> {
    let earlier = moment(invocation, "--from", from)?;
    let later = to.map_or(Ok(invocation.clock.now()), |text| moment(invocation, "--to", text))?;
    let (told, end) = (invocation.clock.resolved(earlier), invocation.clock.resolved(later));
    if earlier > later {
        let message = format!("--from lies after --to: {told} is later than {end}");
        return Err(Failure::usage(message).hint(format!("--from {} --to {from}", to.unwrap_or("now"))));
    }
    invocation.console.note(&format!("from {told} to {end}"));
    Ok((earlier, later))
}

/// The time of a question about sessions, and says what it was taken for.
pub fn of_sessions(invocation: &Invocation, typed: Window<'_>) -> Result<SessionTime, Failure> {
    if let Some(at) = at(invocation, typed.at)? {
        return Ok(SessionTime::At(at));
    }
    let since = typed.since.map(|text| moment(invocation, "--since", text)).transpose()?;
    let until = typed.until.map(|text| moment(invocation, "--until", text)).transpose()?;
    match (since, until) {
        (None, None) => Ok(SessionTime::Now),
        (None, Some(_)) => Err(Failure::usage("--until needs a beginning").hint("--since yesterday --until 10:00")),
        (Some(since), Some(until)) if since > until => {
            let (late, early) = (invocation.clock.resolved(since), invocation.clock.resolved(until));
            let message = format!("--since lies after --until: {late} is later than {early}");
            Err(Failure::usage(message).hint(format!(
                "--since {} --until {}",
                typed.until.unwrap_or_default(),
                typed.since.unwrap_or_default()
            )))
        }
        (Some(since), until) => {
            let end = until.map_or_else(|| "now".to_owned(), |until| invocation.clock.resolved(until));
            invocation.console.note(&format!("from {} to {end}", invocation.clock.resolved(since)));
            Ok(SessionTime::Within { since, until })
        }
    }
}
