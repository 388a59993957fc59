//! Sums beside many rows: how many sessions and bytes there were by service, and by host and program, each for the hours in
//! which they opened and closed. A summary reads these in place of the rows, as far as hours tell which rows are meant.

use std::collections::BTreeSet;

use fleetsock_proto::socket::Direction;

use super::{
    numbered::Numbered,
    sealed::{Damaged, Reading, Writing},
    stored::StoredSession,
    sums::{Counts, beginning, hour},
};

/// When sessions opened and closed, as exactly as sums tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Span {
    /// The hour in which they closed.
    closed: i64,
    /// Twice the hour in which they opened, and one more unless that was its first microsecond: windows end there.
    opened: i64,
}

/// Whether sessions are meant of which no more is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    Yes,
    No,
    /// Some may be.
    Unclear,
}

impl Span {
    pub(super) fn of(opened_at_us: i64, closed_at_us: i64) -> Span {
        let opened = hour(opened_at_us);
        let within = i64::from(beginning(opened) != opened_at_us);
        Span { closed: hour(closed_at_us), opened: opened.saturating_mul(2).saturating_add(within) }
    }

    /// Whether those are meant that closed after the first moment, not after the second, and opened not after the third.
    pub(super) fn is_meant(self, [after, last, until]: [i64; 3]) -> Meant {
        let opened = beginning(self.opened.div_euclid(2));
        let (first_opening, last_opening) = match self.opened.rem_euclid(2) {
            0 => (opened, opened),
            _ => (opened.saturating_add(1), end(self.opened.div_euclid(2))),
        };
        let (first_closing, last_closing) = (beginning(self.closed), end(self.closed));
        if last_closing <= after || first_closing > last || first_opening > until {
            Meant::No
        } else if first_closing > after && last_closing <= last && last_opening <= until {
            Meant::Yes
        } else {
            Meant::Unclear
        }
    }

    /// Some moment of the hour in which they opened.
    pub(super) fn opened_at_us(self) -> i64 {
        beginning(self.opened.div_euclid(2))
    }
}

/// The last microsecond of an hour.
const fn end(hour: i64) -> i64 {
    beginning(hour.saturating_add(1)).saturating_sub(1)
}

/// Between which times something is unclear for a window: those who closed within one of the first two, or opened within the
/// third. Of an end at the beginning of an hour nothing is.
pub(super) fn unclear([after, last, until]: [i64; 3]) -> [(i64, i64); 3] {
    const NOTHING: (i64, i64) = (i64::MAX, i64::MIN);
    let since = after.saturating_add(1);
    [
        if beginning(hour(since)) == since { NOTHING } else { (since, end(hour(since))) },
        if end(hour(last)) == last { NOTHING } else { (beginning(hour(last)), last) },
        // Who opened in the first microsecond of an hour is told apart.
        if beginning(hour(until)) == until { NOTHING } else { (beginning(hour(until)), until) },
    ]
}

/// What sessions have in common that are counted together: two numbers in each.
pub(super) type What = [i64; 2];

/// A service, as seen from one end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) direction: i32,
    pub(super) protocol: i32,
    pub(super) family: i32,
    pub(super) port: u16,
}

impl Service {
    pub(super) fn what(self) -> What {
        let two = |high: i32, low: u32| i64::from(high) << 32 | i64::from(low);
        [two(self.direction, self.protocol.cast_unsigned()), two(self.family, self.port.into())]
    }

    /// The service that [`Service::what`] made this of.
    pub(super) fn of([first, second]: What) -> Result<Service, Damaged> {
        let part = |number: i64| i32::try_from(number >> 32).ok().zip(u32::try_from(number & 0xffff_ffff).ok());
        let parts = part(first).zip(part(second));
        let ((direction, protocol), (family, port)) = parts.ok_or(Damaged("a word has too large a number"))?;
        let port = u16::try_from(port).map_err(|_| Damaged("a port is too large"))?;
        Ok(Service { direction, protocol: protocol.cast_signed(), family, port })
    }
}

/// Sums while rows are added.
#[derive(Debug, Default)]
pub(super) struct Cube(Numbered<(What, Span), Counts>);

