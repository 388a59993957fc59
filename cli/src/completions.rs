//! `fleetctl completions`: scripts that let a shell complete commands and options.

use std::io::Write;

use clap::Args;
use clap_complete::Shell;

use crate::{
    Invocation, arguments,
    failure::{Ended, Exit},
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl completions bash > ~/.local/share/bash-completion/completions/fleetctl
  fleetctl completions zsh > \"${fpath[1]}/_fleetctl\"
  fleetctl completions fish > ~/.config/fish/completions/fleetctl.fish

";

/// For which shell.
#[derive(Debug, Args)]
pub struct Arguments {
    /// bash, zsh, fish, elvish, powershell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script.
pub fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut arguments::grammar(), "fleetctl", &mut script);
    invocation.console.out.write_all(&script)?;
    Ok(invocation.console.out.flush().map(|()| Exit::Done)?)
}
