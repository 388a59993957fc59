//! A block: sessions of one host that are over, column by column.
//!
//! Values of one column are alike, and neighbours in time are alike, so that few bits tell one from the others: a session
//! takes some twenty bytes. Any value is found by itself, so that a question for one session reads that one and not the
//! others ([`numbers`](super::numbers), [`recurring`](super::recurring)). [`Block`] is how everybody reads one,
//! whatever its form; columns that are asked for as a whole are kept. `encoder` writes them.

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
};

use fleetsock_proto::socket::Direction;

use self::opened::Opened;
use super::{
    column::Damaged,
    layout::{self, CODEC, Layout, earlier::Earlier},
    numbers::{Nature, Numbers},
    packed::MISSING,
    recurring::Recurring,
};
use crate::history::sqlite::{coding::OwnerColumns, stored::StoredSession};

mod opened;
mod within;

/// The columns that hold numbers: those that are written, in this order, and two that follow from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::history::sqlite) enum Column {
    ClosedAt,
    Lasted,
    ClosedKnown,
    OpenedKnown,
    Netns,
    Cookie,
    Protocol,
    Family,
    Direction,
    State,
    /// The port of the end that is connected to, which is one of few.
    ServicePort,
    /// The port of the end that connects.
    OtherPort,
    BytesSent,
    BytesReceived,
    LocalPort,
    PeerPort,
}

/// Columns that hold numbers, with those that follow from others.
const COLUMNS: usize = layout::NUMBERS + 2;

/// All of them, each in its place.
const ALL: [Column; COLUMNS] = {
    let mut all = [Column::PeerPort; COLUMNS];
    let mut place = 0;
    while place < NUMBERS.len() {
        all[place] = NUMBERS[place].0;
        place += 1;
    }
    all[place] = Column::LocalPort;
    all
};

/// Of how many sessions one is asked for when it is as well to read all.
const MOST: usize = 8;

/// A column, what it is like, and what of a session stands in it.
pub(super) type Number = (Column, Nature, fn(&StoredSession) -> i64);

/// The columns that are written, each in its place.
pub(super) const NUMBERS: [Number; layout::NUMBERS] = [
    (Column::ClosedAt, Nature::Rising, |one| closed(one).0),
    (Column::Lasted, Nature::Any, |one| closed(one).0.wrapping_sub(one.opened_at_us)),
    (Column::ClosedKnown, Nature::Any, |one| closed(one).1.into()),
    (Column::OpenedKnown, Nature::Any, |one| one.opened_known.into()),
    (Column::Netns, Nature::Recurring, |one| one.netns),
    (Column::Cookie, Nature::Rising, |one| one.cookie),
    (Column::Protocol, Nature::Any, |one| one.protocol.into()),
    (Column::Family, Nature::Any, |one| one.family.into()),
    (Column::Direction, Nature::Any, |one| one.direction.into()),
    (Column::State, Nature::Any, |one| one.state.into()),
    (Column::ServicePort, Nature::Recurring, |one| {
        by_direction(one.direction.into(), one.local, one.peer).port().into()
    }),
    (Column::OtherPort, Nature::Any, |one| by_direction(one.direction.into(), one.peer, one.local).port().into()),
    (Column::BytesSent, Nature::Any, |one| one.bytes_sent),
    (Column::BytesReceived, Nature::Any, |one| one.bytes_received),
];

/// When a session closed; those of a block all did.
fn closed(one: &StoredSession) -> (i64, i32) {
    one.closed.unwrap_or_default()
}

/// The first of two for what came in, the second for what went out.
fn by_direction<T>(direction: i64, of_in: T, of_out: T) -> T {
    if direction == Direction::In.number().into() { of_in } else { of_out }
}

/// A block, of which a column is read as a whole when it is first asked for.
#[derive(Debug)]
pub(in crate::history::sqlite) struct Block {
    host_id: i64,
    form: Form,
    numbers: [OnceCell<Vec<i64>>; COLUMNS],
    local: OnceCell<Recurring<IpAddr>>,
    peer: OnceCell<Recurring<IpAddr>>,
    owners: OnceCell<Recurring<OwnerColumns>>,
}

