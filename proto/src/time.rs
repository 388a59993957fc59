//! Moments, as microseconds since the Unix epoch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::InvalidMessage;

/// A moment: microseconds since 1970-01-01T00:00:00Z, leap seconds not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// The earliest moment that travels: 0001-01-01T00:00:00Z (the bound of google.protobuf.Timestamp).
    pub const MIN: Timestamp = Timestamp(-62_135_596_800_000_000);
    /// The latest moment that travels: 9999-12-31T23:59:59.999999Z.
    pub const MAX: Timestamp = Timestamp(253_402_300_799_999_999);

    /// The moment `us` microseconds after the Unix epoch, moved into [`Timestamp::MIN`]..=[`Timestamp::MAX`].
    pub const fn from_micros(us: i64) -> Timestamp {
        if us < Timestamp::MIN.0 {
            Timestamp::MIN
        } else if us > Timestamp::MAX.0 {
            Timestamp::MAX
        } else {
            Timestamp(us)
        }
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// The machine's wall clock. Only for the edges of a process: decisions are given their time.
    pub fn now() -> Timestamp {
        Timestamp::from(SystemTime::now())
    }

    /// The moment `by` later.
    pub fn plus(self, by: Duration) -> Timestamp {
        Timestamp::from_micros(self.0.saturating_add(micros(by)))
    }

    /// The moment `by` earlier.
    pub fn minus(self, by: Duration) -> Timestamp {
        Timestamp::from_micros(self.0.saturating_sub(micros(by)))
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Timestamp::from_micros(micros(after)),
            Err(before) => Timestamp::from_micros(-micros(before.duration())),
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> SystemTime {
        let distance = Duration::from_micros(time.0.unsigned_abs());
        if time.0 < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
    }
}

impl From<Timestamp> for prost_types::Timestamp {
    fn from(time: Timestamp) -> prost_types::Timestamp {
        prost_types::Timestamp {
            seconds: time.0.div_euclid(1_000_000),
            // The remainder is below a million, so the product is below 10^9.
            nanos: (time.0.rem_euclid(1_000_000) * 1_000) as i32,
        }
    }
}

/// The moment in a field, which may be absent.
pub(crate) fn optional(
    field: &'static str,
    time: Option<prost_types::Timestamp>,
) -> Result<Option<Timestamp>, InvalidMessage> {
    time.map(|time| parse(field, time)).transpose()
}

/// The moment in a field, which must be there.
pub(crate) fn required(field: &'static str, time: Option<prost_types::Timestamp>) -> Result<Timestamp, InvalidMessage> {
    parse(field, time.ok_or_else(|| InvalidMessage::missing(field))?)
}

fn parse(field: &'static str, time: prost_types::Timestamp) -> Result<Timestamp, InvalidMessage> {
    let wrong = || InvalidMessage::new(field, format!("{}.{} is no moment", time.seconds, time.nanos));
    if !(0..1_000_000_000).contains(&time.nanos) {
        return Err(wrong());
    }
    let us = time
        .seconds
        .checked_mul(1_000_000)
        .and_then(|us| us.checked_add(i64::from(time.nanos / 1_000)))
        .ok_or_else(wrong)?;
    let parsed = Timestamp::from_micros(us);
    if parsed.as_micros() == us { Ok(parsed) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_survives_the_wire() {
        for us in [0, 1, -1, 1_763_632_800_123_456, Timestamp::MIN.0, Timestamp::MAX.0] {
            let time = Timestamp::from_micros(us);
            assert_eq!(required("t", Some(time.into())), Ok(time));
        }
    }

    #[test]
    fn moments_outside_the_contract_are_refused() {
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, 1_000_000_000), (253_402_300_800, 0)] {
            let time = prost_types::Timestamp { seconds, nanos };
            assert!(required("t", Some(time)).is_err(), "{seconds}.{nanos}");
        }
    }
}
