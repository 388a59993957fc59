//! When to walk, when to look for all owners, when to write a snapshot. Pure.

use std::time::{Duration, Instant};

use crate::table::Search;

/// Snapshots that are asked for come at most this often: each costs as much as the table is large.
pub const SNAPSHOT_PAUSE: Duration = Duration::from_secs(30);

/// The rhythm of an observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: Duration,
    referee: Duration,
    last_walk: Option<Instant>,
    last_referee: Option<Instant>,
    /// The last snapshot that was asked for; those that begin a numbering do not keep one waiting.
    last_asked: Option<Instant>,
    snapshot_wanted: bool,
}

impl Schedule {
    /// Walks every `interval` and looks for all owners every `referee`; the first walk is due at once.
    pub fn new(interval: Duration, referee: Duration) -> Schedule {
        Schedule { interval, referee, last_walk: None, last_referee: None, last_asked: None, snapshot_wanted: false }
    }

    /// Walks in another rhythm from the last walk on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Asks for a snapshot.
    pub fn want_snapshot(&mut self) {
        self.snapshot_wanted = true;
    }

    /// How long from now until a walk is due.
    pub fn due_in(&self, now: Instant) -> Duration {
        let Some(last) = self.last_walk else { return Duration::ZERO };
        let walk = last + self.interval;
        let due = match self.last_asked {
            _ if !self.snapshot_wanted => walk,
            Some(last) => walk.min(last + SNAPSHOT_PAUSE),
            None => now,
        };
        due.saturating_duration_since(now)
    }

    /// A walk begins: whose owners it looks for.
    pub fn begin_walk(&mut self, now: Instant) -> Search {
        self.last_walk = Some(now);
        if self.last_referee.is_none_or(|last| now >= last + self.referee) {
            self.last_referee = Some(now);
            return Search::Referee;
        }
        Search::Unknown
    }

    /// Whether a snapshot that was asked for is to be written now.
    pub fn snapshot_due(&self, now: Instant) -> bool {
        self.snapshot_wanted && self.last_asked.is_none_or(|last| now >= last + SNAPSHOT_PAUSE)
    }

    /// A snapshot was written.
    pub fn wrote_snapshot(&mut self, now: Instant) {
        if std::mem::take(&mut self.snapshot_wanted) {
            self.last_asked = Some(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_first_walk_is_due_at_once_and_the_referee_comes_in_its_own_rhythm() {
        let start = Instant::now();
        let mut schedule = Schedule::new(SECOND, 3 * SECOND);
        assert_eq!(schedule.due_in(start), Duration::ZERO);
        let searches: Vec<Search> = (0..7).map(|second| schedule.begin_walk(start + second * SECOND)).collect();
        use Search::{Referee, Unknown};
        assert_eq!(searches, [Referee, Unknown, Unknown, Referee, Unknown, Unknown, Referee]);
        assert_eq!(schedule.due_in(start + 6 * SECOND), SECOND);
        schedule.set_interval(10 * SECOND);
        assert_eq!(schedule.due_in(start + 9 * SECOND), 7 * SECOND);
    }

    #[test]
    fn a_snapshot_that_is_asked_for_brings_a_walk_forward_but_not_too_often() {
        let start = Instant::now();
        let mut schedule = Schedule::new(3600 * SECOND, 3600 * SECOND);
        schedule.begin_walk(start);
        schedule.wrote_snapshot(start);
        for _ in 0..2 {
            schedule.want_snapshot();
            assert!(schedule.snapshot_due(start) && schedule.due_in(start).is_zero());
        }
        schedule.wrote_snapshot(start);
        schedule.want_snapshot();
        assert_eq!(schedule.due_in(start + SECOND), SNAPSHOT_PAUSE - SECOND);
        assert!(!schedule.snapshot_due(start + SECOND));
        assert!(schedule.snapshot_due(start + SNAPSHOT_PAUSE));
        schedule.wrote_snapshot(start + SNAPSHOT_PAUSE);
        assert!(!schedule.snapshot_due(start + 10 * SNAPSHOT_PAUSE));
    }
}
