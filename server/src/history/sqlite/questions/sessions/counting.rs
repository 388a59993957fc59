//! Sessions in sum, in no order: by sums that are kept beside them where these are enough (`counting/sums.rs`). Of a block only those columns are read that the sums are by, and no session is made of them.

use std::net::{IpAddr, Ipv4Addr};

use fleetsock_proto::{
    port::PortClass, question::SummaryQuestion, socket::Protocol, summary::Dimension, time::Timestamp,
};

use self::{
    peers::by_peer,
    sums::{Read, answering},
};
use super::{
    InFile, Search,
    blocks::Services,
    looking::{At, Look},
    meaning::Traits,
};
use crate::history::{
    HistoryError,
    sqlite::{
        by_peer::Source,
        coding::OwnerColumns,
        numbered::Numbered,
        questions::Reader,
        roster::{Places, Selection},
        sealed::{Block, Column, Recurring},
        stored::StoredSession,
        sums::Counts,
    },
    summing::{Alike, Sums},
};

mod peers;
mod sums;

/// Counts the sessions that a question means; gives what is still to be counted with each peer.
pub(in crate::history::sqlite::questions) fn count<'r>(
    reader: &'r Reader,
    selection: &'r Selection,
    places: &'r Places,
    question: &'r SummaryQuestion,
    into: &mut Sums,
) -> Result<Vec<Source<'r>>, HistoryError> {
    let mut search = Search::new(reader, selection, places, &question.sockets)?;
    let mut counting = Counting { kept: Kept::answering(question, selection.len()), into };
    search.look(selection, &mut counting)?;
    match counting.kept {
        Kept::Few(mut read) => search.add_read(&mut read, into).map(|()| Vec::new()),
        Kept::ByPeer(sources) => Ok(sources),
        Kept::None => Ok(Vec::new()),
    }
}

/// Counts what it is shown.
struct Counting<'s, 'r> {
    kept: Kept<'r>,
    into: &'s mut Sums,
}

/// What sums that are kept beside rows tell, where these are enough.
enum Kept<'r> {
    Few(Read),
    /// Too many to be held.
    ByPeer(Vec<Source<'r>>),
    None,
}

impl Kept<'_> {
    /// That which answers a question. The rows of one host are few.
    fn answering(question: &SummaryQuestion, hosts: usize) -> Kept<'static> {
        match (hosts < 2, by_peer(question)) {
            (true, _) => Kept::None,
            (false, true) => Kept::ByPeer(Vec::new()),
            (false, false) => answering(question).map_or(Kept::None, |by| Kept::Few(Read::new(by))),
        }
    }
}

impl<'r> Look<'r> for Counting<'_, 'r> {
    fn file(&mut self, search: &mut Search<'r>, file: InFile) -> Result<bool, HistoryError> {
        match &mut self.kept {
            Kept::Few(read) => search.add_sums(file, read, self.into),
            Kept::ByPeer(sources) => search.add_peer_sums(file, sources, self.into),
            Kept::None => Ok(false),
        }
    }

    fn one(&mut self, search: &mut Search<'_>, _at: At, one: &StoredSession) -> Result<(), HistoryError> {
        search.add_one(one, self.into)
    }

    fn block(
        &mut self,
        search: &mut Search<'_>,
        _at: (usize, i64),
        block: &Block,
        meant: &[usize],
    ) -> Result<(), HistoryError> {
        search.add_block(block, meant, self.into)
    }
}

/// What of a session tells its group, as far as the sums are by it.
struct Told {
    protocol: Protocol,
    /// The service's port.
    port: u16,
    opened_at_us: i64,
    /// Of the primary owner; 0 for none.
    program_id: i64,
    peer: IpAddr,
}

impl Search<'_> {
    fn add_one(&mut self, one: &StoredSession, into: &mut Sums) -> Result<(), HistoryError> {
        let Traits { protocol, port, .. } = Traits::of(one)?;
        let (opened_at_us, program_id, peer) = (one.opened_at_us, one.owners.program_id, one.peer.ip());
        let told = Told { protocol, port, opened_at_us, program_id, peer };
        self.add(one.host_id, &told, Counts::of(one), into)
    }

    /// Counts sessions of a block: first in groups of its own, of which there are few.
    fn add_block(&mut self, block: &Block, meant: &[usize], into: &mut Sums) -> Result<(), HistoryError> {
        if meant.is_empty() {
            return Ok(());
        }
        let columns = Columns::of(block, meant.len(), into)?;
        let (sent, received) = (block.numbers(Column::BytesSent)?, block.numbers(Column::BytesReceived)?);
        let counts = |at: &usize| Counts::one(sent[*at], received[*at]);
        let groups = match columns.are_only_peers() {
            // They are numbered already.
            Some(peers) => {
                let mut groups = vec![None; peers.values.len()];
                for at in meant {
                    groups[peers.places[*at]].get_or_insert((*at, Counts::default())).1.add(counts(at));
                }
                groups.into_iter().flatten().collect()
            }
            None => {
                let mut groups = Groups::default();
                for at in meant {
                    groups.of(columns.key(*at, into)?, *at).add(counts(at));
                }
                groups.all
            }
        };
        for (at, counts) in groups {
            self.add(block.host_id(), &columns.told(at)?, counts, into)?;
        }
        Ok(())
    }

    fn add(&mut self, host: i64, told: &Told, counts: Counts, into: &mut Sums) -> Result<(), HistoryError> {
        let host = self.hosts.get(host).filter(|_| into.are_by(Dimension::Host));
        let alike = Alike {
            host: host.map_or_else(|| Alike::default().host, |host| (host.listed.name.clone(), host.listed.host_id)),
            opened_at: Timestamp::from_micros(told.opened_at_us),
            protocol: told.protocol,
            class: PortClass::of(told.protocol, told.port),
            port: Some(told.port),
            process: self.programs.process_in(into, told.program_id)?,
            peer: Some(told.peer),
        };
        let Counts { sessions, bytes_sent, bytes_received } = counts;
        into.add_sessions(alike, [sessions, bytes_sent, bytes_received])
    }
}

