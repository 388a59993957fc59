//! The history beside `tcplife`, which hears of the same sockets by BPF on the same tracepoint, row by row.

use super::{
    Programs, Scope, Session, fleet, history, referee,
    referees::{Heard, Tcplife},
    say, side_by_side,
};

/// How much longer or shorter a session may be than the same one of tcplife, milliseconds: tcplife begins when the connection
/// is established, and is as exact as the history otherwise.
const LASTED_MS: f64 = 50.0;

#[test]
fn the_history_of_real_programs_equals_what_tcplife_heard() {
    if std::env::var_os("FLEETSOCK_TCPLIFE").is_none() {
        eprintln!("skipped: agents of other tests that listen by perf would be deaf; FLEETSOCK_TCPLIFE=1 runs it");
        return;
    }
    let Some(fleet) = fleet() else { return };
    let scope = Scope::new(&fleet);
    let programs = Programs::start(&fleet, &scope);
    let folder = tempfile::tempdir().unwrap();
    let Some(tcplife) = referee("tcplife", Tcplife::start(&fleet, &scope, folder.path())) else { return };
    programs.work(1);
    let heard = tcplife.end(&scope);

    let sessions = history(&fleet, &scope);
    let (both, ours, theirs) =
        side_by_side(&sessions, &heard, |row: &Session| (row.local, row.peer), |row| vec![(row.local, row.peer)]);
    let is_other = |(session, heard): &&(&Session, &Heard)| {
        // Of what was accepted tcplife often has a stranger: whoever runs when the last packet arrives.
        let is_same = (session.pid, &session.process) == (heard.pid, &heard.process);
        let is_of_another = session.direction == "out" && !is_same;
        is_of_another || (session.lasted_ms - heard.lasted_ms).abs() > LASTED_MS
    };
    let others: Vec<_> = both.iter().filter(is_other).collect();
    say(&format!(
        "{} rows of tcplife, {} of the history; {} have no session, {} no row, {} another length or process",
        heard.len(),
        both.len() + ours.len(),
        theirs.len(),
        ours.len(),
        others.len(),
    ));
    assert!(theirs.is_empty(), "the history has none of these: {theirs:#?}");
    assert!(ours.is_empty(), "tcplife has none of these: {ours:#?}");
    assert!(others.is_empty(), "{others:#?}");
    assert!(heard.len() > 1000, "there was hardly any traffic");
}
