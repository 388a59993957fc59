//! How often somebody may ask: a bucket of tokens for each, which refills at a steady rate.
//!
//! A bucket is one number: the moment when it will be full again (the generic cell rate algorithm, ITU-T I.371). A full
//! bucket needs no memory, so only those who asked lately take room.

use std::{
    collections::HashMap,
    hash::Hash,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fleetsock_proto::host::HostId;
use tokio::time::Instant;

use crate::gate::counted;

/// Buckets beyond which the full ones are thrown away.
const SWEEP_AT: usize = 1024;

/// What a message of an agent costs besides its rows, in rows: about what storing an empty batch takes of the writer.
const MESSAGE_ROWS: u32 = 256;

/// How often, and how much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many ...
    pub times: u32,
    /// ... within this time, steadily.
    pub within: Duration,
    /// So many at once after a pause.
    pub burst: u32,
}

impl Rate {
    /// So many a second.
    pub const fn per_second(times: u32, burst: u32) -> Rate {
        Rate { times, within: Duration::from_secs(1), burst }
    }

    /// So many a minute.
    pub const fn per_minute(times: u32, burst: u32) -> Rate {
        Rate { times, within: Duration::from_secs(60), burst }
    }

    /// The time that one costs.
    fn cost(self) -> Duration {
        self.within / self.times.max(1)
    }

    /// When a bucket that is full at `full_at` will be full after one more is taken, or how long to wait for one.
    fn take(self, full_at: Option<Instant>, now: Instant) -> Result<Instant, Duration> {
        let after = full_at.map_or(now, |full_at| full_at.max(now)) + self.cost();
        let most = self.cost() * self.burst.max(1);
        match (after - now).checked_sub(most) {
            None | Some(Duration::ZERO) => Ok(after),
            Some(wait) => Err(wait),
        }
    }

    /// When a bucket that is full at `full_at` will be full after `count` more were taken, whether they were there or
    /// not, and how long to wait until they would have been.
    fn take_on_credit(self, full_at: Option<Instant>, count: u32, now: Instant) -> (Instant, Duration) {
        let after = full_at.map_or(now, |full_at| full_at.max(now)) + self.cost() * count;
        (after, (after - now).saturating_sub(self.cost() * self.burst.max(1)))
    }
}

/// A bucket for each of many.
#[derive(Debug)]
struct Buckets<K> {
    rate: Rate,
    full_at: HashMap<K, Instant>,
    sweep_at: usize,
}

impl<K: Hash + Eq> Buckets<K> {
    fn new(rate: Rate) -> Buckets<K> {
        Buckets { rate, full_at: HashMap::new(), sweep_at: SWEEP_AT }
    }

    fn look(&self, key: &K, now: Instant) -> Result<Instant, Duration> {
        self.rate.take(self.full_at.get(key).copied(), now)
    }

    fn set(&mut self, key: K, full_at: Instant, now: Instant) {
        self.full_at.insert(key, full_at);
        if self.full_at.len() > self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.sweep_at = SWEEP_AT.max(2 * self.full_at.len());
        }
    }

    fn take(&mut self, key: K, now: Instant) -> Result<(), Duration> {
        let full_at = self.look(&key, now)?;
        self.set(key, full_at, now);
        Ok(())
    }
}

/// The rates of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimits {
    /// Attempts to enrol, from all addresses together.
    pub enrolments: Rate,
    /// From one address.
    pub enrolments_per_address: Rate,
    /// Renewals of one agent.
    pub renewals: Rate,
    /// Streams that one agent begins.
    pub streams: Rate,
    /// Rows that one agent reports.
    pub rows: Rate,
    /// Calls of one operator.
    pub calls: Rate,
}

impl Default for RateLimits {
    fn default() -> RateLimits {
        RateLimits {
            enrolments: Rate::per_second(100, 200),
            enrolments_per_address: Rate::per_minute(60, 60),
            renewals: Rate::per_minute(1, 3),
            streams: Rate::per_minute(60, 60),
            rows: Rate::per_second(50_000, 1_000_000),
            calls: Rate::per_second(20, 100),
        }
    }
}

/// Keeps everybody to the rates.
#[derive(Debug)]
pub struct Rates(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    enrolments: Buckets<()>,
    enrolments_per_address: Buckets<IpAddr>,
    renewals: Buckets<HostId>,
    streams: Buckets<HostId>,
    rows: Buckets<HostId>,
    calls: Buckets<String>,
}

impl Rates {
    /// Full buckets.
    pub fn new(limits: &RateLimits) -> Rates {
        Rates(Mutex::new(Kept {
            enrolments: Buckets::new(limits.enrolments),
            enrolments_per_address: Buckets::new(limits.enrolments_per_address),
            renewals: Buckets::new(limits.renewals),
            streams: Buckets::new(limits.streams),
            rows: Buckets::new(limits.rows),
            calls: Buckets::new(limits.calls),
        }))
    }

