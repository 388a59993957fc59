//! `fleetctl summary`: listeners, sessions and bytes in sum.

use clap::Args;
use fleetsock_proto::{
    question::{Pairing, SessionQuestion, SessionTime, SessionView, SummaryQuestion},
    socket::{Direction, SocketState},
    summary::{Dimension, Sum},
};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{self, Peer, SocketArguments, words},
    listing::Listing,
    server,
    window::{self, Window},
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl summary --by class                       what is open now
  fleetctl summary --by host,service --since 1d --limit 20
  fleetctl summary --by peer --host db1 --direction in --since 7d
  fleetctl summary --by hour --service ssh --since 1d

";

/// What is counted, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    /// class, service, host, process, peer, hour: one of them, or several.
    #[arg(long, value_name = "DIMENSION,...", value_delimiter = ',', required = true)]
    by: Vec<String>,
    #[command(flatten)]
    filter: SocketArguments,
    /// The other end: an address, a CIDR prefix, or a host of the fleet; counts sessions only.
    #[arg(long, value_name = "PEER,...", value_delimiter = ',', help_heading = "Filters")]
    peer: Vec<String>,
    /// in or out: who began it; counts sessions only.
    #[arg(long, value_name = "DIR,...", value_delimiter = ',', help_heading = "Filters")]
    direction: Vec<String>,
    /// The state when last seen, as in established or close-wait; counts sessions only.
    #[arg(long, value_name = "STATE,...", value_delimiter = ',', help_heading = "Filters")]
    state: Vec<String>,
    /// Open at some time since then; without it, open now (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    until: Option<String>,
    /// Open at that moment.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    at: Option<String>,
}

/// Columns that have nothing to say; those of dimensions are called like them.
fn left_out(question: &SummaryQuestion, peers: &[Peer]) -> Vec<&'static str> {
    let unasked = Dimension::ALL.iter().filter(|dimension| !question.by.contains(dimension));
    let listeners = (!question.counts_listeners() || !peers.is_empty()).then_some("listeners");
    unasked.map(|dimension| dimension.as_str()).chain(listeners).collect()
}

/// Shows the sums.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let peers: Vec<Peer> = arguments.peer.iter().map(|text| text.parse()).collect::<Result<_, Failure>>()?;
    let typed =
        Window { at: arguments.at.as_deref(), since: arguments.since.as_deref(), until: arguments.until.as_deref() };
    let mut question = SummaryQuestion {
        by: words("--by", &arguments.by, Dimension::ALL, Dimension::as_str)?,
        sockets: SessionQuestion {
            closed_before: None,
            filter: arguments.filter.filter()?,
            directions: words("--direction", &arguments.direction, Direction::ALL, Direction::as_str)?,
            states: words("--state", &arguments.state, SocketState::ALL, SocketState::as_str)?,
            peers: Vec::new(),
            time: window::of_sessions(invocation, typed)?,
            limit: None,
            pairing: Pairing::Never,
            view: SessionView::Full,
        },
        limit: arguments.filter.limit,
    };
    let listing = Listing::<Sum>::new(invocation, &left_out(&question, &peers))?.limited(arguments.filter.limit);
    let until = match question.sockets.time {
        SessionTime::At(at) => at,
        SessionTime::Within { until: Some(until), .. } => until,
        SessionTime::Now | SessionTime::Within { until: None, .. } => invocation.clock.now(),
    };
    let mut client = server::connect(invocation).await?;
    question.sockets.peers = filters::resolve_peers(&mut client, peers).await?;
    let answer = client.summarize(question).await?;
    listing.until(until).write(invocation, answer).await
}
