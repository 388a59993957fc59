//! `fleetctl ca`: the root CAs of the fleet.

use clap::{Args, Subcommand};
use fleetsock_proto::{client::CallError, root::Root};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    listing::Listing,
    record::root::pin,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl ca                       the roots that hosts and operators trust
  fleetctl ca prepare               make the next root, and hand it out beside the one in use
  fleetctl ca abort                 drop it again

";

/// What to do with the CA.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the roots, the one in use first.
    List,
    /// Make the root that is to take the place of the one in use; agents take it when they connect or renew, within a day.
    Prepare,
    /// Drop the prepared root; agents forget it when they connect or renew.
    Abort,
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    match arguments.what.unwrap_or(What::List) {
        What::List => {
            let listing = Listing::<Root>::new(invocation, &[])?;
            let roots = server::connect(invocation).await?.list_roots().await?;
            return listing.write_rows(invocation, roots);
        }
        What::Prepare => {
            let prepared = server::connect(invocation).await?.prepare_root().await.map_err(explained)?;
            let words = "is prepared: agents take it when they connect or renew, within a day";
            invocation.console.note(&format!("root {} {words}", pin(&prepared)));
        }
        What::Abort => {
            let dropped = server::connect(invocation).await?.abort_root().await.map_err(explained)?;
            invocation.console.note(&format!("root {} is dropped", pin(&dropped)));
        }
    }
    Ok(Exit::Done)
}

fn explained(error: CallError) -> Failure {
    Failure::from(error).or_hint("fleetctl ca")
}
