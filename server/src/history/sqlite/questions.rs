//! Questions: each on a connection that cannot write, with a deadline, never waiting for the writer.

use std::{
    cell::OnceCell,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use fleetsock_proto::{answer::AnswerMeta, owner::Owner, question::SessionView, summary::Dimension};
use rusqlite::Connection;
use tokio::sync::Semaphore;

pub(super) use self::outlines::Outline;
use self::{naming::NamespaceNames, outlet::Outlet, outlines::Outlines};
use super::{
    coding::{OwnerColumns, StoredOwner},
    database::Files,
    numbered::Numbered,
    parts::{Catalogue, Form, Part},
};
use crate::history::{Bounds, HistoryError, Rows, matching::OwnerNames, summing::Sums};

pub(super) mod changes;
pub(super) mod coverage;
mod holders;
mod naming;
pub(super) mod outlet;
mod outlines;
mod pairs;
pub(super) mod ports;
pub(super) mod sessions;
pub(super) mod summary;
mod summed;

/// Steps of SQLite's machine between two looks at the clock: a few microseconds.
const STEPS: i32 = 1000;

/// Files that are complete which a reader keeps open between two questions; one that needs more opens them for itself.
const KEPT_OPEN: usize = 64;

/// Asked from time to time whether to go on.
type Over = Arc<dyn Fn() -> bool + Send + Sync>;

/// One reader's connections.
pub(super) struct Reader {
    pub(super) main: Connection,
    /// The file that is written to.
    pub(super) day: Connection,
    files: Files,
    outlines: Arc<Outlines>,
    /// The files as they were when the question began.
    pub(super) catalogue: Arc<Catalogue>,
    /// Those that are complete, in the order of the catalogue; opened when they are needed.
    parts: Vec<OnceCell<Option<OpenPart>>>,
    over: Option<Over>,
}

/// A file that is complete, and what was looked up in it: it does not change.
struct OpenPart {
    connection: Connection,
    outline: OnceCell<Arc<Outline>>,
}

/// Readers, a few of them: a question waits for one.
pub(super) struct Readers {
    files: Files,
    outlines: Arc<Outlines>,
    idle: Arc<Mutex<Vec<Reader>>>,
    places: Arc<Semaphore>,
}

impl Readers {
    pub(super) fn new(files: Files, at_once: usize) -> Readers {
        Readers { files, outlines: Arc::default(), idle: Arc::default(), places: Arc::new(Semaphore::new(at_once)) }
    }

    /// Answers a question within `time`.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        time: Duration,
        question: impl FnOnce(&Reader) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        self.run(time, || false, move |reader, _| question(reader)).await
    }

    /// Answers a question whose rows are sent while it is answered, within the bounds.
    pub(super) async fn stream<T: Send + 'static>(
        &self,
        bounds: Bounds,
        limit: Option<u32>,
        rows: Rows<T>,
        question: impl FnOnce(&Reader, &mut Outlet<T>) -> Result<AnswerMeta, HistoryError> + Send + 'static,
    ) -> Result<AnswerMeta, HistoryError> {
        let limit = limit.unwrap_or(bounds.rows).min(bounds.rows);
        let reader_left = {
            let rows = rows.clone();
            move || rows.is_closed()
        };
        self.run(bounds.time, reader_left, move |reader, deadline| {
            let mut outlet = Outlet::new(rows, limit, deadline, bounds.time);
            let mut meta = question(reader, &mut outlet)?;
            meta.truncated = outlet.finish()?;
            Ok(meta)
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        time: Duration,
        abandoned: impl Fn() -> bool + Clone + Send + Sync + 'static,
        question: impl FnOnce(&Reader, Instant) -> Result<T, HistoryError> + Send + 'static,
    ) -> Result<T, HistoryError> {
        let deadline = Instant::now() + time;
        let place = tokio::time::timeout(time, Arc::clone(&self.places).acquire_owned())
            .await
            .map_err(|_| HistoryError::TooSlow(time))?
            .map_err(|_| HistoryError::Closed)?;
        let (files, outlines, idle) = (self.files.clone(), Arc::clone(&self.outlines), Arc::clone(&self.idle));
        self.files.asked().note(Instant::now());
        let answered = tokio::task::spawn_blocking(move || {
            let _place = place;
            let _asking = files.ask();
            let found = idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let mut reader = match found {
                Some(reader) => reader.renewed()?,
                None => Reader::open(files, outlines)?,
            };
            let watched = abandoned.clone();
            let over: Over = Arc::new(move || Instant::now() > deadline || watched());
            reader.watch(Some(Arc::clone(&over)))?;
            let answer = question(&reader, deadline).map_err(|error| match error {
                HistoryError::Engine(_) if abandoned() => HistoryError::Abandoned,
                HistoryError::Engine(_) if over() => HistoryError::TooSlow(time),
                error => error,
            });
            reader.watch(None)?;
            reader.close_some();
            idle.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
            answer
        });
        answered.await.map_err(|error| HistoryError::Engine(error.to_string()))?
    }
}

impl Reader {
    fn open(files: Files, outlines: Arc<Outlines>) -> Result<Reader, rusqlite::Error> {
        let catalogue = files.catalogue();
        let (main, day) = (files.open_main()?, files.open_hot(&catalogue.hot)?);
        let parts = catalogue.complete.iter().map(|_| OnceCell::new()).collect();
        Ok(Reader { main, day, files, outlines, catalogue, parts, over: None })
    }

    /// The same with the files as they are now; connections to those that are still there are kept.
    fn renewed(mut self) -> Result<Reader, rusqlite::Error> {
        let now = self.files.catalogue();
        if now.hot != self.catalogue.hot {
            self.day = self.files.open_hot(&now.hot)?;
        }
        if now.complete != self.catalogue.complete {
            let names = self.catalogue.complete.iter().map(|part| (part.id, part.form));
            let mut before: HashMap<_, _> = names.zip(std::mem::take(&mut self.parts)).collect();
            let keep = |part: &Part| before.remove(&(part.id, part.form)).unwrap_or_default();
            self.parts = now.complete.iter().map(keep).collect();
        }
        self.catalogue = now;
        Ok(self)
    }

    /// Lets go of files beyond those that a reader may keep open, of the oldest first: they are asked for least.
    fn close_some(&mut self) {
        let open = self.parts.iter().filter(|cell| cell.get().is_some()).count();
        let opened = self.parts.iter_mut().filter(|cell| cell.get().is_some());
        opened.take(open.saturating_sub(KEPT_OPEN)).for_each(|cell| drop(cell.take()));
    }

    /// A file that is complete, by its place in the catalogue; none when it was dropped meanwhile.
    pub(super) fn part(&self, place: usize) -> Result<Option<&Connection>, rusqlite::Error> {
        let (Some(cell), Some(part)) = (self.parts.get(place), self.catalogue.complete.get(place)) else {
            return Ok(None);
        };
        let opened = match cell.get() {
            Some(opened) => opened,
            None => {
                let mut connection = self.files.open_part(part)?;
                if let Some(connection) = &mut connection {
                    watch(connection, self.over.as_ref())?;
                }
                let opened = connection.map(|connection| OpenPart { connection, outline: OnceCell::new() });
                cell.get_or_init(|| opened)
            }
        };
        Ok(opened.as_ref().map(|opened| &opened.connection))
    }

    /// A sealed file, and its outline; none when it was dropped meanwhile, or is not sealed.
    pub(super) fn sealed(&self, place: usize) -> Result<Option<(&Connection, &Outline)>, rusqlite::Error> {
        let part = self.catalogue.complete.get(place).filter(|part| part.form == Form::Sealed);
        let Some(part) = part else { return Ok(None) };
        self.part(place)?;
        let opened = self.parts.get(place).and_then(|cell| cell.get()?.as_ref());
        let Some(OpenPart { connection, outline }) = opened else { return Ok(None) };
        let outline = match outline.get() {
            Some(outline) => outline,
            None => {
                let found = self.outlines.get(part.id, connection)?;
                outline.get_or_init(|| found)
            }
        };
        Ok(Some((connection, outline)))
    }

    /// Fails when the question may not go on: for work that SQLite does not do.
    pub(super) fn go_on(&self) -> Result<(), HistoryError> {
        match &self.over {
            Some(over) if over() => Err(HistoryError::Engine("interrupted".to_owned())),
            _ => Ok(()),
        }
    }

    /// Makes SQLite ask from time to time whether to go on.
    fn watch(&mut self, over: Option<Over>) -> Result<(), rusqlite::Error> {
        self.over = over;
        let parts = self.parts.iter_mut().filter_map(|cell| cell.get_mut()?.as_mut().map(|part| &mut part.connection));
        [&mut self.main, &mut self.day].into_iter().chain(parts).try_for_each(|one| watch(one, self.over.as_ref()))
    }
}

fn watch(connection: &mut Connection, over: Option<&Over>) -> Result<(), rusqlite::Error> {
    let over = over.map(|over| {
        let over = Arc::clone(over);
        move || over()
    });
    connection.progress_handler(STEPS, over)
}

/// A program, as [`Programs`] remembers it.
#[derive(Debug, Clone)]
struct Program {
    process: String,
    exe: String,
    uid: u32,
    user: String,
    container: String,
    unit: String,
    command_line: String,
}

/// What the rows of one answer name by numbers: programs, each looked up once, and network namespaces.
pub(super) struct Programs<'a> {
    main: &'a Connection,
    known: Numbered<i64, Program>,
    namespaces: NamespaceNames<'a>,
    view: SessionView,
}

