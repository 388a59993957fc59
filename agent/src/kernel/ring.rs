//! Perf rings: memory that the kernel writes records into (perf_event_open(2)).
#![allow(unsafe_code, reason = "the kernel interface that no safe crate covers; each block says why it is sound")]

use std::{
    ffi::CStr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::{
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, munmap},
    param::page_size,
};

/// What is written into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A tracepoint, by its id.
    Tracepoint(u64),
    /// The same, without the records for which this is not true (Documentation/trace/events.rst of the kernel).
    Filtered(u64, &'static CStr),
    /// Forks, exits and names of processes; exec(3) gives names among others. What tells of names tells of forks and exits as
    /// well (perf_event_task_match() of kernel/events/core.c).
    Lives,
}

/// When whoever waits for a ring is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// When it is half full.
    HalfFull,
    /// By every record.
    AtOnce,
}

// Numbers of include/uapi/linux/perf_event.h.
const TYPE_SOFTWARE: u32 = 1;
const TYPE_TRACEPOINT: u32 = 2;
const SOFTWARE_DUMMY: u64 = 9;
const SAMPLE_TID: u64 = 1 << 1;
const SAMPLE_TIME: u64 = 1 << 2;
const SAMPLE_RAW: u64 = 1 << 10;
const FLAG_COMM: u64 = 1 << 9;
const FLAG_TASK: u64 = 1 << 13;
const FLAG_WATERMARK: u64 = 1 << 14;
const FLAG_SAMPLE_ID_ALL: u64 = 1 << 18;
const FLAG_COMM_EXEC: u64 = 1 << 24;
const FLAG_USE_CLOCKID: u64 = 1 << 25;
const FLAG_FD_CLOEXEC: libc::c_ulong = 1 << 3;
/// _IO('$', 5).
const IOC_SET_OUTPUT: libc::Ioctl = 0x2405;
/// _IOW('$', 6, char *).
const IOC_SET_FILTER: libc::Ioctl = 0x4008_2406;

/// `struct perf_event_attr`, PERF_ATTR_SIZE_VER5.
#[repr(C)]
#[derive(Debug, Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_watermark: u32,
    breakpoint: u32,
    config1: u64,
    config2: u64,
    branch_sample_type: u64,
    sample_regs_user: u64,
    sample_stack_user: u32,
    clockid: i32,
    sample_regs_intr: u64,
    aux_watermark: u32,
    sample_max_stack: u16,
    reserved: u16,
}

const ATTRIBUTES_SIZE: u32 = 112;
const _: () = assert!(size_of::<Attributes>() == ATTRIBUTES_SIZE as usize);

// Offsets within `struct perf_event_mmap_page`.
const DATA_HEAD: usize = 1024;
const DATA_TAIL: usize = 1032;

/// The ring of one processor.
#[derive(Debug)]
pub(crate) struct Ring {
    /// The event whose ring it is, and those that write into it too.
    events: Vec<OwnedFd>,
    /// One page of control, then the data.
    memory: ptr::NonNull<u8>,
    page: usize,
    /// Bytes of data, a power of two.
    bytes: usize,
}

// SAFETY: the memory belongs to the ring alone in this process, and every access to it takes the ring by `&mut`.
unsafe impl Send for Ring {}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // A ring is only made with at least one event.
        self.events[0].as_fd()
    }
}

impl Ring {
    /// Lets the kernel write what the sources tell of one processor into a ring of `bytes`, a power of two.
    pub(crate) fn open(cpu: u32, sources: &[Source], bytes: usize, wake: Wake) -> Result<Ring, Errno> {
        let page = page_size();
        assert!(!sources.is_empty() && bytes.is_power_of_two() && bytes >= page, "a ring of {bytes} bytes");
        let cpu = libc::c_int::try_from(cpu).map_err(|_| Errno::INVAL)?;
        let watermark = match wake {
            Wake::HalfFull => bytes / 2,
            Wake::AtOnce => 1,
        };
        let watermark = u32::try_from(watermark).unwrap_or(u32::MAX);
        let events: Vec<OwnedFd> =
            sources.iter().map(|source| open_event(*source, cpu, watermark)).collect::<Result<_, _>>()?;
        // SAFETY: the kernel chooses the address, so no other mapping is touched; a failure is an error, not a pointer.
        let memory = unsafe {
            mmap(ptr::null_mut(), page + bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &events[0], 0)?
        };
        let memory = ptr::NonNull::new(memory.cast()).ok_or(Errno::NOMEM)?;
        let ring = Ring { events, memory, page, bytes };
        for event in &ring.events[1..] {
            // SAFETY: both descriptors are open events of one processor, which is all that the call asks for.
            let outcome = unsafe { libc::ioctl(event.as_raw_fd(), IOC_SET_OUTPUT, ring.events[0].as_raw_fd()) };
            if outcome < 0 {
                return Err(last_error());
            }
        }
        Ok(ring)
    }

