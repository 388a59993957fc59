//! Programs that the kernel runs for the agent while it goes through something of its own, and whose output is read as a
//! file: iterators of BPF (bpf(2), Documentation/bpf/bpf_iterators.rst of the kernel).
#![allow(unsafe_code, reason = "the kernel interface that no safe crate covers; each block says why it is sound")]

use std::{
    ffi::CStr,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
    ptr,
};

use rustix::io::Errno;

// Numbers of include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_int = 0;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
const ITER_CREATE: libc::c_int = 33;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
/// Bytes of what the kernel says of a program that it does not take.
const LOG_BYTES: u32 = 64 << 10;
/// How a line of that begins that is only a statistic.
const LOG_STATISTICS: &str = "processed ";

/// An instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// One with these parts, whatever they mean for the code. There are sixteen registers at most.
    pub(crate) const fn new(code: u8, [to, from]: [u8; 2], offset: i16, immediate: i32) -> Instruction {
        // Bit fields begin at the other end where bytes do.
        let registers = if cfg!(target_endian = "big") { (to << 4) | from } else { (from << 4) | to };
        Instruction { code, registers, offset, immediate }
    }
}

/// `union bpf_attr` for BPF_PROG_LOAD, as of Linux 5.8, when iterators came.
#[repr(C)]
#[derive(Debug, Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    attach_type: u32,
    btf: u32,
    function_info_size: u32,
    function_info: u64,
    function_info_count: u32,
    line_info_size: u32,
    line_info: u64,
    line_info_count: u32,
    attach_btf_id: u32,
    attach_program: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<Load>() == 120 && size_of::<Instruction>() == 8);

