//! Columns whose values come again, addresses and owners: each value once, and of each session the place of its value. The
//! value in a place is found without reading those before it.

use std::{borrow::Borrow, collections::HashMap, hash::Hash, net::IpAddr};

use super::{
    column::{Damaged, Reading, Writing},
    numbers::{pack_places, place},
    packed::{MISSING, Packed, pack},
};
use crate::history::{hashing::Seeded, sqlite::coding::OwnerColumns};

/// A place leads nowhere.
pub(super) const ABSENT: Damaged = Damaged("a value is missing");

const V4_BYTES: usize = 4;
const V6_BYTES: usize = 16;

/// A column whose values come again.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Recurring<T> {
    /// Each value once.
    pub(in crate::history::sqlite) values: Vec<T>,
    /// Of each session the place of its value.
    pub(in crate::history::sqlite) places: Vec<usize>,
}

impl<T> Recurring<T> {
    pub(in crate::history::sqlite) fn of(&self, at: usize) -> Result<&T, Damaged> {
        self.places.get(at).and_then(|place| self.values.get(*place)).ok_or(MISSING)
    }
}

/// Values that come again, while they are gathered: each once, and the place of each session's.
#[derive(Debug)]
pub(super) struct Dictionary<T> {
    known: HashMap<T, usize, Seeded>,
    pub(super) values: Vec<T>,
    pub(super) places: Vec<usize>,
}

impl<T> Default for Dictionary<T> {
    fn default() -> Dictionary<T> {
        Dictionary { known: HashMap::default(), values: Vec::new(), places: Vec::new() }
    }
}

impl<T: Eq + Hash + Clone> Dictionary<T> {
    /// Takes up other values, in the room that there is.
    pub(super) fn fill<B: Borrow<T>>(&mut self, values: impl Iterator<Item = B>) {
        self.known.clear();
        self.values.clear();
        self.places.clear();
        for value in values {
            let place = self.place(value.borrow());
            self.places.push(place);
        }
    }

    fn place(&mut self, value: &T) -> usize {
        if let Some(place) = self.known.get(value) {
            return *place;
        }
        let place = self.values.len();
        self.known.insert(value.clone(), place);
        self.values.push(value.clone());
        place
    }
}

/// Addresses that are read in place: those of IPv4 before those of IPv6.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses<'a> {
    v4: Alike<'a, V4_BYTES>,
    v6: Alike<'a, V6_BYTES>,
    places: Packed<'a>,
}

