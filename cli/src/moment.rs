//! Moments and lapses of time as people write them: `2h`, `yesterday`, `10:00`, `2026-11-21 10:00`, RFC 3339.
//!
//! A pure function of the text, the time now and the zone. The zone decides what a clock time or a date means; where
//! clocks leap forward the time after the leap is meant, where they are set back the first of the two.

use std::time::Duration;

use jiff::{
    Span, Zoned,
    civil::{Date, DateTime, Time},
};

/// Longest text that can be a moment, bytes.
pub const MOMENT_TEXT_LIMIT: usize = 64;

/// A text that is no moment, or not one to ask about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMoment {
    /// It cannot be read.
    #[error("`{0}` is no time")]
    Unreadable(String),
    /// Nothing has been observed then.
    #[error("`{0}` lies in the future")]
    Future(String),
    /// It lies before 1970.
    #[error("`{0}` lies before 1970")]
    TooEarly(String),
}

/// A text that is no lapse of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no length of time; write 90s, 30m, 2h30m, 7d or 2w")]
pub struct InvalidLapse(pub String);

/// The moment that `text` means at `now`, in the zone of `now`.
pub fn parse(text: &str, now: &Zoned) -> Result<jiff::Timestamp, InvalidMoment> {
    let named = || text.chars().take(MOMENT_TEXT_LIMIT).collect::<String>();
    if text.len() > MOMENT_TEXT_LIMIT {
        return Err(InvalidMoment::Unreadable(named()));
    }
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ").to_ascii_lowercase();
    let moment = match read(&words, now) {
        Read::At(moment) => moment,
        Read::TooEarly => return Err(InvalidMoment::TooEarly(named())),
        Read::Future => return Err(InvalidMoment::Future(named())),
        Read::Nothing => return Err(InvalidMoment::Unreadable(named())),
    };
    if moment > now.timestamp() {
        Err(InvalidMoment::Future(named()))
    } else if moment < jiff::Timestamp::UNIX_EPOCH {
        Err(InvalidMoment::TooEarly(named()))
    } else {
        Ok(moment)
    }
}

/// What a text says.
enum Read {
    At(jiff::Timestamp),
    TooEarly,
    Future,
    Nothing,
}

impl From<Option<Zoned>> for Read {
    fn from(moment: Option<Zoned>) -> Read {
        moment.map_or(Read::Nothing, |moment| Read::At(moment.timestamp()))
    }
}

fn read(text: &str, now: &Zoned) -> Read {
    if text == "now" {
        return Read::At(now.timestamp());
    }
    if text.starts_with("tomorrow") || text.starts_with("in ") || text.starts_with('+') {
        return Read::Future;
    }
    for (word, days_ago) in [("today", 0), ("yesterday", 1)] {
        if let Some(rest) = text.strip_prefix(word) {
            return on_day(rest, days_ago, now).into();
        }
    }
    if let Some(seconds) = text.strip_prefix('@') {
        return epoch(seconds);
    }
    if let Some(span) = text.strip_suffix(" ago").or(text.strip_prefix('-')).or(Some(text)).and_then(spelt_span) {
        return now.checked_sub(span).map_or(Read::TooEarly, |moment| Read::At(moment.timestamp()));
    }
    if is_shaped(text, "00:00") || is_shaped(text, "00:00:00") || is_shaped(text, "0:00") {
        return on_day(&format!(" {text}"), 0, now).into();
    }
    written(text, now)
}

/// `rest` is empty or a blank and a clock time.
fn on_day(rest: &str, days_ago: i64, now: &Zoned) -> Option<Zoned> {
    let day = now.date().checked_sub(Span::new().days(days_ago)).ok()?;
    if rest.is_empty() {
        return day.to_zoned(now.time_zone().clone()).ok()?.start_of_day().ok();
    }
    at(day, clock_time(rest.strip_prefix(' ')?)?, now)
}

fn clock_time(text: &str) -> Option<Time> {
    if is_shaped(text, "0:00") {
        return format!("0{text}").parse().ok();
    }
    (is_shaped(text, "00:00") || is_shaped(text, "00:00:00")).then(|| text.parse().ok()).flatten()
}

fn at(day: Date, time: Time, now: &Zoned) -> Option<Zoned> {
    DateTime::from_parts(day, time).to_zoned(now.time_zone().clone()).ok()
}

/// Seconds since the Unix epoch, with at most nine digits after a point.
fn epoch(text: &str) -> Read {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return if whole.strip_prefix('-').is_some_and(digits) { Read::TooEarly } else { Read::Nothing };
    }
    let nanos = format!("{fraction:0<9}").parse::<i32>();
    match (whole.parse::<i64>(), nanos) {
        (Ok(seconds), Ok(nanos)) => jiff::Timestamp::new(seconds, nanos).map_or(Read::Future, Read::At),
        _ => Read::Future,
    }
}

