//! Kinds of a file that are looked for, one after the other.

use rusqlite::{Connection, params};

use super::{Hours, Kind, Service, Telling, Told, encoding};
use crate::history::{
    HistoryError,
    sqlite::{
        coding::{self, AddressBytes},
        sealed::{GoesOn, SealError},
    },
};

/// Stretches between two looks whether sealing is still wanted.
const LOOK_EVERY: usize = 1024;

/// Looks for kinds in a file: quickest in their order.
pub(in crate::history::sqlite) struct Looking<'c> {
    sealed: &'c Connection,
    /// The stretch that was read last.
    read: Vec<Told>,
}

impl<'c> Looking<'c> {
    pub(in crate::history::sqlite) fn of(sealed: &'c Connection) -> Looking<'c> {
        Looking { sealed, read: Vec::new() }
    }

    /// In which hours sessions of a kind closed; nothing when there are none.
    pub(in crate::history::sqlite) fn find(&mut self, kind: &Kind) -> Result<Option<Hours>, HistoryError> {
        let covers = |read: &[Told]| matches!(read, [(first, _), .., (last, _)] if first <= kind && kind <= last);
        if !covers(&self.read) {
            self.read_stretch(kind)?;
        }
        let found = self.read.binary_search_by(|(other, _)| other.cmp(kind));
        Ok(found.ok().and_then(|at| self.read.get(at)).map(|(_, hours)| *hours))
    }

    /// Reads the last stretch that does not begin after a kind.
    fn read_stretch(&mut self, kind: &Kind) -> Result<(), HistoryError> {
        self.read.clear();
        let mut statement = self.sealed.prepare_cached(
            "SELECT kinds FROM kinds WHERE (peer_address, host_id, service) <= (?1, ?2, ?3)
             ORDER BY peer_address DESC, host_id DESC, service DESC LIMIT 1",
        )?;
        let Service(service) = kind.service;
        let mut rows = statement.query(params![AddressBytes::of(kind.peer), kind.host_id, service])?;
        if let Some(row) = rows.next()? {
            let bytes = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("kinds", error.to_string()))?;
            encoding::read(bytes, &mut self.read)?;
        }
        Ok(())
    }
}

impl Telling {
    /// Adds what a file tells of its kinds; whether they are in order, each once.
    pub(in crate::history::sqlite) fn add_told(
        &mut self,
        sealed: &Connection,
        goes_on: &GoesOn,
    ) -> Result<bool, SealError> {
        let mut statement = sealed.prepare(
            "SELECT kinds, peer_address, host_id, service FROM kinds ORDER BY peer_address, host_id, service",
        )?;
        let mut rows = statement.query([])?;
        let (mut stretch, mut last, mut looked_at) = (Vec::new(), None, 0_usize);
        while let Some(row) = rows.next()? {
            stretch.clear();
            let bytes = row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("kinds", error.to_string()))?;
            encoding::read(bytes, &mut stretch)?;
            let (peer, host_id, service) = (coding::address_of(row.get_ref(1)?)?, row.get(2)?, Service(row.get(3)?));
            if stretch.first().is_none_or(|(first, _)| *first != Kind { peer, host_id, service }) {
                return Ok(false);
            }
            for told in &stretch {
                if last.replace(told.0).is_some_and(|last| last >= told.0) {
                    return Ok(false);
                }
                self.kind(*told);
            }
            looked_at += 1;
            if looked_at.is_multiple_of(LOOK_EVERY) && !goes_on() {
                return Err(SealError::Unwanted);
            }
        }
        Ok(true)
    }
}
