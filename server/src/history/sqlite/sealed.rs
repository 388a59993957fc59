//! Sealed files: what becomes of a file of sessions once it is complete.
//!
//! A complete file is never written to again, so that it can be kept in a form that is small and quick to search and could
//! not be added to: the sessions of each host in packed blocks of columns, and a table of all addresses with which there
//! were sessions and where these are, sorted, which no file could have that grows. Both are tables of an SQLite database, so that they are
//! opened, copied and checked like the others.
//!
//! [`seal`] writes such a file beside the first and reads it again; `sealer` is the thread that does so and then exchanges
//! the two. `block` and `layout` say how sessions become bytes.

use std::{
    fs::{self, File, OpenOptions},
    hash::{Hash, Hasher},
    io,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    sync::Arc,
};

use rusqlite::{Connection, OpenFlags, params};

use super::{
    by_peer, coding,
    cubes::{self, Cubes, Expected, Facts},
    database::OpenError,
    kinds::{self, Kind},
    parts::UNFINISHED,
    schema::make_sealed,
    stored::StoredSession,
    sums::hour,
};
use crate::history::{HistoryError, hashing::Folding};

mod block;
mod column;
mod encoder;
mod extents;
mod fetching;
mod filter;
mod layout;
mod numbers;
mod pace;
mod packed;
mod peers;
pub(super) mod places;
mod recurring;
mod rows;
mod sealer;
mod sorting;
mod writeback;

pub(super) use self::block::{Block, Column, Values};
pub(super) use self::column::{Damaged, Reading, Writing};
pub(super) use self::extents::Extents;
pub(super) use self::fetching::{Fetching, Head};
pub(super) use self::filter::{Filter, Hashed, mixed};
pub(super) use self::recurring::Recurring;
pub(super) use self::rows::each_row;
pub(super) use self::sealer::Sealer;
pub use self::sealer::Sealing;
use self::{
    encoder::Encoder,
    layout::{BLOCK_SESSIONS, CODEC},
    peers::Peers,
    places::{Place, Telling},
    writeback::Writeback,
};

/// Bytes of a page. Of larger ones more would be read for each address and block, and less of each be used.
const PAGE_BYTES: i64 = 4 * 1024;
/// Page cache while a file is sealed, KiB: everything is added at the end of a table.
const CACHE_KIB: i64 = 2 * 1024;

/// How a file is opened that is only read, and by one thread: SQLite needs no lock for each column then.
pub(super) const ALONE: OpenFlags = OpenFlags::SQLITE_OPEN_READ_ONLY.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// Asked after every few milliseconds of work whether to go on; who is asked may take his time, and the work rests.
pub(super) type GoesOn = Arc<dyn Fn() -> bool + Send + Sync>;

