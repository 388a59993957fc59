//! Sessions, newest first: those that are open by opening time, then those that are over by closing time.
//!
//! What is over is found by host when few hosts are meant, else by zones of the table. Either way it comes in pages, and
//! a heap puts their rows into one order: a page is only read when its latest possible row is the next one. A file is such
//! a page too, so that those of days long ago are not even opened for the newest sessions.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
    rc::Rc,
};

use fleetsock_proto::{
    answer::AnswerMeta,
    question::{SessionQuestion, SessionTime},
    session::Session,
    socket::{Direction, Family, Known, Protocol, SocketState},
    time::Timestamp,
};
use ipnet::IpNet;
use rusqlite::{Connection, params_from_iter, types::Value};

use super::{
    Programs, Reader, coverage, names,
    outlet::{Outlet, Sink, Wanted},
    pairs::Paired,
};
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding,
        peers::PeerFilter,
        roster::{Places, Selected, Selection},
        stored::{self, StoredSession},
    },
};

mod blocks;

/// Up to so many hosts are each read by the index of hosts; for more, reading what closed last is less work.
const BY_HOST: usize = 64;
/// Rows of one page of a host.
const PAGE_ROWS: i64 = 256;

pub(in crate::history::sqlite) fn list(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    question: &SessionQuestion,
    now: Timestamp,
    outlet: &mut Outlet<Session>,
) -> Result<AnswerMeta, HistoryError> {
    // One view of the file, so that a session that closes meanwhile is not shown twice.
    let _view = reader.day.unchecked_transaction()?;
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
    let matcher = Matcher::new(&question.filter)?;
    let window = Window { closed_before: question.closed_before, ..Window::of(question.time) };
    let mut search = Search {
        reader,
        hosts: selection.by_number(),
        places,
        question,
        narrowed: Narrowed::new(&matcher, question),
        matcher,
        window,
        programs: Programs::new(reader),
    };
    let shown = if window.closed_before.is_some() { Wanted::More } else { search.open(selection, sink)? };
    if shown == Wanted::More && window.past {
        search.over(selection, sink)?;
    }
    Ok(())
}

/// The sessions that are meant: opened not after `opened_until`, and open or closed after `closed_after`; where there is
/// a `closed_before`, closed before it.
#[derive(Debug, Clone, Copy)]
struct Window {
    opened_until: Timestamp,
    closed_after: Timestamp,
    closed_before: Option<Timestamp>,
    /// Whether sessions that are over are meant at all.
    past: bool,
}

impl Window {
    fn of(time: SessionTime) -> Window {
        match time {
            SessionTime::Now => {
                Window { opened_until: Timestamp::MAX, closed_after: Timestamp::MAX, closed_before: None, past: false }
            }
            SessionTime::At(at) => Window { opened_until: at, closed_after: at, closed_before: None, past: true },
            SessionTime::Within { since, until } => Window {
                closed_before: None,
                opened_until: until.unwrap_or(Timestamp::MAX),
                // One that closed in the window's first moment was open in it.
                closed_after: Timestamp::from_micros(since.as_micros() - 1),
                past: true,
            },
        }
    }
}

impl Window {
    /// The latest moment at which one that is meant can have closed.
    fn last_closing(&self) -> i64 {
        self.closed_before.map_or(i64::MAX, |before| before.as_micros().saturating_sub(1))
    }
}

/// Conditions that can be held against a row before much is read of it. They let through whatever is meant.
struct Narrowed {
    /// For SQLite, with unnumbered parameters, which follow the numbered ones.
    sql: String,
    values: Vec<Value>,
    /// The first and the last port of the service.
    ports: (u16, u16),
}

