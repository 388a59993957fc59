//! What is covered: the hosts, and the ranges in which they were not observed.

use std::{cell::OnceCell, sync::Arc};

use fleetsock_proto::{
    answer::{AnswerMeta, Gap, GapReason, META_NAMES_LIMIT},
    host::{Host, HostState},
    question::CoverageQuestion,
    time::Timestamp,
};
use rusqlite::{Connection, Row, params};

use super::{Reader, summed};
use crate::history::{
    Bounds, HistoryError,
    sqlite::{
        coding,
        roster::{self, ByNumber, HostEntry, Selected, Selection},
    },
};

pub(in crate::history::sqlite) fn list_hosts(
    reader: &Reader,
    all: &[(Arc<HostEntry>, HostState)],
) -> Result<Vec<Host>, HistoryError> {
    // One view: for each host that is looked up by itself the system is asked for locks.
    let _views = (reader.main.unchecked_transaction()?, reader.day.unchecked_transaction()?);
    let listeners =
        "SELECT count(*) FROM listeners INDEXED BY listeners_open WHERE host_id = ?1 AND closed_at_us IS NULL";
    let sessions = "SELECT count(*) FROM open_sessions WHERE host_id = ?1";
    let count = |connection: &Connection, sql: &str, id: i64| -> Result<u64, rusqlite::Error> {
        connection.prepare_cached(sql)?.query_row([id], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    };
    let mut hosts = Vec::with_capacity(all.len());
    for one in all {
        let id = one.0.id;
        hosts.push(roster::host(one, count(&reader.main, listeners, id)?, count(&reader.day, sessions, id)?));
    }
    Ok(hosts)
}

pub(in crate::history::sqlite) fn list_gaps(
    reader: &Reader,
    selection: &Selection,
    question: &CoverageQuestion,
    now: Timestamp,
    bounds: Bounds,
) -> Result<(Vec<Gap>, AnswerMeta), HistoryError> {
    let window = (question.since.unwrap_or(Timestamp::MIN), question.until.unwrap_or(now));
    let limit = question.limit.unwrap_or(bounds.rows).min(bounds.rows);
    let mut gaps = Vec::new();
    let total = each_gap(reader, selection, window, reader.catalogue.horizon, |missing| {
        if gaps.len() < limit as usize {
            gaps.push(missing.gap());
        }
    })?;
    let meta = AnswerMeta {
        since: question.since,
        until: question.until,
        gaps_total: total,
        truncated: total > gaps.len() as u64,
        ..selection.meta(now)
    };
    Ok((gaps, meta))
}

/// Adds to `meta` what was not observed within `window`.
pub(super) fn with_gaps(
    reader: &Reader,
    selection: &Selection,
    meta: AnswerMeta,
    window: (Timestamp, Timestamp),
) -> Result<AnswerMeta, HistoryError> {
    let mut gaps = Vec::new();
    let sums = meta.sums.or_else(|| summed::kept(reader, window.0));
    let horizon = match &sums {
        Some(sums) if sums.counted => Some(sums.since),
        _ => reader.catalogue.horizon,
    };
    let gaps_total = each_gap(reader, selection, window, horizon, |missing| {
        if gaps.len() < META_NAMES_LIMIT {
            gaps.push(missing.gap());
        }
    })?;
    Ok(AnswerMeta { gaps, gaps_total, sums, ..meta })
}

/// A gap as it is found: most are only counted.
struct Missing<'a> {
    host: Selected<'a>,
    since: Timestamp,
    until: Option<Timestamp>,
    reason: GapReason,
    batches_lost: u64,
}

impl Missing<'_> {
    fn gap(&self) -> Gap {
        let Missing { ref host, since, until, reason, batches_lost } = *self;
        Gap { host: host.listed.name.clone(), host_id: host.listed.host_id, since, until, reason, batches_lost }
    }
}

