//! `fleetctl export`: every session of a time into a file, however many they are, for those who look further elsewhere.
//!
//! A server bounds its answers, so that it is asked for one page after the other (`pages`). The file gets its name when
//! it is whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use fleetsock_proto::{
    answer::AnswerMeta,
    client::{CallError, OperatorClient},
    question::{Pairing, SessionQuestion, SessionTime},
    session::Session,
    time::Timestamp,
};

use self::{
    pages::{Pages, Stuck},
    parquet::{GroupLimits, Parquet},
};
use crate::{
    Invocation,
    failure::{Ended, Exit, Failure},
    filters::{HOSTS, SessionArguments},
    freshness,
    record::View,
    render::{self, Format, Headers, Meta, Render, Selection, Style},
    window::{self, Window},
};

mod pages;
mod parquet;

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl export sessions.parquet --since 30d  then: duckdb -c \"SELECT * FROM 'sessions.parquet'\"
  fleetctl export sessions.csv --since 30d      for a spreadsheet
  fleetctl export db.jsonl --since 7d --host 'db*' --direction in
  fleetctl export - -o csv --since 1d --peer 203.0.113.0/24 | xz > seen.csv.xz

";

/// How often a server that has had too many questions is asked again, a second apart.
const PATIENCE: u32 = 60;

/// Which sessions, and where to.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A file that ends in .csv, .tsv, .jsonl or .parquet, or - for standard output.
    #[arg(value_name = "FILE")]
    file: String,
    #[command(flatten)]
    sessions: SessionArguments,
    /// Open at some time since then, as in 30d, yesterday (help time).
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    since: String,
    /// ... and until then [default: now].
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, help_heading = "Filters")]
    until: Option<String>,
    /// Find the process at the other end where that is in the fleet, which takes longer.
    #[arg(long, hide_short_help = true)]
    both_ends: bool,
    /// Overwrite the file.
    #[arg(long)]
    force: bool,
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let format = format(&arguments.file, invocation.options.output)?;
    if format == Format::Parquet && arguments.file == "-" && invocation.console.on_terminal {
        let hint = format!("fleetctl export sessions.parquet --since {}", arguments.since);
        return Err(Failure::usage("a Parquet file is not for a terminal").hint(hint).into());
    }
    if !invocation.options.sort.is_empty() {
        return Err(Failure::usage("--sort: an export is in the order of closing, the newest first")
            .hint("leave --sort out")
            .into());
    }
    if arguments.sessions.filter.limit.is_some() {
        let failure = Failure::usage("--limit: an export is of every session that is meant");
        return Err(failure.hint("fleetctl sessions --limit N -o csv").into());
    }
    let typed = Window { at: None, since: Some(&arguments.since), until: arguments.until.as_deref() };
    let SessionTime::Within { since, until } = window::of_sessions(invocation, typed)? else {
        return Err(Failure::usage("an export has a beginning").hint("--since 30d").into());
    };
    let until = until.unwrap_or_else(|| invocation.clock.now());
    let selection = Selection::new(&invocation.options.columns, format, arguments.sessions.filter.left_out())?;
    refuse_what_is_there(&arguments.file, arguments.force)?;
    let view = View { clock: invocation.clock.clone(), times: format.times(), until };
    let render = renderer(invocation, format, selection, view)?;
    let time = SessionTime::Within { since, until: Some(until) };
    let pairing = if arguments.both_ends { Pairing::Always } else { Pairing::Never };
    let asked = SessionQuestion { time, pairing, ..SessionQuestion::default() };
    let (client, question) = arguments.sessions.ask(invocation, asked).await?;
    let target = Target::open(&arguments.file)?;
    let mut export = Export { client, question, since, until, sessions: 0, begun: Instant::now() };
    let written = export.write(invocation, target, render).await;
    invocation.console.progress("");
    let bytes = written?;
    let meta = export.covered().await?;
    let size = bytes.map_or_else(String::new, |bytes| format!(" in {}, {bytes} bytes", arguments.file));
    invocation.console.note(&format!("{} sessions{size}", export.sessions));
    Ok(freshness::tell(&meta, invocation, None))
}

/// The format that the name of the file tells, or that was asked for.
fn format(file: &str, asked: Format) -> Result<Format, Failure> {
    let told = match Path::new(file).extension().and_then(|ending| ending.to_str()) {
        Some("csv") => Some(Format::Csv),
        Some("tsv") => Some(Format::Tsv),
        Some("jsonl" | "ndjson") => Some(Format::Jsonl),
        Some("parquet") => Some(Format::Parquet),
        _ => None,
    };
    match (asked, told) {
        (Format::Csv | Format::Tsv | Format::Jsonl | Format::Parquet, _) => Ok(asked),
        (Format::Table, Some(told)) => Ok(told),
        (Format::Table, None) => {
            let message =
                format!("`{file}` does not say in which format: it ends in none of .csv, .tsv, .jsonl, .parquet");
            Err(Failure::usage(message).hint(format!("fleetctl export {file} -o csv")))
        }
        (other, _) => {
            let message =
                format!("an export is csv, tsv, jsonl or parquet, and not {}", format!("{other:?}").to_lowercase());
            Err(Failure::usage(message).hint("-o csv"))
        }
    }
}

