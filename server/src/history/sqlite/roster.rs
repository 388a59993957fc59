//! The hosts, in memory: who they are, whether they are heard, and which of them a question means.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use fleetsock_proto::{
    answer::{AnswerMeta, META_NAMES_LIMIT},
    host::{HostId, HostSelector, HostState, Warning},
    service::edit_distance,
    time::Timestamp,
};
use rusqlite::{Connection, Row, params};

use self::entry::entry;
pub(super) use self::entry::{HostEntry, host, store_hello};
use super::{coding, numbered::Numbered};
use crate::history::{Contact, HistoryError, Labels, Presence, Skew, matching::Glob};

mod entry;

/// How often signs of life are written down, at most.
const WRITE_PRESENCE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Hosts {
    by_id: HashMap<HostId, Arc<HostEntry>>,
    /// Made by the first question after something of it changed.
    directory: OnceLock<Directory>,
    presence_written_at: Timestamp,
}

/// What follows from the names and the addresses of hosts.
#[derive(Debug)]
struct Directory {
    by_name: Vec<HostId>,
    places: Arc<Places>,
}

impl Hosts {
    /// An entry to be changed. Whoever asked for it before keeps it as it was then.
    fn change(&mut self, host: HostId) -> Option<&mut HostEntry> {
        self.by_id.get_mut(&host).map(Arc::make_mut)
    }

    fn directory(&self) -> &Directory {
        self.directory.get_or_init(|| {
            let mut all: Vec<&HostEntry> = self.by_id.values().map(Arc::as_ref).collect();
            all.sort_unstable_by_key(|entry| (&entry.name, entry.host_id));
            let mut places = Places::new();
            for entry in all.iter().filter(|entry| !entry.revoked) {
                for address in entry.facts.iter().flat_map(|facts| &facts.addresses) {
                    places.entry(*address).and_modify(|name| *name = None).or_insert_with(|| Some(entry.name.clone()));
                }
            }
            Directory { by_name: all.iter().map(|entry| entry.host_id).collect(), places: Arc::new(places) }
        })
    }
}

/// The hosts.
#[derive(Debug)]
pub(super) struct Roster {
    hosts: RwLock<Hosts>,
    stale_after: Duration,
}

/// A host that a question means.
#[derive(Debug, Clone)]
pub(super) struct Selected {
    pub(super) entry: Arc<HostEntry>,
    pub(super) state: HostState,
    /// Its number, when it was observed first, and until when it is known: every question asks for these of every host, and an
    /// entry is elsewhere in memory.
    pub(super) id: i64,
    pub(super) observed_since: Option<Timestamp>,
    pub(super) known_until: Option<Timestamp>,
}

impl Selected {
    fn of(entry: &Arc<HostEntry>, state: HostState) -> Selected {
        Selected {
            state,
            id: entry.id,
            observed_since: entry.observed_since,
            known_until: entry.known_until(),
            entry: Arc::clone(entry),
        }
    }
}

/// The hosts that a question means, by name.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    pub(super) hosts: Vec<Selected>,
    stale_after: Duration,
    now: Timestamp,
}

impl Selection {
    /// When it was asked.
    pub(super) fn now(&self) -> Timestamp {
        self.now
    }

    /// The age at which a host is stale.
    pub(super) fn stale_after(&self) -> Duration {
        self.stale_after
    }

    /// What an answer about these hosts covers, before its gaps are known.
    pub(super) fn meta(&self, as_of: Timestamp) -> AnswerMeta {
        let stale = || self.hosts.iter().filter(|host| host.state == HostState::Stale);
        AnswerMeta {
            as_of,
            hosts_total: u32::try_from(self.hosts.len()).unwrap_or(u32::MAX),
            hosts_stale: stale().take(META_NAMES_LIMIT).map(|host| host.entry.name.clone()).collect(),
            hosts_stale_total: u32::try_from(stale().count()).unwrap_or(u32::MAX),
            stale_after: self.stale_after,
            ..AnswerMeta::default()
        }
    }

    /// The hosts by their numbers.
    pub(super) fn by_number(&self) -> Numbered<i64, &Selected> {
        self.hosts.iter().map(|host| (host.id, host)).collect()
    }
}

/// Which host has an address; `None` when several have.
pub(super) type Places = HashMap<IpAddr, Option<String>>;

