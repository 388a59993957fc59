//! The writer lets questions pass that have just begun.
//!
//! Many take a fifth of a millisecond, and one in a hundred took four times that while the writer worked: woken on its core,
//! or displaced from one by it, it waited there until the writer had to wait for the disk. Linux leaves a core to who has it
//! for a slice, which is 1.4 ms on two cores, and moves nobody to an idle core who ran within the last half of a millisecond
//! (`RUN_TO_PARITY`, `sysctl_sched_base_slice` and `task_hot` in kernel/sched/fair.c). So the writer offers its core between
//! two rows while a question is young, which costs nothing where nobody waits for it.
//!
//! Where something else wants all cores all the time, an offer costs the writer its turn. It notices, and makes none for
//! some time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// For how long a question is young.
const YOUNG: Duration = Duration::from_millis(2);
/// An offer after which the core comes back later than this was not taken by a short question.
const LONG: Duration = Duration::from_millis(1);
/// For how long there is no offer after such a one.
const REST: Duration = Duration::from_millis(100);

/// When somebody asked last.
#[derive(Debug, Clone)]
pub(super) struct LastAsked {
    start: Instant,
    /// Until when the last question is young, in microseconds since the start.
    young_until_us: Arc<AtomicU64>,
}

impl LastAsked {
    pub(super) fn new() -> LastAsked {
        LastAsked { start: Instant::now(), young_until_us: Arc::default() }
    }

    /// Somebody asks.
    pub(super) fn note(&self, now: Instant) {
        self.young_until_us.store(self.micros(now + YOUNG), Ordering::Relaxed);
    }

    fn is_young(&self, now: Instant) -> bool {
        self.micros(now) < self.young_until_us.load(Ordering::Relaxed)
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_micros()).unwrap_or(u64::MAX)
    }
}

/// Of the writer.
#[derive(Debug)]
pub(super) struct Courtesy {
    asked: LastAsked,
    /// There is no offer before.
    rests_until: Option<Instant>,
}

impl Courtesy {
    /// To those who ask.
    pub(super) fn new(asked: LastAsked) -> Courtesy {
        Courtesy { asked, rests_until: None }
    }

    /// Lets those pass who wait for this core.
    pub(super) fn let_pass(&mut self) {
        let offered = Instant::now();
        if self.is_due(offered) {
            thread::yield_now();
            self.note_offer(offered, Instant::now());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.asked.is_young(now) && self.rests_until.is_none_or(|until| until <= now)
    }

    fn note_offer(&mut self, offered: Instant, returned: Instant) {
        if returned - offered > LONG {
            self.rests_until = Some(returned + REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, micros: u64) -> Instant {
        start + Duration::from_micros(micros)
    }

    #[test]
    fn an_offer_is_made_while_a_question_is_young() {
        let asked = LastAsked::new();
        let (start, courtesy) = (asked.start, Courtesy::new(asked.clone()));
        assert!(!courtesy.is_due(start) && !courtesy.is_due(after(start, 500)));
        asked.note(after(start, 1000));
        assert!(courtesy.is_due(after(start, 1000)) && courtesy.is_due(after(start, 2999)));
        assert!(!courtesy.is_due(after(start, 3000)));
    }

    #[test]
    fn after_an_offer_that_somebody_else_took_there_is_none_for_some_time() {
        let asked = LastAsked::new();
        let (start, mut courtesy) = (asked.start, Courtesy::new(asked.clone()));
        asked.note(start);
        courtesy.note_offer(start, after(start, 1000));
        assert!(courtesy.is_due(after(start, 1000)), "a short question took it");
        courtesy.note_offer(start, after(start, 1001));
        assert!(!courtesy.is_due(after(start, 1001)));
        asked.note(after(start, 101_000));
        assert!(!courtesy.is_due(after(start, 101_000)) && courtesy.is_due(after(start, 101_001)));
    }
}
