//! The time at which a command runs, its zone, and how moments are written for people and for machines.

use std::time::Duration;

use fleetsock_proto::time::Timestamp;
use jiff::{Zoned, fmt::temporal::DateTimePrinter, tz::TimeZone};

use crate::moment::{self, InvalidMoment};

/// Moments in full, as most rows have them: a format that is read anew for each takes several times as long.
const TO_THE_MILLISECOND: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
const FOR_PEOPLE: DateTimePrinter = TO_THE_MILLISECOND.separator(b' ');

/// The time now, in the zone in which times are read and written.
#[derive(Debug, Clone)]
pub struct Clock {
    now: Zoned,
}

fn moment_of(time: Timestamp) -> jiff::Timestamp {
    // Every time of the contract lies within jiff's, but for the last day of the year 9999.
    jiff::Timestamp::from_microsecond(time.as_micros()).unwrap_or(jiff::Timestamp::MAX)
}

impl Clock {
    /// A clock that stands at `now`.
    pub fn at(now: Timestamp, zone: TimeZone) -> Clock {
        Clock { now: moment_of(now).to_zoned(zone) }
    }

    /// The time at which the command began.
    pub fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.now.timestamp().as_microsecond())
    }

    /// What `text` means.
    pub fn parse(&self, text: &str) -> Result<Timestamp, InvalidMoment> {
        moment::parse(text, &self.now).map(|moment| Timestamp::from_micros(moment.as_microsecond()))
    }

    fn zoned(&self, time: Timestamp) -> Zoned {
        moment_of(time).to_zoned(self.now.time_zone().clone())
    }

    /// `2026-11-24 10:03:11.123`, in the clock's zone.
    pub fn absolute(&self, time: Timestamp) -> String {
        FOR_PEOPLE.datetime_to_string(&self.zoned(time).datetime())
    }

    /// `10:03:11`, with the date when it is not today's.
    pub fn short(&self, time: Timestamp) -> String {
        let time = self.zoned(time);
        let format = if time.date() == self.now.date() { "%H:%M:%S" } else { "%Y-%m-%d %H:%M:%S" };
        time.strftime(format).to_string()
    }

    /// `2026-11-24 10:03:11 +01:00`: a moment that a command resolved, without room for doubt.
    pub fn resolved(&self, time: Timestamp) -> String {
        self.zoned(time).strftime("%Y-%m-%d %H:%M:%S %:z").to_string()
    }

    /// How long ago it was: `12s`, `3m`, `2h5m`, `2d4h`.
    pub fn age(&self, time: Timestamp) -> String {
        let age = self.now().since(time);
        match age.as_secs() {
            60..3_600 => in_units(&[(age.as_secs() / 60, "m")]),
            0..60 => in_units(&[(age.as_secs(), "s")]),
            _ => lapse(age),
        }
    }
}

/// RFC 3339 in UTC, with milliseconds.
pub fn rfc3339(time: Timestamp) -> String {
    TO_THE_MILLISECOND.timestamp_to_string(&moment_of(time))
}

/// `20261124T090311Z`: a moment in UTC as a part of a file's name.
pub fn compact(time: Timestamp) -> String {
    moment_of(time).strftime("%Y%m%dT%H%M%SZ").to_string()
}

/// A lapse of time in at most two units: `12ms`, `12s`, `2m10s`, `2h5m`, `2d4h`, `123d`.
pub fn lapse(lapse: Duration) -> String {
    let seconds = lapse.as_secs();
    let two = |large: u64, unit: &'static str, small: u64, small_unit: &'static str| match small {
        0 => in_units(&[(large, unit)]),
        small => in_units(&[(large, unit), (small, small_unit)]),
    };
    match seconds {
        0 if lapse.is_zero() => "0s".to_owned(),
        0 if lapse.as_millis() == 0 => "<1ms".to_owned(),
        0 => in_units(&[(lapse.subsec_millis().into(), "ms")]),
        1..60 => in_units(&[(seconds, "s")]),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        86_400..8_640_000 => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
        _ => in_units(&[(seconds / 86_400, "d")]),
    }
}

/// Numbers, each before its unit, in a fraction of the time that formatting takes.
fn in_units(numbers: &[(u64, &str)]) -> String {
    let mut text = String::with_capacity(8);
    for (number, unit) in numbers {
        text.push_str(itoa::Buffer::new().format(*number));
        text.push_str(unit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> Clock {
        let zone = TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap();
        // 2026-11-24T09:03:11.123Z.
        Clock::at(Timestamp::from_micros(1_795_510_991_123_456), zone)
    }

    #[test]
    fn moments_are_written_in_the_zone_for_people_and_in_utc_for_machines() {
        let (clock, now) = (clock(), clock().now());
        assert_eq!(clock.absolute(now), "2026-11-24 10:03:11.123");
        assert_eq!(clock.short(now), "10:03:11");
        assert_eq!(clock.short(now.minus(Duration::from_secs(86_400))), "2026-11-23 10:03:11");
        assert_eq!(clock.resolved(now), "2026-11-24 10:03:11 +01:00");
        assert_eq!(rfc3339(now), "2026-11-24T09:03:11.123Z");
        assert_eq!(rfc3339(Timestamp::from_micros(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp::MIN), "0001-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(Timestamp::MAX), "9999-12-30T22:00:00.999Z", "the last moment of jiff");
    }

    #[test]
    fn ages_have_at_most_two_units() {
        let clock = clock();
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (200, "3m"),
            (3_600, "1h"),
            (7_500, "2h5m"),
            (86_400, "1d"),
            (187_200, "2d4h"),
            (8_639_999, "99d23h"),
            (8_640_000, "100d"),
        ] {
            assert_eq!(clock.age(clock.now().minus(Duration::from_secs(seconds))), expected);
        }
        assert_eq!(clock.age(clock.now().plus(Duration::from_secs(5))), "0s", "another clock may be ahead");
    }

    #[test]
    fn lapses_are_finer_than_ages() {
        for (micros, expected) in [
            (0, "0s"),
            (400, "<1ms"),
            (12_300, "12ms"),
            (12_300_000, "12s"),
            (130_000_000, "2m10s"),
            (60_000_000, "1m"),
        ] {
            assert_eq!(lapse(Duration::from_micros(micros)), expected);
        }
    }
}
