//! What went over TCP connections, joined by their cookies to the ends that are told. Pure.
//!
//! The kernel tells the bytes of a connection a moment after its end. So an end whose bytes are not known yet is held until
//! the next walk, and then told with them or without.

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    socket::{Known, Protocol, SocketState},
};
use foldhash::HashMap;

use crate::departures::Departed;

/// Walks after which an account that no end asked for is closed.
const WALKS: u64 = 2;

/// How the last state before the end of a connection is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastState {
    /// Events told it.
    Told,
    /// A walk saw it; it may have changed since.
    Walked,
}

/// Accounts of connections that ended, and ends that wait for theirs.
#[derive(Debug)]
pub struct Ledger {
    home: u64,
    last_state: LastState,
    accounts: HashMap<u64, Account>,
    held: Ends,
    /// What no end asked for, until it is taken.
    unclaimed: Vec<Departed>,
    /// Number of the walk.
    walk: u64,
}

/// Changes that are told; those of sockets that no snapshot names apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// Of sockets that were told to be open.
    pub changes: Vec<Change>,
    /// Of others.
    pub unseen: Vec<Change>,
}

#[derive(Debug)]
struct Account {
    departed: Departed,
    walk: u64,
}

impl Ends {
    /// Adds others behind them.
    pub fn extend(&mut self, others: Ends) {
        self.changes.extend(others.changes);
        self.unseen.extend(others.unseen);
    }
}

impl Ledger {
    /// An empty one, for the connections of one network namespace.
    pub fn new(home: u64, last_state: LastState) -> Ledger {
        Ledger { home, last_state, accounts: HashMap::default(), held: Ends::default(), unclaimed: Vec::new(), walk: 0 }
    }

    /// Opens the account of a TCP connection that ended.
    pub fn note(&mut self, departed: &Departed) {
        self.accounts.insert(departed.socket.key.cookie, Account { departed: *departed, walk: self.walk });
    }

    /// Whether a socket of the namespace had this cookie and ended a short while ago.
    pub fn knows(&self, cookie: u64) -> bool {
        self.accounts.contains_key(&cookie)
    }

    /// Takes the changes of a walk and gives those that are to be told: with those that were held before, and without
    /// those whose account may still come.
    pub fn settle(&mut self, new: Ends) -> Ends {
        let held = std::mem::take(&mut self.held);
        let mut told = Ends { changes: self.settle_held(held.changes), unseen: self.settle_held(held.unseen) };
        let Ends { changes, unseen } = new;
        let (changes, waiting) = self.settle_new(changes);
        told.changes.extend(changes);
        self.held.changes = waiting;
        let (unseen, waiting) = self.settle_new(unseen);
        told.unseen.extend(unseen);
        self.held.unseen = waiting;
        self.walk += 1;
        let is_over = |account: &Account| account.walk + WALKS <= self.walk;
        self.unclaimed =
            self.accounts.extract_if(|_, account| is_over(account)).map(|(_, over)| over.departed).collect();
        told
    }

    /// Connections that ended and whose ends nobody asked the last walk or the one before to settle: no record told them.
    pub fn take_unclaimed(&mut self) -> Vec<Departed> {
        std::mem::take(&mut self.unclaimed)
    }

    /// Gives everything that is held: a snapshot is about to be told, which does not name what ended.
    pub fn flush(&mut self) -> Ends {
        std::mem::take(&mut self.held)
    }

    /// Sockets whose end is held: for those who are told of changes they are open.
    pub fn unsettled(&self) -> impl Iterator<Item = &Socket> {
        self.held.changes.iter().map(|change| &change.socket)
    }

    fn settle_held(&mut self, mut held: Vec<Change>) -> Vec<Change> {
        for change in &mut held {
            self.join(change);
        }
        held
    }

