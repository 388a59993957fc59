//! What a walk found new: since when it is open, which way it goes, and whose it is.

use std::sync::Arc;

use fleetsock_proto::{
    batch::{Change, Op, Role, Socket},
    owner::Owner,
    socket::{Direction, Known, OwnerKnown, Protocol, SocketState},
};

use super::{
    Comparison, Found, Insight, Open, Purpose, Table, Walk,
    endings::{lacks_owners, later},
    purpose, within_limit,
};
use crate::capture::SocketRow;

/// Owners, and how they are known.
type Owners = (Vec<Arc<Owner>>, OwnerKnown);

/// A row of a socket that opened, and the owners that its key had in an earlier life. Small, because the first walk has as
/// many as there are sockets.
pub(super) struct Fresh<'a> {
    pub(super) row: &'a SocketRow,
    pub(super) owners: Option<Box<Owners>>,
}

impl Table {
    /// Opens what is new: listeners first, because the direction of a session follows from them.
    pub(super) fn open_all(
        &mut self,
        walk: &Walk<'_>,
        fresh: &[Fresh<'_>],
        search: &Found<'_>,
        insight: &impl Insight,
        comparison: &mut Comparison,
    ) {
        let mut beyond: u64 = 0;
        let purposes = || fresh.iter().filter_map(|fresh| Some((fresh, purpose(fresh.row)?)));
        let listeners = purposes().filter(|(_, purpose)| *purpose == Purpose::Listener);
        let sessions = purposes().filter(|(_, purpose)| *purpose != Purpose::Listener);
        for (fresh, purpose) in listeners.chain(sessions) {
            // Asked also when there is no room: events then know that a walk has seen it.
            let socket = self.socket(walk, fresh, purpose, search, insight, &mut comparison.owners_lost);
            if self.open.len() >= self.limit {
                beyond += 1;
                continue;
            }
            if socket.role == Role::Listener {
                self.listeners.add(&socket);
            }
            if socket.role == Role::Listener || socket.protocol != Protocol::Tcp {
                self.always.insert(socket.key);
            }
            if let Role::Session { peer, .. } = socket.role
                && lacks_owners(&socket)
            {
                insight.ask_owners(socket.key, socket.local, peer);
            }
            comparison.changes.push(Change { op: Op::Opened, socket: socket.clone() });
            *self.namespaces.entry(socket.key.netns).or_default() += 1;
            self.open.insert(socket.key, Open { socket, inode: fresh.row.inode, walk: self.walk });
        }
        comparison.sockets_lost += beyond.saturating_sub(self.beyond);
        // A walk that leaves connections out says nothing of those that had no room before.
        self.beyond = if walk.survey.has_connections() { beyond } else { beyond.max(self.beyond) };
    }

    /// A socket that a walk found new.
    fn socket(
        &self,
        walk: &Walk<'_>,
        fresh: &Fresh<'_>,
        purpose: Purpose,
        search: &Found<'_>,
        insight: &impl Insight,
        owners_lost: &mut u64,
    ) -> Socket {
        let (row, at) = (fresh.row, walk.at);
        let (role, origin) = match purpose {
            Purpose::Listener => (Role::Listener, None),
            Purpose::Session(peer) => {
                let origin = insight.origin(row.key, row.local, peer);
                let told = origin.and_then(|origin| origin.direction);
                (Role::Session { direction: told.unwrap_or_else(|| self.direction(row)), peer }, origin)
            }
        };
        let opened = origin.and_then(|origin| origin.opened_at);
        let (opened_at, opened_known) = match opened {
            Some(opened) => (opened.min(at), Known::Event),
            None => (at, self.opened_known(row.key.netns, row.protocol, row.state)),
        };
        let (owners, owner_known) = match search.owners(row) {
            Some((owners, known)) => (within_limit(owners, owners_lost).to_vec(), known),
            None => fresh.owners.as_deref().cloned().unwrap_or((Vec::new(), OwnerKnown::None)),
        };
        let mut socket = Socket {
            key: row.key,
            protocol: row.protocol,
            family: row.family,
            state: origin.and_then(|origin| origin.state).map_or(row.state, |told| later(told, row.state)),
            local: row.local,
            path: (row.protocol == Protocol::Unix)
                .then(|| walk.survey.paths.get(&row.key).cloned().unwrap_or_default()),
            role,
            opened_at,
            opened_known,
            owner_known,
            owners,
            bytes_sent: 0,
            bytes_received: 0,
        };
        self.ask_listener(&mut socket);
        socket
    }

    /// Gives a session that came in and of which no process is known the owners of the listener that accepted it.
    pub(super) fn ask_listener(&self, socket: &mut Socket) {
        let came_in = matches!(socket.role, Role::Session { direction: Direction::In, .. });
        if came_in
            && socket.owner_known == OwnerKnown::Unknown
            && let Some(owners) = self.listeners.owners(socket.key.netns, socket.protocol, socket.local)
        {
            (socket.owners, socket.owner_known) = (owners.to_vec(), OwnerKnown::Listener);
        }
    }

    /// What is found new opened after the last walk that would have shown it, if there was one and it had room for it.
    pub(super) fn opened_known(&self, netns: u64, protocol: Protocol, state: SocketState) -> Known {
        let shown = self.shown.get(&netns).is_some_and(|shown| shown.includes(protocol, state));
        if shown && self.beyond == 0 { Known::BetweenWalks } else { Known::FirstSeen }
    }

    fn direction(&self, row: &SocketRow) -> Direction {
        let accepted =
            row.state != SocketState::SynSent && self.listeners.accept(row.key.netns, row.protocol, row.local);
        if accepted { Direction::In } else { Direction::Out }
    }
}
