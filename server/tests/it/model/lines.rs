//! Rows and groups as lines, which are compared.

use fleetsock_proto::{
    change::{ChangeRecord, Changed},
    listener::Listener,
    session::Session,
    socket::Protocol,
    summary::{Dimension, Group},
    time::Timestamp,
};

use crate::scene::{listener_line, session_line};

pub(super) fn port(row: &Listener) -> String {
    format!("{} {} {} {}", listener_line(row), row.family, row.owner_known, row.netns)
}

pub(super) fn change_line(change: &ChangeRecord) -> String {
    let what = match &change.what {
        Changed::Listener(listener) => port(listener),
        Changed::Session(session) => connection(session),
        Changed::Start(start) => format!("{} {}", start.host, start.boot_id),
    };
    let before: Vec<u32> = change.owners_before.iter().map(|owner| owner.pid).collect();
    format!("{:?} {} {} {what} {before:?} {:?}", change.at, change.kind, change.known, change.scope_before)
}

/// What a row has of some dimensions, in the order of [`group_line`].
pub(super) fn key(
    by: &[Dimension],
    (host, process, peer, opened_at): (&str, &str, &str, Timestamp),
    (protocol, port): (Protocol, u16),
) -> String {
    let class = ["well-known", "registered", "dynamic"][usize::from(port >= 1024) + usize::from(port >= 49_152)];
    let name = fleetsock_proto::service::by_port(port, protocol).map(|service| service.name.to_owned());
    let mut key = String::new();
    for dimension in
        [Dimension::Hour, Dimension::Host, Dimension::Class, Dimension::Service, Dimension::Process, Dimension::Peer]
    {
        let value = match dimension {
            Dimension::Hour => (opened_at.as_micros().div_euclid(3_600_000_000)).to_string(),
            Dimension::Host => host.to_owned(),
            Dimension::Class => class.to_owned(),
            Dimension::Service => name.clone().unwrap_or_else(|| format!("{port}/{protocol}")),
            Dimension::Process => process.to_owned(),
            Dimension::Peer => peer.to_owned(),
        };
        key += &if by.contains(&dimension) { format!(" {value}") } else { " -".to_owned() };
    }
    key
}

pub(super) fn group_line(group: &Group) -> String {
    let Group { hour, host, class, service, process, peer } = group;
    let told = |value: Option<String>| format!(" {}", value.unwrap_or_else(|| "-".to_owned()));
    [
        told(hour.map(|hour| {
            assert_eq!(hour.as_micros() % 3_600_000_000, 0);
            (hour.as_micros() / 3_600_000_000).to_string()
        })),
        told(host.as_ref().map(|(name, _)| name.clone())),
        told(class.map(|class| class.to_string())),
        told(service.clone()),
        told(process.clone()),
        told(peer.as_ref().map(|(address, _)| address.to_string())),
    ]
    .concat()
}

pub(super) fn connection(row: &Session) -> String {
    let bytes = (row.bytes_sent, row.bytes_received);
    let other = row.other_end.as_ref().map(|other| {
        let owner = other.owner.as_ref().map(|owner| owner.pid);
        format!("{} {} {} {owner:?}", other.host, other.netns, other.owner_known)
    });
    let peer = &row.peer_host;
    format!("{} {} {} {} {bytes:?} {peer} {other:?}", session_line(row), row.family, row.state, row.owner_known)
}
