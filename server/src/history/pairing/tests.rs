use proptest::{collection::vec, prelude::*};

use super::*;

const SECOND: i64 = 1_000_000;

/// Hosts by their addresses, at all times.
#[derive(Debug, Clone, Default)]
struct Fixed(Vec<(i64, IpAddr)>);

impl Holders for Fixed {
    fn of(&self, address: IpAddr, _span: (i64, i64)) -> Vec<i64> {
        self.0.iter().filter(|(_, its)| *its == address).map(|(host, _)| *host).collect()
    }

    fn has(&self, host: i64, address: IpAddr, _span: (i64, i64)) -> bool {
        self.0.contains(&(host, address))
    }
}

fn hosts(all: &[(i64, &str)]) -> Fixed {
    Fixed(all.iter().map(|(host, address)| (*host, address.parse().unwrap())).collect())
}

/// An end of TCP, open between two seconds, of which the kernel told.
fn end(host: i64, local: &str, peer: &str, (opened, closed): (i64, Option<i64>)) -> End {
    let sockets = Sockets { protocol: 1, local: local.parse().unwrap(), peer: peer.parse().unwrap() };
    let closed_at_us = closed.map(|second| second * SECOND);
    End { host, netns: 7, sockets, opened_at_us: opened * SECOND, opening_is_known: true, closed_at_us }
}

/// The other end of the first, as the number of the host and the second of its opening; both ends must agree.
fn paired(holders: Fixed, ends: &[End]) -> Option<(i64, i64)> {
    let mut all = Ends::new(10_000 * SECOND, holders);
    ends.iter().for_each(|end| all.add(*end, ()));
    let other = all.other_end(&ends[0]).map(|(end, ())| *end);
    for one in ends {
        if let Some((found, ())) = all.other_end(one) {
            assert_eq!(all.other_end(found).map(|(end, ())| end.identity()), Some(one.identity()), "{one:?}");
        }
    }
    other.map(|end| (end.host, end.opened_at_us / SECOND))
}

const CLIENT: &str = "10.0.0.1:40000";
const SERVER: &str = "10.0.0.2:443";

fn two() -> Fixed {
    hosts(&[(1, "10.0.0.1"), (2, "10.0.0.2")])
}

#[test]
fn the_sockets_the_other_way_round_at_the_same_time_are_the_other_end() {
    let client = end(1, CLIENT, SERVER, (100, Some(200)));
    for (other, expected) in [
        (end(2, SERVER, CLIENT, (100, Some(200))), true),
        (end(2, SERVER, CLIENT, (103, None)), false),
        (end(2, SERVER, CLIENT, (100, Some(100 + 1_100))), true),
        (end(2, SERVER, CLIENT, (100, Some(200 + 1_300))), false),
        (end(2, SERVER, CLIENT, (204, Some(205))), true),
        (end(2, SERVER, CLIENT, (206, Some(207))), false),
        (end(2, SERVER, CLIENT, (240, Some(300))), false),
        (end(2, "10.0.0.2:444", CLIENT, (100, Some(200))), false),
        (end(2, SERVER, "10.0.0.1:40001", (100, Some(200))), false),
        (end(2, CLIENT, SERVER, (100, Some(200))), false),
        (
            End {
                sockets: Sockets { protocol: 2, ..client.sockets.mirrored() },
                ..end(2, SERVER, CLIENT, (100, Some(200)))
            },
            false,
        ),
    ] {
        assert_eq!(paired(two(), &[client, other]).is_some(), expected, "{other:?}");
    }
    let long = end(1, CLIENT, SERVER, (100, Some(5000)));
    let late = end(2, SERVER, CLIENT, (240, Some(5000)));
    assert_eq!(paired(two(), &[long, late]), None, "the kernel says that it opened much later");
    let seen = End { opening_is_known: false, ..late };
    assert_eq!(paired(two(), &[long, seen]), Some((2, 240)), "a walk saw it then");
}

#[test]
fn sockets_that_are_used_again_go_to_the_life_that_was_open_with_them() {
    let lives = [(100, 110), (112, 130), (131, 131)].map(|(from, to)| (from, Some(to)));
    let clients = lives.map(|life| end(1, CLIENT, SERVER, life));
    let servers = lives.map(|life| end(2, SERVER, CLIENT, life));
    assert_eq!(paired(two(), &[&clients[..1], &servers].concat()), Some((2, 100)));
    assert_eq!(paired(two(), &[&clients[1..2], &servers].concat()), Some((2, 112)));
    assert_eq!(
        paired(two(), &[&clients[2..], &servers].concat()),
        None,
        "the clocks may differ by more than it lasted"
    );
    // The other half of the first was not observed, and the life that is there is that of the second.
    assert_eq!(paired(two(), &[clients[0], clients[1], servers[1]]), None);
    assert_eq!(paired(two(), &[clients[1], clients[0], servers[1]]), Some((2, 112)));
    // One clock tells them apart.
    let one = hosts(&[(1, "10.0.0.1"), (1, "10.0.0.2")]);
    let here = servers.map(|server| End { host: 1, ..server });
    assert_eq!(paired(one, &[&clients[2..], &here].concat()), Some((1, 131)));
}

