//! Has the system write a file to the disk while it grows.
//!
//! What is written to a file stays in memory until it is made durable. Of a sealed file that would be all of it at once, and
//! whoever makes something else durable would wait behind it. So it is written out a megabyte at a time; nobody waits for
//! that, and what is left in the end is little.

use std::{
    fs::File,
    num::NonZeroU64,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use rustix::fs::{Advice, fadvise};

/// Bytes that are written out at once.
const STEP_BYTES: u64 = 1024 * 1024;

/// A file that grows, and how much of it is being written out.
pub(super) struct Writeback {
    file: File,
    begun: AtomicU64,
}

impl Writeback {
    pub(super) fn of(file: File) -> Writeback {
        Writeback { file, begun: AtomicU64::new(0) }
    }

    /// Begins to write out what came since the last time, if it is enough. That it was written is known only when the file
    /// is made durable, and so is what failed.
    pub(super) fn go_on(&self) {
        let (begun, size) = (self.begun.load(Relaxed), self.file.metadata().map_or(0, |file| file.len()));
        let Some(grown) = size.checked_sub(begun).filter(|grown| *grown >= STEP_BYTES).and_then(NonZeroU64::new) else {
            return;
        };
        // Linux begins to write pages that are to be forgotten, and forgets none that is not written (mm/fadvise.c).
        if let Err(error) = fadvise(&self.file, begun, Some(grown), Advice::DontNeed) {
            tracing::debug!(%error, "a file is written out in the end");
        }
        self.begun.store(size, Relaxed);
    }
}
