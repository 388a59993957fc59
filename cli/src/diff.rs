//! `fleetctl diff`: which listeners are there at one moment and not at another, and which changed hands.

use std::collections::HashSet;

use clap::Args;
use fleetsock_proto::{
    address::Scope,
    answer::AnswerMeta,
    client::{Answer, CallError, OperatorClient},
    host::{HostId, HostSelector},
    listener::Listener,
    question::{CoverageQuestion, PortQuestion},
    time::Timestamp,
};

use self::comparison::compare;
use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{HOSTS, SocketArguments, words},
    listing::Listing,
    record::difference::{Difference, Unobserved},
    server, window,
};

mod comparison;

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl diff --from yesterday                    what listens now and did not then, and the other way round
  fleetctl diff --from 2h --to 1h --host 'web*'
  fleetctl diff --from 7d --class well-known -q || echo 'something changed'

";

/// Which listeners, and at which moments.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    filter: SocketArguments,
    /// How far it can be reached: loopback, link, private, public, any.
    #[arg(long, value_name = "SCOPE,...", value_delimiter = ',', help_heading = "Filters")]
    scope: Vec<String>,
    /// The earlier moment, as in 2h, yesterday, 10:00 (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: String,
    /// The later moment; now without it.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
}

/// Shows the differences; 0 says that there is none, 1 that there are.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<Difference>::new(invocation, arguments.filter.left_out())?;
    let (from, to) = window::of_diff(invocation, &arguments.from, arguments.to.as_deref())?;
    let question = PortQuestion {
        filter: arguments.filter.filter()?,
        scopes: words("--scope", &arguments.scope, Scope::ALL, Scope::as_str)?,
        at: None,
        limit: None,
    };
    let hosts = question.filter.hosts.clone();
    let mut client = server::connect(invocation).await?;
    let then = listeners(client.list_ports(PortQuestion { at: Some(from), ..question.clone() }).await).await?;
    let now = listeners(client.list_ports(PortQuestion { at: Some(to), ..question }).await).await?;
    let unseen_then = unobserved(&mut client, &hosts, from).await?;
    let unseen_now = unobserved(&mut client, &hosts, to).await?;
    let doubt = |host: HostId| Unobserved { from: unseen_then.contains(&host), to: unseen_now.contains(&host) };
    let mut differences = compare(then.0, now.0, doubt);
    let found = differences.len();
    let meta = meta_of_both(&then.1, now.1, arguments.filter.limit.is_some_and(|limit| found > limit as usize));
    differences.truncate(arguments.filter.limit.map_or(usize::MAX, |limit| limit as usize));
    let exit = listing.until(to).limited(arguments.filter.limit).write_answer(invocation, differences, &meta)?;
    Ok(match exit {
        Exit::Done if found > 0 => Exit::Differs,
        exit => exit,
    })
}

/// All listeners of an answer. Half of them would make differences that are none.
async fn listeners(answer: Result<Answer<Listener>, CallError>) -> Result<(Vec<Listener>, AnswerMeta), Failure> {
    let collected = match answer {
        Ok(answer) => answer.collect().await,
        Err(error) => Err(error),
    };
    let (rows, meta) = collected.map_err(|error| Failure::from(error).or_hint(HOSTS))?;
    if meta.truncated {
        let message = format!("there are more than {} listeners to compare", rows.len());
        return Err(
            Failure::new(Exit::Failed, message).hint("fewer hosts (--host, --label) or ports (--port, --class)")
        );
    }
    Ok((rows, meta))
}

/// The hosts that nobody looked at in a moment.
async fn unobserved(
    client: &mut OperatorClient,
    hosts: &HostSelector,
    at: Timestamp,
) -> Result<HashSet<HostId>, Failure> {
    let question = CoverageQuestion { hosts: hosts.clone(), since: Some(at), until: Some(at), limit: None };
    let (gaps, _) = client.list_coverage(question).await?.collect().await?;
    Ok(gaps.into_iter().map(|gap| gap.host_id).collect())
}

/// What both answers cover together.
fn meta_of_both(then: &AnswerMeta, now: AnswerMeta, truncated: bool) -> AnswerMeta {
    let mut gaps = then.gaps.clone();
    let more: Vec<_> = now.gaps.iter().filter(|gap| !then.gaps.contains(gap)).cloned().collect();
    let gaps_total = then.gaps_total.max(now.gaps_total).max((gaps.len() + more.len()) as u64);
    gaps.extend(more);
    gaps.truncate(fleetsock_proto::answer::META_NAMES_LIMIT);
    AnswerMeta { since: Some(then.as_of), until: Some(now.as_of), gaps, gaps_total, truncated, ..now }
}
