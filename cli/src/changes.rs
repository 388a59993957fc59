//! `fleetctl changes`: what opened, closed, changed hands or began to reach further.

use clap::Args;
use fleetsock_proto::{
    address::Scope,
    change::{ChangeKind, ChangeRecord, ChangeSubject},
    question::ChangeQuestion,
    socket::Direction,
};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{self, Peer, SocketArguments, words},
    listing::Listing,
    server, window,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl changes                                  listeners, of the last day, on every host
  fleetctl changes --host web1 --since 2h --sessions
  fleetctl changes --kind scope-widened --since 30d
  fleetctl changes --since 1h --baseline 30d --sessions    what is new
  fleetctl changes --kind owner-changed --class well-known -o json

";

/// Which changes, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: SocketArguments,
    /// opened, closed, owner-changed, scope-widened ... (help filters).
    #[arg(long, value_name = "KIND,...", value_delimiter = ',', help_heading = "Filters")]
    kind: Vec<String>,
    /// Sessions too, not only listeners.
    #[arg(long, help_heading = "Filters")]
    sessions: bool,
    /// How far listeners can be reached: loopback, link, private, public, any.
    #[arg(long, value_name = "SCOPE,...", value_delimiter = ',', help_heading = "Filters")]
    scope: Vec<String>,
    /// The other end of sessions: an address, a CIDR prefix, or a host.
    #[arg(long, value_name = "PEER,...", value_delimiter = ',', help_heading = "Filters")]
    peer: Vec<String>,
    /// Sessions that began so: in or out.
    #[arg(long, value_name = "DIR,...", value_delimiter = ',', hide_short_help = true, help_heading = "Filters")]
    direction: Vec<String>,
    /// Since then; without it, of the last day (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    until: Option<String>,
    /// Only what is new: nothing like it was there since then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    baseline: Option<String>,
}

/// Lists changes.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<ChangeRecord>::new(invocation, arguments.filter.left_out())?;
    let peers: Vec<Peer> = arguments.peer.iter().map(|text| text.parse()).collect::<Result<_, Failure>>()?;
    let directions = words("--direction", &arguments.direction, Direction::ALL, Direction::as_str)?;
    let mut subjects = vec![ChangeSubject::Listener, ChangeSubject::Host];
    if arguments.sessions || !peers.is_empty() || !directions.is_empty() {
        subjects.push(ChangeSubject::Session);
    }
    let mut question = ChangeQuestion {
        filter: arguments.filter.filter()?,
        scopes: words("--scope", &arguments.scope, Scope::ALL, Scope::as_str)?,
        directions,
        kinds: words("--kind", &arguments.kind, ChangeKind::ALL, ChangeKind::as_str)?,
        subjects,
        limit: arguments.filter.limit,
        ..ChangeQuestion::default()
    };
    let (since, until) = window::of_changes(invocation, arguments.since.as_deref(), arguments.until.as_deref())?;
    (question.since, question.until) = (Some(since), until);
    question.baseline = window::baseline(invocation, arguments.baseline.as_deref(), since)?;
    let mut client = server::connect(invocation).await?;
    question.peers = filters::resolve_peers(&mut client, peers).await?;
    let answer = client.list_changes(question).await?;
    listing
        .until(until.unwrap_or(invocation.clock.now()))
        .limited(arguments.filter.limit)
        .write(invocation, answer)
        .await
}
