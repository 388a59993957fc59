//! Blocks of any sessions are read as they were written.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::history::sqlite::sealed::{
    encoder::Encoder,
    layout::earlier::{APART, TOGETHER, packing::*},
};

prop_compose! {
    fn owners()(known: i32, pid: u32, started_at_us: i64, program_id: i64, more in prop::option::of(vec(any::<u8>(), 1..60)))
        -> OwnerColumns
    {
        OwnerColumns { known, pid, started_at_us, program_id, more }
    }
}

fn session() -> impl Strategy<Value = StoredSession> {
    // Few addresses and owners, so that they come again.
    let address = prop_oneof![
        any::<u8>().prop_map(|last| IpAddr::from([10, 0, 0, last % 8])),
        any::<[u8; 16]>().prop_map(IpAddr::from),
    ];
    let words = (any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>(), any::<i32>());
    let numbers = (any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>(), any::<i64>());
    let ports = (any::<u16>(), any::<u16>());
    (words, numbers, (address.clone(), address), ports, owners()).prop_map(
        |(words, numbers, addresses, ports, owners)| StoredSession {
            host_id: 7,
            netns: numbers.0,
            cookie: numbers.1,
            protocol: words.0,
            family: words.1,
            direction: words.2,
            state: words.3,
            local: SocketAddr::new(addresses.0, ports.0),
            peer: SocketAddr::new(addresses.1, ports.1),
            owners,
            bytes_sent: numbers.2,
            bytes_received: numbers.3,
            opened_at_us: numbers.4,
            opened_known: words.4,
            closed: Some((numbers.5, words.5)),
        },
    )
}

fn decode(codec: i64, bytes: &[u8]) -> Result<Vec<StoredSession>, Damaged> {
    Block::read(7, codec, bytes.to_vec())?.all()
}

fn encode(sessions: &[StoredSession]) -> Vec<u8> {
    Encoder::default().encode(sessions).to_vec()
}

/// Blocks of the same sessions in each form.
fn blocks(sessions: &[StoredSession]) -> [Block; 3] {
    let (count, columns) = (sessions.len(), columns(sessions));
    let forms =
        [(CODEC, encode(sessions)), (APART, pack_apart(count, &columns)), (TOGETHER, pack_together(count, &columns))];
    forms.map(|(codec, bytes)| Block::read(7, codec, bytes).unwrap())
}

/// Sessions that close one after the other, some of which lasted long.
fn in_order() -> impl Strategy<Value = Vec<StoredSession>> {
    let step = (0_i64..50, 0_u32..12, any::<bool>());
    (vec(session(), 0..300), vec(step, 300)).prop_map(|(mut sessions, steps)| {
        let mut now = 4000;
        for (one, (step, lasted, is_in)) in sessions.iter_mut().zip(steps) {
            now += step;
            one.closed = Some((now, 1));
            one.opened_at_us = now - (1_i64 << lasted);
            one.direction = if is_in { Direction::In } else { Direction::Out }.number();
        }
        sessions
    })
}

