//! How long an acknowledgement takes at a steady rate: while nothing is sealed, while the file of a day is, and beside an
//! append of as many bytes to a file that is made durable as well.

use std::{
    fs::File,
    io::Write,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use fleetsock_server::history::{
    History,
    sqlite::{Keeping, Options, Sealing, SqliteHistory},
};

use crate::{
    files,
    fleet::{DAY_SESSIONS, HOSTS, Reports},
    load::enrol,
    pace::{RATE, make_ready, steadily, store},
    table::{Table, p50_p99},
};

/// How long each is measured, where nothing ends it.
const MEASURED: Duration = Duration::from_secs(20);
/// Sessions that are made ready at once.
const READY: u64 = 500_000;
/// Bytes of a row, about.
const ROW_BYTES: usize = 76;
/// Rows of a batch, on average.
const BATCH_ROWS: usize = 55;

/// Measures them with about so many sessions in the file of a day.
pub(crate) async fn measure(place: &Path, sessions: u64, table: &mut Table) {
    let folder = place.join("acknowledged");
    let steady = (RATE * 1.5 * MEASURED.as_secs_f64()) as u64;
    // The file must not be complete before it is to be.
    let day = sessions.clamp(2 * steady, DAY_SESSIONS);
    let keeping = Keeping { part_rows: day as i64, ..Keeping::default() };
    let sealing = Sealing { pause: Duration::from_millis(20), stays: Duration::ZERO };
    let history = Arc::new(SqliteHistory::open(&folder, Options { keeping, sealing, ..Options::default() }).unwrap());
    let hosts = enrol(&history, HOSTS).await;
    let mut reports = Reports::of(0..HOSTS, 10 * day);
    let mut left = day.saturating_sub(steady);
    while left > 0 {
        let some = left.min(READY);
        store(&history, make_ready(&mut reports, &hosts, some)).await;
        left -= some;
    }
    let (raw, raw_late) = append(&place.join("appended"));
    let (idle, idle_late) = p50_p99(steadily(&history, &hosts, &mut reports, |since| since < MEASURED).await);
    store(&history, make_ready(&mut reports, &hosts, steady)).await;
    // That the file is complete is seen once a second, when there is something to do.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    history.probe().await.unwrap();
    while files(&folder, ".unfinished").1 == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let is_sealing = |_| files(&folder, ".sealed").1 == 0;
    let (sealing, sealing_late) = p50_p99(steadily(&history, &hosts, &mut reports, is_sealing).await);
    history.close().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let append = "append and fdatasync of as many bytes";
    table.beside("acknowledged at 20,000 rows/s, p50", (idle, "ms"), (append, raw));
    table.beside("acknowledged at 20,000 rows/s, p99", (idle_late, "ms"), (append, raw_late));
    table.beside("the same while a day is sealed, p50", (sealing, "ms"), ("while nothing is", idle));
    table.beside("the same while a day is sealed, p99", (sealing_late, "ms"), ("while nothing is", idle_late));
}

/// Appends to a file at the same rate; p50 and p99 in milliseconds.
fn append(path: &Path) -> (f64, f64) {
    let mut file = File::create(path).unwrap();
    let bytes = vec![7; ROW_BYTES * BATCH_ROWS];
    let pause = Duration::from_secs_f64(BATCH_ROWS as f64 / RATE);
    let (begun, mut ms) = (Instant::now(), Vec::new());
    while begun.elapsed() < MEASURED {
        let at = Instant::now();
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        ms.push(at.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    std::fs::remove_file(path).unwrap();
    p50_p99(ms)
}