impl Narrowed {
    fn new(matcher: &Matcher, question: &SessionQuestion) -> Narrowed {
        let (first, last) = matcher.port_bounds();
        let mut sql = "TRUE".to_owned();
        let mut values = Vec::new();
        if (first, last) != (0, u16::MAX) {
            sql += &format!(" AND iif(direction = {}, local_port, peer_port) BETWEEN ? AND ?", Direction::In.number());
            values.extend([Value::from(i64::from(first)), Value::from(i64::from(last))]);
        }
        if !question.peers.is_empty() {
            let ranges = vec!["peer_address BETWEEN ? AND ?"; question.peers.len()].join(" OR ");
            sql += &format!(" AND ({ranges})");
            let ends = |prefix: &IpNet| [prefix.network(), prefix.broadcast()];
            values.extend(question.peers.iter().flat_map(ends).map(|end| Value::from(coding::address_bytes(end))));
        }
        Narrowed { sql, values, ports: (first, last) }
    }
}

struct Search<'a> {
    reader: &'a Reader,
    hosts: HashMap<i64, &'a Selected>,
    places: &'a Places,
    question: &'a SessionQuestion,
    matcher: Matcher,
    narrowed: Narrowed,
    window: Window,
    programs: Programs<'a>,
}

/// Sessions in the order of the answer, or a page of them that was not read yet: the latest comes first.
struct Next {
    latest: i64,
    what: What,
}

/// A file by its place among those that are complete, or the one that is written to.
type InFile = Option<usize>;

enum What {
    Session(Box<Session>),
    /// One that is read when its turn comes: most of a zone's never do.
    Row {
        file: InFile,
        id: i64,
    },
    /// Sessions of a host that closed before this one.
    Host {
        file: InFile,
        host: i64,
        before_id: i64,
    },
    /// A zone.
    Zone {
        file: InFile,
        first: i64,
        last: i64,
    },
    /// A block of a sealed file.
    Block {
        file: InFile,
        id: i64,
    },
    /// A session of a block that was read; those before it come later.
    InBlock {
        block: Rc<Vec<StoredSession>>,
        at: usize,
    },
    /// A file that was not looked into yet.
    File(InFile),
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
        // At the same moment a page comes before a row: it may hold rows of that moment.
        let is_page = |next: &Next| !matches!(next.what, What::Session(_) | What::Row { .. } | What::InBlock { .. });
        self.latest.cmp(&other.latest).then_with(|| is_page(self).cmp(&is_page(other)))
    }
}

impl<'a> Search<'a> {
    /// Sends the sessions that are open.
    fn open(&mut self, selection: &Selection, sink: &mut dyn Sink<Session>) -> Result<Wanted, HistoryError> {
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
        let until = self.window.opened_until.as_micros();
        let mut rows = match selection.hosts.as_slice() {
            [host] => by_host.query([until, host.entry.id])?,
            _ => by_time.query([until])?,
        };
        while let Some(row) = rows.next()? {
            if let Some(session) = self.session(&StoredSession::open(row)?)?
                && sink.push(session)? == Wanted::NoMore
            {
                return Ok(Wanted::NoMore);
            }
        }
        Ok(Wanted::More)
    }

    /// Sends the sessions that are over.
    fn over(&mut self, selection: &Selection, sink: &mut dyn Sink<Session>) -> Result<(), HistoryError> {
        let mut heap: BinaryHeap<Next> = self.files();
        while let Some(Next { latest, what }) = heap.pop() {
            match what {
                What::Session(session) => {
                    if sink.push(*session)? == Wanted::NoMore {
                        break;
                    }
                }
                What::Row { file, id } => {
                    if let Some(session) = self.read_row(file, id)?
                        && sink.push(session)? == Wanted::NoMore
                    {
                        break;
                    }
                }
                What::InBlock { block, at } => {
                    heap.extend(self.next_in(&block, at));
                    if let Some(session) = block.get(at)
                        && let Some(session) = self.session(session)?
                        && sink.push(session)? == Wanted::NoMore
                    {
                        break;
                    }
                }
                What::Block { file, id } => {
                    let block = Rc::new(self.read_block(file, id)?);
                    heap.extend(self.next_in(&block, block.len()));
                }
                What::File(file) if self.is_sealed(file) => self.blocks(file, &mut heap)?,
                What::File(file) if selection.hosts.len() <= BY_HOST => {
                    let page = |host: &Selected| Next {
                        latest,
                        what: What::Host { file, host: host.entry.id, before_id: i64::MAX },
                    };
                    heap.extend(selection.hosts.iter().map(page));
                }
                What::File(file) => self.zones(file, &mut heap)?,
                What::Host { file, host, before_id } => self.read_host(file, host, (latest, before_id), &mut heap)?,
                What::Zone { file, first, last } => self.read_zone(file, (first, last), &mut heap)?,
            }
        }
        Ok(())
    }

