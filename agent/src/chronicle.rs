//! What events tell, put together: a thread that empties the rings, and what a walk takes of it.
//!
//! Records are put in order before they are believed, and the youngest are held back for a moment, because those of one
//! socket can lie in the rings of two processors. After [`Chronicle::catch_up`] everything that happened before is known.

use std::{
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use fleetsock_proto::{
    socket::{SocketKey, SocketState},
    time::Timestamp,
};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
};

use self::reader::HeldBack;
pub use self::reader::Reader;
use crate::{
    departures::Departed,
    events,
    lives::{Ended, LIVES_LIMIT, Lives, Purpose, Sought},
    table::{Insight, Origin, Owned, Told},
};

mod reader;

/// How long records wait at most: as long as a process that did something may be gone before it is looked at.
const PATIENCE: Duration = Duration::from_millis(100);
/// The same where nothing happened since the last time: to be woken is most of what an idle agent costs.
const QUIET_PATIENCE: Duration = Duration::from_millis(250);
/// How long the youngest records are held back. The kernel writes a record in microseconds; a machine that is short of
/// processors can stop one in between for longer.
const HELD_BACK: Duration = Duration::from_millis(3);
/// Most lives that wait for a walk to take them, however little memory there is; further ones are counted as lost.
const TOLD_LEAST: usize = 64 * 1024;
/// How long a walk waits for the records before it.
const CATCH_UP_PATIENCE: Duration = Duration::from_secs(2);

/// What was lost since the last time this was asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lost {
    /// Records that the kernel had no room for, or that could not be read. What they told is to be found by a walk.
    pub records: u64,
    /// Ends whose records did not come, though nothing said that they were lost, beside those that are told. They were noticed
    /// all the same.
    pub unheard: u64,
    /// Lives that could not be kept until somebody took them.
    pub lives: u64,
    /// Others kept records of connections from us; nobody knows how many.
    pub is_muted: bool,
}

/// What events told since the last time.
#[derive(Debug, Default)]
pub struct Taken {
    /// Lives that ended, in the order of their ends.
    pub told: Vec<Told>,
    /// States of sockets that a walk saw.
    pub states: Vec<(SocketKey, SocketState)>,
    /// Whose sockets are of which a walk could not tell that.
    pub owned: Vec<Owned>,
    /// What was lost.
    pub lost: Lost,
}

/// What events tell. Filled by one thread, taken from by another.
#[derive(Debug)]
pub struct Chronicle {
    state: Mutex<State>,
    progressed: Condvar,
    stopping: AtomicBool,
    wake: OwnedFd,
}

/// What the two threads share.
#[derive(Debug)]
pub struct State {
    told_limit: usize,
    lives: Lives,
    told: Vec<Told>,
    owned: Vec<Owned>,
    /// Those that were noticed to be over when a walk was made.
    noticed: Vec<Ended>,
    lost: Lost,
    /// Everything up to this moment is known.
    known_until_ns: u64,
    /// Somebody waits for this moment.
    wanted_ns: u64,
    clock_offset_ns: i64,
    /// Nothing was told the last time.
    quiet: bool,
    /// The reader ended, in order or not.
    ended: bool,
}

