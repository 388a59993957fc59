//! Listeners, sessions and bytes in sum, as an answer shows them.

use std::net::IpAddr;

use crate::{InvalidMessage, address, host::HostId, port::PortClass, time, time::Timestamp, wire, word::words};

words! {
    /// What sums are grouped by.
    pub enum Dimension is "dimension", or InvalidDimension {
        /// Class of the service's port.
        Class = 1 "class",
        /// Name of the service, or `port/protocol` when it has none.
        Service = 2 "service",
        /// The host.
        Host = 3 "host",
        /// Name of the process that owns it first.
        Process = 4 "process",
        /// Address of the peer; listeners have none.
        Peer = 5 "peer",
        /// The hour, UTC, in which it opened; what was open before the window counts where that begins.
        Hour = 6 "hour",
    }
}

/// What the members of a sum share: the dimensions that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Group {
    /// The beginning of the hour.
    pub hour: Option<Timestamp>,
    /// Name and id of the host.
    pub host: Option<(String, HostId)>,
    /// Class of the port.
    pub class: Option<PortClass>,
    /// Name of the service, or `port/protocol`.
    pub service: Option<String>,
    /// Name of the process; empty when no owner is known.
    pub process: Option<String>,
    /// The peer, and the name of the fleet's host that has its address; empty when none or several have.
    pub peer: Option<(IpAddr, String)>,
}

/// A group and what is in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sum {
    /// What its members share.
    pub group: Group,
    /// Listeners.
    pub listeners: u64,
    /// Sessions.
    pub sessions: u64,
    /// Bytes that these sessions sent in their whole life, as far as known.
    pub bytes_sent: u64,
    /// Bytes that they received.
    pub bytes_received: u64,
}

impl From<Sum> for wire::Sum {
    fn from(sum: Sum) -> wire::Sum {
        let (host, host_id) = sum.group.host.unzip();
        let (peer, peer_host) = sum.group.peer.unzip();
        wire::Sum {
            class: sum.group.class.map_or(0, PortClass::number),
            service: sum.group.service.unwrap_or_default(),
            host_id: host_id.map(|id| id.as_bytes().to_vec()).unwrap_or_default(),
            host: host.unwrap_or_default(),
            process: sum.group.process.unwrap_or_default(),
            peer_address: peer.map(address::to_bytes).unwrap_or_default(),
            peer_host: peer_host.unwrap_or_default(),
            hour: sum.group.hour.map(Into::into),
            listeners: sum.listeners,
            sessions: sum.sessions,
            bytes_sent: sum.bytes_sent,
            bytes_received: sum.bytes_received,
        }
    }
}

impl TryFrom<wire::Sum> for Sum {
    type Error = InvalidMessage;

    /// A text that was not asked for reads like one that is empty.
    fn try_from(sum: wire::Sum) -> Result<Sum, InvalidMessage> {
        let host = match sum.host_id.as_slice() {
            [] => None,
            id => Some((sum.host, HostId::from_wire("Sum.host_id", id)?)),
        };
        let peer = match sum.peer_address.as_slice() {
            [] => None,
            bytes => Some((address::from_bytes("Sum.peer_address", bytes)?, sum.peer_host)),
        };
        Ok(Sum {
            group: Group {
                hour: time::optional("Sum.hour", sum.hour)?,
                host,
                class: match sum.class {
                    0 => None,
                    class => Some(PortClass::from_wire("Sum.class", class)?),
                },
                service: (!sum.service.is_empty()).then_some(sum.service),
                process: (!sum.process.is_empty()).then_some(sum.process),
                peer,
            },
            listeners: sum.listeners,
            sessions: sum.sessions,
            bytes_sent: sum.bytes_sent,
            bytes_received: sum.bytes_received,
        })
    }
}
