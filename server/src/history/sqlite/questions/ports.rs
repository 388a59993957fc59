//! Listeners, now or as of a moment.

use fleetsock_proto::{
    address::Scope,
    answer::AnswerMeta,
    listener::Listener,
    question::{PortQuestion, SessionTime, SocketFilter},
    socket::{Family, Known, Protocol},
    time::Timestamp,
};
use rusqlite::{Row, params};

use super::{
    Programs, Reader, coverage,
    holders::Holders,
    names,
    outlet::{Outlet, Sink, Wanted},
};
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding::{self, OwnerColumns},
        roster::{Selected, Selection},
    },
};

/// Open ones have an index of their own; that of all lives on a port would do, and read every one.
const NOW: &str = "SELECT * FROM listeners INDEXED BY listeners_open
    WHERE host_id = ?1 AND closed_at_us IS NULL AND port BETWEEN ?2 AND ?3
    ORDER BY protocol, port, address, opened_at_us, cookie";

const AS_OF: &str = "SELECT * FROM listeners
    WHERE host_id = ?1 AND port BETWEEN ?2 AND ?3 AND opened_at_us <= ?4
        AND (closed_at_us IS NULL OR closed_at_us > ?4)
    ORDER BY protocol, port, address, opened_at_us, cookie";

const WITHIN: &str = "SELECT * FROM listeners
    WHERE host_id = ?1 AND port BETWEEN ?2 AND ?3 AND opened_at_us <= ?4
        AND (closed_at_us IS NULL OR closed_at_us >= ?5)
    ORDER BY protocol, port, address, opened_at_us, cookie";

/// Those that were closed before are not even looked at.
const WITHIN_OF_ALL: &str = "SELECT * FROM listeners INDEXED BY listeners_open
    WHERE closed_at_us IS NULL AND port BETWEEN ?1 AND ?2 AND opened_at_us <= ?3
    UNION ALL SELECT * FROM listeners INDEXED BY listeners_closed
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

/// Shows the listeners of a time in whatever order is least work: those of many hosts are read in one go.
pub(super) fn visit_unordered(
    reader: &Reader,
    selection: &Selection,
    filter: &SocketFilter,
    time: SessionTime,
    sink: &mut dyn Sink<Listener>,
) -> Result<(), HistoryError> {
    let (SessionTime::Within { since, until }, true) = (time, selection.len() > BY_HOST) else {
        return visit(reader, selection, (filter, &[]), time, sink);
    };
    let (matcher, hosts) = (Matcher::new(filter)?, selection.by_number());
    let (first, last) = matcher.port_bounds();
    let mut programs = Programs::new(reader);
    let mut statement = reader.main.prepare_cached(WITHIN_OF_ALL)?;
    let until = until.unwrap_or(Timestamp::MAX).as_micros();
    let mut rows = statement.query(params![first, last, until, since.as_micros()])?;
    while let Some(row) = rows.next()? {
        let Some(host) = hosts.get(row.get("host_id")?) else { continue };
        if !is_meant(row, &matcher, &[])? {
            continue;
        }
        let listener = read(row, &host, &OwnerColumns::read(row)?, &mut programs)?;
        if matcher.matches_owners(names(&listener.owners)) && sink.push(listener)? == Wanted::NoMore {
            return Ok(());
        }
    }
    Ok(())
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
            if !is_meant(row, &matcher, scopes)? {
                continue;
            }
            let columns = OwnerColumns::read(row)?;
            let columns = match &holders {
                Some(holders) => holders.of(row, columns)?,
                None => columns,
            };
            let listener = read(row, &host, &columns, &mut programs)?;
            if matcher.matches_owners(names(&listener.owners)) && sink.push(listener)? == Wanted::NoMore {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether the socket of a row is meant, whoever holds it.
pub(super) fn is_meant(row: &Row<'_>, matcher: &Matcher, scopes: &[Scope]) -> Result<bool, rusqlite::Error> {
    let protocol = coding::word(row, "protocol", Protocol::from_number)?;
    let family = coding::word(row, "family", Family::from_number)?;
    let scope = coding::listen_address(row, "address")?.scope();
    Ok(matcher.matches_socket(protocol, family, row.get("port")?) && (scopes.is_empty() || scopes.contains(&scope)))
}

/// The listener of a row, held by these owners.
pub(super) fn read(
    row: &Row<'_>,
    host: &Selected<'_>,
    owners: &OwnerColumns,
    programs: &mut Programs<'_>,
) -> Result<Listener, rusqlite::Error> {
    let closed = match coding::time_or_null(row, "closed_at_us")? {
        Some(at) => Some((at, coding::word(row, "closed_known", Known::from_number)?)),
        None => None,
    };
    let netns = coding::unsigned(row, "netns")?;
    Ok(Listener {
        host_id: host.listed.host_id,
        host: host.listed.name.clone(),
        host_state: host.state,
        protocol: coding::word(row, "protocol", Protocol::from_number)?,
        family: coding::word(row, "family", Family::from_number)?,
        address: coding::listen_address(row, "address")?,
        port: row.get("port")?,
        netns,
        netns_name: programs.namespaces.of(host, netns, closed.map(|(at, _)| at.as_micros()))?,
        owner_known: owners.how_known()?,
        owners: programs.owners(owners)?,
        opened_at: coding::time(row, "opened_at_us")?,
        opened_known: coding::word(row, "opened_known", Known::from_number)?,
        closed,
    })
}
