//! How much memory the process has, and had at most (`proc_pid_status(5)`).

use std::fs;

const KIB_PER_MIB: f64 = 1024.0;

/// What it had when this began.
pub(crate) struct Memory(f64);

impl Memory {
    /// From now on; what it had at most before is forgotten (`proc_pid_clear_refs(5)`).
    pub(crate) fn watch() -> Memory {
        fs::write("/proc/self/clear_refs", "5").unwrap();
        Memory(mib("VmRSS:"))
    }

    /// MiB more than when it began: at most, and now.
    pub(crate) fn grown(&self) -> (f64, f64) {
        (mib("VmHWM:") - self.0, mib("VmRSS:") - self.0)
    }
}

fn mib(field: &str) -> f64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse::<f64>().unwrap() / KIB_PER_MIB
}
