//! `fleetctl ports`: what listens, where, and who holds it.

use clap::Args;
use fleetsock_proto::{address::Scope, listener::Listener, question::PortQuestion};

use crate::{
    Invocation,
    failure::{Ended, Exit},
    filters::{SocketArguments, words},
    listing::Listing,
    server, window,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl ports --class well-known                 ports 0 to 1023, on every host
  fleetctl ports --scope any,public --process '*sql*'
  fleetctl ports -tn --port 443,8000-8100 --host 'web*'
  fleetctl ports --service rip --at yesterday       as it was then
  fleetctl ports -o json | jq '.items[].process'

";

/// Which listeners, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: SocketArguments,
    /// How far it can be reached: loopback, link, private, public, any.
    #[arg(long, value_name = "SCOPE,...", value_delimiter = ',', help_heading = "Filters")]
    scope: Vec<String>,
    /// As of then, as in 2h, yesterday, 10:00 (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    at: Option<String>,
    /// As in ss; only listeners are listed anyway.
    #[arg(short = 'l', long = "listening", hide_short_help = true, help_heading = "Filters")]
    listening: bool,
}

/// Lists listeners.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<Listener>::new(invocation, arguments.filter.left_out())?;
    let question = PortQuestion {
        filter: arguments.filter.filter()?,
        scopes: words("--scope", &arguments.scope, Scope::ALL, Scope::as_str)?,
        at: window::at(invocation, arguments.at.as_deref())?,
        limit: arguments.filter.limit,
    };
    let until = question.at.unwrap_or(invocation.clock.now());
    let mut client = server::connect(invocation).await?;
    let answer = client.list_ports(question).await?;
    listing.until(until).limited(arguments.filter.limit).write(invocation, answer).await
}
