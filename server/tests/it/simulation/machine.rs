//! The sockets of a simulated machine: what a walk of its kernel's table would show.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use fleetsock_agent::{
    capture::SocketRow,
    lives::{Heard, Life, Purpose},
    owners::{OwnerScan, Wanted},
    table::Told,
};
use fleetsock_proto::{
    host::BootId,
    owner::Owner,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketKey, SocketState},
    time::Timestamp,
};

use super::chance::Chance;
use crate::scene::NETNS;

/// Sockets that are open at once, about.
const OPEN: usize = 12;

/// A machine, which goes on while its agent does not.
pub(super) struct Machine {
    chance: Chance,
    pub(super) boot: u8,
    open: BTreeMap<u64, SocketRow>,
    cookie: u64,
    /// Nothing changes any more.
    pub(super) rests: bool,
}

impl Machine {
    pub(super) fn new(chance: Chance) -> Machine {
        Machine { chance, boot: 1, open: BTreeMap::new(), cookie: 0, rests: false }
    }

    pub(super) fn boot_id(&self) -> BootId {
        BootId::from_array([self.boot; 16])
    }

    /// It starts anew: nothing is open, and cookies are those of before.
    pub(super) fn reboot(&mut self) {
        self.boot += 1;
        self.open.clear();
        self.cookie = 0;
    }

    pub(super) fn rows(&self) -> Vec<SocketRow> {
        self.open.values().copied().collect()
    }

    /// Time passes; gives the lives that events tell of, which began after `since` and are over by `until`.
    pub(super) fn live(&mut self, since: Timestamp, until: Timestamp) -> Vec<Told> {
        let mut told = Vec::new();
        if self.rests {
            return told;
        }
        for _ in 0..self.chance.below(5) {
            match self.chance.below(10) {
                0..=3 if self.open.len() < OPEN => self.open_one(),
                4 if until > since => told.push(self.flash(since, until)),
                _ => self.close_one(),
            }
        }
        told
    }

    fn open_one(&mut self) {
        self.cookie += 1;
        let listens = self.chance.percent(30);
        let row = self.row(self.cookie, listens);
        self.open.insert(self.cookie, row);
    }

    fn close_one(&mut self) {
        let place = self.chance.below(self.open.len() as u64);
        let cookie = self.open.keys().nth(usize::try_from(place).unwrap()).copied();
        cookie.map(|cookie| self.open.remove(&cookie));
    }

    fn row(&mut self, cookie: u64, listens: bool) -> SocketRow {
        // Few ports and pairs, so that they are used again.
        let port = 1 + u16::try_from(self.chance.below(5)).unwrap();
        let here = SocketAddr::from((Ipv4Addr::new(10, 0, 0, 1), if listens { port } else { 443 }));
        let there = SocketAddr::from((Ipv4Addr::new(10, 9, 9, 9), 4000 + u16::try_from(cookie % 60_000).unwrap()));
        SocketRow {
            key: SocketKey { netns: NETNS, cookie },
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            state: if listens { SocketState::Listen } else { SocketState::Established },
            local: here,
            peer: (!listens).then_some(there),
            inode: 1000 + cookie,
            uid: 0,
            cgroup_id: 0,
        }
    }

    /// A connection too short for any walk.
    fn flash(&mut self, since: Timestamp, until: Timestamp) -> Told {
        self.cookie += 1;
        let row = self.row(self.cookie, false);
        let length = until.since(since);
        let part = |chance: &mut Chance| Duration::from_micros(chance.below(length.as_micros() as u64 / 2));
        let opened_at = since.plus(part(&mut self.chance));
        let closed_at = opened_at.plus(part(&mut self.chance));
        Told {
            key: row.key,
            life: Life {
                family: row.family,
                local: row.local,
                peer: row.peer.unwrap(),
                purpose: Purpose::Session(Some(Direction::Out)),
                state: SocketState::Established,
                opened_ns: None,
                opener: None,
                closer: None,
                closed_ns: None,
            },
            opened_at: Some(opened_at),
            closed_at,
            closed_known: Known::Event,
            owners: Vec::new(),
            owner_known: OwnerKnown::Unknown,
            heard: Heard::Told,
        }
    }

    /// Whose sockets these are.
    pub(super) fn owners(&self, wanted: &Wanted) -> OwnerScan {
        let owner = |inode: u64| {
            let pid = u32::try_from(inode % 7).unwrap() + 1;
            let process = format!("p{pid}");
            Arc::new(Owner {
                pid,
                started_at: None,
                exe: format!("/bin/{process}"),
                process,
                uid: 0,
                user: "root".to_owned(),
                container: String::new(),
                unit: String::new(),
                command_line: String::new(),
            })
        };
        let owners = wanted.iter().map(|inode| (*inode, std::iter::once(owner(*inode)).collect())).collect();
        OwnerScan { owners, ..OwnerScan::default() }
    }
}
