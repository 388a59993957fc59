//! How fast the history takes rows, against bare SQLite inserts of the same rows, and how fast it answers.
//!
//! ```text
//! cargo bench -p fleetsock-server --bench ingest
//! ```
//!
//! All ways of storing take turns within one run, so that their ratios hold where the machine's speed does not. Every
//! row is durable when it counts: FULL, and acknowledged. Results are printed as Markdown tables, medians of the rounds.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for measuring, run by hand")]

mod bare;
mod load;
mod questions;
mod watch;

use std::{path::Path, time::Instant};

use clap::Parser;
use fleetsock_server::history::sqlite::{Options, SqliteHistory};

use self::{
    load::{Load, Mix},
    watch::{Took, Watch},
};

/// Rows per second through the history and through bare SQLite, and times of questions.
#[derive(Debug, Clone, Parser)]
struct Arguments {
    /// Rows of one way in one round.
    #[arg(long, default_value_t = 500_000)]
    rows: usize,
    /// Rounds in which all ways take turns.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Hosts that report at once, each with one batch on the way.
    #[arg(long, default_value_t = 200)]
    hosts: usize,
    /// Closed sessions in the database when questions are asked.
    #[arg(long, default_value_t = 1_000_000)]
    sessions: usize,
    /// Times that each question is asked.
    #[arg(long, default_value_t = 200)]
    asked: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A folder on the disk that the build is on: temporary folders may be in memory.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Stores all rows in a new history, by hosts that report at once.
async fn through_history(load: &Load) -> Took {
    let folder = folder();
    let history = SqliteHistory::open(&folder.path().join("history"), Options::default()).unwrap();
    let took = load.report(&std::sync::Arc::new(history)).await;
    assert_eq!(usize::try_from(stored(folder.path())).unwrap(), load.stored());
    took
}

/// Rows in the database, open and closed.
fn stored(folder: &Path) -> i64 {
    let day = rusqlite::Connection::open(folder.join("history/day-1.db")).unwrap();
    let count = "SELECT (SELECT count(*) FROM sessions) + (SELECT count(*) FROM open_sessions)";
    day.query_row(count, [], |row| row.get(0)).unwrap()
}

async fn compare(arguments: &Arguments, mix: Mix) {
    let load = Load::new(mix, arguments.hosts, arguments.rows);
    let rows = load.rows();
    let (mut history, mut one, mut many) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..arguments.rounds {
        history.push(through_history(&load).await);
        one.push(bare::insert(folder().path(), &rows, usize::MAX));
        many.push(bare::insert(folder().path(), &rows, 10_000));
    }
    let each = |took: &[Took], figure: fn(Took) -> f64| median(took.iter().map(|took| figure(*took)).collect());
    let rate = |took: &[Took]| rows.len() as f64 / each(took, |took| took.clock);
    let cpu = |took: &[Took]| 1e6 * each(took, |took| took.cpu) / rows.len() as f64;
    // Within a round, because what else the machine does differs more between rounds.
    let limit = one.clone();
    let of_limit =
        |took: &[Took]| median(limit.iter().zip(took).map(|(limit, took)| limit.clock / took.clock).collect());
    println!("\n| {} rows, {mix} | rows/s | of the limit | CPU us per row |", rows.len());
    println!("|---|---|---|---|");
    for (what, took) in [
        ("limit: one bare table without an index, one transaction", one),
        ("the same in transactions of 10,000 rows", many),
        ("the history: batches of 50 rows, each acknowledged when durable", history),
    ] {
        println!("| {what} | {:.0} k | {:.2} | {:.2} |", rate(&took) / 1000.0, of_limit(&took), cpu(&took));
    }
}

async fn run(arguments: Arguments) {
    if arguments.rows > 0 {
        for mix in [Mix::Short, Mix::Walked] {
            compare(&arguments, mix).await;
        }
    }
    if arguments.asked > 0 {
        let begun = Instant::now();
        let place = folder();
        let fleet = questions::Fleet::build(&place.path().join("history"), arguments.sessions).await;
        println!("\nquestions: the database was built in {:.1} s", begun.elapsed().as_secs_f64());
        fleet.ask_all(arguments.asked).await;
    }
}

fn main() {
    let arguments = Arguments::parse();
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(run(arguments));
}
