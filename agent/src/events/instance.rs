//! Trace buffers of the agent alone: an instance of tracefs (Documentation/trace/ftrace.rst of the kernel, "Instances").
//!
//! What the tracepoints write there is nobody else's. Perf events of a tracepoint are deaf as long as any program has BPF
//! attached to it by perf (perf_trace_run_bpf_submit() of kernel/trace/trace_event_perf.c), and leave out records of tasks
//! without a word; an instance does neither, and an entry costs the host less than a record of perf.

use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    path::PathBuf,
};

use self::folder::{Folder, instances};
pub use self::prepared::{BuffersName, InvalidBuffersName, make_buffers, remove_buffers};
use super::{
    Drained,
    page::page_bytes,
    reading::{Formats, read_page},
    tracepoint::Tracefs,
};
use crate::facts::{Namespace, is_in_first};

mod folder;
mod makers;
mod prepared;

/// Entries that the kernel drops are counted in a file of each processor; it is read when so large a part of a buffer was
/// found filled, because a buffer that was never nearly full dropped nothing.
const FILLED_PART: usize = 4;
/// Longest content of a file that is read.
const TEXT_LIMIT: usize = 4096;

/// Why there is no instance.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// Entries hold numbers of the first pid namespace, which are not those that the agent sees.
    #[error("the agent is not in the first pid namespace")]
    Elsewhere,
    /// Something of tracefs cannot be made, written or opened.
    #[error("{}: {source}", path.display())]
    File {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody made what an agent was told to read.
    #[error("{} is not there: nobody prepared it (fleetsock-agent buffers make)", .0.display())]
    Absent(PathBuf),
    /// Somebody reads it.
    #[error("{} is in use by another agent", .0.display())]
    InUse(PathBuf),
    /// It was not set up by this version of the agent, or by none.
    #[error("{} is `{found}` and not `{expected}`: it was not prepared by this version of the agent", path.display())]
    Strange {
        /// Which setting.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The kernel's buffers are not what is understood here.
    #[error("unknown trace buffers: {0}")]
    Unknown(String),
}

/// An instance that is read.
#[derive(Debug)]
pub(super) struct Instance {
    folder: Folder,
    whose: Whose,
    buffers: Vec<Buffer>,
    page: Vec<u8>,
    /// Bytes of a processor's buffer.
    bytes: usize,
}

/// Who made an instance.
#[derive(Debug)]
enum Whose {
    /// The agent, which removes it when it is dropped.
    Own,
    /// Root. No other agent reads it as long as this is held.
    Prepared {
        /// Its folder.
        _hold: File,
    },
}

/// The buffer of one processor.
#[derive(Debug)]
struct Buffer {
    pages: File,
    stats: File,
    /// Entries that were dropped so far.
    dropped: u64,
}

impl Instance {
    /// Makes an instance for these processors and begins to listen. Takes the owner of tracefs, which is root as a rule.
    pub(super) fn open(
        tracefs: &Tracefs,
        processors: &[u32],
        sizes: &[usize],
        filter: &str,
    ) -> Result<Instance, InstanceError> {
        in_first_pid_namespace()?;
        let instances = instances(tracefs);
        makers::remove_abandoned(&instances);
        let folder = Folder(makers::make(&instances)?);
        let mut instance = Instance { folder, whose: Whose::Own, buffers: Vec::new(), page: Vec::new(), bytes: 0 };
        instance.folder.set_up(sizes, filter)?;
        instance.read_from(processors)?;
        instance.folder.begin()?;
        Ok(instance)
    }

    /// Begins to read what was prepared for these processors, from now on. Takes CAP_DAC_READ_SEARCH.
    pub(super) fn take(
        tracefs: &Tracefs,
        processors: &[u32],
        name: &BuffersName,
        filter: &str,
    ) -> Result<Instance, InstanceError> {
        let folder = name.folder(tracefs);
        let whose = Whose::Prepared { _hold: folder.hold()? };
        folder.check(filter)?;
        let mut instance = Instance { folder, whose, buffers: Vec::new(), page: Vec::new(), bytes: 0 };
        instance.read_from(processors)?;
        in_first_pid_namespace()?;
        let pages = instance.pages();
        for buffer in &mut instance.buffers {
            buffer.skip(&mut instance.page, pages);
        }
        Ok(instance)
    }

    fn read_from(&mut self, processors: &[u32]) -> Result<(), InstanceError> {
        let (page, event) = (self.folder.text("events/header_page")?, self.folder.text("events/header_event")?);
        self.page = vec![0; page_bytes(&page, &event).map_err(InstanceError::Unknown)?];
        self.bytes = self.folder.bytes()?;
        self.buffers = processors.iter().map(|cpu| self.buffer(*cpu)).collect::<Result<_, _>>()?;
        Ok(())
    }

    fn buffer(&self, cpu: u32) -> Result<Buffer, InstanceError> {
        let open = |name| self.folder.open(&format!("per_cpu/cpu{cpu}/{name}"));
        Ok(Buffer { pages: open("trace_pipe_raw")?, stats: open("stats")?, dropped: 0 })
    }

    /// Pages of a processor's buffer.
    fn pages(&self) -> usize {
        self.bytes.div_ceil(self.page.len())
    }

    /// Bytes of a processor's buffer.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What can be waited for: each can be read when it is half full.
    pub(super) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.buffers.iter().map(|buffer| buffer.pages.as_fd())
    }

    /// Adds everything that is in the buffers to `drained`.
    pub(super) fn drain(&mut self, formats: &Formats, drained: &mut Drained) {
        let pages = self.pages();
        for buffer in &mut self.buffers {
            buffer.drain(&mut self.page, pages, formats, drained);
        }
    }
}

