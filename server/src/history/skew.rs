//! How far the clocks of hosts are from the server's.

use std::time::Duration;

use fleetsock_proto::time::Timestamp;

/// How far a host's clock is from the server's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Skew {
    /// The host's clock less the server's, microseconds.
    pub offset_us: i64,
}

/// Offsets below this many microseconds are not corrected: clocks that are kept by NTP agree better than one message
/// on its way can measure, and a correction that changes with each connection would only blur the order of a host.
pub const SKEW_TOLERANCE_US: i64 = 2_000_000;

impl Skew {
    /// The least offset that explains a message: the host's clock showed `sent_at` at some moment of the time `within` that
    /// ended at `heard_at` of the server's. How long it was on its way, and how long it waited to be read, is not known, and
    /// must not be taken for an offset: it would move everything that the host tells.
    pub fn least(sent_at: Timestamp, heard_at: Timestamp, within: Duration) -> Skew {
        let least = sent_at.as_micros().saturating_sub(heard_at.as_micros());
        let most = least.saturating_add(i64::try_from(within.as_micros()).unwrap_or(i64::MAX));
        Skew { offset_us: if least > 0 { least } else { most.min(0) } }
    }

    /// A moment of the host's clock, by the server's clock.
    pub fn corrected(self, at: Timestamp) -> Timestamp {
        if self.offset_us.abs() < SKEW_TOLERANCE_US {
            at
        } else {
            Timestamp::from_micros(at.as_micros().saturating_sub(self.offset_us))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_was_long_on_its_way_makes_no_offset_of_the_clock() {
        const YEAR: i64 = 365 * 86_400;
        let at = |second: i64| Timestamp::from_micros(second * 1_000_000);
        for (what, sent_at, within_s, expected_s) in [
            ("both clocks are right", 100, 0, 0),
            ("it was on its way as long as the connection is there", 93, 7, 0),
            ("a part of that", 97, 7, 0),
            ("a clock that is ahead", 105, 0, 5),
            ("and a slow message", 105, 7, 5),
            ("a clock that is behind by more than any delay explains", 90, 7, -3),
            ("a year ahead", 100 + YEAR, 1, YEAR),
            ("a year behind", 100 - YEAR, 1, 1 - YEAR),
        ] {
            let Skew { offset_us } = Skew::least(at(sent_at), at(100), Duration::from_secs(within_s));
            assert_eq!(offset_us, expected_s * 1_000_000, "{what}");
        }
    }
}
