//! Sessions of sealed files: which blocks a question needs, and which sessions in them. Of a block only those columns are
//! read that decide, and the others only when a session of it is meant.

use std::collections::{BinaryHeap, HashMap};

use fleetsock_proto::socket::{Direction, Family, Protocol, SocketState};
use rusqlite::{Connection, params, params_from_iter};

use super::{BY_HOST, InFile, Next, Search, What, meaning::Traits};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        kinds::Service,
        parts::Form,
        questions::Outline,
        sealed::{Block, Column, Fetching, Head, Values},
        stored::StoredSession,
    },
};

const US_PER_S: i64 = 1_000_000;

/// Some of the blocks of a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    OfHost(i64),
    /// From one number to another, both included.
    Numbered(i64, i64),
}

impl Which {
    /// Each of them.
    pub(super) const ALL: Which = Which::Numbered(i64::MIN, i64::MAX);
}

/// A block that may hold what is meant.
pub(super) struct Found {
    pub(super) head: Head,
    /// When the first of its sessions closed, and the last.
    pub(super) closed: Span,
}

/// Between which times sessions closed, both included.
pub(super) type Span = (i64, i64);

/// The sessions of a block that are meant, for an answer in order: the last of them comes first.
pub(super) struct InBlock {
    next: Vec<StoredSession>,
    /// Whether they count among those that are held.
    pub(super) is_held: bool,
    /// Where those are that come after them.
    rest: Option<Box<(Block, Vec<usize>)>>,
}

/// So many sessions of a block are made when its turn comes. Most answers end before the others have theirs, and of all hosts
/// together they would be many.
const MADE_FIRST: usize = 32;

impl InBlock {
    /// Those in these places.
    pub(super) fn of(block: Block, places: Vec<usize>) -> Result<InBlock, HistoryError> {
        let mut all = InBlock { next: Vec::new(), is_held: false, rest: Some(Box::new((block, places))) };
        all.make(MADE_FIRST)?;
        Ok(all)
    }

    /// Those that are made already.
    pub(super) const fn made(sessions: Vec<StoredSession>) -> InBlock {
        InBlock { next: sessions, is_held: false, rest: None }
    }

    /// Those of many blocks, which count among those that are held.
    pub(super) const fn held(sessions: Vec<StoredSession>) -> InBlock {
        InBlock { next: sessions, is_held: true, rest: None }
    }

    /// Makes up to so many sessions of those that come next.
    fn make(&mut self, most: usize) -> Result<(), HistoryError> {
        let Some(mut rest) = self.rest.take() else { return Ok(()) };
        let (block, places) = rest.as_mut();
        let next = places.split_off(places.len().saturating_sub(most));
        self.next = block.sessions(&next)?;
        if !places.is_empty() {
            self.rest = Some(rest);
        }
        Ok(())
    }

    /// The session whose turn it is.
    pub(super) fn first(&self) -> Option<&StoredSession> {
        self.next.last()
    }

    /// It was shown: the next one follows.
    pub(super) fn advance(&mut self) -> Result<(), HistoryError> {
        self.next.pop();
        if self.next.is_empty() {
            self.make(usize::MAX)?;
        }
        Ok(())
    }

    /// When the session closed whose turn it is.
    pub(super) fn latest(&self) -> Option<i64> {
        self.first()?.closed.map(|(at, _)| at)
    }

    /// What waits for its turn; none when there are no more.
    pub(super) fn waiting(self, (file, id): (InFile, i64)) -> Option<Next> {
        Some(Next { latest: self.latest()?, file, id, what: What::InBlock(self) })
    }
}

impl<'a> Search<'a> {
    pub(super) fn is_sealed(&self, file: InFile) -> bool {
        let part = file.and_then(|place| self.reader.catalogue.complete.get(place));
        part.is_some_and(|part| part.form == Form::Sealed)
    }

    /// A sealed file of which something may be meant, and its outline.
    pub(super) fn sealed(&self, file: InFile) -> Result<Option<(&'a Connection, &'a Outline)>, rusqlite::Error> {
        let [_, last, until] = self.meaning.window.bounds();
        let found = file.map(|place| self.reader.sealed(place)).transpose()?.flatten();
        Ok(found.filter(|(_, outline)| outline.closed_at_us <= last && outline.opened_at_us <= until))
    }