#[test]
fn addresses_that_many_have_make_no_pair_unless_only_one_fits() {
    let life = (100, Some(200));
    let client = end(1, CLIENT, SERVER, life);
    let server = |host| end(host, SERVER, CLIENT, life);
    let twins = || hosts(&[(1, "10.0.0.1"), (2, "10.0.0.2"), (3, "10.0.0.2")]);
    assert_eq!(paired(twins(), &[client, server(2)]), Some((2, 100)));
    assert_eq!(paired(twins(), &[client, server(2), server(3)]), None);
    // Two containers of one host.
    assert_eq!(paired(two(), &[client, server(2), End { netns: 8, ..server(2) }]), None);
    // Two hosts with the client's address: the server cannot tell whose it is.
    let clients = hosts(&[(1, "10.0.0.1"), (4, "10.0.0.1"), (2, "10.0.0.2")]);
    assert_eq!(paired(clients, &[client, server(2), End { host: 4, ..client }]), None);
}

#[test]
fn an_address_that_a_host_has_itself_leads_nowhere_else() {
    // Two hosts with the same bridge of containers.
    let bridges = || hosts(&[(1, "172.17.0.1"), (2, "172.17.0.1"), (2, "172.17.0.2")]);
    let life = (100, Some(200));
    let [bridge, container] = ["172.17.0.1:5000", "172.17.0.2:40000"];
    let client = |host| End { netns: 9, ..end(host, container, bridge, life) };
    let server = |host| end(host, bridge, container, life);
    assert_eq!(paired(bridges(), &[client(2), server(2), server(1)]), Some((2, 100)));
    assert_eq!(paired(bridges(), &[server(1), client(2)]), None, "what the second host's container sends stays there");
    assert_eq!(paired(bridges(), &[client(1), server(2)]), None);
}

#[test]
fn loopback_stays_in_its_network_namespace() {
    let life = (100, Some(200));
    let client = end(1, "127.0.0.1:40000", "127.0.0.1:6379", life);
    let server = end(1, "127.0.0.1:6379", "127.0.0.1:40000", life);
    assert_eq!(paired(Fixed::default(), &[client, server]), Some((1, 100)));
    for other in [End { host: 2, ..server }, End { netns: 8, ..server }] {
        assert_eq!(paired(Fixed::default(), &[client, other]), None);
        assert_eq!(paired(Fixed::default(), &[client, server, other]), Some((1, 100)));
    }
    let unknown = [client, server].map(|end| End { netns: 0, ..end });
    assert_eq!(paired(Fixed::default(), &unknown), None, "of two unknown namespaces nobody knows whether they are one");
}

#[test]
fn more_than_can_be_compared_is_no_pair() {
    let client = end(1, CLIENT, SERVER, (100, Some(200)));
    let again = (0..i64::try_from(ALIKE_LIMIT).unwrap()).map(|n| end(2, SERVER, CLIENT, (5_000 + n, Some(5_000 + n))));
    let ends: Vec<End> = [client, end(2, SERVER, CLIENT, (100, Some(200)))].into_iter().chain(again).collect();
    assert_eq!(paired(two(), &ends[..=ALIKE_LIMIT]), Some((2, 100)));
    assert_eq!(paired(two(), &ends), None);
    let many: Vec<(i64, &str)> = (2..19).map(|host| (host, "10.0.0.2")).collect();
    assert_eq!(candidates(&client, &hosts(&many), 0), None);
    assert_eq!(candidates(&client, &hosts(&many[..16]), 0).map(|hosts| hosts.len()), Some(16));
}

fn any_end() -> impl Strategy<Value = End> {
    let address = prop::sample::select(vec!["10.0.0.1:1", "10.0.0.2:1", "127.0.0.1:1", "[::1]:1", "10.0.0.2:2"]);
    (1..4_i64, 0..3_u64, address.clone(), address, -50..50_i64, prop::option::of(0..50_i64), any::<bool>()).prop_map(
        |(host, netns, local, peer, opened, lasted, opening_is_known)| {
            let life = (opened, lasted.map(|lasted| opened + lasted));
            End { netns, opening_is_known, ..end(host, local, peer, life) }
        },
    )
}

proptest! {
    #[test]
    fn no_end_is_that_of_two_and_each_is_the_other_of_its_other(ends in vec(any_end(), 1..12), holders in vec((1..4_i64, 1..3_u8), 0..5)) {
        let holders = Fixed(holders.into_iter().map(|(host, last)| (host, IpAddr::from([10, 0, 0, last]))).collect());
        let mut all = Ends::new(60 * SECOND, holders);
        ends.iter().for_each(|end| all.add(*end, ()));
        for one in &ends {
            let Some((other, ())) = all.other_end(one) else { continue };
            prop_assert_eq!(other.sockets, one.sockets.mirrored());
            prop_assert_eq!(all.other_end(other).map(|(end, ())| end.identity()), Some(one.identity()));
            prop_assert!(all.fitting(one).any(|end| end.identity() == other.identity()));
        }
    }

    #[test]
    fn how_long_two_overlap_is_never_more_than_the_bound(one in any_end(), best in any_end(), other in any_end(), late in -5_000_000..5_000_000_i64) {
        let all = Ends::<(), _>::new(60 * SECOND, Fixed::default());
        let (best, other) = (End { host: 2, ..best }, End { host: 2, ..other });
        let one = End { host: 1, ..one };
        if all.is_clearly_better(&one, &best, &other) {
            prop_assert!(all.overlap(&one, &best, late) > all.overlap(&one, &other, late));
        }
    }
}
