//! Puts what a walk found into the spool: what changed, a snapshot when one is due, and now and then a digest of what is open
//! after it.

use std::time::Instant;

use fleetsock_proto::{
    batch::{BATCH_NAMESPACES_LIMIT, Change, Op, Role, Socket},
    socket::Known,
};

use super::{names::Names, schedule::Schedule};
use crate::{
    ledger::{Ends, Ledger},
    losses::Loss,
    namespaces::Namespaces,
    outbox::Outbox,
    packing::{Content, Packed, Window, pack},
    table::{Comparison, Table},
};

/// Whether a walk is followed by another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It is.
    Next,
    /// The observer ends with it.
    Last,
}

impl From<bool> for Turn {
    fn from(stop: bool) -> Turn {
        if stop { Turn::Last } else { Turn::Next }
    }
}

/// Tells the changes of a walk.
#[derive(Debug)]
pub struct Teller<'a> {
    /// Where they go.
    pub outbox: &'a Outbox,
    /// When a snapshot or a digest is due.
    pub schedule: &'a mut Schedule,
    /// What went over connections, where that is told.
    pub ledger: Option<&'a mut Ledger>,
    /// What is open after the walk.
    pub table: &'a Table,
    /// What network namespaces are called, where others are told of.
    pub naming: Naming<'a>,
}

/// Tells what network namespaces are called.
#[derive(Debug)]
pub struct Naming<'a> {
    /// What was told.
    pub names: &'a mut Names,
    /// What there is.
    pub namespaces: Option<&'a Namespaces>,
}

impl Naming<'_> {
    /// Lets batches say what was not said yet, as far as there is room in them.
    fn name(&mut self, packed: &mut Packed, now: Instant) {
        let room = packed.drafts.len().saturating_mul(BATCH_NAMESPACES_LIMIT);
        if let Some(namespaces) = self.namespaces.filter(|_| room > 0) {
            packed.name(&self.names.news(namespaces.iter(), room, now));
        }
    }
}

/// Tells the changes of a walk that was made now.
pub fn keep(teller: Teller<'_>, window: Window, comparison: Comparison, now: Instant, turn: Turn) {
    let Teller { outbox, schedule, mut ledger, table, mut naming } = teller;
    let mut ends = Ends { changes: comparison.changes, unseen: comparison.unseen };
    // What a snapshot does not name is closed for the server, so that its end must be told before.
    let flushes = turn == Turn::Last || schedule.snapshot_due(now) || outbox.with(|spool| spool.wants_snapshot());
    if let Some(ledger) = &mut ledger {
        ends = ledger.settle(ends);
        if flushes {
            ends.extend(ledger.flush());
        }
    }
    let mut changes = pack(Content::Changes, window, ends.changes);
    outbox.losses().add(Loss::Detail, changes.details_lost);
    // A snapshot has a digest of its own.
    if !flushes && schedule.digest_due(now) {
        let held = ledger.iter().flat_map(|ledger| ledger.unsettled());
        changes.prove(window, &table.open().chain(held).collect());
        schedule.wrote_digest(now);
    }
    naming.name(&mut changes, now);
    let mut appended = !changes.drafts.is_empty();
    let begins = outbox.with(|spool| {
        // Before the snapshot of a numbering nothing else can be told; the snapshot contains it.
        spool.append(Content::Changes, changes.drafts).is_err() || spool.wants_snapshot()
    });
    let snapshot = begins || schedule.snapshot_due(now);
    if snapshot {
        let before = if begins { open_before(&ends.unseen, table) } else { Vec::new() };
        let present = before.iter().map(|socket| Change { op: Op::Present, socket: (*socket).clone() });
        let mut snapshot = pack(Content::Snapshot, window, table.snapshot().chain(present));
        naming.names.forget();
        naming.name(&mut snapshot, now);
        snapshot.prove(window, &table.open().chain(before).collect());
        let appended = outbox.with(|spool| spool.append(Content::Snapshot, snapshot.drafts));
        if let Err(error) = appended {
            tracing::error!(%error, "a snapshot was not taken for one");
        }
        schedule.wrote_snapshot(now);
        schedule.wrote_digest(now);
        // The numbering may have begun a moment ago: then these are as late as all other changes of this walk.
        ends.unseen.extend(ledger.as_mut().map(|ledger| ledger.flush().unseen).unwrap_or_default());
    }
    // After the snapshot, in which none of them is but those that the server may have as open.
    let mut unseen = pack(Content::Changes, window, ends.unseen);
    naming.name(&mut unseen, now);
    appended |= !unseen.drafts.is_empty();
    outbox.losses().add(Loss::Detail, unseen.details_lost);
    if let Err(error) = outbox.with(|spool| spool.append(Content::Changes, unseen.drafts)) {
        tracing::error!(%error, "short connections were not taken");
    }
    if appended || snapshot {
        outbox.notify();
    }
}

