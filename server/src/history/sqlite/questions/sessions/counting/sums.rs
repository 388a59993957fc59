//! Sums that are kept beside rows, in place of the rows: read are only those of which hours do not tell whether they are meant.

use fleetsock_proto::{
    question::{SessionQuestion, SummaryQuestion},
    socket::{Direction, Family, Protocol, SocketState},
    summary::Dimension,
    time::Timestamp,
};
use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    super::{InFile, Search, meaning::Traits},
    Told,
};
use crate::history::{
    HistoryError,
    sqlite::{
        coding,
        cubes::{self, Balances, By, Choice, Hour, Meant, Part, Run, Service, Span, Stored, What},
        numbered::Numbered,
        sealed::{Column, Damaged, Head},
        stored::StoredSession,
        sums::{self, Counts},
    },
    summing::Sums,
};

/// Which of the sums answer a question; none when only rows do.
pub(super) fn answering(question: &SummaryQuestion) -> Option<By> {
    let SummaryQuestion { sockets: SessionQuestion { filter, directions, states, peers, .. }, by, .. } = question;
    let told_apart =
        !states.is_empty() || !peers.is_empty() || !filter.processes.is_empty() || !filter.users.is_empty();
    let only = |dimensions: &[Dimension]| by.iter().all(|one| dimensions.contains(one));
    if told_apart {
        None
    } else if only(&[Dimension::Host, Dimension::Process, Dimension::Hour])
        && !filter.is_about_sockets()
        && !tells_apart(directions)
    {
        Some(By::Owners)
    } else if only(&[Dimension::Class, Dimension::Service, Dimension::Hour]) {
        Some(By::Services)
    } else {
        None
    }
}

/// Whether directions leave anything out.
pub(super) fn tells_apart(directions: &[Direction]) -> bool {
    !directions.is_empty() && !Direction::ALL.iter().all(|one| directions.contains(one))
}

/// Most groups that are held while sums are read; an agent says when its sessions opened, so that there may be more.
const HELD: usize = 64 * 1024;

/// Totals that are added up together.
const AT_ONCE: usize = 32;

/// What is counted together: what it has in common, and the hour of its opening where sums are by it.
type Group = (What, i64);

/// What is meant of sums that were read, in all files: names are looked up for each group once.
pub(super) struct Read {
    by: By,
    groups: Numbered<Group, Counts>,
    /// The group of the sum that was read last: sums of one group mostly follow each other.
    last: Option<(Group, Counts)>,
    /// The host of the sum that was read last, and whether it is meant: those of a host follow each other.
    host: Option<(i64, bool)>,
}

impl Read {
    pub(super) fn new(by: By) -> Read {
        Read { by, groups: Numbered::default(), last: None, host: None }
    }

    fn means(&mut self, host: i64, is_meant: impl FnOnce(i64) -> bool) -> bool {
        match self.host {
            Some((last, is_meant)) if last == host => is_meant,
            _ => self.host.insert((host, is_meant(host))).1,
        }
    }

    fn add(&mut self, group: Group, counts: Counts) {
        match &mut self.last {
            Some((last, sum)) if *last == group => sum.add(counts),
            last => {
                if let Some((before, sum)) = last.replace((group, counts)) {
                    self.groups.entry(before).or_default().add(sum);
                }
            }
        }
    }

    /// All groups; after that there are none any more.
    fn take(&mut self) -> Numbered<Group, Counts> {
        if let Some((last, sum)) = self.last.take() {
            self.groups.entry(last).or_default().add(sum);
        }
        std::mem::take(&mut self.groups)
    }
}

/// Runs of rows that sums tell of, in ascending order.
pub(super) type Covered = Vec<(i64, i64)>;

fn covers(covered: &Covered, id: i64) -> bool {
    covered.get(covered.partition_point(|(_, last)| *last < id)).is_some_and(|(first, _)| *first <= id)
}

