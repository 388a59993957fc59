//! How far apart walks are so that they do not cost the host more than they may. Pure.
//!
//! Each walk is paid from a balance to which time adds the allowed share. A dear walk (the first one, one that looks for all
//! owners) is paid from what was saved; when walks cost too much for long, the next one waits until it can be paid.

use std::time::Duration;

/// How much time's allowance can be saved.
const SAVED: Duration = Duration::from_secs(20);
/// The longest that a walk waits to be paid.
const LONGEST: Duration = Duration::from_secs(600);
/// Walks that are on time until the restraint is over.
const CALM_WALKS: u32 = 60;

/// Keeps account of what walks cost.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Restraint {
    /// Percent of one core.
    percent: u32,
    /// CPU that can be spent, seconds.
    balance_s: f64,
    /// Walks in a row that could be paid at once.
    calm: u32,
    /// The longest wait of this restraint.
    longest: Duration,
}

impl Restraint {
    /// Walks may cost this many percent of one core.
    pub fn new(percent: u32) -> Restraint {
        let mut restraint = Restraint { percent, balance_s: 0.0, calm: CALM_WALKS, longest: Duration::ZERO };
        restraint.balance_s = restraint.earned(SAVED);
        restraint
    }

    fn earned(&self, time: Duration) -> f64 {
        time.as_secs_f64() * f64::from(self.percent) / 100.0
    }

    /// A walk cost so much, after so much time since the one before: how long the next one has to wait at least.
    pub fn paid(&mut self, cost: Duration, elapsed: Duration, interval: Duration) -> Duration {
        let balance = self.balance_s + self.earned(elapsed) - cost.as_secs_f64();
        self.balance_s = balance.clamp(-self.earned(LONGEST), self.earned(SAVED));
        let wait = Duration::from_secs_f64((-self.balance_s).max(0.0) * 100.0 / f64::from(self.percent.max(1)));
        if wait > interval {
            (self.calm, self.longest) = (0, self.longest.max(wait));
        } else if self.calm < CALM_WALKS {
            self.calm += 1;
        } else {
            self.longest = Duration::ZERO;
        }
        wait
    }

    /// What is to be said of it.
    pub fn remark(&self) -> Option<String> {
        // In powers of 2, so that it is not another text after each walk.
        let seconds = self.longest.as_secs().next_power_of_two();
        (!self.longest.is_zero()).then(|| {
            format!(
                "cpu_percent = {} is reached: sockets are walked up to {seconds} s apart, not as often as wanted",
                self.percent
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn walks_that_cost_less_than_they_may_come_on_time() {
        let mut restraint = Restraint::new(10);
        for _ in 0..1000 {
            assert_eq!(restraint.paid(SECOND / 20, SECOND, SECOND), Duration::ZERO);
        }
        assert_eq!(restraint.remark(), None);
    }

    #[test]
    fn one_dear_walk_is_paid_from_what_was_saved() {
        let mut restraint = Restraint::new(10);
        assert_eq!(restraint.paid(2 * SECOND, SECOND, SECOND), Duration::ZERO);
        assert_eq!(restraint.remark(), None);
    }

    #[test]
    fn walks_that_cost_too_much_are_further_apart_until_they_cost_what_they_may_and_that_is_said() {
        let mut restraint = Restraint::new(10);
        let (mut elapsed, mut time, mut cost) = (SECOND, 2 * SECOND, Duration::ZERO);
        for _ in 0..1000 {
            elapsed = restraint.paid(SECOND / 2, elapsed, SECOND).max(SECOND);
            (time, cost) = (time + elapsed, cost + SECOND / 2);
        }
        assert_eq!(elapsed.as_millis().abs_diff(5000), 0, "half a second is a tenth of five");
        assert!(cost.as_secs_f64() <= 0.1 * (time + SAVED).as_secs_f64(), "{cost:?} of {time:?}");
        let remark = restraint.remark().unwrap();
        assert!(remark.starts_with("cpu_percent = 10 is reached: sockets are walked up to 8 s apart"), "{remark}");
        for _ in 0..=2 * CALM_WALKS {
            restraint.paid(Duration::ZERO, 5 * SECOND, SECOND);
        }
        assert_eq!(restraint.remark(), None);
    }

    #[test]
    fn whatever_a_walk_cost_the_next_one_comes() {
        let mut restraint = Restraint::new(1);
        assert_eq!(restraint.paid(Duration::from_secs(1 << 40), SECOND, SECOND), LONGEST);
        assert_eq!(Restraint::new(0).paid(SECOND, SECOND, SECOND), Duration::ZERO);
    }
}