/// How a block is written.
#[derive(Debug)]
enum Form {
    InPlace(Layout),
    Earlier(Earlier),
}

impl Form {
    /// Of which two columns a column is when it is not written itself: for what came in, and for what went out.
    const fn made_of(&self, column: Column) -> Option<(Column, Column)> {
        match (self, column) {
            (Form::InPlace(_), Column::LocalPort) => Some((Column::ServicePort, Column::OtherPort)),
            (Form::InPlace(_), Column::PeerPort) => Some((Column::OtherPort, Column::ServicePort)),
            (Form::Earlier(_), Column::ServicePort) => Some((Column::LocalPort, Column::PeerPort)),
            (Form::Earlier(_), Column::OtherPort) => Some((Column::PeerPort, Column::LocalPort)),
            _ => None,
        }
    }
}

/// The numbers of a column: all of them, or each where it is.
#[derive(Debug, Clone, Copy)]
pub(in crate::history::sqlite) enum Values<'b> {
    Read(&'b [i64]),
    InPlace(Numbers<'b>),
}

impl Values<'_> {
    /// That of a session.
    pub(in crate::history::sqlite) fn of(&self, at: usize) -> Result<i64, Damaged> {
        match self {
            Values::Read(all) => all.get(at).copied().ok_or(MISSING),
            Values::InPlace(numbers) => numbers.get(at),
        }
    }
}

impl Block {
    /// The block of a host, whose bytes these are.
    pub(in crate::history::sqlite) fn read(host_id: i64, codec: i64, bytes: Vec<u8>) -> Result<Block, Damaged> {
        let form = match codec {
            CODEC => Form::InPlace(Layout::read(bytes)?),
            codec => Form::Earlier(Earlier::read(codec, bytes)?),
        };
        let (local, peer, owners) = (OnceCell::new(), OnceCell::new(), OnceCell::new());
        Ok(Block { host_id, form, numbers: Default::default(), local, peer, owners })
    }

    /// Whose sessions these are.
    pub(in crate::history::sqlite) const fn host_id(&self) -> i64 {
        self.host_id
    }

    /// How many they are.
    pub(in crate::history::sqlite) const fn len(&self) -> usize {
        match &self.form {
            Form::InPlace(layout) => layout.sessions(),
            Form::Earlier(earlier) => earlier.sessions(),
        }
    }

    /// The numbers of a column, one for each session.
    pub(in crate::history::sqlite) fn numbers(&self, column: Column) -> Result<&[i64], Damaged> {
        let read = || match (self.form.made_of(column), &self.form) {
            (Some((of_in, of_out)), _) => {
                let directions = self.numbers(Column::Direction)?.iter();
                let either = directions.zip(self.numbers(of_in)?).zip(self.numbers(of_out)?);
                Ok(either.map(|((direction, of_in), of_out)| by_direction(*direction, *of_in, *of_out)).collect())
            }
            (None, Form::InPlace(layout)) => layout.numbers(column)?.all(),
            (None, Form::Earlier(earlier)) => earlier.numbers(column),
        };
        once(&self.numbers[column as usize], read).map(Vec::as_slice)
    }

