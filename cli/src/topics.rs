//! `fleetctl help`: commands, and what several of them have in common.

use std::io::Write;

use clap::Args;

use crate::{
    Invocation, arguments,
    failure::{Ended, Exit, Failure},
    suggestion,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl help time
  fleetctl help ports

";

/// What to explain.
#[derive(Debug, Args)]
pub struct Arguments {
    /// A command, or time, filters, columns, exit-codes.
    #[arg(value_name = "TOPIC")]
    topic: Vec<String>,
}

const TOPICS: [(&str, &str); 4] =
    [("time", TIME), ("filters", FILTERS), ("columns", COLUMNS), ("exit-codes", EXIT_CODES)];

const TIME: &str = "\
Times, for --at, --since and --until

  2h  2h30m  90s  7d  2w  2h ago     so long before now; units w d h m s
  today  yesterday                   the beginning of that day
  10:00  yesterday 18:30             that time of day
  2026-11-21                         the beginning of that day
  2026-11-21 10:00                   local time
  2026-11-21T10:00:00Z  ...+01:00    RFC 3339
  @1763632800                        seconds since 1970

A time without an offset is local time; --utc makes it UTC. A day is one of the calendar, so 1d is the same time
yesterday even when clocks were changed, and 24h is not. Of a time that exists twice the first is meant, and for one
that was leaped over the time after the leap. What a time was taken for is written to standard error.
A time in the future is an error: nothing has been observed then.

Tables show ages (3m, 2d4h); -o wide shows local times; machine formats have RFC 3339 in UTC with milliseconds.

  ~3m    it happened between two walks of the socket table
  ≥3m    it was open when observation began: it opened then or earlier (≤ before a date)
  ?3m    it ended or changed hands while nobody looked
";

const FILTERS: &str = "\
Filters; all that are given must hold, and of several values any

  --host web1,'db*'         hosts by name, glob (* ? [...]) or id; a name that no host has is an error (exit code 6)
  --label site=berlin       hosts with this label; repeated: with all of them
  --class well-known        0 to 1023 (also: system); registered (user) to 49151; dynamic (private, ephemeral) above
  --port 443,8000-8100      of sessions: the port of the service, which is the listening end's
  --proto tcp,udp           also dccp, sctp; -t and -u for short
  --service https,rip       the usual ports of a name, from IANA's registry or everyday use: a guess about the traffic
  --process 'ngin*'         process names; globs
  --user www-data,0         user names or numbers
  --scope any,public        how far a listener's address reaches: loopback, link, private, public, any (ports)
  --direction in            who began it: in, out (sessions)
  --peer 10.0.0.0/8,db1     the other end: address, CIDR prefix, or a host of the fleet by its addresses (sessions)
  --state close-wait        established, syn-sent, syn-received, fin-wait-1, fin-wait-2, close-wait, last-ack, closing,
                            time-wait (sessions)
  --kind scope-widened      opened, closed, owner-changed, scope-widened, agent-started, host-booted (changes)
  -4 -6                     address family; a listener on [::] that IPv4 reaches is both
  --at --since --until      fleetctl help time
  --limit N                 at most so many rows; standard error says when there is more

From ss: -t -u -4 -6 as there, -n leaves service names out, -l and -p are accepted and change nothing.
";

const EXIT_CODES: &str = "\
Exit codes

  0    done; an empty list too, and when the reader of the output left early (| head)
  1    failed; of diff: there are differences
  2    wrong usage
  3    the answer does not cover everything, and --fail-on-stale was given: a host is stale, something was not
       observed, or the server cut the answer at its limit
  4    not authorised, no identity, or a certificate was refused
  5    the server cannot be reached
  6    the named thing does not exist
  130  interrupted

With -o json an error is an object on standard error: code, exit_code, message, hint, causes.
";

const COLUMNS: &str = "\
Columns and fields

Tables have columns, machine formats (json, jsonl, csv, tsv, yaml) have fields. --columns a,b takes either: a column
stands for the fields that it is made of. --sort a,-b orders by them, a minus turning the order around.
SERVICE? has a question mark because a port's usual service is a guess about what really speaks there.
PROCESS is name[pid] and how many more hold the same socket: nginx[812] +3. In its place or behind it, in parentheses,
how the owner is known when nobody was seen holding the socket: closer, listener, unknown, denied; - means none.
HOST is followed by (stale) when the host was not heard for too long: the row tells what was last known.
";

/// The topic's text; that of columns ends with a list of all names.
fn topic(name: &str) -> Option<String> {
    let (_, text) = TOPICS.iter().find(|(topic, _)| *topic == name)?;
    Some(if name == "columns" { format!("{text}\n{}", column_lists()) } else { (*text).to_owned() })
}

fn column_lists() -> String {
    use fleetsock_proto::{
        audit::AuditRow,
        change::ChangeRecord,
        host::Host,
        listener::Listener,
        root::Root,
        session::Session,
        summary::Sum,
        token::{OperatorCertificate, Token},
    };

    use crate::record::{Record, difference::Difference, entry::Entry, period::Period};
    fn list<T: Record>(noun: &str) -> String {
        let columns: Vec<&str> = T::columns().iter().map(|column| column.name).collect();
        let fields: Vec<&str> = T::fields().iter().map(|field| field.name).collect();
        format!("{noun}\n{}{}", wrapped("columns", &columns), wrapped("fields", &fields))
    }
    [
        list::<Host>("hosts"),
        list::<Period>("hosts --coverage"),
        list::<Listener>("ports"),
        list::<Session>("sessions"),
        list::<ChangeRecord>("changes"),
        list::<Entry>("timeline"),
        list::<Difference>("diff"),
        list::<Sum>("summary"),
        list::<Token>("tokens"),
        list::<OperatorCertificate>("operators"),
        list::<AuditRow>("audit"),
        list::<Root>("ca"),
    ]
    .join("\n")
}

/// Names behind a label, in lines of at most 100 columns.
fn wrapped(label: &str, names: &[&str]) -> String {
    let mut text = String::new();
    let mut line = format!("  {label:8}");
    for name in names {
        if line.len() + name.len() + 1 > 100 {
            text.push_str(&line);
            text.push('\n');
            line = format!("  {:8}", "");
        }
        line.push(' ');
        line.push_str(name);
    }
    format!("{text}{line}\n")
}

/// Writes the explanation.
pub fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let text = match arguments.topic.as_slice() {
        [] => arguments::grammar().render_help().to_string(),
        [name] => match topic(name) {
            Some(text) => text,
            None => command_help(&arguments.topic)?,
        },
        _ => command_help(&arguments.topic)?,
    };
    invocation.console.out.write_all(text.as_bytes())?;
    Ok(invocation.console.out.flush().map(|()| Exit::Done)?)
}

fn command_help(path: &[String]) -> Result<String, Failure> {
    let mut command = arguments::grammar();
    command.build();
    let mut found = &mut command;
    for name in path {
        let mut known: Vec<String> = found.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        known.extend(TOPICS.iter().map(|(topic, _)| (*topic).to_owned()));
        let hint = suggestion::did_you_mean(&suggestion::similar(name, known.iter().map(String::as_str)));
        let Some(next) = found.find_subcommand_mut(name) else {
            let failure = Failure::usage(format!("there is no help about `{name}`"));
            return Err(failure.hint(hint.unwrap_or_else(|| "fleetctl help".to_owned())));
        };
        found = next;
    }
    Ok(found.render_long_help().to_string())
}
