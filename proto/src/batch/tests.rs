//! Batches survive the wire, and nothing that arrives from it makes the reader panic or take more than its bounds.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*, sample::select};
use prost::Message;

use super::*;
use crate::{InvalidMessage, wire};

fn owner() -> impl Strategy<Value = Arc<Owner>> {
    (1..5_u32, option::of(1..9_i64), "[a-z]{0,4}", 0..3_u32).prop_map(|(pid, started, text, uid)| {
        Arc::new(Owner {
            pid,
            started_at: started.map(Timestamp::from_micros),
            process: text.clone(),
            exe: format!("/bin/{text}"),
            uid,
            user: text.clone(),
            container: String::new(),
            command_line: if uid == 0 { String::new() } else { format!("/bin/{text} -x") },
            unit: text,
        })
    })
}

fn end() -> impl Strategy<Value = SocketAddr> {
    let v4 = any::<u32>().prop_map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)));
    // A mapped address is never stored: it is normalised where it is read.
    let v6 = any::<u128>().prop_map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)).to_canonical());
    (prop_oneof![v4, v6], any::<u16>()).prop_map(|(address, port)| SocketAddr::new(address, port))
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (0..4_000_000_000_000_000_i64).prop_map(Timestamp::from_micros)
}

fn known() -> impl Strategy<Value = Known> {
    select(Known::ALL)
}

