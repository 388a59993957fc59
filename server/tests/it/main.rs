//! The server's parts together, with real certificates, TLS and SQLite.
#![allow(clippy::unwrap_used, reason = "in a test, unwrap is the assertion")]

mod access;
mod approval;
mod attacks;
mod audit;
mod authority;
mod confinement;
mod copies;
mod engine;
mod exposition;
mod faults;
mod fleet;
mod fuzz;
mod greed;
mod health;
mod history;
mod impostors;
mod keeping;
mod model;
mod rates;
mod refusals;
mod renewal;
mod restores;
mod revocation;
mod roots;
mod scene;
mod sealing;
mod simulation;
mod speaker;
mod sums;
mod victim;
mod words;

use fleetsock_proto::time::Timestamp;

/// Says why a test skips, or what it measured, to whoever runs it with --nocapture.
#[allow(clippy::print_stderr, reason = "the only way to tell")]
fn tell(words: &str) {
    eprintln!("{words}");
}

/// A moment that is the same in every run, at a whole second.
fn now() -> Timestamp {
    Timestamp::from_micros(1_795_000_000_000_000)
}