/// Why a file is not sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// The server ends, or the file is not kept any more.
    #[error("it is not wanted any more")]
    Unwanted,
    /// SQLite or the disk refused.
    #[error(transparent)]
    Engine(#[from] rusqlite::Error),
    /// The new file cannot be made.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The disk refused.
    #[error(transparent)]
    File(#[from] io::Error),
    /// A block cannot be read again.
    #[error("what was written cannot be read again: {0}")]
    Damaged(#[from] Damaged),
    /// A file that was sealed cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(HistoryError),
    /// The writer refused to name it.
    #[error("what was made of it cannot be named: {0}")]
    Exchange(HistoryError),
    /// What was read again is something else.
    #[error("what was written is not what was read")]
    Different,
}

/// What a file holds, whatever its form.
#[derive(Debug, PartialEq, Eq)]
struct Contents {
    sessions: i64,
    hash: u64,
    /// Of which kinds they are, where that is told.
    kinds: Option<kinds::Telling>,
}

fn count(sessions: &[StoredSession]) -> i64 {
    i64::try_from(sessions.len()).unwrap_or(i64::MAX)
}

/// Sums up sessions in their order.
#[derive(Default)]
struct Summing {
    sessions: i64,
    hasher: Folding,
}

impl Summing {
    fn add(&mut self, session: &StoredSession) {
        self.sessions += 1;
        session.hash(&mut self.hasher);
    }

    fn finish(&self, kinds: Option<kinds::Telling>) -> Contents {
        Contents { sessions: self.sessions, hash: self.hasher.finish(), kinds }
    }
}

/// Writes the sealed form of a file of sessions, and reads it again; how many they are. It is durable afterwards, under its
/// own name.
///
/// `goes_on` is asked between blocks. What is left over of an earlier attempt is overwritten.
pub(super) fn seal(rows: &Path, sealed: &Path, goes_on: &GoesOn) -> Result<u64, SealError> {
    let unfinished = sealed.with_extension(UNFINISHED);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        Ok(()) | Err(_) => {}
    }
    let outcome = write_and_check(rows, &unfinished, goes_on);
    if outcome.is_err()
        && let Err(error) = fs::remove_file(&unfinished)
    {
        tracing::debug!(%error, file = %unfinished.display(), "what is left over stays until the next attempt");
    }
    let sessions = outcome?;
    fs::rename(&unfinished, sealed)?;
    if let Some(folder) = sealed.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(sessions)
}

fn write_and_check(rows: &Path, unfinished: &Path, goes_on: &GoesOn) -> Result<u64, SealError> {
    // SQLite takes the empty file as it is, with its mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(unfinished)?;
    let writeback = Writeback::of(file.try_clone()?);
    let while_written: GoesOn = {
        let goes_on = Arc::clone(goes_on);
        Arc::new(move || {
            writeback.go_on();
            goes_on()
        })
    };
    let written = write(rows, unfinished, &while_written)?;
    let read = read_again(unfinished, goes_on)?;
    if written != read {
        return Err(SealError::Different);
    }
    file.sync_all()?;
    Ok(read.sessions.cast_unsigned())
}

fn write(rows: &Path, unfinished: &Path, goes_on: &GoesOn) -> Result<Contents, SealError> {
    let source = Connection::open_with_flags(rows, ALONE)?;
    let mut sealed = Connection::open(unfinished)?;
    sealed.pragma_update(None, "page_size", PAGE_BYTES)?;
    // A file that breaks off is removed, and one that does not is written out before it counts.
    sealed.pragma_update(None, "journal_mode", "OFF")?;
    sealed.pragma_update(None, "synchronous", "OFF")?;
    sealed.pragma_update(None, "cache_size", -CACHE_KIB)?;
    make_sealed(unfinished, &mut sealed)?;
    let transaction = sealed.transaction()?;
    let mut writing = Written {
        sealed: &transaction,
        block: Vec::with_capacity(BLOCK_SESSIONS),
        encoder: Encoder::default(),
        peers: Peers::new(unfinished)?,
        contents: Summing::default(),
        cubes: Cubes::default(),
        host: None,
    };
    each_row(&source, goes_on, |session| {
        if writing.is_full_before(&session) {
            writing.end_block()?;
            if !goes_on() {
                return Err(SealError::Unwanted);
            }
        }
        writing.block.push(session);
        Ok(())
    })?;
    writing.end_block()?;
    let Written { peers, contents, cubes, .. } = writing;
    let kinds = peers.write(&transaction, goes_on)?;
    cubes.store(&transaction, (1, contents.sessions))?;
    cubes::store_together(&transaction, goes_on)?;
    transaction.execute(
        "INSERT INTO beginnings (min_opened_at_us, min_closed_at_us)
         SELECT min(min_opened_at_us), min(min_closed_at_us) FROM blocks HAVING count(*) > 0",
        [],
    )?;
    extents::store(&transaction)?;
    transaction.commit()?;
    sealed.close().map_err(|(_, error)| error)?;
    Ok(contents.finish(kinds))
}

/// A sealed file while it is written.
struct Written<'a> {
    sealed: &'a Connection,
    block: Vec<StoredSession>,
    encoder: Encoder,
    peers: Peers,
    contents: Summing,
    cubes: Cubes,
    /// Whose sessions came last.
    host: Option<i64>,
}

