//! Lives of TCP sockets, put together from events. Pure: no I/O, no clock.
//!
//! An event names a socket by its address in the kernel, a walk by its cookie. The two meet twice: a walk that finds an
//! open socket looks here, by its pair, for when it opened and who opened it; and the last event of a life names the
//! cookie, so that what a walk found is closed at its moment, and what no walk ever found is told whole.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
};

use fleetsock_proto::socket::{Direction, SocketKey, SocketState};
use foldhash::HashMap;

use self::{life::Pair, pairs::Pairs, silence::Silence, sought::Queue};
pub use self::{
    life::{Asked, Deed, Ended, Heard, Life, Purpose},
    sought::Sought,
};
use crate::events::{Record, SocketEvent, What};

mod life;
mod pairs;
mod silence;
mod sought;
#[cfg(test)]
mod tests;
mod unheard;

/// Most sockets that are followed at once, unless it is told otherwise; what begins beyond them is known only by walks.
pub const LIVES_LIMIT: usize = 512 * 1024;
/// Most attempts to connect that one socket is remembered for; further ones are counted.
const ATTEMPTS_LIMIT: usize = 16;

/// The lives that are not over.
#[derive(Debug)]
pub struct Lives {
    limit: usize,
    sockets: HashMap<u64, Followed>,
    by_pair: Pairs,
    /// Those that are closed and that a process still holds.
    closed_by_pair: Pairs,
    /// Those that a walk should see.
    queue: Queue,
    /// Those that a walk saw and that changed their state since.
    restated: Vec<u64>,
    /// Those that a walk saw without knowing whose they are, or saw before a process closed them: never more than walks saw.
    asked: RefCell<Vec<Asked>>,
    /// What was not followed because there were too many.
    overflow: u64,
    /// Ends that were noticed without their record and are not told here: a walk tells them, or they were told before.
    unheard: u64,
    /// Whether anything is told of states.
    silence: Silence,
}

/// A socket, which can have several lives: whoever is refused may connect once more with the same one.
#[derive(Debug)]
struct Followed {
    life: Life,
    earlier: Vec<Life>,
    /// What a walk that saw this life knows it by.
    walked: Cell<Option<SocketKey>>,
    /// When it came into the queue.
    since_ns: u64,
    /// The end of this life was told, though a process still holds the socket.
    told: Cell<bool>,
}

impl Followed {
    fn new(life: Life, earlier: Vec<Life>, since_ns: u64) -> Followed {
        Followed { life, earlier, since_ns, walked: Cell::new(None), told: Cell::new(false) }
    }

    /// What a walk has to look for, if there is anything: what it did not see open, or not gone.
    fn sought(&self, socket: u64) -> Option<Sought> {
        let Life { local, peer, closed_ns, .. } = self.life;
        let opener = self.life.opener.map(|deed| deed.pid);
        let walked = self.walked.get();
        let wanted = match walked {
            None => closed_ns.is_none(),
            Some(_) => closed_ns.is_some() || self.life.is_ending(),
        };
        wanted.then_some(Sought { socket, since_ns: self.since_ns, local, peer, opener, walked, looks: 0 })
    }
}

impl Default for Lives {
    fn default() -> Lives {
        Lives::with_limit(LIVES_LIMIT)
    }
}

impl Lives {
    /// Follows at most `limit` sockets.
    pub fn with_limit(limit: usize) -> Lives {
        Lives {
            limit,
            sockets: HashMap::default(),
            by_pair: Pairs::default(),
            closed_by_pair: Pairs::default(),
            queue: Queue::default(),
            restated: Vec::new(),
            asked: RefCell::new(Vec::new()),
            overflow: 0,
            unheard: 0,
            silence: Silence::default(),
        }
    }

    /// How many beginnings were not followed since the last time this was asked.
    pub fn take_overflow(&mut self) -> u64 {
        std::mem::take(&mut self.overflow)
    }

    /// How many ends were noticed without their record since the last time this was asked, those left out that are told with
    /// [`Heard::Missed`].
    pub fn take_unheard(&mut self) -> u64 {
        std::mem::take(&mut self.unheard)
    }

