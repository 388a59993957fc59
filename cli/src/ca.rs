//! `fleetctl ca`: the root CAs of the fleet.

use clap::{Args, Subcommand};
use fleetsock_proto::{
    client::CallError,
    root::{Behind, Root, Stragglers},
};

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
  fleetctl ca                       the roots that hosts and operators trust, and whom the next step waits for
  fleetctl ca prepare               make the next root, and hand it out beside the one in use
  fleetctl ca activate              issue under it; refused while a host or an operator does not have it
  fleetctl ca retire                drop the one before; refused while somebody still needs it
  fleetctl ca retire --strand       drop it all the same: who still needs it is listed, and must enrol anew
  fleetctl ca abort                 drop the prepared root, as long as it is not active

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
    /// Make the root that is to take the place of the one in use; connected hosts take it within seconds, operators with
    /// their next command.
    Prepare,
    /// Issue certificates under the prepared root from now on; hosts and operators renew theirs as they took the root.
    Activate(Step),
    /// Drop the root before and every certificate under it.
    Retire(Step),
    /// Drop the prepared root.
    Abort,
}

#[derive(Debug, Args)]
struct Step {
    /// Do it also when it strands hosts or operators; they are listed, here and in the audit log.
    #[arg(long)]
    strand: bool,
}

impl Step {
    fn stragglers(&self) -> Stragglers {
        if self.strand { Stragglers::Strand } else { Stragglers::Protect }
    }
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
            let words = "is prepared: connected hosts take it within seconds, operators with their next command";
            invocation.console.note(&format!("root {} {words}", pin(&prepared)));
            invocation.console.note("next: fleetctl ca (whom it waits for), then fleetctl ca activate");
        }
        What::Activate(step) => {
            let done = server::connect(invocation).await?.activate_root(step.stragglers()).await;
            let (active, stranded) = done.map_err(explained)?;
            invocation.console.note(&format!("root {} is active: certificates are issued under it", pin(&active)));
            tell_stranded(invocation, &stranded, "did not have it yet");
            invocation.console.note("next: fleetctl ca (whom it waits for), then fleetctl ca retire");
        }
        What::Retire(step) => {
            let done = server::connect(invocation).await?.retire_root(step.stragglers()).await;
            let (dropped, stranded) = done.map_err(explained)?;
            invocation.console.note(&format!("root {} is dropped, with every certificate under it", pin(&dropped)));
            tell_stranded(invocation, &stranded, "must enrol anew");
        }
        What::Abort => {
            let dropped = server::connect(invocation).await?.abort_root().await.map_err(explained)?;
            invocation.console.note(&format!("root {} is dropped", pin(&dropped)));
        }
    }
    Ok(Exit::Done)
}

fn tell_stranded(invocation: &Invocation, stranded: &Behind, fate: &str) {
    if !stranded.is_nobody() {
        invocation.console.note(&format!("stranded: {stranded}; they {fate}"));
    }
}

fn explained(error: CallError) -> Failure {
    Failure::from(error).or_hint("fleetctl ca")
}