impl Chronicle {
    /// An empty one, for so many sockets at once.
    pub fn new(sockets: usize) -> Result<Chronicle, Errno> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let state = State {
            told_limit: sockets.max(TOLD_LEAST),
            lives: Lives::with_limit(sockets.min(LIVES_LIMIT)),
            told: Vec::new(),
            owned: Vec::new(),
            noticed: Vec::new(),
            lost: Lost::default(),
            known_until_ns: 0,
            wanted_ns: 0,
            clock_offset_ns: 0,
            quiet: false,
            ended: false,
        };
        Ok(Chronicle { state: Mutex::new(state), progressed: Condvar::new(), stopping: AtomicBool::new(false), wake })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The maps are whole after every statement, so a panic elsewhere does not spoil them.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, without waiting for it unless that must be.
    fn state_if(&self, must: bool) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => must.then(|| self.state()),
        }
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
            if let Err(errno) = reader.wait(self.patience(), self.wake.as_fd()) {
                tracing::error!(error = %errno, "cannot wait for events");
                std::thread::sleep(PATIENCE);
            }
            // Reading takes back all wakes so far; nothing there is as good.
            if let Ok(0) = rustix::io::read(&self.wake, &mut [0; 8]) {
                tracing::trace!("nobody woke the reader");
            }
            let stopping = self.stopping.load(Ordering::Relaxed);
            reader.take_in(self, if stopping { HeldBack::Nothing } else { HeldBack::Youngest });
            if stopping {
                return;
            }
        }
    }

    /// How long the reader may sleep: until what somebody waits for is old enough to be believed.
    fn patience(&self) -> Duration {
        // Not even this may keep it from the rings.
        let Some(state) = self.state_if(false) else { return HELD_BACK };
        if self.stopping.load(Ordering::Relaxed) {
            Duration::ZERO
        } else if state.wanted_ns > state.known_until_ns {
            HELD_BACK
        } else if state.quiet {
            QUIET_PATIENCE
        } else {
            PATIENCE
        }
    }

    /// Tells the reader to take in what there is and end.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
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
    /// Takes what was told since the last time.
    pub fn take(&mut self) -> Taken {
        let State { lives, lost, .. } = &mut *self.0;
        lost.lives += lives.take_overflow();
        lost.unheard += lives.take_unheard();
        lost.is_muted |= lives.take_silence();
        Taken {
            told: std::mem::take(&mut self.0.told),
            states: self.0.lives.take_states(),
            owned: std::mem::take(&mut self.0.owned),
            lost: std::mem::take(&mut self.0.lost),
        }
    }

    /// Some of the connections that have been open for so long and that no walk has seen, or seen gone.
    pub fn sought(&mut self, age: Duration) -> Vec<Sought> {
        self.0.lives.sought(events::now_ns().saturating_sub(nanoseconds(age)))
    }

    /// A walk was applied that looked for these.
    pub fn looked(&mut self, looked_for: &[Sought]) {
        self.0.lives.looked(looked_for);
    }

    /// Whether there is something that only a walk of everything can tell the end of.
    pub fn has_missed(&self) -> bool {
        self.0.lives.has_missed()
    }

    /// A walk was applied that showed every connection there is: what is followed and was looked for in vain is over.
    pub fn conclude(&mut self) {
        let State { lives, noticed, .. } = &mut *self.0;
        lives.conclude(events::now_ns(), noticed);
    }

    /// These are gone, and no record told their ends: gives those that were followed and whose ends are told now.
    pub fn depart(&mut self, unclaimed: Vec<Departed>) -> Vec<Departed> {
        let State { lives, noticed, clock_offset_ns, .. } = &mut *self.0;
        let mut is_followed = |departed: &Departed| {
            let Departed { socket, at } = departed;
            let Some(peer) = socket.peer else { return false };
            let at_ns = events::since_boot_ns(*at, *clock_offset_ns);
            lives.depart(at_ns, socket.key.cookie, [socket.local, peer], noticed)
        };
        unclaimed.into_iter().filter(|departed| is_followed(departed)).collect()
    }

    /// Whether something was lost since the last time.
    pub fn has_lost(&self) -> bool {
        let Lost { records, lives, .. } = self.0.lost;
        records > 0 || lives > 0 || self.0.lives.has_been_silent()
    }
}

impl Insight for Look<'_> {
    fn doubts(&self) -> bool {
        self.0.lives.doubts()
    }

    fn origin(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) -> Option<Origin> {
        let life = self.0.lives.recognise(key, local, peer)?;
        let direction = match life.purpose {
            Purpose::Session(direction) => direction,
            Purpose::Listener => None,
        };
        let opened_at = life.opened_ns.map(|at_ns| events::moment(at_ns, self.0.clock_offset_ns));
        Some(Origin { opened_at, direction, state: life.closed_ns.is_none().then_some(life.state) })
    }

    fn ask_owners(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) {
        self.0.lives.ask(key, local, peer);
    }

    fn closed_at(&self, local: SocketAddr, peer: SocketAddr) -> Option<Timestamp> {
        self.0.lives.closed_ns(local, peer).map(|at_ns| events::moment(at_ns, self.0.clock_offset_ns))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
