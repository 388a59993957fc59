//! The file of the spool. Only this module names SQLite.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use fleetsock_proto::{
    answer::GapReason,
    private::{self, PrivateFileError},
    stream::BatchNumber,
    stream::GapReport,
    time::Timestamp,
};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};

use self::rows::{gap, head, number, signed, time};
use super::{
    SpoolError,
    gaps::Gaps,
    stored::{Dropping, Head, Stored},
};

mod rows;

/// Acknowledged numbers whose time is remembered, for a server that forgot them (a backup that was restored).
pub(super) const MARKS_LIMIT: i64 = 16_384;
/// The write-ahead log is cut to this many bytes after it grew.
const LOG_BYTES: i64 = 4 * 1024 * 1024;
/// Page cache, KiB (SQLite takes it negative).
const CACHE_KIB: i64 = 512;
/// An empty spool whose file is larger gives pages back.
const IDLE_BYTES: i64 = 4 * 1024 * 1024;
const SCHEMA_VERSION: i32 = 1;
const SCHEMA: &str = "
    CREATE TABLE batches (
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        changes INTEGER NOT NULL,
        since_us INTEGER NOT NULL,
        until_us INTEGER NOT NULL,
        body BLOB NOT NULL,
        PRIMARY KEY (epoch, seq)
    ) STRICT;
    -- first_seq and last_seq are 0 where what was lost had no number.
    CREATE TABLE gaps (
        epoch INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        since_us INTEGER NOT NULL,
        until_us INTEGER NOT NULL,
        reason INTEGER NOT NULL
    ) STRICT;
    -- The last acknowledged numbers, and the walks that they told of.
    CREATE TABLE marks (
        id INTEGER PRIMARY KEY,
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        until_us INTEGER NOT NULL,
        UNIQUE (epoch, seq)
    ) STRICT;
    CREATE TABLE numbering (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL
    ) STRICT;
    PRAGMA user_version = 1;
";

const NOTE_EPOCH: &str = "INSERT INTO numbering (id, epoch) VALUES (1, ?1) ON CONFLICT (id) DO UPDATE SET epoch = ?1";

/// Why the file did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// Its content is damaged.
    #[error("{0}")]
    Corrupt(String),
    /// No room, no right to write, or the device fails: it may work again later.
    #[error("{0}")]
    Unavailable(String),
    /// It is not for this program: nothing is to be done about that here.
    #[error(transparent)]
    Refused(SpoolError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Trouble {
        let problem = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Trouble::Corrupt(problem),
            Some(_) => Trouble::Unavailable(problem),
            // What was read is not what was written.
            None => Trouble::Corrupt(problem),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Unavailable(error.to_string())
    }
}

/// The open file.
#[derive(Debug)]
pub(super) struct Disk {
    connection: Connection,
    /// What its batches count for.
    bytes: u64,
    /// The numbering that is written down.
    noted: u64,
}

/// What was given up: when it was observed, and how many changes it had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) changes: u64,
}

/// Makes the file for nobody else to read, or refuses one that others could have read.
fn private_file(path: &Path) -> Result<(), Trouble> {
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    match made {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error.into()),
    }
    match private::check_file(path) {
        Ok(()) => Ok(()),
        Err(PrivateFileError::Io { source, .. }) => Err(source.into()),
        Err(error) => Err(Trouble::Refused(SpoolError::File(error))),
    }
}

impl Disk {
    /// Opens the file, or makes it.
    pub(super) fn open(path: &Path) -> Result<Disk, Trouble> {
        private_file(path)?;
        let flags =
            OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        let connection = Connection::open_with_flags(path, flags)?;
        // Alone with the file, SQLite needs no shared memory beside it. NORMAL survives the end of the process; after
        // a power cut the last walks may be missing, and a new boot begins with a snapshot anyway.
        connection.execute_batch(
            "PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA auto_vacuum = INCREMENTAL;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = NORMAL;
             PRAGMA temp_store = MEMORY;",
        )?;
        connection.pragma_update(None, "journal_size_limit", LOG_BYTES)?;
        connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let mut disk = Disk { connection, bytes: 0, noted: 0 };
        disk.prepare(path)?;
        Ok(disk)
    }