fn renderer(
    invocation: &Invocation,
    format: Format,
    selection: Selection<Session>,
    view: View,
) -> Result<Box<dyn Render<Session>>, Failure> {
    if format == Format::Parquet {
        return Ok(Box::new(Parquet::new(selection, view, GroupLimits::default())?));
    }
    let headers = if invocation.options.no_headers { Headers::Hidden } else { Headers::Shown };
    let style = Style { format, headers, paint: invocation.console.paint, on_terminal: false };
    render::renderer(&style, selection, view)
}

/// Before anybody is asked, whether the file may be written.
fn refuse_what_is_there(file: &str, force: bool) -> Result<(), Failure> {
    if force || file == "-" || !Path::new(file).exists() {
        return Ok(());
    }
    Err(Failure::usage(format!("{file} is there already")).hint(format!("fleetctl export {file} --force")))
}

/// Where rows go.
enum Target {
    Standard,
    /// Written under another name until it is whole.
    File {
        unfinished: PathBuf,
        path: PathBuf,
        file: BufWriter<File>,
    },
}

impl Target {
    fn open(file: &str) -> Result<Target, Failure> {
        if file == "-" {
            return Ok(Target::Standard);
        }
        let path = PathBuf::from(file);
        let mut unfinished = path.clone().into_os_string();
        unfinished.push(".unfinished");
        let unfinished = PathBuf::from(unfinished);
        // For its owner alone: it tells of every connection of a fleet.
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished);
        let opened = opened.map_err(|error| failed(&unfinished, &error))?;
        Ok(Target::File { unfinished, path, file: BufWriter::with_capacity(1 << 20, opened) })
    }

    fn out<'a>(&'a mut self, invocation: &'a mut Invocation) -> &'a mut dyn Write {
        match self {
            Target::Standard => &mut invocation.console.out,
            Target::File { file, .. } => file,
        }
    }

    /// Gives the file its name; its size.
    fn finish(&mut self, invocation: &mut Invocation) -> Result<Option<u64>, Ended> {
        match self {
            Target::Standard => {
                invocation.console.out.flush()?;
                Ok(None)
            }
            Target::File { unfinished, path, file } => {
                let durable = file.flush().and_then(|()| file.get_ref().sync_all());
                durable.and_then(|()| fs::rename(&*unfinished, &*path)).map_err(|error| failed(path, &error))?;
                Ok(Some(file.get_ref().metadata().map_or(0, |file| file.len())))
            }
        }
    }

    fn give_up(&self) {
        if let Target::File { unfinished, .. } = self {
            // What went wrong is told; that this stays is not worse.
            drop(fs::remove_file(unfinished));
        }
    }
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
}

/// An export on its way.
struct Export {
    client: OperatorClient,
    question: SessionQuestion,
    since: Timestamp,
    until: Timestamp,
    sessions: u64,
    begun: Instant,
}

impl Export {
    /// Writes every session; the size of the file.
    async fn write(
        &mut self,
        invocation: &mut Invocation,
        mut target: Target,
        mut render: Box<dyn Render<Session>>,
    ) -> Result<Option<u64>, Ended> {
        let written = self.write_pages(invocation, &mut target, &mut *render).await;
        let finished = written.and_then(|()| target.finish(invocation));
        if finished.is_err() {
            target.give_up();
        }
        finished
    }

