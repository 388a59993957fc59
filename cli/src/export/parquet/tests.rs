use std::fs::File;

use fleetsock_proto::{
    host::{HostId, HostState},
    owner::Owner,
    session::OtherEnd,
    socket::{Direction, Family, Known, OwnerKnown, Protocol, SocketState},
};
use jiff::tz::TimeZone;
use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};

use super::*;
use crate::{
    clock::{self, Clock},
    record::{Record, Times},
    render::Format,
};

const NOW: Timestamp = Timestamp::from_micros(1_795_510_991_123_456);

fn owner(process: &str) -> Owner {
    Owner {
        pid: u32::MAX,
        started_at: Some(NOW),
        process: process.to_owned(),
        exe: "/usr/bin/ü \"quoted\"".to_owned(),
        uid: 0,
        user: "root".to_owned(),
        container: "0123456789ab".to_owned(),
        unit: "x.service".to_owned(),
        command_line: "x\t--y\n".to_owned(),
    }
}

/// A session of which everything is known, with the largest numbers.
fn known(n: u64) -> Session {
    let other = OtherEnd {
        host_id: HostId::from_array([2; 16]),
        host: "db1".to_owned(),
        netns: 5,
        owner_known: OwnerKnown::Exact,
        owner: Some(owner("postgres")),
    };
    Session {
        host_id: HostId::from_array([1; 16]),
        host: format!("web{n}"),
        host_state: HostState::Online,
        protocol: Protocol::Tcp,
        family: Family::Ipv4,
        direction: Direction::Out,
        local: "10.0.0.1:65535".parse().unwrap(),
        peer: "10.0.0.2:5432".parse().unwrap(),
        peer_host: "db1".to_owned(),
        state: SocketState::Established,
        netns: u64::MAX,
        netns_name: "blue".to_owned(),
        owner_known: OwnerKnown::Exact,
        owners: vec![owner("curl"), owner("worker")],
        opened_at: Timestamp::from_micros(NOW.as_micros() - 5_000_001 - i64::try_from(n).unwrap()),
        opened_known: Known::Event,
        closed: Some((NOW, Known::Lost)),
        bytes_sent: u64::MAX,
        bytes_received: n + 1,
        other_end: Some(Box::new(other)),
    }
}

/// One of which nothing is known that need not be.
fn unknown(n: u64) -> Session {
    Session {
        host: format!("web{n}"),
        local: "10.0.0.1:65000".parse().unwrap(),
        peer: "10.0.0.2:65001".parse().unwrap(),
        peer_host: String::new(),
        netns_name: String::new(),
        owner_known: OwnerKnown::None,
        owners: Vec::new(),
        closed: None,
        bytes_sent: 0,
        bytes_received: 0,
        other_end: None,
        ..known(n)
    }
}

fn sessions(count: u64) -> Vec<Session> {
    (0..count).map(|n| if n % 3 == 1 { unknown(n) } else { known(n) }).collect()
}

fn view() -> View {
    View { clock: Clock::at(NOW, TimeZone::UTC), times: Times::Relative, until: NOW }
}

fn selection(asked: &[&str]) -> Selection<Session> {
    let asked: Vec<String> = asked.iter().map(|name| (*name).to_owned()).collect();
    Selection::new(&asked, Format::Parquet, &[]).unwrap()
}

/// What is written of sessions in chunks, up to the end or before it.
fn written(sessions: &[Session], limits: GroupLimits) -> (Vec<u8>, Vec<u8>) {
    let mut parquet = Parquet::new(selection(&[]), view(), limits).unwrap();
    let mut out = Vec::new();
    sessions.chunks(7).for_each(|chunk| parquet.rows(chunk, &mut out).unwrap());
    let before = out.clone();
    parquet.finish(&Meta::none(), &mut out).unwrap();
    (before, out)
}

fn opened(bytes: &[u8]) -> Result<SerializedFileReader<File>, ParquetError> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    SerializedFileReader::new(file)
}