/// The same for BPF_LINK_CREATE; what is left out is for iterators that go through a part.
#[repr(C)]
#[derive(Debug)]
struct Attach {
    program: libc::c_int,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// The same, and what the iterator goes through.
#[repr(C)]
#[derive(Debug)]
struct AttachTo {
    attach: Attach,
    parts: u64,
    parts_size: u32,
    reserved: u32,
}

/// `union bpf_iter_link_info`: a map.
#[repr(C)]
#[derive(Debug)]
struct Parts {
    map: libc::c_int,
    reserved: [u32; 3],
}

/// `union bpf_attr` for BPF_MAP_CREATE; what is left out is nought.
#[repr(C)]
#[derive(Debug)]
struct Map {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// The same for BPF_ITER_CREATE.
#[repr(C)]
#[derive(Debug)]
struct Iterate {
    link: libc::c_int,
    flags: u32,
}

/// The kernel does not take a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{errno}{}{said}", if said.is_empty() { "" } else { ": " })]
pub(crate) struct Refused {
    /// Why.
    pub(crate) errno: Errno,
    /// What its verifier says, on one line; empty when it was not asked.
    pub(crate) said: String,
}

/// Loads a program that is run for everything that an iterator comes by, under a license of the program (some functions of
/// the kernel are only for those that it may link with), for the function that stands for the iterator in the kernel's BTF.
pub(crate) fn load(
    name: &[u8; 16],
    program: &[Instruction],
    license: &CStr,
    function: u32,
) -> Result<OwnedFd, Refused> {
    let count = u32::try_from(program.len()).map_err(|_| Refused { errno: Errno::TOOBIG, said: String::new() })?;
    let attributes = Load {
        kind: PROG_TYPE_TRACING,
        count,
        instructions: program.as_ptr().expose_provenance() as u64,
        license: license.as_ptr().expose_provenance() as u64,
        name: *name,
        attach_type: TRACE_ITER,
        attach_btf_id: function,
        ..Load::default()
    };
    // SAFETY: the kernel reads so many instructions and the text up to its end, which are there; it writes nothing.
    match unsafe { call(PROG_LOAD, &attributes) } {
        // Only the verifier has more to say.
        Err(errno @ (Errno::ACCESS | Errno::INVAL)) => {
            let mut log = vec![0; LOG_BYTES as usize];
            let place = log.as_mut_ptr().expose_provenance() as u64;
            let attributes = Load { log_level: 1, log_size: LOG_BYTES, log: place, ..attributes };
            // SAFETY: as above; and it writes to the log, which has as many bytes as it is told and nobody else uses.
            unsafe { call(PROG_LOAD, &attributes) }.map_err(|_| Refused { errno, said: last_line(&log) })
        }
        loaded => loaded.map_err(|errno| Refused { errno, said: String::new() }),
    }
}

/// Makes an iterator of a program that was loaded: a link, which holds the program.
pub(crate) fn attach(program: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let attributes = Attach { program: program.as_raw_fd(), target: 0, attach_type: TRACE_ITER, flags: 0 };
    // SAFETY: there are no pointers.
    unsafe { call(LINK_CREATE, &attributes) }
}

/// Makes an iterator of a program that is to go through an array, as [`array`] makes one. The link holds both.
pub(crate) fn attach_to(array: BorrowedFd<'_>, program: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let parts = Parts { map: array.as_raw_fd(), reserved: [0; 3] };
    let attributes = AttachTo {
        attach: Attach { program: program.as_raw_fd(), target: 0, attach_type: TRACE_ITER, flags: 0 },
        parts: ptr::from_ref(&parts).expose_provenance() as u64,
        parts_size: size_of::<Parts>() as u32,
        reserved: 0,
    };
    // SAFETY: the kernel reads the parts, which are there and as long as it is told.
    unsafe { call(LINK_CREATE, &attributes) }
}

/// Makes an array of so many numbers, for an iterator to go through. It takes eight bytes for each.
pub(crate) fn array(entries: u32) -> Result<OwnedFd, Errno> {
    // SAFETY: there are no pointers.
    unsafe { call(MAP_CREATE, &Map { kind: MAP_TYPE_ARRAY, key_size: 4, value_size: 4, entries }) }
}

/// Begins to go through everything once; what the program writes is read from the file. Takes no capability from Linux 5.19
/// on, where an earlier one asks for CAP_BPF unless BPF is everybody's.
pub(crate) fn iterate(link: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // SAFETY: there are no pointers.
    unsafe { call(ITER_CREATE, &Iterate { link: link.as_raw_fd(), flags: 0 }) }
}

/// A command of bpf(2) that gives a descriptor, which is closed on exec.
///
/// # Safety
///
/// What the attributes point to must be there, as large as they say, and if the command writes to it, nobody else's.
unsafe fn call<A>(command: libc::c_int, attributes: &A) -> Result<OwnedFd, Errno> {
    // SAFETY: the kernel reads `size` bytes of the attributes, which are that long; the caller answers for the rest.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<A>()) };
    let fd = libc::c_int::try_from(fd).map_err(|_| Errno::INVAL)?;
    if fd < 0 {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
    }
    // SAFETY: the kernel just gave us this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The last line of a log of the verifier that says something: why.
fn last_line(log: &[u8]) -> String {
    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    let says = |line: &&str| !line.is_empty() && !line.starts_with(LOG_STATISTICS);
    text.lines().map(str::trim).rfind(says).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::fd::AsFd};

    use super::*;

    #[test]
    fn the_verifier_says_why_before_its_statistics() {
        let log = b"0: (79) r6 = *(u64 *)(r1 +24)\nR6 invalid mem access 'scalar'\nprocessed 1 insns (limit 1000000)\n\n\0\0rest";
        assert_eq!(last_line(log), "R6 invalid mem access 'scalar'");
        assert_eq!((last_line(b""), last_line(b"\0")), (String::new(), String::new()));
    }

    #[test]
    fn a_descriptor_of_something_else_is_no_program_and_no_link() {
        let other = File::open("/dev/null").unwrap();
        let (attached, iterated) = (attach(other.as_fd()), iterate(other.as_fd()));
        assert!(attached.is_err() && iterated.is_err(), "{attached:?} {iterated:?}");
        assert!(attach_to(other.as_fd(), other.as_fd()).is_err());
    }
}
