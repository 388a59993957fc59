//! Sessions with chosen peers in sealed files: the table of peers says in which places they are, so that of a block these are
//! read and no others.

use std::{collections::BinaryHeap, ops::Range, rc::Rc};

use rusqlite::Connection;

use super::{
    BY_HOST, InFile, MANY_ROWS, Next, Search, What,
    blocks::{Found, InBlock, Which},
};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        sealed::{Block, Head, places, places::Place},
        stored::StoredSession,
    },
};

/// Up to so many blocks are each looked for by themselves; for more, looking through all is less work.
const BY_NUMBER: usize = 512;
/// Where more than one of so many sessions of a block has a peer that is meant, it is as well to look at all of its peers.
const FEW: usize = 8;

/// The places of a block among those that are meant of a file.
pub(super) struct Placed {
    pub(super) head: Head,
    all: Rc<Vec<i64>>,
    here: Range<usize>,
}

impl Placed {
    fn places(&self) -> &[i64] {
        self.all.get(self.here.clone()).unwrap_or_default()
    }
}

/// What is meant of a block.
pub(super) enum Chosen {
    None,
    Few(Vec<StoredSession>),
    /// The places of sessions.
    Many(Box<Block>, Vec<usize>),
}

impl Search<'_> {
    /// Finds where the sessions with peers that are meant are, without reading them; whether they are not too many.
    pub(super) fn find_places(
        &self,
        file: InFile,
        sealed: &Connection,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<bool, HistoryError> {
        let mut all = Vec::new();
        for prefix in &self.meaning.question.peers {
            if !places::find(sealed, (prefix.network(), prefix.broadcast()), MANY_ROWS, &mut all)? {
                return Ok(false);
            }
        }
        // Networks may overlap.
        all.sort_unstable();
        all.dedup();
        let blocks = by_block(&all);
        let all = Rc::new(all);
        self.each_block(sealed, self.looked_for(&blocks), |Found { head, closed: (_, latest) }| {
            if let Ok(at) = blocks.binary_search_by_key(&head.id, |(block, _)| *block) {
                let placed = Placed { head, all: Rc::clone(&all), here: blocks[at].1.clone() };
                heap.push(Next { latest, file, id: head.id, what: What::Placed(placed) });
            }
        })?;
        Ok(true)
    }

    /// How blocks are found with the least work.
    fn looked_for(&self, blocks: &[(i64, Range<usize>)]) -> Vec<Which> {
        if self.hosts.len() <= BY_HOST.min(blocks.len()) {
            let mut hosts: Vec<i64> = self.hosts.keys().copied().collect();
            hosts.sort_unstable();
            return hosts.into_iter().map(Which::OfHost).collect();
        }
        match blocks {
            [(first, _), .., (last, _)] if blocks.len() > BY_NUMBER => vec![Which::Numbered(*first, *last)],
            blocks => blocks.iter().map(|(block, _)| Which::Numbered(*block, *block)).collect(),
        }
    }

    /// The sessions of a block that are meant, of those in these places.
    pub(super) fn read_placed(&mut self, file: InFile, placed: &Placed) -> Result<Chosen, HistoryError> {
        let Some(block) = self.fetch(file, placed.head)? else { return Ok(Chosen::None) };
        let places = placed.places();
        if places.len() > block.len() / FEW {
            let meant = self.meant_in(&block)?;
            return Ok(Chosen::Many(Box::new(block), meant));
        }
        let mut places: Vec<usize> = places.iter().map(|place| Place::of(*place).at).collect();
        block.keep_within(self.meaning.window.bounds(), &mut places)?;
        let mut meant = Vec::with_capacity(places.len());
        for one in block.sessions(&places)? {
            if !self.meaning.has_peer(one.peer.ip()) {
                return Err(coding::wrong("places", format!("block {} has another peer in one", placed.head.id)).into());
            }
            if self.is_meant(&one)? {
                meant.push(one);
            }
        }
        Ok(Chosen::Few(meant))
    }

    /// The same for an answer in order.
    pub(super) fn choose_placed(&mut self, file: InFile, placed: &Placed) -> Result<Option<Next>, HistoryError> {
        let sessions = match self.read_placed(file, placed)? {
            Chosen::None => return Ok(None),
            Chosen::Few(sessions) => InBlock::made(sessions),
            Chosen::Many(block, meant) => InBlock::of(*block, meant)?,
        };
        Ok(sessions.turn((file, placed.head.id)))
    }
}

/// The blocks in which places are, which ascend, and which of these are in each.
fn by_block(places: &[i64]) -> Vec<(i64, Range<usize>)> {
    let mut blocks: Vec<(i64, Range<usize>)> = Vec::new();
    for (at, place) in places.iter().enumerate() {
        let block = Place::of(*place).block;
        match blocks.last_mut() {
            Some((last, here)) if *last == block => here.end = at + 1,
            _ => blocks.push((block, at..at + 1)),
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_one_block_are_read_together() {
        let place = |block, at| Place { block, at }.number();
        let places = [place(1, 0), place(1, 2047), place(2, 0), place(9, 5), place(9, 6)];
        assert_eq!(by_block(&places), [(1, 0..2), (2, 2..3), (9, 3..5)]);
        assert_eq!(by_block(&[]), []);
    }
}
