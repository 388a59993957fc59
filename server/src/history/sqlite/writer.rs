//! The one thread that writes. It takes what is queued, stores it in one transaction, and answers when it is durable.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{
    answer::{Cover, GapReason},
    batch::Batch,
    host::{BootId, HostId},
    stream::{BatchNumber, GapReport},
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    addresses::Addresses,
    programs::{ProgramIds, Programs},
    sessions::Sessions,
};
use super::{
    Options,
    ballast::{Ballast, Room},
    coding,
    database::{Database, is_fatal},
    roster::{Roster, store_hello},
    work::{Reply, Work, answer},
};
use crate::history::{
    Applied, BETWEEN_EPOCHS, Contact, HistoryError, Skew,
    cursor::{Admission, Cursor, Step},
};
use crate::metrics::HistoryMeters;

pub(super) mod addresses;
mod changes;
mod listeners;
mod programs;
mod sessions;
mod zones;

/// How often it is looked whether a file is complete and what is too old.
const TIDY_PAUSE: Duration = Duration::from_secs(1);
/// Rows of one transaction, about: what is queued beyond them waits for the next.
const GROUP_ROWS: usize = 10_000;

/// The writer.
pub(super) struct Writer {
    database: Database,
    roster: Arc<Roster>,
    cursors: HashMap<i64, Cursor>,
    programs: Programs,
    addresses: Addresses,
    clock: fn() -> Timestamp,
    /// When it was last looked what is too old.
    swept_at: Option<Timestamp>,
    failure: CancellationToken,
    ballast: Ballast,
    meters: HistoryMeters,
}

/// A batch that was let in, and how it is stored.
pub(super) struct Admitted {
    host: i64,
    step: Step,
    skew: Skew,
    batch: Batch,
}

impl Admitted {
    /// A moment of the host's clock, by the server's.
    fn corrected(&self, at: Timestamp) -> Timestamp {
        self.skew.corrected(at)
    }
}

/// Batches that become durable together, and who waits for that.
#[derive(Default)]
struct Group {
    admitted: Vec<Admitted>,
    replies: Vec<(Reply<Applied>, Applied)>,
    told: Vec<(HostId, Timestamp)>,
    rows: usize,
}

impl Writer {
    pub(super) fn new(database: Database, roster: Arc<Roster>, ballast: Ballast, options: Options) -> Writer {
        let Options { clock, failure, meters, .. } = options;
        let (cursors, programs, addresses) = (HashMap::new(), Programs::default(), Addresses::default());
        Writer { database, roster, cursors, programs, addresses, clock, swept_at: None, failure, ballast, meters }
    }

