//! Which sessions a question means, whichever kind of file they are in.

use std::{net::IpAddr, ops::RangeInclusive};

use fleetsock_proto::{
    question::{SessionQuestion, SessionTime},
    socket::{Direction, Family, Protocol, SocketState},
    time::Timestamp,
};
use ipnet::IpNet;
use rusqlite::types::Value;

use super::super::Programs;
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding::{self, OwnerColumns},
        stored::StoredSession,
    },
};

/// The sessions that are meant: opened not after `opened_until`, and open or closed after `closed_after`; where there is
/// a `closed_before`, closed before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Window {
    pub(super) opened_until: Timestamp,
    pub(super) closed_after: Timestamp,
    pub(super) closed_before: Option<Timestamp>,
    /// Whether sessions that are over are meant at all.
    pub(super) past: bool,
}

impl Window {
    fn of(time: SessionTime) -> Window {
        match time {
            SessionTime::Now => {
                Window { opened_until: Timestamp::MAX, closed_after: Timestamp::MAX, closed_before: None, past: false }
            }
            SessionTime::At(at) => Window { opened_until: at, closed_after: at, closed_before: None, past: true },
            SessionTime::Within { since, until } => Window {
                closed_before: None,
                opened_until: until.unwrap_or(Timestamp::MAX),
                // One that closed in the window's first moment was open in it.
                closed_after: Timestamp::from_micros(since.as_micros() - 1),
                past: true,
            },
        }
    }

    /// The latest moment at which one that is meant can have closed.
    pub(super) fn last_closing(&self) -> i64 {
        self.closed_before.map_or(i64::MAX, |before| before.as_micros().saturating_sub(1))
    }

    /// The moments that one that is over is held against: closed after the first, not after the second, opened not after the
    /// third.
    pub(super) fn bounds(&self) -> [i64; 3] {
        [self.closed_after.as_micros(), self.last_closing(), self.opened_until.as_micros()]
    }
}

/// What the words and the port of a session tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    pub(super) protocol: Protocol,
    pub(super) family: Family,
    pub(super) direction: Direction,
    pub(super) state: SocketState,
    /// The service's port.
    pub(super) port: u16,
}

impl Traits {
    pub(super) fn of(one: &StoredSession) -> Result<Traits, rusqlite::Error> {
        let direction = coding::meaning("direction", one.direction, Direction::from_number)?;
        let end = match direction {
            Direction::In => one.local,
            Direction::Out => one.peer,
        };
        Ok(Traits {
            protocol: coding::meaning("protocol", one.protocol, Protocol::from_number)?,
            family: coding::meaning("family", one.family, Family::from_number)?,
            direction,
            state: coding::meaning("state", one.state, SocketState::from_number)?,
            port: end.port(),
        })
    }
}

/// A question, ready to be held against many sessions.
pub(super) struct Meaning<'a> {
    pub(super) question: &'a SessionQuestion,
    pub(super) window: Window,
    /// The ports of services, from the lowest one that is meant to the highest.
    pub(super) ports: RangeInclusive<u16>,
    /// For SQLite, with unnumbered parameters, which follow the numbered ones. It lets through whatever is meant.
    pub(super) sql: String,
    pub(super) values: Vec<Value>,
    matcher: Matcher,
}

impl<'a> Meaning<'a> {
    pub(super) fn of(question: &'a SessionQuestion) -> Result<Meaning<'a>, HistoryError> {
        let matcher = Matcher::new(&question.filter)?;
        let window = Window { closed_before: question.closed_before, ..Window::of(question.time) };
        let (first, last) = matcher.port_bounds();
        let (sql, values) = narrowed((first, last), question);
        Ok(Meaning { question, window, ports: first..=last, sql, values, matcher })
    }

    /// Whether words and ports have to be looked at.
    pub(super) fn asks_for_traits(&self) -> bool {
        let SessionQuestion { filter, directions, states, .. } = self.question;
        filter.is_about_sockets() || !directions.is_empty() || !states.is_empty()
    }

    pub(super) fn has_traits(&self, traits: Traits) -> bool {
        let SessionQuestion { directions, states, .. } = self.question;
        self.matcher.matches_socket(traits.protocol, traits.family, traits.port)
            && (directions.is_empty() || directions.contains(&traits.direction))
            && (states.is_empty() || states.contains(&traits.state))
    }

    /// Whether peers have to be looked at.
    pub(super) fn asks_for_peers(&self) -> bool {
        !self.question.peers.is_empty()
    }

    pub(super) fn has_peer(&self, peer: IpAddr) -> bool {
        !self.asks_for_peers() || self.question.peers.iter().any(|prefix| prefix.contains(&peer))
    }

    /// Whether owners have to be looked at.
    pub(super) fn asks_for_owners(&self) -> bool {
        self.matcher.asks_for_owners()
    }

    /// Whether something has to be looked at that sessions of one kind need not have in common.
    pub(super) fn tells_kinds_apart(&self) -> bool {
        let SessionQuestion { filter, states, .. } = self.question;
        self.asks_for_owners() || !filter.families.is_empty() || !states.is_empty()
    }

    pub(super) fn has_owners(
        &self,
        owners: &OwnerColumns,
        programs: &mut Programs<'_>,
    ) -> Result<bool, rusqlite::Error> {
        if !self.asks_for_owners() {
            return Ok(true);
        }
        for owner in owners.owners() {
            if self.matcher.matches_owners(std::iter::once(programs.names(owner.program_id)?)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Conditions that SQLite can hold against a row before much is read of it.
fn narrowed((first, last): (u16, u16), question: &SessionQuestion) -> (String, Vec<Value>) {
    let mut sql = "TRUE".to_owned();
    let mut values = Vec::new();
    if (first, last) != (0, u16::MAX) {
        sql += &format!(" AND iif(direction = {}, local_port, peer_port) BETWEEN ? AND ?", Direction::In.number());
        values.extend([Value::from(i64::from(first)), Value::from(i64::from(last))]);
    }
    if !question.peers.is_empty() {
        let ranges = vec!["peer_address BETWEEN ? AND ?"; question.peers.len()].join(" OR ");
        sql += &format!(" AND ({ranges})");
        let ends = |prefix: &IpNet| [prefix.network(), prefix.broadcast()];
        values.extend(question.peers.iter().flat_map(ends).map(|end| Value::from(coding::address_bytes(end))));
    }
    (sql, values)
}