    /// Finds the blocks of a file that may hold what is meant, without reading them.
    pub(super) fn blocks(&mut self, file: InFile, heap: &mut BinaryHeap<Next>) -> Result<(), HistoryError> {
        let Some((sealed, outline)) = self.sealed(file)? else { return Ok(()) };
        let mut met = None;
        if self.meaning.asks_for_peers() {
            if !outline.places {
                met = Some(self.met(sealed)?);
            } else if self.find_places(file, (sealed, outline), heap)? {
                return Ok(());
            }
        }
        let mut few: Vec<i64> = match &met {
            Some(met) => met.keys().copied().collect(),
            None => self.hosts.numbers().collect(),
        };
        // The same question has the same answer each time, also where several sessions closed at one moment.
        few.sort_unstable();
        let some: Vec<Which> =
            if few.len() > BY_HOST { vec![Which::ALL] } else { few.into_iter().map(Which::OfHost).collect() };
        self.each_block(sealed, some, |Found { head, closed: (earliest, latest) }| {
            let meets = |(first, last): &Span| *first <= latest && earliest <= *last;
            if met.as_ref().is_none_or(|met| met.get(&head.host_id).is_some_and(meets)) {
                heap.push(Next { latest, file, id: head.id, what: What::Block(head) });
            }
        })
    }

