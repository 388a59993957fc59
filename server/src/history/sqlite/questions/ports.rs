//! Listeners, now or as of a moment.

use fleetsock_proto::{
    address::Scope,
    answer::AnswerMeta,
    listener::Listener,
    question::PortQuestion,
    socket::{Family, Known, OwnerKnown, Protocol},
    time::Timestamp,
};
use rusqlite::{Row, params};

use super::{
    Programs, Reader, coverage, names,
    outlet::{Outlet, Wanted},
};
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding::{self, OwnerColumns},
        roster::{Selected, Selection},
    },
};

const NOW: &str = "SELECT * FROM listeners
    WHERE host_id = ?1 AND closed_at_us IS NULL AND port BETWEEN ?2 AND ?3
    ORDER BY protocol, port, address, opened_at_us, cookie";

const AS_OF: &str = "SELECT * FROM listeners
    WHERE host_id = ?1 AND port BETWEEN ?2 AND ?3 AND opened_at_us <= ?4
        AND (closed_at_us IS NULL OR closed_at_us > ?4)
    ORDER BY protocol, port, address, opened_at_us, cookie";

pub(in crate::history::sqlite) fn list(
    reader: &Reader,
    selection: &Selection,
    question: &PortQuestion,
    now: Timestamp,
    outlet: &mut Outlet<Listener>,
) -> Result<AnswerMeta, HistoryError> {
    let matcher = Matcher::new(&question.filter)?;
    let (first, last) = matcher.port_bounds();
    let mut programs = Programs::new(reader);
    let mut statement = reader.main.prepare_cached(if question.at.is_some() { AS_OF } else { NOW })?;
    'hosts: for host in &selection.hosts {
        let mut rows = match question.at {
            Some(at) => statement.query(params![host.entry.id, first, last, at.as_micros()])?,
            None => statement.query(params![host.entry.id, first, last])?,
        };
        while let Some(row) = rows.next()? {
            let Some(listener) = listener(row, host, &matcher, &question.scopes, &mut programs)? else { continue };
            if outlet.push(listener)? == Wanted::NoMore {
                break 'hosts;
            }
        }
    }
    let as_of = question.at.unwrap_or(now);
    coverage::with_gaps(reader, selection, selection.meta(as_of), (as_of, as_of))
}

/// The listener of a row, if the question means it.
fn listener(
    row: &Row<'_>,
    host: &Selected,
    matcher: &Matcher,
    scopes: &[Scope],
    programs: &mut Programs<'_>,
) -> Result<Option<Listener>, rusqlite::Error> {
    let protocol = coding::word(row, "protocol", Protocol::from_number)?;
    let family = coding::word(row, "family", Family::from_number)?;
    let port = row.get("port")?;
    let address = coding::address(row, "address")?;
    if !matcher.matches_socket(protocol, family, port) || !(scopes.is_empty() || scopes.contains(&Scope::of(address))) {
        return Ok(None);
    }
    let owners = programs.owners(&OwnerColumns::read(row)?)?;
    if !matcher.matches_owners(names(&owners)) {
        return Ok(None);
    }
    let closed = match coding::time_or_null(row, "closed_at_us")? {
        Some(at) => Some((at, coding::word(row, "closed_known", Known::from_number)?)),
        None => None,
    };
    Ok(Some(Listener {
        host_id: host.entry.host_id,
        host: host.entry.name.clone(),
        host_state: host.state,
        protocol,
        family,
        address,
        port,
        netns: coding::unsigned(row, "netns")?,
        owner_known: coding::word(row, "owner_known", OwnerKnown::from_number)?,
        owners,
        opened_at: coding::time(row, "opened_at_us")?,
        opened_known: coding::word(row, "opened_known", Known::from_number)?,
        closed,
    }))
}