impl<'a> Addresses<'a> {
    /// The column that these bytes are, of so many sessions.
    pub(super) fn read(bytes: &'a [u8], sessions: usize) -> Result<Addresses<'a>, Damaged> {
        let mut reading = Reading::new(bytes);
        let (v4, v6) = (Alike::read(&mut reading, sessions)?, Alike::read(&mut reading, sessions)?);
        let places = Packed::read(&mut reading, sessions)?;
        reading.end()?;
        Ok(Addresses { v4, v6, places })
    }

    /// The address of a session.
    pub(super) fn of(&self, at: usize) -> Result<IpAddr, Damaged> {
        self.value(place(self.places.get(at)?)?)
    }

    fn value(&self, place: usize) -> Result<IpAddr, Damaged> {
        match place.checked_sub(self.v4.count) {
            None => self.v4.get(place).map(IpAddr::from),
            Some(place) => self.v6.get(place).map(IpAddr::from),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Result<Recurring<IpAddr>, Damaged> {
        let values = (0..self.v4.count + self.v6.count).map(|place| self.value(place));
        recurring(values.collect::<Result<_, _>>()?, &self.places)
    }
}

/// Values, and all places, each of which leads to one.
fn recurring<T>(values: Vec<T>, places: &Packed<'_>) -> Result<Recurring<T>, Damaged> {
    let leads = |number: i64| place(number).ok().filter(|place| *place < values.len()).ok_or(ABSENT);
    let places = places.all()?.into_iter().map(leads).collect::<Result<_, _>>()?;
    Ok(Recurring { values, places })
}

/// Writes addresses and the places of sessions.
pub(super) fn write_addresses(addresses: &Dictionary<IpAddr>, into: &mut Writing) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in &addresses.values {
        match address {
            IpAddr::V4(address) => v4.push(address.octets()),
            IpAddr::V6(address) => v6.push(address.octets()),
        }
    }
    let mut next = [0, v4.len()];
    let sorted = addresses.values.iter().map(|address| {
        let next = &mut next[usize::from(address.is_ipv6())];
        *next += 1;
        *next - 1
    });
    let sorted: Vec<usize> = sorted.collect();
    write_alike(&v4, into);
    write_alike(&v6, into);
    let places: Vec<usize> = addresses.places.iter().map(|place| sorted[*place]).collect();
    pack_places(&places, into);
}

/// Values of as many bytes each, of which those are written that differ from the first value in any of them.
#[derive(Debug, Clone, Copy)]
struct Alike<'a, const BYTES: usize> {
    count: usize,
    first: [u8; BYTES],
    /// A bit for each byte that differs, that of the first byte the lowest.
    differing: u16,
    /// How many bytes differ.
    width: usize,
    rows: &'a [u8],
}

impl<'a, const BYTES: usize> Alike<'a, BYTES> {
    fn read(reading: &mut Reading<'a>, sessions: usize) -> Result<Alike<'a, BYTES>, Damaged> {
        let count = reading.narrow::<usize>()?;
        if count > sessions {
            return Err(Damaged("there are more values than rows"));
        }
        if count == 0 {
            return Ok(Alike { count, first: [0; BYTES], differing: 0, width: 0, rows: &[] });
        }
        let (first, differing) = (reading.array()?, reading.narrow::<u16>()?);
        let width = differing.count_ones() as usize;
        if u32::from(differing) >> BYTES != 0 {
            return Err(Damaged("an address is too long"));
        }
        Ok(Alike { count, first, differing, width, rows: reading.take(count * width)? })
    }

    fn get(&self, at: usize) -> Result<[u8; BYTES], Damaged> {
        if at >= self.count {
            return Err(MISSING);
        }
        let mut row = self.rows.get(at * self.width..(at + 1) * self.width).ok_or(MISSING)?.iter();
        let mut value = self.first;
        let differs = |place: usize| self.differing >> place & 1 == 1;
        for (_, byte) in value.iter_mut().enumerate().filter(|(place, _)| differs(*place)) {
            *byte = *row.next().ok_or(MISSING)?;
        }
        Ok(value)
    }
}

fn write_alike<const BYTES: usize>(values: &[[u8; BYTES]], into: &mut Writing) {
    into.unsigned(values.len() as u64);
    let Some(first) = values.first() else { return };
    let differing: Vec<usize> =
        (0..BYTES).filter(|place| values.iter().any(|value| value[*place] != first[*place])).collect();
    into.append(first);
    into.unsigned(differing.iter().fold(0, |all, place| all | 1 << place));
    let mut row = Vec::with_capacity(BYTES);
    for value in values {
        row.clear();
        row.extend(differing.iter().map(|place| value[*place]));
        into.append(&row);
    }
}

/// Owners that are read in place.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owners<'a> {
    count: usize,
    known: Packed<'a>,
    pids: Packed<'a>,
    started_at_us: Packed<'a>,
    program_ids: Packed<'a>,
    /// Where the bytes of each end that has more owners than one.
    ends: Packed<'a>,
    more: &'a [u8],
    places: Packed<'a>,
}

impl<'a> Owners<'a> {
    /// The column that these bytes are, of so many sessions.
    pub(super) fn read(bytes: &'a [u8], sessions: usize) -> Result<Owners<'a>, Damaged> {
        let mut reading = Reading::new(bytes);
        let count = reading.narrow::<usize>()?;
        if count > sessions {
            return Err(Damaged("there are more values than rows"));
        }
        let mut next = || Packed::read(&mut reading, count);
        let [known, pids, started_at_us, program_ids, ends] = [next()?, next()?, next()?, next()?, next()?];
        let (more, places) = (reading.text()?, Packed::read(&mut reading, sessions)?);
        reading.end()?;
        Ok(Owners { count, known, pids, started_at_us, program_ids, ends, more, places })
    }

    /// The owners of a session.
    pub(super) fn of(&self, at: usize) -> Result<OwnerColumns, Damaged> {
        self.value(place(self.places.get(at)?)?)
    }

    fn value(&self, at: usize) -> Result<OwnerColumns, Damaged> {
        let too_large = |_| Damaged("a number is too large");
        let begin = if at == 0 { 0 } else { place(self.ends.get(at - 1)?)? };
        let more = self.more.get(begin..place(self.ends.get(at)?)?).ok_or(Damaged("an owner is missing"))?;
        Ok(OwnerColumns {
            known: i32::try_from(self.known.get(at)?).map_err(too_large)?,
            pid: u32::try_from(self.pids.get(at)?).map_err(too_large)?,
            started_at_us: self.started_at_us.get(at)?,
            program_id: self.program_ids.get(at)?,
            more: (!more.is_empty()).then(|| more.to_vec()),
        })
    }

    /// All of them.
    pub(super) fn all(&self) -> Result<Recurring<OwnerColumns>, Damaged> {
        let values = (0..self.count).map(|at| self.value(at));
        recurring(values.collect::<Result<_, _>>()?, &self.places)
    }
}

/// Writes owners and the places of sessions.
pub(super) fn write_owners(owners: &Dictionary<OwnerColumns>, into: &mut Writing) {
    let values = &owners.values;
    into.unsigned(values.len() as u64);
    let mut column = |number: fn(&OwnerColumns) -> i64| pack(&values.iter().map(number).collect::<Vec<_>>(), into);
    column(|owners| owners.known.into());
    column(|owners| owners.pid.into());
    column(|owners| owners.started_at_us);
    column(|owners| owners.program_id);
    let mut more = Vec::new();
    let ends = values.iter().map(|owners| {
        more.extend_from_slice(owners.more.as_deref().unwrap_or_default());
        more.len()
    });
    let ends: Vec<usize> = ends.collect();
    pack_places(&ends, into);
    into.text(&more);
    pack_places(&owners.places, into);
}
