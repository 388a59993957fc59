//! `fleetctl context`: the servers that are known, and which one is meant.

use clap::{Args, Subcommand};
use fleetsock_proto::identity::Identity;

use crate::{
    Invocation,
    contexts::{ContextName, Contexts},
    failure::{Ended, Exit, Failure},
    folders,
    listing::Listing,
    record::context::ContextRow,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl context                  the contexts, and which is in use
  fleetctl context use prod         ask that server from now on
  fleetctl ports --context stage    ask another one once (or set FLEETSOCK_CONTEXT)
  fleetctl context remove stage     forget it, and the identity with it

";

/// What to do with contexts.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List contexts.
    List,
    /// Use a context from now on.
    Use {
        /// Its name.
        name: String,
    },
    /// Forget a context and its identity.
    Remove {
        /// Its name.
        name: String,
    },
}

fn name(text: &str) -> Result<ContextName, Failure> {
    text.parse().map_err(|error: crate::contexts::InvalidContextName| Failure::usage(error.to_string()))
}

/// Does it.
pub fn run(invocation: &mut Invocation, arguments: Arguments) -> Result<Exit, Ended> {
    let folder = folders::config()?;
    match arguments.what.unwrap_or(What::List) {
        What::List => {
            let listing = Listing::<ContextRow>::new(invocation, &[])?;
            let contexts = Contexts::load(&folder)?;
            let rows = contexts
                .iter()
                .map(|(name, identity)| {
                    let current = contexts.current() == Some(name);
                    ContextRow::new(name.clone(), current, Identity::load(identity).map_err(|error| error.to_string()))
                })
                .collect();
            listing.write_rows(invocation, rows)
        }
        What::Use { name: text } => {
            let name = name(&text)?;
            Contexts::load(&folder)?.identity_folder(&name)?;
            Contexts::change(&folder, |contexts| contexts.set_current(Some(name.clone())))?;
            invocation.console.note(&format!("context {name} is in use from now on"));
            Ok(Exit::Done)
        }
        What::Remove { name: text } => {
            let name = name(&text)?;
            Contexts::load(&folder)?.identity_folder(&name)?;
            Contexts::change(&folder, |contexts| contexts.remove(&name))?;
            invocation.console.note(&format!("context {name} is forgotten"));
            Ok(Exit::Done)
        }
    }
}
