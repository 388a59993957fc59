//! Changes, newest first. What opened and closed is told by the intervals, by their ends; owners of listeners that
//! changed and starts of agents have tables of their own.
//!
//! Each of these is read in pages, of a host when few hosts are meant, else of the fleet. A heap puts their rows into one
//! order: a page is only read when its latest possible row is the next one. Sessions come by their closing, so the
//! openings of those that were seen wait in the heap for their turn.

use std::collections::BinaryHeap;

use fleetsock_proto::{
    answer::AnswerMeta,
    change::{ChangeKind, ChangeRecord, ChangeSubject, Changed, HostStart},
    host::BootId,
    question::{ChangeQuestion, SessionQuestion, SessionTime},
    session::Session,
    socket::Known,
    time::Timestamp,
};
use rusqlite::{Row, params_from_iter};

use self::{
    order::{Next, Order, What},
    scopes::Scopes,
    source::{New, Page, Source},
};
use super::{
    Programs, Reader, coverage, holders, names,
    outlet::{Outlet, Sink, Wanted},
    ports::{self, StoredListener},
    sessions::{self, Span},
};
use crate::history::{
    HistoryError,
    matching::Matcher,
    sqlite::{
        coding::{self, OwnerColumns},
        roster::{ByNumber, Places, Selected, Selection},
    },
};

mod order;
mod scopes;
mod source;

/// Up to so many hosts are each read by themselves; for more, reading the fleet is less work.
const BY_HOST: usize = 64;
/// Changes that may wait for their turn, about 1 KiB each.
const WAITING_LIMIT: usize = 100_000;

pub(in crate::history::sqlite) fn list(
    reader: &Reader,
    selection: &Selection,
    places: &Places,
    question: &ChangeQuestion,
    now: Timestamp,
    outlet: &mut Outlet<ChangeRecord>,
) -> Result<AnswerMeta, HistoryError> {
    let since = question.since.unwrap_or(Timestamp::MIN);
    let until = question.until.unwrap_or(Timestamp::MAX);
    // One view of each file, and that of the day first: the programs that its rows name were stored before them.
    let _day = reader.day.unchecked_transaction()?;
    reader.day.prepare_cached("SELECT 1 FROM sqlite_schema LIMIT 1")?.exists([])?;
    let _main = reader.main.unchecked_transaction()?;
    let mut merge = Merge {
        reader,
        hosts: selection.by_number(),
        question,
        matcher: Matcher::new(&question.filter)?,
        window: (since, until),
        programs: Programs::new(reader),
        scopes: Scopes::default(),
        heap: BinaryHeap::new(),
        outlet,
    };
    merge.begin(selection);
    if question.is_about(ChangeSubject::Session) {
        merge.sessions(selection, places, now)?;
    }
    merge.send_after(i64::MIN)?;
    let meta = AnswerMeta { since: question.since, until: question.until, ..selection.meta(now) };
    let looked_at_since = question.baseline.unwrap_or(since);
    coverage::with_gaps(reader, selection, meta, (looked_at_since, question.until.unwrap_or(now)))
}

/// Puts changes from all sources into one order.
struct Merge<'a, 'o> {
    reader: &'a Reader,
    hosts: ByNumber<'a>,
    question: &'a ChangeQuestion,
    matcher: Matcher,
    window: (Timestamp, Timestamp),
    programs: Programs<'a>,
    scopes: Scopes,
    heap: BinaryHeap<Next>,
    outlet: &'o mut Outlet<ChangeRecord>,
}

impl Merge<'_, '_> {
    /// Notes the newest pages.
    fn begin(&mut self, selection: &Selection) {
        let wants = |kinds: &[ChangeKind]| kinds.iter().any(|kind| self.question.wants(*kind));
        let listeners = self.question.is_about(ChangeSubject::Listener);
        let sources = [
            (Source::Opened, listeners && wants(&[ChangeKind::Opened, ChangeKind::ScopeWidened])),
            (Source::Closed, listeners && wants(&[ChangeKind::Closed])),
            (Source::Owners, listeners && wants(&[ChangeKind::OwnerChanged])),
            (
                Source::Starts,
                self.question.is_about(ChangeSubject::Host)
                    && wants(&[ChangeKind::AgentStarted, ChangeKind::HostBooted]),
            ),
        ];
        let until = self.window.1.as_micros();
        let new = self.question.baseline.map(|baseline| New {
            baseline,
            ports: self.matcher.port_bounds(),
            wanted: self.outlet.left().saturating_add(1),
        });
        for (source, _) in sources.into_iter().filter(|(_, wanted)| *wanted) {
            let mut note = |host| {
                let page = Page::newest(source, host, until, new);
                self.heap.push(Next { at: page.latest(), what: What::Page(page) });
            };
            if selection.len() <= BY_HOST {
                selection.hosts().for_each(|host| note(Some(host.listed.id)));
            } else {
                note(None);
            }
        }
    }