impl<'a> Programs<'a> {
    pub(super) fn new(reader: &'a Reader) -> Programs<'a> {
        Programs::viewed(reader, SessionView::Full)
    }

    /// Those of which so much is told.
    fn viewed(reader: &'a Reader, view: SessionView) -> Programs<'a> {
        let (main, known) = (&reader.main, Numbered::default());
        Programs { main, known, namespaces: NamespaceNames::new(main), view }
    }

    fn get(&mut self, id: i64) -> Result<&Program, rusqlite::Error> {
        if !self.known.contains_key(&id) {
            let program = self.main.prepare_cached("SELECT * FROM programs WHERE id = ?1")?.query_row([id], |row| {
                Ok(Program {
                    process: row.get("process")?,
                    exe: row.get("exe")?,
                    uid: row.get("uid")?,
                    user: row.get("user")?,
                    container: row.get("container")?,
                    unit: row.get("unit")?,
                    command_line: row.get("command_line")?,
                })
            })?;
            self.known.insert(id, program);
        }
        // It was put there two lines above when it was not.
        self.known.get(&id).ok_or(rusqlite::Error::QueryReturnedNoRows)
    }

    /// Process and user of a program, as filters see them.
    fn names(&mut self, id: i64) -> Result<OwnerNames<'_>, rusqlite::Error> {
        let program = self.get(id)?;
        Ok(OwnerNames { process: &program.process, user: &program.user, uid: program.uid })
    }

    /// The process of a program as sums tell it: nothing where they do not tell processes apart, empty where nobody is known.
    fn process_in(&mut self, sums: &Sums, program: i64) -> Result<Option<String>, rusqlite::Error> {
        match program {
            _ if !sums.are_by(Dimension::Process) => Ok(None),
            0 => Ok(Some(String::new())),
            program => Ok(Some(self.get(program)?.process.clone())),
        }
    }

    /// The owners of a row, the primary one first.
    pub(super) fn owners(&mut self, columns: &OwnerColumns) -> Result<Vec<Owner>, rusqlite::Error> {
        let stored = columns.owners();
        // Most have one, for which a collection would set aside the room of four.
        let mut owners = Vec::with_capacity(stored.len());
        for one in stored {
            owners.push(self.owner(one)?);
        }
        Ok(owners)
    }

    fn owner(&mut self, stored: StoredOwner) -> Result<Owner, rusqlite::Error> {
        let StoredOwner { pid, started_at, program_id } = stored;
        let view = self.view;
        let program = self.get(program_id)?;
        if view == SessionView::Basic {
            return Ok(Owner { pid, process: program.process.clone(), uid: program.uid, ..Owner::default() });
        }
        let Program { process, exe, uid, user, container, unit, command_line } = program.clone();
        Ok(Owner { pid, started_at, process, exe, uid, user, container, unit, command_line })
    }
}

/// The owners of a row, as filters see them.
fn names(owners: &[Owner]) -> impl Iterator<Item = OwnerNames<'_>> {
    owners.iter().map(|owner| OwnerNames { process: &owner.process, user: &owner.user, uid: owner.uid })
}
