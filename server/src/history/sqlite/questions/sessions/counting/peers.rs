//! Sums by peer that are kept in sealed files, in place of their sessions: read are only those of which hours do not tell whether they
//! are meant.

use fleetsock_proto::{
    question::{SessionQuestion, SummaryQuestion},
    summary::Dimension,
};
use rusqlite::OptionalExtension;

use super::{
    super::{InFile, Search},
    sums::tells_apart,
};
use crate::history::{
    HistoryError,
    sqlite::by_peer::{self, Choice, Merged, Stretches},
    summing::Sums,
};

/// Whether sums by peer answer a question.
pub(super) fn by_peer(question: &SummaryQuestion) -> bool {
    let SummaryQuestion { sockets: SessionQuestion { filter, directions, states, peers, .. }, by, .. } = question;
    by.as_slice() == [Dimension::Peer]
        && !filter.is_about_sockets()
        && !tells_apart(directions)
        && states.is_empty()
        && peers.is_empty()
}

impl<'a> Search<'a> {
    /// Counts what is meant in a file whose sums by peer can be used; whether it has such.
    pub(super) fn add_peer_sums(
        &mut self,
        file: InFile,
        merged: &mut Merged<'a>,
        into: &mut Sums,
    ) -> Result<bool, HistoryError> {
        if !self.is_sealed(file) {
            return Ok(false);
        }
        let Some((sealed, outline)) = self.sealed(file)? else { return Ok(true) };
        if !outline.peer_sums {
            return Ok(false);
        }
        let Some(choice) = Choice::of(&by_peer::hours(sealed)?, self.meaning.window.bounds()) else { return Ok(false) };
        // It is not told whose they are.
        let mut hosts = sealed.prepare_cached("SELECT hosts FROM cubes")?;
        let all = hosts.query_row([], |row| Ok(self.means_all(row.get_ref(0)?))).optional()?;
        if !all.transpose()?.unwrap_or(false) {
            return Ok(false);
        }
        merged.extend(Stretches::chosen(sealed, &choice)?)?;
        self.add_unclear_blocks(file, sealed, into)?;
        Ok(true)
    }
}
