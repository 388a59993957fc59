//! `fleetctl sessions`: who talked to whom, in which direction, and for how long.

use clap::Args;
use fleetsock_proto::{
    question::{SessionQuestion, SessionTime},
    session::Session,
    socket::{Direction, SocketState},
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
  fleetctl sessions                                 what is open now, on every host
  fleetctl sessions --host db1 --since 10m          also what closed within ten minutes
  fleetctl sessions --peer 203.0.113.0/24 --since 7d -o wide
  fleetctl sessions --state close-wait --sort -duration_ms
  fleetctl sessions --direction in --service ssh --at 'yesterday 18:30'

";

/// What is said to whoever looks for them among sessions.
const COUNTED_ONLY: &str = "TCP sockets in time-wait or syn-received are not sessions; they are counted for each host: \
    fleetctl hosts --columns HOST,TIME-WAIT,SYN-RECEIVED,BOUND";

/// Which sessions, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: SocketArguments,
    /// The other end: an address, a CIDR prefix, or a host of the fleet.
    #[arg(long, value_name = "PEER,...", value_delimiter = ',', help_heading = "Filters")]
    peer: Vec<String>,
    /// in or out: who began it.
    #[arg(long, value_name = "DIR,...", value_delimiter = ',', help_heading = "Filters")]
    direction: Vec<String>,
    /// The state when last seen, as in established or close-wait.
    #[arg(long, value_name = "STATE,...", value_delimiter = ',', help_heading = "Filters")]
    state: Vec<String>,
    /// Open at some time since then, as in 2h, yesterday, 10:00 (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, conflicts_with = "at", help_heading = "Filters")]
    until: Option<String>,
    /// Open at that moment.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    at: Option<String>,
}

/// Lists sessions.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<Session>::new(invocation, arguments.filter.left_out())?;
    let peers: Vec<Peer> = arguments.peer.iter().map(|text| text.parse()).collect::<Result<_, Failure>>()?;
    let typed =
        Window { at: arguments.at.as_deref(), since: arguments.since.as_deref(), until: arguments.until.as_deref() };
    let mut question = SessionQuestion {
        filter: arguments.filter.filter()?,
        directions: words("--direction", &arguments.direction, Direction::ALL, Direction::as_str)?,
        states: words("--state", &arguments.state, SocketState::ALL, SocketState::as_str)?,
        peers: Vec::new(),
        time: window::of_sessions(invocation, typed)?,
        limit: arguments.filter.limit,
    };
    if question.states.iter().any(|state| matches!(state, SocketState::TimeWait | SocketState::SynReceived)) {
        invocation.console.note(COUNTED_ONLY);
    }
    let mut client = server::connect(invocation).await?;
    question.peers = filters::resolve_peers(&mut client, peers).await?;
    let until = match question.time {
        SessionTime::At(at) => at,
        SessionTime::Within { until: Some(until), .. } => until,
        SessionTime::Now | SessionTime::Within { until: None, .. } => invocation.clock.now(),
    };
    let answer = client.list_sessions(question).await?;
    listing.until(until).limited(arguments.filter.limit).write(invocation, answer).await
}
