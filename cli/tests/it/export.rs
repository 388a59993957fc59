//! An export has every session, also when one answer could not hold them.

use std::{collections::BTreeSet, fs, path::Path};

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

fn identities(sessions: &[Value]) -> BTreeSet<String> {
    let fields = ["direction", "local_port", "peer_port", "opened_at", "closed_at"];
    sessions.iter().map(|one| fields.map(|field| one[field].to_string()).join(" ")).collect()
}

fn left_over(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("export")).collect()
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
    assert_eq!(left_over(&folder), ["export.jsonl"]);
}
