//! The peers with most sessions, of which there are few: sums of few sessions are not read, but looked up where they may matter. How
//! many sessions such a sum counts at most tells how many a peer has at least and at most, and so which may be among the first.
//!
//! (R. Fagin, A. Lotem and M. Naor, "Optimal aggregation algorithms for middleware", 2003, find the first of several lists in
//! this way.)

use std::{cmp::Reverse, collections::BinaryHeap, net::IpAddr};

use super::{Merged, Source, Sum, levels::HIGHEST};
use crate::history::{
    HistoryError,
    sqlite::{coding::Numeric, cubes::Balance, sealed::Damaged},
};

/// More than so many are not a few.
const FEW: usize = 4096;
/// Most peers, about 300 bytes each, of which is looked up what smaller sums count with them.
const CANDIDATES: usize = 16 * 1024;
/// Peers between two looks at the clock.
const LOOK_EVERY: usize = 1024;

/// What sources count with peers, in ascending order.
pub(in crate::history::sqlite) enum Rest<'c> {
    /// With those that may be among the first.
    Few(std::vec::IntoIter<Sum>),
    /// With every one.
    All(Merged<'c>),
}

impl Rest<'_> {
    pub(in crate::history::sqlite) fn next(&mut self) -> Result<Option<Sum>, HistoryError> {
        match self {
            Rest::Few(sums) => Ok(sums.next()),
            Rest::All(merged) => merged.next(),
        }
    }
}

/// What sources count with peers besides these sessions, which are held already, in ascending order: at least with all that are among
/// the first `most` by the number of sessions, then. `go_on` fails when the answer is not waited for any more.
pub(in crate::history::sqlite) fn beside<'c>(
    sources: &[Source<'c>],
    most: usize,
    held: &[(IpAddr, u64)],
    go_on: &dyn Fn() -> Result<(), HistoryError>,
) -> Result<Rest<'c>, HistoryError> {
    if most <= FEW {
        // The lower the level, the more is read, and the more certain it is that nothing below it is among the first.
        for level in (1..=HIGHEST).rev() {
            let bounds = Bounds::of(sources, level)?;
            if let Some(candidates) = candidates(sources, (level, &bounds), most, held, go_on)? {
                let sums = looked_up(sources, level, candidates, go_on)?;
                return Ok(Rest::Few(sums.into_iter()));
            }
        }
    }
    Merged::of(sources, 0).map(Rest::All)
}

/// How many sessions sources count with peers that are in none of the levels that are read, at most.
struct Bounds {
    /// Of each source, and whether it is taken off.
    of_each: Vec<(i128, bool)>,
    added: i128,
    taken_off: i128,
}

impl Bounds {
    fn of(sources: &[Source<'_>], level: usize) -> Result<Bounds, HistoryError> {
        let mut bounds = Bounds { of_each: Vec::new(), added: 0, taken_off: 0 };
        for source in sources {
            let (most, is_taken_off) = (source.most_below(level)?.into(), source.is_taken_off);
            *(if is_taken_off { &mut bounds.taken_off } else { &mut bounds.added }) += most;
            bounds.of_each.push((most, is_taken_off));
        }
        Ok(bounds)
    }

    /// How many sessions a peer has at least and at most, of which these sources count so many.
    fn range(&self, sessions: i128, known: &[usize]) -> (i128, i128) {
        let (mut least, mut most) = (sessions - self.taken_off, sessions + self.added);
        for (bound, is_taken_off) in known.iter().filter_map(|source| self.of_each.get(*source)) {
            if *is_taken_off {
                least += bound;
            } else {
                most -= bound;
            }
        }
        (least, most)
    }
}

/// A peer that may be among the first.
struct Candidate {
    peer: Numeric,
    /// What the sources count that are known.
    balance: Balance,
    known: Vec<usize>,
    /// How many sessions it has at most.
    most: i128,
}

/// Those that may be among the first of the peers that were met.
struct Candidates<'b> {
    bounds: &'b Bounds,
    /// How many are the first.
    most: usize,
    /// How many sessions those at least have that have most at least.
    first: BinaryHeap<Reverse<i128>>,
    all: Vec<Candidate>,
}

impl Candidates<'_> {
    /// With less than this none is among the first; it is not known before as many were met.
    fn needed(&self) -> Option<i128> {
        self.first.peek().filter(|_| self.first.len() == self.most).map(|Reverse(least)| *least)
    }

    /// Adds a peer of which so many sessions are held, and the rest is known of these sources.
    fn add(&mut self, peer: Numeric, held: u64, balance: Balance, known: &[usize]) {
        let (least, most) = self.bounds.range(i128::from(held) + balance.sessions(), known);
        if self.first.len() < self.most {
            self.first.push(Reverse(least));
        } else if let Some(mut last) = self.first.peek_mut()
            && last.0 < least
        {
            *last = Reverse(least);
        }
        if self.needed().is_none_or(|needed| needed <= most) {
            self.all.push(Candidate { peer, balance, known: known.to_vec(), most });
        }
    }

    /// Leaves out those that cannot be among the first any more; whether the others are not too many.
    fn are_few(&mut self) -> bool {
        if let Some(needed) = self.needed() {
            self.all.retain(|one| needed <= one.most);
        }
        self.all.len() <= CANDIDATES / 2
    }
}

