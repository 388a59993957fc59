//! A column of a block, from its bytes.

use std::{cell::OnceCell, net::IpAddr};

use super::{
    super::column::{Damaged, Reading},
    Coding,
};
use crate::history::sqlite::coding::{self, OwnerColumns};

/// A column whose values come again.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Recurring<T> {
    /// Each value once.
    pub(in crate::history::sqlite) values: Vec<T>,
    /// Of each session the place of its value.
    pub(in crate::history::sqlite) places: Vec<usize>,
}

impl<T> Recurring<T> {
    pub(super) fn of(&self, at: usize) -> Result<&T, Damaged> {
        self.places.get(at).and_then(|place| self.values.get(*place)).ok_or(MISSING)
    }
}

/// What was asked for is in no block of this size.
pub(super) const MISSING: Damaged = Damaged("there is no such session");
/// A place leads nowhere.
pub(super) const ABSENT: Damaged = Damaged("a value is missing");

pub(super) fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, Damaged> {
    T::try_from(number).map_err(|_| Damaged("a number is too large"))
}

pub(super) fn once<T>(cell: &OnceCell<T>, read: impl FnOnce() -> Result<T, Damaged>) -> Result<&T, Damaged> {
    match cell.get() {
        Some(known) => Ok(known),
        None => read().map(|value| cell.get_or_init(|| value)),
    }
}

pub(super) fn read_numbers(bytes: &[u8], coding: Coding, sessions: usize) -> Result<Vec<i64>, Damaged> {
    let mut reading = Reading::new(bytes);
    let numbers = reading.numbers(sessions)?;
    reading.end()?;
    let mut before = 0_i64;
    let numbers: Vec<i64> = match coding {
        Coding::Difference => numbers
            .into_iter()
            .map(|number| {
                before = before.wrapping_add(coding.number(number));
                before
            })
            .collect(),
        _ => numbers.into_iter().map(|number| coding.number(number)).collect(),
    };
    match coding {
        Coding::Word if numbers.iter().any(|number| i32::try_from(*number).is_err()) => {
            Err(Damaged("a word has too large a number"))
        }
        Coding::Port if numbers.iter().any(|number| u16::try_from(*number).is_err()) => {
            Err(Damaged("a port is too large"))
        }
        _ => Ok(numbers),
    }
}

pub(super) fn look_up<T>(
    bytes: &[u8],
    sessions: usize,
    read: impl Fn(&mut Reading<'_>) -> Result<T, Damaged>,
) -> Result<Recurring<T>, Damaged> {
    let mut column = Reading::new(bytes);
    let values = read_values(&mut column, sessions, read)?;
    let place = |place: u64| usize::try_from(place).ok().filter(|place| *place < values.len());
    let places: Option<Vec<usize>> = column.numbers(sessions)?.into_iter().map(place).collect();
    column.end()?;
    match places {
        Some(places) => Ok(Recurring { values, places }),
        None => Err(ABSENT),
    }
}

/// The values before their places.
pub(super) fn read_values<T>(
    column: &mut Reading<'_>,
    sessions: usize,
    read: impl Fn(&mut Reading<'_>) -> Result<T, Damaged>,
) -> Result<Vec<T>, Damaged> {
    let count = column.narrow::<usize>()?;
    if count > sessions {
        return Err(Damaged("there are more values than rows"));
    }
    (0..count).map(|_| read(column)).collect()
}

pub(super) fn read_address(column: &mut Reading<'_>) -> Result<IpAddr, Damaged> {
    match coding::take_address(column.text()?) {
        Some((address, [])) => Ok(address),
        _ => Err(Damaged("no address")),
    }
}

pub(super) fn read_owners(column: &mut Reading<'_>) -> Result<OwnerColumns, Damaged> {
    Ok(OwnerColumns {
        known: i32::try_from(column.signed()?).map_err(|_| Damaged("a word has too large a number"))?,
        pid: column.narrow()?,
        started_at_us: column.difference()?,
        program_id: column.signed()?,
        more: Some(column.text()?.to_vec()).filter(|more| !more.is_empty()),
    })
}
