//! The other end of each session, from all sessions that there ever were: nothing is left out because of where or when it is.

use std::net::IpAddr;

use fleetsock_proto::{
    question::SessionTime,
    session::{OtherEnd, Session},
    socket::Known,
    time::Timestamp,
};
use fleetsock_server::history::pairing::{End, Ends, Holders, Sockets};

use super::expected::Expected;

/// The addresses of sockets of each host.
struct Seen<'a>(&'a [Expected]);

impl Holders for Seen<'_> {
    fn of(&self, address: IpAddr, span: (i64, i64)) -> Vec<i64> {
        (0..).take(self.0.len()).filter(|host| self.has(*host, address, span)).collect()
    }

    fn has(&self, host: i64, address: IpAddr, _span: (i64, i64)) -> bool {
        self.0[usize::try_from(host).unwrap()].addresses().any(|its| its == address)
    }
}

fn end(host: usize, session: &Session) -> End {
    End {
        host: i64::try_from(host).unwrap(),
        netns: session.netns,
        sockets: Sockets { protocol: session.protocol.number(), local: session.local, peer: session.peer },
        opened_at_us: session.opened_at.as_micros(),
        opening_is_known: session.opened_known == Known::Event,
        closed_at_us: session.closed.map(|(at, _)| at.as_micros()),
    }
}

/// The sessions of a time.
pub(super) fn with_other_ends(hosts: &[Expected], time: SessionTime, now: Timestamp) -> Vec<Session> {
    let mut all = Ends::new(now.as_micros(), Seen(hosts));
    for (number, host) in hosts.iter().enumerate() {
        for session in host.sessions(SessionTime::Within { since: Timestamp::MIN, until: None }) {
            all.add(end(number, &session), session);
        }
    }
    let mut sessions = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        for mut session in host.sessions(time) {
            if let Some((_, other)) = all.other_end(&end(number, &session)) {
                session.other_end = Some(Box::new(OtherEnd {
                    host_id: other.host_id,
                    host: other.host.clone(),
                    netns: other.netns,
                    owner_known: other.owner_known,
                    owner: other.owners.first().cloned(),
                }));
                session.peer_host.clone_from(&other.host);
            }
            sessions.push(session);
        }
    }
    sessions
}
