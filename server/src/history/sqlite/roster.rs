//! The hosts, in memory: who they are, whether they are heard, and which of them a question means.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use fleetsock_proto::{
    answer::{AnswerMeta, META_NAMES_LIMIT},
    host::{HostFacts, HostId, HostSelector, HostState, Warning},
    service::edit_distance,
    time::Timestamp,
};
use rusqlite::{Connection, Row, params};

pub(super) use self::entry::{HostEntry, host, store_hello};
use self::entry::{Signs, entry};
use super::{coding, numbered::Numbered};
use crate::history::{Contact, HistoryError, Labels, Presence, Skew, matching::Glob};

mod entry;

/// How often signs of life are written down, at most.
const WRITE_PRESENCE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Hosts {
    /// Where each host is among all.
    slots: HashMap<HostId, usize>,
    entries: Vec<Arc<HostEntry>>,
    /// What questions ask of each entry, which is elsewhere in memory.
    signs: Vec<Signs>,
    /// Made by the first question after something of it changed.
    directory: OnceLock<Arc<Directory>>,
    presence_written_at: Timestamp,
}

/// What is the same of a host as long as it does not say otherwise.
#[derive(Debug)]
pub(super) struct Listed {
    /// Its number.
    pub(super) id: i64,
    pub(super) host_id: HostId,
    pub(super) name: String,
    /// Its own network namespace, once it told of itself.
    pub(super) netns: Option<u64>,
    /// Where it is among all.
    slot: usize,
}

/// What follows from what hosts say of themselves. Questions keep the one that they began with.
#[derive(Debug)]
struct Directory {
    /// The hosts, by name.
    listed: Vec<Listed>,
    /// Where each is among these, by its number.
    by_number: Numbered<i64, usize>,
    places: Arc<Places>,
}

impl Hosts {
    fn add(&mut self, entry: HostEntry) {
        self.directory.take();
        let slot = *self.slots.entry(entry.host_id).or_insert(self.entries.len());
        let signs = Signs::of(&entry);
        let entry = Arc::new(entry);
        match self.entries.get_mut(slot).zip(self.signs.get_mut(slot)) {
            Some(known) => (*known.0, *known.1) = (entry, signs),
            None => {
                self.entries.push(entry);
                self.signs.push(signs);
            }
        }
    }

    fn get(&self, host: HostId) -> Option<&Arc<HostEntry>> {
        self.entries.get(*self.slots.get(&host)?)
    }

    /// Changes an entry. Whoever asked for it before keeps it as it was then.
    fn change<T>(&mut self, host: HostId, change: impl FnOnce(&mut HostEntry) -> T) -> Option<T> {
        let slot = *self.slots.get(&host)?;
        let (entry, signs) = self.entries.get_mut(slot).zip(self.signs.get_mut(slot))?;
        let entry = Arc::make_mut(entry);
        let changed = change(entry);
        *signs = Signs::of(entry);
        Some(changed)
    }