impl Cube {
    pub(super) fn add(&mut self, what: What, span: Span, counts: Counts) {
        self.0.entry((what, span)).or_default().add(counts);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Writes the sums in order, and forgets them.
    pub(super) fn write(&mut self, into: &mut Encoding) {
        let mut all: Vec<_> = self.0.drain().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().for_each(|((what, span), counts)| into.add(what, span, counts));
    }
}

/// Sums as bytes: each number as its difference to the one before, then what is counted.
#[derive(Debug, Default)]
pub(super) struct Encoding {
    writing: Writing,
    before: [i64; 4],
}

impl Encoding {
    fn add(&mut self, [first, second]: What, span: Span, counts: Counts) {
        let numbers = [first, second, span.closed, span.opened];
        for (number, before) in numbers.into_iter().zip(&mut self.before) {
            self.writing.signed(number.wrapping_sub(*before));
            *before = number;
        }
        let Counts { sessions, bytes_sent, bytes_received } = counts;
        [sessions, bytes_sent, bytes_received].into_iter().for_each(|count| self.writing.unsigned(count));
    }

    /// How many bytes there are so far.
    pub(super) const fn length(&self) -> usize {
        self.writing.length()
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.writing.finish()
    }
}

/// The sums that are in these bytes. After an error there are no more.
pub(super) fn sums(bytes: &[u8]) -> impl Iterator<Item = Result<(What, Span, Counts), Damaged>> {
    let (mut reading, mut before) = (Reading::new(bytes), [0_i64; 4]);
    let mut next = move || {
        // Mostly it is as the one before, and only the hours differ.
        let differ = if reading.skip([0, 0]) { &mut before[2..] } else { &mut before[..] };
        for number in differ {
            *number = number.wrapping_add(reading.signed()?);
        }
        let [first, second, closed, opened] = before;
        let (sessions, bytes_sent) = (reading.unsigned()?, reading.unsigned()?);
        let counts = Counts { sessions, bytes_sent, bytes_received: reading.unsigned()? };
        Ok((reading.rest().is_empty(), ([first, second], Span { closed, opened }, counts)))
    };
    let mut is_over = bytes.is_empty();
    std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let read = next();
        is_over = read.as_ref().map_or(true, |(is_last, _)| *is_last);
        Some(read.map(|(_, sum)| sum))
    })
}

/// What of a row is counted by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts {
    pub(super) host_id: i64,
    pub(super) opened_at_us: i64,
    pub(super) closed_at_us: i64,
    pub(super) service: Service,
    /// Of the primary owner; 0 for none.
    pub(super) program_id: i64,
    pub(super) counts: Counts,
}

impl Facts {
    /// Of a session that is over.
    pub(super) fn of(one: &StoredSession) -> Facts {
        let StoredSession { host_id, direction, protocol, family, opened_at_us, .. } = *one;
        let end = if direction == Direction::In.number() { one.local } else { one.peer };
        let closed_at_us = one.closed.map_or(opened_at_us, |(at, _)| at);
        let service = Service { direction, protocol, family, port: end.port() };
        Facts {
            host_id,
            opened_at_us,
            closed_at_us,
            service,
            program_id: one.owners.program_id,
            counts: Counts::of(one),
        }
    }
}

/// Most sums by service that are held.
const SERVICES_LIMIT: usize = 64 * 1024;
/// Most sums by host and program that are held: an agent says when its sessions opened, so that they may be as many as these.
const OWNERS_HELD: usize = 64 * 1024;
/// Most bytes of sums by host and program.
const OWNERS_BYTES: usize = 16 * 1024 * 1024;

/// Both kinds of sums of rows, while these are added.
#[derive(Debug, Default)]
pub(super) struct Cubes {
    services: Cube,
    /// There are too many services to tell them apart.
    too_many: bool,
    owners: Cube,
    owners_before: Encoding,
    hosts: BTreeSet<i64>,
}

/// Both kinds of sums as bytes; none when they would be too large.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) hosts: Vec<u8>,
    pub(super) services: Option<Vec<u8>>,
    pub(super) owners: Option<Vec<u8>>,
}

impl Cubes {
    pub(super) fn add(&mut self, facts: &Facts) {
        let Facts { host_id, opened_at_us, closed_at_us, service, program_id, counts } = *facts;
        let span = Span::of(opened_at_us, closed_at_us);
        if !self.too_many {
            self.services.add(service.what(), span, counts);
            if self.services.len() > SERVICES_LIMIT {
                (self.services, self.too_many) = (Cube::default(), true);
            }
        }
        self.owners.add([host_id, program_id], span, counts);
        if self.owners.len() >= OWNERS_HELD {
            self.end_hosts();
        }
    }

    /// Writes what is held by host. When rows of these hosts follow, the same is summed twice, which whoever reads adds up.
    pub(super) fn end_hosts(&mut self) {
        self.hosts.extend(self.owners.0.keys().map(|([host, _], _)| *host));
        self.owners.write(&mut self.owners_before);
        if self.owners_before.length() > OWNERS_BYTES {
            // More is not kept; what follows is found to be too much again.
            self.owners_before.writing.truncate(OWNERS_BYTES + 1);
        }
    }

