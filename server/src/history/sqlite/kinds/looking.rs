//! Kinds of a file that are looked for, one after the other.

use rusqlite::{Connection, Row, params};

use super::{Hours, Kind, Service, Telling, Told, encoding::Stretched};
use crate::history::{
    HistoryError,
    sqlite::{
        coding::{self, AddressBytes},
        sealed::{GoesOn, SealError},
    },
};

/// Stretches between two looks whether sealing is still wanted.
const LOOK_EVERY: usize = 1024;

/// Looks for kinds in a file: quickest in their order, as a stretch is read once then for all that it has.
pub(in crate::history::sqlite) struct Looking<'c> {
    sealed: &'c Connection,
    stretch: Stretched,
    /// Where it is read: nothing comes after the first and before the second.
    before: Option<Kind>,
    next: Option<Told>,
}

impl<'c> Looking<'c> {
    pub(in crate::history::sqlite) fn of(sealed: &'c Connection) -> Looking<'c> {
        Looking { sealed, stretch: Stretched::default(), before: None, next: None }
    }

    /// In which hours sessions of a kind closed; nothing when there are none.
    pub(in crate::history::sqlite) fn find(&mut self, kind: &Kind) -> Result<Option<Hours>, HistoryError> {
        if self.before.is_none_or(|before| *kind <= before) || !self.reaches(kind)? {
            self.begin(kind)?;
            self.reaches(kind)?;
            // It may be the first of its stretch.
            self.before.get_or_insert(*kind);
        }
        Ok(self.next.filter(|(next, _)| next == kind).map(|(_, hours)| hours))
    }

    /// Reads on until a kind could come; whether the stretch does not end before.
    fn reaches(&mut self, kind: &Kind) -> Result<bool, HistoryError> {
        if self.next.is_none_or(|(next, _)| next < *kind) {
            let (before, next) = self.stretch.first_from(Some(kind))?;
            (self.before, self.next) = (before.or(self.before), next);
        }
        Ok(self.next.is_some())
    }

    /// Begins with the last stretch that does not begin after a kind.
    fn begin(&mut self, kind: &Kind) -> Result<(), HistoryError> {
        (self.before, self.next) = (None, None);
        let mut statement = self.sealed.prepare_cached(
            "SELECT kinds FROM kinds WHERE (peer_address, host_id, service) <= (?1, ?2, ?3)
             ORDER BY peer_address DESC, host_id DESC, service DESC LIMIT 1",
        )?;
        let Service(service) = kind.service;
        let mut rows = statement.query(params![AddressBytes::of(kind.peer.address()), kind.host_id, service])?;
        match rows.next()? {
            Some(row) => self.stretch.begin(bytes(row)?)?,
            None => self.stretch = Stretched::default(),
        }
        Ok(())
    }
}

/// The bytes of a stretch.
fn bytes<'r>(row: &'r Row<'_>) -> Result<&'r [u8], rusqlite::Error> {
    row.get_ref(0)?.as_blob().map_err(|error| coding::wrong("kinds", error.to_string()))
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
        let (mut stretch, mut last, mut looked_at) = (Stretched::default(), None, 0_usize);
        while let Some(row) = rows.next()? {
            stretch.begin(bytes(row)?)?;
            let (peer, host_id, service) = (coding::address_of(row.get_ref(1)?)?, row.get(2)?, Service(row.get(3)?));
            let mut key = Some(Kind { peer: peer.into(), host_id, service });
            while let Some(told) = stretch.next()? {
                if key.take().is_some_and(|key| key != told.0)
                    || last.replace(told.0).is_some_and(|last| last >= told.0)
                {
                    return Ok(false);
                }
                self.kind(told);
            }
            if key.is_some() {
                return Ok(false);
            }
            looked_at += 1;
            if looked_at.is_multiple_of(LOOK_EVERY) && !goes_on() {
                return Err(SealError::Unwanted);
            }
        }
        Ok(true)
    }
}
