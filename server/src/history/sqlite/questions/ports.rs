//! Listeners, now or as of a moment.

use std::cmp::Ordering;

use fleetsock_proto::{
    address::Scope,
    answer::AnswerMeta,
    listener::{ListenAddress, Listener},
    port::PortClass,
    question::{PortQuestion, SessionTime, SocketFilter},
    socket::{Family, Known, Protocol},
    summary::Dimension,
    time::Timestamp,
};
use rusqlite::{Row, params};

use super::{
    Programs, Reader, coverage,
    holders::{Holders, Life},
    names,
    outlet::{Outlet, Sink, Wanted},
};
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding::{self, OwnerColumns},
        numbered::Numbered,
        roster::{ByNumber, Selected, Selection},
    },
    summing::{Alike, Sums},
};

/// The columns of a listener, in the order in which [`StoredListener`] reads them: to look each up by its name took half of the time
/// of a long answer.
macro_rules! columns {
    () => {
        "host_id, netns, cookie, opened_at_us, opened_known, closed_at_us, closed_known, protocol, family, address, port,
         owner_known, pid, started_at_us, program_id, more_owners"
    };
}
pub(super) use columns;
/// How many of these there are, and before those of the owners.
pub(super) const COLUMNS: usize = 16;
const BEFORE_OWNERS: usize = 11;

pub(super) const SELECT: &str = concat!("SELECT ", columns!(), " FROM listeners");

/// Open ones have an index of their own, with all that is told of them; that of all lives on a port would do, and read every
/// one.
const NOW: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM listeners INDEXED BY listeners_open
    WHERE host_id = ?1 AND closed_at_us IS NULL AND port BETWEEN ?2 AND ?3"
);

const AS_OF: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM listeners
    WHERE host_id = ?1 AND port BETWEEN ?2 AND ?3 AND opened_at_us <= ?4
        AND (closed_at_us IS NULL OR closed_at_us > ?4)"
);

const WITHIN: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM listeners
    WHERE host_id = ?1 AND port BETWEEN ?2 AND ?3 AND opened_at_us <= ?4
        AND (closed_at_us IS NULL OR closed_at_us >= ?5)"
);

/// Of all hosts, what sums are by. Those that were closed before are not even looked at.
const COUNTED: &str = "
    SELECT host_id, opened_at_us, protocol, family, port, program_id FROM listeners INDEXED BY listeners_open
    WHERE closed_at_us IS NULL AND port BETWEEN ?1 AND ?2 AND opened_at_us <= ?3
    UNION ALL SELECT host_id, opened_at_us, protocol, family, port, program_id FROM listeners INDEXED BY listeners_closed
    WHERE closed_at_us >= ?4 AND port BETWEEN ?1 AND ?2 AND opened_at_us <= ?3";

/// Up to so many hosts are each looked for by themselves.
const BY_HOST: usize = 64;

pub(in crate::history::sqlite) fn list(
    reader: &Reader,
    selection: &Selection,
    question: &PortQuestion,
    now: Timestamp,
    outlet: &mut Outlet<Listener>,
) -> Result<AnswerMeta, HistoryError> {
    // One view: for each host that is looked up by itself the system is asked for a lock.
    let _view = reader.main.unchecked_transaction()?;
    let time = question.at.map_or(SessionTime::Now, SessionTime::At);
    visit(reader, selection, (&question.filter, &question.scopes), time, outlet)?;
    let as_of = question.at.unwrap_or(now);
    coverage::with_gaps(reader, selection, selection.meta(as_of), (as_of, as_of))
}

