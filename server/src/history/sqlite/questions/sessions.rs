//! Sessions, newest first: those that are open by opening time, then those that are over by closing time.
//!
//! What is over is found by an index when peers are chosen, by runs of a host's rows when few hosts are meant, else by zones of
//! the table. Either way it comes in pages, and a heap puts their rows into one order: a page is only read when its latest possible row is the next one. A
//! chapter of runs is such a page too, and a file, so that those of days long ago are not even opened for the newest sessions.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap, binary_heap::PeekMut},
};

use fleetsock_proto::{
    answer::AnswerMeta,
    question::{SessionQuestion, SessionTime},
    session::Session,
    socket::Known,
    time::Timestamp,
};
use rusqlite::Connection;

use self::{
    blocks::InBlock,
    meaning::{Meaning, Traits},
    placed::Placed,
};
use super::{
    Programs, Reader, coverage,
    naming::PeerNames,
    outlet::{Outlet, Sink, Wanted},
    pairs::Paired,
};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        roster::{ByNumber, Places, Selection},
        sealed::{Fetching, Head},
        stored::{self, StoredSession},
    },
};

mod blocks;
mod counting;
mod firsts;
mod looking;
mod meaning;
mod placed;
mod postings;
mod rows;

pub(super) use self::{
    counting::count,
    firsts::{Span, each_new},
};

/// Up to so many hosts are each looked for by themselves; for more, reading what closed last is less work.
const BY_HOST: usize = 64;
/// Up to so many rows with chosen peers are each looked up; for more, reading through the zones is less work, or through the
/// rows of few hosts.
const MANY_ROWS: usize = 64 * 1024;
const FEW_ROWS: usize = 4 * 1024;
/// Sessions that are held until their turn comes, 16 MiB of them about; of more only the numbers of their rows.
const HELD: usize = 16 * 1024;
/// Up to so many sessions with chosen peers are all read at once also where fewer are wanted: it is as much work to look up when
/// each block or zone of them closed.
const AT_ONCE: usize = 128;

pub(in crate::history::sqlite) fn list(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    question: &SessionQuestion,
    now: Timestamp,
    outlet: &mut Outlet<Session>,
) -> Result<AnswerMeta, HistoryError> {
    // One view of the file, so that a session that closes meanwhile is not shown twice. One of the names too: for each that
    // is looked up by itself the system is asked for a lock.
    let _views = (reader.day.unchecked_transaction()?, reader.main.unchecked_transaction()?);
    let mut paired = Paired::new(reader, selection, question.pairing, outlet);
    visit(reader, selection, places, question, &mut paired)?;
    let other_ends = Some(paired.finish()?);
    let as_of = match question.time {
        SessionTime::At(at) => at,
        SessionTime::Now | SessionTime::Within { .. } => now,
    };
    let (since, until) = match question.time {
        SessionTime::Within { since, until } => (Some(since), until),
        SessionTime::Now | SessionTime::At(_) => (None, None),
    };
    let meta = AnswerMeta { since, until, other_ends, ..selection.meta(as_of) };
    coverage::with_gaps(reader, selection, meta, (since.unwrap_or(as_of), until.unwrap_or(as_of)))
}

/// Shows the sessions that a question means, newest first, for as long as they are wanted.
pub(super) fn visit(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    question: &SessionQuestion,
    sink: &mut dyn Sink<Session>,
) -> Result<(), HistoryError> {
    let mut search = Search::new(reader, selection, places, question)?;
    let window = search.meaning.window;
    let shown = if window.closed_before.is_some() { Wanted::More } else { search.open(selection, sink)? };
    if shown == Wanted::More && window.past {
        search.left = Some(question.limit.map_or(usize::MAX, |limit| limit as usize));
        search.over(selection, sink)?;
    }
    Ok(())
}

struct Search<'a> {
    reader: &'a Reader,
    hosts: ByNumber<'a>,
    peers: PeerNames<'a>,
    meaning: Meaning<'a>,
    programs: Programs<'a>,
    /// Of each sealed file that blocks were read of.
    fetching: HashMap<InFile, Fetching<'a>>,
    /// How many sessions are held.
    held: usize,
    /// How many more are wanted, where they are wanted in order.
    left: Option<usize>,
}

/// Sessions in the order of the answer, or a page of them that was not read yet: the latest comes first, and at one moment
/// that of the newest file and the highest number.
struct Next {
    latest: i64,
    file: InFile,
    /// The number of a row, of the last row of a page, or of a block. What holds all numbers has the highest there is.
    id: i64,
    what: What,
}

/// A file by its place among those that are complete, or the one that is written to.
type InFile = Option<usize>;

