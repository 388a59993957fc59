//! `fleetsock-server restore`: what is told while a backup is put in place, and after that.

use std::{
    cell::Cell,
    io::{self, IsTerminal, Write},
    path::Path,
};

use anyhow::Result;
use fleetsock_proto::time::Timestamp;
use fleetsock_server::{
    backup::restoring::{FleetFrom, Restored, restore},
    history::sqlite::Carried,
};

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
    let Restored { before, fleet, carried, .. } = restored?;
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
        Carried::Nothing => writeln!(
            out,
            "what was revoked since the backup must be revoked again; certificates that were made since then are taken up \
             when they are shown, each with a row of the audit log and a warning in `fleetctl hosts`"
        )?,
    }
    writeln!(
        out,
        "agents send again what they still hold, and what is lost is told as a gap; who enrolled since the backup must \
         enrol again\n\
         next: fleetsock-server serve --state {place}"
    )?;
    Ok(())
}