    /// Works until nobody can bring more work.
    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Work>) -> Result<(), HistoryError> {
        while let Some(first) = orders.blocking_recv() {
            let mut next = Some(first);
            while let Some(work) = next {
                next = self.handle(work, &mut orders)?;
            }
            self.tidy();
        }
        self.write_presence();
        Ok(())
    }

    /// Does one piece of work, and for a batch as many of those that follow as fit; gives back what did not.
    fn handle(&mut self, work: Work, orders: &mut mpsc::Receiver<Work>) -> Result<Option<Work>, HistoryError> {
        let room = self.look_for_room();
        match work {
            Work::Batch { reply, .. } if room == Room::Low => answer(reply, Err(HistoryError::Full)),
            Work::Batch { host, batch, reply } => return self.group(host, *batch, reply, orders),
            Work::Gap { host, gap, reply } => answer(reply, self.store_gap(host, gap)),
            Work::LastBatch { host, reply } => {
                let cursor = self.roster.get(host).and_then(|entry| self.cursor(entry.id));
                answer(reply, cursor.map(|cursor| cursor.number));
            }
            Work::Hello { host, contact, reply } => answer(reply, self.hello(host, *contact)),
            Work::Presence => self.write_presence(),
            Work::Main(transaction) => transaction(&mut self.database.main, &self.roster),
        }
        Ok(None)
    }

    fn look_for_room(&mut self) -> Room {
        let room = self.ballast.room(Instant::now());
        match room {
            Room::Low => self.meters.found_full(),
            // Without a ballast it is a full disk until something is stored.
            Room::Enough if self.ballast.watches() => self.meters.found_room(),
            Room::Enough => {}
        }
        room
    }

    fn group(
        &mut self,
        host: HostId,
        batch: Batch,
        reply: Reply<Applied>,
        orders: &mut mpsc::Receiver<Work>,
    ) -> Result<Option<Work>, HistoryError> {
        let mut group = Group::default();
        let mut tentative = HashMap::new();
        self.admit(host, batch, reply, &mut group, &mut tentative);
        let mut left = None;
        while group.rows < GROUP_ROWS && left.is_none() {
            match orders.try_recv() {
                Ok(Work::Batch { host, batch, reply }) => {
                    self.admit(host, *batch, reply, &mut group, &mut tentative);
                }
                Ok(other) => left = Some(other),
                Err(_) => break,
            }
        }
        let began = Instant::now();
        let stored = self.store(&group.admitted);
        match stored {
            Ok(()) => {
                if !group.admitted.is_empty() {
                    self.meters.stored(group.admitted.len(), group.rows, began.elapsed());
                }
                self.cursors.extend(tentative);
                self.roster.note_told(group.told);
                for (reply, applied) in group.replies {
                    answer(reply, Ok(applied));
                }
                Ok(left)
            }
            Err(error) => {
                let fatal = is_fatal(&error);
                self.meters.failed();
                tracing::error!(%error, batches = group.admitted.len(), "nothing was stored");
                // What was cached may name rows that were rolled back.
                self.programs = Programs::default();
                self.addresses = Addresses::default();
                let why = if fatal { HistoryError::Closed } else { HistoryError::from(error) };
                if matches!(why, HistoryError::Full) {
                    self.meters.found_full();
                    self.ballast.found_full();
                }
                for (reply, _) in group.replies {
                    answer(reply, Err(why.clone()));
                }
                if fatal {
                    self.failure.cancel();
                    return Err(HistoryError::Engine("the disk failed to keep what it was given".to_owned()));
                }
                Ok(left)
            }
        }
    }

    /// Decides what is done with a batch, as if everything before it in the group were stored.
    fn admit(
        &mut self,
        host: HostId,
        batch: Batch,
        reply: Reply<Applied>,
        group: &mut Group,
        tentative: &mut HashMap<i64, Cursor>,
    ) {
        let found = self.roster.get(host).and_then(|entry| {
            let stored = match tentative.get(&entry.id) {
                Some(cursor) => cursor.clone(),
                None => self.cursor(entry.id)?,
            };
            Ok((stored.observed(entry.observed_until), entry))
        });
        let (cursor, entry) = match found {
            Ok(found) => found,
            Err(error) => return answer(reply, Err(error)),
        };
        match cursor.admit(&batch, entry.skew) {
            Admission::Duplicate => group.replies.push((reply, Applied::Committed)),
            Admission::Hole(expected) => group.replies.push((reply, Applied::Hole { expected })),
            Admission::Next(step) => {
                tentative.insert(entry.id, step.after.clone());
                group.rows += batch.changes.len() + 1;
                group.told.push((host, step.after.observed_until));
                group.admitted.push(Admitted { host: entry.id, step, skew: entry.skew, batch });
                group.replies.push((reply, Applied::Committed));
            }
        }
    }

    /// Stores a group: first what `main.db` keeps, then what the file of the day keeps, with the cursors that count.
    fn store(&mut self, admitted: &[Admitted]) -> Result<(), rusqlite::Error> {
        if admitted.is_empty() {
            return Ok(());
        }
        let Database { main, day, .. } = &mut self.database;
        self.programs.trim();
        let addresses = self.addresses.news(main, admitted)?;
        let known: Option<Vec<ProgramIds>> = admitted.iter().map(|one| self.programs.ids(&one.batch)).collect();
        let ids = match known {
            Some(ids) if addresses.is_empty() && !admitted.iter().any(listeners::concern) => ids,
            _ => {
                let transaction = main.transaction()?;
                addresses::store(&transaction, &addresses)?;
                let mut ids = Vec::with_capacity(admitted.len());
                for one in admitted {
                    ids.push(self.programs.learn(&transaction, one.host, &one.batch)?);
                    if !listeners::concern(one) || !listeners::is_next(&transaction, one)? {
                        continue;
                    }
                    listeners::store(&transaction, one, &ids[ids.len() - 1])?;
                    if let Some(range) = one.step.gap {
                        store_range(&transaction, one.host, range, BETWEEN_EPOCHS.number(), 0)?;
                    }
                    if one.step.first {
                        store_first(&transaction, one.host, one.step.after.observed_until)?;
                    }
                }
                transaction.commit()?;
                for _ in admitted.iter().filter(|one| one.step.gap.is_some()) {
                    self.meters.gap(BETWEEN_EPOCHS, 0);
                }
                for one in admitted.iter().filter(|one| one.step.first) {
                    self.roster.note_first(one.host, one.step.after.observed_until);
                }
                ids
            }
        };
        let transaction = day.transaction()?;
        let before = zones::last_id(&transaction)?;
        {
            let mut table = Sessions::of(&transaction)?;
            for (one, ids) in admitted.iter().zip(&ids) {
                table.store(one, ids)?;
                store_cursor(&transaction, one.host, &one.step.after)?;
            }
        }
        zones::note(&transaction, before)?;
        transaction.commit()
    }

    /// How far the history of a host goes.
    fn cursor(&mut self, host: i64) -> Result<Cursor, HistoryError> {
        if let Some(cursor) = self.cursors.get(&host) {
            return Ok(cursor.clone());
        }
        let cursor = load_cursor(&self.database.day, host)?.unwrap_or_default();
        self.cursors.insert(host, cursor.clone());
        Ok(cursor)
    }

    fn store_gap(&mut self, host: HostId, gap: GapReport) -> Result<(), HistoryError> {
        let entry = self.roster.get(host)?;
        let cursor = self.cursor(entry.id)?;
        let range = (entry.skew.corrected(gap.since), entry.skew.corrected(gap.until));
        let lost = gap.seqs.map_or(0, |(first, last)| last - first + 1);
        let transaction = self.database.main.transaction()?;
        store_range(&transaction, entry.id, range, gap.reason.number(), lost)?;
        transaction.commit()?;
        self.meters.gap(gap.reason, lost);
        if let Some(after) = gap.seqs.and_then(|seqs| cursor.over(gap.epoch, seqs)) {
            let transaction = self.database.day.transaction()?;
            store_cursor(&transaction, entry.id, &after)?;
            transaction.commit()?;
            self.cursors.insert(entry.id, after);
        }
        Ok(())
    }

    fn hello(&mut self, host: HostId, contact: Contact) -> Result<(), HistoryError> {
        let entry = self.roster.get(host)?;
        let transaction = self.database.main.transaction()?;
        store_hello(&transaction, entry.id, &contact)?;
        addresses::store_said(&transaction, entry.id, &contact.facts, contact.at)?;
        transaction.commit()?;
        self.roster.note_hello(host, contact);
        Ok(())
    }

    /// Begins the next file of sessions when it is time, and drops what is too old. What fails is tried again.
    fn tidy(&mut self) {
        let now = (self.clock)();
        if self.swept_at.is_some_and(|at| now.since(at) < TIDY_PAUSE && at <= now) {
            return;
        }
        self.swept_at = Some(now);
        if let Err(error) = self.database.turn_over(now) {
            tracing::error!(%error, "the next file of sessions cannot be begun; the one before goes on");
        }
        if let Err(error) = self.database.drop_old(now) {
            tracing::error!(%error, "what is older than what is kept cannot be dropped");
        }
    }

    fn write_presence(&mut self) {
        if let Err(error) = self.roster.write_presence(&mut self.database.main) {
            // They are signs of life: the next ones say the same and more.
            tracing::warn!(%error, "signs of life were not written down");
        }
    }
}