impl Search<'_> {
    /// Counts what is meant in a file whose sums can be used; whether it has such.
    pub(super) fn add_sums(&mut self, file: InFile, read: &mut Read, into: &mut Sums) -> Result<bool, HistoryError> {
        let is_sealed = self.is_sealed(file);
        let (connection, together) = if is_sealed {
            match self.sealed(file)? {
                // An earlier version sealed files without.
                Some((_, outline)) if !outline.sums => return Ok(false),
                Some((sealed, outline)) => (sealed, (outline.totals, outline.runs)),
                None => return Ok(true),
            }
        } else {
            let Some(connection) = self.file(file)? else { return Ok(true) };
            if !self.begins_in_time(file)? {
                return Ok(true);
            }
            (connection, (false, false))
        };
        let window = self.meaning.window.bounds();
        let covered = self.read_sums((connection, together), read, into)?;
        if covered.is_empty() {
            return Ok(false);
        }
        if is_sealed {
            self.add_unclear_blocks(file, connection, into)?;
        } else {
            self.add_other_rows(file, connection, (&covered, cubes::unclear(window)), into)?;
        }
        Ok(true)
    }

    /// Reads what the sums of a file tell of sessions that are meant, which may also be told together; gives which rows they are of.
    fn read_sums(
        &mut self,
        (connection, (whole, runs)): (&Connection, (bool, bool)),
        read: &mut Read,
        into: &mut Sums,
    ) -> Result<Covered, HistoryError> {
        let by = read.by;
        let mut covered = Covered::new();
        let mut statement = connection.prepare_cached(&format!(
            "SELECT first_id, last_id, hosts FROM cubes WHERE {} ORDER BY first_id",
            by.column()
        ))?;
        let mut hours = connection.prepare_cached(
            "SELECT id, closed_hour, min_opened_at_us, max_opened_at_us FROM cube_hours
             WHERE first_id = ?1 AND kind = ?2 AND closed_hour BETWEEN ?3 AND ?4 ORDER BY closed_hour",
        )?;
        let window = self.meaning.window.bounds();
        let [after, last, _] = window;
        let whole = whole && is_told_together(connection, by)?;
        let (runs, open) = if whole && runs {
            (runs_of(connection, by)?, open_at_end(connection, by, window)?)
        } else {
            (Vec::new(), None)
        };
        // What is taken off the whole, or off a run, lies beyond the window.
        let (first, last) =
            if whole { (i64::MIN, i64::MAX) } else { (sums::hour(after.saturating_add(1)), sums::hour(last)) };
        let openings = into.are_by(Dimension::Hour);
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.reader.go_on()?;
            let (first_id, last_id): (i64, i64) = (row.get(0)?, row.get(1)?);
            let hour =
                |row: &Row<'_>| Ok((row.get(0)?, Hour { closed: row.get(1)?, opened_us: (row.get(2)?, row.get(3)?) }));
            let hours = hours.query_map([first_id, by.number(), first, last], hour)?.collect::<Result<Vec<_>, _>>()?;
            let choice = Choice::of(&hours, window, cubes::Told { whole, runs: &runs, open, openings });
            // Of services it is not told whose they are.
            if by == By::Owners || choice.is_empty() || self.means_all(blob(row, 2)?)? {
                self.read_chosen(connection, &choice, read, into)?;
                covered.push((first_id, last_id));
            }
        }
        Ok(covered)
    }

    fn read_chosen(
        &mut self,
        connection: &Connection,
        choice: &Choice,
        read: &mut Read,
        into: &mut Sums,
    ) -> Result<(), HistoryError> {
        let (window, by) = (self.meaning.window.bounds(), read.by);
        let parts = |some: &[Stored], is_taken_off: bool| {
            let part = |of: &Stored| Ok(Part { totals: totals_of(connection, by, *of)?, is_taken_off });
            some.iter().map(part).collect::<Result<Vec<Part>, HistoryError>>()
        };
        if choice.taken_off.is_empty() {
            for some in choice.added.chunks(AT_ONCE) {
                cubes::merge(&parts(some, false)?, |what, balance| {
                    self.add_sum(read, (what, 0), balance.counts()?, into)
                })?;
            }
        } else {
            // Held, so that a part which is more than the whole of this file is found; of such there are never many.
            let mut balances = Balances::default();
            for (all, is_taken_off) in [(&choice.added, false), (&choice.taken_off, true)] {
                for some in all.chunks(AT_ONCE) {
                    cubes::merge(&parts(some, is_taken_off)?, |what, balance| {
                        balances.add(what, balance);
                        Ok::<_, HistoryError>(())
                    })?;
                }
            }
            let left = balances.told()?.into_iter().filter(|(_, counts)| counts.sessions > 0);
            left.into_iter().try_for_each(|(what, counts)| self.add_sum(read, (what, 0), counts, into))?;
        }
        let by_hour = into.are_by(Dimension::Hour);
        for (number, hour) in &choice.apart {
            with_hour(connection, *number, |bytes| {
                cubes::each(hour.closed, bytes, |what, span, counts| {
                    if span.is_meant(window) != Meant::Yes {
                        return Ok(());
                    }
                    let opened_at = Timestamp::from_micros(span.opened_at_us());
                    let hour = if by_hour { into.hour_of(opened_at).as_micros() } else { 0 };
                    self.add_sum(read, (what, hour), counts, into)
                })
            })?;
        }
        Ok(())
    }

    fn add_sum(&mut self, read: &mut Read, group: Group, counts: Counts, into: &mut Sums) -> Result<(), HistoryError> {
        if read.by == By::Owners && !read.means(group.0[0], |host| self.hosts.contains(host)) {
            return Ok(());
        }
        read.add(group, counts);
        if read.groups.len() >= HELD {
            self.reader.go_on()?;
            self.add_read(read, into)?;
        }
        Ok(())
    }

    /// Counts what was read.
    pub(super) fn add_read(&mut self, read: &mut Read, into: &mut Sums) -> Result<(), HistoryError> {
        let groups = read.take();
        into.reserve(groups.len());
        groups.into_iter().try_for_each(|((what, at), counts)| self.add_group(read.by, what, at, counts, into))
    }

    /// Whether all hosts are meant of which there are sessions.
    pub(super) fn means_all(&self, hosts: &[u8]) -> Result<bool, HistoryError> {
        let mut all = true;
        cubes::each_host(hosts, |host| all &= self.hosts.contains(host))?;
        Ok(all)
    }

    fn add_group(
        &mut self,
        by: By,
        what: What,
        opened_at_us: i64,
        counts: Counts,
        into: &mut Sums,
    ) -> Result<(), HistoryError> {
        let nobody = std::net::Ipv4Addr::UNSPECIFIED.into();
        let told = match by {
            By::Owners => Told { protocol: Protocol::Tcp, port: 0, opened_at_us, program_id: what[1], peer: nobody },
            By::Services => {
                let Service { direction, protocol, family, port } = Service::of(what)?;
                let traits = Traits {
                    protocol: coding::meaning("protocol", protocol, Protocol::from_number)?,
                    family: coding::meaning("family", family, Family::from_number)?,
                    direction: coding::meaning("direction", direction, Direction::from_number)?,
                    // Nobody asks for states here.
                    state: SocketState::Established,
                    port,
                };
                if !self.meaning.has_traits(traits) {
                    return Ok(());
                }
                Told { protocol: traits.protocol, port, opened_at_us, program_id: 0, peer: nobody }
            }
        };
        self.add(what[0], &told, counts, into)
    }

    /// Counts the sessions of blocks of which hours do not tell enough.
    pub(super) fn add_unclear_blocks(
        &mut self,
        file: InFile,
        connection: &Connection,
        into: &mut Sums,
    ) -> Result<(), HistoryError> {
        let window = self.meaning.window.bounds();
        let ([after, last, until], [first, second, third]) = (window, cubes::unclear(window));
        if [first, second, third].iter().all(|(begin, end)| begin > end) {
            return Ok(());
        }
        let mut statement = connection.prepare_cached(
            "SELECT id, host_id, codec FROM blocks
             WHERE max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND min_opened_at_us <= ?3
                 AND (max_closed_at_us >= ?4 AND min_closed_at_us <= ?5
                      OR max_closed_at_us >= ?6 AND min_closed_at_us <= ?7
                      OR max_closed_at_us >= ?8 AND min_opened_at_us <= ?9)",
        )?;
        let bounds = params![after, last, until, first.0, first.1, second.0, second.1, third.0, third.1];
        let head =
            |row: &Row<'_>| Ok(Head { id: row.get("id")?, host_id: row.get("host_id")?, codec: row.get("codec")? });
        let blocks: Vec<Head> = statement.query_map(bounds, head)?.collect::<Result<_, _>>()?;
        for head in blocks {
            if !self.hosts.contains(head.host_id) {
                continue;
            }
            let Some((block, mut places)) = self.read_block(file, head)? else { continue };
            if places.is_empty() {
                continue;
            }
            let (closed, lasted) = (block.numbers(Column::ClosedAt)?, block.numbers(Column::Lasted)?);
            places.retain(|at| {
                Span::of(closed[*at].wrapping_sub(lasted[*at]), closed[*at]).is_meant(window) == Meant::Unclear
            });
            self.add_block(&block, &places, into)?;
        }
        Ok(())
    }

    /// Counts the rows that no sums tell of, and of the others those that closed within one of the first two times, or opened within the
    /// third, of which sums do not tell enough.
    pub(super) fn add_other_rows(
        &mut self,
        file: InFile,
        connection: &Connection,
        (covered, unclear): (&Covered, [(i64, i64); 3]),
        into: &mut Sums,
    ) -> Result<(), HistoryError> {
        let window = self.meaning.window.bounds();
        let mut statement = connection.prepare_cached(
            "SELECT first_id, last_id, min_closed_at_us, max_closed_at_us, ifnull(min_opened_at_us, ?4) FROM zones
             WHERE max_closed_at_us > ?1 AND min_closed_at_us <= ?2 AND ifnull(min_opened_at_us <= ?3, TRUE)",
        )?;
        let [after, last, until] = window;
        let read = |row: &Row<'_>| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?]);
        let zones: Vec<[i64; 5]> =
            statement.query_map([after, last, until, i64::MIN], read)?.collect::<Result<_, _>>()?;
        let is_any_unclear = unclear.iter().any(|(begin, end)| begin <= end);
        for [first, last, min_closed, max_closed, min_opened] in zones {
            let may_be_unclear = unclear
                .iter()
                .zip([min_closed, min_closed, min_opened])
                .any(|((begin, end), least)| max_closed >= *begin && least <= *end);
            if !may_be_unclear && covers(covered, first) && covers(covered, last) {
                continue;
            }
            self.each_row(file, &[(first, last)], window, |search, id, one| {
                let is_told = || !is_any_unclear || span(&one).is_meant(window) != Meant::Unclear;
                if covers(covered, id) && is_told() { Ok(()) } else { search.add_one(&one, into) }
            })?;
        }
        Ok(())
    }
}

