//! `fleetctl audit`: who did and asked what, and whether the log of that is whole.

use std::{io::Write, str::FromStr};

use clap::{Args, Subcommand};
use fleetsock_proto::audit::{AuditMark, AuditQuestion, AuditRow, AuditVerdict};

use crate::{
    Invocation,
    failure::{Ended, Exit},
    listing::Listing,
    record::audit::hex,
    render::Format,
    sanitise::sanitise,
    server, window,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl audit                             the last 1000 rows, newest first
  fleetctl audit --since yesterday --actor alice
  fleetctl audit --action 'revoke host' -o json
  fleetctl audit --action 'refused call'     what operators, or others in their place, were not let do, and why
  fleetctl audit verify                      whether each row is the one that was written; keep what it says
  fleetctl audit verify --mark 1841:9f2c...  and whether the log goes on from what it said then

";

/// Which rows, or what to do with the log.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    /// Not before (fleetctl help time).
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after.
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Who: an actor, or the name of an operator.
    #[arg(long, value_name = "NAME")]
    actor: Option<String>,
    /// What, as the column ACTION says it.
    #[arg(long, value_name = "ACTION")]
    action: Option<String>,
    /// At most so many rows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Read the whole log; exits with 1 and names the first row that was changed, taken out or put in.
    Verify {
        /// A row and its hash, as an earlier verify told them.
        #[arg(long, value_name = "NUMBER:HASH")]
        mark: Option<Mark>,
    },
}

/// `NUMBER:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark(AuditMark);

impl FromStr for Mark {
    type Err = String;

    fn from_str(text: &str) -> Result<Mark, String> {
        let wrong = || format!("`{text}` is no NUMBER:HASH; the hash has 64 hexadecimal digits");
        let (number, digits) = text.split_once(':').ok_or_else(wrong)?;
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(wrong());
        }
        let mut hash = [0; 32];
        for (byte, pair) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Mark(AuditMark { number, hash }))
    }
}

/// Does it.
pub async fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    match arguments.what {
        Some(What::Verify { mark }) => {
            let verdict = server::connect(invocation).await?.verify_audit(mark.map(|mark| mark.0)).await?;
            tell(invocation, &verdict)
        }
        None => list(invocation, arguments).await,
    }
}

async fn list(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let listing = Listing::<AuditRow>::new(invocation, &[])?;
    let (since, until) = window::of_log(invocation, arguments.since.as_deref(), arguments.until.as_deref())?;
    let Arguments { actor, action, limit, .. } = arguments;
    let question = AuditQuestion { since, until, actor, action, limit };
    let (rows, meta) = server::connect(invocation).await?.list_audit(question).await?.collect().await?;
    let exit = listing.write_rows(invocation, rows)?;
    if meta.truncated {
        invocation.console.note("there is more: older rows were left out (--limit N, or narrow the question)");
    }
    Ok(exit)
}

/// Says what a reading of the log found.
fn tell(invocation: &mut Invocation, verdict: &AuditVerdict) -> Result<Exit, Ended> {
    let (number, hash) = (verdict.last.number, hex(&verdict.last.hash));
    let machine = matches!(invocation.options.output, Format::Json | Format::Jsonl);
    let touched = verdict.touched.as_ref();
    let out = &mut invocation.console.out;
    match touched {
        _ if machine => {
            let object = serde_json::json!({
                "whole": touched.is_none(),
                "rows": number,
                "hash": hash,
                "touched": touched.map(|(row, _)| row),
                "problem": touched.map(|(_, problem)| problem),
            });
            writeln!(out, "{object}")?;
        }
        None => writeln!(out, "the audit log is whole: {number} rows, the last is {number}:{hash}")?,
        Some((row, problem)) => writeln!(out, "row {row} was touched: {}", sanitise(problem))?,
    }
    out.flush()?;
    if touched.is_some() {
        return Ok(Exit::Failed);
    }
    let later = format!("keep that elsewhere, and later: fleetctl audit verify --mark {number}:{hash}");
    if number > 0 && !machine {
        invocation.console.note(&later);
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_what_verify_told() {
        let mark = AuditMark { number: 17, hash: [0xab; 32] };
        assert_eq!(format!("{}:{}", mark.number, hex(&mark.hash)).parse(), Ok(Mark(mark)));
        for text in
            ["", "17", "17:", "17:ab", ":ab", &format!("0:{}", "ab".repeat(32)), &format!("1:{}", "xy".repeat(32))]
        {
            assert!(text.parse::<Mark>().is_err(), "{text}");
        }
    }
}