    fn prepare(&mut self, path: &Path) -> Result<(), Trouble> {
        let version: i32 = self.connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => {
                let transaction = self.connection.transaction()?;
                transaction.execute_batch(SCHEMA)?;
                transaction.commit()?;
            }
            SCHEMA_VERSION => {}
            newer => return Err(Trouble::Refused(SpoolError::Newer { path: PathBuf::from(path), found: newer })),
        }
        let verdict: String = self.connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Trouble::Corrupt(verdict));
        }
        let sql = "SELECT coalesce(sum(length(body)), 0) AS bytes, count(*) AS batches FROM batches";
        let (bytes, batches) =
            self.connection.query_row(sql, [], |row| Ok((number(row, "bytes")?, number(row, "batches")?)))?;
        self.bytes = bytes + batches * Head::OVERHEAD;
        Ok(())
    }

    /// What its batches count for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last numbering; `None` in a new file.
    pub(super) fn epoch(&self) -> Result<Option<u64>, Trouble> {
        let sql = "SELECT epoch FROM numbering WHERE id = 1";
        Ok(self.connection.query_row(sql, [], |row| number(row, "epoch")).optional()?)
    }

    /// Notes a new numbering, so that it is not used again even after a power cut.
    pub(super) fn note_epoch(&mut self, epoch: u64) -> Result<(), Trouble> {
        self.connection.pragma_update(None, "synchronous", "FULL")?;
        let noted = self.connection.execute(NOTE_EPOCH, [signed(epoch)]);
        self.connection.pragma_update(None, "synchronous", "NORMAL")?;
        noted?;
        self.noted = epoch;
        Ok(())
    }

    /// The gaps that the server was not told of.
    pub(super) fn gaps(&self) -> Result<Vec<GapReport>, Trouble> {
        let mut statement = self.connection.prepare("SELECT * FROM gaps ORDER BY rowid")?;
        let gaps = statement.query_map([], gap)?.collect::<Result<_, _>>()?;
        Ok(gaps)
    }

    /// Writes down the gaps.
    pub(super) fn store_gaps(&mut self, gaps: &Gaps) -> Result<(), Trouble> {
        let transaction = self.connection.transaction()?;
        store_gaps(&transaction, gaps)?;
        transaction.commit()?;
        Ok(())
    }

    /// Appends batches, whole or not at all; drops the oldest ones when they need the room. Gives the gaps after that
    /// and the changes that were dropped.
    pub(super) fn append(&mut self, batches: &[Stored], limit: u64, mut gaps: Gaps) -> Result<(Gaps, u64), Trouble> {
        let new: u64 = batches.iter().map(|batch| batch.head.weight()).sum();
        let mut dropping = Dropping::new((self.bytes + new).saturating_sub(limit));
        let transaction = self.connection.transaction()?;
        if dropping.needed() {
            drop_oldest(&transaction, &mut dropping, GapReason::SpoolFull, &mut gaps)?;
        }
        {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO batches (epoch, seq, kind, changes, since_us, until_us, body)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            for Stored { head, body } in batches {
                let Head { number, kind, changes, since, until, .. } = head;
                insert.execute(params![
                    signed(number.epoch),
                    signed(number.seq),
                    kind.number(),
                    signed(*changes),
                    since.as_micros(),
                    until.as_micros(),
                    body,
                ])?;
            }
        }
        let epoch = batches.last().map_or(0, |batch| batch.head.number.epoch);
        if epoch > self.noted {
            transaction.execute(NOTE_EPOCH, [signed(epoch)])?;
        }
        if dropping.needed() || gaps.iter().next().is_some() {
            store_gaps(&transaction, &gaps)?;
        }
        transaction.commit()?;
        self.noted = self.noted.max(epoch);
        self.bytes = self.bytes + new - dropping.freed();
        Ok((gaps, dropping.changes()))
    }

    /// Gives up the oldest batch (and the rest of its snapshot), if there is one: how many changes it had.
    pub(super) fn drop_first(&mut self, reason: GapReason, mut gaps: Gaps) -> Result<(Gaps, Option<u64>), Trouble> {
        let mut dropping = Dropping::new(1);
        let transaction = self.connection.transaction()?;
        drop_oldest(&transaction, &mut dropping, reason, &mut gaps)?;
        store_gaps(&transaction, &gaps)?;
        transaction.commit()?;
        self.bytes -= dropping.freed();
        Ok((gaps, Some(dropping.changes()).filter(|_| dropping.freed() > 0)))
    }

    /// Gives up every batch of the numberings below one.
    pub(super) fn drop_below(&mut self, epoch: u64) -> Result<Option<Dropped>, Trouble> {
        let transaction = self.connection.transaction()?;
        let sql = "SELECT min(since_us) AS since_us, max(until_us) AS until_us, sum(changes) AS changes,
                       sum(length(body)) AS bytes, count(*) AS batches
                   FROM batches WHERE epoch < ?1 HAVING count(*) > 0";
        let dropped = transaction
            .query_row(sql, [signed(epoch)], |row| {
                let weight = number(row, "bytes")? + number(row, "batches")? * Head::OVERHEAD;
                let (since, until) = (time(row, "since_us")?, time(row, "until_us")?);
                Ok((Dropped { since, until, changes: number(row, "changes")? }, weight))
            })
            .optional()?;
        let Some((dropped, weight)) = dropped else { return Ok(None) };
        transaction.execute("DELETE FROM batches WHERE epoch < ?1", [signed(epoch)])?;
        transaction.commit()?;
        self.bytes -= weight;
        Ok(Some(dropped))
    }

    /// Gives the batches of one numbering another one.
    pub(super) fn renumber(&mut self, from: u64, to: u64) -> Result<(), Trouble> {
        let sql = "UPDATE batches SET epoch = ?2 WHERE epoch = ?1";
        self.connection.execute(sql, [signed(from), signed(to)])?;
        Ok(())
    }

    /// Forgets what is committed on the server, and remembers when it was.
    pub(super) fn acknowledge(&mut self, upto: BatchNumber, gaps: &Gaps) -> Result<(), Trouble> {
        let last = [signed(upto.epoch), signed(upto.seq)];
        let transaction = self.connection.transaction()?;
        let marked = transaction
            .prepare_cached(
                "INSERT OR IGNORE INTO marks (epoch, seq, until_us)
                 SELECT epoch, seq, until_us FROM batches WHERE (epoch, seq) <= (?1, ?2) ORDER BY epoch, seq",
            )?
            .execute(last)?;
        let mut freed = 0;
        {
            let mut delete = transaction.prepare_cached(
                "DELETE FROM batches WHERE (epoch, seq) <= (?1, ?2) RETURNING length(body) AS length",
            )?;
            let mut rows = delete.query(last)?;
            while let Some(row) = rows.next()? {
                freed += number(row, "length")? + Head::OVERHEAD;
            }
        }
        if marked > 0 {
            transaction
                .prepare_cached("DELETE FROM marks WHERE id <= (SELECT max(id) FROM marks) - ?1")?
                .execute([MARKS_LIMIT])?;
        }
        store_gaps(&transaction, gaps)?;
        transaction.commit()?;
        self.bytes -= freed;
        if self.bytes == 0 && freed > 0 {
            self.give_pages_back()?;
        }
        Ok(())
    }

    fn give_pages_back(&mut self) -> Result<(), Trouble> {
        let pragma = |name| self.connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
        if pragma("freelist_count")? * pragma("page_size")? > IDLE_BYTES {
            self.connection.execute_batch("PRAGMA incremental_vacuum")?;
        }
        Ok(())
    }

    /// When the walk was that an acknowledged batch told of, if that is still remembered.
    pub(super) fn mark(&self, number: BatchNumber) -> Result<Option<Timestamp>, Trouble> {
        let sql = "SELECT until_us FROM marks WHERE epoch = ?1 AND seq = ?2";
        let key = [signed(number.epoch), signed(number.seq)];
        Ok(self.connection.query_row(sql, key, |row| time(row, "until_us")).optional()?)
    }

    /// The first batch after a number, without its body.
    pub(super) fn head_after(&self, number: BatchNumber) -> Result<Option<Head>, Trouble> {
        let sql = "SELECT epoch, seq, kind, changes, since_us, until_us, length(body) AS length FROM batches
                   WHERE (epoch, seq) > (?1, ?2) ORDER BY epoch, seq LIMIT 1";
        let key = [signed(number.epoch), signed(number.seq)];
        Ok(self.connection.prepare_cached(sql)?.query_row(key, head).optional()?)
    }

    /// The bytes of a batch.
    pub(super) fn body(&self, number: BatchNumber) -> Result<Vec<u8>, Trouble> {
        let sql = "SELECT body FROM batches WHERE epoch = ?1 AND seq = ?2";
        let key = [signed(number.epoch), signed(number.seq)];
        Ok(self.connection.prepare_cached(sql)?.query_row(key, |row| row.get("body"))?)
    }
}

