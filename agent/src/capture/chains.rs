//! The TCP connections of a network namespace, told by the kernel without its dump: an iterator of BPF that goes through the
//! chains of the kernel's table of connections and writes a record of 72 bytes for each.
//!
//! A dump fills in a message of many attributes that nobody here asks for, and for that goes all over each socket: several times the CPU. The
//! kernel's own iterator of TCP sockets is no way: it locks each socket, and a process that is kept waiting while it sends
//! (for a page of a file system that does not answer) keeps whoever wants that lock waiting too, where no signal reaches it.
//!
//! A socket has a cookie only once somebody asked for it, and the program cannot. When it comes by one that has none, or is
//! led astray by changes, it says so, and the table is to be dumped, which gives all of them theirs.

use std::{
    fs, io,
    ops::ControlFlow,
    os::fd::{AsFd, OwnedFd},
};

use rustix::io::Errno;

use self::{
    program::{GROUP, Layout},
    record::{RECORD_BYTES, Record},
};
use super::SocketRow;
use crate::{
    facts::{Namespace, is_in_first},
    kernel::{
        assembly::LICENSE,
        bpf::{self, Refused},
        btf::{self, Btf, InvalidBtf},
        iterator::Readings,
    },
    privileges::{FOR_PROGRAMS, missing},
};

mod program;
mod record;

/// What the program is called in lists of programs.
const NAME: &[u8; 16] = b"fleetsock_chain\0";
/// How many chains the table has (since Linux 6.1); less than nought when it is not of the network namespace alone.
const ENTRIES: &str = "/proc/sys/net/ipv4/tcp_ehash_entries";
/// Most chains of a table; kernels make 524,288 unless they are told to make more.
const ENTRIES_LIMIT: u32 = 16 << 20;
/// Most readings of one pass: of so many sockets that most are not kept.
const READINGS_LIMIT: usize = 1 << 16;

/// Why the kernel does not tell connections without a dump.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChainsError {
    /// The agent may not ask.
    #[error("no {0}")]
    Unprivileged(String),
    /// Sockets have other users in the agent's user namespace.
    #[error("the agent is not in the first user namespace")]
    OtherUsers,
    /// The kernel does not describe its types, or not its table.
    #[error("{path}: {cause}")]
    File {
        /// Where it does.
        path: &'static str,
        /// Why.
        #[source]
        cause: io::Error,
    },
    /// Its description is not understood, or it is of a kernel without what is needed (Linux 6.18).
    #[error("{0}")]
    Unknown(String),
    /// The kernel does not take the program.
    #[error("the kernel refuses the BPF program: {0}")]
    Refused(String),
    /// The kernel does not begin to tell, or does not go on.
    #[error("the kernel's iterator: {0}")]
    Broken(#[source] Errno),
}

impl From<Errno> for ChainsError {
    fn from(errno: Errno) -> ChainsError {
        ChainsError::Broken(errno)
    }
}

impl From<InvalidBtf> for ChainsError {
    fn from(error: InvalidBtf) -> ChainsError {
        ChainsError::Unknown(error.to_string())
    }
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// Every connection was told.
    Whole,
    /// Not every one can be told: a dump has to.
    InVain,
}

/// A program in the kernel that goes through the TCP connections of a network namespace when it is asked.
#[derive(Debug)]
pub(super) struct Chains {
    /// Holds the program.
    link: OwnedFd,
    netns: u64,
}

impl Chains {
    /// Puts the program into the kernel, with the capabilities of the calling thread (CAP_BPF and CAP_PERFMON), for its
    /// network namespace, which has this inode. Later passes need none.
    pub(super) fn open(netns: u64) -> Result<Chains, ChainsError> {
        if let Some(missing) = missing(FOR_PROGRAMS) {
            return Err(ChainsError::Unprivileged(missing));
        }
        if !is_in_first(Namespace::User) {
            return Err(ChainsError::OtherUsers);
        }
        let file = |path| move |cause| ChainsError::File { path, cause };
        let entries = fs::read_to_string(ENTRIES).map_err(file(ENTRIES))?;
        let entries = table_size(&entries).ok_or_else(|| ChainsError::Unknown(format!("{ENTRIES}: {entries:?}")))?;
        let inode = u32::try_from(netns).map_err(|_| ChainsError::Unknown(format!("network namespace {netns}")))?;
        let bytes = btf::read().map_err(file(btf::PATH))?;
        let layout = Layout::of(&Btf::parse(&bytes)?)?;
        drop(bytes);
        let program = bpf::load(NAME, &layout.program(entries.cast_signed(), inode), LICENSE, layout.function.0);
        let program = program.map_err(|refused: Refused| ChainsError::Refused(refused.to_string()))?;
        let array = bpf::array(entries / GROUP)?;
        let link = bpf::attach_to(array.as_fd(), program.as_fd())?;
        Ok(Chains { link, netns })
    }

    /// One that is none: the kernel refuses to go through it.
    #[cfg(test)]
    pub(super) fn broken() -> Chains {
        Chains { link: fs::File::open("/dev/null").unwrap().into(), netns: 0 }
    }

    /// Goes through everything once. The calling thread must be in the network namespace.
    pub(super) fn pass(&self, mut each: impl FnMut(SocketRow)) -> Result<Passed, ChainsError> {
        let readings = Readings { record: RECORD_BYTES, most: READINGS_LIMIT };
        // A run of the program that tells more than there is room for is an error (TOOBIG): the table is small, and will be.
        let passed = readings.pass(
            self.link.as_fd(),
            || Ok(()),
            |record| match Record::read(record, self.netns) {
                Some(Record::Socket(row)) => {
                    each(row);
                    ControlFlow::Continue(())
                }
                Some(Record::Doubtful) | None => ControlFlow::Break(()),
            },
        );
        passed.map(|passed: ControlFlow<()>| if passed.is_break() { Passed::InVain } else { Passed::Whole })
    }
}

/// How many chains the table has, in whole groups.
fn table_size(text: &str) -> Option<u32> {
    let entries = text.trim().parse::<i32>().ok()?.unsigned_abs();
    (entries.is_multiple_of(GROUP) && (1..=ENTRIES_LIMIT).contains(&entries)).then_some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_whole_groups_of_chains() {
        for (text, entries) in [
            ("262144\n", Some(262_144)),
            ("-4096\n", Some(4096)),
            ("0\n", None),
            ("17\n", None),
            ("x", None),
            ("-2147483648", None),
        ] {
            assert_eq!(table_size(text), entries, "{text}");
        }
    }
}