/// Counts the listeners of a time: those of many hosts are read in one go.
pub(super) fn count(
    reader: &Reader,
    selection: &Selection,
    filter: &SocketFilter,
    time: SessionTime,
    into: &mut Sums,
) -> Result<(), HistoryError> {
    let matcher = Matcher::new(filter)?;
    let (SessionTime::Within { since, until }, true) = (time, selection.len() > BY_HOST && !matcher.asks_for_owners())
    else {
        return visit(reader, selection, (filter, &[]), time, &mut Counting(into));
    };
    let (hosts, (first, last)) = (selection.by_number(), matcher.port_bounds());
    let mut programs = Programs::new(reader);
    let mut statement = reader.main.prepare_cached(COUNTED)?;
    let until = until.unwrap_or(Timestamp::MAX).as_micros();
    let mut rows = statement.query(params![first, last, until, since.as_micros()])?;
    // What they have in common is looked up once.
    let mut groups = Numbered::<Group, u64>::default();
    let by = [Dimension::Host, Dimension::Hour, Dimension::Process].map(|dimension| into.are_by(dimension));
    let told = |is_told: bool, number: i64| if is_told { number } else { 0 };
    while let Some(row) = rows.next()? {
        let (host_id, protocol, port) = (row.get(0)?, row.get(2)?, row.get(4)?);
        let family = coding::meaning("family", row.get(3)?, Family::from_number)?;
        let transport = coding::meaning("protocol", protocol, Protocol::from_number)?;
        if !hosts.contains(host_id) || !matcher.matches_socket(transport, family, port) {
            continue;
        }
        let hour = into.hour_of(Timestamp::from_micros(row.get(1)?)).as_micros();
        let group = (told(by[0], host_id), (protocol, port), told(by[1], hour), told(by[2], row.get(5)?));
        *groups.entry(group).or_default() += 1;
        if groups.len() >= HELD {
            add_groups(std::mem::take(&mut groups), &hosts, &mut programs, into)?;
        }
    }
    add_groups(groups, &hosts, &mut programs, into)
}

/// Most groups that are held while listeners are counted.
const HELD: usize = 64 * 1024;

fn add_groups(
    groups: Numbered<Group, u64>,
    hosts: &ByNumber<'_>,
    programs: &mut Programs<'_>,
    into: &mut Sums,
) -> Result<(), HistoryError> {
    for ((host_id, (protocol, port), hour, program), count) in groups {
        let protocol = coding::meaning("protocol", protocol, Protocol::from_number)?;
        let host = hosts.get(host_id).map(|host| (host.listed.name.clone(), host.listed.host_id));
        let alike = Alike {
            host: host.unwrap_or_else(|| Alike::default().host),
            opened_at: Timestamp::from_micros(hour),
            protocol,
            class: PortClass::of(protocol, port),
            port: Some(port),
            process: programs.process_in(into, program)?,
            peer: None,
        };
        into.add_listeners(alike, count)?;
    }
    Ok(())
}

/// What listeners have in common that are counted together: host, protocol and port, hour, and program, as far as sums are by these.
type Group = (i64, (i32, u16), i64, i64);

/// Counts the listeners that it is shown.
struct Counting<'a>(&'a mut Sums);

impl Sink<Listener> for Counting<'_> {
    fn push(&mut self, listener: Listener) -> Result<Wanted, HistoryError> {
        let (class, Listener { host, host_id, opened_at, protocol, port, owners, .. }) = (listener.class(), listener);
        let process = Some(owners.into_iter().next().map(|owner| owner.process).unwrap_or_default());
        let (host, port) = ((host, host_id), Some(port));
        self.0.add_listeners(Alike { host, opened_at, protocol, class, port, process, peer: None }, 1)?;
        Ok(Wanted::More)
    }
}

