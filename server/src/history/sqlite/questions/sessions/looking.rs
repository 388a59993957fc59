//! Sessions in no order, each once, for those who put them together: of blocks only what is asked of them is read.

use std::{collections::BinaryHeap, iter::zip};

use super::{InFile, Next, Search, What, placed::Chosen};
use crate::history::{
    HistoryError,
    sqlite::{
        questions::outlet::Wanted,
        roster::Selection,
        sealed::{Block, places::Place},
        stored::StoredSession,
    },
};

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// Among those that are open, by namespace and cookie.
    Open(i64, i64),
    /// The number of a row.
    Row(InFile, i64),
    /// The number of a place in a sealed file.
    Place(usize, i64),
}

/// Who is shown sessions.
pub(super) trait Look<'r> {
    /// A file that is about to be looked into; whether all that it holds is known already.
    fn file(&mut self, _search: &mut Search<'r>, _file: InFile) -> Result<bool, HistoryError> {
        Ok(false)
    }

    fn one(&mut self, search: &mut Search<'r>, at: At, one: &StoredSession) -> Result<(), HistoryError>;

    /// The sessions of a block that are meant, by their places in it; the file and the number of the block.
    fn block(
        &mut self,
        search: &mut Search<'r>,
        at: (usize, i64),
        block: &Block,
        meant: &[usize],
    ) -> Result<(), HistoryError>;
}

impl<'r> Search<'r> {
    /// Shows all sessions that are meant.
    pub(super) fn look(&mut self, selection: &Selection, shown: &mut dyn Look<'r>) -> Result<(), HistoryError> {
        let window = self.meaning.window;
        if window.closed_before.is_none() {
            self.each_open(selection, |search, one| {
                shown.one(search, At::Open(one.netns, one.cookie), one).map(|()| Wanted::More)
            })?;
        }
        if !window.past {
            return Ok(());
        }
        let [after, last, until] = window.bounds();
        let mut heap: BinaryHeap<Next> = self.files();
        while let Some(Next { file, id, what, .. }) = heap.pop() {
            let row = |search: &mut Self, row, one: StoredSession| shown.one(search, At::Row(file, row), &one);
            match what {
                What::File => {
                    if !shown.file(self, file)? {
                        self.open_file(file, selection, &mut heap)?;
                    }
                }
                What::Chapter(chapter) => self.runs(file, chapter, &mut heap)?,
                What::Run(first) => self.each_row(file, &[(first, id)], [after, last, until], row)?,
                What::Zone(first, last) => self.each_row(file, &[(first, id)], [after, last, until], row)?,
                What::Rows(runs) => self.each_row(file, &runs, [after, last, until], row)?,
                What::Long(zone, first) => self.each_long(file, (zone, first), row)?,
                What::Block(head) => {
                    if let (Some((block, meant)), Some(file)) = (self.read_block(file, head)?, file) {
                        shown.block(self, (file, head.id), &block, &meant)?;
                    }
                }
                What::Placed(placed) => match (self.read_placed(file, &placed)?, file) {
                    (Chosen::Few(sessions, places), Some(file)) => {
                        for (one, at) in zip(&sessions, places) {
                            let place = Place { block: placed.head.id, at };
                            shown.one(self, At::Place(file, place.number()), one)?;
                        }
                    }
                    (Chosen::Many(block, meant), Some(file)) => {
                        shown.block(self, (file, placed.head.id), &block, &meant)?;
                    }
                    (_, None) | (Chosen::None, _) => {}
                },
                // An answer in order makes these of the others.
                What::Session(_) | What::Row | What::InBlock(_) => {}
            }
        }
        Ok(())
    }
}