/// A date, a date and a clock time, or RFC 3339.
fn written(text: &str, now: &Zoned) -> Read {
    let Some(day) = text.get(..10).filter(|day| is_shaped(day, "0000-00-00")).and_then(|day| day.parse::<Date>().ok())
    else {
        return Read::Nothing;
    };
    // The last day of the year 9999 has no place on jiff's line of time.
    if day.year() > now.year().saturating_add(1) {
        return Read::Future;
    }
    match text.get(10..) {
        None | Some("") => day.to_zoned(now.time_zone().clone()).and_then(|day| day.start_of_day()).ok().into(),
        Some(rest) => {
            let Some(time) = rest.strip_prefix([' ', 't']) else { return Read::Nothing };
            match clock_time(time) {
                Some(time) => at(day, time, now).into(),
                // RFC 3339 section 5.6, with its offset.
                None => text.to_ascii_uppercase().parse().map_or(Read::Nothing, Read::At),
            }
        }
    }
}

/// Whether `text` has a digit wherever `shape` has a `0`, and is the same elsewhere.
fn is_shaped(text: &str, shape: &str) -> bool {
    text.len() == shape.len()
        && text.bytes().zip(shape.bytes()).all(|(c, s)| if s == b'0' { c.is_ascii_digit() } else { c == s })
}

/// The unit that a word means, as an index into weeks, days, hours, minutes, seconds.
fn unit(word: &str) -> Option<usize> {
    Some(match word {
        "w" | "week" | "weeks" => 0,
        "d" | "day" | "days" => 1,
        "h" | "hour" | "hours" => 2,
        "m" | "min" | "mins" | "minute" | "minutes" => 3,
        "s" | "sec" | "secs" | "second" | "seconds" => 4,
        _ => return None,
    })
}

/// `2h30m`, `2 hours 30 min`: how many of each unit; each unit at most once.
fn counts(text: &str) -> Option<[Option<i64>; 5]> {
    let mut counts = [None; 5];
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let tail = tail.trim_start();
        let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (word, tail) = tail.split_at(letters);
        let place = counts.get_mut(unit(word)?)?;
        if place.replace(number.parse().ok()?).is_some() {
            return None;
        }
        rest = tail.trim_start();
    }
    Some(counts)
}

/// Weeks and days are those of the calendar: `1d` before a change of the clocks is the same time of the day before.
fn spelt_span(text: &str) -> Option<Span> {
    let [weeks, days, hours, minutes, seconds] = counts(text)?.map(|count| count.unwrap_or(0));
    Span::new()
        .try_weeks(weeks)
        .and_then(|span| span.try_days(days))
        .and_then(|span| span.try_hours(hours))
        .and_then(|span| span.try_minutes(minutes))
        .and_then(|span| span.try_seconds(seconds))
        .ok()
}