/// Shows the listeners of a time, by host, protocol, port and address, for as long as they are wanted. Of a moment they
/// have the owners that they had then.
pub(super) fn visit(
    reader: &Reader,
    selection: &Selection,
    (filter, scopes): (&SocketFilter, &[Scope]),
    time: SessionTime,
    sink: &mut dyn Sink<Listener>,
) -> Result<(), HistoryError> {
    let matcher = Matcher::new(filter)?;
    let (first, last) = matcher.port_bounds();
    let mut programs = Programs::new(reader);
    let mut statement = reader.main.prepare_cached(match time {
        SessionTime::Now => NOW,
        SessionTime::At(_) => AS_OF,
        SessionTime::Within { .. } => WITHIN,
    })?;
    let mut of_host = Vec::new();
    for host in selection.hosts() {
        let id = host.listed.id;
        let (mut rows, holders) = match time {
            SessionTime::Now => (statement.query(params![id, first, last])?, None),
            SessionTime::At(at) => {
                let rows = statement.query(params![id, first, last, at.as_micros()])?;
                (rows, Some(Holders::at(&reader.main, id, at)?))
            }
            SessionTime::Within { since, until } => {
                let until = until.unwrap_or(Timestamp::MAX).as_micros();
                (statement.query(params![id, first, last, until, since.as_micros()])?, None)
            }
        };
        while let Some(row) = rows.next()? {
            let stored = StoredListener::read(row)?;
            if stored.is_meant(&matcher, scopes) {
                of_host.push(stored);
            }
        }
        // They are few, for which SQLite would take longer.
        of_host.sort_unstable_by(StoredListener::in_order);
        for stored in of_host.drain(..) {
            let owners = holders.as_ref().and_then(|holders| holders.of(stored.life));
            let listener = stored.listener(&host, owners.unwrap_or(&stored.owners), &mut programs)?;
            if matcher.matches_owners(names(&listener.owners)) && sink.push(listener)? == Wanted::NoMore {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A listener as it is stored.
pub(super) struct StoredListener {
    pub(super) host_id: i64,
    pub(super) life: Life,
    opened_known: i32,
    closed: Option<(i64, i32)>,
    pub(super) protocol: Protocol,
    family: Family,
    pub(super) address: ListenAddress,
    pub(super) port: u16,
    pub(super) owners: OwnerColumns,
}

impl StoredListener {
    /// Of a row that begins with these columns.
    pub(super) fn read(row: &Row<'_>) -> Result<StoredListener, rusqlite::Error> {
        let closed = match row.get::<_, Option<i64>>(5)? {
            Some(at) => Some((at, row.get(6)?)),
            None => None,
        };
        Ok(StoredListener {
            host_id: row.get(0)?,
            life: (row.get(1)?, row.get(2)?, row.get(3)?),
            opened_known: row.get(4)?,
            closed,
            protocol: coding::meaning("protocol", row.get(7)?, Protocol::from_number)?,
            family: coding::meaning("family", row.get(8)?, Family::from_number)?,
            address: coding::listen_address(row.get_ref(9)?)?,
            port: row.get(10)?,
            owners: OwnerColumns::read_from(row, BEFORE_OWNERS)?,
        })
    }

    /// The order of answers among those of a host.
    fn in_order(&self, other: &StoredListener) -> Ordering {
        let place = |one: &StoredListener| (one.protocol.number(), one.port);
        let address = |one: &StoredListener| coding::listen_address_bytes(&one.address);
        let life = |one: &StoredListener| (one.life.2, one.life.1);
        place(self)
            .cmp(&place(other))
            .then_with(|| address(self).cmp(&address(other)))
            .then_with(|| life(self).cmp(&life(other)))
    }

    /// Whether it is meant, whoever holds it.
    pub(super) fn is_meant(&self, matcher: &Matcher, scopes: &[Scope]) -> bool {
        matcher.matches_socket(self.protocol, self.family, self.port)
            && (scopes.is_empty() || scopes.contains(&self.address.scope()))
    }

    /// Held by these owners.
    pub(super) fn listener(
        &self,
        host: &Selected<'_>,
        owners: &OwnerColumns,
        programs: &mut Programs<'_>,
    ) -> Result<Listener, rusqlite::Error> {
        let (netns, _, opened_at_us) = self.life;
        let netns = netns.cast_unsigned();
        let known = |column, number| coding::meaning(column, number, Known::from_number);
        let closed = match self.closed {
            Some((at, how)) => Some((Timestamp::from_micros(at), known("closed_known", how)?)),
            None => None,
        };
        Ok(Listener {
            host_id: host.listed.host_id,
            host: host.listed.name.clone(),
            host_state: host.state,
            protocol: self.protocol,
            family: self.family,
            address: self.address.clone(),
            port: self.port,
            netns,
            netns_name: programs.namespaces.of(host, netns, self.closed.map(|(at, _)| at))?,
            owner_known: owners.how_known()?,
            owners: programs.owners(owners)?,
            opened_at: Timestamp::from_micros(opened_at_us),
            opened_known: known("opened_known", self.opened_known)?,
            closed,
        })
    }
}
