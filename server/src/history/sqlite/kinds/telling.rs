//! What is stored of kinds held against what was made of them, and the sessions that these were made of against those of the file, which
//! come in another order.

use super::{Hours, Kind, Told};
use crate::history::hashing::folded;

/// Sums up of which kinds sessions are and when they closed, in any order, and what is told of the kinds, in any order. Two tellings of
/// the same are equal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::history::sqlite) struct Telling {
    sessions: u64,
    kinds: u64,
}

impl Telling {
    /// Adds a session that closed in an hour.
    pub(in crate::history::sqlite) fn session(&mut self, kind: Kind, hour: i64) {
        self.sessions = self.sessions.wrapping_add(folded((kind, hour)));
    }

    /// Adds what is told of a kind.
    pub(super) fn kind(&mut self, (kind, Hours { first, last }): Told) {
        self.kinds = self.kinds.wrapping_add(folded((kind, first, last)));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

    use proptest::{collection::vec, prelude::*};
    use rusqlite::Connection;

    use super::*;
    use crate::history::sqlite::{
        kinds::{Adding, Looking, Service},
        schema::Kind as File,
        sealed::{Filter, GoesOn},
    };

    type Session = (Kind, i64);

    fn sessions() -> impl Strategy<Value = Vec<Session>> {
        let peer = prop_oneof![
            (0_u8..20).prop_map(|n| IpAddr::from([10, 0, 0, n])),
            (0_u16..9).prop_map(|n| IpAddr::from([n, 1, 1, 1, 1, 1, 1, n]))
        ];
        let service = (0_u32..40).prop_map(|n| Service::numbered(6 * 131_072 + (n % 2) * 65_536 + n));
        let kind =
            (peer, 0_i64..3, service).prop_map(|(peer, host_id, service)| Kind { peer: peer.into(), host_id, service });
        vec((kind, 5_i64..80), 1..400)
    }

    /// A file with the kinds of sessions, and what is told of them.
    fn file(sessions: &[Session]) -> (Connection, Telling) {
        let mut sealed = Connection::open_in_memory().unwrap();
        File::Sealed.runner().run(&mut sealed).unwrap();
        let mut sorted = sessions.to_vec();
        sorted.sort_by_key(|(Kind { peer, host_id, .. }, _)| (*peer, *host_id));
        let mut adding = Adding::new(&sealed, 5, sessions.len() as u64);
        for (Kind { peer, host_id, service }, hour) in sorted {
            adding.add((peer.address(), host_id), service, hour).unwrap();
        }
        let telling = adding.finish().unwrap();
        (sealed, telling)
    }

    fn of_sessions(sessions: &[Session]) -> Telling {
        let mut telling = Telling::default();
        sessions.iter().for_each(|(kind, hour)| telling.session(*kind, *hour));
        telling
    }

    fn all_are_told(sealed: &Connection, telling: &mut Telling) -> Option<bool> {
        let goes_on: GoesOn = Arc::new(|| true);
        telling.add_told(sealed, &goes_on).ok()
    }

    proptest! {
        #[test]
        fn what_is_told_of_kinds_is_what_their_sessions_say(sessions in sessions(), others in sessions()) {
            let (sealed, made) = file(&sessions);
            let mut read = of_sessions(&sessions);
            prop_assert_eq!(all_are_told(&sealed, &mut read), Some(true));
            prop_assert_eq!(&read, &made);
            let mut expected: BTreeMap<Kind, (i64, i64)> = BTreeMap::new();
            for (kind, hour) in &sessions {
                let (first, last) = expected.entry(*kind).or_insert((*hour, *hour));
                (*first, *last) = ((*first).min(*hour), (*last).max(*hour));
            }
            let filter = Filter::<Kind>::of_file(&sealed).unwrap();
            prop_assert!(expected.keys().all(|kind| filter.may_have(kind)));
            let mut looking = Looking::of(&sealed);
            // In their order, and in none.
            let asked = expected.keys().chain(others.iter().map(|(kind, _)| kind)).chain(sessions.iter().map(|(kind, _)| kind));
            for kind in asked {
                let found = looking.find(kind).unwrap().map(|Hours { first, last }| (first, last));
                prop_assert_eq!(found, expected.get(kind).copied());
            }
        }

        #[test]
        fn whoever_leaves_out_or_changes_something_tells_something_else(sessions in sessions(), at: prop::sample::Index) {
            let (sealed, made) = file(&sessions);
            let at = at.index(sessions.len());
            let mut fewer = sessions.clone();
            fewer.remove(at);
            let mut later = sessions.clone();
            later[at].1 += 1;
            for others in [fewer, later] {
                let mut read = of_sessions(&others);
                prop_assert_eq!(all_are_told(&sealed, &mut read), Some(true));
                prop_assert_ne!(&read, &made);
            }
            let mut read = of_sessions(&sessions);
            sealed.execute("DELETE FROM kinds WHERE service = (SELECT max(service) FROM kinds)", []).unwrap();
            prop_assert_eq!(all_are_told(&sealed, &mut read), Some(true));
            prop_assert_ne!(read, made);
        }
    }

    #[test]
    fn a_stretch_that_is_in_another_place_than_its_key_says_is_found_out() {
        let kind = |n: u8| Kind { peer: IpAddr::from([10, 0, 0, n]).into(), host_id: 1, service: Service::numbered(7) };
        let (sealed, _) = file(&[(kind(1), 5), (kind(2), 6)]);
        assert_eq!(all_are_told(&sealed, &mut Telling::default()), Some(true));
        sealed.execute("UPDATE kinds SET host_id = 2", []).unwrap();
        assert_eq!(all_are_told(&sealed, &mut Telling::default()), Some(false));
        sealed.execute("UPDATE kinds SET host_id = 1, kinds = x'0004'", []).unwrap();
        assert_eq!(all_are_told(&sealed, &mut Telling::default()), Some(false), "one of nothing");
        sealed.execute("UPDATE kinds SET kinds = x'0007'", []).unwrap();
        assert_eq!(all_are_told(&sealed, &mut Telling::default()), None, "it is damaged");
    }
}
