//! `fleetsock-server restore`: what is told while a backup is put in place, and after that.

use std::{
    cell::Cell,
    fmt,
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::Result;
use fleetsock_proto::time::Timestamp;
use fleetsock_server::{
    backup::restoring::{FleetFrom, Restored, restore},
    history::sqlite::{Carried, Unsure},
};

/// Most names of a kind that are listed.
const NAMES_SHOWN: usize = 100;

/// Who may speak again that may have been revoked since the backup, and what to do about it.
struct Warning<'a>(&'a Unsure);

/// Names, and how many more there are.
fn list(names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(NAMES_SHOWN);
    let shown = names.take(NAMES_SHOWN).collect::<Vec<_>>().join(", ");
    if more == 0 { shown } else { format!("{shown} and {more} more") }
}

impl fmt::Display for Warning<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unsure { operators, hosts, tokens } = self.0;
        writeln!(
            f,
            "WARNING: whether one of these was revoked since the backup is not known. Each may speak again; revoke again              whoever must not:"
        )?;
        if !operators.is_empty() {
            let names = list(operators.iter().map(ToString::to_string));
            writeln!(f, "  operators: {names}\n    fleetctl operators revoke NAME")?;
        }
        if !hosts.is_empty() {
            let names = list(hosts.iter().map(|(name, id)| format!("{} ({id})", name.escape_debug())));
            writeln!(f, "  hosts: {names}\n    fleetctl hosts revoke HOST")?;
        }
        if !tokens.is_empty() {
            writeln!(f, "  tokens: {}\n    fleetctl tokens revoke ID", list(tokens.iter().cloned()))?;
        }
        writeln!(
            f,
            "certificates of them that were made since the backup are taken up when they are shown, each with a row of the \
             audit log and a warning in `fleetctl hosts`"
        )
    }
}

/// Does it.
pub(crate) fn run(from: &Path, state: &Path) -> Result<()> {
    let on_terminal = io::stderr().is_terminal();
    let last = Cell::new(u64::MAX);
    let watcher = |path: &str, bytes: u64, total: u64| {
        let percent = bytes * 100 / total.max(1);
        if on_terminal && last.replace(percent) != percent {
            // Progress that cannot be shown is not missed.
            drop(write!(io::stderr(), "\r\x1b[Kcheck {path}: {percent} %"));
        }
    };
    let restored = restore(from, state, Timestamp::now(), &watcher);
    if on_terminal {
        drop(write!(io::stderr(), "\r\x1b[K"));
    }
    let Restored { before, fleet, carried, unsure, .. } = restored?;
    let (from, place) = (from.display(), state.display());
    let mut out = io::stdout();
    writeln!(out, "put the backup {from} in place in {place}; every file is the one that was backed up")?;
    match fleet {
        FleetFrom::State => writeln!(out, "the CA and the settings are those that were there")?,
        FleetFrom::Backup => writeln!(out, "the CA and the settings are those of the backup")?,
    }
    if let Some(before) = before {
        writeln!(out, "the history that was there is in {}; remove it when you are sure", before.display())?;
    }
    match carried {
        Carried::Over { hosts_revoked, operators_revoked } => writeln!(
            out,
            "carried over from the history that was there: certificates and spent tokens of those whom the backup knows, \
             {hosts_revoked} revoked hosts, {operators_revoked} revoked certificates of operators"
        )?,
        Carried::Refusals { hosts_revoked, operators_revoked } => writeln!(
            out,
            "the history that was there does not follow the backup; carried over from it and from those before it: spent \
             tokens, {hosts_revoked} revoked hosts, {operators_revoked} revoked certificates of operators"
        )?,
        Carried::Nothing => writeln!(out, "no history that was there can be read: nothing was carried over")?,
    }
    if let Some(unsure) = unsure {
        write!(out, "{}", Warning(&unsure))?;
    }
    writeln!(
        out,
        "agents send again what they still hold, and what is lost is told as a gap; who enrolled since the backup must \
         enrol again\n\
         next: fleetsock-server serve --state {place}"
    )?;
    Ok(())
}