    fn directory(&self) -> &Arc<Directory> {
        self.directory.get_or_init(|| {
            let mut all: Vec<(usize, &HostEntry)> = self.entries.iter().map(Arc::as_ref).enumerate().collect();
            all.sort_unstable_by_key(|(_, entry)| (&entry.name, entry.host_id));
            let mut places = Places::new();
            for (_, entry) in all.iter().filter(|(_, entry)| !entry.revoked) {
                for address in entry.facts.iter().flat_map(|facts| &facts.addresses) {
                    places.entry(*address).and_modify(|name| *name = None).or_insert_with(|| Some(entry.name.clone()));
                }
            }
            let listed = |(slot, entry): &(usize, &HostEntry)| Listed {
                id: entry.id,
                host_id: entry.host_id,
                name: entry.name.clone(),
                netns: entry.facts.as_ref().map(|facts| facts.netns),
                slot: *slot,
            };
            let by_number = all.iter().enumerate().map(|(at, (_, entry))| (entry.id, at)).collect();
            Arc::new(Directory { listed: all.iter().map(listed).collect(), by_number, places: Arc::new(places) })
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
#[derive(Debug, Clone, Copy)]
pub(super) struct Selected<'a> {
    pub(super) listed: &'a Listed,
    pub(super) state: HostState,
    /// When it was observed first, and until when it is known.
    pub(super) observed_since: Option<Timestamp>,
    pub(super) known_until: Option<Timestamp>,
}

/// The same beside the directory that it is listed in.
#[derive(Debug, Clone, Copy)]
struct Meant {
    /// Where it is listed.
    at: usize,
    state: HostState,
    observed_since: Option<Timestamp>,
    known_until: Option<Timestamp>,
}

/// The hosts that a question means, by name.
#[derive(Debug, Clone)]
pub(super) struct Selection {
    directory: Arc<Directory>,
    meant: Vec<Meant>,
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

    /// How many they are.
    pub(super) fn len(&self) -> usize {
        self.meant.len()
    }

    /// The hosts, by name.
    pub(super) fn hosts(&self) -> impl Iterator<Item = Selected<'_>> {
        self.meant.iter().filter_map(|meant| self.selected(meant))
    }

    fn selected(&self, meant: &Meant) -> Option<Selected<'_>> {
        let Meant { at, state, observed_since, known_until } = *meant;
        Some(Selected { listed: self.directory.listed.get(at)?, state, observed_since, known_until })
    }

    /// What an answer about these hosts covers, before its gaps are known.
    pub(super) fn meta(&self, as_of: Timestamp) -> AnswerMeta {
        let mut stale = self.hosts().filter(|host| host.state == HostState::Stale);
        let named = stale.by_ref().take(META_NAMES_LIMIT).map(|host| host.listed.name.clone());
        let hosts_stale: Vec<String> = named.collect();
        AnswerMeta {
            as_of,
            hosts_total: u32::try_from(self.len()).unwrap_or(u32::MAX),
            hosts_stale_total: u32::try_from(hosts_stale.len() + stale.count()).unwrap_or(u32::MAX),
            hosts_stale,
            stale_after: self.stale_after,
            ..AnswerMeta::default()
        }
    }

    /// The hosts by their numbers.
    pub(super) fn by_number(&self) -> ByNumber<'_> {
        let some =
            || self.meant.iter().enumerate().filter_map(|(at, meant)| Some((self.selected(meant)?.listed.id, at)));
        ByNumber { selection: self, some: if self.is_all() { None } else { Some(some().collect()) } }
    }

    /// Whether all hosts are meant, each of which is then where it is listed.
    fn is_all(&self) -> bool {
        self.len() == self.directory.listed.len()
    }
}

/// The hosts that a question means, by their numbers.
#[derive(Debug)]
pub(super) struct ByNumber<'a> {
    selection: &'a Selection,
    /// Where each is among them; that of all is known.
    some: Option<Numbered<i64, usize>>,
}

impl<'a> ByNumber<'a> {
    pub(super) fn len(&self) -> usize {
        self.selection.len()
    }

    fn at(&self, id: i64) -> Option<usize> {
        self.some.as_ref().unwrap_or(&self.selection.directory.by_number).get(&id).copied()
    }

    pub(super) fn contains(&self, id: i64) -> bool {
        self.at(id).is_some()
    }

    pub(super) fn get(&self, id: i64) -> Option<Selected<'a>> {
        self.selection.selected(self.selection.meant.get(self.at(id)?)?)
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = i64> {
        self.selection.hosts().map(|host| host.listed.id)
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
        let mut hosts = Hosts::default();
        while let Some(row) = rows.next()? {
            let mut entry = entry(row, labels.remove(&row.get("id")?).unwrap_or_default())?;
            entry.told_until = told.get(&entry.id).copied();
            hosts.add(entry);
        }
        Ok(Roster { hosts: RwLock::new(hosts), stale_after })
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
        self.read().get(host).cloned().ok_or_else(|| HistoryError::NotFound(format!("there is no host {host}")))
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
        self.write().add(entry);
    }

    /// A host was revoked.
    pub(super) fn revoke(&self, host: HostId) {
        let mut hosts = self.write();
        hosts.change(host, |entry| entry.revoked = true);
        hosts.directory.take();
    }

    /// A person looked at a host and found it good.
    pub(super) fn approve(&self, host: HostId) {
        self.write().change(host, |entry| (entry.waits, entry.warning) = (false, None));
    }