/// The peers that may be among the first, in ascending order; none where that cannot be told, or where they are too many.
fn candidates(
    sources: &[Source<'_>],
    (level, bounds): (usize, &Bounds),
    most: usize,
    held: &[(IpAddr, u64)],
    go_on: &dyn Fn() -> Result<(), HistoryError>,
) -> Result<Option<Vec<Candidate>>, HistoryError> {
    let mut merged = Merged::of(sources, level)?;
    let mut held = held.iter().map(|(peer, sessions)| (Numeric::from(*peer), *sessions)).peekable();
    let mut met = Candidates { bounds, most, first: BinaryHeap::new(), all: Vec::new() };
    let (mut known, mut looked_at) = (Vec::new(), 0_usize);
    loop {
        let mut balance = Balance::default();
        known.clear();
        let peer = merged.next_parts(|part| {
            balance.add(part.balance());
            known.push(part.number);
        })?;
        while let Some((earlier, sessions)) = held.next_if(|(held, _)| peer.is_none_or(|peer| *held < peer)) {
            met.add(earlier, sessions, Balance::default(), &[]);
        }
        let Some(peer) = peer else { break };
        let sessions = held.next_if(|(held, _)| *held == peer).map_or(0, |(_, sessions)| sessions);
        met.add(peer, sessions, balance, &known);
        if met.all.len() > CANDIDATES && !met.are_few() {
            return Ok(None);
        }
        looked_at += 1;
        if looked_at.is_multiple_of(LOOK_EVERY) {
            go_on()?;
        }
    }
    // One that is in nothing that was read has as many as the bounds together at most.
    let is_told = met.needed().is_some_and(|needed| bounds.added < needed);
    Ok((is_told && met.are_few()).then_some(met.all))
}

/// Adds to candidates what the levels count with them that were not read.
fn looked_up(
    sources: &[Source<'_>],
    level: usize,
    mut candidates: Vec<Candidate>,
    go_on: &dyn Fn() -> Result<(), HistoryError>,
) -> Result<Vec<Sum>, HistoryError> {
    for (number, source) in sources.iter().enumerate() {
        for below in 0..level {
            go_on()?;
            let unknown = candidates.iter_mut().filter(|one| !one.known.contains(&number));
            source.look_up(below, unknown, |one| one.peer, |one, counts| one.balance.add(source.signed(counts)))?;
        }
    }
    let sums = candidates.into_iter().map(|one| Ok((one.peer.address(), one.balance.counts()?)));
    let sums = sums.collect::<Result<Vec<Sum>, Damaged>>()?;
    Ok(sums.into_iter().filter(|(_, counts)| counts.sessions > 0).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{
        collection::{btree_map, vec},
        prelude::*,
    };
    use rusqlite::{Connection, params};

    use super::*;
    use crate::history::sqlite::{
        by_peer::{Scope, levels::Levels},
        coding::AddressBytes,
        schema::Kind,
        sums::Counts,
    };

    type Sessions = BTreeMap<u8, u64>;

    fn peer(number: u8) -> IpAddr {
        match number % 5 {
            0 => IpAddr::from([number; 16]),
            _ => IpAddr::from([10, 0, 0, number]),
        }
    }

    fn counts(sessions: u64) -> Counts {
        Counts { sessions, bytes_sent: sessions * 3, bytes_received: 1 }
    }

    fn file() -> Connection {
        let mut sealed = Connection::open_in_memory().unwrap();
        Kind::Sealed.runner().run(&mut sealed).unwrap();
        sealed
    }

    fn store(sealed: &Connection, scope: Scope, sums: &BTreeMap<IpAddr, Counts>) {
        let (mut levels, mut all) = (Levels::default(), Vec::new());
        sums.iter().for_each(|(peer, counts)| all.extend(levels.add((*peer, *counts))));
        all.extend(levels.finish());
        for stretch in all {
            let [scope, hour] = scope.stored();
            let (level, last) = (i64::try_from(stretch.level).unwrap(), AddressBytes::of(stretch.last_peer));
            let sql = "INSERT INTO peer_sums (scope, hour, level, last_peer, sums) VALUES (?1, ?2, ?3, ?4, ?5)";
            sealed.execute(sql, params![scope, hour, level, last, stretch.bytes]).unwrap();
        }
    }

    fn found(rest: &mut Rest<'_>) -> BTreeMap<IpAddr, Counts> {
        let sums: Vec<Sum> = std::iter::from_fn(|| rest.next().unwrap()).collect();
        assert!(sums.is_sorted_by(|one, next| one.0 < next.0), "each once, in order");
        sums.into_iter().collect()
    }

    fn sessions() -> impl Strategy<Value = u64> {
        prop_oneof![1_u64..12, 1_u64..12, 50_u64..80, 1_u64..3000]
    }

    proptest! {
        #[test]
        fn the_first_peers_are_told_with_all_that_is_counted_with_them(
            hours in vec(btree_map(any::<u8>(), sessions(), 0..60), 1..7), off in 0_usize..4,
            held in btree_map(any::<u8>(), 1_u64..90, 0..40), most in 1_usize..9
        ) {
            let hours: Vec<Sessions> = hours;
            let (sealed, mut whole, mut meant) = (file(), BTreeMap::<_, Counts>::new(), BTreeMap::<_, Counts>::new());
            let mut sources = Vec::new();
            for (hour, of_hour) in (0..).zip(&hours) {
                let sums: BTreeMap<IpAddr, Counts> = of_hour.iter().map(|(of, sum)| (peer(*of), counts(*sum))).collect();
                sums.iter().for_each(|(peer, counts)| whole.entry(*peer).or_default().add(*counts));
                store(&sealed, Scope::Closed(hour), &sums);
                let is_meant = off == 0 || usize::try_from(hour).unwrap() >= off;
                if is_meant {
                    sums.iter().for_each(|(peer, counts)| meant.entry(*peer).or_default().add(*counts));
                }
                if is_meant == (off == 0) {
                    let source = Source::of(&sealed, Scope::Closed(hour));
                    sources.push(if off > 0 { source.taken_off() } else { source });
                }
            }
            store(&sealed, Scope::All, &whole);
            if off > 0 {
                sources.push(Source::of(&sealed, Scope::All));
            }
            let mut of_held: Vec<(IpAddr, u64)> = held.into_iter().map(|(of, sessions)| (peer(of), sessions)).collect();
            of_held.sort();
            let mut all: BTreeMap<IpAddr, u64> = of_held.iter().copied().collect();
            meant.iter().for_each(|(peer, counts)| *all.entry(*peer).or_default() += counts.sessions);
            let mut ordered: Vec<u64> = all.values().copied().collect();
            ordered.sort_by_key(|sessions| Reverse(*sessions));
            let least = ordered.get(most - 1).or(ordered.last()).copied().unwrap_or_default();
            let told = found(&mut beside(&sources, most, &of_held, &|| Ok(())).unwrap());
            for (peer, _) in all.iter().filter(|(_, sessions)| **sessions >= least) {
                prop_assert_eq!(told.get(peer), meant.get(peer), "{:?}", peer);
            }
            prop_assert!(told.iter().all(|(peer, counts)| meant.get(peer) == Some(counts)), "what is told is all of it");
        }
    }

    #[test]
    fn of_few_that_have_most_little_is_read_and_of_many_all() {
        let sealed = file();
        let few = |number: u8| 7 + u64::from(number < 20) * 10_000;
        for hour in 0..24 {
            let sums = (0..250).map(|number| (peer(number), counts(few(number)))).collect();
            store(&sealed, Scope::Closed(hour), &sums);
        }
        let sources: Vec<Source<'_>> = (0..24).map(|hour| Source::of(&sealed, Scope::Closed(hour))).collect();
        let told = |most| beside(&sources, most, &[], &|| Ok(())).unwrap();
        let mut first = told(20);
        assert!(matches!(&first, Rest::Few(sums) if sums.len() == 20), "nothing but these");
        assert_eq!(found(&mut first).values().next().unwrap().sessions, 24 * 10_007);
        for most in [21, 250, 9999] {
            let mut all = told(most);
            assert!(matches!(all, Rest::All(_)));
            assert_eq!(found(&mut all).len(), 250);
        }
    }

    #[test]
    fn what_an_earlier_version_stored_of_rows_is_read_whatever_it_counts() {
        let mut day = Connection::open_in_memory().unwrap();
        Kind::Day.runner().run(&mut day).unwrap();
        let mut levels = Levels::default();
        let sums = [(peer(1), counts(5)), (peer(2), counts(50)), (peer(3), counts(500))];
        assert!(sums.iter().all(|sum| levels.add(*sum).is_none()));
        let mut bytes: Vec<_> = levels.finish().collect();
        // As it was stored: all in the highest level, of which no last address is told.
        bytes.sort_by_key(|stretch| stretch.last_peer);
        for stretch in bytes {
            day.execute("INSERT INTO peer_sums (first_id, sums) VALUES (1, ?1)", [stretch.bytes]).unwrap();
        }
        let told = found(&mut beside(&[Source::of_rows(&day, 1)], 2, &[(peer(1), 60)], &|| Ok(())).unwrap());
        assert_eq!(told, [(peer(1), counts(5)), (peer(3), counts(500))].into());
    }

    #[test]
    fn nobody_waits_for_what_is_not_wanted_any_more() {
        let sealed = file();
        store(&sealed, Scope::All, &[(peer(1), counts(5)), (peer(2), counts(5000))].into());
        let refused = beside(&[Source::of(&sealed, Scope::All)], 1, &[], &|| Err(HistoryError::Closed));
        assert!(matches!(refused, Err(HistoryError::Closed)));
    }
}