    /// Replaces the content of `buffer` with everything that was written since the last time.
    pub(crate) fn take(&mut self, buffer: &mut Vec<u8>) {
        buffer.clear();
        // SAFETY: both words lie in the control page, are aligned to 8 bytes, and live as long as the ring; the kernel
        // writes the head while we read it, so they are accessed as atomics.
        let (head, tail) = unsafe {
            (
                AtomicU64::from_ptr(self.memory.as_ptr().add(DATA_HEAD).cast()),
                AtomicU64::from_ptr(self.memory.as_ptr().add(DATA_TAIL).cast()),
            )
        };
        let (from, to) = (tail.load(Ordering::Relaxed), head.load(Ordering::Acquire));
        let mask = self.bytes as u64 - 1;
        let length = usize::try_from(to.wrapping_sub(from)).unwrap_or(usize::MAX).min(self.bytes);
        // Both are below `bytes`.
        let start = (from & mask) as usize;
        let before_the_end = length.min(self.bytes - start);
        // SAFETY: the data begin one page into the mapping and have `bytes` bytes; both ranges lie within them. The
        // kernel does not write between tail and head until the tail moves, which happens below.
        let (first, second) = unsafe {
            let data = self.memory.as_ptr().add(self.page);
            (
                std::slice::from_raw_parts(data.add(start), before_the_end),
                std::slice::from_raw_parts(data, length - before_the_end),
            )
        };
        buffer.extend_from_slice(first);
        buffer.extend_from_slice(second);
        tail.store(to, Ordering::Release);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing refers to it after this.
        if let Err(errno) = unsafe { munmap(self.memory.as_ptr().cast(), self.page + self.bytes) } {
            tracing::warn!(error = %errno, "cannot give back the memory of a ring");
        }
    }
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

fn open_event(source: Source, cpu: libc::c_int, wakeup_watermark: u32) -> Result<OwnedFd, Errno> {
    let (kind, config, period, flags) = match source {
        Source::Tracepoint(id) | Source::Filtered(id, _) => (TYPE_TRACEPOINT, id, 1, 0),
        Source::Lives => (TYPE_SOFTWARE, SOFTWARE_DUMMY, 0, FLAG_TASK | FLAG_COMM | FLAG_COMM_EXEC),
    };
    let attributes = Attributes {
        kind,
        size: ATTRIBUTES_SIZE,
        config,
        sample_period: period,
        sample_type: SAMPLE_TID | SAMPLE_TIME | SAMPLE_RAW,
        flags: flags | FLAG_SAMPLE_ID_ALL | FLAG_WATERMARK | FLAG_USE_CLOCKID,
        wakeup_watermark,
        clockid: libc::CLOCK_MONOTONIC,
        ..Attributes::default()
    };
    let (every_process, no_group): (libc::pid_t, libc::c_int) = (-1, -1);
    // SAFETY: the kernel reads `size` bytes of the attributes, which are that long, and keeps nothing of them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            ptr::from_ref(&attributes),
            every_process,
            cpu,
            no_group,
            FLAG_FD_CLOEXEC,
        )
    };
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::INVAL)?;
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    let event = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Source::Filtered(_, filter) = source {
        // SAFETY: the kernel reads the text up to its end, which is there, and keeps nothing of it.
        let outcome = unsafe { libc::ioctl(event.as_raw_fd(), IOC_SET_FILTER, filter.as_ptr()) };
        if outcome < 0 {
            tracing::debug!(error = %last_error(), ?filter, "a filter is not taken: more records than needed");
        }
    }
    Ok(event)
}
