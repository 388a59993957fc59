//! Finds sessions by their sockets on hosts, all of one host at once.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
};

use fleetsock_proto::socket::Known;
use rusqlite::{Connection, params};

use super::holders::Noted;
use crate::history::{
    HistoryError,
    pairing::{End, Ends, Sockets},
    sqlite::{
        coding::{self, OwnerColumns},
        parts::Form,
        questions::{Outline, Reader},
        sealed::{
            Block, Fetching, places,
            places::{Place, STRIDE},
        },
        stored::{self, StoredSession},
    },
};

/// What was found, with who owned it.
pub(super) type Found = Ends<Option<OwnerColumns>, Noted>;

/// What is asked of a host.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    sockets: HashSet<Sockets>,
    /// Between which times those closed that are meant.
    closing: Vec<(i64, i64)>,
    /// Whether those are meant that are open.
    open: bool,
}

/// Whether all was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// Yes.
    Whole,
    /// There were more rows than may be read.
    Cut,
}

impl Wanted {
    pub(super) fn add(&mut self, sockets: Sockets, closing: (i64, i64), open: bool) {
        self.sockets.insert(sockets);
        self.closing.push(closing);
        self.open |= open;
    }

    /// The times, one after the other, none of them twice.
    fn spans(&mut self) -> Vec<(i64, i64)> {
        self.closing.sort_unstable();
        let mut spans: Vec<(i64, i64)> = Vec::new();
        for (from, to) in self.closing.drain(..) {
            match spans.last_mut() {
                Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
                _ => spans.push((from, to)),
            }
        }
        spans
    }
}

/// Adds what is asked of hosts; `rows` is how many may still be read.
pub(super) fn read(
    reader: &Reader,
    asked: BTreeMap<i64, Wanted>,
    all: &mut Found,
    rows: &mut u64,
) -> Result<Kept, HistoryError> {
    for (host, mut wanted) in asked {
        let spans = wanted.spans();
        let mut turn = Turn { reader, host, wanted: &wanted, spans: &spans, all, rows };
        if turn.read()? == Kept::Cut {
            return Ok(Kept::Cut);
        }
    }
    Ok(Kept::Whole)
}

/// One host that is asked.
struct Turn<'a> {
    reader: &'a Reader,
    host: i64,
    wanted: &'a Wanted,
    spans: &'a [(i64, i64)],
    all: &'a mut Found,
    rows: &'a mut u64,
}

