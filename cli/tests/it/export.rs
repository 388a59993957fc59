//! An export has every session, also when one answer could not hold them.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::Path,
    process::Stdio,
};

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::Field,
};
use serde_json::Value;

use crate::{fleet::Fleet, network::until};

const CONNECTIONS: usize = 150;

/// Held for long enough that a walk sees them, too, and closed one after the other.
const CONNECT: &str = "
import socket, sys, time
l = socket.socket(); l.bind(('127.0.0.1', 4400)); l.listen(512)
held = []
for _ in range(int(sys.argv[1])):
    c = socket.socket(); c.connect(('127.0.0.1', 4400)); held.append((c, l.accept()[0]))
time.sleep(1)
for c, s in held:
    c.close(); s.close(); time.sleep(0.01)
";

/// Held until it is killed.
const HOLD: &str = "
import socket, time
l = socket.socket(); l.bind(('127.0.0.1', 4401)); l.listen(512)
held = [(socket.create_connection(('127.0.0.1', 4401)), l.accept()[0]) for _ in range(60)]
time.sleep(3600)
";

fn identities(sessions: &[Value]) -> BTreeSet<String> {
    let fields = ["direction", "local_port", "peer_port", "opened_at", "closed_at"];
    sessions.iter().map(|one| fields.map(|field| one[field].to_string()).join(" ")).collect()
}

/// The sessions of a Parquet file, as JSON tells them: to the millisecond.
fn sessions_of(file: &str) -> Vec<Value> {
    let value = |name: &str, field: &Field| match field {
        Field::Null => Value::Null,
        Field::Str(text) if name == "owners" => serde_json::from_str(text).unwrap(),
        Field::Str(text) => text.as_str().into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::TimestampMicros(us) => {
            fleetctl::clock::rfc3339(fleetsock_proto::time::Timestamp::from_micros(*us)).into()
        }
        other => panic!("{name}: {other:?}"),
    };
    let reader = SerializedFileReader::new(File::open(file).unwrap()).unwrap();
    let rows = reader.get_row_iter(None).unwrap().map(Result::unwrap);
    rows.map(|row| row.get_column_iter().map(|(name, field)| (name.clone(), value(name, field))).collect()).collect()
}

fn left_over(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    BTreeSet::from_iter(names.filter(|name| name.contains("export"))).into_iter().collect()
}