    /// Which of the hosts had sessions with the addresses that are meant, and when, as earlier versions told it.
    fn met(&self, sealed: &Connection) -> Result<HashMap<i64, Span>, HistoryError> {
        let mut statement = sealed.prepare_cached(
            "SELECT host_id, min_closed_at_s, max_closed_at_s FROM pairs WHERE peer_address BETWEEN ?1 AND ?2",
        )?;
        let mut met: HashMap<i64, Span> = HashMap::new();
        for prefix in &self.meaning.question.peers {
            let ends = [prefix.network(), prefix.broadcast()].map(coding::address_bytes);
            let mut rows = statement.query(params_from_iter(ends))?;
            while let Some(row) = rows.next()? {
                let host = row.get(0)?;
                if !self.hosts.contains(host) {
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

    /// Shows some of the blocks that may hold what is meant.
    pub(super) fn each_block(
        &self,
        sealed: &Connection,
        some: impl IntoIterator<Item = Which>,
        mut show: impl FnMut(Found),
    ) -> Result<(), HistoryError> {
        const MEANT: &str = "max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND min_opened_at_us <= ?3";
        const COLUMNS: &str = "id, host_id, codec, min_closed_at_us, max_closed_at_us";
        let by = |which| format!("SELECT {COLUMNS} FROM blocks WHERE {which} AND {MEANT}");
        let mut by_host = sealed.prepare_cached(&by("host_id = ?4"))?;
        let mut by_number = sealed.prepare_cached(&by("id BETWEEN ?4 AND ?5"))?;
        let [after, last, until] = self.meaning.window.bounds();
        for which in some {
            let mut rows = match which {
                Which::OfHost(host) => by_host.query(params![after, last, until, host])?,
                Which::Numbered(from, to) => by_number.query(params![after, last, until, from, to])?,
            };
            while let Some(row) = rows.next()? {
                let host_id = row.get(1)?;
                if self.hosts.contains(host_id) {
                    let head = Head { id: row.get(0)?, host_id, codec: row.get(2)? };
                    show(Found { head, closed: (row.get(3)?, row.get(4)?) });
                }
            }
        }
        Ok(())
    }

    /// A block, with the places of the sessions in it that are meant; none when the file is not kept any more.
    pub(super) fn read_block(&mut self, file: InFile, head: Head) -> Result<Option<(Block, Vec<usize>)>, HistoryError> {
        let Some(block) = self.fetch(file, head)? else { return Ok(None) };
        let places = self.meant_in(&block)?;
        Ok(Some((block, places)))
    }

    /// A block; none when the file is not kept any more.
    pub(super) fn fetch(&mut self, file: InFile, head: Head) -> Result<Option<Block>, HistoryError> {
        self.reader.go_on()?;
        let Some(sealed) = self.file(file)? else { return Ok(None) };
        self.fetching.entry(file).or_insert_with(|| Fetching::of(sealed)).read(head).map(Some)
    }

    /// The same of which only the number is known.
    pub(super) fn find_block(&mut self, file: InFile, id: i64) -> Result<Option<Block>, HistoryError> {
        self.reader.go_on()?;
        let Some(sealed) = self.file(file)? else { return Ok(None) };
        self.fetching.entry(file).or_insert_with(|| Fetching::of(sealed)).find(id).map(Some)
    }

    /// The sessions of a block that are meant, for an answer in order.
    pub(super) fn choose(&mut self, file: InFile, head: Head) -> Result<Option<Next>, HistoryError> {
        let Some((block, places)) = self.read_block(file, head)? else { return Ok(None) };
        if places.is_empty() {
            return Ok(None);
        }
        Ok(InBlock::of(block, places)?.waiting((file, head.id)))
    }

    /// Where in a block the sessions are that are meant: each condition looks only at what the ones before left.
    pub(super) fn meant_in(&mut self, block: &Block) -> Result<Vec<usize>, HistoryError> {
        let window = self.meaning.window.bounds();
        let mut places = if self.meaning.asks_for_peers() {
            let peers = block.peers()?;
            let meant: Vec<bool> = peers.values.iter().map(|peer| self.meaning.has_peer(*peer)).collect();
            let mut places: Vec<usize> = (0..block.len()).filter(|at| meant[peers.places[*at]]).collect();
            if !places.is_empty() {
                block.keep_within(window, &mut places)?;
            }
            places
        } else {
            block.within(window)?
        };
        if self.meaning.asks_for_traits() && !places.is_empty() {
            self.keep_by_traits(block, &mut places)?;
        }
        if self.meaning.asks_for_owners() && !places.is_empty() {
            let owners = block.owners()?;
            let meant = |owners| self.meaning.has_owners(owners, &mut self.programs);
            let meant: Vec<bool> = owners.values.iter().map(meant).collect::<Result<_, _>>()?;
            places.retain(|at| meant[owners.places[*at]]);
        }
        Ok(places)
    }

    fn keep_by_traits(&self, block: &Block, places: &mut Vec<usize>) -> Result<(), HistoryError> {
        let services = Services::of(block, places.len())?;
        let [families, states] =
            [block.values(Column::Family, places.len())?, block.values(Column::State, places.len())?];
        let mut kept = Vec::with_capacity(places.len());
        for at in places.drain(..) {
            let (protocol, direction, port) = services.of_session(at)?;
            let traits = Traits {
                protocol,
                direction,
                port,
                family: word("family", families.of(at)?, Family::from_number)?,
                state: word("state", states.of(at)?, SocketState::from_number)?,
            };
            if self.meaning.has_traits(traits) {
                kept.push(at);
            }
        }
        *places = kept;
        Ok(())
    }
}

/// The columns that tell the service of a session.
pub(super) struct Services<'b> {
    protocols: Values<'b>,
    directions: Values<'b>,
    ports: Values<'b>,
}

impl<'b> Services<'b> {
    /// Those of a block, for so many of its sessions.
    pub(super) fn of(block: &'b Block, sessions: usize) -> Result<Services<'b>, HistoryError> {
        Ok(Services {
            protocols: block.values(Column::Protocol, sessions)?,
            directions: block.values(Column::Direction, sessions)?,
            ports: block.values(Column::ServicePort, sessions)?,
        })
    }

    /// Protocol, direction and the service's port.
    pub(super) fn of_session(&self, at: usize) -> Result<(Protocol, Direction, u16), HistoryError> {
        let port = self.ports.of(at)?;
        let port = u16::try_from(port).map_err(|_| coding::wrong("port", format!("{port} is too large")))?;
        let direction = word("direction", self.directions.of(at)?, Direction::from_number)?;
        Ok((word("protocol", self.protocols.of(at)?, Protocol::from_number)?, direction, port))
    }

    /// The same as a number.
    pub(super) fn service_of(&self, at: usize) -> Result<Service, HistoryError> {
        let (protocol, direction, port) = self.of_session(at)?;
        let service = Service::new(protocol.number(), direction, port);
        Ok(service.ok_or_else(|| coding::wrong("protocol", format!("{} is too large", protocol.number())))?)
    }
}

/// The word of a number in a column.
fn word<T>(column: &'static str, number: i64, of: impl FnOnce(i32) -> Option<T>) -> Result<T, HistoryError> {
    let word = i32::try_from(number).ok().and_then(of);
    word.ok_or_else(|| coding::wrong(column, format!("{number} has no meaning")).into())
}
