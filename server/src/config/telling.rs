//! Where and how a server tells of itself: the port of its health, the form of its log.

use std::net::{Ipv4Addr, SocketAddr};

use serde::Deserialize;

/// Where health is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthAddress {
    /// It is in the settings: without it the server does not start.
    Chosen(SocketAddr),
    /// On loopback, if nobody else is there.
    Default,
}

impl HealthAddress {
    /// The address.
    pub fn address(self) -> SocketAddr {
        match self {
            HealthAddress::Chosen(address) => address,
            HealthAddress::Default => SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_HEALTH_PORT)),
        }
    }

    /// `none`, or an address with a port.
    pub(super) fn parse(text: Option<&str>) -> Result<Option<HealthAddress>, String> {
        match text {
            None => Ok(Some(HealthAddress::Default)),
            Some("none") => Ok(None),
            Some(text) => {
                let problem = |_| format!("health: `{text}` is no address with a port; write 127.0.0.1:5291 or none");
                text.parse().map(|address| Some(HealthAddress::Chosen(address))).map_err(problem)
            }
        }
    }
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people on a terminal, as JSON elsewhere.
    #[default]
    Auto,
    /// A JSON object a line.
    Json,
    /// For people.
    Text,
}

/// The port of `/metrics`, `/livez` and `/readyz`.
const DEFAULT_HEALTH_PORT: u16 = 5291;