impl Turn<'_> {
    fn read(&mut self) -> Result<Kept, HistoryError> {
        let (Some((earliest, _)), Some((_, last))) = (self.spans.first(), self.spans.last()) else {
            return Ok(Kept::Whole);
        };
        let reader = self.reader;
        if self.wanted.open && self.open()? == Kept::Cut {
            return Ok(Kept::Cut);
        }
        for (place, part) in reader.catalogue.complete.iter().enumerate().filter(|(_, part)| part.latest >= *earliest) {
            let kept = if part.form == Form::Sealed {
                match reader.sealed(place)? {
                    Some((file, outline)) if outline.closed_at_us <= *last => self.blocks(file, outline)?,
                    Some(_) | None => Kept::Whole,
                }
            } else {
                match reader.part(place)? {
                    Some(file) => self.rows(file, *last)?,
                    None => Kept::Whole,
                }
            };
            if kept == Kept::Cut {
                return Ok(Kept::Cut);
            }
        }
        self.rows(&reader.day, *last)
    }

    fn take(&mut self, one: &StoredSession) {
        let sockets = Sockets { protocol: one.protocol, local: one.local, peer: one.peer };
        if !self.wanted.sockets.contains(&sockets) {
            return;
        }
        let end = End {
            host: one.host_id,
            netns: one.netns.cast_unsigned(),
            sockets,
            opened_at_us: one.opened_at_us,
            opening_is_known: one.opened_known == Known::Event.number(),
            closed_at_us: one.closed.map(|(at, _)| at),
        };
        self.all.add(end, Some(one.owners.clone()));
    }

    fn pay(&mut self, rows: u64) -> Kept {
        match self.rows.checked_sub(rows) {
            Some(left) => {
                *self.rows = left;
                Kept::Whole
            }
            None => Kept::Cut,
        }
    }

    fn open(&mut self) -> Result<Kept, HistoryError> {
        let sql = format!("SELECT {} FROM open_sessions WHERE host_id = ?1", stored::OPEN);
        let mut statement = self.reader.day.prepare_cached(&sql)?;
        let mut rows = statement.query([self.host])?;
        while let Some(row) = rows.next()? {
            self.take(&StoredSession::open(row)?);
            if self.pay(1) == Kept::Cut {
                return Ok(Kept::Cut);
            }
        }
        Ok(Kept::Whole)
    }

    /// Those of a file in which each has a row; `last` is the latest closing that is meant.
    fn rows(&mut self, file: &Connection, last: i64) -> Result<Kept, HistoryError> {
        let mut earliest = file.prepare_cached("SELECT min(min_closed_at_us) FROM chapters")?;
        let earliest: Option<i64> = earliest.query_row([], |row| row.get(0))?;
        if earliest.is_none_or(|earliest| earliest > last) {
            return Ok(Kept::Whole);
        }
        let mut runs = file.prepare_cached(
            "SELECT r.first_id, r.last_id FROM chapters c CROSS JOIN runs r ON r.chapter_id = c.id AND r.host_id = ?1
             WHERE c.max_closed_at_us >= ?2 AND c.min_closed_at_us <= ?3
                 AND r.max_closed_at_us >= ?2 AND r.min_closed_at_us <= ?3",
        )?;
        let mut within = file.prepare_cached(&format!(
            "SELECT {} FROM sessions WHERE id BETWEEN ?1 AND ?2 AND closed_at_us BETWEEN ?3 AND ?4",
            stored::OVER
        ))?;
        for (from, to) in self.spans {
            let mut runs = runs.query(params![self.host, from, to])?;
            while let Some(run) = runs.next()? {
                let (first, last): (i64, i64) = (run.get(0)?, run.get(1)?);
                let mut rows = within.query(params![first, last, from, to])?;
                while let Some(row) = rows.next()? {
                    self.take(&StoredSession::over(row)?);
                    if self.pay(1) == Kept::Cut {
                        return Ok(Kept::Cut);
                    }
                }
            }
        }
        Ok(Kept::Whole)
    }

    fn blocks(&mut self, file: &Connection, outline: &Outline) -> Result<Kept, HistoryError> {
        let peers = self.wanted.sockets.iter().map(|sockets| sockets.peer.ip());
        let peers: HashSet<_> = peers.filter(|peer| outline.may_have((*peer, *peer))).collect();
        if peers.is_empty() {
            return Ok(Kept::Whole);
        }
        if !outline.places {
            return self.blocks_with_peers(file, &peers);
        }
        let blocks = self.within(file)?;
        let (Some((first, _)), Some((last, _))) = (blocks.first_key_value(), blocks.last_key_value()) else {
            return Ok(Kept::Whole);
        };
        let mut found = Vec::new();
        let (begin, end) = (Place { block: *first, at: 0 }, Place { block: *last, at: STRIDE - 1 });
        for peer in &peers {
            let meant = (|block: i64| blocks.contains_key(&block), *self.rows);
            if !places::find_within(file, *peer, (begin.number(), end.number()), meant, &mut found)? {
                return Ok(Kept::Cut);
            }
        }
        found.sort_unstable();
        let mut fetching = Fetching::of(file);
        for here in found.chunk_by(|one, next| Place::of(*one).block == Place::of(*next).block) {
            self.reader.go_on()?;
            let Some(Place { block, .. }) = here.first().map(|place| Place::of(*place)) else { continue };
            if self.pay(here.len() as u64) == Kept::Cut {
                return Ok(Kept::Cut);
            }
            let places: Vec<usize> = here.iter().map(|place| Place::of(*place).at).collect();
            let fetched = match outline.extents.as_ref().and_then(|extents| extents.head(block)) {
                Some(head) => fetching.read(head),
                None => fetching.find(block),
            };
            fetched?.sessions(&places)?.iter().for_each(|one| self.take(one));
        }
        Ok(Kept::Whole)
    }

    /// The blocks of the host in which sessions closed at the times that are meant, and how many each has.
    fn within(&self, file: &Connection) -> Result<BTreeMap<i64, i64>, HistoryError> {
        let mut statement = file.prepare_cached(
            "SELECT id, sessions FROM blocks WHERE host_id = ?1 AND max_closed_at_us >= ?2 AND min_closed_at_us <= ?3",
        )?;
        let mut blocks = BTreeMap::new();
        for (from, to) in self.spans {
            let mut rows = statement.query(params![self.host, from, to])?;
            while let Some(row) = rows.next()? {
                blocks.insert(row.get(0)?, row.get(1)?);
            }
        }
        Ok(blocks)
    }

    /// Reads blocks of a file of an earlier version, which tells only whether the host met the peers.
    fn blocks_with_peers(&mut self, file: &Connection, peers: &HashSet<IpAddr>) -> Result<Kept, HistoryError> {
        if !self.met(file, peers)? {
            return Ok(Kept::Whole);
        }
        let mut fetching = Fetching::of(file);
        for (id, sessions) in self.within(file)? {
            self.reader.go_on()?;
            if self.pay(sessions.unsigned_abs()) == Kept::Cut {
                return Ok(Kept::Cut);
            }
            self.block(&fetching.find(id)?, peers)?;
        }
        Ok(Kept::Whole)
    }

    /// Takes the sessions of a block with peers that are wanted.
    fn block(&mut self, block: &Block, peers: &HashSet<IpAddr>) -> Result<(), HistoryError> {
        let recurring = block.peers()?;
        let wanted: Vec<bool> = recurring.values.iter().map(|peer| peers.contains(peer)).collect();
        let places: Vec<usize> = (0..block.len()).filter(|at| wanted[recurring.places[*at]]).collect();
        block.sessions(&places)?.iter().for_each(|one| self.take(one));
        Ok(())
    }

    /// Whether the host had sessions with any of the wanted peers.
    fn met(&self, file: &Connection, peers: &HashSet<IpAddr>) -> Result<bool, HistoryError> {
        let mut statement = file.prepare_cached("SELECT 1 FROM pairs WHERE peer_address = ?1 AND host_id = ?2")?;
        for peer in peers {
            if statement.exists(params![coding::address_bytes(*peer), self.host])? {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_touch_are_read_once() {
        let sockets =
            Sockets { protocol: 1, local: "10.0.0.1:1".parse().unwrap(), peer: "10.0.0.2:2".parse().unwrap() };
        let mut wanted = Wanted::default();
        for closing in [(50, 60), (1, 5), (4, 9), (10, 12), (14, 20), (15, 16)] {
            wanted.add(sockets, closing, false);
        }
        assert_eq!(wanted.spans(), [(1, 12), (14, 20), (50, 60)]);
    }
}
