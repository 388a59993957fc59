//! When a host's digest is held against its open rows, and what is asked for when they are not the same. Pure.
//!
//! Holding one costs as much as the host has rows, and the writer has no time for anything else meanwhile: so a host gets a
//! part of that time, and no more when it tells digests more often.

use std::time::{Duration, Instant};

/// How long a host's digests are not looked at for each row that was read for the last one: reading one takes some 2 us, so
/// that a host gets about one fiftieth of the writer's time.
const REST_PER_ROW: Duration = Duration::from_micros(100);
/// So few rows cost no more than storing the batch, and need no rest.
const ROWS_FREE: u64 = 256;
/// How long a snapshot that was asked for is waited for until digests are looked at again, the first time; twice as long
/// each time that one did not help.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long at most.
const PATIENCE_LIMIT: Duration = Duration::from_secs(3600);

/// What is wanted of an agent whose table is not the one of the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Nothing: a snapshot is on its way, or did not help and is not asked for again so soon.
    Nothing,
    /// A snapshot.
    Snapshot,
}

/// What is known of a host's table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Proof {
    /// Batches are lost, so that the history lacks what they told until a snapshot names everything.
    lacks: bool,
    /// Snapshots that were asked for since both tables were last the same.
    asked: u32,
    /// Until then a snapshot that was asked for is waited for.
    patient_until: Option<Instant>,
    /// Until then the host has used up its part of the writer's time.
    rests_until: Option<Instant>,
}

impl Proof {
    /// Batches of the host will never come.
    pub fn lost_batches(&mut self) {
        self.lacks = true;
    }

    /// A snapshot is complete: digests are looked at from now on.
    pub fn named_everything(&mut self) {
        *self = Proof { lacks: false, rests_until: None, ..*self };
    }

    /// Whether a digest is worth a look. One that comes with a snapshot always is: it costs less than the snapshot.
    pub fn is_due(&self, completes_snapshot: bool, now: Instant) -> bool {
        let is_over = |until: Option<Instant>| until.is_none_or(|until| now >= until);
        completes_snapshot || (!self.lacks && is_over(self.patient_until) && is_over(self.rests_until))
    }

    /// Both tables are the same, of so many rows.
    pub fn equal(&mut self, now: Instant, rows: u64) {
        *self = Proof { rests_until: rest(now, rows), ..Proof::default() };
    }

    /// They are not; the history has so many rows.
    pub fn different(&mut self, now: Instant, rows: u64) -> Wish {
        self.rests_until = rest(now, rows);
        if self.patient_until.is_some_and(|until| now < until) {
            return Wish::Nothing;
        }
        let doublings = self.asked.min(PATIENCE_LIMIT.as_secs().ilog2());
        self.patient_until = Some(now + (PATIENCE * 2_u32.pow(doublings)).min(PATIENCE_LIMIT));
        self.asked += 1;
        Wish::Snapshot
    }
}

/// When the next digest of a host is looked at that has so many rows.
fn rest(now: Instant, rows: u64) -> Option<Instant> {
    (rows > ROWS_FREE).then(|| now + REST_PER_ROW * u32::try_from(rows).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_host_gets_its_part_of_the_time_however_often_it_tells_digests() {
        let (start, mut proof) = (Instant::now(), Proof::default());
        assert!(proof.is_due(false, start));
        proof.equal(start, ROWS_FREE);
        assert!(proof.is_due(false, start), "a small table");
        proof.equal(start, 10_000);
        assert!(!proof.is_due(false, start + 999 * MS) && proof.is_due(false, start + 1000 * MS));
        assert!(proof.is_due(true, start), "with a snapshot");
    }

    #[test]
    fn after_a_loss_digests_wait_for_a_snapshot() {
        let (start, mut proof) = (Instant::now(), Proof::default());
        proof.lost_batches();
        assert!(!proof.is_due(false, start + 60 * MINUTE));
        proof.named_everything();
        assert!(proof.is_due(false, start));
    }

    #[test]
    fn a_snapshot_is_asked_for_at_once_and_then_less_and_less_often_until_one_helps() {
        let (mut now, mut proof) = (Instant::now(), Proof::default());
        for minutes in [2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(proof.different(now, 9), Wish::Snapshot);
            assert!(!proof.is_due(false, now + MINUTE));
            // It comes and does not help.
            proof.named_everything();
            assert!(proof.is_due(true, now + MINUTE));
            assert_eq!(proof.different(now + MINUTE, 9), Wish::Nothing);
            now += minutes * MINUTE;
            assert!(!proof.is_due(false, now - MS) && proof.is_due(false, now));
        }
        proof.equal(now, 9);
        assert_eq!(proof.different(now + MINUTE, 9), Wish::Snapshot);
        assert_eq!(proof.different(now + 3 * MINUTE, 9), Wish::Snapshot, "patience begins anew");
    }

    #[test]
    fn no_number_of_vain_snapshots_is_too_large() {
        let (mut now, mut proof) = (Instant::now(), Proof::default());
        for _ in 0..200 {
            assert_eq!(proof.different(now, 9), Wish::Snapshot);
            now += PATIENCE_LIMIT;
        }
    }
}
