//! Sums by peer that are kept beside sessions, in place of these: read are only those of which sums do not tell whether they are meant.

use fleetsock_proto::{
    question::{SessionQuestion, SummaryQuestion},
    summary::Dimension,
};
use rusqlite::OptionalExtension;

use super::{
    super::{InFile, Search},
    sums::{Covered, tells_apart},
};
use crate::history::{
    HistoryError,
    sqlite::{
        by_peer::{self, Choice, Source, Summed},
        cubes::NOTHING,
    },
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
        sources: &mut Vec<Source<'a>>,
        into: &mut Sums,
    ) -> Result<bool, HistoryError> {
        if !self.is_sealed(file) {
            return self.add_of_rows(file, sources, into);
        }
        let Some((sealed, outline)) = self.sealed(file)? else { return Ok(true) };
        if !outline.peer_sums {
            return Ok(false);
        }
        let Some(choice) = Choice::of(&by_peer::hours(sealed)?, self.meaning.window.bounds()) else { return Ok(false) };
        // It is not told whose they are.
        let mut hosts = sealed.prepare_cached("SELECT hosts FROM cubes")?;
        let all = hosts.query_row([], |row| row.get::<_, Vec<u8>>(0)).optional()?;
        if !all.map(|hosts| self.means_all(&hosts)).transpose()?.unwrap_or(false) {
            return Ok(false);
        }
        sources.extend(Source::chosen(sealed, choice));
        self.add_unclear_blocks(file, sealed, into)?;
        Ok(true)
    }

    /// The same of a file of rows.
    fn add_of_rows(
        &mut self,
        file: InFile,
        sources: &mut Vec<Source<'a>>,
        into: &mut Sums,
    ) -> Result<bool, HistoryError> {
        let Some(day) = self.file(file)? else { return Ok(true) };
        if !self.begins_in_time(file)? {
            return Ok(true);
        }
        let (window, mut covered) = (self.meaning.window.bounds(), Covered::new());
        for summed in Summed::all(day)?.into_iter().filter(|summed| summed.are_meant(window)) {
            if self.means_all(&summed.hosts)? {
                sources.push(Source::of_rows(day, summed.rows.0));
                covered.push(summed.rows);
            }
        }
        if covered.is_empty() {
            return Ok(false);
        }
        // All of them are meant.
        self.add_other_rows(file, day, (&covered, [NOTHING; 3]), into)?;
        Ok(true)
    }
}