    /// Those that are told, and those that wait. Of several lives of one socket the last one is that of the account.
    fn settle_new(&mut self, new: Vec<Change>) -> (Vec<Change>, Vec<Change>) {
        let (mut told, mut waiting) = (Vec::with_capacity(new.len()), Vec::new());
        for mut change in new.into_iter().rev() {
            let settled = !self.awaits(&change) || self.join(&mut change);
            if settled { told.push(change) } else { waiting.push(change) }
        }
        told.reverse();
        waiting.reverse();
        (told, waiting)
    }

    /// Whether there is or will be an account of this.
    fn awaits(&self, change: &Change) -> bool {
        let socket = &change.socket;
        let session = matches!((change.op, socket.role), (Op::Closed { .. }, Role::Session { .. }));
        session && socket.protocol == Protocol::Tcp && socket.key.netns == self.home
    }

    /// Writes into an end what its account says; whether there was one.
    fn join(&mut self, change: &mut Change) -> bool {
        let Some(account) = self.accounts.remove(&change.socket.key.cookie) else { return false };
        let Op::Closed { at, known } = &mut change.op else { return true };
        let socket = &mut change.socket;
        let last = match (self.last_state, *known) {
            (LastState::Told, Known::Event) => Some(socket.state),
            _ => Some(socket.state).filter(|state| peer_has_closed(*state)),
        };
        if *known == Known::BetweenWalks {
            (*at, *known) = (account.departed.at.max(socket.opened_at).min(*at), Known::Event);
        }
        if let Some(traffic) = account.departed.socket.traffic {
            (socket.bytes_sent, socket.bytes_received) = (traffic.sent, traffic.received(last));
        }
        true
    }
}