    /// Sends what is later than `at`.
    fn send_after(&mut self, at: i64) -> Result<Wanted, HistoryError> {
        while self.heap.peek().is_some_and(|next| next.at > at) {
            match self.heap.pop().map(|next| next.what) {
                Some(What::Page(page)) => self.read(&page)?,
                Some(What::Change(_, change)) => {
                    if self.outlet.push(*change)? == Wanted::NoMore {
                        return Ok(Wanted::NoMore);
                    }
                }
                None => break,
            }
        }
        Ok(Wanted::More)
    }

    /// Reads a page, and notes the one after it.
    fn read(&mut self, page: &Page) -> Result<(), HistoryError> {
        let (sql, values) = page.sql(self.window.0.as_micros());
        let mut statement = self.reader.main.prepare_cached(&sql)?;
        let mut rows = statement.query(params_from_iter(values))?;
        let (mut read, mut following) = (0, None);
        while let Some(row) = rows.next()? {
            read += 1;
            if read == page.rows() {
                following = Some(page.following(row)?);
            }
            let Some(host) = self.hosts.get(row.get(page.source.host_place())?) else { continue };
            match page.source {
                Source::Opened => self.opened(row, &host)?,
                Source::Closed => self.closed(row, &host)?,
                Source::Owners => self.owners_changed(row, &host)?,
                Source::Starts => self.started(row, &host)?,
            }
        }
        if let Some(page) = following {
            self.heap.push(Next { at: page.latest(), what: What::Page(page) });
        }
        Ok(())
    }

    fn opened(&mut self, row: &Row<'_>, host: &Selected<'_>) -> Result<(), rusqlite::Error> {
        let stored = StoredListener::read(row)?;
        if !stored.is_meant(&self.matcher, &self.question.scopes) {
            return Ok(());
        }
        let first = if row.get(ports::COLUMNS)? { holders::first(&self.reader.main, &stored)? } else { None };
        let listener = stored.listener(host, first.as_ref().unwrap_or(&stored.owners), &mut self.programs)?;
        if !self.matcher.matches_owners(names(&listener.owners)) {
            return Ok(());
        }
        let (at, known) = (listener.opened_at, listener.opened_known);
        let change = ChangeRecord {
            kind: ChangeKind::Opened,
            at,
            known,
            what: Changed::Listener(Box::new(listener)),
            owners_before: Vec::new(),
            scope_before: None,
        };
        let (netns, cookie, _) = stored.life;
        let place = (netns, cookie);
        if self.question.wants(ChangeKind::ScopeWidened)
            && let Some(scope) = self.scopes.widened(&self.reader.main, row)?
        {
            self.wait(
                ChangeRecord { kind: ChangeKind::ScopeWidened, scope_before: Some(scope), ..change.clone() },
                place,
            );
        }
        if self.question.wants(ChangeKind::Opened) {
            self.wait(change, place);
        }
        Ok(())
    }

    fn closed(&mut self, row: &Row<'_>, host: &Selected<'_>) -> Result<(), rusqlite::Error> {
        let stored = StoredListener::read(row)?;
        if !stored.is_meant(&self.matcher, &self.question.scopes) {
            return Ok(());
        }
        let listener = stored.listener(host, &stored.owners, &mut self.programs)?;
        if let Some((at, known)) = listener.closed
            && self.matcher.matches_owners(names(&listener.owners))
        {
            let change = ChangeRecord {
                kind: ChangeKind::Closed,
                at,
                known,
                what: Changed::Listener(Box::new(listener)),
                owners_before: Vec::new(),
                scope_before: None,
            };
            let (netns, cookie, _) = stored.life;
            self.wait(change, (netns, cookie));
        }
        Ok(())
    }

    fn owners_changed(&mut self, row: &Row<'_>, host: &Selected<'_>) -> Result<(), rusqlite::Error> {
        let stored = StoredListener::read(row)?;
        if !stored.is_meant(&self.matcher, &self.question.scopes) {
            return Ok(());
        }
        let listener = stored.listener(host, &stored.owners, &mut self.programs)?;
        let owners_before = self.programs.owners(&OwnerColumns::read_before(row)?)?;
        let is_meant = [&listener.owners, &owners_before].map(|owners| self.matcher.matches_owners(names(owners)));
        if is_meant.contains(&true) {
            let change = ChangeRecord {
                kind: ChangeKind::OwnerChanged,
                at: coding::time(row, "at_us")?,
                known: coding::word(row, "known", Known::from_number)?,
                what: Changed::Listener(Box::new(listener)),
                owners_before,
                scope_before: None,
            };
            self.wait(change, (row.get("id")?, 0));
        }
        Ok(())
    }

