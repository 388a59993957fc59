//! Which listeners of two moments are the same.
//!
//! A listener is the same when it is on the same socket: host, protocol, address and port. Restarting a server or its
//! host makes none a new one. Of several on one socket (SO_REUSEPORT, network namespaces), those of the same namespace are
//! the same ones, then those of the same programs, then those that are left. Hands changed when other programs hold it:
//! the processes of a program come and go.

use std::collections::{BTreeMap, BTreeSet};

use fleetsock_proto::{
    host::HostId,
    listener::{ListenAddress, Listener},
    owner::Owner,
    socket::{Family, Protocol},
};

use crate::record::difference::{Difference, DifferenceKind, Unobserved};

/// A socket that can be listened on.
type Socket = (String, HostId, Protocol, u16, ListenAddress, Family);

fn socket(listener: &Listener) -> Socket {
    let Listener { host, host_id, protocol, port, address, family, .. } = listener;
    (host.clone(), *host_id, *protocol, *port, address.clone(), *family)
}

/// What runs, whichever processes do.
type Program<'a> = (&'a str, &'a str, u32, &'a str, &'a str);

fn program(owner: &Owner) -> Program<'_> {
    let Owner { process, exe, uid, container, unit, .. } = owner;
    (process, exe, *uid, container, unit)
}

fn programs(owners: &[Owner]) -> BTreeSet<Program<'_>> {
    owners.iter().map(program).collect()
}

/// Whether other programs hold it. Where nobody is known at one of the moments, nothing is known to have changed.
fn changed_hands(then: &Listener, now: &Listener) -> bool {
    !then.owners.is_empty() && !now.owners.is_empty() && programs(&then.owners) != programs(&now.owners)
}

/// The differences, by host, protocol, port and address.
pub(super) fn compare(
    then: Vec<Listener>,
    now: Vec<Listener>,
    doubt: impl Fn(HostId) -> Unobserved,
) -> Vec<Difference> {
    let mut sockets: BTreeMap<Socket, (Vec<Listener>, Vec<Listener>)> = BTreeMap::new();
    for listener in then {
        sockets.entry(socket(&listener)).or_default().0.push(listener);
    }
    for listener in now {
        sockets.entry(socket(&listener)).or_default().1.push(listener);
    }
    let mut differences = Vec::new();
    for (then, now) in sockets.into_values() {
        compare_socket(then, now, |kind, listener, owners_before| {
            let unobserved = doubt(listener.host_id);
            differences.push(Difference { kind, listener, owners_before, unobserved });
        });
    }
    differences
}

