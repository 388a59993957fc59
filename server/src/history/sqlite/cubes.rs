//! Sums beside many rows: how many sessions and bytes there were by service, and by host and program, each for the hours in
//! which they opened and closed. A summary reads these in place of the rows, as far as hours tell which rows are meant.
//!
//! Sums are kept apart for each hour of closing, so that a question reads those of its window: for each of an hour all
//! sessions ([`merge`]), and apart what of them opened earlier, which is little and which most questions do not need
//! ([`each`]). A sealed file also has those of all hours together, of a few consecutive ones, and of what was open when an hour
//! began; of these as few are read as tell what a question means, in part by taking off what it does not ([`Choice`]).

use fleetsock_proto::socket::Direction;
use rusqlite::Connection;

pub(super) use self::{
    adding::Cubes,
    choosing::{Choice, Run, Stored, Told},
    encoding::each,
    merging::{Balance, Balances, Part, merge},
    together::{Expected, store_together},
};
use super::{
    sealed::{Damaged, Reading, Writing},
    stored::StoredSession,
    sums::{Counts, beginning, end, hour},
};

mod adding;
mod choosing;
mod encoding;
mod merging;
mod together;

/// When sessions opened and closed, as exactly as sums tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Span {
    /// The hour in which they closed.
    closed: i64,
    /// Twice the hour in which they opened, and one more unless that was its first microsecond: windows end there.
    opened: i64,
}

/// Between which times sessions opened that closed within an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hour {
    /// The hour.
    pub(super) closed: i64,
    /// The earliest opening and the latest, us.
    pub(super) opened_us: (i64, i64),
}

/// Whether sessions are meant of which no more is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meant {
    Yes,
    No,
    /// Some may be.
    Unclear,
}

impl Hour {
    /// Whether those are meant that closed after the first moment, not after the second, and opened not after the third.
    pub(super) fn is_meant(self, [after, last, until]: [i64; 3]) -> Meant {
        let (first_closing, last_closing) = (beginning(self.closed), end(self.closed));
        let (first_opening, last_opening) = self.opened_us;
        if last_closing <= after || first_closing > last || first_opening > until {
            Meant::No
        } else if first_closing > after && last_closing <= last && last_opening <= until {
            Meant::Yes
        } else {
            Meant::Unclear
        }
    }
}

impl Span {
    pub(super) fn of(opened_at_us: i64, closed_at_us: i64) -> Span {
        let opened = hour(opened_at_us);
        let within = i64::from(beginning(opened) != opened_at_us);
        Span { closed: hour(closed_at_us), opened: Span::beginning(opened).saturating_add(within) }
    }

    /// Those that opened in the hour in which they closed, after its first microsecond: most.
    const fn within(closed: i64) -> Span {
        Span { closed, opened: Span::beginning(closed).saturating_add(1) }
    }

    /// What is told of those that opened in the first microsecond of an hour: whoever opened before it has less.
    const fn beginning(hour: i64) -> i64 {
        hour.saturating_mul(2)
    }

    /// Two numbers, of which [`Span::read`] makes the same.
    pub(super) fn write(self, into: &mut Writing) {
        into.signed(self.closed);
        into.signed(self.opened.wrapping_sub(Span::within(self.closed).opened));
    }

    pub(super) fn read(from: &mut Reading<'_>) -> Result<Span, Damaged> {
        let closed = from.signed()?;
        Ok(Span { closed, opened: from.signed()?.wrapping_add(Span::within(closed).opened) })
    }

    /// The hour in which they closed.
    pub(super) const fn closed(self) -> i64 {
        self.closed
    }

    /// Whether they were open when an hour began: opened not after its first microsecond, and closed in it or later.
    pub(super) const fn is_open_at(self, hour: i64) -> bool {
        self.opened <= Span::beginning(hour) && hour <= self.closed
    }

    /// The first moment and the last at which they may have opened, us.
    pub(super) const fn opened_us(self) -> (i64, i64) {
        let opened = beginning(self.opened.div_euclid(2));
        match self.opened.rem_euclid(2) {
            0 => (opened, opened),
            _ => (opened.saturating_add(1), end(self.opened.div_euclid(2))),
        }
    }

    /// Whether those are meant that are in a window ([`Hour::is_meant`]).
    pub(super) fn is_meant(self, window: [i64; 3]) -> Meant {
        Hour { closed: self.closed, opened_us: self.opened_us() }.is_meant(window)
    }

    /// Some moment of the hour in which they opened.
    pub(super) const fn opened_at_us(self) -> i64 {
        beginning(self.opened.div_euclid(2))
    }
}

/// No time at all.
pub(super) const NOTHING: (i64, i64) = (i64::MAX, i64::MIN);

/// Between which times something is unclear for a window: those who closed within one of the first two, or opened within the
/// third. Of an end at the beginning of an hour nothing is.
pub(super) fn unclear([after, last, until]: [i64; 3]) -> [(i64, i64); 3] {
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
        let closed_at_us = one.closed_at_us();
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

/// By what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Services,
    /// By host and program.
    Owners,
}

impl By {
    /// As it is stored.
    pub(super) const fn number(self) -> i64 {
        match self {
            By::Services => 1,
            By::Owners => 2,
        }
    }

    /// The column that says whether there are such sums of some rows.
    pub(super) const fn column(self) -> &'static str {
        match self {
            By::Services => "services",
            By::Owners => "owners",
        }
    }
}

/// Whether a file has sums: some that earlier versions sealed have none.
pub(super) fn are_told(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.table_exists(None, "cube_hours")
}

/// Whether a file has sums of all hours together.
pub(super) fn have_totals(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.table_exists(None, "cube_totals")
}

/// Whether a file may have sums of runs of hours, and of what was open when one began.
pub(super) fn have_runs(connection: &Connection) -> Result<bool, rusqlite::Error> {
    connection.table_exists(None, "cube_open")
}

/// Shows the hosts of which there are sums, by the bytes that say so.
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
    use proptest::prelude::*;

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
        fn of_a_window_of_whole_hours_nothing_is_unclear(
            begin in -4_i64..4, length in 0_i64..9, last in prop_oneof![Just(i64::MAX), Just(7 * HOUR - 1)]
        ) {
            let window = [begin * HOUR - 1, last, (begin + length) * HOUR];
            prop_assert!(unclear(window).iter().all(|(begin, end)| begin > end), "{window:?}");
        }

        #[test]
        fn a_service_is_what_it_was(direction: i32, protocol: i32, family: i32, port: u16) {
            let service = Service { direction, protocol, family, port };
            prop_assert_eq!(Service::of(service.what()), Ok(service));
        }
    }
}
