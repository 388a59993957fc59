//! The facts of one process, from its folder in /proc (proc(5)).

use std::os::fd::{AsFd, OwnedFd};

use rustix::{
    ffi::CStr,
    fs::{AtFlags, Mode, OFlags, openat, readlinkat_raw, statat},
    io::{Errno, read, retry_on_intr},
};

/// Longest content of a file that is read; stat and status are far shorter, cgroup has a path per hierarchy.
const FILE_LIMIT: usize = 16 * 1024;
/// Longest text of an owner, bytes: what a batch takes (PATH_MAX).
const TEXT_LIMIT: usize = fleetsock_proto::batch::BATCH_TEXT_LIMIT;
/// A thread of the kernel (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;

/// The folder of a process. Once it is open it is of no other process, even when the number is used again.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl Folder {
    /// Opens `/proc/PID`.
    pub(crate) fn open(proc: impl AsFd, pid: &CStr) -> Result<Folder, Errno> {
        openat(proc, pid, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Folder)
    }

    /// Opens the folder of its file descriptors.
    pub(super) fn descriptors(&self) -> Result<OwnedFd, Errno> {
        openat(&self.0, c"fd", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// The executable; empty when it may not be read. " (deleted)" is kept.
    pub(super) fn exe(&self, buffer: &mut [u8]) -> String {
        readlinkat_raw(&self.0, c"exe", &mut *buffer).map(|length| text(&buffer[..length])).unwrap_or_default()
    }

    /// What `/proc/PID/stat` says.
    pub(super) fn stat(&self, buffer: &mut [u8]) -> Result<Stat, Errno> {
        Stat::parse(self.file(c"stat", buffer)?).ok_or(Errno::PROTO)
    }

    /// The real user id.
    pub(super) fn real_uid(&self, buffer: &mut [u8]) -> Result<u32, Errno> {
        first_number(self.file(c"status", buffer)?, b"Uid:").ok_or(Errno::PROTO)
    }

    /// The process, where the folder is a thread's: those can be opened though they are not listed.
    pub(super) fn process(&self, buffer: &mut [u8]) -> Result<u32, Errno> {
        first_number(self.file(c"status", buffer)?, b"Tgid:").ok_or(Errno::PROTO)
    }

    /// The content of a file.
    pub(crate) fn file<'b>(&self, name: &CStr, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
        let file = openat(&self.0, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut length = 0;
        while length < buffer.len() {
            match retry_on_intr(|| read(&file, &mut buffer[length..]))? {
                0 => break,
                more => length += more,
            }
        }
        Ok(&buffer[..length])
    }

    /// Inode number of its network namespace.
    pub(super) fn netns(&self) -> Result<u64, Errno> {
        Ok(statat(&self.0, c"ns/net", AtFlags::empty())?.st_ino)
    }

    /// The effective user id: the owner of the folder, which costs less than reading a file.
    pub(super) fn effective_uid(&self) -> Result<u32, Errno> {
        Ok(rustix::fs::fstat(&self.0)?.st_uid)
    }
}

/// When a process began, clock ticks after boot, if it can be told.
pub(crate) fn started(pid: u32) -> Option<u64> {
    Stat::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?).map(|stat| stat.start_ticks)
}

/// Whether a process is there, and the one that began so many clock ticks after boot where that is given. One of which that
/// cannot be told is.
pub(crate) fn is_running(pid: u32, start_ticks: Option<u64>) -> bool {
    match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(bytes) => Stat::parse(&bytes).is_none_or(|stat| start_ticks.is_none_or(|start| start == stat.start_ticks)),
        // It was there when the file was opened.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::SRCH) => false,
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// A buffer for the files of processes.
pub(crate) fn buffer() -> Vec<u8> {
    vec![0; FILE_LIMIT]
}

/// The parts of `/proc/PID/stat` that are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    /// Command name.
    pub(super) comm: String,
    /// Start of the process, clock ticks after boot.
    pub(super) start_ticks: u64,
    state: u8,
    flags: u32,
}

impl Stat {
    /// Fields 2, 3, 9 and 22. The name is in parentheses and may contain any character, also parentheses.
    fn parse(bytes: &[u8]) -> Option<Stat> {
        let open = bytes.iter().position(|byte| *byte == b'(')?;
        let close = bytes.iter().rposition(|byte| *byte == b')')?;
        let comm = text(bytes.get(open + 1..close)?);
        let mut fields = std::str::from_utf8(bytes.get(close + 1..)?).ok()?.split_ascii_whitespace();
        let state = *fields.next()?.as_bytes().first()?;
        let flags = fields.nth(5)?.parse().ok()?;
        let start_ticks = fields.nth(12)?.parse().ok()?;
        Some(Stat { comm, start_ticks, state, flags })
    }