fn compare_socket(
    mut then: Vec<Listener>,
    mut now: Vec<Listener>,
    mut differ: impl FnMut(DifferenceKind, Listener, Vec<Owner>),
) {
    let is_same: [fn(&Listener, &Listener) -> bool; 3] = [
        |then, now| then.netns == now.netns && !changed_hands(then, now),
        |then, now| !changed_hands(then, now),
        |_, _| true,
    ];
    for is_same in is_same {
        let mut left = Vec::new();
        for after in now {
            match then.iter().position(|before| is_same(before, &after)) {
                Some(index) => {
                    let before = then.swap_remove(index);
                    if changed_hands(&before, &after) {
                        differ(DifferenceKind::OwnerChanged, after, before.owners);
                    }
                }
                None => left.push(after),
            }
        }
        now = left;
    }
    then.into_iter().for_each(|listener| differ(DifferenceKind::Gone, listener, Vec::new()));
    now.into_iter().for_each(|listener| differ(DifferenceKind::New, listener, Vec::new()));
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use fleetsock_proto::{
        host::HostState,
        socket::{Known, OwnerKnown},
        time::Timestamp,
    };
    use proptest::prelude::*;

    use super::*;

    fn owner(process: &str, pid: u32) -> Owner {
        Owner {
            pid,
            started_at: None,
            process: process.to_owned(),
            exe: String::new(),
            uid: 0,
            user: String::new(),
            container: String::new(),
            unit: String::new(),
            command_line: String::new(),
        }
    }

    fn listener(port: u16, netns: u64, owners: Vec<Owner>) -> Listener {
        Listener {
            host_id: HostId::from_array([1; 16]),
            host: "web1".to_owned(),
            host_state: HostState::Online,
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            address: IpAddr::from([0, 0, 0, 0]).into(),
            port,
            netns,
            netns_name: String::new(),
            owner_known: OwnerKnown::Exact,
            owners,
            opened_at: Timestamp::from_micros(0),
            opened_known: Known::Event,
            closed: None,
        }
    }

    fn lines(then: Vec<Listener>, now: Vec<Listener>) -> Vec<String> {
        let line = |row: Difference| {
            let was: Vec<&str> = row.owners_before.iter().map(|owner| owner.process.as_str()).collect();
            format!("{} {} {} {was:?}", row.kind.as_str(), row.listener.port, row.listener.netns)
        };
        compare(then, now, |_| Unobserved::default()).into_iter().map(line).collect()
    }

    #[test]
    fn a_server_that_was_started_anew_is_the_same_and_another_one_is_not() {
        let nginx = |pid| vec![owner("nginx", pid)];
        assert_eq!(lines(vec![listener(80, 1, nginx(5))], vec![listener(80, 1, nginx(9))]), [""; 0]);
        let apache = vec![owner("apache2", 9)];
        let changed = lines(vec![listener(80, 1, nginx(5))], vec![listener(80, 1, apache)]);
        assert_eq!(changed, [r#"owner-changed 80 1 ["nginx"]"#]);
        assert_eq!(lines(vec![listener(80, 1, nginx(5))], vec![listener(80, 1, Vec::new())]), [""; 0], "nobody known");
        let moved = lines(vec![listener(80, 1, nginx(5))], vec![listener(81, 1, nginx(5))]);
        assert_eq!(moved, ["gone 80 1 []", "new 81 1 []"]);
    }

    #[test]
    fn containers_with_the_same_port_are_told_apart() {
        let web = |netns, name: &str| listener(80, netns, vec![owner(name, 1)]);
        // The second was replaced in a new namespace, a third one came.
        let then = vec![web(1, "a"), web(2, "b")];
        let now = vec![web(3, "b"), web(1, "a"), web(4, "c")];
        assert_eq!(lines(then, now), ["new 80 4 []"]);
    }

    proptest! {
        #[test]
        fn turned_around_what_was_new_is_gone(
            then in prop::collection::vec((0..3_u16, 0..3_u64, 0..3_u32), 0..12),
            now in prop::collection::vec((0..3_u16, 0..3_u64, 0..3_u32), 0..12),
        ) {
            let all = |rows: &[(u16, u64, u32)]| -> Vec<Listener> {
                let held = |program: u32| vec![owner(["a", "b", "c"][program as usize], 1)];
                rows.iter().map(|(port, netns, program)| listener(*port, *netns, held(*program))).collect()
            };
            let count = |rows: Vec<Difference>, kind| rows.iter().filter(|row| row.kind == kind).count();
            let differences = |then, now| compare(all(then), all(now), |_| Unobserved::default());
            let (there, back) = (differences(&then, &now), differences(&now, &then));
            prop_assert_eq!(count(there.clone(), DifferenceKind::New), count(back.clone(), DifferenceKind::Gone));
            prop_assert_eq!(count(there.clone(), DifferenceKind::Gone), count(back.clone(), DifferenceKind::New));
            // Per socket, as many come and go as the numbers say, and each changes hands for which no partner is left.
            let number = |rows: &[(u16, u64, u32)], port| rows.iter().filter(|row| row.0 == port).count();
            for port in 0..3 {
                let of = |kind| there.iter().filter(|row| row.kind == kind && row.listener.port == port).count();
                let (before, after) = (number(&then, port), number(&now, port));
                prop_assert_eq!(of(DifferenceKind::New), after.saturating_sub(before));
                prop_assert_eq!(of(DifferenceKind::Gone), before.saturating_sub(after));
                let shared: usize = (0..3)
                    .map(|program| {
                        let held = |rows: &[(u16, u64, u32)]| {
                            rows.iter().filter(|row| row.0 == port && row.2 == program).count()
                        };
                        held(&then).min(held(&now))
                    })
                    .sum();
                prop_assert_eq!(of(DifferenceKind::OwnerChanged), before.min(after) - shared);
            }
            prop_assert_eq!(differences(&then, &then).len(), 0);
        }
    }
}