    /// A person should look at a host.
    pub(super) fn warn(&self, host: HostId, warning: Warning) {
        self.write().change(host, |entry| entry.warning = Some(warning));
    }

    /// A host said what it is.
    pub(super) fn note_hello(&self, host: HostId, contact: Contact) {
        let mut hosts = self.write();
        let is_listed_as_before = hosts.change(host, |entry| {
            let is_known =
                |facts: &HostFacts| facts.netns == contact.facts.netns && facts.addresses == contact.facts.addresses;
            let is_listed_as_before = entry.name == contact.facts.name && entry.facts.as_ref().is_some_and(is_known);
            entry.name.clone_from(&contact.facts.name);
            entry.facts = Some(contact.facts);
            entry.last_seen_at = Some(contact.at);
            entry.skew = Skew { offset_us: contact.clock_offset_us };
            is_listed_as_before
        });
        if is_listed_as_before == Some(false) {
            hosts.directory.take();
        }
    }

    /// A host told of its first walk.
    pub(super) fn note_first(&self, id: i64, at: Timestamp) {
        let mut hosts = self.write();
        let host = hosts.entries.iter().find(|entry| entry.id == id).map(|entry| entry.host_id);
        host.and_then(|host| hosts.change(host, |entry| entry.observed_since = Some(at)));
    }

    /// Batches of hosts are stored that tell of walks, by the server's clock.
    pub(super) fn note_told(&self, told: impl IntoIterator<Item = (HostId, Timestamp)>) {
        let mut hosts = self.write();
        for (host, until) in told {
            hosts.change(host, |entry| entry.told_until = entry.told_until.max(Some(until)));
        }
    }

    /// As of a walk, by the server's clock, what is open of a host was what its agent has.
    pub(super) fn note_proved(&self, host: HostId, at: Timestamp) {
        self.write().change(host, |entry| {
            entry.proved_at = entry.proved_at.max(Some(at));
            entry.unwritten = true;
        });
    }

    /// A host gave a sign of life; whether it is time to write such signs down.
    pub(super) fn note_presence(&self, host: HostId, presence: Presence) -> bool {
        let mut hosts = self.write();
        hosts.change(host, |entry| {
            entry.last_seen_at = Some(presence.at);
            if let Some(until) = presence.observed_until {
                entry.observed_until = entry.observed_until.max(Some(entry.skew.corrected(until)));
            }
            entry.cost = presence.cost.unwrap_or(entry.cost);
            entry.tcp_counts = presence.tcp_counts.or(entry.tcp_counts);
            entry.unwritten = true;
        });
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
            let unwritten = hosts.entries.iter_mut().filter(|entry| entry.unwritten);
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
            if !hosts.entries.iter().any(|entry| one.means(entry)) {
                return Err(unknown_host(one.glob.as_str(), hosts.entries.iter().map(|entry| entry.name.as_str())));
            }
        }
        let is_meant = |entry: &HostEntry| {
            (named.is_empty() || named.iter().any(|one| one.means(entry)))
                && selector.labels.iter().all(|(key, value)| entry.labels.get(key) == Some(value))
        };
        let all = named.is_empty() && selector.labels.is_empty();
        let directory = Arc::clone(hosts.directory());
        let stale_before = now.minus(self.stale_after);
        let as_meant = |(at, listed): (usize, &Listed)| {
            if !all && !is_meant(hosts.entries.get(listed.slot)?) {
                return None;
            }
            let signs = hosts.signs.get(listed.slot)?;
            let (observed_since, known_until) = (signs.observed_since, signs.known_until);
            Some(Meant { at, state: signs.state(stale_before), observed_since, known_until })
        };
        let mut meant = Vec::with_capacity(if all { directory.listed.len() } else { 0 });
        meant.extend(directory.listed.iter().enumerate().filter_map(as_meant));
        Ok(Selection { directory, meant, stale_after: self.stale_after, now })
    }

    /// All that is known of the hosts that a question means, by name, and how they were then.
    pub(super) fn entries(&self, selection: &Selection) -> Vec<(Arc<HostEntry>, HostState)> {
        let hosts = self.read();
        selection
            .hosts()
            .filter_map(|host| Some((Arc::clone(hosts.entries.get(host.listed.slot)?), host.state)))
            .collect()
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