impl Written<'_> {
    fn is_full_before(&self, session: &StoredSession) -> bool {
        self.block.len() == BLOCK_SESSIONS || self.block.first().is_some_and(|first| first.host_id != session.host_id)
    }

    fn end_block(&mut self) -> Result<(), SealError> {
        let host = self.block.first().map(|first| first.host_id);
        if std::mem::replace(&mut self.host, host) != host {
            self.cubes.end_host();
        }
        for one in &self.block {
            self.contents.add(one);
            self.cubes.add(&Facts::of(one));
        }
        let columns = self.encoder.encode(&self.block);
        if let Some(id) = store(self.sealed, &self.block, columns)? {
            self.peers.add(id, self.encoder.peers(), &self.block)?;
        }
        self.block.clear();
        Ok(())
    }
}

/// Stores a block and gives its number; none is stored of no sessions.
fn store(sealed: &Connection, block: &[StoredSession], columns: &[u8]) -> Result<Option<i64>, SealError> {
    let closed = || block.iter().filter_map(|one| one.closed).map(|(at, _)| at);
    let (Some(first), Some(min_closed), Some(max_closed)) = (block.first(), closed().min(), closed().max()) else {
        return Ok(None);
    };
    let min_opened = block.iter().map(|one| one.opened_at_us).min();
    let row = params![first.host_id, count(block), min_opened, min_closed, max_closed, CODEC];
    sealed
        .prepare_cached(
            "INSERT INTO blocks (host_id, sessions, min_opened_at_us, min_closed_at_us, max_closed_at_us, codec)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(row)?;
    let id = sealed.last_insert_rowid();
    sealed.prepare_cached("INSERT INTO contents (block_id, columns) VALUES (?1, ?2)")?.execute(params![id, columns])?;
    Ok(Some(id))
}

impl From<Damaged> for HistoryError {
    fn from(damaged: Damaged) -> HistoryError {
        coding::wrong("columns", damaged.to_string()).into()
    }
}

/// Reads every session of a sealed file.
fn read_again(unfinished: &Path, goes_on: &GoesOn) -> Result<Contents, SealError> {
    let sealed = Connection::open_with_flags(unfinished, ALONE)?;
    let (mut contents, mut met, mut sums) = (Summing::default(), Telling::default(), Expected::of(&sealed)?);
    let mut sums_by_peer = by_peer::Expected::of(&sealed)?;
    let mut kinds = match kinds::are_told(&sealed)? {
        true => Some((kinds::Telling::default(), Filter::<Kind>::of_file(&sealed)?)),
        false => None,
    };
    let (extents, filter) = (Extents::of(&sealed)?.unwrap_or_default(), Filter::<IpAddr>::of_file(&sealed)?);
    let mut statement = sealed.prepare(
        "SELECT blocks.host_id, blocks.sessions, contents.columns, blocks.codec, blocks.id FROM blocks
         JOIN contents ON contents.block_id = blocks.id ORDER BY blocks.id",
    )?;
    let mut blocks = statement.query([])?;
    while let Some(row) = blocks.next()? {
        let (host_id, codec, block) = (row.get(0)?, row.get(3)?, row.get(4)?);
        let sessions = Block::read(host_id, codec, row.get(2)?)?.all()?;
        if count(&sessions) != row.get::<_, i64>(1)? || extents.head(block) != Some(Head { id: block, host_id, codec })
        {
            return Err(SealError::Different);
        }
        for (at, one) in sessions.iter().enumerate() {
            contents.add(one);
            sums.add(&Facts::of(one));
            met.add(one.peer.ip(), Place { block, at }.number());
            sums_by_peer.add(one.peer.ip(), by_peer::One::of(one));
            if let Some((kinds, filter)) = &mut kinds {
                let kind = Kind::of(one)?;
                kinds.session(kind, hour(one.closed_at_us()));
                if !filter.may_have(&kind) {
                    return Err(SealError::Different);
                }
            }
            if !filter.may_have(&one.peer.ip()) {
                return Err(SealError::Different);
            }
        }
        if !goes_on() {
            return Err(SealError::Unwanted);
        }
    }
    let sums_are_told = sums.are_told(&sealed)? && sums_by_peer.are_told(&sealed, goes_on)?;
    if Telling::of(&sealed, goes_on)? != met || !sums_are_told {
        return Err(SealError::Different);
    }
    if let Some((kinds, _)) = &mut kinds
        && !kinds.add_told(&sealed, goes_on)?
    {
        return Err(SealError::Different);
    }
    Ok(contents.finish(kinds.map(|(telling, _)| telling)))
}
