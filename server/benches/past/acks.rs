//! How long an acknowledgement takes at a steady rate, in windows that alternate: while the file of a day is sealed, and
//! while nothing is. Each window has beside it an append of as many bytes to a file that is made durable as well.
//!
//! What the disk does for others is in some of the windows, so that of the windows of a kind the middle one counts; they are
//! all about as long, because a longer one meets more. The worst of each kind is told too: there may be stages of sealing
//! that are in a few windows only.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use fleetsock_proto::host::HostId;
use fleetsock_server::history::sqlite::{Keeping, Options, Sealing, SqliteHistory};

use crate::{
    files,
    fleet::{HOSTS, Reports},
    load::enrol,
    pace::{Acknowledged, RATE, make_ready, steadily, store},
    table::{Table, digits, median, p50_p99},
};

/// How long a window is; a day is sealed in several.
const WINDOW: Duration = Duration::from_secs(10);
/// How often it is looked whether a day is sealed: what wakes often gives others the core sooner, and the idle windows have no
/// such thread.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long is appended beside each window.
const APPENDED: Duration = Duration::from_secs(3);
/// How long it takes at the steady rate until a file is complete that is almost.
const BEFORE: Duration = Duration::from_secs(1);
/// Sessions that are made ready at once.
const READY: u64 = 500_000;
/// Bytes of a row, about.
const ROW_BYTES: usize = 76;
/// Rows of a batch, on average.
const BATCH_ROWS: usize = 55;

/// p50 and p99 in milliseconds, of windows of one kind.
#[derive(Default)]
struct Windows {
    acknowledged: Vec<(f64, f64)>,
    appended: Vec<(f64, f64)>,
}

impl Windows {
    fn add(&mut self, kind: &str, acknowledged: Vec<f64>) {
        let (count, most) = (acknowledged.len(), acknowledged.iter().copied().fold(0.0, f64::max));
        let of = p50_p99(acknowledged);
        let [p50, p99, most] = [of.0, of.1, most].map(digits);
        eprintln!("{kind}: {count} acknowledged, p50 {p50}, p99 {p99}, at most {most} ms");
        self.acknowledged.push(of);
    }

    /// Appends before the windows that follow.
    fn append(&mut self, path: &Path) {
        let of = append(path);
        eprintln!("appended: p50 {}, p99 {} ms", digits(of.0), digits(of.1));
        self.appended.push(of);
    }
}

/// The middle of all windows, of p50 and of p99.
fn middle(windows: &[(f64, f64)]) -> (f64, f64) {
    let middle = |of: fn(&(f64, f64)) -> f64| median(windows.iter().map(of).collect());
    (middle(|window| window.0), middle(|window| window.1))
}

/// The largest p99.
fn worst(windows: &[(f64, f64)]) -> f64 {
    windows.iter().map(|window| window.1).fold(0.0, f64::max)
}

/// The history that is measured.
struct Measured {
    folder: PathBuf,
    history: Arc<SqliteHistory>,
    hosts: Vec<HostId>,
    reports: Reports,
    /// Sessions of a file, and of the one that is written to about so many.
    day: u64,
    stored: u64,
}

impl Measured {
    async fn begin(folder: PathBuf, day: u64, pairs: usize) -> Measured {
        let keeping = Keeping { part_rows: day as i64, ..Keeping::default() };
        let sealing = Sealing { pause: Duration::from_millis(20), stays: Duration::ZERO };
        let options = Options { keeping, sealing, ..Options::default() };
        let history = Arc::new(SqliteHistory::open(&folder, options).unwrap());
        let hosts = enrol(&history, HOSTS).await;
        let reports = Reports::of(0..HOSTS, 2 * day * (pairs as u64 + 2));
        Measured { folder, history, hosts, reports, day, stored: 0 }
    }

    /// Reports at the steady rate for as long as it is wanted.
    async fn report(&mut self, wanted: impl Fn(Duration) -> bool) -> Vec<Acknowledged> {
        let all = steadily(&self.history, &self.hosts, &mut self.reports, wanted).await;
        self.stored += all.iter().map(|one| one.rows).sum::<u64>();
        all
    }

    async fn while_idle(&mut self) -> Vec<f64> {
        self.report(|since| since < WINDOW).await.into_iter().map(|one| one.ms).collect()
    }

    /// Fills the file as fast as it goes until it is almost complete.
    async fn fill(&mut self) {
        let almost = self.day.saturating_sub((RATE * BEFORE.as_secs_f64()) as u64);
        while self.stored < almost {
            let some = (almost - self.stored).min(READY);
            let ready = make_ready(&mut self.reports, &self.hosts, some);
            self.stored += ready.iter().flatten().map(|(_, batch)| batch.changes.len() as u64).sum::<u64>();
            store(&self.history, ready).await;
        }
    }

