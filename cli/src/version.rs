//! `fleetctl version`: which tool this is, and whom it would ask.

use std::io::Write;

use crate::{
    Invocation,
    contexts::Contexts,
    failure::{Ended, Exit},
    folders,
    record::context::operator,
    render::Format,
    server,
};

/// What stands first in the help.
pub const EXAMPLES: &str = "\
Examples:
  fleetctl version
  fleetctl version -o json

";

/// What `--version` says.
pub const LONG: &str = concat!(env!("CARGO_PKG_VERSION"), " of Fleetsock (not the fleetctl of FleetDM)");

/// Says so. Never fails for want of a context: then it says that.
pub fn run(invocation: &mut Invocation) -> Result<Exit, Ended> {
    let chosen = Contexts::load(&folders::config()?).map_err(Into::into).and_then(|_| server::identity(invocation));
    let out = &mut invocation.console.out;
    if matches!(invocation.options.output, Format::Json | Format::Jsonl) {
        let (name, identity) = chosen.ok().unzip();
        let object = serde_json::json!({
            "tool": "fleetctl",
            "product": "Fleetsock",
            "version": env!("CARGO_PKG_VERSION"),
            "context": name.map(|name| name.to_string()),
            "server": identity.as_ref().map(|identity| identity.address.to_string()),
            "operator": identity.as_ref().map(operator),
        });
        writeln!(out, "{object}")?;
    } else {
        writeln!(out, "fleetctl {LONG}")?;
        match chosen {
            Ok((name, identity)) => {
                writeln!(out, "context {name}: server {}, as {}", identity.address, operator(&identity))?;
            }
            Err(failure) => writeln!(out, "no context: {failure}")?,
        }
    }
    out.flush()?;
    Ok(Exit::Done)
}
