//! What the agent costs its host.

use std::{fs, io, time::Duration};

use fleetsock_proto::stream::AgentCost;
use rustix::{
    param::page_size,
    time::{ClockId, clock_gettime},
};

/// Memory of an agent that follows nothing, bytes, with room for what is on the way.
const IDLE_BYTES: u64 = 24 * 1024 * 1024;
/// Memory of one more socket at the most: its row of a walk, its place in the table, its life as events tell it.
const SOCKET_BYTES: u64 = 1024;

/// How many sockets an agent can follow that may take so much memory.
pub fn sockets_within(memory_bytes: u64) -> usize {
    let sockets = memory_bytes.saturating_sub(IDLE_BYTES) / SOCKET_BYTES;
    usize::try_from(sockets).unwrap_or(usize::MAX)
}

/// CPU of this process until now, all its threads.
pub fn cpu() -> Duration {
    clock(ClockId::ProcessCPUTime)
}

/// CPU of the calling thread until now.
pub fn thread_cpu() -> Duration {
    clock(ClockId::ThreadCPUTime)
}

/// Time since the boot of the host, with the time that it slept.
pub fn since_boot() -> Duration {
    clock(ClockId::Boottime)
}

/// Time since the boot of the host, without the time that it slept.
pub fn awake() -> Duration {
    clock(ClockId::Monotonic)
}

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
    resident(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("`{}`", text.trim())))
}

fn resident(statm: &str) -> Option<u64> {
    statm.split_whitespace().nth(1)?.parse().ok()
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
        let (cpu, now) = (cpu(), clock(ClockId::Monotonic));
        let (cpu_before, before) = self.last.replace((cpu, now)).unwrap_or((cpu, now));
        let pages = resident_pages().unwrap_or_else(|error| {
            tracing::debug!(%error, "cannot read /proc/self/statm");
            0
        });
        AgentCost {
            cpu,
            rss_bytes: pages.saturating_mul(u64::try_from(page_size()).unwrap_or(0)),
            cpu_millipercent: millipercent(cpu.saturating_sub(cpu_before), now.saturating_sub(before)),
            losses,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_busy_second_of_four_is_a_quarter_of_a_core() {
        assert_eq!(millipercent(Duration::from_secs(1), Duration::from_secs(4)), 25_000);
        assert_eq!(millipercent(Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(millipercent(Duration::MAX, Duration::from_micros(1)), u32::MAX);
    }

    #[test]
    fn sockets_share_the_memory_that_an_idle_agent_leaves() {
        for (mib, sockets) in [(0, 0), (24, 0), (32, 8 * 1024), (512, 488 * 1024)] {
            assert_eq!(sockets_within(mib * 1024 * 1024), sockets);
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_reading_fail(text in "\\PC{0,60}", pages in any::<u64>()) {
            prop_assert!(resident(&text).is_none_or(|_| text.split_whitespace().count() > 1));
            prop_assert_eq!(resident(&format!("1 {pages} 3 {text}")), Some(pages));
        }
    }

    #[test]
    fn this_process_has_used_memory_and_cpu() {
        let cost = Meter::default().read(7);
        assert!(cost.rss_bytes > 100_000 && cost.cpu > Duration::ZERO && cost.losses == 7, "{cost:?}");
    }
}