/// States in which the peer's FIN has come, whatever came after them.
const fn peer_has_closed(state: SocketState) -> bool {
    matches!(state, SocketState::CloseWait | SocketState::LastAck | SocketState::Closing)
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{
        batch::Socket,
        socket::{Direction, Family, OwnerKnown, SocketKey},
        time::Timestamp,
    };

    use super::*;
    use crate::capture::{Destroyed, Traffic};

    const HOME: u64 = 1;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_micros(second * 1_000_000)
    }

    fn end(cookie: u64, known: Known) -> Change {
        let peer = "192.0.2.9:4000".parse().unwrap();
        let socket = Socket {
            key: SocketKey { netns: HOME, cookie },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: SocketState::LastAck,
            local: "10.0.0.1:80".parse().unwrap(),
            path: None,
            role: Role::Session { direction: Direction::In, peer },
            opened_at: at(1),
            opened_known: Known::Event,
            owner_known: OwnerKnown::Unknown,
            owners: Vec::new(),
            bytes_sent: 0,
            bytes_received: 0,
        };
        Change { op: Op::Closed { at: at(9), known }, socket }
    }

    fn departed(cookie: u64, second: i64, traffic: Option<Traffic>) -> Departed {
        let Socket { protocol, family, local, .. } = end(cookie, Known::Event).socket;
        let key = SocketKey { netns: HOME, cookie };
        Departed { socket: Destroyed { key, protocol, family, local, peer: None, traffic }, at: at(second) }
    }

    fn ledger() -> Ledger {
        Ledger::new(HOME, LastState::Told)
    }

    fn settle(ledger: &mut Ledger, changes: Vec<Change>) -> Vec<(u64, u64, u64)> {
        let told = ledger.settle(Ends { changes, unseen: Vec::new() }).changes;
        told.iter().map(|told| (told.socket.key.cookie, told.socket.bytes_sent, told.socket.bytes_received)).collect()
    }

    #[test]
    fn an_end_is_told_with_its_bytes_whichever_is_known_first() {
        let mut ledger = ledger();
        ledger.note(&departed(1, 8, Some(Traffic::of(100, 51))));
        assert_eq!(settle(&mut ledger, vec![end(1, Known::Event), end(2, Known::Event)]), [(1, 100, 50)]);
        ledger.note(&departed(2, 9, Some(Traffic::of(7, 1))));
        assert_eq!(settle(&mut ledger, Vec::new()), [(2, 7, 0)]);
    }

    #[test]
    fn an_end_without_an_account_is_held_for_one_walk() {
        let mut ledger = ledger();
        assert_eq!(settle(&mut ledger, vec![end(1, Known::Event)]), []);
        assert_eq!(settle(&mut ledger, Vec::new()), [(1, 0, 0)]);
        ledger.note(&departed(2, 9, None));
        assert_eq!(settle(&mut ledger, vec![end(2, Known::Event)]), [(2, 0, 0)], "erased: nothing will come");
    }

    #[test]
    fn an_account_that_no_end_asks_for_is_given_back_once_and_good_again_when_it_is_noted_anew() {
        let mut ledger = ledger();
        let [asked, unasked] = [1, 2].map(|cookie| departed(cookie, 8, Some(Traffic::of(7, 1))));
        ledger.note(&asked);
        ledger.note(&unasked);
        assert_eq!(settle(&mut ledger, vec![end(1, Known::Event)]), [(1, 7, 0)]);
        assert_eq!(ledger.take_unclaimed(), [], "its end may be told by the next walk");
        settle(&mut ledger, Vec::new());
        assert_eq!(ledger.take_unclaimed(), [unasked]);
        assert_eq!(ledger.take_unclaimed(), []);
        ledger.note(&unasked);
        settle(&mut ledger, Vec::new());
        assert_eq!(settle(&mut ledger, vec![end(2, Known::Event)]), [(2, 7, 0)]);
    }

    #[test]
    fn what_cannot_have_an_account_is_told_at_once() {
        let mut elsewhere = end(1, Known::Event);
        elsewhere.socket.key.netns = 2;
        let mut listener = end(2, Known::Event);
        listener.socket.role = Role::Listener;
        let opened = Change { op: Op::Opened, ..end(3, Known::Event) };
        let changes = vec![elsewhere, listener, opened];
        assert_eq!(ledger().settle(Ends { changes: changes.clone(), unseen: Vec::new() }).changes, changes);
    }

    #[test]
    fn nothing_stays_held_when_a_snapshot_is_told() {
        let mut ledger = ledger();
        let unseen = vec![end(1, Known::Event)];
        assert_eq!(ledger.settle(Ends { changes: Vec::new(), unseen: unseen.clone() }), Ends::default());
        assert_eq!(ledger.flush(), Ends { changes: Vec::new(), unseen });
        assert_eq!(ledger.settle(Ends::default()), Ends::default());
    }

    #[test]
    fn an_account_dates_an_end_that_was_only_known_to_lie_between_two_walks() {
        for (second, expected) in [(7, 7), (0, 1), (12, 9)] {
            let mut ledger = Ledger::new(HOME, LastState::Walked);
            ledger.note(&departed(1, second, None));
            let told = ledger.settle(Ends { changes: vec![end(1, Known::BetweenWalks)], unseen: Vec::new() });
            assert_eq!(told.changes[0].op, Op::Closed { at: at(expected), known: Known::Event });
        }
    }

    #[test]
    fn of_two_lives_of_a_socket_the_last_one_has_the_bytes() {
        let mut ledger = ledger();
        ledger.note(&departed(1, 8, Some(Traffic::of(100, 51))));
        assert_eq!(settle(&mut ledger, vec![end(1, Known::Event), end(1, Known::Event)]), [(1, 100, 50)]);
        assert_eq!(settle(&mut ledger, Vec::new()), [(1, 0, 0)]);
    }

    #[test]
    fn accounts_that_nobody_asks_for_are_closed() {
        let mut ledger = ledger();
        ledger.note(&departed(1, 8, None));
        assert!(ledger.knows(1));
        (0..WALKS).for_each(|_| assert_eq!(settle(&mut ledger, Vec::new()), []));
        assert!(!ledger.knows(1) && ledger.accounts.is_empty());
    }
}
