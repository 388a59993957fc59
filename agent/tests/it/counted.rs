//! TCP sockets that are neither listeners nor sessions are counted, and only that.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use fleetsock_agent::{
    capture::{Connections, Extent, Occasion, SocketRow, States, Surveyor},
    namespaces::{Namespaces, Pass},
};
use fleetsock_proto::{socket::SocketState, tcp::TcpCounts};

use crate::{
    listeners::{has, skip},
    namespaces::{Named, makes_namespaces, wait_until},
};

/// Sockets of a network namespace: so many half-open, bound and closed ones, as `counted.py` makes them.
struct Holder(Child);

impl Holder {
    fn start(named: &Named) -> Holder {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &named.0, "python3", "-c", include_str!("counted.py")]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

const HELD: TcpCounts = TcpCounts { time_wait: 4, syn_received: 3, bound: Some(5) };

fn tells_bound() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap());
    let told = (numbers.next(), numbers.next()) >= (Some(6), Some(8));
    if !told {
        skip("this kernel does not tell of bound sockets");
    }
    told
}

#[test]
fn half_open_bound_and_closed_sockets_are_counted_and_are_no_rows() {
    if !makes_namespaces() || !has("python3") {
        return;
    }
    let named = Named::new();
    let holder = Holder::start(&named);
    let expected = TcpCounts { bound: HELD.bound.filter(|_| tells_bound()), ..HELD };
    named.within(|| {
        let (mut surveyor, mut all, mut followed) = (Surveyor::open().unwrap(), Vec::new(), Vec::new());
        let coverage = Extent::of(Occasion::Referee, Connections::FromWalks).home;
        let report = surveyor.survey_home(coverage, States::All, &mut all);
        assert_eq!(report.counts, Some(expected));
        assert_eq!(surveyor.survey_home(coverage, States::Followed, &mut followed).counts, None);
        // A listener for each kind, and the client ends of what is half open.
        let states = |rows: &[SocketRow]| rows.iter().map(|row| row.state).collect::<Vec<_>>();
        let established = |rows: &[SocketRow]| states(rows).iter().filter(|s| **s == SocketState::Established).count();
        assert_eq!((all.len(), established(&all)), (5, 3), "{all:?}");
        assert_eq!(states(&followed), states(&all));
        drop(holder);
        wait_until("what was held is gone", || {
            let left = surveyor.survey_home(coverage, States::All, &mut all).counts.unwrap();
            (left.syn_received, left.bound.unwrap_or(0)) == (0, 0)
        });
    });
}

#[test]
fn they_are_counted_in_other_namespaces_too() {
    if !makes_namespaces() || !has("python3") || !tells_bound() {
        return;
    }
    let (home, named) = (Named::new(), Named::new());
    let holder = Holder::start(&named);
    home.within(|| {
        let mut surveyor = Surveyor::open().unwrap();
        let extent = Extent { states: States::All, ..Extent::of(Occasion::Referee, Connections::FromEvents) };
        // Other tests make namespaces and sockets of their own; none of them keeps a connection half open.
        let mut half_open = || {
            let mut namespaces = Namespaces::open().unwrap();
            namespaces.refresh(Pass::New).unwrap();
            let counts = surveyor.survey(&namespaces, extent, &mut Vec::new()).counts.unwrap();
            if counts.syn_received == HELD.syn_received {
                assert!(counts.time_wait >= HELD.time_wait && counts.bound >= HELD.bound, "{counts:?}");
            }
            counts.syn_received
        };
        wait_until("they are counted", || half_open() == HELD.syn_received);
        drop(holder);
        wait_until("they are counted no more", || half_open() == 0);
    });
}
