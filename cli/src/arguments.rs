//! What can be typed: the commands, their options, and examples of them.

use anstream::ColorChoice;
use clap::{Args, Command, CommandFactory, Parser, Subcommand};

use crate::{
    audit, backup, ca, changes, completions, context, dev, diff, doctor, export, hosts, login, operators, ports,
    render::Format, sessions, summary, timeline, tokens, topics, version,
};

/// Examples stand before everything else.
const TEMPLATE: &str = "{about}\n\n{before-help}{usage-heading} {usage}\n\n{all-args}{after-help}";
const EXAMPLES: &str = "\
Examples:
  fleetctl dev                                  try it: a fleet of this host alone
  fleetctl ports --class well-known             listening ports below 1024, on every host
  fleetctl ports --host 'web*' --port 443 -o json
  fleetctl sessions --host db1 --since 10m      what was open within the last ten minutes
  fleetctl hosts                                who reports, and how well";
const AFTER: &str = "More: fleetctl help time|filters|columns|exit-codes, fleetctl help COMMAND";

/// Lists the listening ports and sessions of a fleet, now and in the past.
#[derive(Debug, Parser)]
#[command(name = "fleetctl", version, long_version = version::LONG, disable_help_subcommand = true)]
#[command(before_help = EXAMPLES, after_help = AFTER, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: What,
    /// How to do it.
    #[command(flatten)]
    pub options: Options,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum What {
    /// List hosts, or show some of them; revoke and approve them.
    #[command(before_help = hosts::EXAMPLES)]
    Hosts(hosts::Arguments),
    /// List listening ports.
    #[command(before_help = ports::EXAMPLES)]
    Ports(ports::Arguments),
    /// List sessions, newest first.
    #[command(before_help = sessions::EXAMPLES)]
    Sessions(sessions::Arguments),
    /// List what opened, closed, changed hands or began to reach further, newest first.
    #[command(before_help = changes::EXAMPLES)]
    Changes(changes::Arguments),
    /// Tell the story of one host, in the order in which it happened.
    #[command(before_help = timeline::EXAMPLES)]
    Timeline(timeline::Arguments),
    /// Compare the listening ports of two moments; exit with 1 when they differ.
    #[command(before_help = diff::EXAMPLES)]
    Diff(diff::Arguments),
    /// Count ports, sessions and bytes by class, service, host, process, peer or hour.
    #[command(before_help = summary::EXAMPLES)]
    Summary(summary::Arguments),
    /// Write every session of a time into a file, however many they are.
    #[command(before_help = export::EXAMPLES)]
    Export(export::Arguments),
    /// Make, list and revoke the tokens that hosts and operators enrol with.
    #[command(before_help = tokens::EXAMPLES)]
    Tokens(tokens::Arguments),
    /// List and revoke operators.
    #[command(before_help = operators::EXAMPLES)]
    Operators(operators::Arguments),
    /// Who did and asked what, and whether the log of that is whole.
    #[command(before_help = audit::EXAMPLES)]
    Audit(audit::Arguments),
    /// Have the server copy its history while it goes on; fleetsock-server restores it.
    #[command(before_help = backup::EXAMPLES)]
    Backup(backup::Arguments),
    /// List, prepare and drop the root CAs that hosts and operators trust.
    #[command(before_help = ca::EXAMPLES)]
    Ca(ca::Arguments),
    /// Get an identity from a server, and use it from now on.
    #[command(before_help = login::EXAMPLES)]
    Login(login::Arguments),
    /// List, choose or remove contexts: servers, and as whom.
    #[command(before_help = context::EXAMPLES)]
    Context(context::Arguments),
    /// Check everything between here and an answer.
    #[command(before_help = doctor::EXAMPLES)]
    Doctor,
    /// Run a fleet of this host alone, until Ctrl-C.
    #[command(before_help = dev::EXAMPLES)]
    Dev(dev::Arguments),
    /// Say which tool this is, and which server and operator are in use.
    #[command(before_help = version::EXAMPLES)]
    Version,
    /// Write a completion script for a shell.
    #[command(before_help = completions::EXAMPLES)]
    Completions(completions::Arguments),
    /// Explain a command, or: time, filters, columns, exit-codes.
    #[command(before_help = topics::EXAMPLES)]
    Help(topics::Arguments),
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Output and server")]
pub struct Options {
    /// table, wide, json, jsonl, csv, tsv, yaml, markdown, name.
    #[arg(short, long, alias = "format", global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Table)]
    #[arg(hide_default_value = true, hide_possible_values = true)]
    pub output: Format,
    /// Columns or fields to write (help columns).
    #[arg(long, global = true, value_name = "NAME,...", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Order by columns or fields; a minus before a name turns it around.
    #[arg(long, global = true, value_name = "NAME,...", value_delimiter = ',', allow_hyphen_values = true)]
    pub sort: Vec<String>,
    /// Leave the names of columns out.
    #[arg(long, global = true)]
    pub no_headers: bool,
    /// Say nothing but the answer and errors.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Show the causes beneath an error.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Colour; NO_COLOR and CLICOLOR_FORCE count too.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", value_parser = colour)]
    #[arg(hide_default_value = true)]
    pub color: ColorChoice,
    /// Read and write times in UTC instead of the local zone.
    #[arg(long, global = true)]
    pub utc: bool,
    /// Exit with 3 when hosts are stale or something was not observed.
    #[arg(long, global = true)]
    pub fail_on_stale: bool,
    /// Which server to ask (fleetctl context).
    #[arg(long, global = true, value_name = "NAME", env = "FLEETSOCK_CONTEXT", hide_env_values = true)]
    pub context: Option<String>,
}

fn colour(text: &str) -> Result<ColorChoice, String> {
    match text {
        "auto" => Ok(ColorChoice::Auto),
        "always" => Ok(ColorChoice::Always),
        "never" => Ok(ColorChoice::Never),
        _ => Err("one of auto, always, never".to_owned()),
    }
}

/// The whole grammar, with examples first wherever there is help.
pub fn grammar() -> Command {
    examples_first(Arguments::command())
}

fn examples_first(command: Command) -> Command {
    command.help_template(TEMPLATE).mut_subcommands(examples_first)
}
