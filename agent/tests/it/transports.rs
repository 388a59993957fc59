//! SCTP and DCCP are seen where the kernel has them, and said to be missing where it has not.

use std::net::SocketAddr;

use fleetsock_agent::capture::{Coverage, SocketRow, States, SurveyReport, Surveyor};
use fleetsock_proto::{
    socket::{Protocol, SocketState},
    time::Timestamp,
};
use rustix::{
    fd::OwnedFd,
    net::{AddressFamily, SocketAddrV4, SocketType, bind, connect, getsockname, ipproto, listen, socket},
};

use crate::{
    fleet::{Agent, Fleet, eager, until},
    listeners::skip,
    namespaces::{Named, makes_namespaces},
};

/// Whether this kernel has SCTP. Asking for a socket loads the module.
fn sctp() -> Option<OwnedFd> {
    socket(AddressFamily::INET, SocketType::STREAM, Some(ipproto::SCTP)).ok()
}

fn survey(surveyor: &mut Surveyor, rows: &mut Vec<SocketRow>) -> SurveyReport {
    surveyor.survey_home(Coverage::Listeners, States::All, rows)
}

#[test]
fn what_the_kernel_has_not_is_not_asked_for_and_nothing_fails() {
    let has_sctp = sctp().is_some();
    let (mut surveyor, mut rows) = (Surveyor::open().unwrap(), Vec::new());
    let report = survey(&mut surveyor, &mut rows);
    assert_eq!(surveyor.unsupported().contains(&Protocol::Sctp), !has_sctp);
    let walked = report.walked[&surveyor.netns()];
    assert_eq!((walked.others, report.failed.len()), (Ok(()), 0));
    assert!(report.would_show(surveyor.netns(), Protocol::Sctp, SocketState::Listen), "there is none, or it is a row");
}

#[test]
fn a_listening_sctp_socket_and_both_ends_of_its_association_are_seen() {
    if !makes_namespaces() {
        return;
    }
    Named::new().within(|| {
        let Some(listener) = sctp() else { return skip("this kernel has no SCTP") };
        bind(&listener, &SocketAddrV4::new([127, 0, 0, 1].into(), 0)).unwrap();
        listen(&listener, 1).unwrap();
        let server = SocketAddrV4::try_from(getsockname(&listener).unwrap()).unwrap();
        let client = sctp().unwrap();
        connect(&client, &server).unwrap();
        let (mut surveyor, mut rows) = (Surveyor::open().unwrap(), Vec::new());
        survey(&mut surveyor, &mut rows);
        rows.retain(|row| row.protocol == Protocol::Sctp);
        let server = SocketAddr::V4(server);
        let is_listener = |row: &&SocketRow| (row.state, row.local, row.peer) == (SocketState::Listen, server, None);
        assert!(rows.iter().any(|row| is_listener(&row)), "{rows:?}");
        let keys: std::collections::BTreeSet<_> = rows.iter().map(|row| row.key).collect();
        let ends: Vec<&SocketRow> = rows.iter().filter(|row| row.state == SocketState::Established).collect();
        assert!(ends.iter().any(|row| row.local == server) && ends.iter().any(|row| row.peer == Some(server)));
        assert_eq!((ends.len(), keys.len()), (2, 3), "{rows:?}");
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_kernel_has_none_of_them_is_observed_whole() {
    let unsupported = Surveyor::open().unwrap().unsupported();
    if unsupported.is_empty() {
        return skip("this kernel has all of them");
    }
    let fleet = Fleet::start().await;
    let agent = Agent::start(&fleet.enrol("web1").await, eager("web1"), Timestamp::now);
    let names: Vec<String> = unsupported.iter().map(|protocol| protocol.to_string().to_uppercase()).collect();
    let facts = until("the host walked", async || {
        let facts = fleet.facts().await;
        facts.tier_reason.contains("peers of UDP sockets").then_some(facts)
    })
    .await;
    assert!(names.iter().all(|name| !facts.tier_reason.contains(name)), "{}", facts.tier_reason);
    agent.stop().await;
}