impl Roster {
    /// The hosts that `main.db` knows, and how far the file of the day goes.
    pub(super) fn load(main: &Connection, day: &Connection, stale_after: Duration) -> Result<Roster, rusqlite::Error> {
        let mut statement = day.prepare("SELECT host_id, observed_until_us FROM cursors")?;
        let cursor = |row: &Row<'_>| Ok((row.get::<_, i64>("host_id")?, coding::time(row, "observed_until_us")?));
        let told: HashMap<i64, Timestamp> = statement.query_map([], cursor)?.collect::<Result<_, _>>()?;
        let mut labels: HashMap<i64, Labels> = HashMap::new();
        let mut statement = main.prepare("SELECT host_id, key, value FROM host_labels")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            labels.entry(row.get("host_id")?).or_default().insert(row.get("key")?, row.get("value")?);
        }
        let mut statement = main.prepare("SELECT * FROM hosts")?;
        let mut rows = statement.query([])?;
        let mut by_id = HashMap::new();
        while let Some(row) = rows.next()? {
            let mut entry = entry(row, labels.remove(&row.get("id")?).unwrap_or_default())?;
            entry.told_until = told.get(&entry.id).copied();
            by_id.insert(entry.host_id, Arc::new(entry));
        }
        Ok(Roster { hosts: RwLock::new(Hosts { by_id, ..Hosts::default() }), stale_after })
    }

    fn read(&self) -> RwLockReadGuard<'_, Hosts> {
        // The maps are whole after every statement, so a panic elsewhere does not spoil them.
        self.hosts.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Hosts> {
        self.hosts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a host.
    pub(super) fn find(&self, host: HostId) -> Result<Arc<HostEntry>, HistoryError> {
        self.read().by_id.get(&host).cloned().ok_or_else(|| HistoryError::NotFound(format!("there is no host {host}")))
    }

    /// A host that may speak. The writer asks here for each thing that it stores, and it is the writer that revokes: so
    /// nothing of a host is stored after its revocation.
    pub(super) fn get(&self, host: HostId) -> Result<Arc<HostEntry>, HistoryError> {
        let entry = self.find(host)?;
        if entry.revoked {
            Err(HistoryError::Revoked)
        } else if entry.waits {
            Err(HistoryError::Waits(entry.name.clone()))
        } else {
            Ok(entry)
        }
    }

    /// A host enrolled.
    pub(super) fn add(&self, entry: HostEntry) {
        let mut hosts = self.write();
        hosts.by_id.insert(entry.host_id, Arc::new(entry));
        hosts.directory.take();
    }

    /// A host was revoked.
    pub(super) fn revoke(&self, host: HostId) {
        let mut hosts = self.write();
        if let Some(entry) = hosts.change(host) {
            entry.revoked = true;
        }
        hosts.directory.take();
    }

    /// A person looked at a host and found it good.
    pub(super) fn approve(&self, host: HostId) {
        if let Some(entry) = self.write().change(host) {
            (entry.waits, entry.warning) = (false, None);
        }
    }

    /// A person should look at a host.
    pub(super) fn warn(&self, host: HostId, warning: Warning) {
        if let Some(entry) = self.write().change(host) {
            entry.warning = Some(warning);
        }
    }

    /// A host said what it is.
    pub(super) fn note_hello(&self, host: HostId, contact: Contact) {
        let mut hosts = self.write();
        if let Some(entry) = hosts.change(host) {
            entry.name.clone_from(&contact.facts.name);
            entry.facts = Some(contact.facts);
            entry.last_seen_at = Some(contact.at);
            entry.skew = Skew { offset_us: contact.clock_offset_us };
        }
        hosts.directory.take();
    }

    /// A host told of its first walk.
    pub(super) fn note_first(&self, id: i64, at: Timestamp) {
        if let Some(entry) = self.write().by_id.values_mut().find(|entry| entry.id == id) {
            Arc::make_mut(entry).observed_since = Some(at);
        }
    }

    /// Batches of hosts are stored that tell of walks, by the server's clock.
    pub(super) fn note_told(&self, told: impl IntoIterator<Item = (HostId, Timestamp)>) {
        let mut hosts = self.write();
        for (host, until) in told {
            if let Some(entry) = hosts.change(host) {
                entry.told_until = entry.told_until.max(Some(until));
            }
        }
    }

    /// As of a walk, by the server's clock, what is open of a host was what its agent has.
    pub(super) fn note_proved(&self, host: HostId, at: Timestamp) {
        if let Some(entry) = self.write().change(host) {
            entry.proved_at = entry.proved_at.max(Some(at));
            entry.unwritten = true;
        }
    }

    /// A host gave a sign of life; whether it is time to write such signs down.
    pub(super) fn note_presence(&self, host: HostId, presence: Presence) -> bool {
        let mut hosts = self.write();
        if let Some(entry) = hosts.change(host) {
            entry.last_seen_at = Some(presence.at);
            if let Some(until) = presence.observed_until {
                entry.observed_until = entry.observed_until.max(Some(entry.skew.corrected(until)));
            }
            entry.cost = presence.cost.unwrap_or(entry.cost);
            entry.tcp_counts = presence.tcp_counts.or(entry.tcp_counts);
            entry.unwritten = true;
        }
        let due = presence.at.since(hosts.presence_written_at) >= WRITE_PRESENCE_EVERY;
        if due {
            hosts.presence_written_at = presence.at;
        }
        due
    }

    /// Writes down the signs of life since the last time.
    pub(super) fn write_presence(&self, main: &mut Connection) -> Result<(), rusqlite::Error> {
        let unwritten: Vec<Arc<HostEntry>> = {
            let mut hosts = self.write();
            let unwritten = hosts.by_id.values_mut().filter(|entry| entry.unwritten);
            unwritten
                .map(|entry| {
                    Arc::make_mut(entry).unwritten = false;
                    Arc::clone(entry)
                })
                .collect()
        };
        if unwritten.is_empty() {
            return Ok(());
        }
        let transaction = main.transaction()?;
        {
            let mut update = transaction.prepare_cached(
                "UPDATE hosts SET last_seen_at_us = ?2, observed_until_us = ?3, losses = ?4,
                     agent_cpu_millipercent = ?5, agent_rss_bytes = ?6, tcp_time_wait = ?7, tcp_syn_received = ?8,
                     tcp_bound = ?9, proved_at_us = ?10 WHERE id = ?1",
            )?;
            for entry in unwritten {
                update.execute(params![
                    entry.id,
                    entry.last_seen_at.map(Timestamp::as_micros),
                    entry.observed_until.map(Timestamp::as_micros),
                    coding::signed(entry.cost.losses),
                    entry.cost.cpu_millipercent,
                    coding::signed(entry.cost.rss_bytes),
                    entry.tcp_counts.map(|counts| coding::signed(counts.time_wait)),
                    entry.tcp_counts.map(|counts| coding::signed(counts.syn_received)),
                    entry.tcp_counts.and_then(|counts| counts.bound).map(coding::signed),
                    entry.proved_at.map(Timestamp::as_micros),
                ])?;
            }
        }
        transaction.commit()
    }

    /// The hosts that a question means, by name. A name without wildcards that no host has is an error.
    pub(super) fn select(&self, selector: &HostSelector, now: Timestamp) -> Result<Selection, HistoryError> {
        let named = selector.globs.iter().map(|text| Named::parse(text)).collect::<Result<Vec<_>, _>>()?;
        let hosts = self.read();
        for one in named.iter().filter(|one| one.glob.is_literal()) {
            if !hosts.by_id.values().any(|entry| one.means(entry)) {
                return Err(unknown_host(one.glob.as_str(), hosts.by_id.values().map(|entry| entry.name.as_str())));
            }
        }
        let meant = |entry: &HostEntry| {
            (named.is_empty() || named.iter().any(|one| one.means(entry)))
                && selector.labels.iter().all(|(key, value)| entry.labels.get(key) == Some(value))
        };
        let selected =
            hosts.directory().by_name.iter().filter_map(|id| hosts.by_id.get(id)).filter(|entry| meant(entry));
        let selected = selected.map(|entry| Selected::of(entry, entry.state(now, self.stale_after)));
        Ok(Selection { hosts: selected.collect(), stale_after: self.stale_after, now })
    }

    /// Which host has which address.
    pub(super) fn places(&self) -> Arc<Places> {
        Arc::clone(&self.read().directory().places)
    }
}

/// By what hosts are asked for: a pattern of names, or an id.
struct Named {
    glob: Glob,
    id: Option<HostId>,
}

impl Named {
    fn parse(text: &str) -> Result<Named, HistoryError> {
        let glob = Glob::parse(text)?;
        let id = glob.as_str().parse().ok().filter(|_| glob.is_literal());
        Ok(Named { glob, id })
    }

    fn means(&self, entry: &HostEntry) -> bool {
        let is_called =
            if self.glob.is_literal() { entry.name == self.glob.as_str() } else { self.glob.matches(&entry.name) };
        is_called || self.id == Some(entry.host_id)
    }
}

/// The error for a name that no host has, with the names that resemble it.
fn unknown_host<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> HistoryError {
    let mut close: Vec<(usize, &str)> =
        known.map(|known| (edit_distance(known, name), known)).filter(|(distance, _)| *distance <= 2).collect();
    close.sort_unstable();
    close.dedup();
    let hint: Vec<String> = close.into_iter().take(3).map(|(_, name)| format!("`{name}`")).collect();
    HistoryError::NotFound(match hint.as_slice() {
        [] => format!("no host is called `{name}`"),
        hint => format!("no host is called `{name}`; did you mean {}?", hint.join(" or ")),
    })
}