    /// Whether it never has file descriptors of a user: a thread of the kernel, or dead.
    pub(super) fn holds_nothing(&self) -> bool {
        self.flags & PF_KTHREAD != 0 || matches!(self.state, b'Z' | b'X')
    }
}

/// The first number in a line of status: of the four in `Uid:` the real one.
fn first_number(status: &[u8], name: &[u8]) -> Option<u32> {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    std::str::from_utf8(line).ok()?.split_ascii_whitespace().next()?.parse().ok()
}

/// The inode in the target of a descriptor's link, `socket:[4711]`.
pub(super) fn socket_inode(link: &[u8]) -> Option<u64> {
    let digits = link.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    (!digits.is_empty()).then_some(())?;
    digits.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.wrapping_sub(b'0');
        (digit < 10).then(|| number.checked_mul(10)?.checked_add(digit.into())).flatten()
    })
}

/// The number that the name of a process's folder is.
pub(crate) fn pid(name: &CStr) -> Option<u32> {
    let name = name.to_str().ok()?;
    name.as_bytes().first()?.is_ascii_digit().then(|| name.parse().ok()).flatten()
}

/// Text of the kernel, which need not be UTF-8, cut to what travels.
pub(super) fn text(bytes: &[u8]) -> String {
    cut(String::from_utf8_lossy(bytes).into_owned(), TEXT_LIMIT)
}

/// A text, cut to at most `limit` bytes.
pub(crate) fn cut(mut text: String, limit: usize) -> String {
    let end = (0..=text.len().min(limit)).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STAT: &str =
        "917 (x) y (z) S 1 917 917 0 -1 4194560 2 0 0 0 3 4 0 0 20 0 1 0 8812 1000 9 18446744073709551615";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = Stat::parse(STAT.as_bytes()).unwrap();
        assert_eq!(stat, Stat { comm: "x) y (z".to_owned(), start_ticks: 8812, state: b'S', flags: 4_194_560 });
        assert!(!stat.holds_nothing());
    }

    #[test]
    fn threads_of_the_kernel_and_the_dead_hold_nothing() {
        for (from, to) in [(" S 1 ", " Z 1 "), (" S 1 ", " X 1 "), ("4194560", "69238880")] {
            assert!(Stat::parse(STAT.replace(from, to).as_bytes()).unwrap().holds_nothing(), "{to}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let me = std::process::id();
        let start = started(me).unwrap();
        assert!(is_running(me, None) && is_running(me, Some(start)));
        assert!(!is_running(me, Some(start + 1)), "another one had its number before");
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        assert_eq!((started(gone.id()), is_running(gone.id(), None)), (None, false));
    }

    #[test]
    fn the_real_uid_is_the_first_of_four() {
        assert_eq!(first_number(b"Name:\tx\nUid:\t1000\t0\t0\t0\nGid:\t5\t5\t5\t5\n", b"Uid:"), Some(1000));
        assert_eq!(first_number(b"Name:\tx\n", b"Uid:"), None);
    }

    #[test]
    fn only_sockets_have_a_socket_inode() {
        assert_eq!(socket_inode(b"socket:[4711]"), Some(4711));
        for link in ["socket:[]", "socket:[4711", "pipe:[4711]", "socket:[47a1]", "socket:[99999999999999999999]", "/x"]
        {
            assert_eq!(socket_inode(link.as_bytes()), None, "{link}");
        }
    }

    #[test]
    fn only_numbers_are_pids() {
        assert_eq!(pid(c"1234"), Some(1234));
        for name in [c"self", c".", c"+12", c"", c"12a", c"99999999999"] {
            assert_eq!(pid(name), None, "{name:?}");
        }
    }

    #[test]
    fn a_text_that_grows_by_being_made_readable_still_fits_into_a_batch() {
        assert!(text(&[0xff; TEXT_LIMIT]).len() <= TEXT_LIMIT);
    }

    proptest! {
        #[test]
        fn no_bytes_make_parsing_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _: (Option<Stat>, Option<u32>, Option<u64>) =
                (Stat::parse(&bytes), first_number(&bytes, b"Tgid:"), socket_inode(&bytes));
            let fields = [b"1 (a) ", bytes.as_slice()].concat();
            prop_assert!(Stat::parse(&fields).is_none_or(|stat| stat.comm.len() <= TEXT_LIMIT));
        }
    }
}
