//! The settings file of a new fleet.

use std::{fmt, net::SocketAddr};

use fleetsock_proto::{
    join::{DEFAULT_PORT, ServerAddress},
    spiffe::TrustDomain,
};

use super::Limits;

/// What `init` writes down of a new fleet.
#[derive(Debug, Clone)]
pub struct NewFleet {
    /// The fleet.
    pub trust_domain: TrustDomain,
    /// Where to listen.
    pub listen: SocketAddr,
    /// How others reach it.
    pub address: ServerAddress,
}

impl fmt::Display for NewFleet {
    /// The settings file, with every default named.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NewFleet { trust_domain, listen, address } = self;
        let limits = Limits::default();
        write!(
            f,
            "# Settings of fleetsock-server. Lines behind a # show the defaults.\n\
             \n\
             # The fleet. Part of every certificate: it cannot be changed later.\n\
             trust_domain = \"{trust_domain}\"\n\
             # Where gRPC is listened for.\n\
             listen = \"{listen}\"\n\
             # How agents and operators reach it; goes into join strings.\n\
             address = \"{address}\"\n\
             \n\
             # A host that is silent for so long counts as stale.\n\
             # stale_after_s = 90\n\
             # How often agents send a sign of life when nothing else happens.\n\
             # heartbeat_s = 15\n\
             # How long after its end a host's certificate can be renewed by proof of its key; then only a token helps.\n\
             # renewable_days = 30\n\
             # How long sessions, listeners and gaps that are over are kept.\n\
             # kept_days = 30\n\
             # How long sums of sessions are kept, which stay when sessions go; 0 for none.\n\
             # sums_days = 400\n\
             # The Unix socket (0600) of the local admin, by default in the state folder.\n\
             # admin_socket = \"/run/fleetsock/admin.sock\"\n\
             # Where `fleetctl backup` puts backups, by default in the state folder; another folder must be there.\n\
             # backups = \"/var/backups/fleetsock\"\n\
             # Where /metrics, /livez and /readyz are answered over plain HTTP, for whoever can reach it; none for nowhere.\n\
             # health = \"127.0.0.1:5291\"\n\
             # How the log is written: auto (for people on a terminal, as JSON elsewhere), json or text.\n\
             # log_format = \"auto\"\n\
             \n\
             [limits]\n\
             # handshake_s = {}\n\
             # handshakes = {}\n\
             # handshakes_per_address = {}\n\
             # connections = {}\n\
             # connections_per_address = {}\n\
             # answer_rows = {}\n\
             # question_s = {}\n\
             # enrolments_per_s = {}\n\
             # enrolments_per_address_per_min = {}\n\
             # renewals_per_min = {}\n\
             # operator_calls_per_s = {}\n",
            limits.handshake.as_secs(),
            limits.handshakes,
            limits.handshakes_per_address,
            limits.connections,
            limits.connections_per_address,
            limits.answer_rows,
            limits.question.as_secs(),
            limits.rates.enrolments.times,
            limits.rates.enrolments_per_address.times,
            limits.rates.renewals.times,
            limits.rates.calls.times,
        )
    }
}

impl NewFleet {
    /// The address to give to others when none is named: where it listens, or this machine's name.
    pub fn address_for(listen: SocketAddr, machine: &str) -> Option<ServerAddress> {
        if listen.ip().is_unspecified() {
            format!("{machine}:{}", listen.port()).parse().ok()
        } else {
            listen.to_string().parse().ok()
        }
    }

    /// Where to listen unless told otherwise: everywhere, both families.
    pub fn default_listen() -> SocketAddr {
        SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, DEFAULT_PORT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fleet_that_listens_everywhere_is_reached_by_the_machines_name() {
        let everywhere = NewFleet::default_listen();
        assert_eq!(NewFleet::address_for(everywhere, "db1").unwrap().as_str(), "db1:5290");
        let loopback = "127.0.0.1:7000".parse().unwrap();
        assert_eq!(NewFleet::address_for(loopback, "db1").unwrap().as_str(), "127.0.0.1:7000");
    }
}