/// What was open before the agent began and ended before its first walk. The server may know it from the agent before: what the
/// first snapshot does not name is closed there as lost, and its end would then be that of another session.
fn open_before<'a>(unseen: &'a [Change], table: &Table) -> Vec<&'a Socket> {
    let sockets = unseen.iter().map(|change| &change.socket);
    let was_open = |socket: &&Socket| {
        let is_session = matches!(socket.role, Role::Session { .. });
        is_session && socket.opened_known == Known::FirstSeen && !table.holds(socket.key)
    };
    sockets.filter(was_open).collect()
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use fleetsock_proto::{
        batch::BatchKind,
        host::BootId,
        socket::{Direction, Family, OwnerKnown, SocketKey, SocketState},
        stream::BatchNumber,
        time::Timestamp,
    };

    use super::*;
    use crate::{
        capture::{Coverage, SocketRow, SurveyReport, WalkReport, Walked},
        lives::{Heard, Life, Purpose},
        owners::{OwnerScan, Wanted},
        spool::{Item, SPOOL_BYTES_LIMIT, Spool},
        table::{Told, Walk},
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    /// A connection to port 443 here that ended, and began before anybody looked unless its opening is told.
    fn ended(cookie: u64, opened_at: Option<Timestamp>) -> Told {
        Told {
            key: SocketKey { netns: 1, cookie },
            life: Life {
                family: Family::Ipv4,
                local: "10.0.0.1:443".parse().unwrap(),
                peer: "10.0.0.9:4000".parse().unwrap(),
                purpose: Purpose::Session(None),
                state: SocketState::Established,
                opened_ns: None,
                opener: None,
                closer: None,
                closed_ns: None,
            },
            opened_at,
            closed_at: at(10),
            closed_known: Known::Event,
            owners: Vec::new(),
            owner_known: OwnerKnown::Unknown,
            heard: Heard::Told,
        }
    }

    #[test]
    fn what_was_open_before_the_agent_and_ended_before_its_first_walk_is_in_its_first_snapshot_and_closed_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let outbox = Outbox::new(Spool::open(&folder.path().join("state"), SPOOL_BYTES_LIMIT, at(0)).unwrap());
        let mut table = Table::default();
        table.end(ended(7, None));
        table.end(ended(8, Some(at(9))));
        let row = SocketRow {
            key: SocketKey { netns: 1, cookie: 5 },
            protocol: fleetsock_proto::socket::Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::Listen,
            local: "0.0.0.0:443".parse().unwrap(),
            peer: None,
            inode: 0,
            uid: 0,
            cgroup_id: 0,
        };
        let walked = Walked {
            coverage: Coverage::Everything,
            report: WalkReport::default(),
            portless: Ok(()),
            others: Ok(()),
            unix: Ok(()),
        };
        let survey = SurveyReport { walked: [(1, walked)].into(), ..SurveyReport::default() };
        let (rows, vanished) = ([row], BTreeSet::new());
        let walk = Walk { rows: &rows, began: at(11), at: at(11), survey: &survey, vanished: &vanished };
        let comparison = table.apply(walk, &Wanted::default(), &OwnerScan::default(), &());
        let mut schedule = Schedule::new(Duration::from_secs(1), Duration::from_secs(60));
        let naming = Naming { names: &mut Names::default(), namespaces: None };
        let teller = Teller { outbox: &outbox, schedule: &mut schedule, ledger: None, table: &table, naming };
        let window = Window { boot_id: BootId::from_array([1; 16]), since: at(11), until: at(11) };
        keep(teller, window, comparison, Instant::now(), Turn::Next);

        let told = |seq| match outbox.with(|spool| spool.next_after(BatchNumber { seq, ..spool.given() })) {
            Some(Item::Batch(batch)) => batch.unpack().unwrap(),
            other => panic!("{other:?}"),
        };
        let (snapshot, changes) = (told(0), told(1));
        assert_eq!((snapshot.kind, changes.kind), (BatchKind::SnapshotWhole, BatchKind::Changes));
        let cookies = |changes: &[Change]| -> BTreeSet<u64> { changes.iter().map(|it| it.socket.key.cookie).collect() };
        assert_eq!(cookies(&snapshot.changes), [5, 7].into(), "the listener, and what the server may have as open");
        assert_eq!(snapshot.digest, Some(snapshot.changes.iter().map(|change| &change.socket).collect()));
        assert_eq!(cookies(&changes.changes), [7, 8].into());
        assert!(changes.changes.iter().all(|change| matches!(change.op, Op::Closed { .. })));
        let came_in = |change: &Change| matches!(change.socket.role, Role::Session { direction: Direction::In, .. });
        let first = [&snapshot.changes, &changes.changes]
            .map(|changes| changes.iter().filter(|it| it.socket.key.cookie == 7).all(came_in));
        assert_eq!(first, [true; 2], "the listener is known by then");
    }
}
