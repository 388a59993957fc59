//! Lives of TCP sockets, put together from events. Pure: no I/O, no clock.
//!
//! An event names a socket by its address in the kernel, a walk by its cookie. The two meet twice: a walk that finds an
//! open socket looks here, by its pair, for when it opened and who opened it; and the last event of a life names the
//! cookie, so that what a walk found is closed at its moment, and what no walk ever found is told whole.

use std::{collections::HashMap, net::SocketAddr};

use fleetsock_proto::socket::{Direction, Family, SocketState};

use crate::events::{Actor, Record, SocketEvent, What};

/// Most sockets that are followed at once; what begins beyond them is known only by walks.
pub const LIVES_LIMIT: usize = 512 * 1024;
/// Most attempts to connect that one socket is remembered for; further ones are counted.
const ATTEMPTS_LIMIT: usize = 16;

/// What a life was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// It waited for connections.
    Listener,
    /// It was a connection, or an attempt at one; the direction is not known when it began before the events did.
    Session(Option<Direction>),
}

/// A life, or what is known of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Family of the socket.
    pub family: Family,
    /// The host's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// What it was for.
    pub purpose: Purpose,
    /// The last state before it was closed.
    pub state: SocketState,
    /// When it opened (nanoseconds, the clock of the events); absent when that was before the events began.
    pub opened_ns: Option<u64>,
    /// The process that connected.
    pub opener: Option<u32>,
    /// The process that closed.
    pub closer: Option<u32>,
    /// When it closed.
    pub closed_ns: Option<u64>,
}

/// A life that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// sk_cookie.
    pub cookie: u64,
    /// The whole of it.
    pub life: Life,
    /// When it closed.
    pub closed_ns: u64,
}

/// The lives that are not over.
#[derive(Debug, Default)]
pub struct Lives {
    sockets: HashMap<u64, Followed>,
    by_pair: HashMap<(SocketAddr, SocketAddr), u64>,
    /// Those that are closed and that a process still holds.
    closed_by_pair: HashMap<(SocketAddr, SocketAddr), u64>,
    /// What was not followed because there were too many.
    overflow: u64,
}

/// A socket, which can have several lives: whoever is refused may connect once more with the same one.
#[derive(Debug)]
struct Followed {
    life: Life,
    earlier: Vec<Life>,
}

impl Life {
    fn new(event: &SocketEvent, purpose: Purpose, state: SocketState) -> Life {
        Life {
            family: event.family,
            local: event.local,
            peer: event.peer,
            purpose,
            state,
            opened_ns: None,
            opener: None,
            closer: None,
            closed_ns: None,
        }
    }
}

const fn process(actor: Actor) -> Option<u32> {
    match actor {
        Actor::Process(pid) => Some(pid),
        Actor::Kernel => None,
    }
}

impl Lives {
    /// How many beginnings were not followed since the last time this was asked.
    pub fn take_overflow(&mut self) -> u64 {
        std::mem::take(&mut self.overflow)
    }

    /// How many sockets are followed.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// The life of the socket with this pair, open or just closed.
    pub fn find(&self, local: SocketAddr, peer: SocketAddr) -> Option<&Life> {
        let pair = (local, peer);
        let socket = self.by_pair.get(&pair).or_else(|| self.closed_by_pair.get(&pair))?;
        self.sockets.get(socket).map(|followed| &followed.life)
    }

    /// When the socket with this pair was closed, if a process still holds what is left of it.
    pub fn closed_ns(&self, local: SocketAddr, peer: SocketAddr) -> Option<u64> {
        let socket = self.closed_by_pair.get(&(local, peer))?;
        self.sockets.get(socket).and_then(|followed| followed.life.closed_ns)
    }

    /// Records were lost: an end may be among them, so nothing that is followed can be believed.
    pub fn forget(&mut self) {
        self.sockets.clear();
        self.by_pair.clear();
        self.closed_by_pair.clear();
    }

