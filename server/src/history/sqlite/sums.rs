//! What stays of a file of sessions when it is not kept any more: sums of its sessions, by host, hour, direction, protocol,
//! port and process, and by peer. Exact in number and bytes; how much is told apart is bounded (`collecting`).
//!
//! A file of sums is written beside the file that it is about, read again, and named by the catalogue in its place, in one
//! transaction. So each session is either in a file that is kept or in its sums, and never in both, wherever a crash comes.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rusqlite::{Connection, OptionalExtension, params};

use self::collecting::{Collected, Collecting};
pub(super) use self::collecting::{Counts, OTHERS, beginning, end, hour};
use super::{
    coding,
    parts::{Form, Part, UNFINISHED},
    schema::make_sums,
    sealed::{self, Fetching, GoesOn, SealError},
    stored::StoredSession,
};

mod collecting;

/// Sessions between two looks whether it is still wanted.
const LOOK_EVERY: u64 = 4096;

/// Writes the sums of a file of sessions, and reads them again. They are durable afterwards, under their own name.
pub(super) fn sum_up(part: &Part, main: &Connection, path: &Path, goes_on: &GoesOn) -> Result<(), SealError> {
    let unfinished = path.with_extension(UNFINISHED);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    // SQLite takes the empty file as it is, with its mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
    let counted = write(part, main, &unfinished, goes_on)?;
    if read_again(&unfinished)? != [counted; 2] {
        return Err(SealError::Different);
    }
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// The sums while they are written.
struct Sums<'a> {
    file: &'a Connection,
    main: &'a Connection,
    names: HashMap<i64, i64>,
    host: Option<i64>,
    of_host: Collecting,
    total: Counts,
    max_opened_at_us: i64,
    min_closed_at_us: i64,
}

fn write(part: &Part, main: &Connection, path: &Path, goes_on: &GoesOn) -> Result<Counts, SealError> {
    let mut file = Connection::open(path)?;
    // A file that breaks off is written anew, and one that does not is written out before it counts.
    file.pragma_update(None, "journal_mode", "OFF")?;
    file.pragma_update(None, "synchronous", "OFF")?;
    make_sums(path, &mut file)?;
    let transaction = file.transaction()?;
    let mut sums = Sums {
        file: &transaction,
        main,
        names: HashMap::new(),
        host: None,
        of_host: Collecting::default(),
        total: Counts::default(),
        max_opened_at_us: i64::MIN,
        min_closed_at_us: i64::MAX,
    };
    each_session(part, goes_on, |one| {
        if sums.total.sessions.is_multiple_of(LOOK_EVERY) && !goes_on() {
            return Err(SealError::Unwanted);
        }
        Ok(sums.add(one)?)
    })?;
    sums.end_host()?;
    let spans = params![sums.max_opened_at_us, sums.min_closed_at_us];
    transaction.execute("INSERT INTO spans (one, max_opened_at_us, min_closed_at_us) VALUES (1, ?1, ?2)", spans)?;
    let total = sums.total;
    // Of kinds that are not told apart no name is told.
    transaction.execute("DELETE FROM names WHERE id NOT IN (SELECT name_id FROM sums)", [])?;
    transaction.commit()?;
    file.close().map_err(|(_, error)| error)?;
    Ok(total)
}

impl Sums<'_> {
    fn add(&mut self, one: &StoredSession) -> Result<(), rusqlite::Error> {
        if self.host != Some(one.host_id) {
            self.end_host()?;
            self.host = Some(one.host_id);
        }
        let name_id = self.name_id(one.owners.program_id)?;
        self.of_host.add(one, name_id);
        self.total.add(Counts::of(one));
        self.max_opened_at_us = self.max_opened_at_us.max(one.opened_at_us);
        self.min_closed_at_us = self.min_closed_at_us.min(one.closed_at_us());
        Ok(())
    }

    /// The number of the name of a program's process; 0 for none.
    fn name_id(&mut self, program_id: i64) -> Result<i64, rusqlite::Error> {
        if let Some(known) = self.names.get(&program_id) {
            return Ok(*known);
        }
        let mut statement = self.main.prepare_cached("SELECT process FROM programs WHERE id = ?1")?;
        let name: Option<String> = statement.query_row([program_id], |row| row.get(0)).optional()?;
        let id = match name.filter(|name| !name.is_empty()) {
            None => 0,
            Some(name) => {
                self.file
                    .prepare_cached("INSERT INTO names (name) VALUES (?1) ON CONFLICT DO NOTHING")?
                    .execute([&name])?;
                let mut statement = self.file.prepare_cached("SELECT id FROM names WHERE name = ?1")?;
                statement.query_row([&name], |row| row.get(0))?
            }
        };
        self.names.insert(program_id, id);
        Ok(id)
    }

    fn end_host(&mut self) -> Result<(), rusqlite::Error> {
        let Some(host) = self.host else { return Ok(()) };
        let Collected { sums, peers } = std::mem::take(&mut self.of_host).finish();
        let mut insert =
            self.file.prepare_cached("INSERT INTO sums VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?;
        for (((opened, closed), kind), counts) in sums {
            let [sessions, sent, received] = stored_counts(counts);
            insert.execute(params![
                host,
                opened,
                closed,
                kind.direction,
                kind.protocol,
                kind.family,
                kind.port,
                kind.name_id,
                sessions,
                sent,
                received
            ])?;
        }
        let mut insert = self.file.prepare_cached("INSERT INTO peers VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (peer, counts) in peers {
            let [sessions, sent, received] = stored_counts(counts);
            let address = peer.map(coding::address_bytes).unwrap_or_default();
            insert.execute(params![host, address, sessions, sent, received])?;
        }
        Ok(())
    }
}

fn stored_counts(counts: Counts) -> [i64; 3] {
    [counts.sessions, counts.bytes_sent, counts.bytes_received].map(coding::signed)
}

/// Shows every session of a file, host by host.
fn each_session(
    part: &Part,
    goes_on: &GoesOn,
    mut show: impl FnMut(&StoredSession) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let source = Connection::open_with_flags(&part.path, sealed::ALONE)?;
    match part.form {
        Form::Rows => sealed::each_row(&source, goes_on, |one| show(&one))?,
        Form::Sealed => {
            let mut statement = source.prepare("SELECT id FROM blocks ORDER BY host_id, id")?;
            let mut rows = statement.query([])?;
            let mut fetching = Fetching::of(&source);
            while let Some(row) = rows.next()? {
                let block = fetching.find(row.get(0)?).map_err(SealError::Unreadable)?;
                let sessions = block.all().map_err(|damaged| SealError::Unreadable(damaged.into()))?;
                sessions.iter().try_for_each(&mut show)?;
            }
        }
    }
    Ok(())
}

/// The totals of the sums, and of those by peer.
fn read_again(path: &Path) -> Result<[Counts; 2], SealError> {
    let file = Connection::open_with_flags(path, sealed::ALONE)?;
    let total = |table: &str| -> Result<Counts, rusqlite::Error> {
        let mut total = Counts::default();
        let mut statement = file.prepare(&format!("SELECT sessions, bytes_sent, bytes_received FROM {table}"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            total.add(counts(row, 0)?);
        }
        Ok(total)
    };
    Ok([total("sums")?, total("peers")?])
}

/// The counts in three columns, from this one on.
pub(super) fn counts(row: &rusqlite::Row<'_>, first: usize) -> Result<Counts, rusqlite::Error> {
    let number = |place: usize| row.get::<_, i64>(first + place).map(i64::cast_unsigned);
    Ok(Counts { sessions: number(0)?, bytes_sent: number(1)?, bytes_received: number(2)? })
}
