//! What a program writes for everything that an iterator of BPF comes by: records of one length.

use std::{ops::ControlFlow, os::fd::BorrowedFd};

use rustix::io::{Errno, read, retry_on_intr};

use super::bpf;

/// Bytes that the kernel has ready at once for a reading: eight pages (kernel/bpf/bpf_iter.c).
const READY_BYTES: usize = 32 * 1024;

/// How an iterator is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Readings {
    /// Bytes of a record.
    pub(crate) record: usize,
    /// Most readings of one pass.
    pub(crate) most: usize,
}

impl Readings {
    /// Goes through everything once, and shows each record until no more is wanted. `goes_on` is asked before each reading.
    pub(crate) fn pass<E: From<Errno>>(
        self,
        link: BorrowedFd<'_>,
        mut goes_on: impl FnMut() -> Result<(), E>,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, E> {
        let pass = bpf::iterate(link)?;
        let mut chunk = vec![0; READY_BYTES / self.record * self.record];
        for _ in 0..self.most {
            goes_on()?;
            let length = match retry_on_intr(|| read(&pass, &mut chunk)) {
                Ok(0) => return Ok(ControlFlow::Continue(())),
                // Nothing was written for so many in a row that the kernel takes a break (MAX_ITER_OBJECTS of
                // kernel/bpf/bpf_iter.c): it goes on from there.
                Err(Errno::AGAIN) => continue,
                length => length?,
            };
            let mut records = chunk.get(..length).unwrap_or_default().chunks_exact(self.record);
            if !records.remainder().is_empty() {
                return Err(Errno::PROTO.into());
            }
            if records.try_for_each(&mut each).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Err(Errno::OVERFLOW.into())
    }
}
