//! The addresses of hosts, in `main.db`: by them the other ends of sessions are found.
//!
//! Nearly all sockets have an address that was noted on the same day, which a look into memory tells.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
};

use fleetsock_proto::{batch::Socket, host::HostFacts, time::Timestamp};
use rusqlite::{Connection, params};

use super::Admitted;
use crate::history::sqlite::coding::{address_bytes, address_of};

/// Most addresses of one host within two days; what it tells of beyond that is not noted. A host with two addresses for
/// each of 250 containers has as many.
const ADDRESSES_OF_HOST: usize = 512;
/// After this time an address is noted anew.
pub(in crate::history::sqlite) const NOTED_FOR_US: i64 = 86_400_000_000;

/// Which addresses were noted lately, and when.
#[derive(Debug, Default)]
pub(super) struct Addresses(HashMap<i64, HashMap<IpAddr, i64>>);

/// An address that is to be noted.
type News = (i64, IpAddr, i64);

/// Whether other hosts can send to an address.
fn is_reachable(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

impl Addresses {
    /// What batches tell that was not noted lately.
    pub(super) fn news(&mut self, main: &Connection, admitted: &[Admitted]) -> Result<Vec<News>, rusqlite::Error> {
        let mut news = Vec::new();
        for one in admitted {
            let noted = self.of_host(main, one.host)?;
            let at = one.step.after.observed_until.as_micros();
            let mut before = None;
            for address in one.batch.changes.iter().map(|change| local(&change.socket)) {
                if before.replace(address) != Some(address) && note(noted, address, at) {
                    news.push((one.host, address, at));
                }
            }
        }
        Ok(news)
    }

    /// What was noted of a host within the last two days of it.
    fn of_host(&mut self, main: &Connection, host: i64) -> Result<&mut HashMap<IpAddr, i64>, rusqlite::Error> {
        let noted = match self.0.entry(host) {
            Entry::Occupied(noted) => return Ok(noted.into_mut()),
            Entry::Vacant(noted) => noted,
        };
        let mut statement = main.prepare_cached(&format!(
            "SELECT address, last_seen_us FROM host_addresses WHERE host_id = ?1
             ORDER BY last_seen_us DESC LIMIT {ADDRESSES_OF_HOST}"
        ))?;
        let read = statement
            .query_map([host], |row| Ok((address_of(row.get_ref(0)?)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        Ok(noted.insert(read))
    }
}

fn local(socket: &Socket) -> IpAddr {
    socket.local.ip()
}

/// Remembers that an address was seen; whether it must be written down.
fn note(noted: &mut HashMap<IpAddr, i64>, address: IpAddr, at: i64) -> bool {
    if noted.get(&address).is_some_and(|last| at - last < NOTED_FOR_US) || !is_reachable(address) {
        return false;
    }
    if noted.len() >= ADDRESSES_OF_HOST && !noted.contains_key(&address) {
        noted.retain(|_, last| at - *last < 2 * NOTED_FOR_US);
        if noted.len() >= ADDRESSES_OF_HOST {
            return false;
        }
    }
    noted.insert(address, at);
    true
}

/// Writes addresses down.
pub(super) fn store(main: &Connection, news: &[News]) -> Result<(), rusqlite::Error> {
    let mut statement = main.prepare_cached(
        "INSERT INTO host_addresses (address, host_id, first_seen_us, last_seen_us) VALUES (?1, ?2, ?3, ?3)
         ON CONFLICT DO UPDATE SET first_seen_us = min(first_seen_us, ?3), last_seen_us = max(last_seen_us, ?3)",
    )?;
    news.iter()
        .try_for_each(|(host, address, at)| statement.execute(params![address_bytes(*address), host, at]).map(drop))
}

/// Writes down what a host says that it has.
pub(super) fn store_said(
    main: &Connection,
    host: i64,
    facts: &HostFacts,
    at: Timestamp,
) -> Result<(), rusqlite::Error> {
    let said = facts.addresses.iter().filter(|address| is_reachable(**address)).take(ADDRESSES_OF_HOST);
    let news: Vec<News> = said.map(|address| (host, *address, at.as_micros())).collect();
    store(main, &news)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_down_once_a_day_and_one_that_no_other_host_reaches_never() {
        let mut noted = HashMap::new();
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        for (text, at, expected) in [
            ("10.0.0.1", 0, true),
            ("10.0.0.1", NOTED_FOR_US - 1, false),
            ("10.0.0.1", NOTED_FOR_US, true),
            ("10.0.0.1", 5, false),
            ("fe80::1", 5, true),
            ("127.0.0.1", 5, false),
            ("::1", 5, false),
            ("0.0.0.0", 5, false),
            ("ff02::1", 5, false),
        ] {
            assert_eq!(note(&mut noted, address(text), at), expected, "{text} {at}");
        }
    }

    #[test]
    fn a_host_that_makes_up_addresses_is_not_believed_for_long_and_is_again_later() {
        let mut noted = HashMap::new();
        let address = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes().map(|byte| byte | 1));
        let written = (0..100_000).filter(|number| note(&mut noted, address(*number), 0)).count();
        assert_eq!((written, noted.len()), (ADDRESSES_OF_HOST, ADDRESSES_OF_HOST));
        assert!(note(&mut noted, "192.0.2.1".parse().unwrap(), 3 * NOTED_FOR_US));
        assert_eq!(noted.len(), 1);
    }
}
