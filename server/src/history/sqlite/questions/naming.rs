//! What network namespaces were called.

use std::collections::HashMap;

use rusqlite::{Connection, params};

use crate::history::sqlite::{coding, roster::Selected};

/// Namespaces whose names are remembered, each with the times of its names.
const REMEMBERED: usize = 4096;

/// The names that a namespace had, the latest first, and between which times.
type Names = Vec<(i64, i64, String)>;

/// The names of one answer, each looked up once.
pub(super) struct NamespaceNames<'a> {
    main: &'a Connection,
    known: HashMap<(i64, u64), Names>,
}

impl<'a> NamespaceNames<'a> {
    pub(super) fn new(main: &'a Connection) -> NamespaceNames<'a> {
        NamespaceNames { main, known: HashMap::new() }
    }

    /// What a namespace of a host was called in the end of something that was over by then, or is called now. Empty for the
    /// host's own, and where that was not told.
    pub(super) fn of(&mut self, host: &Selected<'_>, netns: u64, over: Option<i64>) -> Result<String, rusqlite::Error> {
        if host.listed.netns.is_none_or(|own| own == netns) {
            return Ok(String::new());
        }
        let key = (host.listed.id, netns);
        if !self.known.contains_key(&key) {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            let mut statement = self.main.prepare_cached(
                "SELECT since_us, coalesce(until_us, 9223372036854775807), name FROM namespace_names
                 WHERE host_id = ?1 AND netns = ?2 ORDER BY until_us IS NULL DESC, since_us DESC",
            )?;
            let names = statement
                .query_map(params![host.listed.id, coding::signed(netns)], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<Result<_, _>>()?;
            self.known.insert(key, names);
        }
        let by = over.unwrap_or(i64::MAX);
        let names = self.known.get(&key).map(Vec::as_slice).unwrap_or_default();
        Ok(match names.iter().find(|(since, until, _)| (*since..=*until).contains(&by)) {
            Some((.., name)) => name.clone(),
            None if names.is_empty() => String::new(),
            // Another namespace for certain, whatever it was called then: never as if it were the host's own.
            None => format!("net:[{netns}]"),
        })
    }
}