enum What {
    /// A session of a run, which was read with the others of it.
    Session(Box<StoredSession>),
    /// A row that is read when its turn comes: most of a zone's never do.
    Row,
    /// Rows of one host, from this one on.
    Run(i64),
    /// Rows from this one on that closed until this moment.
    Zone(i64, i64),
    /// The long rows of the zone that begins with this row, as far as they closed later than what is looked for by zones, from this
    /// one on.
    Long(i64, i64),
    /// Runs of rows of a zone.
    Rows(Vec<(i64, i64)>),
    /// A chapter of runs.
    Chapter(i64),
    /// A block of a sealed file.
    Block(Head),
    /// Sessions of a block that have peers that are meant.
    Placed(Placed),
    /// Sessions of a block that are meant.
    InBlock(InBlock),
    /// A file that was not looked into yet.
    File,
}

impl PartialEq for Next {
    fn eq(&self, other: &Next) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Next {}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Next) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Next) -> Ordering {
        let key = |next: &Next| {
            let is_page = !matches!(next.what, What::Session(_) | What::Row | What::InBlock(_));
            // Rows are still added to the file that is none of those that are complete. And at its last row a page comes before
            // a row: it may hold that row.
            (next.latest, next.file.unwrap_or(usize::MAX), next.id, is_page)
        };
        key(self).cmp(&key(other))
    }
}

