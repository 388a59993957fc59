//! Sessions of sealed files: which blocks a question needs, and what in them.

use std::{
    collections::{BinaryHeap, HashMap},
    rc::Rc,
};

use fleetsock_proto::socket::Direction;
use rusqlite::{Connection, params, params_from_iter};

use super::{BY_HOST, InFile, Next, Search, What};
use crate::history::{
    HistoryError,
    sqlite::{coding, parts::Form, sealed, stored::StoredSession},
};

const US_PER_S: i64 = 1_000_000;

/// Between which times sessions closed, both included.
type Span = (i64, i64);

impl Search<'_> {
    pub(super) fn is_sealed(&self, file: InFile) -> bool {
        let part = file.and_then(|place| self.reader.catalogue.complete.get(place));
        part.is_some_and(|part| part.form == Form::Sealed)
    }

    /// Finds the blocks of a file that may hold what is meant, without reading them.
    pub(super) fn blocks(&self, file: InFile, heap: &mut BinaryHeap<Next>) -> Result<(), HistoryError> {
        let Some(sealed) = self.file(file)? else { return Ok(()) };
        let met = if self.question.peers.is_empty() { None } else { Some(self.met(sealed)?) };
        let mut few: Vec<i64> = match &met {
            Some(met) => met.keys().copied().collect(),
            None => self.hosts.keys().copied().collect(),
        };
        if few.len() > BY_HOST {
            return self.find_blocks(file, sealed, None, met.as_ref(), heap);
        }
        // The same question has the same answer each time, also where several sessions closed at one moment.
        few.sort_unstable();
        few.into_iter().try_for_each(|host| self.find_blocks(file, sealed, Some(host), met.as_ref(), heap))
    }

    /// Which of the hosts had sessions with the addresses that are meant, and when.
    fn met(&self, sealed: &Connection) -> Result<HashMap<i64, Span>, HistoryError> {
        let mut statement = sealed.prepare_cached(
            "SELECT host_id, min_closed_at_s, max_closed_at_s FROM pairs WHERE peer_address BETWEEN ?1 AND ?2",
        )?;
        let mut met: HashMap<i64, Span> = HashMap::new();
        for prefix in &self.question.peers {
            let ends = [prefix.network(), prefix.broadcast()].map(coding::address_bytes);
            let mut rows = statement.query(params_from_iter(ends))?;
            while let Some(row) = rows.next()? {
                let host = row.get(0)?;
                if !self.hosts.contains_key(&host) {
                    continue;
                }
                // The seconds were rounded down.
                let (first, last): Span = (row.get(1)?, row.get(2)?);
                let (first, last) = (first.saturating_sub(1) * US_PER_S, last.saturating_add(1) * US_PER_S);
                let span = met.entry(host).or_insert((first, last));
                *span = (span.0.min(first), span.1.max(last));
            }
        }
        Ok(met)
    }

    fn find_blocks(
        &self,
        file: InFile,
        sealed: &Connection,
        host: Option<i64>,
        met: Option<&HashMap<i64, Span>>,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let of_host = if host.is_some() { "host_id = ?3" } else { "?3 IS NULL" };
        let mut statement = sealed.prepare_cached(&format!(
            "SELECT id, host_id, min_closed_at_us, max_closed_at_us FROM blocks
             WHERE {of_host} AND max_closed_at_us > ?1 AND min_opened_at_us <= ?2 AND min_closed_at_us <= ?4"
        ))?;
        let (after, until) = (self.window.closed_after.as_micros(), self.window.opened_until.as_micros());
        let mut rows = statement.query(params![after, until, host, self.window.last_closing()])?;
        while let Some(row) = rows.next()? {
            let (id, host, earliest, latest): (i64, i64, i64, i64) =
                (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            let meets = match met {
                Some(met) => met.get(&host).is_some_and(|(first, last)| *first <= latest && earliest <= *last),
                None => self.hosts.contains_key(&host),
            };
            if meets {
                heap.push(Next { latest, what: What::Block { file, id } });
            }
        }
        Ok(())
    }

    /// The sessions of a block, in the order of their closing.
    pub(super) fn read_block(&self, file: InFile, id: i64) -> Result<Vec<StoredSession>, HistoryError> {
        self.reader.go_on()?;
        let Some(sealed) = self.file(file)? else { return Ok(Vec::new()) };
        sealed::read_block(sealed, id)
    }

    /// The next session of a block before a place that may be meant.
    pub(super) fn next_in(&self, block: &Rc<Vec<StoredSession>>, before: usize) -> Option<Next> {
        let before = block.get(..before)?;
        let at = before.iter().rposition(|one| self.may_be_meant(one))?;
        let latest = before.get(at)?.closed?.0;
        Some(Next { latest, what: What::InBlock { block: Rc::clone(block), at } })
    }

    /// What SQLite asks of rows.
    fn may_be_meant(&self, one: &StoredSession) -> bool {
        let closed = one
            .closed
            .is_some_and(|(at, _)| at > self.window.closed_after.as_micros() && at <= self.window.last_closing());
        let port = if one.direction == Direction::In.number() { one.local.port() } else { one.peer.port() };
        let (first, last) = self.narrowed.ports;
        closed
            && one.opened_at_us <= self.window.opened_until.as_micros()
            && (first..=last).contains(&port)
            && (self.question.peers.is_empty()
                || self.question.peers.iter().any(|prefix| prefix.contains(&one.peer.ip())))
    }
}
