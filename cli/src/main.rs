//! `fleetctl`: asks about the ports and sessions of a fleet.

use std::process::ExitCode;

fn main() -> ExitCode {
    fleetsock_proto::tls::install_provider();
    fleetctl::run(std::env::args_os().collect())
}
