//! How long to wait before the next connection. Pure.

use std::time::Duration;

/// The first wait is at most this long, each further one at most twice as long.
const FIRST: Duration = Duration::from_secs(1);
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest wait that a server may ask for.
const ASKED_LONGEST: Duration = Duration::from_secs(300);

/// How a stream ended, or why there was none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The agent has another certificate now.
    Renewed,
    /// What the host says of itself has changed.
    Retold,
    /// The server asked to come back later.
    Bye {
        /// Why.
        reason: String,
        /// When.
        after: Duration,
    },
    /// The server does not accept the certificate.
    Refused(String),
    /// The server cannot be reached or does not answer.
    Lost(String),
    /// The agent stops.
    Left,
}

/// Remembers how often it did not work.
#[derive(Debug, Default)]
pub struct Patience {
    failures: u32,
}

impl Patience {
    /// It works: the next failure is the first.
    pub fn proved(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after an ending; `dice` is a random number. Waits are spread, so that ten thousand agents do
    /// not come back in the same second.
    pub fn wait(&mut self, ending: &Ending, dice: u64) -> Duration {
        match ending {
            Ending::Renewed | Ending::Retold | Ending::Left => Duration::ZERO,
            Ending::Bye { after, .. } => {
                let after = (*after).min(ASKED_LONGEST);
                after + part(after, dice)
            }
            Ending::Refused(_) => LONGEST + part(LONGEST / 10, dice),
            Ending::Lost(_) => {
                let longest = LONGEST.min(FIRST * 2_u32.saturating_pow(self.failures));
                self.failures = self.failures.saturating_add(1);
                part(longest, dice)
            }
        }
    }
}

/// A random part of a time.
fn part(of: Duration, dice: u64) -> Duration {
    // 53 bits are what a float holds exactly.
    of.mul_f64((dice >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: u64 = 0;
    const MOST: u64 = u64::MAX;

    fn lost() -> Ending {
        Ending::Lost("no route to host".to_owned())
    }

    #[test]
    fn waits_grow_to_a_minute_and_begin_anew_after_a_success() {
        let mut patience = Patience::default();
        let waits: Vec<u64> = (0..8).map(|_| patience.wait(&lost(), MOST).as_secs_f64().round() as u64).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(patience.wait(&lost(), LEAST), Duration::ZERO);
        patience.proved();
        assert_eq!(patience.wait(&lost(), MOST).as_secs_f64().round(), 1.0);
        for _ in 0..100 {
            assert!(patience.wait(&lost(), MOST) <= LONGEST);
        }
    }

    #[test]
    fn a_refused_certificate_is_shown_again_once_a_minute() {
        let mut patience = Patience::default();
        let refused = Ending::Refused("revoked".to_owned());
        assert_eq!(patience.wait(&refused, LEAST), LONGEST);
        assert!(patience.wait(&refused, MOST) <= LONGEST * 11 / 10);
    }

    #[test]
    fn a_server_may_ask_for_a_pause_within_bounds_and_a_new_certificate_is_shown_at_once() {
        let mut patience = Patience::default();
        let bye = |s| Ending::Bye { reason: String::new(), after: Duration::from_secs(s) };
        assert_eq!(patience.wait(&bye(5), LEAST), Duration::from_secs(5));
        assert!(patience.wait(&bye(5), MOST) <= Duration::from_secs(10));
        assert_eq!(patience.wait(&bye(86_400), LEAST), ASKED_LONGEST);
        assert_eq!(patience.wait(&Ending::Renewed, MOST), Duration::ZERO);
        assert_eq!(patience.wait(&Ending::Retold, MOST), Duration::ZERO);
    }
}
