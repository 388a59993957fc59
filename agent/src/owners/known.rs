//! Remembers processes that own sockets, so that a scan reads little of those that it meets again.

use std::{collections::HashMap, io, sync::Arc, time::Duration};

use fleetsock_proto::{owner::Owner, time::Timestamp};
use rustix::{
    io::Errno,
    param::clock_ticks_per_second,
    time::{ClockId, clock_gettime},
};

use super::{
    command_line::Redaction,
    placement::Placement,
    process::{self, Folder, Stat},
    users::{BRIEF_PATIENCE, PATIENCE, Users},
};

/// Most processes that are remembered; what is above is read anew each time.
const PROCESSES_LIMIT: usize = 64 * 1024;
/// Clock ticks are hundredths of a second: the boot is not known better than they are.
const TICK_US: i64 = 10_000;
/// How far the wall clock may be set before the boot is dated anew. Slewing it does not move the boot.
const BOOT_TOLERANCE_US: i64 = 1_000_000;

/// The processes that own sockets.
#[derive(Debug)]
pub(super) struct Known {
    processes: HashMap<u32, Entry>,
    users: Users,
    /// Present when command lines are told.
    redaction: Option<Redaction>,
    boot_us: i64,
    /// Number of the scan.
    scan: u64,
    buffer: Vec<u8>,
}

/// A process, as it was when it was last met.
#[derive(Debug)]
struct Entry {
    owner: Arc<Owner>,
    start_ticks: u64,
    effective_uid: u32,
    /// The name of its user was not known in time.
    nameless: bool,
    /// The last scan that saw it alive.
    seen: u64,
}

impl Known {
    pub(super) fn new() -> io::Result<Known> {
        Ok(Known {
            processes: HashMap::new(),
            users: Users::start()?,
            redaction: None,
            boot_us: boot_us(),
            scan: 0,
            buffer: process::buffer(),
        })
    }

    /// A scan begins.
    pub(super) fn begin(&mut self) {
        self.scan += 1;
        self.users.begin(PATIENCE);
        self.set_boot();
    }

    /// A look at single processes begins, which does not see who is gone: when they are too many all are forgotten, and those that are
    /// still there are dated anew.
    pub(super) fn begin_look(&mut self) {
        if self.processes.len() >= PROCESSES_LIMIT {
            self.processes.clear();
        }
        self.users.begin(BRIEF_PATIENCE);
        self.set_boot();
    }

    fn set_boot(&mut self) {
        let boot_us = boot_us();
        if boot_us.abs_diff(self.boot_us) > BOOT_TOLERANCE_US.unsigned_abs() {
            self.boot_us = boot_us;
        }
    }

    /// Whether the name of a process's user is still looked up.
    pub(super) fn is_nameless(&self, pid: u32) -> bool {
        self.processes.get(&pid).is_some_and(|entry| entry.nameless)
    }

    /// The name of a user, empty when there is none; nothing when it is not known yet.
    pub(super) fn user(&mut self, uid: u32) -> Option<String> {
        self.users.name(uid)
    }

    /// A process is alive.
    pub(super) fn saw(&mut self, pid: u32) {
        if let Some(entry) = self.processes.get_mut(&pid) {
            entry.seen = self.scan;
        }
    }

    /// A scan saw every process: the others are gone.
    pub(super) fn end(&mut self) {
        self.processes.retain(|_, entry| entry.seen == self.scan);
    }

    /// Whether a process that may not be looked into has nothing to see.
    pub(super) fn holds_nothing(&mut self, folder: &Folder) -> Result<bool, Errno> {
        folder.stat(&mut self.buffer).map(|stat| stat.holds_nothing())
    }

    /// The process of a thread whose folder this is, and when the thread started, since the boot of the host.
    pub(super) fn of_thread(&mut self, folder: &Folder) -> Result<(u32, Duration), Errno> {
        let started = since_boot(&folder.stat(&mut self.buffer)?);
        Ok((folder.process(&mut self.buffer)?, started))
    }

    /// The process as an owner. One that was met before is read again only if something tells that it changed: its
    /// start (it is another one), its name or executable (exec), its effective user. With its start, since the boot of the
    /// host, with the time that it slept.
    pub(super) fn owner(&mut self, pid: u32, folder: &Folder) -> Result<(Arc<Owner>, Duration), Errno> {
        let stat = folder.stat(&mut self.buffer)?;
        let started = since_boot(&stat);
        let exe = folder.exe(&mut self.buffer);
        let effective_uid = folder.effective_uid()?;
        let before = self.processes.get(&pid).filter(|entry| entry.start_ticks == stat.start_ticks);
        if let Some(entry) = before
            && (&entry.owner.process, &entry.owner.exe) == (&stat.comm, &exe)
            && entry.effective_uid == effective_uid
            && !entry.nameless
        {
            return Ok((Arc::clone(&entry.owner), started));
        }
        // Its start is dated once: a clock that is set does not make it another process.
        let started_at = before.and_then(|entry| entry.owner.started_at).unwrap_or_else(|| self.date(&stat));
        let uid = folder.real_uid(&mut self.buffer)?;
        let name = self.users.name(uid);
        // A kernel without control groups has no such file.
        let placement = match folder.file(c"cgroup", &mut self.buffer) {
            Ok(text) => Placement::parse(&String::from_utf8_lossy(text)),
            Err(_) => Placement::default(),
        };
        let entry = Entry {
            start_ticks: stat.start_ticks,
            effective_uid,
            nameless: name.is_none(),
            seen: self.scan,
            owner: Arc::new(Owner {
                pid,
                started_at: Some(started_at),
                process: stat.comm,
                exe,
                uid,
                user: name.unwrap_or_default(),
                container: placement.container,
                unit: placement.unit,
                command_line: self.command_line(folder),
            }),
        };
        let owner = (Arc::clone(&entry.owner), started);
        if self.processes.len() < PROCESSES_LIMIT || self.processes.contains_key(&pid) {
            self.processes.insert(pid, entry);
        }
        Ok(owner)
    }

