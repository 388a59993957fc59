//! How far ports could be reached before a listener opened.

use std::collections::HashMap;

use fleetsock_proto::address::Scope;
use rusqlite::{Connection, Row, params};

use crate::history::sqlite::coding;

/// Ports that are remembered within an answer; beyond them the memory starts anew.
const REMEMBERED: usize = 10_000;

/// A port of a host: host, namespace, protocol, port.
type Port = (i64, i64, i32, u16);

/// When each scope of a port was first reached, microseconds.
#[derive(Debug, Default)]
pub(super) struct Scopes(HashMap<Port, Vec<(Scope, i64)>>);

impl Scopes {
    /// The widest scope in which the port of a listener could be reached earlier, if that is narrower than its own.
    pub(super) fn widened(&mut self, main: &Connection, row: &Row<'_>) -> Result<Option<Scope>, rusqlite::Error> {
        let port: Port = (row.get("host_id")?, row.get("netns")?, row.get("protocol")?, row.get("port")?);
        if self.0.len() >= REMEMBERED {
            self.0.clear();
        }
        let firsts = match self.0.entry(port) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(firsts(main, port)?),
        };
        let scope = coding::listen_address(row.get_ref("address")?)?.scope();
        Ok(before(firsts, row.get("opened_at_us")?).filter(|before| *before < scope))
    }
}

/// The widest scope that was reached before a moment.
fn before(firsts: &[(Scope, i64)], at: i64) -> Option<Scope> {
    firsts.iter().filter(|(_, first)| *first < at).map(|(scope, _)| *scope).max()
}

fn firsts(main: &Connection, port: Port) -> Result<Vec<(Scope, i64)>, rusqlite::Error> {
    let mut statement = main.prepare_cached(
        "SELECT address, min(opened_at_us) AS first FROM listeners INDEXED BY listeners_by_port
         WHERE host_id = ?1 AND netns = ?2 AND protocol = ?3 AND port = ?4 GROUP BY address",
    )?;
    let firsts = statement.query_map(params![port.0, port.1, port.2, port.3], |row| {
        Ok((coding::listen_address(row.get_ref("address")?)?.scope(), row.get("first")?))
    })?;
    firsts.collect()
}