/// A value as the other machine formats tell it.
fn told(field: &Field, expected: &Value) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(text) if expected.is_array() => serde_json::from_str(text).unwrap(),
        Field::Str(text) => text.as_str().into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::TimestampMicros(us) => clock::rfc3339(Timestamp::from_micros(*us)).into(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_read_is_what_was_written_whatever_the_row_groups() {
    let sessions = sessions(100);
    for (limits, groups) in [
        (GroupLimits::default(), 1),
        (GroupLimits { rows: 9, ..GroupLimits::default() }, 12),
        (GroupLimits { bytes: 1, ..GroupLimits::default() }, 100),
        (GroupLimits { rows: 100, ..GroupLimits::default() }, 1),
    ] {
        let reader = opened(&written(&sessions, limits).1).unwrap();
        assert_eq!(
            (reader.num_row_groups(), reader.metadata().file_metadata().num_rows()),
            (groups, 100),
            "{limits:?}"
        );
        let rows: Vec<_> = reader.get_row_iter(None).unwrap().map(Result::unwrap).collect();
        assert_eq!(rows.len(), sessions.len());
        for (row, session) in rows.iter().zip(&sessions) {
            let (all, view) = (selection(&[]), view());
            let expected = all.values(session, &view);
            let mut fields = row.get_column_iter();
            for (name, value) in expected {
                let (found, field) = fields.next().unwrap();
                assert_eq!((found.as_str(), told(field, &value)), (name, value));
            }
            assert!(fields.next().is_none());
        }
    }
}

#[test]
fn moments_are_told_to_the_microsecond_and_numbers_have_their_own_types() {
    let reader = opened(&written(&[known(7)], GroupLimits::default()).1).unwrap();
    let row = reader.get_row_iter(None).unwrap().next().unwrap().unwrap();
    let field = |name: &str| row.get_column_iter().find(|(found, _)| *found == name).unwrap().1.clone();
    for (name, expected) in [
        ("opened_at", Field::TimestampMicros(NOW.as_micros() - 5_000_008)),
        ("closed_at", Field::TimestampMicros(NOW.as_micros())),
        ("local_port", Field::UShort(u16::MAX)),
        ("pid", Field::UInt(u32::MAX)),
        ("netns", Field::ULong(u64::MAX)),
        ("bytes_sent", Field::ULong(u64::MAX)),
        ("duration_ms", Field::ULong(5_000)),
    ] {
        assert_eq!(field(name), expected, "{name}");
    }
}

#[test]
fn what_every_session_has_is_required_and_nothing_else() {
    let view = view();
    for field in Session::fields() {
        let column = Column::new(field.name);
        let is_missing = (field.value)(&unknown(1), &view).is_null();
        assert_eq!(column.presence == Presence::Required, !is_missing, "{}", field.name);
        let value = (field.value)(&known(1), &view);
        assert!(!value.is_null() && column.kind.cell(&known(1), &value).is_some(), "{}: {value}", field.name);
    }
    let mut port = Column::new("local_port");
    for wrong in [Value::Null, Value::from("ssh"), Value::from(65_536), Value::from(-1)] {
        let error = port.push(&known(1), &wrong).unwrap_err();
        assert!(error.to_string().starts_with("local_port cannot be "), "{error}");
    }
}

#[test]
fn without_its_end_a_file_is_none_and_without_rows_it_is_one() {
    let (before, whole) = written(&sessions(50), GroupLimits { rows: 10, ..GroupLimits::default() });
    assert!(before.len() > 1000 && opened(&before).is_err(), "{} bytes", before.len());
    for cut in [1, 8, 100, whole.len() / 2] {
        assert!(opened(&whole[..whole.len() - cut]).is_err(), "{cut}");
    }
    let empty = opened(&written(&[], GroupLimits::default()).1).unwrap();
    let columns = empty.metadata().file_metadata().schema_descr().num_columns();
    assert_eq!((empty.num_row_groups(), columns), (0, Session::fields().len()));
}

#[test]
fn a_column_that_is_named_twice_is_refused() {
    let refused = Parquet::new(selection(&["host", "peer", "peer_port"]), view(), GroupLimits::default());
    let failure = refused.map(drop).unwrap_err();
    assert!(failure.exit == Exit::Usage && failure.message.contains("`peer_port` is named twice"), "{failure:?}");
}
