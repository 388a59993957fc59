//! The network namespaces that bind mounts keep, from /proc/self/mountinfo (proc_pid_mountinfo(5)).
//!
//! The kernel says when the list changed (poll(2): POLLPRI), so that it is read only then.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read, Seek},
    os::unix::ffi::OsStringExt,
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::retry_on_intr,
};

/// Most bytes of the list that are read: some hundred thousand mounts.
const LIST_LIMIT: usize = 32 * 1024 * 1024;

/// A network namespace and the file that it is mounted on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    pub(super) netns: u64,
    pub(super) path: PathBuf,
}

/// The mounts of network namespaces.
#[derive(Debug)]
pub(super) struct Mounts {
    file: File,
    found: Vec<Mount>,
    /// Whether the list was read; how often it was cut.
    read: Option<u64>,
}

impl Mounts {
    pub(super) fn open() -> io::Result<Mounts> {
        Ok(Mounts { file: File::open("/proc/self/mountinfo")?, found: Vec::new(), read: None })
    }

    /// Reads the list if it changed; 1 when it is longer than is read.
    pub(super) fn look(&mut self) -> io::Result<u64> {
        // Asked before it is read, so that what changes meanwhile is told next time.
        match (self.changed()?, self.read) {
            (false, Some(cut)) => Ok(cut),
            _ => self.read(),
        }
    }

    fn changed(&self) -> io::Result<bool> {
        let mut list = [PollFd::new(&self.file, PollFlags::PRI)];
        retry_on_intr(|| poll(&mut list, Some(&Timespec::default())))?;
        Ok(list[0].revents().contains(PollFlags::PRI))
    }

    fn read(&mut self) -> io::Result<u64> {
        self.read = None;
        self.file.rewind()?;
        let mut list = Vec::new();
        let limit = u64::try_from(LIST_LIMIT).unwrap_or(u64::MAX);
        (&self.file).take(limit).read_to_end(&mut list)?;
        self.found = parse(&list);
        let cut = u64::from(list.len() == LIST_LIMIT);
        self.read = Some(cut);
        Ok(cut)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.found.iter()
    }
}

/// The mounts of network namespaces in a list.
fn parse(list: &[u8]) -> Vec<Mount> {
    list.split(|byte| *byte == b'\n').filter_map(mount).collect()
}

/// `44 43 0:4 net:[4026532177] /run/netns/a rw shared:2 - nsfs nsfs rw`; `None` for mounts of anything else.
fn mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ').skip(3);
    let (root, path) = (fields.next()?, fields.next()?);
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    (after.next()? == b"nsfs").then_some(())?;
    let digits = root.strip_prefix(b"net:[")?.strip_suffix(b"]")?;
    let netns = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(Mount { netns, path: OsString::from_vec(unescaped(path)).into() })
}

/// Space, tab, line feed and backslash are written as `\` and three octal digits.
fn unescaped(path: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, after @ ..] = rest {
        let digits = after.first_chunk::<3>().filter(|_| *first == b'\\');
        let escaped = digits.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_mounts_of_network_namespaces_are_taken() {
        let list = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
            44 43 0:4 net:[4026532177] /run/netns/a\\040b\\134 rw shared:2 master:1 - nsfs nsfs rw\n\
            45 43 0:4 net:[4026532178] /run/docker/netns/4a0b3fa9e8d1 rw - nsfs nsfs rw\n\
            46 43 0:4 mnt:[4026532179] /run/snapd/ns/x.mnt rw - nsfs nsfs rw\n\
            47 43 0:9 net:[4026532180] /fake rw - tmpfs tmpfs rw\n\
            48 43 0:4 net:[x] /x rw - nsfs nsfs rw\n";
        let mount = |netns, path: &str| Mount { netns, path: path.into() };
        assert_eq!(
            parse(list),
            [mount(4_026_532_177, "/run/netns/a b\\"), mount(4_026_532_178, "/run/docker/netns/4a0b3fa9e8d1")]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_reading_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300), tail in "[ \\\\0-9a:\\[\\]/\n-]{0,80}") {
            for list in [bytes, format!("1 2 0:4 net:[7] /{tail} - nsfs nsfs rw").into_bytes(), tail.into_bytes()] {
                prop_assert!(parse(&list).len() <= list.len() / 20);
            }
        }

        #[test]
        fn every_path_comes_back(path in proptest::collection::vec(1_u8.., 1..40)) {
            let mut escaped = Vec::new();
            for byte in &path {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").into_bytes()),
                    _ => escaped.push(*byte),
                }
            }
            let line = [b"1 2 0:4 net:[7] ", escaped.as_slice(), b" rw - nsfs nsfs rw"].concat();
            prop_assert_eq!(parse(&line), [Mount { netns: 7, path: OsString::from_vec(path).into() }]);
        }
    }
}
