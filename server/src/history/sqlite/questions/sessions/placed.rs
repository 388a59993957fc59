//! Sessions with chosen peers in sealed files: the table of peers says in which places they are, so that of a block these are
//! read and no others.

use std::{collections::BinaryHeap, iter::zip, ops::Range, rc::Rc};

use rusqlite::Connection;

use super::{
    BY_HOST, InFile, MANY_ROWS, Next, Search, What,
    blocks::{Found, InBlock, Which},
};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        questions::Outline,
        sealed::{Block, Head, places, places::Place},
        stored::StoredSession,
    },
};

/// Up to so many blocks are each looked for by themselves; for more, looking through all is less work.
const BY_NUMBER: usize = 1024;
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
    /// Sessions, and their places.
    Few(Vec<StoredSession>, Vec<usize>),
    /// The places of sessions.
    Many(Box<Block>, Vec<usize>),
}

impl Search<'_> {
    /// Finds where the sessions with peers that are meant are, without reading them; whether they are not too many.
    pub(super) fn find_places(
        &mut self,
        file: InFile,
        (sealed, outline): (&Connection, &Outline),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<bool, HistoryError> {
        let mut all = Vec::new();
        for prefix in &self.meaning.question.peers {
            let addresses = (prefix.network(), prefix.broadcast());
            if outline.may_have(addresses) && !places::find(sealed, addresses, MANY_ROWS, &mut all)? {
                return Ok(false);
            }
        }
        if all.is_empty() {
            return Ok(true);
        }
        // Networks may overlap.
        all.sort_unstable();
        all.dedup();
        let blocks = by_block(&all);
        let all = Rc::new(all);
        let placed = |head: Head, at: usize| Placed { head, all: Rc::clone(&all), here: blocks[at].1.clone() };
        // Where all of them are wanted it is less work to read one block after the other and to put their sessions into order once.
        if self.are_read_at_once(all.len())
            && let Some(extents) = outline.extents.as_ref().filter(|_| self.means_all_of(file, outline))
        {
            let heads = blocks.iter().map(|(block, _)| {
                extents.head(*block).ok_or_else(|| coding::wrong("places", format!("block {block} is nobody's")))
            });
            let heads = heads.collect::<Result<Vec<Head>, _>>()?.into_iter().enumerate();
            let meant = heads.filter(|(_, head)| self.hosts.contains(head.host_id));
            let found: Vec<Placed> = meant.map(|(at, head)| placed(head, at)).collect();
            heap.extend(self.choose_all(file, &found)?);
            return Ok(true);
        }
        self.each_block(sealed, self.looked_for(&blocks), |Found { head, closed: (_, latest) }| {
            if let Ok(at) = blocks.binary_search_by_key(&head.id, |(block, _)| *block) {
                heap.push(Next { latest, file, id: head.id, what: What::Placed(placed(head, at)) });
            }
        })?;
        Ok(true)
    }

    /// Whether the window that is meant has all of a file in it.
    fn means_all_of(&self, file: InFile, outline: &Outline) -> bool {
        let [after, last, until] = self.meaning.window.bounds();
        let latest = file.and_then(|place| self.reader.catalogue.complete.get(place)).map(|part| part.latest);
        latest.is_some_and(|latest| after < outline.closed_at_us && latest <= last.min(until))
    }

    /// Reads all sessions that are meant of these blocks, for an answer in order.
    fn choose_all(&mut self, file: InFile, blocks: &[Placed]) -> Result<Option<Next>, HistoryError> {
        let Some(Placed { head: last, .. }) = blocks.last() else { return Ok(None) };
        let mut sessions: Vec<(i64, StoredSession)> = Vec::new();
        for placed in blocks {
            let chosen = match self.read_placed(file, placed)? {
                Chosen::None => Vec::new(),
                Chosen::Few(chosen, _) => chosen,
                Chosen::Many(block, meant) => block.sessions(&meant)?,
            };
            sessions.extend(chosen.into_iter().map(|one| (placed.head.id, one)));
        }
        // Those of one block are in their order already.
        sessions.sort_by_key(|(block, one)| (one.closed.map(|(at, _)| at), *block));
        self.held += sessions.len();
        Ok(InBlock::held(sessions.into_iter().map(|(_, one)| one).collect()).waiting((file, last.id)))
    }

    /// How blocks are found with the least work.
    fn looked_for(&self, blocks: &[(i64, Range<usize>)]) -> Vec<Which> {
        if self.hosts.len() <= BY_HOST.min(blocks.len()) {
            let mut hosts: Vec<i64> = self.hosts.numbers().collect();
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
        let (mut meant, mut at) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for (one, place) in zip(block.sessions(&places)?, places) {
            if !self.meaning.has_peer(one.peer.ip()) {
                return Err(coding::wrong("places", format!("block {} has another peer in one", placed.head.id)).into());
            }
            if self.is_meant(&one)? {
                meant.push(one);
                at.push(place);
            }
        }
        Ok(Chosen::Few(meant, at))
    }

    /// The same for an answer in order.
    pub(super) fn choose_placed(&mut self, file: InFile, placed: &Placed) -> Result<Option<Next>, HistoryError> {
        let sessions = match self.read_placed(file, placed)? {
            Chosen::None => return Ok(None),
            Chosen::Few(sessions, _) => InBlock::made(sessions),
            Chosen::Many(block, meant) => InBlock::of(*block, meant)?,
        };
        Ok(sessions.waiting((file, placed.head.id)))
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
