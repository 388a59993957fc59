//! `fleetctl hosts --coverage`: when each host was observed, how well, and why not.

use std::io::Write;

use fleetsock_proto::{
    answer::{AnswerMeta, Cover, Gap, META_NAMES_LIMIT},
    client::{Answer, CallError},
    host::{Host, HostSelector},
    question::CoverageQuestion,
    time::Timestamp,
};

use super::periods::{Span, Whose, cells, periods, sign};
use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::HOSTS,
    listing::Listing,
    record::period::{Period, tone},
    render::Format,
    sanitise::sanitise,
    server, window,
};

/// Signs of a bar.
const BAR_CELLS: usize = 72;

/// When, as it was typed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times<'a> {
    pub(super) since: Option<&'a str>,
    pub(super) until: Option<&'a str>,
}

/// Shows the timelines of hosts: bars above a table, for people; the periods alone, for machines.
pub(super) async fn run(invocation: &mut Invocation, hosts: HostSelector, times: Times<'_>) -> Result<Exit, Ended> {
    let listing = Listing::<Period>::new(invocation, &[])?;
    let (since, until) = window::of_changes(invocation, times.since, times.until)?;
    let mut client = server::connect(invocation).await?;
    let (named, _) = collected(client.list_hosts(hosts.clone()).await).await?;
    let question = CoverageQuestion { hosts, since: Some(since), until, limit: None };
    let (gaps, meta) = collected(client.list_coverage(question).await).await?;
    let span = Span { since, until: until.unwrap_or(meta.as_of).max(since) };
    let told: Vec<(&Host, Vec<Period>)> =
        named.iter().map(|host| (host, periods(Whose { name: &host.name, id: host.host_id }, &gaps, span))).collect();
    if matches!(invocation.options.output, Format::Table | Format::Wide) {
        draw(invocation, &told, span)?;
    }
    let rows = told.into_iter().flat_map(|(_, periods)| periods).collect();
    listing.write_answer(invocation, rows, &naming(meta, gaps))
}

async fn collected<T>(answer: Result<Answer<T>, CallError>) -> Result<(Vec<T>, AnswerMeta), Failure> {
    let collected = match answer {
        Ok(answer) => answer.collect().await,
        Err(error) => Err(error),
    };
    collected.map_err(|error| Failure::from(error).or_hint(HOSTS))
}

/// What the answer covers, with the first gaps by name as other answers have them.
fn naming(meta: AnswerMeta, mut gaps: Vec<Gap>) -> AnswerMeta {
    gaps.truncate(META_NAMES_LIMIT);
    AnswerMeta { gaps, ..meta }
}

/// Draws a bar for each host, the moments of their ends beneath, and a blank line.
fn draw(invocation: &mut Invocation, told: &[(&Host, Vec<Period>)], span: Span) -> Result<(), Ended> {
    if told.is_empty() || span.since >= span.until {
        return Ok(());
    }
    let names: Vec<_> = told.iter().map(|(host, _)| sanitise(&host.name)).collect();
    let width = names.iter().map(|name| unicode_width::UnicodeWidthStr::width(name.as_ref())).max().unwrap_or(0);
    let paint = invocation.console.paint;
    for (name, (_, periods)) in names.iter().zip(told) {
        let pad = " ".repeat(width - unicode_width::UnicodeWidthStr::width(name.as_ref()));
        let cells = cells(periods, span, BAR_CELLS);
        let bar: String = cells
            .chunk_by(|one, other| one == other)
            .map(|run| paint.tone(tone(run[0]), &run.iter().copied().map(sign).collect::<String>()))
            .collect();
        writeln!(invocation.console.out, "{name}{pad}  {bar}")?;
    }
    let blank = " ".repeat(width);
    writeln!(invocation.console.out, "{blank}  {}\n", scale(invocation, span))?;
    invocation.console.out.flush()?;
    let legend = [Cover::Observed, Cover::Lossy, Cover::NotObserved, Cover::Expired]
        .map(|cover| format!("{} {}", sign(cover), cover.as_str()));
    invocation.console.note(&legend.join("  "));
    Ok(())
}

/// The ends of a bar, as wide as it is.
fn scale(invocation: &Invocation, span: Span) -> String {
    let moment = |at: Timestamp| invocation.clock.short(at);
    let (from, to) = (moment(span.since), moment(span.until));
    let between = BAR_CELLS.saturating_sub(from.len() + to.len()).max(1);
    format!("{from}{}{to}", " ".repeat(between))
}
