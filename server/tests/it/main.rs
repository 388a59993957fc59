//! The server's parts together, with real certificates, TLS and SQLite.
#![allow(clippy::unwrap_used, reason = "in a test, unwrap is the assertion")]

mod access;
mod approval;
mod audit;
mod authority;
mod copies;
mod engine;
mod faults;
mod fleet;
mod history;
mod model;
mod rates;
mod renewal;
mod revocation;
mod scene;
mod speaker;

use fleetsock_proto::time::Timestamp;

/// A moment that is the same in every run, at a whole second.
fn now() -> Timestamp {
    Timestamp::from_micros(1_795_000_000_000_000)
}
