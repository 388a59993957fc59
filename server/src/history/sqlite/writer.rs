//! The one thread that writes. It takes what is queued, stores it in one transaction, and answers when it is durable.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_proto::{answer::GapReason, batch::Batch, host::HostId, stream::GapReport, time::Timestamp};
use rusqlite::{Transaction, params};
use tokio::sync::mpsc::{self, error::TryRecvError};
use tokio_util::sync::CancellationToken;

use self::{
    addresses::Addresses,
    cursors::{load_cursor, store_cursor},
    gaps::{Lost, store_range},
    indexing::Unindexed,
    naming::Naming,
    noting::Noting,
    programs::{ProgramIds, Programs},
    proving::{Checks, Finding, Proving},
    sessions::Sessions,
};
use super::{
    Options,
    ballast::{Ballast, Room},
    courtesy::Courtesy,
    database::{Database, is_fatal},
    roster::{Roster, store_hello},
    work::{Reply, Work, answer},
};
use crate::history::{
    Applied, BETWEEN_EPOCHS, Contact, HistoryError, Skew,
    cursor::{Admission, Cursor, Step},
};
use crate::metrics::{Equality, HistoryMeters};

pub(super) mod addresses;
mod changes;
mod cursors;
mod gaps;
mod indexing;
mod listeners;
mod naming;
mod noting;
mod programs;
mod proving;
mod runs;
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
    naming: Naming,
    proving: Proving,
    unindexed: Unindexed,
    courtesy: Courtesy,
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
    /// Where its answer is among those of its group.
    reply: usize,
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
        Writer {
            courtesy: Courtesy::new(database.files().asked().clone()),
            database,
            roster,
            cursors: HashMap::new(),
            programs: Programs::default(),
            addresses: Addresses::default(),
            naming: Naming::default(),
            proving: Proving::default(),
            unindexed: Unindexed::default(),
            clock,
            swept_at: None,
            failure,
            ballast,
            meters,
        }
    }

    /// Works until nobody can bring more work.
    pub(super) fn run(mut self, mut orders: mpsc::Receiver<Work>) -> Result<(), HistoryError> {
        if let Err(error) = self.recall() {
            self.unindexed = Unindexed::default();
            // Until then a question about a peer looks at all of these rows.
            tracing::warn!(%error, "the last rows will be read when the next ones are stored");
        }
        while let Some(first) = self.next_work(&mut orders) {
            let mut next = Some(first);
            while let Some(work) = next {
                next = self.handle(work, &mut orders)?;
                self.turn();
            }
            self.tidy();
        }
        self.write_presence();
        // The thread that does so otherwise has ended before.
        self.database.files().leaving().close_connections();
        Ok(())
    }

    /// Reads the last rows, of which a writer knows who the peers are.
    fn recall(&mut self) -> Result<(), rusqlite::Error> {
        let transaction = self.database.day.transaction()?;
        Noting::resume(&transaction, &mut self.unindexed)?;
        transaction.commit()?;
        self.unindexed.tell(&self.database.files().catalogue().latest);
        Ok(())
    }

    /// Waits for work; as long as the next file takes over what is open, there is some.
    fn next_work(&mut self, orders: &mut mpsc::Receiver<Work>) -> Option<Work> {
        loop {
            match orders.try_recv() {
                Err(TryRecvError::Empty) if self.database.is_turning() => self.turn(),
                Err(TryRecvError::Empty) => return orders.blocking_recv(),
                received => return received.ok(),
            }
        }
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
            Ok(checks) => {
                if !group.admitted.is_empty() {
                    self.meters.stored(group.admitted.len(), group.rows, began.elapsed());
                }
                self.cursors.extend(tentative);
                self.conclude(&mut group, checks);
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
                self.naming = Naming::default();
                self.unindexed = Unindexed::default();
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
                group.rows += batch.changes.len() + batch.namespaces.len() + 1;
                group.told.push((host, step.after.observed_until));
                let place = group.replies.len();
                group.admitted.push(Admitted { host: entry.id, step, skew: entry.skew, batch, reply: place });
                group.replies.push((reply, Applied::Committed));
            }
        }
    }

    /// Writes down what the digests of a group showed that is stored.
    fn conclude(&mut self, group: &mut Group, checks: Checks) {
        for Finding { place, difference, took } in self.proving.conclude(&group.admitted, checks, Instant::now()) {
            let (one, (host, until)) = (&group.admitted[place], group.told[place]);
            let Some((difference, wish)) = difference else {
                self.meters.proved(Equality::Equal, took);
                self.roster.note_proved(host, until);
                continue;
            };
            self.meters.proved(Equality::Different, took);
            group.replies[one.reply].1 = Applied::Differs { difference, wish };
            if let Err(error) = self.store_difference(host, until) {
                // The next digest that differs tells of the same range and more.
                tracing::error!(%host, %error, "that the tables differed was not written down");
            }
        }
    }

    /// Stores that something is missing since the tables of a host were last the same.
    fn store_difference(&mut self, host: HostId, until: Timestamp) -> Result<(), HistoryError> {
        let entry = self.roster.find(host)?;
        let since = entry.proved_at.or(entry.observed_since).unwrap_or(until).min(until);
        let transaction = self.database.main.transaction()?;
        store_range(&transaction, entry.id, (since, until), GapReason::TableDiffered.number(), Lost::Once(0))?;
        transaction.commit()?;
        self.meters.gap(GapReason::TableDiffered, 0);
        Ok(())
    }

    /// Stores a group: first what `main.db` keeps, then what the file of the day keeps, with the cursors that count. Gives
    /// what is open as of the batches whose digests are held against it.
    fn store(&mut self, admitted: &[Admitted]) -> Result<Checks, rusqlite::Error> {
        if admitted.is_empty() {
            return Ok(Checks::new());
        }
        let mut checks = self.proving.begin(admitted, Instant::now());
        let file = self.database.files().catalogue().hot.id;
        let Database { main, day, .. } = &mut self.database;
        self.programs.trim();
        let addresses = self.addresses.news(main, admitted)?;
        let names = self.naming.news(main, admitted)?;
        let known: Option<Vec<ProgramIds>> = admitted.iter().map(|one| self.programs.ids(&one.batch, file)).collect();
        let ids = match known {
            Some(ids)
                if addresses.is_empty()
                    && names.is_empty()
                    && checks.iter().all(Option::is_none)
                    && !admitted.iter().any(listeners::concern) =>
            {
                ids
            }
            _ => {
                let transaction = main.transaction()?;
                addresses::store(&transaction, &addresses)?;
                naming::store(&transaction, &names)?;
                let mut ids = Vec::with_capacity(admitted.len());
                for (one, check) in admitted.iter().zip(&mut checks) {
                    ids.push(self.programs.learn(&transaction, (one.host, file), &one.batch)?);
                    if check.is_none() && !listeners::concern(one) {
                        continue;
                    }
                    if !listeners::is_next(&transaction, one)? {
                        // The listeners may be those as of a later batch already.
                        *check = None;
                        continue;
                    }
                    listeners::store(&transaction, one, &ids[ids.len() - 1])?;
                    if let Some(check) = check {
                        check.read_listeners(&transaction, one.host)?;
                    }
                    if let Some(range) = one.step.gap {
                        store_range(&transaction, one.host, range, BETWEEN_EPOCHS.number(), Lost::Once(0))?;
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
        {
            let mut table = Sessions::of(&transaction, &mut self.unindexed, &mut self.courtesy)?;
            for ((one, ids), check) in admitted.iter().zip(&ids).zip(&mut checks) {
                table.store(one, ids)?;
                store_cursor(&transaction, one.host, &one.step.after)?;
                if let Some(check) = check {
                    check.read_sessions(&transaction, one.host)?;
                }
            }
            table.finish()?;
        }
        self.courtesy.let_pass();
        transaction.commit()?;
        self.unindexed.tell(&self.database.files().catalogue().latest);
        self.database.note_changed(admitted.iter().map(|one| one.host));
        Ok(checks)
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
        let after = gap.seqs.and_then(|seqs| cursor.over(gap.epoch, seqs));
        let stored = cursor.number;
        let known = cursor.observed(entry.observed_until);
        let before = after.as_ref().and_then(|_| known.gap_before(gap.epoch, range.0));
        let transaction = self.database.main.transaction()?;
        if let Some(before) = before {
            store_range(&transaction, entry.id, before, BETWEEN_EPOCHS.number(), Lost::Once(0))?;
        }
        let lost = match (&after, gap.seqs) {
            (Some(after), _) => Lost::More(listeners::skip(&transaction, entry.id, stored, after.number)?),
            // What lies before them may still come, and then they are told again.
            (None, Some((first, last))) => Lost::Once(last - first + 1),
            (None, None) => Lost::Once(0),
        };
        store_range(&transaction, entry.id, range, gap.reason.number(), lost)?;
        transaction.commit()?;
        if before.is_some() {
            self.meters.gap(BETWEEN_EPOCHS, 0);
        }
        self.meters.gap(gap.reason, lost.batches());
        if let Some(after) = after {
            self.proving.lost_batches(entry.id);
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
        if let Err(error) = self.database.begin_to_turn(now) {
            tracing::error!(%error, "the next file of sessions cannot be begun; the one before goes on");
        }
        self.turn();
        if let Err(error) = self.database.drop_old(now) {
            tracing::error!(%error, "what is older than what is kept cannot be dropped");
        }
    }

    /// The next file takes over some of what is open. What fails begins anew.
    fn turn(&mut self) {
        let Writer { database, unindexed, .. } = self;
        if let Err(error) = database.turn((self.clock)(), |before| {
            Noting::resume(before, unindexed)?;
            unindexed.complete(before)
        }) {
            *unindexed = Unindexed::default();
            tracing::error!(%error, "the next file of sessions is given up; the one before goes on");
        }
    }

    fn write_presence(&mut self) {
        if let Err(error) = self.roster.write_presence(&mut self.database.main) {
            // They are signs of life: the next ones say the same and more.
            tracing::warn!(%error, "signs of life were not written down");
        }
    }
}

fn store_first(transaction: &Transaction<'_>, host: i64, at: Timestamp) -> Result<(), rusqlite::Error> {
    transaction
        .prepare_cached("UPDATE hosts SET observed_since_us = ?2 WHERE id = ?1 AND observed_since_us IS NULL")?
        .execute(params![host, at.as_micros()])
        .map(drop)
}