    /// Takes in a record; lives that ended with it are added to `ended`.
    pub fn handle(&mut self, record: &Record, ended: &mut Vec<Ended>) {
        match &record.what {
            What::State { event, old, new } => self.change(record.at_ns, event, *old, *new),
            What::Destroyed { event, cookie } => self.end(record.at_ns, event, *cookie, ended),
            What::Named { .. } | What::Forked { .. } | What::Exited { .. } => {}
        }
    }

    fn change(&mut self, at_ns: u64, event: &SocketEvent, old: Option<SocketState>, new: Option<SocketState>) {
        use SocketState::{CloseWait, Established, FinWait1, LastAck, Listen, SynReceived, SynSent};
        match (old, new) {
            (None, Some(SynSent)) => {
                let out = Life::new(event, Purpose::Session(Some(Direction::Out)), SynSent);
                self.begin(event, Life { opened_ns: Some(at_ns), opener: process(event.by), ..out });
            }
            (None, Some(Listen)) => {
                let listener = Life::new(event, Purpose::Listener, Listen);
                self.begin(event, Life { opened_ns: Some(at_ns), opener: process(event.by), ..listener });
            }
            // The child of a listener, whose own state it begins with.
            (_, Some(SynReceived)) => {
                let inward = Life::new(event, Purpose::Session(Some(Direction::In)), SynReceived);
                self.begin(event, Life { opened_ns: Some(at_ns), ..inward });
            }
            (_, Some(new)) => {
                let life = self.followed(event, old.unwrap_or(new));
                life.state = new;
                let closes = matches!((old, new), (Some(Established), FinWait1) | (Some(CloseWait), LastAck));
                if closes {
                    life.closer = process(event.by).or(life.closer);
                }
                self.pair(event);
            }
            (old, None) => {
                let life = self.followed(event, old.unwrap_or(Established));
                life.closed_ns = Some(at_ns);
                // Closed by a reset or with unread data: in a system call when a process did it.
                life.closer = life.closer.or(process(event.by));
                let pair = (life.local, life.peer);
                self.unpair(event.socket);
                self.closed_by_pair.insert(pair, event.socket);
            }
        }
    }

    /// A life begins, on a socket that may have had one before.
    fn begin(&mut self, event: &SocketEvent, life: Life) {
        if self.sockets.len() >= LIVES_LIMIT && !self.sockets.contains_key(&event.socket) {
            self.overflow += 1;
            return;
        }
        self.unpair(event.socket);
        let mut earlier = match self.sockets.remove(&event.socket) {
            Some(Followed { mut earlier, life }) => {
                // Without an end it is another socket at the same address, whose end was lost.
                match life.closed_ns {
                    Some(_) if earlier.len() < ATTEMPTS_LIMIT => earlier.push(life),
                    Some(_) => self.overflow += 1,
                    None => {
                        self.overflow += 1;
                        earlier.clear();
                    }
                }
                earlier
            }
            None => Vec::new(),
        };
        earlier.shrink_to_fit();
        self.sockets.insert(event.socket, Followed { life, earlier });
        self.pair(event);
    }

    /// The life of a socket; one that began before the events is followed from now on.
    fn followed(&mut self, event: &SocketEvent, state: SocketState) -> &mut Life {
        let purpose = if state == SocketState::Listen { Purpose::Listener } else { Purpose::Session(None) };
        let followed = self
            .sockets
            .entry(event.socket)
            .or_insert_with(|| Followed { life: Life::new(event, purpose, state), earlier: Vec::new() });
        // The port is given while it connects; a reset erases the pair before the last event.
        if event.local.port() != 0 && event.peer.port() != 0 {
            (followed.life.local, followed.life.peer) = (event.local, event.peer);
        }
        &mut followed.life
    }

    fn pair(&mut self, event: &SocketEvent) {
        if event.local.port() != 0 && event.peer.port() != 0 && self.sockets.contains_key(&event.socket) {
            self.by_pair.insert((event.local, event.peer), event.socket);
        }
    }

    fn unpair(&mut self, socket: u64) {
        if let Some(followed) = self.sockets.get(&socket) {
            let pair = (followed.life.local, followed.life.peer);
            for pairs in [&mut self.by_pair, &mut self.closed_by_pair] {
                if pairs.get(&pair) == Some(&socket) {
                    pairs.remove(&pair);
                }
            }
        }
    }

