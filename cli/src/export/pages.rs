//! An answer after the other, newest first, until there is no more: each session in one of them.
//!
//! An answer breaks off after so many rows or so much time. The next one is then asked for what closed before its last
//! row. Others may have closed at that very moment, so that rows of the last moment are held back and come again.

use std::{collections::HashSet, net::SocketAddr};

use fleetsock_proto::{
    host::HostId,
    question::SessionQuestion,
    session::Session,
    socket::{Known, Protocol},
    time::Timestamp,
};

/// The pages of an answer that is too long for one.
#[derive(Debug, Default)]
pub(super) struct Pages {
    closed_before: Option<Timestamp>,
    /// The last closing that was told.
    last: Option<Timestamp>,
    /// Sessions that closed then.
    held: Vec<Session>,
    /// Those that were open when the first answer was made: one that is told of as closed by a later answer was written.
    open: HashSet<Life>,
    /// How many the answer in hand has told.
    told: u64,
}

/// What tells a life of a socket from all others.
type Life = (HostId, u64, Protocol, SocketAddr, SocketAddr, Timestamp);

/// That of a session whose opening an event told. What a walk was the first to see may have the sockets and the moment of another.
fn life(session: &Session) -> Option<Life> {
    let Session { host_id, netns, protocol, local, peer, opened_at, opened_known, .. } = *session;
    (opened_known == Known::Event).then_some((host_id, netns, protocol, local, peer, opened_at))
}

/// There is no way to ask for less at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stuck {
    /// So many sessions were told and all are open: there is no closing before which the next answer could begin.
    Open(u64),
    /// So many closed at one moment.
    AtOneMoment(u64),
}

impl Pages {
    /// What is asked next.
    pub(super) fn ask(&self, question: &SessionQuestion) -> SessionQuestion {
        SessionQuestion { closed_before: self.closed_before, ..question.clone() }
    }

    /// Takes rows as they come; those that are certain not to come again.
    pub(super) fn take(&mut self, rows: Vec<Session>) -> Vec<Session> {
        self.told += rows.len() as u64;
        let mut certain = Vec::with_capacity(rows.len());
        for row in rows {
            if moment(&row) != self.last {
                certain.append(&mut self.held);
                self.last = moment(&row);
            }
            if row.closed.is_none() {
                self.open.extend(life(&row));
                certain.push(row);
            } else if self.closed_before.is_none() || life(&row).is_none_or(|life| !self.open.contains(&life)) {
                self.held.push(row);
            }
        }
        certain
    }

    /// The answer ended before there was no more.
    pub(super) fn broke_off(&mut self) -> Result<(), Stuck> {
        let last = self.last.ok_or(Stuck::Open(self.told))?;
        // Whole microseconds: what closed at that moment closed before the next.
        let next = Some(Timestamp::from_micros(last.as_micros().saturating_add(1)));
        if next == self.closed_before {
            return Err(Stuck::AtOneMoment(self.held.len() as u64));
        }
        self.closed_before = next;
        self.held.clear();
        (self.told, self.last) = (0, None);
        Ok(())
    }

    /// There is no more; the rows that were held.
    pub(super) fn end(self) -> Vec<Session> {
        self.held
    }

    /// The last closing that was told.
    pub(super) fn at(&self) -> Option<Timestamp> {
        self.last
    }
}

