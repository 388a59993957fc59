//! When to walk, when to look for all owners, when to write a snapshot. Pure.

use std::time::{Duration, Instant};

use crate::table::Search;

/// Snapshots that are asked for come at most this often: each costs as much as the table is large.
pub const SNAPSHOT_PAUSE: Duration = Duration::from_secs(30);

/// How often a digest of what is open is told, unless the settings say otherwise.
pub const DIGEST_EVERY: Duration = Duration::from_secs(300);

/// Intervals that may pass between two walks, and what more a busy machine may take, until the time between counts as not
/// observed.
const OVERDUE: (u32, Duration) = (3, Duration::from_secs(5));

/// A walk that begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begun {
    /// Whose owners it looks for.
    pub search: Search,
    /// Time since the walk before; absent for the first.
    pub elapsed: Option<Duration>,
    /// Whether that is so long that the agent must have been stopped, or had no processor.
    pub overdue: bool,
}

/// The rhythm of an observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schedule {
    interval: Duration,
    /// How long the next walk waits at least.
    held_back: Duration,
    /// How long after the last walk the next one was due, when that began.
    due_after: Duration,
    referee: Duration,
    last_walk: Option<Instant>,
    last_referee: Option<Instant>,
    /// The last snapshot that was asked for; those that begin a numbering do not keep one waiting.
    last_asked: Option<Instant>,
    snapshot_wanted: bool,
    /// How often a digest is told, and when the last one was.
    digest: Duration,
    last_digest: Option<Instant>,
}

impl Schedule {
    /// Walks every `interval` and looks for all owners every `referee`; the first walk is due at once.
    pub fn new(interval: Duration, referee: Duration) -> Schedule {
        Schedule {
            interval,
            held_back: Duration::ZERO,
            due_after: interval,
            referee,
            last_walk: None,
            last_referee: None,
            last_asked: None,
            snapshot_wanted: false,
            digest: DIGEST_EVERY,
            last_digest: None,
        }
    }

    /// Tells a digest this often in place of every [`DIGEST_EVERY`].
    pub fn proving_every(self, digest: Duration) -> Schedule {
        Schedule { digest, ..self }
    }

    /// Walks in another rhythm from the last walk on.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// How often it walks.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Waits at least so long before the next walk.
    pub fn hold_back(&mut self, wait: Duration) {
        self.held_back = wait;
        self.due_after = self.due_after.max(wait);
    }

    /// Asks for a snapshot.
    pub fn want_snapshot(&mut self) {
        self.snapshot_wanted = true;
    }

    /// How long from now until a walk is due.
    pub fn due_in(&self, now: Instant) -> Duration {
        let Some(last) = self.last_walk else { return Duration::ZERO };
        let walk = last + self.interval.max(self.held_back);
        let due = match self.last_asked {
            _ if !self.snapshot_wanted => walk,
            Some(last) => walk.min(last + SNAPSHOT_PAUSE),
            None => now,
        };
        due.saturating_duration_since(now)
    }

    /// A walk begins.
    pub fn begin_walk(&mut self, now: Instant) -> Begun {
        let elapsed = self.last_walk.map(|last| now.saturating_duration_since(last));
        let (intervals, more) = OVERDUE;
        let due_after = self.due_after.max(self.interval);
        let overdue = elapsed.is_some_and(|elapsed| elapsed > due_after * intervals + more);
        (self.last_walk, self.due_after) = (Some(now), self.interval);
        let referee = self.last_referee.is_none_or(|last| now >= last + self.referee);
        if referee {
            self.last_referee = Some(now);
        }
        Begun { search: if referee { Search::Referee } else { Search::Unknown }, elapsed, overdue }
    }

    /// Whether a snapshot that was asked for is to be written now.
    pub fn snapshot_due(&self, now: Instant) -> bool {
        self.snapshot_wanted && self.last_asked.is_none_or(|last| now >= last + SNAPSHOT_PAUSE)
    }

    /// Whether it is time to tell a digest of what is open.
    pub fn digest_due(&self, now: Instant) -> bool {
        self.last_digest.is_none_or(|last| now >= last + self.digest)
    }

    /// A digest was written, with a snapshot or without.
    pub fn wrote_digest(&mut self, now: Instant) {
        self.last_digest = Some(now);
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
        let searches: Vec<Search> = (0..7).map(|second| schedule.begin_walk(start + second * SECOND).search).collect();
        use Search::{Referee, Unknown};
        assert_eq!(searches, [Referee, Unknown, Unknown, Referee, Unknown, Unknown, Referee]);
        assert_eq!(schedule.due_in(start + 6 * SECOND), SECOND);
        schedule.set_interval(10 * SECOND);
        assert_eq!(schedule.due_in(start + 9 * SECOND), 7 * SECOND);
    }

    #[test]
    fn a_walk_that_comes_much_later_than_it_was_due_is_overdue() {
        let start = Instant::now();
        for (interval, held_back, elapsed, overdue) in [
            (1, 0, 1, false),
            (1, 0, 8, false),
            (1, 0, 9, true),
            (10, 0, 35, false),
            (1, 10, 35, false),
            (1, 10, 36, true),
        ] {
            let mut schedule = Schedule::new(interval * SECOND, SECOND);
            assert_eq!(schedule.begin_walk(start).elapsed, None);
            schedule.hold_back(held_back * SECOND);
            let due = interval.max(held_back);
            assert_eq!(schedule.due_in(start), due * SECOND);
            let begun = schedule.begin_walk(start + elapsed * SECOND);
            assert_eq!((begun.elapsed, begun.overdue), (Some(elapsed * SECOND), overdue), "{elapsed} of {due}");
        }
    }

    #[test]
    fn a_digest_is_due_at_once_and_then_so_long_after_the_last_one() {
        let start = Instant::now();
        let schedule = Schedule::new(SECOND, SECOND);
        for (every, schedule) in [(DIGEST_EVERY, schedule), (SECOND, schedule.proving_every(SECOND))] {
            let mut schedule = schedule;
            assert!(schedule.digest_due(start));
            schedule.wrote_digest(start);
            assert!(!schedule.digest_due(start + every - SECOND / 2) && schedule.digest_due(start + every));
        }
    }

    #[test]
    fn a_longer_interval_that_was_shortened_meanwhile_makes_nothing_overdue() {
        let start = Instant::now();
        let mut schedule = Schedule::new(3600 * SECOND, SECOND);
        schedule.begin_walk(start);
        schedule.set_interval(SECOND);
        assert!(!schedule.begin_walk(start + 3000 * SECOND).overdue);
        assert!(schedule.begin_walk(start + 6000 * SECOND).overdue);
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