    fn end(&mut self, at_ns: u64, event: &SocketEvent, cookie: u64, ended: &mut Vec<Ended>) {
        self.unpair(event.socket);
        let Some(Followed { mut life, earlier }) = self.sockets.remove(&event.socket) else { return };
        // Reset by the peer: the process closes what is closed already, and this is where it is seen.
        life.closer = life.closer.or(process(event.by));
        for life in earlier.into_iter().chain([life]) {
            ended.push(Ended { cookie, life, closed_ns: life.closed_ns.unwrap_or(at_ns) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use SocketState::{CloseWait, Established, FinWait1, FinWait2, LastAck, Listen, SynReceived, SynSent};

    const CLIENT: u64 = 0xc;
    const SERVER: u64 = 0x5;

    fn event(socket: u64, local: &str, peer: &str, by: Actor) -> SocketEvent {
        SocketEvent { socket, family: Family::Ipv4, local: local.parse().unwrap(), peer: peer.parse().unwrap(), by }
    }

    struct Scene {
        lives: Lives,
        ended: Vec<Ended>,
        at_ns: u64,
    }

    impl Scene {
        fn new() -> Scene {
            Scene { lives: Lives::default(), ended: Vec::new(), at_ns: 0 }
        }

        fn state(
            &mut self,
            who: (u64, &str, &str),
            by: Actor,
            old: impl Into<Option<SocketState>>,
            new: impl Into<Option<SocketState>>,
        ) {
            self.at_ns += 1;
            let event = event(who.0, who.1, who.2, by);
            let what = What::State { event, old: old.into(), new: new.into() };
            self.lives.handle(&Record { at_ns: self.at_ns, what }, &mut self.ended);
        }

        fn destroy(&mut self, who: (u64, &str, &str), by: Actor, cookie: u64) {
            self.at_ns += 1;
            let what = What::Destroyed { event: event(who.0, who.1, who.2, by), cookie };
            self.lives.handle(&Record { at_ns: self.at_ns, what }, &mut self.ended);
        }
    }

    const UNBOUND: (u64, &str, &str) = (CLIENT, "10.0.0.1:0", "10.0.0.2:80");
    const OUT: (u64, &str, &str) = (CLIENT, "10.0.0.1:40000", "10.0.0.2:80");
    const IN: (u64, &str, &str) = (SERVER, "10.0.0.2:80", "10.0.0.1:40000");
    const ALICE: Actor = Actor::Process(1);
    const BOB: Actor = Actor::Process(2);

    #[test]
    fn both_ends_of_a_connection_have_their_direction_their_process_and_their_times() {
        let mut scene = Scene::new();
        scene.state(UNBOUND, ALICE, None, SynSent);
        scene.state(IN, Actor::Kernel, Listen, SynReceived);
        scene.state(IN, Actor::Kernel, SynReceived, Established);
        scene.state(OUT, Actor::Kernel, SynSent, Established);
        assert_eq!(scene.lives.find(OUT.1.parse().unwrap(), OUT.2.parse().unwrap()).unwrap().opener, Some(1));
        scene.state(OUT, ALICE, Established, FinWait1);
        scene.state(IN, Actor::Kernel, Established, CloseWait);
        scene.state(OUT, Actor::Kernel, FinWait1, FinWait2);
        scene.state(OUT, Actor::Kernel, FinWait2, None);
        scene.destroy(OUT, Actor::Kernel, 7);
        scene.state(IN, BOB, CloseWait, LastAck);
        scene.state(IN, Actor::Kernel, LastAck, None);
        scene.destroy(IN, Actor::Kernel, 8);
        let [out, inward] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
        assert_eq!((out.cookie, out.life.purpose), (7, Purpose::Session(Some(Direction::Out))));
        assert_eq!(
            (out.life.opener, out.life.closer, out.life.opened_ns, out.closed_ns),
            (Some(1), Some(1), Some(1), 8)
        );
        assert_eq!((out.life.local, out.life.state), (OUT.1.parse().unwrap(), FinWait2));
        assert_eq!((inward.cookie, inward.life.purpose), (8, Purpose::Session(Some(Direction::In))));
        assert_eq!((inward.life.opener, inward.life.closer, inward.life.opened_ns), (None, Some(2), Some(2)));
        assert!(scene.lives.is_empty() && scene.lives.by_pair.is_empty() && scene.lives.closed_by_pair.is_empty());
    }

    #[test]
    fn whoever_was_reset_is_known_by_the_destruction_and_keeps_the_pair_that_the_reset_erased() {
        let mut scene = Scene::new();
        scene.state(IN, Actor::Kernel, Listen, SynReceived);
        scene.state(IN, Actor::Kernel, SynReceived, Established);
        scene.state(IN, Actor::Kernel, Established, None);
        let (local, peer) = (IN.1.parse().unwrap(), IN.2.parse().unwrap());
        assert_eq!(scene.lives.closed_ns(local, peer), Some(3));
        assert_eq!(
            scene.lives.find(local, peer).unwrap().opened_ns,
            Some(1),
            "a walk may have seen it a moment before"
        );
        scene.destroy((SERVER, "10.0.0.2:0", "0.0.0.0:0"), BOB, 8);
        assert_eq!((scene.lives.find(local, peer), scene.lives.closed_ns(local, peer)), (None, None));
        let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
        assert_eq!((ended.life.peer, ended.life.closer), (IN.2.parse().unwrap(), Some(2)));
        assert_eq!(ended.closed_ns, 3, "when it was reset, not when somebody noticed");
    }

    #[test]
    fn an_attempt_that_was_refused_is_a_session_that_got_no_further_and_the_next_one_another() {
        let mut scene = Scene::new();
        scene.state(UNBOUND, ALICE, None, SynSent);
        scene.state(OUT, Actor::Kernel, SynSent, None);
        scene.state(UNBOUND, ALICE, None, SynSent);
        scene.state(OUT, Actor::Kernel, SynSent, Established);
        scene.state(OUT, ALICE, Established, None);
        scene.destroy(OUT, ALICE, 7);
        let [first, second] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
        assert_eq!((first.life.state, first.closed_ns), (SynSent, 2));
        assert_eq!((second.life.state, second.life.opened_ns, second.closed_ns), (Established, Some(3), 5));
    }

    #[test]
    fn what_began_before_the_events_has_no_beginning_and_no_guess() {
        let mut scene = Scene::new();
        scene.state(IN, BOB, Established, FinWait1);
        scene.state(IN, Actor::Kernel, FinWait1, None);
        scene.destroy(IN, Actor::Kernel, 8);
        let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
        assert_eq!((ended.life.purpose, ended.life.opened_ns), (Purpose::Session(None), None));
        assert_eq!(ended.life.closer, Some(2));
    }

    #[test]
    fn a_socket_that_was_never_connected_leaves_nothing() {
        let mut scene = Scene::new();
        scene.destroy((CLIENT, "0.0.0.0:0", "0.0.0.0:0"), ALICE, 7);
        assert!(scene.ended.is_empty() && scene.lives.is_empty());
    }

    #[test]
    fn a_socket_at_the_address_of_one_whose_end_was_lost_is_another_one() {
        let mut scene = Scene::new();
        scene.state(IN, Actor::Kernel, Listen, SynReceived);
        scene.state(UNBOUND_AT_SERVER, ALICE, None, SynSent);
        scene.state((SERVER, OUT.1, OUT.2), Actor::Kernel, SynSent, None);
        scene.destroy((SERVER, OUT.1, OUT.2), ALICE, 9);
        let [ended] = scene.ended.as_slice() else { panic!("{:?}", scene.ended) };
        assert_eq!(ended.life.purpose, Purpose::Session(Some(Direction::Out)));
        assert!(scene.lives.by_pair.is_empty(), "{:?}", scene.lives.by_pair);
    }

    const UNBOUND_AT_SERVER: (u64, &str, &str) = (SERVER, "10.0.0.1:0", "10.0.0.2:80");
}
