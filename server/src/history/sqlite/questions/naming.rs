//! What network namespaces were called, and whose an address was.

use std::{
    collections::{BTreeSet, HashMap, hash_map::Entry},
    net::IpAddr,
};

use rusqlite::{Connection, params};

use super::pairs::had;
use crate::history::sqlite::{
    coding,
    roster::{Places, Selected},
};

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

/// A host that had an address, and between which times that was noted.
type Holder = (String, (i64, i64));

/// Who of the fleet has an address that a peer has.
pub(super) struct PeerNames<'a> {
    main: &'a Connection,
    places: &'a Places,
    /// Who had those of them that hosts have now.
    held: HashMap<IpAddr, Vec<Holder>>,
}

impl<'a> PeerNames<'a> {
    pub(super) fn new(main: &'a Connection, places: &'a Places) -> PeerNames<'a> {
        PeerNames { main, places, held: HashMap::new() }
    }

    /// The host that had an address when something was over, or has it now. Empty where several had it, where others had it before or
    /// after, and where none or several have it now.
    pub(super) fn of(&mut self, address: IpAddr, over: Option<i64>) -> Result<String, rusqlite::Error> {
        let Some(Some(now)) = self.places.get(&address) else { return Ok(String::new()) };
        let Some(at) = over else { return Ok(now.clone()) };
        let held = match self.held.entry(address) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(place) => {
                let mut statement = self.main.prepare_cached(
                    "SELECT h.name, a.first_seen_us, a.last_seen_us FROM host_addresses a JOIN hosts h ON h.id = a.host_id
                     WHERE a.address = ?1",
                )?;
                let held = statement
                    .query_map([coding::address_bytes(address)], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
                place.insert(held.collect::<Result<_, _>>()?)
            }
        };
        let names = |is_meant: &dyn Fn((i64, i64)) -> bool| {
            held.iter().filter(|(_, noted)| is_meant(*noted)).map(|(name, _)| name.as_str()).collect::<BTreeSet<&str>>()
        };
        let mut then = names(&|noted| had(noted, (at, at)));
        if then.is_empty() {
            // It is noted seldom where few sockets are bound to it: whoever is the only one that ever had it had it then.
            then = names(&|_| true);
        }
        Ok(match (then.pop_first(), then.pop_first()) {
            (Some(name), None) => name.to_owned(),
            _ => String::new(),
        })
    }
}
