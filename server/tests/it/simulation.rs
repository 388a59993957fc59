//! Agents, a network and a server in simulated time, with kills, partitions, holds and slow links: whatever happens, what the
//! agents observed is on the server once, or a gap says what is missing.
//!
//! Real are the server with its acceptor, TLS, tonic and SQLite, and of the agents the table, the packing, the spool and the
//! uplink. Made up are the sockets of the machines ([`machine`]) and the network (turmoil). A kill is the end of everything
//! that runs, with the files as they are at that moment.
//!
//! The seed of a play gives what the machines do, and what goes wrong and when. It does not give everything: tokio's threads end
//! in any order what they began in one instant, a task looks at what is ready in any order, and both decide who gets which
//! number of the dice and of the network. Most failures come again with their seed at once, some only after a few plays of it.
//!
//! `FLEETSOCK_SEED=7 cargo test -p fleetsock-server simulation` plays one seed and tells what went wrong in it;
//! `FLEETSOCK_SEEDS=1000` plays so many. A failure tells its seed.

mod agent;
mod chance;
mod faults;
mod machine;
mod play;
mod station;
mod still;
mod verdict;

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::{Duration, Instant},
};

use self::play::{Stage, play};
use crate::tell;

/// How long is played when nobody says how much.
const USUAL: Duration = Duration::from_secs(45);
/// Among so many seeds some must have had a batch that came again.
const FEW: u64 = 100;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

fn play_or_tell(stage: &Stage, seed: u64) -> u64 {
    catch_unwind(AssertUnwindSafe(|| play(stage, seed))).unwrap_or_else(|panic| {
        tell(&format!("seed {seed} failed: FLEETSOCK_SEED={seed} cargo test -p fleetsock-server simulation"));
        resume_unwind(panic)
    })
}

#[test]
fn whatever_happens_what_was_observed_is_stored_once_or_a_gap_says_what_is_missing() {
    let stage = Stage::new();
    if let Some(seed) = number("FLEETSOCK_SEED") {
        tell(&format!("{} batches came again", play_or_tell(&stage, seed)));
        return;
    }
    let long = std::env::var_os("FLEETSOCK_LONG").is_some().then_some(1000);
    let wanted = number("FLEETSOCK_SEEDS").or(long);
    let begun = Instant::now();
    let (mut played, mut again) = (0, 0);
    while wanted.map_or(begun.elapsed() < USUAL, |wanted| played < wanted) {
        again += play_or_tell(&stage, played);
        played += 1;
    }
    tell(&format!("{played} seeds in {:.0} s; {again} batches came again", begun.elapsed().as_secs_f64()));
    // One in a few seeds: so many without any do not play what they should.
    assert!(again > 0 || played < FEW, "no batch came again in {played} seeds");
}