fn is_told_together(connection: &Connection, by: By) -> Result<bool, rusqlite::Error> {
    connection.prepare_cached("SELECT 1 FROM cube_totals WHERE kind = ?1")?.exists([by.number()])
}

/// The runs of hours of a file, in their order.
fn runs_of(connection: &Connection, by: By) -> Result<Vec<Run>, rusqlite::Error> {
    connection
        .prepare_cached("SELECT id, first_hour, last_hour FROM cube_runs WHERE kind = ?1 ORDER BY first_hour")?
        .query_map([by.number()], |row| Ok(Run { number: row.get(0)?, hours: (row.get(1)?, row.get(2)?) }))?
        .collect()
}

/// The sums of what was open when a window ends, by their number, and the hour that begins then; none where it ends within one.
fn open_at_end(
    connection: &Connection,
    by: By,
    [after, last, until]: [i64; 3],
) -> Result<Option<(i64, i64)>, rusqlite::Error> {
    let hour = sums::hour(until);
    // What closed later has to be meant whenever that was.
    if last < i64::MAX || after >= until || sums::beginning(hour) != until {
        return Ok(None);
    }
    let mut statement = connection.prepare_cached("SELECT id FROM cube_open WHERE kind = ?1 AND hour = ?2")?;
    Ok(statement.query_row([by.number(), hour], |row| row.get(0)).optional()?.map(|number| (number, hour)))
}

