//! Calls of operators that were refused, in the audit log: who, what and why.
//!
//! What the log keeps is kept for good, so that nobody may fill it with refusals. Each caller has so many rows a minute, and
//! all who show no certificate have so many together; of the others only the number is written down, when the minute is over.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    api::Clock,
    gate::counted,
    history::{Actor, AuditEntry},
    ledger::Ledger,
    peer::{Caller, Peer},
};

/// What the audit log calls a refused call.
const ACTION: &str = "refused call";
/// How long rows are counted together.
const WINDOW: Duration = Duration::from_secs(60);
/// Rows of one caller within that time.
const CALLER_ROWS: u32 = 10;
/// Rows of all who show no certificate: they can come from any number of addresses.
const ANONYMOUS_ROWS: u32 = 60;
/// Callers that are counted apart, with certificates and without; what further ones do is counted together.
const CALLERS: usize = 4096;

/// Writes refused calls down.
#[derive(Debug)]
pub struct Refusals {
    ledger: Arc<Ledger>,
    clock: Clock,
    counts: Mutex<Counts>,
}

impl Refusals {
    /// Refusals that a ledger takes.
    pub fn new(ledger: Arc<Ledger>, clock: Clock) -> Arc<Refusals> {
        Arc::new(Refusals { ledger, clock, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        // The counts are whole after every statement, so a panic elsewhere does not spoil them.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call was refused. Returns when that is written down, or will be counted.
    pub async fn note(&self, peer: &Peer, call: &str, why: &str) {
        let by = peer.actor((self.clock)());
        let written = self.counts().take(Who::of(peer), &by, Instant::now());
        if written == Written::Row {
            let call = call.strip_prefix("/fleetsock.v1.").unwrap_or(call);
            self.record(by, format!("{call}: {why}")).await;
        }
    }

    /// Writes down how many were left out, each minute until told to stop, and then the rest.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(WINDOW) => self.tell_left_out(Instant::now()).await,
            }
        }
        self.tell_left_out(Instant::now() + WINDOW).await;
    }

    async fn tell_left_out(&self, now: Instant) {
        let left_out = self.counts().over(now);
        for (by, count) in left_out {
            let by = Actor { at: (self.clock)(), ..by };
            self.record(by, format!("{count} more within a minute are not listed")).await;
        }
    }

    /// The call is refused whether that can be written down or not.
    async fn record(&self, by: Actor, detail: String) {
        let entry = AuditEntry { by, action: ACTION, detail, rows: None };
        if let Err(error) = self.ledger.record(entry).await {
            tracing::error!(%error, "a refused call is only in this log");
        }
    }
}

/// Whose rows are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    /// A certificate's holder, however many of them he has.
    Holder(String),
    /// Somebody without one: an address, of IPv6 its /64.
    Anonymous(Option<IpAddr>),
    /// All those that are too many to be counted apart.
    Others,
}

impl Who {
    fn of(peer: &Peer) -> Who {
        match &peer.caller {
            Caller::Anonymous => Who::Anonymous(peer.address.map(counted)),
            caller => Who::Holder(caller.to_string()),
        }
    }
}

/// What becomes of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    /// It gets a row.
    Row,
    /// It is counted.
    LeftOut,
}

/// Rows within a minute.
#[derive(Debug)]
struct Window {
    begun: Instant,
    rows: u32,
    left_out: u64,
    /// The last one, for the row that tells how many were left out.
    by: Actor,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.begun) >= WINDOW
    }
}

/// Who was refused lately, and how often. Pure: the time is given.
#[derive(Debug, Default)]
struct Counts {
    windows: HashMap<Who, Window>,
    /// Rows of all who show no certificate, and since when.
    anonymous: Option<(Instant, u32)>,
    /// Windows that ended while another one was to begin, and whose left out calls nobody was told of.
    ended: Vec<(Actor, u64)>,
}

impl Counts {
    fn take(&mut self, who: Who, by: &Actor, now: Instant) -> Written {
        // Who shows no certificate takes no place of those who do.
        let places = if matches!(who, Who::Holder(_)) { 2 * CALLERS } else { CALLERS };
        let known = self.windows.contains_key(&who) || self.windows.len() < places;
        let who = if known { who } else { Who::Others };
        let is_named = matches!(who, Who::Holder(_));
        let window = || Window { begun: now, rows: 0, left_out: 0, by: by.clone() };
        let entry = self.windows.entry(who).or_insert_with(window);
        if entry.is_over(now) {
            let Window { by, left_out, .. } = std::mem::replace(entry, window());
            self.ended.extend((left_out > 0).then_some((by, left_out)));
        }
        let has_room = entry.rows < CALLER_ROWS && (is_named || take_anonymous(&mut self.anonymous, now));
        if has_room {
            entry.rows += 1;
            return Written::Row;
        }
        // From however many addresses they come, one row tells of those without a certificate.
        let told = if is_named { entry } else { self.windows.entry(Who::Others).or_insert_with(window) };
        told.left_out += 1;
        told.by = by.clone();
        Written::LeftOut
    }

