//! A listener as an answer shows it: one row of `ports`.

mod address;

use crate::{
    InvalidMessage,
    address::Scope,
    host::{HostId, HostState},
    owner::Owner,
    port::{self, PortClass},
    service::{self, Service},
    socket::{Family, Known, OwnerKnown, Protocol},
    time,
    time::Timestamp,
    wire,
};

pub(crate) use self::address::path_from_wire;
pub use self::address::{ListenAddress, SOCKET_PATH_LIMIT};

/// A socket in LISTEN, or an unconnected UDP socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    /// Id of the host.
    pub host_id: HostId,
    /// Name of the host.
    pub host: String,
    /// Whether the host is being heard: when it is not, the row tells what was last known.
    pub host_state: HostState,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address family of the socket.
    pub family: Family,
    /// What it is bound to.
    pub address: ListenAddress,
    /// Bound port, or what stands in its place (see [`Protocol`]).
    pub port: u16,
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
}

impl Listener {
    /// Class of the port.
    pub fn class(&self) -> PortClass {
        PortClass::of(self.protocol, self.port)
    }

    /// How far it can be reached.
    pub fn scope(&self) -> Scope {
        self.address.scope()
    }

    /// The usual service of the port: a guess.
    pub fn service(&self) -> Option<Service> {
        service::by_port(self.port, self.protocol)
    }
}

/// `closed_at` and `closed_known` of a record, which come together or not at all.
pub(crate) fn closed(
    field: &'static str,
    at: Option<prost_types::Timestamp>,
    known: i32,
) -> Result<Option<(Timestamp, Known)>, InvalidMessage> {
    match time::optional(field, at)? {
        Some(at) => Ok(Some((at, Known::from_wire(field, known)?))),
        None => Ok(None),
    }
}

/// The number of a word that may be absent.
pub(crate) fn known_number(closed: Option<(Timestamp, Known)>) -> i32 {
    closed.map_or(0, |(_, known)| known.number())
}

impl From<Listener> for wire::Port {
    fn from(listener: Listener) -> wire::Port {
        let service = listener.service();
        wire::Port {
            class: listener.class().number(),
            service: service.map(|service| service.name.to_owned()).unwrap_or_default(),
            service_source: service.map_or(0, |service| service.source.number()),
            scope: listener.scope().number(),
            host_id: listener.host_id.as_bytes().to_vec().into(),
            host: listener.host,
            host_state: listener.host_state.number(),
            protocol: listener.protocol.number(),
            family: listener.family.number(),
            address: listener.address.into_bytes().into(),
            port: listener.port.into(),
            netns: listener.netns,
            netns_name: listener.netns_name,
            owner_known: listener.owner_known.number(),
            owners: listener.owners.into_iter().map(Into::into).collect(),
            opened_at: Some(listener.opened_at.into()),
            opened_known: listener.opened_known.number(),
            closed_at: listener.closed.map(|(at, _)| at.into()),
            closed_known: known_number(listener.closed),
        }
    }
}

impl TryFrom<wire::Port> for Listener {
    type Error = InvalidMessage;

    fn try_from(record: wire::Port) -> Result<Listener, InvalidMessage> {
        let protocol = Protocol::from_wire("Port.protocol", record.protocol)?;
        Ok(Listener {
            host_id: HostId::from_wire("Port.host_id", &record.host_id)?,
            host: record.host,
            host_state: HostState::from_wire("Port.host_state", record.host_state)?,
            protocol,
            family: Family::from_wire("Port.family", record.family)?,
            address: ListenAddress::from_wire("Port.address", protocol, record.address)?,
            port: port::from_wire("Port.port", record.port)?,
            netns: record.netns,
            netns_name: record.netns_name,
            owner_known: OwnerKnown::from_wire("Port.owner_known", record.owner_known)?,
            owners: record.owners.into_iter().map(Owner::try_from).collect::<Result<_, _>>()?,
            opened_at: time::required("Port.opened_at", record.opened_at)?,
            opened_known: Known::from_wire("Port.opened_known", record.opened_known)?,
            closed: closed("Port.closed_at", record.closed_at, record.closed_known)?,
        })
    }
}
