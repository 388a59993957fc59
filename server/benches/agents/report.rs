//! What all agents measured together, and the table of it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::Arguments;

/// What all agents measured together.
#[derive(Default)]
pub(super) struct Measured {
    pub(super) rows: AtomicU64,
    /// Attempts to connect that failed, and streams that broke off.
    pub(super) refused: AtomicU64,
    pub(super) lost: AtomicU64,
    /// Of batches that were sent while all agents were caught up, and of the others.
    pub(super) steady: Mutex<Vec<Duration>>,
    pub(super) storm: Mutex<Vec<Duration>>,
    /// Agents that are connected and whose snapshot was acknowledged.
    pub(super) caught_up: AtomicU64,
}

impl Measured {
    /// Waits until all agents are caught up; how long that took, if it was in time.
    pub(super) async fn all_caught_up(&self, agents: u32, until: Instant) -> Option<Duration> {
        let begun = Instant::now();
        while self.caught_up.load(Relaxed) < u64::from(agents) {
            if Instant::now() >= until {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Some(begun.elapsed())
    }
}

pub(super) struct Figures {
    pub(super) elapsed: f64,
    pub(super) cpu: f64,
    /// Memory without agents, when all were caught up (the steady phase begins), after a third of that phase, and at its
    /// end; MiB.
    pub(super) empty: f64,
    pub(super) rss_before: f64,
    pub(super) rss_third: f64,
    pub(super) rss: f64,
    pub(super) caught_up: Option<Duration>,
    /// After a restart; `None` within when they did not all come back in time.
    pub(super) back: Option<Option<Duration>>,
}

pub(super) async fn report(arguments: &Arguments, measured: &Measured, figures: Figures) {
    let rows = measured.rows.load(Relaxed);
    let per_agent = (figures.rss - figures.empty) * 1024.0 / f64::from(arguments.agents);
    println!(
        "\n| {} agents from {} addresses, {} rows every {} ms, {:.0} s | |",
        arguments.agents, arguments.addresses, arguments.rows, arguments.every, figures.elapsed
    );
    println!("|---|---|");
    println!("| acknowledged rows | {rows}, {:.0}/s |", rows as f64 / figures.elapsed);
    for (what, acks) in [("steady", &measured.steady), ("while snapshots come", &measured.storm)] {
        let mut acks = acks.lock().await;
        acks.sort();
        let last = acks.len().saturating_sub(1) as f64;
        let at = |part: f64| acks.get((last * part) as usize).map_or(f64::NAN, |ack| ack.as_secs_f64() * 1000.0);
        println!(
            "| acknowledgement p50 / p90 / p99 / max, {what} ({}) | {:.1} / {:.1} / {:.1} / {:.1} ms |",
            acks.len(),
            at(0.5),
            at(0.9),
            at(0.99),
            at(1.0)
        );
    }
    let within =
        |time: Option<Duration>| time.map_or("not in time".to_owned(), |time| format!("{:.1} s", time.as_secs_f64()));
    println!("| CPU of the server | {:.1} s, {:.1} us per row |", figures.cpu, figures.cpu * 1e6 / rows as f64);
    println!(
        "| resident memory of the server | {:.0} MiB ({:.0} without agents, {:.0} when all were caught up), {per_agent:.0} KiB per agent |",
        figures.rss, figures.empty, figures.rss_before
    );
    println!(
        "| growth of that over the steady phase | {:+.1} MiB from its first third ({:.1}) to its end ({:.1}) |",
        figures.rss - figures.rss_third,
        figures.rss_third,
        figures.rss
    );
    println!("| attempts to connect that failed | {} |", measured.refused.load(Relaxed));
    println!("| streams lost | {} |", measured.lost.load(Relaxed));
    println!("| all connected and their snapshots acknowledged | {} |", within(figures.caught_up));
    if let Some(back) = figures.back {
        println!("| the same after a restart | {} |", within(back));
    }
}