    /// Takes what was left out of the windows that are over.
    fn over(&mut self, now: Instant) -> Vec<(Actor, u64)> {
        let mut left_out = std::mem::take(&mut self.ended);
        let over = self.windows.extract_if(|_, window| window.is_over(now));
        left_out.extend(over.filter(|(_, window)| window.left_out > 0).map(|(_, window)| (window.by, window.left_out)));
        left_out
    }
}

/// Whether one more row of somebody without a certificate may be written.
fn take_anonymous(taken: &mut Option<(Instant, u32)>, now: Instant) -> bool {
    let (begun, rows) = taken.filter(|(begun, _)| now.saturating_duration_since(*begun) < WINDOW).unwrap_or((now, 0));
    let has_room = rows < ANONYMOUS_ROWS;
    *taken = Some((begun, rows + u32::from(has_room)));
    has_room
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::time::Timestamp;

    use super::*;

    fn by(name: &str) -> Actor {
        Actor { name: name.to_owned(), address: "192.0.2.1".to_owned(), at: Timestamp::from_micros(0) }
    }

    fn rows(counts: &mut Counts, who: &Who, calls: u32, now: Instant) -> u32 {
        let taken = (0..calls).map(|_| counts.take(who.clone(), &by("x"), now));
        u32::try_from(taken.filter(|written| *written == Written::Row).count()).unwrap()
    }

    fn address(number: u32) -> Who {
        Who::Anonymous(Some(std::net::Ipv4Addr::from_bits(number).into()))
    }

    #[test]
    fn a_caller_has_so_many_rows_a_minute_and_of_the_rest_the_number_is_told_once() {
        let (mut counts, begin) = (Counts::default(), Instant::now());
        let (alice, bob) = (Who::Holder("alice".to_owned()), Who::Holder("bob".to_owned()));
        assert_eq!(rows(&mut counts, &alice, 1000, begin), CALLER_ROWS);
        assert_eq!(rows(&mut counts, &bob, 3, begin), 3, "others have their own");
        assert_eq!(counts.over(begin + WINDOW / 2), [], "the minute is not over");
        assert_eq!(counts.over(begin + WINDOW), [(by("x"), u64::from(1000 - CALLER_ROWS))]);
        assert_eq!(counts.over(begin + WINDOW), []);
        assert!(counts.windows.is_empty(), "nobody is remembered");
        assert_eq!(rows(&mut counts, &alice, 1000, begin + WINDOW), CALLER_ROWS);
    }

    #[test]
    fn what_was_left_out_is_told_also_when_the_next_minute_begins_before_anybody_asked() {
        let (mut counts, begin) = (Counts::default(), Instant::now());
        let alice = Who::Holder("alice".to_owned());
        rows(&mut counts, &alice, CALLER_ROWS + 5, begin);
        rows(&mut counts, &alice, CALLER_ROWS + 2, begin + WINDOW);
        assert_eq!(counts.over(begin + WINDOW), [(by("x"), 5)]);
        assert_eq!(counts.over(begin + 2 * WINDOW), [(by("x"), 2)]);
    }

    #[test]
    fn those_without_a_certificate_are_bounded_together_and_take_nothing_from_those_with_one() {
        let (mut counts, begin) = (Counts::default(), Instant::now());
        let all: u32 = (0..100).map(|number| rows(&mut counts, &address(number), CALLER_ROWS, begin)).sum();
        assert_eq!(all, ANONYMOUS_ROWS);
        assert_eq!(rows(&mut counts, &Who::Holder("alice".to_owned()), 1, begin), 1);
        let told = counts.over(begin + WINDOW);
        assert_eq!(told, [(by("x"), u64::from(100 * CALLER_ROWS - ANONYMOUS_ROWS))], "one row, from all addresses");
        assert_eq!(rows(&mut counts, &address(1), 1, begin + WINDOW), 1);
    }

    #[test]
    fn however_many_come_few_are_remembered_and_each_is_counted() {
        let (mut counts, begin) = (Counts::default(), Instant::now());
        let many = u32::try_from(3 * CALLERS).unwrap();
        let all: u32 = (0..many).map(|number| rows(&mut counts, &address(number), 1, begin)).sum();
        assert_eq!((all, counts.windows.len()), (ANONYMOUS_ROWS, CALLERS));
        assert_eq!(rows(&mut counts, &Who::Holder("alice".to_owned()), 20, begin), CALLER_ROWS, "who has one is seen");
        let told = counts.over(begin + WINDOW);
        assert_eq!((told.len(), told.iter().map(|(_, count)| count).sum()), (2, u64::from(many - ANONYMOUS_ROWS) + 10));
    }
}
