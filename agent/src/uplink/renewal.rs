//! When a certificate is due to be replaced. Pure.

use std::time::Duration;

use fleetsock_proto::time::Timestamp;

/// A certificate is replaced after this part of its life: of seven days, daily.
const PART_OF_LIFE: u32 = 7;
/// And up to this part of its life later, so that a fleet that enrolled at once does not renew at once.
const SPREAD: u32 = 70;
/// How long to wait after it did not work; the server takes one request a minute.
pub const RETRY: Duration = Duration::from_secs(600);

/// How long from now until a certificate is due; `dice` is a random number that stays the same for a certificate.
pub fn due_in(begins_at: Timestamp, expires_at: Timestamp, now: Timestamp, dice: u64) -> Duration {
    let life = expires_at.since(begins_at);
    let spread = (life / SPREAD).mul_f64((dice >> 11) as f64 / (1_u64 << 53) as f64);
    begins_at.plus(life / PART_OF_LIFE + spread).since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;

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
