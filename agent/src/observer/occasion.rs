//! How much a walk looks at: what events tell need not be walked, and what they left open must.

use std::{collections::BTreeSet, time::Duration};

use fleetsock_proto::socket::SocketKey;

use crate::{
    capture::{Connections, Coverage, Extent, Occasion, States},
    lives::Sought,
    table::Search,
};

/// Most other namespaces whose connections are walked because events left some open; the others wait for the next walk.
/// Each costs as much as the host's connections are many.
const NAMESPACES_LIMIT: usize = 8;

/// How often the states of connections are looked at where events tell of connections: they do not tell every state.
const STATES_PAUSE: Duration = Duration::from_secs(10);
/// It comes less often where it would cost more than this part of a core.
const STATES_SHARE: u32 = 300;

/// Whether the states of the host's connections are to be looked at: so long after the last walk that showed them, which
/// cost so much.
pub(super) fn states_due(since: Option<Duration>, cost: Duration) -> bool {
    since.is_none_or(|since| since >= STATES_PAUSE.max(cost * STATES_SHARE))
}

/// What a walk looks at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) extent: Extent,
    /// Other namespaces whose connections are walked too.
    pub(super) whole: BTreeSet<u64>,
    /// Connections that it should show.
    pub(super) looked_for: Vec<Sought>,
}

impl Plan {
    /// The same, which the referee has count what is not followed too.
    pub(super) fn counting(mut self, search: Search) -> Plan {
        if search == Search::Referee {
            self.extent.states = States::All;
        }
        self
    }
}

/// What is known of namespaces and processes.
pub(super) trait Whereabouts {
    /// The own namespace.
    fn home(&self) -> u64;
    /// Whether a namespace is walked at all.
    fn is_walked(&self, netns: u64) -> bool;
    /// The namespace of a process that is alive.
    fn of_process(&self, pid: u32) -> Option<u64>;
    /// The namespaces with a listener that can have accepted a connection with this end of ours.
    fn accepting(&self, local: std::net::SocketAddr) -> Vec<u64>;
}

/// Plans a walk that looks for connections which events left open, or for nothing in particular.
pub(super) fn plan(connections: Connections, sought: Vec<Sought>, whereabouts: &impl Whereabouts) -> Plan {
    let home = whereabouts.home();
    let mut extent = Extent::of(Occasion::Steady, connections);
    let (mut whole, mut looked_for) = (BTreeSet::new(), Vec::new());
    for sought in sought {
        let mut places = places(&sought, whereabouts);
        places.retain(|netns| *netns == home || whereabouts.is_walked(*netns));
        let place_is_known = places.len() == 1;
        let mut is_postponed = false;
        for netns in places {
            if netns == home {
                extent.home = Coverage::Everything;
            } else if whole.len() < NAMESPACES_LIMIT || whole.contains(&netns) {
                whole.insert(netns);
            } else {
                is_postponed = place_is_known;
            }
        }
        if !is_postponed {
            looked_for.push(sought);
        }
    }
    Plan { extent, whole, looked_for }
}

/// A walk of everything.
pub(super) fn referee(connections: Connections, sought: Vec<Sought>) -> Plan {
    Plan { extent: Extent::of(Occasion::Referee, connections), whole: BTreeSet::new(), looked_for: sought }
}

