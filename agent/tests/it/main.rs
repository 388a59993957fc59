//! The agent with a real kernel, real processes and a real server.
#![allow(clippy::unwrap_used, reason = "in a test, unwrap is the assertion")]

mod connecting;
mod counted;
mod delivery;
mod destroyed;
mod digests;
mod distress;
mod enrolment;
mod exchange;
mod fleet;
mod holders;
mod listeners;
mod load_walks;
mod namespaces;
mod observing;
mod outage;
mod prepared;
mod renewal;
mod restore;
mod sources;
mod spool;
mod tellers;
mod tiers;
mod transports;
mod unix;
