//! The agent's durable queue: numbered batches, kept until the server has committed them.
//!
//! Batches get their number here and stay until they are acknowledged. When there is no room, the oldest are dropped
//! and a gap is told of in their place. When the disk cannot be written, a little is kept in memory until it can.

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use fleetsock_proto::{
    answer::GapReason,
    private::{self, PrivateFileError},
    stream::{BatchNumber, GapReport, PackedBatch},
    time::Timestamp,
};
use rustix::fs::{FlockOperation, flock};

use self::{
    disk::{Disk, Dropped, Trouble},
    gaps::Gaps,
    stored::{Dropping, Head, Stored},
};
pub use self::{gaps::GAPS_LIMIT, resumption::Resumption};
use crate::packing::{Content, Draft};

mod disk;
mod gaps;
mod recovery;
mod resumption;
mod stored;
#[cfg(test)]
mod tests;

/// What the spool may take of the disk unless it is told otherwise, bytes.
pub const SPOOL_BYTES_LIMIT: u64 = 256 * 1024 * 1024;
/// What is kept in memory while the disk cannot be written, bytes, besides what was appended last.
pub const MEMORY_BYTES_LIMIT: u64 = 4 * 1024 * 1024;
const SPOOL_FILE: &str = "spool.db";
/// Where a damaged spool is put, in place of one that was put there before.
const CORRUPT_FILE: &str = "spool.corrupt";

/// Why there is no spool to use.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// A file or folder is not ours alone.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// Another agent has it.
    #[error("{} is in use by another fleetsock-agent", .0.display())]
    InUse(PathBuf),
    /// A newer agent wrote it.
    #[error(
        "{} was written by a newer fleetsock-agent (schema {found}); it was left alone: use that agent, or remove the file and lose what it holds",
        path.display()
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its schema.
        found: i32,
    },
}

/// A numbering begins with a snapshot, and this was none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the numbering begins with a snapshot")]
pub struct SnapshotFirst;

/// What is to be delivered next.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Observations.
    Batch(PackedBatch),
    /// Observations that will never come.
    Gap(GapReport),
}

/// The queue of one agent.
#[derive(Debug)]
pub struct Spool {
    path: PathBuf,
    limit: u64,
    memory_limit: u64,
    /// Absent while the file cannot be opened.
    disk: Option<Disk>,
    /// Whether the last attempt to write failed; for saying so once.
    in_trouble: bool,
    /// What is not on disk yet; later than everything that is.
    memory: VecDeque<Stored>,
    gaps: Gaps,
    given: BatchNumber,
    acknowledged: BatchNumber,
    /// Whether the numbering may be one that was used before.
    guessed: bool,
    /// The last walk that a batch told of.
    until: Timestamp,
    /// Changes that were dropped, since the start.
    lost: u64,
    // The lock on the folder, held as long as the spool is open.
    _lock: File,
}

impl Spool {
    /// Opens the spool in a folder and begins a new numbering. Trouble with the disk is no error: it may pass.
    pub fn open(folder: &Path, limit: u64, now: Timestamp) -> Result<Spool, SpoolError> {
        private::make_folder(folder)?;
        let mut spool = Spool {
            path: folder.join(SPOOL_FILE),
            limit,
            memory_limit: MEMORY_BYTES_LIMIT,
            disk: None,
            in_trouble: false,
            memory: VecDeque::new(),
            gaps: Gaps::default(),
            given: BatchNumber { epoch: 1, seq: 0 },
            acknowledged: BatchNumber::default(),
            guessed: true,
            until: now,
            lost: 0,
            _lock: lock(folder)?,
        };
        match spool.begin() {
            Ok(()) => {}
            Err(Trouble::Refused(error)) => return Err(error),
            Err(trouble) => {
                spool.fail(trouble);
                // A damaged file was put aside, so that there is room for a new one.
                if let Err(trouble) = spool.begin() {
                    spool.fail(trouble);
                }
            }
        }
        Ok(spool)
    }

    fn begin(&mut self) -> Result<(), Trouble> {
        let mut disk = Disk::open(&self.path)?;
        if let Some(epoch) = disk.epoch()? {
            self.given = BatchNumber { epoch: epoch.max(self.given.epoch) + 1, seq: 0 };
            self.guessed = false;
        }
        self.gaps = Gaps::of(disk.gaps()?.into_iter().chain(self.gaps.iter().copied()).collect());
        disk.store_gaps(&self.gaps)?;
        disk.note_epoch(self.given.epoch)?;
        self.disk = Some(disk);
        Ok(())
    }