impl<'a> Search<'a> {
    fn new(
        reader: &'a Reader,
        selection: &'a Selection,
        places: &'a Places,
        question: &'a SessionQuestion,
    ) -> Result<Search<'a>, HistoryError> {
        let (hosts, meaning) = (selection.by_number(), Meaning::of(question)?);
        Ok(Search {
            reader,
            hosts,
            peers: PeerNames::new(&reader.main, places),
            meaning,
            programs: Programs::viewed(reader, question.view),
            fetching: HashMap::new(),
            held: 0,
            left: None,
        })
    }

    /// Sends the sessions that are open.
    fn open(&mut self, selection: &Selection, sink: &mut dyn Sink<Session>) -> Result<Wanted, HistoryError> {
        self.each_open(selection, |search, one| sink.push(search.shown(one)?))
    }

    /// Shows the sessions that are open, the newest first.
    fn each_open(
        &mut self,
        selection: &Selection,
        mut show: impl FnMut(&mut Self, &StoredSession) -> Result<Wanted, HistoryError>,
    ) -> Result<Wanted, HistoryError> {
        let mut by_host = self.reader.day.prepare_cached(&format!(
            "SELECT {} FROM open_sessions WHERE host_id = ?2 AND opened_at_us <= ?1
             ORDER BY opened_at_us DESC, netns, cookie",
            stored::OPEN
        ))?;
        let mut by_time = self.reader.day.prepare_cached(&format!(
            "SELECT {} FROM open_sessions WHERE opened_at_us <= ?1
             ORDER BY opened_at_us DESC, host_id, netns, cookie",
            stored::OPEN
        ))?;
        let until = self.meaning.window.opened_until.as_micros();
        let mut hosts = selection.hosts();
        let mut rows = match (hosts.next(), hosts.next()) {
            (Some(host), None) => by_host.query([until, host.listed.id])?,
            _ => by_time.query([until])?,
        };
        while let Some(row) = rows.next()? {
            let one = StoredSession::open(row)?;
            if self.is_meant(&one)? && show(self, &one)? == Wanted::NoMore {
                return Ok(Wanted::NoMore);
            }
        }
        Ok(Wanted::More)
    }

    /// Sends the sessions that are over.
    fn over(&mut self, selection: &Selection, sink: &mut dyn Sink<Session>) -> Result<(), HistoryError> {
        let mut heap: BinaryHeap<Next> = self.files();
        loop {
            let Some(mut next) = heap.peek_mut() else { return Ok(()) };
            let found = if let What::InBlock(sessions) = &mut next.what {
                let shown = sessions.first().map(|one| self.shown(one)).transpose()?;
                sessions.advance()?;
                self.held -= usize::from(sessions.is_held);
                // What follows waits where it is, which is half the work of taking it off and putting it back.
                match sessions.latest() {
                    Some(latest) => next.latest = latest,
                    None => drop(PeekMut::pop(next)),
                }
                shown
            } else {
                let next = PeekMut::pop(next);
                let one = self.unfold(next, selection, &mut heap)?;
                one.map(|one| self.shown(&one)).transpose()?
            };
            if let Some(session) = found {
                self.left = self.left.map(|left| left.saturating_sub(1));
                if sink.push(session)? == Wanted::NoMore {
                    return Ok(());
                }
            }
        }
    }

    /// The session whose turn it is; none of a page, which is replaced by what it is made of.
    fn unfold(
        &mut self,
        Next { file, id, what, .. }: Next,
        selection: &Selection,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<Option<StoredSession>, HistoryError> {
        match what {
            What::Session(one) => {
                self.held -= 1;
                return Ok(Some(*one));
            }
            What::Row => return self.read_row(file, id),
            // These are shown where they wait.
            What::InBlock(sessions) => heap.extend(sessions.waiting((file, id))),
            What::Block(head) => heap.extend(self.choose(file, head)?),
            What::Placed(placed) => heap.extend(self.choose_placed(file, &placed)?),
            What::File => self.open_file(file, selection, heap)?,
            What::Chapter(chapter) => self.runs(file, chapter, heap)?,
            What::Run(first) => self.read_runs(file, &[(first, id)], heap)?,
            What::Rows(runs) => self.read_runs(file, &runs, heap)?,
            What::Zone(first, last) => self.read_zone(file, (first, id), last, heap)?,
            What::Long(zone, first) => self.read_long(file, (zone, first), heap)?,
        }
        Ok(None)
    }

    /// Whether so many sessions with chosen peers are read before their turn comes, to be put into order once.
    fn are_read_at_once(&self, count: usize) -> bool {
        self.held + count <= HELD && self.left.is_some_and(|left| count <= left.max(AT_ONCE))
    }

    /// The files with sessions that closed within the window.
    fn files(&self) -> BinaryHeap<Next> {
        let complete = self.reader.catalogue.complete.iter().enumerate();
        let complete = complete.map(|(place, part)| (part.latest, Some(place)));
        let window = &self.meaning.window;
        let after = window.closed_after.as_micros();
        let within = complete.chain([(i64::MAX, None)]).filter(|(latest, _)| *latest > after);
        // Nothing later than this is meant.
        let last = window.last_closing();
        within.map(|(latest, file)| Next { latest: latest.min(last), file, id: i64::MAX, what: What::File }).collect()
    }

    /// A file; none when it is not kept any more.
    fn file(&self, file: InFile) -> Result<Option<&'a Connection>, rusqlite::Error> {
        match file {
            Some(place) => self.reader.part(place),
            None => Ok(Some(&self.reader.day)),
        }
    }

    /// Finds the pages of a file, without reading them.
    fn open_file(
        &mut self,
        file: InFile,
        selection: &Selection,
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        if self.is_sealed(file) {
            return self.blocks(file, heap);
        }
        if !self.begins_in_time(file)? {
            return Ok(());
        }
        let few_hosts = selection.len() <= BY_HOST;
        let most = if few_hosts { FEW_ROWS } else { MANY_ROWS };
        if self.meaning.asks_for_peers() && self.postings(file, most, heap)? {
            return Ok(());
        }
        if few_hosts { Ok(self.chapters(file, heap)?) } else { Ok(self.zones(file, 0, heap)?) }
    }

    /// Whether the question means a session that is open, or one that SQLite let through.
    fn is_meant(&mut self, one: &StoredSession) -> Result<bool, HistoryError> {
        Ok(self.hosts.contains(one.host_id)
            && self.meaning.has_traits(Traits::of(one)?)
            && self.meaning.has_peer(one.peer.ip())
            && self.meaning.has_owners(&one.owners, &mut self.programs)?)
    }

    /// A session that is meant, as answers show it.
    fn shown(&mut self, one: &StoredSession) -> Result<Session, HistoryError> {
        let host = self.hosts.get(one.host_id).ok_or_else(|| coding::wrong("host_id", "nobody asked for this host"))?;
        let Traits { protocol, family, direction, state, .. } = Traits::of(one)?;
        let closed = |(at, known)| {
            let known = coding::meaning("closed_known", known, Known::from_number)?;
            Ok::<_, rusqlite::Error>((Timestamp::from_micros(at), known))
        };
        let netns = one.netns.cast_unsigned();
        Ok(Session {
            host_id: host.listed.host_id,
            host: host.listed.name.clone(),
            host_state: host.state,
            protocol,
            family,
            direction,
            local: one.local,
            peer: one.peer,
            peer_host: self.peers.of(one.peer.ip(), one.closed.map(|(at, _)| at))?,
            state,
            netns,
            netns_name: self.programs.namespaces.of(&host, netns, one.closed.map(|(at, _)| at))?,
            owner_known: one.owners.how_known()?,
            owners: self.programs.owners(&one.owners)?,
            opened_at: Timestamp::from_micros(one.opened_at_us),
            opened_known: coding::meaning("opened_known", one.opened_known, Known::from_number)?,
            closed: one.closed.map(closed).transpose()?,
            bytes_sent: one.bytes_sent.cast_unsigned(),
            bytes_received: one.bytes_received.cast_unsigned(),
            other_end: None,
        })
    }
}
