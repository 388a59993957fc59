//! What events tell, put together: a thread that empties the rings, and what a walk takes of it.
//!
//! Records are put in order before they are believed, and the youngest are held back for a moment, because those of one
//! socket can lie in the rings of two processors. After [`Chronicle::catch_up`] everything that happened before is known.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use fleetsock_proto::{
    owner::Owner,
    socket::{OwnerKnown, SocketKey},
    time::Timestamp,
};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};

use crate::{
    ancestry::{Ancestry, Described},
    events::{self, Drained, Events, Record, What},
    lives::{Ended, Lives, Purpose},
    owners::Processes,
    table::{Insight, Origin, Told},
};

/// How long records wait at most: as long as a process that did something may be gone before it is looked at.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long the youngest records are held back. The kernel writes a record in microseconds; a machine that is short of
/// processors can stop one in between for longer.
const HELD_BACK: Duration = Duration::from_millis(3);
/// Most lives that wait for a walk to take them; further ones are counted as lost.
const TOLD_LIMIT: usize = 1_000_000;
/// How long a walk waits for the records before it.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(2);

/// What was lost since the last time this was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that the kernel had no room for, or that could not be read.
    pub records: u64,
    /// Lives that could not be kept until somebody took them.
    pub lives: u64,
}

/// What events tell. Filled by one thread, taken from by another.
#[derive(Debug)]
pub struct Chronicle {
    state: Mutex<State>,
    progressed: Condvar,
    wake: OwnedFd,
}

/// What the two threads share.
#[derive(Debug, Default)]
pub struct State {
    lives: Lives,
    told: Vec<Told>,
    lost: Lost,
    /// Everything up to this moment is known.
    known_until_ns: u64,
    /// Somebody waits for this moment.
    wanted_ns: u64,
    clock_offset_ns: i64,
    stopping: bool,
    /// The reader ended, in order or not.
    ended: bool,
}

impl Chronicle {
    /// An empty one.
    pub fn new() -> Result<Chronicle, Errno> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Chronicle { state: Mutex::default(), progressed: Condvar::new(), wake })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The maps are whole after every statement, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // A full counter wakes as well.
        if let Err(errno) = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
            tracing::trace!(error = %errno, "the reader is being woken already");
        }
    }

    /// Empties the rings until told to stop. For a thread of its own.
    pub fn run(&self, mut reader: Reader) {
        // Also when it panics: nobody waits for a reader that is gone.
        let _end = End(self);
        loop {
            if let Err(errno) = reader.events.wait(self.patience(), self.wake.as_fd()) {
                tracing::error!(error = %errno, "cannot wait for events");
                std::thread::sleep(PATIENCE);
            }
            // Reading takes back all wakes so far; nothing there is as good.
            if let Ok(0) = rustix::io::read(&self.wake, &mut [0; 8]) {
                tracing::trace!("nobody woke the reader");
            }
            let stopping = self.state().stopping;
            reader.take_in(self, if stopping { HeldBack::Nothing } else { HeldBack::Youngest });
            if stopping {
                return;
            }
        }
    }

    /// How long the reader may sleep: until what somebody waits for is old enough to be believed.
    fn patience(&self) -> Duration {
        let state = self.state();
        if state.stopping {
            Duration::ZERO
        } else if state.wanted_ns > state.known_until_ns {
            HELD_BACK
        } else {
            PATIENCE
        }
    }

    /// Tells the reader to take in what there is and end.
    pub fn stop(&self) {
        self.state().stopping = true;
        self.wake();
    }

    /// Returns when everything that happened until now is known; whether it is.
    pub fn catch_up(&self) -> bool {
        let now_ns = events::now_ns();
        let mut state = self.state();
        state.wanted_ns = state.wanted_ns.max(now_ns);
        self.wake();
        let begun = Instant::now();
        while state.known_until_ns < now_ns && !state.ended {
            let left = CATCH_UP_PATIENCE.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return false;
            }
            let waited = self.progressed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.known_until_ns >= now_ns
    }

    /// What is known now. The reader waits while it is looked at.
    pub fn look(&self) -> Look<'_> {
        Look(self.state())
    }
}

/// Says that the reader ended.
struct End<'a>(&'a Chronicle);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.state().ended = true;
        self.0.progressed.notify_all();
    }
}

/// What is known at one moment.
#[derive(Debug)]
pub struct Look<'a>(MutexGuard<'a, State>);

impl Look<'_> {
    /// Takes the lives that ended since the last time, in the order of their ends, and what was lost.
    pub fn take(&mut self) -> (Vec<Told>, Lost) {
        let overflow = self.0.lives.take_overflow();
        self.0.lost.lives += overflow;
        (std::mem::take(&mut self.0.told), std::mem::take(&mut self.0.lost))
    }
}

