//! Sums of sessions that are not kept themselves any more, for a question about sums.

use std::collections::HashMap;

use fleetsock_proto::{
    answer::SumsKept,
    port::PortClass,
    question::{SessionTime, SummaryQuestion},
    socket::{Direction, Family, Protocol},
    summary::Dimension,
    time::Timestamp,
};
use rusqlite::{Connection, Row};

use super::Reader;
use crate::history::{
    HistoryError,
    matching::{Matcher, OwnerNames},
    sqlite::{
        coding,
        parts::Summed,
        roster::{ByNumber, Selected, Selection},
        sums::{self, Counts, OTHERS},
    },
    summing::{Alike, Sums},
};

/// Up to so many hosts are each read by the key of the table; for more, all of it is.
const BY_HOST: usize = 64;
/// Rows between two looks whether to go on.
const LOOK_EVERY: usize = 4096;

/// Between which times only sums are kept, for a window that begins before the end of that.
pub(super) fn kept(reader: &Reader, since: Timestamp) -> Option<SumsKept> {
    let (first, until) = (reader.catalogue.unbroken_sums().first()?, reader.catalogue.horizon?);
    (since < until).then(|| SumsKept { since: first.started_at, until, ..SumsKept::default() })
}

/// What sums do not tell that a question asks for.
fn lacks(question: &SummaryQuestion) -> Vec<String> {
    let sockets = &question.sockets;
    let by_peer = question.by.contains(&Dimension::Peer);
    let only_hosts = question.by.iter().all(|by| matches!(by, Dimension::Peer | Dimension::Host))
        && !sockets.filter.is_about_sockets()
        && sockets.directions.is_empty();
    let all = [
        (!matches!(sockets.time, SessionTime::Within { .. }), "single moments"),
        (!sockets.filter.users.is_empty(), "users"),
        (!sockets.states.is_empty(), "states"),
        (!sockets.peers.is_empty(), "chosen peers"),
        (by_peer && !only_hosts, "peers together with anything but hosts"),
    ];
    all.iter().filter(|(asked, _)| *asked).map(|(_, what)| (*what).to_owned()).collect()
}

/// Counts what only sums are kept of; what of them is in the answer.
pub(super) fn count(
    reader: &Reader,
    selection: &Selection,
    question: &SummaryQuestion,
    into: &mut Sums,
) -> Result<Option<SumsKept>, HistoryError> {
    let (since, until) = match question.sockets.time {
        SessionTime::Within { since, until } => (since, until.unwrap_or(Timestamp::MAX)),
        SessionTime::At(at) => (at, at),
        SessionTime::Now => return Ok(None),
    };
    let Some(mut kept) = kept(reader, since) else { return Ok(None) };
    kept.lacks = lacks(question);
    if !kept.lacks.is_empty() {
        return Ok(Some(kept));
    }
    let window = (since.as_micros(), until.as_micros());
    let matcher = Matcher::new(&question.sockets.filter)?;
    let mut counting = Counting { reader, hosts: selection.by_number(), question, matcher, window, into, unclear: 0 };
    for sums in reader.catalogue.unbroken_sums().iter().filter(|sums| sums.latest >= window.0) {
        counting.file(sums)?;
    }
    (kept.counted, kept.unclear) = (true, counting.unclear);
    Ok(Some(kept))
}

struct Counting<'a> {
    reader: &'a Reader,
    hosts: ByNumber<'a>,
    question: &'a SummaryQuestion,
    matcher: Matcher,
    /// In microseconds, both ends included; of the hours that it touches.
    window: (i64, i64),
    into: &'a mut Sums,
    /// Sessions of which it is not told whether they are meant.
    unclear: u64,
}

/// Whether a sum is of sessions that are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meant {
    Yes,
    No,
    /// What was asked for is not told apart.
    Unclear,
}

