//! Whether the time between two walks was what the clock says: the host may have slept, or its clock may have been set. Only
//! [`Clocks::at`] reads a clock.

use std::time::{Duration, Instant};

use fleetsock_proto::{answer::GapReason, time::Timestamp};

use crate::cost;

/// What clocks may differ by between two walks without anything having happened: that of NTP slews, and a walk takes time.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clocks {
    /// The clock that people set.
    pub(super) wall: Timestamp,
    /// Since boot, with sleep (CLOCK_BOOTTIME).
    pub(super) since_boot: Duration,
    /// Since boot, without sleep (CLOCK_MONOTONIC).
    pub(super) awake: Duration,
}

impl Clocks {
    /// Those of now, with the wall clock as it was read.
    pub(super) fn at(wall: Timestamp) -> Clocks {
        Clocks { wall, since_boot: cost::since_boot(), awake: cost::awake() }
    }
}

/// A stretch of the wall clock that was not observed as it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Break {
    pub(super) since: Timestamp,
    pub(super) until: Timestamp,
    pub(super) reason: GapReason,
}

/// What is known of the time from walk to walk.
#[derive(Debug, Default)]
pub(super) struct Continuity {
    /// At the last walk.
    clocks: Option<Clocks>,
    stretch: Stretch,
}

impl Continuity {
    /// A walk is done; what the server is to be told of the time since the one before, if there was one.
    pub(super) fn walked(
        &mut self,
        before: Option<Timestamp>,
        (clocks, now): (Clocks, Instant),
        told: Told,
    ) -> impl Iterator<Item = Break> + use<> {
        let last = self.clocks.replace(clocks);
        let broken = last.filter(|_| before.is_some()).and_then(|last| between(last, clocks));
        let since = broken.map(|broken| broken.since).or(before.map(|before| before.min(clocks.wall)));
        let range = since.map(|since| (since, clocks.wall));
        let lossy = range.and_then(|range| self.stretch.walked(range, told, now)).map(lossy);
        broken.into_iter().chain(lossy)
    }

    /// What is left to be told when there is no further walk.
    pub(super) fn end(&mut self) -> Option<Break> {
        self.stretch.pending.take().map(lossy)
    }
}

fn lossy((since, until): (Timestamp, Timestamp)) -> Break {
    Break { since, until, reason: GapReason::KernelLoss }
}

/// What happened to the time between two walks, if anything, by the clock as it is now: the server corrects moments by how
/// far that one is off.
fn between(before: Clocks, now: Clocks) -> Option<Break> {
    let passed = now.since_boot.saturating_sub(before.since_boot);
    let awake = now.awake.saturating_sub(before.awake);
    let leapt = now.wall.as_micros() - before.wall.as_micros();
    let passed_us = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
    let reason = if passed.saturating_sub(awake) > TOLERANCE {
        GapReason::Asleep
    } else if Duration::from_micros(leapt.abs_diff(passed_us)) > TOLERANCE {
        GapReason::ClockLeap
    } else {
        return None;
    };
    Some(Break { since: now.wall.minus(passed), until: now.wall, reason })
}

/// What a walk says of the time before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// All of it, as far as is known.
    Whole,
    /// Something is missing.
    Lossy,
}

/// While every walk loses something, the server is told at most this often.
const LOSSY_PAUSE: Duration = Duration::from_secs(30);

/// A stretch of walks that lose something.
#[derive(Debug, Clone, Copy, Default)]
struct Stretch {
    /// What the server was not told of.
    pending: Option<(Timestamp, Timestamp)>,
    told_at: Option<Instant>,
}

impl Stretch {
    /// A walk is done that tells of a range; the range to be told to the server, at once when losses begin and when they end.
    fn walked(
        &mut self,
        (since, until): (Timestamp, Timestamp),
        told: Told,
        now: Instant,
    ) -> Option<(Timestamp, Timestamp)> {
        if told == Told::Whole {
            self.told_at = None;
            return self.pending.take();
        }
        let begins = self.pending.map_or(since, |(begins, _)| begins.min(since));
        self.pending = Some((begins, until));
        if self.told_at.is_some_and(|at| now.saturating_duration_since(at) < LOSSY_PAUSE) {
            return None;
        }
        self.told_at = Some(now);
        self.pending.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_told_when_they_begin_now_and_then_and_when_they_end() {
        let start = Instant::now();
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        let mut stretch = Stretch::default();
        let mut walk = |second: i64, told| {
            let now = start + Duration::from_secs(second.unsigned_abs());
            let range = stretch.walked((at(second - 1), at(second)), told, now);
            range.map(|(since, until)| (since.as_micros() / 1_000_000, until.as_micros() / 1_000_000))
        };
        use Told::{Lossy, Whole};
        assert_eq!(walk(1, Whole), None);
        assert_eq!(walk(2, Lossy), Some((1, 2)));
        let told: Vec<_> = (3..40).filter_map(|second| walk(second, Lossy)).collect();
        assert_eq!(told, [(2, 32)]);
        assert_eq!(walk(40, Whole), Some((32, 39)), "all of it, once");
        assert_eq!(walk(41, Whole), None);
        assert_eq!(walk(42, Lossy), Some((41, 42)));
        assert_eq!(walk(43, Lossy), None);
        assert_eq!(stretch.pending, Some((at(42), at(43))));
    }

    #[test]
    fn sleep_and_a_clock_that_was_set_are_told_apart() {
        let clocks = |wall: i64, since_boot, awake| Clocks {
            wall: Timestamp::from_micros(wall * 1_000_000),
            since_boot: Duration::from_secs(since_boot),
            awake: Duration::from_secs(awake),
        };
        for (case, now, expected) in [
            ("a second later", clocks(1001, 101, 91), None),
            ("a walk that came late", clocks(1060, 160, 150), None),
            ("a clock that is slewed", clocks(1012, 110, 100), None),
            ("sleep", clocks(1600, 700, 91), Some((1000, 1600, GapReason::Asleep))),
            ("sleep, and a clock that was wrong before", clocks(9000, 700, 91), Some((8400, 9000, GapReason::Asleep))),
            ("set forward", clocks(4600, 101, 91), Some((4599, 4600, GapReason::ClockLeap))),
            ("set back", clocks(400, 101, 91), Some((399, 400, GapReason::ClockLeap))),
            ("set back a little", clocks(999, 101, 91), None),
            ("sleep, and set back", clocks(4000, 4100, 91), Some((0, 4000, GapReason::Asleep))),
        ] {
            let expected = expected.map(|(since, until, reason)| Break {
                since: Timestamp::from_micros(since * 1_000_000),
                until: Timestamp::from_micros(until * 1_000_000),
                reason,
            });
            assert_eq!(between(clocks(1000, 100, 90), now), expected, "{case}");
        }
    }
}