proptest! {
    #[test]
    fn sessions_are_decoded_as_they_were(sessions in vec(session(), 0..50)) {
        for block in blocks(&sessions) {
            prop_assert_eq!(block.len(), sessions.len());
            prop_assert_eq!(&block.all().unwrap(), &sessions);
        }
    }

    #[test]
    fn a_block_holds_nothing_of_the_one_before(before in vec(session(), 0..50), sessions in vec(session(), 0..50)) {
        let mut encoder = Encoder::default();
        encoder.encode(&before);
        prop_assert_eq!(encoder.encode(&sessions), encode(&sessions));
        let (peers, places) = encoder.peers();
        let met: Vec<IpAddr> = places.iter().map(|place| peers[*place]).collect();
        prop_assert_eq!(met, sessions.iter().map(|one| one.peer.ip()).collect::<Vec<_>>());
    }

    #[test]
    fn some_sessions_are_decoded_as_all_are(sessions in in_order(), which: u64, before: bool) {
        for block in blocks(&sessions) {
            if before {
                block.peers().unwrap();
                block.numbers(Column::LocalPort).unwrap();
            }
            let is_chosen = |at: &usize| which & which.rotate_left(9) >> (at % 64) & 1 == 1;
            let places: Vec<usize> = (0..sessions.len()).filter(is_chosen).collect();
            for places in [&places[..], &places[..places.len().min(3)]] {
                let expected: Vec<_> = places.iter().map(|at| sessions[*at].clone()).collect();
                prop_assert_eq!(block.sessions(places), Ok(expected));
            }
            prop_assert_eq!(block.sessions(&[sessions.len()]), Err(MISSING));
        }
    }

    #[test]
    fn columns_and_their_numbers_are_the_same_in_each_form(sessions in in_order()) {
        let [now, before, first] = blocks(&sessions);
        for column in ALL {
            for block in [&now, &before, &first] {
                for count in [0, sessions.len()] {
                    let values = block.values(column, count).unwrap();
                    let one_by_one: Vec<_> = (0..sessions.len()).map(|at| values.of(at).unwrap()).collect();
                    prop_assert_eq!(first.numbers(column), Ok(one_by_one.as_slice()));
                    prop_assert_eq!(values.of(sessions.len()), Err(MISSING));
                }
            }
        }
        for (at, one) in sessions.iter().enumerate() {
            prop_assert_eq!(now.numbers(Column::LocalPort).unwrap()[at], one.local.port().into());
            prop_assert_eq!(now.peers().unwrap().of(at), Ok(&one.peer.ip()));
            prop_assert_eq!(now.owners().unwrap().of(at), Ok(&one.owners));
        }
    }

    #[test]
    fn a_window_has_those_that_are_in_it(
        sessions in prop_oneof![4 => in_order(), 1 => vec(session(), 0..50)],
        bounds in [0_i64..20_000, 0_i64..20_000, 0_i64..20_000], open in 0_u8..8
    ) {
        let ends = [i64::MIN, i64::MAX, i64::MAX];
        let window: [i64; 3] = std::array::from_fn(|end| if open >> end & 1 == 1 { ends[end] } else { bounds[end] });
        let [after, last, until] = window;
        let is_meant = |one: &StoredSession| {
            let (closed, _) = one.closed.unwrap();
            closed > after && closed <= last && one.opened_at_us <= until
        };
        let expected: Vec<usize> = (0..sessions.len()).filter(|at| is_meant(&sessions[*at])).collect();
        for block in blocks(&sessions) {
            prop_assert_eq!(&block.within(window).unwrap(), &expected);
            for every in [1, 2, 7, 60] {
                let mut places: Vec<usize> = (0..sessions.len()).step_by(every).collect();
                block.keep_within(window, &mut places).unwrap();
                let expected: Vec<usize> = expected.iter().copied().filter(|at| at % every == 0).collect();
                prop_assert_eq!(places, expected);
            }
        }
    }

    #[test]
    fn no_bytes_make_it_fail_otherwise_than_by_saying_so(
        bytes: Vec<u8>, sessions in vec(session(), 1..9), at: prop::sample::Index, to: u8
    ) {
        // As they are, and as if they had been compressed.
        for codec in [CODEC, APART, TOGETHER] {
            drop(decode(codec, &bytes));
        }
        drop(decode(TOGETHER, &squeeze(&bytes)));
        // One byte of a good block is another: of one that is compressed, and of a column before that.
        let columns = columns(&sessions);
        for (codec, mut block) in [(CODEC, encode(&sessions)), (APART, pack_apart(sessions.len(), &columns))] {
            let place = at.index(block.len());
            block[place] = to;
            drop(decode(codec, &block));
            if let Ok(block) = Block::read(7, codec, block) {
                drop(block.within([0, i64::MAX, i64::MAX]));
                drop(block.values(Column::ServicePort, 0).map(|ports| vec![ports.of(0)]));
                drop((0..9).map(|at| block.sessions(&[at])).collect::<Vec<_>>());
            }
        }
        let mut columns = columns;
        let column = &mut columns[at.index(layout::COLUMNS)];
        let place = at.index(column.len());
        column[place] = to;
        drop(decode(TOGETHER, &pack_together(sessions.len(), &columns)));
    }
}

#[test]
fn every_column_has_its_place() {
    assert!(ALL.iter().enumerate().all(|(place, column)| *column as usize == place));
}