impl Counting<'_> {
    fn file(&mut self, sums: &Summed) -> Result<(), HistoryError> {
        self.reader.go_on()?;
        let Some(file) = self.reader.files.open_sums(sums)? else { return Ok(()) };
        let (opened, closed): (i64, i64) =
            file.query_row("SELECT max_opened_at_us, min_closed_at_us FROM spans", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })?;
        let is_whole = closed >= self.window.0 && opened <= self.window.1;
        if is_whole && self.question.by.contains(&Dimension::Peer) {
            return self.each(
                &file,
                "SELECT host_id, peer_address, sessions, bytes_sent, bytes_received FROM peers",
                Self::peer,
            );
        }
        let names: HashMap<i64, String> = file
            .prepare("SELECT id, name FROM names")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let sql = "SELECT host_id, opened_hour, closed_hour, direction, protocol, family, port, name_id, sessions, bytes_sent, \
                   bytes_received FROM sums";
        self.each(&file, sql, |counting, row| counting.sum(row, &names))
    }

    /// Shows the rows of the hosts that are meant.
    fn each(
        &mut self,
        file: &Connection,
        sql: &str,
        mut show: impl FnMut(&mut Self, &Row<'_>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let few = self.hosts.len() <= BY_HOST;
        let mut statement = file.prepare(&if few { format!("{sql} WHERE host_id = ?1") } else { sql.to_owned() })?;
        let hosts: Vec<i64> = self.hosts.numbers().collect();
        let turns: Vec<Option<i64>> = if few { hosts.into_iter().map(Some).collect() } else { vec![None] };
        for turn in turns {
            let mut rows = match turn {
                Some(host) => statement.query([host])?,
                None => statement.query([])?,
            };
            let mut read: usize = 0;
            while let Some(row) = rows.next()? {
                read += 1;
                if read.is_multiple_of(LOOK_EVERY) {
                    self.reader.go_on()?;
                }
                show(self, row)?;
            }
        }
        Ok(())
    }

    fn peer(&mut self, row: &Row<'_>) -> Result<(), HistoryError> {
        let Some(host) = self.hosts.get(row.get(0)?) else { return Ok(()) };
        let address =
            match row.get_ref(1)?.as_blob().map_err(|error| coding::wrong("peer_address", error.to_string()))? {
                [] => None,
                _ => Some(coding::address_of(row.get_ref(1)?)?),
            };
        let alike = Alike { host: name(&host), peer: address, ..Alike::default() };
        self.add(alike, sums::counts(row, 2)?)
    }

    fn sum(&mut self, row: &Row<'_>, names: &HashMap<i64, String>) -> Result<(), HistoryError> {
        let Some(host) = self.hosts.get(row.get(0)?) else { return Ok(()) };
        let (opened, closed): (i64, i64) = (row.get(1)?, row.get(2)?);
        let (since, until) = self.window;
        // An hour that begins where the window ends is none of it.
        if opened > sums::hour(until.saturating_sub(1)) || closed < sums::hour(since) {
            return Ok(());
        }
        let direction = coding::meaning("direction", row.get(3)?, Direction::from_number)?;
        let protocol = coding::meaning("protocol", row.get(4)?, Protocol::from_number)?;
        let family = coding::meaning("family", row.get(5)?, Family::from_number)?;
        let (port, name_id): (i32, i64) = (row.get(6)?, row.get(7)?);
        let told = u16::try_from(port).ok();
        let class = match told {
            Some(port) => PortClass::of(protocol, port),
            None => coding::meaning("port", -port, PortClass::from_number)?,
        };
        let process = if name_id == OTHERS { None } else { Some(names.get(&name_id).map_or("", String::as_str)) };
        let counts = sums::counts(row, 8)?;
        match self.meant(direction, (protocol, family, class), told, process) {
            Meant::No => Ok(()),
            Meant::Unclear => {
                self.unclear = self.unclear.saturating_add(counts.sessions);
                Ok(())
            }
            Meant::Yes => {
                let opened_at = Timestamp::from_micros(sums::beginning(opened));
                let process = process.map(str::to_owned);
                self.add(
                    Alike { host: name(&host), opened_at, protocol, class, port: told, process, peer: None },
                    counts,
                )
            }
        }
    }

    fn meant(
        &self,
        direction: Direction,
        (protocol, family, class): (Protocol, Family, PortClass),
        port: Option<u16>,
        process: Option<&str>,
    ) -> Meant {
        let filter = &self.question.sockets;
        if !(filter.directions.is_empty() || filter.directions.contains(&direction)) {
            return Meant::No;
        }
        let socket = match port {
            Some(port) if self.matcher.matches_socket(protocol, family, port) => Meant::Yes,
            Some(_) => Meant::No,
            None if !self.matcher.matches_class(protocol, family, class) => Meant::No,
            None if self.matcher.asks_for_ports() => Meant::Unclear,
            None => Meant::Yes,
        };
        let owner = |process| OwnerNames { process, user: "", uid: 0 };
        match process {
            _ if socket == Meant::No || !self.matcher.asks_for_owners() => socket,
            None => Meant::Unclear,
            // A session that nobody is known to own has no process.
            Some("") => Meant::No,
            Some(process) if self.matcher.matches_owners(std::iter::once(owner(process))) => socket,
            Some(_) => Meant::No,
        }
    }

    fn add(&mut self, alike: Alike, counts: Counts) -> Result<(), HistoryError> {
        let Counts { sessions, bytes_sent, bytes_received } = counts;
        self.into.add_sessions(alike, [sessions, bytes_sent, bytes_received])
    }
}

fn name(host: &Selected<'_>) -> (String, fleetsock_proto::host::HostId) {
    (host.listed.name.clone(), host.listed.host_id)
}
