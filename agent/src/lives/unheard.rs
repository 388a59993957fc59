//! Ends that no record told: found out when a walk does not show what should be open, or when the address is used again.

use std::net::SocketAddr;

use super::{Ended, Followed, Heard, Lives, Pair, Sought};
use crate::events::SocketEvent;

impl Lives {
    /// Whether a walk did not show something that is followed. It may have shown it before there was a record of it.
    pub fn doubts(&self) -> bool {
        self.queue.was_in_vain()
    }

    /// Whether walks looked for something in vain: only one that shows everything can tell what became of it.
    pub fn has_missed(&self) -> bool {
        self.queue.has_missed()
    }

    /// After a walk that showed every connection of the host, and with all records until then taken in: connections that
    /// the walks did not show and whose end no record told are over by `at_ns`, and are added to `ended`.
    ///
    /// The kernel leaves records out without a word: now and then none is written while a certain task is interrupted
    /// (measured on Linux 6.18: 1 to 197 of 5,000 ends, in every second run).
    pub fn conclude(&mut self, at_ns: u64, ended: &mut Vec<Ended>) {
        for Sought { socket, local, peer, walked, .. } in
            self.queue.missed(|socket| self.sockets.get(&socket)?.sought(socket))
        {
            // Two namespaces can have the same pair, and a walk then finds only one of the two here.
            if walked.is_some() || self.by_pair.get(Pair::new(local, peer)) != Some(socket) {
                continue;
            }
            match self.sockets.get(&socket) {
                Some(followed) if followed.life.is_ending() => self.tell_ending(at_ns, socket, ended),
                _ => self.conclude_one(at_ns, socket, ended),
            }
        }
    }

    /// A socket is gone, as the kernel tells without saying which process had it, and no record told that end. Of what was
    /// followed by then with this pair the earliest is meant: a pair is used again when it is free. Whether there is any.
    pub fn depart(&mut self, at_ns: u64, cookie: u64, [local, peer]: [SocketAddr; 2], ended: &mut Vec<Ended>) -> bool {
        let pair = Pair::new(local, peer);
        let begun = |socket: u64| {
            let Followed { since_ns, walked, told, .. } = self.sockets.get(&socket)?;
            // What a walk saw, a walk will see gone.
            let is_meant = *since_ns <= at_ns && walked.get().is_none() && !told.get();
            is_meant.then_some((*since_ns, socket))
        };
        let meant = self.by_pair.with(pair).chain(self.closed_by_pair.with(pair)).filter_map(begun).min();
        let Some((_, socket)) = meant else { return false };
        let Some(followed) = self.sockets.remove(&socket) else { return false };
        self.unpair(followed.life.pair(), socket);
        self.tell_end(at_ns, cookie, followed, ended);
        true
    }

    /// Both ends closed the connection. Its socket may be held: then the record of its destruction is still to come, and is
    /// of no other life.
    fn tell_ending(&mut self, at_ns: u64, socket: u64, ended: &mut Vec<Ended>) {
        let Some(Followed { life, earlier, told, .. }) = self.sockets.get_mut(&socket) else { return };
        if told.replace(true) {
            self.unheard += 1;
            return;
        }
        ended.extend(earlier.drain(..).map(|life| Ended::told(None, life, at_ns)));
        ended.push(Ended { heard: Heard::Missed, ..Ended::told(None, *life, at_ns) });
    }

    /// Adds to `ended` what no walk saw and was closed at `before_ns` or earlier, though a process holds what is left of it
    /// (or the record that it does not is missing).
    pub fn tell_closed(&mut self, before_ns: u64, ended: &mut Vec<Ended>) {
        for socket in self.closed_by_pair.sockets() {
            let Some(Followed { life, earlier, walked, told, .. }) = self.sockets.get_mut(&socket) else { continue };
            let is_untold = walked.get().is_none() && !told.get();
            if let Some(closed_ns) = life.closed_ns.filter(|closed_ns| is_untold && *closed_ns <= before_ns) {
                told.set(true);
                ended.extend(earlier.drain(..).chain([*life]).map(|life| Ended::told(None, life, closed_ns)));
            }
        }
    }

    /// Another pair means another socket at the same address: the one before ended, and this one began, without their
    /// records.
    pub(super) fn part(&mut self, at_ns: u64, event: &SocketEvent, ended: &mut Vec<Ended>) {
        let Some(Followed { life, .. }) = self.sockets.get(&event.socket) else { return };
        let has_pair = |local: SocketAddr, peer: SocketAddr| local.port() != 0 && peer.port() != 0;
        let both = has_pair(life.local, life.peer) && has_pair(event.local, event.peer);
        if both && (life.local, life.peer) != (event.local, event.peer) {
            self.conclude_one(at_ns, event.socket, ended);
        }
    }

    /// The socket is gone, and no record told so.
    pub(super) fn conclude_one(&mut self, at_ns: u64, socket: u64, ended: &mut Vec<Ended>) {
        let Some(Followed { life, earlier, walked, told, .. }) = self.sockets.remove(&socket) else { return };
        self.unpair(life.pair(), socket);
        ended.extend(earlier.into_iter().map(|life| Ended::told(None, life, at_ns)));
        // What a walk saw open, a walk will see closed.
        if walked.get().is_none() && !told.get() {
            ended.push(Ended { heard: Heard::Missed, ..Ended::told(None, life, at_ns) });
            return;
        }
        // What was told before its end was noticed then.
        let is_counted = told.get() && life.closed_ns.is_none();
        self.unheard += u64::from(!is_counted);
    }
}