/// Shows every gap of the selected hosts that touches `window`: those that go on, what was lost, the one that ended last first,
/// what is not kept any more, and what was before a host was observed; how many there are. What was over before `horizon` is
/// not kept: what was lost then is a part of that.
fn each_gap(
    reader: &Reader,
    selection: &Selection,
    (since, until): (Timestamp, Timestamp),
    horizon: Option<Timestamp>,
    mut show: impl FnMut(&Missing<'_>),
) -> Result<u64, rusqlite::Error> {
    let mut total = 0;
    let mut tell = |missing: Missing<'_>| {
        total += 1;
        show(&missing);
    };
    // Of most windows each host was observed when they began, and nothing of them is gone: then nobody is looked at again.
    let mut some_began_later = false;
    for host in selection.hosts() {
        some_began_later |= host.observed_since.is_none_or(|first| since < first);
        unreported(host, (since, until), selection).into_iter().for_each(&mut tell);
    }
    // Of most windows nothing was lost.
    let hosts = OnceCell::new();
    let mut statement = reader.main.prepare_cached(
        "SELECT host_id, since_us, until_us, reason, batches_lost FROM gaps
         WHERE until_us > ?1 AND since_us < ?2 ORDER BY until_us DESC, id DESC",
    )?;
    // A window of one moment lies within a gap, it does not only touch its ends.
    let kept = horizon.map_or(since, |horizon| since.max(horizon));
    let mut rows = statement.query(params![kept.as_micros(), until.max(since).as_micros()])?;
    while let Some(row) = rows.next()? {
        if let Some(missing) = lost(row, hosts.get_or_init(|| selection.by_number()))? {
            tell(missing);
        }
    }
    if since > Timestamp::MIN {
        if horizon.is_some_and(|horizon| since < horizon) {
            selection.hosts().filter_map(|host| expired(host, since, horizon)).for_each(&mut tell);
        }
        if some_began_later {
            selection.hosts().filter_map(|host| not_yet(host, since)).for_each(&mut tell);
        }
    }
    Ok(total)
}

/// The beginning of a window that lies before the first report of a host; all history begins with that.
fn not_yet(host: Selected<'_>, since: Timestamp) -> Option<Missing<'_>> {
    let first = host.observed_since;
    let begins = first.is_none_or(|first| since < first);
    begins.then_some(Missing { host, since, until: first, reason: GapReason::NotYetObserved, batches_lost: 0 })
}

/// The part of a window that was observed and is not kept any more; all history begins with what is kept.
fn expired(host: Selected<'_>, since: Timestamp, horizon: Option<Timestamp>) -> Option<Missing<'_>> {
    let (horizon, first) = (horizon?, host.observed_since?);
    let begins = since < horizon && first < horizon;
    let (since, until) = (since.max(first), Some(horizon));
    begins.then_some(Missing { host, since, until, reason: GapReason::Expired, batches_lost: 0 })
}

/// The end of a window of which a host has not told yet, or of which nothing is stored because it was revoked. Of this
/// moment an answer says that the host is stale.
fn unreported<'a>(
    host: Selected<'a>,
    (since, until): (Timestamp, Timestamp),
    selection: &Selection,
) -> Option<Missing<'a>> {
    let told = host.known_until?;
    let reason = match host.state {
        HostState::Revoked => GapReason::Revoked,
        HostState::Pending => return None,
        HostState::Online | HostState::Stale => GapReason::NotReported,
    };
    let is_now = || since >= selection.now();
    let is_late = || reason == GapReason::Revoked || selection.now().since(told) > selection.stale_after();
    let is_missing = until > told && !is_now() && is_late();
    is_missing.then_some(Missing { host, since: told, until: None, reason, batches_lost: 0 })
}

/// What a host told that it lost.
fn lost<'a>(row: &Row<'_>, hosts: &ByNumber<'a>) -> Result<Option<Missing<'a>>, rusqlite::Error> {
    let Some(host) = hosts.get(row.get("host_id")?) else { return Ok(None) };
    Ok(Some(Missing {
        host,
        since: coding::time(row, "since_us")?,
        until: Some(coding::time(row, "until_us")?),
        reason: coding::word(row, "reason", GapReason::from_number)?,
        batches_lost: coding::unsigned(row, "batches_lost")?,
    }))
}