    pub(super) fn finish(mut self) -> Stored {
        self.end_hosts();
        let (mut services, mut hosts, mut before) = (Encoding::default(), Writing::default(), 0);
        self.services.write(&mut services);
        for host in &self.hosts {
            hosts.unsigned(host.wrapping_sub(before).cast_unsigned());
            before = *host;
        }
        let owners = (self.owners_before.length() <= OWNERS_BYTES).then(|| self.owners_before.finish());
        Stored { hosts: hosts.finish(), services: (!self.too_many).then(|| services.finish()), owners }
    }
}

/// Shows the hosts that are in [`Stored::hosts`].
pub(super) fn each_host(bytes: &[u8], mut show: impl FnMut(i64)) -> Result<(), Damaged> {
    let (mut reading, mut host) = (Reading::new(bytes), 0_i64);
    while !reading.rest().is_empty() {
        host = host.wrapping_add(reading.unsigned()?.cast_signed());
        show(host);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    const HOUR: i64 = 3_600_000_000;

    fn moment() -> impl Strategy<Value = i64> {
        let around = (-3_i64..4, -2_i64..3).prop_map(|(hour, by)| hour * HOUR + by);
        prop_oneof![around.clone(), around, -4 * HOUR..4 * HOUR, Just(i64::MIN), Just(i64::MAX), Just(i64::MAX - 1)]
    }

    proptest! {
        #[test]
        fn what_hours_tell_is_true_of_each_session_and_what_they_do_not_tell_is_near_an_end_of_the_window(
            opened in -4 * HOUR..4 * HOUR, lasted in prop_oneof![0..3_i64, 0..3 * HOUR], align: bool,
            window in [moment(), moment(), moment()]
        ) {
            let opened = if align { opened / HOUR * HOUR } else { opened };
            let closed = opened + lasted;
            let [after, last, until] = window;
            let is_meant = closed > after && closed <= last && opened <= until;
            match Span::of(opened, closed).is_meant(window) {
                Meant::Yes => prop_assert!(is_meant),
                Meant::No => prop_assert!(!is_meant),
                Meant::Unclear if is_meant => {
                    let [first, second, third] = unclear(window);
                    let within = |(begin, end): (i64, i64), at: i64| begin <= at && at <= end;
                    prop_assert!(within(first, closed) || within(second, closed) || within(third, opened));
                }
                Meant::Unclear => {}
            }
            let span = Span::of(opened, closed);
            prop_assert_eq!(hour(span.opened_at_us()), hour(opened));
        }

        #[test]
        fn sums_are_read_as_they_were_written(
            rows in vec(((-9_i64..9, any::<i64>()), 0..9_i64, 0..9_i64, any::<(u32, u32)>()), 0..60), parts in 1_usize..4
        ) {
            let (mut encoding, mut expected) = (Encoding::default(), HashMap::<_, Counts>::new());
            for part in rows.chunks(rows.len().div_ceil(parts).max(1)) {
                let mut cube = Cube::default();
                for ((first, second), opened, lasted, (sent, received)) in part {
                    let span = Span::of(opened * HOUR / 2, (opened + lasted) * HOUR / 2);
                    let counts = Counts { sessions: 1, bytes_sent: (*sent).into(), bytes_received: (*received).into() };
                    cube.add([*first, *second], span, counts);
                    expected.entry(([*first, *second], span)).or_default().add(counts);
                }
                cube.write(&mut encoding);
                prop_assert_eq!(cube.len(), 0);
            }
            let mut found = HashMap::<_, Counts>::new();
            let bytes = encoding.finish();
            for (what, span, counts) in sums(&bytes).map(Result::unwrap) {
                found.entry((what, span)).or_default().add(counts);
            }
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_make_it_fail_otherwise_than_by_saying_so(bytes: Vec<u8>) {
            let read: Vec<_> = sums(&bytes).collect();
            for (what, span, _) in read.iter().flatten() {
                // Nothing closes after the end of time.
                prop_assert!(span.is_meant([i64::MAX, i64::MAX, i64::MAX]) == Meant::No);
                prop_assert!(Service::of(*what).is_ok_and(|service| service.what() == *what) || Service::of(*what).is_err());
            }
            prop_assert_eq!(read.is_empty(), bytes.is_empty());
            prop_assert!(read.iter().rev().skip(1).all(Result::is_ok), "it goes on after an error");
        }

        #[test]
        fn a_service_is_what_it_was(direction: i32, protocol: i32, family: i32, port: u16) {
            let service = Service { direction, protocol, family, port };
            prop_assert_eq!(Service::of(service.what()), Ok(service));
        }
    }
}