    /// How many sockets are followed.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    fn find(&self, local: SocketAddr, peer: SocketAddr) -> Option<&Followed> {
        let pair = Pair::new(local, peer);
        let socket = self.by_pair.get(pair).or_else(|| self.closed_by_pair.get(pair))?;
        self.sockets.get(&socket)
    }

    /// The life of the socket with this pair, open or just closed, which a walk saw and knows by this key.
    pub fn recognise(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) -> Option<&Life> {
        let followed = self.find(local, peer)?;
        followed.walked.set(Some(key));
        Some(&followed.life)
    }

    /// A walk did not find out whose this socket is: who opened or closed it will be told, if that is known.
    pub fn ask(&self, key: SocketKey, local: SocketAddr, peer: SocketAddr) {
        if let Some(Followed { life, .. }) = self.find(local, peer) {
            self.asked.borrow_mut().extend(life.asked(key));
        }
    }

    /// What was asked since the last time, with the processes that are known.
    pub fn take_asked(&mut self) -> Vec<Asked> {
        std::mem::take(self.asked.get_mut())
    }

    /// When the socket with this pair was closed, if a process still holds what is left of it (or the record that it does not
    /// is still to come); whoever asks does not see it any more, and tells its end. That is of what a walk saw, or of what had
    /// begun before anything was followed, which a walk may have seen before records were lost; and it is told once.
    pub fn closed_ns(&self, local: SocketAddr, peer: SocketAddr) -> Option<u64> {
        let socket = self.closed_by_pair.get(Pair::new(local, peer))?;
        let followed = self.sockets.get(&socket)?;
        let may_be_seen = followed.walked.take().is_some() || followed.life.opened_ns.is_none();
        let is_told = followed.told.get();
        followed.told.set(is_told || may_be_seen);
        followed.life.closed_ns.filter(|_| may_be_seen && !is_told)
    }

    /// The states of those that changed it since the last time this was asked, by what walks know them by.
    pub fn take_states(&mut self) -> Vec<(SocketKey, SocketState)> {
        self.restated.sort_unstable();
        self.restated.dedup();
        let open = |socket| self.sockets.get(socket).filter(|followed| followed.life.closed_ns.is_none());
        let states = self.restated.iter().filter_map(open);
        let states = states.filter_map(|followed| Some((followed.walked.get()?, followed.life.state))).collect();
        self.restated.clear();
        states
    }

    /// Some of those that a walk should see: they were open at `before_ns` and are, and no walk saw them; or one did, and
    /// they are closed though a process still holds them.
    pub fn sought(&mut self, before_ns: u64) -> Vec<Sought> {
        self.queue.sought(before_ns, |socket| self.sockets.get(&socket)?.sought(socket))
    }

    /// A walk was made that should have seen these.
    pub fn looked(&mut self, looked_for: &[Sought]) {
        self.queue.looked(looked_for);
    }

    /// Records were lost: an end may be among them, so nothing that is followed can be believed.
    pub fn forget(&mut self) {
        self.sockets.clear();
        self.by_pair.clear();
        self.closed_by_pair.clear();
        self.queue = Queue::default();
        self.restated.clear();
        self.asked.get_mut().clear();
    }

    /// Takes in a record; lives that ended with it are added to `ended`.
    pub fn handle(&mut self, record: &Record, ended: &mut Vec<Ended>) {
        match &record.what {
            What::State { event, old, new } => {
                self.silence.break_off();
                self.change(record.at_ns, event, *old, *new, ended);
            }
            What::Destroyed { event, cookie } => self.end(record.at_ns, event, *cookie, ended),
            What::Named { .. } | What::Forked { .. } | What::Exited { .. } => {}
            What::ThreadBegan { .. } | What::ThreadEnded { .. } => {}
        }
    }

    fn change(
        &mut self,
        at_ns: u64,
        event: &SocketEvent,
        old: Option<SocketState>,
        new: Option<SocketState>,
        ended: &mut Vec<Ended>,
    ) {
        use SocketState::{CloseWait, Established, FinWait1, LastAck, Listen, SynReceived, SynSent};
        self.part(at_ns, event, ended);
        match (old, new) {
            (None, Some(SynSent)) => {
                let out = Life::new(event, Purpose::Session(Some(Direction::Out)), SynSent);
                self.begin(event, Life { opened_ns: Some(at_ns), opener: Deed::of(event.by, at_ns), ..out }, ended);
            }
            (None, Some(Listen)) => {
                let listener = Life::new(event, Purpose::Listener, Listen);
                self.begin(
                    event,
                    Life { opened_ns: Some(at_ns), opener: Deed::of(event.by, at_ns), ..listener },
                    ended,
                );
            }
            // The child of a listener, whose own state it begins with; or the first that is told of it.
            (_, Some(SynReceived)) => self.accept(at_ns, event, SynReceived, ended),
            (Some(SynReceived), Some(Established)) if !self.sockets.contains_key(&event.socket) => {
                self.accept(at_ns, event, Established, ended);
            }
            (_, Some(new)) => {
                let followed = self.followed(at_ns, event, old.unwrap_or(new));
                let life = &mut followed.life;
                life.state = new;
                let closes = matches!((old, new), (Some(Established), FinWait1) | (Some(CloseWait), LastAck));
                if closes {
                    life.closer = Deed::of(event.by, at_ns).or(life.closer);
                }
                let Some(key) = followed.walked.get() else { return };
                if closes {
                    followed.since_ns = at_ns;
                    // It may be held for long after it ended; and who closed it is known from now on.
                    let asked = followed.life.asked(key);
                    self.asked.get_mut().extend(asked);
                    self.overflow += self.queue.add(at_ns, event.socket);
                }
                self.restated.push(event.socket);
            }
            (old, None) => {
                let followed = self.followed(at_ns, event, old.unwrap_or(Established));
                let life = &mut followed.life;
                life.state = old.unwrap_or(life.state);
                life.closed_ns = Some(at_ns);
                // Closed by a reset or with unread data: in a system call when a process did it.
                life.closer = life.closer.or(Deed::of(event.by, at_ns));
                let (pair, walked) = (life.pair(), followed.walked.get());
                followed.since_ns = walked.map_or(followed.since_ns, |_| at_ns);
                self.unpair(pair, event.socket);
                self.closed_by_pair.insert(pair, event.socket);
                if walked.is_some() {
                    self.overflow += self.queue.add(at_ns, event.socket);
                }
            }
        }
    }

    fn accept(&mut self, at_ns: u64, event: &SocketEvent, state: SocketState, ended: &mut Vec<Ended>) {
        let inward = Life::new(event, Purpose::Session(Some(Direction::In)), state);
        self.begin(event, Life { opened_ns: Some(at_ns), ..inward }, ended);
    }

    /// A life begins, on a socket that may have had one before.
    fn begin(&mut self, event: &SocketEvent, life: Life, ended: &mut Vec<Ended>) {
        // Only what connects can be a socket that had a life before; otherwise, and without the end of that life, it is
        // another socket at the same address.
        let connects = life.state == SocketState::SynSent;
        if self.sockets.get(&event.socket).is_some_and(|before| !connects || before.life.closed_ns.is_none()) {
            self.conclude_one(life.opened_ns.unwrap_or_default(), event.socket, ended);
        }
        if self.sockets.len() >= self.limit && !self.sockets.contains_key(&event.socket) {
            self.overflow += 1;
            return;
        }
        let mut earlier = Vec::new();
        if let Some(before) = self.sockets.remove(&event.socket) {
            self.unpair(before.life.pair(), event.socket);
            earlier = before.earlier;
            match before.told.get() {
                true => {}
                false if earlier.len() < ATTEMPTS_LIMIT => earlier.push(before.life),
                false => self.overflow += 1,
            }
        }
        earlier.shrink_to_fit();
        if let (Purpose::Session(_), Some(opened_ns)) = (life.purpose, life.opened_ns) {
            self.overflow += self.queue.add(opened_ns, event.socket);
        }
        let since_ns = life.opened_ns.unwrap_or_default();
        self.sockets.insert(event.socket, Followed::new(life, earlier, since_ns));
        self.pair(event);
    }

    /// The life of a socket, with its pair; one that began before the events is followed from now on.
    fn followed(&mut self, at_ns: u64, event: &SocketEvent, state: SocketState) -> &mut Followed {
        let purpose = if state == SocketState::Listen { Purpose::Listener } else { Purpose::Session(None) };
        let (queue, overflow, by_pair) = (&mut self.queue, &mut self.overflow, &mut self.by_pair);
        let mut is_paired = true;
        let followed = self.sockets.entry(event.socket).or_insert_with(|| {
            if purpose != Purpose::Listener {
                *overflow += queue.add(at_ns, event.socket);
            }
            is_paired = false;
            Followed::new(Life::new(event, purpose, state), Vec::new(), at_ns)
        });
        // The port is given while it connects; a reset erases the pair before the last event.
        if event.local.port() != 0 && event.peer.port() != 0 {
            let life = &mut followed.life;
            is_paired = is_paired && (life.local, life.peer) == (event.local, event.peer);
            (life.local, life.peer) = (event.local, event.peer);
            if !is_paired {
                by_pair.insert(Pair::of(event), event.socket);
            }
        }
        followed
    }

    fn pair(&mut self, event: &SocketEvent) {
        if event.local.port() != 0 && event.peer.port() != 0 {
            self.by_pair.insert(Pair::of(event), event.socket);
        }
    }

    /// A socket has its pair no more. Another that had it before, and whose end was not told, is looked for now.
    fn unpair(&mut self, pair: Pair, socket: u64) {
        self.closed_by_pair.remove(pair, socket);
        if let Some(earlier) = self.by_pair.remove(pair, socket)
            && let Some(since_ns) = self.sockets.get(&earlier).map(|followed| followed.since_ns)
        {
            self.overflow += self.queue.add(since_ns, earlier);
        }
    }

    /// What a walk saw was not the latest socket with this pair, as its cookie tells: it was the one before.
    fn saw_earlier(&self, pair: Pair, key: SocketKey) {
        let earlier = self.by_pair.get(pair).and_then(|socket| self.sockets.get(&socket));
        if let Some(Followed { walked, .. }) = earlier
            && walked.get().is_none()
        {
            walked.set(Some(key));
        }
    }

    fn end(&mut self, at_ns: u64, event: &SocketEvent, cookie: u64, ended: &mut Vec<Ended>) {
        self.part(at_ns, event, ended);
        let mut followed = match self.sockets.remove(&event.socket) {
            Some(followed) => {
                self.unpair(followed.life.pair(), event.socket);
                followed
            }
            // Nothing told of it before its end: it began to end before the events did, or its records were lost.
            None if event.local.port() != 0 && event.peer.port() != 0 => {
                self.silence.deepen();
                Followed::new(Life::new(event, Purpose::Session(None), SocketState::Established), Vec::new(), at_ns)
            }
            // It was never connected, or reset by its owner, which erases its pair.
            None => return,
        };
        // Reset by the peer: the process closes what is closed already, and this is where it is seen.
        followed.life.closer = followed.life.closer.or(Deed::of(event.by, at_ns));
        self.tell_end(at_ns, cookie, followed, ended);
    }

    /// What was followed is gone, and this was its cookie.
    fn tell_end(&self, at_ns: u64, cookie: u64, followed: Followed, ended: &mut Vec<Ended>) {
        let Followed { life, earlier, walked, told, .. } = followed;
        let (walked, other) = match walked.get() {
            Some(key) if key.cookie == cookie => (Some(key), None),
            other => (None, other),
        };
        if let Some(other) = other {
            self.saw_earlier(life.pair(), other);
        }
        let cookie = Some(cookie);
        for life in earlier {
            ended.push(Ended::told(cookie, life, at_ns));
        }
        if !told.get() {
            ended.push(Ended { walked, ..Ended::told(cookie, life, at_ns) });
        }
    }
}
