//! The thread that empties the rings: puts records in order, lets them become lives, and gives those that ended their
//! processes.

use std::{os::fd::BorrowedFd, sync::Arc, time::Duration};

use fleetsock_proto::{
    owner::Owner,
    socket::{Known, OwnerKnown, SocketKey},
};
use rustix::io::Errno;

use super::{Chronicle, HELD_BACK, State, nanoseconds};
use crate::{
    ancestry::{Ancestry, Described, Look},
    events::{self, Drained, Events, Record, Teller as Source, What},
    lives::{Asked, Deed, Ended},
    owners::{Processes, lookers},
    table::{Owned, Told},
    threads::Threads,
};

/// How long what is left of a closed connection may be held by a process before it is told without waiting for that.
const CLOSED_PATIENCE: Duration = Duration::from_secs(2);
/// Records that are kept in memory while a walk looks at what is known: more make the reader wait.
const WAITING_LIMIT: usize = 128 * 1024;

/// Whether the youngest records are believed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeldBack {
    Youngest,
    Nothing,
}

/// What the thread that empties the rings works with.
#[derive(Debug)]
pub struct Reader {
    events: Events,
    processes: Processes,
    /// Where threads are told and not processes.
    threads: Option<Threads>,
    ancestry: Ancestry,
    drained: Drained,
    /// Held back, or about to be taken in. With processes that were looked at when they had run another program.
    waiting: Vec<(Record, Option<Box<Described>>)>,
    /// Records that were lost and of which nobody was told.
    lost: u64,
    ended: Vec<Ended>,
    /// The last cookie that stands for one that is not known.
    stand_in: u64,
    /// There are records that wait because somebody looks at what is known.
    is_behind: bool,
}

impl Reader {
    /// A reader of these rings.
    pub fn new(events: Events, processes: Processes) -> Reader {
        let threads = (events.teller() == Source::Tracefs).then(Threads::list);
        Reader {
            events,
            processes,
            threads,
            ancestry: Ancestry::default(),
            drained: Drained::default(),
            waiting: Vec::new(),
            lost: 0,
            ended: Vec::new(),
            stand_in: SocketKey::STAND_IN,
            is_behind: false,
        }
    }

    /// Waits until the rings want to be emptied.
    pub(super) fn wait(&self, patience: Duration, wake: BorrowedFd<'_>) -> Result<(), Errno> {
        self.events.wait(if self.is_behind { HELD_BACK } else { patience }, wake)
    }

    /// Empties the rings, and takes in what is old enough to be believed. While a walk looks at what is known, the rings are
    /// emptied all the same: they are small, and a look can last.
    pub(super) fn take_in(&mut self, chronicle: &Chronicle, held_back: HeldBack) {
        let began_ns = events::now_ns();
        let clock_offset_ns = events::clock_offset_ns();
        self.processes.begin_look();
        self.events.drain(&mut self.drained);
        self.lost += self.drained.lost + self.drained.unreadable;
        for record in self.drained.records.drain(..) {
            let seen = match record.what {
                What::Named { pid, exec: true, .. } => self.processes.process(pid).map(Box::new),
                _ => None,
            };
            if let Some(threads) = &mut self.threads {
                threads.doubt(&record);
            }
            self.waiting.push((record, seen));
        }
        let is_full = self.waiting.len() >= WAITING_LIMIT || held_back == HeldBack::Nothing;
        let Some(mut state) = chronicle.state_if(is_full) else {
            self.is_behind = true;
            return;
        };
        self.is_behind = false;
        self.waiting.sort_by_key(|(record, _)| record.at_ns);
        let until_ns = match held_back {
            HeldBack::Youngest => began_ns.saturating_sub(nanoseconds(HELD_BACK)),
            HeldBack::Nothing => u64::MAX,
        };
        let believed = self.waiting.partition_point(|(record, _)| record.at_ns <= until_ns);
        state.quiet = self.waiting.is_empty();
        let Reader { waiting, threads, ancestry, processes, ended, stand_in, .. } = self;
        let mut teller = Teller { ancestry, processes, stand_in, clock_offset_ns };
        ended.append(&mut state.noticed);
        state.lives.tell_closed(began_ns.saturating_sub(nanoseconds(CLOSED_PATIENCE)), ended);
        teller.tell(ended, &mut state);
        for (mut record, seen) in waiting.drain(..believed) {
            if let Some(threads) = threads {
                threads.handle(&mut record, |thread, at_ns| teller.processes.of_thread(thread, at_ns));
            }
            state.lives.handle(&record, ended);
            teller.ancestry.handle(&record, seen.map(|seen| *seen));
            teller.tell(ended, &mut state);
        }
        for asked in state.lives.take_asked() {
            let owned = teller.own(asked);
            state.owned.push(owned);
        }
        if self.lost > 0 {
            // Ends may be among what was lost: the next walk tells what is still there.
            state.lives.forget();
            self.ancestry.forget();
            if let Some(threads) = &mut self.threads {
                threads.forget();
            }
            state.lost.records += std::mem::take(&mut self.lost);
        }
        state.lost.lives += self.ancestry.take_overflow();
        self.ancestry.sweep(began_ns);
        if let Some(threads) = &mut self.threads {
            threads.sweep(began_ns);
        }
        state.clock_offset_ns = clock_offset_ns;
        state.known_until_ns = state.known_until_ns.max(until_ns);
        drop(state);
        chronicle.progressed.notify_all();
    }
}

