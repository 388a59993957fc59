//! What something took.

use std::{fs, time::Instant};

/// What it took to store rows: seconds by the clock, and seconds of CPU of all threads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) clock: f64,
    pub(crate) cpu: f64,
}

/// A stopwatch.
pub(crate) struct Watch(Instant, f64);

impl Watch {
    pub(crate) fn start() -> Watch {
        Watch(Instant::now(), cpu())
    }

    pub(crate) fn took(&self) -> Took {
        Took { clock: self.0.elapsed().as_secs_f64(), cpu: cpu() - self.1 }
    }
}

/// CPU seconds of this process so far (proc_pid_stat(5): utime and stime, in ticks of 10 ms).
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}