#[test]
fn an_export_has_every_session_also_when_an_answer_could_not_hold_them() {
    let Some(mut fleet) = Fleet::start(&["server", "web1"]) else { return };
    let ran =
        fleet.network.command("web1", "python3").args(["-c", CONNECT, &CONNECTIONS.to_string()]).output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let all = until("all sessions are known and over", || {
        let (sessions, _) = fleet.items(&["sessions", "--since", "1h", "--port", "4400"]);
        let over = sessions.iter().filter(|session| !session["closed_at"].is_null()).count();
        (over == 2 * CONNECTIONS).then_some(sessions)
    });

    fleet.stop_server();
    let settings = fleet.folder("server/server.toml");
    let text = fs::read_to_string(&settings).unwrap();
    assert!(text.contains("# answer_rows = 1000000"), "{text}");
    fs::write(&settings, text.replace("# answer_rows = 1000000", "answer_rows = 40")).unwrap();
    fleet.serve();
    let (some, meta) = fleet.items(&["sessions", "--since", "1h", "--port", "4400"]);
    assert_eq!((some.len(), &meta["truncated"]), (40, &Value::Bool(true)));

    let folder = fleet.home.path().to_owned();
    let file = folder.join("export.jsonl").display().to_string();
    let export =
        |arguments: &[&str]| fleet.ask(&[&["export"], arguments, &["--since", "1h", "--port", "4400"]].concat());
    let ran = export(&[&file]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.err.contains(&format!("{} sessions in {file}", all.len())), "{}", ran.err);
    let lines = fs::read_to_string(&file).unwrap();
    let exported: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(exported.len(), all.len());
    assert_eq!(identities(&exported), identities(&all));
    let columns = folder.join("export.parquet").display().to_string();
    let ran = export(&[&columns]);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(sessions_of(&columns), exported, "Parquet is on the left, JSON on the right");
    let piped = fleet.fleetctl(&["export", "-", "-o", "parquet", "--since", "1h", "--port", "4400"]).output().unwrap();
    let through_a_pipe = fleet.folder("piped");
    fs::write(&through_a_pipe, piped.stdout).unwrap();
    assert_eq!(sessions_of(&through_a_pipe), exported);
    let closed: Vec<&str> = exported.iter().map(|session| session["closed_at"].as_str().unwrap()).collect();
    assert!(closed.is_sorted_by(|one, other| one >= other), "newest first: {closed:?}");

    let again = export(&[&file]);
    assert_eq!(again.code, 2, "{}", again.err);
    assert!(again.err.contains("is there already") && again.err.contains("--force"), "{}", again.err);
    assert_eq!(export(&[&file, "--force"]).code, 0);
    let out = export(&["-", "-o", "csv", "--columns", "host,peer_port"]);
    assert_eq!((out.code, out.out.lines().count()), (0, all.len() + 1), "{}", out.err);
    assert!(out.out.starts_with("host,peer_port"), "{}", out.out);

    let nobody = folder.join("export-of-nobody.csv").display().to_string();
    let failed = export(&[&nobody, "--host", "nobody"]);
    assert_eq!(failed.code, 6, "{}", failed.err);
    assert_eq!(left_over(&folder), ["export.jsonl", "export.parquet"]);
    more_open_sessions_than_an_answer_holds_are_told(&fleet, &folder);
    a_killed_export_is_no_file(&mut fleet, &folder);
}

fn more_open_sessions_than_an_answer_holds_are_told(fleet: &Fleet, folder: &Path) {
    let before = left_over(folder);
    let _holds = fleet.network.python("web1", HOLD);
    until("more are open than an answer holds", || {
        let (_, meta) = fleet.items(&["sessions", "--port", "4401"]);
        (meta["truncated"] == Value::Bool(true)).then_some(())
    });
    let file = folder.join("export-open.csv").display().to_string();
    let failed = fleet.ask(&["export", &file, "--since", "1h", "--port", "4401"]);
    let words = [
        "error: at least 40 sessions are open at once, and the server tells no more in one answer (limits.answer_rows)",
        "try: export fewer hosts at once, as in --host 'web*', or raise limits.answer_rows in the server's server.toml",
    ];
    assert!(failed.code == 1 && words.iter().all(|words| failed.err.contains(words)), "{failed:?}");
    assert_eq!(left_over(folder), before);
}

/// Where a server answers one question a second, so that an export takes its time.
fn a_killed_export_is_no_file(fleet: &mut Fleet, folder: &Path) {
    fleet.stop_server();
    let settings = fleet.folder("server/server.toml");
    let text = fs::read_to_string(&settings).unwrap();
    assert!(text.contains("# operator_calls_per_s = 20"), "{text}");
    fs::write(&settings, text.replace("# operator_calls_per_s = 20", "operator_calls_per_s = 1")).unwrap();
    fleet.serve();
    for ending in ["csv", "parquet"] {
        let file = folder.join(format!("export-killed.{ending}"));
        let unfinished = folder.join(format!("export-killed.{ending}.unfinished"));
        let mut command = fleet.fleetctl(&["export", file.to_str().unwrap(), "--since", "1h", "--port", "4400"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("the export has begun", || unfinished.exists().then_some(()));
        assert_eq!(child.try_wait().unwrap(), None, "it is over already");
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!file.exists(), "{:?}", left_over(folder));
        if ending == "parquet" {
            assert!(SerializedFileReader::new(File::open(unfinished).unwrap()).is_err());
        }
    }
}