impl Insight for Look<'_> {
    fn origin(&self, local: SocketAddr, peer: SocketAddr) -> Option<Origin> {
        let life = self.0.lives.find(local, peer)?;
        let direction = match life.purpose {
            Purpose::Session(direction) => direction,
            Purpose::Listener => None,
        };
        let opened_at = life.opened_ns.map(|at_ns| events::moment(at_ns, self.0.clock_offset_ns));
        Some(Origin { opened_at, direction })
    }

    fn closed_at(&self, local: SocketAddr, peer: SocketAddr) -> Option<Timestamp> {
        self.0.lives.closed_ns(local, peer).map(|at_ns| events::moment(at_ns, self.0.clock_offset_ns))
    }
}

/// Whether the youngest records are believed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HeldBack {
    Youngest,
    Nothing,
}

/// What the thread that empties the rings works with.
#[derive(Debug)]
pub struct Reader {
    events: Events,
    processes: Processes,
    ancestry: Ancestry,
    drained: Drained,
    /// In order; held back, or about to be taken in. With processes that were looked at when they had run another program.
    waiting: Vec<(Record, Option<Described>)>,
    ended: Vec<Ended>,
}

impl Reader {
    /// A reader of these rings.
    pub fn new(events: Events, processes: Processes) -> Reader {
        Reader {
            events,
            processes,
            ancestry: Ancestry::default(),
            drained: Drained::default(),
            waiting: Vec::new(),
            ended: Vec::new(),
        }
    }

    fn take_in(&mut self, chronicle: &Chronicle, held_back: HeldBack) {
        let began_ns = events::now_ns();
        let clock_offset_ns = events::clock_offset_ns();
        self.events.drain(&mut self.drained);
        let lost = self.drained.lost + self.drained.unreadable;
        for record in self.drained.records.drain(..) {
            let seen = match record.what {
                What::Named { pid, exec: true, .. } => self.processes.describe(pid),
                _ => None,
            };
            self.waiting.push((record, seen));
        }
        self.waiting.sort_by_key(|(record, _)| record.at_ns);
        let until_ns = match held_back {
            HeldBack::Youngest => began_ns.saturating_sub(u64::try_from(HELD_BACK.as_nanos()).unwrap_or(0)),
            HeldBack::Nothing => u64::MAX,
        };
        let believed = self.waiting.partition_point(|(record, _)| record.at_ns <= until_ns);
        let records: Vec<_> = self.waiting.drain(..believed).collect();

        let mut state = chronicle.state();
        for (record, seen) in records {
            state.lives.handle(&record, &mut self.ended);
            self.ancestry.handle(&record, seen);
            self.tell(&mut state, clock_offset_ns);
        }
        if lost > 0 {
            // Ends may be among what was lost: the next walk tells what is still there.
            state.lives.forget();
            self.ancestry.forget();
            state.lost.records += lost;
        }
        state.lost.lives += self.ancestry.take_overflow();
        self.ancestry.sweep(began_ns);
        state.clock_offset_ns = clock_offset_ns;
        state.known_until_ns = state.known_until_ns.max(until_ns);
        drop(state);
        chronicle.progressed.notify_all();
    }

    /// Gives the lives that ended their processes.
    fn tell(&mut self, state: &mut State, clock_offset_ns: i64) {
        for Ended { cookie, life, closed_ns } in self.ended.drain(..) {
            if state.told.len() >= TOLD_LIMIT {
                state.lost.lives += 1;
                continue;
            }
            let mut owners: Vec<Arc<Owner>> = Vec::with_capacity(1);
            let mut netns = 0;
            for pid in [life.opener, life.closer].into_iter().flatten() {
                let processes = &mut self.processes;
                let known = self.ancestry.describe(pid, clock_offset_ns, &mut |pid| processes.describe(pid));
                netns = if netns == 0 { known.netns } else { netns };
                if !owners.iter().any(|owner| owner.pid == pid) {
                    owners.push(known.owner);
                }
            }
            let owner_known = match (life.opener, life.closer) {
                (Some(_), _) => OwnerKnown::Exact,
                (None, Some(_)) => OwnerKnown::Closer,
                (None, None) => OwnerKnown::Unknown,
            };
            state.told.push(Told {
                key: SocketKey { netns, cookie },
                opened_at: life.opened_ns.map(|at_ns| events::moment(at_ns, clock_offset_ns)),
                closed_at: events::moment(closed_ns, clock_offset_ns),
                life,
                owners,
                owner_known,
            });
        }
    }
}