fn moment(session: &Session) -> Option<Timestamp> {
    session.closed.map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use fleetsock_proto::{
        host::HostState,
        socket::{Direction, Family, OwnerKnown, SocketState},
    };
    use proptest::prelude::*;

    use super::*;

    fn session(netns: u64, closed: Option<i64>) -> Session {
        Session {
            host_id: HostId::from_array([1; 16]),
            host: "web1".to_owned(),
            host_state: HostState::Online,
            protocol: Protocol::Tcp,
            family: Family::Ipv4,
            direction: Direction::In,
            local: "10.0.0.1:443".parse().unwrap(),
            peer: "10.0.0.2:4000".parse().unwrap(),
            peer_host: String::new(),
            state: SocketState::Established,
            netns,
            netns_name: String::new(),
            owner_known: OwnerKnown::None,
            owners: Vec::new(),
            opened_at: Timestamp::from_micros(0),
            opened_known: Known::Event,
            closed: closed.map(|closed| (Timestamp::from_micros(closed), Known::Event)),
            bytes_sent: 0,
            bytes_received: 0,
            other_end: None,
        }
    }

    /// Sessions newest first, as a server has them.
    fn all(open: u64, mut closed: Vec<i64>) -> Vec<Session> {
        closed.sort_unstable_by(|one, other| other.cmp(one));
        let closed = closed.into_iter().map(Some);
        (0..).zip(std::iter::repeat_n(None, open as usize).chain(closed)).map(|(n, at)| session(n, at)).collect()
    }

    /// What is written when answers break off after so many rows.
    fn written(all: &[Session], limit: usize, chunk: usize) -> Result<Vec<Session>, Stuck> {
        let mut pages = Pages::default();
        let mut written = Vec::new();
        loop {
            let before = pages.ask(&SessionQuestion::default()).closed_before;
            let meant = all.iter().filter(|one| before.is_none_or(|before| moment(one).is_some_and(|at| at < before)));
            let answer: Vec<Session> = meant.clone().take(limit).cloned().collect();
            for rows in answer.chunks(chunk) {
                written.extend(pages.take(rows.to_vec()));
            }
            if meant.count() <= limit {
                written.extend(pages.end());
                return Ok(written);
            }
            pages.broke_off()?;
        }
    }

    #[test]
    fn a_session_that_was_written_as_open_is_not_written_again_when_it_closes_meanwhile() {
        let mut pages = Pages::default();
        let first = vec![session(1, None), session(2, None), session(3, Some(30)), session(4, Some(20))];
        assert_eq!(pages.take(first), [session(1, None), session(2, None), session(3, Some(30))]);
        pages.broke_off().unwrap();
        // Its host told late that it had closed, and of another one that nobody knew of.
        let second = vec![session(4, Some(20)), session(2, Some(12)), session(5, Some(11)), session(6, Some(10))];
        let written = pages.take(second);
        assert_eq!(written, [session(4, Some(20)), session(5, Some(11))]);
        assert_eq!(pages.end(), [session(6, Some(10))]);
    }

    #[test]
    fn an_answer_of_nothing_but_what_was_written_is_progress() {
        let mut pages = Pages::default();
        pages.take(vec![session(1, None), session(2, None), session(4, Some(20))]);
        pages.broke_off().unwrap();
        assert_eq!(
            pages.take(vec![session(4, Some(20)), session(2, Some(12)), session(1, Some(11))]),
            [session(4, Some(20))]
        );
        pages.broke_off().unwrap();
        let next = pages.ask(&SessionQuestion::default()).closed_before;
        assert_eq!(next, Some(Timestamp::from_micros(12)));
        assert_eq!((pages.take(vec![session(6, Some(10))]), pages.end()), (vec![], vec![session(6, Some(10))]));
    }

    proptest! {
        #[test]
        fn each_session_is_written_once_and_in_order(
            open in 0_u64..8, closed in proptest::collection::vec(0_i64..40, 0..60), limit in 1_usize..40, chunk in 1_usize..9,
        ) {
            let all = all(open, closed);
            match written(&all, limit, chunk) {
                Ok(written) => prop_assert_eq!(written, all),
                Err(stuck) => {
                    let most = (0..40).map(|at| all.iter().filter(|one| moment(one) == Some(Timestamp::from_micros(at))).count());
                    let most = most.max().unwrap().max(open as usize);
                    prop_assert!(most >= limit, "{} fit into {}", most, limit);
                    prop_assert!([Stuck::Open(limit as u64), Stuck::AtOneMoment(limit as u64)].contains(&stuck), "{:?}", stuck);
                }
            }
        }
    }
}
