//! What the agent costs its host.

use std::{fs, io, time::Duration};

use fleetsock_proto::stream::AgentCost;
use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

/// Reads the cost again and again, to tell of each time between.
#[derive(Debug, Default)]
pub struct Meter {
    last: Option<(Duration, Duration)>,
}

fn clock(id: ClockId) -> Duration {
    Duration::try_from(clock_gettime(id)).unwrap_or_default()
}

/// Pages that are resident, the second field of /proc/self/statm (proc_pid_statm(5)).
fn resident_pages() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/self/statm")?;
    text.split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`", text.trim())))
}

/// Thousandths of a percent of one core.
fn millipercent(cpu: Duration, time: Duration) -> u32 {
    match time.as_micros() {
        0 => 0,
        us => u32::try_from(cpu.as_micros() * 100_000 / us).unwrap_or(u32::MAX),
    }
}

impl Meter {
    /// The cost now, with what the caller knows to be lost.
    pub fn read(&mut self, losses: u64) -> AgentCost {
        let (cpu, now) = (clock(ClockId::ProcessCPUTime), clock(ClockId::Monotonic));
        let (cpu_before, before) = self.last.replace((cpu, now)).unwrap_or((cpu, now));
        let pages = resident_pages().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot read /proc/self/statm");
            0
        });
        AgentCost {
            cpu,
            rss_bytes: pages * u64::try_from(page_size()).unwrap_or(0),
            cpu_millipercent: millipercent(cpu.saturating_sub(cpu_before), now.saturating_sub(before)),
            losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_second_of_four_is_a_quarter_of_a_core() {
        assert_eq!(millipercent(Duration::from_secs(1), Duration::from_secs(4)), 25_000);
        assert_eq!(millipercent(Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(millipercent(Duration::MAX, Duration::from_micros(1)), u32::MAX);
    }

    #[test]
    fn this_process_has_used_memory_and_cpu() {
        let cost = Meter::default().read(7);
        assert!(cost.rss_bytes > 100_000 && cost.cpu > Duration::ZERO && cost.losses == 7, "{cost:?}");
    }
}