/// The totals of a kind.
fn totals_of(connection: &Connection, by: By, of: Stored) -> Result<Vec<u8>, HistoryError> {
    let (sql, key) = match of {
        Stored::Whole => ("SELECT totals FROM cube_totals WHERE kind = ?1", by.number()),
        Stored::Run(number) => ("SELECT totals FROM cube_runs WHERE id = ?1", number),
        Stored::Hour(number) => ("SELECT totals FROM cube_hours WHERE id = ?1", number),
        Stored::Open(number) => ("SELECT totals FROM cube_open WHERE id = ?1", number),
    };
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query([key])?;
    let row = rows.next()?.ok_or(Damaged("sums of hours are missing"))?;
    Ok(blob(row, 0)?.to_vec())
}

/// Shows the sums of an hour, by its number: the totals, and what opened earlier.
fn with_hour<T>(
    connection: &Connection,
    number: i64,
    show: impl FnOnce((&[u8], &[u8])) -> Result<T, HistoryError>,
) -> Result<T, HistoryError> {
    let mut statement = connection.prepare_cached("SELECT totals, earlier FROM cube_hours WHERE id = ?1")?;
    let mut rows = statement.query([number])?;
    let row = rows.next()?.ok_or(Damaged("an hour is missing"))?;
    show((blob(row, 0)?, blob(row, 1)?))
}

fn blob<'r>(row: &'r Row<'_>, column: usize) -> Result<&'r [u8], rusqlite::Error> {
    row.get_ref(column)?.as_blob().map_err(|error| coding::wrong("totals", error.to_string()))
}

fn span(one: &StoredSession) -> Span {
    Span::of(one.opened_at_us, one.closed_at_us())
}
