//! Sums held against the sessions of their file, which come in another order.

use std::{collections::BTreeSet, net::IpAddr};

use rusqlite::Connection;

use super::{Merged, One, Scope, Source, hours, levels::level};
use crate::history::{
    hashing::folded,
    sqlite::{
        sealed::{GoesOn, SealError},
        sums::Counts,
    },
};

/// Odd numbers whose bits are as good as random, so that one count is not taken for another.
const FACTORS: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xc2b2_ae3d_27d4_eb4f, 0x1656_67b1_9e37_79f9];

/// Sums between two looks whether sealing is still wanted.
const LOOK_EVERY: usize = 64 * 1024;

/// Sums up what was counted with whom. Two tellings of the same are equal in whatever order and parts it is counted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Telling(u64);

impl Telling {
    fn add(&mut self, scope: Scope, peer: IpAddr, counts: Counts) {
        let Counts { sessions, bytes_sent, bytes_received } = counts;
        let counted = [sessions, bytes_sent, bytes_received].into_iter().zip(FACTORS);
        let counted = counted.fold(0, |sum: u64, (count, factor)| sum.wrapping_add(count.wrapping_mul(factor)));
        self.0 = self.0.wrapping_add((folded((scope, peer)) | 1).wrapping_mul(counted));
    }
}

/// What the sums of a file have to tell, by its sessions.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Expected {
    /// The hours of which there are sums, and of those of which it is told what was open.
    closed: BTreeSet<i64>,
    open: BTreeSet<i64>,
    telling: Telling,
    /// Whether each closed in one of the hours, and opened until then.
    within: bool,
    last_openings: Vec<(i64, i64)>,
}

impl Expected {
    /// Of the sums that there are in a file: nothing yet.
    pub(in crate::history::sqlite) fn of(sealed: &Connection) -> Result<Expected, SealError> {
        let hours = hours(sealed)?;
        Ok(Expected {
            closed: hours.iter().map(|hour| hour.hour).collect(),
            open: hours.iter().filter(|hour| hour.open).map(|hour| hour.hour).collect(),
            telling: Telling::default(),
            within: true,
            last_openings: hours.iter().map(|hour| (hour.hour, hour.max_opened_at_us)).collect(),
        })
    }

    pub(in crate::history::sqlite) fn add(&mut self, peer: IpAddr, one: One) {
        if self.closed.is_empty() {
            return;
        }
        let closed = one.span.closed();
        let known = self.last_openings.binary_search_by_key(&closed, |(hour, _)| *hour);
        let last_opening = known.ok().and_then(|at| self.last_openings.get(at));
        self.within &= last_opening.is_some_and(|(_, last)| one.span.opened_us().1 <= *last);
        self.telling.add(Scope::All, peer, one.counts());
        self.telling.add(Scope::Closed(closed), peer, one.counts());
        for hour in self.open.range(..=closed).rev().take_while(|hour| one.span.is_open_at(**hour)) {
            self.telling.add(Scope::Open(*hour), peer, one.counts());
        }
    }

    /// Whether the sums of a file, if it has some, tell just this.
    pub(in crate::history::sqlite) fn are_told(
        &self,
        sealed: &Connection,
        goes_on: &GoesOn,
    ) -> Result<bool, SealError> {
        let mut told = Telling::default();
        let closed = self.closed.iter().map(|hour| Scope::Closed(*hour));
        let open = self.open.iter().map(|hour| Scope::Open(*hour));
        let (mut stretches, mut looked_at) = (0, 0_usize);
        for scope in [Scope::All].into_iter().chain(closed).chain(open) {
            let mut sums = Merged::of(&[Source::of(sealed, scope)], 0).map_err(SealError::Unreadable)?;
            stretches += sums.stretches();
            loop {
                let (mut found, mut is_once) = (None, true);
                let peer = sums.next_parts(|part| is_once &= found.replace(part).is_none());
                let (Some(peer), Some(part)) = (peer.map_err(SealError::Unreadable)?, found) else { break };
                if !is_once || part.level != level(part.counts.sessions) {
                    return Ok(false);
                }
                told.add(scope, peer.address(), part.counts);
                looked_at += 1;
                if looked_at.is_multiple_of(LOOK_EVERY) && !goes_on() {
                    return Err(SealError::Unwanted);
                }
            }
        }
        let all: i64 = sealed.query_row("SELECT count(*) FROM peer_sums", [], |row| row.get(0))?;
        Ok(self.within && usize::try_from(all) == Ok(stretches) && told == self.telling)
    }
}