/// A lapse of time, where a day is 24 hours.
pub fn parse_lapse(text: &str) -> Result<Duration, InvalidLapse> {
    let invalid = || InvalidLapse(text.chars().take(MOMENT_TEXT_LIMIT).collect());
    let counts = counts(&text.to_ascii_lowercase()).ok_or_else(invalid)?;
    let seconds = counts.iter().zip([604_800, 86_400, 3_600, 60, 1]).try_fold(0_u64, |sum, (count, unit)| {
        sum.checked_add(u64::try_from(count.unwrap_or(0)).ok()?.checked_mul(unit)?)
    });
    seconds.map(Duration::from_secs).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use jiff::tz::TimeZone;
    use proptest::prelude::*;

    use super::*;

    /// New York's rules, which do not need a time zone database: forward on March 8, back on November 1, 2026.
    fn new_york() -> TimeZone {
        TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap()
    }

    /// São Paulo as it was: clocks leap at midnight, so that a day begins at 01:00.
    fn midnight_leap() -> TimeZone {
        TimeZone::posix("<-03>3<-02>,M10.3.0/0,M2.3.0/0").unwrap()
    }

    fn zoned(text: &str, zone: TimeZone) -> Zoned {
        text.parse::<jiff::Timestamp>().unwrap().to_zoned(zone)
    }

    fn check(zone: &TimeZone, now: &str, cases: &[(&str, &str)]) {
        let now = zoned(now, zone.clone());
        for (text, expected) in cases {
            let read = match parse(text, &now) {
                Ok(moment) => moment.to_string(),
                Err(error) => error.to_string(),
            };
            assert_eq!(&read, expected, "{text}");
        }
    }

    #[test]
    fn every_form_is_read() {
        check(
            &TimeZone::UTC,
            "2026-11-24T10:03:11.5Z",
            &[
                ("now", "2026-11-24T10:03:11.5Z"),
                ("2h", "2026-11-24T08:03:11.5Z"),
                ("2H", "2026-11-24T08:03:11.5Z"),
                ("2h30m", "2026-11-24T07:33:11.5Z"),
                ("2h 30m ago", "2026-11-24T07:33:11.5Z"),
                ("30m2h", "2026-11-24T07:33:11.5Z"),
                ("90s", "2026-11-24T10:01:41.5Z"),
                ("7d", "2026-11-17T10:03:11.5Z"),
                ("1w", "2026-11-17T10:03:11.5Z"),
                ("2h ago", "2026-11-24T08:03:11.5Z"),
                ("2 hours ago", "2026-11-24T08:03:11.5Z"),
                ("-2h", "2026-11-24T08:03:11.5Z"),
                ("0s", "2026-11-24T10:03:11.5Z"),
                ("today", "2026-11-24T00:00:00Z"),
                ("yesterday", "2026-11-23T00:00:00Z"),
                ("yesterday 18:30", "2026-11-23T18:30:00Z"),
                (" Yesterday  18:30 ", "2026-11-23T18:30:00Z"),
                ("today 9:05", "2026-11-24T09:05:00Z"),
                ("10:00", "2026-11-24T10:00:00Z"),
                ("9:00", "2026-11-24T09:00:00Z"),
                ("10:03:11", "2026-11-24T10:03:11Z"),
                ("2026-11-21", "2026-11-21T00:00:00Z"),
                ("2026-11-21 10:00", "2026-11-21T10:00:00Z"),
                ("2026-11-21T10:00:30", "2026-11-21T10:00:30Z"),
                ("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z"),
                ("2026-11-21t10:00:00.25z", "2026-11-21T10:00:00.25Z"),
                ("2026-11-21T10:00:00+02:00", "2026-11-21T08:00:00Z"),
                ("2026-11-21 10:00:00-05:00", "2026-11-21T15:00:00Z"),
                ("@1763632800", "2025-11-20T10:00:00Z"),
                ("@1763632800.5", "2025-11-20T10:00:00.5Z"),
                ("@0", "1970-01-01T00:00:00Z"),
            ],
        );
    }

    #[test]
    fn the_future_is_refused_and_named() {
        check(
            &TimeZone::UTC,
            "2026-11-24T10:03:11Z",
            &[
                ("tomorrow", "`tomorrow` lies in the future"),
                ("in 2h", "`in 2h` lies in the future"),
                ("+2h", "`+2h` lies in the future"),
                ("10:04", "`10:04` lies in the future"),
                ("2026-11-25", "`2026-11-25` lies in the future"),
                ("2026-11-24T10:03:12Z", "`2026-11-24T10:03:12Z` lies in the future"),
                ("@9999999999999999999999", "`@9999999999999999999999` lies in the future"),
                ("9999-12-31", "`9999-12-31` lies in the future"),
            ],
        );
    }

    #[test]
    fn what_is_no_time_is_refused_and_named() {
        let long = "9".repeat(200);
        let long_expected = format!("`{}` is no time", "9".repeat(MOMENT_TEXT_LIMIT));
        check(
            &TimeZone::UTC,
            "2026-11-24T10:03:11Z",
            &[
                ("", "`` is no time"),
                ("2", "`2` is no time"),
                ("h", "`h` is no time"),
                ("2x", "`2x` is no time"),
                ("2h2h", "`2h2h` is no time"),
                ("2h ago ago", "`2h ago ago` is no time"),
                ("ago", "`ago` is no time"),
                ("1.5h", "`1.5h` is no time"),
                ("25:00", "`25:00` is no time"),
                ("10:60", "`10:60` is no time"),
                ("10", "`10` is no time"),
                ("2026-02-30", "`2026-02-30` is no time"),
                ("2026-13-01", "`2026-13-01` is no time"),
                ("20261121", "`20261121` is no time"),
                ("2026-11-21x", "`2026-11-21x` is no time"),
                ("2026-11-21 ", "2026-11-21T00:00:00Z"),
                ("2026-11-21 25:00", "`2026-11-21 25:00` is no time"),
                ("yesterdayx", "`yesterdayx` is no time"),
                ("@", "`@` is no time"),
                ("@1e9", "`@1e9` is no time"),
                ("@-5", "`@-5` lies before 1970"),
                ("1969-12-31", "`1969-12-31` lies before 1970"),
                ("9999w", "`9999w` lies before 1970"),
                ("99999999999999999999d", "`99999999999999999999d` is no time"),
                ("gestern ü", "`gestern ü` is no time"),
                (&long, &long_expected),
            ],
        );
    }

    #[test]
    fn where_clocks_leap_forward_the_time_after_the_leap_is_meant() {
        // 02:00 EST became 03:00 EDT on March 8.
        check(
            &new_york(),
            "2026-03-08T16:00:00Z",
            &[
                ("02:30", "2026-03-08T07:30:00Z"),
                ("01:59", "2026-03-08T06:59:00Z"),
                ("03:00", "2026-03-08T07:00:00Z"),
                ("today", "2026-03-08T05:00:00Z"),
                ("yesterday", "2026-03-07T05:00:00Z"),
                // A day of the calendar had 23 hours.
                ("1d", "2026-03-07T17:00:00Z"),
                ("24h", "2026-03-07T16:00:00Z"),
                ("12h", "2026-03-08T04:00:00Z"),
            ],
        );
    }

    #[test]
    fn where_clocks_are_set_back_the_first_of_two_equal_times_is_meant() {
        // 02:00 EDT became 01:00 EST on November 1.
        check(
            &new_york(),
            "2026-11-01T17:00:00Z",
            &[
                ("01:30", "2026-11-01T05:30:00Z"),
                ("2026-11-01 01:30", "2026-11-01T05:30:00Z"),
                ("2026-11-01T01:30:00-05:00", "2026-11-01T06:30:00Z"),
                ("02:00", "2026-11-01T07:00:00Z"),
                ("1d", "2026-10-31T16:00:00Z"),
                ("24h", "2026-10-31T17:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_day_without_a_midnight_begins_when_it_begins() {
        check(
            &midnight_leap(),
            "2026-10-18T15:00:00Z",
            &[
                ("today", "2026-10-18T03:00:00Z"),
                ("2026-10-18", "2026-10-18T03:00:00Z"),
                ("00:30", "2026-10-18T03:30:00Z"),
                ("yesterday", "2026-10-17T03:00:00Z"),
            ],
        );
    }

    #[test]
    fn the_zone_decides_what_today_is() {
        check(
            &new_york(),
            "2026-11-24T03:00:00Z",
            &[
                ("today", "2026-11-23T05:00:00Z"),
                ("22:00", "2026-11-24T03:00:00Z"),
                ("22:01", "`22:01` lies in the future"),
            ],
        );
    }

    #[test]
    fn lapses_are_read_and_bounded() {
        for (text, seconds) in [("90s", 90), ("1h", 3_600), ("2h30m", 9_000), ("1d", 86_400), ("2w", 1_209_600)] {
            assert_eq!(parse_lapse(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "1", "h", "-1h", "1h ago", "99999999999999999w", "1.5h"] {
            assert!(parse_lapse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic_or_name_the_future(text in "\\PC{0,70}", now in 0_i64..4_000_000_000) {
            let now = jiff::Timestamp::from_second(now).unwrap().to_zoned(new_york());
            if let Ok(moment) = parse(&text, &now) {
                prop_assert!(moment <= now.timestamp() && moment >= jiff::Timestamp::UNIX_EPOCH);
            }
        }

        #[test]
        fn near_misses_do_not_make_the_parser_panic(text in "[-@+0-9:.wdhmstz ]{0,40}") {
            let now = zoned("2026-11-24T10:03:11Z", midnight_leap());
            if let Ok(moment) = parse(&text, &now) {
                prop_assert!(moment <= now.timestamp());
            }
        }

        #[test]
        fn a_moment_of_a_second_reads_as_it_is_written(second in 0_i64..1_795_000_000) {
            let now = zoned("2026-11-24T10:03:11Z", new_york());
            let moment = jiff::Timestamp::from_second(second).unwrap();
            prop_assert_eq!(parse(&moment.to_string(), &now), Ok(moment));
            prop_assert_eq!(parse(&format!("@{second}"), &now), Ok(moment));
        }

        #[test]
        fn so_many_seconds_ago_is_so_many_seconds_ago(seconds in 0_i64..100_000_000) {
            let now = zoned("2026-11-24T10:03:11Z", new_york());
            let expected = now.timestamp() - Span::new().seconds(seconds);
            prop_assert_eq!(parse(&format!("{seconds}s"), &now), Ok(expected));
            prop_assert_eq!(parse(&format!("{}h{}s", seconds / 3600, seconds % 3600), &now), Ok(expected));
        }
    }
}