/// Where a connection can be. A process can have its sockets in other namespaces than its own; then a listener at either
/// end tells.
fn places(sought: &Sought, whereabouts: &impl Whereabouts) -> Vec<u64> {
    let either_end = || [sought.local, sought.peer].into_iter().flat_map(|end| whereabouts.accepting(end));
    let places = match (sought.walked, sought.opener) {
        (Some(SocketKey { netns, .. }), _) => vec![netns],
        (None, Some(pid)) if sought.looks == 0 => whereabouts.of_process(pid).into_iter().collect(),
        (None, Some(pid)) => whereabouts.of_process(pid).into_iter().chain(either_end()).collect(),
        (None, None) => whereabouts.accepting(sought.local),
    };
    if places.is_empty() { vec![whereabouts.home()] } else { places }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    const HOME: u64 = 1;

    /// Process N is in namespace N, and port N is listened to in N and in the own namespace. Those above 100 are not
    /// walked.
    struct Numbers;

    impl Whereabouts for Numbers {
        fn home(&self) -> u64 {
            HOME
        }

        fn is_walked(&self, netns: u64) -> bool {
            netns <= 100
        }

        fn of_process(&self, pid: u32) -> Option<u64> {
            (pid != 0).then_some(pid.into())
        }

        fn accepting(&self, local: SocketAddr) -> Vec<u64> {
            if local.port() == 0 { Vec::new() } else { vec![HOME, local.port().into()] }
        }
    }

    fn sought(opener: Option<u32>, port: u16, walked: Option<u64>) -> Sought {
        let walked = walked.map(|netns| SocketKey { netns, cookie: 7 });
        let end = |last, port| SocketAddr::new([10, 0, 0, last].into(), port);
        Sought::new([end(1, port), end(2, 7)], opener, walked)
    }

    /// The same after a walk that did not show it.
    fn missed(sought: Sought) -> Sought {
        Sought { looks: 1, ..sought }
    }

    fn check(all: Vec<Sought>) -> (Coverage, Vec<u64>, usize) {
        let count = all.len();
        let Plan { extent, whole, looked_for } = plan(Connections::FromEvents, all, &Numbers);
        assert_eq!(extent.foreign, Coverage::Listeners);
        (extent.home, whole.into_iter().collect(), count - looked_for.len())
    }

    #[test]
    fn connections_are_looked_for_where_they_can_be() {
        use Coverage::{Everything, Listeners};
        for (case, all, expected) in [
            ("nothing", vec![], (Listeners, vec![], 0)),
            ("a process here", vec![sought(Some(1), 9, None)], (Everything, vec![], 0)),
            ("a process elsewhere", vec![sought(Some(5), 9, None)], (Listeners, vec![5], 0)),
            ("a process that is gone", vec![sought(Some(0), 9, None)], (Everything, vec![], 0)),
            ("not where its process is", vec![missed(sought(Some(5), 9, None))], (Everything, vec![5, 7, 9], 0)),
            ("a process where nobody walks", vec![sought(Some(101), 9, None)], (Listeners, vec![], 0)),
            ("accepted", vec![sought(None, 9, None)], (Everything, vec![9], 0)),
            ("accepted by nobody", vec![sought(None, 0, None)], (Everything, vec![], 0)),
            ("closed elsewhere", vec![sought(Some(1), 9, Some(5))], (Listeners, vec![5], 0)),
        ] {
            assert_eq!(check(all), expected, "{case}");
        }
    }

    #[test]
    fn what_is_in_too_many_namespaces_is_postponed_where_it_will_be_found_later() {
        let clients = (2..12).map(|pid| sought(Some(pid), 9, None));
        let accepted = (20..25).map(|port| sought(None, port, None));
        let (home, whole, postponed) = check(clients.chain(accepted).collect());
        assert_eq!((home, whole.len(), postponed), (Coverage::Everything, NAMESPACES_LIMIT, 2));
    }

    #[test]
    fn states_are_looked_at_now_and_then_and_less_often_where_that_is_dear() {
        let (second, ms) = (Duration::from_secs(1), Duration::from_millis(1));
        for (since, cost, expected) in [
            (None, ms, true),
            (Some(9 * second), ms, false),
            (Some(10 * second), ms, true),
            (Some(20 * second), 80 * ms, false),
            (Some(24 * second), 80 * ms, true),
        ] {
            assert_eq!(states_due(since, cost), expected, "{since:?} {cost:?}");
        }
    }

    #[test]
    fn without_events_everything_is_walked_every_time() {
        let everything = |states| Extent { home: Coverage::Everything, foreign: Coverage::Everything, states };
        assert_eq!(plan(Connections::FromWalks, Vec::new(), &Numbers).extent, everything(States::Followed));
        assert_eq!(referee(Connections::FromEvents, Vec::new()).extent, everything(States::Followed));
        for (search, states) in [(Search::Referee, States::All), (Search::Unknown, States::Followed)] {
            let plan = plan(Connections::FromWalks, Vec::new(), &Numbers).counting(search);
            assert_eq!(plan.extent, everything(states));
        }
    }
}
