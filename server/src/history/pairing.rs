//! Which sessions are the two ends of one connection. Decided here for every engine; an engine finds those that may be.
//!
//! The other end has the same two sockets the other way round, and was open at the same time. That is not enough: private
//! addresses are those of many hosts, addresses and ports are used again, and the clocks of hosts differ. So a pair is one
//! only when each end is the only one, or clearly the best one, for the other. Where an address is translated on the way,
//! nobody has the sockets the other way round, and there is no pair.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use super::SKEW_TOLERANCE_US;

/// How far the clocks of two hosts may differ: what is not corrected of each, and a second.
pub const CLOCKS_APART_US: i64 = 2 * SKEW_TOLERANCE_US + 1_000_000;
/// The same of two moments by one clock: what happens at one end happens a moment later at the other.
pub const MOMENT_US: i64 = 100_000;
/// How long before one end the other may open: whoever connects goes on asking for 127 s (`tcp_syn_retries`, tcp(7)).
pub const OPENED_APART_US: i64 = 130_000_000;
/// How long after one end the other may close: what is not acknowledged is given up after some 924 s (`tcp_retries2`,
/// tcp(7)).
pub const CLOSED_APART_US: i64 = 1_200_000_000;
/// Most hosts with an address that are looked at; where there are more, no pair is told.
pub const CANDIDATES_LIMIT: usize = 16;
/// Most lives of the same two sockets that are compared; where there are more, no pair is told. Each is held against each, which
/// takes 30 ms of CPU for an answer of 1,000 such sessions; with 1,000 lives it took most of a second (`--bench pairs`).
pub const ALIKE_LIMIT: usize = 100;

/// The sockets of a session, as its host has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sockets {
    /// Number of the transport protocol.
    pub protocol: i32,
    /// The host's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
}

impl Sockets {
    /// As the other end has them.
    #[must_use]
    pub fn mirrored(self) -> Sockets {
        Sockets { local: self.peer, peer: self.local, ..self }
    }

    /// Whether they never leave their network namespace.
    pub fn are_loopback(self) -> bool {
        self.local.ip().is_loopback() || self.peer.ip().is_loopback()
    }
}

/// One end of a connection. Hosts are numbered by the engine, times are microseconds of the server's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct End {
    /// The host.
    pub host: i64,
    /// Its network namespace; 0 when that is not known.
    pub netns: u64,
    /// Its sockets.
    pub sockets: Sockets,
    /// When it opened.
    pub opened_at_us: i64,
    /// Whether that is the moment itself, and not when a walk saw it.
    pub opening_is_known: bool,
    /// When it closed; absent while it is open.
    pub closed_at_us: Option<i64>,
}

/// What tells one life from another: the host, the namespace, and the opening of the same sockets.
type Identity = (i64, u64, i64);

impl End {
    const fn identity(&self) -> Identity {
        (self.host, self.netns, self.opened_at_us)
    }

    /// From when to when it was open.
    fn span(&self, now_us: i64) -> (i64, i64) {
        (self.opened_at_us, self.closed_at_us.unwrap_or(now_us).max(self.opened_at_us))
    }

    /// How far clocks differ by which the two were told.
    const fn clocks_apart(&self, other: &End) -> i64 {
        if self.host == other.host { 0 } else { CLOCKS_APART_US }
    }
}

/// Which addresses are those of which hosts.
pub trait Holders {
    /// The hosts that had an address around some time.
    fn of(&self, address: IpAddr, span: (i64, i64)) -> Vec<i64>;

    /// Whether a host had it, or may have had it.
    fn has(&self, host: i64, address: IpAddr, span: (i64, i64)) -> bool;
}

/// On which hosts the other end of `one` can be: those that have the peer's address and not the local one, since an address
/// that a host has itself never leads out of it. None when they are too many to look at.
pub fn candidates(one: &End, holders: &impl Holders, now_us: i64) -> Option<Vec<i64>> {
    let Sockets { local, peer, .. } = one.sockets;
    let span = one.span(now_us);
    if one.sockets.are_loopback() || holders.has(one.host, peer.ip(), span) {
        return Some(vec![one.host]);
    }
    let mut hosts = holders.of(peer.ip(), span);
    hosts.retain(|host| *host != one.host && !holders.has(*host, local.ip(), span));
    Some(hosts).filter(|hosts| hosts.len() <= CANDIDATES_LIMIT)
}

/// Between which times the other end of `one` closed, if it did.
pub fn closing(one: &End, now_us: i64) -> (i64, i64) {
    let closed = one.closed_at_us.unwrap_or(now_us);
    let earliest = closed.saturating_sub(CLOSED_APART_US).max(one.opened_at_us.saturating_sub(CLOCKS_APART_US));
    (earliest, closed.saturating_add(CLOSED_APART_US))
}

