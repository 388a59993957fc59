//! What is new: it opened within the window, and nothing like it was there since the baseline began.
//!
//! Listeners are alike when host, protocol, address and port are the same, sessions when host, direction, peer and
//! service are.

use std::{collections::HashMap, net::IpAddr};

use fleetsock_proto::{
    host::HostId,
    session::Session,
    socket::{Direction, Protocol},
    time::Timestamp,
};
use rusqlite::{Connection, params};

use super::super::{
    outlet::{Sink, Wanted},
    ports::StoredListener,
};
use crate::history::{HistoryError, sqlite::coding};

/// Peers that are told apart, about 200 bytes each.
const PEERS_LIMIT: usize = 100_000;
/// Sessions that are held because they may be new, about 1 KiB each.
const SESSIONS_LIMIT: usize = 100_000;

/// Whether a listener like this one was there between the beginning of the baseline and its own opening.
pub(super) fn was_there(
    main: &Connection,
    listener: &StoredListener,
    baseline: Timestamp,
) -> Result<bool, rusqlite::Error> {
    let StoredListener { host_id, life: (.., opened_at_us), protocol, port, ref address, .. } = *listener;
    main.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM listeners INDEXED BY listeners_by_port
             WHERE host_id = ?1 AND port = ?2 AND opened_at_us < ?3 AND (closed_at_us IS NULL OR closed_at_us >= ?4)
                 AND protocol = ?5 AND address = ?6)",
    )?
    .query_row(
        params![
            host_id,
            port,
            opened_at_us,
            baseline.as_micros(),
            protocol.number(),
            coding::listen_address_bytes(address)
        ],
        |row| row.get(0),
    )
}

/// What sessions have in common that are alike.
type Likeness = (HostId, Direction, IpAddr, Protocol, u16);

/// The first session of each likeness since the baseline began.
pub(super) struct Firsts {
    window: (Timestamp, Timestamp),
    firsts: HashMap<Likeness, First>,
    /// Sessions that are held.
    held: usize,
}

struct First {
    opened_at: Timestamp,
    /// Those that opened at that moment, unless it lies outside the window.
    sessions: Vec<Session>,
}

impl Firsts {
    pub(super) fn within(window: (Timestamp, Timestamp)) -> Firsts {
        Firsts { window, firsts: HashMap::new(), held: 0 }
    }

    /// The sessions that are new.
    pub(super) fn new_ones(self) -> impl Iterator<Item = Session> {
        self.firsts.into_values().flat_map(|first| first.sessions)
    }
}

impl Sink<Session> for Firsts {
    fn push(&mut self, session: Session) -> Result<Wanted, HistoryError> {
        let likeness =
            (session.host_id, session.direction, session.peer.ip(), session.protocol, session.service_port());
        if self.firsts.len() >= PEERS_LIMIT && !self.firsts.contains_key(&likeness) {
            return Err(too_much(&format!("{PEERS_LIMIT} peers since the baseline began")));
        }
        if self.held >= SESSIONS_LIMIT {
            return Err(too_much(&format!("{SESSIONS_LIMIT} sessions that may be new")));
        }
        let (since, until) = self.window;
        let opened_at = session.opened_at;
        let first = self.firsts.entry(likeness).or_insert(First { opened_at: Timestamp::MAX, sessions: Vec::new() });
        if opened_at < first.opened_at {
            self.held -= first.sessions.len();
            *first = First { opened_at, sessions: Vec::new() };
        }
        if opened_at == first.opened_at && since <= opened_at && opened_at <= until {
            first.sessions.push(session);
            self.held += 1;
        }
        Ok(Wanted::More)
    }
}

fn too_much(what: &str) -> HistoryError {
    HistoryError::TooMuch(format!("there were more than {what}; ask for fewer hosts or a shorter baseline"))
}