fn store_gaps(transaction: &Transaction<'_>, gaps: &Gaps) -> Result<(), rusqlite::Error> {
    transaction.prepare_cached("DELETE FROM gaps")?.execute([])?;
    let mut insert = transaction.prepare_cached(
        "INSERT INTO gaps (epoch, first_seq, last_seq, since_us, until_us, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
    )?;
    for gap in gaps.iter() {
        let (first, last) = gap.seqs.unwrap_or((0, 0));
        insert.execute(params![
            signed(gap.epoch),
            signed(first),
            signed(last),
            gap.since.as_micros(),
            gap.until.as_micros(),
            gap.reason.number(),
        ])?;
    }
    Ok(())
}

/// Drops batches from the oldest on and notes them as gaps.
fn drop_oldest(
    transaction: &Transaction<'_>,
    dropping: &mut Dropping,
    reason: GapReason,
    gaps: &mut Gaps,
) -> Result<(), rusqlite::Error> {
    let mut last = None;
    {
        let mut oldest = transaction.prepare_cached(
            "SELECT epoch, seq, kind, changes, since_us, until_us, length(body) AS length FROM batches
             ORDER BY epoch, seq",
        )?;
        let mut rows = oldest.query([])?;
        while let Some(row) = rows.next()? {
            let head = head(row)?;
            if !dropping.takes(&head) {
                break;
            }
            gaps.add(&head, reason);
            last = Some(head.number);
        }
    }
    if let Some(last) = last {
        transaction
            .prepare_cached("DELETE FROM batches WHERE (epoch, seq) <= (?1, ?2)")?
            .execute([signed(last.epoch), signed(last.seq)])?;
    }
    Ok(())
}