/// Ends that may be those of each other, each with what an engine knows of it besides.
#[derive(Debug)]
pub struct Ends<T, H> {
    now_us: i64,
    holders: H,
    by_sockets: HashMap<Sockets, BTreeMap<Identity, (End, T)>>,
}

impl<T, H: Holders> Ends<T, H> {
    /// None yet.
    pub fn new(now_us: i64, holders: H) -> Ends<T, H> {
        Ends { now_us, holders, by_sockets: HashMap::new() }
    }

    /// See [`candidates`].
    pub fn candidates(&self, one: &End) -> Option<Vec<i64>> {
        candidates(one, &self.holders, self.now_us)
    }

    /// Adds one; the same one again changes nothing.
    pub fn add(&mut self, end: End, known: T) {
        self.by_sockets.entry(end.sockets).or_default().insert(end.identity(), (end, known));
    }

    /// Adds one of which nothing else is known, unless it is there.
    pub fn add_missing(&mut self, end: End)
    where
        T: Default,
    {
        self.by_sockets.entry(end.sockets).or_default().entry(end.identity()).or_insert_with(|| (end, T::default()));
    }

    /// Those that could be the other end of `one`, by their sockets and times.
    pub fn fitting(&self, one: &End) -> impl Iterator<Item = &End> {
        let alike = self.by_sockets.get(&one.sockets.mirrored()).filter(|alike| alike.len() <= ALIKE_LIMIT);
        let one = *one;
        alike.into_iter().flatten().map(|(_, (end, _))| end).filter(move |other| self.fits(&one, other))
    }

    /// The other end of `one`, when it is certain.
    pub fn other_end(&self, one: &End) -> Option<(&End, &T)> {
        let other = self.best(one)?;
        let back = self.best(other)?;
        if back.identity() != one.identity() {
            return None;
        }
        self.by_sockets.get(&other.sockets)?.get(&other.identity()).map(|(end, known)| (end, known))
    }

    fn best(&self, one: &End) -> Option<&End> {
        let fitting: Vec<&End> = self.fitting(one).collect();
        let places: HashSet<(i64, u64)> = fitting.iter().map(|end| (end.host, end.netns)).collect();
        if places.len() != 1 {
            return None;
        }
        let best = *fitting.iter().max_by_key(|other| self.overlap(one, other, 0))?;
        let clearly = |other: &&End| other.identity() == best.identity() || self.is_clearly_better(one, best, other);
        fitting.iter().all(clearly).then_some(best)
    }

    fn fits(&self, one: &End, other: &End) -> bool {
        let tolerance = if one.host == other.host { MOMENT_US } else { CLOCKS_APART_US };
        let opened = other.opened_at_us.saturating_sub(one.opened_at_us);
        // What a walk saw opened before the walk.
        let openings = (!one.opening_is_known || opened >= -OPENED_APART_US)
            && (!other.opening_is_known || opened <= OPENED_APART_US);
        let closings = (self.end_of(one) - self.end_of(other)).abs() <= CLOSED_APART_US;
        self.leads_to(one, other) && openings && closings && self.overlap(one, other, 0) >= -tolerance
    }

    /// Whether what `one` sends can arrive at `other`.
    fn leads_to(&self, one: &End, other: &End) -> bool {
        if one.sockets.are_loopback() {
            return one.host == other.host && one.netns == other.netns && one.netns != 0;
        }
        let span = one.span(self.now_us);
        one.host == other.host
            || !self.holders.has(one.host, one.sockets.peer.ip(), span)
                && !self.holders.has(other.host, one.sockets.local.ip(), span)
    }

    fn end_of(&self, end: &End) -> i64 {
        end.span(self.now_us).1
    }

    /// How long both were open, if the other's clock is late by so much; negative for the time between them.
    fn overlap(&self, one: &End, other: &End, late: i64) -> i64 {
        let end = self.end_of(one).min(self.end_of(other) + late);
        end - one.opened_at_us.max(other.opened_at_us + late)
    }

    /// Whether `best` was open together with `one` for longer than `other`, whatever the clocks show.
    fn is_clearly_better(&self, one: &End, best: &End, other: &End) -> bool {
        let apart = one.clocks_apart(best);
        // How long two intervals overlap is concave in how far one is moved: it is least at the ends of a range, and most
        // where either two beginnings or two ends meet, or as near to that as the range allows.
        let least = self.overlap(one, best, -apart).min(self.overlap(one, best, apart));
        let meet = [one.opened_at_us - other.opened_at_us, self.end_of(one) - self.end_of(other)];
        let most = meet.into_iter().map(|late| self.overlap(one, other, late.clamp(-apart, apart))).max();
        most.is_some_and(|most| least > most)
    }
}

#[cfg(test)]
mod tests;
