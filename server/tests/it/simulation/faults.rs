//! What goes wrong in a play, and when: all of it follows from the seed.

use std::{fmt, time::Duration};

use super::chance::Chance;

/// Something that goes wrong, until it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing arrives between an agent and the server.
    Partition(usize),
    /// Nothing of an agent arrives, and what the server says does.
    Mute(usize),
    /// Nothing of the server arrives.
    Deaf(usize),
    /// What is sent arrives when it is over.
    Hold(usize),
    /// Every message takes up to so many milliseconds.
    Slow(usize, u64),
    /// The server is killed.
    KillServer,
    /// The server stops in order.
    StopServer,
    /// A backup is made, in place of the one before.
    Backup,
    /// The server is killed, and begins again with the backup, if there is one.
    Restore,
    /// An agent is killed.
    KillAgent(usize),
    /// An agent stops in order.
    StopAgent(usize),
    /// A machine loses its power and starts anew.
    Reboot(usize),
}

/// From when to when.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) from: Duration,
    pub(super) until: Duration,
    pub(super) fault: Fault,
}

impl fmt::Debug for Planned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:.2}..{:.2}s", self.fault, self.from.as_secs_f64(), self.until.as_secs_f64())
    }
}

/// Faults of one place follow one another; those of different places overlap.
pub(super) fn plan(chance: &mut Chance, agents: usize, end: Duration) -> Vec<Planned> {
    let mut planned = Vec::new();
    // In a third of the plays the server forgets.
    let restores = chance.percent(33);
    sequence(chance, end, &mut planned, |chance| match chance.below(3) {
        0 => Fault::StopServer,
        1 if restores && chance.percent(40) => Fault::Restore,
        _ => Fault::KillServer,
    });
    sequence(chance, end, &mut planned, |_| Fault::Backup);
    for agent in 0..agents {
        sequence(chance, end, &mut planned, |chance| match chance.below(7) {
            0 => Fault::Mute(agent),
            1 => Fault::Deaf(agent),
            2 | 3 => Fault::Hold(agent),
            4 => Fault::Slow(agent, 100 + chance.below(900)),
            _ => Fault::Partition(agent),
        });
        sequence(chance, end, &mut planned, |chance| match chance.below(4) {
            0 => Fault::StopAgent(agent),
            1 => Fault::Reboot(agent),
            _ => Fault::KillAgent(agent),
        });
    }
    planned.sort_by_key(|planned| planned.from);
    planned
}

fn sequence(chance: &mut Chance, end: Duration, planned: &mut Vec<Planned>, mut any: impl FnMut(&mut Chance) -> Fault) {
    let mut from = chance.millis(500..30_000);
    while from < end {
        // Most are short, so that many happen while something is on its way; what ends and begins again at once finds that
        // nobody noticed.
        let longest = [100, 3_000, 3_000, 25_000][usize::try_from(chance.below(4)).unwrap()];
        let until = from + chance.millis(20..longest);
        planned.push(Planned { from, until, fault: any(chance) });
        from = until + chance.millis(500..30_000);
    }
}
