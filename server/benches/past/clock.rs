//! The clock of a history: the system's, which can be set forward.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::Duration,
};

use fleetsock_proto::time::Timestamp;

static AHEAD_US: AtomicI64 = AtomicI64::new(0);

/// What a history is opened with.
pub(crate) fn clock() -> Timestamp {
    Timestamp::from_micros(Timestamp::now().as_micros() + AHEAD_US.load(Relaxed))
}

/// Sets it forward.
pub(crate) fn advance(by: Duration) {
    AHEAD_US.fetch_add(by.as_micros() as i64, Relaxed);
}
