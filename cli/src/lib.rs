//! Asks a fleetsock-server about the ports and sessions of a fleet.
//!
//! One file per noun (`ports`, `sessions`, `hosts`, ...): each turns what was typed into a question, asks it with the
//! typed client, and hands the answer to a [`listing`]. Rendering is apart ([`render`], [`record`]).

use std::{ffi::OsString, io::Write, process::ExitCode, sync::OnceLock};

use anstream::ColorChoice;
use clap::{FromArgMatches, error::ErrorKind};
use fleetsock_proto::{client::RenewalWatch, time::Timestamp};
use jiff::tz::TimeZone;

use crate::{
    arguments::{Arguments, Options, What},
    clock::Clock,
    console::{Causes, Chatter, Console},
    failure::{Ended, Exit, Failure},
    render::Format,
};

pub mod arguments;
pub mod audit;
pub mod backup;
pub mod ca;
pub mod changes;
pub mod clock;
pub mod completions;
pub mod confinement;
pub mod console;
pub mod context;
pub mod contexts;
pub mod dev;
pub mod diff;
pub mod doctor;
pub mod export;
pub mod failure;
pub mod filters;
pub mod folders;
pub mod freshness;
pub mod hosts;
pub mod listing;
pub mod login;
pub mod moment;
pub mod operators;
pub mod ports;
pub mod record;
pub mod render;
pub mod sanitise;
pub mod server;
pub mod sessions;
pub mod suggestion;
pub mod summary;
pub mod timeline;
pub mod tokens;
pub mod topics;
pub mod version;
pub mod window;

/// One run of fleetctl: how it was asked to do what it does.
#[derive(Debug)]
pub struct Invocation {
    /// Where words go.
    pub console: Console,
    /// The time and the zone.
    pub clock: Clock,
    /// Options of every command.
    pub options: Options,
    /// What the server's answers say of our certificate.
    pub renewals: OnceLock<RenewalWatch>,
}

/// Does what the arguments say; the first of them is the program's name.
pub fn run(arguments: Vec<OsString>) -> ExitCode {
    if let Some(failure) = dev::child::become_child(&arguments) {
        return fail(&Console::new(ColorChoice::Auto, Chatter::On), &failure, Format::Table, Causes::Hidden);
    }
    let parsed =
        arguments::grammar().try_get_matches_from(&arguments).and_then(|matches| Arguments::from_arg_matches(&matches));
    let Arguments { command, options } = match parsed {
        Ok(arguments) => arguments,
        Err(error) => return explain(&error, &arguments),
    };
    let chatter = if options.quiet { Chatter::Off } else { Chatter::On };
    let zone = if options.utc { TimeZone::UTC } else { TimeZone::system() };
    let (console, clock) = (Console::new(options.color, chatter), Clock::at(Timestamp::now(), zone));
    let mut invocation = Invocation { console, clock, options, renewals: OnceLock::new() };
    match perform(&mut invocation, command) {
        Ok(exit) => ExitCode::from(exit.code()),
        Err(Ended::ReaderGone) => ExitCode::from(Exit::Done.code()),
        Err(Ended::Failed(failure)) => {
            let causes = if invocation.options.verbose { Causes::Shown } else { Causes::Hidden };
            // What was written before the failure comes before its words.
            drop(invocation.console.out.flush());
            fail(&invocation.console, &failure, invocation.options.output, causes)
        }
    }
}

fn perform(invocation: &mut Invocation, command: What) -> Result<Exit, Ended> {
    confinement::confine(&command, server::identity_folder(invocation).ok().as_deref())?;
    // One thread does it all; the children of `dev` live as long as the thread that began them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failed, format!("cannot begin: {error}")))?;
    runtime.block_on(async {
        let done = match command {
            What::Hosts(arguments) => hosts::run(invocation, arguments).await,
            What::Ports(arguments) => ports::run(invocation, arguments).await,
            What::Sessions(arguments) => sessions::run(invocation, arguments).await,
            What::Changes(arguments) => changes::run(invocation, arguments).await,
            What::Timeline(arguments) => timeline::run(invocation, arguments).await,
            What::Diff(arguments) => diff::run(invocation, arguments).await,
            What::Summary(arguments) => summary::run(invocation, arguments).await,
            What::Export(arguments) => export::run(invocation, arguments).await,
            What::Tokens(arguments) => tokens::run(invocation, arguments).await,
            What::Operators(arguments) => operators::run(invocation, arguments).await,
            What::Audit(arguments) => audit::run(invocation, arguments).await,
            What::Backup(arguments) => backup::run(invocation, arguments).await,
            What::Ca(arguments) => ca::run(invocation, arguments).await,
            What::Login(arguments) => login::run(invocation, arguments).await,
            What::Context(arguments) => context::run(invocation, arguments),
            What::Doctor => doctor::run(invocation).await,
            What::Dev(arguments) => dev::run(invocation, arguments).await,
            What::Version => version::run(invocation),
            What::Completions(arguments) => completions::run(invocation, arguments),
            What::Help(arguments) => topics::run(invocation, arguments),
        };
        server::keep_up(invocation).await;
        done
    })
}

fn fail(console: &Console, failure: &Failure, format: Format, causes: Causes) -> ExitCode {
    if matches!(format, Format::Json | Format::Jsonl) {
        console::tell(&failure.to_json().to_string());
    } else {
        console.fail(failure, causes);
    }
    ExitCode::from(failure.exit.code())
}

/// Help that was asked for, or what is wrong with the arguments.
fn explain(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Help goes to standard output; whoever closed that does not want it.
        drop(error.print());
        return ExitCode::SUCCESS;
    }
    if asks_for_json(arguments) {
        let text = error.to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        console::tell(&Failure::usage(message).hint("fleetctl --help").to_json().to_string());
    } else {
        drop(error.print());
    }
    ExitCode::from(Exit::Usage.code())
}

/// Whether arguments that could not be read ask for JSON.
fn asks_for_json(arguments: &[OsString]) -> bool {
    let texts: Vec<&str> = arguments.iter().filter_map(|argument| argument.to_str()).collect();
    texts.iter().any(|text| ["-ojson", "-o=json", "--output=json"].contains(text))
        || texts.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_contradicts_itself_nowhere() {
        arguments::grammar().debug_assert();
    }

    #[test]
    fn json_is_asked_for_in_each_of_its_spellings() {
        let asks = |text: &str| asks_for_json(&text.split(' ').map(OsString::from).collect::<Vec<_>>());
        for text in ["ports -o json", "ports -ojson", "ports --output json", "--output=json ports"] {
            assert!(asks(text), "{text}");
        }
        assert!(!asks("ports -o table --host json"));
    }
}
