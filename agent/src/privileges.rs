//! What the agent may do, and giving up what it needs no more.
//!
//! Rings and sockets stay open whatever their owner may do later. What stays needed is looking into other users' processes,
//! and going into other network namespaces where that is wanted.

use rustix::{
    io::Errno,
    thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
};

use crate::config::Reach;

/// What is kept where the agent has it.
fn needed(reach: Reach) -> CapabilitySet {
    let owners = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
    match reach {
        Reach::Host => owners | CapabilitySet::SYS_ADMIN,
        Reach::Namespace => owners,
    }
}

/// Whether the calling thread can go into other network namespaces.
pub fn can_travel() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What the kernel asks of whoever has it run a program at what it goes through; CAP_SYS_ADMIN stands for each.
pub(crate) const FOR_PROGRAMS: [(&str, CapabilitySet); 2] = [
    ("CAP_BPF", CapabilitySet::BPF.union(CapabilitySet::SYS_ADMIN)),
    ("CAP_PERFMON", CapabilitySet::PERFMON.union(CapabilitySet::SYS_ADMIN)),
];

/// The names of those of which the calling thread has none, if there are any.
pub(crate) fn missing(wanted: impl IntoIterator<Item = (&'static str, CapabilitySet)>) -> Option<String> {
    let has = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing: Vec<&str> =
        wanted.into_iter().filter(|(_, any)| !has.intersects(*any)).map(|(name, _)| name).collect();
    (!missing.is_empty()).then(|| missing.join(" and no "))
}

/// Gives up every capability of the calling thread that is not needed any more. A thread has the capabilities of the one
/// that began it, so that this comes before any other thread.
pub fn give_up(reach: Reach) -> Result<(), Errno> {
    let sets = capabilities(None)?;
    let kept = sets.permitted & needed(reach);
    // Nothing is to be inherited by a program that is run, because none is.
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reach: Reach) -> [CapabilitySet; 2] {
        let given_up = std::thread::spawn(move || {
            let before = capabilities(None).unwrap().permitted;
            give_up(reach).unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!((after.effective, after.inheritable), (after.permitted, CapabilitySet::empty()));
            assert_eq!(can_travel(), after.permitted.contains(CapabilitySet::SYS_ADMIN));
            [before, after.permitted]
        });
        given_up.join().unwrap()
    }

    #[test]
    fn what_is_needed_is_kept_and_nothing_else() {
        for reach in [Reach::Host, Reach::Namespace] {
            let [before, after] = after(reach);
            assert_eq!(after, before & needed(reach));
        }
        assert!(!needed(Reach::Namespace).contains(CapabilitySet::SYS_ADMIN));
    }
}
