//! The other ends of the sessions of an answer.
//!
//! Sessions are held until they are a page, or until there are more than whoever asked wants looked for. For a page each
//! host on which another end can be is asked once, for all of them: in the runs of its rows around the moments of closing, or
//! in the blocks that hold them. Then the same is asked the other way round, so that an end that is that of several is none.

use std::{
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
};

use fleetsock_proto::{
    answer::OtherEnds,
    host::HostId,
    question::Pairing,
    session::{OtherEnd, Session},
    socket::Known,
    time::Timestamp,
};
use rusqlite::Connection;

use self::{
    holders::Noted,
    reading::{Kept, Wanted as Asked},
};
use super::{
    Programs, Reader,
    outlet::{Outlet, Sink, Wanted},
};
use crate::history::{
    HistoryError,
    pairing::{End, Ends, Sockets, closing},
    sqlite::{numbered::Numbered, roster::Selection},
};

mod holders;
mod reading;

pub(super) use self::holders::had;

/// Sessions of an answer whose other ends are looked for without being asked to: 15 ms of CPU when each is on a host of its own
/// in the file that is written to, 50 ms when that is sealed, and 4 ms for the answer without (`--bench pairs`).
pub(in crate::history::sqlite) const FEW: usize = 1_000;
/// Sessions whose other ends are looked for at once.
const PAGE: usize = 1_024;
/// Rows that are read for an answer whose other ends are looked for without being asked to: 0.3 s of CPU in the file that is
/// written to, at 1.2 us each, and a tenth of that in sealed ones (`--bench pairs`).
const ROWS: u64 = 250_000;

/// Sessions on their way to an outlet.
pub(super) struct Paired<'a> {
    reader: &'a Reader,
    outlet: &'a mut Outlet<Session>,
    selection: &'a Selection,
    numbers: OnceCell<Numbered<HostId, i64>>,
    names: HashMap<i64, (HostId, String)>,
    now: Timestamp,
    pairing: Pairing,
    held: Vec<Session>,
    sought: OtherEnds,
}

impl<'a> Paired<'a> {
    pub(super) fn new(
        reader: &'a Reader,
        selection: &'a Selection,
        pairing: Pairing,
        outlet: &'a mut Outlet<Session>,
    ) -> Paired<'a> {
        let sought = if pairing == Pairing::Never { OtherEnds::NotLookedFor } else { OtherEnds::LookedFor };
        let now = selection.now();
        Paired {
            reader,
            outlet,
            selection,
            numbers: OnceCell::new(),
            names: HashMap::new(),
            now,
            pairing,
            held: Vec::new(),
            sought,
        }
    }

    /// Sends what is held; whether other ends were looked for.
    pub(super) fn finish(mut self) -> Result<OtherEnds, HistoryError> {
        if self.sought != OtherEnds::NotLookedFor {
            self.pair()?;
        }
        self.send()?;
        Ok(self.sought)
    }

    fn send(&mut self) -> Result<Wanted, HistoryError> {
        for session in std::mem::take(&mut self.held) {
            if self.outlet.push(session)? == Wanted::NoMore {
                return Ok(Wanted::NoMore);
            }
        }
        Ok(Wanted::More)
    }

    /// Finds the other ends of what is held.
    fn pair(&mut self) -> Result<(), HistoryError> {
        if self.held.is_empty() {
            return Ok(());
        }
        let now_us = self.now.as_micros();
        let mut noted = Noted::default();
        noted.look_up(&self.reader.main, self.held.iter().map(|session| session.peer.ip()))?;
        // Most peers are no hosts of the fleet.
        let end = |session| if noted.may_be_of_fleet(session) { self.end(session) } else { None };
        let ends: Vec<Option<End>> = self.held.iter().map(end).collect();
        let known = || ends.iter().flatten();
        if known().next().is_none() {
            return Ok(());
        }
        noted.look_up(&self.reader.main, known().map(|end| end.sockets.local.ip()))?;
        let mut all = Ends::new(now_us, noted);
        let mut rows = if self.pairing == Pairing::Always { u64::MAX } else { ROWS };
        let forth = wanted(&all, known(), now_us).0;
        if reading::read(self.reader, forth, &mut all, &mut rows)? == Kept::Cut {
            self.sought = OtherEnds::NotLookedFor;
            return Ok(());
        }
        // Each once: lives of the same two sockets fit each other in every combination.
        let others: HashSet<End> = known().flat_map(|end| all.fitting(end)).copied().collect();
        let (back, unclear) = wanted(&all, others.iter(), now_us);
        if reading::read(self.reader, back, &mut all, &mut rows)? == Kept::Cut {
            self.sought = OtherEnds::NotLookedFor;
            return Ok(());
        }
        // An earlier version may not have noted the address by which it would be found again.
        let sought: HashSet<Sockets> =
            others.iter().flat_map(|other| [other.sockets, other.sockets.mirrored()]).collect();
        let alike = self.held.iter().filter(|session| sought.contains(&sockets(session)));
        alike.filter_map(|session| self.end(session)).for_each(|end| all.add_missing(end));
        let mut programs = Programs::new(self.reader);
        for (place, end) in ends.iter().enumerate() {
            let Some((other, Some(owners))) = end.as_ref().and_then(|end| all.other_end(end)) else { continue };
            if unclear.contains(&other.sockets) {
                continue;
            }
            let Some((host_id, host)) = self.name(other.host)? else { continue };
            let owner = programs.owners(owners)?.into_iter().next();
            let owner_known = owners.how_known()?;
            let found = OtherEnd { host_id, host: host.clone(), netns: other.netns, owner_known, owner };
            if let Some(session) = self.held.get_mut(place) {
                (session.peer_host, session.other_end) = (host, Some(Box::new(found)));
            }
        }
        Ok(())
    }

    fn end(&self, session: &Session) -> Option<End> {
        let numbers = self
            .numbers
            .get_or_init(|| self.selection.hosts().map(|host| (host.listed.host_id, host.listed.id)).collect());
        Some(End {
            host: *numbers.get(&session.host_id)?,
            netns: session.netns,
            sockets: sockets(session),
            opened_at_us: session.opened_at.as_micros(),
            opening_is_known: session.opened_known == Known::Event,
            closed_at_us: session.closed.map(|(at, _)| at.as_micros()),
        })
    }

    fn name(&mut self, host: i64) -> Result<Option<(HostId, String)>, rusqlite::Error> {
        if let Some(known) = self.names.get(&host) {
            return Ok(Some(known.clone()));
        }
        let found = name(&self.reader.main, host)?;
        self.names.extend(found.clone().map(|found| (host, found)));
        Ok(found)
    }
}

