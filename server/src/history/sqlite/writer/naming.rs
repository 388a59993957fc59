//! What network namespaces of hosts are called, in `main.db`, from when on.

use std::collections::{HashMap, hash_map::Entry};

use fleetsock_proto::batch::NamespaceName;
use rusqlite::{Connection, params};

use super::Admitted;
use crate::history::sqlite::coding;

/// Most namespaces of one host whose names are kept at a time; what it tells of beyond that is not. Agents follow 1,024.
const NAMES_OF_HOST: usize = 4096;
/// Most names that are held; those of a host are read again when it tells of some.
const HELD: usize = 1 << 16;

/// What namespaces are called now, by host and inode number.
#[derive(Debug, Default)]
pub(super) struct Naming(HashMap<i64, HashMap<u64, String>>);

/// A name that is to be written down: whose, since when.
pub(super) type News<'a> = (i64, i64, &'a NamespaceName);

impl Naming {
    /// What batches tell that is not known yet.
    pub(super) fn news<'a>(
        &mut self,
        main: &Connection,
        admitted: &'a [Admitted],
    ) -> Result<Vec<News<'a>>, rusqlite::Error> {
        let mut news = Vec::new();
        if self.0.values().map(HashMap::len).sum::<usize>() > HELD {
            // What came before these batches is committed.
            self.0.clear();
        }
        for one in admitted.iter().filter(|one| !one.batch.namespaces.is_empty()) {
            let named = self.of_host(main, one.host)?;
            // Between the two walks it was found. One that is gone was there until then.
            let [since, until] =
                [one.batch.observed_since, one.batch.observed_until].map(|at| one.corrected(at).as_micros());
            let at = |told: &NamespaceName| if told.name.is_empty() { until } else { since };
            let told = one.batch.namespaces.iter().filter(|told| note(named, told));
            news.extend(told.map(|told| (one.host, at(told), told)));
        }
        Ok(news)
    }

    fn of_host(&mut self, main: &Connection, host: i64) -> Result<&mut HashMap<u64, String>, rusqlite::Error> {
        let named = match self.0.entry(host) {
            Entry::Occupied(named) => return Ok(named.into_mut()),
            Entry::Vacant(named) => named,
        };
        let mut statement = main.prepare_cached(&format!(
            "SELECT netns, name FROM namespace_names WHERE host_id = ?1 AND until_us IS NULL LIMIT {NAMES_OF_HOST}"
        ))?;
        let name = |row: &rusqlite::Row<'_>| Ok((coding::unsigned(row, "netns")?, row.get("name")?));
        let read = statement.query_map([host], name)?.collect::<Result<_, _>>()?;
        Ok(named.insert(read))
    }
}

/// Remembers what a namespace is called; whether it must be written down.
fn note(named: &mut HashMap<u64, String>, told: &NamespaceName) -> bool {
    if told.name.is_empty() {
        return named.remove(&told.netns).is_some();
    }
    let is_full = named.len() >= NAMES_OF_HOST;
    match named.entry(told.netns) {
        Entry::Occupied(known) if *known.get() == told.name => false,
        Entry::Vacant(_) if is_full => false,
        Entry::Vacant(entry) => {
            entry.insert(told.name.clone());
            true
        }
        Entry::Occupied(mut known) => {
            known.insert(told.name.clone());
            true
        }
    }
}

/// Writes names down.
pub(super) fn store(main: &Connection, news: &[News<'_>]) -> Result<(), rusqlite::Error> {
    let mut ends = main.prepare_cached(
        "UPDATE namespace_names SET until_us = max(since_us, ?3)
         WHERE host_id = ?1 AND netns = ?2 AND until_us IS NULL",
    )?;
    let mut begins = main.prepare_cached(
        "INSERT INTO namespace_names (host_id, netns, since_us, name) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO UPDATE SET until_us = NULL, name = ?4",
    )?;
    for (host, since, NamespaceName { netns, name }) in news {
        let netns = coding::signed(*netns);
        ends.execute(params![host, netns, since])?;
        if !name.is_empty() {
            begins.execute(params![host, netns, since, name])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_written_down_when_it_is_new_and_a_host_that_makes_up_namespaces_is_not_believed_for_long() {
        let mut named = HashMap::new();
        let told = |netns, name: &str| NamespaceName { netns, name: name.to_owned() };
        assert!(note(&mut named, &told(1, "blue")));
        assert!(!note(&mut named, &told(1, "blue")));
        assert!(note(&mut named, &told(1, "red")));
        let written = (2..100_000).filter(|netns| note(&mut named, &told(*netns, "made up"))).count();
        assert_eq!((written, named.len()), (NAMES_OF_HOST - 1, NAMES_OF_HOST));
        assert!(note(&mut named, &told(1, "blue")));
        assert!(note(&mut named, &told(1, "")), "it is gone");
        assert!(!note(&mut named, &told(1, "")));
        assert!(note(&mut named, &told(100_000, "there is room")));
    }
}