    /// The last number that was given out.
    pub fn given(&self) -> BatchNumber {
        self.given
    }

    /// Whether the next batch must be the beginning of a snapshot.
    pub fn wants_snapshot(&self) -> bool {
        self.given.seq == 0
    }

    /// Changes that were dropped for want of room or because they could not be delivered, since the start.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// What the batches on disk count for, bytes.
    pub fn bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, Disk::bytes)
    }

    /// Numbers batches and keeps them. What is appended is kept even when nothing older remains.
    pub fn append(&mut self, content: Content, drafts: Vec<Draft>) -> Result<(), SnapshotFirst> {
        if self.wants_snapshot() && content == Content::Changes {
            return Err(SnapshotFirst);
        }
        let new = drafts.len();
        for Draft { kind, rows, since, until, body } in drafts {
            self.given.seq += 1;
            self.until = until;
            let length = u64::try_from(body.len()).unwrap_or(u64::MAX);
            let head = Head { number: self.given, kind, changes: rows.into(), since, until, length };
            self.memory.push_back(Stored { head, body });
        }
        self.flush();
        self.trim_memory(new);
        Ok(())
    }

    /// Moves what is in memory to the disk, if that works.
    fn flush(&mut self) {
        if self.memory.is_empty() {
            return;
        }
        if self.disk.is_none() {
            self.reopen();
        }
        let Some(disk) = &mut self.disk else { return };
        match disk.append(self.memory.make_contiguous(), self.limit, self.gaps.clone()) {
            Ok((gaps, lost)) => {
                if self.in_trouble {
                    tracing::info!(path = %self.path.display(), "the spool is on disk again");
                    self.in_trouble = false;
                }
                if lost > 0 && self.lost == 0 {
                    tracing::warn!(limit_bytes = self.limit, "the spool is full: the oldest batches are dropped");
                }
                self.gaps = gaps;
                self.lost += lost;
                self.memory.clear();
            }
            Err(trouble) => self.fail(trouble),
        }
    }

    /// Drops the oldest of what is in memory while that is too much, but none of the `newest`.
    fn trim_memory(&mut self, newest: usize) {
        let held: u64 = self.memory.iter().map(|batch| batch.head.weight()).sum();
        let mut dropping = Dropping::new(held.saturating_sub(self.memory_limit));
        while self.memory.len() > newest
            && let Some(oldest) = self.memory.front()
            && dropping.takes(&oldest.head)
        {
            self.gaps.add(&oldest.head, GapReason::SpoolFull);
            self.memory.pop_front();
        }
        self.lost += dropping.changes();
    }

    /// Tries to open the file that could not be opened before. What it holds is of an earlier run and comes too late.
    fn reopen(&mut self) {
        match Disk::open(&self.path).and_then(|disk| self.adopt(disk)) {
            Ok(()) => {}
            Err(trouble) => self.fail(trouble),
        }
    }

    fn adopt(&mut self, mut disk: Disk) -> Result<(), Trouble> {
        let mut gaps = self.gaps.clone();
        for gap in disk.gaps()? {
            gaps.insert(GapReport { seqs: None, ..gap });
        }
        let stored = disk.epoch()?.unwrap_or(0);
        let dropped = disk.drop_below(u64::MAX)?;
        if stored >= self.given.epoch && self.acknowledged.epoch < self.given.epoch {
            self.renumber_memory(stored + 1);
            self.guessed = false;
        }
        disk.note_epoch(self.given.epoch)?;
        self.disk = Some(disk);
        self.gaps = gaps;
        self.note_lost(dropped);
        Ok(())
    }

    fn renumber_memory(&mut self, epoch: u64) {
        let from = self.given.epoch;
        for batch in self.memory.iter_mut().filter(|batch| batch.head.number.epoch == from) {
            batch.head.number.epoch = epoch;
        }
        self.gaps.renumber(from, epoch);
        self.given.epoch = epoch;
    }

    fn note_lost(&mut self, dropped: Option<Dropped>) {
        let Some(Dropped { since, until, changes }) = dropped else { return };
        self.lost += changes;
        let epoch = self.given.epoch;
        let since = since.min(until);
        self.gaps.insert(GapReport { epoch, seqs: None, since, until, reason: GapReason::Delivery });
    }

    /// Says once what is wrong with the disk, and puts a damaged file aside.
    fn fail(&mut self, trouble: Trouble) {
        let path = self.path.display();
        match trouble {
            Trouble::Corrupt(problem) => {
                self.disk = None;
                let aside = self.path.with_file_name(CORRUPT_FILE);
                tracing::error!(%path, problem, aside = %aside.display(), "the spool is damaged: put aside, what it held is lost");
                self.put_aside(&aside);
            }
            Trouble::Unavailable(_) | Trouble::Refused(_) => {
                if !self.in_trouble {
                    let limit_bytes = self.memory_limit;
                    tracing::warn!(%path, problem = %trouble, limit_bytes, "the spool cannot be written: kept in memory");
                }
                self.in_trouble = true;
            }
        }
    }

    fn put_aside(&mut self, aside: &Path) {
        // When it held its last batch is all that can be told of a file that cannot be read.
        let modified = fs::metadata(&self.path).and_then(|found| found.modified()).map(Timestamp::from);
        let log = self.path.with_extension("db-wal");
        let moved = fs::rename(&self.path, aside).and_then(|()| match fs::remove_file(&log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        });
        if let Err(error) = moved {
            tracing::error!(path = %self.path.display(), %error, "cannot put the damaged spool aside");
        }
        let until = self.until;
        let changes = self.memory.iter().map(|batch| batch.head.changes).sum();
        self.memory.clear();
        self.begin_epoch(self.given.epoch + u64::from(self.given.seq > 0));
        self.note_lost(Some(Dropped { since: modified.unwrap_or(until), until, changes }));
    }

    fn begin_epoch(&mut self, epoch: u64) {
        self.given = BatchNumber { epoch, seq: 0 };
        if let Some(disk) = &mut self.disk
            && let Err(trouble) = disk.note_epoch(epoch)
        {
            self.fail(trouble);
        }
    }

    /// Asks the disk; its trouble counts as no answer.
    fn ask<T>(&mut self, question: impl FnOnce(&mut Disk) -> Result<T, Trouble>) -> Option<T> {
        match question(self.disk.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(trouble) => {
                self.fail(trouble);
                None
            }
        }
    }

    fn head_after(&mut self, position: BatchNumber) -> Option<Head> {
        let on_disk = self.ask(|disk| disk.head_after(position)).flatten();
        let in_memory = || self.memory.iter().map(|batch| batch.head).find(|head| head.number > position);
        on_disk.or_else(in_memory)
    }

    /// What comes after a number; gaps without a number come before everything.
    pub fn next_after(&mut self, position: BatchNumber) -> Option<Item> {
        let head = self.head_after(position);
        if let Some(gap) = self.gaps.after(position)
            && head.is_none_or(|head| first_of(gap) < head.number)
        {
            return Some(Item::Gap(*gap));
        }
        let Head { number, since, .. } = head?;
        let body = match self.memory.iter().find(|batch| batch.head.number == number) {
            Some(batch) => batch.body.clone(),
            None => self.ask(|disk| disk.body(number))?,
        };
        // The server looks into it; what it refuses again and again is given up.
        Some(Item::Batch(PackedBatch::new(number, since, body)))
    }

    /// Forgets what the server has committed.
    pub fn acknowledge(&mut self, upto: BatchNumber) {
        self.acknowledged = self.acknowledged.max(upto);
        self.gaps.acknowledge(upto);
        while self.memory.front().is_some_and(|batch| batch.head.number <= upto) {
            self.memory.pop_front();
        }
        let gaps = self.gaps.clone();
        self.ask(|disk| disk.acknowledge(upto, &gaps));
    }

    /// Forgets a gap without a number that the server was told of.
    pub fn forget(&mut self, gap: &GapReport) {
        self.gaps.forget(gap);
        let gaps = self.gaps.clone();
        self.ask(|disk| disk.store_gaps(&gaps));
    }
}

/// The first number of a gap; before all others when it has none.
fn first_of(gap: &GapReport) -> BatchNumber {
    gap.seqs.map_or(BatchNumber::default(), |(seq, _)| BatchNumber { epoch: gap.epoch, seq })
}

/// Locks the folder until the process ends, however it ends.
fn lock(folder: &Path) -> Result<File, SpoolError> {
    let lock = File::open(folder).map_err(|source| PrivateFileError::Io { path: folder.to_owned(), source })?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(lock),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(SpoolError::InUse(folder.to_owned())),
        Err(error) => Err(PrivateFileError::Io { path: folder.to_owned(), source: error.into() }.into()),
    }
}
