//! `fleetctl hosts`: who reports, and how well.

use std::io::Write;

use clap::{Args, Subcommand};
use fleetsock_proto::host::{Host, HostSelector};

use self::coverage::Times as Typed;
use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{HOSTS, HostArguments},
    freshness,
    listing::Listing,
    record::{Record, Times, View},
    render::Format,
    sanitise::sanitise,
    server,
};

mod coverage;
mod periods;

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl hosts                          every host, whether it reports, and how much is open
  fleetctl hosts web1                     all that is known of one
  fleetctl hosts 'web*' -o wide           with kernel, agent, clock, labels
  fleetctl hosts --label site=berlin -o name
  fleetctl hosts web1 --coverage          when it was observed in the last day, how well, and why not
  fleetctl hosts --coverage --since 7d    the same of every host
  fleetctl hosts approve web7             let a host report that waits for that
  fleetctl hosts revoke web7 --reason 'stolen'

";

/// Characters that make a name a glob.
const GLOB_CHARACTERS: [char; 3] = ['*', '?', '['];

/// Which hosts, or what to do with some.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Hosts by name, glob or id.
    #[arg(value_name = "HOST")]
    names: Vec<String>,
    #[command(flatten)]
    filter: HostArguments,
    /// When they were observed, how well, and why not: a bar for each, and the periods.
    #[arg(long)]
    coverage: bool,
    /// With --coverage: since then; without it, the last day (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "coverage")]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, requires = "coverage")]
    until: Option<String>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Refuse hosts from now on: their streams end at once, and nothing of them is stored any more. Their history stays.
    Revoke {
        /// Hosts by name or id.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
        /// Why, for the audit log.
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        reason: String,
    },
    /// Let hosts report that wait for approval, or whose warning you have looked into.
    Approve {
        /// Hosts by name or id.
        #[arg(required = true, value_name = "HOST")]
        hosts: Vec<String>,
    },
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    match &arguments.what {
        None if arguments.coverage => {
            let mut hosts = arguments.filter.selector()?;
            hosts.globs.extend(arguments.names);
            let times = Typed { since: arguments.since.as_deref(), until: arguments.until.as_deref() };
            coverage::run(invocation, hosts, times).await
        }
        None => list(invocation, arguments).await,
        Some(What::Revoke { hosts, reason }) => {
            let mut client = server::connect(invocation).await?;
            for host in hosts {
                let id = client.revoke_host(host, reason).await.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
                let host = sanitise(host);
                invocation.console.note(&format!("host {host} ({id}) is revoked; it comes back only with a new token"));
            }
            Ok(Exit::Done)
        }
        Some(What::Approve { hosts }) => {
            let mut client = server::connect(invocation).await?;
            for host in hosts {
                let id = client.approve_host(host).await.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
                let host = sanitise(host);
                invocation.console.note(&format!("host {host} ({id}) is approved; it reports within half a minute"));
            }
            Ok(Exit::Done)
        }
    }
}

/// Lists hosts; in a table, those that are named are shown whole.
async fn list(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
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
        // In a table the head says it.
        let unit = match column.header {
            "CPU%" => " % of a core",
            "RSS-MIB" => " MiB",
            _ => "",
        };
        writeln!(invocation.console.out, "{name:width$}  {}{unit}", paint.tone(cell.tone, &cell.text))?;
    }
    Ok(invocation.console.out.flush()?)
}
