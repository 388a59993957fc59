//! Trace buffers of the agent alone: an instance of tracefs (Documentation/trace/ftrace.rst of the kernel, "Instances").
//!
//! What the tracepoints write there is nobody else's. Perf events of a tracepoint are deaf as long as any program has BPF
//! attached to it by perf (perf_trace_run_bpf_submit() of kernel/trace/trace_event_perf.c), and leave out records of tasks
//! without a word; an instance does neither, and an entry costs the host less than a record of perf.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{fs::OFlags, process::getpid};

use super::{
    Drained,
    page::page_bytes,
    reading::{Formats, read_page},
    tracepoint::{DESTROY, STATE, Tracefs},
};

/// What our instances are called, with the agent's process and a number behind it.
const NAME: &str = "fleetsock-";
/// Numbers that are tried for a name: agents of one process, and what is left of one with the same number.
const NAMES_LIMIT: u32 = 1024;
/// Entries that the kernel drops are counted in a file of each processor; it is read when so large a part of a buffer was
/// found filled, because a buffer that was never nearly full dropped nothing.
const FILLED_PART: usize = 4;
/// How the first pid namespace is called (PROC_PID_INIT_INO, include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
/// Longest content of a file that is read.
const TEXT_LIMIT: usize = 4096;

/// Why there is no instance.
#[derive(Debug, thiserror::Error)]
pub(super) enum InstanceError {
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
    /// The kernel's buffers are not what is understood here.
    #[error("unknown trace buffers: {0}")]
    Unknown(String),
}

/// An instance; removed when it is dropped.
#[derive(Debug)]
pub(super) struct Instance {
    path: PathBuf,
    buffers: Vec<Buffer>,
    page: Vec<u8>,
    /// Bytes of a processor's buffer.
    bytes: usize,
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
        // /proc could be of another one than the agent is in; whoever can see processes by their numbers there is fine.
        let namespace = fs::read_link("/proc/self/ns/pid");
        if !namespace.is_ok_and(|namespace| namespace == Path::new(FIRST_PID_NAMESPACE)) {
            return Err(InstanceError::Elsewhere);
        }
        let instances = tracefs.root().join("instances");
        remove_abandoned(&instances);
        let path = make(&instances)?;
        let mut instance = Instance { path, buffers: Vec::new(), page: Vec::new(), bytes: 0 };
        let bytes = page_bytes(&instance.text("events/header_page")?, &instance.text("events/header_event")?);
        instance.page = vec![0; bytes.map_err(InstanceError::Unknown)?];
        // The clock of the perf rings.
        instance.set("trace_clock", "mono")?;
        // What there is no room for is dropped and counted, and what was written stays.
        instance.set("options/overwrite", "0")?;
        // Whoever waits is woken at half full.
        instance.set("buffer_percent", "50")?;
        instance.bytes = instance.resize(sizes)?;
        instance.set(&format!("events/{STATE}/filter"), filter)?;
        instance.buffers = processors.iter().map(|cpu| instance.buffer(*cpu)).collect::<Result<_, _>>()?;
        for tracepoint in [STATE, DESTROY] {
            instance.set(&format!("events/{tracepoint}/enable"), "1")?;
        }
        Ok(instance)
    }

    fn resize(&self, sizes: &[usize]) -> Result<usize, InstanceError> {
        let mut refused = InstanceError::Unknown("no size was tried".to_owned());
        for bytes in sizes {
            match self.set("buffer_size_kb", &(bytes >> 10).to_string()) {
                Ok(()) => return Ok(*bytes),
                Err(error) => refused = error,
            }
        }
        Err(refused)
    }

    fn buffer(&self, cpu: u32) -> Result<Buffer, InstanceError> {
        let open = |name| {
            let path = self.path.join(format!("per_cpu/cpu{cpu}/{name}"));
            let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
            let file = OpenOptions::new().read(true).custom_flags(nonblocking).open(&path);
            file.map_err(|source| InstanceError::File { path, source })
        };
        Ok(Buffer { pages: open("trace_pipe_raw")?, stats: open("stats")?, dropped: 0 })
    }

    /// A short file, in one read: some files of tracefs have nothing behind the first one (show_header() of
    /// kernel/trace/trace_events.c).
    fn text(&self, name: &str) -> Result<String, InstanceError> {
        let path = self.path.join(name);
        let mut bytes = vec![0; TEXT_LIMIT];
        let length = File::open(&path).and_then(|file| file.read_at(&mut bytes, 0));
        let length = length.map_err(|source| InstanceError::File { path, source })?;
        Ok(String::from_utf8_lossy(&bytes[..length]).into_owned())
    }

    fn set(&self, name: &str, value: &str) -> Result<(), InstanceError> {
        let path = self.path.join(name);
        // Nothing is made here: a file that the kernel does not have is an error.
        let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|source| InstanceError::File { path, source })
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
        let pages = self.bytes.div_ceil(self.page.len());
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
        if let Err(error) = self.set("events/enable", "0") {
            tracing::debug!(%error, "an instance is still written to");
        }
        // It is busy as long as they are open.
        self.buffers.clear();
        remove(&self.path);
    }
}

fn remove(path: &Path) {
    match fs::remove_dir(path) {
        Ok(()) => {}
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(path = %path.display(), %error, "cannot remove an instance of tracefs"),
    }
}

/// Makes a folder with a name that nobody has.
fn make(instances: &Path) -> Result<PathBuf, InstanceError> {
    static MADE: AtomicU32 = AtomicU32::new(0);
    let mut tried = 0;
    loop {
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let path = instances.join(format!("{NAME}{}-{number}", getpid().as_raw_nonzero()));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(source) if source.kind() == io::ErrorKind::AlreadyExists && tried < NAMES_LIMIT => tried += 1,
            Err(source) => return Err(InstanceError::File { path, source }),
        }
    }
}

/// Removes the instances of agents that were killed. Until then they cost the host little: a full buffer takes nothing more.
/// The number of one may be that of another process now; then it stays until that is gone as well.
fn remove_abandoned(instances: &Path) {
    let Ok(entries) = fs::read_dir(instances) else { return };
    for entry in entries.flatten() {
        let owner = entry.file_name().to_str().and_then(owner);
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            tracing::info!(path = %entry.path().display(), "removing what a killed agent left");
            remove(&entry.path());
        }
    }
}

/// The process that made an instance of this name.
fn owner(name: &str) -> Option<u32> {
    let (pid, number) = name.strip_prefix(NAME)?.split_once('-')?;
    number.parse::<u32>().ok()?;
    pid.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_have_an_owner() {
        assert_eq!(owner("fleetsock-77-0"), Some(77));
        for other in ["fleetsock-77", "fleetsock-77-x", "fleetsock-x-1", "fleetsock-", "77-1", "other-77-1"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }

    #[test]
    fn all_ways_of_missing_an_entry_are_counted() {
        let stats = "entries: 5\noverrun: 1\ncommit overrun: 20\nbytes: 9\noldest event ts:     0.000000\n\
            now ts: 52747.697897\ndropped events: 300\nread events: 7\n";
        assert_eq!(dropped(stats), 321);
        assert_eq!(dropped(""), 0);
    }
}
