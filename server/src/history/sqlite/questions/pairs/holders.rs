//! Which hosts had the addresses of some ends, as it was noted.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use fleetsock_proto::session::Session;
use rusqlite::Connection;

use crate::history::{
    pairing::Holders,
    sqlite::{coding, writer::addresses::NOTED_FOR_US},
};

/// Hosts with one address that are read. Where there are more, each may have it, and it leads nowhere.
const HOLDERS_LIMIT: usize = 20_000;

/// Between which times a host had an address.
type Span = (i64, i64);

/// What was noted of addresses.
#[derive(Debug, Default)]
pub(super) struct Noted(HashMap<IpAddr, HashMap<i64, Span>>);

impl Noted {
    /// Looks up what was noted of addresses, each once.
    pub(super) fn look_up(
        &mut self,
        main: &Connection,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<(), rusqlite::Error> {
        let mut statement = main.prepare_cached(&format!(
            "SELECT host_id, first_seen_us, last_seen_us FROM host_addresses WHERE address = ?1 LIMIT {HOLDERS_LIMIT}"
        ))?;
        // A loopback address is every host's.
        for address in addresses.filter(|address| !address.is_loopback()) {
            let Entry::Vacant(unknown) = self.0.entry(address) else { continue };
            let holder = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, (row.get(1)?, row.get(2)?)));
            let holders: HashMap<i64, Span> =
                statement.query_map([coding::address_bytes(address)], holder)?.collect::<Result<_, _>>()?;
            unknown.insert(holders);
        }
        Ok(())
    }

    /// Whether the peer of a session, which was looked up, may be a host of the fleet.
    pub(super) fn may_be_of_fleet(&self, session: &Session) -> bool {
        let is_held = self.0.get(&session.peer.ip()).is_some_and(|holders| !holders.is_empty());
        is_held || session.peer.ip().is_loopback() || session.local.ip().is_loopback()
    }
}

/// A day is how exactly it is noted, at either end.
pub(in super::super) fn had(noted: Span, span: Span) -> bool {
    noted.0.saturating_sub(NOTED_FOR_US) <= span.1 && noted.1.saturating_add(2 * NOTED_FOR_US) >= span.0
}

impl Holders for Noted {
    fn of(&self, address: IpAddr, span: Span) -> Vec<i64> {
        let holders = self.0.get(&address).into_iter().flatten();
        holders.filter(|(_, noted)| had(**noted, span)).map(|(host, _)| *host).collect()
    }

    fn has(&self, host: i64, address: IpAddr, span: Span) -> bool {
        let Some(holders) = self.0.get(&address) else { return false };
        holders.len() >= HOLDERS_LIMIT || holders.get(&host).is_some_and(|noted| had(*noted, span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_had_an_address_from_a_day_before_it_was_noted_to_two_days_after() {
        const DAY: i64 = NOTED_FOR_US;
        for (span, expected) in [
            ((0, 8 * DAY), false),
            ((0, 9 * DAY), true),
            ((10 * DAY, 20 * DAY), true),
            ((22 * DAY, 23 * DAY), true),
            ((22 * DAY + 1, 23 * DAY), false),
        ] {
            assert_eq!(had((10 * DAY, 20 * DAY), span), expected, "{span:?}");
        }
    }
}
