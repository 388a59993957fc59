//! When a certificate is due to be replaced. Pure.

use std::time::Duration;

use fleetsock_proto::{root::Renewal, time::Timestamp};

/// A certificate is replaced after this part of its life: of seven days, daily.
const PART_OF_LIFE: u32 = 7;
/// And up to this part of its life later, so that a fleet that enrolled at once does not renew at once.
const SPREAD: u32 = 70;
/// How long to wait after it did not work; the server takes one request a minute.
pub const RETRY: Duration = Duration::from_secs(600);

/// The bounds of the time within which a server may have certificates renewed. Never at once: certificates that are made
/// within one second cannot be told apart by when they begin.
const WITHIN: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// How long from now until a certificate is due; `dice` is a random number that stays the same for a certificate.
pub fn due_in(begins_at: Timestamp, expires_at: Timestamp, now: Timestamp, dice: u64) -> Duration {
    let life = expires_at.since(begins_at);
    let spread = part(life / SPREAD, dice);
    begins_at.plus(life / PART_OF_LIFE + spread).since(now)
}

/// How long from now until a certificate is replaced that the server wants to be replaced before its time; `None` when it
/// does not want that.
pub fn hastened(renewal: Option<Renewal>, begins_at: Timestamp, dice: u64) -> Option<Duration> {
    let Renewal { within, .. } = renewal.filter(|renewal| begins_at < renewal.before)?;
    Some(*WITHIN.start() + part(within.clamp(*WITHIN.start(), *WITHIN.end()), dice))
}

/// A random part of a time.
fn part(of: Duration, dice: u64) -> Duration {
    // 53 bits are what a float holds exactly.
    of.mul_f64((dice >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

    #[test]
    fn a_certificate_is_replaced_before_its_time_only_when_it_is_too_old_and_never_at_once() {
        let renewal = |within_s| Some(Renewal { before: day(2.0), within: Duration::from_secs(within_s) });
        for (what, renewal, begins_at, dice, expected_ms) in [
            ("nobody wants it", None, day(1.0), u64::MAX, None),
            ("it is new enough", renewal(10), day(2.0), u64::MAX, None),
            ("the first of all", renewal(10), day(1.9), 0, Some(1_000)),
            ("the last of all", renewal(10), day(1.9), u64::MAX, Some(11_000)),
            ("a server in a hurry", renewal(0), day(1.9), u64::MAX, Some(2_000)),
            ("a server with too much time", renewal(u64::from(u32::MAX)), day(1.9), u64::MAX, Some(3_601_000)),
        ] {
            let found = hastened(renewal, begins_at, dice).map(|wait| wait.as_secs_f64() * 1e3);
            let matches = match (found, expected_ms) {
                (Some(found), Some(expected)) => (found - f64::from(expected)).abs() < 1.0,
                (found, expected) => found.is_none() && expected.is_none(),
            };
            assert!(matches, "{what}: {found:?}");
        }
    }

    fn day(days: f64) -> Timestamp {
        Timestamp::from_micros((days * DAY as f64 * 1e6) as i64)
    }

    #[test]
    fn a_certificate_of_seven_days_is_due_after_one_day_and_at_most_a_tenth_more() {
        for (now, dice, expected_s) in [
            (0.0, 0, DAY),
            (0.5, 0, DAY / 2),
            (1.0, 0, 0),
            (6.0, 0, 0),
            (0.0, u64::MAX, DAY + DAY / 10),
            // A clock that is wrong by years.
            (400.0, 0, 0),
        ] {
            assert_eq!(due_in(day(0.0), day(7.0), day(now), dice).as_secs(), expected_s, "day {now}, dice {dice}");
        }
    }
}
