//! A session as an answer shows it: one life of a connected socket.

use std::{net::SocketAddr, time::Duration};

use crate::{
    InvalidMessage, address,
    host::{HostId, HostState},
    listener::{closed, known_number},
    owner::Owner,
    port::{self, PortClass},
    service::{self, Service},
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketState},
    time,
    time::Timestamp,
    wire,
};

/// The session at the other end of a connection: that of the host of the fleet which is the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherEnd {
    /// Id of its host.
    pub host_id: HostId,
    /// Name of its host.
    pub host: String,
    /// Inode number of its network namespace.
    pub netns: u64,
    /// How its owners are known.
    pub owner_known: OwnerKnown,
    /// The process that owns it first, where one is known.
    pub owner: Option<Owner>,
}

/// One life of a connected socket, from open to close.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Id of the host.
    pub host_id: HostId,
    /// Name of the host.
    pub host: String,
    /// Whether the host is being heard: when it is not, an open session is one that was open when last heard.
    pub host_state: HostState,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family of the socket.
    pub family: Family,
    /// Which end began it.
    pub direction: Direction,
    /// The host's end, address normalised.
    pub local: SocketAddr,
    /// The other end, address normalised.
    pub peer: SocketAddr,
    /// Name of the host of the other end where that was found, else of the fleet's host that has the peer's address, or had it when
    /// the session closed; empty when none or several have or had.
    pub peer_host: String,
    /// State when last seen.
    pub state: SocketState,
    /// Inode number of the network namespace.
    pub netns: u64,
    /// What that was called then; empty for the host's own, and where no name was told.
    pub netns_name: String,
    /// How the owners are known.
    pub owner_known: OwnerKnown,
    /// The processes that hold it, the primary one first.
    pub owners: Vec<Owner>,
    /// When it opened.
    pub opened_at: Timestamp,
    /// How that is known.
    pub opened_known: Known,
    /// When it closed and how that is known; absent while it is open.
    pub closed: Option<(Timestamp, Known)>,
    /// Bytes sent and acknowledged; 0 when not known.
    pub bytes_sent: u64,
    /// Bytes received; 0 when not known.
    pub bytes_received: u64,
    /// The other end, where it was looked for and is in the fleet.
    pub other_end: Option<Box<OtherEnd>>,
}

impl Session {
    /// The port that tells the service: the listener's end.
    pub fn service_port(&self) -> u16 {
        match self.direction {
            Direction::In => self.local.port(),
            Direction::Out => self.peer.port(),
        }
    }

    /// Class of the service's port.
    pub fn class(&self) -> PortClass {
        PortClass::of(self.protocol, self.service_port())
    }

    /// The usual service of that port: a guess.
    pub fn service(&self) -> Option<Service> {
        service::by_port(self.service_port(), self.protocol)
    }

    /// How long it lasted, or has lasted at `now`.
    pub fn duration(&self, now: Timestamp) -> Duration {
        self.closed.map_or(now, |(at, _)| at).since(self.opened_at)
    }
}

impl From<Session> for wire::SessionRecord {
    fn from(session: Session) -> wire::SessionRecord {
        let (class, service) = (session.class(), session.service());
        wire::SessionRecord {
            class: class.number(),
            service: service.map(|service| service.name.to_owned()).unwrap_or_default(),
            service_source: service.map_or(0, |service| service.source.number()),
            ..session.into_basic()
        }
    }
}

impl Session {
    /// The record of a [`SessionView::Basic`](crate::question::SessionView::Basic), with what it has of its owners: without
    /// class and service, which follow from protocol and port.
    pub fn into_basic(self) -> wire::SessionRecord {
        let session = self;
        wire::SessionRecord {
            class: 0,
            service: String::new(),
            service_source: 0,
            host_id: session.host_id.as_bytes().to_vec().into(),
            host: session.host,
            host_state: session.host_state.number(),
            protocol: session.protocol.number(),
            family: session.family.number(),
            direction: session.direction.number(),
            local_address: address::to_bytes(session.local.ip()).into(),
            local_port: session.local.port().into(),
            peer_address: address::to_bytes(session.peer.ip()).into(),
            peer_port: session.peer.port().into(),
            peer_host: session.peer_host,
            state: session.state.number(),
            netns: session.netns,
            netns_name: session.netns_name,
            owner_known: session.owner_known.number(),
            owners: session.owners.into_iter().map(Into::into).collect(),
            opened_at: Some(session.opened_at.into()),
            opened_known: session.opened_known.number(),
            closed_at: session.closed.map(|(at, _)| at.into()),
            closed_known: known_number(session.closed),
            bytes_sent: session.bytes_sent,
            bytes_received: session.bytes_received,
            other_end: session.other_end.map(|other| (*other).into()),
        }
    }
}

impl From<OtherEnd> for wire::OtherEnd {
    fn from(other: OtherEnd) -> wire::OtherEnd {
        wire::OtherEnd {
            host_id: other.host_id.as_bytes().to_vec(),
            host: other.host,
            netns: other.netns,
            owner_known: other.owner_known.number(),
            owner: other.owner.map(Into::into),
        }
    }
}

impl TryFrom<wire::OtherEnd> for OtherEnd {
    type Error = InvalidMessage;

    fn try_from(other: wire::OtherEnd) -> Result<OtherEnd, InvalidMessage> {
        Ok(OtherEnd {
            host_id: HostId::from_wire("OtherEnd.host_id", &other.host_id)?,
            host: other.host,
            netns: other.netns,
            owner_known: OwnerKnown::from_wire("OtherEnd.owner_known", other.owner_known)?,
            owner: other.owner.map(Owner::try_from).transpose()?,
        })
    }
}

impl TryFrom<wire::SessionRecord> for Session {
    type Error = InvalidMessage;

    fn try_from(record: wire::SessionRecord) -> Result<Session, InvalidMessage> {
        Ok(Session {
            host_id: HostId::from_wire("SessionRecord.host_id", &record.host_id)?,
            host: record.host,
            host_state: HostState::from_wire("SessionRecord.host_state", record.host_state)?,
            protocol: Protocol::from_wire("SessionRecord.protocol", record.protocol)?,
            family: Family::from_wire("SessionRecord.family", record.family)?,
            direction: Direction::from_wire("SessionRecord.direction", record.direction)?,
            local: SocketAddr::new(
                address::from_bytes("SessionRecord.local_address", &record.local_address)?,
                port::from_wire("SessionRecord.local_port", record.local_port)?,
            ),
            peer: SocketAddr::new(
                address::from_bytes("SessionRecord.peer_address", &record.peer_address)?,
                port::from_wire("SessionRecord.peer_port", record.peer_port)?,
            ),
            peer_host: record.peer_host,
            state: SocketState::from_wire("SessionRecord.state", record.state)?,
            netns: record.netns,
            netns_name: record.netns_name,
            owner_known: OwnerKnown::from_wire("SessionRecord.owner_known", record.owner_known)?,
            owners: record.owners.into_iter().map(Owner::try_from).collect::<Result<_, _>>()?,
            opened_at: time::required("SessionRecord.opened_at", record.opened_at)?,
            opened_known: Known::from_wire("SessionRecord.opened_known", record.opened_known)?,
            closed: closed("SessionRecord.closed_at", record.closed_at, record.closed_known)?,
            bytes_sent: record.bytes_sent,
            bytes_received: record.bytes_received,
            other_end: record.other_end.map(OtherEnd::try_from).transpose()?.map(Box::new),
        })
    }
}