    /// The files with sessions that closed within the window.
    fn files(&self) -> BinaryHeap<Next> {
        let complete = self.reader.catalogue.complete.iter().enumerate();
        let complete = complete.map(|(place, part)| Next { latest: part.latest, what: What::File(Some(place)) });
        let after = self.window.closed_after.as_micros();
        let files = complete.chain([Next { latest: i64::MAX, what: What::File(None) }]);
        let within = files.filter(|next| next.latest > after);
        // Nothing later than this is meant, so that pages of hosts begin there.
        within.map(|next| Next { latest: next.latest.min(self.window.last_closing()), ..next }).collect()
    }

    /// A file; none when it is not kept any more.
    fn file(&self, file: InFile) -> Result<Option<&'a Connection>, rusqlite::Error> {
        match file {
            Some(place) => self.reader.part(place),
            None => Ok(Some(&self.reader.day)),
        }
    }

    fn zones(&self, file: InFile, heap: &mut BinaryHeap<Next>) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(
            "SELECT first_id, last_id, max_closed_at_us, peers FROM zones
             WHERE max_closed_at_us > ?1 AND min_closed_at_us <= ?2",
        )?;
        let mut rows = statement.query([self.window.closed_after.as_micros(), self.window.last_closing()])?;
        while let Some(row) = rows.next()? {
            // Zones of an earlier version do not say.
            if !self.question.peers.is_empty()
                && let Some(peers) = row.get_ref("peers")?.as_blob().ok().and_then(PeerFilter::of)
                && !self.question.peers.iter().any(|prefix| peers.may_hold(prefix))
            {
                continue;
            }
            let what = What::Zone { file, first: row.get("first_id")?, last: row.get("last_id")? };
            heap.push(Next { latest: row.get("max_closed_at_us")?, what });
        }
        Ok(())
    }

    /// Finds what may be meant in a zone, without reading it.
    fn read_zone(
        &mut self,
        file: InFile,
        (first, last): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT id, host_id, closed_at_us FROM sessions
             WHERE id BETWEEN ?1 AND ?2 AND closed_at_us > ?3 AND closed_at_us <= ?4
                 AND closed_at_us - duration_us <= ?5 AND {}",
            self.narrowed.sql
        ))?;
        let Window { opened_until, closed_after, .. } = self.window;
        let last_closing = self.window.last_closing();
        let bounds = [first, last, closed_after.as_micros(), last_closing, opened_until.as_micros()].map(Value::from);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.narrowed.values)))?;
        while let Some(row) = rows.next()? {
            if self.hosts.contains_key(&row.get("host_id")?) {
                heap.push(Next { latest: row.get("closed_at_us")?, what: What::Row { file, id: row.get("id")? } });
            }
        }
        Ok(())
    }

    fn read_row(&mut self, file: InFile, id: i64) -> Result<Option<Session>, HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(None) };
        let mut statement =
            connection.prepare_cached(&format!("SELECT {} FROM sessions WHERE id = ?1", stored::OVER))?;
        let mut rows = statement.query([id])?;
        match rows.next()? {
            Some(row) => self.session(&StoredSession::over(row)?),
            None => Ok(None),
        }
    }

    /// Reads the next page of a host, and notes the one after it.
    fn read_host(
        &mut self,
        file: InFile,
        host: i64,
        (latest, before_id): (i64, i64),
        heap: &mut BinaryHeap<Next>,
    ) -> Result<(), HistoryError> {
        let Some(connection) = self.file(file)? else { return Ok(()) };
        let mut statement = connection.prepare_cached(&format!(
            "SELECT {}, id FROM sessions
             WHERE host_id = ?1 AND closed_at_us > ?2 AND (closed_at_us, id) < (?3, ?4)
                 AND closed_at_us - duration_us <= ?5 AND {}
             ORDER BY closed_at_us DESC, id DESC LIMIT {PAGE_ROWS}",
            stored::OVER,
            self.narrowed.sql
        ))?;
        let Window { opened_until, closed_after, .. } = self.window;
        let bounds = [host, closed_after.as_micros(), latest, before_id, opened_until.as_micros()].map(Value::from);
        let mut rows = statement.query(params_from_iter(bounds.iter().chain(&self.narrowed.values)))?;
        let (mut read, mut last) = (0, (0, 0));
        while let Some(row) = rows.next()? {
            read += 1;
            last = (row.get("closed_at_us")?, row.get("id")?);
            if let Some(session) = self.session(&StoredSession::over(row)?)? {
                heap.push(Next { latest: last.0, what: What::Session(Box::new(session)) });
            }
        }
        if read == PAGE_ROWS {
            heap.push(Next { latest: last.0, what: What::Host { file, host, before_id: last.1 } });
        }
        Ok(())
    }

    /// The session, if the question means it.
    fn session(&mut self, one: &StoredSession) -> Result<Option<Session>, HistoryError> {
        let Some(host) = self.hosts.get(&one.host_id) else { return Ok(None) };
        let direction = coding::meaning("direction", one.direction, Direction::from_number)?;
        let protocol = coding::meaning("protocol", one.protocol, Protocol::from_number)?;
        let family = coding::meaning("family", one.family, Family::from_number)?;
        let state = coding::meaning("state", one.state, SocketState::from_number)?;
        let SessionQuestion { directions, states, peers, .. } = self.question;
        let service_port = match direction {
            Direction::In => one.local.port(),
            Direction::Out => one.peer.port(),
        };
        let meant = self.matcher.matches_socket(protocol, family, service_port)
            && (directions.is_empty() || directions.contains(&direction))
            && (states.is_empty() || states.contains(&state))
            && (peers.is_empty() || peers.iter().any(|prefix| prefix.contains(&one.peer.ip())));
        if !meant {
            return Ok(None);
        }
        let owners = self.programs.owners(&one.owners)?;
        if !self.matcher.matches_owners(names(&owners)) {
            return Ok(None);
        }
        let closed = |(at, known)| {
            let known = coding::meaning("closed_known", known, Known::from_number)?;
            Ok::<_, rusqlite::Error>((Timestamp::from_micros(at), known))
        };
        Ok(Some(Session {
            host_id: host.entry.host_id,
            host: host.entry.name.clone(),
            host_state: host.state,
            protocol,
            family,
            direction,
            local: one.local,
            peer: one.peer,
            peer_host: self.places.get(&one.peer.ip()).cloned().flatten().unwrap_or_default(),
            state,
            netns: one.netns.cast_unsigned(),
            owner_known: one.owners.how_known()?,
            owners,
            opened_at: Timestamp::from_micros(one.opened_at_us),
            opened_known: coding::meaning("opened_known", one.opened_known, Known::from_number)?,
            closed: one.closed.map(closed).transpose()?,
            bytes_sent: one.bytes_sent.cast_unsigned(),
            bytes_received: one.bytes_received.cast_unsigned(),
            other_end: None,
        }))
    }
}
