//! What the kernel tells by itself: every TCP connection, however short, with the process at each end.
//!
//! Two tracepoints are written by the kernel for all network namespaces at once: into trace buffers of the agent's own
//! where it can make them or root did for it (`instance`, with `page` that reads their pages), and otherwise into rings of
//! perf. The lives and names of processes always come from rings, one per processor (perf_event_open(2)). `tracepoint` knows
//! where the fields of a record are; `reading` turns bytes into what `record` says.

mod instance;
mod page;
mod reading;
mod record;
mod tracepoint;

use std::{ffi::CStr, io, os::fd::BorrowedFd, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    time::{ClockId, clock_gettime},
};

use fleetsock_proto::time::Timestamp;

use self::{
    instance::Instance,
    reading::{Formats, Threads},
    tracepoint::Tracefs,
};
pub use self::{
    instance::{BuffersName, InstanceError, InvalidBuffersName, make_buffers, remove_buffers},
    record::{Actor, Record, SocketEvent, What},
    tracepoint::TracepointError,
};
use crate::kernel::ring::{Ring, Source, Wake};

/// Bytes of one processor's ring, tried from the largest: what the kernel lets us lock decides. 2 MiB hold a burst of
/// some 20,000 closings between two looks.
const RING_BYTES: [usize; 4] = [2 << 20, 1 << 20, 512 << 10, 256 << 10];
/// Which changes of a state are written: each costs the host nearly a microsecond.
///
/// Not those that others tell as well. A child of a listener goes from SYN_RECV (3) to ESTABLISHED at once. What a process
/// has closed goes from FIN_WAIT1 to FIN_WAIT2 (5), and when the peer has closed too, from FIN_WAIT2 or LAST_ACK (9) to
/// CLOSE (7), and is destroyed. CLOSE_WAIT (8) is seen by walks where it lasts.
const NEEDED_STATES: &CStr = c"newstate != 3 && newstate != 5 && newstate != 8 \
    && !(newstate == 7 && (oldstate == 5 || oldstate == 9))";
/// How much smaller than a ring of sockets one of the lives of processes is.
const LIVES_PART: usize = 4;
/// Two looks that are not further apart than this are those of a time when many processes begin, each of which wakes whoever
/// waits.
const BUSY: Duration = Duration::from_millis(2);
/// How long more of them are waited for then: to be woken by each took half of all that an agent did beside a server that
/// forks for each connection.
const GATHERED: Duration = Duration::from_micros(500);

