//! The same sessions by other ways, in the same run: bare SQLite, the `sqlite3` program, PostgreSQL.

pub(crate) mod bare;
mod programs;
mod rows;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_server::history::{
    History,
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};

use self::{
    bare::{HOST_INDEX, PEER_INDEX},
    programs::Postgres,
};
use crate::{
    clock::{advance, clock},
    files,
    fleet::{HOSTS, Reports},
    load::enrol,
    memory::Memory,
    pace::{make_ready, store},
    table::Table,
};

/// Sessions whose batches are made ready before the clock runs again.
const READY: u64 = 500_000;
/// How long what is over is kept in the history that is compared: the clock is set beyond that in the end.
const KEPT: Duration = Duration::from_secs(1000 * 86_400);

/// What our own way took.
struct Ours {
    sessions: u64,
    /// Seconds to store them, seconds to seal them.
    stored: f64,
    sealed: f64,
    /// Bytes of the sealed file.
    bytes: f64,
    /// MiB of memory that sealing took: at most, and in the end.
    memory: (f64, f64),
    /// Seconds to drop it.
    dropped: f64,
}

/// Loads so many sessions in all ways, one after the other.
pub(crate) async fn compare(place: &Path, sessions: u64, table: &mut Table) {
    let ours = ours(&place.join("compared"), sessions).await;
    fs::remove_dir_all(place.join("compared")).unwrap();
    let rate = |seconds: f64| ours.sessions as f64 / seconds / 1000.0;
    table.figure("sealed", format!("{:.0} k sessions/s, {:.2} s", rate(ours.sealed), ours.sealed));
    let (most, end) = ours.memory;
    table.figure("memory that sealing took, at most and in the end", format!("{most:.1} and {end:.1} MiB"));
    let hot = (rate(ours.stored), "k sessions/s");
    let whole = (rate(ours.stored + ours.sealed), "k sessions/s");
    let stored = "stored, each batch durable";
    let sealed = "stored and then sealed";

    let bare = place.join("bare.db");
    let took = bare::insert(&bare, sessions, "");
    table.beside(stored, hot, ("bare insert in one transaction, no index", rate(took)));
    remove(&bare);
    let took = bare::insert(&bare, sessions, HOST_INDEX);
    table.beside(stored, hot, ("bare insert in one transaction, the host index", rate(took)));
    let deleted = bare::delete(&bare);
    table.beside(
        "dropping them all as a file",
        (ours.dropped, "s"),
        ("deleting their rows from the bare table", deleted),
    );
    remove(&bare);
    let deleted = bare::delete_day(&bare, ours.sessions);
    let beside = ("deleting one of two days from a table with both indexes", deleted);
    table.beside("dropping them all as a file", (ours.dropped, "s"), beside);
    remove(&bare);

    let csv = place.join("sessions.csv");
    let written = rows::write_csv(&csv, sessions);
    assert_eq!(written, ours.sessions);
    fs::set_permissions(&csv, fs::Permissions::from_mode(0o644)).unwrap();
    match programs::sqlite3_import(place, &csv) {
        Ok(took) => table.beside(sealed, whole, ("`sqlite3` .import with both indexes", rate(took))),
        Err(problem) => table.figure("`sqlite3` .import with both indexes", format!("left out: {problem}")),
    }
    match postgres(place, &csv) {
        Ok([(one, _), (both, bytes)]) => {
            table.beside(stored, hot, ("PostgreSQL COPY with the host index", rate(one)));
            table.beside(sealed, whole, ("PostgreSQL COPY with both indexes", rate(both)));
            let each = |bytes: f64| bytes / ours.sessions as f64;
            let beside = ("PostgreSQL with both indexes", each(bytes));
            table.beside("on the disk, sealed, peers included", (each(ours.bytes), "B a session"), beside);
        }
        Err(problem) => table.figure("PostgreSQL COPY", format!("left out: {problem}")),
    }
    fs::remove_file(csv).unwrap();
}

/// PostgreSQL with one index, and with both.
fn postgres(place: &Path, csv: &Path) -> Result<[(f64, f64); 2], String> {
    let postgres = Postgres::start(place)?;
    let one = postgres.copy(csv, &[HOST_INDEX])?;
    let both = postgres.copy(csv, &[HOST_INDEX, PEER_INDEX])?;
    Ok([one, both])
}

fn remove(database: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let file = format!("{}{suffix}", database.display());
        if Path::new(&file).exists() {
            fs::remove_file(file).unwrap();
        }
    }
}

/// Whether a file of this folder still has its room, and no name any more.
fn has_room(folder: &Path) -> bool {
    let descriptors = fs::read_dir("/proc/self/fd").unwrap();
    let mut links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.any(|link| link.starts_with(folder) && link.to_string_lossy().ends_with("(deleted)"))
}

/// Stores the sessions, seals them, drops them and gives back their room.
async fn ours(folder: &Path, sessions: u64) -> Ours {
    let total: u64 = Reports::of(0..HOSTS, sessions).map(|report| report.sessions.len() as u64).sum();
    let keeping = Keeping { part_rows: total as i64, kept: Some(KEPT), sums: None };
    let sealing = Sealing { pause: Duration::from_millis(2), stays: Duration::ZERO };
    let options = Options { keeping, sealing, clock, ..Options::default() };
    let history = Arc::new(SqliteHistory::open(folder, options).unwrap());
    let hosts = enrol(&history, HOSTS).await;
    let mut reports = Reports::of(0..HOSTS, sessions);
    let mut stored = Duration::ZERO;
    loop {
        let ready = make_ready(&mut reports, &hosts, READY);
        if ready.is_empty() {
            break;
        }
        stored += store(&history, ready).await;
    }
    // The file is complete; that is looked at once a second, when there is something to do.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    history.probe().await.unwrap();
    let (begun, watched) = (Instant::now(), Memory::watch());
    while files(folder, ".sealed").1 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let sealed = begun.elapsed();
    while files(folder, ".db").1 > 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (bytes, memory) = (files(folder, ".sealed").0 as f64, watched.grown());
    advance(KEPT * 2);
    history.probe().await.unwrap();
    // The writer drops it before it answers again.
    let begun = Instant::now();
    history.probe().await.unwrap();
    assert_eq!(files(folder, ".sealed"), (0, 0));
    while has_room(folder) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let dropped = begun.elapsed();
    history.close().await.unwrap();
    let [stored, sealed, dropped] = [stored, sealed, dropped].map(|time| time.as_secs_f64());
    Ours { sessions: total, stored, sealed, bytes, memory, dropped }
}