    /// The same of the process that started so many nanoseconds after the boot, as the kernel has it: `SRCH` when its number
    /// is another one's by now.
    pub(super) fn owner_since(&mut self, pid: u32, started_ns: u64, folder: &Folder) -> Result<Arc<Owner>, Errno> {
        let (owner, started) = self.owner(pid, folder)?;
        let ticks_per_second = clock_ticks_per_second();
        let is_it = started == ticked(ticks(started_ns, ticks_per_second), ticks_per_second);
        is_it.then_some(owner).ok_or(Errno::SRCH)
    }

    /// Tells command lines from now on.
    pub(super) fn tell_command_lines(&mut self) -> Result<(), regex::Error> {
        self.redaction = Some(Redaction::new()?);
        Ok(())
    }

    /// The command line, if it is told; empty also when the process is gone or has none.
    fn command_line(&mut self, folder: &Folder) -> String {
        let Some(redaction) = &self.redaction else { return String::new() };
        folder.file(c"cmdline", &mut self.buffer).map(|cmdline| redaction.tell(cmdline)).unwrap_or_default()
    }

    fn date(&self, stat: &Stat) -> Timestamp {
        start(self.boot_us, since_boot(stat))
    }
}

/// How long after the boot a process started.
fn since_boot(stat: &Stat) -> Duration {
    ticked(stat.start_ticks, clock_ticks_per_second())
}

/// Clock ticks that are over after so many nanoseconds (nsec_to_clock_t() of the kernel).
fn ticks(ns: u64, ticks_per_second: u64) -> u64 {
    let ticks = u128::from(ns) * u128::from(ticks_per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

fn ticked(ticks: u64, ticks_per_second: u64) -> Duration {
    let us = u128::from(ticks) * 1_000_000 / u128::from(ticks_per_second.max(1));
    Duration::from_micros(u64::try_from(us).unwrap_or(u64::MAX))
}

/// When a process started that did so so long after the boot.
fn start(boot_us: i64, since_boot: Duration) -> Timestamp {
    let us = i64::try_from(since_boot.as_micros()).unwrap_or(i64::MAX);
    Timestamp::from_micros(boot_us.saturating_add(us))
}

/// When the machine booted, in microseconds since the Unix epoch. Rounded, so that another run of the agent says the
/// same.
fn boot_us() -> i64 {
    let us = |clock| {
        let time = clock_gettime(clock);
        time.tv_sec * 1_000_000 + time.tv_nsec / 1_000
    };
    let boot = us(ClockId::Realtime) - us(ClockId::Boottime);
    (boot + TICK_US / 2).div_euclid(TICK_US) * TICK_US
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::path::DecInt;

    use super::*;

    #[test]
    fn a_start_is_the_boot_and_the_ticks_since() {
        assert_eq!(start(5_000_000, ticked(250, 100)), Timestamp::from_micros(7_500_000));
        assert_eq!(start(5_000_000, ticked(u64::MAX, 1)), Timestamp::MAX);
        assert_eq!(start(5_000_000, ticked(1, 0)), Timestamp::from_micros(6_000_000));
    }

    #[test]
    fn a_start_to_the_nanosecond_is_in_the_tick_that_proc_tells() {
        for (ns, expected) in
            [(0, 0), (9_999_999, 0), (10_000_000, 1), (2_500_000_001, 250), (u64::MAX, 1_844_674_407_370)]
        {
            assert_eq!(ticks(ns, 100), expected, "{ns}");
        }
    }

    #[test]
    fn a_process_that_started_in_another_tick_is_not_the_one_that_was_told_of() {
        let pid = std::process::id();
        let folder = Folder::open(File::open("/proc").unwrap(), DecInt::new(pid).as_c_str()).unwrap();
        let mut known = Known::new().unwrap();
        let (owner, started) = known.owner(pid, &folder).unwrap();
        let (started_ns, tick_ns) =
            (u64::try_from(started.as_nanos()).unwrap(), 1_000_000_000 / clock_ticks_per_second());
        for told_ns in [started_ns, started_ns + tick_ns - 1] {
            // The name of its user may come later than the rest.
            let told = known.owner_since(pid, told_ns, &folder).map(|told| (told.pid, told.started_at));
            assert_eq!(told, Ok((pid, owner.started_at)));
        }
        for told_ns in [started_ns - 1, started_ns + tick_ns, 0] {
            assert_eq!(known.owner_since(pid, told_ns, &folder), Err(Errno::SRCH));
        }
    }

    #[test]
    fn the_boot_is_dated_the_same_each_time() {
        let first = boot_us();
        assert!((0..1000).all(|_| boot_us().abs_diff(first) <= TICK_US.unsigned_abs()));
        assert_eq!(first % TICK_US, 0);
    }
}