    fn kept<T>(&self, take: impl FnOnce(&mut Kept) -> Result<T, Duration>) -> Result<T, Duration> {
        // Each map is whole after every statement, so a panic elsewhere does not spoil them.
        take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Somebody at this address wants to enrol; how long to wait when that is too often. A refused attempt takes
    /// nothing from anybody's bucket and no memory, so that one address can neither shut others out nor fill the table.
    pub fn enrol(&self, address: Option<IpAddr>, now: Instant) -> Result<(), Duration> {
        self.kept(|kept| {
            let all = kept.enrolments.look(&(), now)?;
            if let Some(address) = address.map(counted) {
                kept.enrolments_per_address.take(address, now)?;
            }
            kept.enrolments.set((), all, now);
            Ok(())
        })
    }

    /// An agent wants another certificate.
    pub fn renew(&self, host: HostId, now: Instant) -> Result<(), Duration> {
        self.kept(|kept| kept.renewals.take(host, now))
    }

    /// An agent begins a stream.
    pub fn begin_stream(&self, host: HostId, now: Instant) -> Result<(), Duration> {
        self.kept(|kept| kept.streams.take(host, now))
    }

    /// An agent reported so many rows in one message; how long not to listen to it, so that it keeps to its rate. What
    /// it reported is taken all the same, because it would only come again.
    pub fn report(&self, host: HostId, rows: usize, now: Instant) -> Duration {
        let count = u32::try_from(rows).unwrap_or(u32::MAX).saturating_add(MESSAGE_ROWS);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = &mut kept.rows;
        let (full_at, wait) = rows.rate.take_on_credit(rows.full_at.get(&host).copied(), count, now);
        rows.set(host, full_at, now);
        wait
    }

    /// An operator calls.
    pub fn call(&self, operator: &str, now: Instant) -> Result<(), Duration> {
        self.kept(|kept| kept.calls.take(operator.to_owned(), now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rates: &Rates, address: &str, now: Instant) -> u32 {
        let address = Some(address.parse().unwrap());
        (0..1000).map_while(|_| rates.enrol(address, now).ok()).count() as u32
    }

    fn rates() -> Rates {
        Rates::new(&RateLimits {
            enrolments: Rate::per_second(100, 10),
            enrolments_per_address: Rate::per_second(1, 4),
            ..RateLimits::default()
        })
    }

    #[test]
    fn a_burst_passes_and_then_one_at_a_time() {
        let (rates, begin) = (rates(), Instant::now());
        assert_eq!(taken(&rates, "192.0.2.1", begin), 4);
        let wait = rates.enrol(Some("192.0.2.1".parse().unwrap()), begin).unwrap_err();
        assert_eq!(wait, Duration::from_secs(1));
        let later = begin + wait;
        assert_eq!(taken(&rates, "192.0.2.1", later), 1);
        assert_eq!(
            taken(&rates, "192.0.2.1", later + Duration::from_secs(3600)),
            4,
            "no more than a burst is saved up"
        );
    }

    #[test]
    fn one_address_cannot_shut_others_out_and_all_together_are_bounded() {
        let (rates, begin) = (rates(), Instant::now());
        assert_eq!(taken(&rates, "192.0.2.1", begin), 4);
        assert_eq!(taken(&rates, "192.0.2.2", begin), 4);
        assert_eq!(taken(&rates, "192.0.2.3", begin), 2, "ten in all");
        assert_eq!(taken(&rates, "192.0.2.4", begin), 0);
        // What was refused was not remembered.
        assert_eq!(rates.0.lock().unwrap().enrolments_per_address.full_at.len(), 3);
    }

    #[test]
    fn addresses_of_one_subscriber_share_a_bucket() {
        let (rates, begin) = (rates(), Instant::now());
        assert_eq!(taken(&rates, "2001:db8::1", begin), 4);
        assert_eq!(taken(&rates, "2001:db8::2", begin), 0);
        assert_eq!(taken(&rates, "2001:db8:0:1::1", begin), 4);
    }

    #[test]
    fn an_agent_that_reports_too_much_waits_until_it_keeps_to_its_rate_and_others_do_not() {
        let rows = Rate::per_second(1000, 2 * (1000 + MESSAGE_ROWS));
        let rates = Rates::new(&RateLimits { rows, ..RateLimits::default() });
        let (hostile, honest) = (HostId::random(), HostId::random());
        let begin = Instant::now();
        assert_eq!([0; 2].map(|_| rates.report(hostile, 1000, begin)), [Duration::ZERO; 2]);
        let wait = rates.report(hostile, 1000, begin);
        assert_eq!(wait, Duration::from_millis(1256));
        assert_eq!(rates.report(honest, 1000, begin), Duration::ZERO);
        assert_eq!(rates.report(hostile, 1000, begin + wait), wait, "again after as long");
        assert_eq!(rates.report(hostile, 0, begin), 2 * wait + Duration::from_millis(256), "nothing is not free");
    }

    #[test]
    fn buckets_that_are_full_again_are_forgotten() {
        let rates = Rates::new(&RateLimits::default());
        let mut now = Instant::now();
        for number in 0..10_000 {
            now += Duration::from_secs(1);
            rates.call(&format!("operator{number}"), now).unwrap();
        }
        assert!(rates.0.lock().unwrap().calls.full_at.len() <= SWEEP_AT + 1);
    }
}