/// Why there are no events.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// The descriptions of the tracepoints cannot be read.
    #[error(transparent)]
    Tracepoint(#[from] TracepointError),
    /// The kernel does not let us listen.
    #[error("the kernel refused perf events: {0}")]
    Refused(#[source] Errno),
    /// There is no list of processors.
    #[error("cannot tell the processors: {0}")]
    Processors(#[source] io::Error),
    /// Trace buffers cannot be prepared.
    #[error(transparent)]
    Buffers(#[from] InstanceError),
}

/// Trace buffers and rings of all processors.
#[derive(Debug)]
pub struct Events {
    /// Where sockets are told of; the rings where there is none.
    instance: Option<Instance>,
    rings: Vec<Ring>,
    formats: Formats,
    buffer: Vec<u8>,
    ring_bytes: usize,
    fallback: Option<String>,
    /// When there was the last look, by the clock of the records.
    drained_ns: u64,
    is_busy: bool,
}

/// What tells of sockets, and by what it knows who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Teller<'a> {
    /// Trace buffers that nobody else reads: threads.
    Tracefs,
    /// Rings of perf: processes. And why not the better one.
    Perf(&'a str),
}

/// What came out of the rings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Ring by ring; nearly in the order of their times within each.
    pub records: Vec<Record>,
    /// Records that the kernel had no room for.
    pub lost: u64,
    /// Records that could not be read.
    pub unreadable: u64,
}

impl Events {
    /// Begins to listen, on every processor that is online: by the trace buffers that were prepared, where there are to be
    /// any, otherwise by some of its own, otherwise by perf.
    pub fn open(prepared: Option<&BuffersName>) -> Result<Events, EventsError> {
        let tracefs = Tracefs::find()?;
        let processors = online().map_err(EventsError::Processors)?;
        let filter = NEEDED_STATES.to_string_lossy();
        let own = || Instance::open(&tracefs, &processors, &RING_BYTES, &filter);
        let instance = match prepared {
            None => own().map_err(|error| error.to_string()),
            Some(name) => Instance::take(&tracefs, &processors, name, &filter).or_else(|refused| {
                tracing::warn!(error = %refused, "the prepared trace buffers are not read");
                own().map_err(|error| {
                    let (prepared, own) = (refused.to_string(), error.to_string());
                    if prepared == own { own } else { format!("{prepared}; {own}") }
                })
            }),
        };
        Events::beside(&tracefs, &processors, instance)
    }

    /// Begins to listen by perf alone.
    #[cfg(test)]
    fn by_perf() -> Result<Events, EventsError> {
        let processors = online().map_err(EventsError::Processors)?;
        Events::beside(&Tracefs::find()?, &processors, Err("it is not wanted".to_owned()))
    }

    /// Opens the rings, for what the instance does not tell.
    fn beside(
        tracefs: &Tracefs,
        processors: &[u32],
        instance: Result<Instance, String>,
    ) -> Result<Events, EventsError> {
        let formats = Formats { state: tracefs.state_format()?, destroy: tracefs.destroy_format()? };
        let states = Source::Filtered(formats.state.id, NEEDED_STATES);
        let sockets = [states, Source::Tracepoint(formats.destroy.id)];
        let mut refused = Errno::PERM;
        for ring_bytes in RING_BYTES {
            let of_sockets = |cpu: &u32| Ring::open(*cpu, &sockets, ring_bytes, Wake::HalfFull);
            // A process that runs another program is looked at while it is there: that is worth being woken.
            let of_lives = |cpu: &u32| Ring::open(*cpu, &[Source::Lives], ring_bytes / LIVES_PART, Wake::AtOnce);
            let without = if instance.is_ok() { &[][..] } else { processors };
            let rings: Result<Vec<Ring>, Errno> =
                without.iter().map(of_sockets).chain(processors.iter().map(of_lives)).collect();
            match rings {
                Ok(rings) => {
                    let fallback = instance.as_ref().err().cloned();
                    let (instance, buffer) = (instance.ok(), Vec::new());
                    let (drained_ns, is_busy) = (0, false);
                    return Ok(Events { instance, rings, formats, buffer, ring_bytes, fallback, drained_ns, is_busy });
                }
                Err(errno) => refused = errno,
            }
        }
        Err(EventsError::Refused(refused))
    }

    /// What tells of sockets.
    pub fn teller(&self) -> Teller<'_> {
        self.fallback.as_deref().map_or(Teller::Tracefs, Teller::Perf)
    }

    /// Bytes of what one processor tells of sockets in.
    pub fn bytes(&self) -> usize {
        self.instance.as_ref().map_or(self.ring_bytes, Instance::bytes)
    }

    /// Waits until a buffer or ring of sockets is half full, something happened to a process, or `wake` can be read, at most so
    /// long; where much happens to processes, for some of it.
    pub fn wait(&self, patience: Duration, wake: BorrowedFd<'_>) -> Result<(), Errno> {
        if self.is_busy {
            wait_for(&mut [PollFd::from_borrowed_fd(wake, PollFlags::IN)], GATHERED.min(patience))?;
        }
        let mut fds: Vec<PollFd<'_>> = self.rings.iter().map(|ring| PollFd::new(ring, PollFlags::IN)).collect();
        let buffers = self.instance.iter().flat_map(Instance::fds);
        fds.extend(buffers.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        fds.push(PollFd::from_borrowed_fd(wake, PollFlags::IN));
        wait_for(&mut fds, patience)
    }

    /// Takes everything out of the buffers and rings.
    ///
    /// The records of one socket can lie in two rings, when two processors handled it one after the other, so all rings
    /// are to be read before anything is put in order. A record that was written while they were read comes next time, also
    /// when it is older than the last one here: whoever uses them holds the youngest back for a moment.
    pub fn drain(&mut self, drained: &mut Drained) {
        let before_ns = std::mem::replace(&mut self.drained_ns, now_ns());
        self.is_busy = self.drained_ns.saturating_sub(before_ns) <= u64::try_from(BUSY.as_nanos()).unwrap_or(u64::MAX);
        drained.records.clear();
        (drained.lost, drained.unreadable) = (0, 0);
        let threads = match &mut self.instance {
            Some(instance) => {
                instance.drain(&self.formats, drained);
                Threads::Told
            }
            None => Threads::LeftOut,
        };
        for ring in &mut self.rings {
            ring.take(&mut self.buffer);
            reading::read(&self.buffer, &self.formats, threads, drained);
        }
    }
}

fn wait_for(fds: &mut [PollFd<'_>], patience: Duration) -> Result<(), Errno> {
    let patience = Timespec::try_from(patience).map_err(|_| Errno::INVAL)?;
    match poll(fds, Some(&patience)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The clock of the records now, nanoseconds.
pub fn now_ns() -> u64 {
    u64::try_from(nanoseconds(ClockId::Monotonic)).unwrap_or(0)
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
}

/// The wall clock less the clock of the records (CLOCK_MONOTONIC), nanoseconds.
pub fn clock_offset_ns() -> i64 {
    nanoseconds(ClockId::Realtime).saturating_sub(nanoseconds(ClockId::Monotonic))
}

/// The wall-clock moment of a record.
pub fn moment(at_ns: u64, clock_offset_ns: i64) -> Timestamp {
    let at = i64::try_from(at_ns).unwrap_or(i64::MAX).saturating_add(clock_offset_ns);
    Timestamp::from_micros(at.div_euclid(1_000))
}

/// The clock of the records at a wall-clock moment; the opposite of [`moment`].
pub fn since_boot_ns(at: Timestamp, clock_offset_ns: i64) -> u64 {
    u64::try_from(at.as_micros().saturating_mul(1_000).saturating_sub(clock_offset_ns)).unwrap_or(0)
}

/// Numbers of the processors that are online (cpu(7): a list of ranges).
fn online() -> io::Result<Vec<u32>> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/online")?;
    ranges(text.trim()).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`", text.trim())))
}

/// Most processors that are believed in.
const PROCESSORS_LIMIT: u32 = 8192;

fn ranges(text: &str) -> Option<Vec<u32>> {
    let mut numbers = Vec::new();
    for range in text.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last >= PROCESSORS_LIMIT {
            return None;
        }
        numbers.extend(first..=last);
        // Each is named once.
        if numbers.len() > PROCESSORS_LIMIT as usize {
            return None;
        }
    }
    Some(numbers)
}

#[cfg(test)]
#[allow(clippy::print_stderr, reason = "a test that is skipped says so")]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use fleetsock_proto::socket::SocketState;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(ranges("0"), Some(vec![0]));
        assert_eq!(ranges("0-2,5,7-8"), Some(vec![0, 1, 2, 5, 7, 8]));
        for wrong in ["", "a", "0-", "0-4294967295", "0-8191,0"] {
            assert_eq!(ranges(wrong), None, "{wrong}");
        }
    }

    /// Who began connections of this process, as it is told.
    fn openers(mut events: Events) -> Vec<Actor> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (mut drained, mut openers) = (Drained::default(), Vec::new());
        // The kernel may leave out records of perf.
        for _ in 0..100 {
            let began_ns = now_ns();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop((listener.accept().unwrap(), client));
            events.drain(&mut drained);
            let ended_ns = now_ns();
            for Record { at_ns, what } in &drained.records {
                if let What::State { event, new: Some(SocketState::SynSent), .. } = what
                    && event.peer.port() == port
                {
                    assert!((began_ns..ended_ns).contains(at_ns), "{began_ns} {at_ns} {ended_ns}");
                    openers.push(event.by);
                }
            }
        }
        openers
    }

    #[test]
    fn both_tellers_know_when_a_connection_began_by_the_clock_of_the_agent_and_who_began_it() {
        let me = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        let thread = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        for (events, teller, doer) in [
            (Events::open(None), Some(Teller::Tracefs), Actor::Thread(thread)),
            (Events::by_perf(), None, Actor::Process(me)),
        ] {
            let Ok(events) = events else {
                eprintln!("skipped: no events here: {}", events.unwrap_err());
                continue;
            };
            if teller.is_some_and(|teller| events.teller() != teller) {
                eprintln!("skipped: {:?}", events.teller());
                continue;
            }
            let openers = openers(events);
            assert!(!openers.is_empty() && openers.iter().all(|opener| *opener == doer), "{doer:?}: {openers:?}");
        }
    }

    #[test]
    fn the_beginning_the_program_and_the_end_of_a_process_are_told_once_each() {
        for events in [Events::open(None), Events::by_perf()] {
            let Ok(mut events) = events else {
                eprintln!("skipped: no events here: {}", events.unwrap_err());
                continue;
            };
            let mut process = std::process::Command::new("true").spawn().unwrap();
            process.wait().unwrap();
            let (of, mut drained) = (process.id(), Drained::default());
            events.drain(&mut drained);
            let count = |is: &dyn Fn(&What) -> bool| drained.records.iter().filter(|record| is(&record.what)).count();
            let forks = count(&|what| matches!(what, What::Forked { pid, .. } if *pid == of));
            let programs = count(&|what| matches!(what, What::Named { pid, exec: true, .. } if *pid == of));
            let exits = count(&|what| matches!(what, What::Exited { pid } if *pid == of));
            assert_eq!((forks, programs, exits, drained.lost), (1, 1, 1, 0), "{:?}", drained.records);
        }
    }

    #[test]
    fn what_a_full_buffer_dropped_is_counted_and_what_it_holds_is_told() {
        let tracefs = Tracefs::find();
        let small = tracefs
            .as_ref()
            .ok()
            .map(|tracefs| Instance::open(tracefs, &online().unwrap(), &[32 << 10], &NEEDED_STATES.to_string_lossy()));
        let (Ok(tracefs), Some(Ok(mut instance))) = (&tracefs, small) else {
            eprintln!("skipped: no trace buffers here");
            return;
        };
        let formats = Formats { state: tracefs.state_format().unwrap(), destroy: tracefs.destroy_format().unwrap() };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut drained = Drained::default();
        // At least six records each, of 76 bytes, on any of the processors.
        for _ in 0..online().unwrap().len() * 200 {
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop((listener.accept().unwrap(), client));
        }
        instance.drain(&formats, &mut drained);
        assert!(drained.lost > 0 && drained.records.len() > 100 && drained.unreadable == 0, "{drained:?}");
        let told = drained.records.len();
        drained = Drained::default();
        instance.drain(&formats, &mut drained);
        assert!(drained.lost == 0 && drained.records.len() < told, "each is told once: {drained:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_more_processors_than_there_can_be(text in "\\PC{0,60}", list in "([0-9]{1,4}(-[0-9]{1,10})?,){0,20}[0-9]") {
            for text in [text, list] {
                prop_assert!(ranges(&text).is_none_or(|numbers| numbers.len() <= PROCESSORS_LIMIT as usize));
            }
        }
    }
}