    /// Completes the file at the steady rate, and goes on until its rows are gone; what was acknowledged while it was sealed,
    /// by windows, and for how long.
    async fn while_sealing(&mut self) -> (Vec<Vec<f64>>, Duration) {
        let (folder, is_over) = (self.folder.clone(), Arc::new(AtomicBool::new(false)));
        let watch = {
            let is_over = Arc::clone(&is_over);
            std::thread::spawn(move || {
                let wait = |until: &dyn Fn() -> bool| {
                    while !until() {
                        std::thread::sleep(LOOK_EVERY);
                    }
                    Instant::now()
                };
                let begun = wait(&|| files(&folder, ".unfinished").1 > 0);
                let ended = wait(&|| files(&folder, ".unfinished").1 == 0 && files(&folder, ".db").1 == 1);
                is_over.store(true, Relaxed);
                (begun, ended)
            })
        };
        self.stored = 0;
        let all = self.report(|_| !is_over.load(Relaxed)).await;
        let (begun, ended) = watch.join().unwrap();
        let took = ended - begun;
        // Of about the same length.
        let count = (took.as_secs_f64() / WINDOW.as_secs_f64()).round().max(1.0);
        let mut windows = vec![Vec::new(); count as usize];
        for one in all.iter().filter(|one| (begun..ended).contains(&one.due)) {
            let part = (one.due - begun).as_secs_f64() / took.as_secs_f64();
            windows[(part * count) as usize].push(one.ms);
        }
        windows.retain(|window| !window.is_empty());
        (windows, took)
    }
}

/// Measures them with so many sessions in the file of a day, in so many windows of each kind.
pub(crate) async fn measure(place: &Path, (day, pairs): (u64, usize), table: &mut Table) {
    let folder = place.join("acknowledged");
    let mut measured = Measured::begin(folder.clone(), day, pairs).await;
    let (mut idle, mut sealing) = (Windows::default(), Windows::default());
    let appended = place.join("appended");
    for _ in 0..pairs {
        measured.fill().await;
        sealing.append(&appended);
        let (windows, took) = measured.while_sealing().await;
        eprintln!("{day} sessions sealed, and their rows gone, after {:.1} s", took.as_secs_f64());
        windows.into_iter().for_each(|window| sealing.add("sealing", window));
        idle.append(&appended);
        idle.add("nothing is sealed", measured.while_idle().await);
    }
    measured.history.close().await.unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let ((raw, raw_late), (beside, beside_late)) = (middle(&idle.appended), middle(&sealing.appended));
    let ((p50, p99), (busy, busy_late)) = (middle(&idle.acknowledged), middle(&sealing.acknowledged));
    let (worst, busy_worst) = (worst(&idle.acknowledged), worst(&sealing.acknowledged));
    let append = "append and fdatasync of as many bytes";
    table.beside("acknowledged at 20,000 rows/s, p50", (p50, "ms"), (append, raw));
    table.beside("acknowledged at 20,000 rows/s, p99", (p99, "ms"), (append, raw_late));
    let same = format!("the same while {day} sessions are sealed");
    table.beside(&format!("{same}, p50"), (busy, "ms"), ("while nothing is", p50));
    table.beside(&format!("{same}, p99"), (busy_late, "ms"), ("while nothing is", p99));
    table.beside(&format!("{same}, p99 of the worst window"), (busy_worst, "ms"), ("while nothing is", worst));
    table.beside("append and fdatasync before that, p50", (beside, "ms"), ("before the others", raw));
    table.beside("append and fdatasync before that, p99", (beside_late, "ms"), ("before the others", raw_late));
}

/// Appends to a file at the same rate; p50 and p99 in milliseconds.
fn append(path: &Path) -> (f64, f64) {
    let mut file = File::create(path).unwrap();
    let bytes = vec![7; ROW_BYTES * BATCH_ROWS];
    let pause = Duration::from_secs_f64(BATCH_ROWS as f64 / RATE);
    let (begun, mut ms) = (Instant::now(), Vec::new());
    while begun.elapsed() < APPENDED {
        let at = Instant::now();
        file.write_all(&bytes).unwrap();
        file.sync_data().unwrap();
        ms.push(at.elapsed().as_secs_f64() * 1000.0);
        std::thread::sleep(pause.saturating_sub(at.elapsed()));
    }
    std::fs::remove_file(path).unwrap();
    p50_p99(ms)
}
