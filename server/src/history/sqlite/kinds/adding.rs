//! Kinds while sessions are added in the order of their peers, and how they are stored.

use std::{collections::BTreeMap, net::IpAddr};

use rusqlite::{Connection, params};

use super::{
    Hours, Kind, Service, Telling, Told,
    encoding::{Stretch, Stretched},
};
use crate::history::sqlite::{
    coding::AddressBytes,
    sealed::{Filter, SealError},
};

/// The kinds of a file, while its sessions are added: all with one address, host by host, then all with the next.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Adding<'c> {
    sealed: &'c Connection,
    /// The first hour in which one of the sessions closes.
    origin: i64,
    /// Those of one address and one host: a few, and at most as many as there are ports, of each protocol and direction.
    pair: Option<(IpAddr, i64)>,
    services: BTreeMap<Service, Hours>,
    stretch: Option<Stretch>,
    /// What the stretch has to tell.
    expected: Vec<Told>,
    read: Stretched,
    telling: Telling,
    filter: Filter<Kind>,
    kinds: u64,
}

impl Adding<'_> {
    /// None yet, of so many sessions that close in this hour or later.
    pub(in crate::history::sqlite) fn new(sealed: &Connection, origin: i64, sessions: u64) -> Adding<'_> {
        Adding {
            sealed,
            origin,
            pair: None,
            services: BTreeMap::new(),
            stretch: None,
            expected: Vec::new(),
            read: Stretched::default(),
            telling: Telling::default(),
            filter: Filter::with_room_for(sessions),
            kinds: 0,
        }
    }

    /// Adds a session of a host with a peer, which closed in an hour.
    pub(in crate::history::sqlite) fn add(
        &mut self,
        (peer, host_id): (IpAddr, i64),
        service: Service,
        hour: i64,
    ) -> Result<(), SealError> {
        if self.pair != Some((peer, host_id)) {
            self.end_pair()?;
            self.pair = Some((peer, host_id));
        }
        self.telling.session(Kind { peer: peer.into(), host_id, service }, hour);
        self.services.entry(service).or_insert(Hours::of(hour)).add(hour);
        Ok(())
    }

    /// Writes what is known of an address and a host.
    fn end_pair(&mut self) -> Result<(), SealError> {
        let Some((peer, host_id)) = self.pair.take() else { return Ok(()) };
        while let Some((service, hours)) = self.services.pop_first() {
            let told = (Kind { peer: peer.into(), host_id, service }, hours);
            match &mut self.stretch {
                Some(stretch) if stretch.has_room_for(told.0) => stretch.add(told),
                _ => {
                    self.end_stretch()?;
                    self.stretch = Some(Stretch::begun(told, self.origin));
                }
            }
            self.expected.push(told);
            self.telling.kind(told);
            self.filter.add(&told.0);
            self.kinds += 1;
        }
        Ok(())
    }

    /// Stores a stretch, if it says what it has to.
    fn end_stretch(&mut self) -> Result<(), SealError> {
        let Some(stretch) = self.stretch.take() else { return Ok(()) };
        let (Kind { peer, host_id, service: Service(service) }, bytes) = stretch.finish();
        self.read.begin(&bytes)?;
        for told in self.expected.drain(..) {
            if self.read.next()? != Some(told) {
                return Err(SealError::Different);
            }
        }
        if self.read.next()?.is_some() {
            return Err(SealError::Different);
        }
        self.sealed
            .prepare_cached("INSERT INTO kinds (peer_address, host_id, service, kinds) VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![AddressBytes::of(peer.address()), host_id, service, bytes])?;
        Ok(())
    }

    /// Stores the rest; what is told.
    pub(in crate::history::sqlite) fn finish(mut self) -> Result<Telling, SealError> {
        self.end_pair()?;
        self.end_stretch()?;
        self.filter.fold(self.kinds);
        self.filter.store(self.sealed)?;
        Ok(self.telling)
    }
}
