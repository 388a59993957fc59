//! `fleetctl hosts`: who reports, and how well.

use std::io::Write;

use clap::Args;
use fleetsock_proto::host::{Host, HostSelector};

use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{HOSTS, HostArguments},
    freshness,
    listing::Listing,
    record::{Record, Times, View},
    render::Format,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl hosts                          every host, whether it reports, and how much is open
  fleetctl hosts web1                     all that is known of one
  fleetctl hosts 'web*' -o wide           with kernel, agent, clock, labels
  fleetctl hosts --label site=berlin -o name

";

/// Characters that make a name a glob.
const GLOB_CHARACTERS: [char; 3] = ['*', '?', '['];

/// Which hosts.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Hosts by name, glob or id.
    #[arg(value_name = "HOST")]
    names: Vec<String>,
    #[command(flatten)]
    filter: HostArguments,
}

/// Lists hosts; in a table, those that are named are shown whole.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<Host>::new(invocation, &[])?;
    let mut selector = arguments.filter.selector()?;
    let named = selector == HostSelector::default() && !arguments.names.is_empty();
    let named = named && !arguments.names.iter().any(|name| name.contains(GLOB_CHARACTERS));
    selector.globs.extend(arguments.names);
    let mut client = server::connect(invocation).await?;
    let as_usual = invocation.options.output == Format::Table && invocation.options.columns.is_empty();
    let answer = client.list_hosts(selector).await.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
    if !(named && as_usual) {
        return listing.write(invocation, answer).await;
    }
    let (hosts, meta) = answer.collect().await.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
    for (place, host) in hosts.iter().enumerate() {
        if place > 0 {
            writeln!(invocation.console.out)?;
        }
        card(invocation, host)?;
    }
    Ok(freshness::tell(&meta, invocation, None))
}

/// Everything about one host, a line for each column.
fn card(invocation: &mut Invocation, host: &Host) -> Result<(), Ended> {
    let now = invocation.clock.now();
    let view = View { clock: invocation.clock.clone(), times: Times::Absolute, until: now };
    let width = Host::columns().iter().map(|column| column.name.len()).max().unwrap_or(0);
    let paint = invocation.console.paint;
    for column in Host::columns() {
        let cell = (column.cell)(host, &view);
        let name = column.name.replace('_', " ");
        writeln!(invocation.console.out, "{name:width$}  {}", paint.tone(cell.tone, &cell.text))?;
    }
    Ok(invocation.console.out.flush()?)
}
