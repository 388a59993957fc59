//! `fleetctl sessions`: who talked to whom, in which direction, and for how long.

use clap::Args;
use fleetsock_proto::{
    question::{Pairing, SessionQuestion, SessionTime, SessionView},
    session::Session,
};

use crate::{
    Invocation,
    failure::{Ended, Exit},
    filters::SessionArguments,
    listing::Listing,
    record::session::OF_FULL_VIEW,
    window::{self, Window},
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl sessions                                 what is open now, on every host
  fleetctl sessions --host db1 --since 10m          also what closed within ten minutes
  fleetctl sessions --peer 203.0.113.0/24 --since 7d -o wide
  fleetctl sessions --state close-wait --sort -duration_ms
  fleetctl sessions --direction in --service ssh --at 'yesterday 18:30'

";

/// Which sessions, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    sessions: SessionArguments,
    /// Open at some time since then, as in 2h, yesterday, 10:00 (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    until: Option<String>,
    /// Open at that moment.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    at: Option<String>,
    /// Find the process at the other end for however many sessions; without it, for at most 1,000.
    #[arg(long, hide_short_help = true)]
    both_ends: bool,
}

/// Lists sessions.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let filter = &arguments.sessions.filter;
    let listing = Listing::<Session>::new(invocation, filter.left_out())?;
    let limit = filter.limit;
    let typed =
        Window { at: arguments.at.as_deref(), since: arguments.since.as_deref(), until: arguments.until.as_deref() };
    let time = window::of_sessions(invocation, typed)?;
    let pairing = if arguments.both_ends { Pairing::Always } else { Pairing::OfFew };
    let needs_all = listing.fields().any(|field| OF_FULL_VIEW.contains(&field));
    let view = if needs_all { SessionView::Full } else { SessionView::Basic };
    let asked = SessionQuestion { time, limit, pairing, view, ..SessionQuestion::default() };
    let (mut client, question) = arguments.sessions.ask(invocation, asked).await?;
    let until = match question.time {
        SessionTime::At(at) => at,
        SessionTime::Within { until: Some(until), .. } => until,
        SessionTime::Now | SessionTime::Within { until: None, .. } => invocation.clock.now(),
    };
    let answer = client.list_sessions(question).await?;
    listing.until(until).limited(limit).write(invocation, answer).await
}