    async fn write_pages(
        &mut self,
        invocation: &mut Invocation,
        target: &mut Target,
        render: &mut dyn Render<Session>,
    ) -> Result<(), Ended> {
        let (mut pages, mut left) = (Pages::default(), PATIENCE);
        loop {
            match self.write_page(&mut pages, invocation, target, render).await {
                Ok(Page::Last) => break,
                Ok(Page::BrokeOff(bound)) => {
                    pages.broke_off().map_err(|all| stuck(all, bound))?;
                    left = PATIENCE;
                }
                // So many questions are too many for the server; later ones are not.
                Err(Told::TooMuch(_)) if left > 0 => {
                    left -= 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(Told::TooMuch(error)) => return Err(Failure::from(error).into()),
                Err(Told::Ended(ended)) => return Err(ended),
            }
        }
        let rows = pages.end();
        self.sessions += rows.len() as u64;
        render.rows(&rows, target.out(invocation))?;
        Ok(render.finish(&Meta::none(), target.out(invocation))?)
    }

    async fn write_page(
        &mut self,
        pages: &mut Pages,
        invocation: &mut Invocation,
        target: &mut Target,
        render: &mut dyn Render<Session>,
    ) -> Result<Page, Told> {
        let mut answer = self.client.list_sessions(pages.ask(&self.question)).await?;
        let mut begun = false;
        loop {
            let rows = match answer.next().await {
                Ok(Some(rows)) => pages.take(rows),
                Ok(None) if answer.meta().is_some_and(|meta| meta.truncated) => {
                    return Ok(Page::BrokeOff(Bound::Rows));
                }
                Ok(None) => return Ok(Page::Last),
                Err(CallError::TooSlow(_)) => return Ok(Page::BrokeOff(Bound::Time)),
                // Not the same page again: a part of it is written.
                Err(CallError::TooMuch(_)) if begun => return Ok(Page::BrokeOff(Bound::Time)),
                Err(error) => return Err(error.into()),
            };
            begun = true;
            self.sessions += rows.len() as u64;
            render.rows(&rows, target.out(invocation)).map_err(Ended::from)?;
            invocation.console.progress(&self.progress(pages.at()));
        }
    }

    /// How far it is, back from the end.
    fn progress(&self, at: Option<Timestamp>) -> String {
        let (whole, done) = (self.until.since(self.since), at.map(|at| self.until.since(at)).unwrap_or_default());
        told(done.as_secs_f64() / whole.as_secs_f64().max(1e-6), self.sessions, self.begun.elapsed())
    }

    /// What the export as a whole covers.
    async fn covered(&mut self) -> Result<AnswerMeta, Ended> {
        let question = SessionQuestion { limit: Some(1), ..self.question.clone() };
        let answer = self.client.list_sessions(question).await.map_err(Failure::from)?;
        let (_, meta) = answer.collect().await.map_err(Failure::from)?;
        Ok(AnswerMeta { truncated: false, ..meta })
    }
}

/// Characters of the bar that shows how far an export is.
const BAR: usize = 30;

/// A bar for the part of the time that was told, and how long the rest takes when it goes on like this.
fn told(part: f64, sessions: u64, took: Duration) -> String {
    let part = part.clamp(0.0, 1.0);
    let done = (part * BAR as f64) as usize;
    let left = match took.as_secs_f64() * (1.0 - part) / part {
        // Of the first rows nothing can be told.
        left if left.is_finite() && took >= Duration::from_secs(1) => format!(", about {left:.0} s left"),
        _ => String::new(),
    };
    format!("[{}{}] {:3.0} %, {sessions} sessions{left}", "#".repeat(done), ".".repeat(BAR - done), 100.0 * part)
}

/// How an answer ended.
enum Page {
    Last,
    BrokeOff(Bound),
}

/// What ended an answer before there was no more.
#[derive(Debug, Clone, Copy)]
enum Bound {
    Rows,
    Time,
}

/// Why there is no answer.
enum Told {
    TooMuch(CallError),
    Ended(Ended),
}

impl From<CallError> for Told {
    fn from(error: CallError) -> Told {
        match error {
            CallError::TooMuch(_) => Told::TooMuch(error),
            error => Told::Ended(Failure::from(error).or_hint(HOSTS).into()),
        }
    }
}

impl From<Ended> for Told {
    fn from(ended: Ended) -> Told {
        Told::Ended(ended)
    }
}

fn stuck(all: Stuck, bound: Bound) -> Failure {
    let (count, what) = match all {
        Stuck::Open(count) => (count, "are open at once"),
        Stuck::AtOneMoment(count) => (count, "closed at one moment"),
    };
    let (why, limit) = match bound {
        Bound::Rows => ("the server tells no more in one answer", "limits.answer_rows"),
        Bound::Time => ("the server has no time to tell more in one answer", "limits.question_s"),
    };
    let message = format!("at least {count} sessions {what}, and {why} ({limit})");
    let hint = format!("export fewer hosts at once, as in --host 'web*', or raise {limit} in the server's server.toml");
    Failure::new(Exit::Failed, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_how_far_it_is_and_how_long_it_takes() {
        let seconds = Duration::from_secs;
        for (part, took, expected) in [
            (0.0, seconds(9), "[..............................]   0 %, 7 sessions"),
            (0.001, seconds(0), "[..............................]   0 %, 7 sessions"),
            (0.25, seconds(20), "[#######.......................]  25 %, 7 sessions, about 60 s left"),
            (1.5, seconds(20), "[##############################] 100 %, 7 sessions, about 0 s left"),
        ] {
            assert_eq!(told(part, 7, took), expected);
        }
    }

    #[test]
    fn the_format_is_that_of_the_name_unless_another_is_asked_for() {
        assert_eq!(format("a.csv", Format::Table), Ok(Format::Csv));
        assert_eq!(format("x/y.jsonl", Format::Table), Ok(Format::Jsonl));
        assert_eq!(format("a.csv", Format::Tsv), Ok(Format::Tsv));
        assert_eq!(format("-", Format::Jsonl), Ok(Format::Jsonl));
        assert_eq!(format("a.parquet", Format::Table), Ok(Format::Parquet));
        assert_eq!(format("-", Format::Parquet), Ok(Format::Parquet));
        for (file, asked, words) in [
            ("-", Format::Table, "does not say in which format"),
            ("a.xlsx", Format::Table, "does not say in which format"),
            ("a.csv", Format::Yaml, "and not yaml"),
        ] {
            let failure = format(file, asked).unwrap_err();
            assert!(failure.message.contains(words) && failure.exit == Exit::Usage, "{failure:?}");
        }
    }
}
