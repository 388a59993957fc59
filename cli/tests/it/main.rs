//! fleetctl from outside: what it writes, how it exits.
#![allow(clippy::unwrap_used, reason = "in a test, unwrap is the assertion")]

mod backup;
mod beside;
mod burst;
mod ca;
mod connections;
mod contexts;
mod coverage;
mod dev;
mod ends;
mod export;
mod fleet;
mod formats;
mod help;
mod identity;
mod kills;
mod namespaces;
mod network;
mod past;
mod program;
mod readme;
mod states;
mod usage;
mod watching;