impl Buffer {
    /// Twice as many pages as there are is enough, however fast they are filled meanwhile: the others can wait.
    fn drain(&mut self, page: &mut [u8], pages: usize, formats: &Formats, drained: &mut Drained) {
        let mut read = 0;
        while read < 2 * pages {
            match self.pages.read(page) {
                Ok(0) => break,
                Ok(length) => read_page(&page[..length], formats, drained),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::debug!(%error, "cannot read a trace buffer");
                    drained.unreadable += 1;
                    break;
                }
            }
            read += 1;
        }
        if read >= pages / FILLED_PART {
            let dropped = self.dropped_so_far();
            drained.lost += dropped.saturating_sub(self.dropped);
            self.dropped = self.dropped.max(dropped);
        }
    }

    /// Passes over what was written before anybody could say whose it was.
    fn skip(&mut self, page: &mut [u8], pages: usize) {
        for _ in 0..2 * pages {
            match self.pages.read(page) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What cannot be read now will be counted as unreadable then.
                Err(_) => break,
            }
        }
        self.dropped = self.dropped_so_far();
    }

    fn dropped_so_far(&self) -> u64 {
        let mut text = [0; TEXT_LIMIT];
        match self.stats.read_at(&mut text, 0) {
            Ok(length) => dropped(&String::from_utf8_lossy(&text[..length])),
            Err(error) => {
                tracing::debug!(%error, "cannot tell how many entries were dropped");
                self.dropped
            }
        }
    }
}

/// What the counts of a buffer say of entries that are missing.
fn dropped(stats: &str) -> u64 {
    let counts = stats.lines().filter_map(|line| line.split_once(':'));
    let missing = counts.filter(|(name, _)| ["overrun", "commit overrun", "dropped events"].contains(name));
    missing.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).fold(0, u64::saturating_add)
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It is busy as long as they are open.
        self.buffers.clear();
        match self.whose {
            Whose::Prepared { .. } => {}
            Whose::Own => {
                if let Err(error) = self.folder.end() {
                    tracing::debug!(%error, "an instance is still written to");
                }
                if let Err(error) = folder::remove(&self.folder.0) {
                    tracing::warn!(%error, "cannot remove an instance of tracefs");
                }
            }
        }
    }
}

fn in_first_pid_namespace() -> Result<(), InstanceError> {
    if is_in_first(Namespace::Pid) { Ok(()) } else { Err(InstanceError::Elsewhere) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_of_missing_an_entry_are_counted() {
        let stats = "entries: 5\noverrun: 1\ncommit overrun: 20\nbytes: 9\noldest event ts:     0.000000\n\
            now ts: 52747.697897\ndropped events: 300\nread events: 7\n";
        assert_eq!(dropped(stats), 321);
        assert_eq!(dropped(""), 0);
    }
}
