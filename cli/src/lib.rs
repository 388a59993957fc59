//! Asks a fleetsock-server about the ports and sessions of a fleet.