fn sockets(session: &Session) -> Sockets {
    Sockets { protocol: session.protocol.number(), local: session.local, peer: session.peer }
}

fn name(main: &Connection, host: i64) -> Result<Option<(HostId, String)>, rusqlite::Error> {
    let mut statement = main.prepare_cached("SELECT host_id, name FROM hosts WHERE id = ?1")?;
    let mut rows = statement.query([host])?;
    match rows.next()? {
        Some(row) => Ok(Some((HostId::from_array(row.get(0)?), row.get(1)?))),
        None => Ok(None),
    }
}

/// What is asked of each host to find the other ends of some, and the sockets of those for which there are too many hosts.
fn wanted<'e>(
    all: &reading::Found,
    ends: impl Iterator<Item = &'e End>,
    now_us: i64,
) -> (BTreeMap<i64, Asked>, BTreeSet<Sockets>) {
    let (mut asked, mut unclear): (BTreeMap<i64, Asked>, BTreeSet<Sockets>) = Default::default();
    for end in ends {
        let Some(hosts) = all.candidates(end) else {
            unclear.insert(end.sockets);
            continue;
        };
        for host in hosts {
            let closing = closing(end, now_us);
            asked.entry(host).or_default().add(end.sockets.mirrored(), closing, closing.1 >= now_us);
        }
    }
    (asked, unclear)
}

impl Sink<Session> for Paired<'_> {
    fn push(&mut self, session: Session) -> Result<Wanted, HistoryError> {
        if self.sought == OtherEnds::NotLookedFor {
            return self.outlet.push(session);
        }
        self.held.push(session);
        // One more than is wanted, which says that there are more.
        if self.held.len() > self.outlet.left() {
            return Ok(Wanted::NoMore);
        }
        match self.pairing {
            Pairing::Always if self.held.len() == PAGE => {
                self.pair()?;
                self.send()
            }
            Pairing::OfFew if self.held.len() > FEW => {
                self.sought = OtherEnds::NotLookedFor;
                self.send()
            }
            Pairing::Always | Pairing::OfFew | Pairing::Never => Ok(Wanted::More),
        }
    }
}
