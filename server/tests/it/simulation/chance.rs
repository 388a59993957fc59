//! What is random in a play follows from its seed alone, and its time is that of the simulated network.

use std::{
    ops::Range,
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use fleetsock_proto::time::Timestamp;

/// A source of numbers that are the same for the same seed (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Chance(u64);

impl Chance {
    /// A source of its own for each purpose, so that one that is asked more often does not change another.
    pub(super) fn of(seed: u64, purpose: u64) -> Chance {
        let mut chance = Chance(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ purpose);
        chance.number();
        chance
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mixed(self.0)
    }

    /// A number below this one.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// Whether something happens that happens so often of a hundred times.
    pub(super) fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }

    pub(super) fn millis(&mut self, range: Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.below(range.end - range.start))
    }
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

fn mixed(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

static DICE: AtomicU64 = AtomicU64::new(0);
static NOW_US: AtomicI64 = AtomicI64::new(0);

/// The dice of all agents of the play.
pub(super) fn dice() -> u64 {
    mixed(DICE.fetch_add(STEP, Relaxed))
}

/// The time of the play. Real certificates are held against the real clock too, so that plays begin now.
pub(super) fn now() -> Timestamp {
    Timestamp::from_micros(NOW_US.load(Relaxed))
}

/// A play begins.
pub(super) fn begin(seed: u64) {
    DICE.store(mixed(seed), Relaxed);
}

/// It is that late now.
pub(super) fn set_now(now: Timestamp) {
    NOW_US.store(now.as_micros(), Relaxed);
}
