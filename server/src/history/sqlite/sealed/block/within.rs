//! Which sessions of a block are in a window of time. Where they are in order, only those are looked at of which the bytes
//! around them do not tell.

use super::{Block, Column, Damaged, Form, MOST};
use crate::history::sqlite::sealed::{
    layout::{Layout, Order},
    numbers::Numbers,
    packed::FRAME,
};

impl Block {
    /// Keeps of these places, which ascend, those of sessions that are in a window ([`within`](Self::within)).
    pub(in crate::history::sqlite) fn keep_within(
        &self,
        window: [i64; 3],
        places: &mut Vec<usize>,
    ) -> Result<(), Damaged> {
        if places.len() > self.len() / MOST {
            let within = self.within(window)?;
            if within.len() < self.len() {
                places.retain(|at| within.binary_search(at).is_ok());
            }
            return Ok(());
        }
        let [closed, lasted] =
            [self.values(Column::ClosedAt, places.len())?, self.values(Column::Lasted, places.len())?];
        let mut kept = Vec::with_capacity(places.len());
        for at in places.drain(..) {
            if is_within(window, closed.of(at)?, lasted.of(at)?) {
                kept.push(at);
            }
        }
        *places = kept;
        Ok(())
    }

    /// The places of those that closed after the first moment, not after the second, and opened not after the third (us).
    pub(in crate::history::sqlite) fn within(&self, window: [i64; 3]) -> Result<Vec<usize>, Damaged> {
        if let Form::InPlace(layout) = &self.form
            && layout.order() == Order::Kept
            && let Some(places) = in_order(layout, window)?
        {
            return Ok(places);
        }
        let (closed, lasted) = (self.numbers(Column::ClosedAt)?, self.numbers(Column::Lasted)?);
        Ok((0..self.len()).filter(|at| is_within(window, closed[*at], lasted[*at])).collect())
    }
}

/// Of how many sessions one is unclear when it is as well to look at all.
const MANY: usize = 3;

const fn is_within([after, last, until]: [i64; 3], closed_at_us: i64, lasted_us: i64) -> bool {
    closed_at_us > after && closed_at_us <= last && closed_at_us.wrapping_sub(lasted_us) <= until
}

/// The same of a block whose sessions are in order; nothing where it is as well to look at all of them.
fn in_order(layout: &Layout, window: [i64; 3]) -> Result<Option<Vec<usize>>, Damaged> {
    let [after, last, until] = window;
    let (closed, lasted) = (layout.numbers(Column::ClosedAt)?, layout.numbers(Column::Lasted)?);
    let begin = beyond(&closed, 0, layout.sessions(), after)?;
    let end = beyond(&closed, begin, layout.sessions(), last)?;
    let Some(at) = end.checked_sub(1).filter(|at| *at >= begin) else { return Ok(Some(Vec::new())) };
    if closed.get(at)?.saturating_sub(lasted.least()) <= until {
        return Ok(Some((begin..end).collect()));
    }
    // The longest sessions are few. Each place with how long its session lasted at least if it is meant.
    let mut unclear = Vec::new();
    for frame in begin / FRAME..end.div_ceil(FRAME) {
        let shortest = closed.get(begin.max(frame * FRAME))?.saturating_sub(until);
        let mut may = lasted.may_reach(frame, shortest)?;
        while may != 0 {
            unclear.push((frame * FRAME + may.trailing_zeros() as usize, shortest));
            may &= may - 1;
        }
    }
    if unclear.len() > layout.sessions() / MANY {
        return Ok(None);
    }
    let mut places = Vec::new();
    for (at, shortest) in unclear {
        if (begin..end).contains(&at) {
            let lasted_us = lasted.get(at)?;
            // When it closed is three numbers in place of one.
            if lasted_us >= shortest && is_within(window, closed.get(at)?, lasted_us) {
                places.push(at);
            }
        }
    }
    Ok(Some(places))
}

/// Where the first is that closed after a moment, of those from one place to another.
fn beyond(closed: &Numbers<'_>, mut begin: usize, mut end: usize, moment: i64) -> Result<usize, Damaged> {
    // Most windows begin before a block or end after it.
    if begin < end && closed.get(begin)? > moment {
        return Ok(begin);
    }
    if begin < end && closed.get(end - 1)? <= moment {
        return Ok(end);
    }
    while begin < end {
        let middle = begin.midpoint(end);
        if closed.get(middle)? > moment { end = middle } else { begin = middle + 1 }
    }
    Ok(begin)
}
