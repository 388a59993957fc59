//! `fleetctl timeline`: the story of one host, in the order in which it happened.

use clap::Args;
use fleetsock_proto::{
    answer::AnswerMeta,
    change::ChangeSubject,
    client::{Answer, CallError, OperatorClient},
    host::{Host, HostSelector},
    question::{ChangeQuestion, CoverageQuestion, Pairing, SessionQuestion, SessionTime, SocketFilter},
    time::Timestamp,
};

use self::hours::Hours;
use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::HOSTS,
    listing::Listing,
    record::entry::{Entry, Happened},
    server, window,
};

mod hours;

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl timeline web1                            the last day
  fleetctl timeline web1 --since 7d --until 6d
  fleetctl timeline web1 --since yesterday -o jsonl

";

/// Most entries of a story; they are held to be put in order.
const ENTRIES_LIMIT: usize = 100_000;

/// Which host, and when.
#[derive(Debug, Args)]
pub struct Arguments {
    /// The host, by name or id.
    #[arg(value_name = "HOST")]
    host: String,
    /// Since then; without it, the last day (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    since: Option<String>,
    /// ... and until then.
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    until: Option<String>,
}

/// Tells the story.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<Entry>::new(invocation, &[])?;
    let (since, until) = window::of_changes(invocation, arguments.since.as_deref(), arguments.until.as_deref())?;
    let mut client = server::connect(invocation).await?;
    let host = the_host(&mut client, &arguments.host).await?;
    let hosts = HostSelector { globs: vec![host.host_id.to_string()], ..HostSelector::default() };
    let end = until.unwrap_or(invocation.clock.now());

    let (mut entries, mut meta) = changes(&mut client, &hosts, (since, until)).await?;
    let coverage = CoverageQuestion { hosts: hosts.clone(), since: Some(since), until: Some(end), limit: None };
    let (gaps, _) = client.list_coverage(coverage).await?.collect().await?;
    entries.extend(gaps.into_iter().map(|gap| Entry { at: gap.since, what: Happened::Gap(gap) }));
    let (sums, truncated) = sessions(&mut client, hosts, (since, until), end).await?;
    entries.extend(sums);
    meta.truncated |= truncated;
    if entries.len() > ENTRIES_LIMIT {
        return Err(too_long().into());
    }
    // Changes arrived newest first; those of one moment are turned around with the rest.
    entries.sort_by_key(|entry| entry.at);
    listing.until(end).write_answer(invocation, entries, &meta)
}

/// The one host that is meant.
async fn the_host(client: &mut OperatorClient, name: &str) -> Result<Host, Failure> {
    let selector = HostSelector { globs: vec![name.to_owned()], ..HostSelector::default() };
    let (mut hosts, _) = collected(client.list_hosts(selector).await).await?;
    match (hosts.pop(), hosts.len()) {
        (Some(host), 0) => Ok(host),
        (None, _) => Err(Failure::new(Exit::NotFound, format!("no host is called `{name}`")).hint(HOSTS)),
        (Some(_), others) => {
            let message = format!("`{name}` names {} hosts; a story is that of one", others + 1);
            Err(Failure::usage(message).hint(format!("one of these, by name or id: fleetctl hosts {name} -o wide")))
        }
    }
}

async fn collected<T>(answer: Result<Answer<T>, CallError>) -> Result<(Vec<T>, AnswerMeta), Failure> {
    let collected = match answer {
        Ok(answer) => answer.collect().await,
        Err(error) => Err(error),
    };
    collected.map_err(|error| Failure::from(error).or_hint(HOSTS))
}

/// What changed, in order, and what the answer covers.
async fn changes(
    client: &mut OperatorClient,
    hosts: &HostSelector,
    (since, until): (Timestamp, Option<Timestamp>),
) -> Result<(Vec<Entry>, AnswerMeta), Failure> {
    let limit = u32::try_from(ENTRIES_LIMIT).ok();
    let question = ChangeQuestion {
        filter: SocketFilter { hosts: hosts.clone(), ..SocketFilter::default() },
        subjects: vec![ChangeSubject::Listener, ChangeSubject::Host],
        since: Some(since),
        until,
        limit,
        ..ChangeQuestion::default()
    };
    let (changes, meta) = collected(client.list_changes(question).await).await?;
    if meta.truncated {
        return Err(too_long());
    }
    let entry = |change: fleetsock_proto::change::ChangeRecord| Entry {
        at: change.at,
        what: Happened::Change(Box::new(change)),
    };
    Ok((changes.into_iter().rev().map(entry).collect(), meta))
}

/// The sessions, hour by hour, and whether some were left out.
async fn sessions(
    client: &mut OperatorClient,
    hosts: HostSelector,
    (since, until): (Timestamp, Option<Timestamp>),
    end: Timestamp,
) -> Result<(Vec<Entry>, bool), Failure> {
    let question = SessionQuestion {
        filter: SocketFilter { hosts, ..SocketFilter::default() },
        time: SessionTime::Within { since, until },
        pairing: Pairing::Never,
        ..SessionQuestion::default()
    };
    let mut answer = client.list_sessions(question).await?;
    let mut hours = Hours::new(since, end);
    while let Some(rows) = answer.next().await? {
        rows.iter().for_each(|session| hours.add(session));
    }
    Ok((hours.entries(), answer.meta().is_some_and(|meta| meta.truncated)))
}

fn too_long() -> Failure {
    Failure::new(Exit::Failed, format!("more than {ENTRIES_LIMIT} things happened"))
        .hint("a shorter time: --since 2h, or --since 2d --until 1d")
}