/// The columns of a block that sums are by.
struct Columns<'b> {
    services: Option<Services<'b>>,
    /// Whether ports are told apart, and not only their classes.
    by_port: bool,
    /// When sessions closed, and how long they lasted.
    times: Option<(&'b [i64], &'b [i64])>,
    owners: Option<&'b Recurring<OwnerColumns>>,
    peers: Option<&'b Recurring<IpAddr>>,
}

/// What is the same in all sessions of a group: port, hour, owners, peer.
type Key = [u64; 4];

impl<'b> Columns<'b> {
    fn of(block: &'b Block, sessions: usize, sums: &Sums) -> Result<Columns<'b>, HistoryError> {
        let is = |dimension| sums.are_by(dimension);
        Ok(Columns {
            by_port: is(Dimension::Service),
            services: if is(Dimension::Class) || is(Dimension::Service) {
                Some(Services::of(block, sessions)?)
            } else {
                None
            },
            times: if is(Dimension::Hour) {
                Some((block.numbers(Column::ClosedAt)?, block.numbers(Column::Lasted)?))
            } else {
                None
            },
            owners: if is(Dimension::Process) { Some(block.owners()?) } else { None },
            peers: if is(Dimension::Peer) { Some(block.peers()?) } else { None },
        })
    }

    /// The peers, when sums are by nothing else.
    fn are_only_peers(&self) -> Option<&'b Recurring<IpAddr>> {
        self.peers.filter(|_| self.services.is_none() && self.times.is_none() && self.owners.is_none())
    }

    fn opened_at_us(&self, at: usize) -> i64 {
        self.times.map_or(0, |(closed, lasted)| closed[at].wrapping_sub(lasted[at]))
    }

    fn key(&self, at: usize, sums: &Sums) -> Result<Key, HistoryError> {
        let service = match &self.services {
            None => 0,
            Some(services) => {
                let (protocol, _, port) = services.of_session(at)?;
                if self.by_port {
                    u64::from(protocol.number().cast_unsigned()) << 16 | u64::from(port)
                } else {
                    u64::from(PortClass::of(protocol, port).number().cast_unsigned())
                }
            }
        };
        let hour = match self.times {
            Some(_) => sums.hour_of(Timestamp::from_micros(self.opened_at_us(at))).as_micros(),
            None => 0,
        };
        let owners = self.owners.map_or(0, |owners| owners.places[at]);
        let peer = self.peers.map_or(0, |peers| peers.places[at]);
        Ok([service, hour.cast_unsigned(), owners as u64, peer as u64])
    }

    fn told(&self, at: usize) -> Result<Told, HistoryError> {
        let (protocol, port) = match &self.services {
            Some(services) => services.of_session(at).map(|(protocol, _, port)| (protocol, port))?,
            None => (Protocol::Tcp, 0),
        };
        Ok(Told {
            protocol,
            port,
            opened_at_us: self.opened_at_us(at),
            program_id: self.owners.map_or(0, |owners| owners.values[owners.places[at]].program_id),
            peer: self.peers.map_or(Ipv4Addr::UNSPECIFIED.into(), |peers| peers.values[peers.places[at]]),
        })
    }
}

/// The groups of a block: the first session of each, and what they count.
#[derive(Default)]
struct Groups {
    all: Vec<(usize, Counts)>,
    places: Numbered<Key, usize>,
    last: Option<(Key, usize)>,
}

impl Groups {
    /// The counts of the group of this session.
    fn of(&mut self, key: Key, at: usize) -> &mut Counts {
        let place = match self.last {
            Some((last, place)) if last == key => place,
            _ => *self.places.entry(key).or_insert(self.all.len()),
        };
        self.last = Some((key, place));
        if place == self.all.len() {
            self.all.push((at, Counts::default()));
        }
        &mut self.all[place].1
    }
}