    fn started(&mut self, row: &Row<'_>, host: &Selected<'_>) -> Result<(), rusqlite::Error> {
        let kind = if row.get("rebooted")? { ChangeKind::HostBooted } else { ChangeKind::AgentStarted };
        if self.question.wants(kind) {
            let start = HostStart {
                host_id: host.listed.host_id,
                host: host.listed.name.clone(),
                host_state: host.state,
                boot_id: BootId::from_array(row.get("boot_id")?),
            };
            let change = ChangeRecord {
                kind,
                at: coding::time(row, "at_us")?,
                // It is the first walk that is known, not the start before it.
                known: Known::FirstSeen,
                what: Changed::Start(start),
                owners_before: Vec::new(),
                scope_before: None,
            };
            self.wait(change, (row.get("id")?, 0));
        }
        Ok(())
    }

    /// Keeps a change until its turn comes.
    fn wait(&mut self, change: ChangeRecord, row: (i64, i64)) {
        let at = change.at.as_micros();
        self.heap.push(Next { at, what: What::Change(Order::of(&change, row), Box::new(change)) });
    }

    /// Takes the sessions that are meant.
    fn sessions(&mut self, selection: &Selection, places: &Places, now: Timestamp) -> Result<(), HistoryError> {
        let (since, _) = self.window;
        let asked = SessionQuestion {
            filter: self.question.filter.clone(),
            directions: self.question.directions.clone(),
            peers: self.question.peers.clone(),
            time: SessionTime::Within { since, until: self.question.until },
            ..SessionQuestion::default()
        };
        let reader = self.reader;
        if let Some(baseline) = self.question.baseline {
            let span = Span { since, until: self.question.until, baseline };
            let wanted = self.outlet.left();
            return sessions::each_new(reader, selection, places, (&asked, &span, wanted), now, |session| {
                self.new_session(session)
            });
        }
        sessions::visit(reader, selection, places, &asked, &mut Turn { merge: self })
    }

    /// Takes a session that is the next one by its closing, open ones first.
    fn session(&mut self, session: Session) -> Result<Wanted, HistoryError> {
        if let Some((at, _)) = session.closed
            && self.send_after(at.as_micros())? == Wanted::NoMore
        {
            return Ok(Wanted::NoMore);
        }
        self.wait_for_ends(session);
        self.has_room()
    }

    /// Fails when more changes wait for their turn than may.
    fn has_room(&self) -> Result<Wanted, HistoryError> {
        if self.heap.len() > WAITING_LIMIT {
            return Err(HistoryError::TooMuch(format!(
                "more than {WAITING_LIMIT} sessions of the window were open at once; ask for fewer hosts, peers or ports"
            )));
        }
        Ok(Wanted::More)
    }

    /// Takes a session that is new, and that opened last of those that are not taken yet.
    fn new_session(&mut self, session: Session) -> Result<Wanted, HistoryError> {
        if self.send_after(session.opened_at.as_micros())? == Wanted::NoMore {
            return Ok(Wanted::NoMore);
        }
        self.wait_for_ends(session);
        self.has_room()
    }

    /// Keeps the ends of a session that are meant.
    fn wait_for_ends(&mut self, session: Session) {
        let (since, until) = self.window;
        let place = (session.local.port().into(), session.peer.port().into());
        let meant = |kind, at: Timestamp| since <= at && at <= until && self.question.wants(kind);
        let opened = (session.opened_at, session.opened_known);
        let opened = Some(opened).filter(|(at, _)| meant(ChangeKind::Opened, *at));
        let closed = session.closed.filter(|(at, _)| meant(ChangeKind::Closed, *at));
        let change = |kind, (at, known), session| {
            let what = Changed::Session(Box::new(session));
            ChangeRecord { kind, at, known, what, owners_before: Vec::new(), scope_before: None }
        };
        match (opened, closed) {
            (Some(opened), Some(closed)) => {
                self.wait(change(ChangeKind::Opened, opened, session.clone()), place);
                self.wait(change(ChangeKind::Closed, closed, session), place);
            }
            (Some(opened), None) => self.wait(change(ChangeKind::Opened, opened, session), place),
            (None, Some(closed)) => self.wait(change(ChangeKind::Closed, closed, session), place),
            (None, None) => {}
        }
    }
}

/// Takes sessions, each when its turn comes.
struct Turn<'m, 'a, 'o> {
    merge: &'m mut Merge<'a, 'o>,
}

impl Sink<Session> for Turn<'_, '_, '_> {
    fn push(&mut self, session: Session) -> Result<Wanted, HistoryError> {
        self.merge.session(session)
    }
}