/// What gives the lives that ended their processes.
struct Teller<'a> {
    ancestry: &'a mut Ancestry,
    processes: &'a mut Processes,
    stand_in: &'a mut u64,
    clock_offset_ns: i64,
}

impl Teller<'_> {
    fn tell(&mut self, ended: &mut Vec<Ended>, state: &mut State) {
        for ended in ended.drain(..) {
            if state.told.len() >= state.told_limit {
                state.lost.lives += 1;
                continue;
            }
            let told = self.tell_one(ended);
            state.told.push(told);
        }
    }

    fn own(&mut self, Asked { key, opener, closer }: Asked) -> Owned {
        let (owners, owner_known, _) = self.describe(opener, closer);
        Owned { key, owners, owner_known }
    }

    /// The processes, how they are known, and their network namespace (0 when it is not known).
    fn describe(&mut self, opener: Option<Deed>, closer: Option<Deed>) -> (Vec<Arc<Owner>>, OwnerKnown, u64) {
        let (opener, closer) = (opener.map(|deed| self.who(deed)), closer.map(|deed| self.who(deed)));
        let closer = closer.filter(|closer| !lookers::is_one(&closer.owner));
        let owner_known = match (&opener, &closer) {
            (Some(_), _) => OwnerKnown::Exact,
            (None, Some(_)) => OwnerKnown::Closer,
            (None, None) => OwnerKnown::Unknown,
        };
        let mut owners: Vec<Arc<Owner>> = Vec::with_capacity(1);
        let mut netns = 0;
        for known in [opener, closer].into_iter().flatten() {
            netns = if netns == 0 { known.netns } else { netns };
            if !owners.iter().any(|owner| owner.pid == known.owner.pid) {
                owners.push(known.owner);
            }
        }
        (owners, owner_known, netns)
    }

    fn who(&mut self, deed: Deed) -> Described {
        self.ancestry.describe(deed, self.clock_offset_ns, self.processes)
    }

    fn tell_one(&mut self, Ended { cookie, life, closed_ns, walked, heard }: Ended) -> Told {
        let (owners, owner_known, netns) = self.describe(life.opener, life.closer);
        let key = walked.unwrap_or_else(|| {
            let cookie = cookie.unwrap_or_else(|| {
                // Moments do not come twice in a boot, also not for the next agent.
                *self.stand_in = (*self.stand_in + 1).max(SocketKey::STAND_IN | closed_ns);
                *self.stand_in
            });
            SocketKey { netns, cookie }
        });
        Told {
            key,
            opened_at: life.opened_ns.map(|at_ns| events::moment(at_ns, self.clock_offset_ns)),
            closed_at: events::moment(closed_ns, self.clock_offset_ns),
            closed_known: if life.closed_ns.is_some() || cookie.is_some() { Known::Event } else { Known::BetweenWalks },
            life,
            owners,
            owner_known,
            heard,
        }
    }
}