    /// The numbers of a column for whoever looks at so many of them.
    pub(in crate::history::sqlite) fn values(&self, column: Column, count: usize) -> Result<Values<'_>, Damaged> {
        match &self.form {
            Form::InPlace(layout) if count <= self.len() / MOST && self.form.made_of(column).is_none() => {
                layout.numbers(column).map(Values::InPlace)
            }
            _ => self.numbers(column).map(Values::Read),
        }
    }

    /// The addresses of the peers.
    pub(in crate::history::sqlite) fn peers(&self) -> Result<&Recurring<IpAddr>, Damaged> {
        once(&self.peer, || match &self.form {
            Form::InPlace(layout) => layout.peers()?.all(),
            Form::Earlier(earlier) => earlier.peers(),
        })
    }

    /// The owners.
    pub(in crate::history::sqlite) fn owners(&self) -> Result<&Recurring<OwnerColumns>, Damaged> {
        once(&self.owners, || match &self.form {
            Form::InPlace(layout) => layout.owners()?.all(),
            Form::Earlier(earlier) => earlier.owners(),
        })
    }

    fn locals(&self) -> Result<&Recurring<IpAddr>, Damaged> {
        once(&self.local, || match &self.form {
            Form::InPlace(layout) => layout.local()?.all(),
            Form::Earlier(earlier) => earlier.local(),
        })
    }

    /// The sessions in these places. Of a few nothing else is read.
    pub(in crate::history::sqlite) fn sessions(&self, places: &[usize]) -> Result<Vec<StoredSession>, Damaged> {
        match &self.form {
            Form::InPlace(layout) if places.len() <= self.len() / MOST => {
                let opened = Opened::read(self.host_id, layout)?;
                gathered(places.len(), places.iter().map(|at| opened.session(*at)))
            }
            _ => {
                let mut columns = [&[][..]; COLUMNS];
                for (column, numbers) in ALL.iter().zip(&mut columns) {
                    *numbers = self.numbers(*column)?;
                }
                let (locals, peers, owners) = (self.locals()?, self.peers()?, self.owners()?);
                let session = |at: &usize| {
                    let number = |column: Column| columns[column as usize].get(*at).copied().ok_or(MISSING);
                    let ends = (*locals.of(*at)?, *peers.of(*at)?, owners.of(*at)?.clone());
                    put_together(self.host_id, number, ends)
                };
                gathered(places.len(), places.iter().map(session))
            }
        }
    }

    /// All sessions, in the order of their closing.
    pub(in crate::history::sqlite) fn all(&self) -> Result<Vec<StoredSession>, Damaged> {
        self.sessions(&(0..self.len()).collect::<Vec<_>>())
    }
}

fn once<T>(cell: &OnceCell<T>, read: impl FnOnce() -> Result<T, Damaged>) -> Result<&T, Damaged> {
    match cell.get() {
        Some(known) => Ok(known),
        None => read().map(|value| cell.get_or_init(|| value)),
    }
}

/// So many values, in the room that they need: where one may be damaged, a collection cannot know how many there will be.
fn gathered<T>(count: usize, values: impl Iterator<Item = Result<T, Damaged>>) -> Result<Vec<T>, Damaged> {
    let mut all = Vec::with_capacity(count);
    for value in values {
        all.push(value?);
    }
    Ok(all)
}

fn narrow<T: TryFrom<i64>>(number: i64) -> Result<T, Damaged> {
    T::try_from(number).map_err(|_| Damaged("a number is too large"))
}

/// A session of a host, from its numbers and from what comes again.
fn put_together(
    host_id: i64,
    number: impl Fn(Column) -> Result<i64, Damaged>,
    (local, peer, owners): (IpAddr, IpAddr, OwnerColumns),
) -> Result<StoredSession, Damaged> {
    let closed_at_us = number(Column::ClosedAt)?;
    Ok(StoredSession {
        host_id,
        netns: number(Column::Netns)?,
        cookie: number(Column::Cookie)?,
        protocol: narrow(number(Column::Protocol)?)?,
        family: narrow(number(Column::Family)?)?,
        direction: narrow(number(Column::Direction)?)?,
        state: narrow(number(Column::State)?)?,
        local: SocketAddr::new(local, narrow(number(Column::LocalPort)?)?),
        peer: SocketAddr::new(peer, narrow(number(Column::PeerPort)?)?),
        owners,
        bytes_sent: number(Column::BytesSent)?,
        bytes_received: number(Column::BytesReceived)?,
        opened_at_us: closed_at_us.wrapping_sub(number(Column::Lasted)?),
        opened_known: narrow(number(Column::OpenedKnown)?)?,
        closed: Some((closed_at_us, narrow(number(Column::ClosedKnown)?)?)),
    })
}

#[cfg(test)]
mod tests;