fn role() -> impl Strategy<Value = Role> {
    prop_oneof![
        Just(Role::Listener),
        (select(Direction::ALL), end()).prop_map(|(direction, peer)| Role::Session { direction, peer }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        Just(Op::Opened),
        Just(Op::Updated),
        Just(Op::Present),
        (moment(), known()).prop_map(|(at, known)| Op::Closed { at, known }),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let words =
        (select(Protocol::ALL), select(Family::ALL), select(SocketState::ALL), select(OwnerKnown::ALL), known());
    let facts = (any::<(u64, u64)>(), end(), moment(), vec(owner(), 0..3), any::<(u64, u64)>());
    (op(), role(), words, facts).prop_map(|(op, role, words, facts)| {
        let (protocol, family, state, owner_known, opened_known) = words;
        let ((netns, cookie), local, opened_at, owners, (bytes_sent, bytes_received)) = facts;
        // UNIX sockets have a path, which nothing else has, and are no sessions.
        let (local, path, role) = match protocol {
            Protocol::Unix => {
                let path = "/é".repeat(usize::from(local.port() % 4));
                (SocketAddr::new(Ipv4Addr::LOCALHOST.into(), local.port()), Some(path.into()), Role::Listener)
            }
            _ => (local, None, role),
        };
        Change {
            op,
            socket: Socket {
                key: SocketKey { netns, cookie },
                protocol,
                family,
                state,
                local,
                path,
                role,
                opened_at,
                opened_known,
                owner_known,
                owners,
                bytes_sent,
                bytes_received,
            },
        }
    })
}

fn batch() -> impl Strategy<Value = Batch> {
    let header = (1..u64::MAX, 1..u64::MAX, select(BatchKind::ALL), any::<[u8; 16]>(), moment(), moment());
    let namespaces = vec((any::<u64>(), "[a-zé:]{0,9}").prop_map(|(netns, name)| NamespaceName { netns, name }), 0..3);
    (header, vec(change(), 0..8), any::<bool>(), namespaces).prop_map(|(header, changes, is_proved, namespaces)| {
        let (epoch, seq, kind, boot_id, observed_since, observed_until) = header;
        let boot_id = BootId::from_array(boot_id);
        let digest = is_proved.then(|| changes.iter().map(|change| &change.socket).collect());
        Batch { epoch, seq, kind, boot_id, observed_since, observed_until, changes, digest, namespaces }
    })
}

/// A list of small numbers, mostly of one length, so that more than the first check is reached.
fn column() -> impl Strategy<Value = Vec<u32>> {
    prop_oneof![9 => vec(0..20_u32, 2), 1 => vec(any::<u32>(), 0..4)]
}

fn signed(column: &[u32]) -> Vec<i32> {
    column.iter().map(|number| number.cast_signed()).collect()
}

fn arbitrary_wire_batch() -> impl Strategy<Value = wire::Batch> {
    let columns = vec(column(), 24);
    let bytes = (vec(any::<u8>(), 0..40), vec(any::<u8>(), 0..40), vec("[a-z]{0,3}", 0..3));
    (columns, bytes, any::<(u64, u64, i32, bool)>()).prop_map(
        |(c, (local_address, peer_address, strings), (epoch, seq, kind, digest))| {
            let wide = |column: &[u32]| column.iter().map(|number| u64::from(*number)).collect::<Vec<_>>();
            let times = |column: &[u32]| column.iter().map(|number| i64::from(*number)).collect::<Vec<_>>();
            let time = Some(prost_types::Timestamp { seconds: 1_795_000_000, nanos: 0 });
            wire::Batch {
                epoch,
                seq,
                kind: kind.rem_euclid(7),
                boot_id: vec![1; 16],
                observed_since: time,
                observed_until: time,
                strings: strings.clone(),
                namespaces: vec![wire::NamespaceName { netns: seq, name: strings.concat() }; c[0].len()],
                digest: digest.then(|| wire::Digest { items: epoch, sums: vec![seq; c[0].len() * 8] }),
                processes: Some(wire::ProcessColumns {
                    pid: c[0].clone(),
                    started_at_us: times(&c[1]),
                    process: c[2].clone(),
                    exe: c[3].clone(),
                    user: c[4].clone(),
                    container: c[5].clone(),
                    unit: c[6].clone(),
                    uid: c[7].clone(),
                    command_line: c[6].clone(),
                }),
                sockets: Some(wire::SocketColumns {
                    op: signed(&c[8]),
                    cookie: wide(&c[9]),
                    netns: wide(&c[10]),
                    protocol: signed(&c[11]),
                    family: signed(&c[12]),
                    state: signed(&c[13]),
                    direction: signed(&c[14]),
                    address_length: c[15].clone(),
                    local_address,
                    local_port: c[16].clone(),
                    peer_address,
                    peer_port: c[17].clone(),
                    opened_at_us: times(&c[18]),
                    opened_known: signed(&c[19]),
                    closed_at_us: times(&c[20]),
                    closed_known: signed(&c[21]),
                    owner_known: signed(&c[22]),
                    owners: c[23].clone(),
                    owner: c[0].clone(),
                    bytes_sent: wide(&c[1]),
                    bytes_received: wide(&c[2]),
                }),
            }
        },
    )
}

proptest! {
    #[test]
    fn a_batch_survives_the_wire(batch in batch()) {
        let bytes = wire::Batch::from(&batch).encode_to_vec();
        let decoded = wire::Batch::decode(bytes.as_slice()).expect("our own bytes");
        prop_assert_eq!(Batch::try_from(decoded), Ok(batch));
    }

    #[test]
    fn whatever_arrives_is_a_batch_within_bounds_or_an_error(wire in arbitrary_wire_batch()) {
        let rows = wire.sockets.as_ref().map_or(0, |sockets| sockets.op.len());
        if let Ok(batch) = Batch::try_from(wire) {
            prop_assert_eq!(batch.changes.len(), rows);
        }
    }

    #[test]
    fn bytes_that_are_no_message_are_refused_or_read(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = wire::SessionRequest::decode(bytes.as_slice()) {
            // Whatever it is, the answer is a value.
            drop(crate::stream::AgentMessage::try_from(wire));
        }
    }
}

fn empty(change: impl FnOnce(&mut wire::Batch)) -> Result<Batch, InvalidMessage> {
    let batch = Batch {
        epoch: 1,
        seq: 1,
        kind: BatchKind::Changes,
        boot_id: BootId::from_array([1; 16]),
        observed_since: Timestamp::from_micros(1),
        observed_until: Timestamp::from_micros(2),
        changes: Vec::new(),
        digest: None,
        namespaces: Vec::new(),
    };
    let mut wire = wire::Batch::from(&batch);
    change(&mut wire);
    Batch::try_from(wire)
}

#[test]
fn what_is_over_a_limit_is_refused_before_it_is_read() {
    let sockets = |change: fn(&mut wire::SocketColumns)| {
        empty(|batch| change(batch.sockets.get_or_insert_default())).expect_err("over a limit").to_string()
    };
    let rows = sockets(|columns| columns.op = vec![1; BATCH_SOCKETS_LIMIT + 1]);
    assert_eq!(rows, "Batch.sockets: 4097 rows are more than 4096");
    let owners = sockets(|columns| columns.owner = vec![0; BATCH_OWNERS_LIMIT + 1]);
    assert_eq!(owners, "Batch.sockets.owner: more than 16384");
    let uneven = sockets(|columns| columns.op = vec![1, 2]);
    assert_eq!(uneven, "Batch.sockets: columns of 2 and of 0 rows");
    let left_over = sockets(|columns| columns.local_address = vec![0; 4]);
    assert_eq!(left_over, "Batch.sockets: more addresses or owners than rows");
    let strings = empty(|batch| batch.strings = vec![String::new(); BATCH_STRINGS_LIMIT + 1]);
    assert_eq!(strings.expect_err("too many").to_string(), "Batch.strings: more than 8192");
    let text = empty(|batch| batch.strings = vec!["x".repeat(BATCH_TEXT_LIMIT + 1)]);
    assert_eq!(text.expect_err("too long").to_string(), "Batch.strings: 4097 bytes are more than 4096");
    let names = |length: usize, count| {
        let named = wire::NamespaceName { netns: 1, name: "x".repeat(length) };
        empty(|batch| batch.namespaces = vec![named; count]).map_err(|error| error.to_string())
    };
    assert!(names(NAMESPACE_NAME_LIMIT, BATCH_NAMESPACES_LIMIT).is_ok());
    assert_eq!(names(1, BATCH_NAMESPACES_LIMIT + 1), Err("Batch.namespaces: more than 128".to_owned()));
    assert_eq!(names(NAMESPACE_NAME_LIMIT + 1, 1), Err("Batch.namespaces: 256 bytes are more than 255".to_owned()));
}

#[test]
fn numbers_begin_with_one() {
    for change in [|batch: &mut wire::Batch| batch.epoch = 0, |batch: &mut wire::Batch| batch.seq = 0] {
        assert_eq!(empty(change).expect_err("zero").to_string(), "Batch.seq: epoch and seq begin with 1");
    }
}