fn load_cursor(day: &Connection, host: i64) -> Result<Option<Cursor>, rusqlite::Error> {
    day.prepare_cached("SELECT * FROM cursors WHERE host_id = ?1")?
        .query_row([host], |row| {
            Ok(Cursor {
                number: BatchNumber { epoch: coding::unsigned(row, "epoch")?, seq: coding::unsigned(row, "seq")? },
                boot_id: Some(BootId::from_array(row.get("boot_id")?)).filter(|boot| boot.as_bytes() != &[0; 16]),
                observed_until: coding::time(row, "observed_until_us")?,
                snapshot: row.get("snapshot")?,
                unfinished: row.get("snapshot_unfinished")?,
                observed_before: coding::time(row, "observed_before_us")?,
            })
        })
        .optional()
}

fn store_cursor(transaction: &Transaction<'_>, host: i64, cursor: &Cursor) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached(
            "REPLACE INTO cursors (host_id, epoch, seq, boot_id, observed_until_us, snapshot, snapshot_unfinished,
                 observed_before_us)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            host,
            coding::signed(cursor.number.epoch),
            coding::signed(cursor.number.seq),
            cursor.boot_id.map_or([0; 16], |boot| *boot.as_bytes()),
            cursor.observed_until.as_micros(),
            cursor.snapshot,
            cursor.unfinished,
            cursor.observed_before.as_micros(),
        ])
        .map(drop)
}

fn store_first(transaction: &Transaction<'_>, host: i64, at: Timestamp) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("UPDATE hosts SET observed_since_us = ?2 WHERE id = ?1 AND observed_since_us IS NULL")?
        .execute(params![host, at.as_micros()])
        .map(drop)
}

/// Stores a gap. What has no batches and touches a gap for the same reason continues it: a kernel that loses something at
/// every walk makes one gap, not one for each second.
fn store_range(
    transaction: &Transaction<'_>,
    host: i64,
    (since, until): (Timestamp, Timestamp),
    reason: i32,
    batches_lost: u64,
) -> Result<(), rusqlite::Error> {
    let is_lossy = GapReason::from_number(reason).is_some_and(|reason| reason.cover() == Cover::Lossy);
    if is_lossy && batches_lost == 0 {
        let continued = transaction
            .prepare_cached(
                "UPDATE OR REPLACE gaps SET since_us = min(since_us, ?2), until_us = max(until_us, ?3) WHERE id =
                     (SELECT id FROM gaps WHERE host_id = ?1 AND since_us <= ?3 AND until_us >= ?2 AND reason = ?4
                          AND batches_lost = 0 LIMIT 1)",
            )?
            .execute(params![host, since.as_micros(), until.as_micros(), reason])?;
        if continued > 0 {
            return Ok(());
        }
    }
    transaction
        .prepare_cached(
            "INSERT INTO gaps (host_id, since_us, until_us, reason, batches_lost) VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO NOTHING",
        )?
        .execute(params![host, since.as_micros(), until.as_micros(), reason, coding::signed(batches_lost)])
        .map(drop)
}
